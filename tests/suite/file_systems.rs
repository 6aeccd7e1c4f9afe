//! Another device number repeats nothing, and time stamps of whole seconds hide no change.

use std::collections::HashSet;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rusqlite::Connection;

use crate::support::files::sha256;
use crate::support::ledger::{names_and_events, run_with_links_from, with_ledger, world};
use crate::support::message::Message;
use crate::support::setup::Setup;
use crate::support::skip;
use crate::support::volume::{Volume, WHOLE_SECONDS};
use crate::support::world::World;

/// One run, for a data directory on a file system of its own.
#[track_caller]
fn run(world: &mut World, change: impl FnOnce(Setup) -> Setup) -> Vec<Message> {
    let beside = world.path("unwatched");
    run_with_links_from(&beside, world, change).0
}

#[test]
fn a_volume_mounted_under_another_device_number_repeats_nothing() {
    let (mut world, state) = world();
    let Some(mut volume) = Volume::mount(&world.outside.join("image"), &world.data, &[]) else {
        return skip("an ext4 cannot be mounted from a loop device here");
    };
    for name in ["one", "two"] {
        world.write(name, name);
    }
    assert_eq!(names_and_events(&run(&mut world, with_ledger(&state))).len(), 2);
    let device = || fs::metadata(&world.data).unwrap().dev();
    let before = device();
    volume.remount();
    assert_ne!(device(), before);
    assert_eq!(names_and_events(&run(&mut world, with_ledger(&state))), []);
}

/// The file is written twice within one of the file system's whole seconds, the second time by another name and with
/// the same size.
#[test]
fn a_change_within_one_second_is_published_at_a_start_and_a_rescan() {
    let (mut world, state) = world();
    let Some(_volume) = Volume::mount(&world.outside.join("image"), &world.data, &WHOLE_SECONDS) else {
        return skip("an ext4 cannot be mounted from a loop device here");
    };
    fs::create_dir(world.path("unwatched")).unwrap();
    for kind in ["start", "rescan"] {
        let rescan = if kind == "rescan" { "1" } else { "0" };
        let setup = |setup| with_ledger(&state)(setup).args(&["--rescan-seconds", rescan]);
        world.launch(setup);
        // The clock decides whether both fall into one second, so the test tries as often as it takes.
        let name = (0..100).map(|turn| format!("{kind}-{turn}")).find(|name| {
            let stamps = |world: &World| {
                let status = fs::metadata(world.path(name)).unwrap();
                (status.mtime(), status.ctime(), status.ctime_nsec())
            };
            world.write(name, "first");
            fs::hard_link(world.path(name), world.path("unwatched").join(name)).unwrap();
            let before = stamps(&world);
            world.wait_for_content(name, b"first");
            if kind == "start" {
                world.stop_service();
            }
            fs::write(world.path("unwatched").join(name), "other").unwrap();
            let hidden = stamps(&world) == before && before.2 == 0;
            if kind == "start" {
                world.launch(setup);
            }
            world.wait_for_content(name, b"other");
            hidden
        });
        assert!(name.is_some(), "no two changes fell into one second");
        world.stop_service();
    }
    // Read once more when the seconds are over, no row is left to be checked again.
    let newest = fs::read_dir(&world.data).unwrap().map(|entry| entry.unwrap().metadata().unwrap().ctime()).max();
    while (SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64) < newest.unwrap() + 2 {
        thread::sleep(Duration::from_millis(10));
    }
    run(&mut world, with_ledger(&state));
    let ledger = Connection::open(state.join("ledger.sqlite")).unwrap();
    let stale = "SELECT count(*) FROM confirmed WHERE flags <> 0 AND CAST(path AS TEXT) NOT LIKE '%sentinel%'";
    assert_eq!(ledger.query_row(stale, [], |row| row.get::<_, i64>(0)).unwrap(), 0);
}

/// Its size and times stay the same while it is read within one second: only its content shows the change.
#[test]
fn a_file_rewritten_within_one_second_has_no_message_of_half_of_it() {
    const HALF: usize = 400_000;
    const REWRITES: u8 = 250;
    let mut world = World::without_service();
    let Some(_volume) = Volume::mount(&world.outside.join("image"), &world.data, &WHOLE_SECONDS) else {
        return skip("an ext4 cannot be mounted from a loop device here");
    };
    world.launch(|setup| setup);
    let content = |turn: u8| vec![turn; 2 * HALF];
    world.write("file", content(0));
    for turn in 1..=REWRITES {
        // Opened for writing again and again, so that reading begins between two writers.
        let file = File::options().write(true).open(world.path("file")).unwrap();
        file.write_all_at(&content(turn)[..HALF], 0).unwrap();
        file.write_all_at(&content(turn)[HALF..], HALF as u64).unwrap();
    }
    world.write("zz-sentinel", "");
    world.wait_for_content("file", &content(REWRITES));
    world.wait_for("zz-sentinel", 1);
    let whole: HashSet<String> = (0..=REWRITES).map(|turn| sha256(&content(turn))).collect();
    let messages = world.consumer.drain();
    let torn = messages.iter().filter(|it| it.name() == "file" && !whole.contains(it.sha256())).count();
    assert_eq!(torn, 0, "of {} messages", messages.len());
}
