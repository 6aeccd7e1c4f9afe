//! Each kind of change to a file is published by its event type, once; what changes nothing is not published.

use std::fs::{self, File};
use std::io::Write;
use std::process::Command;

use crate::support::files::{self, sha256};
use crate::support::is_root;
use crate::support::setup::Setup;
use crate::support::world::{World, list, of_name};

fn append(world: &World, name: &str, content: &str) {
    File::options()
        .append(true)
        .open(world.path(name))
        .and_then(|mut file| file.write_all(content.as_bytes()))
        .expect("appending");
}

#[test]
fn a_file_created_written_and_closed_gives_exactly_one_message() {
    let world = World::start();
    world.write("new", "content");
    let message = world.finish_with_one();
    assert_eq!(message.event(), "IN_CREATE");
    assert_eq!(message.sha256(), sha256(b"content"));
}

#[test]
fn a_copied_file_gives_exactly_one_message() {
    let world = World::start();
    fs::write(world.outside.join("source"), "copied").unwrap();
    let copied = Command::new("cp").arg("-p").arg(world.outside.join("source")).arg(world.path("copy")).status();
    assert!(copied.unwrap().success());
    // `cp -p` sets mode and times through its descriptor, before the close.
    let message = world.finish_with_one();
    assert_eq!(message.event(), "IN_CREATE");
    assert_eq!(message.sha256(), sha256(b"copied"));
}

#[test]
fn a_touched_new_file_gives_one_message_of_size_zero() {
    let world = World::start();
    File::create(world.path("empty")).unwrap();
    let message = world.finish_with_one();
    assert_eq!(message.event(), "IN_CREATE");
    assert_eq!(message.size(), 0);
    assert_eq!(message.sha256(), sha256(b""));
}

#[test]
fn an_append_to_a_known_file_is_a_rewrite() {
    let mut world = World::start();
    world.write("log", "one\n");
    world.wait_for_one("log");
    append(&world, "log", "two\n");
    world.wait_for("log", 2);
    let messages = world.finish();
    assert_eq!(messages.len(), 2, "{}", list(&messages));
    assert_eq!(messages[1].event(), "IN_CLOSE_WRITE");
    assert_eq!(messages[1].sha256(), sha256(b"one\ntwo\n"));
}

#[test]
fn a_file_from_before_the_start_is_published_when_it_is_rewritten() {
    let mut world = World::without_service();
    world.write("old", "before");
    world.write("untouched", "before");
    world.launch(|setup| setup);
    append(&world, "old", " and after");
    let message = world.finish_with_one();
    assert_eq!(message.name(), "old");
    assert_eq!(message.event(), "IN_CLOSE_WRITE");
    assert_eq!(message.sha256(), sha256(b"before and after"));
}

#[test]
fn a_close_without_a_write_after_the_confirm_gives_no_message() {
    let mut world = World::start();
    world.write("file", "content");
    world.wait_for_one("file");
    for _ in 0..20 {
        drop(File::options().write(true).open(world.path("file")).unwrap());
    }
    world.finish_with_one();
}

#[test]
fn a_file_moved_in_gives_one_message_with_its_event() {
    let world = World::start();
    fs::write(world.outside.join("file"), "moved").unwrap();
    fs::rename(world.outside.join("file"), world.path("file")).unwrap();
    let message = world.finish_with_one();
    assert_eq!(message.event(), "IN_MOVED_TO");
    assert_eq!(message.sha256(), sha256(b"moved"));
}

#[test]
fn a_file_renamed_inside_gives_one_message_under_its_new_name() {
    let mut world = World::start();
    world.write("before", "content");
    world.wait_for_one("before");
    fs::rename(world.path("before"), world.path("after")).unwrap();
    world.wait_for_one("after");
    let messages = world.finish();
    assert_eq!(messages.len(), 2, "{}", list(&messages));
    assert_eq!((messages[1].name(), messages[1].event()), ("after", "IN_MOVED_TO"));
}

#[test]
fn a_file_moved_over_another_gives_one_message_with_the_new_content() {
    let mut world = World::start();
    world.write("file", "old");
    world.wait_for_one("file");
    fs::write(world.outside.join("file"), "new").unwrap();
    fs::rename(world.outside.join("file"), world.path("file")).unwrap();
    world.wait_for("file", 2);
    let messages = world.finish();
    assert_eq!(messages.len(), 2, "{}", list(&messages));
    assert_eq!(messages[1].event(), "IN_MOVED_TO");
    assert_eq!(messages[1].sha256(), sha256(b"new"));
}

#[test]
fn a_file_moved_out_and_back_is_published_again() {
    let mut world = World::start();
    world.write("file", "content");
    world.wait_for_one("file");
    fs::rename(world.path("file"), world.outside.join("file")).unwrap();
    fs::rename(world.outside.join("file"), world.path("file")).unwrap();
    world.wait_for("file", 2);
    let messages = world.finish();
    assert_eq!(messages.len(), 2, "{}", list(&messages));
    assert_eq!(messages[1].event(), "IN_MOVED_TO");
}

#[test]
fn two_files_that_exchange_their_names_give_two_messages() {
    let mut world = World::start();
    world.write("a", "was a");
    world.write("b", "was b");
    world.wait_for_one("a");
    world.wait_for_one("b");
    files::exchange(&world.path("a"), &world.path("b"));
    world.wait_for("a", 2);
    world.wait_for("b", 2);
    let messages = world.finish();
    assert_eq!(messages.len(), 4, "{}", list(&messages));
    for (name, content) in [("a", "was b"), ("b", "was a")] {
        let last = of_name(&messages, name).pop().unwrap();
        assert_eq!(last.event(), "IN_MOVED_TO", "{name}");
        assert_eq!(last.sha256(), sha256(content.as_bytes()), "{name}");
    }
}

#[test]
fn a_file_deleted_and_made_again_is_new() {
    let mut world = World::start();
    world.write("file", "first");
    world.wait_for_one("file");
    fs::remove_file(world.path("file")).unwrap();
    world.write("file", "second");
    world.wait_for("file", 2);
    let messages = world.finish();
    assert_eq!(messages.len(), 2, "{}", list(&messages));
    assert_eq!(messages[1].event(), "IN_CREATE");
    assert_eq!(messages[1].sha256(), sha256(b"second"));
}

#[test]
fn a_file_deleted_and_made_again_with_equal_content_is_published() {
    let mut world = World::start();
    world.write("file", "same");
    world.wait_for_one("file");
    // On ext4 it nearly always gets the same inode number again.
    fs::remove_file(world.path("file")).unwrap();
    world.write("file", "same");
    let again = world.wait_for("file", 2).pop().unwrap();
    assert_eq!(again.event(), "IN_CREATE");
}

#[test]
fn a_file_made_empty_is_published_with_size_zero() {
    let mut world = World::start();
    world.write("file", "content");
    world.wait_for_one("file");
    File::create(world.path("file")).unwrap();
    let emptied = world.wait_for("file", 2).pop().unwrap();
    assert_eq!((emptied.event(), emptied.size()), ("IN_CLOSE_WRITE", 0));
}

#[test]
fn files_deleted_before_their_close_give_no_message() {
    let world = World::start();
    for number in 0..100 {
        let path = world.path(&format!("gone-{number}"));
        let mut file = File::create(&path).unwrap();
        file.write_all(b"never complete").unwrap();
        fs::remove_file(&path).unwrap();
    }
    let messages = world.finish();
    assert!(messages.is_empty(), "{}", list(&messages));
}

#[test]
fn a_burst_of_appends_ends_with_the_final_content() {
    let mut world = World::start();
    let mut content = String::from("start\n");
    world.write("log", &content);
    for number in 0..50 {
        let line = format!("line {number}\n");
        append(&world, "log", &line);
        content.push_str(&line);
    }
    world.wait_for_content("log", content.as_bytes());
    let messages = world.finish();
    assert_eq!(messages.last().unwrap().sha256(), sha256(content.as_bytes()));
    assert!(messages.len() <= 51, "more messages than closes: {}", messages.len());
}

#[test]
fn a_file_that_cannot_be_read_is_logged_and_tried_again() {
    // Root reads everything, so the service is another user.
    let mut world = World::start_with(|it| if is_root() { it.by_nobody() } else { it });
    fs::write(world.outside.join("secret"), "content").unwrap();
    files::chmod(&world.outside.join("secret"), 0o000);
    fs::rename(world.outside.join("secret"), world.path("secret")).unwrap();
    let path = world.path("secret").to_str().unwrap().to_owned();
    world.service().wait_log("a line that names the unreadable file", |line| line.contains(&path));
    world.pass_sentinel();
    assert!(world.messages_for("secret").is_empty());

    files::chmod(&world.path("secret"), 0o644);
    append(&world, "secret", ", readable now");
    world.wait_for_content("secret", b"content, readable now");
}

#[test]
fn sub_directories_are_followed_only_when_asked() {
    let mut world = World::start();
    fs::create_dir(world.path("below")).unwrap();
    world.write("below/file", "content");
    world.write("file", "content");
    world.wait_for_one("file");
    let message = world.finish_with_one();
    assert_eq!(message.name(), "file");
}

#[test]
fn no_sub_command_means_watch() {
    let mut world = World::without_service();
    let (data, url) = (world.data.clone(), world.url.clone());
    let arguments: [&str; 0] = [];
    world.launch(|_| Setup::new(&arguments).env("DATA_DIRECTORY", data).env("AMQP_CONNECTION_STRING", url));
    world.write("file", "content");
    world.finish_with_one();
}
