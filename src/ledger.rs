//! The ledger: for each path the version and the digests that were confirmed last, kept across restarts.
//!
//! It may lag, never lead: a row is written after the broker's confirm, many rows in one transaction, by a
//! thread of its own. Losing its tail repeats messages, never loses one. A row is checked by its message id when it is
//! read, so that damage which SQLite itself would not notice is noticed.
//!
//! One thing is waited for. A file keeps its version while its directory is renamed, or a link to it is made to lead
//! elsewhere, and can come back to its path with it. A row that lags would then be taken for what was told last. So
//! where such a path is given up its row goes first, and only then is anything else told there: [`Ledger::still_holds`].
//! On a disk that takes nothing a mark beside the ledger says that it is behind, and the next start does without it.
//!
//! SQLite in write-ahead mode: the process may be killed at any moment and leaves whole transactions; a power
//! cut may take the last ones, for only checkpoints wait for the disk.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use std::{fs, io};

use rusqlite::{Connection, ErrorCode, Row, params};
use rustix::fs::{Access, AtFlags, FlockOperation, Mode, OFlags, accessat, flock, openat};
use rustix::io::Errno;

use crate::error::{Error, os_message};
use crate::hash::Digests;
use crate::message::message_id;
use crate::pipeline::Known;
use crate::read::stable::{Stamp, Version};
use crate::vitals::Vitals;

/// The database in the state directory.
pub const FILE: &str = "ledger.sqlite";

/// Where a damaged one goes, in the place of an earlier damaged one.
const DAMAGED: &str = "ledger.sqlite.damaged";

/// Stands beside a database with rows that ought to be gone. Empty: a full disk has room for a name.
const BEHIND: &str = "ledger.behind";

/// What SQLite keeps beside a database.
const SIDE_FILES: [&str; 3] = ["", "-wal", "-shm"];

/// The table's form, in `user_version`.
const FORM: i64 = 1;

/// How every database begins (sqlite.org/fileformat2.html, 1.3).
const MAGIC: &[u8; 16] = b"SQLite format 3\0";

/// Where `user_version` stands in a database's header, big-endian.
const FORM_AT: usize = 60;

/// Rows wait this long for others to share their transaction.
const GROUP_TIME: Duration = Duration::from_millis(250);

/// Paths that wait at most while the disk takes no more; at some 250 bytes a path this is 16 MB, twice. What is
/// beyond is published again after a restart. As many directories that are forgotten: beyond that, all is.
const WAITING_MAX: usize = 1 << 16;

/// A directory above all paths.
const ALL: &[u8] = b"/";

/// Pause before what could not be written is tried again.
const RETRY_PAUSE: Duration = Duration::from_secs(2);

/// How often it is said that it cannot be written.
const WARN_EVERY: Duration = Duration::from_secs(60);

/// How long the last rows are waited for at the end.
const CLOSE_PATIENCE: Duration = Duration::from_secs(1);

/// What was confirmed of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Confirmed {
    version: Version,
    digests: Digests,
}

/// The database, locked for this process.
pub struct Store {
    directory: PathBuf,
    /// Nothing while it cannot be opened: the disk is full.
    connection: Option<Connection>,
    /// How many it holds, once it was read.
    rows: i64,
    /// Paths that could not be removed when it was read.
    gone: Vec<Box<[u8]>>,
    /// flock(2) on the directory itself: no file is needed, and the kernel drops it with the process.
    _lock: OwnedFd,
}

/// Why the database could not be used.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error("it is damaged: {0}")]
    Damaged(String),
    #[error("it is behind: its disk was full")]
    Behind,
    #[error("it was written by a newer version")]
    Newer,
    #[error("{0}")]
    Sqlite(rusqlite::Error),
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl From<rusqlite::Error> for Trouble {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            // The last three: a table or a column of another form.
            Some(
                ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase | ErrorCode::Unknown | ErrorCode::TypeMismatch,
            )
            | None => Self::Damaged(error.to_string()),
            Some(_) => Self::Sqlite(error),
        }
    }
}

impl Store {
    /// Locks the state directory, making it where it is missing, and opens the ledger in it. A damaged one is
    /// set aside; on a full disk the ledger begins empty.
    ///
    /// # Errors
    /// [`Error::StateDirectory`] when the directory cannot be used, [`Error::StateLocked`] when another process
    /// uses it.
    pub fn open(directory: &Path) -> Result<Self, Error> {
        let refuse = |cause: String, next| Error::StateDirectory { path: directory.to_owned(), cause, next };
        let unusable = |error: io::Error| {
            refuse(os_message(&error), "give this user the right to write there, or name another directory")
        };
        fs::create_dir_all(directory).map_err(unusable)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = openat(rustix::fs::CWD, directory, flags, Mode::empty()).map_err(|errno| unusable(errno.into()))?;
        accessat(&dir, ".", Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS)
            .map_err(|errno| unusable(errno.into()))?;
        flock(&dir, FlockOperation::NonBlockingLockExclusive).map_err(|errno| match errno {
            Errno::WOULDBLOCK => Error::StateLocked { path: directory.to_owned() },
            _ => refuse(format!("it cannot be locked: {errno}"), "name a directory on a local file system"),
        })?;
        let mut store =
            Self { directory: directory.to_owned(), connection: None, rows: 0, gone: Vec::new(), _lock: dir };
        match store.connect_or_set_aside() {
            Ok(_) => {}
            Err(Trouble::Newer) => return Err(newer(directory)),
            Err(trouble) => tracing::warn!(
                "the ledger in {directory:?} cannot be opened: {trouble}; it counts as empty and is tried again later"
            ),
        }
        Ok(store)
    }

    /// Hands over what was confirmed for each absolute path; `take` tells whether the row stays: those of files that
    /// are not there any more are removed. `false`: the ledger cannot be read to its end, and nothing of it counts.
    #[must_use]
    pub fn recall(&mut self, take: impl FnMut(&[u8], Known) -> bool) -> bool {
        let read = self.set_aside_if_behind().and_then(|()| recall(self.connect()?, take));
        let whole = read.is_ok();
        let Recalled { rows, gone } = read.unwrap_or_else(|trouble| {
            self.note_damage(&trouble);
            Recalled::default()
        });
        self.rows = rows;
        let paths = gone.iter().map(|path| (&**path, None));
        match self.connect().and_then(|connection| write(connection, &[], paths)) {
            Ok(more) => self.rows += more,
            Err(trouble @ Trouble::Damaged(_)) => self.note_damage(&trouble),
            Err(_) => self.gone = gone, // the thread tries again, and tells
        }
        whole
    }

    /// Starts the thread that writes.
    ///
    /// # Errors
    /// [`Error::Internal`] when there is no thread.
    pub fn serve(self, vitals: Arc<Vitals>) -> Result<Ledger, Error> {
        let shared = Arc::new(Shared { vitals, ..Shared::default() });
        let thread = thread::Builder::new().name("ledger".to_owned()).spawn({
            let shared = Arc::clone(&shared);
            move || Writer::new(self, shared).run()
        });
        let thread = thread.map_err(|error| Error::Internal(format!("cannot start the ledger's thread: {error}")))?;
        Ok(Ledger { shared, thread: Some(thread) })
    }

    fn set_aside_if_behind(&mut self) -> Result<(), Trouble> {
        if self.directory.join(BEHIND).try_exists()? {
            self.set_aside(&Trouble::Behind)?;
            self.behind(false)?;
        }
        Ok(())
    }

    /// Marks the ledger as one with rows that ought to be gone, or takes the mark away.
    fn behind(&self, marked: bool) -> io::Result<()> {
        let mark = self.directory.join(BEHIND);
        if marked { File::create(mark).map(drop) } else { fs::remove_file(mark) }
    }

    fn connect(&mut self) -> Result<&mut Connection, Trouble> {
        let connection = match self.connection.take() {
            Some(connection) => connection,
            None => connect(&self.directory.join(FILE))?,
        };
        Ok(self.connection.insert(connection))
    }

    fn connect_or_set_aside(&mut self) -> Result<&mut Connection, Trouble> {
        match self.connect().map(drop) {
            Err(trouble @ Trouble::Damaged(_)) => self.set_aside(&trouble)?,
            other => other?,
        }
        self.connect()
    }

    fn note_damage(&mut self, trouble: &Trouble) {
        let noted = match trouble {
            Trouble::Damaged(_) => self.set_aside(trouble),
            _ => {
                tracing::warn!("the ledger in {:?} cannot be read: {trouble}; it counts as empty", self.directory);
                Ok(())
            }
        };
        if let Err(error) = noted {
            tracing::warn!("the damaged ledger in {:?} cannot be set aside: {error}", self.directory);
        }
    }

    fn set_aside(&mut self, trouble: &Trouble) -> io::Result<()> {
        self.connection = None;
        self.rows = 0;
        for side in SIDE_FILES {
            let (from, to) = (format!("{FILE}{side}"), format!("{DAMAGED}{side}"));
            match fs::rename(self.directory.join(from), self.directory.join(to)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        tracing::warn!(
            "the ledger in {:?} cannot be used, {trouble}; it is set aside as {DAMAGED} and a new one begins: files it held may be published again",
            self.directory
        );
        Ok(())
    }
}

/// The way of confirms into the ledger. Dropped, it writes what waits and ends.
pub struct Ledger {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    changed: Condvar,
    vitals: Arc<Vitals>,
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
    fn put(&mut self, path: Box<[u8]>, row: Option<Confirmed>) -> bool {
        let full = self.rows.len() >= WAITING_MAX;
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
        // Every change below is one call on a map or one assignment.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ledger {
    /// Notes what was confirmed for an absolute path.
    pub fn confirm(&self, path: Vec<u8>, version: Version, digests: Digests) {
        self.put(path, Some(Confirmed { version, digests }));
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

    /// Forgets the path of a link that is another from now on, before anything else is told there.
    pub fn forget_link(&self, path: &[u8]) {
        self.add(|waiting| {
            let before = waiting.len();
            waiting.put(path.into(), None);
            if waiting.rows.contains_key(path) {
                waiting.await_end_of(path);
                return waiting.len() > before;
            }
            let name = path.iter().rposition(|&byte| byte == b'/').map_or(0, |slash| slash + 1);
            waiting.forget_below(&path[..name])
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

    fn put(&self, path: Vec<u8>, row: Option<Confirmed>) {
        self.add(|waiting| waiting.put(path.into(), row));
    }

    /// Changes what waits, and wakes the thread for the first of it; `change` tells whether it is one more.
    fn add(&self, change: impl FnOnce(&mut Waiting) -> bool) {
        let mut waiting = self.shared.lock();
        let first = waiting.is_empty();
        if change(&mut waiting) {
            self.shared.vitals.ledger.take_on(1);
        }
        if first {
            self.shared.changed.notify_all();
        }
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        let mut waiting = self.shared.lock();
        waiting.closing = true;
        self.shared.changed.notify_all();
        let closed = self.shared.changed.wait_timeout_while(waiting, CLOSE_PATIENCE, |waiting| !waiting.closed);
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
    /// Sorted, which is the table's own order.
    rows: BTreeMap<Box<[u8]>, Option<Confirmed>>,
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
}

impl Writer {
    fn new(mut store: Store, shared: Arc<Shared>) -> Self {
        let gone = std::mem::take(&mut store.gone).into_iter().map(|path| (path, None));
        let group = Group { below: Vec::new(), rows: gone.collect() };
        shared.vitals.ledger.take_on(group.len());
        let mut writer = Self { store, shared, group, number: 0, behind: None, warned: None, failing: false };
        if !writer.group.is_empty() {
            writer.fall_behind();
        }
        writer
    }

    fn run(mut self) {
        let mut pause = GROUP_TIME;
        self.tell_size();
        loop {
            let (closing, dropped) = self.gather(pause);
            match self.write() {
                Ok(()) => {
                    self.shared.vitals.ledger.done(self.group.len());
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
                    self.tell_size();
                    pause = GROUP_TIME;
                }
                Err(trouble) => {
                    self.shared.vitals.ledger.get_on(); // it tries
                    self.shared.vitals.metrics.ledger_failures.inc();
                    self.failing = true;
                    if !self.shared.lock().awaited.is_empty() {
                        self.fall_behind();
                    }
                    let waiting = self.group.rows.len();
                    self.warn(|directory| {
                        tracing::warn!(
                            "the ledger in {directory:?} cannot be written: {trouble}; {waiting} files wait for it and {dropped} found no room: unless it can be written before the next start they are published again then; make room on its disk"
                        );
                    });
                    pause = RETRY_PAUSE;
                }
            }
            if closing {
                break;
            }
        }
        drop(self.store); // its last checkpoint belongs to what is waited for
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
            self.shared.vitals.ledger.done(separate - self.group.len());
            self.number = waiting.group;
            waiting.group += 1;
            waiting.urgent = false;
        }
        (waiting.closing, std::mem::take(&mut waiting.dropped))
    }

    /// Rows that ought to be gone stay for now: the next start is to do without the ledger, and nothing waits for them.
    fn fall_behind(&mut self) {
        if self.behind.is_none()
            && let Err(error) = self.store.behind(true)
        {
            let directory = &self.store.directory;
            tracing::warn!("{BEHIND} cannot be made in {directory:?}: {error}; files in renamed directories wait");
            return;
        }
        let mut waiting = self.shared.lock();
        waiting.awaited.clear();
        self.behind = Some(waiting.group);
    }

    /// The group has been written.
    fn catch_up(&mut self) {
        self.shared.lock().awaited.retain(|_, number| *number > self.number);
        if self.behind.is_some_and(|last| last <= self.number) && self.store.behind(false).is_ok() {
            self.behind = None;
        }
    }

    fn write(&mut self) -> Result<(), Trouble> {
        if self.group.is_empty() {
            return Ok(());
        }
        let rows = |group: &Group, connection: &mut Connection| {
            write(connection, &group.below, group.rows.iter().map(|(path, row)| (&**path, row.as_ref())))
        };
        let written = self.store.connect_or_set_aside().and_then(|connection| rows(&self.group, connection));
        self.store.rows += match written {
            Err(trouble @ Trouble::Damaged(_)) => {
                self.store.set_aside(&trouble)?;
                rows(&self.group, self.store.connect()?)?
            }
            other => other?,
        };
        Ok(())
    }

    fn tell_size(&mut self) {
        let metrics = &self.shared.vitals.metrics;
        metrics.ledger_rows.set(self.store.rows);
        if let Some(connection) = &self.store.connection
            && let Ok(bytes) = size(connection)
        {
            metrics.ledger_bytes.set(bytes);
        }
    }

    fn warn(&mut self, tell: impl FnOnce(&Path)) {
        if self.warned.is_none_or(|at| at.elapsed() >= WARN_EVERY) {
            self.warned = Some(Instant::now());
            tell(&self.store.directory);
        }
    }
}

fn newer(directory: &Path) -> Error {
    Error::StateDirectory {
        path: directory.to_owned(),
        cause: Trouble::Newer.to_string(),
        next: "upgrade, or name another directory",
    }
}

/// Whether what stands there as a ledger may be one to use, by its first bytes: SQLite would write beside it. A start
/// looks at all of it.
///
/// # Errors
/// [`Error::StateDirectory`] when a newer version wrote it.
pub fn looks_sound(directory: &Path) -> Result<bool, Error> {
    let mut header = Vec::with_capacity(FORM_AT + 4);
    if directory.join(BEHIND).exists() {
        return Ok(false);
    }
    let read =
        File::open(directory.join(FILE)).and_then(|file| file.take(header.capacity() as u64).read_to_end(&mut header));
    if read.is_err() || header.is_empty() {
        return Ok(true); // none, or all of it stands in its log
    }
    let form = header.get(FORM_AT..).and_then(|bytes| bytes.try_into().ok()).map(i32::from_be_bytes);
    match form.filter(|_| header.starts_with(MAGIC)) {
        Some(form) if i64::from(form) > FORM => Err(newer(directory)),
        form => Ok(form.is_some_and(|form| form >= 0)),
    }
}

fn connect(file: &Path) -> Result<Connection, Trouble> {
    let connection = Connection::open(file)?;
    // Exclusive: no file of shared memory beside it, which a full disk would refuse.
    connection.pragma_update(None, "locking_mode", "exclusive")?;
    connection.pragma_update(None, "journal_mode", "wal")?;
    connection.pragma_update(None, "synchronous", "normal")?;
    connection.pragma_update(None, "cache_size", -8192)?; // KiB
    connection.pragma_update(None, "journal_size_limit", 16 << 20)?;
    // A version number in its header that SQLite does not know makes it one for reading only.
    if connection.is_readonly("main")? {
        return Err(Trouble::Damaged("it can only be read".to_owned()));
    }
    // A fifth of a second for a million rows; without it a page that lost its cells would go unnoticed.
    let checked: String = connection.pragma_query_value(None, "quick_check", |row| row.get(0))?;
    if checked != "ok" {
        return Err(Trouble::Damaged(checked.replace('\n', " ")));
    }
    match connection.pragma_query_value(None, "user_version", |row| row.get::<_, i64>(0))? {
        FORM => {}
        0 => {
            connection.execute_batch(
                "BEGIN IMMEDIATE;
                CREATE TABLE confirmed (
                    path BLOB PRIMARY KEY,
                    device INTEGER NOT NULL,
                    inode INTEGER NOT NULL,
                    size INTEGER NOT NULL,
                    modified_seconds INTEGER NOT NULL,
                    modified_nanoseconds INTEGER NOT NULL,
                    changed_seconds INTEGER NOT NULL,
                    changed_nanoseconds INTEGER NOT NULL,
                    sha256 BLOB NOT NULL,
                    xxh128 BLOB NOT NULL,
                    message_id BLOB NOT NULL
                ) STRICT, WITHOUT ROWID;
                PRAGMA user_version = 1;
                COMMIT;",
            )?;
        }
        form if form > FORM => return Err(Trouble::Newer),
        form => return Err(Trouble::Damaged(format!("it is of the form {form}"))),
    }
    Ok(connection)
}

/// What one reading of the ledger shows.
#[derive(Default)]
struct Recalled {
    /// All of them.
    rows: i64,
    /// Paths that are there no more.
    gone: Vec<Box<[u8]>>,
}

/// Bytes of the database, its log not counted.
fn size(connection: &Connection) -> rusqlite::Result<i64> {
    let number = |pragma| connection.pragma_query_value(None, pragma, |row| row.get::<_, i64>(0));
    Ok(number("page_count")? * number("page_size")?)
}

fn recall(connection: &mut Connection, mut take: impl FnMut(&[u8], Known) -> bool) -> Result<Recalled, Trouble> {
    let mut recalled = Recalled::default();
    let mut select = connection.prepare("SELECT * FROM confirmed")?;
    let mut rows = select.query([])?;
    while let Some(row) = rows.next()? {
        let path = row.get_ref(0)?.as_blob().map_err(|error| Trouble::Damaged(error.to_string()))?;
        let confirmed = decode(path, row)?;
        recalled.rows += 1;
        if !take(path, Known::new(&confirmed.version, &confirmed.digests)) {
            recalled.gone.push(path.into());
        }
    }
    Ok(recalled)
}

/// A row as it was written, or damage: its message id says so.
fn decode(path: &[u8], row: &Row<'_>) -> Result<Confirmed, Trouble> {
    let nanoseconds = |column| row.get::<_, u32>(column);
    let confirmed = Confirmed {
        version: Version {
            device: row.get::<_, i64>(1)?.cast_unsigned(),
            inode: row.get::<_, i64>(2)?.cast_unsigned(),
            size: row.get::<_, i64>(3)?.cast_unsigned(),
            modified: Stamp { seconds: row.get(4)?, nanoseconds: nanoseconds(5)? },
            changed: Stamp { seconds: row.get(6)?, nanoseconds: nanoseconds(7)? },
        },
        digests: Digests { sha256: row.get(8)?, xxh128: u128::from_be_bytes(row.get(9)?) },
    };
    let id = message_id(&[path], &confirmed.version, &confirmed.digests.sha256);
    if row.get::<_, [u8; 16]>(10)? != id.to_be_bytes() {
        let path = String::from_utf8_lossy(path).into_owned();
        return Err(Trouble::Damaged(format!("its row of {path:?} is not what was written")));
    }
    Ok(confirmed)
}

/// Removes all rows below these directories, then writes rows, and removes those that are nothing, in one transaction.
/// Tells how many there are more than before.
fn write<'a>(
    connection: &mut Connection,
    below: &[Box<[u8]>],
    rows: impl Iterator<Item = (&'a [u8], Option<&'a Confirmed>)>,
) -> Result<i64, Trouble> {
    const VALUES: &str = "INTO confirmed VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)";
    let mut more = 0;
    let transaction = connection.transaction()?;
    {
        // Two statements, for the first tells whether the row is new.
        let mut add = transaction.prepare_cached(&format!("INSERT OR IGNORE {VALUES}"))?;
        let mut replace = transaction.prepare_cached(&format!("REPLACE {VALUES}"))?;
        let mut remove = transaction.prepare_cached("DELETE FROM confirmed WHERE path = ?1")?;
        let mut remove_below = transaction.prepare_cached("DELETE FROM confirmed WHERE path > ?1 AND path < ?2")?;
        for directory in below {
            // What begins with it sorts before the same with the byte after its `/` in that one's place.
            let mut end = directory.to_vec();
            end.pop_if(|last| *last == b'/');
            end.push(b'/' + 1);
            more -= remove_below.execute([&**directory, &end])? as i64;
        }
        for (path, row) in rows {
            match row {
                None => more -= remove.execute([path])? as i64,
                Some(Confirmed { version, digests }) => {
                    let id = message_id(&[path], version, &digests.sha256).to_be_bytes();
                    let xxh128 = digests.xxh128.to_be_bytes();
                    let row = params![
                        path,
                        version.device.cast_signed(),
                        version.inode.cast_signed(),
                        version.size.cast_signed(),
                        version.modified.seconds,
                        version.modified.nanoseconds,
                        version.changed.seconds,
                        version.changed.nanoseconds,
                        digests.sha256,
                        xxh128,
                        id,
                    ];
                    if add.execute(row)? == 1 {
                        more += 1;
                    } else {
                        replace.execute(row)?;
                    }
                }
            }
        }
    }
    transaction.commit()?;
    Ok(more)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use proptest::sample::Index;

    const DIRECTORY: &[u8] = b"/data/";

    /// What a ledger holds, by name.
    type Rows = BTreeMap<Vec<u8>, Known>;

    fn confirmed(number: u64) -> Confirmed {
        let stamp = Stamp { seconds: -1, nanoseconds: 999_999_999 };
        let version = Version { device: u64::MAX, inode: number, size: number, modified: stamp, changed: stamp };
        Confirmed { version, digests: Digests::of(&number.to_le_bytes()) }
    }

    fn known(number: u64) -> Known {
        let confirmed = confirmed(number);
        Known::new(&confirmed.version, &confirmed.digests)
    }

    fn path(name: &[u8]) -> Vec<u8> {
        [DIRECTORY, name].concat()
    }

    fn put(store: &mut Store, rows: &[(Vec<u8>, Option<u64>)]) {
        let rows: Vec<_> = rows.iter().map(|(name, number)| (path(name), number.map(confirmed))).collect();
        write(store.connect().unwrap(), &[], rows.iter().map(|(path, row)| (&**path, row.as_ref()))).unwrap();
    }

    fn recalled(store: &mut Store, names: impl IntoIterator<Item = Vec<u8>>) -> Rows {
        let present: Vec<Vec<u8>> = names.into_iter().collect();
        let mut rows = Rows::new();
        let whole = store.recall(|path, known| {
            let Some(name) = path.strip_prefix(DIRECTORY) else { return true };
            let there = present.iter().any(|present| present == name);
            if there {
                rows.insert(name.to_vec(), known);
            }
            there
        });
        if whole { rows } else { Rows::new() }
    }

    /// The files of a ledger as a crash leaves them: copied while it is open.
    fn crash(from: &Path, to: &Path) {
        fs::create_dir_all(to).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }

    #[test]
    fn what_was_confirmed_last_is_recalled_and_what_is_gone_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let names: Vec<Vec<u8>> = [&b"a"[..], b"b\xff\n", b"gone"].map(<[u8]>::to_vec).to_vec();
        let ledger = Store::open(dir.path()).unwrap().serve(Arc::default()).unwrap();
        for (number, name) in (1..).zip(&names) {
            let Confirmed { version, digests } = confirmed(number);
            ledger.confirm(path(name), version, digests);
        }
        let Confirmed { version, digests } = confirmed(9);
        ledger.confirm(b"/database/a".to_vec(), version, digests);
        ledger.confirm(path(b"a"), version, digests);
        ledger.forget(path(b"never there"));
        drop(ledger);

        let mut store = Store::open(dir.path()).unwrap();
        let expected = Rows::from([(names[0].clone(), known(9)), (names[1].clone(), known(2))]);
        assert_eq!(recalled(&mut store, names[..2].to_vec()), expected);
        assert_eq!(recalled(&mut store, names), expected, "what was gone once is in the ledger no more");
    }

    #[test]
    fn once_it_holds_no_more_what_was_given_up_a_crash_does_not_bring_it_back() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().join("home");
        let mut store = Store::open(&home).unwrap();
        let names = [&b"d/a"[..], b"d/e/b", b"dd", b"link", b"link2"].map(<[u8]>::to_vec);
        put(&mut store, &names.clone().map(|name| (name, Some(1))));
        let ledger = store.serve(Arc::default()).unwrap();
        assert!(!ledger.still_holds(&path(b"d/e/"), b"b"));
        ledger.forget_below(&path(b"d/"));
        ledger.forget_link(&path(b"link"));
        let deadline = Instant::now() + Duration::from_secs(60);
        while ledger.still_holds(&path(b"d/e/"), b"b") || ledger.still_holds(DIRECTORY, b"link") {
            assert!(Instant::now() < deadline);
            thread::yield_now();
        }
        assert!(!ledger.still_holds(DIRECTORY, b"link2"));
        crash(&home, &dir.path().join("killed"));
        let mut after = Store::open(&dir.path().join("killed")).unwrap();
        let left = Rows::from([b"dd", &b"link2"[..]].map(|name| (name.to_vec(), known(1))));
        assert_eq!(recalled(&mut after, names), left);
    }

    #[test]
    fn of_more_directories_than_it_can_hold_all_are_forgotten() {
        let ledger = Ledger { shared: Arc::default(), thread: None };
        let mut waiting = ledger.shared.lock();
        waiting.put(path(b"before").into(), Some(confirmed(1)));
        for number in 0..=WAITING_MAX {
            waiting.forget_below(&path(format!("{number}/").as_bytes()));
        }
        waiting.put(path(b"between").into(), Some(confirmed(1)));
        assert!(!waiting.forget_below(&path(b"one more/")));
        waiting.put(path(b"after").into(), Some(confirmed(1)));
        let mut group = Group::default();
        group.add(&mut waiting);
        waiting.closed = true;
        drop(waiting);
        assert_eq!(group.rows.keys().map(|path| &**path).collect::<Vec<_>>(), [path(b"after")]);
        assert_eq!(group.below.len(), WAITING_MAX + 1);
        assert!(ledger.still_holds(&path(b"any/"), b"file"));
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
        assert_eq!(recalled(&mut store, [b"a".to_vec()]), Rows::new());
        assert!(dir.path().join(DAMAGED).exists());
        put(&mut store, &[(b"a".to_vec(), Some(2))]);
        drop(store);
        let mut store = Store::open(dir.path()).unwrap();
        assert_eq!(recalled(&mut store, [b"a".to_vec()]), Rows::from([(b"a".to_vec(), known(2))]));
    }

    #[test]
    fn a_directory_has_one_ledger_and_a_ledger_one_process() {
        let dir = tempfile::tempdir().unwrap();
        let first = Store::open(&dir.path().join("made")).unwrap();
        assert!(matches!(Store::open(&first.directory), Err(Error::StateLocked { .. })));
        let directory = first.directory.clone();
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
        assert_eq!(recalled(&mut store, [b"a".to_vec()]), Rows::from([(b"a".to_vec(), known(1))]));
    }

    /// Names and what is written for them, or that they go, in one transaction.
    type Writes = Vec<(Vec<u8>, Option<u64>)>;

    fn groups() -> impl Strategy<Value = Vec<Writes>> {
        let row = (0..20u8, proptest::option::weighted(0.8, any::<u64>()));
        let row = row.prop_map(|(name, number)| (format!("a name that fills its page, number {name}").into(), number));
        proptest::collection::vec(proptest::collection::vec(row, 1..12), 1..8)
    }

    /// Every state that the ledger has had, the empty one first, and all names.
    fn history(groups: &[Writes]) -> (Vec<Rows>, Vec<Vec<u8>>) {
        let mut states = vec![Rows::new()];
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
            let ledger = Ledger { shared: Arc::default(), thread: None };
            ledger.shared.lock().closed = true; // there is no thread to wait for
            let (mut group, mut expected, mut rows) = (Group::default(), Rows::new(), 0);
            for deed in deeds.into_iter().chain([Deed::Write]) {
                match deed {
                    Deed::Confirm(at, number) => {
                        let Confirmed { version, digests } = confirmed(number);
                        ledger.confirm(path(PATHS[at]), version, digests);
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
                        let written = group.rows.iter().map(|(path, row)| (&**path, row.as_ref()));
                        rows += write(store.connect().unwrap(), &group.below, written).unwrap();
                        group = Group::default();
                    }
                }
            }
            prop_assert_eq!(rows, expected.len() as i64);
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
                prop_assert_eq!(recalled(&mut again, [b"new".to_vec()]), Rows::from([(b"new".to_vec(), known(1))]));
            }
        }
    }
}
