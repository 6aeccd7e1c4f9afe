//! Why a file has no message now.

use std::sync::Arc;
use std::{fmt, io};

use rustix::io::Errno;

use super::errno::{Call, Meaning, meaning};

/// Why a file has no message now.
#[derive(Debug)]
pub enum Unread {
    /// It is not there any more.
    Gone,
    /// A directory, FIFO, socket or device.
    NotRegular,
    /// A link to a target outside the data directory, or a file on another file system.
    LeadsOut,
    /// It cannot be read as one version now, and is tried again soon.
    Busy(Why),
    /// It is another version than the confirmed one, whose row in the ledger has to be invalidated first.
    StaleRow,
    /// The service had no descriptor or no memory for it: it is tried again, and the file is never blamed.
    Wanting(io::Error),
    /// It is large and has to go through the queue for such files ([`crate::read::limits::LARGE_BYTES`]). The
    /// dispatcher puts it there itself, so the source never sees this.
    Large,
    /// The process comes to its end first.
    Stopped,
    /// It is there, and the kernel refused to open, examine or read it.
    Failed(io::Error),
    /// It was read, and the broker refused its message for its size.
    TooLarge {
        /// The size of the message, in bytes.
        bytes: usize,
        /// The broker's words.
        answer: Arc<str>,
    },
}

/// Why a file is [`Unread::Busy`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// A process has it open for writing, or waits to open it so.
    WriterPresent,
    /// open(2) or openat2(2) answered EAGAIN: another process's lease, or a rename during the lookup, was in the way.
    OpenRaced,
    /// Its version changed, or it grew or shrank, while it was read.
    Changed,
    /// Its name leads to another file or version than the one that was opened.
    NameMoved,
    /// The path of its directory leads to another directory.
    DirectoryMoved,
}

impl fmt::Display for Why {
    fn fmt(&self, line: &mut fmt::Formatter<'_>) -> fmt::Result {
        line.write_str(match self {
            Self::WriterPresent => "still being written",
            Self::OpenRaced => "cannot be opened now: another process's lease or a rename is in the way",
            Self::Changed => "changed while it was read",
            Self::NameMoved => "its name leads to another version than the one that was read",
            Self::DirectoryMoved => "its directory was moved: another one is at this path",
        })
    }
}

impl Unread {
    /// Whether it says that no file of the data directory is at the path. Where the path leads to another directory by now,
    /// that one's files are found when it is listed.
    #[must_use]
    pub fn says_no_file(&self) -> bool {
        matches!(self, Self::Gone | Self::NotRegular | Self::LeadsOut | Self::Busy(Why::DirectoryMoved))
    }

    /// What it means for the file that the kernel refused a call on it.
    #[must_use]
    pub fn of(call: Call, errno: Errno) -> Self {
        match meaning(call, errno) {
            Meaning::Gone => Self::Gone,
            // No link is followed any more at this point: it led to another link, or in a circle.
            Meaning::NotRegular | Meaning::Link => Self::NotRegular,
            Meaning::LeadsOut => Self::LeadsOut,
            Meaning::Writer if call == Call::Open => Self::Busy(Why::OpenRaced),
            Meaning::Writer => Self::Busy(Why::WriterPresent),
            Meaning::Ours => Self::Wanting(errno.into()),
            Meaning::Theirs | Meaning::Broken => Self::Failed(errno.into()),
        }
    }

    /// As [`Unread::of`], for an error that need not be the kernel's.
    #[must_use]
    pub fn of_error(call: Call, error: io::Error) -> Self {
        match Errno::from_io_error(&error) {
            Some(errno) => Self::of(call, errno),
            None => Self::Failed(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eagain_of_open_is_no_proof_of_a_writer() {
        assert!(matches!(Unread::of(Call::Open, Errno::AGAIN), Unread::Busy(Why::OpenRaced)));
        assert!(matches!(Unread::of(Call::Lease, Errno::AGAIN), Unread::Busy(Why::WriterPresent)));
        assert!(matches!(Unread::of(Call::Read, Errno::AGAIN), Unread::Wanting(_)));
    }
}
