//! Random operations, crashes and damage against a model of what the ledger holds.

use std::fs;
use std::path::PathBuf;

use proptest::prelude::*;
use proptest::sample::Index;

use super::queue::Batch;
use super::store::{FILE, Store};
use super::tests::{State, confirm, crash, known, loaded, path, put, without_writer};

/// The writes of one transaction: for each name the number of its row, or `None` to delete it.
type Writes = Vec<(Vec<u8>, Option<u64>)>;

fn groups() -> impl Strategy<Value = Vec<Writes>> {
    let row = (0..20u8, proptest::option::weighted(0.8, any::<u64>()));
    let row = row.prop_map(|(name, number)| (format!("a name that fills its page, number {name}").into(), number));
    proptest::collection::vec(proptest::collection::vec(row, 1..12), 1..8)
}

/// Every state that the ledger has had, beginning with the empty one, and all names.
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

/// An open ledger after these writes, and where it is.
fn written(groups: &[Writes]) -> (tempfile::TempDir, PathBuf, Store) {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("home");
    let mut store = Store::open(&home).unwrap();
    groups.iter().for_each(|group| put(&mut store, group));
    (dir, home, store)
}

/// An operation on a ledger. The numbers are those of a path in [`PATHS`] or of a directory in [`ABOVE`].
#[derive(Debug, Clone)]
enum Operation {
    Confirm(usize, u64),
    Forget(usize),
    ForgetBelow(usize),
    Append,
    Write,
}

const PATHS: [&[u8]; 9] = [b"a", b"d", b"d/a", b"d/\xff", b"d/e/a", b"d/e/f/a", b"d-e/a", b"d0/a", b"d/e0"];

const ABOVE: [&[u8]; 5] = [b"", b"d/", b"d/e/", b"d/e/f/", b"d-e/"];

fn operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        6 => (0..PATHS.len(), any::<u64>()).prop_map(|(path, number)| Operation::Confirm(path, number)),
        2 => (0..PATHS.len()).prop_map(Operation::Forget),
        2 => (0..ABOVE.len()).prop_map(Operation::ForgetBelow),
        1 => Just(Operation::Append),
        1 => Just(Operation::Write),
    ]
}

proptest! {
    #[test]
    fn deleting_below_a_directory_deletes_what_was_confirmed_before_and_nothing_else(
        operations in proptest::collection::vec(operation(), 1..40),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::open(dir.path()).unwrap();
        let ledger = without_writer();
        let (mut batch, mut expected) = (Batch::default(), State::new());
        for operation in operations.into_iter().chain([Operation::Write]) {
            match operation {
                Operation::Confirm(at, number) => {
                    confirm(&ledger, path(PATHS[at]), number);
                    expected.insert(PATHS[at].to_vec(), known(number));
                }
                Operation::Forget(at) => {
                    ledger.forget(path(PATHS[at]));
                    expected.remove(PATHS[at]);
                }
                Operation::ForgetBelow(at) => {
                    ledger.forget_below(&path(ABOVE[at]));
                    expected.retain(|name, _| !name.starts_with(ABOVE[at]));
                }
                Operation::Append => batch.append(&mut ledger.shared.lock()),
                Operation::Write => {
                    batch.append(&mut ledger.shared.lock());
                    store.write(&batch.below, &batch.rows).unwrap();
                    batch = Batch::default();
                }
            }
        }
        prop_assert_eq!(store.rows(), expected.len() as i64);
        prop_assert_eq!(loaded(&mut store, PATHS.map(<[u8]>::to_vec)), expected);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases / 4, ..ProptestConfig::default() })]

    #[test]
    fn a_crash_leaves_a_prefix_of_the_writes(groups in groups(), cut in any::<Index>()) {
        let (dir, home, _store) = written(&groups);
        let (states, names) = history(&groups);

        let killed = dir.path().join("killed");
        crash(&home, &killed);
        let mut after = Store::open(&killed).unwrap();
        prop_assert_eq!(Some(&loaded(&mut after, names.clone())), states.last());

        // Power was cut: the log's tail never reached the disk.
        let cut_off = dir.path().join("cut off");
        crash(&home, &cut_off);
        let log = fs::OpenOptions::new().write(true).open(cut_off.join(format!("{FILE}-wal"))).unwrap();
        let length = log.metadata().unwrap().len();
        log.set_len(cut.index(length as usize + 1) as u64).unwrap();
        let mut after = Store::open(&cut_off).unwrap();
        let left = loaded(&mut after, names);
        prop_assert!(states.contains(&left), "{left:?} was never the ledger's state");
    }

    #[test]
    fn a_damaged_ledger_never_loads_what_was_not_written(
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
            for (name, known) in loaded(&mut after, names.clone()) {
                prop_assert!(states.iter().any(|state| state.get(&name) == Some(&known)), "{known:?}");
            }
            put(&mut after, &[(b"new".to_vec(), Some(1))]);
            drop(after);
            let mut again = Store::open(&damaged).unwrap();
            prop_assert_eq!(loaded(&mut again, [b"new".to_vec()]), State::from([(b"new".to_vec(), known(1))]));
        }
    }
}
