//! The database: a row for each path. One process at a time uses it, and one that cannot be used is set aside.
//!
//! SQLite runs in write-ahead mode. The process may be killed at any moment and leaves whole transactions; a power
//! cut may take the last ones, because only checkpoints wait for the disk.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::{io, iter, mem, thread};

use rusqlite::Connection;

pub use super::row::Confirmed as Row;
use super::row::{Confirmed, Rows, StoreError};
pub use super::state_directory::FILE;
use super::state_directory::{self, BEHIND, DAMAGED};
pub use super::table::Fate;
use super::table::{self, FORM, Page, Pages};
use crate::error::{Error, os_message};
use crate::files::version::Version;
use crate::job::Last;

/// How every database begins (sqlite.org/fileformat2.html, 1.3).
const MAGIC: &[u8; 16] = b"SQLite format 3\0";

/// See [`Store::load`], as people are told of it, and as the kernel shows it: 15 bytes at the most.
const READING_THREAD: &str = "the thread that reads the ledger";
const READING_THREAD_NAME: &str = "ledger-read";

/// The bytes of the shortest row: its digests and checksum alone are 56.
const ROW_BYTES_MIN: i64 = 80;

/// The offset of `user_version` in a database's header, big-endian.
const FORM_AT: usize = 60;

/// An absolute path, and what becomes of its row at a start that takes what is there for confirmed.
pub type Entered = (Vec<u8>, Entry);

/// See [`Entered`].
#[derive(Debug, Clone, Copy)]
pub enum Entry {
    /// The version of the file that was there before the service, and whether it is racy.
    Seen(Version, bool),
    /// The path's last message is known, and no version of its file counts as published.
    Void(Last),
    /// There is to be no row.
    None,
}

/// The database, locked for this process.
pub struct Store {
    directory: PathBuf,
    /// `None` while it cannot be opened, because the disk is full.
    connection: Option<Connection>,
    /// How many rows it holds, once it was loaded.
    rows: i64,
    /// Changes that [`Store::load`] was to write and could not.
    unwritten: Rows,
    /// It was marked as [`COMPLETE`](super::state_directory::COMPLETE) when it was opened.
    complete: bool,
    /// The open state directory, with a flock(2) on it.
    lock: OwnedFd,
}

impl Store {
    /// Locks the state directory, creating it where it is missing, and opens the ledger in it. A damaged one is set aside;
    /// on a full disk the ledger begins empty.
    ///
    /// # Errors
    /// [`Error::StateDirectory`] when the directory cannot be used, [`Error::StateLocked`] when another process
    /// uses it.
    pub fn open(directory: &Path) -> Result<Self, Error> {
        let lock = state_directory::lock(directory)?;
        state_directory::check_access(&lock, directory)?;
        let mut store = Self {
            directory: directory.to_owned(),
            connection: None,
            rows: 0,
            unwritten: Rows::new(),
            complete: state_directory::is_complete(directory),
            lock,
        };
        match store.connect_or_set_aside() {
            Ok(_) => {}
            Err(StoreError::Newer) => return Err(newer(directory)),
            Err(error) => tracing::warn!(
                event = "ledger_not_opened",
                path = &*directory.to_string_lossy(),
                %error,
                "the ledger in {directory:?} cannot be opened: {error}; it counts as empty and is tried again later"
            ),
        }
        Ok(store)
    }

    /// Passes what was confirmed for each absolute path to `take`, which returns what becomes of the row. Returns `false`
    /// if the ledger cannot be read to its end: then nothing of it counts.
    ///
    /// It has to be called before anything is published, because the ledger is not complete from now on, even if power is
    /// cut.
    ///
    /// # Errors
    /// [`Error::StateDirectory`] when the mark that says that it is complete cannot be removed, [`Error::Threads`] when
    /// there is no thread to read it.
    pub fn load(&mut self, take: impl FnMut(&[u8], &Confirmed) -> Fate) -> Result<bool, Error> {
        let complete = state_directory::unmark_complete(&self.lock, &self.directory)? && self.complete;
        let read = self.set_aside_if_behind().and_then(|()| self.read_all(complete, take));
        if let Err(StoreError::Thread(cause)) = read {
            return Err(Error::Threads { what: READING_THREAD, cause });
        }
        if let Err(error) = &read {
            self.note_unreadable(error);
        }
        Ok(read.is_ok())
    }

    /// The second half of [`Store::load`]. It reads by the page, so that a million rows need no memory for all of them, and
    /// while the rows of one are taken, a thread reads the next: that takes as long.
    fn read_all(&mut self, complete: bool, take: impl FnMut(&[u8], &Confirmed) -> Fate) -> Result<(), StoreError> {
        self.rows = 0;
        let connection = Mutex::new(self.connect()?);
        let (rows, unwritten) = thread::scope(|scope| {
            let (sender, pages) = mpsc::sync_channel(1);
            let thread = thread::Builder::new().name(READING_THREAD_NAME.to_owned());
            thread.spawn_scoped(scope, || read_pages(&connection, sender)).map_err(StoreError::Thread)?;
            take_all(&connection, pages, complete, take)
        })?;
        (self.rows, self.unwritten) = (rows, unwritten);
        Ok(())
    }

    /// Enters files that were there before the service, without digests, and deletes or voids the rows of others, in one
    /// transaction.
    ///
    /// # Errors
    /// Why it could not be written: nothing of it was.
    pub fn enter(&mut self, entries: impl IntoIterator<Item = Entered>) -> Result<(), StoreError> {
        let row = |entry| match entry {
            Entry::Seen(version, racy) => Some(Confirmed::seen(version, racy)),
            Entry::Void(last) => Some(Confirmed::void(&last)),
            Entry::None => None,
        };
        let rows: Rows = entries.into_iter().map(|(path, entry)| (path.into(), row(entry))).collect();
        self.write(&[], &rows)
    }

    /// Closes the database and marks it as complete, if all of it is on the disk. The rows of the paths in `lagging` may lag
    /// and are flagged first.
    pub(super) fn complete(mut self, lagging: &[Box<[u8]>]) -> Result<(), StoreError> {
        assert!(self.unwritten.is_empty(), "changes that were not written are the writer's first batch");
        let Some(mut connection) = self.connection.take() else { return Ok(()) };
        let mut rows = Rows::new();
        for path in lagging {
            if let Some(confirmed) = table::read_row(&connection, path)? {
                rows.insert(path.clone(), Some(Confirmed { by_version_only: true, ..confirmed }));
            }
        }
        if !rows.is_empty() {
            table::write(&mut connection, &[], &rows)?;
        }
        if table::checkpoint_and_close(connection)? {
            state_directory::mark_complete(&self.directory)?;
        }
        Ok(())
    }

    /// The most rows that the database can hold by its size, before they are counted.
    #[must_use]
    pub fn rows_max(&self) -> usize {
        let bytes = self.connection.as_ref().and_then(|connection| table::size(connection).ok()).unwrap_or(0);
        usize::try_from(bytes / ROW_BYTES_MIN).unwrap_or(0)
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// The row of an absolute path.
    pub(super) fn row(&mut self, path: &[u8]) -> Result<Option<Confirmed>, StoreError> {
        table::read_row(self.connect()?, path)
    }

    pub(super) fn rows(&self) -> i64 {
        self.rows
    }

    /// The bytes of the database without its log, if it is open.
    pub(super) fn bytes(&self) -> Option<i64> {
        table::size(self.connection.as_ref()?).ok()
    }

    /// Whether most of the database is room that deleted rows have left. An error counts as no.
    pub(super) fn is_mostly_free(&self) -> bool {
        self.connection.as_ref().is_some_and(|connection| table::is_mostly_free(connection).unwrap_or(false))
    }

    /// Returns some of that room to the disk, which takes milliseconds. Whether there is more.
    ///
    /// # Errors
    /// Why it could not be returned. The rows are as they were.
    pub(super) fn shrink(&mut self) -> Result<bool, StoreError> {
        Ok(self.connection.as_ref().map_or(Ok(false), table::shrink)?)
    }

    pub(super) fn take_unwritten(&mut self) -> Rows {
        mem::take(&mut self.unwritten)
    }

    /// Deletes all rows below these directories, then writes and deletes rows, in one transaction. A damaged database is set
    /// aside first.
    pub(super) fn write(&mut self, below: &[Box<[u8]>], rows: &Rows) -> Result<(), StoreError> {
        let written = self.connect_or_set_aside().and_then(|connection| table::write(connection, below, rows));
        self.rows += match written {
            Err(error @ StoreError::Damaged(_)) => {
                self.set_aside(&error)?;
                table::write(self.connect()?, below, rows)?
            }
            other => other?,
        };
        Ok(())
    }

    /// Creates the database where there is none, without a row.
    pub(super) fn create(&mut self) -> Result<(), StoreError> {
        self.connect_or_set_aside().map(drop)
    }

    /// Marks the ledger as behind. Returns `false` where there is no database, whose rows alone could be.
    pub(super) fn mark_behind(&self) -> io::Result<bool> {
        state_directory::mark_behind(&self.directory)
    }

    /// Marks it as behind, as [`Store::mark_behind`] does. Where it cannot be marked, does at once what the mark makes the next
    /// start do: nothing is left to be marked then.
    pub(super) fn fall_behind(&mut self) -> io::Result<bool> {
        self.mark_behind().or_else(|refused| self.set_aside(&StoreError::Behind).map_or(Err(refused), |()| Ok(false)))
    }

    pub(super) fn unmark_behind(&self) -> io::Result<()> {
        state_directory::unmark_behind(&self.directory)
    }

    fn set_aside_if_behind(&mut self) -> Result<(), StoreError> {
        if self.directory.join(BEHIND).try_exists()? {
            self.set_aside(&StoreError::Behind)?;
            self.unmark_behind()?;
        }
        Ok(())
    }

    pub(super) fn connect(&mut self) -> Result<&mut Connection, StoreError> {
        let connection = match self.connection.take() {
            Some(connection) => connection,
            None => table::connect(&self.directory.join(FILE))?,
        };
        Ok(self.connection.insert(connection))
    }

    fn connect_or_set_aside(&mut self) -> Result<&mut Connection, StoreError> {
        match self.connect().map(drop) {
            Err(error @ StoreError::Damaged(_)) => self.set_aside(&error)?,
            other => other?,
        }
        self.connect()
    }

    fn note_unreadable(&mut self, error: &StoreError) {
        let noted = match error {
            StoreError::Damaged(_) => self.set_aside(error),
            _ => {
                tracing::warn!(
                    event = "ledger_not_read",
                    path = &*self.directory.to_string_lossy(),
                    %error,
                    "the ledger in {:?} cannot be read: {error}; it counts as empty",
                    self.directory
                );
                Ok(())
            }
        };
        if let Err(error) = noted {
            let error = os_message(&error);
            tracing::warn!(
                event = "ledger_not_set_aside",
                path = &*self.directory.to_string_lossy(),
                error,
                "the damaged ledger in {:?} cannot be set aside: {error}",
                self.directory
            );
        }
    }

    fn set_aside(&mut self, error: &StoreError) -> io::Result<()> {
        self.connection = None;
        self.rows = 0;
        state_directory::set_aside(&self.directory)?;
        tracing::warn!(
            event = "ledger_set_aside",
            path = &*self.directory.to_string_lossy(),
            %error,
            "the ledger in {:?} cannot be used, {error}; it is set aside as {DAMAGED} and a new one begins: files it held may be published again",
            self.directory
        );
        Ok(())
    }
}

type PageRead = Result<Page, StoreError>;

/// Reads all rows by the page, until nobody takes them any more.
fn read_pages(connection: &Mutex<&mut Connection>, sender: SyncSender<PageRead>) {
    let mut pages = Pages::new();
    // Between two pages others can have the lock, also while this thread waits for room.
    for page in iter::from_fn(|| pages.next(&lock(connection))) {
        if sender.send(page).is_err() {
            return;
        }
    }
}

/// Passes the rows of all pages to `take`, and writes what is to become of them. Returns how many there are then, and
/// the changes that could not be written.
fn take_all(
    connection: &Mutex<&mut Connection>,
    pages: Receiver<PageRead>,
    complete: bool,
    mut take: impl FnMut(&[u8], &Confirmed) -> Fate,
) -> Result<(i64, Rows), StoreError> {
    let (mut rows, mut unwritten) = (0, Rows::new());
    for page in pages {
        let mut changes = Rows::new();
        for (path, &confirmed) in page?.rows() {
            rows += 1;
            let lags = Confirmed { by_version_only: confirmed.by_version_only || !complete, ..confirmed };
            match take(path, &lags) {
                // It may lag from now on.
                Fate::LeftOut if lags != confirmed => drop(changes.insert(path.into(), Some(lags))),
                Fate::Gone => drop(changes.insert(path.into(), None)),
                Fate::Known | Fate::LeftOut => {}
            }
        }
        if !changes.is_empty() && unwritten.is_empty() {
            match table::write(&mut lock(connection), &[], &changes) {
                Ok(more) => {
                    rows += more;
                    changes.clear();
                }
                Err(error @ StoreError::Damaged(_)) => return Err(error),
                Err(_) => {} // on a full disk: the ledger's thread tries again, and logs it
            }
        }
        unwritten.extend(changes);
    }
    Ok((rows, unwritten))
}

fn lock<'a, T>(shared: &'a Mutex<T>) -> MutexGuard<'a, T> {
    // A panic of the thread that reads ends this one too.
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether the ledger in a state directory looks usable, by its mark and its first bytes. SQLite is not asked, because it
/// would write beside the database; a start checks all of it.
///
/// # Errors
/// [`Error::StateDirectory`] when a newer version wrote it.
pub fn looks_sound(directory: &Path) -> Result<bool, Error> {
    if directory.join(BEHIND).exists() {
        return Ok(false);
    }
    let mut header = Vec::with_capacity(FORM_AT + 4);
    let read = File::open(directory.join(FILE)).and_then(|file| file.take(FORM_AT as u64 + 4).read_to_end(&mut header));
    if read.is_err() || header.is_empty() {
        return Ok(true); // there is none, or all of it is still in its log
    }
    let form = header.get(FORM_AT..).and_then(|bytes| bytes.try_into().ok()).map(i32::from_be_bytes);
    match form.filter(|_| header.starts_with(MAGIC)) {
        Some(form) if table::is_newer(form.into()) => Err(newer(directory)),
        form => Ok(form.is_some_and(|form| (0..=FORM).contains(&form.into()))),
    }
}

fn newer(directory: &Path) -> Error {
    Error::StateDirectory {
        path: directory.to_owned(),
        cause: StoreError::Newer.to_string(),
        next: "upgrade, or name another directory",
    }
}
