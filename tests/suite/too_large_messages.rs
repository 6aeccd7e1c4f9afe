//! A message that the broker refuses for its size is the failure of its file, and of no other.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::support::broker::MESSAGE_MAX;
use crate::support::control::{health_command, wait_for_metrics};
use crate::support::message::Message;
use crate::support::service::Ended;
use crate::support::setup::Setup;
use crate::support::world::World;

/// Files whose messages are too large: each has the ten others for neighbors.
const LARGE: usize = 11;
/// Files beside them.
const SMALL: usize = 300;

/// Makes files whose messages, with ten neighbors of such paths, are larger than the broker takes: JSON has six bytes for
/// each control character.
fn write_files(data: &Path) {
    let mut directory = PathBuf::from(data);
    for _ in 0..4 {
        directory.push("\u{1}".repeat(250));
    }
    fs::create_dir_all(&directory).unwrap();
    assert!(11 * 6 * (directory.as_os_str().len() - data.as_os_str().len()) > MESSAGE_MAX);
    for number in 0..LARGE {
        fs::write(directory.join(format!("large.{number}")), format!("large {number}")).unwrap();
    }
    for number in 0..SMALL {
        fs::write(data.join(format!("small-{number}")), format!("small {number}")).unwrap();
    }
}

#[track_caller]
fn assert_all_but_the_large_came(messages: &[Message]) {
    let names: HashSet<&str> = messages.iter().map(Message::name).collect();
    assert_eq!(names.len(), SMALL, "some are missing, or a large one came");
    assert!(names.iter().all(|name| name.starts_with("small-")), "{names:?}");
}

/// Each is named with cause and cure, up to the limit of such lines in a minute.
#[track_caller]
fn assert_named(ended: &Ended, lines: usize) {
    let named: Vec<&str> = ended.warnings().into_iter().filter(|line| line.contains("large.")).collect();
    assert_eq!(named.len(), lines, "{}", ended.stderr);
    let says =
        |line: &&str| line.contains("larger than configured max size 65536") && line.contains("max_message_size");
    assert!(named.iter().all(says), "{named:?}");
    assert!(!ended.stderr.contains("delete"), "{}", ended.stderr);
}

#[test]
fn a_message_that_is_too_large_is_one_files_failure() {
    let mut world = World::without_service();
    write_files(&world.data);
    let scan = Setup::new(&["scan", "--recursive"]).env("DATA_DIRECTORY", &world.data);
    let ended = scan.env("AMQP_CONNECTION_STRING", &world.url).run().expect_code(1);
    ended.assert_one_error(&format!("{LARGE} of {} files", LARGE + SMALL));
    assert_named(&ended, LARGE);
    assert_all_but_the_large_came(&world.consumer.drain());

    world.launch(|setup| setup.recursive().args(&["--catch-up", "all"]));
    let socket = world.service().control_socket();
    wait_for_metrics(&socket, "every file", |seen| {
        seen["apollonia_failures_total{cause=\"too_large\"}"] == LARGE as f64 && seen["apollonia_pending_files"] == 0.0
    });
    health_command(&socket).expect_code(0);
    let before = world.consumer.messages().len();
    assert!(before >= 2 * SMALL, "{before} messages");
    // The service goes on, for small messages and for large ones.
    world.pass_sentinel();
    fs::write(world.path("small-0"), "another content").unwrap();
    world.wait_for_content("small-0", b"another content");
    let ended = world.stop_service();
    assert_named(&ended, 10);
    assert!(ended.errors().is_empty() && ended.stderr.contains(&format!(" {LARGE} failures")), "{}", ended.stderr);
}
