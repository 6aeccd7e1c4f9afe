//! The state directory: its lock, the ledger's files in it, and the two marks beside the database.

use std::fs::{DirBuilder, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;
use std::{fs, io};

use rustix::fs::{Access, AtFlags, FlockOperation, Mode, OFlags, accessat, flock, openat};
use rustix::io::Errno;

use crate::error::{Error, os_message};

/// The database in the state directory.
pub const FILE: &str = "ledger.sqlite";

/// Where a damaged database is moved. An earlier damaged one is replaced.
pub(super) const DAMAGED: &str = "ledger.sqlite.damaged";

/// Says that the database holds rows which ought to be deleted. It is empty: a full disk has room for a name. Where there is no
/// room for another file it is a second name of the database.
pub(super) const BEHIND: &str = "ledger.behind";

/// Says that every row is what was published last. It is removed before anything is published, because rows may lag from
/// then on. It holds the database's [`identity`], so that an older copy put in its place does not count as complete.
pub(super) const COMPLETE: &str = "ledger.complete";

/// The database itself, and what SQLite keeps beside it.
pub(super) const SUFFIXES: [&str; 3] = ["", "-wal", "-shm"];

const GIVE_THE_RIGHT: &str = "give this user the right to write there, or name another directory";

/// Creates the state directory where it is missing, checks that it can be written, and locks it: flock(2) on the
/// directory itself needs no file, and the kernel drops the lock with the process.
pub(super) fn lock(directory: &Path) -> Result<OwnedFd, Error> {
    let unusable = |error: io::Error| {
        let refused = |cause| Error::StateDirectory { path: directory.to_owned(), cause, next: GIVE_THE_RIGHT };
        Error::of_setting(format!("the state directory {directory:?} cannot be opened"), error, refused)
    };
    create(directory).map_err(unusable)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = openat(rustix::fs::CWD, directory, flags, Mode::empty()).map_err(|errno| unusable(errno.into()))?;
    accessat(&dir, ".", Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS)
        .map_err(|errno| unusable(errno.into()))?;
    flock(&dir, FlockOperation::NonBlockingLockExclusive).map_err(|errno| match errno {
        Errno::WOULDBLOCK => Error::StateLocked { path: directory.to_owned() },
        _ => Error::of_setting(format!("the state directory {directory:?} cannot be locked"), errno, |cause| {
            Error::StateDirectory {
                path: directory.to_owned(),
                cause: format!("it cannot be locked: {cause}"),
                next: "name a directory on a local file system",
            }
        }),
    })?;
    Ok(dir)
}

/// Creates the directory for this user alone, because it holds the names of all files. One that exists keeps its mode.
fn create(directory: &Path) -> io::Result<()> {
    if let Some(parent) = directory.parent() {
        fs::create_dir_all(parent)?;
    }
    DirBuilder::new().recursive(true).mode(0o700).create(directory)
}

pub(super) fn check_access(dir: &OwnedFd, directory: &Path) -> Result<(), Error> {
    for suffix in SUFFIXES {
        let file = format!("{FILE}{suffix}");
        let access = accessat(dir, &*file, Access::READ_OK | Access::WRITE_OK, AtFlags::EACCESS);
        if let Err(errno @ Errno::ACCESS) = access {
            return Err(Error::StateDirectory {
                path: directory.join(file),
                cause: os_message(&errno),
                next: "give it to the user that this runs as, or name another directory",
            });
        }
    }
    Ok(())
}

/// Whether [`COMPLETE`] is there for this database.
pub(super) fn is_complete(directory: &Path) -> bool {
    let mark = fs::read_to_string(directory.join(COMPLETE)).ok();
    mark.is_some() && mark == identity(directory).ok()
}

/// Writes [`COMPLETE`]. The database must be closed: a later write would change its [`identity`].
pub(super) fn mark_complete(directory: &Path) -> io::Result<()> {
    fs::write(directory.join(COMPLETE), identity(directory)?)
}

/// Removes [`COMPLETE`], durably. Returns whether it was there.
pub(super) fn unmark_complete(dir: &OwnedFd, directory: &Path) -> Result<bool, Error> {
    let removed = match fs::remove_file(directory.join(COMPLETE)) {
        Ok(()) => match rustix::fs::fsync(dir) {
            // Some file systems have no such thing for a directory (fsync(2)).
            Ok(()) | Err(Errno::INVAL) => Ok(true),
            Err(errno) => Err(errno.into()),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    };
    removed.map_err(|error| {
        let mark = directory.join(COMPLETE);
        Error::of_setting(format!("{mark:?} cannot be removed"), error, |cause| Error::StateDirectory {
            path: mark.clone(),
            cause: format!("it cannot be removed: {cause}"),
            next: GIVE_THE_RIGHT,
        })
    })
}

/// Makes [`BEHIND`]. Returns whether it is there: where there is neither room for it nor a database, there is nothing to mark.
pub(super) fn mark_behind(directory: &Path) -> io::Result<bool> {
    let mark = directory.join(BEHIND);
    let Err(refused) = create_mark(&mark) else { return Ok(true) };
    // A disk without a free inode takes another name for one that is there.
    for suffix in SUFFIXES {
        match fs::hard_link(directory.join(format!("{FILE}{suffix}")), &mark).map_err(|error| error.kind()) {
            Ok(()) | Err(io::ErrorKind::AlreadyExists) => return Ok(true),
            Err(io::ErrorKind::NotFound) => {}
            Err(_) => return Err(refused),
        }
    }
    Ok(false)
}

fn create_mark(mark: &Path) -> io::Result<()> {
    #[cfg(test)]
    super::faults::create(mark)?;
    // One that is there may be the database itself.
    File::options().write(true).create(true).truncate(false).open(mark).map(drop)
}

pub(super) fn unmark_behind(directory: &Path) -> io::Result<()> {
    fs::remove_file(directory.join(BEHIND))
}

pub(super) fn set_aside(directory: &Path) -> io::Result<()> {
    for suffix in SUFFIXES {
        let (from, to) = (format!("{FILE}{suffix}"), format!("{DAMAGED}{suffix}"));
        match fs::rename(directory.join(from), directory.join(to)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Inode, size and mtime of the database, which change when it is replaced or written.
fn identity(directory: &Path) -> io::Result<String> {
    let status = fs::metadata(directory.join(FILE))?;
    Ok(format!("{} {} {}.{:09}\n", status.ino(), status.len(), status.mtime(), status.mtime_nsec()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_new_directory_is_for_this_user_alone_and_an_old_one_keeps_its_mode() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("not/there");
        let mode = || fs::metadata(&state).unwrap().permissions().mode() & 0o777;
        drop(lock(&state).unwrap());
        assert_eq!(mode(), 0o700);
        fs::set_permissions(&state, fs::Permissions::from_mode(0o750)).unwrap();
        drop(lock(&state).unwrap());
        assert_eq!(mode(), 0o750);
    }
}
