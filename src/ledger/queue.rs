//! Rows and deletions on their way to the database: the queue, and the batch that the writer makes of it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::time::Duration;

use tokio::sync::oneshot;

use super::row::{Confirmed, Rows};
use super::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use crate::inquiry::Row;
use crate::progress::Progress;

/// The most queued confirms while the disk takes no more; at some 250 bytes a path this is 16 MB, twice. Those beyond it
/// are published again after a restart. Beyond as many deleted directories all rows are deleted.
pub(super) const QUEUED_MAX: usize = 1 << 16;

/// The most queued rows with invalidations. Beyond it a path's whole directory is invalidated, which repeats more
/// messages: [`HIGH_WATER`] keeps that rare.
pub(super) const INVALIDATED_MAX: usize = QUEUED_MAX + 2 * HIGH_WATER;

/// The high-water mark of pending invalidations. Above it rescans and files with a stale row wait; events of links and
/// jobs in flight may still add some.
pub(super) const HIGH_WATER: usize = QUEUED_MAX / 4;

/// The most rows that are asked for at once: people ask, one after the other.
const QUESTIONS_MAX: usize = 8;

/// The directory above all paths.
pub const ALL: &[u8] = b"/";

#[derive(Default)]
pub(super) struct Shared {
    queue: Mutex<Queue>,
    pub changed: Condvar,
    pub progress: Arc<Progress>,
}

impl Shared {
    pub(super) fn new(progress: Arc<Progress>) -> Self {
        Self { progress, ..Self::default() }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Queue> {
        // No change of the queue can panic half-way.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the queue, and wakes the thread if the queue was empty or has become urgent. `change` returns whether it is
    /// longer by one.
    pub(super) fn add(&self, change: impl FnOnce(&mut Queue) -> bool) {
        let mut queue = self.lock();
        let (first, urgent) = (queue.is_empty(), queue.urgent);
        if change(&mut queue) {
            self.progress.ledger.add(1);
        }
        if first || queue.urgent != urgent {
            self.changed.notify_all();
        }
    }

    /// See [`Ledger::look_up`](super::Ledger::look_up).
    pub(super) fn look_up(&self, path: &[u8]) -> oneshot::Receiver<Option<Row>> {
        let (reply, row) = oneshot::channel();
        let mut queue = self.lock();
        if queue.questions.len() < QUESTIONS_MAX {
            queue.questions.push((path.into(), reply));
            self.changed.notify_all();
        }
        row
    }

    /// Asks the thread to end and waits so long for it. Returns whether it has ended.
    pub(super) fn close(&self, timeout: Duration) -> bool {
        let mut queue = self.lock();
        queue.closing = true;
        self.changed.notify_all();
        let closed = self.changed.wait_timeout_while(queue, timeout, |queue| !queue.closed);
        closed.unwrap_or_else(PoisonError::into_inner).0.closed
    }
}

/// The path of a row that is asked for, and the way of the answer.
pub(super) type Question = (Box<[u8]>, oneshot::Sender<Option<Row>>);

#[derive(Default)]
pub(super) struct Queue {
    /// Directories whose rows are all deleted, each path with a `/` at its end.
    pub below: Vec<Box<[u8]>>,
    /// By path.
    pub rows: HashMap<Box<[u8]>, QueuedRow>,
    /// The paths that [`Ledger::still_holds`](super::Ledger::still_holds), each with the number of the batch that deletes
    /// its row. Directories have a `/` at their end.
    pub pending_invalidations: HashMap<Box<[u8]>, u64>,
    /// The number of the batch that this becomes part of.
    pub batch: u64,
    /// Files wait for it to be written.
    pub urgent: bool,
    /// How many confirms found no room.
    pub dropped: u64,
    /// Set at the end, if the ledger is complete but for the rows of these paths, which may lag.
    pub exact_but_for: Option<Vec<Box<[u8]>>>,
    /// The paths of rows that are asked for, [`QUESTIONS_MAX`] at most, each with the way of its answer.
    pub questions: Vec<Question>,
    pub closing: bool,
    pub closed: bool,
}

pub(super) struct QueuedRow {
    /// What was confirmed last, or `None` when the path is gone.
    row: Option<Confirmed>,
    /// How many of [`Queue::below`] were queued before the row. Those after it delete it.
    since: usize,
}

impl Queue {
    pub(super) fn len(&self) -> usize {
        self.rows.len() + self.below.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Queues a row while there are fewer than `most`. Returns whether the queue is longer by one.
    pub(super) fn put(&mut self, path: Box<[u8]>, row: Option<Confirmed>, most: usize) -> bool {
        debug_assert!(path.starts_with(ALL), "paths are absolute");
        let full = self.rows.len() >= most;
        let queued = QueuedRow { row, since: self.below.len() };
        match self.rows.entry(path) {
            Entry::Occupied(mut occupied) => drop(occupied.insert(queued)),
            Entry::Vacant(_) if full => self.dropped += u64::from(row.is_some()),
            Entry::Vacant(vacant) => {
                vacant.insert(queued);
                return true;
            }
        }
        false
    }

    /// Makes the deletion of a path's row, or its change to a void one, a pending invalidation. Returns as `put` does.
    pub(super) fn invalidate(&mut self, path: &[u8], void: Option<Confirmed>) -> bool {
        let before = self.len();
        self.put(path.into(), void, INVALIDATED_MAX);
        if self.rows.contains_key(path) {
            self.add_pending(path);
            return self.len() > before;
        }
        self.delete_below(directories_above(path).last().unwrap_or(ALL))
    }

    /// Makes the deletion of all rows below a directory a pending invalidation. Returns as `put` does.
    pub(super) fn delete_below(&mut self, directory: &[u8]) -> bool {
        assert!(directory.ends_with(b"/"), "a directory's path ends in a slash");
        let directory = if self.below.len() < QUEUED_MAX { directory } else { ALL };
        if self.below.last().is_some_and(|last| &**last == ALL) && directory == ALL {
            // That all rows are deleted is queued already, so this deletes those queued since.
            self.rows.values_mut().for_each(|queued| queued.since = 0);
            return false;
        }
        self.below.push(directory.into());
        assert!(self.below.len() <= QUEUED_MAX + 1, "a full list ends in the deletion of all rows");
        self.add_pending(directory);
        true
    }

    fn add_pending(&mut self, path: &[u8]) {
        self.pending_invalidations.insert(path.into(), self.batch);
        self.urgent = true;
    }

    /// Whether an invalidation of this path, or of a directory above it, is pending. `directory` ends in `/`.
    pub(super) fn is_pending(&self, directory: &[u8], name: &[u8]) -> bool {
        debug_assert!(directory.ends_with(b"/"), "a directory's path ends in a slash");
        let pending = &self.pending_invalidations;
        !pending.is_empty()
            && (pending.contains_key(&[directory, name].concat()[..])
                || directories_above(directory).any(|above| pending.contains_key(above)))
    }
}

/// The directories above a path, each with a `/` at its end. A path that ends in `/` is the last of them itself.
fn directories_above(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| &path[..=at])
}

/// What is written in one transaction.
#[derive(Default)]
pub(super) struct Batch {
    /// Directories whose rows are all deleted, before `rows` are written.
    pub below: Vec<Box<[u8]>>,
    pub rows: Rows,
}

impl Batch {
    pub(super) fn len(&self) -> usize {
        self.rows.len() + self.below.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn has_room(&self) -> bool {
        self.rows.len() < QUEUED_MAX && self.below.len() < QUEUED_MAX
    }

    /// Empties the queue into the batch. A row goes when a directory above it is deleted later than it was queued.
    pub(super) fn append(&mut self, queue: &mut Queue) {
        // Each directory with the number of its last deletion, counted from 1.
        let last: HashMap<&[u8], usize> = queue.below.iter().map(|path| &**path).zip(1..).collect();
        let deleted_after = |path: &[u8], since: usize| {
            let deletes = |above: &[u8]| last.get(above).is_some_and(|&number| number > since);
            !last.is_empty() && directories_above(path).any(deletes)
        };
        self.rows.retain(|path, _| !deleted_after(path, 0));
        let left = queue.rows.drain().filter(|(path, queued)| !deleted_after(path, queued.since));
        self.rows.extend(left.map(|(path, queued)| (path, queued.row)));
        self.below.append(&mut queue.below);
    }
}
