//! Files and directories that the service may not read or enter yet are published once it may.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, chown};
use std::path::Path;
use std::process::Command;

use rustix::process::Signal;

use crate::support::control::{get, health, metrics, wait_for_metrics};
use crate::support::files::{chmod, give_name, nameless};
use crate::support::ledger::{kill, rows, with_ledger, world_of_nobody};
use crate::support::setup::{NOBODY, Setup};
use crate::support::wait::retry;
use crate::support::world::{World, list};
use crate::support::{is_root, skip};

const PERMISSION: &str = "apollonia_failures_total{cause=\"permission\"}";

/// Tries after the first refusal, the last after a second and a half.
const TRIES: usize = 5;

/// Starts the service as a user without rights; the test writes as root.
#[track_caller]
fn start(change: impl FnOnce(Setup) -> Setup) -> Option<World> {
    if !is_root() {
        skip("another user's rights need root");
        return None;
    }
    Some(World::start_with(|setup| change(setup).by_nobody()))
}

fn write_as(path: &Path, mode: u32, content: &str) {
    let mut file = File::options().create_new(true).write(true).mode(mode).open(path).unwrap();
    file.write_all(content.as_bytes()).unwrap();
}

/// Runs a line of shell with `$data` and `$outside`.
#[track_caller]
fn shell(world: &World, line: &str) {
    let mut command = Command::new("sh");
    command.args(["-ec", line]).env("data", &world.data).env("outside", &world.outside);
    assert!(command.status().expect("sh").success(), "{line}");
}

#[test]
fn trees_copied_with_closed_rights_are_published_once_open() {
    let ways = [
        "cp -a $outside/album $data/",
        "tar -C $outside -cf $outside/tar album; tar -C $data -xf $outside/tar",
        "umask 077; cp -r $outside/album $data/; chmod -R a+rX $data/album",
        "umask 077; cp -r $outside/album $data/; sleep 0.4; chmod -R a+rX $data/album",
        "umask 077; mkdir $data/album; chmod 755 $data/album; umask 022; cp -a $outside/album $data/",
    ];
    for way in ways {
        let Some(mut world) = start(|setup| setup.recursive()) else { return };
        shell(&world, "mkdir -p $outside/album/disc; for f in a b disc/c; do echo $f > $outside/album/$f; done");
        shell(&world, way);
        for (name, content) in [("album/a", "a\n"), ("album/b", "b\n"), ("album/disc/c", "disc/c\n")] {
            world.wait_for_content(name, content.as_bytes());
        }
        // The directories are watched from then on.
        shell(&world, "echo new > $data/album/disc/new");
        world.wait_for_content("album/disc/new", b"new\n");
        let socket = world.service().control_socket();
        wait_for_metrics(&socket, "no directory refused", |seen| seen["apollonia_unwatched_directories"] == 0.0);
        world.finish();
    }
}

/// The file is written by a name outside, which raises no event, and the rescan cannot enter its directory.
#[test]
fn a_directory_that_was_shut_during_a_rescan_is_rescanned_once_it_is_open() {
    let Some(mut world) = start(|setup| setup.recursive()) else { return };
    shell(&world, "mkdir -p $data/shut/below; echo before > $data/shut/below/file; ln $data/shut/below/file $outside/");
    world.wait_for_content("shut/below/file", b"before\n");
    shell(&world, "chmod 0 $data/shut; echo written meanwhile > $outside/file");
    world.service().signal(Signal::HUP);
    let named = format!("{:?} cannot be entered", world.path("shut"));
    world.service().wait_log("the refusal", |line| line.contains(&named));
    chmod(&world.path("shut"), 0o755);
    world.wait_for_content("shut/below/file", b"written meanwhile\n");
    world.finish();
}

/// Each try looks at the file as at a new one: it settles, because no lease of another user's file can be had.
#[test]
fn a_file_that_stays_closed_is_warned_of_and_counted_once() {
    let settling = |setup: Setup| setup.args(&["--settle-ms", "1"]).env("LOG_LEVEL", "DEBUG");
    let Some(mut world) = start(settling) else { return };
    write_as(&world.path("closed"), 0o600, "closed");
    let named = format!("{:?}", world.path("closed"));
    let of_it = |line: &&str| line.contains(&named) && line.contains("Permission denied");
    retry("the tries", || {
        let log = world.service().stderr();
        if log.lines().filter(of_it).count() > TRIES { Ok(()) } else { Err(log) }
    });
    let log = world.service().stderr();
    assert_eq!(log.lines().filter(of_it).filter(|line| line.contains("WARN")).count(), 1, "{log}");
    let seen = metrics(&world.service().control_socket());
    assert_eq!((seen[PERMISSION], seen["apollonia_refused_files"]), (1.0, 1.0));
    chmod(&world.path("closed"), 0o644);
    world.wait_for_one("closed");
    world.finish();
}

#[test]
fn a_file_whose_rights_come_after_its_event_is_published_then() {
    let Some(mut world) = start(|setup| setup) else { return };
    write_as(&world.path("closed"), 0o600, "closed");
    write_as(&world.outside.join("renamed"), 0o600, "renamed");
    fs::rename(world.outside.join("renamed"), world.path("renamed")).unwrap();
    write_as(&world.path("owned"), 0o600, "owned");
    for name in ["closed", "renamed", "owned"] {
        let named = format!("{:?}", world.path(name));
        world.service().wait_log("the refusal", |line| line.contains(&named) && line.contains("Permission denied"));
    }
    let socket = world.service().control_socket();
    wait_for_metrics(&socket, "three refused files", |seen| seen["apollonia_refused_files"] == 3.0);
    assert_eq!(metrics(&socket)[PERMISSION], 3.0, "each counts once");
    let (status, body) = health(&socket);
    let summary = body["summary"].as_str().unwrap();
    assert!(status == 200 && summary.contains("3 files cannot be read") && summary.contains("Permission"), "{summary}");
    assert_eq!(get(&socket, "/ready").0, 200, "other files can be delivered");
    chmod(&world.path("closed"), 0o644);
    chmod(&world.path("renamed"), 0o644);
    chown(world.path("owned"), Some(NOBODY), None).unwrap();
    let events = [("closed", "IN_CREATE"), ("renamed", "IN_MOVED_TO"), ("owned", "IN_CREATE")];
    for (name, event) in events {
        assert_eq!(world.wait_for_one(name).event(), event, "{name}");
    }
    wait_for_metrics(&socket, "no refused file", |seen| seen["apollonia_refused_files"] == 0.0);
    let messages = world.finish();
    assert_eq!(messages.len(), 3, "{}", list(&messages));
}

#[test]
fn files_made_in_a_shut_directory_are_published_once_it_is_open() {
    for (recursive, mode) in [(false, 0o700), (true, 0o700), (true, 0o744), (true, 0o711)] {
        let Some(mut world) = start(|setup| if recursive { setup.recursive() } else { setup }) else { return };
        let (below, directory) = if recursive { ("sub/", world.path("sub")) } else { ("", world.data.clone()) };
        if recursive {
            fs::create_dir(&directory).unwrap();
            world.write("sub/before", "before");
            world.wait_for_one("sub/before");
        }
        chmod(&directory, mode);
        world.write(&format!("{below}during"), "during");
        if mode != 0o711 {
            world.service().wait_log("the refusal", |line| line.contains("Permission denied"));
        }
        chmod(&directory, 0o755);
        world.wait_for_content(&format!("{below}during"), b"during");
        world.write(&format!("{below}after"), "after");
        world.wait_for_content(&format!("{below}after"), b"after");
        world.finish();
    }
}

/// The directory is shut in each of the ways there are.
#[test]
fn a_directory_shut_at_the_start_is_published_once_it_is_open() {
    for mode in [0o000, 0o700, 0o744, 0o711] {
        if !is_root() {
            return skip("another user's rights need root");
        }
        let mut world = World::without_service();
        fs::create_dir_all(world.path("sub/deep")).unwrap();
        world.write("sub/file", "file");
        world.write("sub/deep/file", "deep");
        chmod(&world.path("sub"), mode);
        world.launch(|setup| setup.args(&["--recursive", "--catch-up", "all"]).by_nobody());
        world.write("top", "top");
        world.wait_for_one("top");
        assert!(world.messages_for("sub/file").is_empty() || mode == 0o711, "published from a shut directory");
        chmod(&world.path("sub"), 0o755);
        world.wait_for_content("sub/file", b"file");
        world.wait_for_content("sub/deep/file", b"deep");
        world.finish();
    }
}

#[test]
fn a_rescan_and_a_restart_keep_the_rows_of_a_shut_directory() {
    if !is_root() {
        return skip("another user's rights need root");
    }
    let (mut world, state) = world_of_nobody();
    fs::create_dir_all(world.path("sub/deep")).unwrap();
    world.write("sub/file", "file");
    world.write("sub/deep/file", "deep");
    let run = || {
        let ledger = with_ledger(&state);
        move |setup: Setup| ledger(setup).args(&["--recursive", "--rescan-seconds", "1"]).by_nobody()
    };
    let kept = |state: &Path| rows(state).iter().filter(|path| path.contains("/sub/")).count();
    world.launch(run());
    world.wait_until("both", |messages| messages.len() == 2);
    for mode in [0o700, 0o744] {
        chmod(&world.path("sub"), mode);
        let socket = world.service().control_socket();
        let rescans = "apollonia_rescans_total{cause=\"timer\"}";
        let before = metrics(&socket)[rescans];
        wait_for_metrics(&socket, "two rescans", |seen| seen[rescans] >= before + 2.0);
        world.stop_service();
        assert_eq!(kept(&state), 2, "after a rescan, mode {mode:o}");
        world.launch(run());
        world.pass_sentinel();
        world.stop_service();
        assert_eq!(kept(&state), 2, "after a restart, mode {mode:o}");
        chmod(&world.path("sub"), 0o755);
        world.launch(run());
    }
    world.pass_sentinel();
    let count = world.messages_for("file").len();
    assert_eq!(count, 2, "{}", world.dump());
    world.finish();
}

#[test]
fn a_data_directory_shut_for_a_while_does_not_end_the_service() {
    if !is_root() {
        return skip("another user's rights need root");
    }
    let mut world = World::without_service();
    world.launch(|setup| setup.args(&["--rescan-seconds", "1"]).by_nobody());
    let socket = world.service().control_socket();
    assert_eq!(get(&socket, "/ready").0, 200);
    chmod(&world.data, 0o700);
    world.service().wait_log("the refusal", |line| line.contains("WARN") && line.contains("Permission denied"));
    wait_for_metrics(&socket, "that it is not ready", |_| get(&socket, "/ready").0 == 503);
    let (_, _, body) = get(&socket, "/ready");
    assert!(body.contains("Permission denied") && body.contains(world.data.to_str().unwrap()), "{body}");
    assert_eq!(health(&socket).0, 200, "a restart would repair nothing");
    world.write("during", "during");
    chmod(&world.data, 0o777);
    world.wait_for_content("during", b"during");
    wait_for_metrics(&socket, "readiness", |_| get(&socket, "/ready").0 == 200);
    world.finish();
}

#[test]
fn a_file_deleted_and_put_back_at_once_is_not_published_twice() {
    let mut world = World::start();
    for number in 0..300 {
        let name = format!("file-{number}");
        world.write(&name, format!("{number}"));
        fs::rename(world.path(&name), world.path("t")).unwrap();
        fs::rename(world.path("t"), world.path(&name)).unwrap();
        let name = format!("again-{number}");
        world.write(&name, "first");
        fs::remove_file(world.path(&name)).unwrap();
        world.write(&name, format!("second {number}"));
    }
    for number in 0..300 {
        world.wait_for_content(&format!("file-{number}"), format!("{number}").as_bytes());
        world.wait_for_content(&format!("again-{number}"), format!("second {number}").as_bytes());
    }
    let messages = world.finish();
    let ids: BTreeSet<&str> = messages.iter().map(|message| message.message_id()).collect();
    assert_eq!(ids.len(), messages.len(), "a version was published twice");
}

/// There is no lease to show the writer, because the file is another user's.
#[test]
fn a_file_linked_while_it_is_open_is_read_again() {
    let Some(mut world) = start(|setup| setup.args(&["--settle-ms", "100"])) else { return };
    let mut file = nameless(&world.data);
    file.set_permissions(PermissionsExt::from_mode(0o644)).unwrap();
    file.write_all(b"first half ").unwrap();
    give_name(&file, &world.path("linked"));
    world.wait_for_content("linked", b"first half ");
    file.write_all(b"second half").unwrap();
    drop(file);
    world.wait_for_content("linked", b"first half second half");
    world.finish();
}

#[test]
fn with_quiet_ms_a_writer_that_reopens_the_file_is_waited_for() {
    let mut world = World::start_with(|setup| setup.args(&["--quiet-ms", "2000"]));
    let piece = |text: &str| {
        let mut file = File::options().create(true).append(true).open(world.path("download")).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    };
    ["one ", "two ", "three"].iter().for_each(|text| piece(text));
    world.wait_for_content("download", b"one two three");
    let messages = world.finish();
    assert_eq!(messages.len(), 1, "{}", list(&messages));
}

#[test]
fn a_kill_while_a_file_is_refused_loses_nothing() {
    if !is_root() {
        return skip("another user's rights need root");
    }
    let (mut world, state) = world_of_nobody();
    let run = || {
        let ledger = with_ledger(&state);
        move |setup: Setup| ledger(setup).by_nobody()
    };
    world.launch(run());
    write_as(&world.path("shut"), 0o600, "shut");
    world.service().wait_log("the refusal", |line| line.contains("Permission denied"));
    kill(&mut world);
    world.launch(run());
    chmod(&world.path("shut"), 0o644);
    world.wait_for_content("shut", b"shut");
    world.finish();
}
