//! Messages and watches of a whole tree, for tests of `--recursive`.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use super::message::Message;
use super::wait::retry;
use super::world::{World, list};

/// The messages by their path below the data directory.
pub fn by_path<'a>(data: &Path, messages: &'a [Message]) -> HashMap<&'a str, Vec<&'a Message>> {
    let mut found: HashMap<&str, Vec<&Message>> = HashMap::new();
    for message in messages {
        let below = message.path().strip_prefix(data.to_str().unwrap()).expect("below the data directory");
        found.entry(&below[1..]).or_default().push(message);
    }
    found
}

/// The messages are these paths and events, in any order.
#[track_caller]
pub fn assert_each_once(data: &Path, messages: &[Message], expected: &[(&str, &str)]) {
    let mut found: Vec<(&str, &str)> = Vec::new();
    for (path, messages) in by_path(data, messages) {
        messages.iter().for_each(|message| found.push((path, message.event())));
    }
    found.sort_unstable();
    let mut expected = expected.to_vec();
    expected.sort_unstable();
    assert_eq!(found, expected, "{}", list(messages));
}

/// How many inotify watches the service has.
pub fn watches(world: &mut World) -> usize {
    let id = world.service().id();
    let mut count = 0;
    for entry in fs::read_dir(format!("/proc/{id}/fdinfo")).unwrap() {
        let text = fs::read_to_string(entry.unwrap().path()).unwrap_or_default();
        count = count.max(text.lines().filter(|line| line.starts_with("inotify ")).count());
    }
    count
}

/// The service removes the watches of directories that have left the tree when it has nothing else to do.
#[track_caller]
pub fn wait_for_watches(world: &mut World, expected: usize) {
    retry(&format!("{expected} watches"), || match watches(world) {
        count if count == expected => Ok(()),
        count => Err(format!("{count} watches\n{}", world.dump())),
    });
}
