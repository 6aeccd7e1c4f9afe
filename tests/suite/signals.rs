//! Signals: SIGHUP is a rescan, SIGINT and SIGTERM are heard whatever was inherited, and a scan says that it was ended early.

use std::ffi::CString;
use std::fs;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::process::Signal;

use crate::support::control::{health, metrics, wait_for_metrics};
use crate::support::service::Ended;
use crate::support::setup::Setup;
use crate::support::world::directories;

/// Starts the program as a parent does that blocks every signal in its thread and ignores some.
fn inheriting(setup: Setup, ignored: &'static [libc::c_int]) -> Setup {
    let inherit = move || {
        // SAFETY: all of these are async-signal-safe, and the set is initialized before it is read.
        unsafe {
            let mut all = std::mem::MaybeUninit::uninit();
            libc::sigfillset(all.as_mut_ptr());
            libc::sigprocmask(libc::SIG_BLOCK, all.as_ptr(), std::ptr::null_mut());
            // Whoever started the tests may ignore some, too, as nohup(1) does.
            for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGTERM] {
                libc::signal(signal, libc::SIG_DFL);
            }
            for signal in ignored {
                libc::signal(*signal, libc::SIG_IGN);
            }
        }
        Ok(())
    };
    // SAFETY: as above.
    unsafe { setup.before_exec(inherit) }
}

/// Changes a file without any event.
fn truncate(path: &Path, length: i64) {
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    // SAFETY: the path ends in a zero byte and lives through the call.
    assert_eq!(unsafe { libc::truncate(path.as_ptr(), length) }, 0);
}

#[test]
fn sighup_is_a_rescan_and_the_end_is_clean_whatever_was_inherited() {
    let (_root, data, _) = directories();
    let file = data.join("file");
    for (ignored, end) in [
        (&[][..], Signal::TERM),
        (&[libc::SIGHUP, libc::SIGINT, libc::SIGTERM, libc::SIGCHLD, libc::SIGPIPE][..], Signal::INT),
    ] {
        fs::write(&file, "content").unwrap();
        let setup = Setup::new(&["watch", "--output", "stdout", "--catch-up", "all"]).env("DATA_DIRECTORY", &data);
        let service = inheriting(setup, ignored).spawn();
        service.wait_ready();
        service.wait_stdout("the first message", |line| line.contains("\"size\":7"));
        truncate(&file, 3);
        service.signal(Signal::HUP);
        service.wait_stdout("the message of a change without an event", |line| line.contains("\"size\":3"));
        let socket = service.control_socket();
        wait_for_metrics(&socket, "its count", |seen| seen["apollonia_rescans_total{cause=\"signal\"}"] == 1.0);
        assert_eq!(health(&socket).0, 200);
        assert_eq!(metrics(&socket)["apollonia_rescans_total{cause=\"timer\"}"], 0.0);
        service.signal(end);
        let ended = service.wait_exit().expect_code(0);
        assert_eq!(ended.stderr.matches("SIGHUP").count(), 1, "{}", ended.stderr);
        assert_eq!((ended.stdout.lines().count(), ended.errors().len()), (2, 0), "{}", ended.stderr);
    }
}

/// Sends a scan the signal while it waits for its reader, reads all then, and returns how it ended.
fn scan_with(data: &Path, signal: Signal, ignored: &'static [libc::c_int]) -> (Ended, usize) {
    // With few workers few files are in flight, which are finished after the signal.
    let setup = Setup::new(&["scan", "--output", "stdout", "--workers", "2"]).arg(data);
    let (service, mut stdout) = inheriting(setup, ignored).spawn_held();
    let mut first = [0];
    stdout.read_exact(&mut first).unwrap();
    service.signal(signal);
    if ignored.is_empty() {
        service.wait_log("that it stops", |line| line.contains("INFO SIG"));
    }
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    assert!(rest.ends_with("}\n"), "half a line: {:?}", rest.lines().last());
    (service.wait_exit(), rest.lines().count())
}

#[test]
fn a_scan_that_a_signal_ends_early_says_so() {
    const FILES: usize = 5000;
    let (_root, data, _) = directories();
    for number in 0..FILES {
        fs::write(data.join(format!("a-file-with-a-long-name-{number}")), "").unwrap();
    }
    for (signal, name, status) in
        [(Signal::INT, "SIGINT", 130), (Signal::TERM, "SIGTERM", 143), (Signal::HUP, "SIGHUP", 129)]
    {
        let (ended, lines) = scan_with(&data, signal, &[]);
        let ended = ended.expect_code(status);
        ended.assert_one_error(name);
        assert!(lines < FILES, "{name} has ended nothing early");
        let last = ended.stderr.lines().last().unwrap();
        assert!(last.contains("stopped before the end") && last.contains(&format!(" {lines} messages")), "{last}");
    }
    // As nohup(1) starts it.
    let (ended, lines) = scan_with(&data, Signal::HUP, &[libc::SIGHUP]);
    ended.expect_code(0);
    assert_eq!(lines, FILES);
}

#[test]
fn a_scan_that_waits_for_its_broker_ends_at_once() {
    let (_root, data, _) = directories();
    // It accepts the connection and never answers.
    let silent = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let url = format!("amqp://127.0.0.1:{}/", silent.local_addr().unwrap().port());
    let service = Setup::new(&["scan"]).arg(&data).env("AMQP_CONNECTION_STRING", &url).spawn();
    let _connection = silent.accept().unwrap();
    service.signal(Signal::TERM);
    service.wait_exit().expect_code(143).assert_one_error("SIGTERM");
    let service = Setup::watch(&data, &url).spawn();
    let _connection = silent.accept().unwrap();
    service.signal(Signal::HUP);
    service.signal(Signal::TERM);
    service.wait_exit().expect_code(0);
}
