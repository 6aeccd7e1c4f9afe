//! What all files of one thread share: the registered buffers, the lanes, and the way out.

use std::cell::RefCell;
use std::io;

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio_uring::buf::fixed::{FixedBuf, FixedBufPool};

use crate::files::unread::Unread;
use crate::hash::scheduler::{CHUNKS_MAX, Scheduler};
use crate::read::buffer::{CHUNK_BYTES, Chunk};
use crate::read::readers::{Outbox, Readers};

/// What all files of one thread share.
pub(super) struct Worker {
    pub(super) readers: Readers,
    pub(super) buffers: Buffers,
    pub(super) scheduler: Scheduler<FixedBuf>,
    pub(super) outbox: RefCell<Outbox>,
}

impl Worker {
    pub(super) fn new(readers: Readers, buffers: Buffers) -> Self {
        let outbox = RefCell::new(Outbox::new(readers.clone()));
        Self { readers, buffers, scheduler: Scheduler::default(), outbox }
    }
}

/// A thread's registered buffers, and the permits for them. Files get permits in the order in which they ask; large
/// files together never have more than half of the buffers.
pub(super) struct Buffers {
    pool: FixedBufPool<Chunk>,
    all: Semaphore,
    large: Semaphore,
}

/// The right to some buffers, which is returned when it is dropped.
pub(super) struct Permit<'a> {
    _large: Option<SemaphorePermit<'a>>,
    all: SemaphorePermit<'a>,
}

impl Permit<'_> {
    /// The number of buffers.
    pub(super) fn count(&self) -> usize {
        self.all.num_permits()
    }
}

impl Buffers {
    pub(super) fn new(pool: FixedBufPool<Chunk>, count: usize) -> Self {
        assert!(count >= 2 * CHUNKS_MAX, "a file of either size gets CHUNKS_MAX buffers at once");
        Self { pool, all: Semaphore::new(count), large: Semaphore::new(count / 2) }
    }

    /// Waits for the right to so many buffers at once, [`CHUNKS_MAX`] at the most. That is half of the fewest buffers
    /// that there can be, so no file that has some waits for more. If files got them one by one, several that wait
    /// would get one each and would read a chunk at a time.
    pub(super) async fn acquire(&self, chunks: usize, large: bool) -> Result<Permit<'_>, Unread> {
        debug_assert!((1..=CHUNKS_MAX).contains(&chunks), "{chunks} chunks at once");
        let large = if large { Some(acquire_many(&self.large, chunks).await?) } else { None };
        Ok(Permit { _large: large, all: acquire_many(&self.all, chunks).await? })
    }

    /// A buffer, for which the caller holds a permit.
    pub(super) async fn next(&self) -> FixedBuf {
        self.pool.next(CHUNK_BYTES).await
    }
}

async fn acquire_many(semaphore: &Semaphore, chunks: usize) -> Result<SemaphorePermit<'_>, Unread> {
    let permits = chunks.clamp(1, CHUNKS_MAX) as u32;
    // The semaphore is never closed.
    semaphore.acquire_many(permits).await.map_err(|closed| Unread::Failed(io::Error::other(closed)))
}
