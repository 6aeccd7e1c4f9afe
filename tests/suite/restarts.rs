//! A start publishes what has changed since the last one, as `--catch-up` has it, and nothing else.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use crate::support::is_root;
use crate::support::ledger::{names_and_events, one_run, published, rows, with_ledger, world};
use crate::support::setup::{NOBODY, Setup};
use crate::support::tree::assert_each_once;
use crate::support::world::{World, list};

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
    assert_eq!(published(&messages), [], "{}", ended.stderr);
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
        published(&world.consumer.drain())
    };
    assert_eq!(before, [], "files that were there before must be left alone");

    let (changed, _) = one_run(&mut world, with_ledger(&state));
    let expected = ["one", "two"].map(|name| (name.to_owned(), "IN_CREATE".to_owned()));
    assert_eq!(names_and_events(&changed), expected);

    world.write("two", "and more");
    let (all, _) = one_run(&mut world, |setup| with_ledger(&state)(setup).args(&["--catch-up", "all"]));
    let expected = [("one", "IN_CREATE"), ("two", "IN_CLOSE_WRITE")];
    assert_eq!(names_and_events(&all), expected.map(|(name, event)| (name.to_owned(), event.to_owned())));
    assert_eq!(published(&all)[0], published(&changed)[0], "the same version has the same id");
    assert_ne!(published(&all)[1].2, published(&changed)[1].2, "another version has another id");
}

#[test]
fn a_baseline_is_published_when_it_changes() {
    let (mut world, state) = world();
    for name in ["same", "changes", "changes later", "target"] {
        world.write(name, name);
    }
    symlink("target", world.path("link")).unwrap();
    symlink("nothing", world.path("dangling")).unwrap();
    let baseline = |setup: Setup| with_ledger(&state)(setup).args(&["--catch-up", "baseline"]);
    let (messages, ended) = one_run(&mut world, baseline);
    assert_eq!(names_and_events(&messages), [], "{}", ended.stderr);
    assert!(ended.stderr.contains("0 of 6 files are to be published"), "{}", ended.stderr);

    world.write("changes", "another");
    let pair = |name: &str, event: &str| (name.to_owned(), event.to_owned());
    let (messages, ended) = one_run(&mut world, with_ledger(&state));
    assert_eq!(names_and_events(&messages), [pair("changes", "IN_CLOSE_WRITE")], "{}", ended.stderr);
    world.write("changes later", "another");
    world.write("target", "another");
    world.write("new", "new");
    let (messages, ended) = one_run(&mut world, with_ledger(&state));
    let expected = [
        pair("changes later", "IN_CLOSE_WRITE"),
        pair("link", "IN_CLOSE_WRITE"),
        pair("new", "IN_CREATE"),
        pair("target", "IN_CLOSE_WRITE"),
    ];
    assert_eq!(names_and_events(&messages), expected, "{}", ended.stderr);
    // Another baseline keeps the rows that there are, and adds the missing ones.
    world.write("new", "changed before the baseline");
    let (messages, _) = one_run(&mut world, baseline);
    assert_eq!(names_and_events(&messages), []);
    let (messages, ended) = one_run(&mut world, with_ledger(&state));
    assert_eq!(names_and_events(&messages), [], "{}", ended.stderr);
}

#[test]
fn a_baseline_without_a_ledger_publishes_no_old_file() {
    let mut world = World::without_service();
    world.write("before", "content");
    world.launch(|setup| setup.args(&["--catch-up", "baseline"]));
    world.write("new", "content");
    assert_eq!(world.finish_with_one().name(), "new");
}

/// Changes the metadata of a file in each of the ways there are.
fn change_metadata(path: &Path, aside: &Path) {
    fs::set_permissions(path, Permissions::from_mode(0o600)).unwrap();
    fs::hard_link(path, aside).unwrap();
    if is_root() {
        std::os::unix::fs::chown(path, Some(NOBODY), None).unwrap();
    }
    // Refused by some file systems.
    let _ = rustix::fs::setxattr(path, "user.test", b"value", rustix::fs::XattrFlags::empty());
}

#[test]
fn metadata_alone_is_not_published_at_a_start() {
    let (mut world, state) = world();
    for name in ["one", "two"] {
        world.write(name, name);
    }
    symlink("one", world.path("link")).unwrap();
    let (messages, _) = one_run(&mut world, with_ledger(&state));
    assert_eq!(messages.len(), 4, "with the sentinel: {}", list(&messages));

    change_metadata(&world.path("one"), &world.outside.join("one"));
    let (messages, ended) = one_run(&mut world, with_ledger(&state));
    assert_eq!(names_and_events(&messages), [], "{}", ended.stderr);
    assert!(ended.stderr.contains(" 0 of "), "{}", ended.stderr);

    // The rows have the new ctime, and without `ledger.complete` each is compared by its whole version.
    fs::remove_file(state.join("ledger.complete")).unwrap();
    let (messages, ended) = one_run(&mut world, with_ledger(&state));
    assert_eq!(names_and_events(&messages), [], "{}", ended.stderr);

    // Another content with the same size and mtime: only ctime differs.
    let modified = fs::metadata(world.path("two")).unwrap().modified().unwrap();
    world.write("two", "TWO");
    File::options().append(true).open(world.path("two")).unwrap().set_modified(modified).unwrap();
    let (messages, _) = one_run(&mut world, with_ledger(&state));
    assert_eq!(names_and_events(&messages), [("two".to_owned(), "IN_CLOSE_WRITE".to_owned())]);
}

#[test]
fn metadata_alone_is_not_published_at_a_rescan() {
    let mut world = World::start_with(|setup| setup.args(&["--rescan-seconds", "1", "--log-level", "debug"]));
    world.write("file", "content");
    world.wait_for_one("file");
    change_metadata(&world.path("file"), &world.outside.join("file"));
    world
        .service()
        .wait_log("that it was read again", |line| line.contains("unchanged since") && line.contains("file"));
    world.finish_with_one();
}

#[test]
fn a_directory_renamed_back_while_stopped_is_published_again() {
    let state = tempfile::tempdir().unwrap();
    let with_ledger = |setup: Setup| setup.recursive().env("STATE_DIRECTORY", state.path());
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
    // The ledger has had rows of these versions at these paths before.
    fs::rename(world.path("two"), world.path("one")).unwrap();
    world.launch(with_ledger);
    world.wait_until("their old paths", |messages| messages.len() >= 7);
    let messages = world.finish();
    assert_each_once(&data, &messages[5..], &[("one/deep/file", "IN_CREATE"), ("one/file", "IN_CREATE")]);
    assert_eq!(rows(state.path()).len(), 4, "a sentinel's, too: {:?}", rows(state.path()));
}
