//! The confirm window of an exchange that looks at routing keys, against a broker where some keys have a queue, which closes
//! the channel for a message that is too large, and goes away: no message waits for another one's queue, each reaches its own
//! once, and none is lost with a connection.

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::parked::PAUSE_MAX;
use super::{Route, Sent, Window};

const KEYS: usize = 4;
const SIZE: usize = 5;

/// A message is its number.
type Number = usize;

#[derive(Debug, Clone)]
enum Step {
    /// The pipeline has a new message for each of these paths that has none on its way.
    Add(Vec<usize>),
    /// As `Add`, and larger than the broker takes.
    AddLarge(usize),
    /// The broker handles so many of the messages that were published.
    Handle(usize),
    /// The broker confirms some messages that it has handled, in any order, and the loop resolves them together.
    Confirm(Vec<usize>),
    /// The broker handles so many messages, some of its confirms arrive, and the connection is lost.
    Lose(usize, Vec<usize>),
    /// This key has a queue from now on, or none any more.
    Bind(usize, bool),
    Wait(u64),
    /// The broker rejects the next message that reaches a queue.
    Reject,
}

struct Message {
    /// Its key is the path modulo [`KEYS`].
    path: usize,
    large: bool,
    ended: Option<Ended>,
    /// A channel was lost before the answer.
    in_doubt: bool,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Ended {
    Delivered,
    /// It is too large.
    Refused,
}

struct Model {
    window: Window<Number>,
    now: Instant,
    messages: Vec<Message>,
    /// No queue has taken these when they were answered last.
    aside: BTreeSet<Number>,
    /// Acknowledged, while it is open which of them were returned.
    acked: BTreeSet<Number>,
    returned: BTreeSet<Number>,
    bound: [bool; KEYS],
    reject: bool,
    /// The broker says how large a message may be.
    names_the_limit: bool,
    published: VecDeque<Sent<Number>>,
    /// Handled and not confirmed yet; `true`: rejected.
    handled: Vec<(Sent<Number>, bool)>,
    /// Messages that the client has got back and not attached to a confirm yet.
    returns: VecDeque<Number>,
    /// What has reached a queue, in order.
    reached: Vec<Number>,
    routes: Vec<Route>,
}

impl Model {
    fn new(names_the_limit: bool) -> Self {
        Self {
            window: Window::by_key(SIZE),
            now: Instant::now(),
            messages: Vec::new(),
            aside: BTreeSet::new(),
            acked: BTreeSet::new(),
            returned: BTreeSet::new(),
            bound: [true; KEYS],
            reject: false,
            names_the_limit,
            published: VecDeque::new(),
            handled: Vec::new(),
            returns: VecDeque::new(),
            reached: Vec::new(),
            routes: Vec::new(),
        }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Add(paths) => paths.iter().for_each(|path| self.add(*path, false)),
            Step::AddLarge(path) => self.add(*path, true),
            Step::Handle(count) => self.handle(*count),
            Step::Confirm(picks) => self.confirm(picks),
            Step::Lose(handled, picks) => {
                self.handle(*handled);
                self.confirm(picks);
                self.lose();
            }
            Step::Bind(key, bound) => self.bound[*key] = *bound,
            Step::Wait(millis) => self.now += Duration::from_millis(*millis),
            Step::Reject => self.reject = true,
        }
        self.publish();
        self.check();
    }

    fn add(&mut self, path: usize, large: bool) {
        if self.messages.iter().all(|message| message.path != path || message.ended.is_some()) {
            self.window.add([self.messages.len()]);
            self.messages.push(Message { path, large, ended: None, in_doubt: false });
        }
    }

    fn publish(&mut self) {
        while let Some(sent) = self.window.next(self.now) {
            self.published.push_back(sent);
        }
    }

    fn handle(&mut self, count: usize) {
        for _ in 0..count {
            let Some(sent) = self.published.pop_front() else { return };
            let number = *sent.message();
            if self.messages[number].large {
                self.published.push_front(sent);
                return self.refuse(number);
            }
            let bound = self.bound[self.messages[number].path % KEYS];
            let rejected = bound && std::mem::take(&mut self.reject);
            if !bound {
                self.returns.push_back(number);
            } else if !rejected {
                self.reached.push(number);
            }
            self.handled.push((sent, rejected));
        }
    }

    fn confirm(&mut self, picks: &[usize]) {
        for pick in picks {
            if self.handled.is_empty() {
                break;
            }
            let (sent, rejected) = self.handled.swap_remove(pick % self.handled.len());
            if let Some(returned) = self.returns.pop_front() {
                self.returned.insert(returned);
                self.window.returned(Some(returned as u128));
            }
            let number = *sent.message();
            if rejected {
                self.aside.remove(&number);
                self.window.nacked(sent, self.now);
            } else {
                self.acked.insert(number);
                self.window.acked(number as u128, sent);
            }
        }
        self.resolve();
    }

    fn resolve(&mut self) {
        let resolution = self.window.resolve(self.now);
        let delivered: BTreeSet<Number> = resolution.delivered.into_iter().map(Sent::into_message).collect();
        if !self.returned.is_empty() && self.unanswered() > 0 {
            assert!(delivered.is_empty(), "undecided");
            return self.routes.push(resolution.route);
        }
        let (acked, returned) = (std::mem::take(&mut self.acked), std::mem::take(&mut self.returned));
        assert_eq!(delivered, &acked - &returned);
        delivered.iter().for_each(|&number| self.messages[number].ended = Some(Ended::Delivered));
        self.aside = &(&self.aside - &delivered) | &returned;
        match resolution.route {
            Route::Missing { waiting } => assert!(!returned.is_empty() && waiting == self.aside.len()),
            Route::Found { .. } => assert!(returned.is_empty() && self.aside.is_empty()),
            Route::Unchanged => assert!(returned.is_empty()),
        }
        self.routes.push(resolution.route);
    }

    fn unanswered(&self) -> usize {
        self.published.len() + self.handled.len()
    }

    /// All published messages without an answer, in the order in which the client's futures happen to fail.
    fn take_unanswered(&mut self) -> Vec<Sent<Number>> {
        self.returns.clear();
        self.returned.clear();
        let handled = self.handled.drain(..).map(|(sent, _)| sent).rev();
        let unanswered: Vec<_> = handled.chain(self.published.drain(..)).collect();
        let acked = std::mem::take(&mut self.acked);
        let in_doubt = acked.into_iter().chain(unanswered.iter().map(|sent| *sent.message()));
        in_doubt.for_each(|number| self.messages[number].in_doubt = true);
        unanswered
    }

    /// The connection is lost, or the channel.
    fn lose(&mut self) {
        let unanswered = self.take_unanswered();
        self.window.lost(unanswered);
    }

    /// The broker closes the channel at this message, which is too large.
    fn refuse(&mut self, number: Number) {
        let unanswered = self.take_unanswered();
        let is_large = |number: &Number| self.messages[*number].large;
        let open = |number: &Number| self.messages[*number].ended.is_none();
        let expected: BTreeSet<Number> = match (self.names_the_limit, unanswered.len()) {
            (true, _) => (0..self.messages.len()).filter(|number| is_large(number) && open(number)).collect(),
            (false, 1) => [number].into(),
            (false, _) => BTreeSet::new(),
        };
        let refused = self.window.refused(unanswered, |number| self.names_the_limit && is_large(number));
        assert_eq!(refused.into_iter().collect::<BTreeSet<_>>(), expected);
        expected.iter().for_each(|&number| self.messages[number].ended = Some(Ended::Refused));
        self.aside = &self.aside - &expected;
    }

    /// What holds once everything is published that may be.
    fn check(&self) {
        let unanswered = self.unanswered();
        assert!(unanswered <= SIZE && self.window.unconfirmed() == unanswered);
        let sent = self.published.iter().chain(self.handled.iter().map(|(sent, _)| sent));
        let out: BTreeSet<Number> = sent.map(|sent| *sent.message()).chain(self.acked.iter().copied()).collect();
        let open = || self.messages.iter().enumerate().filter(|(_, message)| message.ended.is_none());
        assert_eq!(self.window.left(), open().count(), "no message is lost");
        assert_eq!(self.window.unroutable(), self.aside.len());
        let in_doubt = open().filter(|(number, message)| message.in_doubt && !out.contains(number)).count();
        assert_eq!(self.window.unanswered(), unanswered + in_doubt);
        assert_eq!(self.window.is_done(), unanswered == 0 && open().all(|(number, _)| self.aside.contains(&number)));
        let next_at = self.window.next_at();
        assert!(next_at.is_some() || unanswered > 0 || self.window.left() == 0, "what waits has its time");
        assert!(next_at.is_none_or(|at| at > self.now && at <= self.now + PAUSE_MAX), "and it comes");
    }

    /// The broker handles and confirms everything, until nothing may go out at this moment. Returns what that has shown.
    fn run(&mut self) -> Vec<Route> {
        self.routes.clear();
        self.publish();
        while self.unanswered() > 0 {
            self.step(&Step::Handle(usize::MAX));
            self.step(&Step::Confirm(vec![0; self.handled.len()]));
        }
        self.check();
        std::mem::take(&mut self.routes)
    }

    fn count(&self, ended: Ended) -> usize {
        self.messages.iter().filter(|message| message.ended == Some(ended)).count()
    }
}

#[test]
fn a_message_without_a_queue_holds_up_no_other() {
    let mut model = Model::new(true);
    model.bound[1] = false;
    (0..40).for_each(|path| model.add(path, false));
    let routes = model.run();
    assert_eq!(model.count(Ended::Delivered), 30);
    assert!(routes.iter().all(|route| !matches!(route, Route::Found { .. })));
    assert_eq!((model.window.unroutable(), model.window.left(), model.window.is_done()), (10, 10, true));
    model.bound[1] = true;
    assert!(model.run().is_empty(), "the pause is not over");
    model.now += PAUSE_MAX;
    assert!(matches!(model.run().last(), Some(Route::Found { waited: 10 })));
    assert_eq!((model.window.unroutable(), model.window.left(), model.reached.len()), (0, 0, 40));
}

/// A window with ten messages that wait for a queue, from the keys' second.
fn with_ten_parked(names_the_limit: bool) -> Model {
    let mut model = Model::new(names_the_limit);
    model.bound[1] = false;
    (0..40).for_each(|path| model.add(path, false));
    model.run();
    model
}

#[test]
fn what_waits_for_a_queue_outlives_the_connection_and_goes_on_waiting() {
    let mut model = with_ten_parked(true);
    model.lose();
    model.check();
    assert!(model.window.next(model.now).is_none(), "the pause is not over");

    // Some of them are out when the next connection is lost: they go out again first.
    model.now += PAUSE_MAX;
    model.publish();
    let out: Vec<Number> = model.published.iter().map(|sent| *sent.message()).collect();
    model.step(&Step::Lose(3, Vec::new()));
    let again: Vec<Number> = model.published.iter().map(|sent| *sent.message()).collect();
    assert_eq!((out.len(), model.window.unroutable(), model.window.unanswered()), (SIZE, 10, SIZE));
    assert!(again == out && !model.window.is_done(), "{again:?} after {out:?}");

    // One answer of several does not say that all have reached a queue.
    model.bound[1] = true;
    model.step(&Step::Handle(1));
    model.step(&Step::Confirm(vec![0]));
    assert_eq!(model.routes.last(), Some(&Route::Unchanged));
    model.now += PAUSE_MAX;
    assert!(matches!(model.run().last(), Some(Route::Found { waited: 10 })));
    assert_eq!((model.window.left(), model.count(Ended::Delivered)), (0, 40));
}

#[test]
fn what_waits_for_a_queue_does_not_keep_the_others_one_at_a_time_behind_a_message_that_is_too_large() {
    let mut model = with_ten_parked(false);
    for path in [100, 102, 103] {
        model.add(path, path == 102);
    }
    model.publish();
    model.handle(usize::MAX);
    model.publish();
    assert_eq!(model.unanswered(), 1, "it is open which one is too large");
    model.now += PAUSE_MAX;
    let routes = model.run();
    assert!(routes.iter().all(|route| !matches!(route, Route::Found { .. })), "{routes:?}");
    assert_eq!((model.count(Ended::Refused), model.window.unroutable(), model.window.left()), (1, 10, 10));
    (200..200 + 4 * SIZE).filter(|path| path % KEYS != 1).for_each(|path| model.add(path, false));
    model.publish();
    assert_eq!(model.unanswered(), SIZE);
    model.run();

    // After another connection's broker has taken less, what waits is too large as well.
    let parked: Vec<Number> = model.aside.iter().copied().collect();
    parked.iter().for_each(|&number| model.messages[number].large = true);
    model.lose();
    for _ in 0..2 {
        model.now += PAUSE_MAX;
        assert!(model.run().iter().all(|route| *route == Route::Unchanged));
    }
    assert_eq!((model.count(Ended::Refused), model.window.unroutable(), model.window.left()), (11, 0, 0));
}

/// Those behind the ones without an answer go out one at a time too, until one of all of them is refused.
#[test]
fn what_goes_out_one_at_a_time_goes_before_what_waits_for_a_queue() {
    let mut model = with_ten_parked(false);
    let parked = model.aside.clone();
    [100, 102, 103, 104, 106, 107, 108].into_iter().for_each(|path| model.add(path, path == 102));
    model.publish();
    model.handle(usize::MAX);
    model.now += PAUSE_MAX;
    model.publish();
    while model.count(Ended::Delivered) < 30 + 6 {
        let out: Vec<Number> = model.published.iter().map(|sent| *sent.message()).collect();
        assert!(matches!(out[..], [one] if !parked.contains(&one)), "{out:?}");
        model.step(&Step::Handle(1));
        model.step(&Step::Confirm(vec![0]));
    }
}

/// No number of new messages keeps those waiting whose pause is over.
#[test]
fn what_waits_for_a_queue_goes_before_what_is_new_once_its_pause_is_over() {
    let mut model = with_ten_parked(true);
    let parked = model.aside.clone();
    let of_parked = |model: &Model| model.published.iter().filter(|sent| parked.contains(sent.message())).count();
    (200..200 + 8 * SIZE).filter(|path| path % KEYS != 1).for_each(|path| model.add(path, false));
    model.publish();
    assert_eq!((of_parked(&model), model.published.len()), (0, SIZE), "the pause is not over");
    model.now += PAUSE_MAX;
    model.step(&Step::Handle(SIZE));
    model.step(&Step::Confirm(vec![0; SIZE]));
    assert_eq!((of_parked(&model), model.published.len()), (SIZE, SIZE));
}

#[test]
fn a_limit_that_the_broker_names_counts_for_what_waits_for_a_queue_too() {
    let mut model = with_ten_parked(true);
    let parked: Vec<Number> = model.aside.iter().copied().collect();
    parked[..9].iter().for_each(|&number| model.messages[number].large = true);
    model.lose();
    model.now += PAUSE_MAX;
    model.run();
    assert_eq!((model.count(Ended::Refused), model.window.unroutable(), model.window.left()), (9, 1, 1));
    model.bound[1] = true;
    model.now += PAUSE_MAX;
    assert_eq!(model.run().last(), Some(&Route::Found { waited: 1 }));
    assert_eq!(model.window.left(), 0);
}

const PATHS: usize = 12;

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let picks = || prop::collection::vec(any::<usize>(), 1..=SIZE);
    let step = prop_oneof![
        4 => prop::collection::vec(0..PATHS, 1..=PATHS).prop_map(Step::Add),
        1 => (0..PATHS).prop_map(Step::AddLarge),
        4 => (1..=SIZE).prop_map(Step::Handle),
        4 => picks().prop_map(Step::Confirm),
        1 => (0..=SIZE, picks()).prop_map(|(handled, picks)| Step::Lose(handled, picks)),
        2 => (0..KEYS, any::<bool>()).prop_map(|(key, bound)| Step::Bind(key, bound)),
        3 => (0..5_000u64).prop_map(Step::Wait),
        1 => Just(Step::Reject),
    ];
    prop::collection::vec(step, 0..80)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8 * ProptestConfig::default().cases, ..ProptestConfig::default() })]
    /// In the end each message is delivered once, but for those that are too large, and each path's messages have reached the
    /// queue in order, repeated only where a channel was lost before the answer.
    #[test]
    fn whatever_is_bound_or_lost_each_message_is_delivered_once(steps in steps(), names_the_limit in any::<bool>()) {
        let mut model = Model::new(names_the_limit);
        steps.iter().for_each(|step| model.step(step));
        (model.bound, model.reject) = ([true; KEYS], false);
        for _ in 0..4 {
            model.now += PAUSE_MAX;
            model.run();
        }
        prop_assert_eq!((model.window.left(), model.window.unroutable()), (0, 0));
        for path in 0..PATHS {
            let of_path = |number: &&Number| model.messages[**number].path == path;
            let reached: Vec<_> = model.reached.iter().filter(of_path).collect();
            prop_assert!(reached.is_sorted(), "path {path}: {reached:?}");
        }
        for (number, message) in model.messages.iter().enumerate() {
            prop_assert_eq!(message.ended, Some(if message.large { Ended::Refused } else { Ended::Delivered }));
            let times = model.reached.iter().filter(|&&reached| reached == number).count();
            prop_assert!(times == usize::from(!message.large) || message.in_doubt && times > 1, "{number}: {times} times");
        }
    }
}
