//! Whole trees: `--recursive`, with directories that are made, moved, exchanged and removed while they are watched.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::{CStr, CString};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FileType, Mode, OFlags, RenameFlags};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, prlimit};

use crate::consumer::Message;
use crate::control::wait_for_metrics;
use crate::files::sha256;
use crate::ledger::rows;
use crate::service::{Setup, assert_no_warning, skip};
use crate::world::{World, list};

fn recursive(setup: Setup) -> Setup {
    setup.arg("--recursive")
}

fn start() -> World {
    World::start_with(recursive)
}

/// The messages by their path below the data directory.
fn by_path<'a>(data: &Path, messages: &'a [Message]) -> HashMap<&'a str, Vec<&'a Message>> {
    let mut found: HashMap<&str, Vec<&Message>> = HashMap::new();
    for message in messages {
        let below = message.path().strip_prefix(data.to_str().unwrap()).expect("below the data directory");
        found.entry(&below[1..]).or_default().push(message);
    }
    found
}

#[track_caller]
fn assert_each_once(data: &Path, messages: &[Message], expected: &[(&str, &str)]) {
    let mut found: Vec<(&str, &str)> = Vec::new();
    for (path, messages) in by_path(data, messages) {
        messages.iter().for_each(|message| found.push((path, message.event())));
    }
    found.sort_unstable();
    let mut expected = expected.to_vec();
    expected.sort_unstable();
    assert_eq!(found, expected, "{}", list(messages));
}

#[test]
fn files_in_directories_that_were_there_and_in_new_ones_have_one_message_each() {
    let mut world = World::without_service();
    fs::create_dir_all(world.path("old/deep")).unwrap();
    world.write("old/before", "before");
    world.launch(recursive);
    world.write("old/deep/a", "a");
    fs::create_dir_all(world.path("new/deep/er")).unwrap();
    world.write("new/deep/er/b", "b");
    world.write("new/c", "c");
    world.write("d", "d");
    let data = world.data.clone();
    world.wait_until("four messages", |messages| messages.len() >= 4);
    let messages = world.finish();
    let expected =
        [("old/deep/a", "IN_CREATE"), ("new/deep/er/b", "IN_CREATE"), ("new/c", "IN_CREATE"), ("d", "IN_CREATE")];
    assert_each_once(&data, &messages, &expected);
}

#[test]
fn nothing_is_lost_between_a_directory_and_its_watch_and_nothing_comes_twice() {
    const TREES: usize = 200;
    let mut world = start();
    for number in 0..TREES {
        let directory = world.path(&format!("{number}/a/b"));
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("file"), number.to_string()).unwrap();
        fs::write(world.path(&format!("{number}/file")), number.to_string()).unwrap();
    }
    world.wait_until("all of them", |messages| messages.len() >= 2 * TREES);
    let data = world.data.clone();
    let messages = world.finish();
    let found = by_path(&data, &messages);
    for number in 0..TREES {
        for path in [format!("{number}/a/b/file"), format!("{number}/file")] {
            let messages = found.get(&*path).map(Vec::as_slice).unwrap_or_default();
            assert_eq!(messages.len(), 1, "{path}");
            assert_eq!(messages[0].sha256(), sha256(number.to_string().as_bytes()), "{path}");
        }
    }
    assert_eq!(messages.len(), 2 * TREES);
}

#[test]
fn a_tree_of_10_000_files_moved_in_gives_10_000_messages() {
    const DIRECTORIES: usize = 100;
    const EACH: usize = 100;
    let mut world = start();
    for directory in 0..DIRECTORIES {
        let directory = world.outside.join(format!("tree/{}/{directory}", directory % 10));
        fs::create_dir_all(&directory).unwrap();
        (0..EACH).for_each(|file| fs::write(directory.join(file.to_string()), file.to_string()).unwrap());
    }
    fs::rename(world.outside.join("tree"), world.path("tree")).unwrap();
    world.wait_until("10,000 messages", |messages| messages.len() >= DIRECTORIES * EACH);
    let data = world.data.clone();
    let messages = world.finish();
    assert_eq!(messages.len(), DIRECTORIES * EACH);
    let found = by_path(&data, &messages);
    assert_eq!(found.len(), DIRECTORIES * EACH);
    for (path, messages) in found {
        assert_eq!(messages[0].event(), "IN_MOVED_TO", "{path}");
        let content = path.rsplit('/').next().unwrap();
        assert_eq!(messages[0].sha256(), sha256(content.as_bytes()), "{path}");
    }
}

#[test]
fn a_renamed_directory_tells_its_files_new_paths_and_goes_on_being_watched() {
    let mut world = start();
    fs::create_dir_all(world.path("before/sub")).unwrap();
    world.write("before/sub/file", "one");
    world.write("before/file", "two");
    world.wait_until("the files", |messages| messages.len() >= 2);
    fs::rename(world.path("before"), world.path("after")).unwrap();
    world.wait_until("their new paths", |messages| messages.len() >= 4);
    world.write("after/sub/later", "three");
    world.wait_for("after/sub/later", 1);
    // A new directory of the old name has nothing of the old one.
    fs::create_dir_all(world.path("before/sub")).unwrap();
    world.write("before/sub/file", "four");
    world.wait_until("a file of the old name", |messages| messages.len() >= 6);
    let data = world.data.clone();
    let messages = world.finish();
    let expected = [
        ("before/sub/file", "IN_CREATE"),
        ("before/file", "IN_CREATE"),
        ("after/sub/file", "IN_MOVED_TO"),
        ("after/file", "IN_MOVED_TO"),
        ("after/sub/later", "IN_CREATE"),
        ("before/sub/file", "IN_CREATE"),
    ];
    assert_each_once(&data, &messages, &expected);
}

/// Watches that the service holds.
fn watches(world: &mut World) -> usize {
    let id = world.service().id();
    let mut count = 0;
    for entry in fs::read_dir(format!("/proc/{id}/fdinfo")).unwrap() {
        let text = fs::read_to_string(entry.unwrap().path()).unwrap_or_default();
        count = count.max(text.lines().filter(|line| line.starts_with("inotify ")).count());
    }
    count
}

/// Watches of directories that are no more in the tree are ended when nothing else is to do.
#[track_caller]
fn wait_for_watches(world: &mut World, expected: usize) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while watches(world) != expected {
        assert!(Instant::now() < deadline, "{} watches, not {expected}\n{}", watches(world), world.story());
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_directory_moved_out_or_removed_frees_its_watches_and_tells_nothing_more() {
    let mut world = start();
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
    let mut world = start();
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
fn a_directory_renamed_away_and_back_loses_no_file_that_was_just_being_read() {
    const DIRECTORIES: usize = 1000;
    let mut world = World::without_service();
    let directory = |number: usize| world.data.join(format!("d{number}"));
    (0..DIRECTORIES).for_each(|number| fs::create_dir(directory(number)).unwrap());
    let away = world.path("away");
    let paths: Vec<PathBuf> = (0..DIRECTORIES).map(directory).collect();
    world.launch(recursive);
    for (number, path) in paths.iter().enumerate() {
        fs::write(path.join("file"), number.to_string()).unwrap();
        // So that the readers come at every moment of what follows.
        let until = Instant::now() + Duration::from_micros(7 * (number as u64 % 100));
        while Instant::now() < until {
            std::hint::spin_loop();
        }
        fs::rename(path, &away).unwrap();
        fs::rename(&away, path).unwrap();
    }
    world.wait_until("a message for every file where it is", |messages| {
        let told: HashSet<&str> = messages.iter().map(Message::path).collect();
        paths.iter().all(|path| told.contains(path.join("file").to_str().unwrap()))
    });
}

#[test]
fn more_directories_than_the_kernels_queue_is_long_are_renamed_and_moved_out_without_an_overflow() {
    const DIRECTORIES: usize = 20_000; // the queue has 16,384 by default
    let tree = |top: &Path| {
        (0..DIRECTORIES).for_each(|number| {
            fs::create_dir_all(top.join(format!("{}/{number}", number % 100))).unwrap();
        });
    };
    let mut world = World::without_service();
    tree(&world.path("before"));
    world.write("before/7/7/file", "one");
    world.launch(recursive);
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
fn what_a_new_directory_holds_is_told_as_soon_as_nobody_writes_it() {
    // So long does a file wait of whose writers the kernel tells nothing.
    let mut world = World::start_with(|setup| recursive(setup).args(&["--settle-ms", "3600000"]));
    let log = world.service().stderr();
    if !log.contains("a read lease") {
        return skip("no leases here");
    }
    world.service().signal(Signal::STOP);
    fs::create_dir_all(world.path("new/deep")).unwrap();
    world.write("new/deep/closed", "closed before there was a watch");
    let mut open = File::create(world.path("new/deep/open")).unwrap();
    open.write_all(b"first").unwrap();
    world.service().signal(Signal::CONT);
    world.wait_for_one("new/deep/closed");
    world.pass_sentinel();
    open.write_all(b" and last").unwrap();
    drop(open);
    assert_eq!(world.wait_for_one("new/deep/open").sha256(), sha256(b"first and last"));
    let data = world.data.clone();
    let messages = world.finish();
    assert_each_once(&data, &messages, &[("new/deep/closed", "IN_CREATE"), ("new/deep/open", "IN_CREATE")]);
}

#[test]
fn two_directories_that_are_exchanged_have_each_others_files() {
    let mut world = start();
    for name in ["one", "two"] {
        fs::create_dir(world.path(name)).unwrap();
        world.write(&format!("{name}/file"), name);
        world.write(&format!("{name}/only-{name}"), name);
    }
    world.wait_until("the files", |messages| messages.len() >= 4);
    let (one, two) = (world.path("one"), world.path("two"));
    rustix::fs::renameat_with(CWD, &one, CWD, &two, RenameFlags::EXCHANGE).unwrap();
    world.wait_until("all of them under the other name", |messages| messages.len() >= 8);
    world.write("one/later", "later");
    world.wait_for_one("one/later");
    let data = world.data.clone();
    let messages = world.finish();
    assert_eq!(messages.len(), 9, "{}", list(&messages));
    let found = by_path(&data, &messages);
    let last = |path: &str| found[path].last().unwrap().sha256().to_owned();
    assert_eq!((last("one/file"), last("two/file")), (sha256(b"two"), sha256(b"one")));
    assert_eq!((last("one/only-two"), last("two/only-one")), (sha256(b"two"), sha256(b"one")));
    let events: Vec<&str> = messages[4..8].iter().map(Message::event).collect();
    assert_eq!(events, ["IN_MOVED_TO"; 4], "{}", list(&messages));
}

#[test]
fn renames_that_nobody_could_follow_end_with_every_file_where_it_is() {
    let mut world = start();
    for name in ["a", "b", "c", "d"] {
        fs::create_dir_all(world.path(&format!("{name}/sub"))).unwrap();
        world.write(&format!("{name}/sub/{name}"), name);
    }
    world.wait_until("the files", |messages| messages.len() >= 4);
    world.service().signal(Signal::STOP);
    let rename = |from: &str, to: &str| fs::rename(world.path(from), world.path(to)).unwrap();
    rename("a", "x"); // twice in a row
    rename("x", "y");
    rename("b", "a"); // to a name that was another's
    fs::create_dir(world.path("empty")).unwrap();
    rename("c", "empty"); // over an empty one
    rename("d", "y/sub/d"); // into one that was moved
    rename("y/sub", "top"); // and out of it, to the top
    fs::create_dir_all(world.path("d/sub")).unwrap();
    world.write("d/sub/d", "another");
    fs::create_dir(world.path("c")).unwrap();
    world.service().signal(Signal::CONT);
    let expected =
        [("top/a", "a"), ("a/sub/b", "b"), ("empty/sub/c", "c"), ("top/d/sub/d", "d"), ("d/sub/d", "another")];
    for (path, content) in expected {
        world.wait_for_content(world.path(path).to_str().unwrap(), content.as_bytes());
    }
    // data, y, top, top/d, top/d/sub, a, a/sub, empty, empty/sub, d, d/sub, c
    world.pass_sentinel();
    wait_for_watches(&mut world, 12);
    for (number, directory) in ["y", "top", "top/d/sub", "a/sub", "empty/sub", "d/sub", "c"].iter().enumerate() {
        world.write(&format!("{directory}/later-{number}"), "later");
        world.wait_for_one(&format!("{directory}/later-{number}"));
    }
    let data = world.data.clone();
    let messages = world.finish();
    let found = by_path(&data, &messages);
    assert_eq!(found.values().map(Vec::len).sum::<usize>(), 4 + 5 + 7, "{}", list(&messages));
}

#[test]
fn want_of_descriptors_makes_nobody_forget_a_directory() {
    let mut world = start();
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
    world.service().wait_log("why it could not look", |line| line.contains("WARN") && line.contains("kept"));
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
    world.launch(recursive);
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
fn neighbors_are_of_the_files_own_directory() {
    let mut world = World::without_service();
    fs::create_dir(world.path("one")).unwrap();
    fs::create_dir(world.path("two")).unwrap();
    for path in ["song.txt", "one/song.cue", "one/readme", "two/song.log"] {
        world.write(path, path);
    }
    world.launch(recursive);
    world.write("one/song.flac", "flac");
    let message = world.wait_for_one("one/song.flac");
    let expected = ["one/song.cue", "one/readme"].map(|path| world.path(path).to_str().unwrap().to_owned());
    assert_eq!(message.neighbors(), expected);
}

#[test]
fn the_ledger_knows_the_whole_tree_and_forgets_what_is_gone_from_it() {
    let state = tempfile::tempdir().unwrap();
    let with_ledger = |setup: Setup| recursive(setup).env("STATE_DIRECTORY", state.path());
    let mut world = World::start_with(with_ledger);
    for path in ["kept/deep", "renamed", "removed"] {
        fs::create_dir_all(world.path(path)).unwrap();
    }
    for path in ["kept/deep/same", "kept/deep/changed", "renamed/file", "removed/file"] {
        world.write(path, path);
    }
    world.wait_until("the files", |messages| messages.len() >= 4);
    world.stop_service();
    world.write("kept/deep/changed", "otherwise");
    world.write("kept/new", "new");
    fs::rename(world.path("renamed"), world.path("name")).unwrap();
    fs::remove_dir_all(world.path("removed")).unwrap();
    world.launch(with_ledger);
    world.service().wait_log("what the ledger holds", |line| line.contains("holds 2 of 4 files"));
    world.wait_until("what changed", |messages| messages.len() >= 7);
    let data = world.data.clone();
    let messages = world.finish();
    let expected = [("kept/deep/changed", "IN_CLOSE_WRITE"), ("kept/new", "IN_CREATE"), ("name/file", "IN_CREATE")];
    assert_each_once(&data, &messages[4..], &expected);
}

#[test]
fn a_directory_renamed_back_while_nobody_watches_has_its_files_told_again() {
    let state = tempfile::tempdir().unwrap();
    let with_ledger = |setup: Setup| recursive(setup).env("STATE_DIRECTORY", state.path());
    let mut world = World::start_with(with_ledger);
    for path in ["one/deep", "one0"] {
        fs::create_dir_all(world.path(path)).unwrap();
    }
    for path in ["one/deep/file", "one/file", "one0/file"] {
        world.write(path, path);
    }
    world.wait_until("the files", |messages| messages.len() >= 3);
    fs::rename(world.path("one"), world.path("two")).unwrap();
    world.wait_until("their new paths", |messages| messages.len() >= 5);
    world.stop_service();
    let data = world.data.clone();
    let paths =
        |names: &[&str]| -> Vec<String> { names.iter().map(|it| data.join(it).to_str().unwrap().to_owned()).collect() };
    assert_eq!(rows(state.path()), paths(&["one0/file", "two/deep/file", "two/file"]));
    // Of these versions the ledger has known the paths before.
    fs::rename(world.path("two"), world.path("one")).unwrap();
    world.launch(with_ledger);
    world.wait_until("their old paths", |messages| messages.len() >= 7);
    let messages = world.finish();
    assert_each_once(&data, &messages[5..], &[("one/deep/file", "IN_CREATE"), ("one/file", "IN_CREATE")]);
    assert_eq!(rows(state.path()).len(), 4, "a sentinel's, too: {:?}", rows(state.path()));
}

#[test]
fn a_start_without_sub_directories_leaves_their_rows_in_the_ledger() {
    let state = tempfile::tempdir().unwrap();
    let flat = |setup: Setup| setup.env("STATE_DIRECTORY", state.path());
    let mut world = World::start_with(|setup| flat(recursive(setup)));
    fs::create_dir(world.path("sub")).unwrap();
    for path in ["sub/file", "file", "removed"] {
        world.write(path, path);
    }
    world.wait_until("the files", |messages| messages.len() >= 3);
    world.stop_service();
    fs::remove_file(world.path("removed")).unwrap();
    world.launch(flat);
    world.stop_service();
    let data = world.data.clone();
    assert_eq!(rows(state.path()), ["file", "sub/file"].map(|path| data.join(path).to_str().unwrap().to_owned()));
    world.launch(|setup| flat(recursive(setup)));
    world.service().wait_log("what the ledger holds", |line| line.contains("holds 2 of 2 files"));
    let messages = world.finish();
    assert_eq!(messages.len(), 3, "{}", list(&messages));
}

/// How long the service waits between two looks at what has no watch, and something for a busy machine.
const UNWATCHED_PATIENCE: Duration = Duration::from_secs(90);

fn write_text(path: &CStr, text: &str) -> io::Result<()> {
    let file = rustix::fs::open(path, OFlags::WRONLY, Mode::empty())?;
    rustix::io::write(&file, text.as_bytes())?;
    Ok(())
}

/// Runs the service in user and mount namespaces of its own: the machine stays as it is.
///
/// # Safety
/// `prepare` runs in the new process and must be async-signal-safe.
unsafe fn in_namespaces(setup: Setup, prepare: impl Fn() -> io::Result<()> + Send + Sync + 'static) -> Setup {
    let map = format!("0 {} 1", rustix::process::geteuid().as_raw());
    let enter = move || {
        // SAFETY: the new process is a copy of one thread, and gets namespaces of its own.
        if unsafe { libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNS) } != 0 {
            return Err(io::Error::last_os_error());
        }
        write_text(c"/proc/self/uid_map", &map)?;
        prepare()
    };
    // SAFETY: system calls alone, on strings that were made before, and the caller's promise.
    unsafe { setup.before_exec(enter) }
}

/// With a limit of its own.
fn with_so_many_watches(setup: Setup, most: usize) -> Setup {
    let most = most.to_string();
    // SAFETY: system calls alone, on a string that was made before.
    unsafe { in_namespaces(setup, move || write_text(c"/proc/sys/user/max_inotify_watches", &most)) }
}

/// With directories mounted on others.
fn with_bind_mounts(setup: Setup, mounts: &[(&Path, &Path)]) -> Setup {
    let text = |path: &Path| CString::new(path.to_str().unwrap()).unwrap();
    let mounts: Vec<(CString, CString)> = mounts.iter().map(|(from, at)| (text(from), text(at))).collect();
    let mount = move || {
        for (from, at) in &mounts {
            let (kind, flags, more) = (std::ptr::null(), libc::MS_BIND, std::ptr::null());
            // SAFETY: two strings that end in NUL; a bind mount has no kind and takes nothing more.
            if unsafe { libc::mount(from.as_ptr(), at.as_ptr(), kind, flags, more) } != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: system calls alone, on strings that were made before.
    unsafe { in_namespaces(setup, mount) }
}

#[test]
fn bind_mounts_are_not_entered_and_trap_nothing() {
    if !namespaces_allowed() {
        return skip("no user namespaces here");
    }
    let mut world = World::without_service();
    for name in ["real/deep", "loop", "twin", "beside"] {
        fs::create_dir_all(world.path(name)).unwrap();
    }
    let (data, outside, real) = (world.data.clone(), world.outside.clone(), world.path("real"));
    let at = ["loop", "twin", "beside"].map(|name| world.path(name));
    world.launch(|setup| with_bind_mounts(recursive(setup), &[(&data, &at[0]), (&real, &at[1]), (&outside, &at[2])]));
    fs::write(outside.join("file"), "outside").unwrap();
    world.write("real/deep/file", "once");
    world.write("real/file", "once");
    world.wait_until("the files", |messages| messages.len() >= 2);
    assert_eq!(watches(&mut world), 3, "the root, real and real/deep");
    let messages = world.finish();
    assert_each_once(&data, &messages, &[("real/deep/file", "IN_CREATE"), ("real/file", "IN_CREATE")]);
}

#[test]
fn excluded_directories_have_no_watch_and_renames_bring_them_in_and_others_out() {
    let mut world = World::without_service();
    for name in ["demo/sub", "album/demo"] {
        fs::create_dir_all(world.path(name)).unwrap();
    }
    world.launch(|setup| recursive(setup).args(&["--include", "*.flac", "--exclude", "demo/"]));
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

fn namespaces_allowed() -> bool {
    Command::new("unshare").args(["-Ur", "true"]).status().is_ok_and(|status| status.success())
}

#[test]
fn at_the_limit_of_watches_those_of_directories_moved_out_make_room() {
    if !namespaces_allowed() {
        return skip("no user namespaces here");
    }
    let mut world = World::without_service();
    fs::create_dir_all(world.path("old/2/3")).unwrap();
    world.launch(|setup| with_so_many_watches(recursive(setup), 4));
    world.service().signal(Signal::STOP);
    // Both are heard of in one go, so that there is no time to end the old watches before the new are due.
    fs::rename(world.path("old"), world.outside.join("old")).unwrap();
    fs::create_dir_all(world.path("new/2/3")).unwrap();
    world.service().signal(Signal::CONT);
    world.pass_sentinel();
    world.write("new/2/3/file", "file");
    world.wait_for_one("new/2/3/file");
    wait_for_watches(&mut world, 4);
    let log = world.service().stderr();
    assert_no_warning(&log);
}

#[test]
fn beyond_the_limit_of_watches_a_warning_comes_and_nothing_is_lost() {
    if !namespaces_allowed() {
        return skip("no user namespaces here");
    }
    let mut world = World::without_service();
    fs::create_dir_all(world.path("1/2/3/4/5")).unwrap();
    fs::create_dir(world.path("room")).unwrap();
    world.launch(|setup| with_so_many_watches(recursive(setup), 4));
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
    world.wait_until_within(UNWATCHED_PATIENCE, "all of them", |messages| messages.len() >= files.len());
    // Of those that were watched one goes, and the last that was not gets its watch.
    for path in ["room", "1/2/3/4"] {
        fs::remove_dir_all(world.path(path)).unwrap();
    }
    let service = world.service();
    service.wait_log_within(UNWATCHED_PATIENCE, "that the limit is no more felt", |line| {
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

/// A small generator of our own: the same deeds each time.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % sides
    }
}

/// Every directory below, the top included.
fn directories(top: &Path) -> Vec<PathBuf> {
    let mut found = vec![top.to_owned()];
    let mut at = 0;
    while at < found.len() {
        let entries = fs::read_dir(&found[at]).unwrap().map(|entry| entry.unwrap());
        let below: Vec<PathBuf> =
            entries.filter(|entry| entry.file_type().unwrap().is_dir()).map(|entry| entry.path()).collect();
        found.extend(below);
        at += 1;
    }
    found
}

/// Directories are made, filled, renamed, moved in and out, exchanged and removed; then all rests. What is there has its
/// content as the last message of its path, and as many watches are held as there are directories.
fn any_deeds_end_with_every_file_told(seed: u64, deeds: usize, with_pauses: bool) {
    let mut world = start();
    let mut dice = Dice(seed);
    for deed in 0..deeds {
        let all = directories(&world.data);
        let inside = directories(&world.outside);
        let one = all[dice.roll(all.len())].clone();
        let other = all[dice.roll(all.len())].clone();
        let name = format!("d{}", dice.roll(4));
        // What cannot be done (a directory into itself, over one that is not empty) is not done.
        match dice.roll(10) {
            0 | 1 => drop(fs::create_dir_all(one.join(name).join("x"))),
            2..=5 => drop(fs::write(one.join(format!("f{}", dice.roll(3))), format!("{seed} {deed}"))),
            6 if one != world.data => drop(fs::rename(&one, other.join(name))),
            7 if one != world.data => drop(fs::rename(&one, world.outside.join(format!("o{deed}")))),
            7 | 8 if inside.len() > 1 => drop(fs::rename(&inside[1 + dice.roll(inside.len() - 1)], one.join(name))),
            8 if one != world.data && other != world.data => {
                let _ = rustix::fs::renameat_with(CWD, &one, CWD, &other, RenameFlags::EXCHANGE);
            }
            9 if one != world.data && one.components().count() > world.data.components().count() + 1 => {
                drop(fs::remove_dir_all(&one));
            }
            _ => {}
        }
        if with_pauses && dice.roll(20) == 0 {
            world.pass_sentinel();
        }
    }
    let mut expected: HashMap<String, String> = HashMap::new();
    let all = directories(&world.data);
    for directory in &all {
        for entry in fs::read_dir(directory).unwrap().map(|entry| entry.unwrap()) {
            if entry.file_type().unwrap().is_file() {
                let content = sha256(&fs::read(entry.path()).unwrap());
                expected.insert(entry.path().to_str().unwrap().to_owned(), content);
            }
        }
    }
    world.wait_until(&format!("seed {seed}: the last of each of {} files", expected.len()), |messages| {
        let mut last: HashMap<&str, &str> = HashMap::new();
        last.extend(messages.iter().map(|message| (message.path(), message.sha256())));
        expected.iter().all(|(path, content)| last.get(&**path) == Some(&&**content))
    });
    world.pass_sentinel();
    wait_for_watches(&mut world, all.len());
    world.finish();
}

#[test]
fn any_deeds_with_directories_end_with_every_file_told() {
    (1..=8).for_each(|seed| any_deeds_end_with_every_file_told(seed, 600, true));
}

#[test]
fn deeds_faster_than_they_are_read_end_with_every_file_told() {
    (101..=108).for_each(|seed| any_deeds_end_with_every_file_told(seed, 600, false));
}

#[test]
fn an_overflow_in_a_tree_is_followed_by_a_look_over_of_all_of_it() {
    let queue: usize = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap().trim().parse().unwrap();
    if queue > 100_000 {
        return skip("fs.inotify.max_queued_events is too large to be filled");
    }
    let mut world = start();
    for name in ["kept", "renamed", "removed", "again"] {
        fs::create_dir_all(world.path(&format!("{name}/sub"))).unwrap();
        world.write(&format!("{name}/sub/file"), name);
    }
    world.wait_until("the files", |messages| messages.len() >= 4);
    // Neither published nor kept, but a close each; of two in turn, for the kernel joins what repeats.
    let noise = ["kept/noise", "kept/din"].map(|name| world.path(name));
    for fifo in &noise {
        rustix::fs::mknodat(CWD, fifo, FileType::Fifo, Mode::RWXU, 0).unwrap();
    }
    world.service().signal(Signal::STOP);
    for number in 0..queue + 500 {
        drop(File::options().read(true).write(true).open(&noise[number % 2]).unwrap());
    }
    fs::rename(world.path("renamed"), world.path("name")).unwrap();
    fs::remove_dir_all(world.path("removed")).unwrap();
    fs::remove_dir_all(world.path("again")).unwrap();
    fs::create_dir_all(world.path("again/sub")).unwrap();
    world.write("again/sub/file", "once more");
    fs::create_dir_all(world.path("new/sub")).unwrap();
    world.write("new/sub/file", "new");
    world.write("kept/sub/file", "rewritten");
    world.service().signal(Signal::CONT);
    world.service().wait_log("a WARN of the overflow", |line| line.contains("WARN") && line.contains("queue"));
    world.wait_until("what was missed", |messages| messages.len() >= 8);
    world.pass_sentinel();
    wait_for_watches(&mut world, 9);
    let data = world.data.clone();
    let messages = world.finish();
    let mut paths: Vec<&str> = by_path(&data, &messages[4..]).into_keys().collect();
    paths.sort_unstable();
    assert_eq!(paths, ["again/sub/file", "kept/sub/file", "name/sub/file", "new/sub/file"]);
    assert_eq!(messages.len(), 8, "{}", list(&messages));
}
