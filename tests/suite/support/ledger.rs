//! Services with a ledger: their runs one after the other, and the ledger's rows.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::Signal;

use super::files::chmod;
use super::message::Message;
use super::service::Ended;
use super::setup::Setup;
use super::world::{SENTINEL, World};

/// Options of a tmpfs that a ledger can fill.
pub const SMALL: &str = "size=512k,mode=0777";

/// A world whose services keep their ledger in one directory beside the data.
pub fn world() -> (World, PathBuf) {
    let world = World::without_service();
    let state = world.outside.join("state");
    (world, state)
}

/// A world whose services run as `nobody` and may write their ledger.
pub fn world_of_nobody() -> (World, PathBuf) {
    let (world, state) = world();
    fs::create_dir(&state).unwrap();
    chmod(&state, 0o777);
    (world, state)
}

pub fn with_ledger(state: &Path) -> impl FnOnce(Setup) -> Setup {
    move |setup| setup.env("STATE_DIRECTORY", state).args(&["--settle-ms", "100", "--log-level", "debug"])
}

/// Name, event and message id of each message but the sentinels', sorted.
pub fn published(messages: &[Message]) -> Vec<(String, String, String)> {
    let mut published: Vec<_> = messages
        .iter()
        .filter(|it| !it.name().starts_with(SENTINEL))
        .map(|it| (it.name().to_owned(), it.event().to_owned(), it.message_id().to_owned()))
        .collect();
    published.sort();
    published
}

pub fn names_and_events(messages: &[Message]) -> Vec<(String, String)> {
    published(messages).into_iter().map(|(name, event, _)| (name, event)).collect()
}

/// The paths of the ledger's rows, sorted.
pub fn rows(state: &Path) -> Vec<String> {
    let ledger = rusqlite::Connection::open(state.join("ledger.sqlite")).unwrap();
    let mut select = ledger.prepare("SELECT path FROM confirmed ORDER BY path").unwrap();
    let paths = select.query_map([], |row| row.get::<_, Vec<u8>>(0)).unwrap();
    paths.map(|path| String::from_utf8(path.unwrap()).unwrap()).collect()
}

pub fn kill(world: &mut World) {
    let service = world.take_service();
    service.signal(Signal::KILL);
    assert_eq!(service.wait_exit().status.code(), None);
}

/// Starts the service, waits for all that it publishes of what it finds, and stops it.
#[track_caller]
pub fn one_run(world: &mut World, change: impl FnOnce(Setup) -> Setup) -> (Vec<Message>, Ended) {
    let outside = world.outside.clone();
    run_with_links_from(&outside, world, change)
}

/// A run whose last message is that of a link to a file in `beside`, which must be on the file system of the data.
#[track_caller]
pub fn run_with_links_from(
    beside: &Path,
    world: &mut World,
    change: impl FnOnce(Setup) -> Setup,
) -> (Vec<Message>, Ended) {
    let before = world.consumer.drain().len();
    world.launch(change);
    world.wait_rescanned();
    // A link has to settle like all files that the rescan has found, and comes after them.
    let name = format!("{SENTINEL}linked-{before}");
    fs::create_dir_all(beside).unwrap();
    fs::write(beside.join(&name), &name).unwrap();
    fs::hard_link(beside.join(&name), world.path(&name)).unwrap();
    world.wait_for(&name, 1);
    world.wait_idle();
    let ended = world.stop_service();
    (world.consumer.drain().split_off(before), ended)
}
