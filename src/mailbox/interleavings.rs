//! The waker under a model checker: loom runs every order of the threads' steps, and every value that the memory model of
//! C++20 lets a load return.

use loom::sync;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;

#[allow(dead_code, clippy::duplicate_mod)]
#[path = "waker.rs"]
mod waker;

use waker::{ASLEEP, Event, LEAVES_REPORTS, Slept, Waker};

/// As far as the models go: orders in which a thread is interrupted more often than this are left out.
const PREEMPTIONS: usize = 3;

/// An eventfd.
#[derive(Default)]
struct Flag {
    set: Mutex<bool>,
    changed: Condvar,
}

impl Event for Flag {
    fn set(&self) {
        *self.set.lock().unwrap() = true;
        self.changed.notify_one();
    }
}

impl Flag {
    fn wait(&self) {
        let mut set = self.set.lock().unwrap();
        while !*set {
            set = self.changed.wait(set).unwrap();
        }
    }
}

/// A mailbox whose channel gives no more order than a channel has to: what is sent is seen some time.
struct Mailbox {
    waker: Waker<Flag>,
    reports: AtomicUsize,
    urgent: AtomicUsize,
}

impl Mailbox {
    fn new() -> Arc<Self> {
        let (reports, urgent) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Arc::new(Self { waker: Waker::new(Flag::default()), reports, urgent })
    }

    fn report(&self) {
        self.reports.fetch_add(1, Ordering::Release);
        self.waker.wake(false);
    }

    fn stop(&self) {
        self.urgent.fetch_add(1, Ordering::Release);
        self.waker.wake(true);
    }

    /// Sleeps as the source does, but without a time. `seen`: the notices that were taken before.
    fn sleep(&self, state: u8, seen: usize) {
        let look = || (self.sent() > seen).then_some(());
        match self.waker.sleep(state, look, Flag::wait) {
            Slept::Found(()) => {}
            Slept::Waited(()) => *self.waker.event.set.lock().unwrap() = false,
        }
    }

    fn sent(&self) -> usize {
        self.reports.load(Ordering::Acquire) + self.urgent.load(Ordering::Acquire)
    }
}

/// Runs a model in every order and prints how many there were.
fn check(name: &str, model: impl Fn() + Sync + Send + 'static) {
    let orders = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(PREEMPTIONS);
    let counted = orders.clone();
    builder.check(move || {
        counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        model();
    });
    eprintln!("{name}: {orders:?} interleavings");
}

#[test]
fn in_every_order_a_report_wakes_a_sleeping_source() {
    check("reports to a sleeping source", || {
        let mailbox = Mailbox::new();
        for _ in 0..2 {
            let mailbox = mailbox.clone();
            thread::spawn(move || mailbox.report());
        }
        let mut seen = 0;
        while seen < 2 {
            mailbox.sleep(ASLEEP, seen);
            seen = mailbox.sent();
        }
    });
}

#[test]
fn in_every_order_a_stop_wakes_a_source_that_leaves_reports() {
    check("a stop to a source that leaves reports", || {
        let mailbox = Mailbox::new();
        let (reporter, stopper) = (mailbox.clone(), mailbox.clone());
        thread::spawn(move || reporter.report());
        thread::spawn(move || stopper.stop());
        let mut seen = 0;
        while mailbox.urgent.load(Ordering::Acquire) == 0 {
            mailbox.sleep(LEAVES_REPORTS, seen);
            seen = mailbox.sent();
        }
    });
}

#[test]
fn in_every_order_what_comes_during_sleeps_of_both_kinds_is_seen() {
    check("sleeps of both kinds", || {
        let mailbox = Mailbox::new();
        let (reporter, stopper) = (mailbox.clone(), mailbox.clone());
        thread::spawn(move || reporter.report());
        thread::spawn(move || stopper.stop());
        mailbox.sleep(LEAVES_REPORTS, 0); // the stop ends it, at the latest
        let mut seen = mailbox.sent();
        while seen < 2 {
            mailbox.sleep(ASLEEP, seen);
            seen = mailbox.sent();
        }
    });
}
