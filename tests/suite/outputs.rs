//! What was published nowhere is not confirmed, and a service without a ledger warns of what it may lose.

use std::fs;
use std::path::Path;

use crate::support::broker;
use crate::support::control::{get, wait_for_metrics};
use crate::support::ledger;
use crate::support::setup::Setup;
use crate::support::streams::{with, without};
use crate::support::world::directories;

fn watch(data: &Path, state: &Path, output: &str) -> Setup {
    Setup::new(&["watch", "--output", output]).env("DATA_DIRECTORY", data).env("STATE_DIRECTORY", state)
}

/// How many rows the ledger has, none where there is no ledger.
fn rows(state: &Path) -> usize {
    if state.join("ledger.sqlite").exists() { ledger::rows(state).len() } else { 0 }
}

#[test]
fn the_output_none_confirms_nothing() {
    const FILES: usize = 4;
    let (_root, data, outside) = directories();
    let state = outside.join("state");
    for number in 0..FILES {
        fs::write(data.join(format!("file-{number}")), "content").unwrap();
    }
    let service = watch(&data, &state, "none").spawn();
    service.wait_ready();
    let socket = service.control_socket();
    wait_for_metrics(&socket, "every file read", |seen| seen["apollonia_files_read_total"] == FILES as f64);
    assert_eq!(get(&socket, "/ready").0, 200, "no broker is missing");
    let ended = service.stop();
    assert_eq!((rows(&state), ended.warnings().len()), (0, 1), "{}", ended.stderr);
    assert!(ended.warnings()[0].contains("no ledger") && ended.warnings()[0].contains("STATE_DIRECTORY"));

    let service = watch(&data, &state, "stdout").spawn();
    service.wait_ready();
    wait_for_metrics(&service.control_socket(), "every row", |seen| seen["apollonia_ledger_rows"] == FILES as f64);
    let ended = service.stop();
    assert_eq!((ended.stdout.lines().count(), rows(&state)), (FILES, FILES), "{}", ended.stderr);
    assert!(ended.warnings().is_empty(), "{}", ended.stderr);
}

fn without_stdout(setup: Setup) -> Setup {
    without(setup, &[libc::STDOUT_FILENO])
}

/// Starts the program with a standard output that cannot be written.
fn with_unwritable_stdout(setup: Setup) -> Setup {
    with(setup, libc::STDOUT_FILENO, fs::File::open("/dev/null").unwrap())
}

#[test]
fn an_unusable_standard_output_is_one_error_and_confirms_nothing() {
    let (_root, data, outside) = directories();
    let state = outside.join("state");
    fs::write(data.join("file"), "content").unwrap();
    for spoil in [without_stdout, with_unwritable_stdout] {
        for setup in [watch(&data, &state, "stdout"), Setup::new(&["scan", "--output", "stdout"]).arg(&data)] {
            let ended = spoil(setup).spawn().wait_exit().expect_code(1);
            ended.assert_one_error("standard output: Bad file descriptor");
            assert_eq!(rows(&state), 0);
        }
    }
    let listen = Setup::new(&["listen", "--timeout", "60"]).env("AMQP_CONNECTION_STRING", broker::shared().vhost());
    let ended = without_stdout(listen).spawn().wait_exit().expect_code(1);
    assert!(ended.stderr.contains("standard output: Bad file descriptor"), "{}", ended.stderr);
}

#[test]
fn a_service_without_a_ledger_warns_of_what_it_may_lose() {
    let (_root, data, outside) = directories();
    let url = broker::shared().vhost();
    let warnings_about_the_ledger = |setup: Setup| {
        let service = setup.spawn();
        service.wait_ready();
        let ended = service.stop();
        let warnings = ended.warnings().into_iter().filter(|line| line.contains("ledger"));
        warnings.map(str::to_owned).collect::<Vec<String>>()
    };
    let lines = warnings_about_the_ledger(Setup::watch(&data, &url));
    assert_eq!(lines.len(), 1, "{lines:?}");
    for word in ["lost", "broker goes away", "while it is down", "STATE_DIRECTORY", "--state-dir"] {
        assert!(lines[0].contains(word), "{word}: {}", lines[0]);
    }
    // Nothing is lost with a ledger, nor by a start that publishes all files.
    assert_eq!(warnings_about_the_ledger(Setup::watch(&data, &url).env("STATE_DIRECTORY", &outside)), [""; 0]);
    assert_eq!(warnings_about_the_ledger(Setup::watch(&data, &url).args(&["--catch-up", "all"])), [""; 0]);
    // Standard output has no broker that goes away.
    assert_eq!(warnings_about_the_ledger(Setup::watch(&data, &url).args(&["--output", "stdout"])), [""; 0]);
}
