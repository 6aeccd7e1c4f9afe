//! What is loaded is what was confirmed last, whatever became of the writer, the disk and the database.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Instant;

use super::queue::{Batch, INVALIDATED_MAX};
use super::state_directory::{COMPLETE, DAMAGED};
use super::store::{Entry, FILE, Fate, looks_sound};
use super::table::FORM;
use super::*;
use crate::files::version::Timestamp;
use crate::job::Known;
use crate::message::{Content, message_id};

const DIRECTORY: &[u8] = b"/data/";

/// What a ledger holds, by name.
pub(super) type State = BTreeMap<Vec<u8>, Known>;

pub(super) fn confirmed(number: u64) -> Confirmed {
    let stamp = Timestamp { seconds: -1, nanoseconds: 999_999_999 };
    let version = Version { inode: number, size: number, modified: stamp, changed: stamp };
    let digests = Digests::of(&number.to_le_bytes());
    Confirmed::new(version, digests, number % 2 == 1, MessageId::OfVersion)
}

/// As it is loaded from a ledger that is not complete.
pub(super) fn known(number: u64) -> Known {
    exactly_known(number).by_version_only()
}

pub(super) fn exactly_known(number: u64) -> Known {
    let Confirmed { version, digests, racy, .. } = confirmed(number);
    Known::new(&version, &digests.unwrap(), racy)
}

pub(super) fn confirm(ledger: &Ledger, path: Vec<u8>, number: u64) {
    let Confirmed { version, digests, racy, .. } = confirmed(number);
    ledger.confirm(path, version, digests.unwrap(), racy, MessageId::OfVersion);
}

pub(super) fn path(name: &[u8]) -> Vec<u8> {
    [DIRECTORY, name].concat()
}

pub(super) fn put(store: &mut Store, rows: &[(Vec<u8>, Option<u64>)]) {
    let rows = rows.iter().map(|(name, number)| (path(name).into(), number.map(confirmed))).collect();
    store.write(&[], &rows).unwrap();
}

pub(super) fn loaded(store: &mut Store, names: impl IntoIterator<Item = Vec<u8>>) -> State {
    let present: Vec<Vec<u8>> = names.into_iter().collect();
    let mut rows = State::new();
    let whole = store.load(|path, row| {
        let known = row.known();
        let Some(name) = path.strip_prefix(DIRECTORY) else { return Fate::LeftOut };
        let there = present.iter().any(|present| present == name);
        if there {
            rows.insert(name.to_vec(), known);
        }
        if there { Fate::Known } else { Fate::Gone }
    });
    if whole.unwrap() { rows } else { State::new() }
}

/// Waits until no invalidation of the path is pending.
pub fn wait_until_gone(ledger: &Ledger, directory: &[u8], name: &[u8]) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while ledger.still_holds(directory, name) {
        assert!(Instant::now() < deadline);
        thread::yield_now();
    }
}

/// A ledger without a thread, so that what is queued stays queued.
pub fn without_writer() -> Ledger {
    let ledger = Ledger::of(Arc::default());
    ledger.shared.lock().closed = true; // dropping it does not wait
    ledger
}

/// What is queued for a path, or for all below a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queued {
    Row(Known, MessageId),
    /// A row that says which message was the last one, and that no version counts.
    Void(MessageId),
    Deletion,
}

/// Takes all that is queued out of a ledger without a thread, by path, each with whether files wait for it.
pub fn take_queued(ledger: &Ledger) -> Vec<(Vec<u8>, Queued, bool)> {
    let mut queue = ledger.shared.lock();
    let pending = std::mem::take(&mut queue.pending_invalidations);
    let below = std::mem::take(&mut queue.below).into_iter().map(|path| (path, None));
    let mut batch = Batch::default();
    batch.append(&mut queue);
    let rows = batch.rows.into_iter().chain(below).map(|(path, row)| {
        let queued = match row {
            Some(row) if row.void => Queued::Void(row.id),
            Some(row) => Queued::Row(row.known(), row.id),
            None => Queued::Deletion,
        };
        let waits = pending.contains_key(&path);
        (path.into(), queued, waits)
    });
    rows.collect()
}

/// So many invalidations that the ledger is pressed.
pub fn press(ledger: &Ledger) {
    (0..HIGH_WATER).for_each(|number| ledger.invalidate(format!("/elsewhere/{number}").as_bytes()));
    assert!(ledger.is_pressed());
}

/// The files of a ledger as a crash leaves them: copied while it is open.
pub fn crash(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_file() {
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

#[test]
fn what_was_confirmed_last_is_loaded_and_what_is_gone_is_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let names: Vec<Vec<u8>> = [&b"a"[..], b"b\xff\n", b"gone"].map(<[u8]>::to_vec).to_vec();
    let ledger = Ledger::start(Store::open(dir.path()).unwrap(), Arc::default()).unwrap();
    for (number, name) in (1..).zip(&names) {
        confirm(&ledger, path(name), number);
    }
    confirm(&ledger, b"/database/a".to_vec(), 9);
    confirm(&ledger, path(b"a"), 9);
    ledger.forget(path(b"never there"));
    drop(ledger);

    let mut store = Store::open(dir.path()).unwrap();
    let expected = State::from([(names[0].clone(), known(9)), (names[1].clone(), known(2))]);
    assert_eq!(loaded(&mut store, names[..2].to_vec()), expected);
    assert_eq!(loaded(&mut store, names), expected, "a row that was deleted stays deleted");
}

/// The rows of eight files, written by the last build that wrote this form.
const FORM_1: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/ledger-form-1.sqlite");

#[test]
fn a_ledger_of_the_first_form_is_loaded_row_by_row() {
    let dir = tempfile::tempdir().unwrap();
    fs::copy(FORM_1, dir.path().join(FILE)).unwrap();
    for _ in 0..2 {
        assert!(looks_sound(dir.path()).unwrap());
        let mut store = Store::open(dir.path()).unwrap();
        let mut paths = Vec::new();
        let whole = store.load(|path, row| {
            let known = row.known();
            assert!(known.is_read() && !known.is_exact() && !known.is_racy());
            paths.push(path.to_vec());
            Fate::Known
        });
        assert!(whole.unwrap());
        let names = [
            &b"caf\xe9"[..],
            b"empty",
            b"first",
            b"hard-link",
            b"link",
            b"sub/file",
            b"zeros",
            "\u{fc}n\u{ef}code".as_bytes(),
        ];
        assert_eq!(paths, names.map(|name| [b"/srv/drop/", name].concat()));
        assert!(!dir.path().join(DAMAGED).exists());
    }
}

#[test]
fn a_changed_row_of_the_first_form_is_damage() {
    let dir = tempfile::tempdir().unwrap();
    fs::copy(FORM_1, dir.path().join(FILE)).unwrap();
    let connection = rusqlite::Connection::open(dir.path().join(FILE)).unwrap();
    connection.execute("UPDATE confirmed SET device = device + 1 WHERE size = 14", []).unwrap();
    drop(connection);
    let mut store = Store::open(dir.path()).unwrap();
    assert!(dir.path().join(DAMAGED).exists());
    put(&mut store, &[(b"a".to_vec(), Some(1))]);
    assert_eq!(loaded(&mut store, [b"a".to_vec()]), State::from([(b"a".to_vec(), known(1))]));
}

/// What the rows of these names say of the last message.
fn last(store: &mut Store) -> BTreeMap<Vec<u8>, Option<Last>> {
    let mut rows = BTreeMap::new();
    let whole = store.load(|path, row| {
        rows.insert(path.strip_prefix(DIRECTORY).unwrap().to_vec(), row.last(path));
        Fate::Known
    });
    assert!(whole.unwrap());
    rows
}

#[test]
fn a_ledger_of_the_second_form_gets_its_column_and_keeps_its_rows() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(dir.path()).unwrap();
    put(&mut store, &[(b"a".to_vec(), Some(1))]);
    drop(store);
    let connection = rusqlite::Connection::open(dir.path().join(FILE)).unwrap();
    connection.execute_batch("ALTER TABLE confirmed DROP COLUMN message_id; PRAGMA user_version = 2").unwrap();
    drop(connection);
    let mut store = Store::open(dir.path()).unwrap();
    assert_eq!(loaded(&mut store, [b"a".to_vec()]), State::from([(b"a".to_vec(), known(1))]));
    let Confirmed { version, digests, .. } = confirmed(1);
    let id = message_id(&[&path(b"a")], &version, &digests.unwrap().sha256);
    let content = Content { digests: digests.unwrap(), size: version.size };
    assert_eq!(last(&mut store), BTreeMap::from([(b"a".to_vec(), Some(Last::new(&content, Some(id))))]));
    assert!(!dir.path().join(DAMAGED).exists());
}

#[test]
fn a_void_row_says_what_the_last_message_was_and_describes_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::start(Store::open(dir.path()).unwrap(), Arc::default()).unwrap();
    let Confirmed { version, digests, .. } = confirmed(1);
    let content = Content { digests: digests.unwrap(), size: version.size };
    let (known, unknown) = (Last::new(&content, Some(7)), Last::new(&content, None));
    confirm(&ledger, path(b"a"), 1);
    ledger.void(&path(b"a"), &known);
    ledger.void(&path(b"b"), &unknown);
    ledger.void(&path(b"c"), &Last::announced());
    ledger.confirm(path(b"d"), version, digests.unwrap(), false, MessageId::Other(8));
    ledger.confirm(path(b"e"), version, digests.unwrap(), false, MessageId::Unknown);
    drop(ledger);
    let mut store = Store::open(dir.path()).unwrap();
    let void = |mut last: Last| {
        last.void = true;
        Some(last)
    };
    let expected = [
        (&b"a"[..], void(known)),
        (b"b", void(unknown)),
        (b"c", Some(Last::unknown())),
        (b"d", Some(Last::new(&content, Some(8)))),
        (b"e", Some(unknown)),
    ];
    assert_eq!(last(&mut store), expected.map(|(name, last)| (name.to_vec(), last)).into());
    let names = [&b"a"[..], b"b", b"c"].map(<[u8]>::to_vec);
    assert!(loaded(&mut store, names).values().all(|known| *known == Known::PUBLISHED));
}

#[test]
fn files_from_before_the_start_are_entered_without_content() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(dir.path()).unwrap();
    put(&mut store, &[(b"a".to_vec(), Some(1)), (b"b".to_vec(), Some(2))]);
    let version = confirmed(3).version;
    let seen = [
        (path(b"a"), Entry::Seen(version, true)),
        (path(b"b"), Entry::None),
        (path(b"c"), Entry::Seen(version, false)),
    ];
    store.enter(seen).unwrap();
    let expected = [(b"a".to_vec(), Known::seen(&version, true)), (b"c".to_vec(), Known::seen(&version, false))];
    assert_eq!(loaded(&mut store, [&b"a"[..], b"b", b"c"].map(<[u8]>::to_vec)), State::from(expected));
}

#[test]
fn a_ledger_is_complete_between_an_exact_end_and_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let is_complete = || dir.path().join(COMPLETE).exists();
    let open = || Store::open(dir.path()).unwrap();
    let loaded = || loaded(&mut open(), [b"a".to_vec()]);
    let ledger = Ledger::start(open(), Arc::default()).unwrap();
    confirm(&ledger, path(b"a"), 1);
    drop(ledger);
    assert!(!is_complete());
    assert_eq!(loaded(), State::from([(b"a".to_vec(), known(1))]));

    let ledger = Ledger::start(open(), Arc::default()).unwrap();
    confirm(&ledger, path(b"a"), 2);
    ledger.end_exact(Vec::new());
    assert!(is_complete());
    assert_eq!(loaded(), State::from([(b"a".to_vec(), exactly_known(2))]));
    assert!(!is_complete(), "nor while it is used");
    assert_eq!(loaded(), State::from([(b"a".to_vec(), known(2))]));

    // An older copy in its place is not complete.
    let database = |name: &str| dir.path().join(name);
    fs::copy(database(FILE), database("copy")).unwrap();
    let ledger = Ledger::start(open(), Arc::default()).unwrap();
    confirm(&ledger, path(b"a"), 3);
    ledger.end_exact(Vec::new());
    fs::rename(database("copy"), database(FILE)).unwrap();
    assert_eq!(loaded(), State::from([(b"a".to_vec(), known(2))]));
}

#[test]
fn a_row_not_compared_since_the_ledger_was_incomplete_counts_by_its_version_only() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(dir.path()).unwrap();
    put(&mut store, &[(b"a".to_vec(), Some(1)), (b"b".to_vec(), Some(2))]);
    assert!(store.load(|_, _| Fate::LeftOut).unwrap());
    let ledger = Ledger::start(store, Arc::default()).unwrap();
    [b"b", b"c"].iter().for_each(|name| confirm(&ledger, path(*name), 2));
    ledger.end_exact(vec![path(b"c").into(), path(b"nothing").into()]);
    let mut store = Store::open(dir.path()).unwrap();
    let names = [b"a", b"b", b"c"].map(|name| name.to_vec());
    let [a, b, c] = names.clone();
    assert_eq!(loaded(&mut store, names), State::from([(a, known(1)), (b, exactly_known(2)), (c, known(2))]));
}

#[test]
fn a_crash_does_not_bring_back_rows_whose_invalidation_was_written() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("home");
    let mut store = Store::open(&home).unwrap();
    let names = [&b"d/a"[..], b"d/e/b", b"dd", b"link", b"link2"].map(<[u8]>::to_vec);
    put(&mut store, &names.clone().map(|name| (name, Some(1))));
    let ledger = Ledger::start(store, Arc::default()).unwrap();
    assert!(!ledger.still_holds(&path(b"d/e/"), b"b"));
    ledger.forget_below(&path(b"d/"));
    ledger.invalidate(&path(b"link"));
    wait_until_gone(&ledger, &path(b"d/e/"), b"b");
    wait_until_gone(&ledger, DIRECTORY, b"link");
    assert!(!ledger.still_holds(DIRECTORY, b"link2"));
    crash(&home, &dir.path().join("killed"));
    let mut after = Store::open(&dir.path().join("killed")).unwrap();
    let left = State::from([b"dd", &b"link2"[..]].map(|name| (name.to_vec(), known(1))));
    assert_eq!(loaded(&mut after, names), left);
}

#[test]
fn a_queue_full_of_deleted_directories_deletes_all_rows() {
    let ledger = without_writer();
    let mut queue = ledger.shared.lock();
    queue.put(path(b"before").into(), Some(confirmed(1)), QUEUED_MAX);
    for number in 0..=QUEUED_MAX {
        queue.delete_below(&path(format!("{number}/").as_bytes()));
    }
    queue.put(path(b"between").into(), Some(confirmed(1)), QUEUED_MAX);
    assert!(!queue.delete_below(&path(b"one more/")));
    queue.put(path(b"after").into(), Some(confirmed(1)), QUEUED_MAX);
    let mut batch = Batch::default();
    batch.append(&mut queue);
    drop(queue);
    assert_eq!(batch.rows.keys().map(|path| &**path).collect::<Vec<_>>(), [path(b"after")]);
    assert_eq!(batch.below.len(), QUEUED_MAX + 1);
    assert!(ledger.still_holds(&path(b"any/"), b"file"));
}

#[test]
fn invalidations_find_room_where_confirms_find_none() {
    let ledger = without_writer();
    let name = |number: usize| format!("{number}").into_bytes();
    for number in 0..=QUEUED_MAX {
        confirm(&ledger, path(&name(number)), number as u64);
    }
    assert_eq!(ledger.shared.lock().dropped, 1);
    assert!(!ledger.is_pressed());
    for number in (0..INVALIDATED_MAX).rev() {
        ledger.invalidate(&path(&name(number)));
        assert!(ledger.still_holds(DIRECTORY, &name(number)));
    }
    assert!(ledger.is_pressed());
    let below = |ledger: &Ledger| ledger.shared.lock().below.len();
    assert_eq!(below(&ledger), 0);
    ledger.invalidate(&path(b"one more"));
    assert_eq!(below(&ledger), 1, "its directory");
}

#[test]
fn a_ledger_that_is_behind_is_set_aside() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(dir.path()).unwrap();
    put(&mut store, &[(b"a".to_vec(), Some(1))]);
    assert!(store.mark_behind().unwrap());
    drop(store);
    assert!(!looks_sound(dir.path()).unwrap());
    let mut store = Store::open(dir.path()).unwrap();
    assert_eq!(loaded(&mut store, [b"a".to_vec()]), State::new());
    assert!(dir.path().join(DAMAGED).exists());
    put(&mut store, &[(b"a".to_vec(), Some(2))]);
    drop(store);
    let mut store = Store::open(dir.path()).unwrap();
    assert_eq!(loaded(&mut store, [b"a".to_vec()]), State::from([(b"a".to_vec(), known(2))]));
}

#[test]
fn a_directory_has_one_ledger_and_a_ledger_one_process() {
    let dir = tempfile::tempdir().unwrap();
    let first = Store::open(&dir.path().join("made")).unwrap();
    assert!(matches!(Store::open(first.directory()), Err(Error::StateLocked { .. })));
    let directory = first.directory().to_owned();
    drop(first);
    assert!(Store::open(&directory).is_ok());
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    assert!(matches!(Store::open(&file), Err(Error::StateDirectory { .. })));
}

#[test]
fn a_ledger_of_a_newer_version_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(dir.path()).unwrap();
    assert!(looks_sound(dir.path()).unwrap());
    store.connect().unwrap().pragma_update(None, "user_version", FORM + 1).unwrap();
    drop(store);
    assert!(matches!(looks_sound(dir.path()), Err(Error::StateDirectory { .. })));
    assert!(matches!(Store::open(dir.path()), Err(Error::StateDirectory { .. })));
    assert!(!dir.path().join(DAMAGED).exists());
}

/// SQLite's check says nothing of these four bytes of the header.
#[test]
fn a_ledger_whose_form_is_damaged_is_set_aside() {
    for form in [-1, 256, 3 << 8, i64::from(i32::MAX)] {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::open(dir.path()).unwrap();
        store.connect().unwrap().pragma_update(None, "user_version", form).unwrap();
        drop(store);
        assert!(!looks_sound(dir.path()).unwrap(), "{form}");
        let mut store = Store::open(dir.path()).unwrap();
        assert!(dir.path().join(DAMAGED).exists(), "{form}");
        put(&mut store, &[(b"a".to_vec(), Some(1))]);
    }
}

#[test]
fn a_file_that_is_no_ledger_is_set_aside() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(FILE), [b'x'; 5000]).unwrap();
    assert!(!looks_sound(dir.path()).unwrap());
    let mut store = Store::open(dir.path()).unwrap();
    assert_eq!(fs::read(dir.path().join(DAMAGED)).unwrap(), [b'x'; 5000]);
    put(&mut store, &[(b"a".to_vec(), Some(1))]);
    assert_eq!(loaded(&mut store, [b"a".to_vec()]), State::from([(b"a".to_vec(), known(1))]));
}

/// `form_in_steps`: not so where an earlier service made the database, which cannot return its pages a few at a time.
fn gives_back_the_room_of_deleted_rows(form_in_steps: bool) {
    const ROWS: u64 = 30_000;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join(FILE);
    if !form_in_steps {
        let old = rusqlite::Connection::open(&file).unwrap();
        old.execute_batch("PRAGMA auto_vacuum = NONE; PRAGMA journal_mode = wal; VACUUM").unwrap();
    }
    let mut store = Store::open(dir.path()).unwrap();
    let name = |number: u64| format!("{number:064}").into_bytes();
    let rows: Vec<_> = (0..ROWS).map(|number| (name(number), Some(number))).collect();
    put(&mut store, &rows);
    assert!(!store.is_mostly_free());
    let full = store.bytes().unwrap();
    let deleted: Vec<_> = (10..ROWS).map(|number| (name(number), None)).collect();
    put(&mut store, &deleted);
    assert!(store.is_mostly_free() && store.bytes().unwrap() == full);
    let mut steps = 1;
    while store.shrink().unwrap() {
        steps += 1;
    }
    assert_eq!(steps > 5, form_in_steps, "{steps} steps");
    assert!(store.bytes().unwrap() * 50 < full && !store.is_mostly_free());
    assert!(fs::metadata(&file).unwrap().len() * 50 < full as u64, "the file itself");
    drop(store);
    let mut store = Store::open(dir.path()).unwrap();
    let expected: State = (0..10).map(|number| (name(number), known(number))).collect();
    assert_eq!(loaded(&mut store, (0..10).map(name)), expected);
}

#[test]
fn a_ledger_returns_the_room_of_deleted_rows_in_steps() {
    gives_back_the_room_of_deleted_rows(true);
}

#[test]
fn a_ledger_of_before_returns_the_room_of_deleted_rows_at_once() {
    gives_back_the_room_of_deleted_rows(false);
}
