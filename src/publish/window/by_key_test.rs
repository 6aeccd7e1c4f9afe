//! The confirm window of an exchange that looks at routing keys, against a broker where some keys have a queue: no message waits
//! for another one's queue, and each reaches its own once.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::parked::PAUSE_MAX;
use super::{Route, Sent, Window};

const KEYS: usize = 4;
const SIZE: usize = 5;

/// A message is its number; its key is the number modulo [`KEYS`].
type Number = usize;

#[derive(Debug, Clone)]
enum Step {
    Add(usize),
    /// This key has a queue from now on, or none any more.
    Bind(usize, bool),
    Wait(u64),
    /// The broker rejects the next message that reaches a queue.
    Reject,
}

struct Model {
    window: Window<Number>,
    now: Instant,
    bound: [bool; KEYS],
    added: usize,
    delivered: Vec<Number>,
    reject: bool,
}

impl Model {
    fn new() -> Self {
        let window = Window::by_key(SIZE);
        Self { window, now: Instant::now(), bound: [true; KEYS], added: 0, delivered: Vec::new(), reject: false }
    }

    /// Publishes what may go out and answers all of it, until nothing may go out at this moment.
    fn run(&mut self) -> Vec<Route> {
        let mut routes = Vec::new();
        loop {
            let mut sent: Vec<Sent<Number>> = Vec::new();
            while let Some(next) = self.window.next(self.now) {
                sent.push(next);
            }
            assert!(sent.len() <= SIZE && self.window.unconfirmed() == sent.len());
            if sent.is_empty() {
                return routes;
            }
            for sent in sent {
                let (number, bound) = (*sent.message(), self.bound[*sent.message() % KEYS]);
                if bound && std::mem::take(&mut self.reject) {
                    self.window.nacked(sent, self.now);
                    continue;
                }
                if !bound {
                    self.window.returned(Some(number as u128));
                }
                self.window.acked(number as u128, sent);
            }
            let resolution = self.window.resolve(self.now);
            self.delivered.extend(resolution.delivered.into_iter().map(Sent::into_message));
            routes.push(resolution.route);
        }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Add(count) => {
                self.window.add(self.added..self.added + count);
                self.added += count;
            }
            Step::Bind(key, bound) => self.bound[key] = bound,
            Step::Wait(millis) => self.now += Duration::from_millis(millis),
            Step::Reject => self.reject = true,
        }
        self.run();
        self.check();
    }

    fn check(&self) {
        let unique: BTreeSet<_> = self.delivered.iter().collect();
        assert_eq!(unique.len(), self.delivered.len(), "a message was delivered twice");
        assert_eq!(self.window.left(), self.added - self.delivered.len(), "no message is lost");
        assert!(self.window.unroutable() <= self.window.left());
        let next_at = self.window.next_at();
        assert!(next_at.is_some() || self.window.left() == 0, "what waits has its time");
        assert!(next_at.is_none_or(|at| at > self.now && at <= self.now + PAUSE_MAX), "and it comes");
    }
}

#[test]
fn a_message_without_a_queue_holds_up_no_other() {
    let mut model = Model::new();
    model.bound[1] = false;
    model.window.add(0..40);
    model.added = 40;
    let routes = model.run();
    assert_eq!(model.delivered.len(), 30, "{:?}", model.delivered);
    assert!(routes.iter().all(|route| !matches!(route, Route::Found { .. })));
    assert_eq!((model.window.unroutable(), model.window.left(), model.window.is_done()), (10, 10, true));
    model.bound[1] = true;
    assert!(model.run().is_empty(), "the pause is not over");
    model.now += PAUSE_MAX;
    assert!(matches!(model.run().last(), Some(Route::Found { waited: 10 })));
    assert_eq!((model.window.unroutable(), model.window.left(), model.delivered.len()), (0, 0, 40));
}

proptest! {
    #[test]
    fn whatever_is_bound_each_message_is_delivered_once(
        steps in prop::collection::vec(
            prop_oneof![
                3 => (1..8usize).prop_map(Step::Add),
                2 => (0..KEYS, any::<bool>()).prop_map(|(key, bound)| Step::Bind(key, bound)),
                3 => (0..5_000u64).prop_map(Step::Wait),
                1 => Just(Step::Reject),
            ],
            0..60,
        ),
    ) {
        let mut model = Model::new();
        steps.iter().for_each(|step| model.step(step));
        model.bound = [true; KEYS];
        model.reject = false;
        for _ in 0..4 {
            model.now += PAUSE_MAX;
            model.run();
        }
        prop_assert_eq!(model.delivered.len(), model.added);
        prop_assert_eq!((model.window.left(), model.window.unroutable()), (0, 0));
    }
}
