//! The io_uring engine: a thread, a ring and a set of registered buffers each; many files in flight a ring.
//!
//! open, read and close go through the ring and are submitted together; fstat and the lease are plain calls on
//! the open descriptor, because the ring hands statx to a kernel thread every time. An operation in flight is
//! never dropped (no `select!`, no timeout around one): a dropped open would leak its descriptor.
#![allow(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::ffi::CStr;
use std::num::NonZeroU64;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::rc::Rc;
use std::sync::mpsc as std_mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use std::{io, iter, mem};

use futures_util::future::{join, join4};
use io_uring::{cqueue, opcode, types};
use rustix::fs::{Advice, fadvise};
use rustix::io::Errno;
use tokio::sync::{Notify, Semaphore, SemaphorePermit};
use tokio_uring::buf::fixed::{FixedBuf, FixedBufPool};
use tokio_uring::fs::File;
use tokio_uring::{OneshotOutputTransform, Runtime, UnsubmittedOneshot};
use xxhash_rust::xxh3::xxh3_128;

use super::buffer::{CHUNK_BYTES, Chunk};
use super::limits::{self, BUFFERS, BUFFERS_MIN, FILES_IN_FLIGHT, LARGE_IN_FLIGHT, Plan, Short};
use super::readers::{Below, CHUNKS_BETWEEN_LOOKS, Outbox, Readers, examine};
use super::verify::Before;
use crate::error::Error;
use crate::files::errno::Call;
use crate::files::root::{OPEN_FLAGS, OPEN_RESOLVE, Root};
use crate::files::unread::{Unread, Why};
use crate::hash::scheduler::{CHUNKS_MAX, Scheduler, Turn};
use crate::hash::{Digests, Xxh128Stream};
use crate::job::Job;
use crate::queue::Queue;

/// Entries of the submission queue: every file's open or close, and every buffer's read, fit at once.
const RING_ENTRIES: u32 = 256;

/// Content that is hashed where it is read: the way into the lanes and back costs 230 ns, and company gains 150 ns to
/// 300 ns a KB.
const ALONE_BYTES: usize = 1536;

/// How far before the reads the disk is kept at work on a large file.
const AHEAD_BYTES: u64 = 4 * AHEAD_STEP_BYTES;

/// Bytes asked for at a time. The kernel takes up no more of one request than the device's largest, 1280 KiB where nothing
/// else is set (Linux, force_page_cache_ra).
const AHEAD_STEP_BYTES: u64 = 1024 * 1024;

/// The charge of a process that has just ended is given back late: a restart can see ENOMEM for that long.
const MEMLOCK_TIMEOUT: Duration = Duration::from_secs(2);

const _: () =
    assert!(BUFFERS_MIN >= 2 * CHUNKS_MAX && FILES_IN_FLIGHT + LARGE_IN_FLIGHT + BUFFERS <= RING_ENTRIES as usize);

/// Threads with a ring and registered buffers each, that wait to be told what to read. Dropped, they go home.
pub struct Rings {
    threads: Waiting,
    plan: Plan,
}

impl Rings {
    /// As many of so many as there are descriptors and locked memory for, with as many buffers each: first by the limits,
    /// then by what the kernel grants, for others of this user may hold some. The inner error: not even one.
    ///
    /// # Errors
    /// [`Error::Threads`].
    pub fn set_up(workers: usize) -> Result<io::Result<Self>, Error> {
        let mut plan = limits::plan(workers, limits::locked_memory(), limits::descriptors_free());
        loop {
            let (threads, refused) = try_rings(plan)?;
            match refused {
                None => {}
                // All are taken down: what some lack is what others have too much of.
                Some(cause) if is_out_of_memory(&cause) && plan.buffers > BUFFERS_MIN => {
                    send_home(threads);
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

    /// How many are left to be told what to read.
    #[must_use]
    pub fn count(&self) -> usize {
        self.threads.len()
    }

    /// See [`Plan::shortage`].
    #[must_use]
    pub fn shortage(&self, workers: usize) -> Option<(String, String)> {
        self.plan.shortage(workers)
    }

    /// Has so many of them read for a volume.
    pub fn give(&mut self, count: usize, readers: &Readers) -> Vec<JoinHandle<()>> {
        let given = self.threads.drain(..count.min(self.threads.len()));
        given
            .map(|(told, thread)| {
                let _ = told.send(readers.clone()); // it waits for this
                thread
            })
            .collect()
    }
}

impl Drop for Rings {
    fn drop(&mut self) {
        send_home(mem::take(&mut self.threads));
    }
}

type Waiting = Vec<(std_mpsc::Sender<Readers>, JoinHandle<()>)>;

fn send_home(threads: Waiting) {
    let (told, threads): (Vec<_>, Vec<_>) = threads.into_iter().unzip();
    drop(told);
    for thread in threads {
        let _ = thread.join();
    }
}

/// Starts the threads of a plan. Those that have a ring wait; the error is the first refusal of a ring or its buffers.
fn try_rings(plan: Plan) -> Result<(Waiting, Option<io::Error>), Error> {
    let mut threads = Vec::with_capacity(plan.rings);
    for number in 0..plan.rings {
        let (go, told) = std_mpsc::channel();
        let (report, reported) = std_mpsc::channel();
        let thread = thread::Builder::new()
            .name(format!("read-{number}"))
            .spawn(move || run(plan.buffers, &report, &told))
            .map_err(|cause| Error::Threads { what: "a reading thread", cause })?;
        threads.push((reported, go, thread));
    }
    let (mut waiting, mut refused) = (Vec::with_capacity(plan.rings), None);
    for (reported, go, thread) in threads {
        // One that has ended without a word has panicked, and said so.
        match reported.recv().unwrap_or_else(|_| Err(io::Error::other("a reading thread has ended"))) {
            Ok(()) => waiting.push((go, thread)),
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

/// What to do about a refusal.
pub fn cure(cause: &io::Error, workers: usize) -> String {
    match cause.raw_os_error() {
        Some(libc::ENOMEM) => limits::more_memory(workers),
        Some(libc::EMFILE | libc::ENFILE) => limits::more_descriptors(workers),
        // The flags that the rings are set up with (io_uring_setup(2)).
        Some(libc::EINVAL) => "use Linux 6.0 or newer".to_owned(),
        Some(libc::ENOSYS) => "use a kernel with io_uring, or allow io_uring_setup in the seccomp profile".to_owned(),
        _ => "allow io_uring_setup, io_uring_enter and io_uring_register in the seccomp profile, and set the sysctl kernel.io_uring_disabled to 0".to_owned(),
    }
}

fn run(buffers: usize, report: &std_mpsc::Sender<io::Result<()>>, told: &std_mpsc::Receiver<Readers>) {
    let runtime = match patiently(runtime) {
        Ok(runtime) => runtime,
        Err(error) => return drop(report.send(Err(error))),
    };
    runtime.block_on(async {
        let pool = match patiently(|| register(buffers)) {
            Ok(pool) => pool,
            Err(error) => return drop(report.send(Err(error))),
        };
        if report.send(Ok(())).is_ok()
            && let Ok(readers) = told.recv()
        {
            let _watched = readers.sender.clone().guard_panics();
            read_all(Rc::new(Lane::new(readers, Buffers::new(pool, buffers)))).await;
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
    let deadline = Instant::now() + MEMLOCK_TIMEOUT;
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
    buffers: Buffers,
    scheduler: Scheduler<FixedBuf>,
    outbox: RefCell<Outbox>,
    concluded: Notify,
    /// Jobs taken for the hands that wait for one.
    given: RefCell<VecDeque<Job>>,
    called: Notify,
    /// Hands that wait and have not been called.
    idle: Cell<usize>,
    small: Intake,
    large: Intake,
}

/// The files of one of the two queues that a thread has in flight.
struct Intake {
    in_flight: Cell<usize>,
    /// How many it may have, up to `bound`: fewer while the system refuses descriptors or memory.
    most: Cell<usize>,
    bound: usize,
    /// One of them has ended.
    finished: Notify,
}

impl Intake {
    fn new(bound: usize) -> Self {
        Self { in_flight: Cell::new(0), most: Cell::new(bound), bound, finished: Notify::new() }
    }

    /// One has ended; the service lacked something for it, or it got on.
    fn end(&self, wanting: bool) {
        let left = self.in_flight.get() - 1;
        self.in_flight.set(left);
        let most = if wanting { left.min(self.most.get()).max(1) } else { (self.most.get() + 1).min(self.bound) };
        self.most.set(most);
        self.finished.notify_one();
    }
}

impl Lane {
    fn new(readers: Readers, buffers: Buffers) -> Self {
        Self {
            outbox: RefCell::new(Outbox::new(readers.clone())),
            small: Intake::new(readers.files.small),
            large: Intake::new(readers.files.large),
            readers,
            buffers,
            scheduler: Scheduler::default(),
            concluded: Notify::new(),
            given: RefCell::default(),
            called: Notify::new(),
            idle: Cell::new(0),
        }
    }

    /// Takes jobs from a queue until it ends, and waits for their ends.
    async fn take(self: &Rc<Self>, queue: &Queue, intake: &Intake, large: bool) {
        let has_room = || intake.in_flight.get() < self.readers.share(large).min(intake.most.get());
        while let Some(job) = queue.next(has_room, &intake.finished).await {
            intake.in_flight.set(intake.in_flight.get() + 1);
            self.give(job);
        }
        while intake.in_flight.get() > 0 {
            intake.finished.notified().await;
        }
    }

    /// Gives a job to a hand that waits, or to a new one.
    fn give(self: &Rc<Self>, job: Job) {
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
        let intake = if job.large { &self.large } else { &self.small };
        let wanting = matches!(read, Err(Unread::Wanting(_)));
        self.outbox.borrow_mut().conclude(job, began, read);
        self.concluded.notify_one();
        intake.end(wanting);
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
    let (hashing, handing_on, ending) = (Rc::clone(&lane), Rc::clone(&lane), Rc::clone(&lane));
    tokio_uring::spawn(async move { hashing.scheduler.run().await });
    tokio_uring::spawn(async move { handing_on.hand_on().await });
    tokio_uring::spawn(async move {
        ending.readers.deadline.wait().await;
        cancel_all().await;
    });
    let (small, large) = (&lane.readers.small, &lane.readers.large);
    join(lane.take(small, &lane.small, false), lane.take(large, &lane.large, true)).await;
    lane.outbox.borrow_mut().hand_on();
}

/// Takes back what the ring has not begun yet.
async fn cancel_all() {
    let entry = opcode::AsyncCancel2::new(types::CancelBuilder::any()).build();
    // SAFETY of what the entry points at: at nothing.
    UnsubmittedOneshot::new((), Cancelled, entry).submit().await;
}

/// Nothing is made of the completion of a cancellation: each operation tells its own end.
struct Cancelled;

impl OneshotOutputTransform for Cancelled {
    type Output = ();
    type StoredData = ();

    fn transform_oneshot_output(self, (): Self::StoredData, _: cqueue::Entry) -> Self::Output {}
}

/// A thread's registered buffers, and who may have how many at a time. First come, first served; large files together
/// never have more than half of them.
struct Buffers {
    pool: FixedBufPool<Chunk>,
    all: Semaphore,
    large: Semaphore,
}

/// The right to buffers, given back when it is dropped.
struct Held<'a> {
    _large: Option<SemaphorePermit<'a>>,
    all: SemaphorePermit<'a>,
}

impl Buffers {
    fn new(pool: FixedBufPool<Chunk>, count: usize) -> Self {
        Self { pool, all: Semaphore::new(count), large: Semaphore::new(count / 2) }
    }

    /// The right to so many buffers at once, [`CHUNKS_MAX`] at the most, which are half of the fewest that there
    /// can be: nobody who has some waits for more. One by one, files that wait in a row would get one each, and read a
    /// chunk at a time.
    async fn hold(&self, chunks: usize, large: bool) -> Result<Held<'_>, Unread> {
        let large = if large { Some(so_many_of(&self.large, chunks).await?) } else { None };
        Ok(Held { _large: large, all: so_many_of(&self.all, chunks).await? })
    }

    /// A buffer that there is a right to.
    async fn next(&self) -> FixedBuf {
        self.pool.next(CHUNK_BYTES).await
    }
}

async fn so_many_of(semaphore: &Semaphore, chunks: usize) -> Result<SemaphorePermit<'_>, Unread> {
    let permits = chunks.clamp(1, CHUNKS_MAX) as u32;
    // It is never closed.
    semaphore.acquire_many(permits).await.map_err(|closed| Unread::Failed(io::Error::other(closed)))
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
    lane.outbox.borrow().begin()?;
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
    let digests = hash(lane, turn, file, &before, job.large).await?;
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
    large: bool,
) -> Result<Digests, Unread> {
    if before.version.size <= CHUNK_BYTES as u64 {
        let _held = lane.buffers.hold(1, large).await?;
        return hash_small(lane, turn, file, before, lane.buffers.next().await).await;
    }
    // In a box: a hand whose files are small does not carry the room for this.
    Box::pin(hash_large(lane, turn, file, before, large)).await
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
        _ => Err(Unread::Busy(Why::Changed)), // it grew or shrank
    }
}

/// Turn by turn, with as many buffers as there are for it each time: between two turns whoever waits has them.
async fn hash_large(
    lane: &Lane,
    used: &mut Option<Box<Turn<FixedBuf>>>,
    file: &File,
    before: &Before,
    large: bool,
) -> Result<Digests, Unread> {
    let mut turn = begin(used);
    let size = before.version.size;
    let mut ahead = ReadAhead { asked: 0, size };
    let mut xxh128 = Xxh128Stream::new();
    let (mut at, mut chunks) = (0, 0);
    while at < size {
        lane.outbox.borrow().begin()?;
        ahead.ask(file, at);
        let held = lane.buffers.hold(chunks_left(size - at), large).await?;
        let mut buffers = [const { None }; CHUNKS_MAX];
        for place in buffers.iter_mut().take(held.all.num_permits()) {
            *place = Some(lane.buffers.next().await);
        }
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
                return Err(Unread::Busy(Why::Changed)); // it shrank or grew
            }
            if chunks % CHUNKS_BETWEEN_LOOKS == 0 {
                before.confirm(borrow(file))?;
            }
        }
        if at == size {
            turn.end();
        }
        turn = lane.scheduler.hash(turn).await;
        lane.readers.volume.read.touch();
        turn.buffers().for_each(drop);
    }
    Ok(Digests { sha256: used.insert(turn).digest(), xxh128: xxh128.finish_128() })
}

/// Chunks that so many bytes fill, [`CHUNKS_MAX`] at the most.
fn chunks_left(bytes: u64) -> usize {
    usize::try_from(bytes.div_ceil(CHUNK_BYTES as u64)).map_or(CHUNKS_MAX, |chunks| chunks.min(CHUNKS_MAX))
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
