//! A start over a large tree says how far it is, and asks the service manager for time as long as it comes further.

use std::fs;

use crate::support::service_manager::{Manager, position};
use crate::support::setup::Setup;
use crate::support::world::directories;

/// Enough that a start over them takes longer than the manager's shortest interval.
const DIRECTORIES: usize = 10_000;

#[test]
fn a_long_start_asks_for_time_and_shows_its_counts() {
    let (_root, data, outside) = directories();
    for number in 0..DIRECTORIES {
        fs::create_dir(data.join(format!("{number}"))).unwrap();
    }
    let mut manager = Manager::listen(&outside.join("notify.sock"));
    let service = Setup::new(&["watch", "--output", "none", "--recursive"])
        .arg(&data)
        .env("NOTIFY_SOCKET", outside.join("notify.sock"))
        // The manager is informed three times in this interval.
        .env("WATCHDOG_USEC", "150000")
        .spawn();
    manager.wait_for("READY", |lines| position(lines, "READY=1").is_some());
    let ready = position(&manager.lines, "READY=1").unwrap();
    let before = &manager.lines[..ready];
    assert!(position(before, "EXTEND_TIMEOUT_USEC=").is_some(), "{before:#?}");
    let counts = |line: &String| line.starts_with("STATUS=starting") && line.contains(" directories watched, ");
    assert!(before.iter().any(counts), "{before:#?}");
    service.stop();
    manager.wait_for("STOPPING", |lines| position(lines, "STOPPING=1").is_some());
    let (_, after) = manager.lines.split_at(ready);
    assert!(
        position(after, "EXTEND_TIMEOUT_USEC=").is_none(),
        "a service that runs has no start to extend: {after:#?}"
    );
}
