//! Jobs of a volume on their way to its reading threads, and the deadline after which nothing is read any more.

mod jobs;

use std::sync;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;

pub use jobs::Queue;

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
mod interleavings;

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;
    use std::task::{Context, Waker};
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
