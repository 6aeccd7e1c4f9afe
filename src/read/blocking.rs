//! The fallback engine: one file at a time a thread, with plain reads.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::thread::{self, JoinHandle};

use rustix::io::Errno;

use super::buffer::CHUNK_BYTES;
use super::stable::{Before, Unread};
use super::{CHUNKS_BETWEEN_LOOKS, Conclusion, Readers, below};
use crate::error::Error;
use crate::hash::{Digests, Hasher};
use crate::pipeline::Job;

/// Starts the threads.
///
/// # Errors
/// [`Error::Internal`] when the system refuses a thread.
pub fn start(readers: &Readers) -> Result<Vec<JoinHandle<()>>, Error> {
    let spawn = |number| {
        let readers = readers.clone();
        thread::Builder::new()
            .name(format!("read-{number}"))
            .spawn(move || run(&readers))
            .map_err(|error| Error::Internal(format!("cannot start a reading thread: {error}")))
    };
    (0..readers.workers).map(spawn).collect()
}

fn run(readers: &Readers) {
    let _watched = readers.post.clone().watch_for_panic();
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut hasher = Hasher::default();
    while let Ok(job) = readers.jobs.recv_blocking() {
        let read = read_file(readers, &job, &mut buffer, &mut hasher);
        match readers.conclude(job, read) {
            // A closed channel means that the publisher has ended and said why.
            Conclusion::Message(message) => drop(readers.messages.blocking_send(message)),
            Conclusion::Report(report) => readers.post.report(report),
        }
    }
}

fn read_file(
    readers: &Readers,
    job: &Job,
    buffer: &mut [u8],
    hasher: &mut Hasher,
) -> Result<(Before, Digests), Unread> {
    let file = open(readers, job)?;
    let before = Before::examine(file.as_fd())?;
    let digests = hash(&file, &before, buffer, hasher)?;
    readers.confirm(job, &before, file.as_fd())?;
    Ok((before, digests))
}

fn open(readers: &Readers, job: &Job) -> Result<OwnedFd, Unread> {
    let below = below(job)?;
    match readers.root.open(&below) {
        Err(Errno::LOOP) => readers.root.open_link(&below),
        other => Ok(other?),
    }
}

fn hash(file: &OwnedFd, before: &Before, buffer: &mut [u8], hasher: &mut Hasher) -> Result<Digests, Unread> {
    let size = before.version.size;
    let mut at = 0;
    let mut chunks = 0;
    hasher.reset();
    // Once around even for an empty file: some file systems show 0 for what has content.
    loop {
        let count = match rustix::io::pread(file, &mut *buffer, at) {
            Err(Errno::INTR) => continue,
            other => other.map_err(io::Error::from).map_err(Unread::Failed)?,
        };
        let chunk = &buffer[..count];
        at += count as u64;
        chunks += 1;
        if at > size || (count == 0 && at < size) {
            return Err(Unread::Busy); // it grew or shrank
        }
        if at == size {
            if at == count as u64 {
                return Ok(Digests::of(chunk));
            }
            hasher.update(chunk);
            return Ok(hasher.finish());
        }
        hasher.update(chunk);
        if chunks % CHUNKS_BETWEEN_LOOKS == 0 {
            before.confirm(file.as_fd())?;
        }
    }
}
