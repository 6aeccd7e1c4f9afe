//! Jobs of a volume on their way to its reading threads, and the deadline after which nothing is read any more.

use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};

use async_channel::{Receiver, Sender};
use tokio::sync::Notify;

use crate::job::Job;

/// Jobs of one volume, either for large files or for all others. It is never full: it has room for all in flight.
pub struct Queue {
    jobs: (Sender<Job>, Receiver<Job>),
    /// Jobs were added, which changes each thread's share.
    arrived: Notify,
}

impl Queue {
    /// Makes a queue for `bound` jobs at most.
    #[must_use]
    pub fn new(bound: usize) -> Self {
        Self { jobs: async_channel::bounded(bound), arrived: Notify::new() }
    }

    /// Adds jobs for the reading threads. The caller has counted them before, because a thread's share is measured by
    /// the whole batch.
    ///
    /// # Panics
    /// When there are more jobs than the bound: the source would wait without end for one that was dropped here.
    pub fn push(&self, batch: impl IntoIterator<Item = Job>) {
        for job in batch {
            // Closed means that the process ends, and that nobody waits for the job any more.
            let full = self.jobs.0.try_send(job).is_err_and(|refused| refused.is_full());
            assert!(!full, "more jobs are in flight than the queue's bound");
        }
        self.arrived.notify_waiters();
    }

    /// Says that no more jobs come: the threads end once the queue is empty.
    pub fn close(&self) {
        self.jobs.0.close();
        self.arrived.notify_waiters();
    }

    /// The next job, if one is queued.
    #[must_use]
    pub fn try_next(&self) -> Option<Job> {
        self.jobs.1.try_recv().ok()
    }

    /// The next job, for which the thread blocks; `None` once the queue is closed and empty.
    #[must_use]
    pub fn wait_next(&self) -> Option<Job> {
        self.jobs.1.recv_blocking().ok()
    }

    /// The next job for a thread that has room for one; `None` once the queue is closed and empty. `has_room` is asked
    /// again whenever jobs were added, and on each notification of `changed`.
    pub async fn next(&self, has_room: impl Fn() -> bool, changed: &Notify) -> Option<Job> {
        loop {
            // Created before `has_room` is asked, so that jobs added after that end the wait.
            let arrived = pin!(self.arrived.notified());
            if has_room() {
                return self.jobs.1.recv().await.ok();
            }
            futures_util::future::select(arrived, pin!(changed.notified())).await;
        }
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

    use futures_util::FutureExt;

    use super::*;
    use crate::job::tests::jobs;

    /// Takes as many jobs as there is room for and returns their number.
    fn take(queue: &Queue, most: usize, changed: &Notify) -> usize {
        let held = Cell::new(0);
        while let Some(Some(_)) = queue.next(|| held.get() < most, changed).now_or_never() {
            held.set(held.get() + 1);
        }
        held.get()
    }

    #[test]
    fn a_thread_without_room_is_woken_by_added_jobs() {
        let (queue, changed, share) = (Queue::new(100), Notify::new(), Cell::new(3));
        queue.push(jobs(5));
        assert_eq!((take(&queue, 3, &changed), take(&queue, 2, &changed)), (3, 2));
        // The thread has its share of files that never end, and waits.
        let mut waiting = Box::pin(queue.next(|| share.get() > 3, &changed));
        assert!(waiting.as_mut().now_or_never().is_none());
        share.set(4);
        queue.push(jobs(1));
        assert!(waiting.as_mut().now_or_never().is_some(), "the thread was not woken for its new share");
    }

    #[test]
    fn a_thread_whose_file_has_ended_takes_the_next_and_learns_of_the_end() {
        let queue = Queue::new(100);
        let (changed, held) = (Notify::new(), Cell::new(1));
        queue.push(jobs(2));
        let mut waiting = Box::pin(queue.next(|| held.get() < 1, &changed));
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
        Queue::new(2).push(jobs(3));
    }

    #[test]
    fn a_closed_queue_takes_no_jobs_and_does_not_panic() {
        let queue = Queue::new(2);
        queue.close();
        queue.push(jobs(3));
        assert!(queue.try_next().is_none());
    }
}
