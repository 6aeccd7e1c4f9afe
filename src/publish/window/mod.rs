//! The confirm window: which message may be published next, and what the broker's answers mean for each.
//!
//! Pure: no I/O, and the caller passes the time. The window releases a message as [`Sent`], and the answer to it brings that
//! value back. So each message is in exactly one place, and none can be confirmed twice. Messages wait in the order in
//! which they came. Rejected and returned ones are published again in the order of their delivery tags, and so is
//! everything that a lost connection has left without an answer. Where the exchange looks at routing keys, returned ones wait
//! aside ([`parked`]), also while another connection is made.

#[cfg(test)]
mod by_key_test;
#[cfg(test)]
mod model_test;
mod parked;

use std::collections::{BTreeMap, VecDeque};
use std::mem;
use std::time::{Duration, Instant};

use parked::Parked;

use super::backoff::Backoff;
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
    /// Messages count from 1 in the order in which they are published, over all channels.
    tag: u64,
    message: M,
    in_doubt: bool,
    /// See [`Waiting::parked`].
    parked: bool,
}

impl<M> Sent<M> {
    pub fn message(&self) -> &M {
        &self.message
    }

    pub fn into_message(self) -> M {
        self.message
    }

    fn again(self) -> Waiting<M> {
        Waiting { message: self.message, in_doubt: self.in_doubt, parked: self.parked }
    }
}

/// A message that is to be published.
#[derive(Debug)]
struct Waiting<M> {
    message: M,
    /// It was published before, on a channel that was lost before the answer, so it may have reached a queue.
    in_doubt: bool,
    /// It is parked, or was and is out to see whether a queue takes it by now, which no answer has shown yet.
    parked: bool,
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
    /// Not published yet, for want of room, of a queue or of a connection.
    waiting: VecDeque<Waiting<M>>,
    /// Acknowledged, while a message that was returned may be among them.
    acknowledged: Acknowledged<Sent<M>>,
    /// Rejected messages, by delivery tag.
    rejected: BTreeMap<u64, Waiting<M>>,
    /// When the rejected messages are published again; `None` where there are none.
    resend_at: Option<Instant>,
    nack_pause: Backoff,
    /// No queue is bound: when the next message goes out to see whether one is.
    probe_at: Option<Instant>,
    probe_pause: Backoff,
    /// The messages that no queue takes by their keys; `None` where no key is looked at.
    parked: Option<Parked<Waiting<M>>>,
    /// The waiting, parked and rejected messages that are in doubt.
    in_doubt: usize,
    /// So many messages, of those that are not parked, are to be answered one at a time, because one of them is refused for its
    /// size and it is open which.
    alone: usize,
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
            in_doubt: 0,
            alone: 0,
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
        let new = |message| Waiting { message, in_doubt: false, parked: false };
        self.waiting.extend(messages.into_iter().map(new));
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
        let Waiting { message, in_doubt, parked } = self.take(next, now)?;
        if self.rejected.is_empty() {
            self.resend_at = None;
        }
        self.last_tag += 1;
        self.unconfirmed += 1;
        self.in_doubt -= usize::from(in_doubt);
        debug_assert!(self.unconfirmed <= self.size);
        Some(Sent { tag: self.last_tag, message, in_doubt, parked })
    }

    fn take(&mut self, next: Next, now: Instant) -> Option<Waiting<M>> {
        match next {
            Next::Probe => self.waiting.pop_front(),
            Next::Rejected => self.rejected.pop_first().map(|(_, waiting)| waiting),
            // A lost channel has left these without an answer.
            Next::Waiting if self.alone > 0 || self.waiting.front().is_some_and(|first| first.in_doubt) => {
                self.waiting.pop_front()
            }
            // Parked messages whose pause is over go first, so that no number of new messages keeps them waiting.
            Next::Waiting | Next::Parked => {
                let parked = self.parked.as_mut().and_then(|parked| parked.next(now));
                parked.or_else(|| self.waiting.pop_front())
            }
        }
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
        if self.acknowledged.is_undecided() || self.alone > 0 && self.unconfirmed > 0 {
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
        self.found_out([&sent]);
        self.in_doubt += usize::from(sent.in_doubt);
        self.rejected.insert(sent.tag, Waiting { parked: false, ..sent.again() });
        pause
    }

    /// The channel is lost, and with it the answers to all published messages, which are these. They go out again first, with
    /// what was rejected or returned, in the order of their delivery tags. Parked messages go on waiting aside. The caller has
    /// resolved the answers that came. Returns how many go out again first.
    pub fn lost(&mut self, unanswered: Vec<Sent<M>>) -> usize {
        debug_assert_eq!(unanswered.len(), self.unconfirmed, "the caller has every unanswered message");
        self.unconfirmed = 0;
        // Returns that belong to these are lost as well, so none of them can be decided any more.
        let acknowledged = mem::replace(&mut self.acknowledged, Acknowledged::new()).into_messages();
        let mut again: Vec<(u64, Waiting<M>)> = mem::take(&mut self.rejected).into_iter().collect();
        let in_doubt = |sent: Sent<M>| (sent.tag, Waiting { in_doubt: true, ..sent.again() });
        again.extend(unanswered.into_iter().chain(acknowledged).map(in_doubt));
        again.sort_unstable_by_key(|(tag, _)| *tag);
        let count = again.len();
        again.into_iter().rev().for_each(|(_, waiting)| self.waiting.push_front(waiting));
        let parked = self.parked.iter().flat_map(Parked::iter);
        self.in_doubt = self.waiting.iter().chain(parked).filter(|waiting| waiting.in_doubt).count();
        // What the next broker does is not known yet. The pauses themselves stay as long as they have grown.
        (self.resend_at, self.probe_at) = (None, None);
        count
    }

    /// As [`Window::lost`], because the broker has closed the channel for the size of a published message. Returns the
    /// messages that are too large, which leave the window: those that `is_too_large` knows, else the one that was published
    /// alone. Where neither shows which it is, none leaves, and the messages go out one at a time until it has shown.
    pub fn refused(&mut self, unanswered: Vec<Sent<M>>, is_too_large: impl Fn(&M) -> bool) -> Vec<M> {
        let alone = unanswered.len() == 1 && !is_too_large(&unanswered[0].message);
        let (refused, kept): (Vec<_>, Vec<_>) =
            unanswered.into_iter().partition(|sent| alone || is_too_large(&sent.message));
        self.unconfirmed -= refused.len();
        // Those that wait would be refused as well. What is parked may be of a connection whose broker took larger ones.
        let (behind, waiting): (VecDeque<_>, VecDeque<_>) =
            mem::take(&mut self.waiting).into_iter().partition(|waiting| is_too_large(&waiting.message));
        self.waiting = waiting;
        let refused: Vec<Waiting<M>> = refused.into_iter().map(Sent::again).chain(behind).collect();
        let mut aside = VecDeque::new();
        if let Some(parked) = &mut self.parked {
            refused.iter().filter(|refused| refused.parked).for_each(|_| parked.refused());
            aside = parked.remove(|waiting| is_too_large(&waiting.message));
        }
        self.lost(kept);
        self.alone = if refused.is_empty() && aside.is_empty() {
            self.left() - self.parked()
        } else {
            self.alone.saturating_sub(refused.len())
        };
        refused.into_iter().chain(aside).map(|waiting| waiting.message).collect()
    }

    /// The answers to these messages have shown whether a queue takes them.
    fn found_out<'a>(&mut self, answered: impl IntoIterator<Item = &'a Sent<M>>)
    where
        M: 'a,
    {
        let out = answered.into_iter().filter(|sent| sent.parked).count();
        self.parked.iter_mut().for_each(|parked| parked.answered(out));
    }

    fn answered(&mut self) {
        debug_assert!(self.unconfirmed > 0, "an answer to a message that was not sent");
        self.unconfirmed -= 1;
    }

    /// Decides which acknowledged messages are delivered, and puts those that reached nobody back to the front, or aside.
    pub fn resolve(&mut self, now: Instant) -> Resolution<M> {
        let Resolved { delivered, mut returned } = self.acknowledged.resolve(self.unconfirmed);
        if !delivered.is_empty() {
            self.nack_pause.reset();
            self.alone = self.alone.saturating_sub(delivered.len());
        }
        returned.sort_unstable_by_key(|sent| sent.tag);
        self.in_doubt += returned.iter().filter(|sent| sent.in_doubt).count();
        self.found_out(delivered.iter().chain(&returned));
        let route = if let Some(parked) = &mut self.parked {
            // The broker has taken their size, too.
            self.alone = self.alone.saturating_sub(returned.len());
            let missing = !returned.is_empty();
            let again = returned.into_iter().map(|sent| Waiting { parked: true, ..sent.again() });
            let waiting = parked.park(again, now);
            match parked.found() {
                _ if missing => Route::Missing { waiting },
                Some(waited) => Route::Found { waited },
                None => Route::Unchanged,
            }
        } else if !returned.is_empty() {
            debug_assert_eq!(self.unconfirmed, 0, "undecided until the last answer");
            returned.into_iter().rev().for_each(|sent| self.waiting.push_front(sent.again()));
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

    /// Messages that were published on the present channel and are not answered.
    pub fn unconfirmed(&self) -> usize {
        self.unconfirmed
    }

    /// Messages that may have reached a queue without an answer, on this channel or on one that was lost.
    pub fn unanswered(&self) -> usize {
        self.unconfirmed + self.in_doubt
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
