//! Contract 4.7: what happens now comes before what a catch-up or a rescan has found.

use std::fs;
use std::io::{BufRead, BufReader};

use crate::control::wait_for_metrics;
use crate::service::Setup;
use crate::world::directories;

/// More than are ever handed out before the test begins to read: those with the readers and the output, and a pipe's fill.
const FILES: usize = 30_000;

#[test]
fn a_file_that_lands_during_a_catch_up_does_not_wait_for_all_of_it() {
    let (_root, data, outside) = directories();
    for number in 0..FILES {
        fs::write(data.join(format!("old-{number:05}")), "").unwrap();
    }
    let setup = Setup::new(&["watch"]).env("DATA_DIRECTORY", &data).env("STATE_DIRECTORY", outside.join("state"));
    let (service, stdout) = setup.args(&["--output", "stdout"]).spawn_held();
    service.wait_ready();
    // Nobody reads yet, so that the backlog stands still.
    fs::write(data.join("live"), "now").unwrap();
    let socket = service.control_socket();
    wait_for_metrics(&socket, "the close of the live file", |seen| {
        seen["apollonia_events_total{kind=\"closed\"}"] > 0.0
    });
    let mut lines = BufReader::new(stdout).lines().map(|line| line.expect("a line"));
    let before = lines.position(|line| line.contains("/live\"")).expect("the live file's message");
    assert!(before < FILES / 3, "{before} messages came before it");
    let after = lines.take(FILES - before).count();
    assert_eq!(before + after, FILES, "the others");
    service.signal(rustix::process::Signal::TERM);
}
