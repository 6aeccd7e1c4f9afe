//! Several data directories in one service: one connection, one ledger, and each file under its own directory.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::support::broker::{self, NO_BROKER};
use crate::support::consumer::Consumer;
use crate::support::control::{get, health, wait_for_metrics};
use crate::support::files::chmod;
use crate::support::ledger::rows;
use crate::support::message::Message;
use crate::support::service::{Ended, Service};
use crate::support::setup::Setup;
use crate::support::skip;
use crate::support::wait::TIMEOUT;
use crate::support::world::list;

/// Two directories and a queue, for the services of a test.
struct Two {
    one: PathBuf,
    other: PathBuf,
    beside: PathBuf,
    url: String,
    consumer: Consumer,
    _homes: Vec<TempDir>,
}

impl Two {
    fn new() -> Self {
        let home = TempDir::with_prefix("ingestor-suite-").unwrap();
        let other = home.path().canonicalize().unwrap().join("other");
        Self::with(other, vec![home])
    }

    /// The other one is on a file system of its own. `None` where there is none, which is printed.
    fn on_two_volumes() -> Option<Self> {
        let home = TempDir::with_prefix("ingestor-suite-").unwrap();
        let device = |path: &Path| fs::metadata(path).map(|found| found.dev());
        let memory = TempDir::with_prefix_in("ingestor-suite-", "/dev/shm").ok();
        let apart = |memory: &TempDir| device(memory.path()).unwrap() != device(home.path()).unwrap();
        let Some(memory) = memory.filter(apart) else {
            skip("/dev/shm is no file system of its own, or cannot be written");
            return None;
        };
        let other = memory.path().canonicalize().unwrap().join("other");
        Some(Self::with(other, vec![home, memory]))
    }

    fn with(other: PathBuf, homes: Vec<TempDir>) -> Self {
        let real = homes[0].path().canonicalize().unwrap();
        let (one, beside) = (real.join("one"), real.join("beside"));
        [&one, &other, &beside].into_iter().for_each(|directory| fs::create_dir(directory).unwrap());
        let url = broker::shared().vhost();
        Self { one, other, beside, consumer: Consumer::bind(&url), url, _homes: homes }
    }

    fn list(&self) -> OsString {
        [self.one.as_os_str(), self.other.as_os_str()].join(":".as_ref())
    }

    /// `watch` on both, by the variable.
    fn setup(&self) -> Setup {
        Setup::watch(Path::new(&self.list()), &self.url)
    }

    #[track_caller]
    fn start(&self, change: impl FnOnce(Setup) -> Setup) -> Service {
        let service = change(self.setup()).spawn();
        service.wait_ready();
        service
    }

    #[track_caller]
    fn wait_for(&self, count: usize) -> Vec<Message> {
        let came = self.consumer.wait_until(TIMEOUT, |messages| messages.len() >= count);
        let messages = self.consumer.messages();
        assert!(came, "{count} messages were due:\n{}", list(&messages));
        messages
    }
}

fn paths_and_events(messages: &[Message]) -> Vec<(String, String)> {
    let mut published: Vec<_> = messages.iter().map(|it| (it.path().to_owned(), it.event().to_owned())).collect();
    published.sort();
    published
}

fn named(directory: &Path, name: &str, event: &str) -> (String, String) {
    (directory.join(name).to_str().unwrap().to_owned(), event.to_owned())
}

#[test]
fn files_and_neighbors_are_of_their_own_directory() {
    let two = Two::new();
    fs::write(two.one.join("song.cue"), "before").unwrap();
    fs::create_dir(two.other.join("sub")).unwrap();
    let service = two.start(|setup| setup.recursive());
    let ready = service.wait_log("that it is ready", |line| line.contains("ready"));
    for directory in [&two.one, &two.other] {
        assert!(ready.contains(&format!("{directory:?}")), "{ready}");
        fs::write(directory.join("song.flac"), directory.to_str().unwrap()).unwrap();
    }
    fs::write(two.other.join("sub/song.flac"), "deep").unwrap();
    two.wait_for(3);
    // A rename from one to the other is like any other.
    fs::rename(two.one.join("song.flac"), two.other.join("moved.flac")).unwrap();
    two.wait_for(4);
    service.stop();
    let messages = two.consumer.drain();
    let mut expected = [
        named(&two.one, "song.flac", "IN_CREATE"),
        named(&two.other, "song.flac", "IN_CREATE"),
        named(&two.other, "sub/song.flac", "IN_CREATE"),
        named(&two.other, "moved.flac", "IN_MOVED_TO"),
    ];
    expected.sort();
    assert_eq!(paths_and_events(&messages), expected);
    for message in &messages {
        let neighbors: &[&str] = match Path::new(message.path()).strip_prefix(&two.one) {
            Ok(_) => &["song.cue"],
            Err(_) => &[],
        };
        let expected: Vec<String> =
            neighbors.iter().map(|name| two.one.join(name).to_str().unwrap().to_owned()).collect();
        assert_eq!(message.neighbors(), expected, "{}", message.path());
    }
}

#[test]
fn the_flag_repeats_and_wins_over_the_variable() {
    let two = Two::new();
    let setup = Setup::watch(&two.beside, &two.url).arg("--data-dir").arg(&two.one).arg("--data-dir").arg(&two.other);
    let socket = setup.control_socket();
    let service = setup.spawn();
    service.wait_ready();
    let (_, health) = health(&socket);
    assert_eq!(health["service"]["directories"], serde_json::json!([two.one, two.other]));
    fs::write(two.beside.join("file"), "not watched").unwrap();
    fs::write(two.other.join("file"), "watched").unwrap();
    two.wait_for(1);
    service.stop();
    assert_eq!(paths_and_events(&two.consumer.drain()), [named(&two.other, "file", "IN_CREATE")]);
}

#[test]
fn one_ledger_keeps_the_rows_of_directories_left_out_of_a_start() {
    let two = Two::new();
    let state = two.beside.join("state");
    let with_ledger = |setup: Setup| setup.env("STATE_DIRECTORY", &state);
    fs::write(two.one.join("a"), "a").unwrap();
    fs::write(two.other.join("b"), "b").unwrap();
    let service = two.start(with_ledger);
    two.wait_for(2);
    service.stop();
    let path = |directory: &Path, name: &str| directory.join(name).to_str().unwrap().to_owned();
    let both = [path(&two.one, "a"), path(&two.other, "b")];
    assert_eq!(rows(&state), both);

    fs::remove_file(two.other.join("b")).unwrap();
    let service = with_ledger(Setup::watch(&two.one, &two.url)).spawn();
    service.wait_ready();
    service.stop();
    assert_eq!(rows(&state), both, "this start leaves the other directory's rows alone");

    fs::write(two.other.join("c"), "c").unwrap();
    let service = two.start(with_ledger);
    two.wait_for(3);
    service.stop();
    assert_eq!(rows(&state), [path(&two.one, "a"), path(&two.other, "c")]);
    let expected =
        [named(&two.one, "a", "IN_CREATE"), named(&two.other, "b", "IN_CREATE"), named(&two.other, "c", "IN_CREATE")];
    assert_eq!(paths_and_events(&two.consumer.drain()), expected);
}

/// Each volume has a watch of its own. They have the ledger, the numbers, and the answers in common.
#[test]
fn directories_on_two_volumes_are_one_service() {
    let Some(two) = Two::on_two_volumes() else { return };
    let state = two.beside.join("state");
    let options = |setup: Setup| setup.recursive().args(&["--removals"]).env("STATE_DIRECTORY", &state);
    fs::create_dir(two.other.join("sub")).unwrap();
    fs::write(two.one.join("a"), "a").unwrap();
    let service = two.start(options);
    fs::write(two.other.join("b"), "b").unwrap();
    fs::write(two.other.join("sub/c"), "c").unwrap();
    two.wait_for(3);
    let socket = service.control_socket();
    wait_for_metrics(&socket, "sums of both", |numbers| {
        let is = |name: &str, value: f64| numbers[&format!("apollonia_{name}")] == value;
        is("known_files", 3.0) && is("watched_directories", 3.0) && is("pending_files", 0.0)
    });
    for path in [two.one.join("a"), two.other.join("sub/c")] {
        let (_, _, status) = get(&socket, &format!("/status?path={}", path.display()));
        let status: Value = serde_json::from_str(&status).unwrap();
        assert_eq!(
            (&status["file"]["fate"], &status["files_missing"]),
            (&"confirmed".into(), &Value::Null),
            "{status:#}"
        );
        assert_eq!(status["files"]["recent"].as_array().unwrap().len(), 3, "{status:#}");
    }
    assert!(service.stop().stderr.contains("stopped: 3 files and 3 bytes read, 3 messages confirmed, 0 left"));
    let path = |directory: &Path, name: &str| directory.join(name).to_str().unwrap().to_owned();
    let mut all = [path(&two.one, "a"), path(&two.other, "b"), path(&two.other, "sub/c")];
    all.sort();
    assert_eq!(rows(&state), all);

    // The ledger was marked complete for both: metadata alone is silent. What is gone is taken back.
    chmod(&two.one.join("a"), 0o640);
    chmod(&two.other.join("b"), 0o640);
    fs::remove_dir_all(two.other.join("sub")).unwrap();
    fs::write(two.one.join("new"), "new").unwrap();
    let service = two.start(options);
    two.wait_for(5);
    service.signal(Signal::HUP);
    wait_for_metrics(&service.control_socket(), "a rescan of both", |numbers| {
        numbers["apollonia_rescans_total{cause=\"signal\"}"] == 2.0
    });
    service.stop();
    let messages = two.consumer.drain();
    assert_eq!(messages.iter().filter(|message| message.is_removal()).count(), 1, "{}", list(&messages));
    let mut expected = [
        named(&two.one, "a", "IN_CREATE"),
        named(&two.one, "new", "IN_CREATE"),
        named(&two.other, "b", "IN_CREATE"),
        named(&two.other, "sub/c", "IN_CREATE"),
        named(&two.other, "sub/c", "IN_DELETE"),
    ];
    expected.sort();
    assert_eq!(paths_and_events(&messages), expected);
}

#[test]
fn the_end_of_one_directory_ends_the_service() {
    let (same, apart) = (Two::new(), Two::on_two_volumes());
    for (removed, two) in [(false, Some(same)), (true, Some(Two::new())), (true, apart)] {
        let Some(two) = two else { continue };
        let service = two.start(|setup| setup);
        if removed {
            fs::remove_dir(&two.other).unwrap();
        } else {
            fs::rename(&two.other, two.beside.join("elsewhere")).unwrap();
        }
        let ended = service.wait_exit().expect_code(1);
        ended.assert_one_error(&format!("{:?} is gone", two.other));
    }
}

#[test]
fn services_that_share_a_directory_exclude_each_other() {
    let two = Two::new();
    let first = two.start(|setup| setup);
    let second =
        Setup::watch(&two.other, &two.url).arg("--data-dir").arg(&two.beside).arg("--data-dir").arg(&two.other);
    let second = second.spawn();
    let waits = second.wait_log("that it waits for the other", |line| line.contains("waiting for its end"));
    assert!(waits.contains(&format!("{:?}", two.other)), "{waits}");
    first.stop();
    second.wait_ready();
    second.stop();
}

#[track_caller]
fn assert_refused(ended: Ended, words: &[&str]) {
    let ended = ended.expect_code(2);
    assert_eq!(ended.stderr.lines().count(), 1, "{}", ended.stderr);
    for word in words.iter().chain(&["DATA_DIRECTORY", "--data-dir"]) {
        assert!(ended.stderr.contains(word), "{word} is missing: {}", ended.stderr);
    }
}

#[test]
fn nested_directories_are_refused_by_watch_scan_and_doctor() {
    let two = Two::new();
    let deep = two.one.join("deep/er");
    fs::create_dir_all(&deep).unwrap();
    let link = two.beside.join("link");
    symlink(&deep, &link).unwrap();
    let (one, deep) = (two.one.to_str().unwrap(), deep.to_str().unwrap());
    for (first, second) in [(one, deep), (deep, one), (one, one), (one, link.to_str().unwrap())] {
        let lists = format!("{first}:{second}");
        let named = [second, one, "name each directory once"];
        assert_refused(Setup::watch(Path::new(&lists), NO_BROKER).run(), &named);
        assert_refused(Setup::new(&["scan", "--output", "none", first, second]).run(), &named);
        let doctor = Setup::new(&["doctor"]).env("DATA_DIRECTORY", &lists).run().expect_code(1);
        let failed = doctor.stdout.lines().find(|line| line.starts_with("fail  data directory")).unwrap_or_default();
        assert!(failed.contains(one) && failed.contains("name each directory once"), "{}", doctor.stdout);
    }
    // A longer name with the same beginning is not nested.
    let longer = format!("{one}-more");
    fs::create_dir(&longer).unwrap();
    Setup::new(&["scan", "--output", "none", one, &longer]).run().expect_code(0);
}

#[test]
fn empty_names_and_flags_on_both_sides_of_the_command_are_refused() {
    let two = Two::new();
    let one = two.one.to_str().unwrap();
    for list in [format!("{one}:"), format!(":{one}"), format!("{one}::{one}"), ":".to_owned()] {
        assert_refused(Setup::watch(Path::new(&list), NO_BROKER).run(), &["colon"]);
    }
    let split = Setup::new(&["--data-dir", one, "watch", "--data-dir", two.other.to_str().unwrap()]).run();
    let split = split.expect_code(2);
    assert!(split.stderr.contains("--data-dir") && split.stderr.contains("behind the command"), "{}", split.stderr);
}

#[test]
fn a_directory_with_a_colon_in_its_name_is_named_by_the_flag() {
    let two = Two::new();
    let colon = two.beside.join("a:b");
    fs::create_dir(&colon).unwrap();
    fs::write(colon.join("file"), "content").unwrap();
    let ended = Setup::new(&["scan", "--output", "stdout", "--data-dir"]).arg(&colon).run().expect_code(0);
    assert!(ended.stdout.contains("a:b/file"), "{}", ended.stdout);
}

#[test]
fn a_ledger_in_any_data_directory_is_refused() {
    let two = Two::new();
    let ended = two.setup().env("STATE_DIRECTORY", two.other.join("state")).run().expect_code(2);
    for word in ["STATE_DIRECTORY", two.other.to_str().unwrap()] {
        assert!(ended.stderr.contains(word), "{}", ended.stderr);
    }
}

#[test]
fn a_scan_reads_all_directories() {
    let two = Two::new();
    fs::create_dir(two.other.join("sub")).unwrap();
    for path in [two.one.join("a"), two.other.join("b"), two.other.join("sub/c")] {
        fs::write(path, "content").unwrap();
    }
    let scan = Setup::new(&["scan", "--output", "stdout", "--recursive"]);
    for setup in [
        scan.env("DATA_DIRECTORY", two.list()),
        Setup::new(&["scan", "--output", "stdout", "--recursive"]).arg(&two.one).arg(&two.other),
    ] {
        let ended = setup.arg("--workers").arg("1").run().expect_code(0);
        let mut found: Vec<_> = ended.stdout.lines().map(|line| line.split('"').nth(3).unwrap().to_owned()).collect();
        found.sort();
        let expected = [two.one.join("a"), two.other.join("b"), two.other.join("sub/c")]
            .map(|path| path.to_str().unwrap().to_owned());
        assert_eq!(found, expected);
        assert!(ended.stderr.contains("done: 3 files"), "{}", ended.stderr);
    }
}
