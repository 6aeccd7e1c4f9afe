//! Links and hard links are published when their file is written by another name; only regular files are neighbors.

use std::fs;
use std::os::unix::fs::symlink;

use crate::support::files::{fifo, sha256};
use crate::support::setup::Setup;
use crate::support::world::{World, list};

#[test]
fn a_link_follows_its_target_that_is_rewritten_by_its_own_name() {
    let mut world = World::start_with(Setup::recursive);
    fs::create_dir(world.path("sub")).unwrap();
    world.write("sub/file", "first");
    symlink("sub/file", world.path("link")).unwrap();
    symlink("link", world.path("link to the link")).unwrap();
    for name in ["link", "link to the link"] {
        world.wait_for_content(name, b"first");
    }
    world.write("sub/file", "second");
    fs::write(world.outside.join("third"), "third").unwrap();
    for name in ["link", "link to the link"] {
        world.wait_for_content(name, b"second");
    }
    fs::rename(world.outside.join("third"), world.path("sub/file")).unwrap();
    for name in ["sub/file", "link", "link to the link"] {
        world.wait_for_content(name, b"third");
    }
    let events: Vec<String> = world.messages_for("link").iter().map(|it| it.event().to_owned()).collect();
    assert_eq!(events, ["IN_CREATE", "IN_CLOSE_WRITE", "IN_CLOSE_WRITE"]);
    world.finish();
}

#[test]
fn a_dangling_link_is_published_when_its_target_appears() {
    let mut world = World::start_with(Setup::recursive);
    symlink("later/file", world.path("link")).unwrap();
    world.pass_sentinel();
    fs::create_dir(world.path("later")).unwrap();
    world.write("later/file", "there");
    world.wait_for_content("link", b"there");
    world.finish();
}

#[test]
fn a_link_through_a_link_to_a_directory_follows_that() {
    let mut world = World::without_service();
    for release in ["1", "2"] {
        fs::create_dir_all(world.path(&format!("releases/{release}"))).unwrap();
        world.write(&format!("releases/{release}/file"), release);
    }
    symlink("releases/1", world.path("current")).unwrap();
    symlink("current/file", world.path("link")).unwrap();
    world.launch(|setup| setup.recursive().args(&["--catch-up", "all"]));
    world.wait_for_content("link", b"1");
    symlink("releases/2", world.path("next")).unwrap();
    fs::rename(world.path("next"), world.path("current")).unwrap();
    world.wait_for_content("link", b"2");
    world.finish();
}

#[test]
fn a_link_follows_a_target_that_the_filter_leaves_out() {
    let mut world = World::start_with(|setup| setup.arg("--exclude=*.tmp"));
    world.write("file.tmp", "first");
    symlink("file.tmp", world.path("link")).unwrap();
    world.wait_for_content("link", b"first");
    world.write("file.tmp", "second");
    world.wait_for_content("link", b"second");
    assert!(world.messages_for("file.tmp").is_empty());
    world.finish();
}

#[test]
fn a_hard_link_follows_what_is_written_by_another_name() {
    let mut world = World::start_with(|setup| setup.recursive().arg("--exclude=*.tmp"));
    fs::create_dir(world.path("sub")).unwrap();
    world.write("first", "one");
    world.wait_for_content("first", b"one");
    fs::hard_link(world.path("first"), world.path("sub/second")).unwrap();
    world.wait_for_content("sub/second", b"one");
    world.write("sub/second", "written by the second");
    for name in ["first", "sub/second"] {
        world.wait_for_content(name, b"written by the second");
    }
    fs::hard_link(world.path("first"), world.path("third.tmp")).unwrap();
    world.write("first", "by the first");
    for name in ["first", "sub/second"] {
        world.wait_for_content(name, b"by the first");
    }
    world.write("third.tmp", "by one that is left out");
    for name in ["first", "sub/second"] {
        world.wait_for_content(name, b"by one that is left out");
    }
    let messages = world.finish();
    let count = |name: &str| messages.iter().filter(|it| it.name() == name).count();
    assert_eq!((count("first"), count("second"), count("third.tmp")), (4, 4, 0), "{}", list(&messages));
}

#[test]
fn a_file_replaced_by_another_kind_is_no_neighbor() {
    let mut world = World::start();
    for name in ["album.txt", "album.log", "album.cue", "target"] {
        world.write(name, name);
        world.wait_for_one(name);
    }
    fifo(&world.path(".fifo"));
    fs::rename(world.path(".fifo"), world.path("album.txt")).unwrap();
    symlink("target", world.path(".link")).unwrap();
    fs::rename(world.path(".link"), world.path("album.log")).unwrap();
    fs::create_dir(world.path(".directory")).unwrap();
    fs::remove_file(world.path("album.cue")).unwrap();
    fs::rename(world.path(".directory"), world.path("album.cue")).unwrap();
    world.wait_for_content("album.log", b"target");
    world.write("album.flac", "music");
    assert_eq!(world.wait_for_one("album.flac").neighbors(), Vec::<&str>::new());
    // It is a regular file again.
    world.write(".file", "text");
    fs::rename(world.path(".file"), world.path("album.txt")).unwrap();
    world.wait_for_content("album.txt", b"text");
    world.write("album.flac", "more music");
    let last = world.wait_for("album.flac", 2).pop().unwrap();
    assert_eq!(last.neighbors(), [world.path("album.txt").to_str().unwrap()]);
    assert_eq!(last.sha256(), sha256(b"more music"));
    world.finish();
}
