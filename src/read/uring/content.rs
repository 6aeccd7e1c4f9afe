//! The content of one file: read in chunks into registered buffers, and hashed from there.

use std::io;
use std::num::NonZeroU64;
use std::os::fd::AsFd;

use futures_util::future::join4;
use rustix::fs::{Advice, fadvise};
use tokio_uring::buf::fixed::FixedBuf;
use xxhash_rust::xxh3::xxh3_128;

use super::opened::Opened;
use super::worker::Worker;
use crate::files::errno::Call;
use crate::files::unread::{Unread, Why};
use crate::hash::scheduler::{CHUNKS_MAX, Request};
use crate::hash::{Digests, Xxh128Stream};
use crate::job::Job;
use crate::read::buffer::CHUNK_BYTES;
use crate::read::readers::{CHUNKS_BETWEEN_CHECKS, show_long};
use crate::read::verify::Before;

/// Content of up to so many bytes is hashed at once, without the lanes: the way into them and back costs 230 ns, and
/// other streams beside it gain 150 ns to 300 ns a KB.
const DIRECT_BYTES: usize = 1536;

/// How far ahead of the reads the disk is asked for a large file.
const AHEAD_BYTES: u64 = 4 * AHEAD_STEP_BYTES;

/// Bytes asked for at a time. The kernel reads no more for one request than the device's largest, 1280 KiB where
/// nothing else is set (Linux, force_page_cache_ra).
const AHEAD_STEP_BYTES: u64 = 1024 * 1024;

const _: () = assert!(CHUNKS_MAX == 4, "read_chunks joins four reads");

type Slot = Option<Box<Request<FixedBuf>>>;

/// The digests of a job's file that was examined, if it still is of that size. `used`: the request of the task's last file.
pub(super) async fn hash(
    worker: &Worker,
    used: &mut Slot,
    file: &Opened,
    before: &Before,
    job: &Job,
) -> Result<Digests, Unread> {
    if before.version.size <= CHUNK_BYTES as u64 {
        let _permit = worker.buffers.acquire(1, job.large).await?;
        return hash_chunk(worker, used, file, before, worker.buffers.next().await).await;
    }
    // Boxed, so that the tasks of small files do not carry the room for this.
    Box::pin(hash_chunks(worker, used, file, before, job)).await
}

/// The used request, or a new one, ready for another content.
fn request(used: &mut Slot) -> Box<Request<FixedBuf>> {
    let mut request = used.take().unwrap_or_default();
    request.restart();
    request
}

/// Hashes a file of one chunk with one read. An empty one is read too: some file systems show size 0 for any content.
async fn hash_chunk(
    worker: &Worker,
    used: &mut Slot,
    file: &Opened,
    before: &Before,
    buffer: FixedBuf,
) -> Result<Digests, Unread> {
    match file.read(worker, buffer, 0).await {
        (Ok(count), buffer) if count as u64 == before.version.size => {
            if count <= DIRECT_BYTES {
                return Ok(Digests::of(&buffer[..count]));
            }
            let xxh128 = xxh3_128(&buffer[..count]);
            let mut request = request(used);
            request.add(buffer, count);
            request.end();
            let request = used.insert(worker.scheduler.hash(request).await);
            request.buffers().for_each(drop);
            Ok(Digests { sha256: request.digest(), xxh128 })
        }
        (Err(error), _) => Err(Unread::of_error(Call::Read, error)),
        _ => Err(Unread::Busy(Why::Changed)), // it grew or shrank
    }
}

/// Hashes a file of several chunks, a few at a time. Between two rounds other files can have the buffers.
async fn hash_chunks(
    worker: &Worker,
    used: &mut Slot,
    file: &Opened,
    before: &Before,
    job: &Job,
) -> Result<Digests, Unread> {
    let size = before.version.size;
    let mut ahead = ReadAhead { asked: 0, size };
    let mut content = Content { file, before, request: request(used), xxh128: Xxh128Stream::new(), at: 0, chunks: 0 };
    let mut shown = None;
    while content.at < size {
        worker.outbox.borrow().check_deadline()?;
        ahead.ask(file, content.at);
        let permit = worker.buffers.acquire(chunks_left(size - content.at), job.large).await?;
        content.add(read_chunks(worker, file, content.at, size, permit.count()).await)?;
        content.request = worker.scheduler.hash(content.request).await;
        worker.readers.volume.read.touch();
        content.request.buffers().for_each(drop);
        show_long(&worker.readers.volume, &mut shown, job, content.at, size);
    }
    Ok(Digests { sha256: used.insert(content.request).digest(), xxh128: content.xxh128.finish_128() })
}

/// The number of chunks that so many bytes fill, [`CHUNKS_MAX`] at the most.
fn chunks_left(bytes: u64) -> usize {
    usize::try_from(bytes.div_ceil(CHUNK_BYTES as u64)).map_or(CHUNKS_MAX, |chunks| chunks.min(CHUNKS_MAX))
}

/// The result of a read, and the buffer that was read into.
type Chunk = (io::Result<usize>, FixedBuf);

/// Reads up to `count` chunks from `at` on, all at once. There is none for a buffer that would begin after the end.
async fn read_chunks(worker: &Worker, file: &Opened, at: u64, size: u64, count: usize) -> [Option<Chunk>; CHUNKS_MAX] {
    debug_assert!(count <= CHUNKS_MAX, "{count} chunks at once");
    let mut buffers = [const { None }; CHUNKS_MAX];
    for buffer in buffers.iter_mut().take(count) {
        *buffer = Some(worker.buffers.next().await);
    }
    let mut read = |number: usize| {
        let from = at + (number * CHUNK_BYTES) as u64;
        let buffer = if from < size { buffers[number].take() } else { None };
        read_chunk(worker, file, buffer, from)
    };
    let (a, b, c, d) = join4(read(0), read(1), read(2), read(3)).await;
    [a, b, c, d]
}

/// One read; nothing without a buffer.
async fn read_chunk(worker: &Worker, file: &Opened, buffer: Option<FixedBuf>, at: u64) -> Option<Chunk> {
    Some(file.read(worker, buffer?, at).await)
}

/// The content of a file of several chunks, as far as it has been read.
struct Content<'a> {
    file: &'a Opened,
    before: &'a Before,
    request: Box<Request<FixedBuf>>,
    xxh128: Xxh128Stream,
    at: u64,
    chunks: u64,
}

impl Content<'_> {
    /// Adds chunks that were read from `at` on. A short read leaves a gap, so those after it are read again.
    fn add(&mut self, chunks: impl IntoIterator<Item = Option<Chunk>>) -> Result<(), Unread> {
        let size = self.before.version.size;
        for (count, buffer) in chunks.into_iter().flatten() {
            let count = count.map_err(|error| Unread::of_error(Call::Read, error))?;
            debug_assert!(count <= CHUNK_BYTES, "a read of {count} bytes into a chunk");
            self.xxh128.write(&buffer[..count]);
            self.request.add(buffer, count);
            self.at += count as u64;
            self.chunks += 1;
            if count == 0 || self.at > size {
                return Err(Unread::Busy(Why::Changed)); // it shrank or grew
            }
            if self.chunks.is_multiple_of(CHUNKS_BETWEEN_CHECKS) {
                self.before.confirm(self.file.as_fd())?;
            }
            if count < CHUNK_BYTES {
                break;
            }
        }
        if self.at == size {
            self.request.end();
        }
        Ok(())
    }
}

/// The read-ahead that the disk was asked for beyond the reads in flight. With it, eight cold files of 256 MiB take 0.6
/// of the time; for warm files it costs less than a hundredth.
struct ReadAhead {
    asked: u64,
    size: u64,
}

impl ReadAhead {
    fn ask(&mut self, file: &Opened, at: u64) {
        while self.asked < self.size.min(at + AHEAD_BYTES) {
            // This is advice: if the kernel refuses it, the reads are slower and nothing else.
            let _ = fadvise(file.as_fd(), self.asked, NonZeroU64::new(AHEAD_STEP_BYTES), Advice::WillNeed);
            self.asked += AHEAD_STEP_BYTES;
        }
    }
}
