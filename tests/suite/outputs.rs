//! Contract 6: what was published nowhere is not confirmed; and what a service without a ledger says at its start.

use std::fs;
use std::io;
use std::os::fd::IntoRawFd;
use std::path::Path;

use crate::broker;
use crate::control::{get, wait_for_metrics};
use crate::service::{Ended, Setup};
use crate::world::directories;

fn watch(data: &Path, state: &Path, output: &str) -> Setup {
    Setup::new(&["watch", "--output", output]).env("DATA_DIRECTORY", data).env("STATE_DIRECTORY", state)
}

fn warnings(ended: &Ended) -> Vec<&str> {
    ended.stderr.lines().filter(|line| line.contains("WARN")).collect()
}

/// Rows of the ledger; none where there is no ledger.
fn rows(state: &Path) -> usize {
    if state.join("ledger.sqlite").exists() { crate::ledger::rows(state).len() } else { 0 }
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
    assert_eq!((rows(&state), warnings(&ended).len()), (0, 1), "{}", ended.stderr);
    assert!(warnings(&ended)[0].contains("no ledger") && warnings(&ended)[0].contains("STATE_DIRECTORY"));

    let service = watch(&data, &state, "stdout").spawn();
    service.wait_ready();
    wait_for_metrics(&service.control_socket(), "every row", |seen| seen["apollonia_ledger_rows"] == FILES as f64);
    let ended = service.stop();
    assert_eq!((ended.stdout.lines().count(), rows(&state)), (FILES, FILES), "{}", ended.stderr);
    assert!(warnings(&ended).is_empty(), "{}", ended.stderr);
}

/// Has the program start without a standard output.
fn without_stdout(setup: Setup) -> Setup {
    // SAFETY: close is async-signal-safe, and the descriptor is the new process's own.
    let close = || match unsafe { libc::close(libc::STDOUT_FILENO) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    };
    // SAFETY: as above; nothing is allocated but by an error that ends the test.
    unsafe { setup.before_exec(close) }
}

/// Has it start with a standard output that nothing can be written to.
fn with_unwritable_stdout(setup: Setup) -> Setup {
    let unwritable = fs::File::open("/dev/null").unwrap().into_raw_fd();
    // SAFETY: dup2 is async-signal-safe, and both descriptors are the new process's own.
    let replace = move || match unsafe { libc::dup2(unwritable, libc::STDOUT_FILENO) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    };
    // SAFETY: as above; nothing is allocated but by an error that ends the test.
    unsafe { setup.before_exec(replace) }
}

#[test]
fn a_standard_output_that_is_none_is_one_error_line_and_confirms_nothing() {
    let (_root, data, outside) = directories();
    let state = outside.join("state");
    fs::write(data.join("file"), "content").unwrap();
    for spoil in [without_stdout, with_unwritable_stdout] {
        for setup in [watch(&data, &state, "stdout"), Setup::new(&["scan", "--output", "stdout"]).arg(&data)] {
            let ended = spoil(setup).spawn().wait_exit().expect_code(1);
            let errors: Vec<&str> = ended.stderr.lines().filter(|line| line.contains("ERROR")).collect();
            assert_eq!(errors.len(), 1, "{}", ended.stderr);
            assert!(errors[0].contains("standard output: Bad file descriptor"), "{}", errors[0]);
            assert_eq!(rows(&state), 0);
        }
    }
    let listen = Setup::new(&["listen", "--timeout", "60"]).env("AMQP_CONNECTION_STRING", broker::shared().vhost());
    let ended = without_stdout(listen).spawn().wait_exit().expect_code(1);
    assert!(ended.stderr.contains("standard output: Bad file descriptor"), "{}", ended.stderr);
}

#[test]
fn a_service_without_a_ledger_says_what_will_be_lost() {
    let (_root, data, outside) = directories();
    let url = broker::shared().vhost();
    let told = |setup: Setup| {
        let service = setup.spawn();
        service.wait_ready();
        let ended = service.stop();
        let lines: Vec<String> = ended
            .stderr
            .lines()
            .filter(|line| line.contains("WARN") && line.contains("ledger"))
            .map(str::to_owned)
            .collect();
        lines
    };
    let lines = told(Setup::watch(&data, &url));
    assert_eq!(lines.len(), 1, "{lines:?}");
    for word in ["lost", "broker goes away", "while it is down", "STATE_DIRECTORY", "--state-dir"] {
        assert!(lines[0].contains(word), "{word}: {}", lines[0]);
    }
    // Nothing is lost with these: a ledger, and a start that publishes all there is.
    assert_eq!(told(Setup::watch(&data, &url).env("STATE_DIRECTORY", &outside)), [""; 0]);
    assert_eq!(told(Setup::watch(&data, &url).args(&["--catch-up", "all"])), [""; 0]);
    // Nor has standard output a broker.
    assert_eq!(told(Setup::watch(&data, &url).args(&["--output", "stdout"])), [""; 0]);
}
