//! Messages that no queue takes by their routing keys, while queues take others: they wait aside, and each goes out again after a
//! pause. Behind a fanout exchange there are none, because there either all messages reach a queue or none does. The loss of a
//! connection changes nothing here: what waits goes on waiting, and what was out counts as out until it has an answer.
//!
//! Pure: no I/O, and the caller passes the time.

use std::collections::VecDeque;
use std::mem;
use std::time::{Duration, Instant};

use super::super::backoff::Backoff;

/// The first pause before the messages go out again; it doubles until none is left.
pub const PAUSE_MIN: Duration = Duration::from_millis(100);

/// The longest pause: how long a queue may be bound before the first message reaches it.
pub const PAUSE_MAX: Duration = Duration::from_secs(10);

/// Messages that were returned. They go out again in rounds, each message once a round.
#[derive(Debug)]
pub struct Parked<M> {
    messages: VecDeque<M>,
    /// So many of the first messages belong to the round that is under way.
    due: usize,
    /// When the round began that is under way, or the next one begins; `None` where no message waits.
    at: Option<Instant>,
    pause: Backoff,
    /// So many messages went out again, and no answer has shown yet whether a queue takes them by now.
    out: usize,
    /// The most that there have been; 0 once all have reached a queue.
    missing: usize,
}

impl<M> Parked<M> {
    pub fn new() -> Self {
        let pause = Backoff::new(PAUSE_MIN, PAUSE_MAX);
        Self { messages: VecDeque::new(), due: 0, at: None, pause, out: 0, missing: 0 }
    }

    /// Puts returned messages aside. Returns how many there are now.
    pub fn park(&mut self, returned: impl IntoIterator<Item = M>, now: Instant) -> usize {
        self.messages.extend(returned);
        if self.at.is_none() && !self.messages.is_empty() {
            self.at = Some(now + self.pause.advance());
        }
        self.missing = self.missing.max(self.len());
        self.len()
    }

    /// The next message that goes out again, if its pause is over.
    pub fn next(&mut self, now: Instant) -> Option<M> {
        if self.at.is_none_or(|at| now < at) {
            return None;
        }
        if self.due == 0 {
            self.due = self.messages.len();
        }
        let message = self.messages.pop_front()?;
        self.out += 1;
        self.due -= 1;
        if self.due == 0 {
            self.at = (!self.messages.is_empty()).then(|| now + self.pause.advance());
        }
        Some(message)
    }

    /// When the next message may go out; `None` where no message waits.
    pub fn next_at(&self) -> Option<Instant> {
        self.at
    }

    /// So many messages that went out again have an answer which shows whether a queue takes them.
    pub fn answered(&mut self, count: usize) {
        debug_assert!(count <= self.out, "answers to messages that went out");
        self.out -= count;
    }

    /// A message that went out again was refused for its size, so it waits for no queue any more.
    pub fn refused(&mut self) {
        self.answered(1);
        self.missing -= 1;
    }

    /// Takes out the messages for which `is_one` holds.
    pub fn remove(&mut self, is_one: impl Fn(&M) -> bool) -> VecDeque<M> {
        self.due -= self.messages.iter().take(self.due).filter(|message| is_one(message)).count();
        let (removed, kept): (VecDeque<_>, VecDeque<_>) = mem::take(&mut self.messages).into_iter().partition(is_one);
        self.messages = kept;
        self.missing -= removed.len();
        self.at = self.at.filter(|_| !self.messages.is_empty());
        removed
    }

    pub fn iter(&self) -> impl Iterator<Item = &M> {
        self.messages.iter()
    }

    /// How many messages have waited, once all of them have reached a queue.
    pub fn found(&mut self) -> Option<usize> {
        if self.len() > 0 {
            return None;
        }
        self.pause.reset();
        Some(mem::take(&mut self.missing)).filter(|missing| *missing > 0)
    }

    /// The messages that wait, or are out to see whether a queue takes them by now.
    pub fn len(&self) -> usize {
        self.messages.len() + self.out
    }

    /// The messages that wait.
    pub fn waiting(&self) -> usize {
        self.messages.len()
    }
}
