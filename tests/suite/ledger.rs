//! Contract 4.3 and 6: what a restart publishes, and what becomes of a ledger in trouble.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;

use crate::consumer::Message;
use crate::files::{chmod, exchange};
use crate::service::{Ended, Setup, is_root, skip};
use crate::world::{World, list};

/// A world whose services keep their ledger in one directory beside the data.
pub fn world() -> (World, PathBuf) {
    let world = World::without_service();
    let state = world.outside.join("state");
    (world, state)
}

pub fn with_ledger(state: &Path) -> impl FnOnce(Setup) -> Setup {
    move |setup| setup.env("STATE_DIRECTORY", state).args(&["--settle-ms", "100", "--log-level", "debug"])
}

/// The same, for a service that runs as `nobody`.
pub fn world_of_nobody() -> (World, PathBuf) {
    let (world, state) = world();
    fs::create_dir(&state).unwrap();
    chmod(&state, 0o777);
    (world, state)
}

/// Makes `link` lead to a name, whatever it was before.
fn lead_to(world: &World, name: &str) {
    symlink(name, world.path("new")).unwrap();
    fs::rename(world.path("new"), world.path("link")).unwrap();
}

/// Name, event and id of each message, sentinels aside.
fn told(messages: &[Message]) -> Vec<(String, String, String)> {
    let mut told: Vec<_> = messages
        .iter()
        .filter(|it| !it.name().starts_with("zz-sentinel"))
        .map(|it| (it.name().to_owned(), it.event().to_owned(), it.message_id().to_owned()))
        .collect();
    told.sort();
    told
}

pub fn names_and_events(messages: &[Message]) -> Vec<(String, String)> {
    told(messages).into_iter().map(|(name, event, _)| (name, event)).collect()
}

/// What the ledger holds, by path.
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

/// Everything that a service has to say of what it finds at its start.
#[track_caller]
pub fn one_run(world: &mut World, change: impl FnOnce(Setup) -> Setup) -> (Vec<Message>, Ended) {
    let before = world.consumer.drain().len();
    world.launch(change);
    world.service().wait_log("the look-over's end", |line| line.contains("was looked over"));
    // A link has to settle like all that the look-over has found, and stands behind them.
    let name = format!("zz-sentinel-linked-{before}");
    fs::write(world.outside.join(&name), &name).unwrap();
    fs::hard_link(world.outside.join(&name), world.path(&name)).unwrap();
    world.wait_for(&name, 1);
    world.rest();
    let ended = world.stop_service();
    (world.consumer.drain().split_off(before), ended)
}

#[test]
fn a_restart_publishes_what_changed_meanwhile_and_nothing_else() {
    let (mut world, state) = world();
    for name in ["same", "rewritten", "touched", "renamed", "replaced", "deleted"] {
        world.write(name, name);
    }
    world.launch(with_ledger(&state));
    world.wait_until("all six", |messages| messages.len() >= 6);
    world.stop_service();

    world.write("rewritten", "something else");
    world.write("touched", "touched");
    world.write("new", "new");
    fs::rename(world.path("renamed"), world.path("renamed-to")).unwrap();
    world.write("replacement", "replacement");
    fs::rename(world.path("replacement"), world.path("replaced")).unwrap();
    fs::remove_file(world.path("deleted")).unwrap();
    let (messages, ended) = one_run(&mut world, with_ledger(&state));
    let expected = [
        ("new", "IN_CREATE"),
        ("renamed-to", "IN_CREATE"),
        ("replaced", "IN_CLOSE_WRITE"),
        ("rewritten", "IN_CLOSE_WRITE"),
        ("touched", "IN_CLOSE_WRITE"),
    ];
    let expected = expected.map(|(name, event)| (name.to_owned(), event.to_owned()));
    assert_eq!(names_and_events(&messages), expected, "{}", ended.stderr);

    let (messages, ended) = one_run(&mut world, with_ledger(&state));
    assert_eq!(told(&messages), [], "{}", ended.stderr);
}

#[test]
fn files_that_are_gone_leave_the_ledger() {
    let (mut world, state) = world();
    for name in ["stays", "goes meanwhile", "goes while watched", "moves out"] {
        world.write(name, name);
    }
    world.launch(with_ledger(&state));
    world.wait_until("all four", |messages| messages.len() >= 4);
    fs::remove_file(world.path("goes while watched")).unwrap();
    fs::rename(world.path("moves out"), world.outside.join("moved out")).unwrap();
    world.pass_sentinel();
    world.stop_service();
    let data = world.data.clone();
    let path = |name: &str| data.join(name).to_str().unwrap().to_owned();
    assert_eq!(rows(&state), [path("goes meanwhile"), path("stays"), path("zz-sentinel-0")]);

    fs::remove_file(world.path("goes meanwhile")).unwrap();
    world.launch(with_ledger(&state));
    world.stop_service();
    assert_eq!(rows(&state), [path("stays"), path("zz-sentinel-0")]);
}

#[test]
fn killed_at_any_moment_it_loses_nothing_and_repeats_carry_their_id() {
    const FILES: usize = 1500;
    let (mut world, state) = world();
    for number in 0..FILES {
        world.write(&format!("file-{number}"), format!("content {number}"));
    }
    // Killed in the middle of the catch-up, five times, each a little further on.
    for fifth in 1..=5 {
        world.launch(with_ledger(&state));
        world.wait_until("a fifth more", |messages| messages.len() >= FILES * fifth / 6);
        kill(&mut world);
    }
    world.launch(with_ledger(&state));
    let names = |messages: &[Message]| messages.iter().map(|it| it.name().to_owned()).collect::<HashSet<_>>().len();
    world.wait_until("every file", |messages| names(messages) >= FILES);
    let messages = world.finish();
    let mut ids = HashMap::new();
    for message in &messages {
        let id = ids.entry(message.name().to_owned()).or_insert(message.message_id().to_owned());
        assert_eq!(id, message.message_id(), "a repeat of {:?} has another id", message.name());
    }
    assert_eq!(ids.len(), FILES);
    assert_eq!(ids.values().collect::<HashSet<_>>().len(), FILES, "an id twice");
}

#[test]
fn catch_up_can_be_chosen() {
    let (mut world, state) = world();
    for name in ["one", "two"] {
        world.write(name, name);
    }
    let before = {
        world.launch(|setup| with_ledger(&state)(setup).args(&["--catch-up", "none"]));
        world.pass_sentinel();
        world.stop_service();
        told(&world.consumer.drain())
    };
    assert_eq!(before, [], "files that were there before must be left alone");

    let (changed, _) = one_run(&mut world, with_ledger(&state));
    let expected = ["one", "two"].map(|name| (name.to_owned(), "IN_CREATE".to_owned()));
    assert_eq!(names_and_events(&changed), expected);

    world.write("two", "and more");
    let (all, _) = one_run(&mut world, |setup| with_ledger(&state)(setup).args(&["--catch-up", "all"]));
    let expected = [("one", "IN_CREATE"), ("two", "IN_CLOSE_WRITE")];
    assert_eq!(names_and_events(&all), expected.map(|(name, event)| (name.to_owned(), event.to_owned())));
    assert_eq!(told(&all)[0], told(&changed)[0], "the same version has the same id");
    assert_ne!(told(&all)[1].2, told(&changed)[1].2, "another version has another id");
}

#[test]
fn a_damaged_ledger_is_set_aside_and_said_so() {
    let (mut world, state) = world();
    world.write("file", "content");
    let (first, _) = one_run(&mut world, with_ledger(&state));
    let ledger = state.join("ledger.sqlite");
    let mut bytes = fs::read(&ledger).unwrap();
    // In the row's own bytes, where SQLite has no checksum.
    let content = bytes.windows(4).rposition(|window| window == b"file").unwrap();
    bytes[content] ^= 1;
    fs::write(&ledger, &bytes).unwrap();

    let (again, ended) = one_run(&mut world, with_ledger(&state));
    let warns: Vec<_> = ended.stderr.lines().filter(|line| line.contains("WARN")).collect();
    assert_eq!(warns.len(), 1, "{}", ended.stderr);
    assert!(warns[0].contains("damaged") && warns[0].contains(state.to_str().unwrap()), "{}", warns[0]);
    assert_eq!(fs::read(state.join("ledger.sqlite.damaged")).unwrap(), bytes);
    assert_eq!(told(&again), told(&first), "the same version again, with the same id");

    let (third, ended) = one_run(&mut world, with_ledger(&state));
    assert_eq!(told(&third), [], "{}", ended.stderr);
}

#[test]
fn a_second_process_on_the_same_state_directory_is_refused() {
    let (mut world, state) = world();
    world.launch(with_ledger(&state));
    let second = with_ledger(&state)(Setup::watch(&world.data, &world.url)).run().expect_code(1);
    let errors: Vec<_> = second.stderr.lines().filter(|line| line.contains("ERROR")).collect();
    assert_eq!(errors.len(), 1, "{}", second.stderr);
    assert!(errors[0].contains("another") && errors[0].contains(state.to_str().unwrap()), "{}", errors[0]);
    assert!(world.service().is_running());
    // The lock goes with the process, however it ends.
    kill(&mut world);
    world.launch(with_ledger(&state));
}

#[test]
fn a_state_directory_that_cannot_be_used_is_refused_by_name() {
    let (world, _) = world();
    fs::write(world.outside.join("file"), "").unwrap();
    let cases = [(world.path("state"), "data directory"), (world.outside.join("file"), "exists")];
    for (state, cause) in cases {
        let ended = with_ledger(&state)(Setup::watch(&world.data, &world.url)).run().expect_code(2);
        let last = ended.stderr.lines().last().unwrap_or_default();
        assert!(last.contains("STATE_DIRECTORY") && last.contains(cause), "{}", ended.stderr);
    }
    let ended = Setup::watch(&world.data, &world.url).args(&["--catch-up", "changed"]).run().expect_code(2);
    assert!(ended.stderr.contains("INGESTOR_CATCH_UP"), "{}", ended.stderr);
    if is_root() {
        let root_only = world.outside.join("root's");
        fs::create_dir(&root_only).unwrap();
        let setup = Setup::watch(&world.data, &world.url).env("STATE_DIRECTORY", &root_only).by_nobody();
        let ended = setup.run().expect_code(2);
        assert!(ended.stderr.contains("STATE_DIRECTORY"), "{}", ended.stderr);
        // Made by a start as root, once, in a directory that is the service's.
        chmod(&root_only, 0o777);
        for file in ["ledger.sqlite", "ledger.sqlite-wal"] {
            fs::write(root_only.join(file), "").unwrap();
            let setup = Setup::watch(&world.data, &world.url).env("STATE_DIRECTORY", &root_only).by_nobody();
            let ended = setup.run().expect_code(2);
            assert!(ended.stderr.contains(&format!("{file}\"")), "{}", ended.stderr);
            assert!(ended.stderr.contains("Permission denied"), "{}", ended.stderr);
            fs::remove_file(root_only.join(file)).unwrap();
        }
    } else {
        skip("only root can make a directory that another user may not write");
    }
}

/// A small file system of its own, gone with the test.
pub struct Disk(PathBuf);

impl Disk {
    pub fn mount(at: PathBuf, size: &str) -> Option<Self> {
        fs::create_dir(&at).unwrap();
        let options = format!("size={size},mode=0777");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(&at).status();
        mounted.is_ok_and(|status| status.success()).then_some(Self(at))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").args(["--lazy"]).arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_costs_repeats_after_a_restart_and_nothing_else() {
    let (mut world, state) = world();
    let Some(_disk) = Disk::mount(state.clone(), "512k") else {
        return skip("a file system to fill cannot be mounted here");
    };
    let filler = state.join("filler");
    let fill = || drop(fs::write(&filler, vec![0; 1 << 20]));

    // Full before the ledger is even there: it begins once there is room.
    fill();
    world.launch(with_ledger(&state));
    world.write("first", "content");
    world.wait_for_one("first");
    world.service().wait_log("a WARN that the ledger cannot be written", |line| {
        line.contains("WARN") && line.contains("ledger") && line.contains("written")
    });
    fs::remove_file(&filler).unwrap();
    world.service().wait_log("the ledger's recovery", |line| line.contains("ledger is written again"));

    // Full while it works.
    fill();
    for number in 0..3000 {
        world.write(&format!("file-{number}"), format!("{number}"));
    }
    world.wait_until("every message", |messages| messages.len() >= 3001);
    kill(&mut world);
    fs::remove_file(&filler).unwrap();

    let (repeats, ended) = one_run(&mut world, with_ledger(&state));
    assert!(!ended.stderr.contains("damaged"), "{}", ended.stderr);
    let all: HashMap<_, _> =
        world.consumer.messages().iter().map(|it| (it.name().to_owned(), it.message_id().to_owned())).collect();
    assert_eq!(all.len(), 3002, "with the sentinel");
    for repeat in &repeats {
        assert_eq!(all[repeat.name()], repeat.message_id(), "{}", list(std::slice::from_ref(repeat)));
    }
}

/// Two directories of one file each that the ledger holds, the service that watched them stopped.
fn two_directories(state: &Path) -> (World, impl Fn()) {
    let mut world = World::start_with(recursive(state));
    for name in ["one", "two"] {
        fs::create_dir(world.path(name)).unwrap();
        world.write(&format!("{name}/file"), name);
    }
    world.wait_until("the files", |messages| messages.len() >= 2);
    world.stop_service(); // what is confirmed is in the ledger
    let (one, two) = (world.path("one"), world.path("two"));
    (world, move || exchange(&one, &two))
}

fn recursive(state: &Path) -> impl FnOnce(Setup) -> Setup {
    move |setup| with_ledger(state)(setup).args(&["--recursive"])
}

/// A confirm waits for its row's transaction, and a rename does not change the version of a directory's files: a row that
/// is out of date must not be taken for what was told last.
#[test]
fn two_directories_exchanged_before_a_kill_and_again_after_it_have_their_own_files_told_last() {
    for before_the_start in [false, true] {
        let state = tempfile::tempdir().unwrap();
        let (mut world, exchange) = two_directories(state.path());
        if before_the_start {
            exchange();
        }
        world.launch(recursive(state.path()));
        if !before_the_start {
            exchange();
        }
        world.wait_until("each other's files", |messages| messages.len() >= 4);
        kill(&mut world);
        exchange();
        world.launch(recursive(state.path()));
        for name in ["one", "two"] {
            world.wait_for_content(&format!("{name}/file"), name.as_bytes());
        }
    }
}

#[test]
fn the_same_while_the_ledgers_disk_is_full() {
    let top = tempfile::tempdir().unwrap();
    let state = top.path().join("state");
    let Some(_disk) = Disk::mount(state.clone(), "512k") else {
        return skip("a file system to fill cannot be mounted here");
    };
    let (mut world, exchange) = two_directories(&state);
    let filler = state.join("filler");
    world.launch(recursive(&state));
    drop(fs::write(&filler, vec![0; 1 << 20]));
    exchange();
    world.wait_until("each other's files", |messages| messages.len() >= 4);
    kill(&mut world);
    exchange();
    fs::remove_file(&filler).unwrap();
    world.launch(recursive(&state));
    world.service().wait_log("that the ledger is behind", |line| line.contains("WARN") && line.contains("is behind"));
    for name in ["one", "two"] {
        world.wait_for_content(&format!("{name}/file"), name.as_bytes());
    }
    world.stop_service();

    // Full for a while only: it has caught up when it is read again.
    let before = world.consumer.drain().len();
    world.launch(recursive(&state));
    drop(fs::write(&filler, vec![0; 1 << 20]));
    exchange();
    world.wait_until("each other's files", |messages| messages.len() >= before + 2);
    fs::remove_file(&filler).unwrap();
    world.service().wait_log("the ledger's recovery", |line| line.contains("ledger is written again"));
    world.stop_service();
    let (again, ended) = one_run(&mut world, recursive(&state));
    assert_eq!(told(&again), [], "{}", ended.stderr);
}

/// As long as the index took the link for the file that it had replaced, its row lagged.
#[test]
fn a_link_in_the_place_of_a_regular_file_has_its_first_file_told_last_after_a_kill() {
    let (mut world, state) = world();
    for name in ["one", "two", "link"] {
        world.write(name, name);
    }
    world.launch(with_ledger(&state));
    world.wait_until("all three", |messages| messages.len() >= 3);
    lead_to(&world, "one");
    world.wait_for_content("link", b"one");
    world.pass_sentinel();
    lead_to(&world, "two");
    world.wait_for_content("link", b"two");
    kill(&mut world);
    lead_to(&world, "one");
    world.launch(with_ledger(&state));
    world.wait_for_content("link", b"one");
    world.finish();
}

#[test]
fn a_link_that_leads_elsewhere_before_a_kill_and_back_after_it_has_its_first_file_told_last() {
    let (mut world, state) = world();
    for name in ["one", "two"] {
        world.write(name, name);
    }
    symlink("one", world.path("link")).unwrap();
    world.launch(with_ledger(&state));
    world.wait_until("all three", |messages| messages.len() >= 3);
    for before_the_start in [false, true] {
        world.stop_service();
        if before_the_start {
            lead_to(&world, "two");
        }
        world.launch(with_ledger(&state));
        if !before_the_start {
            lead_to(&world, "two");
        }
        world.wait_for_content("link", b"two");
        kill(&mut world);
        lead_to(&world, "one");
        world.launch(with_ledger(&state));
        world.wait_for_content("link", b"one");
    }
}
