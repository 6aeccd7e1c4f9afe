//! The pending set: one entry a path however many events, and the rules that coalesce them.
//!
//! Pure: no I/O, and the time is passed in. An entry lives from a path's first event until its message is
//! confirmed (or there is none); a path that is with the readers is not handed out a second time, so that its
//! messages stay in order. What happens to it meanwhile is kept and handed out afterwards.
//!
//! What happens now comes before what a look at the directories has found: files that a catch-up or a rescan finds stand in
//! the backlog, and go before events only once in `BACKLOG_SHARE`, so that they get on under any load.
//!
//! A volume that the readers have no room for keeps no other's files waiting: what has come to its turn there is parked
//! until they have.

use std::collections::BTreeMap;
use std::collections::hash_map::Entry as MapEntry;
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{iter, mem};

use crate::files::directory::DirectoryId;
use crate::files::names::{Map, Name};
use crate::files::version::Stamp;
use crate::message::EventType;

/// Paths that may wait. Beyond it the list is dropped and the directory looked over instead, which costs no
/// memory: at some 200 bytes a path this is 50 MB.
pub const PENDING_MAX: usize = 1 << 18;

/// One in so many files is handed out from the backlog while events wait, too.
const BACKLOG_SHARE: u32 = 16;

/// Paths that an emptied directory's map keeps room for.
const SPARE_MAX: usize = 1024;

/// The first pause before a file that somebody is writing is looked at again; it doubles each time.
pub const BUSY_PAUSE_MIN: Duration = Duration::from_millis(20);

/// The longest such pause: what a file that never stops changing costs is bounded by it.
pub const BUSY_PAUSE_MAX: Duration = Duration::from_secs(5);

/// What an event says about a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// The name is new; somebody may be writing the file. With what its version looks like now.
    Created {
        /// A fingerprint of the version.
        version: u64,
    },
    /// A look at the directory found it new or changed; somebody may be writing it.
    Changed {
        /// A fingerprint of the version.
        version: u64,
    },
    /// A file was renamed to this name.
    MovedTo,
    /// A writer has closed it.
    Closed,
    /// A look at the directory found it new or changed, and complete: nothing has happened to it for long enough.
    Complete,
}

/// How a name was taken away from a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// The file has it no more.
    Deleted,
    /// The file has another now, and may have this one again later.
    Renamed,
}

/// A path whose time has come.
#[derive(Debug, PartialEq, Eq)]
pub enum Due {
    /// Hand it to the readers.
    Ready {
        /// Its directory.
        id: DirectoryId,
        /// Its name.
        name: Name,
        /// How its version came to be there.
        event: EventType,
        /// When the last event was read.
        seen_at: Stamp,
    },
    /// It was created and not closed, and its settle time is over: is this still its version?
    Settled {
        /// Its directory.
        id: DirectoryId,
        /// Its name.
        name: Name,
        /// What its version looked like when the settle time began.
        version: u64,
    },
}

/// The set is full: look over the directory instead.
#[derive(Debug, PartialEq, Eq)]
pub struct Full;

#[derive(Debug)]
struct Waiting {
    event: EventType,
    seen_at: Stamp,
    /// When its first event came in.
    since: Instant,
    /// A look at the directory has found it, and no event has come since.
    backlog: bool,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Due at a time that may be over.
    Ready { at: Turn, pause: Duration },
    /// Created and not closed.
    Settling { at: Turn, version: u64 },
    /// With the readers. `again`: what happened to it since.
    InFlight { again: Option<(Change, Stamp)>, taken: Option<Taken>, pause: Duration },
}

/// A place in the schedule: a time, and a number that keeps those of one time in their order.
type Turn = (Instant, u64);

/// A volume's events (`false`), and behind them its backlog.
type Parked = BTreeMap<(bool, Turn), (DirectoryId, Name)>;

/// See the module.
#[derive(Debug)]
pub struct Pending {
    /// By directory, so that a directory's can be dropped with it. None of the inner maps is empty.
    entries: Map<DirectoryId, Map<Name, Waiting>>,
    /// The inner map that was emptied last, for the next directory: where files come one at a time, each needs one.
    spare: Map<Name, Waiting>,
    /// Of all the inner maps.
    len: usize,
    /// Of paths with an event.
    schedule: BTreeMap<Turn, (DirectoryId, Name)>,
    /// Of the others.
    backlog: BTreeMap<Turn, (DirectoryId, Name)>,
    /// What has come to its turn on a volume without room, by volume.
    parked: BTreeMap<usize, Parked>,
    /// Handed out since the backlog had its turn.
    since_backlog: u32,
    turns: u64,
    settle: Duration,
    quiet: Duration,
    bound: usize,
}

impl Pending {
    /// An empty set. `settle`: how long a file that was created and not closed has to stay unchanged; `quiet`: how long
    /// nothing may have happened to one that was closed, or renamed to its name; `bound`: paths that may wait.
    #[must_use]
    pub fn new(settle: Duration, quiet: Duration, bound: usize) -> Self {
        Self {
            entries: Map::default(),
            spare: Map::default(),
            len: 0,
            schedule: BTreeMap::new(),
            backlog: BTreeMap::new(),
            parked: BTreeMap::new(),
            since_backlog: 0,
            turns: 0,
            settle,
            quiet,
            bound,
        }
    }

    /// Paths in it, those with the readers included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing waits and nothing is with the readers.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Takes an event in. `announced`: a message was confirmed for this path, or it was there before us.
    ///
    /// # Errors
    /// [`Full`]: the path is new here and there is no room.
    pub fn event(
        &mut self,
        id: DirectoryId,
        name: &Name,
        change: Change,
        published: bool,
        seen_at: Stamp,
        now: Instant,
    ) -> Result<(), Full> {
        self.take(id, name, change, published, seen_at, now, false)
    }

    /// The same of what a look at the directory has found: it stands in the backlog until an event of it comes.
    ///
    /// # Errors
    /// [`Full`].
    pub fn found(
        &mut self,
        id: DirectoryId,
        name: &Name,
        change: Change,
        published: bool,
        seen_at: Stamp,
        now: Instant,
    ) -> Result<(), Full> {
        self.take(id, name, change, published, seen_at, now, true)
    }

    #[expect(clippy::too_many_arguments, reason = "those of `event`, and which of the two it is")]
    fn take(
        &mut self,
        id: DirectoryId,
        name: &Name,
        change: Change,
        published: bool,
        seen_at: Stamp,
        now: Instant,
        backlog: bool,
    ) -> Result<(), Full> {
        let full = self.len >= self.bound;
        let times = self.times(now);
        match entry(&mut self.entries, id, name) {
            None if full => Err(Full),
            None => {
                let event = resolve(None, change, published);
                let state = State::after(change, &times);
                let waiting = Waiting { event, seen_at, since: now, backlog, state };
                let new = waiting.state.turn().map(|turn| (backlog, turn));
                self.reschedule(id, name, None, new);
                let names = self.entries.entry(id).or_insert_with(|| mem::take(&mut self.spare));
                names.insert(Arc::clone(name), waiting);
                self.len += 1;
                Ok(())
            }
            Some(waiting) => {
                if let State::InFlight { again, .. } = &mut waiting.state {
                    // Renamed to this name and written then: by a rename all the same.
                    let renamed = matches!((*again, change), (Some((Change::MovedTo, _)), Change::Closed));
                    *again = Some((if renamed { Change::MovedTo } else { change }, seen_at));
                    return Ok(());
                }
                waiting.event = resolve(Some(waiting.event), change, published);
                waiting.seen_at = seen_at;
                // A path that waits its turn keeps it, or one that changes all the time would never have it. One of the
                // backlog gets its turn among the events.
                let keeps = matches!(waiting.state, State::Ready { at, .. } if at.0 <= now);
                let promoted = waiting.backlog && !backlog;
                if promoted || !keeps {
                    let old = waiting.state.turn().map(|turn| (waiting.backlog, turn));
                    waiting.backlog &= backlog;
                    if !keeps {
                        waiting.state = State::after(change, &times);
                    }
                    let new = waiting.state.turn().map(|turn| (waiting.backlog, turn));
                    self.reschedule(id, name, old, new);
                }
                Ok(())
            }
        }
    }

    /// The name was taken away. `replaced`: it stands there all the same, for two names were exchanged, or it was
    /// made again already; what is waited for is that file then.
    pub fn gone(&mut self, id: DirectoryId, name: &Name, how: Taken, replaced: bool) {
        let Some(waiting) = entry(&mut self.entries, id, name) else { return };
        match &mut waiting.state {
            State::InFlight { again, taken, .. } => {
                *again = again.filter(|_| replaced);
                // Renamed once is renamed: the file that is with the readers may be the one that came back.
                *taken = if *taken == Some(Taken::Renamed) { *taken } else { Some(how) };
            }
            _ if replaced => {}
            state => {
                let old = state.turn().map(|turn| (waiting.backlog, turn));
                self.reschedule(id, name, old, None);
                self.remove(id, name);
            }
        }
    }

    /// Whether a path is in the set: it waits, or is with the readers.
    #[must_use]
    pub fn holds(&self, id: DirectoryId, name: &Name) -> bool {
        self.entries.get(&id).is_some_and(|names| names.contains_key(name))
    }

    /// A whole directory was taken away, with each name in it.
    pub fn all_gone(&mut self, id: DirectoryId) {
        let names = self.entries.get(&id).map(|names| names.keys().cloned().collect::<Vec<_>>());
        names.into_iter().flatten().for_each(|name| self.gone(id, &name, Taken::Renamed, false));
    }

    /// A look-over found a path other than it is known. Tells whether the path is in the set: one that waits is
    /// read anyway; one that is with the readers is read once more, for they may have been there before the change.
    /// `renamed`: it came there by a rename.
    pub fn look_again(&mut self, id: DirectoryId, name: &Name, renamed: bool, seen_at: Stamp) -> bool {
        match entry(&mut self.entries, id, name) {
            None => false,
            Some(waiting) => {
                if let State::InFlight { again, .. } = &mut waiting.state {
                    let change = if renamed { Change::MovedTo } else { Change::Closed };
                    again.get_or_insert((change, seen_at));
                }
                true
            }
        }
    }

    /// There is room for so many paths of a volume: as many of those that are parked are due again.
    pub fn unpark(&mut self, volume: usize, room: usize) {
        let Some(parked) = self.parked.get_mut(&volume) else { return };
        for ((backlog, turn), path) in iter::from_fn(|| parked.pop_first()).take(room) {
            let schedule = if backlog { &mut self.backlog } else { &mut self.schedule };
            schedule.insert(turn, path);
        }
        if parked.is_empty() {
            self.parked.remove(&volume);
        }
    }

    /// The next path whose time has come, of a volume that there is room for. One that is [`Due::Ready`] is with the
    /// readers from now on.
    pub fn next_due(&mut self, now: Instant, has_room: impl Fn(usize) -> bool) -> Option<Due> {
        let due = |schedule: &BTreeMap<Turn, _>| schedule.first_key_value().is_some_and(|((at, _), _)| *at <= now);
        let (id, name) = loop {
            let (event, backlog) = (due(&self.schedule), due(&self.backlog));
            if !event && !backlog {
                return None;
            }
            let from_backlog = backlog && (!event || self.since_backlog + 1 >= BACKLOG_SHARE);
            let schedule = if from_backlog { &mut self.backlog } else { &mut self.schedule };
            let (turn, (id, name)) = schedule.pop_first()?;
            if has_room(id.volume()) {
                self.since_backlog = if from_backlog { 0 } else { self.since_backlog + u32::from(backlog) };
                break (id, name);
            }
            self.parked.entry(id.volume()).or_default().insert((from_backlog, turn), (id, name));
        };
        let waiting = entry(&mut self.entries, id, &name)?;
        match waiting.state {
            State::Settling { version, .. } => Some(Due::Settled { id, name, version }),
            State::Ready { pause, .. } => {
                waiting.state = State::InFlight { again: None, taken: None, pause };
                Some(Due::Ready { id, name, event: waiting.event, seen_at: waiting.seen_at })
            }
            State::InFlight { .. } => None, // not in the schedule
        }
    }

    /// Answers [`Due::Settled`]: what its version looks like now, or nothing when there is none.
    pub fn settled(&mut self, id: DirectoryId, name: &Name, before: u64, now_is: Option<u64>, now: Instant) {
        let times = self.times(now);
        let Some(waiting) = entry(&mut self.entries, id, name) else { return };
        match now_is {
            None => self.remove(id, name),
            Some(version) => {
                waiting.state = if version == before {
                    State::Ready { at: times.now, pause: BUSY_PAUSE_MIN }
                } else {
                    State::Settling { at: times.settled, version }
                };
                let new = waiting.state.turn().map(|turn| (waiting.backlog, turn));
                self.reschedule(id, name, None, new);
            }
        }
    }

    /// The readers (or the broker) are done with a path: there was a message, or there is nothing to say.
    /// Tells how the name was taken away before that, if it was.
    pub fn done(&mut self, id: DirectoryId, name: &Name, now: Instant) -> Option<Taken> {
        self.returned(id, name, true, now)
    }

    /// The file could not be read. Its next event brings it again, as what it was.
    /// Tells how the name was taken away before that, if it was.
    pub fn failed(&mut self, id: DirectoryId, name: &Name, now: Instant) -> Option<Taken> {
        self.returned(id, name, false, now)
    }

    /// Somebody is writing the file: look again after a pause, or at its next event.
    pub fn busy(&mut self, id: DirectoryId, name: &Name, now: Instant) {
        let number = self.times(now).now.1;
        let Some(waiting) = entry(&mut self.entries, id, name) else { return };
        let State::InFlight { again, taken, pause } = waiting.state else { return };
        if again.is_none() && taken.is_none() {
            let at = (now + pause, number);
            waiting.state = State::Ready { at, pause: (pause * 2).min(BUSY_PAUSE_MAX) };
            let new = Some((waiting.backlog, at));
            self.reschedule(id, name, None, new);
        } else {
            self.returned(id, name, false, now);
        }
    }

    fn returned(&mut self, id: DirectoryId, name: &Name, published: bool, now: Instant) -> Option<Taken> {
        let times = self.times(now);
        let waiting = entry(&mut self.entries, id, name)?;
        let State::InFlight { again, taken, .. } = waiting.state else { return None };
        match again {
            None => self.remove(id, name),
            Some((change, seen_at)) => {
                let before = (!published && taken.is_none()).then_some(waiting.event);
                waiting.event = resolve(before, change, published && taken.is_none());
                waiting.seen_at = seen_at;
                waiting.since = now;
                waiting.backlog = false;
                waiting.state = State::after(change, &times);
                let new = waiting.state.turn().map(|turn| (false, turn));
                self.reschedule(id, name, None, new);
            }
        }
        taken
    }

    /// Drops all that waits; what is with the readers stays. A look-over finds the rest again.
    pub fn drop_waiting(&mut self) {
        self.schedule.clear();
        self.backlog = BTreeMap::new();
        self.parked.clear();
        self.entries.retain(|_, names| {
            names.retain(|_, waiting| matches!(waiting.state, State::InFlight { .. }));
            names.shrink_to_fit();
            !names.is_empty()
        });
        self.entries.shrink_to_fit();
        self.spare = Map::default();
        self.len = self.entries.values().map(Map::len).sum();
    }

    /// When the next path's time comes, those aside that are parked.
    #[must_use]
    pub fn next_time(&self) -> Option<Instant> {
        let first = |schedule: &BTreeMap<Turn, _>| schedule.first_key_value().map(|((at, _), _)| *at);
        first(&self.schedule).into_iter().chain(first(&self.backlog)).min()
    }

    /// Paths of the backlog that are not with the readers.
    #[must_use]
    pub fn backlog(&self) -> usize {
        self.backlog.len()
    }

    /// When the first event of the path that waits longest came in. It looks at each: for once a second.
    #[must_use]
    pub fn oldest(&self) -> Option<Instant> {
        self.entries.values().flat_map(Map::values).map(|waiting| waiting.since).min()
    }

    fn remove(&mut self, id: DirectoryId, name: &Name) {
        let MapEntry::Occupied(mut names) = self.entries.entry(id) else { return };
        self.len -= usize::from(names.get_mut().remove(name).is_some());
        if names.get().is_empty() {
            self.spare = names.remove();
            self.spare.shrink_to(SPARE_MAX);
        }
    }

    fn times(&mut self, now: Instant) -> Times {
        self.turns += 1;
        let after = |pause| (now + pause, self.turns);
        Times { now: (now, self.turns), quiet: after(self.quiet), settled: after(self.settle) }
    }

    /// Takes a path out of its place in a schedule and gives it another. Each is the backlog's or not.
    fn reschedule(&mut self, id: DirectoryId, name: &Name, old: Option<(bool, Turn)>, new: Option<(bool, Turn)>) {
        if let Some((backlog, turn)) = old {
            let schedule = if backlog { &mut self.backlog } else { &mut self.schedule };
            if schedule.remove(&turn).is_none()
                && let Some(parked) = self.parked.get_mut(&id.volume())
            {
                parked.remove(&(backlog, turn));
            }
        }
        if let Some((backlog, turn)) = new {
            let schedule = if backlog { &mut self.backlog } else { &mut self.schedule };
            schedule.insert(turn, (id, Arc::clone(name)));
        }
    }
}

/// When a path's turn comes: at once, when it was quiet for long enough, or when it has settled.
struct Times {
    now: Turn,
    quiet: Turn,
    settled: Turn,
}

fn entry<'a>(
    entries: &'a mut Map<DirectoryId, Map<Name, Waiting>>,
    id: DirectoryId,
    name: &Name,
) -> Option<&'a mut Waiting> {
    entries.get_mut(&id)?.get_mut(name)
}

impl State {
    fn after(change: Change, times: &Times) -> Self {
        match change {
            Change::Created { version } | Change::Changed { version } => Self::Settling { at: times.settled, version },
            Change::MovedTo | Change::Closed => Self::Ready { at: times.quiet, pause: BUSY_PAUSE_MIN },
            Change::Complete => Self::Ready { at: times.now, pause: BUSY_PAUSE_MIN },
        }
    }

    fn turn(&self) -> Option<Turn> {
        match self {
            Self::Ready { at, .. } | Self::Settling { at, .. } => Some(*at),
            Self::InFlight { .. } => None,
        }
    }
}

/// How a version came to its path, by the contract's words: by a rename; the path is new since the last message
/// for it; or an existing file was rewritten. `before`: what an event that has had no message yet said.
fn resolve(before: Option<EventType>, change: Change, published: bool) -> EventType {
    match (change, before) {
        (Change::MovedTo, _) => EventType::MovedTo,
        (Change::Created { .. }, _) => EventType::Create,
        (Change::Closed | Change::Changed { .. } | Change::Complete, Some(before)) => before,
        (Change::Closed | Change::Changed { .. } | Change::Complete, None) if published => EventType::CloseWrite,
        (Change::Closed | Change::Changed { .. } | Change::Complete, None) => EventType::Create,
    }
}

#[cfg(test)]
mod model;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HERE: DirectoryId = DirectoryId::FIRST;
    const SETTLE: Duration = Duration::from_secs(1);
    const SEEN: Stamp = Stamp { seconds: 0, nanoseconds: 0 };

    fn set() -> (Pending, Instant) {
        (Pending::new(SETTLE, Duration::ZERO, 100), Instant::now())
    }

    fn name(text: &str) -> Name {
        text.as_bytes().into()
    }

    fn ready(pending: &mut Pending, now: Instant) -> Option<(Name, EventType)> {
        match pending.next_due(now, |_| true) {
            Some(Due::Ready { name, event, .. }) => Some((name, event)),
            _ => None,
        }
    }

    #[test]
    fn created_and_closed_is_one_creation_at_once() {
        let (mut pending, now) = set();
        pending.event(HERE, &name("a"), Change::Created { version: 1 }, false, SEEN, now).unwrap();
        assert_eq!(pending.next_due(now, |_| true), None);
        pending.event(HERE, &name("a"), Change::Closed, false, SEEN, now).unwrap();
        assert_eq!(ready(&mut pending, now), Some((name("a"), EventType::Create)));
        assert_eq!(pending.next_due(now + SETTLE * 2, |_| true), None);
    }

    #[test]
    fn created_and_never_closed_settles_once_it_stays_the_same() {
        let (mut pending, now) = set();
        pending.event(HERE, &name("a"), Change::Created { version: 1 }, false, SEEN, now).unwrap();
        let later = now + SETTLE;
        assert_eq!(pending.next_due(later, |_| true), Some(Due::Settled { id: HERE, name: name("a"), version: 1 }));
        pending.settled(HERE, &name("a"), 1, Some(2), later);
        assert_eq!(pending.next_due(later, |_| true), None);
        let later = later + SETTLE;
        assert_eq!(pending.next_due(later, |_| true), Some(Due::Settled { id: HERE, name: name("a"), version: 2 }));
        pending.settled(HERE, &name("a"), 2, Some(2), later);
        assert_eq!(ready(&mut pending, later), Some((name("a"), EventType::Create)));
    }

    #[test]
    fn what_happens_meanwhile_is_handed_out_afterwards_and_never_beside() {
        let (mut pending, now) = set();
        let a = name("a");
        pending.event(HERE, &a, Change::MovedTo, false, SEEN, now).unwrap();
        assert_eq!(ready(&mut pending, now), Some((name("a"), EventType::MovedTo)));
        pending.event(HERE, &a, Change::Closed, false, SEEN, now).unwrap();
        pending.event(HERE, &a, Change::Closed, false, SEEN, now).unwrap();
        assert_eq!(pending.next_due(now, |_| true), None);
        assert_eq!(pending.done(HERE, &a, now), None);
        assert_eq!(ready(&mut pending, now), Some((a.clone(), EventType::CloseWrite)));
        pending.failed(HERE, &a, now);
        assert!(pending.is_empty());
    }

    #[test]
    fn a_name_deleted_and_made_again_meanwhile_is_new() {
        let (mut pending, now) = set();
        let a = name("a");
        pending.event(HERE, &a, Change::Closed, true, SEEN, now).unwrap();
        assert_eq!(ready(&mut pending, now), Some((a.clone(), EventType::CloseWrite)));
        pending.gone(HERE, &a, Taken::Deleted, false);
        pending.event(HERE, &a, Change::Created { version: 1 }, false, SEEN, now).unwrap();
        pending.event(HERE, &a, Change::Closed, false, SEEN, now).unwrap();
        assert_eq!(pending.done(HERE, &a, now), Some(Taken::Deleted));
        assert_eq!(ready(&mut pending, now), Some((a.clone(), EventType::Create)));
    }

    #[test]
    fn a_busy_file_comes_again_with_growing_pauses_or_with_its_next_event() {
        let (mut pending, mut now) = set();
        let a = name("a");
        pending.event(HERE, &a, Change::Closed, false, SEEN, now).unwrap();
        let mut pause = BUSY_PAUSE_MIN;
        for _ in 0..12 {
            assert_eq!(ready(&mut pending, now), Some((a.clone(), EventType::Create)));
            pending.busy(HERE, &a, now);
            assert_eq!(pending.next_time(), Some(now + pause));
            now += pause;
            pause = (pause * 2).min(BUSY_PAUSE_MAX);
        }
        assert_eq!(ready(&mut pending, now), Some((a.clone(), EventType::Create)));
        pending.busy(HERE, &a, now);
        pending.event(HERE, &a, Change::Closed, false, SEEN, now).unwrap();
        assert_eq!(ready(&mut pending, now), Some((a, EventType::Create)));
    }

    #[test]
    fn a_path_that_waits_keeps_its_turn() {
        let (mut pending, now) = set();
        pending.event(HERE, &name("a"), Change::Closed, false, SEEN, now).unwrap();
        pending.event(HERE, &name("b"), Change::Closed, false, SEEN, now).unwrap();
        pending.event(HERE, &name("a"), Change::Closed, false, SEEN, now + SETTLE).unwrap();
        assert_eq!(ready(&mut pending, now + SETTLE).map(|(name, _)| name), Some(name("a")));
    }

    #[test]
    fn the_bound_holds_and_what_is_with_the_readers_outlives_the_drop() {
        let mut pending = Pending::new(SETTLE, Duration::ZERO, 2);
        let now = Instant::now();
        pending.event(HERE, &name("a"), Change::Closed, false, SEEN, now).unwrap();
        assert!(ready(&mut pending, now).is_some());
        pending.event(HERE, &name("b"), Change::Closed, false, SEEN, now).unwrap();
        assert_eq!(pending.event(HERE, &name("c"), Change::Closed, false, SEEN, now), Err(Full));
        pending.event(HERE, &name("b"), Change::Closed, false, SEEN, now).unwrap();
        pending.drop_waiting();
        assert!(pending.entries[&HERE].keys().eq(&[name("a")]));
        pending.done(HERE, &name("a"), now);
        assert!(pending.is_empty());
    }

    #[test]
    fn an_event_comes_before_what_a_look_has_found_and_takes_its_path_along() {
        let mut pending = Pending::new(SETTLE, Duration::ZERO, 1000);
        let now = Instant::now();
        for number in 0..100 {
            pending.found(HERE, &name(&format!("found-{number:02}")), Change::Complete, false, SEEN, now).unwrap();
        }
        pending.event(HERE, &name("live"), Change::Closed, false, SEEN, now).unwrap();
        pending.event(HERE, &name("found-50"), Change::Closed, false, SEEN, now).unwrap();
        assert_eq!(pending.backlog(), 99);
        let order: Vec<Name> = std::iter::from_fn(|| ready(&mut pending, now)).map(|(name, _)| name).collect();
        assert_eq!(order[..3], [name("found-50"), name("live"), name("found-00")]);
        assert_eq!(order.len(), 101);
    }

    #[test]
    fn the_backlog_gets_on_beside_any_number_of_events() {
        let mut pending = Pending::new(SETTLE, Duration::ZERO, 1000);
        let now = Instant::now();
        pending.found(HERE, &name("found"), Change::Complete, false, SEEN, now).unwrap();
        for number in 0..100 {
            pending.event(HERE, &name(&format!("live-{number}")), Change::Closed, false, SEEN, now).unwrap();
        }
        let turn = std::iter::from_fn(|| ready(&mut pending, now)).position(|(it, _)| it == name("found"));
        assert_eq!(turn, Some(BACKLOG_SHARE as usize - 1));
    }

    #[test]
    fn a_volume_without_room_keeps_no_others_files_waiting() {
        let (mut pending, now) = (Pending::new(SETTLE, Duration::ZERO, 1000), Instant::now());
        let (slow, fast) = (HERE.next().on_volume(0), HERE.on_volume(1));
        for number in 0..100 {
            pending.event(slow, &name(&format!("slow-{number:02}")), Change::Closed, false, SEEN, now).unwrap();
            pending.event(fast, &name(&format!("fast-{number:02}")), Change::Closed, false, SEEN, now).unwrap();
        }
        let taken = |pending: &mut Pending, volume| {
            let due = iter::from_fn(|| pending.next_due(now, |of| of == volume));
            due.filter(|due| matches!(due, Due::Ready { id, .. } if id.volume() == volume)).count()
        };
        assert_eq!(taken(&mut pending, 1), 100);
        assert_eq!(pending.next_time(), None, "nothing wakes the loop for what has no room");
        pending.gone(slow, &name("slow-05"), Taken::Deleted, false);
        pending.unpark(0, 10);
        assert_eq!(taken(&mut pending, 0), 10);
        pending.unpark(0, 1000);
        assert_eq!(taken(&mut pending, 0), 89);
    }

    #[test]
    fn quiet_begins_anew_with_each_event_and_is_not_asked_of_what_rests() {
        let quiet = Duration::from_secs(5);
        let (mut pending, now) = (Pending::new(SETTLE, quiet, 10), Instant::now());
        let a = name("a");
        pending.event(HERE, &a, Change::Created { version: 1 }, false, SEEN, now).unwrap();
        pending.event(HERE, &a, Change::Closed, false, SEEN, now).unwrap();
        let later = now + quiet - Duration::from_millis(1);
        assert_eq!(pending.next_due(later, |_| true), None);
        pending.event(HERE, &a, Change::Closed, false, SEEN, later).unwrap();
        assert_eq!(pending.next_due(now + quiet, |_| true), None);
        assert_eq!(ready(&mut pending, later + quiet), Some((a.clone(), EventType::Create)));
        pending.event(HERE, &a, Change::Closed, false, SEEN, later + quiet).unwrap();
        pending.done(HERE, &a, later + quiet);
        assert_eq!(pending.next_due(later + quiet, |_| true), None, "what happened meanwhile waits for quiet, too");
        pending.found(HERE, &name("b"), Change::Complete, false, SEEN, now).unwrap();
        assert_eq!(ready(&mut pending, now), Some((name("b"), EventType::Create)));
    }

    #[derive(Debug, Clone)]
    enum Step {
        Event(u8, Change, bool),
        Gone(u8, bool),
        Take,
        Park,
        Return(u8, u8),
        Wait(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let change = prop_oneof![
            (0..3u64).prop_map(|version| Change::Created { version }),
            (0..3u64).prop_map(|version| Change::Changed { version }),
            Just(Change::MovedTo),
            Just(Change::Closed),
            Just(Change::Complete)
        ];
        prop::collection::vec(
            prop_oneof![
                4 => (0..3u8, change, any::<bool>()).prop_map(|(path, change, found)| Step::Event(path, change, found)),
                1 => (0..3u8, any::<bool>()).prop_map(|(path, replaced)| Step::Gone(path, replaced)),
                3 => Just(Step::Take),
                1 => Just(Step::Park),
                2 => (0..3u8, 0..3u8).prop_map(|(path, how)| Step::Return(path, how)),
                1 => (0..1500u64).prop_map(Step::Wait),
            ],
            0..80,
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        /// Whatever happens: no path is out twice at a time, the schedule holds exactly the paths that wait, and
        /// once everything rests, every path whose last event was not a deletion has been handed out after it.
        #[test]
        fn no_event_is_lost_and_no_path_is_out_twice(steps in steps()) {
            let (mut pending, mut now) = set();
            let names: Vec<Name> = ["a", "b", "c"].iter().map(|text| name(text)).collect();
            let mut out = [false; 3];
            let mut owed = [false; 3];
            let take = |pending: &mut Pending, now: Instant, out: &mut [bool; 3], owed: &mut [bool; 3]| {
                pending.unpark(0, usize::MAX);
                while let Some(due) = pending.next_due(now, |_| true) {
                    match due {
                        Due::Settled { name, version, .. } => pending.settled(HERE, &name, version, Some(version), now),
                        Due::Ready { name, .. } => {
                            let path = names.iter().position(|known| *known == name).unwrap();
                            assert!(!out[path], "out twice");
                            out[path] = true;
                            owed[path] = false;
                        }
                    }
                }
            };
            for step in steps {
                match step {
                    Step::Event(path, change, found) => {
                        let take = if found { Pending::found } else { Pending::event };
                        take(&mut pending, HERE, &names[usize::from(path)], change, false, SEEN, now).unwrap();
                        owed[usize::from(path)] = true;
                    }
                    Step::Gone(path, replaced) => {
                        pending.gone(HERE, &names[usize::from(path)], Taken::Deleted, replaced);
                        owed[usize::from(path)] &= replaced;
                    }
                    Step::Park => prop_assert_eq!(pending.next_due(now, |_| false), None),
                    Step::Take => take(&mut pending, now, &mut out, &mut owed),
                    Step::Return(path, how) if out[usize::from(path)] => {
                        let (path, name) = (usize::from(path), &names[usize::from(path)]);
                        out[path] = false;
                        match how {
                            0 => { pending.done(HERE, name, now); }
                            1 => { pending.failed(HERE, name, now); }
                            _ => {
                                pending.busy(HERE, name, now);
                                owed[path] |= entry(&mut pending.entries, HERE, name).is_some();
                            }
                        }
                    }
                    Step::Return(..) => {}
                    Step::Wait(millis) => now += Duration::from_millis(millis),
                }
                let waiting = pending.entries.values().flat_map(Map::values).filter(|waiting| waiting.state.turn().is_some()).count();
                let parked: Vec<_> = pending.parked.values().flatten().collect();
                prop_assert_eq!(pending.schedule.len() + pending.backlog.len() + parked.len(), waiting);
                for ((backlog, turn), (id, name)) in parked {
                    let waiting = &pending.entries[id][name];
                    prop_assert_eq!((waiting.backlog, waiting.state.turn()), (*backlog, Some(*turn)));
                }
                prop_assert!(pending.spare.is_empty() && !pending.entries.values().any(Map::is_empty));
                for (backlog, schedule) in [(false, &pending.schedule), (true, &pending.backlog)] {
                    for (turn, (id, name)) in schedule {
                        let waiting = &pending.entries[id][name];
                        prop_assert_eq!((waiting.backlog, waiting.state.turn()), (backlog, Some(*turn)));
                    }
                }
            }
            for _ in 0..4 {
                now += BUSY_PAUSE_MAX + SETTLE;
                take(&mut pending, now, &mut out, &mut owed);
                for path in 0..3 {
                    if std::mem::take(&mut out[path]) {
                        pending.done(HERE, &names[path], now);
                    }
                }
            }
            prop_assert!(pending.is_empty());
            prop_assert_eq!(owed, [false; 3]);
        }
    }
}
