//! The queue itself, which threads and tasks wait at.
//!
//! A wake-up of a sleeping thread costs more than reading a small file, so a few jobs wake one thread, and more only as
//! more jobs wait. None is forgotten: while jobs are queued, each waiting thread either has been woken since they came,
//! or has said since then that it has no room. `interleavings.rs` tries many orders of it.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::iter;
use std::mem;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use futures_util::future::{Either, select};
use tokio::sync::Notify;

use super::sync::{Condvar, Mutex, MutexGuard, PoisonError};
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
pub(super) struct Inner {
    pub jobs: VecDeque<Job>,
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

    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
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
