//! A data directory: opening files beneath it, and the evidence that its file system gives of writers.

pub mod opening;

use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::{fmt, io};

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat, StatxFlags, fstat, openat, openat2, readlinkat, statat, statx,
};
use rustix::io::Errno;
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

use super::errno::{Call, Meaning, meaning};
use crate::error::Error;
use crate::files::mounts::{Mounts, Place};
use crate::files::unread::Unread;

/// Opening does not block, so that neither a FIFO nor somebody's write lease holds up the service (open(2), fcntl(2)).
pub const OPEN_FLAGS: OFlags =
    OFlags::RDONLY.union(OFlags::NONBLOCK).union(OFlags::NOFOLLOW).union(OFlags::NOCTTY).union(OFlags::CLOEXEC);

/// No part of the path may be a link or on another file system (openat2(2), Linux 5.6).
pub const OPEN_RESOLVE: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// A data directory: an open descriptor, and its real path for messages.
///
/// Where the directory did not answer in time (`opening`), a thread opens it meanwhile. Whatever asks for the
/// descriptor until then waits, as it would in any call to a file system that hangs.
#[derive(Debug)]
pub struct Root {
    dir: Arc<OnceLock<OwnedFd>>,
    path: Box<[u8]>,
    volume: usize,
    /// Determined once, when it is first asked for.
    protection: OnceLock<Protection>,
    /// What opens it, until [`Root::opened`] has waited for that.
    opening: Mutex<Option<Opening>>,
}

/// A thread that opens a data directory, and returns its real path.
type Opening = JoinHandle<Result<PathBuf, Error>>;

impl Root {
    /// Makes a root of an open directory and its real path.
    #[must_use]
    pub fn new(dir: OwnedFd, path: &[u8]) -> Self {
        Self::opened_by(None, Arc::new(OnceLock::from(dir)), path)
    }

    fn opened_by(opening: Option<Opening>, dir: Arc<OnceLock<OwnedFd>>, path: &[u8]) -> Self {
        Self { dir, path: path.into(), volume: 0, protection: OnceLock::new(), opening: Mutex::new(opening) }
    }

    /// Whether it is open, so that no call waits for that.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.dir.get().is_some()
    }

    /// Waits until it is open. Returns whether it did not answer in time.
    ///
    /// # Errors
    /// As [`open_root`], but none of a setting, because the service runs; and [`Error::Watch`] if its real path has turned out
    /// to be another one.
    pub fn opened(&self) -> Result<bool, Error> {
        let opening = self.opening.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(opening) = opening else { return Ok(false) };
        let refuse = |path, cause, next| Error::Watch { path, cause: io::Error::other(cause), next };
        match join(opening) {
            Ok(real) if real == self.path() => Ok(true),
            Ok(real) => {
                Err(refuse(self.path().to_owned(), format!("it is {real:?}"), "start again, now that it answers"))
            }
            Err(Error::DataDirectory { path, cause, next }) => Err(refuse(path, cause, next)),
            Err(error) => Err(error),
        }
    }

    /// Returns the root with the number of its volume.
    #[must_use]
    pub fn on_volume(self, volume: usize) -> Self {
        Self { volume, ..self }
    }

    /// The number of its volume. Data directories on one file system share the volume and the threads that read there.
    #[must_use]
    pub fn volume(&self) -> usize {
        self.volume
    }

    /// `st_dev` of the directory, or `None` if it is not open yet or fstat(2) fails.
    #[must_use]
    pub fn device(&self) -> Option<u64> {
        fstat(self.dir.get()?).ok().map(|found| found.st_dev)
    }

    /// The real path of the data directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.path))
    }

    /// Whether both are one directory, even by different paths: a bind mount is another path of the same directory. That of one
    /// that is not open yet is not known.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        let stat = |root: &Self| root.dir.get().and_then(|dir| fstat(dir).ok());
        matches!((stat(self), stat(other)), (Some(this), Some(other)) if same_file(&this, &other))
    }

    /// Where it is on its file system, as far as the kernel says (`STATX_MNT_ID`, Linux 5.8).
    fn place(&self, mounts: &Mounts) -> Option<Place> {
        let found = statx(self.dir.get()?, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID).ok()?;
        let known = found.stx_mask & StatxFlags::MNT_ID.bits() != 0;
        known.then_some(found.stx_mnt_id).and_then(|mount| mounts.place(mount, self.path()))
    }

    /// Whether the path still leads to the open directory. One that is removed, moved or mounted over may cause no event.
    ///
    /// # Errors
    /// The error of stat(2), unless it means that the path is gone.
    pub fn still_there(&self) -> Result<bool, Errno> {
        let held = fstat(self.as_fd());
        match rustix::fs::stat(self.path()).map_err(|errno| (errno, meaning(Call::Stat, errno))) {
            Err((_, Meaning::Gone | Meaning::NotRegular)) => Ok(false),
            Err((errno, _)) => Err(errno),
            Ok(found) => match held {
                Ok(held) => Ok(same_file(&held, &found) && held.st_nlink > 0),
                // The descriptor's file system was dead already, for good (the server of a FUSE mount has ended, the
                // handle is none of the NFS server's any more): what is at the path is another one.
                Err(Errno::NOTCONN | Errno::STALE) => Ok(false),
                Err(errno) => Err(errno),
            },
        }
    }

    /// The stat of a path below the root. That of a link is its own.
    ///
    /// # Errors
    /// The error of statx(2).
    pub fn look(&self, below: &[u8]) -> Result<Stat, Errno> {
        statat(self.as_fd(), below, AtFlags::SYMLINK_NOFOLLOW)
    }

    /// The target of a link below the root, as the link holds it, or `None` where no link can be read.
    #[must_use]
    pub fn target(&self, below: &[u8]) -> Option<Vec<u8>> {
        // The target only shows when to examine the link again. An error is reported when the link is opened.
        readlinkat(self.as_fd(), below, Vec::new()).ok().map(CString::into_bytes)
    }

    /// The stat of a path below the root. That of a link is its target's, which may be anywhere.
    ///
    /// # Errors
    /// The error of statx(2).
    pub fn look_through(&self, below: &[u8]) -> Result<Stat, Errno> {
        statat(self.as_fd(), below, AtFlags::empty())
    }

    /// Opens a file below the root for reading. Links are not followed.
    ///
    /// # Errors
    /// The error of openat2(2), which is ELOOP for a link.
    pub fn open(&self, below: &CStr) -> Result<OwnedFd, Errno> {
        openat2(self.as_fd(), below, OPEN_FLAGS, Mode::empty(), OPEN_RESOLVE)
    }

    /// Opens a file below the root for reading, or the regular file that a link leads to if that is inside the root.
    ///
    /// # Errors
    /// Why the file cannot be opened.
    pub fn open_file(&self, below: &CStr) -> Result<OwnedFd, Unread> {
        self.open(below).or_else(|errno| self.open_otherwise(below, errno))
    }

    /// The second half of [`Root::open_file`], after [`Root::open`] failed with this errno.
    ///
    /// # Errors
    /// Why the file cannot be opened.
    pub fn open_otherwise(&self, below: &CStr, errno: Errno) -> Result<OwnedFd, Unread> {
        match meaning(Call::Open, errno) {
            Meaning::Link => self.open_link(below),
            _ => Err(Unread::of(Call::Open, errno)),
        }
    }

    /// Opens a directory below the root for listing.
    ///
    /// # Errors
    /// The error of openat2(2).
    pub fn open_directory(&self, below: &[u8]) -> Result<OwnedFd, Errno> {
        let below = if below.is_empty() { b"." } else { below };
        openat2(self.as_fd(), below, OPEN_FLAGS | OFlags::DIRECTORY, Mode::empty(), OPEN_RESOLVE)
    }

    /// Opens the regular file that a link leads to, if that is inside the root.
    ///
    /// # Errors
    /// Why it cannot be opened: the link leads out, nowhere, in a circle, or to something that is no regular file.
    pub fn open_link(&self, below: &CStr) -> Result<OwnedFd, Unread> {
        // The target's type is checked first, because opening a FIFO or a device affects others.
        let target = statat(self.as_fd(), below, AtFlags::empty()).map_err(|errno| Unread::of(Call::Stat, errno))?;
        if FileType::from_raw_mode(target.st_mode) != FileType::RegularFile {
            return Err(Unread::NotRegular);
        }
        let flags = OPEN_FLAGS.difference(OFlags::NOFOLLOW);
        let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        match openat2(self.as_fd(), below, flags, Mode::empty(), beneath) {
            // BENEATH refuses each absolute target, even one that leads back inside.
            Err(errno) if meaning(Call::Open, errno) == Meaning::LeadsOut => {}
            other => return other.map_err(|errno| Unread::of(Call::Open, errno)),
        }
        let link = self.path().join(OsStr::from_bytes(below.to_bytes()));
        let target = std::fs::canonicalize(link).map_err(|error| Unread::of_error(Call::Open, error))?;
        let inside = target.strip_prefix(self.path()).map_err(|_| Unread::LeadsOut)?;
        let inside = CString::new(inside.as_os_str().as_bytes()).map_err(|_| Unread::Gone)?;
        self.open(&inside).map_err(|errno| Unread::of(Call::Open, errno))
    }

    /// The evidence that a file is complete. The first call must come after this process has got its capabilities.
    #[must_use]
    pub fn protection(&self) -> Protection {
        *self.protection.get_or_init(|| {
            if self.is_remote() {
                return Protection::Stat;
            }
            match capabilities(None) {
                Ok(sets) if sets.effective.contains(CapabilitySet::LEASE) => Protection::Leases,
                _ => Protection::OwnLeases { user: rustix::process::geteuid().as_raw() },
            }
        })
    }

    /// Whether the kernel grants a read lease on a file of this owner.
    #[must_use]
    pub fn grants_lease(&self, owner: u32) -> bool {
        match self.protection() {
            Protection::Leases => true,
            Protection::OwnLeases { user } => user == owner,
            Protection::Stat => false,
        }
    }

    /// The type of the file system, by the numbers of statfs(2).
    #[must_use]
    pub fn file_system(&self) -> Option<u64> {
        rustix::fs::fstatfs(self.as_fd()).ok().map(|found| found.f_type as u64 & 0xffff_ffff)
    }

    /// Whether other hosts or programs may write there without this kernel's knowledge.
    #[must_use]
    pub fn is_remote(&self) -> bool {
        self.file_system().is_some_and(|kind| REMOTE_FILE_SYSTEMS.contains(&kind))
    }

    /// The descriptor of the data directory.
    #[must_use]
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.dir.wait().as_fd()
    }
}

/// Whether both stats are of one file or directory, in whatever state.
pub(crate) fn same_file(one: &Stat, other: &Stat) -> bool {
    (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)
}

/// The evidence that separates a complete file from one that is being written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protection {
    /// A read lease on each file: the kernel grants none while anybody has the file open for writing.
    Leases,
    /// Read leases on the files of one user only.
    OwnLeases {
        /// The user id.
        user: u32,
    },
    /// Only the stats before and after reading, and later events.
    Stat,
}

impl fmt::Display for Protection {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        const BY_STAT: &str = "stat before and after, and later events";
        match self {
            Self::Leases => to.write_str("a read lease on every file, and stat before and after"),
            Self::OwnLeases { user } => write!(
                to,
                "a read lease on the files of user {user}; for others {BY_STAT} (CAP_LEASE gives leases on all)"
            ),
            Self::Stat => write!(to, "{BY_STAT} (this file system gives no leases)"),
        }
    }
}

/// Network, cluster and user-space file systems, on which a lease says nothing of other hosts. The numbers of statfs(2)
/// are from linux/magic.h and, for modules from elsewhere, from stat.c of GNU coreutils.
const REMOTE_FILE_SYSTEMS: [u64; 19] = [
    0x6969,      // NFS
    0xff53_4d42, // CIFS
    0xfe53_4d42, // SMB2
    0x517b,      // SMB
    0x0102_1997, // 9P
    0x00c3_6400, // Ceph
    0x6573_5546, // FUSE
    0x5346_414f, // AFS
    0x6b41_4653, // kAFS
    0x7375_7245, // Coda
    0x0bd0_0bd0, // Lustre
    0x0116_1970, // GFS2
    0x7461_636f, // OCFS2
    0x4750_4653, // GPFS
    0x1983_0326, // BeeGFS
    0x2003_0528, // OrangeFS
    0x786f_4256, // VirtualBox shared folders
    0xbacb_acbc, // VMware shared folders
    0x7c7c_6673, // Parallels shared folders
];

/// Makes CAP_LEASE effective if the binary has it (`setcap cap_lease+p`). It must be called before there is a thread that takes
/// leases, because each thread has capabilities of its own and inherits them from the thread that starts it.
pub fn raise_lease_capability() {
    if let Ok(mut sets) = capabilities(None)
        && sets.permitted.contains(CapabilitySet::LEASE)
        && !sets.effective.contains(CapabilitySet::LEASE)
    {
        sets.effective |= CapabilitySet::LEASE;
        // A permitted capability can be made effective. If that fails, the log's next line shows it.
        let _ = set_capabilities(None, sets);
    }
}

/// Opens the data directories.
///
/// # Errors
/// [`Error::DataDirectory`], naming what is wrong with one. One inside another is refused, because its files would be
/// published twice.
pub fn open_roots(paths: &[PathBuf]) -> Result<Vec<Root>, Error> {
    let roots = paths.iter().map(|path| open_root(path)).collect::<Result<_, _>>()?;
    refuse_overlaps(paths, roots)
}

fn join(opening: Opening) -> Result<PathBuf, Error> {
    let panicked = |_| Err(Error::Internal("a thread that opens a data directory has panicked".to_owned()));
    opening.join().unwrap_or_else(panicked)
}

/// Refuses a data directory that is in another one, or is named twice.
fn refuse_overlaps(paths: &[PathBuf], roots: Vec<Root>) -> Result<Vec<Root>, Error> {
    // By a bind mount, a directory can lie in another one without its path saying so.
    let mounts = (roots.len() > 1).then(Mounts::read);
    let place = |root: &Root| mounts.as_ref().and_then(|mounts| root.place(mounts));
    let places: Vec<Option<Place>> = roots.iter().map(place).collect();
    let lies_in = |one: usize, other: usize| {
        let both = places[one].as_ref().zip(places[other].as_ref());
        roots[one].path().starts_with(roots[other].path()) || both.is_some_and(|(its, others)| its.lies_in(others))
    };
    for (at, path) in paths.iter().enumerate() {
        for before in 0..at {
            let other = roots[before].path();
            let cause = if roots[at].is(&roots[before]) {
                format!("it is {other:?}, which is named already")
            } else if lies_in(at, before) {
                format!("it lies in {other:?}, which is a data directory too")
            } else if lies_in(before, at) {
                format!("{other:?}, which is a data directory too, lies in it")
            } else {
                continue;
            };
            let next = "name each directory once, and with --recursive the outermost alone";
            return Err(Error::DataDirectory { path: path.clone(), cause, next });
        }
    }
    Ok(roots)
}

/// The number of volumes that data directories are on.
#[must_use]
pub fn volume_count(roots: &[Arc<Root>]) -> usize {
    roots.iter().map(|root| root.volume() + 1).max().unwrap_or(1)
}

/// The data directories on a volume.
pub fn of_volume(roots: &[Arc<Root>], volume: usize) -> impl Iterator<Item = &Arc<Root>> {
    roots.iter().filter(move |root| root.volume() == volume)
}

/// Opens a data directory.
///
/// # Errors
/// [`Error::DataDirectory`], naming what is wrong with it; [`Error::System`] where descriptors or memory are short.
pub fn open_root(path: &Path) -> Result<Root, Error> {
    let real = real_path(path)?;
    Ok(Root::new(open_directory(path, &real)?, real.as_os_str().as_bytes()))
}

fn real_path(path: &Path) -> Result<PathBuf, Error> {
    std::fs::canonicalize(path).map_err(|error| {
        let next = match error.kind() {
            io::ErrorKind::NotFound => "create it, or name another directory",
            _ => "give this user the right to reach it, or name another directory",
        };
        refuse(path, error, next)
    })
}

fn open_directory(path: &Path, real: &Path) -> Result<OwnedFd, Error> {
    let dir = openat(rustix::fs::CWD, real, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| match errno {
            Errno::NOTDIR => {
                refuse(path, io::Error::other("it is not a directory"), "name the directory that the files land in")
            }
            _ => refuse(path, errno.into(), "give this user the right to read it (r-x), or run as another user"),
        })?;
    // Without x on the directory its names can be listed, but no file in it can be opened.
    let next = "give this user the right to search it (r-x), or run as another user";
    statat(&dir, ".", AtFlags::empty()).map_err(|errno| refuse(path, errno.into(), next))?;
    Ok(dir)
}

/// The error of a data directory that cannot be opened.
fn refuse(path: &Path, error: io::Error, next: &'static str) -> Error {
    let refused = |cause| Error::DataDirectory { path: path.to_owned(), cause, next };
    Error::of_setting(format!("the data directory {path:?} cannot be opened"), error, refused)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::fs::File;

    /// On a directory of its own, which goes with the first.
    pub(crate) fn root() -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().canonicalize().unwrap();
        let root = Root::new(File::open(&real).unwrap().into(), real.as_os_str().as_bytes());
        (dir, root)
    }

    pub(crate) fn open(root: &Root, name: &str) -> Result<OwnedFd, Unread> {
        let name = CString::new(name).unwrap();
        root.open_file(&name)
    }

    #[test]
    fn links_are_followed_inside_and_refused_outside() {
        let (dir, root) = root();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir(at("sub")).unwrap();
        std::fs::write(at("sub/f"), "x").unwrap();
        let link = |target: &Path, name: &str| std::os::unix::fs::symlink(target, at(name)).unwrap();
        link(Path::new("sub/f"), "inside");
        link(&dir.path().canonicalize().unwrap().join("sub/f"), "absolute");
        link(Path::new("/etc/passwd"), "outside");
        link(Path::new("../../../../../../etc/passwd"), "up");
        link(Path::new("nothing"), "dangling");
        link(Path::new("loop"), "loop");
        link(Path::new("sub"), "directory");
        assert!(open(&root, "inside").is_ok() && open(&root, "absolute").is_ok());
        assert!(matches!(open(&root, "outside"), Err(Unread::LeadsOut)));
        assert!(matches!(open(&root, "up"), Err(Unread::LeadsOut)));
        assert!(matches!(open(&root, "dangling"), Err(Unread::Gone)));
        assert!(matches!(open(&root, "loop"), Err(Unread::NotRegular)));
        assert!(matches!(open(&root, "directory"), Err(Unread::NotRegular)));
        assert!(matches!(open(&root, "../etc"), Err(Unread::LeadsOut)));
    }

    #[test]
    fn a_replaced_directory_is_not_the_one_that_was_opened() {
        let (dir, root) = root();
        assert!(root.still_there().unwrap());
        let moved = dir.path().with_extension("moved");
        std::fs::rename(dir.path(), &moved).unwrap();
        assert!(!root.still_there().unwrap());
        std::fs::create_dir(dir.path()).unwrap();
        assert!(!root.still_there().unwrap());
        std::fs::remove_dir_all(moved).unwrap();
    }
}
