//! After a kill nothing is lost, and the last message of each path has the present content, though rows may lag.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use crate::support::files::exchange;
use crate::support::ledger::{SMALL, kill, one_run, published, with_ledger, world};
use crate::support::message::Message;
use crate::support::setup::Setup;
use crate::support::skip;
use crate::support::volume::SmallDisk;
use crate::support::world::World;

#[test]
fn a_kill_loses_nothing_and_repeats_keep_their_message_id() {
    const FILES: usize = 1500;
    let (mut world, state) = world();
    for number in 0..FILES {
        world.write(&format!("file-{number}"), format!("content {number}"));
    }
    // Killed five times in the middle of the catch-up, each time a little later.
    for fifth in 1..=5 {
        world.launch(with_ledger(&state));
        world.wait_until("a fifth more", |messages| messages.len() >= FILES * fifth / 6);
        kill(&mut world);
    }
    world.launch(with_ledger(&state));
    let names = |messages: &[Message]| messages.iter().map(|it| it.name().to_owned()).collect::<HashSet<_>>().len();
    world.wait_until("every file", |messages| names(messages) >= FILES);
    let messages = world.finish();
    let mut ids = HashMap::new();
    for message in &messages {
        let id = ids.entry(message.name().to_owned()).or_insert(message.message_id().to_owned());
        assert_eq!(id, message.message_id(), "a repeat of {:?} has another id", message.name());
    }
    assert_eq!(ids.len(), FILES);
    assert_eq!(ids.values().collect::<HashSet<_>>().len(), FILES, "one id for two files");
}

/// The rows of confirmed messages are in the ledger soon.
#[test]
fn a_crash_loop_still_makes_progress() {
    const FILES: usize = 1500;
    const A_TURN: usize = 150;
    let (mut world, state) = world();
    for number in 0..FILES {
        world.write(&format!("file-{number}"), format!("content {number}"));
    }
    let names = |messages: &[Message]| messages.iter().map(|it| it.name().to_owned()).collect::<HashSet<_>>().len();
    let mut progress = Vec::new();
    for _ in 0..4 * FILES / A_TURN {
        let before = world.consumer.drain();
        // What a killed process has sent may come after the consumer's own mark.
        if names(&before) == FILES {
            progress.push(FILES);
            break;
        }
        world.launch(with_ledger(&state));
        world.wait_until("some more", |messages| messages.len() >= before.len() + A_TURN || names(messages) == FILES);
        kill(&mut world);
        progress.push(names(&world.consumer.drain()));
    }
    assert_eq!(progress.last(), Some(&FILES), "files published at the end of each turn: {progress:?}");
}

/// Another file was published in its place meanwhile. Its row, which may lag, differs in ctime alone.
#[test]
fn a_file_renamed_back_after_a_kill_is_published_last() {
    let (mut world, state) = world();
    world.write("file", "first");
    world.launch(with_ledger(&state));
    world.wait_for_one("file");
    for turn in 0..3 {
        world.stop_service();
        world.launch(with_ledger(&state));
        world.wait_rescanned();
        fs::rename(world.path("file"), world.outside.join("first")).unwrap();
        world.write("file", format!("another {turn}"));
        world.wait_for_content("file", format!("another {turn}").as_bytes());
        kill(&mut world);
        fs::rename(world.outside.join("first"), world.path("file")).unwrap();
        world.launch(with_ledger(&state));
        world.wait_for_content("file", b"first");
    }
}

/// Two directories of one file each, with their rows in the ledger, and a function that exchanges them.
fn two_directories(state: &Path) -> (World, impl Fn()) {
    let mut world = World::start_with(recursive(state));
    for name in ["one", "two"] {
        fs::create_dir(world.path(name)).unwrap();
        world.write(&format!("{name}/file"), name);
    }
    world.wait_until("the files", |messages| messages.len() >= 2);
    world.stop_service(); // so that the ledger has the rows
    let (one, two) = (world.path("one"), world.path("two"));
    (world, move || exchange(&one, &two))
}

fn recursive(state: &Path) -> impl FnOnce(Setup) -> Setup {
    move |setup| with_ledger(state)(setup).args(&["--recursive"])
}

/// A row is written some time after its confirm, and a rename does not change the version of a directory's files: a
/// stale row must not be taken for the last message.
#[test]
fn directories_exchanged_before_and_after_a_kill_have_their_own_files() {
    for before_the_start in [false, true] {
        let state = tempfile::tempdir().unwrap();
        let (mut world, exchange) = two_directories(state.path());
        if before_the_start {
            exchange();
        }
        world.launch(recursive(state.path()));
        if !before_the_start {
            exchange();
        }
        world.wait_until("each other's files", |messages| messages.len() >= 4);
        kill(&mut world);
        exchange();
        world.launch(recursive(state.path()));
        for name in ["one", "two"] {
            world.wait_for_content(&format!("{name}/file"), name.as_bytes());
        }
    }
}

#[test]
fn directories_exchanged_while_the_ledgers_disk_is_full_do_too() {
    let top = tempfile::tempdir().unwrap();
    let state = top.path().join("state");
    let Some(disk) = SmallDisk::mount(&state, SMALL) else {
        return skip("a file system to fill cannot be mounted here");
    };
    let (mut world, exchange) = two_directories(&state);
    world.launch(recursive(&state));
    disk.fill();
    exchange();
    world.wait_until("each other's files", |messages| messages.len() >= 4);
    kill(&mut world);
    exchange();
    disk.free();
    world.launch(recursive(&state));
    world.service().wait_log("that the ledger is behind", |line| line.contains("WARN") && line.contains("is behind"));
    for name in ["one", "two"] {
        world.wait_for_content(&format!("{name}/file"), name.as_bytes());
    }
    world.stop_service();

    // Full for a while only: the ledger has caught up when it is loaded again.
    let before = world.consumer.drain().len();
    world.launch(recursive(&state));
    disk.fill();
    exchange();
    world.wait_until("each other's files", |messages| messages.len() >= before + 2);
    disk.free();
    world.service().wait_log("the ledger's recovery", |line| line.contains("ledger is written again"));
    world.stop_service();
    let (again, ended) = one_run(&mut world, recursive(&state));
    assert_eq!(published(&again), [], "{}", ended.stderr);
}

/// Makes `link` lead to `name`, whatever it was before.
fn point_link(world: &World, name: &str) {
    symlink(name, world.path("new")).unwrap();
    fs::rename(world.path("new"), world.path("link")).unwrap();
}

/// The index must not take the link for the file that it has replaced.
#[test]
fn a_link_that_replaced_a_file_is_published_last_after_a_kill() {
    let (mut world, state) = world();
    for name in ["one", "two", "link"] {
        world.write(name, name);
    }
    world.launch(with_ledger(&state));
    world.wait_until("all three", |messages| messages.len() >= 3);
    point_link(&world, "one");
    world.wait_for_content("link", b"one");
    world.pass_sentinel();
    point_link(&world, "two");
    world.wait_for_content("link", b"two");
    kill(&mut world);
    point_link(&world, "one");
    world.launch(with_ledger(&state));
    world.wait_for_content("link", b"one");
    world.finish();
}

#[test]
fn a_link_changed_before_and_after_a_kill_is_published_last() {
    let (mut world, state) = world();
    for name in ["one", "two"] {
        world.write(name, name);
    }
    symlink("one", world.path("link")).unwrap();
    world.launch(with_ledger(&state));
    world.wait_until("all three", |messages| messages.len() >= 3);
    for before_the_start in [false, true] {
        world.stop_service();
        if before_the_start {
            point_link(&world, "two");
        }
        world.launch(with_ledger(&state));
        if !before_the_start {
            point_link(&world, "two");
        }
        world.wait_for_content("link", b"two");
        kill(&mut world);
        point_link(&world, "one");
        world.launch(with_ledger(&state));
        world.wait_for_content("link", b"one");
    }
}

/// A start without catch-up counts all files as known, and an older row of another file must not come back.
#[test]
fn a_directory_swapped_back_after_a_kill_without_catch_up_is_published() {
    for catch_up in ["none", "baseline"] {
        let (mut world, state) = world();
        let recursive = |setup: Setup| with_ledger(&state)(setup).recursive();
        fs::create_dir(world.path("d")).unwrap();
        world.write("d/file", "first");
        world.launch(recursive);
        world.wait_for_content("d/file", b"first");
        world.stop_service();

        fs::rename(world.path("d"), world.path("away")).unwrap();
        fs::create_dir(world.path("d")).unwrap();
        world.write("d/file", "second");
        world.launch(|setup| recursive(setup).args(&["--catch-up", catch_up]));
        world.write("d/file", "rewritten");
        world.wait_for_content("d/file", b"rewritten");
        kill(&mut world);

        fs::rename(world.path("d"), world.path("other")).unwrap();
        fs::rename(world.path("away"), world.path("d")).unwrap();
        world.launch(recursive);
        world.wait_for_content("d/file", b"first");
    }
}
