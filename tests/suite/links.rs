//! Hard links and symbolic links inside the data directory are published; links out of it are refused.

use std::fs;
use std::os::unix::fs::symlink;

use crate::support::files::sha256;
use crate::support::world::{World, list};

#[test]
fn a_hard_link_gives_one_message_for_its_name() {
    let mut world = World::start();
    fs::write(world.outside.join("file"), "linked").unwrap();
    fs::hard_link(world.outside.join("file"), world.path("link")).unwrap();
    // No close comes for it, so it counts as complete when it has settled.
    world.wait_for_one("link");
    let message = world.finish_with_one();
    assert_eq!(message.event(), "IN_CREATE");
    assert_eq!(message.sha256(), sha256(b"linked"));
}

#[test]
fn a_hard_link_waits_for_the_settle_time() {
    let mut world = World::start_with(|it| it.args(&["--settle-ms", "3600000"]));
    fs::write(world.outside.join("file"), "linked").unwrap();
    fs::hard_link(world.outside.join("file"), world.path("link")).unwrap();
    for _ in 0..5 {
        world.pass_sentinel();
    }
    assert!(world.messages_for("link").is_empty(), "{}", world.dump());
}

#[test]
fn an_event_during_the_settle_time_completes_a_hard_link() {
    let mut world = World::start_with(|it| it.args(&["--settle-ms", "3600000"]));
    fs::write(world.outside.join("file"), "linked").unwrap();
    fs::hard_link(world.outside.join("file"), world.path("link")).unwrap();
    world.pass_sentinel();
    // A writer that closes it under this name: now a close has come.
    world.write("link", "rewritten");
    world.wait_for_content("link", b"rewritten");
}

#[test]
fn a_link_to_a_file_inside_is_published_under_its_own_path() {
    let mut world = World::start();
    world.write("target", "content");
    world.wait_for_one("target");
    symlink("target", world.path("relative")).unwrap();
    let message = world.wait_for_one("relative");
    assert_eq!(message.path(), world.path("relative").to_str().unwrap());
    assert_eq!(message.event(), "IN_CREATE");
    assert_eq!(message.sha256(), sha256(b"content"));

    symlink(world.path("target"), world.path("absolute")).unwrap();
    let message = world.wait_for_one("absolute");
    assert_eq!(message.path(), world.path("absolute").to_str().unwrap());
    assert_eq!(message.sha256(), sha256(b"content"));
    let messages = world.finish();
    assert_eq!(messages.len(), 3, "{}", list(&messages));
}

#[test]
fn a_link_moved_in_is_followed_like_one_made_there() {
    let mut world = World::start();
    world.write("target", "content");
    world.wait_for_one("target");
    symlink(world.path("target"), world.outside.join("link")).unwrap();
    fs::rename(world.outside.join("link"), world.path("link")).unwrap();
    let message = world.wait_for_one("link");
    assert_eq!(message.event(), "IN_MOVED_TO");
    assert_eq!(message.sha256(), sha256(b"content"));
}

#[test]
fn a_link_out_of_the_directory_is_refused_and_logged() {
    let mut world = World::start();
    fs::write(world.outside.join("secret"), "secret").unwrap();
    symlink(world.outside.join("secret"), world.path("absolute-out")).unwrap();
    symlink("../outside/secret", world.path("relative-out")).unwrap();
    for name in ["absolute-out", "relative-out"] {
        world.service().wait_log(&format!("a line about the refused link {name}"), |line| line.contains(name));
    }
    let messages = world.finish();
    assert!(messages.is_empty(), "{}", list(&messages));
}

#[test]
fn a_chain_of_links_that_ends_outside_is_refused() {
    let mut world = World::start();
    fs::write(world.outside.join("secret"), "secret").unwrap();
    symlink(world.outside.join("secret"), world.path("second")).unwrap();
    symlink("second", world.path("first")).unwrap();
    world.service().wait_log("a line about the refused link", |line| line.contains("first"));
    let messages = world.finish();
    assert!(messages.is_empty(), "{}", list(&messages));
}

#[test]
fn a_file_below_a_linked_directory_outside_is_not_reachable() {
    let mut world = World::start();
    fs::write(world.outside.join("file"), "secret").unwrap();
    symlink(&world.outside, world.path("directory")).unwrap();
    symlink("directory/file", world.path("through")).unwrap();
    world.service().wait_log("a line about the refused link", |line| line.contains("through"));
    let messages = world.finish();
    assert!(messages.is_empty(), "{}", list(&messages));
}

/// Without `--recursive`, so nothing in the sub-directory is published by its own path.
#[test]
fn what_is_written_in_a_sub_directory_is_published_by_the_link_that_leads_to_it() {
    let mut world = World::start();
    fs::create_dir_all(world.path("sub/deep")).unwrap();
    fs::write(world.path("sub/deep/file"), "first").unwrap();
    symlink("sub/deep/file", world.path("link")).unwrap();
    world.wait_for_content("link", b"first");
    fs::write(world.path("sub/deep/file"), "second, and longer").unwrap();
    world.wait_for_content("link", b"second, and longer");
    // Another directory takes the place of one on the way.
    fs::create_dir_all(world.outside.join("other/deep")).unwrap();
    fs::write(world.outside.join("other/deep/file"), "third").unwrap();
    fs::rename(world.path("sub"), world.outside.join("former")).unwrap();
    fs::rename(world.outside.join("other"), world.path("sub")).unwrap();
    world.wait_for_content("link", b"third");
    fs::write(world.path("sub/deep/file"), "fourth, the last").unwrap();
    world.wait_for_content("link", b"fourth, the last");
    let messages = world.finish();
    assert!(messages.iter().all(|message| message.path().ends_with("/link")), "{}", list(&messages));
    assert_eq!(messages.len(), 4, "{}", list(&messages));
}

/// The filter closes the directory, and not the link into it.
#[test]
fn what_is_written_below_a_closed_directory_is_published_by_the_link_that_leads_to_it() {
    let mut world = World::start_with(|it| it.args(&["--recursive", "--exclude", "closed/**"]));
    fs::create_dir(world.path("closed")).unwrap();
    fs::write(world.path("closed/file"), "first").unwrap();
    symlink("closed/file", world.path("link")).unwrap();
    world.wait_for_content("link", b"first");
    fs::write(world.path("closed/file"), "second, and longer").unwrap();
    world.wait_for_content("link", b"second, and longer");
    let messages = world.finish();
    assert_eq!(messages.len(), 2, "{}", list(&messages));
}
