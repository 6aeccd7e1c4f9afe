//! A history of a ledger over several starts, whose writer is moved by hand, and what the disk may hold at each moment.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;

use super::disk::{Random, Recorder};
use crate::job::Last;
use crate::ledger::queue::Shared;
use crate::ledger::row::Confirmed;
use crate::ledger::state_directory::BEHIND;
use crate::ledger::store::{Fate, Store};
use crate::ledger::tests::{confirmed, crash};
use crate::ledger::writer::Writer;
use crate::ledger::{ALL, Ledger, MessageId};

/// The directories and names of the history's files. A slash sorts between `-` and `0`.
const DIRECTORIES: [&[u8]; 4] = [b"/data/", b"/data/d/", b"/data/d/e/", b"/data/d-e/"];
const NAMES: [&[u8]; 6] = [b"a", b"\xff", b"e0", b"a name that fills its page", b"x\n", b"z"];

/// Operations between a start and an end.
const OPERATIONS: usize = 16;

/// Pages in the log after which SQLite moves them into the database; a thousand, were it not for the test.
const CHECKPOINT_PAGES: u32 = 6;

/// What a ledger holds. That a row counts by its version only is left out: a start adds it.
pub(super) type State = BTreeMap<Vec<u8>, Confirmed>;

/// So many of a path's rows.
type Counts = BTreeMap<Vec<u8>, usize>;

/// How a run of the service ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// In order, with everything confirmed.
    Complete,
    /// In order, with messages that are not confirmed.
    Incomplete,
    Killed,
}

/// What may be on the disk while one thing happens.
#[derive(Clone)]
pub(super) struct Moment {
    /// A kill leaves one of these.
    pub allowed: Vec<Rc<State>>,
    /// For each path how many of [`History::confirmed`] must not come back, because files wait for that no more.
    pub stale: Counts,
    /// The last run has ended in order, or is about to, and the next one has not begun.
    pub complete: bool,
}

/// See the module.
pub(super) struct History {
    homes: TempDir,
    pub directory: PathBuf,
    disk: Rc<RefCell<Recorder>>,
    random: Random,
    ledger: Option<Ledger>,
    writer: Option<Writer>,
    /// What the ledger holds once everything queued is written.
    queued: State,
    /// All rows that the ledger was ever given for a path, the first one first.
    pub confirmed: BTreeMap<Vec<u8>, Vec<Confirmed>>,
    /// Invalidations that may be pending: a path or a directory, and how many rows each path had had.
    invalidated: Vec<(Vec<u8>, Counts)>,
    pub moments: Vec<Moment>,
    number: u64,
}

impl History {
    /// The state directories are below `homes`, and the disk has the first of them.
    pub(super) fn new(homes: TempDir, disk: Rc<RefCell<Recorder>>, seed: u64) -> Self {
        let directory = disk.borrow().directory.clone();
        let empty = Moment { allowed: vec![Rc::default()], stale: BTreeMap::new(), complete: false };
        Self {
            homes,
            directory,
            disk,
            random: Random(seed),
            ledger: None,
            writer: None,
            queued: State::new(),
            confirmed: BTreeMap::new(),
            invalidated: Vec::new(),
            moments: vec![empty],
            number: 0,
        }
    }

    /// Runs of a service that end in every way.
    pub(super) fn run(&mut self) {
        for end in [End::Complete, End::Killed, End::Incomplete, End::Killed, End::Complete] {
            self.start();
            for _ in 0..OPERATIONS {
                self.operation();
                if self.random.below(3) == 0 {
                    self.turn();
                }
            }
            if end == End::Killed {
                self.kill();
            } else {
                self.end(end == End::Complete);
            }
        }
    }

    /// From here on the disk has room.
    pub(super) fn settle(&mut self) {
        self.disk.borrow_mut().fault = None;
        self.start();
        self.operation();
        self.turn();
        self.end(true);
    }

    /// What the disk has to hold now, where nothing fails any more.
    pub(super) fn queued(&self) -> &State {
        &self.queued
    }

    fn last(&self) -> &Moment {
        self.moments.last().expect("there is a first one")
    }

    fn happens(&mut self, moment: Moment) {
        self.moments.push(moment);
        let mut disk = self.disk.borrow_mut();
        disk.moment = self.moments.len() - 1;
        disk.note();
    }

    /// From now on the disk may also hold this.
    fn may_hold(&mut self, state: State) {
        let mut moment = self.last().clone();
        moment.allowed.push(Rc::new(state));
        self.happens(moment);
    }

    /// From now on the disk holds this.
    fn holds(&mut self, state: State) {
        let moment = Moment { allowed: vec![Rc::new(state)], ..self.last().clone() };
        self.happens(moment);
    }

    /// Opens the ledger and loads it. Some files are gone meanwhile, and some are left out.
    fn start(&mut self) {
        let (mut gone, mut left_out) = (BTreeSet::new(), BTreeSet::new());
        for path in self.confirmed.keys() {
            match self.random.below(8) {
                0 => drop(gone.insert(path.clone())),
                1 => drop(left_out.insert(path.clone())),
                _ => {}
            }
        }
        let behind = self.directory.join(BEHIND).exists();
        let mut moment = self.last().clone();
        let changed: Vec<_> = moment.allowed.iter().map(|state| Rc::new(without(state, &gone))).collect();
        moment.allowed.extend(changed);
        if behind {
            moment.allowed.push(Rc::default());
        }
        self.happens(moment);

        let (store, loaded) = self.load(&gone, &left_out);
        self.happens(Moment { complete: false, ..self.last().clone() });
        if let Some(rows) = &loaded {
            let allowed = &self.last().allowed;
            assert!(allowed.iter().any(|state| **state == *rows), "loaded what it never held: {rows:?}");
            assert!(!behind || rows.is_empty(), "a ledger that is behind is not loaded");
            self.queued = without(rows, &gone);
            let allowed = vec![Rc::new(rows.clone()), Rc::new(self.queued.clone())];
            self.happens(Moment { allowed, ..self.last().clone() });
        }
        let shared = Arc::new(Shared::new(Arc::default()));
        self.ledger = Some(Ledger::of(Arc::clone(&shared)));
        self.writer = Some(Writer::new(store, shared));
        if loaded.is_none() {
            self.forget_below(ALL);
        }
        self.note_written();
    }

    /// The open ledger and its rows, or `None` if it could not be read.
    fn load(&self, gone: &BTreeSet<Vec<u8>>, left_out: &BTreeSet<Vec<u8>>) -> (Store, Option<State>) {
        let mut store = Store::open(&self.directory).unwrap();
        if let Ok(connection) = store.connect() {
            connection.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES).unwrap();
        }
        let mut rows = State::new();
        let whole = store.load(|path, row| {
            rows.insert(path.to_vec(), Confirmed { by_version_only: true, ..*row });
            match path {
                _ if gone.contains(path) => Fate::Gone,
                _ if left_out.contains(path) => Fate::LeftOut,
                _ => Fate::Known,
            }
        });
        let whole = whole.unwrap();
        assert!(whole || self.disk.borrow().refused > 0, "a disk that refuses nothing is read to its end");
        (store, whole.then_some(rows))
    }

    fn operation(&mut self) {
        let directory = DIRECTORIES[self.random.below(DIRECTORIES.len())];
        let path = [directory, NAMES[self.random.below(NAMES.len())]].concat();
        match self.random.below(12) {
            0..7 => self.confirm(path),
            7 | 8 => {
                self.ledger().forget(path.clone());
                self.queued.remove(&path);
            }
            9 => {
                self.invalidated.push((path.clone(), self.counts()));
                self.ledger().invalidate(&path);
                self.queued.remove(&path);
            }
            10 => {
                self.invalidated.push((path.clone(), self.counts()));
                self.ledger().void(&path, &Last::announced());
                self.enter(path, Confirmed::void(&Last::announced()));
            }
            _ => self.forget_below(directory),
        }
    }

    fn ledger(&self) -> &Ledger {
        self.ledger.as_ref().expect("it was started")
    }

    fn confirm(&mut self, path: Vec<u8>) {
        self.number += 1;
        let Confirmed { version, digests, racy, .. } = confirmed(self.number);
        self.ledger().confirm(path.clone(), version, digests.unwrap(), racy, MessageId::OfVersion);
        self.enter(path, confirmed(self.number));
    }

    fn enter(&mut self, path: Vec<u8>, row: Confirmed) {
        let row = Confirmed { by_version_only: true, ..row };
        self.confirmed.entry(path.clone()).or_default().push(row);
        self.queued.insert(path, row);
    }

    fn forget_below(&mut self, directory: &[u8]) {
        self.invalidated.push((directory.to_vec(), self.counts()));
        self.ledger().forget_below(directory);
        self.queued.retain(|path, _| !path.starts_with(directory));
    }

    /// How many rows each path has had.
    fn counts(&self) -> Counts {
        self.confirmed.iter().map(|(path, rows)| (path.clone(), rows.len())).collect()
    }

    /// The writer writes what is queued, once.
    fn turn(&mut self) {
        let writer = self.writer.as_mut().expect("it was started");
        if !writer.has_work() {
            return;
        }
        self.may_hold(self.queued.clone());
        self.writer.as_mut().expect("as above").turn(Duration::ZERO);
        self.note_written();
        if !self.writer.as_ref().expect("as above").has_work() {
            self.holds(self.queued.clone());
        }
    }

    /// Rows that files wait for no more must not come back.
    fn note_written(&mut self) {
        let mut moment = self.last().clone();
        let ledger = self.ledger.as_ref().expect("it was started");
        self.invalidated.retain(|(invalidated, counts)| {
            let concerned = |path: &[u8]| path == &**invalidated || is_below(path, invalidated);
            let pending = match invalidated.strip_suffix(b"/") {
                Some(_) => ledger.still_holds(invalidated, b"any"),
                None => {
                    let name = invalidated.iter().rposition(|&byte| byte == b'/').unwrap() + 1;
                    ledger.still_holds(&invalidated[..name], &invalidated[name..])
                }
            };
            for (path, count) in counts.iter().filter(|(path, _)| !pending && concerned(path)) {
                let stale = moment.stale.entry(path.clone()).or_default();
                *stale = (*stale).max(*count);
            }
            pending
        });
        self.happens(moment);
    }

    /// The service is killed between two writes. The next one finds the files as they are, elsewhere: in this process they are
    /// locked until its end.
    fn kill(&mut self) {
        let (ledger, writer) = (self.ledger.take().unwrap(), self.writer.take().unwrap());
        ledger.shared.lock().closed = true; // dropping it does not wait
        std::mem::forget(writer);
        let elsewhere = self.homes.path().join(self.moments.len().to_string());
        crash(&self.directory, &elsewhere);
        self.directory.clone_from(&elsewhere);
        self.disk.borrow_mut().directory = elsewhere;
        self.invalidated.clear(); // what waited for them was not published
    }

    /// The service ends; `complete`: with everything confirmed.
    fn end(&mut self, complete: bool) {
        self.may_hold(self.queued.clone());
        let (ledger, mut writer) = (self.ledger.take().unwrap(), self.writer.take().unwrap());
        {
            let mut queue = ledger.shared.lock();
            queue.exact_but_for = complete.then(Vec::new);
            queue.closing = true;
        }
        while writer.turn(Duration::ZERO).is_some() {}
        let written = !writer.has_work();
        self.ledger = Some(ledger);
        self.note_written();
        if written {
            self.holds(self.queued.clone());
        }
        self.happens(Moment { complete: complete && written, ..self.last().clone() });
        writer.close();
        self.disk.borrow_mut().note();
        self.invalidated.clear(); // what waited for them was not published
        self.ledger = None;
    }
}

fn without(state: &State, gone: &BTreeSet<Vec<u8>>) -> State {
    let kept = state.iter().filter(|(path, _)| !gone.contains(*path));
    kept.map(|(path, row)| (path.clone(), *row)).collect()
}

fn is_below(path: &[u8], directory: &[u8]) -> bool {
    directory.ends_with(b"/") && path.starts_with(directory)
}
