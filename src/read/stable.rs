//! One version of a file, or none: opening beneath the root, and the checks before and after reading that
//! tell whether what was read was the content of one version of the path.
//!
//! The order is: stat A, a read lease taken and released, read, stat B. The file is accepted when A equals B
//! and the lease was granted: the kernel grants one only while nobody has the file open for writing or mapped
//! writable (fcntl(2), F_SETLEASE), and any later change moves mtime or ctime away from A. Comparing A and B
//! alone misses writers that keep the file open. Where a change can leave ctime as it is ([`Version::is_racy`]) the
//! lease is kept until the file is closed: whoever opens it for writing waits meanwhile, and the file is given up soon.
//! At the end the name is looked at once more, where a rename could have
//! come between the opening and stat A. Where the kernel gives no lease (not the file's owner and no
//! CAP_LEASE, or a network file system), A equals B and the events that come later are all there is.

use std::ffi::{CStr, CString, OsStr};
use std::fmt;
use std::io;
use std::mem;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::OnceLock;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat, fstat, openat2, readlinkat, statat};
use rustix::io::Errno;
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
use xxhash_rust::xxh3::xxh3_64;

use crate::files::errno::{Call, Meaning, meaning};

/// Non-blocking, so that neither a FIFO nor somebody's write lease holds us up (open(2), fcntl(2)).
pub const OPEN_FLAGS: OFlags =
    OFlags::RDONLY.union(OFlags::NONBLOCK).union(OFlags::NOFOLLOW).union(OFlags::NOCTTY).union(OFlags::CLOEXEC);

/// Nothing on the way may be a link or lead to another file system (openat2(2), Linux 5.6).
pub const OPEN_RESOLVE: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// See [`Before::may_be_renamed`].
const RENAME_DOUBT_SECONDS: i64 = 60;

/// A point in time as the file system keeps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Since 1970-01-01 UTC.
    pub seconds: i64,
    /// 0 to 999,999,999.
    pub nanoseconds: u32,
}

impl Stamp {
    /// The time of day.
    #[must_use]
    pub fn now() -> Self {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
        Self { seconds: now.tv_sec, nanoseconds: nanoseconds(now.tv_nsec) }
    }

    /// Seconds since an earlier point in time; 0 where the clock was set back in between.
    #[must_use]
    pub fn seconds_since(self, earlier: Self) -> f64 {
        let whole = self.seconds.saturating_sub(earlier.seconds) as f64;
        (whole + (f64::from(self.nanoseconds) - f64::from(earlier.nanoseconds)) * 1e-9).max(0.0)
    }
}

/// Every file system and clock keeps this below 10^9; what does not fit counts as 0.
fn nanoseconds(value: impl TryInto<u32>) -> u32 {
    value.try_into().ok().filter(|&value| value < 1_000_000_000).unwrap_or(0)
}

/// Seconds that the coarsest ctime is exact to: FAT keeps even seconds (its specification, DIR_WrtTime, and
/// fat_truncate_time() in linux/fs/fat/misc.c); ext4 with inodes of 128 bytes, HFS+ and many FUSE servers whole ones.
const COARSEST_SECONDS: i64 = 2;

/// Bytes of [`Version::to_bytes`].
const VERSION_BYTES: usize = 40;

/// See [`Version::to_bytes`].
const CTIME_BYTES: usize = 12;

/// One state of a file. Compared for equality only: clocks go backwards, inodes are used again.
///
/// The device's number is no part of it: it is another when a volume is mounted again, and no file of another file system
/// is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Version {
    /// `st_ino`.
    pub inode: u64,
    /// Bytes.
    pub size: u64,
    /// mtime.
    pub modified: Stamp,
    /// ctime.
    pub changed: Stamp,
}

impl Version {
    /// All of it in a fixed form, for hashing; ctime stands at the end, in the last [`CTIME_BYTES`].
    #[must_use]
    pub fn to_bytes(&self) -> [u8; VERSION_BYTES] {
        let mut bytes = [0; VERSION_BYTES];
        let mut rest = &mut bytes[..];
        let mut put = |field: &[u8]| {
            let (place, behind) = mem::take(&mut rest).split_at_mut(field.len());
            place.copy_from_slice(field);
            rest = behind;
        };
        put(&self.inode.to_le_bytes());
        put(&self.size.to_le_bytes());
        for stamp in [self.modified, self.changed] {
            put(&stamp.seconds.to_le_bytes());
            put(&stamp.nanoseconds.to_le_bytes());
        }
        bytes
    }

    /// 64 bits that stand for it where a directory's worth of versions is remembered.
    #[must_use]
    pub fn fingerprint(&self) -> u64 {
        xxh3_64(&self.to_bytes())
    }

    /// The same of all but ctime, which is what metadata alone leaves as it is.
    #[must_use]
    pub fn fingerprint_without_ctime(&self) -> u64 {
        xxh3_64(&self.to_bytes()[..VERSION_BYTES - CTIME_BYTES])
    }

    /// Whether a change soon after the file was examined can leave the same ctime (git: a racily clean entry): it is of
    /// whole seconds, and those were not over. `again`: the file had been examined at this version before, and what
    /// was in doubt was what came between; a ctime in the future, by a clock that was set back, is then not waited for.
    #[must_use]
    pub fn is_racy(&self, examined: Stamp, again: bool) -> bool {
        let age = examined.seconds.saturating_sub(self.changed.seconds);
        self.changed.nanoseconds == 0 && age < COARSEST_SECONDS && !(again && age < 0)
    }
}

/// Why a file has no message now.
#[derive(Debug)]
pub enum Unread {
    /// It is not there any more.
    Gone,
    /// A directory, FIFO, socket or device.
    NotRegular,
    /// A link to a place outside the data directory, or a file on another file system.
    LeadsOut,
    /// Somebody is writing it, or did while we read.
    Busy,
    /// It is another than is known, which has to be forgotten first.
    Another,
    /// The service had no descriptor or no memory for it: tried again, and never charged to the file.
    Wanting(io::Error),
    /// It is large and waits for one of the places for such files ([`crate::read::LARGE_BYTES`]): the pipeline's own
    /// affair, which its source never sees.
    Large,
    /// The process comes to its end first.
    Stopped,
    /// It is there, and the kernel refused to open, examine or read it.
    Failed(io::Error),
}

impl Unread {
    /// What it means for the file that a call on it was refused so.
    #[must_use]
    pub fn of(call: Call, errno: Errno) -> Self {
        match meaning(call, errno) {
            Meaning::Gone => Self::Gone,
            // A link that is met where none is followed any more leads to another link, or in a circle.
            Meaning::NotRegular | Meaning::Link => Self::NotRegular,
            Meaning::LeadsOut => Self::LeadsOut,
            Meaning::Writer => Self::Busy,
            Meaning::Ours => Self::Wanting(errno.into()),
            Meaning::Theirs | Meaning::Broken => Self::Failed(errno.into()),
        }
    }

    /// The same of an error that may be none of the kernel's.
    #[must_use]
    pub fn of_error(call: Call, error: io::Error) -> Self {
        match Errno::from_io_error(&error) {
            Some(errno) => Self::of(call, errno),
            None => Self::Failed(error),
        }
    }
}

/// A data directory: an open descriptor, and its real path for messages.
#[derive(Debug)]
pub struct Root {
    dir: OwnedFd,
    path: Box<[u8]>,
    volume: usize,
    /// Once it was asked for: it stays.
    protection: OnceLock<Protection>,
}

impl Root {
    /// Of an open directory and its real path.
    #[must_use]
    pub fn new(dir: OwnedFd, path: &[u8]) -> Self {
        Self { dir, path: path.into(), volume: 0, protection: OnceLock::new() }
    }

    /// The same, as one of the volume with this number.
    #[must_use]
    pub fn on_volume(self, volume: usize) -> Self {
        Self { volume, ..self }
    }

    /// The number of its volume: data directories of one file system share it, and the threads that read there.
    #[must_use]
    pub fn volume(&self) -> usize {
        self.volume
    }

    /// `st_dev` of the directory; nothing where that cannot be asked.
    #[must_use]
    pub fn device(&self) -> Option<u64> {
        fstat(&self.dir).ok().map(|found| found.st_dev)
    }

    /// The real path.
    #[must_use]
    pub fn path(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.path))
    }

    /// Whether both are one directory, by whatever paths: a bind mount is another path, and no other directory.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        matches!((fstat(&self.dir), fstat(&other.dir)), (Ok(this), Ok(other)) if same_file(&this, &other))
    }

    /// Whether the path still leads to the directory that we hold: a removed, moved or covered one can be silent.
    ///
    /// # Errors
    /// What keeps us from telling, for the moment.
    pub fn still_there(&self) -> Result<bool, Errno> {
        let held = fstat(&self.dir)?;
        match rustix::fs::stat(self.path()) {
            Ok(found) => Ok(same_file(&held, &found) && held.st_nlink > 0),
            Err(errno) => match meaning(Call::Stat, errno) {
                Meaning::Gone | Meaning::NotRegular => Ok(false),
                _ => Err(errno),
            },
        }
    }

    /// What stands at a path below, a link itself and not what it leads to.
    ///
    /// # Errors
    /// What statx(2) says.
    pub fn look(&self, below: &[u8]) -> Result<Stat, Errno> {
        statat(&self.dir, below, AtFlags::SYMLINK_NOFOLLOW)
    }

    /// What a link below leads to, as it is written in it; nothing where none stands there that can be read.
    #[must_use]
    pub fn target(&self, below: &[u8]) -> Option<Vec<u8>> {
        // Asked for to know when to look again: whoever opens the link tells what keeps it from being read.
        readlinkat(&self.dir, below, Vec::new()).ok().map(CString::into_bytes)
    }

    /// What stands at a path below, or what a link there leads to, wherever that is.
    ///
    /// # Errors
    /// What statx(2) says.
    pub fn look_through(&self, below: &[u8]) -> Result<Stat, Errno> {
        statat(&self.dir, below, AtFlags::empty())
    }

    /// Opens a file below for reading, following no link.
    ///
    /// # Errors
    /// What openat2(2) says; ELOOP for a link.
    pub fn open(&self, below: &CStr) -> Result<OwnedFd, Errno> {
        openat2(&self.dir, below, OPEN_FLAGS, Mode::empty(), OPEN_RESOLVE)
    }

    /// The same, and where a link stands there the regular file that it leads to, if that is inside.
    ///
    /// # Errors
    /// [`Unread`].
    pub fn open_file(&self, below: &CStr) -> Result<OwnedFd, Unread> {
        self.open(below).or_else(|errno| self.open_otherwise(below, errno))
    }

    /// The second half of [`Root::open_file`]: the open was refused with this errno.
    ///
    /// # Errors
    /// [`Unread`].
    pub fn open_otherwise(&self, below: &CStr, errno: Errno) -> Result<OwnedFd, Unread> {
        match meaning(Call::Open, errno) {
            Meaning::Link => self.open_link(below),
            _ => Err(Unread::of(Call::Open, errno)),
        }
    }

    /// Opens a directory below, for listing.
    ///
    /// # Errors
    /// What openat2(2) says.
    pub fn open_directory(&self, below: &[u8]) -> Result<OwnedFd, Errno> {
        let below = if below.is_empty() { b"." } else { below };
        openat2(&self.dir, below, OPEN_FLAGS | OFlags::DIRECTORY, Mode::empty(), OPEN_RESOLVE)
    }

    /// Opens the regular file that a link leads to, if that is inside.
    ///
    /// # Errors
    /// [`Unread`]: it leads out, nowhere, in a circle, or to something that is no regular file.
    pub fn open_link(&self, below: &CStr) -> Result<OwnedFd, Unread> {
        // What it leads to is looked at first: opening a FIFO or a device has effects on others.
        let target = statat(&self.dir, below, AtFlags::empty()).map_err(|errno| Unread::of(Call::Stat, errno))?;
        if FileType::from_raw_mode(target.st_mode) != FileType::RegularFile {
            return Err(Unread::NotRegular);
        }
        let flags = OPEN_FLAGS.difference(OFlags::NOFOLLOW);
        let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        match openat2(&self.dir, below, flags, Mode::empty(), beneath) {
            // An absolute target is refused as such, even one that leads back inside.
            Err(errno) if meaning(Call::Open, errno) == Meaning::LeadsOut => {}
            other => return other.map_err(|errno| Unread::of(Call::Open, errno)),
        }
        let link = self.path().join(OsStr::from_bytes(below.to_bytes()));
        let target = std::fs::canonicalize(link).map_err(|error| Unread::of_error(Call::Open, error))?;
        let inside = target.strip_prefix(self.path()).map_err(|_| Unread::LeadsOut)?;
        let inside = CString::new(inside.as_os_str().as_bytes()).map_err(|_| Unread::Gone)?;
        self.open(&inside).map_err(|errno| Unread::of(Call::Open, errno))
    }

    /// What tells a file that is complete from one that is being written. To be asked for first when this process has
    /// its rights.
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

    /// Whether the kernel tells of the writers of a file with this owner.
    #[must_use]
    pub fn grants_lease(&self, owner: u32) -> bool {
        match self.protection() {
            Protection::Leases => true,
            Protection::OwnLeases { user } => user == owner,
            Protection::Stat => false,
        }
    }

    /// The kind of its file system, by the numbers of statfs(2).
    #[must_use]
    pub fn file_system(&self) -> Option<u64> {
        rustix::fs::fstatfs(&self.dir).ok().map(|found| found.f_type as u64 & 0xffff_ffff)
    }

    /// Whether other hosts or programs may write there without this kernel's knowing.
    #[must_use]
    pub fn is_remote(&self) -> bool {
        self.file_system().is_some_and(|kind| REMOTE_FILE_SYSTEMS.contains(&kind))
    }

    /// The descriptor, for opening through the ring.
    #[must_use]
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }
}

/// What was seen of a file just before it is read.
#[derive(Debug, Clone, Copy)]
pub struct Before {
    /// Stat A.
    pub version: Version,
    /// atime, before our own reading moves it.
    pub accessed: Stamp,
    /// The time of day just before stat A.
    pub examined: Stamp,
    /// The file has further names (`st_nlink`).
    pub linked: bool,
    /// `st_dev`, for [`Before::confirm_name`].
    device: u64,
    /// The lease is kept until the file is closed.
    leased: bool,
}

impl Before {
    /// Examines an open file: regular, and with nobody writing it as far as the kernel tells.
    ///
    /// # Errors
    /// [`Unread::NotRegular`], [`Unread::Busy`], or what fstat(2) says.
    pub fn examine(file: BorrowedFd<'_>) -> Result<Self, Unread> {
        let examined = Stamp::now();
        let stat = fstat(file).map_err(|errno| Unread::of(Call::Stat, errno))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(Unread::NotRegular);
        }
        // Stat A comes before the lease, or a writer between the two would go unseen.
        let version = version_of(&stat);
        let granted = lease::take(file)?;
        let leased = granted && version.is_racy(examined, false);
        if granted && !leased {
            lease::give_back(file);
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
    /// [`Unread::Busy`] when it is not, or when a writer waits for a lease that was kept; what fstat(2) says.
    pub fn confirm(&self, file: BorrowedFd<'_>) -> Result<(), Unread> {
        let stat = fstat(file).map_err(|errno| Unread::of(Call::Stat, errno))?;
        let same = version_of(&stat) == self.version;
        if same && (!self.leased || lease::is_held(file)) { Ok(()) } else { Err(Unread::Busy) }
    }

    /// The checks after reading: the file still is the version that was examined, and so is what the name leads to.
    /// `within`: it is in a directory that can be renamed, which its version does not show.
    ///
    /// # Errors
    /// [`Unread::Busy`] when either is another, [`Unread::Gone`] when the name is gone, or what stat(2) says.
    pub fn confirm_all(&self, root: &Root, below: &CStr, file: BorrowedFd<'_>, within: bool) -> Result<(), Unread> {
        self.confirm(file)?;
        // Open for writing a moment after it was made: the kernel makes a file before it counts its writer.
        if self.version.size == 0 && !self.leased && lease::take(file)? {
            lease::give_back(file);
        }
        if within || self.may_be_renamed() { self.confirm_name(root, below) } else { Ok(()) }
    }

    /// Whether a rename may have come between open(2) and stat A: it moves ctime. Seen from a minute's distance, so
    /// that no step of the clock hides it.
    fn may_be_renamed(&self) -> bool {
        Stamp::now().seconds.saturating_sub(self.version.changed.seconds) < RENAME_DOUBT_SECONDS
    }

    /// Whether the name that was opened still leads to the version that was examined. One that was renamed
    /// meanwhile and written under its other name would pass every other check.
    fn confirm_name(&self, root: &Root, below: &CStr) -> Result<(), Unread> {
        let named = statat(&root.dir, below, AtFlags::empty()).map_err(|errno| Unread::of(Call::Stat, errno))?;
        let same = named.st_dev == self.device && version_of(&named) == self.version;
        if same { Ok(()) } else { Err(Unread::Busy) }
    }
}

/// Whether both are of one file or directory, in whatever state.
fn same_file(one: &Stat, other: &Stat) -> bool {
    (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)
}

/// The version that a stat shows.
#[must_use]
pub fn version_of(stat: &Stat) -> Version {
    Version {
        inode: stat.st_ino,
        size: u64::try_from(stat.st_size).unwrap_or(0),
        modified: Stamp { seconds: stat.st_mtime, nanoseconds: nanoseconds(stat.st_mtime_nsec) },
        changed: Stamp { seconds: stat.st_ctime, nanoseconds: nanoseconds(stat.st_ctime_nsec) },
    }
}

/// What tells a file that is complete from one that is being written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protection {
    /// The kernel says whether anybody writes.
    Leases,
    /// The same, for files of this user only.
    OwnLeases {
        /// Its number.
        user: u32,
    },
    /// Nothing but stat, and the events that come later.
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

/// Network, cluster and user-space file systems, by the numbers of statfs(2), which stand in linux/magic.h and, those of
/// modules from elsewhere, in stat.c of GNU coreutils: a lease there says nothing of other hosts.
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

/// Makes CAP_LEASE effective where the binary was given it (`setcap cap_lease+p`). To be called while there is
/// one thread: capabilities are a thread's own, and threads inherit them.
pub fn raise_lease_capability() {
    if let Ok(mut sets) = capabilities(None)
        && sets.permitted.contains(CapabilitySet::LEASE)
        && !sets.effective.contains(CapabilitySet::LEASE)
    {
        sets.effective |= CapabilitySet::LEASE;
        // What is permitted can be made effective; if not, the log's next line says so.
        let _ = set_capabilities(None, sets);
    }
}

/// File leases, which rustix does not wrap.
#[allow(unsafe_code)]
pub mod lease {
    use std::os::fd::{AsRawFd, BorrowedFd};

    use rustix::io::Errno;

    use super::Unread;
    use crate::files::errno::{Call, Meaning, meaning};

    /// Takes a read lease, which is granted while nobody has the file open for writing or mapped writable. `false`: none
    /// can be had (EACCES: not ours and no CAP_LEASE; EINVAL: not on this file system), and nothing can be said. Closing
    /// the file gives it back.
    ///
    /// # Errors
    /// [`Unread::Busy`] when somebody writes, [`Unread::Wanting`] when the kernel had no memory for the lease.
    pub fn take(file: BorrowedFd<'_>) -> Result<bool, Unread> {
        let fd = file.as_raw_fd();
        // SAFETY: F_SETLEASE takes two integers and touches no memory of ours; the descriptor is open for
        // as long as `file` is borrowed.
        if unsafe { libc::fcntl(fd, libc::F_SETLEASE, libc::F_RDLCK) } == 0 {
            return Ok(true);
        }
        let error = std::io::Error::last_os_error();
        match Errno::from_io_error(&error).map(|errno| meaning(Call::Lease, errno)) {
            Some(Meaning::Writer) => Err(Unread::Busy),
            Some(Meaning::Ours) => Err(Unread::Wanting(error)),
            _ => Ok(false),
        }
    }

    /// Gives back a lease that was granted.
    pub fn give_back(file: BorrowedFd<'_>) {
        // SAFETY: as in `take`. It cannot fail in a way that matters: closing the descriptor would do it as well.
        unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_UNLCK) };
    }

    /// Whether a lease that was taken still is ours, and no writer waits for it: the kernel then tells what it is to
    /// become (fcntl(2), F_GETLEASE).
    #[must_use]
    pub fn is_held(file: BorrowedFd<'_>) -> bool {
        // SAFETY: F_GETLEASE takes no argument and touches no memory of ours; the descriptor is open for as long
        // as `file` is borrowed.
        unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETLEASE) == libc::F_RDLCK }
    }

    /// Ignores SIGIO. The kernel sends it to a lease's holder when a writer opens the file between our taking
    /// and releasing it, and its default action ends the process (fcntl(2), signal(7)).
    pub fn ignore_break_signal() {
        // SAFETY: SIG_IGN installs no handler, so no code of ours can run at a bad moment.
        unsafe { libc::signal(libc::SIGIO, libc::SIG_IGN) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::Write;
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
    fn a_writer_is_seen_until_it_closes() {
        let (dir, root) = root();
        let mut writer = File::create(dir.path().join("f")).unwrap();
        let reader = open(&root, "f").unwrap();
        assert!(matches!(Before::examine(reader.as_fd()), Err(Unread::Busy)));
        writer.write_all(b"x").unwrap();
        drop(writer);
        let before = Before::examine(reader.as_fd()).unwrap();
        before.confirm(reader.as_fd()).unwrap();
        std::fs::write(dir.path().join("f"), "y").unwrap();
        assert!(matches!(before.confirm(reader.as_fd()), Err(Unread::Busy)));
    }

    #[test]
    fn a_lease_that_is_kept_holds_up_a_writer_until_the_file_is_closed() {
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
        // Nothing has been written, and somebody is going to.
        assert!(matches!(before.confirm(reader.as_fd()), Err(Unread::Busy)));
        drop(reader);
        File::options().write(true).custom_flags(libc::O_NONBLOCK).open(&path).unwrap();
    }

    #[test]
    fn a_name_that_leads_to_another_version_is_seen() {
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
        assert!(matches!(before.confirm_name(&root, c"f"), Err(Unread::Busy)));
        before.confirm_name(&root, c"g").unwrap();
    }

    #[test]
    fn whole_seconds_that_are_not_over_leave_a_doubt() {
        let at = |seconds, nanoseconds| Stamp { seconds, nanoseconds };
        let racy = |changed, examined, again| {
            Version { inode: 1, size: 1, modified: changed, changed }.is_racy(examined, again)
        };
        for again in [false, true] {
            assert!(racy(at(100, 0), at(100, 0), again) && racy(at(100, 0), at(101, 999_999_999), again));
            assert!(!racy(at(100, 0), at(102, 0), again) && !racy(at(100, 1), at(100, 2), again));
        }
        assert!(racy(at(100, 0), at(99, 0), false), "by another clock");
        assert!(!racy(at(100, 0), at(99, 0), true), "and not for ever");
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
