//! Something is mounted below a data directory, and unmounted: what it covers is not forgotten, and is there again afterwards.

use std::fs;

use rustix::process::Signal;

use crate::support::control::wait_for_metrics;
use crate::support::message::Message;
use crate::support::setup::Setup;
use crate::support::skip;
use crate::support::volume::{Bind, SmallDisk};
use crate::support::world::{World, directories, list};

const WHY: &str = "nothing can be mounted here";

#[test]
fn a_directory_that_was_covered_at_the_start_is_entered_once_it_is_not() {
    let mut world = World::without_service();
    fs::create_dir(world.path("sub")).unwrap();
    world.write("sub/before", "before");
    let Some(cover) = SmallDisk::mount(&world.path("sub"), "size=1m") else { return skip(WHY) };
    world.write("sub/foreign", "foreign");
    world.launch(|setup| setup.recursive().args(&["--catch-up", "all"]));
    world.service().wait_log("the mount", |line| line.contains("something is mounted at"));
    drop(cover);
    world.wait_for_content("sub/before", b"before");
    // It is watched.
    world.write("sub/after", "after");
    world.wait_for_content("sub/after", b"after");
    let messages = world.finish();
    assert_eq!(messages.len(), 2, "{}", list(&messages));
}

/// Neither is a file that is covered taken back, nor one repeated that has not changed.
#[test]
fn what_lands_in_a_covered_directory_is_published_once_it_is_not_covered() {
    let mut world = World::without_service();
    fs::create_dir_all(world.path("sub/deep")).unwrap();
    let other_path = world.outside.join("other-path");
    fs::create_dir(&other_path).unwrap();
    let Some(_bind) = Bind::mount(&world.data, &other_path) else { return skip(WHY) };
    world.launch(|setup| setup.recursive().args(&["--removals"]));
    for name in ["sub/one", "sub/deep/two"] {
        world.write(name, name);
        world.wait_for_one(name);
    }
    let cover = SmallDisk::mount(&world.path("sub"), "size=1m").expect("a tmpfs");
    world.service().wait_log("the mount", |line| line.contains("something is mounted at"));
    world.write("sub/foreign", "foreign");
    fs::write(other_path.join("sub/three"), "three").unwrap();
    fs::write(other_path.join("sub/deep/two"), "written meanwhile").unwrap();
    fs::create_dir(other_path.join("sub/new")).unwrap();
    fs::write(other_path.join("sub/new/four"), "four").unwrap();
    world.service().signal(Signal::HUP);
    let socket = world.service().control_socket();
    wait_for_metrics(&socket, "a rescan", |seen| seen["apollonia_rescans_total{cause=\"signal\"}"] == 1.0);
    world.wait_idle();
    drop(cover);
    for (name, content) in [("sub/three", "three"), ("sub/deep/two", "written meanwhile"), ("sub/new/four", "four")] {
        world.wait_for_content(name, content.as_bytes());
    }
    world.write("sub/new/five", "five");
    world.wait_for_content("sub/new/five", b"five");
    let messages = world.finish();
    assert_eq!(messages.len(), 6, "{}", list(&messages));
}

#[test]
fn a_file_that_was_covered_by_another_is_read_once_it_is_not() {
    let mut world = World::without_service();
    world.write("covered", "covered");
    let Some(cover) = SmallDisk::mount(&world.outside.join("volume"), "size=1m") else { return skip(WHY) };
    let foreign = world.outside.join("volume/foreign");
    fs::write(&foreign, "foreign").unwrap();
    let bind = Bind::mount(&foreign, &world.path("covered")).expect("a bind mount");
    world.launch(|setup: Setup| setup.args(&["--catch-up", "all"]));
    world.pass_sentinel();
    drop(bind);
    world.wait_for_content("covered", b"covered");
    drop(cover);
    assert_eq!(world.finish_with_one().name(), "covered");
}

#[test]
fn a_one_shot_command_goes_into_no_mount_and_does_not_fail_for_it() {
    let (_root, data, outside) = directories();
    fs::create_dir(data.join("sub")).unwrap();
    fs::write(data.join("own"), "own").unwrap();
    let Some(_cover) = SmallDisk::mount(&data.join("sub"), "size=1m") else { return skip(WHY) };
    fs::write(data.join("sub/foreign"), "foreign").unwrap();
    let scan = Setup::new(&["scan"]).arg(&data).args(&["--recursive", "--output", "stdout"]);
    let ended = scan.env("STATE_DIRECTORY", outside.join("state")).run().expect_code(0);
    assert_eq!(ended.messages().iter().map(Message::name).collect::<Vec<_>>(), ["own"]);
    assert!(ended.stderr.contains("something is mounted at"), "{}", ended.stderr);
}

#[test]
fn a_data_directory_that_lies_in_another_by_a_bind_mount_is_refused() {
    let (_root, data, outside) = directories();
    fs::create_dir(data.join("sub")).unwrap();
    let alias = outside.join("alias");
    fs::create_dir(&alias).unwrap();
    let Some(_bind) = Bind::mount(&data.join("sub"), &alias) else { return skip(WHY) };
    for (one, other, says) in [(&data, &alias, "it lies in"), (&alias, &data, "lies in it")] {
        let setup = Setup::new(&["scan"]).arg("--data-dir").arg(one).arg("--data-dir").arg(other);
        let ended = setup.args(&["--output", "none"]).run().expect_code(2);
        assert!(ended.stderr.contains(says), "{}", ended.stderr);
    }
}
