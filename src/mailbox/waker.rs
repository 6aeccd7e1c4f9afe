//! How a source falls asleep and is woken, without a system call while it is awake.
//!
//! Two threads look at each other's work: the sender at the state after its notice, the source at the notices after its
//! state. A fence on both sides lets one of them see what the other has done. `interleavings.rs` tries every order of it.

use super::sync::atomic::{AtomicU8, Ordering, fence};

/// What a source sleeps on. Once set it ends each sleep, until it is cleared.
pub(super) trait Event {
    fn set(&self);
}

/// Wakes the source. Its event is set only when the source sleeps.
#[derive(Debug)]
pub(super) struct Waker<E> {
    pub event: E,
    /// One of [`AWAKE`], [`ASLEEP`] and [`LEAVES_REPORTS`]. Only the source leaves [`AWAKE`], and whoever wakes it goes back.
    state: AtomicU8,
}

/// The source reads the mailbox before it sleeps again.
const AWAKE: u8 = 0;
/// Any notice wakes the source.
pub(super) const ASLEEP: u8 = 1;
/// Any notice but reports wakes the source.
pub(super) const LEAVES_REPORTS: u8 = 2;

/// How a sleep ended.
pub(super) enum Slept<N, R> {
    /// There was a notice before it began.
    Found(N),
    /// It was slept, with this result.
    Waited(R),
}

impl<E: Event> Waker<E> {
    pub(super) fn new(event: E) -> Self {
        Self { event, state: AtomicU8::new(AWAKE) }
    }

    /// Wakes the source if it sleeps; `urgent`, also where it leaves reports. To be called after the notice was sent.
    pub(super) fn wake(&self, urgent: bool) {
        // Between the notice and the look at the state, as in `sleep` between the state and the look at the notices: so one
        // of the two sees what the other has done.
        fence(Ordering::SeqCst);
        let sleeps = |state| (state == ASLEEP || state == LEAVES_REPORTS && urgent).then_some(AWAKE);
        // Nothing is stored where nobody sleeps: the source may be about to store its next state.
        if self.state.fetch_update(Ordering::SeqCst, Ordering::SeqCst, sleeps).is_ok() {
            self.event.set();
        }
    }

    /// Sleeps in `wait`, which the event ends, unless `look` finds a notice. `state` says what wakes. Who wakes may set the
    /// event only after the sleep has ended, and then the next one is short.
    pub(super) fn sleep<N, R>(
        &self,
        state: u8,
        look: impl FnOnce() -> Option<N>,
        wait: impl FnOnce(&E) -> R,
    ) -> Slept<N, R> {
        self.state.store(state, Ordering::SeqCst);
        // A notice that was sent before the line above did not set the event.
        fence(Ordering::SeqCst);
        let slept = match look() {
            Some(notice) => Slept::Found(notice),
            None => Slept::Waited(wait(&self.event)),
        };
        self.state.store(AWAKE, Ordering::SeqCst);
        slept
    }

    #[cfg(test)]
    pub(super) fn is_awake(&self) -> bool {
        self.state.load(Ordering::SeqCst) == AWAKE
    }
}
