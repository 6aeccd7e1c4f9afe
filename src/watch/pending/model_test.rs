//! The pending set against a model that shares nothing with its implementation: a directory of a few paths, the events that
//! the kernel would send for it, readers that see the file of the moment, and what the watch keeps of their answers. The
//! model knows for each path what is owed, and what each dispatch has to be.

use std::mem;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::{BUSY_PAUSE_MAX, Change, Due, Full, NameLost, Pending};
use crate::files::directory::DirectoryId;
use crate::files::names::Name;
use crate::files::version::Timestamp;
use crate::inquiry::Held;
use crate::message::EventType;

const HERE: DirectoryId = DirectoryId::FIRST;

const SETTLE: Duration = Duration::from_secs(1);

const PATHS: usize = 3;

/// An operation on a path. It does nothing where the path's state does not allow it.
#[derive(Debug, Clone, Copy)]
enum Operation {
    /// A new file, not closed yet.
    Create,
    /// The file changes, without an event.
    Write,
    Close,
    /// A file is renamed to this name, over another one or not.
    MoveTo,
    Delete,
    /// The watch reads the event of a deletion after another file was created there, whose own event comes next.
    Replace,
    /// A rescan compares the path. `rests`: the file was last changed long ago.
    Rescan {
        rests: bool,
    },
}

#[derive(Debug, Clone, Copy)]
enum Answer {
    Confirmed,
    Busy,
    Failed,
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Operate(usize, Operation),
    /// At most so many due paths are dispatched.
    Dispatch(usize),
    Answer(usize, Answer),
    Wait(u64),
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum File {
    None,
    Announced,
    /// A file whose own event has not been read yet.
    Unannounced,
}

/// One path: its file, and what its consumers are owed.
#[derive(Debug, Clone, Copy)]
struct Path {
    file: File,
    version: u64,
    /// The file has a writer that has not closed it.
    open: bool,
    /// The version of the last confirmed message, unless the file has lost its name since.
    known: Option<u64>,
    /// How the file came to its path, if it did since the last dispatch that led to a message.
    origin: Option<EventType>,
    /// It was dispatched before the event that says how it came, so its event type is not checked.
    undecided: bool,
    /// A dispatch is owed: there was a change after the last one, or that one led to no message.
    owed: bool,
    /// Since when a file that was not closed has to rest; nothing where an event said that it is complete.
    rests_from: Option<Instant>,
    /// When the last event was read.
    seen_at: Timestamp,
    in_flight: Option<InFlight>,
    /// It could not be read: nothing is owed until its next event.
    failed: bool,
    /// The last message said that there is a file.
    promised: bool,
    /// The last change was that the path has no file any more, and its removal is due.
    lost: bool,
}

/// A job of the path.
#[derive(Debug, Clone, Copy)]
struct InFlight {
    version: u64,
    origin: Option<EventType>,
    undecided: bool,
    /// The file has lost its name since the dispatch.
    taken_away: bool,
    /// The reader found no file, and the path's removal was due.
    removal: bool,
}

const NOTHING: Path = Path {
    file: File::None,
    version: 0,
    open: false,
    known: None,
    origin: None,
    undecided: false,
    owed: false,
    rests_from: None,
    seen_at: Timestamp { seconds: 0, nanoseconds: 0 },
    in_flight: None,
    failed: false,
    promised: false,
    lost: false,
};

/// [`Pending::event`] or [`Pending::found`].
type Add = fn(&mut Pending, DirectoryId, &Name, Change, bool, Timestamp, Instant) -> Result<(), Full>;

struct Model {
    pending: Pending,
    names: [Name; PATHS],
    paths: [Path; PATHS],
    now: Instant,
    events: i64,
    /// The waiting paths were dropped: a rescan is due.
    dropped: bool,
    bound: usize,
    /// `--removals`.
    removals: bool,
}

impl Model {
    fn new(bound: usize, removals: bool) -> Self {
        let names = [0, 1, 2].map(|number| Name::from(&[b'a' + number][..]));
        let (pending, now) = (Pending::new(SETTLE, Duration::ZERO, bound), Instant::now());
        Self { pending, names, paths: [NOTHING; PATHS], now, events: 0, dropped: false, bound, removals }
    }

    fn act(&mut self, number: usize, operation: Operation) {
        let path = &mut self.paths[number];
        match (operation, path.file) {
            (Operation::Create, File::None) => {
                path.version += 1;
                self.arrives(number, EventType::Create);
            }
            (Operation::Create | Operation::Close, File::Unannounced) => self.arrives(number, EventType::Create),
            (Operation::MoveTo, _) => {
                path.version += 1;
                self.arrives(number, EventType::MovedTo);
            }
            (Operation::Write, File::Announced) => {
                path.version += 1;
                path.open = true;
            }
            (Operation::Close, File::Announced) => {
                path.version += 1;
                path.open = false;
                self.change(number, Change::Closed);
            }
            (Operation::Delete, File::Announced) => self.taken_away(number, File::None),
            (Operation::Replace, File::Announced) => {
                path.version += 1;
                self.taken_away(number, File::Unannounced);
            }
            (Operation::Rescan { rests }, File::Announced) => self.rescan(number, rests),
            (Operation::Rescan { .. }, File::None) if self.removals && path.promised => {
                self.change_as(number, Change::Removed { how: NameLost::Deleted }, Pending::found);
            }
            _ => {}
        }
    }

    fn arrives(&mut self, number: usize, how: EventType) {
        let path = &mut self.paths[number];
        (path.file, path.open, path.origin, path.known) = (File::Announced, false, Some(how), None);
        let version = path.version;
        self.change(number, if how == EventType::MovedTo { Change::MovedTo } else { Change::Created { version } });
    }

    fn taken_away(&mut self, number: usize, file: File) {
        let path = &mut self.paths[number];
        (path.file, path.open, path.known, path.failed) = (file, false, None, false);
        if let Some(job) = &mut path.in_flight {
            job.taken_away = true;
        }
        if file == File::None {
            (path.owed, path.origin, path.rests_from) = (false, None, None);
        }
        self.pending.gone(HERE, &self.names[number], NameLost::Deleted, file == File::Unannounced);
        if self.removals && file == File::None && self.paths[number].promised {
            self.change(number, Change::Removed { how: NameLost::Renamed });
        }
    }

    fn rescan(&mut self, number: usize, rests: bool) {
        self.events += 1;
        let seen_at = Timestamp { seconds: self.events, nanoseconds: 0 };
        let path = &mut self.paths[number];
        if path.known == Some(path.version) {
            return;
        }
        let inside = self.pending.read_again(HERE, &self.names[number], false, seen_at);
        assert_eq!(inside, path.owed || path.in_flight.is_some(), "path {number}: whether it is in the set");
        if !inside {
            let changed = Change::Changed { version: self.paths[number].version };
            self.change_as(number, if rests { Change::Complete } else { changed }, Pending::found);
        } else if !path.owed {
            (path.owed, path.seen_at, path.rests_from, path.lost) = (true, seen_at, None, false);
        } else if path.lost {
            (path.seen_at, path.lost) = (seen_at, false);
        }
    }

    fn change(&mut self, number: usize, change: Change) {
        self.change_as(number, change, Pending::event);
    }

    fn change_as(&mut self, number: usize, change: Change, add: Add) {
        self.events += 1;
        let seen_at = Timestamp { seconds: self.events, nanoseconds: 0 };
        let published = self.paths[number].known.is_some();
        self.paths[number].failed = false;
        if add(&mut self.pending, HERE, &self.names[number], change, published, seen_at, self.now) == Err(Full) {
            return self.drop_waiting();
        }
        let path = &mut self.paths[number];
        let complete_before = path.owed && path.rests_from.is_none();
        path.rests_from = match change {
            Change::Created { .. } | Change::Changed { .. } if !complete_before => Some(self.now),
            _ => None,
        };
        (path.owed, path.seen_at) = (true, seen_at);
        path.lost = matches!(change, Change::Removed { .. });
    }

    /// There was no room, so the waiting paths are dropped until a rescan finds them again.
    fn drop_waiting(&mut self) {
        self.dropped = true;
        self.pending.drop_waiting();
        for path in &mut self.paths {
            if path.in_flight.is_none() {
                (path.owed, path.rests_from, path.origin) = (false, None, None);
            }
        }
    }

    fn dispatch(&mut self, most: usize) {
        for _ in 0..most {
            match self.pending.next_due(self.now, |_| true) {
                None => return,
                Some(Due::Settled { name, version, .. }) => {
                    let path = &mut self.paths[usize::from(name[0] - b'a')];
                    let early = path.rests_from.is_some_and(|from| self.now < from + SETTLE);
                    assert!(!early, "it settled too early: {path:?}");
                    let version_now = (path.file != File::None).then_some(path.version);
                    path.rests_from = (version_now != Some(version)).then_some(self.now);
                    self.pending.settled(HERE, &name, version, version_now, self.now);
                }
                Some(Due::Ready { name, event, seen_at, lost, .. }) => {
                    let number = usize::from(name[0] - b'a');
                    self.check(number, event, seen_at);
                    let path = &mut self.paths[number];
                    assert_eq!(lost.is_some(), path.lost, "path {number}: whether its removal is due");
                    if path.lost && !path.promised {
                        // The watch does the same: the removal was confirmed meanwhile.
                        self.pending.failed(HERE, &name, self.now);
                        (path.owed, path.rests_from) = (false, None);
                        continue;
                    }
                    let removal = path.lost && path.file == File::None;
                    let (version, origin, unannounced) =
                        (path.version, path.origin.take(), path.file == File::Unannounced);
                    path.in_flight = Some(InFlight {
                        version,
                        origin,
                        undecided: path.undecided || unannounced,
                        taken_away: false,
                        removal,
                    });
                    (path.owed, path.rests_from, path.undecided) = (false, None, unannounced);
                }
            }
        }
    }

    fn check(&self, number: usize, event: EventType, seen_at: Timestamp) {
        let path = &self.paths[number];
        assert!(path.in_flight.is_none(), "path {number} is dispatched twice");
        assert!(path.owed, "path {number} is dispatched without a change");
        assert_eq!(seen_at, path.seen_at, "path {number}: when its last event was read");
        assert_eq!(path.rests_from, None, "path {number} is dispatched before it has settled");
        let expected = match (path.origin, path.known) {
            (Some(origin), _) => origin,
            (None, Some(_)) => EventType::CloseWrite,
            (None, None) => EventType::Create,
        };
        if !path.undecided && path.file != File::Unannounced {
            assert_eq!(event, expected, "path {number}: how its version came there");
        }
    }

    fn answer(&mut self, number: usize, answer: Answer) {
        let path = &mut self.paths[number];
        let Some(job) = path.in_flight.take() else { return };
        let name = &self.names[number];
        match answer {
            Answer::Confirmed if job.removal => {
                self.pending.failed(HERE, name, self.now);
                path.promised = false;
            }
            Answer::Confirmed => {
                path.promised = true;
                let taken_away = self.pending.done(HERE, name, self.now).is_some();
                assert_eq!(taken_away, job.taken_away, "path {number}");
                // The watch does the same: the message of a file that has lost its name says nothing about the next file.
                if !taken_away {
                    path.known = Some(job.version);
                } else if self.removals && !self.pending.holds(HERE, name) {
                    self.change(number, Change::Removed { how: NameLost::Deleted });
                }
            }
            Answer::Busy | Answer::Failed => {
                let again = path.owed;
                if matches!(answer, Answer::Busy) {
                    self.pending.busy(HERE, name, Held::Writer, self.now);
                    path.owed |= !job.taken_away;
                } else {
                    self.pending.failed(HERE, name, self.now);
                    path.failed = !again;
                }
                if path.owed && !job.taken_away {
                    path.origin = path.origin.or(job.origin);
                    path.undecided |= job.undecided;
                }
            }
        }
    }

    /// Writers close, outstanding events are read, jobs complete, and time passes.
    fn come_to_rest(&mut self) {
        for number in 0..PATHS {
            if self.paths[number].open || self.paths[number].file == File::Unannounced {
                self.act(number, Operation::Close);
            }
        }
        for _ in 0..4 * PATHS {
            self.dispatch(usize::MAX);
            for number in 0..PATHS {
                self.answer(number, Answer::Confirmed);
            }
            if mem::take(&mut self.dropped) {
                for number in 0..PATHS {
                    // The watch does the same: a rescan goes on when there is room.
                    match self.pending.len() < self.bound {
                        true => self.act(number, Operation::Rescan { rests: false }),
                        false => self.dropped = true,
                    }
                }
            }
            self.now += BUSY_PAUSE_MAX + SETTLE;
        }
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let operation = prop_oneof![
        3 => Just(Operation::Create),
        2 => Just(Operation::Write),
        4 => Just(Operation::Close),
        2 => Just(Operation::MoveTo),
        2 => Just(Operation::Delete),
        1 => Just(Operation::Replace),
        1 => any::<bool>().prop_map(|rests| Operation::Rescan { rests }),
    ];
    let answer = prop_oneof![3 => Just(Answer::Confirmed), 1 => Just(Answer::Busy), 1 => Just(Answer::Failed)];
    let step = prop_oneof![
        5 => (0..PATHS, operation).prop_map(|(path, operation)| Step::Operate(path, operation)),
        3 => (1..=PATHS).prop_map(Step::Dispatch),
        2 => (0..PATHS, answer).prop_map(|(path, answer)| Step::Answer(path, answer)),
        1 => prop_oneof![0..30u64, 900..1500u64].prop_map(Step::Wait),
    ];
    prop::collection::vec(step, 0..80)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8 * ProptestConfig::default().cases, ..ProptestConfig::default() })]
    /// Any history of a few paths, with room for all of them or not: each dispatch is what the model says, and in the end
    /// the last message of every path is about its last version.
    #[test]
    fn every_history_ends_with_a_message_for_the_last_version(steps in steps(), bound in 1..=PATHS, removals: bool) {
        let mut model = Model::new(bound, removals);
        for step in steps {
            match step {
                Step::Operate(path, operation) => model.act(path, operation),
                Step::Dispatch(most) => model.dispatch(most),
                Step::Answer(path, answer) => model.answer(path, answer),
                Step::Wait(millis) => model.now += Duration::from_millis(millis),
            }
            model.pending.assert_consistent();
        }
        model.come_to_rest();
        for (number, path) in model.paths.iter().enumerate() {
            prop_assert!(!path.owed && path.in_flight.is_none(), "path {number} is still owed a message: {path:?}");
            if removals && path.file == File::None && !path.failed {
                prop_assert!(!path.promised, "path {number} is gone, and its last message says otherwise: {path:?}");
            }
            if path.file == File::Announced && !path.failed {
                prop_assert_eq!(path.known, Some(path.version), "path {}: its last message: {:?}", number, path);
            }
        }
        prop_assert!(model.pending.is_empty());
    }
}
