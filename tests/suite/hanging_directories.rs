//! A data directory that hangs delays its own files alone, and not the end of the service.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use crate::support::control::{get, wait_for_health};
use crate::support::message::Message;
use crate::support::seccomp::io_uring_is_allowed;
use crate::support::service::Service;
use crate::support::setup::Setup;
use crate::support::skip;
use crate::support::slow_directory::SlowDirectory;
use crate::support::wait::retry;
use crate::support::world::directories;

fn watch_both(slow: &SlowDirectory, fast: &Path, engine: &str) -> Service {
    // A small window: the slow directory's files are more than may be in flight.
    let options = ["--output", "stdout", "--workers", "2", "--confirm-window", "16", "--stall-seconds", "15"];
    let service = Setup::new(&["watch", "--read-engine", engine])
        .args(&options)
        .arg("--data-dir")
        .arg(&slow.path)
        .arg("--data-dir")
        .arg(fast)
        .spawn();
    service.wait_ready();
    service
}

fn to_stdout(directory: &Path) -> Setup {
    Setup::new(&["watch", "--output", "stdout"]).env("DATA_DIRECTORY", directory)
}

fn delays_its_own_files_alone(engine: &str) {
    if engine == "io_uring" && !io_uring_is_allowed() {
        return skip("io_uring is not allowed here");
    }
    let Some(slow) = SlowDirectory::mount() else { return };
    let (_root, fast, _) = directories();
    let service = watch_both(&slow, &fast, engine);
    slow.set_delay(30);
    slow.fill(1000);
    for number in 0..3 {
        fs::write(fast.join(format!("fast-{number}")), "y").unwrap();
        service.wait_stdout("a fast directory's file", |line| line.contains(&format!("/fast-{number}\"")));
    }
    // Health names it and stays 200, because the other directory's files are published.
    let socket = service.control_socket();
    let name = slow.path.to_str().unwrap();
    wait_for_health(&socket, "a healthy service that names the directory", |status, health| {
        assert_eq!(status, 200, "{health:#}");
        health["summary"].as_str().is_some_and(|line| line.starts_with("healthy") && line.contains(name))
    });
    service.wait_log("a WARN that names it", |line| line.contains("WARN") && line.contains(name));
    drop(slow);
    service
        .wait_log("the end of the reads that hung", |line| line.contains("cannot be read") || line.contains("again"));
}

#[test]
fn a_hanging_directory_delays_its_own_files_alone() {
    delays_its_own_files_alone("io_uring");
}

#[test]
fn a_hanging_directory_delays_its_own_files_with_blocking_reads() {
    delays_its_own_files_alone("blocking");
}

/// Waits until a thread of the service whose name begins so waits for the answer of a file system in user space.
fn wait_until_it_hangs(service: &Service, name: &str) {
    let tasks = format!("/proc/{}/task", service.id());
    retry("a thread that waits for the file system", || {
        let threads = fs::read_dir(&tasks).expect("it runs").flatten();
        let of = |thread: &fs::DirEntry, file: &str| fs::read_to_string(thread.path().join(file)).unwrap_or_default();
        let mut threads = threads.filter(|thread| of(thread, "comm").starts_with(name));
        let waits = |at: String| at.contains("fuse") || at.contains("request_wait_answer");
        match threads.any(|thread| waits(of(&thread, "wchan"))) {
            true => Ok(()),
            false => Err(service.stderr()),
        }
    });
}

#[test]
fn a_file_system_that_does_not_answer_at_all_delays_its_own_files_alone() {
    let Some(slow) = SlowDirectory::mount() else { return };
    let (_root, fast, _) = directories();
    let service = watch_both(&slow, &fast, "blocking");
    slow.freeze();
    wait_until_it_hangs(&service, "");
    fs::write(fast.join("fast"), "y").unwrap();
    service.wait_stdout("the fast directory's file", |line| line.contains("/fast\""));
    service.stop();
}

/// What the service looks at takes 2 s each time: names that are new, directories that are new, and all that a rescan finds.
#[test]
fn a_file_system_that_is_slow_to_be_looked_at_delays_its_own_files_alone() {
    let Some(slow) = SlowDirectory::mount() else { return };
    let (_root, fast, _) = directories();
    for number in 0..20 {
        fs::create_dir(slow.path.join(format!("before-{number}"))).unwrap();
    }
    let service = to_stdout(&slow.path)
        .args(&["--recursive", "--rescan-seconds", "1", "--data-dir"])
        .arg(&slow.path)
        .arg("--data-dir")
        .arg(&fast)
        .spawn();
    service.wait_ready();
    slow.fill(20);
    for number in 0..20 {
        fs::create_dir(slow.path.join(format!("after-{number}"))).unwrap();
    }
    slow.set_delay_of_looks(2);
    for number in 0..5 {
        wait_until_it_hangs(&service, "watch-0");
        let written = Instant::now();
        fs::write(fast.join(format!("fast-{number}")), "y").unwrap();
        service.wait_stdout("the fast directory's file", |line| line.contains(&format!("/fast-{number}\"")));
        // Behind a single look it would have waited for 2 s, and there are dozens.
        assert!(written.elapsed() < Duration::from_secs(10), "{:?}", written.elapsed());
    }
    // What the other watch knows is told, and that the slow one is silent.
    slow.freeze();
    wait_until_it_hangs(&service, "watch-0");
    let (_, _, status) = get(&service.control_socket(), "/status");
    let status: Value = serde_json::from_str(&status).unwrap();
    let (files, missing) = (&status["files"], status["files_missing"].as_str().unwrap_or_default());
    assert!(files["recent"][0]["path"].as_str().is_some_and(|path| path.contains("/fast-")), "{status:#}");
    assert!(missing.contains(slow.path.to_str().unwrap()), "{status:#}");
    drop(slow);
}

/// A listing hangs in the thread of the watch: its data directory is rescanned.
fn hung_watch() -> Option<(SlowDirectory, Service)> {
    let slow = SlowDirectory::mount()?;
    let service = to_stdout(&slow.path).args(&["--rescan-seconds", "1"]).spawn();
    service.wait_ready();
    slow.freeze();
    wait_until_it_hangs(&service, "watch-0");
    Some((slow, service))
}

#[test]
fn a_second_signal_ends_a_service_whose_watch_hangs() {
    let Some((_slow, mut service)) = hung_watch() else { return };
    retry("its end", || {
        service.signal(Signal::TERM);
        if service.is_running() { Err(service.stderr()) } else { Ok(()) }
    });
    service.wait_exit().expect_code(1);
}

#[test]
fn one_signal_ends_a_service_whose_watch_hangs_in_order() {
    let Some((slow, service)) = hung_watch() else { return };
    service.signal(Signal::TERM);
    let ended = service.wait_exit().expect_code(0);
    assert!(ended.stderr.contains("is left behind") && ended.stderr.contains(slow.path.to_str().unwrap()));
    assert!(ended.stderr.lines().last().is_some_and(|line| line.contains("stopped: ")), "{}", ended.stderr);
}

fn wait_until_it_lists(service: &Service) {
    let socket = service.control_socket();
    retry("its control socket", || if socket.exists() { Ok(()) } else { Err(service.stderr()) });
    wait_for_health(&socket, "a start that lists", |_, health| {
        health["summary"].as_str().is_some_and(|line| line.contains("directories watched"))
    });
}

#[test]
fn one_signal_ends_a_service_whose_start_hangs_in_time() {
    let Some(slow) = SlowDirectory::mount() else { return };
    with_directories(&slow);
    slow.set_delay_of_looks(1);
    let service = to_stdout(&slow.path).arg("--recursive").spawn();
    wait_until_it_lists(&service);
    // Its 30 directories take a minute.
    service.signal(Signal::TERM);
    let ended = service.wait_exit().expect_code(1);
    assert!(ended.stderr.contains("the end has taken 11 s"), "{}", ended.stderr);
}

#[test]
fn a_directory_whose_file_system_has_died_and_is_unmounted_is_gone() {
    let Some(mut slow) = SlowDirectory::mount() else { return };
    let service = to_stdout(&slow.path).spawn();
    service.wait_ready();
    slow.die_and_unmount();
    service.wait_exit().expect_code(1).assert_one_error("leads elsewhere");
}

/// It may come back, so a supervisor is to try again: status 1.
#[test]
fn a_start_on_a_file_system_that_has_died_is_a_failure_that_may_pass() {
    let Some(mut slow) = SlowDirectory::mount() else { return };
    let (_root, data, _) = directories();
    slow.die();
    let state = to_stdout(&data).env("STATE_DIRECTORY", slow.path.join("state"));
    for setup in [to_stdout(&slow.path), state] {
        let ended = setup.run().expect_code(1);
        let last = ended.stderr.lines().last().unwrap_or_default();
        assert!(last.contains(slow.path.to_str().unwrap()), "{}", ended.stderr);
        assert!(
            last.contains("Transport endpoint is not connected; its disk, its server or its mount fails"),
            "{last}"
        );
    }
}

/// A read that has begun cannot be canceled and delays the process's end, so that none that takes 5 s may begin late.
#[test]
fn slow_reads_do_not_delay_a_stop_beyond_its_limit() {
    for engine in ["io_uring", "blocking"] {
        let Some(slow) = SlowDirectory::mount() else { return };
        let (_root, fast, _) = directories();
        let service = watch_both(&slow, &fast, engine);
        slow.set_delay(5);
        slow.fill(40);
        fs::write(fast.join("fast"), "y").unwrap();
        service.wait_stdout("the fast directory's file", |line| line.contains("/fast\""));
        let begun = Instant::now();
        service.stop();
        // Promised are 10 s. A busy machine may be a little late.
        assert!(begun.elapsed() < Duration::from_secs(12), "{engine}: the stop took {:?}", begun.elapsed());
    }
}

/// How many directories a slow file system has at a start. At a second each, they are listed later than the service waits for.
const SLOW_DIRECTORIES: usize = 30;

fn in_slow_directory(number: usize) -> String {
    format!("{number}/file")
}

/// Each directory with a file.
fn with_directories(slow: &SlowDirectory) {
    for number in 0..SLOW_DIRECTORIES {
        fs::create_dir(slow.path.join(number.to_string())).unwrap();
        fs::write(slow.path.join(in_slow_directory(number)), "before").unwrap();
    }
}

fn start_with_slow_directories(slow: &SlowDirectory, fast: &Path, options: &[&str]) -> Service {
    let setup = to_stdout(&slow.path).arg("--recursive").args(options).arg("--data-dir").arg(&slow.path);
    setup.arg("--data-dir").arg(fast).spawn()
}

fn wait_until_listed(service: &Service) {
    service.wait_log("the rest of the start", |line| line.contains("is listed and watched now"));
}

fn paths(messages: &[Message]) -> Vec<String> {
    let mut paths: Vec<_> = messages.iter().map(|message| message.fields["file_path"].to_string()).collect();
    paths.sort();
    paths
}

/// What was there before the start stays unpublished, as for each directory.
#[test]
fn directories_that_are_slow_to_be_listed_at_the_start_join_later() {
    let Some(slow) = SlowDirectory::mount() else { return };
    let (_root, fast, _) = directories();
    with_directories(&slow);
    slow.set_delay_of_looks(1);
    let service = start_with_slow_directories(&slow, &fast, &[]);
    service.wait_ready();
    fs::write(fast.join("fast"), "y").unwrap();
    service.wait_stdout("the fast directory's file", |line| line.contains("/fast\""));
    let name = slow.path.to_str().unwrap();
    let (status, _, answer) = get(&service.control_socket(), "/ready");
    assert!(status == 503 && answer.contains(name) && answer.contains("its listing goes on"), "{answer}");
    // What lands meanwhile was not there before the start. It raises no event where it is not watched yet.
    fs::write(slow.path.join("0/landed"), "landed").unwrap();
    fs::write(slow.source.join(format!("{}/landed", SLOW_DIRECTORIES - 1)), "landed").unwrap();
    slow.set_delay_of_looks(0);
    wait_until_listed(&service);
    retry("what has landed", || if service.stdout_lines() >= 3 { Ok(()) } else { Err(service.stderr()) });
    let written = slow.path.join(in_slow_directory(SLOW_DIRECTORIES - 1));
    fs::write(&written, "written").unwrap();
    service.wait_stdout("the slow directory's file", |line| line.contains(written.to_str().unwrap()));
    retry("readiness", || match get(&service.control_socket(), "/ready") {
        (200, ..) => Ok(()),
        (_, _, answer) => Err(answer),
    });
    assert_eq!(service.stop().messages().len(), 4);
}

#[test]
fn directories_that_join_later_have_their_rows_of_the_ledger() {
    let Some(slow) = SlowDirectory::mount() else { return };
    let (_root, fast, outside) = directories();
    let state = outside.join("state");
    let options = ["--state-dir", state.to_str().unwrap(), "--removals"];
    with_directories(&slow);
    fs::write(fast.join("fast"), "y").unwrap();
    let start = || {
        let service = start_with_slow_directories(&slow, &fast, &options);
        service.wait_ready();
        service
    };
    // Each watch has compared what is there, and what differs is published.
    let published = |service: Service, count: usize| {
        let done = |service: &Service| service.count_log("rescan finished") == 2 && service.stdout_lines() >= count;
        retry("both rescans", || if done(&service) { Ok(()) } else { Err(service.stderr()) });
        let ended = service.stop();
        assert_eq!(ended.messages().len(), count, "{}", ended.stderr);
        paths(&ended.messages())
    };
    published(start(), SLOW_DIRECTORIES + 1);

    fs::write(slow.source.join("1/file"), "changed while the service was down").unwrap();
    fs::write(slow.source.join("2/new"), "new").unwrap();
    fs::remove_file(slow.source.join("3/file")).unwrap();
    fs::remove_dir_all(slow.source.join("4")).unwrap();
    slow.set_delay_of_looks(1);
    let service = start();
    service.wait_log("a start without it", |line| line.contains("could not be listed within"));
    slow.set_delay_of_looks(0);
    wait_until_listed(&service);
    let expected = ["1/file", "2/new", "3/file", "4/file"].map(|name| format!("{:?}", slow.path.join(name)));
    assert_eq!(published(service, 4), expected);

    published(start(), 0);
}

/// Its listing never ends. The others are published, and the end is in order.
#[test]
fn a_listing_that_hangs_at_the_start_delays_its_own_files_alone() {
    let Some(slow) = SlowDirectory::mount() else { return };
    let (_root, fast, _) = directories();
    with_directories(&slow);
    slow.set_delay_of_looks(1);
    let service = start_with_slow_directories(&slow, &fast, &[]);
    wait_until_it_lists(&service);
    slow.freeze();
    service.wait_ready();
    fs::write(fast.join("fast"), "y").unwrap();
    service.wait_stdout("the fast directory's file", |line| line.contains("/fast\""));
    service.signal(Signal::TERM);
    service.wait_log("the end without it", |line| line.contains("is left behind"));
    service.wait_log("the totals", |line| line.contains("stopped: "));
    // The kernel ends no process whose request is with the server.
    drop(slow);
    service.wait_exit().expect_code(0);
}

/// A directory that did not even answer when it was opened. What was there before is known, or does not count.
fn joins_once_it_answers(slow: &SlowDirectory, options: &[&str]) {
    let (_root, fast, _) = directories();
    slow.freeze();
    let service = start_with_slow_directories(slow, &fast, options);
    service.wait_ready();
    fs::write(fast.join("fast"), "y").unwrap();
    service.wait_stdout("the fast directory's file", |line| line.contains("/fast\""));
    let name = slow.path.to_str().unwrap();
    let (status, _, answer) = get(&service.control_socket(), "/ready");
    assert!(status == 503 && answer.contains(name), "{answer}");
    fs::write(slow.source.join("0/landed"), "landed").unwrap();
    slow.thaw();
    wait_until_listed(&service);
    service.wait_stdout("what has landed", |line| line.contains("/landed\""));
    fs::write(slow.path.join("written"), "written").unwrap();
    service.wait_stdout("what is written", |line| line.contains("/written\""));
    assert_eq!(service.stop().messages().len(), 3);
}

#[test]
fn a_directory_that_does_not_answer_at_the_start_joins_once_it_does() {
    let Some(slow) = SlowDirectory::mount() else { return };
    with_directories(&slow);
    joins_once_it_answers(&slow, &[]);
}

#[test]
fn a_directory_that_does_not_answer_at_the_start_has_its_rows_of_the_ledger() {
    let Some(slow) = SlowDirectory::mount() else { return };
    let (_root, _, outside) = directories();
    let state = outside.join("state");
    let options = ["--state-dir", state.to_str().unwrap()];
    with_directories(&slow);
    let service = to_stdout(&slow.path).arg("--recursive").args(&options).spawn();
    service.wait_ready();
    retry("what is there", || if service.stdout_lines() >= SLOW_DIRECTORIES { Ok(()) } else { Err(service.stderr()) });
    service.stop();
    joins_once_it_answers(&slow, &options);
}

#[test]
fn one_signal_ends_a_service_with_a_directory_that_does_not_answer() {
    let Some(slow) = SlowDirectory::mount() else { return };
    let (_root, fast, _) = directories();
    slow.freeze();
    // Nobody else waits for a single one, and nothing is in progress yet.
    let service = to_stdout(&slow.path).spawn();
    wait_until_it_hangs(&service, "open");
    service.signal(Signal::TERM);
    service.wait_exit().expect_code(0);

    let service = start_with_slow_directories(&slow, &fast, &[]);
    service.wait_ready();
    service.signal(Signal::TERM);
    service.wait_log("the end without it", |line| line.contains("is left behind"));
    service.wait_exit().expect_code(0);
}
