//! A volume's jobs on their way to its reading threads, and how many of them one thread takes.

use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use async_channel::{Receiver, Sender};
use tokio::sync::Notify;

use crate::pipeline::Job;

/// Jobs of one volume, all of them large files' or none. It never holds more than its source lets be in flight.
pub struct Queue {
    jobs: (Sender<Job>, Receiver<Job>),
    /// Handed in and not yet read.
    outstanding: AtomicUsize,
    /// More have been handed in: each thread's share is another.
    arrived: Notify,
}

impl Queue {
    /// For so many jobs at most.
    #[must_use]
    pub fn new(bound: usize) -> Self {
        Self { jobs: async_channel::bounded(bound), outstanding: AtomicUsize::new(0), arrived: Notify::new() }
    }

    /// Hands jobs to the reading threads.
    pub fn hand_in(&self, batch: impl ExactSizeIterator<Item = Job>) {
        // Counted before the first is taken: a thread's share is measured by the whole batch.
        self.outstanding.fetch_add(batch.len(), Ordering::Relaxed);
        for job in batch {
            // Never full, by the source's bound; closed only at the end.
            let _ = self.jobs.0.try_send(job);
        }
        self.arrived.notify_waiters();
    }

    /// No more jobs come: the threads end when they have read what is queued.
    pub fn close(&self) {
        self.jobs.0.close();
        self.arrived.notify_waiters();
    }

    /// The next job, if there is one now.
    #[must_use]
    pub fn try_next(&self) -> Option<Job> {
        self.jobs.1.try_recv().ok()
    }

    /// The next job; the thread waits for it. Nothing at the end.
    #[must_use]
    pub fn wait_next(&self) -> Option<Job> {
        self.jobs.1.recv_blocking().ok()
    }

    /// The next job for a thread of so many that has `room(share)` for it: the share is how many of the outstanding files
    /// one thread may take, so that a few do not all end up with the thread that was quicker to ask. `changed` tells that
    /// there may be more room than before. Nothing at the end.
    pub async fn next(&self, threads: usize, room: impl Fn(usize) -> bool, changed: &Notify) -> Option<Job> {
        loop {
            // Before the look at the share: what is handed in after that look ends the wait.
            let arrived = pin!(self.arrived.notified());
            if room(self.share(threads)) {
                return self.jobs.1.recv().await.ok();
            }
            futures_util::future::select(arrived, pin!(changed.notified())).await;
        }
    }

    /// One that was taken has been read.
    pub fn done(&self) {
        self.outstanding.fetch_sub(1, Ordering::Relaxed);
    }

    fn share(&self, threads: usize) -> usize {
        self.outstanding.load(Ordering::Relaxed).div_ceil(threads).max(1)
    }
}

/// After it nothing is begun any more: no file, and no further piece of one. A read that the kernel cannot break off
/// holds up the process's end for as long as it takes (a FUSE server that has been asked; a hard NFS mount).
#[derive(Debug, Default)]
pub struct Deadline {
    over: AtomicBool,
    told: Notify,
}

impl Deadline {
    /// It is over.
    pub fn end(&self) {
        self.over.store(true, Ordering::SeqCst);
        self.told.notify_waiters();
    }

    /// Whether it is over.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// Waits for it.
    pub async fn wait(&self) {
        loop {
            let told = self.told.notified();
            if self.over.load(Ordering::SeqCst) {
                return;
            }
            told.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::fs::File;
    use std::sync::Arc;

    use futures_util::FutureExt;

    use super::*;
    use crate::message::EventType;
    use crate::read::stable::{Root, Stamp};
    use crate::watch::directory::Directory;

    fn jobs(count: usize) -> Vec<Job> {
        let root = Arc::new(Root::new(File::open("/").unwrap().into(), b"/"));
        let directory = Arc::new(Directory::new(&root, b""));
        let job = |number: usize| Job {
            directory: Arc::clone(&directory),
            name: number.to_string().into_bytes().into(),
            event: EventType::Create,
            seen_at: Stamp { seconds: 0, nanoseconds: 0 },
            known: None,
            within: None,
            doubted: false,
            large: false,
        };
        (0..count).map(job).collect()
    }

    /// Takes as many as there is room for; tells how many.
    fn take(queue: &Queue, threads: usize, held: &Cell<usize>, changed: &Notify) -> usize {
        let mut taken = 0;
        while let Some(Some(_)) = queue.next(threads, |share| held.get() < share, changed).now_or_never() {
            held.set(held.get() + 1);
            taken += 1;
        }
        taken
    }

    #[test]
    fn a_few_files_are_shared_out_and_a_new_one_finds_a_thread_that_has_room() {
        let queue = Queue::new(100);
        let (changed, a, b) = (Notify::new(), Cell::new(0), Cell::new(0));
        queue.hand_in(jobs(5).into_iter());
        assert_eq!((take(&queue, 2, &a, &changed), take(&queue, 2, &b, &changed)), (3, 2));
        // Both hold their share of files that never end, and wait.
        let mut waiting = Box::pin(queue.next(2, |share| b.get() < share, &changed));
        assert!(waiting.as_mut().now_or_never().is_none());
        queue.hand_in(jobs(1).into_iter());
        assert!(waiting.as_mut().now_or_never().is_some(), "nobody told the thread of its new share");
    }

    #[test]
    fn a_thread_whose_file_has_ended_takes_the_next_and_the_end_is_told() {
        let queue = Queue::new(100);
        let (changed, held) = (Notify::new(), Cell::new(1));
        queue.hand_in(jobs(2).into_iter());
        let mut waiting = Box::pin(queue.next(2, |_| held.get() < 1, &changed));
        assert!(waiting.as_mut().now_or_never().is_none());
        held.set(0);
        changed.notify_one();
        assert!(waiting.as_mut().now_or_never().is_some_and(|job| job.is_some()));
        queue.close();
        assert!(queue.wait_next().is_some(), "what is queued is still read");
        assert!(queue.wait_next().is_none());
    }
}
