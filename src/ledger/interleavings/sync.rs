//! What the ledger uses of `std::sync`, made of shuttle's, whose waits have no end in time. Here time is over at any moment.

use std::time::Duration;

use shuttle::rand::{Rng, thread_rng};
use shuttle::thread;

pub(in crate::ledger) use std::sync::{Arc, LockResult, PoisonError};

/// How often others may run while a thread waits for a time.
const TURNS_MAX: usize = 4;

#[derive(Default)]
pub(in crate::ledger) struct Mutex<T>(shuttle::sync::Mutex<T>);

pub(in crate::ledger) struct MutexGuard<'a, T> {
    mutex: &'a Mutex<T>,
    guard: shuttle::sync::MutexGuard<'a, T>,
}

impl<T> Mutex<T> {
    pub(in crate::ledger) fn lock(&self) -> LockResult<MutexGuard<'_, T>> {
        Ok(MutexGuard { mutex: self, guard: self.0.lock().unwrap() })
    }
}

impl<T> std::ops::Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.guard
    }
}

impl<T> std::ops::DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.guard
    }
}

#[derive(Default)]
pub(in crate::ledger) struct Condvar(shuttle::sync::Condvar);

pub(in crate::ledger) struct Waited(bool);

impl Waited {
    pub(in crate::ledger) fn timed_out(&self) -> bool {
        self.0
    }
}

impl Condvar {
    pub(in crate::ledger) fn notify_all(&self) {
        self.0.notify_all();
    }

    pub(in crate::ledger) fn wait_while<'a, T>(
        &self,
        guard: MutexGuard<'a, T>,
        waits: impl FnMut(&mut T) -> bool,
    ) -> LockResult<MutexGuard<'a, T>> {
        let MutexGuard { mutex, guard } = guard;
        Ok(MutexGuard { mutex, guard: self.0.wait_while(guard, waits).unwrap() })
    }

    /// Waits without the lock until the condition ends or, whenever shuttle likes, time does.
    pub(in crate::ledger) fn wait_timeout_while<'a, T>(
        &self,
        guard: MutexGuard<'a, T>,
        _: Duration,
        mut waits: impl FnMut(&mut T) -> bool,
    ) -> LockResult<(MutexGuard<'a, T>, Waited)> {
        let mutex = guard.mutex;
        let mut guard = guard.guard;
        for _ in 0..thread_rng().gen_range(0..=TURNS_MAX) {
            if !waits(&mut guard) {
                return Ok((MutexGuard { mutex, guard }, Waited(false)));
            }
            drop(guard);
            thread::yield_now();
            guard = mutex.0.lock().unwrap();
        }
        let timed_out = waits(&mut guard);
        Ok((MutexGuard { mutex, guard }, Waited(timed_out)))
    }
}
