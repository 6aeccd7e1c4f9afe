//! Wake-ups of the publishing thread that wait until it wakes for something else.
//!
//! For each message the client's own thread wakes the publishing thread twice: when the message is written, and when its
//! confirm is read. The first says nothing that the thread could act on. Where messages come steadily, the second can wait
//! for the next message. And the broker's answer wakes the thread anyway, because its runtime watches the connection.
//!
//! What is deferred is done when the thread next wakes, or is about to sleep. It may sleep already: so the publish loop
//! defers for a limited time only, at whose end it wakes by itself: see [`LEAVE`](crate::pace::LEAVE).

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Wake, Waker};
use std::time::Instant;
use std::{io, mem, thread};

use tokio::runtime::{Builder, Runtime};

use crate::pace::{GATHER, LEAVE, Load, Pace};

/// The smallest window with which confirms may be late: at 100,000 messages a second so many come within [`LEAVE`].
const LOAD_WINDOW: usize = 300;

/// Which wake-ups of the publish loop are deferred, and until when.
pub(super) struct WakeUps {
    deferred: Arc<Deferred>,
    /// How fast messages are published; `None` with a small window, whose confirms are waited for.
    pace: Option<Pace>,
    until: Option<Instant>,
}

impl WakeUps {
    /// Those of a loop with a window of so many messages.
    pub(super) fn new(window: usize) -> Self {
        let pace = (window >= LOAD_WINDOW).then(Pace::default);
        Self { deferred: Arc::default(), pace, until: None }
    }

    pub(super) fn deferred(&self) -> &Arc<Deferred> {
        &self.deferred
    }

    /// So many messages were published: what can be is deferred for a while.
    pub(super) fn published(&mut self, messages: usize, now: Instant) {
        if messages == 0 {
            return;
        }
        let load = self.pace.as_mut().map_or(Load::Idle, |pace| {
            pace.add(messages, now);
            pace.load(now)
        });
        self.deferred.set(Some(load));
        self.until = Some(now + LEAVE);
    }

    /// When the loop has to wake for what is deferred, if it wakes for nothing else until then.
    pub(super) fn until(&self) -> Option<Instant> {
        self.until
    }

    /// Defers nothing any more if that time has come.
    pub(super) fn on_time(&mut self, now: Instant) {
        if self.until.is_some_and(|until| now >= until) {
            self.defer_nothing();
        }
    }

    /// What was deferred is done, and from now on every wake-up at once.
    pub(super) fn defer_nothing(&mut self) {
        self.deferred.set(None);
        self.until = None;
    }
}

/// The deferred wake-ups of one thread.
#[derive(Default)]
pub(super) struct Deferred(Mutex<State>);

#[derive(Default)]
struct State {
    /// `None`: nothing is deferred. Otherwise what is, by the load.
    load: Option<Load>,
    wakers: Vec<Waker>,
}

/// What a future waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Until {
    /// The message is written to the connection.
    Written,
    /// The broker has answered.
    Answered,
}

impl Until {
    fn is_deferred(self, load: Option<Load>) -> bool {
        match self {
            Self::Written => load.is_some(),
            Self::Answered => load.is_some_and(|load| load > Load::Idle),
        }
    }
}

impl Deferred {
    /// A runtime whose thread does what is deferred when it wakes, and before it sleeps.
    ///
    /// # Errors
    /// When the system refuses what it needs.
    pub(super) fn runtime(self: &Arc<Self>) -> io::Result<Runtime> {
        let (sleeping, awake) = (Arc::clone(self), Arc::clone(self));
        Builder::new_current_thread()
            .on_thread_park(move || sleeping.before_sleep())
            .on_thread_unpark(move || awake.wake())
            .enable_all()
            .build()
    }

    /// Defers from now on what can be at this load, or nothing.
    pub(super) fn set(&self, load: Option<Load>) {
        self.lock().load = load;
        self.wake();
    }

    /// Where messages come fast, work gathers before the thread sleeps.
    fn before_sleep(&self) {
        if self.lock().load == Some(Load::Busy) {
            thread::sleep(GATHER);
        }
        self.wake();
    }

    fn wake(&self) {
        let wakers = mem::take(&mut self.lock().wakers);
        // Without the lock, which they may need.
        wakers.into_iter().for_each(Waker::wake);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No change of it can panic half-way.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a future whose wake-ups can be deferred.
    pub(super) async fn wait<F: Future>(self: &Arc<Self>, until: Until, waited: F) -> F::Output {
        let mut waited = pin!(waited);
        poll_fn(|context| {
            let later = Later { until, deferred: Arc::clone(self), waker: context.waker().clone() };
            waited.as_mut().poll(&mut Context::from_waker(&Waker::from(Arc::new(later))))
        })
        .await
    }
}

/// A waker that wakes at once or later.
struct Later {
    until: Until,
    deferred: Arc<Deferred>,
    waker: Waker,
}

impl Wake for Later {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let mut state = self.deferred.lock();
        if self.until.is_deferred(state.load) {
            state.wakers.push(self.waker.clone());
        } else {
            drop(state);
            self.waker.wake_by_ref();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    use futures_util::FutureExt;
    use futures_util::future::LocalBoxFuture;
    use tokio::sync::{Notify, oneshot};
    use tokio::time::timeout;

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicBool);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::SeqCst);
        }
    }

    /// A task that waits for an answer, and whether it was woken.
    struct Task {
        waits: LocalBoxFuture<'static, ()>,
        answer: Option<oneshot::Sender<()>>,
        woken: Arc<Woken>,
    }

    impl Task {
        fn new(deferred: &Arc<Deferred>, until: Until) -> Self {
            let (answer, answered) = oneshot::channel();
            let deferred = Arc::clone(deferred);
            let waits = async move { deferred.wait(until, answered).await.unwrap() };
            let mut task = Self { waits: waits.boxed_local(), answer: Some(answer), woken: Arc::default() };
            assert!(!task.is_done());
            task
        }

        fn is_done(&mut self) -> bool {
            let waker = Waker::from(Arc::clone(&self.woken));
            self.waits.as_mut().poll(&mut Context::from_waker(&waker)).is_ready()
        }

        fn answer(&mut self) {
            self.answer.take().unwrap().send(()).unwrap();
        }

        fn is_woken(&self) -> bool {
            self.woken.0.load(Ordering::SeqCst)
        }
    }

    #[test]
    fn what_is_deferred_depends_on_the_load() {
        for (until, load, is_deferred) in [
            (Until::Written, None, false),
            (Until::Answered, None, false),
            (Until::Written, Some(Load::Idle), true),
            (Until::Answered, Some(Load::Idle), false),
            (Until::Answered, Some(Load::Steady), true),
            (Until::Answered, Some(Load::Busy), true),
        ] {
            let deferred = Arc::new(Deferred::default());
            // It counts what is deferred when the answer comes.
            let mut task = Task::new(&deferred, until);
            deferred.set(load);
            task.answer();
            assert_eq!(task.is_woken(), !is_deferred, "{until:?} at {load:?}");
            deferred.before_sleep();
            assert!(task.is_woken() && task.is_done(), "{until:?} at {load:?}");
        }
    }

    #[test]
    fn what_was_deferred_is_done_once_nothing_is_any_more() {
        let mut wake_ups = WakeUps::new(1024);
        let now = Instant::now();
        wake_ups.published(1, now);
        assert_eq!(wake_ups.until(), Some(now + LEAVE));
        let mut tasks = [Until::Written, Until::Written].map(|until| Task::new(wake_ups.deferred(), until));
        tasks[0].answer();
        wake_ups.on_time(now);
        assert!(!tasks[0].is_woken());
        wake_ups.on_time(now + LEAVE);
        assert!(tasks[0].is_woken() && wake_ups.until().is_none());
        tasks[1].answer();
        assert!(tasks[1].is_woken());
    }

    #[test]
    fn no_confirm_is_late_with_a_small_window() {
        for (window, load) in [(LOAD_WINDOW - 1, Load::Idle), (LOAD_WINDOW, Load::Busy)] {
            let mut wake_ups = WakeUps::new(window);
            wake_ups.published(1000, Instant::now());
            wake_ups.published(1000, Instant::now());
            assert_eq!(wake_ups.deferred().lock().load, Some(load), "window {window}");
        }
    }

    #[test]
    fn a_thread_that_wakes_for_something_else_does_what_was_deferred() {
        let deferred = Arc::new(Deferred::default());
        deferred.set(Some(Load::Steady));
        let runtime = deferred.runtime().unwrap();
        let (something_else, over) = (Arc::new(Notify::new()), Arc::new(AtomicBool::new(false)));
        let (answer, answered) = oneshot::channel();
        let sender = thread::spawn({
            let (something_else, over) = (Arc::clone(&something_else), Arc::clone(&over));
            move || {
                answer.send(()).unwrap();
                while !over.load(Ordering::SeqCst) {
                    something_else.notify_one();
                    thread::yield_now();
                }
            }
        });
        let others = async {
            loop {
                something_else.notified().await;
            }
        };
        // A set of its own polls only what was woken, as the publish loop's does.
        let mut waits = futures_util::stream::FuturesUnordered::new();
        waits.push(deferred.wait(Until::Answered, answered));
        let waited = async {
            tokio::select! {
                answered = futures_util::StreamExt::next(&mut waits) => answered,
                () = others => None,
            }
        };
        let waited = runtime.block_on(async { timeout(Duration::from_secs(20), waited).await });
        over.store(true, Ordering::SeqCst);
        sender.join().unwrap();
        assert!(matches!(waited, Ok(Some(Ok(())))));
    }
}
