//! Everything stops, or the disk is full, at each change that SQLite makes to a file: what is loaded afterwards.
//!
//! A history of three runs of a service is repeated by its seed. Before each write, truncation, sync, creation and
//! deletion the state directory is noted as a kill would leave it, and some outcomes of a power cut: each sector that was
//! not synced may be there or not. Each of these directories is then opened as the next start would.

mod disk;
mod history;
mod vfs;

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{fs, io};

use tempfile::TempDir;

use self::disk::{Fault, Files, Left, Recorder};
use self::history::{History, State};
use self::vfs::{Answer, Change, Observed, ask};
use super::Ledger;
use super::queue::{QUEUED_MAX, Shared};
use super::row::Confirmed;
use super::state_directory::{BEHIND, DAMAGED, FILE, mark_complete};
use super::store::{Fate, Store};
use super::tests::{confirm, crash, known, loaded, put};
use super::writer::Writer;

/// Histories of each test, unless this variable says another number.
const SEEDS: u64 = 3;
const SEEDS_VARIABLE: &str = "INGESTOR_LEDGER_SEEDS";

/// Outcomes of a power cut at each change.
const CUTS: usize = 2;

/// Asks the disk that stands before this thread's, if there is one, whether it has an inode for a mark.
pub(super) fn create(mark: &Path) -> io::Result<()> {
    match ask(mark, &Change::Create) {
        Answer::Made => Ok(()),
        Answer::Full | Answer::HalfFull => Err(io::ErrorKind::StorageFull.into()),
        Answer::Error => Err(io::Error::from_raw_os_error(libc::EIO)),
    }
}

fn seeds() -> u64 {
    std::env::var(SEEDS_VARIABLE).map_or(SEEDS, |seeds| seeds.parse().expect("a number of histories"))
}

/// A directory in memory where there is one, because SQLite syncs often.
fn directory() -> TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { TempDir::new_in(memory).unwrap() } else { TempDir::new().unwrap() }
}

/// The history of a seed on a disk, and the disk.
fn history(seed: u64, set: impl FnOnce(&mut Recorder)) -> (History, Rc<RefCell<Recorder>>) {
    let homes = directory();
    let first = homes.path().join("first");
    fs::create_dir(&first).unwrap();
    let mut recorder = Recorder::new(&first, seed);
    set(&mut recorder);
    let disk = Rc::new(RefCell::new(recorder));
    let observed = Observed::new(disk.clone());
    let mut history = History::new(homes, Rc::clone(&disk), seed);
    history.run();
    drop(observed);
    (history, disk)
}

fn lay(directory: &Path, files: &Files) {
    files.iter().for_each(|(name, content)| fs::write(directory.join(name), content).unwrap());
}

/// What the next start loads, whether each row counts for its content, and whether the ledger was set aside.
fn next_start(home: &Path) -> (State, bool, bool) {
    let mut store = Store::open(home).unwrap();
    let (mut rows, mut by_content) = (State::new(), false);
    let whole = store.load(|path, row| {
        by_content |= !row.by_version_only;
        rows.insert(path.to_vec(), Confirmed { by_version_only: true, ..*row });
        Fate::Known
    });
    assert!(whole.unwrap(), "it can be read to its end");
    (rows, by_content, home.join(DAMAGED).exists())
}

/// Holds what is left of a history against what may be left.
fn judge(left: &Left, history: &History, goes_on: bool) {
    let home = directory();
    lay(home.path(), &left.files);
    if left.complete && left.synced.is_none() {
        mark_complete(home.path()).unwrap(); // it names the database's inode, which is another one here
    }
    let (behind, was_aside) = (left.files.contains_key(BEHIND), left.files.contains_key(DAMAGED));
    let (rows, by_content, aside) = next_start(home.path());
    if behind {
        assert!(rows.is_empty(), "a ledger that is behind does not count");
    } else {
        assert!(!aside || was_aside, "what a stop leaves is no damage");
        let since = left.synced.unwrap_or(left.moment);
        let mut allowed = history.moments[since..=left.moment].iter().flat_map(|moment| &moment.allowed);
        assert!(allowed.any(|state| **state == rows), "it never held this: {rows:?}");
    }
    assert!(history.moments[left.moment].complete || !by_content, "rows count by content after an end in order alone");
    let stale = &history.moments[left.moment].stale;
    for (path, row) in &rows {
        let from = if left.synced.is_some() { 0 } else { stale.get(path).copied().unwrap_or(0) };
        let given = &history.confirmed[path][from..];
        assert!(given.contains(row), "a row that was never confirmed, or that was invalidated: {path:?}");
    }
    if goes_on {
        let mut store = Store::open(home.path()).unwrap();
        put(&mut store, &[(b"new".to_vec(), Some(1))]);
        drop(store);
        let mut store = Store::open(home.path()).unwrap();
        assert_eq!(loaded(&mut store, [b"new".to_vec()]), [(b"new".to_vec(), known(1))].into());
    }
}

#[test]
fn a_kill_or_a_power_cut_at_any_write_loses_at_most_the_tail() {
    let began = Instant::now();
    let (mut kills, mut cuts) = (0, 0);
    for seed in 0..seeds() {
        let (history, disk) = history(seed, |disk| disk.cuts = Some(CUTS));
        for (number, left) in disk.borrow().left.iter().enumerate() {
            judge(left, &history, number % 8 == 0);
            *(if left.synced.is_some() { &mut cuts } else { &mut kills }) += 1;
        }
    }
    eprintln!("the ledger survived {kills} kills and {cuts} power cuts in {:?}", began.elapsed());
}

/// The faults of a disk that is full, or fails, from one change on: for how many changes. A dozen is several attempts to write.
const FAULTS: [(usize, Answer); 5] = [
    (1, Answer::Full),
    (usize::MAX, Answer::Full),
    (usize::MAX, Answer::HalfFull),
    (1, Answer::Error),
    (12, Answer::Full),
];

#[test]
fn a_disk_that_is_full_at_any_write_repeats_messages_and_loses_none() {
    let began = Instant::now();
    let (mut full, mut refused) = (0, 0);
    // A history for each write is repeated, so fewer of them.
    for seed in 0..seeds().div_ceil(3) {
        let changes = history(seed, |_| {}).1.borrow().changes;
        for at in 0..changes {
            let (lasts, answer) = FAULTS[(at + seed as usize) % FAULTS.len()];
            refused += full_from(seed, Fault { at, lasts, answer });
            full += 1;
        }
    }
    eprintln!("the ledger survived {full} full disks, {refused} refused writes, in {:?}", began.elapsed());
}

/// One history with this fault: a kill at its end, and a next run that has room again. Returns how many writes were refused.
fn full_from(seed: u64, fault: Fault) -> usize {
    let (mut history, disk) = history(seed, |disk| disk.fault = Some(fault));
    let observed = Observed::new(disk.clone());
    disk.borrow_mut().cuts = Some(0);
    disk.borrow_mut().note();
    history.settle();
    drop(observed);
    let left = std::mem::take(&mut disk.borrow_mut().left);
    judge(left.first().expect("it was noted"), &history, true);
    judge(left.last().expect("it was noted"), &history, false);
    let (rows, by_content, _) = next_start(&history.directory);
    assert_eq!(&rows, history.queued(), "with room again, all is written");
    assert!(by_content || rows.is_empty(), "and complete");
    disk.borrow().refused
}

/// A database that comes to be only when there is room again holds the rows of the first batch before the second one deletes
/// some of them. Their files have gone on, because there was none.
#[test]
fn a_new_database_holds_no_row_for_the_next_start_that_a_later_batch_deletes() {
    let home = directory();
    let mut recorder = Recorder::new(home.path(), 0);
    recorder.fault = Some(Fault { at: 0, lasts: usize::MAX, answer: Answer::Full });
    let disk = Rc::new(RefCell::new(recorder));
    let observed = Observed::new(disk.clone());
    let shared = Arc::new(Shared::new(Arc::default()));
    let ledger = Ledger::of(Arc::clone(&shared));
    let mut writer = Writer::new(Store::open(home.path()).unwrap(), shared);
    let name = |number: usize| number.to_string().into_bytes();
    for number in 0..QUEUED_MAX {
        confirm(&ledger, [b"/d/", &*name(number)].concat(), number as u64);
    }
    writer.turn(Duration::ZERO);
    ledger.invalidate(b"/d/7");
    assert!(ledger.still_holds(b"/d/", b"7"));
    writer.turn(Duration::ZERO);
    assert!(!ledger.still_holds(b"/d/", b"7"), "there is no row");
    assert!(!home.path().join(FILE).exists(), "the disk has no inode");

    disk.borrow_mut().fault = None;
    writer.turn(Duration::ZERO);
    let next = |what: &str| {
        let killed = directory();
        crash(home.path(), killed.path());
        let (rows, _, _) = next_start(killed.path());
        assert!(!rows.contains_key(&b"/d/7"[..]), "{what}");
        rows.len()
    };
    next("the first batch is written");
    writer.turn(Duration::ZERO);
    assert_eq!(next("both are"), QUEUED_MAX - 1);
    assert!(!home.path().join(BEHIND).exists());
    writer.close();
    drop((ledger, observed));
}

/// Where no file can be made beside the database, its mark is a second name of it, and costs it nothing.
#[test]
fn a_ledger_is_marked_as_behind_where_there_is_no_inode() {
    let home = directory();
    let mut store = Store::open(home.path()).unwrap();
    put(&mut store, &[(b"a".to_vec(), Some(1))]);
    let recorder = Rc::new(RefCell::new(Recorder::new(home.path(), 0)));
    recorder.borrow_mut().fault = Some(Fault { at: 0, lasts: usize::MAX, answer: Answer::Full });
    let observed = Observed::new(recorder);
    assert!(store.mark_behind().unwrap());
    drop(observed);
    assert!(store.mark_behind().unwrap(), "it is there, and is not made empty");
    let killed = directory();
    crash(home.path(), killed.path());
    assert!(next_start(killed.path()).0.is_empty(), "the next start does without it");

    store.unmark_behind().unwrap();
    drop(store);
    let mut store = Store::open(home.path()).unwrap();
    assert_eq!(loaded(&mut store, [b"a".to_vec()]), [(b"a".to_vec(), known(1))].into());
}
