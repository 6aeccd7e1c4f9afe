//! A small file is read when its turn comes, however many large ones are being read.

use std::fs::File;

use crate::support::control::wait_for_health;
use crate::support::files::{noise, sha256};
use crate::support::seccomp::io_uring_is_allowed;
use crate::support::service::Service;
use crate::support::setup::Setup;
use crate::support::skip;
use crate::support::world::{World, directories};

/// A sparse `lastlog`, as user numbers from a directory service make it: it takes a quarter of an hour to read.
const HUGE: u64 = 1 << 40;

/// The service with the output `stdout`, and so many files of [`HUGE`] bytes that are being read or wait to be read.
fn busy_with(engine: &str, workers: &str, huge: usize) -> (tempfile::TempDir, std::path::PathBuf, Service) {
    let (root, data, _) = directories();
    let service = Setup::new(&["watch", "--output", "stdout", "--read-engine", engine, "--workers", workers])
        .env("DATA_DIRECTORY", &data)
        .spawn();
    service.wait_ready();
    for number in 0..huge {
        File::create(data.join(format!("huge-{number}"))).unwrap().set_len(HUGE).unwrap();
    }
    // The service knows the last of them, and all wait for their reads.
    let socket = service.control_socket();
    wait_for_health(&socket, "the reading of all huge files", |_, health| {
        health["pending_files"] == huge && health["stages"]["read"]["waiting"] != 0
    });
    (root, data, service)
}

fn small_files_go_past(engine: &str, workers: &str, huge: usize) {
    if engine == "io_uring" && !io_uring_is_allowed() {
        return skip("io_uring is not allowed here");
    }
    let (_root, data, service) = busy_with(engine, workers, huge);
    for number in 0..50 {
        std::fs::write(data.join(format!("small-{number}")), noise(100 * number, 1)).unwrap();
    }
    std::fs::write(data.join("mebibyte"), noise(1 << 20, 1)).unwrap();
    for number in 0..50 {
        service.wait_stdout("the message of a small file", |line| line.contains(&format!("/small-{number}\"")));
    }
    service.wait_stdout("the message of a file of 1 MiB", |line| line.contains(&sha256(&noise(1 << 20, 1))));
    // The reads are canceled when the service ends.
    service.stop();
}

#[test]
fn small_files_go_past_as_many_huge_ones_as_there_are_workers() {
    small_files_go_past("io_uring", "2", 2);
}

#[test]
fn small_files_go_past_more_huge_ones_than_workers() {
    small_files_go_past("io_uring", "2", 5);
}

#[test]
fn small_files_go_past_huge_ones_with_one_worker() {
    small_files_go_past("io_uring", "1", 5);
}

#[test]
fn small_files_go_past_more_huge_ones_than_a_thread_has_slots() {
    small_files_go_past("io_uring", "1", 400);
}

#[test]
fn small_files_go_past_huge_ones_with_the_blocking_engine() {
    small_files_go_past("blocking", "2", 5);
}

#[test]
fn small_files_go_past_huge_ones_with_one_blocking_worker() {
    small_files_go_past("blocking", "1", 400);
}

/// They are more than a thread has slots, and one of them becomes small while it waits.
#[test]
fn many_large_files_are_all_published_with_their_last_content() {
    let mut world = World::start_with(|it| it.args(&["--workers", "2"]));
    let name = |number: usize| format!("large-{number}");
    let content = |number: usize| noise((1 << 20) + 1 + number * 100_000, number as u64);
    for number in 0..60 {
        world.write(&name(number), content(number));
    }
    world.write(&name(7), "small now");
    for number in (0..60).filter(|number| *number != 7) {
        world.wait_for_content(&name(number), &content(number));
    }
    world.wait_for_content(&name(7), b"small now");
    world.stop_service();
}
