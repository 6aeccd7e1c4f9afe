//! Jobs become messages: open beneath the root, examine, read and hash in one pass, examine again.
//!
//! Two engines do the same work behind one seam, [`start`]: [`uring`] with a ring and registered buffers a
//! thread, [`blocking`] with plain reads. Everything that decides what a file's result *is* stands here and
//! in [`stable`], once for both.

pub mod blocking;
pub mod buffer;
pub mod stable;
pub mod uring;

use std::ffi::CString;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;

use tokio::sync::mpsc;

use crate::cli::ReadEngine;
use crate::error::Error;
use crate::hash::Digests;
use crate::message::{Message, message_id};
use crate::pipeline::{Job, Known, Outcome, Outgoing, Post, Report};
use stable::{Before, Root, Unread};

/// Chunks between two looks at a large file while it is read (16 MiB): a file that changes under our hands
/// is given up early instead of being read to its end for nothing.
const CHUNKS_BETWEEN_LOOKS: u64 = 256;

/// The way into the next stages, one clone a reading thread.
#[derive(Clone)]
pub struct Readers {
    /// The data directory.
    pub root: Arc<Root>,
    /// Jobs to read; closed at the end.
    pub jobs: async_channel::Receiver<Job>,
    /// Jobs handed in and not yet read, queued ones included.
    pub outstanding: Arc<AtomicUsize>,
    /// Hashing threads.
    pub workers: usize,
    /// Messages to publish.
    pub messages: mpsc::Sender<Outgoing>,
    /// Reports of files that get no message.
    pub post: Post,
}

/// The reading threads that run.
pub struct Started {
    /// Its name, for the log.
    pub engine: &'static str,
    /// They end when the jobs' channel is closed.
    pub threads: Vec<JoinHandle<()>>,
}

/// Starts the reading threads with the engine that was chosen, or that can be had.
///
/// # Errors
/// [`Error::Engine`] when io_uring was asked for by name and is refused; [`Error::Internal`] when a thread
/// cannot be started.
pub fn start(choice: ReadEngine, readers: &Readers) -> Result<Started, Error> {
    if choice != ReadEngine::Blocking {
        match uring::start(readers)? {
            Ok(threads) => return Ok(Started { engine: "io_uring", threads }),
            Err(cause) => {
                let next = uring::cure(&cause, readers.workers);
                if choice == ReadEngine::IoUring {
                    return Err(Error::Engine { cause, next });
                }
                tracing::warn!("io_uring is refused here ({cause}), files are read with the blocking engine; {next}");
            }
        }
    }
    Ok(Started { engine: "blocking", threads: blocking::start(readers)? })
}

impl Readers {
    /// How many of the outstanding files one thread may take, so that a few large files do not all end up with
    /// the thread that was quicker to ask.
    fn share(&self) -> usize {
        self.outstanding.load(Ordering::Relaxed).div_ceil(self.workers).max(1)
    }

    /// The checks after reading.
    fn confirm(&self, job: &Job, before: &Before, file: BorrowedFd<'_>) -> Result<(), Unread> {
        before.confirm(file)?;
        if before.may_be_renamed() { before.confirm_name(&self.root, &below(job)?) } else { Ok(()) }
    }

    /// Turns what was read into a message, or into silence when it is what was confirmed last.
    fn conclude(&self, job: Job, read: Result<(Before, Digests), Unread>) -> Conclusion {
        self.outstanding.fetch_sub(1, Ordering::Relaxed);
        let (before, digests) = match read {
            Ok(read) => read,
            Err(unread) => return Conclusion::Report(Report { job, outcome: Outcome::Unread(unread) }),
        };
        // The version alone proves nothing about an event that came after it was read; the content does.
        if job.known == Some(Known::new(&before.version, &digests)) {
            return Conclusion::Report(Report { job, outcome: Outcome::Unchanged });
        }
        match compose(&job, &before, &digests) {
            Ok(body) => {
                let path = job.directory.absolute(&job.name);
                Conclusion::Message(Outgoing {
                    body,
                    id: message_id(&path, &before.version, &digests.sha256),
                    raw_path: str::from_utf8(&path).is_err().then_some(path),
                    version: before.version,
                    digests,
                    job,
                })
            }
            Err(error) => {
                let outcome = Outcome::Unread(Unread::Failed(io::Error::other(error)));
                Conclusion::Report(Report { job, outcome })
            }
        }
    }
}

/// Where a finished file goes.
enum Conclusion {
    Message(Outgoing),
    Report(Report),
}

fn compose(job: &Job, before: &Before, digests: &Digests) -> Result<Vec<u8>, simd_json::Error> {
    let path = job.directory.absolute(&job.name);
    let neighbors = job.directory.neighbors(&job.name);
    let paths: Vec<Vec<u8>> = neighbors.iter().map(|name| job.directory.absolute(name)).collect();
    let neighbors = paths.iter().map(|path| String::from_utf8_lossy(path)).collect();
    Message::new(&path, job.event, digests, &before.version, before.accessed, job.seen_at, neighbors).encode()
}

/// The path below the root as the kernel wants it.
fn below(job: &Job) -> Result<CString, Unread> {
    // No name that the kernel gave us holds a NUL.
    CString::new(job.directory.below(&job.name)).map_err(|_| Unread::Gone)
}
