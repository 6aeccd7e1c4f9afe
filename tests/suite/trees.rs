//! Whole trees: `--recursive`, with directories that are made, moved, exchanged and removed while they are watched.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use crate::consumer::Message;
use crate::files::sha256;
use crate::service::Setup;
use crate::world::{World, list};

fn recursive(setup: Setup) -> Setup {
    setup.arg("--recursive")
}

fn start() -> World {
    World::start_with(recursive)
}

/// The messages by their path below the data directory.
fn by_path<'a>(data: &Path, messages: &'a [Message]) -> HashMap<&'a str, Vec<&'a Message>> {
    let mut found: HashMap<&str, Vec<&Message>> = HashMap::new();
    for message in messages {
        let below = message.path().strip_prefix(data.to_str().unwrap()).expect("below the data directory");
        found.entry(&below[1..]).or_default().push(message);
    }
    found
}

#[track_caller]
fn assert_each_once(data: &Path, messages: &[Message], expected: &[(&str, &str)]) {
    let mut found: Vec<(&str, &str)> = Vec::new();
    for (path, messages) in by_path(data, messages) {
        messages.iter().for_each(|message| found.push((path, message.event())));
    }
    found.sort_unstable();
    let mut expected = expected.to_vec();
    expected.sort_unstable();
    assert_eq!(found, expected, "{}", list(messages));
}

#[test]
fn files_in_directories_that_were_there_and_in_new_ones_have_one_message_each() {
    let mut world = World::without_service();
    fs::create_dir_all(world.path("old/deep")).unwrap();
    world.write("old/before", "before");
    world.launch(recursive);
    world.write("old/deep/a", "a");
    fs::create_dir_all(world.path("new/deep/er")).unwrap();
    world.write("new/deep/er/b", "b");
    world.write("new/c", "c");
    world.write("d", "d");
    let data = world.data.clone();
    world.wait_until("four messages", |messages| messages.len() >= 4);
    let messages = world.finish();
    let expected =
        [("old/deep/a", "IN_CREATE"), ("new/deep/er/b", "IN_CREATE"), ("new/c", "IN_CREATE"), ("d", "IN_CREATE")];
    assert_each_once(&data, &messages, &expected);
}

#[test]
fn nothing_is_lost_between_a_directory_and_its_watch_and_nothing_comes_twice() {
    const TREES: usize = 200;
    let mut world = start();
    for number in 0..TREES {
        let directory = world.path(&format!("{number}/a/b"));
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("file"), number.to_string()).unwrap();
        fs::write(world.path(&format!("{number}/file")), number.to_string()).unwrap();
    }
    world.wait_until("all of them", |messages| messages.len() >= 2 * TREES);
    let data = world.data.clone();
    let messages = world.finish();
    let found = by_path(&data, &messages);
    for number in 0..TREES {
        for path in [format!("{number}/a/b/file"), format!("{number}/file")] {
            let messages = found.get(&*path).map(Vec::as_slice).unwrap_or_default();
            assert_eq!(messages.len(), 1, "{path}");
            assert_eq!(messages[0].sha256(), sha256(number.to_string().as_bytes()), "{path}");
        }
    }
    assert_eq!(messages.len(), 2 * TREES);
}

#[test]
fn a_tree_of_10_000_files_moved_in_gives_10_000_messages() {
    const DIRECTORIES: usize = 100;
    const EACH: usize = 100;
    let mut world = start();
    for directory in 0..DIRECTORIES {
        let directory = world.outside.join(format!("tree/{}/{directory}", directory % 10));
        fs::create_dir_all(&directory).unwrap();
        (0..EACH).for_each(|file| fs::write(directory.join(file.to_string()), file.to_string()).unwrap());
    }
    fs::rename(world.outside.join("tree"), world.path("tree")).unwrap();
    world.wait_until("10,000 messages", |messages| messages.len() >= DIRECTORIES * EACH);
    let data = world.data.clone();
    let messages = world.finish();
    assert_eq!(messages.len(), DIRECTORIES * EACH);
    let found = by_path(&data, &messages);
    assert_eq!(found.len(), DIRECTORIES * EACH);
    for (path, messages) in found {
        assert_eq!(messages[0].event(), "IN_MOVED_TO", "{path}");
        let content = path.rsplit('/').next().unwrap();
        assert_eq!(messages[0].sha256(), sha256(content.as_bytes()), "{path}");
    }
}

#[test]
fn a_renamed_directory_tells_its_files_new_paths_and_goes_on_being_watched() {
    let mut world = start();
    fs::create_dir_all(world.path("before/sub")).unwrap();
    world.write("before/sub/file", "one");
    world.write("before/file", "two");
    world.wait_until("the files", |messages| messages.len() >= 2);
    fs::rename(world.path("before"), world.path("after")).unwrap();
    world.wait_until("their new paths", |messages| messages.len() >= 4);
    world.write("after/sub/later", "three");
    world.wait_for("after/sub/later", 1);
    // A new directory of the old name has nothing of the old one.
    fs::create_dir_all(world.path("before/sub")).unwrap();
    world.write("before/sub/file", "four");
    world.wait_until("a file of the old name", |messages| messages.len() >= 6);
    let data = world.data.clone();
    let messages = world.finish();
    let expected = [
        ("before/sub/file", "IN_CREATE"),
        ("before/file", "IN_CREATE"),
        ("after/sub/file", "IN_MOVED_TO"),
        ("after/file", "IN_MOVED_TO"),
        ("after/sub/later", "IN_CREATE"),
        ("before/sub/file", "IN_CREATE"),
    ];
    assert_each_once(&data, &messages, &expected);
}
