//! What all files of one thread share: the registered buffers, the lanes, and the way out.

use std::cell::{Cell, RefCell};
use std::io;
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio_uring::buf::fixed::{FixedBuf, FixedBufPool};

use crate::files::unread::Unread;
use crate::hash::scheduler::{CHUNKS_MAX, Scheduler};
use crate::read::buffer::{CHUNK_BYTES, Chunk};
use crate::read::limits::FILES_IN_FLIGHT;
use crate::read::readers::{Outbox, Readers};

/// What all files of one thread share.
pub(super) struct Worker {
    pub(super) readers: Readers,
    pub(super) buffers: Buffers,
    pub(super) scheduler: Scheduler<FixedBuf>,
    pub(super) plain_reads: PlainReads,
    pub(super) outbox: RefCell<Outbox>,
}

impl Worker {
    pub(super) fn new(readers: Readers, buffers: Buffers) -> Self {
        let outbox = RefCell::new(Outbox::new(readers.clone()));
        let plain_reads = PlainReads::new(readers.plain_reads);
        Self { readers, buffers, scheduler: Scheduler::default(), plain_reads, outbox }
    }
}

/// The longest time of a plain read of what is in memory. A disk takes longer, and the thread does nothing else meanwhile.
const QUICK: Duration = Duration::from_micros(100);

/// Slow reads in a row that show that a disk is read. The first may have waited for the processor, and of the next ones it is
/// asked.
const SLOW_IN_A_ROW: u32 = 2;

/// Files that go through the ring after plain reads were slow: as many as a thread has in flight, so that the next plain
/// read comes when those are read.
const RING_FILES: usize = FILES_IN_FLIGHT;

/// Whether files are read by plain calls, where the ring would hand each read to a kernel thread: as long as what is read
/// is in memory. From a disk the ring's kernel threads read many files at a time, and that is worth their price.
pub(super) struct PlainReads {
    wanted: bool,
    slow_in_a_row: Cell<u32>,
    /// Files that are left for the ring.
    ring_files: Cell<usize>,
}

impl PlainReads {
    fn new(wanted: bool) -> Self {
        Self { wanted, slow_in_a_row: Cell::new(0), ring_files: Cell::new(0) }
    }

    /// Whether the next file is read by plain calls. Each call is for one file.
    pub(super) fn are_quick(&self) -> bool {
        match self.ring_files.get() {
            0 => self.wanted,
            left => {
                self.ring_files.set(left - 1);
                false
            }
        }
    }

    /// Whether the last read was slow, so that it counts of the next one whether the thread waits in it.
    pub(super) fn may_be_slow(&self) -> bool {
        self.slow_in_a_row.get() > 0
    }

    /// Takes into account how long a plain read has taken. `waited`: the thread may have waited in it, and has not just lost its
    /// processor to another one for a while.
    pub(super) fn observe(&self, elapsed: Duration, waited: bool) {
        let slow = if elapsed > QUICK && waited { self.slow_in_a_row.get() + 1 } else { 0 };
        self.slow_in_a_row.set(slow % SLOW_IN_A_ROW);
        if slow == SLOW_IN_A_ROW {
            self.ring_files.set(RING_FILES);
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_slow_plain_reads_the_ring_reads_for_a_while() {
        const SLOW: Duration = Duration::from_millis(1);
        let plain = PlainReads::new(true);
        let by_ring = || (0..2 * RING_FILES).filter(|_| !plain.are_quick()).count();
        for elapsed in [SLOW, QUICK, SLOW] {
            plain.observe(elapsed, true);
        }
        assert_eq!((by_ring(), plain.may_be_slow()), (0, true), "no two in a row");
        plain.observe(SLOW, false);
        assert_eq!((by_ring(), plain.may_be_slow()), (0, false), "another thread had the processor");
        plain.observe(SLOW, true);
        plain.observe(SLOW, true);
        assert_eq!(by_ring(), RING_FILES);
        plain.observe(SLOW, true);
        assert_eq!(by_ring(), 0, "they are counted anew");
        assert!(!PlainReads::new(false).are_quick());
    }
}
