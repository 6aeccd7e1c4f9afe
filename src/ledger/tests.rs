//! What is recalled is what was confirmed last, whatever became of the writer, the disk and the database.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use proptest::prelude::*;
use proptest::sample::Index;

use super::store::{DAMAGED, FILE, FORM, Fate, looks_sound};
use super::*;
use crate::files::version::Stamp;
use crate::job::Known;

const DIRECTORY: &[u8] = b"/data/";

/// What a ledger holds, by name.
type State = BTreeMap<Vec<u8>, Known>;

fn confirmed(number: u64) -> Confirmed {
    let stamp = Stamp { seconds: -1, nanoseconds: 999_999_999 };
    let version = Version { inode: number, size: number, modified: stamp, changed: stamp };
    let digests = Digests::of(&number.to_le_bytes());
    Confirmed { version, digests: Some(digests), racy: number % 2 == 1, by_version_only: false }
}

/// As it is recalled of a ledger that is not complete.
fn known(number: u64) -> Known {
    exactly_known(number).by_version_only()
}

fn exactly_known(number: u64) -> Known {
    let Confirmed { version, digests, racy, .. } = confirmed(number);
    Known::new(&version, &digests.unwrap(), racy)
}

fn confirm(ledger: &Ledger, path: Vec<u8>, number: u64) {
    let Confirmed { version, digests, racy, .. } = confirmed(number);
    ledger.confirm(path, version, digests.unwrap(), racy);
}

fn path(name: &[u8]) -> Vec<u8> {
    [DIRECTORY, name].concat()
}

fn put(store: &mut Store, rows: &[(Vec<u8>, Option<u64>)]) {
    let rows = rows.iter().map(|(name, number)| (path(name).into(), number.map(confirmed))).collect();
    store.write(&[], &rows).unwrap();
}

fn recalled(store: &mut Store, names: impl IntoIterator<Item = Vec<u8>>) -> State {
    let present: Vec<Vec<u8>> = names.into_iter().collect();
    let mut rows = State::new();
    let whole = store.recall(|path, known| {
        let Some(name) = path.strip_prefix(DIRECTORY) else { return Fate::LeftOut };
        let there = present.iter().any(|present| present == name);
        if there {
            rows.insert(name.to_vec(), known);
        }
        if there { Fate::Known } else { Fate::Gone }
    });
    if whole.unwrap() { rows } else { State::new() }
}

/// What was to be forgotten first is gone.
pub fn wait_until_gone(ledger: &Ledger, directory: &[u8], name: &[u8]) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while ledger.still_holds(directory, name) {
        assert!(Instant::now() < deadline);
        thread::yield_now();
    }
}

/// With nobody who writes what waits.
fn without_writer() -> Ledger {
    let ledger = Ledger { shared: Arc::default(), thread: None };
    ledger.shared.lock().closed = true; // its end is not waited for
    ledger
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
fn what_was_confirmed_last_is_recalled_and_what_is_gone_is_removed() {
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
    assert_eq!(recalled(&mut store, names[..2].to_vec()), expected);
    assert_eq!(recalled(&mut store, names), expected, "what was gone once is in the ledger no more");
}

/// Made by the last build that wrote this form, of eight files.
const FORM_1: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/ledger-form-1.sqlite");

#[test]
fn a_ledger_of_the_first_form_is_recalled_row_by_row() {
    let dir = tempfile::tempdir().unwrap();
    fs::copy(FORM_1, dir.path().join(FILE)).unwrap();
    for _ in 0..2 {
        assert!(looks_sound(dir.path()).unwrap());
        let mut store = Store::open(dir.path()).unwrap();
        let mut paths = Vec::new();
        let whole = store.recall(|path, known| {
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
fn a_row_of_the_first_form_that_is_not_what_was_written_is_damage() {
    let dir = tempfile::tempdir().unwrap();
    fs::copy(FORM_1, dir.path().join(FILE)).unwrap();
    let connection = rusqlite::Connection::open(dir.path().join(FILE)).unwrap();
    connection.execute("UPDATE confirmed SET device = device + 1 WHERE size = 14", []).unwrap();
    drop(connection);
    let mut store = Store::open(dir.path()).unwrap();
    assert!(dir.path().join(DAMAGED).exists());
    put(&mut store, &[(b"a".to_vec(), Some(1))]);
    assert_eq!(recalled(&mut store, [b"a".to_vec()]), State::from([(b"a".to_vec(), known(1))]));
}

#[test]
fn what_was_there_before_is_entered_without_its_content() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(dir.path()).unwrap();
    put(&mut store, &[(b"a".to_vec(), Some(1)), (b"b".to_vec(), Some(2))]);
    let version = confirmed(3).version;
    let seen = [(path(b"a"), Some((version, true))), (path(b"b"), None), (path(b"c"), Some((version, false)))];
    store.enter(seen).unwrap();
    let expected = [(b"a".to_vec(), Known::seen(&version, true)), (b"c".to_vec(), Known::seen(&version, false))];
    assert_eq!(recalled(&mut store, [&b"a"[..], b"b", b"c"].map(<[u8]>::to_vec)), State::from(expected));
}

#[test]
fn a_ledger_is_complete_between_an_exact_end_and_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let is_complete = || dir.path().join(COMPLETE).exists();
    let open = || Store::open(dir.path()).unwrap();
    let recalled = || recalled(&mut open(), [b"a".to_vec()]);
    let ledger = Ledger::start(open(), Arc::default()).unwrap();
    confirm(&ledger, path(b"a"), 1);
    drop(ledger);
    assert!(!is_complete());
    assert_eq!(recalled(), State::from([(b"a".to_vec(), known(1))]));

    let ledger = Ledger::start(open(), Arc::default()).unwrap();
    confirm(&ledger, path(b"a"), 2);
    ledger.end_exact(Vec::new());
    assert!(is_complete());
    assert_eq!(recalled(), State::from([(b"a".to_vec(), exactly_known(2))]));
    assert!(!is_complete(), "nor while it is used");
    assert_eq!(recalled(), State::from([(b"a".to_vec(), known(2))]));

    // An older copy in its place is not what was complete.
    let database = |name: &str| dir.path().join(name);
    fs::copy(database(FILE), database("copy")).unwrap();
    let ledger = Ledger::start(open(), Arc::default()).unwrap();
    confirm(&ledger, path(b"a"), 3);
    ledger.end_exact(Vec::new());
    fs::rename(database("copy"), database(FILE)).unwrap();
    assert_eq!(recalled(), State::from([(b"a".to_vec(), known(2))]));
}

#[test]
fn what_was_not_compared_since_the_ledger_was_not_complete_counts_by_its_version_only() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(dir.path()).unwrap();
    put(&mut store, &[(b"a".to_vec(), Some(1)), (b"b".to_vec(), Some(2))]);
    assert!(store.recall(|_, _| Fate::LeftOut).unwrap());
    let ledger = Ledger::start(store, Arc::default()).unwrap();
    [b"b", b"c"].iter().for_each(|name| confirm(&ledger, path(*name), 2));
    ledger.end_exact(vec![path(b"c").into(), path(b"nothing").into()]);
    let mut store = Store::open(dir.path()).unwrap();
    let names = [b"a", b"b", b"c"].map(|name| name.to_vec());
    let [a, b, c] = names.clone();
    assert_eq!(recalled(&mut store, names), State::from([(a, known(1)), (b, exactly_known(2)), (c, known(2))]));
}

#[test]
fn once_it_holds_no_more_what_was_given_up_a_crash_does_not_bring_it_back() {
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
    assert_eq!(recalled(&mut after, names), left);
}

#[test]
fn of_more_directories_than_it_can_hold_all_are_forgotten() {
    let ledger = without_writer();
    let mut waiting = ledger.shared.lock();
    waiting.put(path(b"before").into(), Some(confirmed(1)), WAITING_MAX);
    for number in 0..=WAITING_MAX {
        waiting.forget_below(&path(format!("{number}/").as_bytes()));
    }
    waiting.put(path(b"between").into(), Some(confirmed(1)), WAITING_MAX);
    assert!(!waiting.forget_below(&path(b"one more/")));
    waiting.put(path(b"after").into(), Some(confirmed(1)), WAITING_MAX);
    let mut group = Group::default();
    group.add(&mut waiting);
    drop(waiting);
    assert_eq!(group.rows.keys().map(|path| &**path).collect::<Vec<_>>(), [path(b"after")]);
    assert_eq!(group.below.len(), WAITING_MAX + 1);
    assert!(ledger.still_holds(&path(b"any/"), b"file"));
}

#[test]
fn what_has_to_go_first_finds_room_where_confirms_find_none() {
    let ledger = without_writer();
    let name = |number: usize| format!("{number}").into_bytes();
    for number in 0..=WAITING_MAX {
        confirm(&ledger, path(&name(number)), number as u64);
    }
    assert_eq!(ledger.shared.lock().dropped, 1);
    assert!(!ledger.is_pressed());
    for number in (0..FIRST_MAX).rev() {
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
    store.behind(true).unwrap();
    drop(store);
    assert!(!looks_sound(dir.path()).unwrap());
    let mut store = Store::open(dir.path()).unwrap();
    assert_eq!(recalled(&mut store, [b"a".to_vec()]), State::new());
    assert!(dir.path().join(DAMAGED).exists());
    put(&mut store, &[(b"a".to_vec(), Some(2))]);
    drop(store);
    let mut store = Store::open(dir.path()).unwrap();
    assert_eq!(recalled(&mut store, [b"a".to_vec()]), State::from([(b"a".to_vec(), known(2))]));
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

#[test]
fn a_file_that_is_no_ledger_is_set_aside() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(FILE), [b'x'; 5000]).unwrap();
    assert!(!looks_sound(dir.path()).unwrap());
    let mut store = Store::open(dir.path()).unwrap();
    assert_eq!(fs::read(dir.path().join(DAMAGED)).unwrap(), [b'x'; 5000]);
    put(&mut store, &[(b"a".to_vec(), Some(1))]);
    assert_eq!(recalled(&mut store, [b"a".to_vec()]), State::from([(b"a".to_vec(), known(1))]));
}

/// Names and what is written for them, or that they go, in one transaction.
type Writes = Vec<(Vec<u8>, Option<u64>)>;

fn groups() -> impl Strategy<Value = Vec<Writes>> {
    let row = (0..20u8, proptest::option::weighted(0.8, any::<u64>()));
    let row = row.prop_map(|(name, number)| (format!("a name that fills its page, number {name}").into(), number));
    proptest::collection::vec(proptest::collection::vec(row, 1..12), 1..8)
}

/// Every state that the ledger has had, the empty one first, and all names.
fn history(groups: &[Writes]) -> (Vec<State>, Vec<Vec<u8>>) {
    let mut states = vec![State::new()];
    for group in groups {
        let mut state = states.last().cloned().unwrap_or_default();
        for (name, number) in group {
            match number {
                Some(number) => drop(state.insert(name.clone(), known(*number))),
                None => drop(state.remove(name)),
            }
        }
        states.push(state);
    }
    (states, groups.iter().flatten().map(|(name, _)| name.clone()).collect())
}

/// A ledger of these writes that is still open, and where it is.
fn written(groups: &[Writes]) -> (tempfile::TempDir, PathBuf, Store) {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("home");
    let mut store = Store::open(&home).unwrap();
    groups.iter().for_each(|group| put(&mut store, group));
    (dir, home, store)
}

/// What is done to a ledger, by the numbers of a path in [`PATHS`] or of a directory in [`ABOVE`].
#[derive(Debug, Clone)]
enum Deed {
    Confirm(usize, u64),
    Forget(usize),
    ForgetBelow(usize),
    Gather,
    Write,
}

const PATHS: [&[u8]; 9] = [b"a", b"d", b"d/a", b"d/\xff", b"d/e/a", b"d/e/f/a", b"d-e/a", b"d0/a", b"d/e0"];

const ABOVE: [&[u8]; 5] = [b"", b"d/", b"d/e/", b"d/e/f/", b"d-e/"];

fn deed() -> impl Strategy<Value = Deed> {
    prop_oneof![
        6 => (0..PATHS.len(), any::<u64>()).prop_map(|(path, number)| Deed::Confirm(path, number)),
        2 => (0..PATHS.len()).prop_map(Deed::Forget),
        2 => (0..ABOVE.len()).prop_map(Deed::ForgetBelow),
        1 => Just(Deed::Gather),
        1 => Just(Deed::Write),
    ]
}

proptest! {
    #[test]
    fn a_directory_that_is_forgotten_takes_what_was_confirmed_before_and_nothing_else(
        deeds in proptest::collection::vec(deed(), 1..40),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::open(dir.path()).unwrap();
        let ledger = without_writer();
        let (mut group, mut expected) = (Group::default(), State::new());
        for deed in deeds.into_iter().chain([Deed::Write]) {
            match deed {
                Deed::Confirm(at, number) => {
                    confirm(&ledger, path(PATHS[at]), number);
                    expected.insert(PATHS[at].to_vec(), known(number));
                }
                Deed::Forget(at) => {
                    ledger.forget(path(PATHS[at]));
                    expected.remove(PATHS[at]);
                }
                Deed::ForgetBelow(at) => {
                    ledger.forget_below(&path(ABOVE[at]));
                    expected.retain(|name, _| !name.starts_with(ABOVE[at]));
                }
                Deed::Gather => group.add(&mut ledger.shared.lock()),
                Deed::Write => {
                    group.add(&mut ledger.shared.lock());
                    store.write(&group.below, &group.rows).unwrap();
                    group = Group::default();
                }
            }
        }
        prop_assert_eq!(store.rows(), expected.len() as i64);
        prop_assert_eq!(recalled(&mut store, PATHS.map(<[u8]>::to_vec)), expected);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn what_a_crash_leaves_of_the_writes_is_a_prefix_of_them(groups in groups(), cut in any::<Index>()) {
        let (dir, home, _store) = written(&groups);
        let (states, names) = history(&groups);

        let killed = dir.path().join("killed");
        crash(&home, &killed);
        let mut after = Store::open(&killed).unwrap();
        prop_assert_eq!(Some(&recalled(&mut after, names.clone())), states.last());

        // Power was cut: the log's tail never reached the disk.
        let cut_off = dir.path().join("cut off");
        crash(&home, &cut_off);
        let log = fs::OpenOptions::new().write(true).open(cut_off.join(format!("{FILE}-wal"))).unwrap();
        let length = log.metadata().unwrap().len();
        log.set_len(cut.index(length as usize + 1) as u64).unwrap();
        let mut after = Store::open(&cut_off).unwrap();
        let left = recalled(&mut after, names);
        prop_assert!(states.contains(&left), "{left:?} was never the ledger's state");
    }

    #[test]
    fn a_damaged_ledger_never_tells_what_was_not_written(
        groups in groups(),
        closed in any::<bool>(),
        damage in proptest::collection::vec((any::<Index>(), 1..=u8::MAX), 1..40),
    ) {
        let (dir, home, store) = written(&groups);
        let (states, names) = history(&groups);
        let damaged = dir.path().join("damaged");
        if closed {
            drop(store);
        }
        crash(&home, &damaged);
        let file = damaged.join(if closed { FILE.to_owned() } else { format!("{FILE}-wal") });
        let mut bytes = fs::read(&file).unwrap();
        for (at, flips) in damage {
            let at = at.index(bytes.len());
            bytes[at] ^= flips;
        }
        fs::write(&file, bytes).unwrap();

        // An unknown form may look like a newer one: then it says so and changes nothing.
        if let Ok(mut after) = Store::open(&damaged) {
            for (name, known) in recalled(&mut after, names.clone()) {
                prop_assert!(states.iter().any(|state| state.get(&name) == Some(&known)), "{known:?}");
            }
            put(&mut after, &[(b"new".to_vec(), Some(1))]);
            drop(after);
            let mut again = Store::open(&damaged).unwrap();
            prop_assert_eq!(recalled(&mut again, [b"new".to_vec()]), State::from([(b"new".to_vec(), known(1))]));
        }
    }
}
