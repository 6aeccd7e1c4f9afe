//! The io_uring engine: a thread, a ring and a set of registered buffers each; many files in flight a ring.
//!
//! open, read and close go through the ring and are submitted together; fstat and the lease are plain calls on
//! the open descriptor, because the ring hands statx to a kernel thread every time. An operation in flight is
//! never dropped (no `select!`, no timeout around one): a dropped open would leak its descriptor.

#![allow(unsafe_code)]

use std::cell::Cell;
use std::ffi::CString;
use std::io;
use std::iter;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::rc::Rc;
use std::sync::mpsc as std_mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use futures_util::future::join4;
use io_uring::{cqueue, opcode, types};
use rustix::io::Errno;
use tokio::sync::Notify;
use tokio_uring::buf::fixed::{FixedBuf, FixedBufPool};
use tokio_uring::fs::File;
use tokio_uring::{OneshotOutputTransform, Runtime, UnsubmittedOneshot};

use xxhash_rust::xxh3::{Xxh3, xxh3_128};

use super::buffer::{CHUNK_BYTES, Chunk};
use super::stable::{Before, OPEN_FLAGS, OPEN_RESOLVE, Root, Unread};
use super::{CHUNKS_BETWEEN_LOOKS, Conclusion, Readers, below};
use crate::error::Error;
use crate::hash::Digests;
use crate::hash::scheduler::{CHUNKS_MAX, Scheduler, Turn};
use crate::pipeline::Job;

/// Files in flight a thread: 32 are enough while files are in the page cache, 128 keep a cold disk busy.
pub const FILES_IN_FLIGHT: usize = 128;

/// Entries of the submission queue: every file's open or close, and every buffer's read, fit at once.
const RING_ENTRIES: u32 = 256;

/// Registered buffers a thread, 2 MiB. Three threads' worth stays below the usual 8 MiB of RLIMIT_MEMLOCK.
const BUFFERS: usize = 32;

/// With fewer buffers than this the ring is not worth having.
const BUFFERS_MIN: usize = 8;

/// The charge of a process that has just ended is given back late: a restart can see ENOMEM for that long.
const MEMLOCK_PATIENCE: Duration = Duration::from_secs(2);

const _: () = assert!(BUFFERS_MIN >= CHUNKS_MAX && FILES_IN_FLIGHT + BUFFERS <= RING_ENTRIES as usize);

/// Starts the threads, all of them or none: the inner error is the first refusal of a ring or its buffers.
///
/// # Errors
/// [`Error::Internal`] when the system refuses a thread.
pub fn start(readers: &Readers) -> Result<io::Result<Vec<JoinHandle<()>>>, Error> {
    let (report, reports) = std_mpsc::channel();
    let mut threads = Vec::with_capacity(readers.workers);
    let mut starts = Vec::with_capacity(readers.workers);
    for number in 0..readers.workers {
        let (go, told) = std_mpsc::channel();
        let (readers, report) = (readers.clone(), report.clone());
        let thread = thread::Builder::new()
            .name(format!("read-{number}"))
            .spawn(move || run(readers, &report, &told))
            .map_err(|error| Error::Internal(format!("cannot start a reading thread: {error}")))?;
        threads.push(thread);
        starts.push(go);
    }
    drop(report);
    for outcome in reports.iter().take(readers.workers) {
        if let Err(cause) = outcome {
            drop(starts); // sends the others home
            for thread in threads {
                let _ = thread.join();
            }
            return Ok(Err(cause));
        }
    }
    for go in starts {
        let _ = go.send(());
    }
    Ok(Ok(threads))
}

/// What to do about a refusal.
pub fn cure(cause: &io::Error, workers: usize) -> String {
    match cause.raw_os_error() {
        Some(libc::ENOMEM) => format!(
            "raise RLIMIT_MEMLOCK (LimitMEMLOCK in systemd, ulimit -l) to {} KiB, or lower --workers",
            workers * (BUFFERS * CHUNK_BYTES / 1024 + 64)
        ),
        Some(libc::ENOSYS) => "use a kernel with io_uring, or allow io_uring_setup in the seccomp profile".to_owned(),
        _ => "allow io_uring_setup, io_uring_enter and io_uring_register in the seccomp profile, and set the sysctl kernel.io_uring_disabled to 0".to_owned(),
    }
}

fn run(readers: Readers, report: &std_mpsc::Sender<io::Result<()>>, told: &std_mpsc::Receiver<()>) {
    let _watched = readers.post.clone().watch_for_panic();
    let runtime = match patiently(runtime) {
        Ok(runtime) => runtime,
        Err(error) => return drop(report.send(Err(error))),
    };
    runtime.block_on(async {
        let pool =
            patiently(|| register(BUFFERS)).or_else(|_| register(BUFFERS / 2)).or_else(|_| register(BUFFERS_MIN));
        let pool = match pool {
            Ok(pool) => pool,
            Err(error) => return drop(report.send(Err(error))),
        };
        if report.send(Ok(())).is_ok() && told.recv().is_ok() {
            let scheduler = Scheduler::default();
            let lane = Rc::new(Lane { readers, pool, scheduler, in_flight: Cell::new(0), finished: Notify::new() });
            tokio_uring::spawn({
                let lane = Rc::clone(&lane);
                async move { lane.scheduler.run().await }
            });
            read_all(lane).await;
        }
    });
}

/// Plain set-up but for cooperative task running, which spares interrupts. `defer_taskrun` would hang here: the
/// crate waits in epoll, where deferred work never runs.
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

/// Tries again while the kernel has no locked memory for us, for a while.
fn patiently<T>(mut attempt: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let deadline = Instant::now() + MEMLOCK_PATIENCE;
    loop {
        match attempt() {
            Err(error) if error.raw_os_error() == Some(libc::ENOMEM) && Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(50));
            }
            other => return other,
        }
    }
}

/// One thread's share of the work.
struct Lane {
    readers: Readers,
    pool: FixedBufPool<Chunk>,
    scheduler: Scheduler<FixedBuf>,
    in_flight: Cell<usize>,
    finished: Notify,
}

async fn read_all(lane: Rc<Lane>) {
    loop {
        while lane.in_flight.get() >= lane.readers.share().min(FILES_IN_FLIGHT) {
            lane.finished.notified().await;
        }
        let Ok(job) = lane.readers.jobs.recv().await else { break };
        lane.in_flight.set(lane.in_flight.get() + 1);
        tokio_uring::spawn(read_one(Rc::clone(&lane), job));
    }
    while lane.in_flight.get() > 0 {
        lane.finished.notified().await;
    }
}

async fn read_one(lane: Rc<Lane>, job: Job) {
    let read = read_file(&lane, &job).await;
    match lane.readers.conclude(job, read) {
        // A closed channel means that the publisher has ended and said why.
        Conclusion::Message(message) => drop(lane.readers.messages.send(message).await),
        Conclusion::Report(report) => lane.readers.post.report(report),
    }
    lane.in_flight.set(lane.in_flight.get() - 1);
    lane.finished.notify_one();
}

async fn read_file(lane: &Lane, job: &Job) -> Result<(Before, Digests), Unread> {
    let file = open(&lane.readers.root, below(job)?).await?;
    let read = read_open(lane, job, &file).await;
    // Closed through the ring, with the others' operations; what close(2) says of a read file changes nothing.
    let _ = file.close().await;
    read
}

async fn read_open(lane: &Lane, job: &Job, file: &File) -> Result<(Before, Digests), Unread> {
    let before = Before::examine(borrow(file))?;
    let digests = hash(lane, file, &before).await?;
    lane.readers.confirm(job, &before, borrow(file))?;
    Ok((before, digests))
}

/// The file's descriptor, for plain calls.
fn borrow(file: &File) -> BorrowedFd<'_> {
    // SAFETY: the descriptor stays open for as long as `file` is borrowed: closing consumes the file.
    unsafe { BorrowedFd::borrow_raw(file.as_raw_fd()) }
}

async fn hash(lane: &Lane, file: &File, before: &Before) -> Result<Digests, Unread> {
    let mut buffers: [Option<FixedBuf>; CHUNKS_MAX] = [const { None }; CHUNKS_MAX];
    buffers[0] = Some(lane.pool.next(CHUNK_BYTES).await);
    if before.version.size <= CHUNK_BYTES as u64 {
        return hash_small(lane, file, before, buffers[0].take()).await;
    }
    // Only the first buffer is waited for: files that wait for each other's buffers would wait for ever.
    for buffer in &mut buffers[1..] {
        *buffer = lane.pool.try_next(CHUNK_BYTES);
    }
    hash_large(lane, file, before, &mut buffers).await
}

/// One read is all of it. An empty file is read too: some file systems show size 0 for what has content.
async fn hash_small(lane: &Lane, file: &File, before: &Before, buffer: Option<FixedBuf>) -> Result<Digests, Unread> {
    match read_chunk(file, buffer, 0).await {
        Some((Ok(count), buffer)) if count as u64 == before.version.size => {
            let xxh128 = xxh3_128(&buffer[..count]);
            let mut turn = Turn::default();
            turn.add(buffer, count);
            turn.end();
            Ok(Digests { sha256: lane.scheduler.hash(turn).await.digest(), xxh128 })
        }
        Some((Err(error), _)) => Err(Unread::Failed(error)),
        _ => Err(Unread::Busy), // it grew or shrank
    }
}

async fn hash_large(
    lane: &Lane,
    file: &File,
    before: &Before,
    buffers: &mut [Option<FixedBuf>; CHUNKS_MAX],
) -> Result<Digests, Unread> {
    let size = before.version.size;
    let (mut xxh3, mut turn) = (Xxh3::new(), Turn::default());
    let (mut at, mut chunks) = (0, 0);
    while at < size {
        let mut read = |number: usize| {
            let from = at + (number * CHUNK_BYTES) as u64;
            let buffer = if from < size { buffers[number].take() } else { None };
            read_chunk(file, buffer, from)
        };
        let (a, b, c, d) = join4(read(0), read(1), read(2), read(3)).await;
        let mut next = true; // false once a short read has left a gap: what comes after it is read again
        for (place, read) in buffers.iter_mut().zip([a, b, c, d]) {
            let Some((count, buffer)) = read else { continue };
            if !next {
                *place = Some(buffer);
                continue;
            }
            let count = count.map_err(Unread::Failed)?;
            xxh3.update(&buffer[..count]);
            turn.add(buffer, count);
            at += count as u64;
            chunks += 1;
            next = count == CHUNK_BYTES;
            if count == 0 || at > size {
                return Err(Unread::Busy); // it shrank or grew
            }
            if chunks % CHUNKS_BETWEEN_LOOKS == 0 {
                before.confirm(borrow(file))?;
            }
        }
        if at == size {
            turn.end();
        }
        turn = lane.scheduler.hash(turn).await;
        let free = buffers.iter_mut().filter(|place| place.is_none());
        free.zip(turn.buffers()).for_each(|(place, buffer)| *place = Some(buffer));
    }
    Ok(Digests { sha256: turn.digest(), xxh128: xxh3.digest128() })
}

/// One read into a registered buffer, or nothing where there is none.
async fn read_chunk(file: &File, buffer: Option<FixedBuf>, at: u64) -> Option<(io::Result<usize>, FixedBuf)> {
    Some(file.read_fixed_at(buffer?, at).await)
}

/// Opens through the ring; a link is opened by the slower way, with plain calls.
async fn open(root: &Root, below: CString) -> Result<File, Unread> {
    let how = types::OpenHow::new().flags(OPEN_FLAGS.bits().into()).resolve(OPEN_RESOLVE.bits());
    let data = Box::new((below, how));
    let directory = types::Fd(root.as_fd().as_raw_fd());
    let entry = opcode::OpenAt2::new(directory, data.0.as_ptr(), &raw const data.1).build();
    // SAFETY of what the entry points at: path and `how` stand in a box that the operation owns until its
    // completion has been seen, dropped or not; the directory outlives every reading thread.
    let (opened, data) = UnsubmittedOneshot::new(data, Opened, entry).submit().await;
    match opened {
        Ok(file) => Ok(File::from_std(file.into())),
        Err(Errno::LOOP) => Ok(File::from_std(root.open_link(&data.0)?.into())),
        Err(errno) => Err(errno.into()),
    }
}

/// Turns the completion of an open into its descriptor.
struct Opened;

impl OneshotOutputTransform for Opened {
    type Output = (Result<OwnedFd, Errno>, Self::StoredData);
    type StoredData = Box<(CString, types::OpenHow)>;

    fn transform_oneshot_output(self, data: Self::StoredData, completion: cqueue::Entry) -> Self::Output {
        let result = completion.result();
        let opened = if result < 0 {
            Err(Errno::from_raw_os_error(-result))
        } else {
            // SAFETY: a result that is not negative is a descriptor that this open made and nobody else has.
            Ok(unsafe { OwnedFd::from_raw_fd(result) })
        };
        (opened, data)
    }
}
