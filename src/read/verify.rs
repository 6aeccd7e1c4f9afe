//! Whether what was read is the content of one version of the path: the checks before and after reading.
//!
//! The order is: stat A, a read lease taken and released, read, stat B. The content is accepted if A equals B and the
//! lease was granted. The kernel grants one only while nobody has the file open for writing or mapped writable
//! (fcntl(2), F_SETLEASE), and any later change moves mtime or ctime away from A. Comparing A and B alone would miss
//! writers that keep the file open. Where a change can leave ctime as it is ([`Version::is_racy`]), the lease is kept
//! until the file is closed: a process that opens it for writing has to wait meanwhile, and reading stops soon. At the
//! end the name is looked up once more if a rename can have come between the opening and stat A. Where the kernel gives
//! no lease (the file is another user's and CAP_LEASE is missing, or the file system is a network one), A equals B and
//! later events are the only evidence.

use std::ffi::CStr;
use std::os::fd::BorrowedFd;

use rustix::fs::{AtFlags, FileType, fstat, statat};

use crate::files::errno::Call;
use crate::files::lease;
use crate::files::root::Root;
use crate::files::unread::{Unread, Why};
use crate::files::version::{Stamp, Version, nanoseconds, version_of};

/// See [`Before::may_be_renamed`].
const RENAME_SUSPECT_SECONDS: i64 = 60;

/// The state of a file just before it is read.
#[derive(Debug, Clone, Copy)]
pub struct Before {
    /// Stat A.
    pub version: Version,
    /// atime, taken before our own reading moves it.
    pub accessed: Stamp,
    /// The time of day just before stat A was taken.
    pub examined: Stamp,
    /// The file has further names (`st_nlink`).
    pub linked: bool,
    /// `st_dev`, which [`Before::confirm_name`] compares.
    device: u64,
    /// The lease is kept until the file is closed.
    leased: bool,
}

impl Before {
    /// Examines an open file: it has to be regular and, as far as the kernel knows, without a writer.
    ///
    /// # Errors
    /// [`Unread::NotRegular`], [`Unread::Busy`], or what fstat(2) says.
    pub fn examine(file: BorrowedFd<'_>) -> Result<Self, Unread> {
        let examined = Stamp::now();
        let stat = fstat(file).map_err(|errno| Unread::of(Call::Stat, errno))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(Unread::NotRegular);
        }
        // Stat A comes before the lease, because a writer between the two would go unseen otherwise.
        let version = version_of(&stat);
        let granted = lease::take(file)?;
        let leased = granted && version.is_racy(examined, false);
        if granted && !leased {
            lease::release(file);
        }
        Ok(Self {
            version,
            accessed: Stamp { seconds: stat.st_atime, nanoseconds: nanoseconds(stat.st_atime_nsec) },
            examined,
            linked: stat.st_nlink > 1,
            device: stat.st_dev,
            leased,
        })
    }

    /// Whether the file still is the version that was examined.
    ///
    /// # Errors
    /// [`Why::Changed`] when it is not, [`Why::WriterPresent`] when a writer waits for a lease that was kept, or what
    /// fstat(2) says.
    pub fn confirm(&self, file: BorrowedFd<'_>) -> Result<(), Unread> {
        let stat = fstat(file).map_err(|errno| Unread::of(Call::Stat, errno))?;
        if version_of(&stat) != self.version {
            return Err(Unread::Busy(Why::Changed));
        }
        if self.leased && !lease::is_held(file) {
            return Err(Unread::Busy(Why::WriterPresent));
        }
        Ok(())
    }

    /// The checks after reading: the file still is the version that was examined, and its name still leads to it.
    /// `movable`: the directory can be renamed, which the file's version does not show.
    ///
    /// # Errors
    /// [`Unread::Busy`] when either is not so, [`Unread::Gone`] when the name is gone, or what stat(2) says.
    pub fn confirm_all(&self, root: &Root, below: &CStr, file: BorrowedFd<'_>, movable: bool) -> Result<(), Unread> {
        self.confirm(file)?;
        // An empty file can have been created a moment ago: the kernel creates a file before it counts its writer.
        if self.version.size == 0 && !self.leased && lease::take(file)? {
            lease::release(file);
        }
        if movable || self.may_be_renamed() { self.confirm_name(root, below) } else { Ok(()) }
    }

    /// Whether a rename, which moves ctime, may have come between open(2) and stat A. A step of the clock hides none.
    fn may_be_renamed(&self) -> bool {
        Stamp::now().seconds.saturating_sub(self.version.changed.seconds) < RENAME_SUSPECT_SECONDS
    }

    /// Whether the name that was opened still leads to the version that was examined. A file that was renamed meanwhile
    /// and written under its new name would pass every other check.
    fn confirm_name(&self, root: &Root, below: &CStr) -> Result<(), Unread> {
        let named = statat(root.as_fd(), below, AtFlags::empty()).map_err(|errno| Unread::of(Call::Stat, errno))?;
        let same = named.st_dev == self.device && version_of(&named) == self.version;
        if same { Ok(()) } else { Err(Unread::Busy(Why::NameMoved)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::CString;
    use std::fs::File;
    use std::io;
    use std::io::Write;
    use std::os::fd::{AsFd, OwnedFd};
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::OpenOptionsExt;

    fn root() -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().canonicalize().unwrap();
        let root = Root::new(File::open(&real).unwrap().into(), real.as_os_str().as_bytes());
        (dir, root)
    }

    fn open(root: &Root, name: &str) -> Result<OwnedFd, Unread> {
        let name = CString::new(name).unwrap();
        root.open_file(&name)
    }

    #[test]
    fn a_writer_is_found_until_it_closes_the_file() {
        let (dir, root) = root();
        let mut writer = File::create(dir.path().join("f")).unwrap();
        let reader = open(&root, "f").unwrap();
        assert!(matches!(Before::examine(reader.as_fd()), Err(Unread::Busy(Why::WriterPresent))));
        writer.write_all(b"x").unwrap();
        drop(writer);
        let before = Before::examine(reader.as_fd()).unwrap();
        before.confirm(reader.as_fd()).unwrap();
        std::fs::write(dir.path().join("f"), "y").unwrap();
        assert!(matches!(before.confirm(reader.as_fd()), Err(Unread::Busy(Why::Changed))));
    }

    #[test]
    fn a_kept_lease_makes_a_writer_wait_until_the_file_is_closed() {
        let (dir, root) = root();
        let path = dir.path().join("f");
        std::fs::write(&path, "one").unwrap();
        let reader = open(&root, "f").unwrap();
        let mut before = Before::examine(reader.as_fd()).unwrap();
        before.leased = lease::take(reader.as_fd()).unwrap();
        assert!(before.leased && lease::is_held(reader.as_fd()));
        before.confirm(reader.as_fd()).unwrap();
        lease::ignore_break_signal();
        let refused = File::options().write(true).custom_flags(libc::O_NONBLOCK).open(&path).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::WouldBlock);
        // Nothing has been written yet, but a writer waits.
        assert!(matches!(before.confirm(reader.as_fd()), Err(Unread::Busy(Why::WriterPresent))));
        drop(reader);
        File::options().write(true).custom_flags(libc::O_NONBLOCK).open(&path).unwrap();
    }

    #[test]
    fn a_name_that_leads_to_another_version_is_found() {
        let (dir, root) = root();
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("f"), "f's").unwrap();
        let opened = open(&root, "f").unwrap();
        std::fs::rename(at("f"), at("g")).unwrap();
        std::fs::write(at("g"), "never f's").unwrap();
        let before = Before::examine(opened.as_fd()).unwrap();
        before.confirm(opened.as_fd()).unwrap();
        assert!(before.may_be_renamed());
        assert!(matches!(before.confirm_name(&root, c"f"), Err(Unread::Gone)));
        std::fs::write(at("f"), "another").unwrap();
        assert!(matches!(before.confirm_name(&root, c"f"), Err(Unread::Busy(Why::NameMoved))));
        before.confirm_name(&root, c"g").unwrap();
    }
}
