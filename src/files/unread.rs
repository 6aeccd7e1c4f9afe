//! Why a file has no message now.

use std::io;

use rustix::io::Errno;

use super::errno::{Call, Meaning, meaning};

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
    StaleRow,
    /// The service had no descriptor or no memory for it: tried again, and never charged to the file.
    Wanting(io::Error),
    /// It is large and waits for one of the places for such files ([`crate::read::limits::LARGE_BYTES`]): the pipeline's own
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
