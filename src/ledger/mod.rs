//! The ledger remembers across restarts what was published last: one row per path, in an SQLite database.
//!
//! **A row** holds the version of the file and the digests of its content that the broker confirmed last for the path. A
//! start loads all rows and skips each file that its row still describes. A row carries a checksum, so that damage which
//! SQLite itself would not notice is noticed when it is read.
//!
//! **It may lag, never lead.** A row is queued after the broker's confirm, and a thread of its own writes many rows in one
//! transaction. Publishing does not wait for that thread, so a crash can lose the last rows: that repeats their messages. A row
//! that was written before its confirm could lose a message instead.
//!
//! **Invalidate before publish.** There is one exception. A file keeps its version while its directory is renamed away,
//! or while a symbolic link to it is pointed elsewhere, and it can come back to its path unchanged. If another file is
//! published there meanwhile and a crash loses that row, the next start finds the first file beside the first file's row
//! and skips it, although consumers were last sent the other one. So where a path can change hands in this way its row is
//! deleted on disk before anything else is published there. Until the deletion is written it is a *pending
//! invalidation*, and the file waits: see [`Ledger::still_holds`].
//!
//! **Behind.** A full disk takes no deletion. An empty file beside the database, `ledger.behind`, then says that rows are
//! left in it which ought to be deleted. Files need not wait, because the next start does without such a ledger. A disk that
//! has no inode for the file takes a second name of the database in its place (link(2)), or the database is set aside at once.
//! Where there is no database, no row can be stale, and its first rows are marked before they are written.
//!
//! **Complete.** chmod(2) changes nothing of a version but ctime, so a row whose version agrees in all else still counts if
//! the content agrees, too. But rename(2) also changes ctime: a file that was renamed away and back around a crash looks
//! the same. `ledger.complete` separates the two cases. It is there only while no process runs, and only if the last one
//! ended in order and knew of each row that it is what was published last. Without it a row counts only for a file whose
//! whole version agrees.

mod form1;
mod queue;
mod row;
pub mod snapshot;
mod state_directory;
pub mod store;
mod table;
mod writer;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{self, Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::sync::oneshot;

pub use queue::ALL;
use queue::{HIGH_WATER, QUEUED_MAX, Shared};
use row::Confirmed;
pub use row::MessageId;
use store::Store;
use writer::Writer;

use crate::error::Error;
use crate::files::version::Version;
use crate::hash::Digests;
use crate::inquiry;
use crate::job::Last;
use crate::progress::Progress;

/// How long the end waits for the last rows to be written.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// The way of confirms into the ledger, which the watches share. Dropped, it writes what is queued and ends its thread.
pub struct Ledger {
    shared: Arc<Shared>,
    /// `None` once its end has begun.
    thread: Mutex<Option<JoinHandle<()>>>,
    ended: AtomicBool,
}

impl Ledger {
    /// Starts the thread that writes.
    ///
    /// # Errors
    /// [`Error::Threads`] when the thread cannot be started.
    pub fn start(store: Store, progress: Arc<Progress>) -> Result<Self, Error> {
        let shared = Arc::new(Shared::new(progress));
        let thread = thread::Builder::new().name("ledger".to_owned()).spawn({
            let shared = Arc::clone(&shared);
            move || Writer::new(store, shared).run()
        });
        let thread = thread.map_err(|error| Error::Threads { what: "the ledger's thread", cause: error })?;
        Ok(Self { shared, thread: Mutex::new(Some(thread)), ended: AtomicBool::new(false) })
    }

    /// Queues the row of what was confirmed for an absolute path. `racy`: see [`Version::is_racy`].
    pub fn confirm(&self, path: Vec<u8>, version: Version, digests: Digests, racy: bool, id: MessageId) {
        self.put(path, Some(Confirmed::new(version, digests, racy, id)));
    }

    /// Writes what is queued and ends. To be called when all that was published has been confirmed here and all that was
    /// loaded has been compared: the next start may rely on each row, but for those of some paths.
    pub fn end_exact(&self, but_for: Vec<Box<[u8]>>) {
        self.shared.lock().exact_but_for = Some(but_for);
        self.end();
    }

    /// Writes what is queued and ends. What comes later, from a watch that hangs, is not written.
    pub fn end(&self) {
        if self.ended.swap(true, Ordering::SeqCst) {
            return;
        }
        let closed = self.shared.close(CLOSE_TIMEOUT);
        match self.thread.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // A panic of the thread has been logged.
            Some(thread) if closed => drop(thread.join()),
            _ => tracing::warn!(
                event = "ledger_unfinished",
                "the ledger was not written to its end: some files may be published again"
            ),
        }
    }

    /// Queues the deletion of the row of a path that is gone.
    pub fn forget(&self, path: Vec<u8>) {
        self.put(path, None);
    }

    /// Invalidates all rows below a directory that is gone from its path, which ends in `/`. Deleted one by one, the rows
    /// of a large tree would find no room in the queue.
    pub fn forget_below(&self, directory: &[u8]) {
        self.shared.add(|queue| queue.delete_below(directory));
    }

    /// Invalidates the row of a path where another file can be published and the same file can come back.
    pub fn invalidate(&self, path: &[u8]) {
        self.shared.add(|queue| queue.invalidate(path, None));
    }

    /// As [`Ledger::invalidate`], but a void row stays, which says what the path's last message was.
    pub fn void(&self, path: &[u8], last: &Last) {
        self.shared.add(|queue| queue.invalidate(path, Some(Confirmed::void(last))));
    }

    /// Whether an invalidation of this path is pending: nothing may be published there until it is written. `directory`
    /// ends in `/`.
    #[must_use]
    pub fn still_holds(&self, directory: &[u8], name: &[u8]) -> bool {
        self.shared.lock().is_pending(directory, name)
    }

    /// Whether so many invalidations are pending that work which can wait should add no more.
    #[must_use]
    pub fn is_pressed(&self) -> bool {
        self.shared.lock().pending_invalidations.len() >= HIGH_WATER
    }

    /// Asks for the row of an absolute path. The thread answers once it has written what is queued. The channel closes without
    /// an answer where too many are asked for at once, or the row cannot be read.
    #[must_use]
    pub fn look_up(&self, path: &[u8]) -> oneshot::Receiver<Option<inquiry::Row>> {
        self.shared.look_up(path)
    }

    fn put(&self, path: Vec<u8>, row: Option<Confirmed>) {
        self.shared.add(|queue| queue.put(path.into(), row, QUEUED_MAX));
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
impl Ledger {
    /// A ledger whose writer is the test's.
    fn of(shared: Arc<Shared>) -> Self {
        Self { shared, thread: Mutex::default(), ended: AtomicBool::default() }
    }
}

#[cfg(test)]
mod faults;
#[cfg(test)]
mod interleavings;
#[cfg(test)]
mod model_test;
#[cfg(test)]
pub(crate) mod tests;
