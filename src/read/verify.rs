//! Whether what was read is the content of one version of the path: the checks before and after reading.
//!
//! The order is: stat A, a read lease taken and released, read, stat B. The content is accepted if A equals B and the
//! lease was granted. The kernel grants one only while nobody has the file open for writing or mapped writable
//! (fcntl(2), F_SETLEASE), and any later change moves mtime or ctime away from A. Comparing A and B alone would miss
//! writers that keep the file open. Where a change can leave ctime as it is ([`Version::is_racy`]), A equals B whatever
//! was written in between, so the file is read twice and both contents have to agree. (A lease kept while the file is read
//! would do as well, but a process that opens it for writing would wait, for up to 45 s if this one is stopped meanwhile.) At
//! the end the name is looked up once more if a rename can have come between the opening and stat A. Where the kernel
//! gives no lease (the file is another user's and CAP_LEASE is missing, or the file system is a network one), A equals B
//! and later events are the only evidence.

use std::ffi::CStr;
use std::os::fd::BorrowedFd;

use rustix::fs::{AtFlags, FileType, fstat, statat};

use crate::files::errno::Call;
use crate::files::lease;
use crate::files::root::Root;
use crate::files::unread::{Unread, Why};
use crate::files::version::{Timestamp, Version, nanoseconds, version_of};

/// See [`Before::may_be_renamed`].
const RENAME_SUSPECT_SECONDS: i64 = 60;

/// The state of a file just before it is read.
#[derive(Debug, Clone, Copy)]
pub struct Before {
    /// Stat A.
    pub version: Version,
    /// atime, taken before our own reading moves it.
    pub accessed: Timestamp,
    /// The time of day just before stat A was taken.
    pub examined: Timestamp,
    /// The file has further names (`st_nlink`).
    pub linked: bool,
    /// `st_dev`, which [`Before::confirm_name`] compares.
    device: u64,
}

impl Before {
    /// Examines an open file: it has to be regular and, as far as the kernel knows, without a writer.
    ///
    /// # Errors
    /// [`Unread::NotRegular`], [`Unread::Busy`], or what fstat(2) says.
    pub fn examine(file: BorrowedFd<'_>) -> Result<Self, Unread> {
        let examined = Timestamp::now();
        let stat = fstat(file).map_err(|errno| Unread::of(Call::Stat, errno))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(Unread::NotRegular);
        }
        // Stat A comes before the lease, because a writer between the two would go unseen otherwise.
        check_for_writer(file)?;
        Ok(Self {
            version: version_of(&stat),
            accessed: Timestamp { seconds: stat.st_atime, nanoseconds: nanoseconds(stat.st_atime_nsec) },
            examined,
            linked: stat.st_nlink > 1,
            device: stat.st_dev,
        })
    }

    /// Whether the file has to be read twice, because a change meanwhile can leave its version as it is.
    pub fn hides_changes(&self) -> bool {
        self.version.is_racy(self.examined, false)
    }

    /// Whether the file still is the version that was examined.
    ///
    /// # Errors
    /// [`Why::Changed`] when it is not, or has no name any more, which need not show in a ctime of whole seconds; or what
    /// fstat(2) says.
    pub fn confirm(&self, file: BorrowedFd<'_>) -> Result<(), Unread> {
        let stat = fstat(file).map_err(|errno| Unread::of(Call::Stat, errno))?;
        let same = version_of(&stat) == self.version && stat.st_nlink > 0;
        if same { Ok(()) } else { Err(Unread::Busy(Why::Changed)) }
    }

    /// The checks after reading: the file still is the version that was examined, and its name still leads to it.
    /// `movable`: the directory can be renamed, which the file's version does not show.
    ///
    /// # Errors
    /// [`Unread::Busy`] when either is not so, [`Unread::Gone`] when the name is gone, or what stat(2) says.
    pub fn confirm_all(&self, root: &Root, below: &CStr, file: BorrowedFd<'_>, movable: bool) -> Result<(), Unread> {
        self.confirm(file)?;
        // An empty file can have been created a moment ago: the kernel creates a file before it counts its writer.
        if self.version.size == 0 || self.hides_changes() {
            check_for_writer(file)?;
        }
        if movable || self.may_be_renamed() { self.confirm_name(root, below) } else { Ok(()) }
    }

    /// Whether a rename, which moves ctime, may have come between open(2) and stat A. A step of the clock hides none.
    fn may_be_renamed(&self) -> bool {
        Timestamp::now().seconds.saturating_sub(self.version.changed.seconds) < RENAME_SUSPECT_SECONDS
    }

    /// Whether the name that was opened still leads to the version that was examined. A file that was renamed meanwhile
    /// and written under its new name would pass every other check.
    fn confirm_name(&self, root: &Root, below: &CStr) -> Result<(), Unread> {
        let named = statat(root.as_fd(), below, AtFlags::empty()).map_err(|errno| Unread::of(Call::Stat, errno))?;
        let same = named.st_dev == self.device && version_of(&named) == self.version;
        if same { Ok(()) } else { Err(Unread::Busy(Why::NameMoved)) }
    }
}

/// Whether the kernel knows of no writer of the file.
///
/// # Errors
/// As [`lease::take`].
fn check_for_writer(file: BorrowedFd<'_>) -> Result<(), Unread> {
    if lease::take(file)? {
        lease::release(file);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::root::tests::{open, root};
    use std::fs::File;
    use std::io::Write;
    use std::os::fd::AsFd;

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
    fn a_file_that_lost_its_last_name_is_not_confirmed() {
        let (dir, root) = root();
        std::fs::write(dir.path().join("f"), "content").unwrap();
        let reader = open(&root, "f").unwrap();
        let before = Before::examine(reader.as_fd()).unwrap();
        std::fs::remove_file(dir.path().join("f")).unwrap();
        // As if the deletion did not show in ctime.
        let before = Before { version: version_of(&fstat(&reader).unwrap()), ..before };
        assert!(matches!(before.confirm(reader.as_fd()), Err(Unread::Busy(Why::Changed))));
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
