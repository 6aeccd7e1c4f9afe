//! The queue under a model checker: shuttle runs many orders of the threads' steps, chosen at random, and with few
//! changes of the thread at the worst places (PCT).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use shuttle::future::block_on;
use shuttle::{sync, thread};
use tokio::sync::Notify;

#[allow(dead_code, clippy::duplicate_mod)]
#[path = "jobs.rs"]
mod jobs;

use jobs::Queue;

use crate::job::tests::jobs as some_jobs;

/// Orders of each model and each way to choose them.
const ORDERS: usize = 1_500;
/// Changes of the thread in an order of PCT. Most faults of this kind need one or two.
const CHANGES: usize = 3;

fn check(name: &str, model: fn()) {
    shuttle::check_random(model, ORDERS);
    shuttle::check_pct(model, ORDERS, CHANGES);
    eprintln!("{name}: {} interleavings", 2 * ORDERS);
}

/// A reading thread that has room for so many jobs, and ends one each time it has none for the next.
fn read(queue: &Queue, room: usize, taken: &AtomicUsize) {
    let (held, ended) = (AtomicUsize::new(0), Notify::new());
    let has_room = || Some(held.load(Ordering::SeqCst)).filter(|held| *held < room);
    block_on(async {
        while queue.next(has_room, &ended).await.is_some() {
            taken.fetch_add(1, Ordering::SeqCst);
            if held.fetch_add(1, Ordering::SeqCst) + 1 == room {
                thread::yield_now(); // the file is read, and others come meanwhile
                held.fetch_sub(1, Ordering::SeqCst);
                ended.notify_one();
            }
        }
    });
}

#[test]
fn in_many_orders_every_job_is_taken_and_every_thread_learns_of_the_end() {
    check("threads of both kinds at a queue", || {
        let (queue, taken) = (Arc::new(Queue::new(100, 2)), Arc::new(AtomicUsize::new(0)));
        let mut threads = Vec::new();
        for room in [1, 4] {
            let (queue, taken) = (Arc::clone(&queue), Arc::clone(&taken));
            threads.push(thread::spawn(move || read(&queue, room, &taken)));
        }
        let (blocking, counted) = (Arc::clone(&queue), Arc::clone(&taken));
        threads.push(thread::spawn(move || {
            while blocking.wait_next().is_some() {
                counted.fetch_add(1, Ordering::SeqCst);
            }
        }));
        for count in [1, 3, 2] {
            queue.push(some_jobs(count));
            thread::yield_now();
        }
        queue.close();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(taken.load(Ordering::SeqCst), 6);
    });
}

/// Without an end that would wake everyone: each job is taken for its own sake.
#[test]
fn in_many_orders_a_queued_job_is_taken_although_no_other_comes() {
    check("a job that nothing follows", || {
        let queue = Arc::new(Queue::new(100, 4));
        let done = Arc::new(AtomicUsize::new(0));
        let readers = [1, 1, 2].map(|room| {
            let (queue, done) = (Arc::clone(&queue), Arc::clone(&done));
            thread::spawn(move || read(&queue, room, &done))
        });
        for (count, all) in [(1, 1), (2, 3)] {
            queue.push(some_jobs(count));
            wait_for(&done, all);
        }
        queue.close();
        readers.into_iter().for_each(|reader| reader.join().unwrap());
    });
}

/// As above, with threads that block.
#[test]
fn in_many_orders_a_queued_job_is_taken_by_a_thread_that_blocks() {
    check("threads that block", || {
        let (queue, taken) = (Arc::new(Queue::new(100, 4)), Arc::new(AtomicUsize::new(0)));
        let readers = [(); 2].map(|()| {
            let (queue, taken) = (Arc::clone(&queue), Arc::clone(&taken));
            thread::spawn(move || {
                while queue.wait_next().is_some() {
                    taken.fetch_add(1, Ordering::SeqCst);
                }
            })
        });
        for count in [1, 3] {
            queue.push(some_jobs(count));
            thread::yield_now();
        }
        wait_for(&taken, 4);
        queue.close();
        readers.into_iter().for_each(|reader| reader.join().unwrap());
    });
}

/// Files that end only at the end: what one thread has no room for, another takes, and more jobs give each more room.
#[test]
fn in_many_orders_jobs_find_the_thread_that_has_room() {
    check("files that take long", || {
        let (queue, taken) = (Arc::new(Queue::new(100, 4)), Arc::new(AtomicUsize::new(0)));
        let share = Arc::new(AtomicUsize::new(1));
        let readers = [(); 2].map(|()| {
            let (queue, taken, share) = (Arc::clone(&queue), Arc::clone(&taken), Arc::clone(&share));
            thread::spawn(move || {
                let (held, never) = (AtomicUsize::new(0), Notify::new());
                let room = || Some(held.load(Ordering::SeqCst)).filter(|held| *held < share.load(Ordering::SeqCst));
                block_on(async {
                    while queue.next(room, &never).await.is_some() {
                        held.fetch_add(1, Ordering::SeqCst);
                        taken.fetch_add(1, Ordering::SeqCst);
                    }
                });
            })
        });
        queue.push(some_jobs(2));
        wait_for(&taken, 2);
        share.store(2, Ordering::SeqCst);
        queue.push(some_jobs(2));
        wait_for(&taken, 4);
        queue.close();
        readers.into_iter().for_each(|reader| reader.join().unwrap());
    });
}

/// Waits for what others do. Where it never comes, shuttle ends the test after a million steps.
fn wait_for(taken: &AtomicUsize, count: usize) {
    while taken.load(Ordering::SeqCst) < count {
        thread::yield_now();
    }
}

/// A thread that stops waiting when it was just woken.
#[test]
fn in_many_orders_who_stops_waiting_passes_its_wake_up_on() {
    check("a place that is given up", || {
        let (queue, taken) = (Arc::new(Queue::new(100, 4)), Arc::new(AtomicUsize::new(0)));
        let leaving = {
            let queue = Arc::clone(&queue);
            thread::spawn(move || {
                let never = Notify::new();
                let mut next = Box::pin(queue.next(|| Some(0), &never));
                block_on(std::future::poll_fn(|context| {
                    // Whatever it finds, it waits no longer than this.
                    std::task::Poll::Ready(next.as_mut().poll(context).is_ready())
                }))
            })
        };
        let reader = {
            let (queue, taken) = (Arc::clone(&queue), Arc::clone(&taken));
            thread::spawn(move || read(&queue, 1, &taken))
        };
        queue.push(some_jobs(1));
        let took = usize::from(leaving.join().unwrap());
        wait_for(&taken, 1 - took);
        queue.close();
        reader.join().unwrap();
    });
}
