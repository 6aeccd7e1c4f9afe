//! An open file: it is read and closed through the ring, or by plain calls.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use rustix::io::{pread, retry_on_intr};
use tokio_uring::buf::fixed::FixedBuf;
use tokio_uring::fs::File;

use super::operations::borrow;
use super::waits::waits_so_far;
use super::worker::Worker;

/// An open file, and the way in which it is read.
pub(super) enum Opened {
    /// Through the ring.
    InRing(File),
    /// By plain calls.
    Plain(OwnedFd),
}

impl Opened {
    /// One read into a buffer.
    pub(super) async fn read(&self, worker: &Worker, mut buffer: FixedBuf, at: u64) -> (io::Result<usize>, FixedBuf) {
        let file = match self {
            Self::InRing(file) => return file.read_fixed_at(buffer, at).await,
            Self::Plain(file) => file,
        };
        let waits = worker.plain_reads.may_be_slow().then(waits_so_far);
        let began = Instant::now();
        let read = retry_on_intr(|| pread(file, &mut buffer[..], at));
        worker.plain_reads.observe(began.elapsed(), waits.is_none_or(|before| waits_so_far() > before));
        (read.map_err(io::Error::from), buffer)
    }

    /// Closes the file, if through the ring, then together with other operations. An error of close(2) changes nothing for
    /// a file that was read.
    pub(super) async fn close(self) {
        if let Self::InRing(file) = self {
            let _ = file.close().await;
        }
    }
}

impl AsFd for Opened {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::InRing(file) => borrow(file),
            Self::Plain(file) => file.as_fd(),
        }
    }
}
