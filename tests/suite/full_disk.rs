//! A full disk or a file size limit costs repeats after a restart, and no file.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::Path;

use crate::support::ledger::{SMALL, kill, one_run, published, with_ledger, world};
use crate::support::setup::{Setup, binary};
use crate::support::skip;
use crate::support::volume::SmallDisk;
use crate::support::wait::retry;
use crate::support::world::{directories, list};

const BEHIND: &str = "ledger.behind";

#[test]
fn a_full_disk_costs_repeats_after_a_restart_and_no_file() {
    let (mut world, state) = world();
    let Some(disk) = SmallDisk::mount(&state, SMALL) else {
        return skip("a file system to fill cannot be mounted here");
    };

    // Full before there is a ledger: it begins once there is room.
    disk.fill();
    world.launch(with_ledger(&state));
    world.write("first", "content");
    world.wait_for_one("first");
    world.service().wait_log("a WARN that the ledger cannot be written", |line| {
        line.contains("WARN") && line.contains("ledger") && line.contains("written")
    });
    disk.free();
    world.service().wait_log("the ledger's recovery", |line| line.contains("ledger is written again"));

    // Full while the service works.
    disk.fill();
    for number in 0..3000 {
        world.write(&format!("file-{number}"), format!("{number}"));
    }
    world.wait_until("every message", |messages| messages.len() >= 3001);
    kill(&mut world);
    disk.free();

    let (repeats, ended) = one_run(&mut world, with_ledger(&state));
    assert!(!ended.stderr.contains("damaged"), "{}", ended.stderr);
    let all: HashMap<_, _> =
        world.consumer.messages().iter().map(|it| (it.name().to_owned(), it.message_id().to_owned())).collect();
    assert_eq!(all.len(), 3002, "with the sentinel");
    for repeat in &repeats {
        assert_eq!(all[repeat.name()], repeat.message_id(), "{}", list(std::slice::from_ref(repeat)));
    }
}

#[test]
fn a_disk_without_an_inode_costs_repeats_and_no_file() {
    let (mut world, state) = world();
    let Some(disk) = SmallDisk::mount(&state, "size=1m,nr_inodes=32,mode=0777") else {
        return skip("a file system to fill cannot be mounted here");
    };

    // No database yet, and no room for one.
    disk.use_up_inodes();
    world.launch(with_ledger(&state));
    world.write("first", "content");
    world.wait_for_one("first");
    disk.free_inodes();
    world.service().wait_log("the ledger's recovery", |line| line.contains("ledger is written again"));
    retry("an unmarked ledger", || if state.join(BEHIND).exists() { Err(BEHIND.to_owned()) } else { Ok(()) });
    assert_eq!(world.stop_service().status.code(), Some(0));

    // A database that cannot be opened, and no room for a mark beside it. A name is an inode on tmpfs, too.
    fs::remove_file(state.join("ledger.complete")).unwrap();
    disk.use_up_inodes();
    world.launch(with_ledger(&state));
    world.write("second", "content");
    world.wait_for_one("second");
    assert!(world.service().stderr().contains("ledger_set_aside"), "{}", world.service().stderr());
    kill(&mut world);
    disk.free_inodes();

    let (repeats, _) = one_run(&mut world, with_ledger(&state));
    let repeated: Vec<_> = published(&repeats).into_iter().map(|(name, ..)| name).collect();
    assert_eq!(repeated, ["first", "second"]);
    let all = published(&world.consumer.messages());
    let ids: HashSet<_> = all.iter().map(|(name, _, id)| (name, id)).collect();
    assert_eq!(ids.len(), 2, "repeats have another id: {all:?}");
    let (repeats, _) = one_run(&mut world, with_ledger(&state));
    assert!(published(&repeats).is_empty(), "{}", list(&repeats));
}

#[test]
fn a_file_size_limit_is_a_full_disk_and_does_not_end_the_service() {
    let (mut world, state) = world();
    let limited = |setup: Setup| {
        let limit = || {
            rustix::process::setrlimit(
                rustix::process::Resource::Fsize,
                rustix::process::Rlimit { current: Some(16 << 10), maximum: Some(16 << 10) },
            )
            .map_err(Into::into)
        };
        // SAFETY: one system call, and no memory is allocated.
        unsafe { with_ledger(&state)(setup).before_exec(limit) }
    };
    world.launch(limited);
    for number in 0..400 {
        world.write(&format!("file-{number}"), format!("{number}"));
    }
    world.wait_until("every message", |messages| messages.len() >= 400);
    world.service().wait_log("a WARN with the limit", |line| {
        line.contains("WARN") && line.contains("ledger") && line.contains("16384 bytes") && line.contains("LimitFSIZE")
    });
    world.pass_sentinel();
    assert_eq!(world.stop_service().status.code(), Some(0));
    let (repeats, ended) = one_run(&mut world, with_ledger(&state));
    assert!(!ended.stderr.contains("damaged"), "{}", ended.stderr);
    let ids: HashSet<_> = world.consumer.messages().iter().map(|it| it.message_id().to_owned()).collect();
    assert_eq!(ids.len(), 402, "repeats have another id: {}", list(&repeats));
}

#[test]
fn a_scan_into_a_file_that_may_not_grow_ends_with_one_line() {
    let (_root, data, outside) = directories();
    for number in 0..400 {
        fs::write(data.join(format!("file-{number}")), "content").unwrap();
    }
    let script = format!("ulimit -f 16; exec {:?} scan {data:?} --output stdout >{:?}", binary(), outside.join("out"));
    let ended = Setup::of(Path::new("bash"), &["-c", &script]).run().expect_code(1);
    ended.assert_one_error("standard output");
    ended.assert_one_error("ulimit -f");
    assert!(!ended.stderr.contains("LimitFSIZE"), "a scan has no unit: {}", ended.stderr);
}
