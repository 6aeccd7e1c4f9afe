//! File leases, which rustix does not wrap.

#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

use super::errno::{Call, Meaning, meaning};
use super::unread::{Unread, Why};

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
        Some(Meaning::Writer) => Err(Unread::Busy(Why::WriterPresent)),
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
