//! `verify`: the disk against the ledger.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::support::control::wait_for_metrics;
use crate::support::files::{chmod, sha256};
use crate::support::ledger::{with_ledger, world, world_of_nobody};
use crate::support::setup::Setup;
use crate::support::volume::Volume;
use crate::support::world::World;
use crate::support::{is_root, skip};

/// `verify` of this directory, with this `--grace`.
fn verify_after(grace: &str, data: &Path, state: &Path) -> Setup {
    Setup::new(&["verify", "--recursive", "--grace", grace]).env("DATA_DIRECTORY", data).env("STATE_DIRECTORY", state)
}

/// `verify` of this directory, which judges young files, too.
fn verify(data: &Path, state: &Path) -> Setup {
    verify_after("0", data, state)
}

/// Each file of a directory with what a write would change.
fn files_of(directory: &Path) -> BTreeMap<PathBuf, (u64, u64, i64, i64)> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap());
    let stat = |file: fs::Metadata| (file.ino(), file.len(), file.mtime(), file.ctime_nsec());
    entries.map(|entry| (entry.path(), stat(entry.metadata().unwrap()))).collect()
}

/// Writes a file of each name, whose content is what [`content`] says. They are published by a service that has ended.
fn publish(world: &mut World, state: &Path, names: &[&str]) {
    world.launch(|setup| with_ledger(state)(setup).recursive());
    names.iter().for_each(|name| world.write(name, content(name)));
    wait_for_rows(world, names.len());
    world.stop_service();
}

fn content(name: &str) -> String {
    format!("content of {name}")
}

fn wait_for_rows(world: &mut World, count: usize) {
    wait_for_metrics(&world.service().control_socket(), "every row", |seen| {
        seen["apollonia_ledger_rows"] == count as f64 && seen["apollonia_ledger_waiting_rows"] == 0.0
    });
}

/// The objects that `--json` prints.
fn objects(printed: &str) -> Vec<Value> {
    printed.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn each_difference_is_named_and_nothing_is_changed() {
    let (mut world, state) = world();
    fs::create_dir_all(world.path("sub/deep")).unwrap();
    publish(&mut world, &state, &["same", "changed", "gone", "moved", "granted", "sub/deep/file"]);
    let data = &world.data;
    world.write("new", "new");
    world.write("changed", "another content");
    fs::remove_file(data.join("gone")).unwrap();
    fs::remove_dir_all(data.join("sub")).unwrap();
    fs::rename(data.join("moved"), data.join("moved-to")).unwrap();
    chmod(&data.join("granted"), 0o640);
    let before = files_of(&state);

    let ended = verify(data, &state).run().expect_code(1);
    let mut lines: Vec<&str> = ended.stdout.lines().collect();
    let totals = lines.pop().unwrap();
    lines.sort_unstable();
    let named = |kind: &str, name: &str| format!("{kind:<16} {:?}", data.join(name));
    let expected = [
        named("changed since", "changed"),
        named("gone", "gone"),
        named("gone", "moved"),
        named("gone", "sub/deep/file"),
        named("never confirmed", "moved-to"),
        named("never confirmed", "new"),
    ];
    assert_eq!(lines, expected, "{ended:?}");
    assert!(totals.starts_with("5 files"), "{totals}");
    assert!(totals.contains("2 as confirmed, 2 never confirmed, 1 changed since, 3 gone, 0 bit rot"), "{totals}");
    ended.assert_one_error("6 differences");

    let ended = verify(data, &state).args(&["--content", "--json"]).run().expect_code(1);
    let totals = objects(&ended.stdout).pop().unwrap();
    assert!(
        totals["kind"] == "totals" && totals["same"] == 2 && totals["bit_rot"] == 0 && totals["gone"] == 3,
        "{totals:#}"
    );

    // What has changed at this moment is the service's business.
    let ended = verify_after("3600", data, &state).run().expect_code(0);
    assert!(ended.stdout.contains("6 changed too lately to be judged"), "{ended:?}");
    assert_eq!(files_of(&state), before, "the state directory is as it was");
}

#[test]
fn a_content_that_the_disk_has_lost_is_bit_rot() {
    let (mut world, state) = world();
    let Some(mut volume) = Volume::mount(&world.outside.join("image"), &world.data, &[]) else {
        return skip("an ext4 cannot be mounted from a loop device here");
    };
    fs::remove_dir(world.path("lost+found")).unwrap();
    publish(&mut world, &state, &["same", "rotten"]);
    volume.rot(b"content of rotten", b"c0ntent of rotten");

    let ended = verify(&world.data, &state).run().expect_code(0);
    assert!(ended.stdout.contains("2 as confirmed"), "the version is the confirmed one: {ended:?}");
    let ended = verify(&world.data, &state).args(&["--content", "--json"]).run().expect_code(1);
    let said = objects(&ended.stdout);
    let [rotten, totals] = &said[..] else { panic!("{ended:?}") };
    assert!(rotten["kind"] == "bit_rot" && rotten["path"] == world.path("rotten").to_str().unwrap(), "{rotten:#}");
    let cause = rotten["cause"].as_str().unwrap();
    assert!(cause.contains(&sha256(b"content of rotten")) && cause.contains(&sha256(b"c0ntent of rotten")), "{cause}");
    assert!(totals["same"] == 1 && totals["bit_rot"] == 1 && totals["files"] == 2, "{totals:#}");
    ended.assert_one_error("1 difference between");
}

#[test]
fn a_directory_that_cannot_be_listed_is_a_difference() {
    if !is_root() {
        return skip("only root can shut a directory to another user");
    }
    let (mut world, state) = world_of_nobody();
    fs::create_dir(world.path("shut")).unwrap();
    world.launch(|setup| with_ledger(&state)(setup).recursive().by_nobody());
    world.write("file", "content");
    wait_for_rows(&mut world, 1);
    world.stop_service();
    assert!(verify(&world.data, &state).by_nobody().run().expect_code(0).stdout.contains("1 as confirmed"));
    chmod(&world.path("shut"), 0o700);
    let ended = verify(&world.data, &state).by_nobody().run().expect_code(1);
    ended.assert_one_error("1 difference between");
    assert!(ended.stderr.contains("shut") && ended.stdout.contains("1 as confirmed"), "{ended:?}");
}

#[test]
fn a_running_service_is_compared_and_not_disturbed() {
    let (mut world, state) = world();
    world.launch(with_ledger(&state));
    for number in 0..300 {
        world.write(&format!("file-{number}"), format!("content {number}"));
    }
    wait_for_rows(&mut world, 300);
    for more in [&[][..], &["--content"]] {
        let ended = verify(&world.data, &state).args(more).run().expect_code(0);
        assert!(ended.stdout.contains("300 files") && ended.stdout.contains("300 as confirmed"), "{ended:?}");
    }
    world.pass_sentinel();
    wait_for_rows(&mut world, 301);
    let ended = world.stop_service();
    assert!(!ended.stderr.contains("WARN"), "{}", ended.stderr);
}

/// As the service does, which publishes nothing of them.
#[test]
fn what_leads_out_of_the_data_directory_is_no_difference() {
    let (mut world, state) = world();
    fs::write(world.outside.join("file"), "elsewhere").unwrap();
    symlink(world.outside.join("file"), world.path("out")).unwrap();
    symlink("nothing", world.path("dangling")).unwrap();
    publish(&mut world, &state, &["file", "retargeted"]);
    symlink("file", world.path("inside")).unwrap();
    fs::remove_file(world.path("retargeted")).unwrap();
    symlink(world.outside.join("file"), world.path("retargeted")).unwrap();
    let ended = verify(&world.data, &state).run().expect_code(1);
    let lines: Vec<&str> = ended.stdout.lines().collect();
    let [never, totals] = lines[..] else { panic!("{ended:?}") };
    assert_eq!(never, format!("never confirmed  {:?}", world.path("inside")));
    assert!(
        totals.starts_with("2 files")
            && totals.ends_with("; 2 links that lead out of their data directory, which have no message"),
        "{totals}"
    );
    fs::remove_file(world.path("inside")).unwrap();
    for more in [&[][..], &["--content"]] {
        let ended = verify(&world.data, &state).arg("--json").args(more).run().expect_code(0);
        let totals = objects(&ended.stdout).pop().unwrap();
        assert!(totals["files"] == 1 && totals["same"] == 1 && totals["leads_out"] == 2, "{totals:#}");
    }
}

#[test]
fn a_directory_that_is_in_no_data_directory_is_refused() {
    let (mut world, state) = world();
    fs::create_dir(world.path("sub")).unwrap();
    publish(&mut world, &state, &["sub/file"]);
    for outside in [world.outside.as_path(), Path::new("/")] {
        let ended = verify(&world.data, &state).arg(outside).run().expect_code(2);
        ended.assert_one_line(&[&format!("{outside:?} is no data directory")]);
        assert!(
            ended.stderr.contains(&format!("{:?}", world.data)) && ended.stderr.contains("--data-dir"),
            "{ended:?}"
        );
    }
    for inside in [world.data.as_path(), &world.path("sub")] {
        assert!(verify(&world.data, &state).arg(inside).run().expect_code(0).stdout.contains("1 as confirmed"));
    }
}

#[test]
fn what_cannot_be_compared_is_one_line() {
    let (world, state) = world();
    let ended = Setup::new(&["verify"]).env("DATA_DIRECTORY", &world.data).run().expect_code(2);
    ended.assert_one_line(&["STATE_DIRECTORY", "no ledger"]);
    let ended = verify(&world.data, &state).run().expect_code(2);
    assert_eq!(ended.stderr.lines().count(), 1, "{ended:?}");
    assert!(ended.stderr.contains("there is no ledger in it") && !state.exists(), "{ended:?}");
    fs::create_dir(&state).unwrap();
    fs::write(state.join("ledger.sqlite"), "no database, but long enough to be taken for one").unwrap();
    let ended = verify(&world.data, &state).run().expect_code(2);
    assert_eq!(ended.stderr.lines().count(), 1, "{ended:?}");
    assert_eq!(fs::read_dir(&state).unwrap().count(), 1, "a damaged ledger is left as it is");
}
