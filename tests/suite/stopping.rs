//! A signal is a clean end with totals, and the loss of the data directory is one error.

use std::collections::HashSet;
use std::fs;

use rustix::process::Signal;

use crate::support::files::{noise, write};
use crate::support::service::Ended;
use crate::support::setup::Setup;
use crate::support::world::{World, directories, list};

fn stops_cleanly_in_the_middle_of_work(signal: Signal) {
    const FILES: usize = 400;
    let mut world = World::start();
    for number in 0..FILES {
        world.write(&format!("file-{number}"), noise(50_000, number as u64));
    }
    world.wait_until("the first 50 messages", |messages| messages.len() >= 50);
    let service = world.take_service();
    service.signal(signal);
    let ended = service.wait_exit().expect_code(0);
    let messages = world.consumer.drain();
    let names: HashSet<&str> = messages.iter().map(|message| message.name()).collect();
    assert_eq!(names.len(), messages.len(), "a repeat:\n{}", list(&messages));
    // The stop waited for the confirms of all that was published, so the totals count each.
    assert_totals(&ended, messages.len());
}

/// The last line has the totals, `confirmed` among its numbers.
#[track_caller]
fn assert_totals(ended: &Ended, confirmed: usize) {
    let last = ended.stderr.lines().last().unwrap_or_default();
    assert!(last.contains("INFO"), "the last line is not the totals:\n{}", ended.stderr);
    let numbers: Vec<&str> = last.split(|it: char| !it.is_ascii_digit()).collect();
    assert!(numbers.contains(&confirmed.to_string().as_str()), "{confirmed} messages came, the totals say: {last}");
}

#[test]
fn sigterm_in_the_middle_of_work_is_a_clean_end() {
    stops_cleanly_in_the_middle_of_work(Signal::TERM);
}

#[test]
fn sigint_in_the_middle_of_work_is_a_clean_end() {
    stops_cleanly_in_the_middle_of_work(Signal::INT);
}

#[test]
fn a_signal_while_idle_is_a_clean_end_with_totals() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut world = World::start();
        for number in 0..17 {
            world.write(&format!("file-{number}"), "content");
        }
        world.wait_until("17 messages", |messages| messages.len() >= 17);
        let service = world.take_service();
        service.signal(signal);
        assert_totals(&service.wait_exit().expect_code(0), 17);
    }
}

#[test]
fn a_signal_while_a_file_is_still_being_written_is_a_clean_end() {
    let mut world = World::start();
    let open = fs::File::create(world.path("open")).unwrap();
    world.pass_sentinel();
    world.stop_service();
    drop(open);
    assert!(world.messages_for("open").is_empty());
}

/// A file that is closed before the signal is no file of the next start.
#[test]
fn a_file_that_was_closed_before_the_signal_is_published() {
    for _ in 0..10 {
        let (_root, data, _) = directories();
        let service = Setup::new(&["watch", "--output", "stdout"]).env("DATA_DIRECTORY", &data).spawn();
        service.wait_ready();
        (0..5).for_each(|number| write(&data.join(number.to_string()), "content"));
        service.signal(Signal::TERM);
        let ended = service.wait_exit().expect_code(0);
        assert_eq!(ended.messages().len(), 5, "{}", ended.stderr);
    }
}

/// The service ends by itself, with one error line that names the directory.
#[track_caller]
fn assert_ends_without_its_directory(mut world: World) {
    let ended = world.take_service().wait_exit().expect_code(1);
    ended.assert_one_error(world.data.to_str().unwrap());
    ended.assert_error_before_totals();
}

#[test]
fn the_data_directory_removed_ends_the_service() {
    let world = World::start();
    fs::remove_dir(&world.data).unwrap();
    assert_ends_without_its_directory(world);
}

#[test]
fn the_data_directory_renamed_ends_the_service() {
    let world = World::start();
    fs::rename(&world.data, world.outside.join("elsewhere")).unwrap();
    assert_ends_without_its_directory(world);
}

#[test]
fn the_data_directory_replaced_by_another_ends_the_service() {
    let world = World::start();
    fs::rename(&world.data, world.outside.join("elsewhere")).unwrap();
    fs::create_dir(&world.data).unwrap();
    assert_ends_without_its_directory(world);
}

#[test]
fn files_written_before_the_directory_went_were_published() {
    let mut world = World::start();
    world.write("file", "content");
    world.wait_for_one("file");
    fs::remove_dir_all(&world.data).unwrap();
    assert_ends_without_its_directory(world);
}
