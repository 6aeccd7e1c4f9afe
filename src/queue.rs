//! A volume's jobs on their way to its reading threads, and how many of them one thread takes.

use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};

use async_channel::{Receiver, Sender};
use tokio::sync::Notify;

use crate::job::Job;

/// Jobs of one volume, all of them large files' or none. It never holds more than its source lets be in flight.
pub struct Queue {
    jobs: (Sender<Job>, Receiver<Job>),
    /// More have been handed in: each thread's share is another.
    arrived: Notify,
}

impl Queue {
    /// For so many jobs at most.
    #[must_use]
    pub fn new(bound: usize) -> Self {
        Self { jobs: async_channel::bounded(bound), arrived: Notify::new() }
    }

    /// Hands jobs to the reading threads, which have been counted: a thread's share is measured by the whole batch.
    pub fn hand_in(&self, batch: impl IntoIterator<Item = Job>) {
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

    /// The next job for a thread, once it has room. Whether it has is asked again when more jobs have been handed in, and
    /// when `changed` says so. Nothing at the end.
    pub async fn next(&self, has_room: impl Fn() -> bool, changed: &Notify) -> Option<Job> {
        loop {
            // Before the look: what is handed in after that look ends the wait.
            let arrived = pin!(self.arrived.notified());
            if has_room() {
                return self.jobs.1.recv().await.ok();
            }
            futures_util::future::select(arrived, pin!(changed.notified())).await;
        }
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
    use crate::files::directory::Directory;
    use crate::files::root::Root;
    use crate::files::version::Stamp;
    use crate::message::EventType;

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
            invalidate_first: false,
            large: false,
        };
        (0..count).map(job).collect()
    }

    /// Takes as many as there is room for; tells how many.
    fn take(queue: &Queue, most: usize, changed: &Notify) -> usize {
        let held = Cell::new(0);
        while let Some(Some(_)) = queue.next(|| held.get() < most, changed).now_or_never() {
            held.set(held.get() + 1);
        }
        held.get()
    }

    #[test]
    fn a_thread_that_has_no_room_learns_of_what_is_handed_in() {
        let (queue, changed, share) = (Queue::new(100), Notify::new(), Cell::new(3));
        queue.hand_in(jobs(5));
        assert_eq!((take(&queue, 3, &changed), take(&queue, 2, &changed)), (3, 2));
        // It holds its share of files that never end, and waits.
        let mut waiting = Box::pin(queue.next(|| share.get() > 3, &changed));
        assert!(waiting.as_mut().now_or_never().is_none());
        share.set(4);
        queue.hand_in(jobs(1));
        assert!(waiting.as_mut().now_or_never().is_some(), "nobody told the thread of its new share");
    }

    #[test]
    fn a_thread_whose_file_has_ended_takes_the_next_and_the_end_is_told() {
        let queue = Queue::new(100);
        let (changed, held) = (Notify::new(), Cell::new(1));
        queue.hand_in(jobs(2));
        let mut waiting = Box::pin(queue.next(|| held.get() < 1, &changed));
        assert!(waiting.as_mut().now_or_never().is_none());
        held.set(0);
        changed.notify_one();
        assert!(waiting.as_mut().now_or_never().is_some_and(|job| job.is_some()));
        queue.close();
        assert!(queue.wait_next().is_some(), "what is queued is still read");
        assert!(queue.wait_next().is_none());
    }
}
