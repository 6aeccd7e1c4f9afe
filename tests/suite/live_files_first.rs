//! A file that lands now is published before the files that a catch-up or a rescan has found.

use std::fs;
use std::io::{BufRead, BufReader};

use crate::support::control::wait_for_metrics;
use crate::support::setup::Setup;
use crate::support::world::directories;

/// More than are dispatched before the test begins to read: those in flight, and those that fill the pipe.
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
    // The test does not read yet, so that the catch-up stands still.
    fs::write(data.join("live"), "now").unwrap();
    let socket = service.control_socket();
    wait_for_metrics(&socket, "the close of the live file", |seen| {
        seen["apollonia_events_total{kind=\"closed\"}"] > 0.0
    });
    let mut lines = BufReader::new(stdout).lines().map(|line| line.expect("a line"));
    let before = lines.position(|line| line.contains("/live\"")).expect("the live file's message");
    assert!(before < FILES / 3, "{before} messages came before it");
    let after = lines.take(FILES - before).count();
    assert_eq!(before + after, FILES, "the rest of the catch-up");
    service.signal(rustix::process::Signal::TERM);
}
