//! Keeps the workload and the fault schedule side by side without a clock: the schedule waits until so many operations
//! are done, and the workload waits while it is too far ahead.

use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// Longer than any single step of the other side: a boot of the broker, most of all.
const TIMEOUT: Duration = Duration::from_secs(180);

#[derive(Default)]
struct State {
    done: usize,
    allowed: usize,
    ended: bool,
}

#[derive(Default)]
pub struct Pace {
    state: Mutex<State>,
    changed: Condvar,
}

impl Pace {
    /// For the workload: one more operation is done. Waits until it may go on, and returns whether it should.
    pub fn step(&self) -> bool {
        let mut state = self.lock();
        state.done += 1;
        self.changed.notify_all();
        state = self.wait(state, "leave to go on", |state| state.done < state.allowed || state.ended);
        !state.ended
    }

    /// For the schedule: lets the workload go on up to so many operations.
    pub fn allow(&self, operations: usize) {
        let mut state = self.lock();
        state.allowed = state.allowed.max(operations);
        self.changed.notify_all();
    }

    /// For the schedule: returns when so many operations are done.
    pub fn wait_done(&self, operations: usize) {
        let state = self.lock();
        drop(self.wait(state, "the workload's progress", |state| state.done >= operations || state.ended));
    }

    /// For either side, at its end.
    pub fn end(&self) {
        self.lock().ended = true;
        self.changed.notify_all();
    }

    fn wait<'a>(
        &self,
        state: MutexGuard<'a, State>,
        what: &str,
        enough: impl Fn(&State) -> bool,
    ) -> MutexGuard<'a, State> {
        let deadline = Instant::now() + TIMEOUT;
        let left = deadline.saturating_duration_since(Instant::now());
        let (state, waited) = self.changed.wait_timeout_while(state, left, |state| !enough(state)).expect("pace");
        assert!(!waited.timed_out(), "{what} did not come within {TIMEOUT:?}");
        state
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic on the other side is that side's to report.
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Ends the pace when it is dropped, also by a panic, so that the other side does not wait in vain.
pub struct Ending<'a>(pub &'a Pace);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.end();
    }
}
