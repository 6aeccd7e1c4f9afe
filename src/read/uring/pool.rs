//! The tasks of one thread: each reads a file at a time, and there are as many as there are files in flight.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;
use std::thread;
use std::time::Instant;

use futures_util::future::join;
use tokio::sync::Notify;

use super::file::{self, Scratch};
use super::operations::cancel_all;
use super::worker::Worker;
use crate::files::unread::Unread;
use crate::hash::Digests;
use crate::job::Job;
use crate::mailbox::ReportSender;
use crate::queue::Queue;
use crate::read::verify::Before;

/// The tasks of one thread, and the jobs on their way to them.
pub(super) struct Pool {
    worker: Worker,
    /// A job was concluded.
    concluded: Notify,
    /// Jobs for tasks that were woken or spawned and have not run yet.
    jobs: RefCell<VecDeque<Job>>,
    woken: Notify,
    /// The number of tasks that wait and have not been woken.
    idle: Cell<usize>,
    small: Intake,
    large: Intake,
}

impl Pool {
    pub(super) fn new(worker: Worker) -> Self {
        Self {
            small: Intake::new(worker.readers.files.small),
            large: Intake::new(worker.readers.files.large),
            worker,
            concluded: Notify::new(),
            jobs: RefCell::default(),
            woken: Notify::new(),
            idle: Cell::new(0),
        }
    }

    /// Takes jobs from a queue until it ends, then waits until they are concluded.
    async fn take(self: &Rc<Self>, queue: &Queue, intake: &Intake, large: bool) {
        let most = || self.worker.readers.share(large).min(intake.limit.get());
        let room = || Some(intake.in_flight.get()).filter(|in_flight| *in_flight < most());
        while let Some(job) = queue.next(room, &intake.finished).await {
            debug_assert!(job.large == large, "each queue has jobs of its own");
            intake.begin();
            self.assign(job);
        }
        while intake.in_flight.get() > 0 {
            intake.finished.notified().await;
        }
    }

    /// Assigns a job to a task that waits, or to a new one.
    fn assign(self: &Rc<Self>, job: Job) {
        self.jobs.borrow_mut().push_back(job);
        if self.idle.get() > 0 {
            self.idle.set(self.idle.get() - 1);
            self.woken.notify_one();
        } else {
            spawn(&self.worker.readers.sender, read_files(Rc::clone(self)));
        }
    }

    async fn next(&self) -> Job {
        loop {
            if let Some(job) = self.jobs.borrow_mut().pop_front() {
                return job;
            }
            self.idle.set(self.idle.get() + 1);
            self.woken.notified().await;
        }
    }

    fn conclude(&self, job: Job, began: Instant, read: Result<(Before, Digests), Unread>) {
        let intake = if job.large { &self.large } else { &self.small };
        let wanting = matches!(read, Err(Unread::Wanting(_)));
        self.worker.outbox.borrow_mut().conclude(job, began, read);
        self.concluded.notify_one();
        intake.end(wanting);
    }

    /// Flushes the outbox whenever jobs were concluded, and never ends. Like the scheduler it is a task of its own:
    /// woken by the first file of a round, it runs after all tasks that are ready to conclude theirs.
    async fn flush(&self) {
        loop {
            self.concluded.notified().await;
            self.worker.outbox.borrow_mut().flush();
        }
    }
}

/// The files of one of the two queues that a thread has in flight.
struct Intake {
    in_flight: Cell<usize>,
    /// How many it may have, from 1 to `bound`: fewer while the system refuses descriptors or memory.
    limit: Cell<usize>,
    bound: usize,
    /// One of them has ended.
    finished: Notify,
}

impl Intake {
    fn new(bound: usize) -> Self {
        Self { in_flight: Cell::new(0), limit: Cell::new(bound), bound, finished: Notify::new() }
    }

    fn begin(&self) {
        self.in_flight.set(self.in_flight.get() + 1);
        debug_assert!(self.in_flight.get() <= self.bound, "a thread has more files in flight than its bound");
    }

    /// Ends one file. `wanting`: the service lacked descriptors or memory for it.
    fn end(&self, wanting: bool) {
        debug_assert!(self.in_flight.get() > 0, "a file ends once");
        let left = self.in_flight.get() - 1;
        self.in_flight.set(left);
        let limit = if wanting { left.min(self.limit.get()).max(1) } else { (self.limit.get() + 1).min(self.bound) };
        self.limit.set(limit);
        self.finished.notify_one();
    }
}

/// A job that a task reads. The source waits for the report of each job, so one that is dropped without a result (a `?`
/// or a `select!` too many, a canceled task) is concluded as failed. The guard is here and not in [`Job`], because only
/// here a job lives across an await while it is read. A drop in a later stage must not report: the message may have
/// been published, so the job has to count as unconfirmed. A panic needs no report: the guard of [`spawn`] sends one.
struct Reading<'a> {
    pool: &'a Pool,
    job: Option<Job>,
    began: Instant,
}

impl<'a> Reading<'a> {
    fn new(pool: &'a Pool, job: Job) -> Self {
        Self { pool, job: Some(job), began: Instant::now() }
    }

    async fn read(&self, scratch: &mut Scratch) -> Result<(Before, Digests), Unread> {
        let job = self.job.as_ref().expect("a job is there until it is concluded");
        file::read(&self.pool.worker, scratch, job).await
    }

    fn conclude(mut self, read: Result<(Before, Digests), Unread>) {
        if let Some(job) = self.job.take() {
            self.pool.conclude(job, self.began, read);
        }
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            return;
        }
        if let Some(job) = self.job.take() {
            let lost = io::Error::other("reading it was dropped without a result");
            self.pool.conclude(job, self.began, Err(Unread::Failed(lost)));
        }
    }
}

/// Reads files until both queues have ended.
pub(super) async fn read_all(pool: Rc<Pool>) {
    let readers = &pool.worker.readers;
    let (hashing, flushing, ending) = (Rc::clone(&pool), Rc::clone(&pool), Rc::clone(&pool));
    spawn(&readers.sender, async move { hashing.worker.scheduler.run().await });
    spawn(&readers.sender, async move { flushing.flush().await });
    spawn(&readers.sender, async move {
        ending.worker.readers.deadline.wait().await;
        cancel_all().await;
    });
    join(pool.take(&readers.small, &pool.small, false), pool.take(&readers.large, &pool.large, true)).await;
    pool.worker.outbox.borrow_mut().flush();
}

/// Spawns a task whose panic ends the process. tokio catches it, so that the thread would run on without the task, and
/// the source would wait for its job.
fn spawn(sender: &ReportSender, task: impl Future<Output = ()> + 'static) {
    let guard = sender.guard_panics();
    tokio_uring::spawn(async move {
        let _guard = guard;
        task.await;
    });
}

/// A task: it reads one file after the other, with the same few boxes.
async fn read_files(pool: Rc<Pool>) {
    let mut scratch = Scratch::default();
    loop {
        let reading = Reading::new(&pool, pool.next().await);
        let read = reading.read(&mut scratch).await;
        reading.conclude(read);
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::sync::Arc;

    use tokio::task::LocalSet;
    use tokio_uring::buf::fixed::FixedBufPool;

    use super::*;
    use crate::files::directory::Directory;
    use crate::files::root::Root;
    use crate::files::version::Timestamp;
    use crate::job::{Outcome, Report};
    use crate::mailbox::{Mailbox, Notice};
    use crate::message::EventType;
    use crate::progress::{Progress, Volume};
    use crate::queue::Deadline;
    use crate::read::limits::{self, BUFFERS_MIN};
    use crate::read::readers::Readers;
    use crate::read::uring::worker::Buffers;

    /// A pool without a ring, and the mailbox that it reports to. A job is in flight.
    fn pool() -> (Rc<Pool>, Mailbox, Job) {
        let root = Arc::new(Root::new(File::open("/").unwrap().into(), b"/"));
        let (sender, mailbox) = Mailbox::new(8).unwrap();
        let readers = Readers {
            roots: vec![Arc::clone(&root)],
            small: Arc::new(Queue::new(8, 1)),
            large: Arc::new(Queue::new(8, 1)),
            volume: Arc::new(Volume::new(String::new())),
            progress: Arc::new(Progress::default()),
            workers: 1,
            files: limits::files_each(1, None),
            plain_reads: false,
            deadline: Arc::new(Deadline::default()),
            messages: None,
            sender: sender.into(),
        };
        readers.volume.read.add(1);
        let buffers = Buffers::new(FixedBufPool::new([]), BUFFERS_MIN);
        let pool = Rc::new(Pool::new(Worker::new(readers, buffers)));
        pool.small.begin();
        let job = Job::new(
            Arc::new(Directory::new(&root, b"")),
            Arc::from(&b"file"[..]),
            EventType::Create,
            Timestamp { seconds: 0, nanoseconds: 0 },
        );
        (pool, mailbox, job)
    }

    fn reports(pool: &Pool, mailbox: &mut Mailbox) -> Vec<Report> {
        pool.worker.outbox.borrow_mut().flush();
        assert_eq!((pool.small.in_flight.get(), pool.worker.readers.volume.read.waiting()), (0, 0));
        match mailbox.take() {
            Some(Notice::Reports(reports)) if mailbox.take().is_none() => reports,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_job_that_is_dropped_without_a_result_is_reported_as_failed() {
        let (pool, mut mailbox, job) = pool();
        let task = Rc::clone(&pool);
        let reading = async move {
            let _reading = Reading::new(&task, job);
            std::future::pending::<()>().await;
        };
        let mut reading = Box::pin(reading);
        assert!(futures_util::FutureExt::now_or_never(reading.as_mut()).is_none());
        assert!(mailbox.take().is_none());
        drop(reading);
        let reports = reports(&pool, &mut mailbox);
        assert!(matches!(&reports[..], [Report { outcome: Outcome::Unread(Unread::Failed(_)), .. }]), "{reports:?}");
    }

    #[test]
    fn a_job_with_a_result_has_one_report() {
        let (pool, mut mailbox, job) = pool();
        Reading::new(&pool, job).conclude(Err(Unread::Gone));
        let reports = reports(&pool, &mut mailbox);
        assert!(matches!(&reports[..], [Report { outcome: Outcome::Unread(Unread::Gone), .. }]), "{reports:?}");
    }

    #[test]
    fn a_task_that_panics_is_a_failure_of_the_process() {
        let (pool, mut mailbox, job) = pool();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        LocalSet::new().block_on(&runtime, async {
            let task = Rc::clone(&pool);
            spawn(&pool.worker.readers.sender, async move {
                let _reading = Reading::new(&task, job);
                panic!("of a test");
            });
            tokio::task::yield_now().await;
        });
        assert!(matches!(mailbox.take(), Some(Notice::Failed(_))));
        assert!(mailbox.take().is_none());
    }
}
