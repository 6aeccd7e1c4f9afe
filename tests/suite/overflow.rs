//! After an overflow of the kernel's queue (IN_Q_OVERFLOW), what was missed is published, and nothing else.

use std::collections::HashMap;
use std::fs::{self, File};

use crate::support::files::{self, sha256};
use crate::support::message::Message;
use crate::support::setup::Setup;
use crate::support::skip;
use crate::support::tree::{by_path, wait_for_watches};
use crate::support::world::{World, list};

/// A machine with a longer queue than this would spend minutes on filling it.
const QUEUE_MAX: usize = 100_000;

/// How many files change in each way while the service cannot read events.
const EACH: usize = 10;

fn queue_length() -> usize {
    let text = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
    text.trim().parse().unwrap()
}

fn publishes_exactly_what_was_missed(change: impl FnOnce(Setup) -> Setup) {
    let queue = queue_length();
    if queue > QUEUE_MAX {
        return skip("fs.inotify.max_queued_events is too large to be filled");
    }
    let mut world = World::start_with(change);
    for number in 0..EACH {
        for kind in ["same", "rewritten", "deleted", "moved", "replaced"] {
            world.write(&format!("{kind}-{number}"), format!("{kind} {number}"));
        }
    }
    world.wait_until("the first fifty", |messages| messages.len() >= 5 * EACH);

    world.service().pause();
    // A creation and a close each: the queue is full of these, and all that comes after is lost.
    let new = queue / 2 + 500;
    for number in 0..new {
        world.write(&format!("new-{number}"), format!("new {number}"));
    }
    for number in 0..EACH {
        world.write(&format!("rewritten-{number}"), format!("rewritten again {number}"));
        fs::remove_file(world.path(&format!("deleted-{number}"))).unwrap();
        fs::rename(world.path(&format!("moved-{number}")), world.path(&format!("moved-to-{number}"))).unwrap();
        let replacement = world.outside.join("replacement");
        fs::write(&replacement, format!("replacement {number}")).unwrap();
        fs::rename(&replacement, world.path(&format!("replaced-{number}"))).unwrap();
    }
    world.service().resume();
    world.service().wait_log("a WARN of the overflow", |line| line.contains("WARN") && line.contains("queue"));
    let expected = 8 * EACH + new;
    world.wait_until("every version that was missed", |messages| messages.len() >= expected);
    let messages = world.finish();

    let mut hashes: HashMap<&str, Vec<&str>> = HashMap::new();
    for message in &messages {
        hashes.entry(message.name()).or_default().push(message.sha256());
    }
    let mut check = |name: String, contents: &[String]| {
        let expected: Vec<String> = contents.iter().map(|content| sha256(content.as_bytes())).collect();
        assert_eq!(hashes.remove(&*name).unwrap_or_default(), expected, "{name}");
    };
    for number in 0..EACH {
        check(format!("same-{number}"), &[format!("same {number}")]);
        check(format!("deleted-{number}"), &[format!("deleted {number}")]);
        check(format!("moved-{number}"), &[format!("moved {number}")]);
        check(format!("moved-to-{number}"), &[format!("moved {number}")]);
        check(format!("rewritten-{number}"), &[format!("rewritten {number}"), format!("rewritten again {number}")]);
        check(format!("replaced-{number}"), &[format!("replaced {number}"), format!("replacement {number}")]);
    }
    (0..new).for_each(|number| check(format!("new-{number}"), &[format!("new {number}")]));
    assert!(hashes.is_empty(), "nothing else: {:?}", hashes.keys());
    assert_events(&messages);
}

/// A rescan publishes a file as new or as rewritten.
fn assert_events(messages: &[Message]) {
    for message in messages {
        let again = message.sha256() == sha256(b"rewritten again 0") || message.sha256() == sha256(b"replacement 0");
        if again {
            assert_eq!(message.event(), "IN_CLOSE_WRITE", "{}", message.name());
        }
    }
}

#[test]
fn an_overflow_publishes_exactly_what_was_missed() {
    publishes_exactly_what_was_missed(|setup| setup);
}

#[test]
fn an_overflow_publishes_exactly_what_was_missed_with_a_ledger() {
    let state = tempfile::tempdir().unwrap();
    publishes_exactly_what_was_missed(|setup| setup.env("STATE_DIRECTORY", state.path()));
}

#[test]
fn an_overflow_in_a_tree_publishes_what_was_missed_in_all_of_it() {
    let queue = queue_length();
    if queue > QUEUE_MAX {
        return skip("fs.inotify.max_queued_events is too large to be filled");
    }
    let mut world = World::start_with(Setup::recursive);
    for name in ["kept", "renamed", "removed", "again"] {
        fs::create_dir_all(world.path(&format!("{name}/sub"))).unwrap();
        world.write(&format!("{name}/sub/file"), name);
    }
    world.wait_until("the files", |messages| messages.len() >= 4);
    // FIFOs are not published, and each close is an event. There are two, because the kernel merges equal events in a
    // row.
    let noise = ["kept/noise", "kept/din"].map(|name| world.path(name));
    for fifo in &noise {
        files::fifo(fifo);
    }
    world.service().pause();
    for number in 0..queue + 500 {
        drop(File::options().read(true).write(true).open(&noise[number % 2]).unwrap());
    }
    fs::rename(world.path("renamed"), world.path("name")).unwrap();
    fs::remove_dir_all(world.path("removed")).unwrap();
    fs::remove_dir_all(world.path("again")).unwrap();
    fs::create_dir_all(world.path("again/sub")).unwrap();
    world.write("again/sub/file", "once more");
    fs::create_dir_all(world.path("new/sub")).unwrap();
    world.write("new/sub/file", "new");
    world.write("kept/sub/file", "rewritten");
    world.service().resume();
    world.service().wait_log("a WARN of the overflow", |line| line.contains("WARN") && line.contains("queue"));
    world.wait_until("what was missed", |messages| messages.len() >= 8);
    world.pass_sentinel();
    wait_for_watches(&mut world, 9);
    let data = world.data.clone();
    let messages = world.finish();
    let mut paths: Vec<&str> = by_path(&data, &messages[4..]).into_keys().collect();
    paths.sort_unstable();
    assert_eq!(paths, ["again/sub/file", "kept/sub/file", "name/sub/file", "new/sub/file"]);
    assert_eq!(messages.len(), 8, "{}", list(&messages));
}
