//! The io_uring engine: a thread, a ring and a set of registered buffers each; many files in flight a ring.
//!
//! open, read and close go through the ring and are submitted together; fstat and the lease are plain calls on
//! the open descriptor, because the ring hands statx to a kernel thread every time. An operation in flight is
//! never dropped (no `select!`, no timeout around one): a dropped open would leak its descriptor.

#![allow(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::ffi::CStr;
use std::io;
use std::iter;
use std::num::NonZeroU64;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::rc::Rc;
use std::sync::mpsc as std_mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use futures_util::future::join4;
use io_uring::{cqueue, opcode, types};
use rustix::fs::{Advice, fadvise};
use rustix::io::Errno;
use tokio::sync::Notify;
use tokio_uring::buf::fixed::{FixedBuf, FixedBufPool};
use tokio_uring::fs::File;
use tokio_uring::{OneshotOutputTransform, Runtime, UnsubmittedOneshot};

use xxhash_rust::xxh3::xxh3_128;

use super::buffer::{CHUNK_BYTES, Chunk};
use super::stable::{Before, OPEN_FLAGS, OPEN_RESOLVE, Root, Unread};
use super::{Below, CHUNKS_BETWEEN_LOOKS, Outbox, Readers, examine};
use crate::error::Error;
use crate::files::errno::Call;
use crate::hash::scheduler::{CHUNKS_MAX, Scheduler, Turn};
use crate::hash::{Digests, Xxh128Stream};
use crate::pipeline::Job;

/// Files in flight a thread: 32 are enough while files are in the page cache, 128 keep a cold disk busy.
pub const FILES_IN_FLIGHT: usize = 128;

/// Entries of the submission queue: every file's open or close, and every buffer's read, fit at once.
const RING_ENTRIES: u32 = 256;

/// Registered buffers a thread, 2 MiB. Three threads' worth stays below the usual 8 MiB of RLIMIT_MEMLOCK.
const BUFFERS: usize = 32;

/// With fewer buffers than this the ring is not worth having.
const BUFFERS_MIN: usize = 8;

/// Content that is hashed where it is read: the way into the lanes and back costs 230 ns, and company gains 150 ns to
/// 300 ns a KB.
const ALONE_BYTES: usize = 1536;

/// How far before the reads the disk is kept at work on a large file.
const AHEAD_BYTES: u64 = 4 * AHEAD_STEP_BYTES;

/// Bytes asked for at a time. The kernel takes up no more of one request than the device's largest, 1280 KiB where nothing
/// else is set (Linux, force_page_cache_ra).
const AHEAD_STEP_BYTES: u64 = 1024 * 1024;

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

/// Locked memory that so many threads want, in KiB: their buffers, and 64 KiB for a ring.
#[must_use]
pub fn locked_kib(workers: usize) -> usize {
    workers * (BUFFERS * CHUNK_BYTES / 1024 + 64)
}

/// Locked memory in KiB without which so many threads cannot start: with the fewest buffers that a ring is worth having for.
#[must_use]
pub fn least_locked_kib(workers: usize) -> usize {
    workers * BUFFERS_MIN * CHUNK_BYTES / 1024
}

/// Sets up a ring and its buffers as a thread does, and takes them down. Tells how many buffers it had, of how many.
///
/// # Errors
/// What the kernel refuses.
pub fn probe() -> io::Result<(usize, usize)> {
    let runtime = patiently(runtime)?;
    runtime.block_on(async { register_most().map(|(_, buffers)| (buffers, BUFFERS)) })
}

/// What to do about a refusal.
pub fn cure(cause: &io::Error, workers: usize) -> String {
    match cause.raw_os_error() {
        Some(libc::ENOMEM) => format!(
            "raise RLIMIT_MEMLOCK (LimitMEMLOCK in systemd, ulimit -l) to {} KiB, or lower --workers",
            locked_kib(workers)
        ),
        // The flags that the rings are set up with (io_uring_setup(2)).
        Some(libc::EINVAL) => "use Linux 6.0 or newer".to_owned(),
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
        let pool = match register_most() {
            Ok((pool, _)) => pool,
            Err(error) => return drop(report.send(Err(error))),
        };
        if report.send(Ok(())).is_ok() && told.recv().is_ok() {
            read_all(Rc::new(Lane::new(readers, pool))).await;
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

/// As many buffers as can be had, and their number.
fn register_most() -> io::Result<(FixedBufPool<Chunk>, usize)> {
    let fewer = |buffers| move |_| register(buffers).map(|pool| (pool, buffers));
    let all = patiently(|| register(BUFFERS)).map(|pool| (pool, BUFFERS));
    all.or_else(fewer(BUFFERS / 2)).or_else(fewer(BUFFERS_MIN))
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
    outbox: RefCell<Outbox>,
    concluded: Notify,
    /// Jobs taken for the hands that wait for one.
    given: RefCell<VecDeque<Job>>,
    called: Notify,
    /// Hands that wait and have not been called.
    idle: Cell<usize>,
    in_flight: Cell<usize>,
    finished: Notify,
}

impl Lane {
    fn new(readers: Readers, pool: FixedBufPool<Chunk>) -> Self {
        Self {
            outbox: RefCell::new(Outbox::new(readers.clone())),
            readers,
            pool,
            scheduler: Scheduler::default(),
            concluded: Notify::new(),
            given: RefCell::default(),
            called: Notify::new(),
            idle: Cell::new(0),
            in_flight: Cell::new(0),
            finished: Notify::new(),
        }
    }

    /// Gives a job to a hand that waits, or to a new one.
    fn give(self: &Rc<Self>, job: Job) {
        self.in_flight.set(self.in_flight.get() + 1);
        self.given.borrow_mut().push_back(job);
        if self.idle.get() > 0 {
            self.idle.set(self.idle.get() - 1);
            self.called.notify_one();
        } else {
            tokio_uring::spawn(read_files(Rc::clone(self)));
        }
    }

    async fn next(&self) -> Job {
        loop {
            if let Some(job) = self.given.borrow_mut().pop_front() {
                return job;
            }
            self.idle.set(self.idle.get() + 1);
            self.called.notified().await;
        }
    }

    fn conclude(&self, job: Job, began: Instant, read: Result<(Before, Digests), Unread>) {
        self.outbox.borrow_mut().conclude(job, began, read);
        self.concluded.notify_one();
        self.in_flight.set(self.in_flight.get() - 1);
        self.finished.notify_one();
    }

    /// Hands on what has been concluded, for ever. A task of its own, like the scheduler: called by the first file of a
    /// round it comes after all that are ready to conclude theirs.
    async fn hand_on(&self) {
        loop {
            self.concluded.notified().await;
            self.outbox.borrow_mut().hand_on();
        }
    }
}

async fn read_all(lane: Rc<Lane>) {
    let (hashing, handing_on) = (Rc::clone(&lane), Rc::clone(&lane));
    tokio_uring::spawn(async move { hashing.scheduler.run().await });
    tokio_uring::spawn(async move { handing_on.hand_on().await });
    loop {
        while lane.in_flight.get() >= lane.readers.share().min(FILES_IN_FLIGHT) {
            lane.finished.notified().await;
        }
        let Ok(job) = lane.readers.jobs.recv().await else { break };
        lane.give(job);
    }
    while lane.in_flight.get() > 0 {
        lane.finished.notified().await;
    }
    lane.outbox.borrow_mut().hand_on();
}

/// One of a thread's hands: a file at a time, with the same few pieces of memory.
async fn read_files(lane: Rc<Lane>) {
    let mut tools = Tools::default();
    loop {
        let job = lane.next().await;
        let began = Instant::now();
        let read = read_file(&lane, &mut tools, &job).await;
        lane.conclude(job, began, read);
    }
}

/// What a hand uses again for every file. Each piece is on its way, and not here, while it is in use.
#[derive(Default)]
struct Tools {
    request: Option<Box<OpenRequest>>,
    turn: Option<Box<Turn<FixedBuf>>>,
}

async fn read_file(lane: &Lane, tools: &mut Tools, job: &Job) -> Result<(Before, Digests), Unread> {
    let mut request = tools.request.take().unwrap_or_default();
    request.below.set(job);
    request.below.path()?;
    let root = job.directory.root();
    let (opened, request) = open(root, request).await;
    let request = tools.request.insert(request);
    let file = match opened {
        Ok(file) => File::from_std(file.into()),
        // A link is opened by the slower way, with plain calls.
        Err(errno) => File::from_std(root.open_otherwise(request.below.path()?, errno)?.into()),
    };
    let read = read_open(lane, job, request.below.path()?, &mut tools.turn, &file).await;
    // Closed through the ring, with the others' operations; what close(2) says of a read file changes nothing.
    let _ = file.close().await;
    read
}

async fn read_open(
    lane: &Lane,
    job: &Job,
    below: &CStr,
    turn: &mut Option<Box<Turn<FixedBuf>>>,
    file: &File,
) -> Result<(Before, Digests), Unread> {
    let before = examine(job, borrow(file))?;
    let digests = hash(lane, turn, file, &before).await?;
    before.confirm_all(job.directory.root(), below, borrow(file), job.within.is_some())?;
    Ok((before, digests))
}

/// The file's descriptor, for plain calls.
fn borrow(file: &File) -> BorrowedFd<'_> {
    // SAFETY: the descriptor stays open for as long as `file` is borrowed: closing consumes the file.
    unsafe { BorrowedFd::borrow_raw(file.as_raw_fd()) }
}

async fn hash(
    lane: &Lane,
    turn: &mut Option<Box<Turn<FixedBuf>>>,
    file: &File,
    before: &Before,
) -> Result<Digests, Unread> {
    let first = lane.pool.next(CHUNK_BYTES).await;
    if before.version.size <= CHUNK_BYTES as u64 {
        return hash_small(lane, turn, file, before, first).await;
    }
    // In a box: a hand whose files are small does not carry the room for this.
    Box::pin(hash_large(lane, turn, file, before, first)).await
}

/// The turn of the file before, or a new one, as for a new content.
fn begin(turn: &mut Option<Box<Turn<FixedBuf>>>) -> Box<Turn<FixedBuf>> {
    let mut turn = turn.take().unwrap_or_default();
    turn.restart();
    turn
}

/// One read is all of it. An empty file is read too: some file systems show size 0 for what has content.
async fn hash_small(
    lane: &Lane,
    used: &mut Option<Box<Turn<FixedBuf>>>,
    file: &File,
    before: &Before,
    buffer: FixedBuf,
) -> Result<Digests, Unread> {
    match file.read_fixed_at(buffer, 0).await {
        (Ok(count), buffer) if count as u64 == before.version.size => {
            if count <= ALONE_BYTES {
                return Ok(Digests::of(&buffer[..count]));
            }
            let xxh128 = xxh3_128(&buffer[..count]);
            let mut turn = begin(used);
            turn.add(buffer, count);
            turn.end();
            let turn = used.insert(lane.scheduler.hash(turn).await);
            turn.buffers().for_each(drop);
            Ok(Digests { sha256: turn.digest(), xxh128 })
        }
        (Err(error), _) => Err(Unread::of_error(Call::Read, error)),
        _ => Err(Unread::Busy), // it grew or shrank
    }
}

async fn hash_large(
    lane: &Lane,
    used: &mut Option<Box<Turn<FixedBuf>>>,
    file: &File,
    before: &Before,
    first: FixedBuf,
) -> Result<Digests, Unread> {
    // Only the first buffer is waited for: files that wait for each other's buffers would wait for ever.
    let mut buffers = [Some(first), None, None, None];
    for buffer in &mut buffers[1..] {
        *buffer = lane.pool.try_next(CHUNK_BYTES);
    }
    let mut turn = begin(used);
    let size = before.version.size;
    let mut ahead = ReadAhead { asked: 0, size };
    let mut xxh128 = Xxh128Stream::new();
    let (mut at, mut chunks) = (0, 0);
    while at < size {
        ahead.ask(file, at);
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
            let count = count.map_err(|error| Unread::of_error(Call::Read, error))?;
            xxh128.write(&buffer[..count]);
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
        lane.readers.vitals.read.get_on();
        let free = buffers.iter_mut().filter(|place| place.is_none());
        free.zip(turn.buffers()).for_each(|(place, buffer)| *place = Some(buffer));
    }
    Ok(Digests { sha256: used.insert(turn).digest(), xxh128: xxh128.finish_128() })
}

/// What the disk has been asked for beyond the reads in flight. Eight cold files of 256 MiB take 0.6 of the time; of warm
/// ones less than a hundredth goes to it.
struct ReadAhead {
    asked: u64,
    size: u64,
}

impl ReadAhead {
    fn ask(&mut self, file: &File, at: u64) {
        while self.asked < self.size.min(at + AHEAD_BYTES) {
            // Advice: where it is not taken, the reads themselves are.
            let _ = fadvise(borrow(file), self.asked, NonZeroU64::new(AHEAD_STEP_BYTES), Advice::WillNeed);
            self.asked += AHEAD_STEP_BYTES;
        }
    }
}

/// One read into a registered buffer, or nothing where there is none.
async fn read_chunk(file: &File, buffer: Option<FixedBuf>, at: u64) -> Option<(io::Result<usize>, FixedBuf)> {
    Some(file.read_fixed_at(buffer?, at).await)
}

/// What the kernel reads while it opens a file.
struct OpenRequest {
    below: Below,
    how: types::OpenHow,
}

impl Default for OpenRequest {
    fn default() -> Self {
        let how = types::OpenHow::new().flags(OPEN_FLAGS.bits().into()).resolve(OPEN_RESOLVE.bits());
        Self { below: Below::default(), how }
    }
}

/// Opens through the ring.
async fn open(root: &Root, request: Box<OpenRequest>) -> (Result<OwnedFd, Errno>, Box<OpenRequest>) {
    let directory = types::Fd(root.as_fd().as_raw_fd());
    let entry = opcode::OpenAt2::new(directory, request.below.as_ptr(), &raw const request.how).build();
    // SAFETY of what the entry points at: path and `how` stand in a box that the operation owns until its
    // completion has been seen, dropped or not; the directory is one of `Readers::roots` and outlives every reading thread.
    UnsubmittedOneshot::new(request, Opened, entry).submit().await
}

/// Turns the completion of an open into its descriptor.
struct Opened;

impl OneshotOutputTransform for Opened {
    type Output = (Result<OwnedFd, Errno>, Self::StoredData);
    type StoredData = Box<OpenRequest>;

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
