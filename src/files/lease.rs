//! File leases, which rustix does not wrap.

#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

use super::errno::{Call, Meaning, meaning};
use super::unread::{Unread, Why};

/// Takes a read lease, which the kernel grants while nobody has the file open for writing or mapped writable. Returns
/// `false` if it grants none at all (EACCES: another's file and no CAP_LEASE; EINVAL: not on this file system), which says
/// nothing of writers. Closing the file releases the lease.
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

/// Releases a lease that was granted.
pub fn release(file: BorrowedFd<'_>) {
    // SAFETY: as in `take`. A failure does not matter, because closing the descriptor releases the lease, too.
    unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_UNLCK) };
}

/// Ignores SIGIO. The kernel sends it to a lease's holder when a writer opens the file before the lease is released, and
/// its default action ends the process (fcntl(2), signal(7)).
pub fn ignore_break_signal() {
    // SAFETY: SIG_IGN installs no handler, so no code of ours can run at a bad moment.
    unsafe { libc::signal(libc::SIGIO, libc::SIG_IGN) };
}
