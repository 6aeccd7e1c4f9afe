//! Contract 4.7: however many large files are being read, a small one is read when its turn comes.

use std::fs::File;

use crate::control::health;
use crate::files::{noise, sha256};
use crate::pipeline_engines::io_uring_is_allowed;
use crate::service::{Service, Setup, skip};
use crate::world::{World, directories};

/// A sparse `lastlog`, as user numbers from a directory service make it: it takes a quarter of an hour to read.
const HUGE: u64 = 1 << 40;

/// The service with the output `stdout`, and so many files of [`HUGE`] bytes that are being read, or wait for it.
fn busy_with(engine: &str, workers: &str, huge: usize) -> (tempfile::TempDir, std::path::PathBuf, Service) {
    let (root, data, _) = directories();
    let service = Setup::new(&["watch", "--output", "stdout", "--read-engine", engine, "--workers", workers])
        .env("DATA_DIRECTORY", &data)
        .spawn();
    service.wait_ready();
    for number in 0..huge {
        File::create(data.join(format!("huge-{number}"))).unwrap().set_len(HUGE).unwrap();
    }
    // The last of them is known to be there, and all have come to where they wait.
    let socket = service.control_socket();
    let deadline = std::time::Instant::now() + crate::service::PATIENCE;
    loop {
        let (_, told) = health(&socket);
        if told["pending_files"] == huge && told["stages"]["read"]["waiting"] != 0 {
            return (root, data, service);
        }
        assert!(std::time::Instant::now() < deadline, "they are not being read: {told:#}");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
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
    // What is being read is given up when the service ends.
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
fn small_files_go_past_more_huge_ones_than_a_thread_has_places() {
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

/// More large files than a thread has places, as one end and another begins, and what is large changes while it waits.
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
