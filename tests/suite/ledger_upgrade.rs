//! A ledger that an earlier version has written is upgraded, and repeats nothing.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, params};
use xxhash_rust::xxh3::Xxh3;

use crate::support::files::{sha256, xxh128};
use crate::support::ledger::{SMALL, names_and_events, one_run, rows, with_ledger, world};
use crate::support::skip;
use crate::support::volume::SmallDisk;
use crate::support::world::World;

/// Made by the last build that wrote this form, of eight files.
const FORM_1: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/ledger-form-1.sqlite");

/// The file stat in a row of such a ledger.
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

    /// The message id as messages carried it.
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

/// Checks the formula above by the fixture's rows, which that build has written, and changes each to that of another
/// file.
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

/// Makes eight files and a ledger of the first form with their rows.
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
        let (messages, ended) = one_run(&mut world, with_ledger(&state));
        assert_eq!(names_and_events(&messages), [], "{}", ended.stderr);
        let holds = format!("the ledger holds {} of ", 8 + sentinels);
        assert!(ended.stderr.contains(&holds), "{}", ended.stderr);
        let held = rows(&state);
        files.iter().for_each(|path| assert!(held.iter().any(|row| row == path.to_str().unwrap()), "{held:?}"));
        fs::remove_file(state.join("ledger.complete")).unwrap(); // so that each row is checked by its whole version
    }
    world.write("file-3", "something else");
    let (messages, _) = one_run(&mut world, with_ledger(&state));
    assert_eq!(names_and_events(&messages), [("file-3".to_owned(), "IN_CLOSE_WRITE".to_owned())]);
}

#[test]
fn a_ledger_of_the_first_form_on_a_full_disk_costs_repeats_alone() {
    let (mut world, state) = world();
    let Some(disk) = SmallDisk::mount(&state, SMALL) else {
        return skip("a file system to fill cannot be mounted here");
    };
    with_first_form(&state, &world);
    disk.fill();
    world.launch(with_ledger(&state));
    world
        .service()
        .wait_log("a WARN that it cannot be opened", |line| line.contains("WARN") && line.contains("cannot be opened"));
    world.wait_until("all eight", |messages| messages.len() >= 8);
    world.stop_service();
    disk.free();
    one_run(&mut world, with_ledger(&state));
    let (messages, ended) = one_run(&mut world, with_ledger(&state));
    assert_eq!(names_and_events(&messages), [], "{}", ended.stderr);
}
