//! The standard streams: standard output as it was given to the process, standard error for log lines, and what a terminal
//! shows of them.

pub mod stderr;
pub mod stdout;
pub mod terminal;

use std::io;
use std::os::fd::BorrowedFd;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

/// Waits until a stream takes more, or fails. A stream that somebody has set to O_NONBLOCK answers EAGAIN while it is full:
/// the flag belongs to the open file, which a parent and its other children share.
fn wait_until_it_takes_more(stream: BorrowedFd<'_>) -> io::Result<()> {
    match poll(&mut [PollFd::from_borrowed_fd(stream, PollFlags::OUT)], None) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}
