//! Messages that no queue takes by their routing keys, while queues take others: they wait aside, and each goes out again after a
//! pause. Behind a fanout exchange there are none, because there either all messages reach a queue or none does.
//!
//! Pure: no I/O, and the caller passes the time.

use std::collections::{HashSet, VecDeque};
use std::time::{Duration, Instant};

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
    pause: Duration,
    /// The delivery tags of messages that went out again and have no answer yet.
    out: HashSet<u64>,
    /// The most that there have been; 0 once all have reached a queue.
    missing: usize,
}

impl<M> Parked<M> {
    pub fn new() -> Self {
        Self { messages: VecDeque::new(), due: 0, at: None, pause: PAUSE_MIN, out: HashSet::new(), missing: 0 }
    }

    /// Puts returned messages aside. Returns how many there are now.
    pub fn park(&mut self, returned: impl IntoIterator<Item = M>, now: Instant) -> usize {
        self.messages.extend(returned);
        if self.at.is_none() && !self.messages.is_empty() {
            self.at = Some(now + self.advance());
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
        self.due -= 1;
        if self.due == 0 {
            self.at = (!self.messages.is_empty()).then(|| now + self.advance());
        }
        Some(message)
    }

    /// When the next message may go out; `None` where no message waits.
    pub fn next_at(&self) -> Option<Instant> {
        self.at
    }

    /// A message of these was published with this delivery tag.
    pub fn sent(&mut self, tag: u64) {
        self.out.insert(tag);
    }

    /// The message with this delivery tag, of these or not, has its answer.
    pub fn answered(&mut self, tag: u64) {
        self.out.remove(&tag);
    }

    /// How many messages have waited, once all of them have reached a queue.
    pub fn found(&mut self) -> Option<usize> {
        if self.missing == 0 || self.len() > 0 {
            return None;
        }
        self.pause = PAUSE_MIN;
        Some(std::mem::take(&mut self.missing))
    }

    /// The messages that wait, or are out to see whether a queue takes them by now.
    pub fn len(&self) -> usize {
        self.messages.len() + self.out.len()
    }

    /// The messages that wait.
    pub fn waiting(&self) -> usize {
        self.messages.len()
    }

    fn advance(&mut self) -> Duration {
        let pause = self.pause;
        self.pause = (pause * 2).min(PAUSE_MAX);
        pause
    }
}
