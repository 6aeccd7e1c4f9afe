//! Jobs of a volume on their way to its reading threads, and the deadline after which nothing is read any more.
//!
//! A wake-up of a sleeping thread costs more than reading a small file, so a few jobs wake one thread, and more only as
//! more jobs wait. None is forgotten: while jobs are queued, each waiting thread either has been woken since they came,
//! or has said since then that it has no room.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::iter;
use std::mem;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use futures_util::future::{Either, select};
use tokio::sync::Notify;

use crate::job::Job;

/// Jobs of one volume, either for large files or for all others. It is never full: it has room for all in flight.
pub struct Queue {
    inner: Mutex<Inner>,
    /// For threads that block.
    added: Condvar,
    bound: usize,
    /// How many jobs one thread is woken for.
    at_once: usize,
}

#[derive(Default)]
struct Inner {
    jobs: VecDeque<Job>,
    closed: bool,
    /// The number of times that jobs were added.
    additions: u64,
    /// Tasks that wait for a job, those that came last at the end.
    waiting: Vec<Waiting>,
    /// The number of the last of them.
    last: u64,
    /// Threads that block until there is a job.
    blocked: usize,
}

/// A task that waits for a job.
struct Waiting {
    number: u64,
    waker: Waker,
    /// How many jobs its thread has, if that has room for one more. If not, it may have by now, because more jobs make
    /// each thread's share larger.
    room: Option<usize>,
    /// [`Inner::additions`] at the time when it found out.
    seen: u64,
}

impl Queue {
    /// Makes a queue for `bound` jobs at most, of which `at_once` are enough for one thread to be woken for.
    #[must_use]
    pub fn new(bound: usize, at_once: usize) -> Self {
        assert!(at_once > 0, "a job that nobody is woken for");
        Self { inner: Mutex::default(), added: Condvar::new(), bound, at_once }
    }

    /// See [`Queue::new`].
    #[must_use]
    pub fn at_once(&self) -> usize {
        self.at_once
    }

    /// Adds jobs for the reading threads. The caller has counted them before, because a thread's share is measured by
    /// the whole batch.
    ///
    /// # Panics
    /// When there are more jobs than the bound: the source would wait without end for one that was dropped here.
    pub fn push(&self, batch: impl IntoIterator<Item = Job>) {
        let mut inner = self.lock();
        if inner.closed {
            return; // the process ends, and nobody waits for the jobs any more
        }
        let before = inner.jobs.len();
        inner.jobs.extend(batch);
        assert!(inner.jobs.len() <= self.bound, "more jobs are in flight than the queue's bound");
        inner.additions += 1;
        let added = inner.jobs.len() - before;
        let tasks = inner.wake(added.div_ceil(self.at_once));
        let blocked = added.min(inner.blocked);
        // Woken without the lock, which each of them needs first.
        drop(inner);
        tasks.into_iter().for_each(Waker::wake);
        (0..blocked).for_each(|_| self.added.notify_one());
    }

    /// Says that no more jobs come: the threads end once the queue is empty.
    pub fn close(&self) {
        let mut inner = self.lock();
        inner.closed = true;
        let tasks = mem::take(&mut inner.waiting);
        drop(inner);
        tasks.into_iter().for_each(|task| task.waker.wake());
        self.added.notify_all();
    }

    /// The next job, if one is queued.
    #[must_use]
    pub fn try_next(&self) -> Option<Job> {
        self.lock().jobs.pop_front()
    }

    /// The next job, for which the thread blocks; `None` once the queue is closed and empty.
    #[must_use]
    pub fn wait_next(&self) -> Option<Job> {
        let mut inner = self.lock();
        loop {
            if let Some(job) = inner.jobs.pop_front() {
                return Some(job);
            }
            if inner.closed {
                return None;
            }
            inner.blocked += 1;
            inner = self.added.wait(inner).unwrap_or_else(PoisonError::into_inner);
            inner.blocked -= 1;
        }
    }

    /// The next job for a thread that has room for one; `None` once the queue is closed and empty. `room` says how many
    /// jobs the thread has, or `None` where it has no room for one more. It is asked again when jobs were added, and on
    /// each notification of `changed`.
    pub async fn next(&self, room: impl Fn() -> Option<usize>, changed: &Notify) -> Option<Job> {
        let mut place = Place { queue: self, number: None };
        loop {
            let added = pin!(poll_fn(|context| place.poll(&room, context)));
            let changed = pin!(changed.notified());
            if let Either::Left((job, _)) = select(added, changed).await {
                return job;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // No change of it can panic half-way.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Takes out so many waiting tasks, to be woken.
    fn wake(&mut self, most: usize) -> Vec<Waker> {
        let taken = iter::from_fn(|| self.first_to_wake().map(|at| self.waiting.remove(at).waker));
        taken.take(most).collect()
    }

    /// A thread with room, with the fewest jobs, because one of these may hold it up. Of several with as many, the one that
    /// came last, because its memory is in cache. Where none has room, one that may have by now.
    fn first_to_wake(&self) -> Option<usize> {
        let tasks = || self.waiting.iter().enumerate().rev();
        let with_room = tasks().filter_map(|(at, task)| Some((task.room?, at))).min_by_key(|(jobs, _)| *jobs);
        let others = || tasks().find(|(_, task)| task.room.is_none() && task.seen < self.additions);
        with_room.map(|(_, at)| at).or_else(|| others().map(|(at, _)| at))
    }
}

/// The place of a task among those that wait. Given up, it passes on what it was woken for.
struct Place<'a> {
    queue: &'a Queue,
    /// The task's number, once it has waited.
    number: Option<u64>,
}

impl Place<'_> {
    /// A job, if there is one and the thread has room. If not, the task waits with `context`.
    fn poll(&mut self, room: &impl Fn() -> Option<usize>, context: &Context<'_>) -> Poll<Option<Job>> {
        let mut inner = self.queue.lock();
        self.leave(&mut inner);
        let room = room();
        if room.is_some()
            && let Some(job) = inner.jobs.pop_front()
        {
            return Poll::Ready(Some(job));
        }
        if inner.closed && inner.jobs.is_empty() {
            return Poll::Ready(None);
        }
        inner.last += 1;
        self.number = Some(inner.last);
        let waiting = Waiting { number: inner.last, waker: context.waker().clone(), room, seen: inner.additions };
        inner.waiting.push(waiting);
        // What this thread has no room for, another one may have.
        let others = if inner.jobs.is_empty() { Vec::new() } else { inner.wake(1) };
        drop(inner);
        others.into_iter().for_each(Waker::wake);
        Poll::Pending
    }

    /// Returns whether the task was woken since it waits.
    fn leave(&mut self, inner: &mut Inner) -> bool {
        let Some(number) = self.number.take() else { return false };
        let at = inner.waiting.iter().position(|task| task.number == number);
        at.map(|at| inner.waiting.remove(at)).is_none()
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut inner = self.queue.lock();
        let others = if self.leave(&mut inner) && !inner.jobs.is_empty() { inner.wake(1) } else { Vec::new() };
        drop(inner);
        others.into_iter().for_each(Waker::wake);
    }
}

/// The time after which no file, and no further piece of a file, is begun. A read that the kernel cannot cancel delays
/// the end of the process for as long as it takes (a FUSE server that was asked; a hard NFS mount).
#[derive(Debug, Default)]
pub struct Deadline {
    over: AtomicBool,
    ended: Notify,
}

impl Deadline {
    /// Ends the time and wakes everyone who waits for that.
    pub fn end(&self) {
        self.over.store(true, Ordering::SeqCst);
        self.ended.notify_waiters();
    }

    /// Whether the time is over.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// Waits until the time is over.
    pub async fn wait(&self) {
        loop {
            let ended = self.ended.notified();
            if self.over.load(Ordering::SeqCst) {
                return;
            }
            ended.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;
    use std::thread;

    use futures_util::FutureExt;
    use futures_util::future::LocalBoxFuture;
    use proptest::prelude::*;

    use super::*;
    use crate::job::tests::jobs;

    /// Takes as many jobs as there is room for and returns their number.
    fn take(queue: &Queue, most: usize, changed: &Notify) -> usize {
        let held = Cell::new(0);
        while let Some(Some(_)) = queue.next(|| Some(held.get()).filter(|held| *held < most), changed).now_or_never() {
            held.set(held.get() + 1);
        }
        held.get()
    }

    #[test]
    fn a_thread_without_room_is_woken_by_added_jobs() {
        let (queue, changed, share) = (Queue::new(100, 1), Notify::new(), Cell::new(3));
        queue.push(jobs(5));
        assert_eq!((take(&queue, 3, &changed), take(&queue, 2, &changed)), (3, 2));
        // The thread has its share of files that never end, and waits.
        let mut waiting = Box::pin(queue.next(|| Some(3).filter(|held| *held < share.get()), &changed));
        assert!(waiting.as_mut().now_or_never().is_none());
        share.set(4);
        queue.push(jobs(1));
        assert!(waiting.as_mut().now_or_never().is_some(), "the thread was not woken for its new share");
    }

    #[test]
    fn a_thread_whose_file_has_ended_takes_the_next_and_learns_of_the_end() {
        let queue = Queue::new(100, 1);
        let (changed, held) = (Notify::new(), Cell::new(1));
        queue.push(jobs(2));
        let mut waiting = Box::pin(queue.next(|| Some(held.get()).filter(|held| *held < 1), &changed));
        assert!(waiting.as_mut().now_or_never().is_none());
        held.set(0);
        changed.notify_one();
        assert!(waiting.as_mut().now_or_never().is_some_and(|job| job.is_some()));
        queue.close();
        assert!(queue.wait_next().is_some(), "queued jobs are still read");
        assert!(queue.wait_next().is_none());
    }

    #[test]
    #[should_panic(expected = "more jobs are in flight than the queue's bound")]
    fn a_job_that_finds_the_queue_full_is_not_dropped_silently() {
        Queue::new(2, 1).push(jobs(3));
    }

    #[test]
    fn a_closed_queue_takes_no_jobs_and_does_not_panic() {
        let queue = Queue::new(2, 1);
        queue.close();
        queue.push(jobs(3));
        assert!(queue.try_next().is_none());
    }

    /// A thread, as the queue sees it: a task that takes jobs, and files that end when they like.
    struct Thread<'a> {
        held: Rc<Cell<usize>>,
        ended: Rc<Notify>,
        woken: Arc<AtomicUsize>,
        take: LocalBoxFuture<'a, ()>,
        done: bool,
    }

    impl<'a> Thread<'a> {
        fn new(queue: &'a Queue, share: &'a dyn Fn() -> usize) -> Self {
            let (held, ended) = (Rc::new(Cell::new(0)), Rc::new(Notify::new()));
            let (its, finished) = (Rc::clone(&held), Rc::clone(&ended));
            let take = async move {
                let room = || Some(its.get()).filter(|held| *held < share());
                while queue.next(room, &finished).await.is_some() {
                    its.set(its.get() + 1);
                }
            };
            let mut thread = Self { held, ended, woken: Arc::default(), take: take.boxed_local(), done: false };
            thread.run();
            thread
        }

        /// Polls the task, as its runtime does once it was woken.
        fn run(&mut self) {
            self.woken.store(0, Ordering::SeqCst);
            let waker = Waker::from(Arc::new(Count(Arc::clone(&self.woken))));
            self.done = self.done || self.take.as_mut().poll(&mut Context::from_waker(&waker)).is_ready();
        }

        fn is_woken(&self) -> bool {
            self.woken.load(Ordering::SeqCst) > 0
        }
    }

    struct Count(Arc<AtomicUsize>);

    impl std::task::Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn a_few_jobs_wake_one_thread_and_many_wake_all() {
        let queue = Queue::new(100, 4);
        let share = || 4;
        let mut threads: Vec<_> = (0..3).map(|_| Thread::new(&queue, &share)).collect();
        let woken = |threads: &[Thread<'_>]| threads.iter().map(Thread::is_woken).collect::<Vec<_>>();
        queue.push(jobs(4));
        assert_eq!(woken(&threads), [false, false, true], "the last that came is woken alone");
        threads[2].run();
        assert_eq!((threads[2].held.get(), woken(&threads)), (4, vec![false; 3]));
        queue.push(jobs(1));
        assert_eq!(woken(&threads), [false, true, false], "not the one that is at work");
        threads[1].run();
        threads[2].held.set(0);
        threads[2].ended.notify_one();
        threads[2].run();
        queue.push(jobs(9));
        assert_eq!(woken(&threads), [true; 3]);
    }

    #[test]
    fn what_a_woken_thread_leaves_wakes_the_next() {
        let queue = Queue::new(100, 4);
        let share = || 1;
        let mut threads: Vec<_> = (0..3).map(|_| Thread::new(&queue, &share)).collect();
        queue.push(jobs(3));
        for number in [2, 1, 0] {
            assert!(threads[number].is_woken());
            threads[number].run();
        }
        assert!(queue.try_next().is_none());
    }

    #[test]
    fn a_place_that_is_given_up_passes_its_wake_up_on() {
        let queue = Queue::new(100, 4);
        let share = || 4;
        let mut threads: Vec<_> = (0..2).map(|_| Thread::new(&queue, &share)).collect();
        queue.push(jobs(1));
        assert!(threads[1].is_woken() && !threads[0].is_woken());
        threads.pop();
        assert!(threads[0].is_woken());
    }

    #[derive(Debug, Clone)]
    enum Step {
        Push(usize),
        /// A thread that was woken runs.
        Run(usize),
        /// A file of a thread ends.
        End(usize),
        /// The share of each thread changes.
        Share(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (1..8usize).prop_map(Step::Push),
            any::<usize>().prop_map(Step::Run),
            any::<usize>().prop_map(Step::End),
            (1..9usize).prop_map(Step::Share),
        ]
    }

    proptest! {
        /// Whatever the order of events: once each woken thread has run, no job waits that a thread has room for.
        #[test]
        fn no_wake_up_is_lost(
            count in 1..5usize,
            at_once in 1..6usize,
            steps in prop::collection::vec(step(), 1..60),
        ) {
            let share = Cell::new(1);
            // A larger share comes with more jobs, as it does in the readers.
            let next_share = Cell::new(1);
            let shared = || share.get();
            let queue = Queue::new(1000, at_once);
            let mut threads: Vec<_> = (0..count).map(|_| Thread::new(&queue, &shared)).collect();
            for step in steps {
                match step {
                    Step::Push(count) => {
                        share.set(next_share.get());
                        queue.push(jobs(count));
                    }
                    Step::Run(at) => {
                        let thread = &mut threads[at % count];
                        if thread.is_woken() {
                            thread.run();
                        }
                    }
                    Step::End(at) => {
                        let thread = &threads[at % count];
                        if thread.held.get() > 0 {
                            thread.held.set(thread.held.get() - 1);
                            thread.ended.notify_one();
                        }
                    }
                    Step::Share(size) => next_share.set(size),
                }
            }
            while let Some(thread) = threads.iter_mut().find(|thread| thread.is_woken()) {
                thread.run();
            }
            let room = threads.iter().any(|thread| thread.held.get() < share.get());
            prop_assert!(!room || queue.try_next().is_none(), "a job waits, and a thread with room sleeps");
            queue.close();
            threads.iter_mut().for_each(|thread| thread.held.set(0));
            while let Some(thread) = threads.iter_mut().find(|thread| thread.is_woken() && !thread.done) {
                thread.run();
                thread.held.set(0);
                thread.ended.notify_one();
            }
            prop_assert!(threads.iter().all(|thread| thread.done), "a thread does not learn of the end");
        }
    }

    #[test]
    fn threads_of_both_kinds_take_every_job() {
        let queue = Arc::new(Queue::new(100_000, 4));
        let taken = Arc::new(AtomicUsize::new(0));
        let taking = (0..4).map(|number| {
            let (queue, taken) = (Arc::clone(&queue), Arc::clone(&taken));
            thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
                let never = Notify::new();
                let next = || runtime.block_on(queue.next(|| Some(0), &never));
                while (if number % 2 == 0 { next() } else { queue.wait_next() }).is_some() {
                    taken.fetch_add(1, Ordering::SeqCst);
                }
            })
        });
        let taking: Vec<_> = taking.collect();
        for count in 0..200 {
            queue.push(jobs(count % 7));
            if count % 3 == 0 {
                // Each job is taken although no other comes.
                while queue.lock().jobs.front().is_some() {
                    thread::yield_now();
                }
            }
        }
        queue.close();
        taking.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(taken.load(Ordering::SeqCst), (0..200).map(|count| count % 7).sum::<usize>());
    }
}
