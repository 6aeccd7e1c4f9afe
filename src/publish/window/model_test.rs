//! The confirm window against a naive model: a broker that takes, rejects or returns messages, a client that attaches each
//! return to the confirm that it resolves next, and confirms in any order. The model is a list of all messages with their
//! states, and scans it for each answer that it expects of the window.

use std::collections::VecDeque;
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
    /// The connection failed before the answer.
    Lost,
}

struct Message {
    path: usize,
    state: State,
    tag: u64,
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
}

impl Model {
    fn new(size: usize) -> Self {
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
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Add(paths) => self.add(&paths),
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

    fn add(&mut self, paths: &[usize]) {
        assert_eq!(self.window.wants_more(), self.waiting.is_empty() || self.probe_at.is_some());
        if !self.window.wants_more() {
            return;
        }
        for &path in paths {
            if self.messages.iter().all(|message| message.path != path || message.state == State::Confirmed) {
                self.waiting.push(self.messages.len());
                self.window.add([self.messages.len()]);
                self.messages.push(Message { path, state: State::Waiting, tag: 0 });
            }
        }
    }

    /// The next message that may be published.
    fn expected(&self) -> Option<Number> {
        let sent = self.of(State::Sent).len();
        if let Some(at) = self.probe_at {
            return self.waiting.first().copied().filter(|_| sent == 0 && self.now >= at);
        }
        if !self.returned.is_empty() {
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
            let rejected = self.broker.bound && matches!(fate, Fate::Reject);
            if !self.broker.bound {
                let id = if let Fate::RouteUnnamed(id) = fate { id } else { Some(number as u128) };
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

    /// As `confirm`, but behind these answers the connection fails, which shows at one of the other messages first.
    fn fail(&mut self, picks: &[usize]) {
        self.answer(picks);
        if let Some(sent) =
            self.broker.handled.pop().map(|(sent, _)| sent).or_else(|| self.broker.published.pop_front())
        {
            self.messages[*sent.message()].state = State::Lost;
            self.window.failed(sent);
            self.resolve();
        }
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
        assert_eq!(self.window.left(), self.messages.len() - self.of(State::Confirmed).len(), "nothing is lost");
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
        // A window smaller than the number of messages takes several rounds.
        while self.broker.published.len() + self.broker.handled.len() > 0 {
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
    /// After each step the window is as the model expects. Each message is confirmed once, and each path's messages reach the
    /// queue in order.
    #[test]
    fn every_history_ends_with_each_message_confirmed_once(steps in steps(), size in 1..=PATHS) {
        let mut model = Model::new(size);
        for step in steps {
            model.step(step);
        }
        model.come_to_rest();
        prop_assert!(model.window.is_done());
        prop_assert_eq!(model.of(State::Confirmed).len(), model.messages.len());
        for path in 0..PATHS {
            let of_path = |number: &&Number| model.messages[**number].path == path;
            let reached: Vec<_> = model.broker.queue.iter().filter(of_path).collect();
            prop_assert!(reached.is_sorted(), "path {path}: {reached:?}");
        }
    }

    /// The connection may fail at any answer. What counts as delivered then has reached a queue, as `resolve` asserts.
    #[test]
    fn nothing_lost_counts_as_delivered_when_the_connection_fails(
        steps in steps(),
        size in 1..=PATHS,
        handled in 0..=PATHS,
        picks in picks(),
    ) {
        let mut model = Model::new(size);
        for step in steps {
            model.step(step);
        }
        model.handle(handled, Fate::Route);
        model.fail(&picks);
    }
}
