//! The standard streams: a reader that is slow or goes away, streams that are closed, full, or not to be waited for.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::process::Signal;

use crate::support::control::{get, metrics, wait_for_metrics};
use crate::support::ledger;
use crate::support::service::{Ended, Service};
use crate::support::setup::Setup;
use crate::support::streams::{do_not_block, open_to_write, pipe, wait_until_full, with, without};
use crate::support::wait::retry;
use crate::support::world::directories;

const STDERR: i32 = 2;

fn watch(data: &Path) -> Setup {
    Setup::new(&["watch", "--output", "stdout"]).env("DATA_DIRECTORY", data)
}

/// Waits until a service answers whose log nobody sees.
fn wait_until_it_answers(service: &Service) {
    let socket = service.control_socket();
    retry("its socket", || if socket.exists() { Ok(()) } else { Err(String::new()) });
    retry("ready", || match get(&socket, "/ready") {
        (200, ..) => Ok(()),
        (_, _, body) => Err(body),
    });
}

#[test]
fn a_pipe_that_does_not_block_is_waited_for() {
    const FILES: usize = 1000;
    let (_root, data, _) = directories();
    for number in 0..FILES {
        fs::write(data.join(format!("file-{number}")), "").unwrap();
    }
    let (read, write) = pipe();
    do_not_block(&write);
    let seen = write.try_clone().unwrap();
    let scan = Setup::new(&["scan", "--output", "stdout"]).arg(&data);
    let service = with(scan, 1, write).spawn();
    wait_until_full(seen.try_clone().unwrap());
    drop(seen);
    let mut printed = String::new();
    File::from(read).read_to_string(&mut printed).unwrap();
    service.wait_exit().expect_code(0);
    assert!(printed.ends_with('\n'));
    assert_eq!(printed.lines().count(), FILES);
}

#[track_caller]
fn assert_silent(ended: Ended) {
    let ended = ended.expect_code(0);
    for word in ["ERROR", "WARN", "error", "panicked", "Broken pipe"] {
        assert!(!ended.stderr.contains(word), "{word}: {}", ended.stderr);
    }
}

#[test]
fn a_reader_that_goes_away_ends_a_command_silently() {
    let (_root, data, outside) = directories();
    for number in 0..2000 {
        fs::write(data.join(format!("file-{number}")), "").unwrap();
    }
    let (scan, stdout) = Setup::new(&["scan", "--output", "stdout"]).arg(&data).spawn_held();
    BufReader::new(stdout).read_line(&mut String::new()).unwrap();
    assert_silent(scan.wait_exit());

    // The service has nothing more to write, and ends all the same.
    let (service, stdout) = watch(&data).env("STATE_DIRECTORY", &outside).args(&["--catch-up", "none"]).spawn_held();
    service.wait_ready();
    fs::write(data.join("new"), "content").unwrap();
    wait_for_metrics(&service.control_socket(), "its confirm", |seen| {
        seen["apollonia_messages_confirmed_total"] == 1.0
    });
    drop(stdout);
    assert_silent(service.wait_exit());
    assert_eq!(ledger::rows(&outside).len(), 1);

    for words in [&["--help"][..], &["--version"], &["scan", "--help"]] {
        assert_silent(Setup::new(words).spawn_unread().wait_exit());
    }
}

#[test]
fn what_was_not_written_before_the_reader_went_has_no_row() {
    let (_root, data, outside) = directories();
    for number in 0..3000 {
        fs::write(data.join(format!("file-{number}")), "").unwrap();
    }
    let (service, stdout) = watch(&data).env("STATE_DIRECTORY", &outside).spawn_held();
    let mut reader = BufReader::with_capacity(4096, stdout);
    reader.read_line(&mut String::new()).unwrap();
    // The pipe is full, and the service waits in the middle of a write.
    wait_for_metrics(&service.control_socket(), "files that wait", |seen| seen["apollonia_in_flight_files"] > 100.0);
    drop(reader);
    assert_silent(service.wait_exit());
    let rows = ledger::rows(&outside).len();
    let service = watch(&data).env("STATE_DIRECTORY", &outside).spawn();
    service.wait_ready();
    let missing = 3000 - rows;
    wait_for_metrics(&service.control_socket(), "the others", |seen| {
        seen["apollonia_messages_confirmed_total"] == missing as f64
    });
    service.stop();
}

/// A service whose standard error is this file publishes, and ends well.
#[track_caller]
fn publishes_with(data: &Path, name: &str, change: impl FnOnce(Setup) -> Setup) {
    let service = change(watch(data).env("LOG_LEVEL", "DEBUG")).spawn();
    wait_until_it_answers(&service);
    fs::write(data.join(name), "content").unwrap();
    service.wait_stdout(name, |line| line.contains(name));
    service.signal(Signal::TERM);
    let ended = service.wait_exit().expect_code(0);
    assert!(
        ended.stdout.lines().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()),
        "{}",
        ended.stdout
    );
}

#[test]
fn standard_error_that_takes_nothing_costs_log_lines_alone() {
    let (_root, data, _) = directories();
    let gone = || {
        let (read, write) = pipe();
        drop(read);
        write
    };
    publishes_with(&data, "closed", |setup| without(setup, &[STDERR]));
    publishes_with(&data, "full", |setup| with(setup, STDERR, open_to_write("/dev/full")));
    publishes_with(&data, "gone", |setup| with(setup, STDERR, gone()));
    let refused = || Setup::new(&["--workers", "0"]);
    without(refused(), &[STDERR]).run().expect_code(2);
    with(refused(), STDERR, open_to_write("/dev/full")).run().expect_code(2);
    with(refused(), STDERR, gone()).run().expect_code(2);
}

#[test]
fn streams_that_are_closed_at_start_are_no_other_file_later() {
    let (_root, data, _) = directories();
    let service = without(Setup::new(&["watch", "--output", "none"]).env("DATA_DIRECTORY", &data), &[0, 1, 2]).spawn();
    wait_until_it_answers(&service);
    for descriptor in 0..3 {
        let file = fs::read_link(format!("/proc/{}/fd/{descriptor}", service.id())).unwrap();
        assert_eq!(file, Path::new("/dev/null"), "{descriptor}");
    }
    service.stop();
}

#[test]
fn standard_error_that_nobody_reads_holds_up_nothing() {
    const FILES: usize = 5000;
    let (_root, data, _) = directories();
    let (read, write) = pipe();
    let seen: OwnedFd = write.try_clone().unwrap();
    let setup = Setup::new(&["watch", "--output", "none"]).env("DATA_DIRECTORY", &data).env("LOG_LEVEL", "DEBUG");
    let service = with(setup, STDERR, write).spawn();
    wait_until_it_answers(&service);
    let long = "n".repeat(240);
    for number in 0..FILES {
        fs::write(data.join(format!("{long}-{number}")), "").unwrap();
    }
    let socket = service.control_socket();
    wait_for_metrics(&socket, "every file", |metrics| metrics["apollonia_files_read_total"] == FILES as f64);
    assert!(
        metrics(&socket)["apollonia_log_lines_dropped_total"] > 0.0,
        "nothing was dropped: the test proves nothing"
    );
    wait_until_full(seen.try_clone().unwrap());
    drop(seen);

    let mut lines = BufReader::new(File::from(read)).lines().map(Result::unwrap);
    let whole = |line: &str| assert!(line.starts_with("20") && line.contains('Z'), "a torn line: {line:?}");
    let counted = lines.by_ref().inspect(|line| whole(line)).find(|line| line.contains("log lines were dropped"));
    assert!(counted.is_some_and(|line| line.contains("WARN")), "no line says that lines were dropped");
    service.signal(Signal::TERM);
    let last = lines.last().unwrap();
    assert!(last.contains("stopped: "), "{last}");
    service.wait_exit().expect_code(0);
}
