//! The ledger: for each path the version and the digests that were confirmed last, kept across restarts.
//!
//! It may lag, never lead: a row is written after the broker's confirm, many rows in one transaction, by a
//! thread of its own. Losing its tail repeats messages, never loses one. A row is checked by its checksum when it is
//! read, so that damage which SQLite itself would not notice is noticed.
//!
//! One thing is waited for. A file keeps its version while its directory is renamed, or a link to it is made to lead
//! elsewhere, and can come back to its path with it. A row that lags would then be taken for what was told last. So
//! where such a path is given up its row goes first, and only then is anything else told there: [`Ledger::still_holds`].
//! On a disk that takes nothing a mark beside the ledger says that it is behind, and the next start does without it.
//!
//! For the same reason a row that lags may not be taken for a file of which all but ctime is the same: renamed away,
//! another told in its place, the process killed, and renamed back, it differs in nothing else. So a mark says that the
//! ledger is complete. It stands there only while no process runs, and only when the last one came to its end and knew of
//! each row that it is what was told last.

mod form1;
mod row;
pub mod store;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use row::{Confirmed, Rows, Trouble};
use rustix::process::Resource;
use store::{BEHIND, COMPLETE, Store};

use crate::error::Error;
use crate::files::version::Version;
use crate::hash::Digests;
use crate::progress::Progress;

/// Rows wait this long for others to share their transaction: so much of what was confirmed does a kill repeat.
const GROUP_TIME: Duration = Duration::from_millis(25);

/// Paths that wait at most while the disk takes no more; at some 250 bytes a path this is 16 MB, twice. What is
/// beyond is published again after a restart. As many directories that are forgotten: beyond that, all is.
const WAITING_MAX: usize = 1 << 16;

/// The same for paths that have to be forgotten first. Beyond it all of their directory is, which repeats more: see
/// [`PRESSED`].
const FIRST_MAX: usize = WAITING_MAX + 2 * PRESSED;

/// So many paths that have to be forgotten first are enough: look-overs and invalidate_first files wait. Events of links can add to
/// them, and what is with the readers.
const PRESSED: usize = WAITING_MAX / 4;

/// A directory above all paths.
pub const ALL: &[u8] = b"/";

/// Pause before what could not be written is tried again.
const RETRY_PAUSE: Duration = Duration::from_secs(2);

/// How often it is said that it cannot be written.
const WARN_EVERY: Duration = Duration::from_secs(60);

/// How long the last rows are waited for at the end.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// The way of confirms into the ledger. Dropped, it writes what waits and ends.
pub struct Ledger {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    changed: Condvar,
    progress: Arc<Progress>,
}

#[derive(Default)]
struct Waiting {
    /// Directories that all rows go below of, each path with a `/` at its end.
    below: Vec<Box<[u8]>>,
    /// By path.
    rows: HashMap<Box<[u8]>, Waits>,
    /// What [`Ledger::still_holds`], with the number of the group that ends it. Directories with a `/` at their end.
    awaited: HashMap<Box<[u8]>, u64>,
    /// The number of the group that takes this in.
    group: u64,
    /// Files wait for it.
    urgent: bool,
    /// Confirms that found no room.
    dropped: u64,
    /// At the end: what is known is what was told last, and with these rows the ledger holds all of it, but for paths whose
    /// rows may lag.
    exact_but_for: Option<Vec<Box<[u8]>>>,
    closing: bool,
    closed: bool,
}

struct Waits {
    /// What was confirmed last, or nothing when the path is gone.
    row: Option<Confirmed>,
    /// How many of [`Waiting::below`] came before it: the others end it.
    since: usize,
}

impl Waiting {
    fn len(&self) -> usize {
        self.rows.len() + self.below.len()
    }

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tells whether it is one more.
    fn put(&mut self, path: Box<[u8]>, row: Option<Confirmed>, most: usize) -> bool {
        let full = self.rows.len() >= most;
        let waits = Waits { row, since: self.below.len() };
        match self.rows.entry(path) {
            Entry::Occupied(mut occupied) => drop(occupied.insert(waits)),
            Entry::Vacant(_) if full => self.dropped += u64::from(row.is_some()),
            Entry::Vacant(vacant) => {
                vacant.insert(waits);
                return true;
            }
        }
        false
    }

    /// Tells whether it is one more.
    fn forget_below(&mut self, directory: &[u8]) -> bool {
        let directory = if self.below.len() < WAITING_MAX { directory } else { ALL };
        if self.below.last().is_some_and(|last| &**last == ALL) && directory == ALL {
            // All has been forgotten already, and what was confirmed since is forgotten with it.
            self.rows.values_mut().for_each(|waits| waits.since = 0);
            return false;
        }
        self.below.push(directory.into());
        self.await_end_of(directory);
        true
    }

    fn await_end_of(&mut self, path: &[u8]) {
        self.awaited.insert(path.into(), self.group);
        self.urgent = true;
    }
}

/// The directories that a path is below of, each with a `/` at its end; itself, where it has one.
fn directories_above(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| &path[..=at])
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // No change below can panic half-way.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ledger {
    /// Starts the thread that writes.
    ///
    /// # Errors
    /// [`Error::Internal`] when there is no thread.
    pub fn start(store: Store, progress: Arc<Progress>) -> Result<Self, Error> {
        let shared = Arc::new(Shared { progress, ..Shared::default() });
        let thread = thread::Builder::new().name("ledger".to_owned()).spawn({
            let shared = Arc::clone(&shared);
            move || Writer::new(store, shared).run()
        });
        let thread = thread.map_err(|error| Error::Threads { what: "the ledger's thread", cause: error })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Notes what was confirmed for an absolute path. `racy`: see [`Version::is_racy`].
    pub fn confirm(&self, path: Vec<u8>, version: Version, digests: Digests, racy: bool) {
        self.put(path, Some(Confirmed { version, digests: Some(digests), racy, by_version_only: false }));
    }

    /// Writes what waits and ends. Everything that was told has been confirmed here, and what was recalled has been
    /// compared: the next start may rely on each row, but for those of some paths.
    pub fn end_exact(self, but_for: Vec<Box<[u8]>>) {
        self.shared.lock().exact_but_for = Some(but_for);
    }

    /// Forgets a path that is gone.
    pub fn forget(&self, path: Vec<u8>) {
        self.put(path, None);
    }

    /// Forgets all paths below a directory that is gone from its path, which ends in `/`, before anything else is told
    /// there. One row by one, those of a large tree would find no room.
    pub fn forget_below(&self, directory: &[u8]) {
        self.add(|waiting| waiting.forget_below(directory));
    }

    /// Forgets a path where another file can stand and the same come back, before anything else is told there.
    pub fn invalidate(&self, path: &[u8]) {
        self.add(|waiting| {
            let before = waiting.len();
            waiting.put(path.into(), None, FIRST_MAX);
            if waiting.rows.contains_key(path) {
                waiting.await_end_of(path);
                return waiting.len() > before;
            }
            waiting.forget_below(directories_above(path).last().unwrap_or(ALL))
        });
    }

    /// Whether a row may still stand there that is to be gone first. `directory` ends in `/`.
    #[must_use]
    pub fn still_holds(&self, directory: &[u8], name: &[u8]) -> bool {
        let awaited = &self.shared.lock().awaited;
        !awaited.is_empty()
            && (awaited.contains_key(&[directory, name].concat()[..])
                || directories_above(directory).any(|above| awaited.contains_key(above)))
    }

    /// Whether so much is awaited that no more should be added where that can wait.
    #[must_use]
    pub fn is_pressed(&self) -> bool {
        self.shared.lock().awaited.len() >= PRESSED
    }

    fn put(&self, path: Vec<u8>, row: Option<Confirmed>) {
        self.add(|waiting| waiting.put(path.into(), row, WAITING_MAX));
    }

    /// Changes what waits, and wakes the thread for the first of it, or where it is not to wait for others; `change`
    /// tells whether it is one more.
    fn add(&self, change: impl FnOnce(&mut Waiting) -> bool) {
        let mut waiting = self.shared.lock();
        let (first, urgent) = (waiting.is_empty(), waiting.urgent);
        if change(&mut waiting) {
            self.shared.progress.ledger.add(1);
        }
        if first || waiting.urgent != urgent {
            self.shared.changed.notify_all();
        }
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        let mut waiting = self.shared.lock();
        waiting.closing = true;
        self.shared.changed.notify_all();
        let closed = self.shared.changed.wait_timeout_while(waiting, CLOSE_TIMEOUT, |waiting| !waiting.closed);
        let closed = closed.unwrap_or_else(PoisonError::into_inner).0.closed;
        match self.thread.take() {
            // Its panic, if any, has been shown.
            Some(thread) if closed => drop(thread.join()),
            _ => tracing::warn!("the ledger was not written to its end: some files may be published again"),
        }
    }
}

/// What is written in one transaction.
#[derive(Default)]
struct Group {
    /// Removed first: all that is below of these.
    below: Vec<Box<[u8]>>,
    rows: Rows,
}

impl Group {
    fn len(&self) -> usize {
        self.rows.len() + self.below.len()
    }

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes over what waits, after what is here.
    fn add(&mut self, waiting: &mut Waiting) {
        let last: HashMap<&[u8], usize> = waiting.below.iter().map(|path| &**path).zip(1..).collect();
        // Whether a directory above the path went after so many had gone.
        let ended = |path: &[u8], since: usize| {
            let goes = |above: &[u8]| last.get(above).is_some_and(|&number| number > since);
            !last.is_empty() && directories_above(path).any(goes)
        };
        self.rows.retain(|path, _| !ended(path, 0));
        let left = waiting.rows.drain().filter(|(path, waits)| !ended(path, waits.since));
        self.rows.extend(left.map(|(path, waits)| (path, waits.row)));
        self.below.append(&mut waiting.below);
    }
}

/// The thread's side.
struct Writer {
    store: Store,
    shared: Arc<Shared>,
    /// What is being written.
    group: Group,
    /// Its number: see [`Waiting::awaited`].
    number: u64,
    /// The ledger is marked as one that is behind, until the group with this number is written.
    behind: Option<u64>,
    /// When it was last said that something is not written.
    warned: Option<Instant>,
    /// The last attempt failed.
    failing: bool,
    /// Some that was confirmed never found room: its rows are of what was told before.
    lags: bool,
}

impl Writer {
    fn new(mut store: Store, shared: Arc<Shared>) -> Self {
        let group = Group { below: Vec::new(), rows: store.take_unwritten() };
        shared.progress.ledger.add(group.len());
        let mut writer =
            Self { store, shared, group, number: 0, behind: None, warned: None, failing: false, lags: false };
        if !writer.group.is_empty()
            && let Err(error) = writer.fall_behind()
        {
            writer.warn(|directory| unmarked(directory, &error));
        }
        writer
    }

    fn run(mut self) {
        let mut pause = GROUP_TIME;
        self.report_size();
        loop {
            let (closing, dropped) = self.gather(pause);
            self.lags |= dropped > 0;
            match self.write() {
                Ok(()) => {
                    self.shared.progress.ledger.done(self.group.len());
                    if !self.group.is_empty() && std::mem::take(&mut self.failing) {
                        self.warned = None;
                        tracing::info!("the ledger is written again");
                    }
                    self.group = Group::default();
                    self.catch_up();
                    if dropped > 0 {
                        self.warn(|directory| {
                            tracing::warn!(
                                "the ledger in {directory:?} is written more slowly than files are confirmed: {dropped} found no room and are published again by the next start; give it a faster disk"
                            );
                        });
                    }
                    self.report_size();
                    pause = GROUP_TIME;
                }
                Err(trouble) => {
                    self.shared.progress.ledger.touch(); // it tries
                    self.shared.progress.metrics.ledger_failures.inc();
                    self.failing = true;
                    let awaited = !self.shared.lock().awaited.is_empty();
                    let unmarkable = if awaited { self.fall_behind().err() } else { None };
                    let waiting = self.group.rows.len();
                    self.warn(|directory| {
                        tracing::warn!(
                            "the ledger in {directory:?} cannot be written: {trouble}; {waiting} files wait for it and {dropped} found no room: unless it can be written before the next start they are published again then; {}",
                            make_room()
                        );
                        unmarkable.iter().for_each(|error| unmarked(directory, error));
                    });
                    pause = RETRY_PAUSE;
                }
            }
            if closing {
                break;
            }
        }
        // Its last checkpoint belongs to what is waited for.
        let all_written = self.group.is_empty() && self.behind.is_none() && !self.lags;
        let exact = |waiting: &mut Waiting| waiting.exact_but_for.take().filter(|_| waiting.is_empty());
        let exact_but_for = exact(&mut self.shared.lock());
        if all_written && let Some(lagging) = exact_but_for {
            let directory = self.store.directory().to_owned();
            if let Err(trouble) = self.store.complete(&lagging) {
                tracing::warn!(
                    "{COMPLETE} cannot be made in {directory:?}: {trouble}; files whose metadata alone changes until the next start may be published again"
                );
            }
        } else {
            drop(self.store);
        }
        self.shared.lock().closed = true;
        self.shared.changed.notify_all();
    }

    /// Waits for the first row, then for others to join it. Tells whether this is the end, and how many rows
    /// found no room.
    fn gather(&mut self, pause: Duration) -> (bool, u64) {
        let changed = &self.shared.changed;
        let idle = |waiting: &mut Waiting| waiting.is_empty() && self.group.is_empty() && !waiting.closing;
        let waiting = changed.wait_while(self.shared.lock(), idle).unwrap_or_else(PoisonError::into_inner);
        let others = |waiting: &mut Waiting| !(waiting.closing || waiting.urgent && !self.failing);
        let waited = changed.wait_timeout_while(waiting, pause, others);
        let mut waiting = waited.unwrap_or_else(PoisonError::into_inner).0;
        if self.group.rows.len() < WAITING_MAX && self.group.below.len() < WAITING_MAX {
            let separate = self.group.len() + waiting.len();
            self.group.add(&mut waiting);
            self.shared.progress.ledger.done(separate - self.group.len());
            self.number = waiting.group;
            waiting.group += 1;
            waiting.urgent = false;
        }
        (waiting.closing, std::mem::take(&mut waiting.dropped))
    }

    /// Rows that ought to be gone stay for now: the next start is to do without the ledger, and nothing waits for them.
    fn fall_behind(&mut self) -> io::Result<()> {
        if self.behind.is_none() {
            self.store.behind(true)?;
        }
        let mut waiting = self.shared.lock();
        waiting.awaited.clear();
        self.behind = Some(waiting.group);
        Ok(())
    }

    /// The group has been written.
    fn catch_up(&mut self) {
        self.shared.lock().awaited.retain(|_, number| *number > self.number);
        if self.behind.is_some_and(|last| last <= self.number) && self.store.behind(false).is_ok() {
            self.behind = None;
        }
    }

    fn write(&mut self) -> Result<(), Trouble> {
        if self.group.is_empty() { Ok(()) } else { self.store.write(&self.group.below, &self.group.rows) }
    }

    fn report_size(&self) {
        let metrics = &self.shared.progress.metrics;
        metrics.ledger_rows.set(self.store.rows());
        if let Some(bytes) = self.store.bytes() {
            metrics.ledger_bytes.set(bytes);
        }
    }

    fn warn(&mut self, tell: impl FnOnce(&Path)) {
        if self.warned.is_none_or(|at| at.elapsed() >= WARN_EVERY) {
            self.warned = Some(Instant::now());
            tell(self.store.directory());
        }
    }
}

/// What to do where it cannot be written: SQLite does not say which of these it was.
fn make_room() -> String {
    match rustix::process::getrlimit(Resource::Fsize).current {
        Some(bytes) => format!(
            "make room on its disk or in its quota, or raise the limit of {bytes} bytes a file (ulimit -f, LimitFSIZE=)"
        ),
        None => "make room on its disk, or in its quota".to_owned(),
    }
}

fn unmarked(directory: &Path, error: &io::Error) {
    tracing::warn!(
        "{BEHIND} cannot be made in {directory:?}: {error}; files wait where another's row would have to go first"
    );
}

#[cfg(test)]
pub(crate) mod tests;
