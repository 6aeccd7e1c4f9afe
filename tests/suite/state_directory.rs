//! A state directory that cannot be used is refused by name, and a damaged ledger is set aside.

use std::fs;

use crate::support::files::chmod;
use crate::support::ledger::{kill, one_run, published, with_ledger, world};
use crate::support::setup::Setup;
use crate::support::{is_root, skip};

#[test]
fn a_damaged_ledger_is_set_aside_with_a_warning() {
    let (mut world, state) = world();
    world.write("file", "content");
    let (first, _) = one_run(&mut world, with_ledger(&state));
    let ledger = state.join("ledger.sqlite");
    let mut bytes = fs::read(&ledger).unwrap();
    // In a row's content, for which SQLite has no checksum.
    let content = bytes.windows(4).rposition(|window| window == b"file").unwrap();
    bytes[content] ^= 1;
    fs::write(&ledger, &bytes).unwrap();

    let (again, ended) = one_run(&mut world, with_ledger(&state));
    let warns = ended.warnings();
    assert_eq!(warns.len(), 1, "{}", ended.stderr);
    assert!(warns[0].contains("damaged") && warns[0].contains(state.to_str().unwrap()), "{}", warns[0]);
    assert_eq!(fs::read(state.join("ledger.sqlite.damaged")).unwrap(), bytes);
    assert_eq!(published(&again), published(&first), "the same version with the same id");

    let (third, ended) = one_run(&mut world, with_ledger(&state));
    assert_eq!(published(&third), [], "{}", ended.stderr);
}

#[test]
fn a_second_process_on_the_same_state_directory_is_refused() {
    let (mut world, state) = world();
    world.launch(with_ledger(&state));
    let second = with_ledger(&state)(Setup::watch(&world.data, &world.url)).run().expect_code(1);
    second.assert_one_error("another");
    second.assert_one_error(state.to_str().unwrap());
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
        // A start as root has made the files once, in a directory of the service's.
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
