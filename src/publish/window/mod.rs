//! The confirm window: which message may be published next, and what the broker's answers mean for each.
//!
//! Pure: no I/O, and the caller passes the time. The window releases a message as [`Sent`], and the answer to it brings that
//! value back. So each message is in exactly one place, and none can be confirmed twice. Messages wait in the order in
//! which they came. Rejected and returned ones are published again in the order of their delivery tags.

#[cfg(test)]
mod by_key_test;
#[cfg(test)]
mod model_test;
mod parked;

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use parked::Parked;

use super::returned::{Acknowledged, Resolved};

/// The first pause after the broker has rejected a message (basic.nack); it doubles while the broker goes on rejecting.
const NACK_PAUSE_MIN: Duration = Duration::from_millis(100);

/// The longest pause after a rejected message.
const NACK_PAUSE_MAX: Duration = Duration::from_secs(10);

/// The first pause before a returned message is published again (basic.return); it doubles while no queue is bound.
const UNROUTABLE_PAUSE_MIN: Duration = Duration::from_millis(100);

/// The longest such pause: how long a queue may be bound before the first message reaches it.
const UNROUTABLE_PAUSE_MAX: Duration = Duration::from_secs(10);

/// A published message. The answer to it uses it up.
#[derive(Debug)]
pub struct Sent<M> {
    /// Messages count from 1 in the order in which they are published, as the broker's delivery tags do.
    tag: u64,
    message: M,
}

impl<M> Sent<M> {
    pub fn message(&self) -> &M {
        &self.message
    }

    pub fn into_message(self) -> M {
        self.message
    }
}

/// What the answers so far have shown.
#[derive(Debug)]
pub struct Resolution<M> {
    /// These messages reached a queue.
    pub delivered: Vec<Sent<M>>,
    pub route: Route,
}

/// Whether messages reach a queue, where the answers have shown it.
#[derive(Debug, PartialEq, Eq)]
pub enum Route {
    Unchanged,
    /// No queue is bound: so many messages wait for one.
    Missing {
        waiting: usize,
    },
    /// A queue is bound after all: so many messages waited for one.
    Found {
        waited: usize,
    },
}

/// Messages that are to be published, or are published and not confirmed.
#[derive(Debug)]
pub struct Window<M> {
    /// The most messages that may be unconfirmed.
    size: usize,
    last_tag: u64,
    unconfirmed: usize,
    /// Not published yet, for want of room or of a queue.
    waiting: VecDeque<M>,
    /// Acknowledged, while a message that was returned may be among them.
    acknowledged: Acknowledged<Sent<M>>,
    /// Rejected messages, by delivery tag.
    rejected: BTreeMap<u64, M>,
    /// When the rejected messages are published again; `None` where there are none.
    resend_at: Option<Instant>,
    nack_pause: Backoff,
    /// No queue is bound: when the next message goes out to see whether one is.
    probe_at: Option<Instant>,
    probe_pause: Backoff,
    /// The messages that no queue takes by their keys; `None` where no key is looked at.
    parked: Option<Parked<M>>,
}

impl<M> Window<M> {
    pub fn new(size: usize) -> Self {
        Self {
            size,
            last_tag: 0,
            unconfirmed: 0,
            waiting: VecDeque::new(),
            acknowledged: Acknowledged::new(),
            rejected: BTreeMap::new(),
            resend_at: None,
            nack_pause: Backoff::new(NACK_PAUSE_MIN, NACK_PAUSE_MAX),
            probe_at: None,
            probe_pause: Backoff::new(UNROUTABLE_PAUSE_MIN, UNROUTABLE_PAUSE_MAX),
            parked: None,
        }
    }

    /// A window for an exchange that looks at the routing key: a message that no queue takes says nothing of the others, which
    /// do not wait behind it.
    pub fn by_key(size: usize) -> Self {
        Self { parked: Some(Parked::new()), ..Self::new(size) }
    }

    /// Whether the caller is to fetch more messages. While no queue is bound it fetches them all, because only behind the last
    /// one it shows that the messages have ended. They are no more than the pipeline's bound.
    pub fn wants_more(&self) -> bool {
        self.waiting.is_empty() || self.probe_at.is_some()
    }

    pub fn add(&mut self, messages: impl IntoIterator<Item = M>) {
        self.waiting.extend(messages);
    }

    /// The next message to be published, if one may be published now.
    pub fn next(&mut self, now: Instant) -> Option<Sent<M>> {
        debug_assert!(
            self.acknowledged.is_empty() || self.acknowledged.is_undecided() && self.unconfirmed > 0,
            "unresolved"
        );
        let (next, not_before) = self.next_source()?;
        if not_before.is_some_and(|at| now < at) {
            return None;
        }
        // Those go first whose pause is over, so that no number of new messages keeps them waiting.
        let parked = match next {
            Next::Waiting | Next::Parked => self.parked.as_mut().and_then(|parked| parked.next(now)),
            Next::Probe | Next::Rejected => None,
        };
        if let (Some(all), true) = (&mut self.parked, parked.is_some()) {
            all.sent(self.last_tag + 1);
        }
        let message = match (parked, next) {
            (Some(parked), _) => parked,
            (None, Next::Waiting | Next::Probe) => self.waiting.pop_front()?,
            (None, Next::Rejected) => self.rejected.pop_first()?.1,
            (None, Next::Parked) => return None,
        };
        if self.rejected.is_empty() {
            self.resend_at = None;
        }
        self.last_tag += 1;
        self.unconfirmed += 1;
        debug_assert!(self.unconfirmed <= self.size);
        Some(Sent { tag: self.last_tag, message })
    }

    /// When the pause ends that [`Window::next`] waits for; `None` where it waits for an answer or a message.
    pub fn next_at(&self) -> Option<Instant> {
        self.next_source().and_then(|(_, not_before)| not_before)
    }

    /// The source of the next message, and the end of its pause. Nothing goes out while it is open which acknowledged
    /// messages reached a queue, and no new message while the broker rejects.
    fn next_source(&self) -> Option<(Next, Option<Instant>)> {
        debug_assert_eq!(self.resend_at.is_none(), self.rejected.is_empty());
        if self.probe_at.is_some() {
            debug_assert!(self.unconfirmed <= 1, "one probe at a time");
            return (self.unconfirmed == 0).then_some((Next::Probe, self.probe_at));
        }
        if self.acknowledged.is_undecided() {
            return None;
        }
        if self.resend_at.is_some() {
            return Some((Next::Rejected, self.resend_at));
        }
        if self.unconfirmed >= self.size {
            return None;
        }
        match &self.parked {
            _ if !self.waiting.is_empty() => Some((Next::Waiting, None)),
            Some(parked) => parked.next_at().map(|at| (Next::Parked, Some(at))),
            None => None,
        }
    }

    /// The broker has returned the message with this id; `None` where the returned message carries none.
    pub fn returned(&mut self, id: Option<u128>) {
        self.acknowledged.returned(id);
    }

    /// The broker has acknowledged a message, which does not say yet that it reached a queue.
    pub fn acked(&mut self, id: u128, sent: Sent<M>) {
        self.answered();
        self.acknowledged.add(id, sent);
    }

    /// The broker has rejected a message. Returns the pause, if the message is the first to be rejected since the last pause.
    pub fn nacked(&mut self, sent: Sent<M>, now: Instant) -> Option<Duration> {
        self.answered();
        let pause = self.rejected.is_empty().then(|| self.nack_pause.advance());
        if let Some(pause) = pause {
            self.resend_at = Some(now + pause);
        }
        // A queue has refused it, so there is one.
        self.parked.iter_mut().for_each(|parked| parked.answered(sent.tag));
        self.rejected.insert(sent.tag, sent.message);
        pause
    }

    /// The connection has failed, so no answer to this message will come.
    pub fn failed(&mut self, _: Sent<M>) {
        self.answered();
    }

    fn answered(&mut self) {
        debug_assert!(self.unconfirmed > 0, "an answer to a message that was not sent");
        self.unconfirmed -= 1;
    }

    /// Decides which acknowledged messages are delivered, and puts those that reached nobody back to the front.
    pub fn resolve(&mut self, now: Instant) -> Resolution<M> {
        let Resolved { delivered, mut returned } = self.acknowledged.resolve(self.unconfirmed);
        if !delivered.is_empty() {
            self.nack_pause.reset();
        }
        let route = if let Some(parked) = &mut self.parked {
            returned.sort_unstable_by_key(|sent| sent.tag);
            delivered.iter().chain(&returned).for_each(|sent| parked.answered(sent.tag));
            let missing = !returned.is_empty();
            let waiting = parked.park(returned.into_iter().map(Sent::into_message), now);
            match parked.found() {
                _ if missing => Route::Missing { waiting },
                Some(waited) => Route::Found { waited },
                None => Route::Unchanged,
            }
        } else if !returned.is_empty() {
            debug_assert_eq!(self.unconfirmed, 0, "undecided until the last answer");
            returned.sort_unstable_by_key(|sent| sent.tag);
            returned.into_iter().rev().for_each(|sent| self.waiting.push_front(sent.message));
            self.probe_at = Some(now + self.probe_pause.advance());
            Route::Missing { waiting: self.waiting.len() }
        } else if self.probe_at.take().is_some() {
            // Delivered or rejected, the probe has reached a queue.
            self.probe_pause.reset();
            Route::Found { waited: self.waiting.len() + 1 }
        } else {
            Route::Unchanged
        };
        Resolution { delivered, route }
    }

    pub fn unconfirmed(&self) -> usize {
        self.unconfirmed
    }

    /// How many messages wait for a queue.
    pub fn unroutable(&self) -> usize {
        match &self.parked {
            Some(parked) => parked.len(),
            None => self.probe_at.map_or(0, |_| self.waiting.len() + self.unconfirmed),
        }
    }

    /// Messages that are not known to be delivered.
    pub fn left(&self) -> usize {
        let others = self.waiting.len() + self.rejected.len() + self.unconfirmed + self.acknowledged.len();
        others + self.parked()
    }

    fn parked(&self) -> usize {
        self.parked.as_ref().map_or(0, Parked::waiting)
    }

    /// Whether the window can end once no more messages come. Nobody can say when a queue will be bound, so messages that
    /// wait for one are left.
    pub fn is_done(&self) -> bool {
        self.unconfirmed == 0 && (self.probe_at.is_some() || self.left() == self.parked())
    }
}

/// The source of the next message.
enum Next {
    Waiting,
    /// One message shows whether a queue is bound by now.
    Probe,
    Rejected,
    /// Each of these shows whether a queue takes it by now.
    Parked,
}

/// A pause that doubles each time, up to a limit.
#[derive(Debug)]
struct Backoff {
    min: Duration,
    max: Duration,
    pause: Duration,
}

impl Backoff {
    fn new(min: Duration, max: Duration) -> Self {
        Self { min, max, pause: min }
    }

    fn advance(&mut self) -> Duration {
        let pause = self.pause;
        self.pause = (pause * 2).min(self.max);
        pause
    }

    fn reset(&mut self) {
        self.pause = self.min;
    }
}
