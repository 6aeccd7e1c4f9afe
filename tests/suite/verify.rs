//! `verify`: the disk against the ledger.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::TempDir;

use crate::support::broker;
use crate::support::consumer::Consumer;
use crate::support::control::wait_for_metrics;
use crate::support::files::{Mapping, chmod, sha256};
use crate::support::ledger::{with_ledger, world};
use crate::support::setup::Setup;

/// `verify` of this directory, which judges young files, too.
fn verify(data: &Path, state: &Path) -> Setup {
    Setup::new(&["verify", "--grace", "0"]).env("DATA_DIRECTORY", data).env("STATE_DIRECTORY", state)
}

/// Each file of a directory with what a write would change.
fn files_of(directory: &Path) -> BTreeMap<PathBuf, (u64, u64, i64, i64)> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap());
    let stat = |file: fs::Metadata| (file.ino(), file.len(), file.mtime(), file.ctime_nsec());
    entries.map(|entry| (entry.path(), stat(entry.metadata().unwrap()))).collect()
}

/// A directory in memory, where a write through a mapping leaves the time stamps as they are, whose files were published.
fn published(names: &[&str]) -> (TempDir, PathBuf, PathBuf) {
    let root = tempfile::Builder::new().prefix("ingestor-suite-").tempdir_in("/dev/shm").unwrap();
    let real = root.path().canonicalize().unwrap();
    let (data, state) = (real.join("data"), real.join("state"));
    fs::create_dir(&data).unwrap();
    let url = broker::shared().vhost();
    let _consumer = Consumer::bind(&url);
    let service = Setup::watch(&data, &url).env("STATE_DIRECTORY", &state).spawn();
    service.wait_ready();
    names.iter().for_each(|name| fs::write(data.join(name), format!("content of {name}")).unwrap());
    wait_for_metrics(&service.control_socket(), "their rows", |seen| {
        seen["apollonia_ledger_rows"] == names.len() as f64 && seen["apollonia_ledger_waiting_rows"] == 0.0
    });
    service.stop();
    (root, data, state)
}

#[test]
fn each_difference_is_named_and_nothing_is_changed() {
    let (_root, data, state) = published(&["same", "changed", "gone", "rotten", "moved", "granted"]);
    fs::write(data.join("new"), "new").unwrap();
    fs::write(data.join("changed"), "another content").unwrap();
    fs::remove_file(data.join("gone")).unwrap();
    fs::rename(data.join("moved"), data.join("moved-to")).unwrap();
    chmod(&data.join("granted"), 0o640);
    let rotten = File::options().read(true).write(true).open(data.join("rotten")).unwrap();
    Mapping::of(&rotten, 17).write(b"c0ntent of rotten");
    drop(rotten);
    let before = files_of(&state);

    let ended = verify(&data, &state).run().expect_code(1);
    let mut lines: Vec<&str> = ended.stdout.lines().collect();
    let totals = lines.pop().unwrap();
    lines.sort_unstable();
    let named = |kind: &str, name: &str| format!("{kind:<16} {:?}", data.join(name));
    let mut expected = vec![
        named("changed since", "changed"),
        named("gone", "gone"),
        named("gone", "moved"),
        named("never confirmed", "moved-to"),
        named("never confirmed", "new"),
    ];
    expected.sort_unstable();
    assert_eq!(lines, expected, "{ended:?}");
    assert!(
        totals.contains("6 files") && totals.contains("3 as confirmed, 2 never confirmed, 1 changed since, 2 gone"),
        "{totals}"
    );
    ended.assert_one_error("5 differences");

    let ended = verify(&data, &state).args(&["--content", "--json"]).run().expect_code(1);
    let said: Vec<Value> = ended.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let rotten: Vec<_> = said.iter().filter(|it| it["kind"] == "bit_rot").collect();
    assert!(rotten.len() == 1 && rotten[0]["path"] == data.join("rotten").to_str().unwrap(), "{ended:?}");
    let cause = rotten[0]["cause"].as_str().unwrap();
    assert!(cause.contains(&sha256(b"content of rotten")) && cause.contains(&sha256(b"c0ntent of rotten")), "{cause}");
    let totals = said.last().unwrap();
    assert!(
        totals["kind"] == "totals" && totals["same"] == 2 && totals["bit_rot"] == 1 && totals["gone"] == 2,
        "{totals:#}"
    );

    // Those of this moment are the service's business.
    let ended = verify(&data, &state).args(&["--grace", "3600"]).run();
    assert!(ended.expect_code(0).stdout.contains("changed too lately to be judged"), "nothing is judged");
    assert_eq!(files_of(&state), before, "the state directory is as it was");
}

#[test]
fn a_running_service_is_compared_and_not_disturbed() {
    let (mut world, state) = world();
    world.launch(with_ledger(&state));
    for number in 0..300 {
        world.write(&format!("file-{number}"), format!("content {number}"));
    }
    let socket = world.service().control_socket();
    let written = |rows: f64| {
        wait_for_metrics(&socket, "every row", |seen| {
            seen["apollonia_ledger_rows"] == rows && seen["apollonia_ledger_waiting_rows"] == 0.0
        });
    };
    written(300.0);
    for more in [&[][..], &["--content"]] {
        let ended = verify(&world.data, &state).args(more).run().expect_code(0);
        assert!(ended.stdout.contains("300 files") && ended.stdout.contains("300 as confirmed"), "{ended:?}");
    }
    world.pass_sentinel();
    written(301.0);
    let part = verify(&world.data, &state).arg(&world.outside).run().expect_code(1);
    assert!(part.stdout.contains("never confirmed") && !part.stdout.contains("file-"), "another directory: {part:?}");
    let ended = world.stop_service();
    assert!(!ended.stderr.contains("WARN"), "{}", ended.stderr);
}

#[test]
fn what_cannot_be_compared_is_one_line() {
    let (world, state) = world();
    let ended = Setup::new(&["verify"]).env("DATA_DIRECTORY", &world.data).run().expect_code(2);
    ended.assert_one_line(&["STATE_DIRECTORY", "no ledger"]);
    let ended = verify(&world.data, &state).run();
    assert!(!ended.status.success() && ended.stderr.lines().count() == 1, "{ended:?}");
    assert!(ended.stderr.contains("there is no ledger in it") && !state.exists(), "{ended:?}");
    fs::create_dir(&state).unwrap();
    fs::write(state.join("ledger.sqlite"), "no database, but long enough to be taken for one").unwrap();
    let ended = verify(&world.data, &state).run();
    assert!(!ended.status.success() && ended.stderr.lines().count() == 1, "{ended:?}");
    assert_eq!(fs::read_dir(&state).unwrap().count(), 1, "a damaged ledger is left as it is");
}
