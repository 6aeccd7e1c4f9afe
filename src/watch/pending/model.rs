//! The pending set against a model that knows nothing of how it works: a directory of a few paths, the events that
//! the kernel would tell of it, readers that see what stands there when they are asked, and what the watch keeps of
//! their answers. The model holds for each path what is owed, and says what each hand-out has to be.

use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::{BUSY_PAUSE_MAX, Change, Due, Full, Pending, Taken};
use crate::files::directory::DirectoryId;
use crate::files::names::Name;
use crate::files::version::Stamp;
use crate::message::EventType;

const HERE: DirectoryId = DirectoryId::FIRST;

const SETTLE: Duration = Duration::from_secs(1);

const PATHS: usize = 3;

/// What is done to a path, as far as it can be done to it as it is.
#[derive(Debug, Clone, Copy)]
enum Deed {
    /// A new file, not closed yet.
    Create,
    /// The file changes; no event tells.
    Write,
    Close,
    /// A file is renamed to this name, over what stands there or not.
    MoveTo,
    Delete,
    /// The watch reads of a deletion when another file stands there already, whose own event comes next.
    Replace,
    /// A look-over comes by. `rests`: the file was last changed long ago.
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
    Deed(usize, Deed),
    /// What is due is handed out, this many at most.
    HandOut(usize),
    Answer(usize, Answer),
    Wait(u64),
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Stands {
    Nothing,
    File,
    /// A file whose own event is still to come.
    Unannounced,
}

/// One path: what stands there, and what its messages owe the reader of them.
#[derive(Debug, Clone, Copy)]
struct Path {
    stands: Stands,
    version: u64,
    /// Written to by somebody who has not closed it since.
    open: bool,
    /// Of the last confirmed message, while the name was not taken away since.
    known: Option<u64>,
    /// How the file came to its path, where it did since the last hand-out that led to a message.
    origin: Option<EventType>,
    /// It was handed out before the event that says how it came: no more is made of that event.
    untold: bool,
    /// A hand-out is owed: something happened after the last one, or that one brought nothing.
    owed: bool,
    /// Since when a file that nobody closed has to rest; nothing where an event said that it is complete.
    rests_from: Option<Instant>,
    /// When the last event of it was read.
    seen_at: Stamp,
    out: Option<Out>,
    /// It could not be read: nothing is promised until its next event.
    given_up: bool,
}

/// With the readers.
#[derive(Debug, Clone, Copy)]
struct Out {
    version: u64,
    origin: Option<EventType>,
    untold: bool,
    /// The name was taken away meanwhile.
    taken_away: bool,
}

const NOTHING: Path = Path {
    stands: Stands::Nothing,
    version: 0,
    open: false,
    known: None,
    origin: None,
    untold: false,
    owed: false,
    rests_from: None,
    seen_at: Stamp { seconds: 0, nanoseconds: 0 },
    out: None,
    given_up: false,
};

/// [`Pending::event`] or [`Pending::found`].
type Take = fn(&mut Pending, DirectoryId, &Name, Change, bool, Stamp, Instant) -> Result<(), Full>;

struct Model {
    pending: Pending,
    names: [Name; PATHS],
    paths: [Path; PATHS],
    now: Instant,
    events: i64,
    /// The list was dropped: a look-over is due.
    dropped: bool,
    bound: usize,
}

impl Model {
    fn new(bound: usize) -> Self {
        let names = [0, 1, 2].map(|number| Name::from(&[b'a' + number][..]));
        let (pending, now) = (Pending::new(SETTLE, Duration::ZERO, bound), Instant::now());
        Self { pending, names, paths: [NOTHING; PATHS], now, events: 0, dropped: false, bound }
    }

    fn act(&mut self, number: usize, deed: Deed) {
        let path = &mut self.paths[number];
        match (deed, path.stands) {
            (Deed::Create, Stands::Nothing) => {
                path.version += 1;
                self.arrives(number, EventType::Create);
            }
            (Deed::Create | Deed::Close, Stands::Unannounced) => self.arrives(number, EventType::Create),
            (Deed::MoveTo, _) => {
                path.version += 1;
                self.arrives(number, EventType::MovedTo);
            }
            (Deed::Write, Stands::File) => {
                path.version += 1;
                path.open = true;
            }
            (Deed::Close, Stands::File) => {
                path.version += 1;
                path.open = false;
                self.tell(number, Change::Closed);
            }
            (Deed::Delete, Stands::File) => self.taken_away(number, Stands::Nothing),
            (Deed::Replace, Stands::File) => {
                path.version += 1;
                self.taken_away(number, Stands::Unannounced);
            }
            (Deed::Rescan { rests }, Stands::File) => self.rescan(number, rests),
            _ => {}
        }
    }

    fn arrives(&mut self, number: usize, how: EventType) {
        let path = &mut self.paths[number];
        (path.stands, path.open, path.origin, path.known) = (Stands::File, false, Some(how), None);
        let version = path.version;
        self.tell(number, if how == EventType::MovedTo { Change::MovedTo } else { Change::Created { version } });
    }

    fn taken_away(&mut self, number: usize, stands: Stands) {
        let path = &mut self.paths[number];
        (path.stands, path.open, path.known, path.given_up) = (stands, false, None, false);
        if let Some(out) = &mut path.out {
            out.taken_away = true;
        }
        if stands == Stands::Nothing {
            (path.owed, path.origin, path.rests_from) = (false, None, None);
        }
        self.pending.gone(HERE, &self.names[number], Taken::Deleted, stands == Stands::Unannounced);
    }

    fn rescan(&mut self, number: usize, rests: bool) {
        self.events += 1;
        let seen_at = Stamp { seconds: self.events, nanoseconds: 0 };
        let path = &mut self.paths[number];
        if path.known == Some(path.version) {
            return;
        }
        let inside = self.pending.look_again(HERE, &self.names[number], false, seen_at);
        assert_eq!(inside, path.owed || path.out.is_some(), "path {number} is waited for, or it is not");
        if !inside {
            let changed = Change::Changed { version: self.paths[number].version };
            self.tell_as(number, if rests { Change::Complete } else { changed }, Pending::found);
        } else if !path.owed {
            (path.owed, path.seen_at, path.rests_from) = (true, seen_at, None);
        }
    }

    fn tell(&mut self, number: usize, change: Change) {
        self.tell_as(number, change, Pending::event);
    }

    fn tell_as(&mut self, number: usize, change: Change, take: Take) {
        self.events += 1;
        let seen_at = Stamp { seconds: self.events, nanoseconds: 0 };
        let published = self.paths[number].known.is_some();
        self.paths[number].given_up = false;
        if take(&mut self.pending, HERE, &self.names[number], change, published, seen_at, self.now) == Err(Full) {
            return self.drop_waiting();
        }
        let path = &mut self.paths[number];
        let complete_before = path.owed && path.rests_from.is_none();
        path.rests_from = match change {
            Change::Created { .. } | Change::Changed { .. } if !complete_before => Some(self.now),
            _ => None,
        };
        (path.owed, path.seen_at) = (true, seen_at);
    }

    /// There was no room: what waits is forgotten, to be found again by a look-over.
    fn drop_waiting(&mut self) {
        self.dropped = true;
        self.pending.drop_waiting();
        for path in &mut self.paths {
            if path.out.is_none() {
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
                    assert!(!early, "it counts as settled too early: {path:?}");
                    let stands = (path.stands != Stands::Nothing).then_some(path.version);
                    path.rests_from = (stands != Some(version)).then_some(self.now);
                    self.pending.settled(HERE, &name, version, stands, self.now);
                }
                Some(Due::Ready { name, event, seen_at, .. }) => {
                    let number = usize::from(name[0] - b'a');
                    self.check(number, event, seen_at);
                    let path = &mut self.paths[number];
                    let (version, origin, unannounced) =
                        (path.version, path.origin.take(), path.stands == Stands::Unannounced);
                    path.out = Some(Out { version, origin, untold: path.untold || unannounced, taken_away: false });
                    (path.owed, path.rests_from, path.untold) = (false, None, unannounced);
                }
            }
        }
    }

    fn check(&self, number: usize, event: EventType, seen_at: Stamp) {
        let path = &self.paths[number];
        assert!(path.out.is_none(), "path {number} is handed out twice");
        assert!(path.owed, "path {number} is handed out for nothing");
        assert_eq!(seen_at, path.seen_at, "path {number}: when its last event was read");
        assert_eq!(path.rests_from, None, "path {number} is handed out before it has settled");
        let expected = match (path.origin, path.known) {
            (Some(origin), _) => origin,
            (None, Some(_)) => EventType::CloseWrite,
            (None, None) => EventType::Create,
        };
        if !path.untold && path.stands != Stands::Unannounced {
            assert_eq!(event, expected, "path {number}: how its version came there");
        }
    }

    fn answer(&mut self, number: usize, answer: Answer) {
        let path = &mut self.paths[number];
        let Some(out) = path.out.take() else { return };
        let name = &self.names[number];
        match answer {
            Answer::Confirmed => {
                let taken_away = self.pending.done(HERE, name, self.now).is_some();
                assert_eq!(taken_away, out.taken_away, "path {number}");
                // As the watch does: a message of what was there before says nothing of what is there now.
                if !taken_away {
                    path.known = Some(out.version);
                }
            }
            Answer::Busy | Answer::Failed => {
                let again = path.owed;
                if matches!(answer, Answer::Busy) {
                    self.pending.busy(HERE, name, self.now);
                    path.owed |= !out.taken_away;
                } else {
                    self.pending.failed(HERE, name, self.now);
                    path.given_up = !again;
                }
                if path.owed && !out.taken_away {
                    path.origin = path.origin.or(out.origin);
                    path.untold |= out.untold;
                }
            }
        }
    }

    /// What is open is closed, what has an event to come gets it, the readers answer, and time goes by.
    fn come_to_rest(&mut self) {
        for number in 0..PATHS {
            if self.paths[number].open || self.paths[number].stands == Stands::Unannounced {
                self.act(number, Deed::Close);
            }
        }
        for _ in 0..4 * PATHS {
            self.dispatch(usize::MAX);
            for number in 0..PATHS {
                self.answer(number, Answer::Confirmed);
            }
            if std::mem::take(&mut self.dropped) {
                for number in 0..PATHS {
                    // As the watch does: it looks further when there is room.
                    match self.pending.len() < self.bound {
                        true => self.act(number, Deed::Rescan { rests: false }),
                        false => self.dropped = true,
                    }
                }
            }
            self.now += BUSY_PAUSE_MAX + SETTLE;
        }
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let deed = prop_oneof![
        3 => Just(Deed::Create),
        2 => Just(Deed::Write),
        4 => Just(Deed::Close),
        2 => Just(Deed::MoveTo),
        2 => Just(Deed::Delete),
        1 => Just(Deed::Replace),
        1 => any::<bool>().prop_map(|rests| Deed::Rescan { rests }),
    ];
    let answer = prop_oneof![3 => Just(Answer::Confirmed), 1 => Just(Answer::Busy), 1 => Just(Answer::Failed)];
    let step = prop_oneof![
        5 => (0..PATHS, deed).prop_map(|(path, deed)| Step::Deed(path, deed)),
        3 => (1..=PATHS).prop_map(Step::HandOut),
        2 => (0..PATHS, answer).prop_map(|(path, answer)| Step::Answer(path, answer)),
        1 => prop_oneof![0..30u64, 900..1500u64].prop_map(Step::Wait),
    ];
    prop::collection::vec(step, 0..80)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8 * ProptestConfig::default().cases, ..ProptestConfig::default() })]
    /// Any history of a few paths, with room for all of them or not: each hand-out is what the model says, and in the
    /// end the last message of every path is about what stands there.
    #[test]
    fn every_history_ends_with_a_message_for_what_is_there(steps in steps(), bound in 1..=PATHS) {
        let mut model = Model::new(bound);
        for step in steps {
            match step {
                Step::Deed(path, deed) => model.act(path, deed),
                Step::HandOut(most) => model.dispatch(most),
                Step::Answer(path, answer) => model.answer(path, answer),
                Step::Wait(millis) => model.now += Duration::from_millis(millis),
            }
        }
        model.come_to_rest();
        for (number, path) in model.paths.iter().enumerate() {
            prop_assert!(!path.owed && path.out.is_none(), "path {number} is still owed a message: {path:?}");
            if path.stands == Stands::File && !path.given_up {
                prop_assert_eq!(path.known, Some(path.version), "path {}: its last message: {:?}", number, path);
            }
        }
        prop_assert!(model.pending.is_empty());
    }
}
