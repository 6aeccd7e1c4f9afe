//! The ledger has a row for each published file: rows go with their files, and stay while a directory cannot be seen.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use crate::support::ledger::{names_and_events, one_run, rows, with_ledger, world, world_of_nobody};
use crate::support::setup::Setup;
use crate::support::tree::assert_each_once;
use crate::support::world::{World, list};
use crate::support::{is_root, skip};

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
fn a_start_that_leaves_out_a_directory_keeps_its_rows() {
    let (mut world, state) = world();
    fs::create_dir_all(world.path("sub/deep")).unwrap();
    fs::create_dir(world.path("gone")).unwrap();
    for name in ["file", "sub/file", "sub/deep/file", "gone/file"] {
        world.write(name, name);
    }
    let run = |world: &mut World, arguments: &[&str]| {
        let (messages, ended) = one_run(world, |setup| with_ledger(&state)(setup).args(arguments));
        (names_and_events(&messages).len(), ended.stderr)
    };
    let (count, log) = run(&mut world, &["--recursive"]);
    assert_eq!(count, 4, "{log}");
    let held = |directory: &str| rows(&state).iter().filter(|row| row.contains(directory)).count();
    fs::remove_dir_all(world.path("gone")).unwrap();
    let others: [&[&str]; 4] = [
        &["--recursive", "--exclude=sub/"],
        &["--recursive", "--exclude=/sub/**"],
        &[],
        &["--recursive", "--include=zz-*"],
    ];
    for arguments in others {
        assert_eq!(run(&mut world, arguments).0, 0);
        assert_eq!(held("/sub/"), 2, "{arguments:?}");
    }
    let (count, log) = run(&mut world, &["--recursive"]);
    assert_eq!(count, 0, "{log}");
    assert_eq!(held("/gone/"), 0);
}

#[test]
fn a_start_that_cannot_enter_a_directory_keeps_its_rows() {
    if !is_root() {
        return skip("only root can shut a directory to another user");
    }
    let (mut world, state) = world_of_nobody();
    fs::create_dir(world.path("shut")).unwrap();
    world.write("shut/file", "content");
    world.write("file", "content");
    let by_nobody = |setup: Setup| with_ledger(&state)(setup).recursive().by_nobody();
    let (messages, _) = one_run(&mut world, by_nobody);
    assert_eq!(names_and_events(&messages).len(), 2);
    let mode = |world: &World, mode| fs::set_permissions(world.path("shut"), Permissions::from_mode(mode)).unwrap();
    mode(&world, 0o700);
    let (messages, _) = one_run(&mut world, by_nobody);
    assert_eq!(names_and_events(&messages), []);
    mode(&world, 0o755);
    let (messages, ended) = one_run(&mut world, by_nobody);
    assert_eq!(names_and_events(&messages), [], "{}", ended.stderr);
}

#[test]
fn the_ledger_has_the_rows_of_the_whole_tree() {
    let state = tempfile::tempdir().unwrap();
    let with_ledger = |setup: Setup| setup.recursive().env("STATE_DIRECTORY", state.path());
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
fn a_start_without_recursive_keeps_the_rows_of_subdirectories() {
    let state = tempfile::tempdir().unwrap();
    let flat = |setup: Setup| setup.env("STATE_DIRECTORY", state.path());
    let mut world = World::start_with(|setup| flat(setup.recursive()));
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
    world.launch(|setup| flat(setup.recursive()));
    world.service().wait_log("what the ledger holds", |line| line.contains("holds 2 of 2 files"));
    let messages = world.finish();
    assert_eq!(messages.len(), 3, "{}", list(&messages));
}
