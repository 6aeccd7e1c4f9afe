//! A copy of the ledger, for who compares it with the disk while the service runs.
//!
//! The service holds its database exclusively, so nobody else can open it, and to lock it or its directory would keep a
//! service from starting. So the files are copied by plain reads, and SQLite sees the copy alone.
//!
//! **Why a copy of a database in use is whole.** The database changes by checkpoints alone, which copy pages out of the log
//! (sqlite.org/walformat.html). As long as the log is not begun anew, every page that a checkpoint may have half-written
//! while it was read is still in the log, and whoever opens the copy takes it from there. A log that is begun anew has another
//! salt in its header. So the copy counts if the header is the same before the database was read and after the log was. Without
//! a log nothing is taken from one, and the copy counts if the database has not changed meanwhile.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rusqlite::Connection;

use super::row::{Confirmed, StoreError};
use super::state_directory::{BEHIND, FILE};
use super::table::{self, Pages};
use crate::error::{Error, os_message};
use crate::files::version::{Timestamp, Version, nanoseconds};

/// The length of the log's header, in which a log that is begun anew differs (sqlite.org/walformat.html, 1.1).
const LOG_HEADER: u64 = 32;

/// How often a copy is tried that a new log has come between. The service begins one every some thousand rows.
const TRIES: usize = 16;

const SET_ASIDE: &str = "restart the service, which sets a damaged ledger aside";

/// A private copy of a ledger. It is in no directory any more: it ends with this process.
pub struct Snapshot {
    connection: Connection,
    /// The state directory.
    directory: PathBuf,
    /// When the copy was begun. What was confirmed later is not in it.
    pub at: Timestamp,
    /// The ledger holds rows that ought to be deleted, because the disk was full: some of them are of files long changed.
    pub behind: bool,
}

impl Snapshot {
    /// Copies the ledger of a state directory. It takes no lock and writes nothing there.
    ///
    /// # Errors
    /// [`Error::StateDirectory`]: there is no ledger, it cannot be read, it is damaged, or the copy finds no room.
    pub fn take(directory: &Path) -> Result<Self, Error> {
        let refuse = |cause: String, next| Error::StateDirectory { path: directory.to_owned(), cause, next };
        let unread = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound => {
                refuse("there is no ledger in it".to_owned(), "name the directory of the service")
            }
            io::ErrorKind::PermissionDenied => refuse(os_message(&error), "run it as the service's user, or as root"),
            _ => Error::of_setting(format!("the ledger in {directory:?} cannot be copied"), error, |cause| {
                refuse(cause, "see to its disk, and to the room in TMPDIR for a copy of the ledger")
            }),
        };
        let behind = directory.join(BEHIND).exists();
        let private = Private::make().map_err(|error| {
            let copy = format!("a copy cannot be made in {:?}", std::env::temp_dir());
            Error::of_setting(copy.clone(), error, |cause| refuse(format!("{copy}: {cause}"), "set TMPDIR"))
        })?;
        let copy = private.0.join(FILE);
        for _ in 0..TRIES {
            let at = Timestamp::now();
            if !copy_once(&directory.join(FILE), &copy).map_err(unread)? {
                continue;
            }
            let opened = table::connect(&copy).and_then(|connection| {
                // Into one file, so that it can lose its name.
                connection.pragma_update(None, "journal_mode", "delete")?;
                Ok(connection)
            });
            return match opened {
                Ok(connection) => Ok(Self { connection, directory: directory.to_owned(), at, behind }),
                Err(error @ StoreError::Newer) => Err(refuse(error.to_string(), "use the version that wrote it")),
                Err(error) => Err(refuse(error.to_string(), SET_ASIDE)),
            };
        }
        Err(refuse("it is written faster than it can be copied".to_owned(), "try again when less lands"))
    }

    /// The row of an absolute path.
    ///
    /// # Errors
    /// [`Error::StateDirectory`]: the row is damaged.
    pub fn row(&self, path: &[u8]) -> Result<Option<Confirmed>, Error> {
        table::read_row(&self.connection, path).map_err(|error| self.damaged(&error))
    }

    /// Passes each path and its row to `take`, in the order of the paths.
    ///
    /// # Errors
    /// [`Error::StateDirectory`]: a row is damaged; or what `take` returns.
    pub fn each(&self, mut take: impl FnMut(&[u8], &Confirmed) -> Result<(), Error>) -> Result<(), Error> {
        let mut pages = Pages::new();
        while let Some(page) = pages.next(&self.connection) {
            for (path, row) in page.map_err(|error| self.damaged(&error))?.rows() {
                take(path, row)?;
            }
        }
        Ok(())
    }

    fn damaged(&self, error: &StoreError) -> Error {
        Error::StateDirectory { path: self.directory.clone(), cause: error.to_string(), next: SET_ASIDE }
    }
}

/// A directory for this process alone, which goes with this value.
struct Private(PathBuf);

impl Private {
    fn make() -> io::Result<Self> {
        static MADE: AtomicU64 = AtomicU64::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("apollonia-ingestor-verify-{}-{number}", std::process::id()));
        // One that a killed process of the same number has left; another user's stays, and is refused below.
        let _ = fs::remove_dir_all(&path);
        DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Private {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Copies the database and its log. Returns whether the copy is whole: see the module.
fn copy_once(from: &Path, to: &Path) -> io::Result<bool> {
    let [log, copied_log] = [from, to].map(|path| path.with_file_name(format!("{FILE}-wal")));
    for left in [to, &copied_log] {
        match fs::remove_file(left) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    let before = Seen::now(from, &log)?;
    fs::copy(from, to)?;
    match fs::copy(&log, &copied_log) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    Ok(before == Seen::now(from, &log)?)
}

/// What is the same before and after a copy that is whole.
#[derive(PartialEq)]
struct Seen {
    /// Which file it is: a damaged database is set aside and a new one made.
    inode: u64,
    log_header: Vec<u8>,
    /// Size and times of the database, where the log is empty.
    unwritten: Option<Version>,
}

impl Seen {
    fn now(database: &Path, log: &Path) -> io::Result<Self> {
        let (log_header, stat) = (header(log)?, fs::metadata(database)?);
        let version = || Version {
            inode: stat.ino(),
            size: stat.len(),
            modified: Timestamp { seconds: stat.mtime(), nanoseconds: nanoseconds(stat.mtime_nsec()) },
            changed: Timestamp { seconds: stat.ctime(), nanoseconds: nanoseconds(stat.ctime_nsec()) },
        };
        let unwritten = log_header.is_empty().then(version);
        Ok(Self { inode: stat.ino(), log_header, unwritten })
    }
}

/// The header of a log; nothing where there is none, or it is empty.
fn header(log: &Path) -> io::Result<Vec<u8>> {
    let mut header = Vec::new();
    match File::open(log).and_then(|log| log.take(LOG_HEADER).read_to_end(&mut header)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(header),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;
    use std::thread;

    use super::super::store::Store;
    use super::super::tests::confirmed;
    use super::*;
    use crate::ledger::row::Rows;

    /// Rows of one transaction: enough for the log to be begun anew every few of them.
    const ROWS: u64 = 400;

    fn rows(generation: u64) -> Rows {
        let row = confirmed(generation);
        (0..ROWS).map(|number| (format!("/data/{number:06}").into_bytes().into(), Some(row))).collect()
    }

    /// The sizes in all rows, each once, and the number of rows.
    fn seen(snapshot: &Snapshot) -> (Vec<u64>, u64) {
        let (mut sizes, mut count) = (Vec::new(), 0);
        let each = snapshot.each(|path, row| {
            assert_eq!(snapshot.row(path)?.as_ref(), Some(row));
            sizes.push(row.version.size);
            count += 1;
            Ok(())
        });
        each.unwrap();
        sizes.dedup();
        (sizes, count)
    }

    #[test]
    fn a_copy_of_a_database_in_use_holds_whole_transactions() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::open(dir.path()).unwrap();
        store.write(&[], &rows(0)).unwrap();
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                for generation in 1.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    store.write(&[], &rows(generation)).unwrap();
                }
            });
            for _ in 0..20 {
                match Snapshot::take(dir.path()) {
                    Ok(snapshot) => {
                        let (sizes, count) = seen(&snapshot);
                        assert_eq!((sizes.len(), count), (1, ROWS), "two generations in one copy: {sizes:?}");
                    }
                    Err(error) => assert!(error.to_string().contains("faster than it can be copied"), "{error}"),
                }
            }
            stop.store(true, Ordering::Relaxed);
        });
    }

    #[test]
    fn a_copy_of_a_database_at_rest_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::open(dir.path()).unwrap();
        store.write(&[], &rows(7)).unwrap();
        drop(store);
        let names = || fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>();
        let before = names();
        let snapshot = Snapshot::take(dir.path()).unwrap();
        assert_eq!((seen(&snapshot), names()), ((vec![7], ROWS), before));
        assert!(snapshot.row(b"/data/none").unwrap().is_none() && !snapshot.behind);
    }
}
