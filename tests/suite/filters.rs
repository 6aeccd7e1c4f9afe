//! Include and exclude globs, and names of partial files: what is left out is not read, published or forgotten.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use crate::support::files::chmod;
use crate::support::ledger::{names_and_events, one_run, rows, with_ledger, world};
use crate::support::message::Message;
use crate::support::setup::Setup;
use crate::support::world::{World, directories, list};
use crate::support::{is_root, skip};

/// Name and event of each message, in the order of the names.
fn published(messages: &[Message]) -> Vec<(&str, &str)> {
    let mut published: Vec<_> = messages.iter().map(|it| (it.name(), it.event())).collect();
    published.sort_unstable();
    published
}

/// The paths below `data` that a scan publishes.
#[track_caller]
fn scanned(data: &Path, change: impl FnOnce(Setup) -> Setup) -> Vec<String> {
    let scan = Setup::new(&["scan", "--output", "stdout"]).arg(data);
    let ended = change(scan).run().expect_code(0);
    let below = |message: &Message| Path::new(message.path()).strip_prefix(data).unwrap().to_str().unwrap().to_owned();
    let mut paths: Vec<String> = ended.messages().iter().map(below).collect();
    paths.sort();
    paths
}

fn write_all(data: &Path, paths: &[&str]) {
    for path in paths {
        fs::create_dir_all(data.join(path).parent().unwrap()).unwrap();
        fs::write(data.join(path), path).unwrap();
    }
}

#[test]
fn only_what_is_included_and_not_excluded_is_published() {
    let globs = ["--include=*.flac", "--include=zz-*", "--exclude=demo*", "--exclude=/b.flac"];
    let world = World::start_with(|setup| setup.args(&globs));
    for name in ["a.flac", "b.flac", "demo.flac", "a.txt", "flac"] {
        world.write(name, name);
    }
    symlink("a.flac", world.path("link")).unwrap();
    symlink("a.flac", world.path("link.flac")).unwrap();
    let messages = world.finish();
    assert_eq!(published(&messages), [("a.flac", "IN_CREATE"), ("link.flac", "IN_CREATE")], "{}", list(&messages));
}

#[test]
fn what_is_left_out_is_a_neighbor_all_the_same() {
    let mut world = World::start_with(|setup| setup.arg("--exclude=*.cue"));
    world.write("album.cue", "left out");
    world.write("album.flac.part", "left out");
    world.write("album.flac", "content");
    let message = world.wait_for_one("album.flac");
    let expected = ["album.cue", "album.flac.part"].map(|name| world.path(name).to_str().unwrap().to_owned());
    assert_eq!(message.neighbors(), expected);
    assert_eq!(world.finish().len(), 1);
}

#[test]
fn a_partial_name_is_published_when_it_gets_its_final_one() {
    let mut world = World::start();
    let partial =
        ["movie.mkv.part", "setup.zip.crdownload", ".notes.txt.swp", "old.txt~", ".album.flac.Zt04kQ", ".nfs01"];
    for name in partial {
        world.write(name, name);
    }
    world.pass_sentinel();
    fs::rename(world.path("movie.mkv.part"), world.path("movie.mkv")).unwrap();
    fs::rename(world.path(".album.flac.Zt04kQ"), world.path("album.flac")).unwrap();
    let message = world.wait_for_one("album.flac");
    assert_eq!(message.sha256(), crate::support::files::sha256(b".album.flac.Zt04kQ"));
    let messages = world.finish();
    assert_eq!(
        published(&messages),
        [("album.flac", "IN_MOVED_TO"), ("movie.mkv", "IN_MOVED_TO")],
        "{}",
        list(&messages)
    );
}

#[test]
fn partial_names_are_published_where_they_are_asked_for() {
    let mut world = World::start_with(|setup| setup.env("INGESTOR_IGNORE_PARTIAL", "false"));
    world.write("movie.mkv.part", "content");
    // Its event can be read before its writer's close(2) has returned. Then it is read again 10 ms later.
    world.wait_for_one("movie.mkv.part");
    assert_eq!(world.finish_with_one().name(), "movie.mkv.part");
}

/// rsync writes under a partial name first, also over an old file.
#[test]
fn each_file_that_rsync_writes_has_one_message() {
    if Command::new("rsync").arg("--version").output().is_err() {
        return skip("no rsync here");
    }
    let world = World::start();
    let rsync = |arguments: &[&str]| {
        let mut command = Command::new("rsync");
        command.args(arguments).arg(format!("{}/", world.outside.display())).arg(&world.data);
        assert!(command.status().expect("rsync").success());
    };
    let names: Vec<String> = (0..50).map(|number| format!("album {number:02}.flac")).collect();
    for name in &names {
        fs::write(world.outside.join(name), name).unwrap();
    }
    rsync(&["-a"]);
    for name in &names {
        fs::write(world.outside.join(name), format!("{name}, another take")).unwrap();
    }
    rsync(&["-a", "--delay-updates"]);
    let messages = world.finish();
    let mut expected: Vec<(&str, &str)> = names.iter().map(|name| (&**name, "IN_MOVED_TO")).collect();
    expected.extend(expected.clone());
    expected.sort_unstable();
    assert_eq!(published(&messages), expected, "{}", list(&messages));
}

#[test]
fn a_rename_to_a_name_that_is_left_out_forgets_the_old_one() {
    let (mut world, state) = world();
    world.launch(with_ledger(&state));
    world.write("file", "content");
    world.wait_for_one("file");
    fs::rename(world.path("file"), world.path("file.part")).unwrap();
    world.pass_sentinel();
    world.write("file", "new");
    world.wait_for("file", 2);
    fs::rename(world.path("file"), world.path("file.part")).unwrap();
    world.pass_sentinel();
    world.stop_service();
    let held = rows(&state);
    assert!(!held.iter().any(|path| path.contains("/data/file")), "{held:?}");
    let events: Vec<String> = world.messages_for("file").iter().map(|it| it.event().to_owned()).collect();
    assert_eq!(events, ["IN_CREATE", "IN_CREATE"], "the second was new");
    assert!(world.messages_for("file.part").is_empty());
}

#[test]
fn a_file_that_other_globs_admit_is_published_at_the_next_start() {
    let (mut world, state) = world();
    let excluding = |setup: Setup| with_ledger(&state)(setup).arg("--exclude=*.log");
    world.write("a.txt", "content");
    world.write("a.log", "content");
    let pair = |name: &str, event: &str| (name.to_owned(), event.to_owned());

    let (first, _) = one_run(&mut world, excluding);
    assert_eq!(names_and_events(&first), [pair("a.txt", "IN_CREATE")]);
    let (second, _) = one_run(&mut world, with_ledger(&state));
    assert_eq!(names_and_events(&second), [pair("a.log", "IN_CREATE")], "newly admitted");

    // What was published once is not forgotten while it is left out.
    let (third, _) = one_run(&mut world, excluding);
    assert_eq!(names_and_events(&third), []);
    let (fourth, _) = one_run(&mut world, with_ledger(&state));
    assert_eq!(names_and_events(&fourth), [], "known from before");

    world.write("a.log", "changed while it was left out");
    let (fifth, _) = one_run(&mut world, excluding);
    assert_eq!(names_and_events(&fifth), []);
    let (sixth, _) = one_run(&mut world, with_ledger(&state));
    assert_eq!(names_and_events(&sixth), [pair("a.log", "IN_CLOSE_WRITE")]);
}

#[test]
fn a_rescan_skips_what_is_left_out() {
    let mut world = World::without_service();
    for name in ["a.flac", "a.log", "b.part"] {
        world.write(name, name);
    }
    world.launch(|setup| setup.args(&["--catch-up=all", "--exclude=*.log", "--settle-ms=50"]));
    let line = world.wait_rescanned();
    assert!(line.contains(" 1 of 1 files are to be published"), "{line}");
    world.wait_for_one("a.flac");
    let messages = world.finish();
    assert_eq!(published(&messages), [("a.flac", "IN_CREATE")]);
}

#[test]
fn a_scan_takes_the_path_below_its_directory() {
    let (_root, data, _) = directories();
    write_all(
        &data,
        &["a.flac", "a.txt", "art/a.flac", "art/x/b.jpg", "x/art/c.jpg", "tmp/d.flac", "x/tmp/e.flac", "f.part"],
    );
    let all = scanned(&data, |setup| setup.arg("--recursive"));
    assert_eq!(all, ["a.flac", "a.txt", "art/a.flac", "art/x/b.jpg", "tmp/d.flac", "x/art/c.jpg", "x/tmp/e.flac"]);
    let some =
        scanned(&data, |setup| setup.args(&["--recursive", "--include=*.flac", "--include=/art/", "--exclude=tmp/"]));
    assert_eq!(some, ["a.flac", "art/a.flac", "art/x/b.jpg"]);
    let list = "art/*.flac, *.{jpg,txt}";
    assert_eq!(
        scanned(&data, |setup| setup.arg("--recursive").env("INGESTOR_INCLUDE", list)),
        ["a.txt", "art/a.flac", "art/x/b.jpg", "x/art/c.jpg"]
    );
    let comma = scanned(&data, |setup| setup.args(&["--include", "a.flac,a.txt"]));
    assert!(comma.is_empty(), "a flag is one glob: {comma:?}");
    let flag_wins = scanned(&data, |setup| setup.env("INGESTOR_INCLUDE", "*.txt").arg("--include=*.flac"));
    assert_eq!(flag_wins, ["a.flac"]);
    let unset = scanned(&data, |setup| setup.env("INGESTOR_INCLUDE", "").env("INGESTOR_EXCLUDE", ""));
    assert_eq!(unset, ["a.flac", "a.txt"]);
}

#[test]
fn what_is_left_out_is_not_read() {
    let (_root, data, _) = directories();
    write_all(&data, &["readable", "secret.log", "closed/file"]);
    chmod(&data.join("secret.log"), 0o000);
    chmod(&data.join("closed"), 0o000);
    let as_user = |setup: Setup| if is_root() { setup.by_nobody() } else { setup };
    let paths = scanned(&data, |setup| as_user(setup.args(&["--recursive", "--exclude=*.log", "--exclude=closed/"])));
    chmod(&data.join("closed"), 0o755);
    assert_eq!(paths, ["readable"]);
}
