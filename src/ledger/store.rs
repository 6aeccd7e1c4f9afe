//! The database: a row for each path. One process at a time, checked when it is read, set aside when it cannot be used.
//!
//! SQLite in write-ahead mode: the process may be killed at any moment and leaves whole transactions; a power
//! cut may take the last ones, for only checkpoints wait for the disk.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::{fs, io, mem};

use rusqlite::{Connection, OptionalExtension, Row, params};
use rustix::fs::{Access, AtFlags, FlockOperation, Mode, OFlags, accessat, flock, openat};
use rustix::io::Errno;

use super::form1;
use super::row::{Confirmed, Rows, Trouble, blob, decode};
use crate::error::{Error, os_message};
use crate::files::version::Version;
use crate::job::Known;

/// The database in the state directory.
pub const FILE: &str = "ledger.sqlite";

/// Where a damaged one goes, in the place of an earlier damaged one.
pub(super) const DAMAGED: &str = "ledger.sqlite.damaged";

/// Stands beside a database with rows that ought to be gone. Empty: a full disk has room for a name.
pub(super) const BEHIND: &str = "ledger.behind";

/// Stands beside a database that holds all that was told last: the process that wrote it came to its end, and none has
/// begun since. Taken away before anything is told: a row may lag from then on. It says which file it is of, so that an
/// older copy put in its place is not taken for it.
pub(super) const COMPLETE: &str = "ledger.complete";

/// What SQLite keeps beside a database.
const SIDE_FILES: [&str; 3] = ["", "-wal", "-shm"];

/// The table's form, in `user_version`.
pub(super) const FORM: i64 = 2;

/// How every database begins (sqlite.org/fileformat2.html, 1.3).
const MAGIC: &[u8; 16] = b"SQLite format 3\0";

/// Where `user_version` stands in a database's header, big-endian.
const FORM_AT: usize = 60;

/// An absolute path, and the version that stood there before us with whether it is racy: nothing where the row only goes.
pub type Seen = (Vec<u8>, Option<(Version, bool)>);

/// What becomes of a row when the ledger is recalled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It is known from now on.
    Known,
    /// Its file is not there any more.
    Gone,
    /// It is of a file that this process does not follow: kept as it is.
    LeftOut,
}

/// The database, locked for this process.
pub struct Store {
    directory: PathBuf,
    /// Nothing while it cannot be opened: the disk is full.
    connection: Option<Connection>,
    /// How many it holds, once it was read.
    rows: i64,
    /// What could not be written when it was read.
    unwritten: Rows,
    /// [`COMPLETE`] was there when it was opened.
    complete: bool,
    /// flock(2) on the directory itself: no file is needed, and the kernel drops it with the process.
    lock: OwnedFd,
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
        for side in SIDE_FILES {
            let file = format!("{FILE}{side}");
            let reached = accessat(&dir, &*file, Access::READ_OK | Access::WRITE_OK, AtFlags::EACCESS);
            if let Err(errno @ Errno::ACCESS) = reached {
                return Err(Error::StateDirectory {
                    path: directory.join(file),
                    cause: os_message(&errno.into()),
                    next: "give it to the user that this runs as, or name another directory",
                });
            }
        }
        let mark = fs::read_to_string(directory.join(COMPLETE)).ok();
        let mut store = Self {
            directory: directory.to_owned(),
            connection: None,
            rows: 0,
            unwritten: Rows::new(),
            complete: mark.is_some() && mark == identity(directory).ok(),
            lock: dir,
        };
        match store.connect_or_set_aside() {
            Ok(_) => {}
            Err(Trouble::Newer) => return Err(newer(directory)),
            Err(trouble) => tracing::warn!(
                "the ledger in {directory:?} cannot be opened: {trouble}; it counts as empty and is tried again later"
            ),
        }
        Ok(store)
    }

    /// Hands over what was confirmed for each absolute path; `take` tells what becomes of the row. `false`: the ledger
    /// cannot be read to its end, and nothing of it counts. From now on it is not complete: to be called before anything is
    /// told.
    ///
    /// # Errors
    /// [`Error::StateDirectory`] when it would go on saying that it is.
    pub fn recall(&mut self, take: impl FnMut(&[u8], Known) -> Fate) -> Result<bool, Error> {
        let complete = self.take_completeness().map_err(|error| Error::StateDirectory {
            path: self.directory.join(COMPLETE),
            cause: format!("it cannot be removed: {}", os_message(&error)),
            next: "give this user the right to write there, or name another directory",
        })?;
        let read = self.set_aside_if_behind().and_then(|()| self.read_all(complete, take));
        if let Err(trouble) = &read {
            self.note_damage(trouble);
            self.unwritten.clear();
        }
        Ok(read.is_ok())
    }

    /// See [`Store::recall`]. By the page, so that a million rows that change need no memory for all of them.
    fn read_all(&mut self, complete: bool, mut take: impl FnMut(&[u8], Known) -> Fate) -> Result<(), Trouble> {
        self.rows = 0;
        let mut last = Box::default();
        loop {
            let Page { end, rows, mut changes } = read_page(self.connect()?, &last, complete, &mut take)?;
            self.rows += rows;
            if !changes.is_empty() && self.unwritten.is_empty() {
                match write(self.connect()?, &[], each(&changes)) {
                    Ok(more) => {
                        self.rows += more;
                        changes.clear();
                    }
                    Err(trouble @ Trouble::Damaged(_)) => return Err(trouble),
                    Err(_) => {} // on a full disk: the thread tries again, and tells
                }
            }
            self.unwritten.extend(changes);
            match end {
                Some(path) => last = path,
                None => return Ok(()),
            }
        }
    }

    /// Enters what was there before us, without digests, or forgets what stands there no more, in one transaction.
    ///
    /// # Errors
    /// Why it could not be written: nothing of it was.
    pub fn enter(&mut self, seen: impl IntoIterator<Item = Seen>) -> Result<(), Trouble> {
        let row = |(version, racy)| Confirmed { version, digests: None, racy, by_version_only: false };
        let rows: Rows = seen.into_iter().map(|(path, seen)| (path.into(), seen.map(row))).collect();
        self.write(&[], &rows)
    }

    /// Whether the ledger was marked as complete; it is not any more, even if power is cut.
    fn take_completeness(&self) -> io::Result<bool> {
        match fs::remove_file(self.directory.join(COMPLETE)) {
            Ok(()) => match rustix::fs::fsync(&self.lock) {
                // Some file systems have no such thing for a directory (fsync(2)).
                Ok(()) | Err(Errno::INVAL) => Ok(self.complete),
                Err(errno) => Err(errno.into()),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Ends the use of it; marks it as complete once all of it is on the disk, but for these rows, which may lag.
    pub(super) fn complete(mut self, lagging: &[Box<[u8]>]) -> Result<(), Trouble> {
        let Some(mut connection) = self.connection.take() else { return Ok(()) };
        let mut rows = Rows::new();
        for path in lagging {
            let row =
                connection.query_row("SELECT * FROM confirmed WHERE path = ?1", [path], |row| Ok(decode(path, row)));
            if let Some(confirmed) = row.optional()?.transpose()? {
                rows.insert(path.clone(), Some(Confirmed { by_version_only: true, ..confirmed }));
            }
        }
        if !rows.is_empty() {
            write(&mut connection, &[], each(&rows))?;
        }
        let checkpoint = |row: &Row<'_>| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?, row.get::<_, i64>(2)?));
        let (busy, log, done) = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], checkpoint)?;
        connection.close().map_err(|(_, error)| error)?;
        if busy == 0 && log == done {
            fs::write(self.directory.join(COMPLETE), identity(&self.directory)?)?;
        }
        Ok(())
    }

    /// Where it is.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// How many rows it holds.
    pub(super) fn rows(&self) -> i64 {
        self.rows
    }

    /// Bytes of the database, its log not counted, where they can be had.
    pub(super) fn bytes(&self) -> Option<i64> {
        size(self.connection.as_ref()?).ok()
    }

    /// What [`Store::recall`] was to write and could not.
    pub(super) fn take_unwritten(&mut self) -> Rows {
        mem::take(&mut self.unwritten)
    }

    /// Removes all rows below these directories, then writes rows, and removes those that are nothing, in one transaction.
    /// A damaged database is set aside first.
    pub(super) fn write(&mut self, below: &[Box<[u8]>], rows: &Rows) -> Result<(), Trouble> {
        let written = self.connect_or_set_aside().and_then(|connection| write(connection, below, each(rows)));
        self.rows += match written {
            Err(trouble @ Trouble::Damaged(_)) => {
                self.set_aside(&trouble)?;
                write(self.connect()?, below, each(rows))?
            }
            other => other?,
        };
        Ok(())
    }

    fn set_aside_if_behind(&mut self) -> Result<(), Trouble> {
        if self.directory.join(BEHIND).try_exists()? {
            self.set_aside(&Trouble::Behind)?;
            self.behind(false)?;
        }
        Ok(())
    }

    /// Marks the ledger as one with rows that ought to be gone, or takes the mark away.
    pub(super) fn behind(&self, marked: bool) -> io::Result<()> {
        let mark = self.directory.join(BEHIND);
        if marked { File::create(mark).map(drop) } else { fs::remove_file(mark) }
    }

    pub(super) fn connect(&mut self) -> Result<&mut Connection, Trouble> {
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

/// What tells the database that stands there from another, and from what it was before it was written again.
fn identity(directory: &Path) -> io::Result<String> {
    let status = fs::metadata(directory.join(FILE))?;
    Ok(format!("{} {} {}.{:09}\n", status.ino(), status.len(), status.mtime(), status.mtime_nsec()))
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
    let mut connection = Connection::open(file)?;
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
        form1::FORM => form1::migrate(&mut connection)?,
        0 => {
            connection.execute_batch(
                "BEGIN IMMEDIATE;
                CREATE TABLE confirmed (
                    path BLOB PRIMARY KEY,
                    flags INTEGER NOT NULL,
                    inode INTEGER NOT NULL,
                    size INTEGER NOT NULL,
                    modified_seconds INTEGER NOT NULL,
                    modified_nanoseconds INTEGER NOT NULL,
                    changed_seconds INTEGER NOT NULL,
                    changed_nanoseconds INTEGER NOT NULL,
                    sha256 BLOB NOT NULL,
                    xxh128 BLOB NOT NULL,
                    checksum BLOB NOT NULL
                ) STRICT, WITHOUT ROWID;
                PRAGMA user_version = 2;
                COMMIT;",
            )?;
        }
        form if form > FORM => return Err(Trouble::Newer),
        form => return Err(Trouble::Damaged(format!("it is of the form {form}"))),
    }
    Ok(connection)
}

/// Some rows of the ledger.
struct Page {
    /// The last path, unless these are the last.
    end: Option<Box<[u8]>>,
    rows: i64,
    /// What is there no more goes; what is left out may lag from now on.
    changes: Rows,
}

/// Rows in a [`Page`]; some 400 bytes each where all of them change.
const PAGE_ROWS: i64 = 1 << 14;

fn each(rows: &Rows) -> impl Iterator<Item = (&[u8], Option<&Confirmed>)> {
    rows.iter().map(|(path, row)| (&**path, row.as_ref()))
}

fn size(connection: &Connection) -> rusqlite::Result<i64> {
    let number = |pragma| connection.pragma_query_value(None, pragma, |row| row.get::<_, i64>(0));
    Ok(number("page_count")? * number("page_size")?)
}

fn read_page(
    connection: &mut Connection,
    after: &[u8],
    complete: bool,
    take: &mut impl FnMut(&[u8], Known) -> Fate,
) -> Result<Page, Trouble> {
    let mut page = Page { end: None, rows: 0, changes: Rows::new() };
    let mut select = connection.prepare_cached("SELECT * FROM confirmed WHERE path > ?1 ORDER BY path LIMIT ?2")?;
    let mut rows = select.query(params![after, PAGE_ROWS])?;
    while let Some(row) = rows.next()? {
        let path = blob(row, 0)?;
        let confirmed = decode(path, row)?;
        let lags = Confirmed { by_version_only: confirmed.by_version_only || !complete, ..confirmed };
        page.rows += 1;
        match take(path, lags.known()) {
            Fate::LeftOut if lags != confirmed => drop(page.changes.insert(path.into(), Some(lags))),
            Fate::Gone => drop(page.changes.insert(path.into(), None)),
            Fate::Known | Fate::LeftOut => {}
        }
        if page.rows == PAGE_ROWS {
            page.end = Some(path.into());
        }
    }
    Ok(page)
}

/// See [`Store::write`]. Tells how many rows there are more than before.
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
                Some(confirmed @ Confirmed { version, digests, .. }) => {
                    let xxh128 = digests.map(|digests| digests.xxh128.to_be_bytes());
                    let row = params![
                        path,
                        confirmed.flags(),
                        version.inode.cast_signed(),
                        version.size.cast_signed(),
                        version.modified.seconds,
                        version.modified.nanoseconds,
                        version.changed.seconds,
                        version.changed.nanoseconds,
                        digests.as_ref().map_or(&[][..], |digests| &digests.sha256),
                        xxh128.as_ref().map_or(&[][..], |xxh128| xxh128),
                        confirmed.checksum(path).to_be_bytes(),
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
