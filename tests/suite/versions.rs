//! Contract 4: what one version of a file is, from one start to the next, and what a ledger has to hold for that.

use std::collections::HashSet;
use std::fs::{self, File, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rusqlite::{Connection, params};
use xxhash_rust::xxh3::Xxh3;

use crate::consumer::Message;
use crate::files::{sha256, xxh128};
use crate::ledger::{Disk, kill, names_and_events, one_run, rows, with_ledger, world, world_of_nobody};
use crate::service::{NOBODY, Setup, binary, is_root, skip};
use crate::world::{World, directories, list};

/// Made by the last build that wrote this form, of eight files.
const FORM_1: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/ledger-form-1.sqlite");

/// What such a ledger holds of a file beside its path and its digests.
struct FirstForm {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, u32),
    changed: (i64, u32),
}

impl FirstForm {
    fn of(path: &Path) -> Self {
        let status = fs::metadata(path).unwrap();
        Self {
            device: status.dev(),
            inode: status.ino(),
            size: status.size(),
            modified: (status.mtime(), status.mtime_nsec() as u32),
            changed: (status.ctime(), status.ctime_nsec() as u32),
        }
    }

    /// As messages carried it.
    fn message_id(&self, path: &[u8], sha256: &[u8]) -> [u8; 16] {
        let mut hasher = Xxh3::new();
        hasher.update(path);
        hasher.update(&[0]);
        [self.device, self.inode, self.size].iter().for_each(|field| hasher.update(&field.to_le_bytes()));
        [self.modified.0, self.changed.0].iter().for_each(|field| hasher.update(&field.to_le_bytes()));
        [self.modified.1, self.changed.1].iter().for_each(|field| hasher.update(&field.to_le_bytes()));
        hasher.update(sha256);
        hasher.digest128().to_be_bytes()
    }
}

fn unhex(digits: &str) -> Vec<u8> {
    digits.as_bytes().chunks(2).map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

/// The fixture's rows were written by that build, which proves the formula above; then each becomes that of another file.
fn rewrite_first_form(ledger: &Path, files: &[PathBuf]) {
    let ledger = Connection::open(ledger).unwrap();
    let mut select = ledger.prepare("SELECT * FROM confirmed").unwrap();
    let row = |row: &rusqlite::Row<'_>| {
        let unsigned = |column| row.get::<_, i64>(column).map(i64::cast_unsigned);
        let written = FirstForm {
            device: unsigned(1)?,
            inode: unsigned(2)?,
            size: unsigned(3)?,
            modified: (row.get(4)?, row.get(5)?),
            changed: (row.get(6)?, row.get(7)?),
        };
        let (path, sha256): (Vec<u8>, Vec<u8>) = (row.get(0)?, row.get(8)?);
        assert_eq!(written.message_id(&path, &sha256).to_vec(), row.get::<_, Vec<u8>>(10)?);
        Ok(path)
    };
    let written: Vec<Vec<u8>> = select.query_map([], row).unwrap().map(Result::unwrap).collect();
    assert_eq!(written.len(), files.len());
    for (old, path) in written.iter().zip(files) {
        let (row, content) = (FirstForm::of(path), fs::read(path).unwrap());
        let (path, sha256) = (path.as_os_str().as_bytes(), unhex(&sha256(&content)));
        let id = row.message_id(path, &sha256);
        let changed = ledger.execute(
            "UPDATE confirmed SET path = ?2, device = ?3, inode = ?4, size = ?5, modified_seconds = ?6,
            modified_nanoseconds = ?7, changed_seconds = ?8, changed_nanoseconds = ?9, sha256 = ?10, xxh128 = ?11,
            message_id = ?12 WHERE path = ?1",
            params![
                old,
                path,
                row.device.cast_signed(),
                row.inode.cast_signed(),
                row.size.cast_signed(),
                row.modified.0,
                row.modified.1,
                row.changed.0,
                row.changed.1,
                sha256,
                unhex(&xxh128(&content)),
                id
            ],
        );
        assert_eq!(changed.unwrap(), 1);
    }
}

/// Eight files, and a ledger of the first form that holds them.
fn with_first_form(state: &Path, world: &World) -> Vec<PathBuf> {
    let files: Vec<PathBuf> = (0..8).map(|number| world.path(&format!("file-{number}"))).collect();
    files.iter().for_each(|path| fs::write(path, path.as_os_str().as_bytes()).unwrap());
    fs::create_dir_all(state).unwrap();
    fs::copy(FORM_1, state.join("ledger.sqlite")).unwrap();
    rewrite_first_form(&state.join("ledger.sqlite"), &files);
    files
}

#[test]
fn a_ledger_of_the_first_form_repeats_nothing() {
    let (mut world, state) = world();
    let files = with_first_form(&state, &world);
    for sentinels in 0..2 {
        let (told, ended) = one_run(&mut world, with_ledger(&state));
        assert_eq!(names_and_events(&told), [], "{}", ended.stderr);
        let holds = format!("the ledger holds {} of ", 8 + sentinels);
        assert!(ended.stderr.contains(&holds), "{}", ended.stderr);
        let held = rows(&state);
        files.iter().for_each(|path| assert!(held.iter().any(|row| row == path.to_str().unwrap()), "{held:?}"));
        fs::remove_file(state.join("ledger.complete")).unwrap(); // each row is checked by its whole version
    }
    world.write("file-3", "something else");
    let (told, _) = one_run(&mut world, with_ledger(&state));
    assert_eq!(names_and_events(&told), [("file-3".to_owned(), "IN_CLOSE_WRITE".to_owned())]);
}

#[test]
fn a_ledger_of_the_first_form_on_a_full_disk_costs_repeats_and_nothing_else() {
    let (mut world, state) = world();
    let Some(_disk) = Disk::mount(state.clone(), "512k") else {
        return skip("a file system to fill cannot be mounted here");
    };
    with_first_form(&state, &world);
    let filler = state.join("filler");
    drop(fs::write(&filler, vec![0; 1 << 20]));
    world.launch(with_ledger(&state));
    world
        .service()
        .wait_log("a WARN that it cannot be opened", |line| line.contains("WARN") && line.contains("cannot be opened"));
    world.wait_until("all eight", |messages| messages.len() >= 8);
    world.stop_service();
    fs::remove_file(&filler).unwrap();
    one_run(&mut world, with_ledger(&state));
    let (told, ended) = one_run(&mut world, with_ledger(&state));
    assert_eq!(names_and_events(&told), [], "{}", ended.stderr);
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
fn metadata_alone_gives_no_message_at_a_start() {
    let (mut world, state) = world();
    for name in ["one", "two"] {
        world.write(name, name);
    }
    symlink("one", world.path("link")).unwrap();
    let (told, _) = one_run(&mut world, with_ledger(&state));
    assert_eq!(told.len(), 4, "with the sentinel: {}", list(&told));

    change_metadata(&world.path("one"), &world.outside.join("one"));
    let (told, ended) = one_run(&mut world, with_ledger(&state));
    assert_eq!(names_and_events(&told), [], "{}", ended.stderr);
    assert!(ended.stderr.contains(" 0 of "), "{}", ended.stderr);

    // The rows have the new ctime: without the mark each counts by its whole version.
    fs::remove_file(state.join("ledger.complete")).unwrap();
    let (told, ended) = one_run(&mut world, with_ledger(&state));
    assert_eq!(names_and_events(&told), [], "{}", ended.stderr);

    // Another content that looks the same but for its ctime.
    let modified = fs::metadata(world.path("two")).unwrap().modified().unwrap();
    world.write("two", "TWO");
    File::options().append(true).open(world.path("two")).unwrap().set_modified(modified).unwrap();
    let (told, _) = one_run(&mut world, with_ledger(&state));
    assert_eq!(names_and_events(&told), [("two".to_owned(), "IN_CLOSE_WRITE".to_owned())]);
}

#[test]
fn metadata_alone_gives_no_message_at_a_rescan() {
    let mut world = World::start_with(|setup| setup.args(&["--rescan-seconds", "1", "--log-level", "debug"]));
    world.write("file", "content");
    world.wait_for_one("file");
    change_metadata(&world.path("file"), &world.outside.join("file"));
    world
        .service()
        .wait_log("that it was read again", |line| line.contains("unchanged since") && line.contains("file"));
    world.finish_with_one();
}

/// Renamed away, another told in its place, killed, renamed back: its row, which may lag, differs in ctime alone.
#[test]
fn a_file_renamed_back_after_a_kill_is_told_last() {
    let (mut world, state) = world();
    world.write("file", "first");
    world.launch(with_ledger(&state));
    world.wait_for_one("file");
    for turn in 0..3 {
        world.stop_service();
        world.launch(with_ledger(&state));
        world.service().wait_log("the look-over's end", |line| line.contains("was looked over"));
        fs::rename(world.path("file"), world.outside.join("first")).unwrap();
        world.write("file", format!("another {turn}"));
        world.wait_for_content("file", format!("another {turn}").as_bytes());
        kill(&mut world);
        fs::rename(world.outside.join("first"), world.path("file")).unwrap();
        world.launch(with_ledger(&state));
        world.wait_for_content("file", b"first");
    }
}

/// An ext4 of its own on a loop device, gone with the test.
struct Volume {
    image: PathBuf,
    at: PathBuf,
    /// A loop device of its own for each time that it was mounted: none is given back before the end.
    devices: Vec<String>,
}

impl Volume {
    fn make(image: PathBuf, at: &Path, options: &[&str]) -> Option<Self> {
        File::create(&image).unwrap().set_len(64 << 20).unwrap();
        let made = Command::new("mkfs.ext4").args(["-q", "-F"]).args(options).arg(&image).output();
        let mut volume = Self { image, at: at.to_owned(), devices: Vec::new() };
        (made.is_ok_and(|made| made.status.success()) && volume.mount()).then_some(volume)
    }

    fn mount(&mut self) -> bool {
        let said = |command: &mut Command| command.output().ok().filter(|output| output.status.success());
        let Some(attached) = said(Command::new("losetup").args(["--find", "--show"]).arg(&self.image)) else {
            return false;
        };
        let device = String::from_utf8(attached.stdout).unwrap().trim().to_owned();
        self.devices.push(device.clone());
        said(Command::new("mount").arg(device).arg(&self.at)).is_some()
    }

    fn unmount(&self) {
        let unmounted = Command::new("umount").arg(&self.at).status();
        assert!(unmounted.is_ok_and(|status| status.success()));
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.at).output();
        for device in &self.devices {
            let _ = Command::new("losetup").arg("--detach").arg(device).output();
        }
    }
}

/// A start, all that it tells, and its end; for a data directory that nothing can be linked into from beside it.
#[track_caller]
fn run_through(world: &mut World, change: impl FnOnce(Setup) -> Setup) -> Vec<Message> {
    let before = world.consumer.drain().len();
    world.launch(change);
    world.service().wait_log("the look-over's end", |line| line.contains("was looked over"));
    // A link has to settle like all that the look-over has found, and stands behind them.
    let (beside, name) = (world.path("unwatched"), format!("zz-sentinel-linked-{before}"));
    fs::create_dir_all(&beside).unwrap();
    fs::write(beside.join(&name), &name).unwrap();
    fs::hard_link(beside.join(&name), world.path(&name)).unwrap();
    world.wait_for(&name, 1);
    world.stop_service();
    world.consumer.drain().split_off(before)
}

#[test]
fn a_volume_mounted_under_another_device_number_repeats_nothing() {
    let (mut world, state) = world();
    let Some(mut volume) = Volume::make(world.outside.join("image"), &world.data, &[]) else {
        return skip("an ext4 cannot be mounted from a loop device here");
    };
    for name in ["one", "two"] {
        world.write(name, name);
    }
    assert_eq!(names_and_events(&run_through(&mut world, with_ledger(&state))).len(), 2);
    let device = || fs::metadata(&world.data).unwrap().dev();
    let before = device();
    volume.unmount();
    assert!(volume.mount());
    assert_ne!(device(), before);
    assert_eq!(names_and_events(&run_through(&mut world, with_ledger(&state))), []);
}

/// Written twice within one of the file system's whole seconds, the second time by another name and with the same size.
#[test]
fn a_change_that_a_coarse_time_stamp_hides_is_told_at_the_next_start_and_at_a_rescan() {
    let (mut world, state) = world();
    // Inodes of 128 bytes have no room for nanoseconds (ext4(5)).
    let Some(_volume) = Volume::make(world.outside.join("image"), &world.data, &["-I", "128"]) else {
        return skip("an ext4 cannot be mounted from a loop device here");
    };
    fs::create_dir(world.path("unwatched")).unwrap();
    for kind in ["start", "rescan"] {
        let rescan = if kind == "rescan" { "1" } else { "0" };
        let setup = |setup| with_ledger(&state)(setup).args(&["--rescan-seconds", rescan]);
        world.launch(setup);
        // The clock decides whether both fall into one second: as often as it takes.
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
    // Read once more when the seconds are over, all of them are beyond doubt.
    let newest = fs::read_dir(&world.data).unwrap().map(|entry| entry.unwrap().metadata().unwrap().ctime()).max();
    while (SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64) < newest.unwrap() + 2 {
        thread::sleep(Duration::from_millis(10));
    }
    run_through(&mut world, with_ledger(&state));
    let ledger = Connection::open(state.join("ledger.sqlite")).unwrap();
    let doubted = "SELECT count(*) FROM confirmed WHERE flags <> 0 AND CAST(path AS TEXT) NOT LIKE '%sentinel%'";
    assert_eq!(ledger.query_row(doubted, [], |row| row.get::<_, i64>(0)).unwrap(), 0);
}

/// Its size and its times stay the same while it is read, within one second: only a writer that is kept out tells.
#[test]
fn a_file_rewritten_in_place_within_a_second_has_no_message_of_half_of_it() {
    const HALF: usize = 400_000;
    const REWRITES: usize = 400;
    let mut world = World::without_service();
    let Some(_volume) = Volume::make(world.outside.join("image"), &world.data, &["-I", "128"]) else {
        return skip("an ext4 cannot be mounted from a loop device here");
    };
    world.launch(|setup| setup);
    let contents = [b'a', b'b'].map(|byte| vec![byte; 2 * HALF]);
    world.write("file", &contents[0]);
    for turn in 1..=REWRITES {
        let content = &contents[turn % 2];
        // Opened for writing again and again, so that reading begins between two writers.
        let file = File::options().write(true).open(world.path("file")).unwrap();
        file.write_all_at(&content[..HALF], 0).unwrap();
        file.write_all_at(&content[HALF..], HALF as u64).unwrap();
    }
    world.write("zz-sentinel", "");
    world.wait_for_content("file", &contents[REWRITES % 2]);
    world.wait_for("zz-sentinel", 1);
    let whole = contents.map(|content| sha256(&content));
    let messages = world.consumer.drain();
    let torn = messages.iter().filter(|it| it.name() == "file" && !whole.contains(&it.sha256().to_owned())).count();
    assert_eq!(torn, 0, "of {} messages", messages.len());
}

/// A crash loop gets on: what was confirmed is in the ledger soon.
#[test]
fn killed_in_its_first_moments_again_and_again_it_gets_through() {
    const FILES: usize = 1500;
    const A_TURN: usize = 150;
    let (mut world, state) = world();
    for number in 0..FILES {
        world.write(&format!("file-{number}"), format!("content {number}"));
    }
    let names = |messages: &[Message]| messages.iter().map(|it| it.name().to_owned()).collect::<HashSet<_>>().len();
    let mut told = Vec::new();
    for _ in 0..4 * FILES / A_TURN {
        let before = world.consumer.drain();
        if names(&before) == FILES {
            break;
        }
        world.launch(with_ledger(&state));
        world.wait_until("some more", |messages| messages.len() >= before.len() + A_TURN || names(messages) == FILES);
        kill(&mut world);
        told.push(names(&world.consumer.drain()));
    }
    assert_eq!(told.last(), Some(&FILES), "files told at the end of each turn: {told:?}");
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
    let (told, ended) = one_run(&mut world, baseline);
    assert_eq!(names_and_events(&told), [], "{}", ended.stderr);
    assert!(ended.stderr.contains("0 of 6 files are to be published"), "{}", ended.stderr);

    world.write("changes", "another");
    let pair = |name: &str, event: &str| (name.to_owned(), event.to_owned());
    let (told, ended) = one_run(&mut world, with_ledger(&state));
    assert_eq!(names_and_events(&told), [pair("changes", "IN_CLOSE_WRITE")], "{}", ended.stderr);
    world.write("changes later", "another");
    world.write("target", "another");
    world.write("new", "new");
    let (told, ended) = one_run(&mut world, with_ledger(&state));
    let expected = [
        pair("changes later", "IN_CLOSE_WRITE"),
        pair("link", "IN_CLOSE_WRITE"),
        pair("new", "IN_CREATE"),
        pair("target", "IN_CLOSE_WRITE"),
    ];
    assert_eq!(names_and_events(&told), expected, "{}", ended.stderr);
    // A baseline over it keeps what is known, and enters what is not.
    world.write("new", "changed before the baseline");
    let (told, _) = one_run(&mut world, baseline);
    assert_eq!(names_and_events(&told), []);
    let (told, ended) = one_run(&mut world, with_ledger(&state));
    assert_eq!(names_and_events(&told), [], "{}", ended.stderr);
}

#[test]
fn a_baseline_without_a_ledger_leaves_what_is_there() {
    let mut world = World::without_service();
    world.write("before", "content");
    world.launch(|setup| setup.args(&["--catch-up", "baseline"]));
    world.write("new", "content");
    assert_eq!(world.finish_with_one().name(), "new");
}

/// What a start leaves as it is counts as known, and what the ledger held of another file there must not come back.
#[test]
fn a_directory_swapped_before_a_start_without_catch_up_and_back_after_a_kill_has_its_file_told_last() {
    for catch_up in ["none", "baseline"] {
        let (mut world, state) = world();
        let recursive = |setup: Setup| with_ledger(&state)(setup).arg("--recursive");
        fs::create_dir(world.path("d")).unwrap();
        world.write("d/file", "first");
        world.launch(recursive);
        world.wait_for_content("d/file", b"first");
        world.stop_service();

        fs::rename(world.path("d"), world.path("away")).unwrap();
        fs::create_dir(world.path("d")).unwrap();
        world.write("d/file", "second");
        world.launch(|setup| recursive(setup).args(&["--catch-up", catch_up]));
        world.write("d/file", "rewritten");
        world.wait_for_content("d/file", b"rewritten");
        kill(&mut world);

        fs::rename(world.path("d"), world.path("other")).unwrap();
        fs::rename(world.path("away"), world.path("d")).unwrap();
        world.launch(recursive);
        world.wait_for_content("d/file", b"first");
    }
}

#[test]
fn a_start_that_leaves_out_a_directory_keeps_what_the_ledger_holds_of_it() {
    let (mut world, state) = world();
    fs::create_dir_all(world.path("sub/deep")).unwrap();
    fs::create_dir(world.path("gone")).unwrap();
    for name in ["file", "sub/file", "sub/deep/file", "gone/file"] {
        world.write(name, name);
    }
    let run = |world: &mut World, arguments: &[&str]| {
        let (told, ended) = one_run(world, |setup| with_ledger(&state)(setup).args(arguments));
        (names_and_events(&told).len(), ended.stderr)
    };
    let (told, said) = run(&mut world, &["--recursive"]);
    assert_eq!(told, 4, "{said}");
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
    let (told, said) = run(&mut world, &["--recursive"]);
    assert_eq!(told, 0, "{said}");
    assert_eq!(held("/gone/"), 0);
}

/// A directory that cannot be listed for a while has lost nothing.
#[test]
fn a_start_that_cannot_enter_a_directory_keeps_what_the_ledger_holds_of_it() {
    if !is_root() {
        return skip("only root can shut a directory to another user");
    }
    let (mut world, state) = world_of_nobody();
    fs::create_dir(world.path("shut")).unwrap();
    world.write("shut/file", "content");
    world.write("file", "content");
    let by_nobody = |setup: Setup| with_ledger(&state)(setup).arg("--recursive").by_nobody();
    let (told, _) = one_run(&mut world, by_nobody);
    assert_eq!(names_and_events(&told).len(), 2);
    let mode = |world: &World, mode| fs::set_permissions(world.path("shut"), Permissions::from_mode(mode)).unwrap();
    mode(&world, 0o700);
    let (told, _) = one_run(&mut world, by_nobody);
    assert_eq!(names_and_events(&told), []);
    mode(&world, 0o755);
    let (told, ended) = one_run(&mut world, by_nobody);
    assert_eq!(names_and_events(&told), [], "{}", ended.stderr);
}

#[test]
fn a_limit_of_a_files_size_is_a_full_disk_and_no_end() {
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
    assert_eq!(ids.len(), 402, "repeats have their id: {}", list(&repeats));
}

#[test]
fn a_scan_into_a_file_that_may_not_grow_ends_with_one_line() {
    let (_root, data, outside) = directories();
    for number in 0..400 {
        fs::write(data.join(format!("file-{number}")), "content").unwrap();
    }
    let script = format!("ulimit -f 16; exec {:?} scan {data:?} --output stdout >{:?}", binary(), outside.join("out"));
    let ended = Setup::of(Path::new("bash"), &["-c", &script]).run().expect_code(1);
    let errors: Vec<_> = ended.stderr.lines().filter(|line| line.contains("ERROR")).collect();
    assert_eq!(errors.len(), 1, "{}", ended.stderr);
    assert!(errors[0].contains("standard output") && errors[0].contains("ulimit -f"), "{}", errors[0]);
}
