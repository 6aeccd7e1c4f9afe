//! The confirm window against a naive model: a broker that takes, rejects or returns messages, closes the channel for a
//! message that is too large, and goes away; a client that attaches each return to the confirm that it resolves next, and
//! confirms in any order. The model is a list of all messages with their states, and scans it for each answer that it
//! expects of the window.

use std::collections::{HashSet, VecDeque};
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::{NACK_PAUSE_MAX, NACK_PAUSE_MIN, Route, Sent, UNROUTABLE_PAUSE_MAX, UNROUTABLE_PAUSE_MIN, Window};

const PATHS: usize = 6;

/// A message is its own number, counted over all paths.
type Number = usize;

#[derive(Debug, Clone)]
enum Step {
    /// The pipeline has a new message for each of these paths that has none on its way.
    Add(Vec<usize>),
    /// The broker handles so many of the messages that were published.
    Handle(usize, Fate),
    /// The broker confirms some messages that it has handled, in any order, and the loop resolves them together.
    Confirm(Vec<usize>),
    /// The pipeline has a new message that is larger than the broker takes.
    AddLarge(usize),
    /// The broker handles so many messages, some of its confirms arrive, and the connection is lost.
    Lose(usize, Vec<usize>),
    /// A queue is bound, or none is any more.
    Bind(bool),
    Wait(u64),
}

/// What the broker does with a message, where a queue is bound or not.
#[derive(Debug, Clone, Copy)]
enum Fate {
    Route,
    Reject,
    /// As `Route`, but the returned message carries this id, or none.
    RouteUnnamed(Option<u128>),
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum State {
    Waiting,
    Sent,
    Acked,
    Rejected,
    Confirmed,
    /// It is too large.
    Refused,
}

struct Message {
    path: usize,
    large: bool,
    state: State,
    tag: u64,
    /// A channel was lost before the answer.
    in_doubt: bool,
}

#[derive(Default)]
struct Broker {
    bound: bool,
    published: VecDeque<Sent<Number>>,
    /// Handled and not confirmed yet; `true`: rejected.
    handled: Vec<(Sent<Number>, bool)>,
    /// Ids of returned messages that the client has received and not attached to a confirm yet.
    returns: VecDeque<Option<u128>>,
    /// What has reached a queue, in order.
    queue: Vec<Number>,
}

struct Model {
    window: Window<Number>,
    size: usize,
    now: Instant,
    broker: Broker,
    messages: Vec<Message>,
    /// The waiting messages, first the next one.
    waiting: Vec<Number>,
    acked: Vec<Number>,
    returned: Vec<Option<u128>>,
    tags: u64,
    resend_at: Option<Instant>,
    nack_pause: Duration,
    probe_at: Option<Instant>,
    probe_pause: Duration,
    /// The broker says how large a message may be.
    names_the_limit: bool,
    /// So many messages go out one at a time.
    alone: usize,
    /// A returned message had no readable id, so that others are repeated for it.
    unnamed: bool,
}

impl Model {
    fn new(size: usize, names_the_limit: bool) -> Self {
        Self {
            window: Window::new(size),
            size,
            now: Instant::now(),
            broker: Broker { bound: true, ..Broker::default() },
            messages: Vec::new(),
            waiting: Vec::new(),
            acked: Vec::new(),
            returned: Vec::new(),
            tags: 0,
            resend_at: None,
            nack_pause: NACK_PAUSE_MIN,
            probe_at: None,
            probe_pause: UNROUTABLE_PAUSE_MIN,
            names_the_limit,
            alone: 0,
            unnamed: false,
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Add(paths) => self.add(&paths, false),
            Step::AddLarge(path) => self.add(&[path], true),
            Step::Lose(handled, picks) => {
                self.handle(handled, Fate::Route);
                self.confirm(&picks);
                self.lose();
            }
            Step::Handle(count, fate) => self.handle(count, fate),
            Step::Confirm(picks) => self.confirm(&picks),
            Step::Bind(bound) => self.broker.bound = bound,
            Step::Wait(millis) => self.now += Duration::from_millis(millis),
        }
        // As the loop does after whatever woke it.
        self.publish();
        self.check();
    }

    fn of(&self, state: State) -> Vec<Number> {
        (0..self.messages.len()).filter(|&number| self.messages[number].state == state).collect()
    }

    fn add(&mut self, paths: &[usize], large: bool) {
        assert_eq!(self.window.wants_more(), self.waiting.is_empty() || self.probe_at.is_some());
        if !self.window.wants_more() {
            return;
        }
        for &path in paths {
            let ended = |message: &Message| matches!(message.state, State::Confirmed | State::Refused);
            if self.messages.iter().all(|message| message.path != path || ended(message)) {
                self.waiting.push(self.messages.len());
                self.window.add([self.messages.len()]);
                self.messages.push(Message { path, large, state: State::Waiting, tag: 0, in_doubt: false });
            }
        }
    }

    /// The next message that may be published.
    fn expected(&self) -> Option<Number> {
        let sent = self.of(State::Sent).len();
        if let Some(at) = self.probe_at {
            return self.waiting.first().copied().filter(|_| sent == 0 && self.now >= at);
        }
        if !self.returned.is_empty() || self.alone > 0 && sent > 0 {
            return None;
        }
        match self.of(State::Rejected).into_iter().min_by_key(|&number| self.messages[number].tag) {
            Some(rejected) => Some(rejected).filter(|_| self.resend_at.is_some_and(|at| self.now >= at)),
            None => self.waiting.first().copied().filter(|_| sent < self.size),
        }
    }

    fn publish(&mut self) {
        loop {
            let expected = self.expected();
            let sent = self.window.next(self.now);
            assert_eq!(sent.as_ref().map(|sent| *sent.message()), expected, "the next message");
            let Some(sent) = sent else { return };
            let number = *sent.message();
            self.tags += 1;
            assert_eq!(sent.tag, self.tags);
            self.waiting.retain(|&waiting| waiting != number);
            (self.messages[number].state, self.messages[number].tag) = (State::Sent, self.tags);
            self.broker.published.push_back(sent);
        }
    }

    fn handle(&mut self, count: usize, fate: Fate) {
        for _ in 0..count {
            let Some(sent) = self.broker.published.pop_front() else { return };
            let number = *sent.message();
            if self.messages[number].large {
                self.broker.published.push_front(sent);
                return self.refuse(number);
            }
            let rejected = self.broker.bound && matches!(fate, Fate::Reject);
            if !self.broker.bound {
                let id = if let Fate::RouteUnnamed(id) = fate { id } else { Some(number as u128) };
                self.unnamed |= id != Some(number as u128);
                self.broker.returns.push_back(id);
            } else if !rejected {
                self.broker.queue.push(number);
            }
            self.broker.handled.push((sent, rejected));
        }
    }

    fn confirm(&mut self, picks: &[usize]) {
        self.answer(picks);
        self.resolve();
    }

    /// All published messages without an answer, in the order in which the client's futures happen to fail.
    fn take_unanswered(&mut self) -> Vec<Sent<Number>> {
        self.broker.returns.clear();
        let handled = self.broker.handled.drain(..).map(|(sent, _)| sent).rev();
        handled.chain(self.broker.published.drain(..)).collect()
    }

    /// The connection is lost, or the channel.
    fn lose(&mut self) {
        let unanswered = self.take_unanswered();
        let expected = self.put_back();
        assert_eq!(self.window.lost(unanswered), expected);
    }

    /// What has no answer waits again, first in the order of the delivery tags. Returns how many these are.
    fn put_back(&mut self) -> usize {
        let mut again = self.of(State::Rejected);
        for state in [State::Sent, State::Acked] {
            again.extend(self.of(state));
            self.of(state).iter().for_each(|&number| self.messages[number].in_doubt = true);
        }
        again.sort_by_key(|&number| self.messages[number].tag);
        again.iter().for_each(|&number| self.messages[number].state = State::Waiting);
        let count = again.len();
        self.waiting.splice(0..0, again);
        (self.resend_at, self.probe_at) = (None, None);
        self.acked.clear();
        self.returned.clear();
        count
    }

    /// The broker closes the channel at this message, which is too large.
    fn refuse(&mut self, number: Number) {
        let unanswered = self.take_unanswered();
        let alone = unanswered.len() == 1;
        let large: HashSet<Number> = self.all_large().collect();
        let mut refused = self.window.refused(unanswered, |number| self.names_the_limit && large.contains(number));
        refused.sort_unstable();
        let expected: Vec<Number> = match (self.names_the_limit, alone) {
            (true, _) => self.all_large().filter(|&it| self.messages[it].state != State::Refused).collect(),
            (false, true) => vec![number],
            (false, false) => Vec::new(),
        };
        assert_eq!(refused, expected);
        expected.iter().for_each(|&it| self.messages[it].state = State::Refused);
        self.waiting.retain(|it| !expected.contains(it));
        self.put_back();
        self.alone = if expected.is_empty() { self.waiting.len() } else { self.alone.saturating_sub(expected.len()) };
    }

    fn all_large(&self) -> impl Iterator<Item = Number> {
        (0..self.messages.len()).filter(|&number| self.messages[number].large)
    }

    fn answer(&mut self, picks: &[usize]) {
        for pick in picks {
            if self.broker.handled.is_empty() {
                break;
            }
            let (sent, rejected) = self.broker.handled.swap_remove(pick % self.broker.handled.len());
            if let Some(id) = self.broker.returns.pop_front() {
                self.returned.push(id);
                self.window.returned(id);
            }
            let number = *sent.message();
            assert_eq!(self.messages[number].state, State::Sent, "one answer to each");
            if rejected {
                self.nacked(sent);
            } else {
                self.messages[number].state = State::Acked;
                self.acked.push(number);
                self.window.acked(number as u128, sent);
            }
        }
    }

    fn nacked(&mut self, sent: Sent<Number>) {
        let first = self.of(State::Rejected).is_empty();
        self.messages[*sent.message()].state = State::Rejected;
        let pause = self.window.nacked(sent, self.now);
        assert_eq!(pause, first.then_some(self.nack_pause));
        if first {
            self.resend_at = Some(self.now + self.nack_pause);
            self.nack_pause = (self.nack_pause * 2).min(NACK_PAUSE_MAX);
        }
    }

    fn resolve(&mut self) {
        let resolution = self.window.resolve(self.now);
        let delivered: Vec<Number> = resolution.delivered.into_iter().map(Sent::into_message).collect();
        for number in &delivered {
            assert!(self.broker.queue.contains(number), "{number} counts as delivered and reached no queue");
        }
        if !self.returned.is_empty() && !self.of(State::Sent).is_empty() {
            assert!(delivered.is_empty() && resolution.route == Route::Unchanged, "undecided");
            return;
        }
        let came_back = std::mem::take(&mut self.returned);
        let acked = std::mem::take(&mut self.acked);
        let is_returned = |number: &Number| came_back.contains(&Some(*number as u128));
        let all_named = came_back.iter().all(|id| acked.iter().any(|&number| Some(number as u128) == *id));
        let (mut again, expected): (Vec<Number>, Vec<Number>) =
            acked.into_iter().partition(|number| !all_named || is_returned(number));
        assert_eq!(delivered, expected);
        if !delivered.is_empty() {
            self.nack_pause = NACK_PAUSE_MIN;
            self.alone = self.alone.saturating_sub(delivered.len());
        }
        delivered.iter().for_each(|&number| self.messages[number].state = State::Confirmed);
        let route = if !again.is_empty() {
            again.sort_by_key(|&number| self.messages[number].tag);
            again.iter().for_each(|&number| self.messages[number].state = State::Waiting);
            self.waiting.splice(0..0, again);
            self.probe_at = Some(self.now + self.probe_pause);
            self.probe_pause = (self.probe_pause * 2).min(UNROUTABLE_PAUSE_MAX);
            Route::Missing { waiting: self.waiting.len() }
        } else if self.probe_at.take().is_some() {
            self.probe_pause = UNROUTABLE_PAUSE_MIN;
            Route::Found { waited: self.waiting.len() + 1 }
        } else {
            Route::Unchanged
        };
        assert_eq!(resolution.route, route);
    }

    /// What the window reports of itself, once everything is published that may be.
    fn check(&self) {
        let sent = self.of(State::Sent).len();
        assert!(sent <= self.size, "more than there is room for");
        assert_eq!(self.window.unconfirmed(), sent);
        assert_eq!(self.window.unroutable(), if self.probe_at.is_some() { self.waiting.len() + sent } else { 0 });
        let ended = self.of(State::Confirmed).len() + self.of(State::Refused).len();
        assert_eq!(self.window.left(), self.messages.len() - ended, "nothing is lost");
        let waiting = [State::Waiting, State::Rejected].map(|state| self.of(state)).concat();
        let in_doubt = waiting.iter().filter(|&&number| self.messages[number].in_doubt).count();
        assert_eq!(self.window.unanswered(), sent + in_doubt);
        let done = sent == 0 && (self.probe_at.is_some() || self.window.left() == 0);
        assert_eq!(self.window.is_done(), done);
        let rejected = self.resend_at.filter(|_| !self.of(State::Rejected).is_empty());
        let next_at = match self.probe_at {
            Some(at) => Some(at).filter(|_| sent == 0),
            None => rejected.filter(|_| self.returned.is_empty()),
        };
        assert_eq!(self.window.next_at(), next_at);
    }

    /// A queue is bound, the broker handles and confirms everything, and time goes by.
    fn come_to_rest(&mut self) {
        for _ in 0..4 {
            self.step(Step::Bind(true));
            self.step(Step::Handle(usize::MAX, Fate::Route));
            self.step(Step::Confirm(vec![0; self.broker.handled.len()]));
            self.step(Step::Wait(UNROUTABLE_PAUSE_MAX.max(NACK_PAUSE_MAX).as_millis() as u64));
        }
        // A window smaller than the number of messages takes several rounds, and so does finding one that is too large.
        for _ in 0..4 * self.messages.len() {
            self.step(Step::Handle(usize::MAX, Fate::Route));
            self.step(Step::Confirm(vec![0; self.broker.handled.len()]));
        }
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let fate = prop_oneof![
        6 => Just(Fate::Route),
        2 => Just(Fate::Reject),
        1 => prop::option::of(Just(u128::MAX)).prop_map(Fate::RouteUnnamed),
    ];
    let step = prop_oneof![
        4 => prop::collection::vec(0..PATHS, 1..=PATHS).prop_map(Step::Add),
        4 => (1..=PATHS, fate).prop_map(|(count, fate)| Step::Handle(count, fate)),
        4 => picks().prop_map(Step::Confirm),
        1 => (0..PATHS).prop_map(Step::AddLarge),
        1 => (0..=PATHS, picks()).prop_map(|(handled, picks)| Step::Lose(handled, picks)),
        1 => any::<bool>().prop_map(Step::Bind),
        2 => prop_oneof![0..120u64, 900..12_000u64].prop_map(Step::Wait),
    ];
    prop::collection::vec(step, 0..80)
}

fn picks() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(any::<usize>(), 1..=PATHS)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8 * ProptestConfig::default().cases, ..ProptestConfig::default() })]
    /// After each step the window is as the model expects, and what counts as delivered has reached a queue. In the end each
    /// message is confirmed once, but for those that are too large, and each path's messages have reached the queue in order,
    /// repeated only where a channel was lost before the answer.
    #[test]
    fn every_history_ends_with_each_message_confirmed_once(
        steps in steps(),
        size in 1..=PATHS,
        names_the_limit in any::<bool>(),
    ) {
        let mut model = Model::new(size, names_the_limit);
        for step in steps {
            model.step(step);
        }
        model.come_to_rest();
        prop_assert!(model.window.is_done());
        prop_assert_eq!(model.of(State::Refused), model.all_large().collect::<Vec<_>>());
        prop_assert_eq!(model.of(State::Confirmed).len() + model.of(State::Refused).len(), model.messages.len());
        for path in 0..PATHS {
            let of_path = |number: &&Number| model.messages[**number].path == path;
            let reached: Vec<_> = model.broker.queue.iter().filter(of_path).collect();
            prop_assert!(reached.is_sorted(), "path {path}: {reached:?}");
        }
        for (number, message) in model.messages.iter().enumerate() {
            let times = model.broker.queue.iter().filter(|&&reached| reached == number).count();
            let repeated = message.in_doubt || model.unnamed;
            prop_assert!(times == usize::from(!message.large) || repeated && times > 1, "{number}: {times} times");
        }
    }
}
