//! The fallback engine: each thread reads one file at a time, with plain reads.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Instant;

use rustix::io::retry_on_intr;

use super::buffer::CHUNK_BYTES;
use super::readers::{CHUNKS_BETWEEN_CHECKS, CPath, Outbox, Readers, examine, show_long};
use super::verify::Before;
use crate::error::Error;
use crate::files::errno::Call;
use crate::files::unread::{Unread, Why};
use crate::hash::{Digests, Hasher};
use crate::job::Job;
use crate::queue::Queue;

/// Messages of small files that are sent together.
const FILES_TOGETHER: usize = 32;

/// Starts the threads: as many for large files as for small ones, so that those are not delayed.
///
/// # Errors
/// [`Error::Threads`] when the system refuses a thread.
pub fn start(readers: &Readers) -> Result<Vec<JoinHandle<()>>, Error> {
    let spawn = |name: String, queue: &Arc<Queue>| {
        let (readers, queue) = (readers.clone(), Arc::clone(queue));
        thread::Builder::new()
            .name(name)
            .spawn(move || run(&readers, &queue))
            .map_err(|cause| Error::Threads { what: "a reading thread", cause })
    };
    let small = (0..readers.workers).map(|number| spawn(format!("read-{number}"), &readers.small));
    let large = (0..readers.workers).map(|number| spawn(format!("read-large-{number}"), &readers.large));
    small.chain(large).collect()
}

fn run(readers: &Readers, queue: &Queue) {
    let _guard = readers.sender.guard_panics();
    let mut outbox = Outbox::new(readers.clone());
    let mut reader = Reader { path: CPath::default(), buffer: vec![0; CHUNK_BYTES] };
    loop {
        let job = queue.try_next().or_else(|| {
            outbox.flush();
            queue.wait_next()
        });
        let Some(job) = job else { break };
        let began = Instant::now();
        let read = reader.read(&job, &mut outbox);
        outbox.conclude(job, began, read);
    }
}

/// The memory that a thread uses again for each file.
struct Reader {
    path: CPath,
    buffer: Vec<u8>,
}

impl Reader {
    fn read(&mut self, job: &Job, outbox: &mut Outbox) -> Result<(Before, Digests), Unread> {
        outbox.check_deadline()?;
        let root = job.directory.root();
        self.path.set(job);
        let path = self.path.as_c_str()?;
        let file = root.open_file(path)?;
        let before = examine(job, file.as_fd())?;
        // No message waits for a file that takes long, nor for more small files than make up a batch.
        if before.version.size > CHUNK_BYTES as u64 || outbox.messages.len() >= FILES_TOGETHER {
            outbox.flush();
        }
        let digests = hash(&file, &before, &mut self.buffer, outbox, job)?;
        if before.hides_changes() && hash(&file, &before, &mut self.buffer, outbox, job)? != digests {
            return Err(Unread::Busy(Why::Changed));
        }
        before.confirm_all(root, path, file.as_fd(), job.within.is_some())?;
        Ok((before, digests))
    }
}

fn hash(file: &OwnedFd, before: &Before, buffer: &mut [u8], outbox: &Outbox, job: &Job) -> Result<Digests, Unread> {
    let size = before.version.size;
    let mut at = 0;
    let (mut chunks, mut shown) = (0, None);
    let mut hasher: Option<Hasher> = None; // a single chunk needs none
    // An empty file is read too, because some file systems show size 0 for files with content.
    loop {
        let read = retry_on_intr(|| rustix::io::pread(file, &mut *buffer, at));
        let count = read.map_err(|errno| Unread::of(Call::Read, errno))?;
        let chunk = &buffer[..count];
        at += count as u64;
        chunks += 1;
        if at > size || (count == 0 && at < size) {
            return Err(Unread::Busy(Why::Changed)); // it grew or shrank
        }
        if at == size && chunks == 1 {
            return Ok(Digests::of(chunk));
        }
        hasher.get_or_insert_default().update(chunk);
        outbox.readers.volume.read.touch();
        show_long(&outbox.readers.volume, &mut shown, job, at, size);
        if at == size {
            return Ok(hasher.unwrap_or_default().finish());
        }
        outbox.check_deadline()?;
        if chunks % CHUNKS_BETWEEN_CHECKS == 0 {
            before.confirm(file.as_fd())?;
        }
    }
}
