//! Directories that are moved in, renamed and exchanged are followed: every file is published under its present path.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, RenameFlags};

use crate::support::files::{Random, exchange, sha256, write};
use crate::support::message::Message;
use crate::support::setup::Setup;
use crate::support::tree::{assert_each_once, by_path, wait_for_watches};
use crate::support::world::{World, list};

#[test]
fn a_tree_of_10_000_files_moved_in_gives_10_000_messages() {
    const DIRECTORIES: usize = 100;
    const EACH: usize = 100;
    let mut world = World::start_with(Setup::recursive);
    let tree = world.outside.join("tree");
    for directory in 0..DIRECTORIES {
        let at = tree.join(format!("{}/{directory}", directory % 10));
        fs::create_dir_all(&at).unwrap();
        // Closed before it is renamed: otherwise it may count as written in a directory that is watched already.
        (0..EACH).for_each(|file| write(&at.join(file.to_string()), file.to_string()));
    }
    fs::rename(tree, world.path("tree")).unwrap();
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
fn a_renamed_directory_publishes_its_files_under_their_new_paths() {
    let mut world = World::start_with(Setup::recursive);
    fs::create_dir_all(world.path("before/sub")).unwrap();
    world.write("before/sub/file", "one");
    world.write("before/file", "two");
    world.wait_until("the files", |messages| messages.len() >= 2);
    fs::rename(world.path("before"), world.path("after")).unwrap();
    world.wait_until("their new paths", |messages| messages.len() >= 4);
    world.write("after/sub/later", "three");
    world.wait_for("after/sub/later", 1);
    // A new directory of the old name has none of the old files.
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

#[test]
fn a_directory_renamed_away_and_back_loses_no_file_in_flight() {
    const DIRECTORIES: usize = 1000;
    let mut world = World::without_service();
    let directory = |number: usize| world.data.join(format!("d{number}"));
    (0..DIRECTORIES).for_each(|number| fs::create_dir(directory(number)).unwrap());
    let away = world.path("away");
    let paths: Vec<PathBuf> = (0..DIRECTORIES).map(directory).collect();
    world.launch(Setup::recursive);
    for (number, path) in paths.iter().enumerate() {
        fs::write(path.join("file"), number.to_string()).unwrap();
        // So that reads begin at every moment of the renames.
        let until = Instant::now() + Duration::from_micros(7 * (number as u64 % 100));
        while Instant::now() < until {
            std::hint::spin_loop();
        }
        fs::rename(path, &away).unwrap();
        fs::rename(&away, path).unwrap();
    }
    world.wait_until("a message for every file where it is", |messages| {
        let published: HashSet<&str> = messages.iter().map(Message::path).collect();
        paths.iter().all(|path| published.contains(path.join("file").to_str().unwrap()))
    });
}

#[test]
fn two_directories_that_are_exchanged_have_each_others_files() {
    let mut world = World::start_with(Setup::recursive);
    for name in ["one", "two"] {
        fs::create_dir(world.path(name)).unwrap();
        world.write(&format!("{name}/file"), name);
        world.write(&format!("{name}/only-{name}"), name);
    }
    world.wait_until("the files", |messages| messages.len() >= 4);
    let (one, two) = (world.path("one"), world.path("two"));
    exchange(&one, &two);
    world.wait_until("all of them under the other name", |messages| messages.len() >= 8);
    world.write("one/later", "later");
    world.wait_for_one("one/later");
    let data = world.data.clone();
    let messages = world.finish();
    assert_eq!(messages.len(), 9, "{}", list(&messages));
    let found = by_path(&data, &messages);
    let last = |path: &str| found[path].last().unwrap().sha256().to_owned();
    assert_eq!((last("one/file"), last("two/file")), (sha256(b"two"), sha256(b"one")));
    assert_eq!((last("one/only-two"), last("two/only-one")), (sha256(b"two"), sha256(b"one")));
    let events: Vec<&str> = messages[4..8].iter().map(Message::event).collect();
    assert_eq!(events, ["IN_MOVED_TO"; 4], "{}", list(&messages));
}

#[test]
fn renames_while_the_service_is_stopped_end_with_every_file_published() {
    let mut world = World::start_with(Setup::recursive);
    for name in ["a", "b", "c", "d"] {
        fs::create_dir_all(world.path(&format!("{name}/sub"))).unwrap();
        world.write(&format!("{name}/sub/{name}"), name);
    }
    world.wait_until("the files", |messages| messages.len() >= 4);
    world.service().pause();
    let rename = |from: &str, to: &str| fs::rename(world.path(from), world.path(to)).unwrap();
    rename("a", "x"); // twice in a row
    rename("x", "y");
    rename("b", "a"); // to a name that was another's
    fs::create_dir(world.path("empty")).unwrap();
    rename("c", "empty"); // over an empty one
    rename("d", "y/sub/d"); // into one that was moved
    rename("y/sub", "top"); // and out of it, to the top
    fs::create_dir_all(world.path("d/sub")).unwrap();
    world.write("d/sub/d", "another");
    fs::create_dir(world.path("c")).unwrap();
    world.service().resume();
    let expected =
        [("top/a", "a"), ("a/sub/b", "b"), ("empty/sub/c", "c"), ("top/d/sub/d", "d"), ("d/sub/d", "another")];
    for (path, content) in expected {
        world.wait_for_content(world.path(path).to_str().unwrap(), content.as_bytes());
    }
    // data, y, top, top/d, top/d/sub, a, a/sub, empty, empty/sub, d, d/sub, c
    world.pass_sentinel();
    wait_for_watches(&mut world, 12);
    for (number, directory) in ["y", "top", "top/d/sub", "a/sub", "empty/sub", "d/sub", "c"].iter().enumerate() {
        world.write(&format!("{directory}/later-{number}"), "later");
        world.wait_for_one(&format!("{directory}/later-{number}"));
    }
    let data = world.data.clone();
    let messages = world.finish();
    let found = by_path(&data, &messages);
    assert_eq!(found.values().map(Vec::len).sum::<usize>(), 4 + 5 + 7, "{}", list(&messages));
}

/// Every directory below, the top included.
fn directories(top: &Path) -> Vec<PathBuf> {
    let mut found = vec![top.to_owned()];
    let mut at = 0;
    while at < found.len() {
        let entries = fs::read_dir(&found[at]).unwrap().map(|entry| entry.unwrap());
        let below: Vec<PathBuf> =
            entries.filter(|entry| entry.file_type().unwrap().is_dir()).map(|entry| entry.path()).collect();
        found.extend(below);
        at += 1;
    }
    found
}

/// Directories are made, filled, renamed, moved in and out, exchanged and removed. In the end the last message of each
/// path has the content of the file there, and there are as many watches as directories.
fn every_file_is_published_after(seed: u64, operations: usize, with_pauses: bool) {
    let mut world = World::start_with(Setup::recursive);
    let mut random = Random::new(seed);
    for operation in 0..operations {
        let all = directories(&world.data);
        let inside = directories(&world.outside);
        let one = all[random.below(all.len())].clone();
        let other = all[random.below(all.len())].clone();
        let name = format!("d{}", random.below(4));
        // An operation that is not possible, such as moving a directory into itself, is left out.
        match random.below(10) {
            0 | 1 => drop(fs::create_dir_all(one.join(name).join("x"))),
            2..=5 => drop(fs::write(one.join(format!("f{}", random.below(3))), format!("{seed} {operation}"))),
            6 if one != world.data => drop(fs::rename(&one, other.join(name))),
            7 if one != world.data => drop(fs::rename(&one, world.outside.join(format!("o{operation}")))),
            7 | 8 if inside.len() > 1 => drop(fs::rename(&inside[1 + random.below(inside.len() - 1)], one.join(name))),
            8 if one != world.data && other != world.data => {
                let _ = rustix::fs::renameat_with(CWD, &one, CWD, &other, RenameFlags::EXCHANGE);
            }
            9 if one != world.data && one.components().count() > world.data.components().count() + 1 => {
                drop(fs::remove_dir_all(&one));
            }
            _ => {}
        }
        if with_pauses && random.below(20) == 0 {
            world.pass_sentinel();
        }
    }
    let mut expected: HashMap<String, String> = HashMap::new();
    let all = directories(&world.data);
    for directory in &all {
        for entry in fs::read_dir(directory).unwrap().map(|entry| entry.unwrap()) {
            if entry.file_type().unwrap().is_file() {
                let content = sha256(&fs::read(entry.path()).unwrap());
                expected.insert(entry.path().to_str().unwrap().to_owned(), content);
            }
        }
    }
    world.wait_until(&format!("seed {seed}: the last of each of {} files", expected.len()), |messages| {
        let mut last: HashMap<&str, &str> = HashMap::new();
        last.extend(messages.iter().map(|message| (message.path(), message.sha256())));
        expected.iter().all(|(path, content)| last.get(&**path) == Some(&&**content))
    });
    world.pass_sentinel();
    wait_for_watches(&mut world, all.len());
    world.finish();
}

#[test]
fn random_operations_end_with_every_file_published() {
    (1..=8).for_each(|seed| every_file_is_published_after(seed, 600, true));
}

#[test]
fn random_operations_in_bursts_end_with_every_file_published() {
    (101..=108).for_each(|seed| every_file_is_published_after(seed, 600, false));
}
