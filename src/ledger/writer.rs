//! The ledger's thread, which writes the queue in batches.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Resource;

use super::queue::{Batch, Queue, Shared};
use super::row::StoreError;
use super::state_directory::{BEHIND, COMPLETE};
use super::store::Store;
use super::sync::{Arc, MutexGuard, PoisonError};
use crate::advice;
use crate::error::os_message;

/// Rows wait this long for others to share their transaction. A kill repeats the messages that were confirmed within it.
const BATCH_TIME: Duration = Duration::from_millis(25);

/// Pause before a batch that could not be written is tried again.
const RETRY_PAUSE: Duration = Duration::from_secs(2);

/// The pause between two steps of shrinking, and before the first: a writer of rows that come one by one is not disturbed.
const SHRINK_PAUSE: Duration = Duration::from_millis(100);

/// The shortest time between two warnings.
const WARN_EVERY: Duration = Duration::from_secs(60);

pub(super) struct Writer {
    store: Store,
    shared: Arc<Shared>,
    /// What is being written.
    batch: Batch,
    /// The number of the batch: see [`Queue::pending_invalidations`].
    number: u64,
    /// The ledger is behind until the batch with this number is written.
    behind: Option<u64>,
    /// It is marked as behind. While there is no database it is not, and no row can be stale.
    marked: bool,
    /// When the last warning was logged.
    warned: Option<Instant>,
    /// The last attempt failed.
    failing: bool,
    /// A confirm found no room, so the row of its path is of an earlier message.
    lags: bool,
    /// The database is being shrunk while no row waits.
    shrinks: bool,
}

impl Writer {
    pub(super) fn new(mut store: Store, shared: Arc<Shared>) -> Self {
        let batch = Batch { below: Vec::new(), rows: store.take_unwritten() };
        shared.progress.ledger.add(batch.len());
        let mut writer = Self {
            store,
            shared,
            batch,
            number: 0,
            behind: None,
            marked: false,
            warned: None,
            failing: false,
            lags: false,
            shrinks: false,
        };
        if !writer.batch.is_empty()
            && let Err(error) = writer.fall_behind()
        {
            writer.warn(|directory| warn_unmarked(directory, &error));
        }
        writer
    }

    pub(super) fn run(mut self) {
        self.report_size();
        let mut pause = BATCH_TIME;
        while let Some(next) = self.turn(pause) {
            pause = next;
        }
        self.close();
    }

    /// Writes one batch, once rows are queued. Returns how long the next one may grow, or `None` when the ledger is closing.
    pub(super) fn turn(&mut self, pause: Duration) -> Option<Duration> {
        let (closing, dropped) = self.gather(pause);
        self.lags |= dropped > 0;
        let pause = match self.write() {
            Ok(()) => {
                self.written(dropped);
                BATCH_TIME
            }
            Err(error) => {
                self.failed(&error, dropped);
                RETRY_PAUSE
            }
        };
        self.answer();
        if closing { None } else { Some(pause) }
    }

    /// Waits for the first row, then for others to join it. Returns whether the ledger is closing, and how many rows
    /// found no room.
    fn gather(&mut self, pause: Duration) -> (bool, u64) {
        let shared = Arc::clone(&self.shared);
        let queue = self.wait(&shared);
        let changed = &shared.changed;
        let may_grow = |queue: &mut Queue| !(queue.closing || queue.urgent && !self.failing);
        let waited = changed.wait_timeout_while(queue, pause, may_grow);
        let mut queue = waited.unwrap_or_else(PoisonError::into_inner).0;
        if self.batch.has_room() {
            let separate = self.batch.len() + queue.len();
            self.batch.append(&mut queue);
            self.shared.progress.ledger.done(separate - self.batch.len());
            self.number = queue.batch;
            queue.batch += 1;
            queue.urgent = false;
        }
        (queue.closing, std::mem::take(&mut queue.dropped))
    }

    /// Waits for the first row. Meanwhile room that deleted rows have left is returned to the disk, piece by piece.
    fn wait<'a>(&mut self, shared: &'a Shared) -> MutexGuard<'a, Queue> {
        let waits = self.batch.is_empty();
        let idle = |queue: &mut Queue| waits && queue.is_empty() && queue.questions.is_empty() && !queue.closing;
        while self.shrinks {
            let waited = shared.changed.wait_timeout_while(shared.lock(), SHRINK_PAUSE, idle);
            let (queue, waited) = waited.unwrap_or_else(PoisonError::into_inner);
            if !waited.timed_out() {
                return queue;
            }
            drop(queue);
            self.shrink();
        }
        shared.changed.wait_while(shared.lock(), idle).unwrap_or_else(PoisonError::into_inner)
    }

    fn shrink(&mut self) {
        self.shrinks = match self.store.shrink() {
            Ok(more) => more,
            Err(error) => {
                let directory = self.store.directory().to_string_lossy().into_owned();
                tracing::debug!(
                    event = "ledger_not_shrunk",
                    path = directory,
                    %error,
                    "the ledger in {directory:?} keeps the room of deleted rows for now: {error}"
                );
                false
            }
        };
        if !self.shrinks {
            self.report_bytes();
        }
    }

    /// Whether rows wait, queued or in a batch that could not be written.
    #[cfg(test)]
    pub(super) fn has_work(&self) -> bool {
        !self.batch.is_empty() || !self.shared.lock().is_empty()
    }

    fn write(&mut self) -> Result<(), StoreError> {
        if self.batch.is_empty() {
            return Ok(());
        }
        if self.behind.is_some() && !self.marked {
            // The first rows of a database are marked before they are written: a later batch may delete some of them.
            self.store.create()?;
            self.marked = self.store.mark_behind()?;
            if !self.marked {
                return Err(StoreError::Behind); // somebody has taken the database away
            }
        }
        self.store.write(&self.batch.below, &self.batch.rows)
    }

    /// Answers which rows there are, those included that could not be written yet.
    fn answer(&mut self) {
        let questions = std::mem::take(&mut self.shared.lock().questions);
        for (path, reply) in questions {
            let row = match self.batch.rows.get(&path) {
                Some(row) => Ok(*row),
                None => self.store.row(&path),
            };
            // A row that cannot be read is left unanswered: the next write meets the same failure, and logs it.
            if let Ok(row) = row {
                // Who asked may have gone away.
                let _ = reply.send(row.map(|row| row.shown(&path)));
            }
        }
    }

    fn written(&mut self, dropped: u64) {
        self.shared.progress.ledger.done(self.batch.len());
        if !self.batch.is_empty() && std::mem::take(&mut self.failing) {
            self.warned = None;
            tracing::info!(event = "ledger_written", "the ledger is written again");
        }
        self.batch = Batch::default();
        self.catch_up();
        if dropped > 0 {
            self.warn(|directory| {
                tracing::warn!(
                    event = "ledger_slow",
                    path = &*directory.to_string_lossy(),
                    files = dropped,
                    "the ledger in {directory:?} is written more slowly than files are confirmed: {dropped} found no room and are published again by the next start; give it a faster disk"
                );
            });
        }
        self.report_size();
    }

    /// Keeps the batch. Files that wait for its deletions go on if the ledger can be marked as behind.
    fn failed(&mut self, error: &StoreError, dropped: u64) {
        self.shared.progress.ledger.touch(); // the thread is alive and tries
        self.shared.progress.metrics.ledger_failures.inc();
        self.failing = true;
        let pending = !self.shared.lock().pending_invalidations.is_empty();
        let unmarked = if pending { self.fall_behind().err() } else { None };
        let waiting = self.batch.rows.len();
        self.warn(|directory| {
            tracing::warn!(
                event = "ledger_not_written",
                path = &*directory.to_string_lossy(),
                %error,
                files = waiting,
                dropped,
                "the ledger in {directory:?} cannot be written: {error}; {waiting} files wait for it and {dropped} found no room: unless it can be written before the next start they are published again then; {}",
                make_room()
            );
            unmarked.iter().for_each(|error| warn_unmarked(directory, error));
        });
    }

    /// Marks the ledger as behind, because rows that ought to be deleted stay for now. The next start does without it, so no
    /// invalidation is pending any more. So it is where there is no database, and no row in it.
    fn fall_behind(&mut self) -> io::Result<()> {
        if self.behind.is_none() {
            self.marked = self.store.fall_behind()?;
        }
        let mut queue = self.shared.lock();
        queue.pending_invalidations.clear();
        self.behind = Some(queue.batch);
        Ok(())
    }

    /// Ends the invalidations of the batch that was written, and removes the mark if it was the last one behind.
    fn catch_up(&mut self) {
        self.shared.lock().pending_invalidations.retain(|_, number| *number > self.number);
        let ends = self.behind.is_some_and(|last| last <= self.number);
        if ends && (!self.marked || self.store.unmark_behind().is_ok()) {
            (self.behind, self.marked) = (None, false);
        }
    }

    /// Closes the database, whose last checkpoint the end waits for, and marks it as complete if it is.
    pub(super) fn close(self) {
        let all_written = self.batch.is_empty() && self.behind.is_none() && !self.lags;
        let exact = |queue: &mut Queue| queue.exact_but_for.take().filter(|_| queue.is_empty());
        let exact_but_for = exact(&mut self.shared.lock());
        if all_written && let Some(lagging) = exact_but_for {
            let directory = self.store.directory().to_owned();
            if let Err(error) = self.store.complete(&lagging) {
                tracing::warn!(
                    event = "ledger_not_marked",
                    path = &*directory.to_string_lossy(),
                    %error,
                    "{COMPLETE} cannot be made in {directory:?}: {error}; files whose metadata alone changes until the next start may be published again"
                );
            }
        } else {
            drop(self.store);
        }
        self.shared.lock().closed = true;
        self.shared.changed.notify_all();
    }

    fn report_size(&mut self) {
        self.shared.progress.metrics.ledger_rows.set(self.store.rows());
        self.report_bytes();
        self.shrinks |= self.store.is_mostly_free();
    }

    fn report_bytes(&self) {
        let metrics = &self.shared.progress.metrics;
        if let Some(bytes) = self.store.bytes() {
            metrics.ledger_bytes.set(bytes);
        }
    }

    /// Logs a warning, unless one was logged within [`WARN_EVERY`].
    fn warn(&mut self, log: impl FnOnce(&Path)) {
        if self.warned.is_none_or(|at| at.elapsed() >= WARN_EVERY) {
            self.warned = Some(Instant::now());
            log(self.store.directory());
        }
    }
}

/// What to do where the database cannot be written: SQLite does not say which of these it was.
fn make_room() -> String {
    match rustix::process::getrlimit(Resource::Fsize).current {
        Some(bytes) => format!(
            "make room on its disk or in its quota, or raise the limit of {bytes} bytes a file ({})",
            advice::limit("LimitFSIZE=", "ulimit -f")
        ),
        None => "make room on its disk, or in its quota".to_owned(),
    }
}

fn warn_unmarked(directory: &Path, error: &io::Error) {
    let error = os_message(error);
    tracing::warn!(
        event = "ledger_not_marked",
        path = &*directory.to_string_lossy(),
        error,
        "{BEHIND} cannot be made in {directory:?}: {error}; files wait where a row has to be deleted before they are published"
    );
}
