//! The io_uring engine: each thread has a ring, a set of registered buffers, and many files in flight.
//!
//! open, read and close go through the ring and are submitted together. fstat and the lease are plain calls on the open
//! descriptor, because the ring would hand each statx to a kernel thread. An operation in flight is never dropped (no
//! `select!`, no timeout around one), because a dropped open would leak its descriptor.

mod content;
mod file;
mod opened;
mod operations;
mod pool;
mod waits;
mod worker;

use std::rc::Rc;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use std::{io, iter, mem};

use tokio_uring::Runtime;
use tokio_uring::buf::fixed::FixedBufPool;

use self::pool::Pool;
use self::worker::{Buffers, Worker};
use super::buffer::Chunk;
use super::limits::{self, BUFFERS, BUFFERS_MIN, FILES_IN_FLIGHT, LARGE_IN_FLIGHT, Plan, Short};
use super::readers::Readers;
use crate::error::Error;
use crate::hash::scheduler::CHUNKS_MAX;

/// Entries of the submission queue: each file's open or close, and each buffer's read, fit at once.
const RING_ENTRIES: u32 = 256;

/// The kernel returns the locked memory of a process that ended with a delay: a restart can see ENOMEM for that long.
const MEMLOCK_TIMEOUT: Duration = Duration::from_secs(2);

const _: () =
    assert!(BUFFERS_MIN >= 2 * CHUNKS_MAX && FILES_IN_FLIGHT + LARGE_IN_FLIGHT + BUFFERS <= RING_ENTRIES as usize);

/// Threads with a ring and registered buffers each, which wait to be assigned a volume. Dropped, it ends them.
pub struct Rings {
    threads: Waiting,
    plan: Plan,
}

impl Rings {
    /// Sets up at most `workers` rings: as many as descriptors and locked memory are enough for, with as many buffers
    /// each. The limits decide first, then what the kernel grants, because other processes of this user may hold some.
    /// The inner error says why there is not even one.
    ///
    /// # Errors
    /// [`Error::Threads`] when the system refuses a thread.
    pub fn set_up(workers: usize) -> Result<io::Result<Self>, Error> {
        let mut plan = limits::plan(workers, limits::locked_memory(), limits::descriptors_free());
        loop {
            let (threads, refused) = try_rings(plan)?;
            match refused {
                None => {}
                // All rings are taken down, because those that were granted hold the memory that the others lack.
                Some(cause) if is_out_of_memory(&cause) && plan.buffers > BUFFERS_MIN => {
                    end(threads);
                    plan.buffers = (plan.buffers / 2).max(BUFFERS_MIN);
                    plan.short_of = Some(Short::LockedMemory);
                    continue;
                }
                Some(cause) if threads.is_empty() => return Ok(Err(cause)),
                Some(cause) => {
                    let memory = is_out_of_memory(&cause);
                    plan.short_of = Some(if memory { Short::LockedMemory } else { Short::Descriptors });
                }
            }
            plan.rings = threads.len();
            return Ok(Ok(Self { threads, plan }));
        }
    }

    /// The number of threads that are not assigned yet.
    #[must_use]
    pub fn count(&self) -> usize {
        self.threads.len()
    }

    /// See [`Plan::shortage`].
    #[must_use]
    pub fn shortage(&self, workers: usize) -> Option<(String, String)> {
        self.plan.shortage(workers)
    }

    /// Assigns `count` threads to a volume, which they read from now on.
    pub(super) fn assign(&mut self, count: usize, readers: &Readers) -> Vec<JoinHandle<()>> {
        let assigned = self.threads.drain(..count.min(self.threads.len()));
        assigned
            .map(|(assignment, thread)| {
                let _ = assignment.send(readers.clone()); // the thread waits for this
                thread
            })
            .collect()
    }
}

impl Drop for Rings {
    fn drop(&mut self) {
        end(mem::take(&mut self.threads));
    }
}

type Waiting = Vec<(mpsc::Sender<Readers>, JoinHandle<()>)>;

/// Ends threads that wait for an assignment.
fn end(threads: Waiting) {
    let (assignments, threads): (Vec<_>, Vec<_>) = threads.into_iter().unzip();
    drop(assignments);
    for thread in threads {
        let _ = thread.join();
    }
}

/// Starts the threads of a plan. Those that have a ring wait; the error is the first refusal of a ring or its buffers.
fn try_rings(plan: Plan) -> Result<(Waiting, Option<io::Error>), Error> {
    let mut threads = Vec::with_capacity(plan.rings);
    for number in 0..plan.rings {
        let (assignment, assigned) = mpsc::channel();
        let (ready, is_ready) = mpsc::channel();
        let thread = thread::Builder::new()
            .name(format!("read-{number}"))
            .spawn(move || run(plan.buffers, &ready, &assigned))
            .map_err(|cause| Error::Threads { what: "a reading thread", cause })?;
        threads.push((is_ready, assignment, thread));
    }
    let (mut waiting, mut refused) = (Vec::with_capacity(plan.rings), None);
    for (is_ready, assignment, thread) in threads {
        // A thread that ends without an answer has panicked, and the panic is logged.
        match is_ready.recv().unwrap_or_else(|_| Err(io::Error::other("a reading thread has ended"))) {
            Ok(()) => waiting.push((assignment, thread)),
            Err(cause) => {
                refused.get_or_insert(cause);
                let _ = thread.join();
            }
        }
    }
    Ok((waiting, refused))
}

fn is_out_of_memory(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENOMEM)
}

/// What the user can do about a refused ring.
pub fn cure(cause: &io::Error, workers: usize) -> String {
    match cause.raw_os_error() {
        Some(libc::ENOMEM) => limits::more_memory(workers),
        Some(libc::EMFILE | libc::ENFILE) => limits::more_descriptors(workers),
        // The kernel lacks the flags that the rings are set up with (io_uring_setup(2)).
        Some(libc::EINVAL) => "use Linux 6.0 or newer".to_owned(),
        Some(libc::ENOSYS) => "use a kernel with io_uring, or allow io_uring_setup in the seccomp profile".to_owned(),
        _ => "allow io_uring_setup, io_uring_enter and io_uring_register in the seccomp profile, and set the sysctl kernel.io_uring_disabled to 0".to_owned(),
    }
}

/// A reading thread: it sets up its ring and buffers, answers whether it has them, and waits for its assignment.
fn run(buffers: usize, ready: &mpsc::Sender<io::Result<()>>, assigned: &mpsc::Receiver<Readers>) {
    let runtime = match retry_locked_memory(runtime) {
        Ok(runtime) => runtime,
        Err(error) => return drop(ready.send(Err(error))),
    };
    runtime.block_on(async {
        let pool = match retry_locked_memory(|| register(buffers)) {
            Ok(pool) => pool,
            Err(error) => return drop(ready.send(Err(error))),
        };
        if ready.send(Ok(())).is_ok()
            && let Ok(readers) = assigned.recv()
        {
            let _guard = readers.sender.guard_panics();
            let worker = Worker::new(readers, Buffers::new(pool, buffers));
            pool::read_all(Rc::new(Pool::new(worker))).await;
        }
    });
}

/// Plain set-up with cooperative task running, which spares interrupts. `defer_taskrun` would hang here, because
/// tokio-uring waits in epoll, where deferred work never runs.
fn runtime() -> io::Result<Runtime> {
    let mut ring = tokio_uring::uring_builder();
    ring.setup_coop_taskrun().setup_single_issuer();
    Runtime::new(tokio_uring::builder().entries(RING_ENTRIES).uring_builder(&ring))
}

fn register(buffers: usize) -> io::Result<FixedBufPool<Chunk>> {
    let pool = FixedBufPool::new(iter::repeat_with(Chunk::default).take(buffers));
    pool.register()?;
    Ok(pool)
}

/// Retries on ENOMEM for [`MEMLOCK_TIMEOUT`].
fn retry_locked_memory<T>(mut attempt: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let deadline = Instant::now() + MEMLOCK_TIMEOUT;
    loop {
        match attempt() {
            Err(error) if is_out_of_memory(&error) && Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(50));
            }
            other => return other,
        }
    }
}
