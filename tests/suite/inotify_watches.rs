//! Each directory of a tree has one inotify watch, freed when it leaves the tree; at the limit of watches nothing is
//! lost.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};

use crate::support::control::wait_for_metrics;
use crate::support::namespaces::{self, Mounted};
use crate::support::service::assert_no_warning;
use crate::support::setup::Setup;
use crate::support::skip;
use crate::support::tree::{assert_each_once, wait_for_watches, watches};
use crate::support::world::{World, list};

/// The pause between two rescans of directories without a watch, and some time for a busy machine.
const RESCAN_TIMEOUT: Duration = Duration::from_secs(90);

#[test]
fn a_directory_moved_out_or_removed_frees_its_watches() {
    let mut world = World::start_with(Setup::recursive);
    for name in ["out", "removed"] {
        fs::create_dir_all(world.path(&format!("{name}/sub"))).unwrap();
        world.write(&format!("{name}/sub/file"), name);
    }
    world.wait_until("the files", |messages| messages.len() >= 2);
    assert_eq!(watches(&mut world), 5);
    fs::rename(world.path("out"), world.outside.join("out")).unwrap();
    fs::remove_dir_all(world.path("removed")).unwrap();
    world.pass_sentinel();
    wait_for_watches(&mut world, 1);
    fs::write(world.outside.join("out/sub/later"), "outside").unwrap();
    // Back again: its files are new here, and so is what was written outside.
    fs::rename(world.outside.join("out"), world.path("out")).unwrap();
    world.wait_until("what came back", |messages| messages.len() >= 5);
    let data = world.data.clone();
    let messages = world.finish();
    let expected = [
        ("out/sub/file", "IN_CREATE"),
        ("removed/sub/file", "IN_CREATE"),
        ("out/sub/file", "IN_MOVED_TO"),
        ("out/sub/later", "IN_MOVED_TO"),
    ];
    assert_each_once(&data, &messages, &expected);
}

#[test]
fn a_directory_removed_and_made_again_is_watched_again() {
    const ROUNDS: usize = 50;
    let mut world = World::start_with(Setup::recursive);
    for round in 0..ROUNDS {
        fs::create_dir_all(world.path("again/sub")).unwrap();
        world.write("again/sub/file", format!("round {round}"));
        if round % 3 == 0 {
            world.wait_for_content("again/sub/file", format!("round {round}").as_bytes());
        }
        if round + 1 < ROUNDS {
            fs::remove_dir_all(world.path("again")).unwrap();
        }
    }
    world.wait_for_content("again/sub/file", format!("round {}", ROUNDS - 1).as_bytes());
    wait_for_watches(&mut world, 3);
    world.write("again/sub/later", "later");
    world.wait_for_one("again/sub/later");
}

#[test]
fn a_rename_of_more_directories_than_the_queue_holds_is_no_overflow() {
    const DIRECTORIES: usize = 20_000; // the queue has 16,384 by default
    let tree = |top: &Path| {
        (0..DIRECTORIES).for_each(|number| {
            fs::create_dir_all(top.join(format!("{}/{number}", number % 100))).unwrap();
        });
    };
    let mut world = World::without_service();
    tree(&world.path("before"));
    world.write("before/7/7/file", "one");
    world.launch(Setup::recursive);
    assert_eq!(watches(&mut world), 1 + 1 + 100 + DIRECTORIES);
    fs::rename(world.path("before"), world.path("after")).unwrap();
    world.wait_for_one("after/7/7/file");
    fs::rename(world.path("after"), world.outside.join("tree")).unwrap();
    world.pass_sentinel();
    wait_for_watches(&mut world, 1);
    world.pass_sentinel();
    let log = world.service().stderr();
    assert_no_warning(&log);
    fs::rename(world.outside.join("tree"), world.path("back")).unwrap();
    world.wait_for_one("back/7/7/file");
    let data = world.data.clone();
    let messages = world.finish();
    assert_each_once(&data, &messages, &[("after/7/7/file", "IN_MOVED_TO"), ("back/7/7/file", "IN_MOVED_TO")]);
}

#[test]
fn without_descriptors_a_renamed_directory_stays_watched() {
    let mut world = World::start_with(Setup::recursive);
    fs::create_dir_all(world.path("kept/deep")).unwrap();
    for path in ["kept/file", "kept/deep/file"] {
        world.write(path, path);
    }
    world.wait_until("the files", |messages| messages.len() >= 2);
    let service = Pid::from_raw(world.service().id().cast_signed()).unwrap();
    let none = Rlimit { current: Some(3), ..getrlimit(Resource::Nofile) };
    let before = prlimit(Some(service), Resource::Nofile, none).unwrap();
    fs::rename(world.path("kept"), world.path("away")).unwrap();
    fs::rename(world.path("away"), world.path("kept")).unwrap();
    world.service().wait_log("why it could not be read", |line| line.contains("WARN") && line.contains("kept"));
    prlimit(Some(service), Resource::Nofile, before).unwrap();
    world.pass_sentinel();
    world.write("kept/deep/later", "later");
    world.wait_for_one("kept/deep/later");
    let data = world.data.clone();
    let messages = world.finish();
    let expected = [("kept/file", "IN_CREATE"), ("kept/deep/file", "IN_CREATE"), ("kept/deep/later", "IN_CREATE")];
    assert_each_once(&data, &messages, &expected);
}

#[test]
fn links_to_directories_are_not_entered() {
    let mut world = World::without_service();
    fs::create_dir_all(world.path("real")).unwrap();
    symlink(&world.data, world.path("real/loop")).unwrap();
    symlink(&world.outside, world.path("real/outside")).unwrap();
    world.launch(Setup::recursive);
    fs::create_dir(world.path("made")).unwrap();
    symlink("..", world.path("made/up")).unwrap();
    world.write("real/file", "once");
    fs::write(world.outside.join("file"), "outside").unwrap();
    world.wait_for_one("real/file");
    assert_eq!(watches(&mut world), 3);
    let messages = world.finish();
    assert_eq!(messages.len(), 1, "{}", list(&messages));
}

#[test]
fn bind_mounts_are_not_entered() {
    if !namespaces::are_allowed() {
        return skip("no user namespaces here");
    }
    let mut world = World::without_service();
    for name in ["real/deep", "loop", "twin", "beside"] {
        fs::create_dir_all(world.path(name)).unwrap();
    }
    let (data, outside, real) = (world.data.clone(), world.outside.clone(), world.path("real"));
    let at = ["loop", "twin", "beside"].map(|name| world.path(name));
    world.launch(|setup| {
        let mounts = [(&data, &at[0]), (&real, &at[1]), (&outside, &at[2])];
        namespaces::with_mounts(setup.recursive(), &mounts.map(|(from, at)| (Mounted::Bind(from), at.as_path())))
    });
    fs::write(outside.join("file"), "outside").unwrap();
    world.write("real/deep/file", "once");
    world.write("real/file", "once");
    world.wait_until("the files", |messages| messages.len() >= 2);
    assert_eq!(watches(&mut world), 3, "the root, real and real/deep");
    let messages = world.finish();
    assert_each_once(&data, &messages, &[("real/deep/file", "IN_CREATE"), ("real/file", "IN_CREATE")]);
}

#[test]
fn excluded_directories_have_no_watch_until_they_are_renamed() {
    let mut world = World::without_service();
    for name in ["demo/sub", "album/demo"] {
        fs::create_dir_all(world.path(name)).unwrap();
    }
    world.launch(|setup| setup.recursive().args(&["--include", "*.flac", "--exclude", "demo/"]));
    assert_eq!(watches(&mut world), 2, "the root and album");
    for path in ["demo/sub/a.flac", "album/demo/b.flac", "album/c.flac", "album/c.txt"] {
        world.write(path, path);
    }
    world.wait_for_one("album/c.flac");
    fs::rename(world.path("demo"), world.path("real")).unwrap();
    world.wait_for_one("real/sub/a.flac");
    wait_for_watches(&mut world, 4);
    fs::rename(world.path("album"), world.path("real/demo")).unwrap();
    world.write("real/demo/d.flac", "d");
    fs::create_dir_all(world.path("new/demo")).unwrap();
    world.write("new/demo/e.flac", "e");
    world.write("new/f.flac", "f");
    world.wait_for_one("new/f.flac");
    wait_for_watches(&mut world, 4);
    world.write("sentinel.flac", "this one is admitted");
    world.wait_for_one("sentinel.flac");
    let data = world.data.clone();
    world.stop_service();
    let messages = world.consumer.drain();
    let expected = [
        ("album/c.flac", "IN_CREATE"),
        ("real/sub/a.flac", "IN_MOVED_TO"),
        ("new/f.flac", "IN_CREATE"),
        ("sentinel.flac", "IN_CREATE"),
    ];
    assert_each_once(&data, &messages, &expected);
}

#[test]
fn at_the_watch_limit_directories_moved_out_make_room() {
    if !namespaces::are_allowed() {
        return skip("no user namespaces here");
    }
    let mut world = World::without_service();
    fs::create_dir_all(world.path("old/2/3")).unwrap();
    world.launch(|setup| namespaces::with_watch_limit(setup.recursive(), 4));
    world.service().pause();
    // Both events are read in one turn, so that the old watches still stand when the new ones are due.
    fs::rename(world.path("old"), world.outside.join("old")).unwrap();
    fs::create_dir_all(world.path("new/2/3")).unwrap();
    world.service().resume();
    world.pass_sentinel();
    world.write("new/2/3/file", "file");
    world.wait_for_one("new/2/3/file");
    wait_for_watches(&mut world, 4);
    let log = world.service().stderr();
    assert_no_warning(&log);
}

#[test]
fn beyond_the_watch_limit_a_warning_comes_and_nothing_is_lost() {
    if !namespaces::are_allowed() {
        return skip("no user namespaces here");
    }
    let mut world = World::without_service();
    fs::create_dir_all(world.path("1/2/3/4/5")).unwrap();
    fs::create_dir(world.path("room")).unwrap();
    world.launch(|setup| namespaces::with_watch_limit(setup.recursive(), 4));
    world.service().wait_log("a WARN of the limit", |line| {
        line.contains("WARN")
            && line.contains("no more than 4 directories")
            && line.contains("fs.inotify.max_user_watches")
    });
    let socket = world.service().control_socket();
    let directories = |seen: &BTreeMap<String, f64>| {
        ["watched", "unwatched"].map(|which| seen[&format!("apollonia_{which}_directories")])
    };
    wait_for_metrics(&socket, "both kinds of directories", |seen| directories(seen) == [4.0, 3.0]);
    let files = ["file", "1/2/3/file", "1/2/3/4/file", "1/2/3/4/5/file", "1/2/3/4/new/file"];
    fs::create_dir(world.path("1/2/3/4/new")).unwrap();
    for path in files {
        world.write(path, path);
    }
    world.wait_until_within(RESCAN_TIMEOUT, "all of them", |messages| messages.len() >= files.len());
    // A watched directory is removed, and the last one without a watch gets one.
    for path in ["room", "1/2/3/4"] {
        fs::remove_dir_all(world.path(path)).unwrap();
    }
    let service = world.service();
    service.wait_log_within(RESCAN_TIMEOUT, "that no directory is without a watch", |line| {
        line.contains("none is without a watch")
    });
    wait_for_metrics(&socket, "none without a watch", |seen| directories(seen) == [4.0, 0.0]);
    world.write("1/2/3/later", "later");
    world.wait_for_one("1/2/3/later");
    let data = world.data.clone();
    let messages = world.finish();
    let expected: Vec<_> = files.into_iter().chain(["1/2/3/later"]).map(|path| (path, "IN_CREATE")).collect();
    assert_each_once(&data, &messages, &expected);
}
