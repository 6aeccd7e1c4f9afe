//! Each rule of the pending set by itself, and the consistency of its queues under any sequence of steps.

use std::iter;

use proptest::prelude::*;

use super::queues::BACKLOG_SHARE;
use super::*;

const HERE: DirectoryId = DirectoryId::FIRST;
const SETTLE: Duration = Duration::from_secs(1);
const SEEN: Timestamp = Timestamp { seconds: 0, nanoseconds: 0 };

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
fn a_creation_and_its_close_are_one_creation_at_once() {
    let (mut pending, now) = set();
    pending.event(HERE, &name("a"), Change::Created { version: 1 }, false, SEEN, now).unwrap();
    assert_eq!(pending.next_due(now, |_| true), None);
    pending.event(HERE, &name("a"), Change::Closed, false, SEEN, now).unwrap();
    assert_eq!(ready(&mut pending, now), Some((name("a"), EventType::Create)));
    assert_eq!(pending.next_due(now + SETTLE * 2, |_| true), None);
}

#[test]
fn a_file_that_is_never_closed_settles_once_it_stays_unchanged() {
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
fn changes_of_a_path_in_flight_are_dispatched_once_and_afterwards() {
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
fn a_name_deleted_and_created_again_while_in_flight_is_new() {
    let (mut pending, now) = set();
    let a = name("a");
    pending.event(HERE, &a, Change::Closed, true, SEEN, now).unwrap();
    assert_eq!(ready(&mut pending, now), Some((a.clone(), EventType::CloseWrite)));
    pending.gone(HERE, &a, NameLost::Deleted, false);
    pending.event(HERE, &a, Change::Created { version: 1 }, false, SEEN, now).unwrap();
    pending.event(HERE, &a, Change::Closed, false, SEEN, now).unwrap();
    assert_eq!(pending.done(HERE, &a, now), Some(NameLost::Deleted));
    assert_eq!(ready(&mut pending, now), Some((a.clone(), EventType::Create)));
}

#[test]
fn a_busy_file_is_due_again_after_growing_pauses_or_with_its_next_event() {
    let (mut pending, mut now) = set();
    let a = name("a");
    pending.event(HERE, &a, Change::Closed, false, SEEN, now).unwrap();
    let mut pause = BUSY_PAUSE_MIN;
    for _ in 0..12 {
        assert_eq!(ready(&mut pending, now), Some((a.clone(), EventType::Create)));
        pending.busy(HERE, &a, Held::Writer, now);
        assert_eq!(pending.next_time(), Some(now + pause));
        now += pause;
        pause = (pause * 2).min(BUSY_PAUSE_MAX);
    }
    assert_eq!(ready(&mut pending, now), Some((a.clone(), EventType::Create)));
    pending.busy(HERE, &a, Held::Writer, now);
    pending.event(HERE, &a, Change::Closed, false, SEEN, now).unwrap();
    assert_eq!(ready(&mut pending, now), Some((a, EventType::Create)));
}

#[test]
fn a_due_path_keeps_its_due_time() {
    let (mut pending, now) = set();
    pending.event(HERE, &name("a"), Change::Closed, false, SEEN, now).unwrap();
    pending.event(HERE, &name("b"), Change::Closed, false, SEEN, now).unwrap();
    pending.event(HERE, &name("a"), Change::Closed, false, SEEN, now + SETTLE).unwrap();
    assert_eq!(ready(&mut pending, now + SETTLE).map(|(name, _)| name), Some(name("a")));
}

#[test]
fn a_path_is_told_where_its_file_came_from_by_the_last_rename_before_its_dispatch() {
    let (mut pending, now) = set();
    let a = name("a");
    let from = |path: &str| Some(Arc::from(path.as_bytes()));
    let former = |pending: &mut Pending| match pending.next_due(now, |_| true) {
        Some(Due::Ready { former, .. }) => former,
        other => panic!("{other:?}"),
    };
    pending.event(HERE, &a, Change::MovedTo, false, SEEN, now).unwrap();
    pending.renamed(HERE, &a, from("/first"));
    pending.renamed(HERE, &a, from("/second"));
    assert_eq!(former(&mut pending), from("/second"));
    // The job in flight has been told already.
    pending.event(HERE, &a, Change::MovedTo, false, SEEN, now).unwrap();
    pending.renamed(HERE, &a, from("/third"));
    pending.done(HERE, &a, now);
    assert_eq!(former(&mut pending), from("/third"));
}

#[test]
fn a_file_settles_from_its_creation_to_its_close() {
    let (mut pending, now) = set();
    let a = name("a");
    assert!(!pending.is_settling(HERE, &a) && pending.is_empty());
    pending.event(HERE, &a, Change::Created { version: 1 }, false, SEEN, now).unwrap();
    assert!(pending.is_settling(HERE, &a) && !pending.is_empty());
    pending.event(HERE, &a, Change::Closed, false, SEEN, now).unwrap();
    assert!(!pending.is_settling(HERE, &a));
}

#[test]
fn a_removed_directory_takes_its_files_away_and_no_removal_that_is_due() {
    let (mut pending, now) = set();
    let names = ["in-flight", "deleted", "lost", "waits", "removal"].map(name);
    let [in_flight, deleted, lost, waits, removal] = &names;
    let removed = Change::Removed { how: NameLost::Deleted };
    for path in [in_flight, deleted, lost] {
        pending.event(HERE, path, Change::Closed, false, SEEN, now).unwrap();
        assert_eq!(ready(&mut pending, now).map(|(name, _)| name).as_ref(), Some(path));
    }
    pending.gone(HERE, deleted, NameLost::Deleted, false);
    pending.event(HERE, waits, Change::Closed, false, SEEN, now).unwrap();
    [lost, removal].into_iter().for_each(|path| pending.event(HERE, path, removed, true, SEEN, now).unwrap());
    pending.remove_directory(HERE);
    let held: Vec<bool> = names.iter().map(|name| pending.holds(HERE, name)).collect();
    assert_eq!(held, [true, true, true, false, true]);
    assert_eq!(pending.done(HERE, in_flight, now), Some(NameLost::Renamed));
    assert_eq!(pending.done(HERE, deleted, now), Some(NameLost::Deleted));
    assert_eq!(pending.done(HERE, lost, now), None);
    for path in [removal, lost] {
        assert_eq!(ready(&mut pending, now).map(|(name, _)| name).as_ref(), Some(path));
    }
}

#[test]
fn how_a_name_was_lost_is_what_the_last_event_says_and_a_rescan_does_not_know_it() {
    let (mut pending, now) = set();
    let a = name("a");
    let (deleted, renamed) = (NameLost::Deleted, NameLost::Renamed);
    let removed = |how| Change::Removed { how };
    let lost = |pending: &mut Pending| match pending.next_due(now, |_| true) {
        Some(Due::Ready { lost, .. }) => lost,
        other => panic!("{other:?}"),
    };
    for (by_event, last) in [(deleted, renamed), (renamed, deleted)] {
        pending.event(HERE, &a, removed(by_event), true, SEEN, now).unwrap();
        pending.event(HERE, &a, removed(last), true, SEEN, now).unwrap();
        pending.found(HERE, &a, removed(by_event), true, SEEN, now).unwrap();
        assert_eq!(lost(&mut pending), Some(last));
        pending.done(HERE, &a, now);
    }
    // A rescan has found a file there.
    pending.event(HERE, &a, removed(deleted), true, SEEN, now).unwrap();
    pending.found(HERE, &a, Change::Complete, true, SEEN, now).unwrap();
    assert_eq!(lost(&mut pending), None);
}

#[test]
fn what_was_renamed_away_is_lost_for_good_once_another_file_is_there() {
    let (deleted, renamed) = (NameLost::Deleted, NameLost::Renamed);
    for (again, taken, expected) in [
        (None, None, None),
        (None, Some(renamed), Some(renamed)),
        (Some(Change::Closed), None, None),
        (Some(Change::Closed), Some(renamed), Some(deleted)),
        (Some(Change::Created { version: 1 }), Some(renamed), Some(deleted)),
        // It may have come back.
        (Some(Change::MovedTo), Some(renamed), Some(renamed)),
        (Some(Change::Removed { how: deleted }), Some(renamed), Some(renamed)),
    ] {
        assert_eq!(how_lost(again, taken), expected, "{again:?} after {taken:?}");
    }
}

#[test]
fn the_oldest_path_is_the_one_whose_first_event_came_first() {
    let (mut pending, now) = set();
    assert_eq!(pending.oldest(), None);
    for (path, at) in [("late", now + SETTLE), ("early", now), ("early", now + SETTLE * 2)] {
        pending.event(HERE, &name(path), Change::Closed, false, SEEN, at).unwrap();
    }
    assert_eq!(pending.oldest(), Some(now));
}

#[test]
fn the_bound_holds_and_a_path_in_flight_outlives_the_drop() {
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
fn an_event_goes_before_the_backlog_and_promotes_its_path() {
    let mut pending = Pending::new(SETTLE, Duration::ZERO, 1000);
    let now = Instant::now();
    for number in 0..100 {
        pending.found(HERE, &name(&format!("found-{number:02}")), Change::Complete, false, SEEN, now).unwrap();
    }
    pending.event(HERE, &name("live"), Change::Closed, false, SEEN, now).unwrap();
    pending.event(HERE, &name("found-50"), Change::Closed, false, SEEN, now).unwrap();
    assert_eq!(pending.backlog(), 99);
    let order: Vec<Name> = iter::from_fn(|| ready(&mut pending, now)).map(|(name, _)| name).collect();
    assert_eq!(order[..3], [name("found-50"), name("live"), name("found-00")]);
    assert_eq!(order.len(), 101);
}

#[test]
fn the_backlog_advances_under_any_number_of_events() {
    let mut pending = Pending::new(SETTLE, Duration::ZERO, 1000);
    let now = Instant::now();
    pending.found(HERE, &name("found"), Change::Complete, false, SEEN, now).unwrap();
    for number in 0..100 {
        pending.event(HERE, &name(&format!("live-{number}")), Change::Closed, false, SEEN, now).unwrap();
    }
    let position = iter::from_fn(|| ready(&mut pending, now)).position(|(it, _)| it == name("found"));
    assert_eq!(position, Some(BACKLOG_SHARE as usize - 1));
}

#[test]
fn a_volume_without_room_delays_no_other_volume() {
    let (mut pending, now) = (Pending::new(SETTLE, Duration::ZERO, 1000), Instant::now());
    let (slow, fast) = (HERE.next().on_volume(0), HERE.on_volume(1));
    for number in 0..100 {
        pending.event(slow, &name(&format!("slow-{number:02}")), Change::Closed, false, SEEN, now).unwrap();
        pending.event(fast, &name(&format!("fast-{number:02}")), Change::Closed, false, SEEN, now).unwrap();
    }
    let dispatched = |pending: &mut Pending, volume| {
        let due = iter::from_fn(|| pending.next_due(now, |of| of == volume));
        due.filter(|due| matches!(due, Due::Ready { id, .. } if id.volume() == volume)).count()
    };
    assert_eq!(dispatched(&mut pending, 1), 100);
    assert_eq!(pending.next_time(), None, "parked paths do not wake the loop");
    pending.gone(slow, &name("slow-05"), NameLost::Deleted, false);
    pending.unpark(0, 10);
    assert_eq!(dispatched(&mut pending, 0), 10);
    pending.unpark(0, 1000);
    assert_eq!(dispatched(&mut pending, 0), 89);
}

#[test]
fn quiet_starts_again_with_each_event_and_does_not_apply_to_complete_files() {
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
    assert_eq!(pending.next_due(later + quiet, |_| true), None, "changes while in flight wait for quiet, too");
    pending.found(HERE, &name("b"), Change::Complete, false, SEEN, now).unwrap();
    assert_eq!(ready(&mut pending, now), Some((name("b"), EventType::Create)));
}

impl Pending {
    /// Asserts that each waiting path stands in exactly one queue, at the position that its entry says, and that no other
    /// path stands in any.
    pub(super) fn assert_consistent(&self) {
        let entries = self.entries.values().flat_map(Map::values);
        assert_eq!(self.len, entries.clone().count());
        assert_eq!(self.queues.iter().count(), entries.filter(|entry| entry.position().is_some()).count());
        for (id, name, position) in self.queues.iter() {
            assert_eq!(self.entries[&id][name].position(), Some(position));
        }
        assert!(self.spare.is_empty() && !self.entries.values().any(Map::is_empty));
    }
}

#[derive(Debug, Clone)]
enum Step {
    /// `true`: a rescan has found it.
    Change(u8, Change, bool),
    /// `true`: the name is replaced.
    Gone(u8, bool),
    /// Every due path is dispatched.
    Dispatch,
    /// No volume has room.
    Park,
    Complete(u8, Answer),
    Wait(u64),
}

#[derive(Debug, Clone)]
enum Answer {
    Done,
    Failed,
    Busy,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let change = prop_oneof![
        (0..3u64).prop_map(|version| Change::Created { version }),
        (0..3u64).prop_map(|version| Change::Changed { version }),
        Just(Change::MovedTo),
        Just(Change::Closed),
        Just(Change::Complete)
    ];
    let answer = prop_oneof![Just(Answer::Done), Just(Answer::Failed), Just(Answer::Busy)];
    prop::collection::vec(
        prop_oneof![
            4 => (0..3u8, change, any::<bool>()).prop_map(|(path, change, found)| Step::Change(path, change, found)),
            1 => (0..3u8, any::<bool>()).prop_map(|(path, replaced)| Step::Gone(path, replaced)),
            3 => Just(Step::Dispatch),
            1 => Just(Step::Park),
            2 => (0..3u8, answer).prop_map(|(path, answer)| Step::Complete(path, answer)),
            1 => (0..1500u64).prop_map(Step::Wait),
        ],
        0..80,
    )
}

/// Three paths, of which each is in flight or not, and owed a dispatch or not.
struct Paths {
    names: [Name; 3],
    in_flight: [bool; 3],
    owed: [bool; 3],
}

impl Paths {
    fn dispatch(&mut self, pending: &mut Pending, now: Instant) {
        pending.unpark(0, usize::MAX);
        while let Some(due) = pending.next_due(now, |_| true) {
            match due {
                Due::Settled { name, version, .. } => pending.settled(HERE, &name, version, Some(version), now),
                Due::Ready { name, .. } => {
                    let path = self.names.iter().position(|known| *known == name).unwrap();
                    assert!(!self.in_flight[path], "dispatched twice");
                    (self.in_flight[path], self.owed[path]) = (true, false);
                }
            }
        }
    }

    fn complete(&mut self, path: usize, answer: Answer, pending: &mut Pending, now: Instant) {
        let name = &self.names[path];
        if !mem::take(&mut self.in_flight[path]) {
            return;
        }
        match answer {
            Answer::Done => drop(pending.done(HERE, name, now)),
            Answer::Failed => drop(pending.failed(HERE, name, now)),
            Answer::Busy => {
                pending.busy(HERE, name, Held::Writer, now);
                self.owed[path] |= pending.holds(HERE, name);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8 * ProptestConfig::default().cases, ..ProptestConfig::default() })]
    /// No path is dispatched while it is in flight, the queues hold exactly the waiting paths, and in the end every path
    /// whose last change was not a deletion has been dispatched after it.
    #[test]
    fn no_change_is_lost_and_no_path_is_in_flight_twice(steps in steps()) {
        let (mut pending, mut now) = set();
        let mut paths = Paths { names: ["a", "b", "c"].map(name), in_flight: [false; 3], owed: [false; 3] };
        for step in steps {
            match step {
                Step::Change(path, change, found) => {
                    let path = usize::from(path);
                    let add = if found { Pending::found } else { Pending::event };
                    add(&mut pending, HERE, &paths.names[path], change, false, SEEN, now).unwrap();
                    paths.owed[path] = true;
                }
                Step::Gone(path, replaced) => {
                    let path = usize::from(path);
                    pending.gone(HERE, &paths.names[path], NameLost::Deleted, replaced);
                    paths.owed[path] &= replaced;
                }
                Step::Park => prop_assert_eq!(pending.next_due(now, |_| false), None),
                Step::Dispatch => paths.dispatch(&mut pending, now),
                Step::Complete(path, answer) => paths.complete(usize::from(path), answer, &mut pending, now),
                Step::Wait(millis) => now += Duration::from_millis(millis),
            }
            pending.assert_consistent();
        }
        for _ in 0..4 {
            now += BUSY_PAUSE_MAX + SETTLE;
            paths.dispatch(&mut pending, now);
            (0..3).for_each(|path| paths.complete(path, Answer::Done, &mut pending, now));
        }
        prop_assert!(pending.is_empty());
        prop_assert_eq!(paths.owed, [false; 3]);
    }
}
