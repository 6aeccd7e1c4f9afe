//! With `--recursive`, files in old and new directories are published once, with neighbors of their own directory.

use std::fs::{self, File};
use std::io::Write;

use crate::support::files::sha256;
use crate::support::setup::Setup;
use crate::support::skip;
use crate::support::tree::{assert_each_once, by_path};
use crate::support::world::World;

#[test]
fn files_in_old_and_new_directories_have_one_message_each() {
    let mut world = World::without_service();
    fs::create_dir_all(world.path("old/deep")).unwrap();
    world.write("old/before", "before");
    world.launch(Setup::recursive);
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
fn nothing_is_lost_or_repeated_before_a_new_directory_is_watched() {
    const TREES: usize = 200;
    let mut world = World::start_with(Setup::recursive);
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
fn files_of_a_new_directory_are_published_once_closed() {
    // A file waits this long where the kernel does not show its writers.
    let mut world = World::start_with(|setup| setup.recursive().args(&["--settle-ms", "3600000"]));
    let log = world.service().stderr();
    if !log.contains("a read lease") {
        return skip("no leases here");
    }
    world.service().pause();
    fs::create_dir_all(world.path("new/deep")).unwrap();
    world.write("new/deep/closed", "closed before there was a watch");
    let mut open = File::create(world.path("new/deep/open")).unwrap();
    open.write_all(b"first").unwrap();
    world.service().resume();
    world.wait_for_one("new/deep/closed");
    world.pass_sentinel();
    open.write_all(b" and last").unwrap();
    drop(open);
    assert_eq!(world.wait_for_one("new/deep/open").sha256(), sha256(b"first and last"));
    let data = world.data.clone();
    let messages = world.finish();
    assert_each_once(&data, &messages, &[("new/deep/closed", "IN_CREATE"), ("new/deep/open", "IN_CREATE")]);
}

#[test]
fn neighbors_are_of_the_files_own_directory() {
    let mut world = World::without_service();
    fs::create_dir(world.path("one")).unwrap();
    fs::create_dir(world.path("two")).unwrap();
    for path in ["song.txt", "one/song.cue", "one/readme", "two/song.log"] {
        world.write(path, path);
    }
    world.launch(Setup::recursive);
    world.write("one/song.flac", "flac");
    let message = world.wait_for_one("one/song.flac");
    let expected = ["one/song.cue", "one/readme"].map(|path| world.path(path).to_str().unwrap().to_owned());
    assert_eq!(message.neighbors(), expected);
}
