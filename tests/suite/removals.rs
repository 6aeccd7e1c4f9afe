//! `--removals`: a path that has had a message and has no file any more gets a message that says so.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::message_schema::{assert_fits, schema};
use crate::support::files::{chmod, sha256};
use crate::support::ledger::{kill, rows, with_ledger, world};
use crate::support::message::Message;
use crate::support::setup::Setup;
use crate::support::world::{World, of_name};

const SCHEMA: &str = "message-removed.schema.json";

fn removals(setup: Setup) -> Setup {
    setup.recursive().arg("--removals").args(&["--settle-ms", "100"])
}

fn with_both(state: &Path) -> impl FnOnce(Setup) -> Setup {
    move |setup| with_ledger(state)(setup).recursive().env("INGESTOR_REMOVALS", "true")
}

/// Waits until the last message of the name is a removal, and returns it with the one before.
#[track_caller]
fn wait_for_removal(world: &mut World, name: &str) -> (Message, Message) {
    let what = format!("the removal of {name:?}");
    world.wait_until(&what, |messages| of_name(messages, name).last().is_some_and(Message::is_removal));
    let mut messages = world.messages_for(name);
    let removal = messages.pop().unwrap();
    (messages.pop().expect("a message to take back"), removal)
}

/// The removal says of the message before what is to be said.
#[track_caller]
fn assert_takes_back(removal: &Message, last: &Message, event: &str) {
    assert_fits(&schema(SCHEMA), &removal.fields.clone().into());
    assert_eq!((removal.envelope().routing_key.as_str(), removal.event()), ("file.removed", event));
    for field in ["file_path", "sha256_hash", "xxh128_hash", "size"] {
        assert_eq!(removal.fields[field], last.fields[field], "{field}");
    }
    assert_eq!(removal.text("message_id"), last.message_id());
    assert_ne!(removal.message_id(), last.message_id());
    assert_eq!(removal.path_bytes_header(), last.path_bytes_header());
}

#[test]
fn what_is_deleted_or_renamed_or_moved_out_with_its_directory_is_taken_back() {
    let mut world = World::start_with(removals);
    for directory in ["tree", "tree/deep", "gone"] {
        fs::create_dir(world.path(directory)).unwrap();
    }
    for name in ["deleted", "renamed", "moved-out", "tree/a", "tree/deep/b", "gone/c"] {
        world.write(name, name);
        world.wait_for_one(name);
    }
    fs::remove_file(world.path("deleted")).unwrap();
    fs::rename(world.path("renamed"), world.path("other")).unwrap();
    fs::rename(world.path("moved-out"), world.outside.join("moved-out")).unwrap();
    fs::rename(world.path("tree"), world.outside.join("tree")).unwrap();
    fs::remove_dir_all(world.path("gone")).unwrap();
    for (name, event) in [
        ("deleted", "IN_DELETE"),
        ("renamed", "IN_MOVED_FROM"),
        ("moved-out", "IN_MOVED_FROM"),
        ("tree/a", "IN_MOVED_FROM"),
        ("tree/deep/b", "IN_MOVED_FROM"),
        ("gone/c", "IN_DELETE"),
    ] {
        let (last, removal) = wait_for_removal(&mut world, name);
        assert_takes_back(&removal, &last, event);
    }
    let other = world.wait_for_one("other");
    assert_eq!((other.event(), other.is_removal()), ("IN_MOVED_TO", false));
    // They come back, as new files of their paths.
    fs::rename(world.outside.join("tree"), world.path("tree")).unwrap();
    world.write("deleted", "again");
    let (back, again) = (world.wait_for("tree/a", 3), world.wait_for("deleted", 3));
    assert_eq!((back[2].event(), again[2].event()), ("IN_MOVED_TO", "IN_CREATE"));
    let messages = world.finish();
    let removals = messages.iter().filter(|message| message.is_removal()).count();
    assert_eq!(removals, 6, "one for each");
}

/// What was never published needs no removal, and a file that is there at the end has the last message.
#[test]
fn a_file_that_is_replaced_or_never_was_published_is_not_taken_back_last() {
    let mut world = World::start_with(removals);
    for number in 0..50 {
        let name = format!("file-{}", number % 5);
        world.write(&name, format!("content {number}"));
        if number % 3 == 0 {
            fs::remove_file(world.path(&name)).unwrap();
            world.write(&name, format!("new content {number}"));
        }
    }
    world.write("new", "moved over");
    fs::rename(world.path("new"), world.path("file-0")).unwrap();
    for number in 0..5 {
        let name = format!("file-{number}");
        world.wait_for_content(&name, &fs::read(world.path(&name)).unwrap());
    }
    fs::create_dir(world.path("directory")).unwrap();
    fs::remove_dir(world.path("directory")).unwrap();
    fs::write(world.path("excluded.part"), "left out by its name").unwrap();
    fs::remove_file(world.path("excluded.part")).unwrap();
    let on_disk = fs::read_dir(&world.data).unwrap().map(|entry| {
        let entry = entry.unwrap();
        (entry.file_name().into_string().unwrap(), sha256(&fs::read(entry.path()).unwrap()))
    });
    let (on_disk, messages): (BTreeMap<_, _>, _) = (on_disk.collect(), world.finish());
    let mut last = BTreeMap::new();
    for message in &messages {
        let name = message.name().to_owned();
        if message.is_removal() {
            assert!(last.remove(&name).is_some(), "{name:?} had no message to take back");
        } else {
            last.insert(name, message.sha256().to_owned());
        }
    }
    assert_eq!(last, on_disk);
}

/// Off, no consumer sees any of it.
#[test]
fn without_the_setting_nothing_is_taken_back() {
    let mut world = World::start();
    world.write("file", "content");
    world.wait_for_one("file");
    fs::remove_file(world.path("file")).unwrap();
    assert!(!world.finish_with_one().is_removal());
}

#[test]
fn what_vanished_while_the_service_was_down_is_taken_back() {
    let (mut world, state) = world();
    for directory in ["tree", "tree/deep"] {
        fs::create_dir(world.path(directory)).unwrap();
    }
    world.launch(with_both(&state));
    for name in ["deleted", "touched", "tree/a", "tree/deep/b", "kept"] {
        world.write(name, name);
        world.wait_for_one(name);
    }
    // Metadata alone changes, which has no message: the removal names the message that there was.
    chmod(&world.path("touched"), 0o600);
    drop(fs::File::options().append(true).open(world.path("touched")).unwrap());
    world.pass_sentinel();
    world.wait_idle();
    world.stop_service();
    let vanish = |world: &World| {
        fs::remove_file(world.path("deleted")).unwrap();
        fs::remove_file(world.path("touched")).unwrap();
        fs::rename(world.path("tree"), world.outside.join("tree")).unwrap();
    };
    vanish(&world);
    world.write("never", "published");
    fs::remove_file(world.path("never")).unwrap();
    world.launch(with_both(&state));
    for name in ["deleted", "touched", "tree/a", "tree/deep/b"] {
        let (last, removal) = wait_for_removal(&mut world, name);
        assert_takes_back(&removal, &last, "IN_DELETE");
    }
    world.pass_sentinel();
    world.wait_idle();
    world.stop_service();
    let kept: Vec<String> = rows(&state).into_iter().filter(|path| !path.contains("/zz-")).collect();
    assert_eq!(kept, [world.path("kept").to_str().unwrap()], "a row goes when its removal is confirmed");
    world.launch(with_both(&state));
    world.wait_rescanned();
    let messages = world.finish();
    assert_eq!(messages.iter().filter(|message| message.is_removal()).count(), 4, "one for each");
}

/// Killed in the middle, again and again: each removal comes, and a repeat has its id.
#[test]
fn a_kill_loses_no_removal_and_repeats_keep_their_message_id() {
    const FILES: usize = 600;
    let (mut world, state) = world();
    fs::create_dir(world.path("tree")).unwrap();
    let name =
        |number: usize| if number.is_multiple_of(2) { format!("f-{number}") } else { format!("tree/f-{number}") };
    for number in 0..FILES {
        world.write(&name(number), format!("content {number}"));
    }
    world.launch(with_both(&state));
    world.wait_until("a third of the files", |messages| messages.len() >= FILES / 3);
    kill(&mut world);
    world.launch(with_both(&state));
    world.wait_until("most of the files", |messages| messages.len() >= FILES);
    kill(&mut world);
    // What was published just before the kill may have no row that says so.
    (0..FILES).step_by(2).for_each(|number| fs::remove_file(world.path(&name(number))).unwrap());
    let removed = |messages: &[Message]| messages.iter().filter(|message| message.is_removal()).count();
    world.launch(with_both(&state));
    world.wait_until("some removals", |messages| removed(messages) >= FILES / 6);
    fs::rename(world.path("tree"), world.outside.join("tree")).unwrap();
    kill(&mut world);
    world.launch(with_both(&state));
    world.wait_until("half of the removals", |messages| removed(messages) >= FILES / 2);
    kill(&mut world);
    world.launch(with_both(&state));
    let is_over = |messages: &[Message]| {
        let mut last = BTreeMap::new();
        last.extend(messages.iter().map(|message| (message.path(), message.is_removal())));
        last.values().all(|removal| *removal)
    };
    world.wait_until("a removal as each path's last message", is_over);
    world.pass_sentinel();
    world.wait_idle();
    world.stop_service();
    assert!(rows(&state).iter().all(|path| path.contains("/zz-")), "a row goes when its removal is confirmed");
    let messages = world.consumer.drain();
    let mut ids = BTreeMap::new();
    for message in messages.iter().filter(|message| message.is_removal()) {
        let id = ids.entry(message.path()).or_insert(message.message_id());
        assert_eq!(*id, message.message_id(), "a repeated removal of {:?}", message.path());
    }
}
