//! The pending set: one entry for each path, however many events it has, and the rules that coalesce them.
//!
//! Pure: no I/O, and the time is passed in. An entry lives from the first event of a path until its message is confirmed, or
//! until there is nothing to publish. A path in flight is not dispatched a second time, so that its messages stay in order:
//! its further changes wait in the entry and are dispatched afterwards.
//!
//! [`entry`] has the rules for one path. [`queues`] holds the paths that wait, and says which is next.

mod entry;
mod oldest;
mod queues;

use std::collections::hash_map::Entry as MapEntry;
use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub(crate) use entry::{BUSY_PAUSE_MAX, BUSY_PAUSE_MIN};
pub use entry::{Change, NameLost};
use entry::{DueTimes, Entry, EntryState, Incoming, entry, event_type, how_lost, in_flight};
use queues::{Position, Queues};

use super::schedule::DueTime;
use crate::files::directory::DirectoryId;
use crate::files::names::{Map, Name};
use crate::files::version::Timestamp;
use crate::inquiry::Held;
use crate::message::EventType;

/// Paths that may be in the set. When there is no room, the waiting paths are dropped and the directories are rescanned
/// instead, which costs no memory: at some 200 bytes a path this is 50 MB.
pub const PENDING_MAX: usize = 1 << 18;

/// Paths that an emptied directory's map keeps room for.
const SPARE_MAX: usize = 1024;

/// A path that is due.
#[derive(Debug, PartialEq, Eq)]
pub enum Due {
    /// The path is in flight from now on.
    Ready {
        /// The directory.
        id: DirectoryId,
        /// The name in it.
        name: Name,
        /// How the version came to this path.
        event: EventType,
        /// When the last event was read.
        seen_at: Timestamp,
        /// The path has no file any more, as far as is known, and its removal is due.
        lost: Option<NameLost>,
        /// The absolute path that the file was renamed from, if that is known.
        former: Option<Arc<[u8]>>,
    },
    /// The settle time of a file that was not closed is over. The caller compares its version and calls
    /// [`Pending::settled`] before anything else.
    Settled {
        /// The directory.
        id: DirectoryId,
        /// The name in it.
        name: Name,
        /// The fingerprint of the version when the settle time began.
        version: u64,
    },
}

/// The set has no room for one more path: a rescan has to find it.
#[derive(Debug, PartialEq, Eq)]
pub struct Full;

/// See the module.
#[derive(Debug)]
pub struct Pending {
    /// By directory, so that the paths of one directory can be dropped together. None of the inner maps is empty.
    entries: Map<DirectoryId, Map<Name, Entry>>,
    /// The inner map that was emptied last, kept for the next directory: where files come one at a time, each needs one.
    spare: Map<Name, Entry>,
    /// The entries in all inner maps.
    len: usize,
    queues: Queues,
    /// The number of the last due time.
    last_number: u64,
    settle: Duration,
    quiet: Duration,
    bound: usize,
}

impl Pending {
    /// An empty set. A file that was created and not closed has to stay unchanged for `settle`. After a close or a rename
    /// nothing may happen to the path for `quiet`. `bound` is the number of paths that may be in the set.
    #[must_use]
    pub fn new(settle: Duration, quiet: Duration, bound: usize) -> Self {
        Self {
            entries: Map::default(),
            spare: Map::default(),
            len: 0,
            queues: Queues::default(),
            last_number: 0,
            settle,
            quiet,
            bound,
        }
    }

    /// Paths in the set, both waiting and in flight.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no path waits and none is in flight.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds an event. `published`: a message was confirmed for this path, or its file was there before the service started.
    ///
    /// # Errors
    /// [`Full`]: the path is not in the set yet and there is no room.
    pub fn event(
        &mut self,
        id: DirectoryId,
        name: &Name,
        change: Change,
        published: bool,
        seen_at: Timestamp,
        now: Instant,
    ) -> Result<(), Full> {
        self.add(id, name, Incoming { change, published, seen_at, now, backlog: false })
    }

    /// Adds what a rescan has found, with the arguments of [`Self::event`]. The path stands in the backlog until an event
    /// names it.
    ///
    /// # Errors
    /// [`Full`]: the path is not in the set yet and there is no room.
    pub fn found(
        &mut self,
        id: DirectoryId,
        name: &Name,
        change: Change,
        published: bool,
        seen_at: Timestamp,
        now: Instant,
    ) -> Result<(), Full> {
        self.add(id, name, Incoming { change, published, seen_at, now, backlog: true })
    }

    fn add(&mut self, id: DirectoryId, name: &Name, incoming: Incoming) -> Result<(), Full> {
        let times = self.due_times(incoming.now);
        match entry(&mut self.entries, id, name) {
            None if self.len >= self.bound => return Err(Full),
            None => {
                let entry = Entry::new(incoming, &times);
                self.enqueue(id, name, entry.position());
                let names = self.entries.entry(id).or_insert_with(|| mem::take(&mut self.spare));
                names.insert(Arc::clone(name), entry);
                self.len += 1;
            }
            Some(entry) => {
                let before = entry.position();
                entry.coalesce(incoming, &times);
                let after = entry.position();
                if before != after {
                    self.dequeue(id, before);
                    self.enqueue(id, name, after);
                }
            }
        }
        Ok(())
    }

    /// The file has lost its name. `replaced`: a file stands at the name all the same, because two names were exchanged or
    /// the name was created again already. The entry waits for that file then.
    pub(crate) fn gone(&mut self, id: DirectoryId, name: &Name, how: NameLost, replaced: bool) {
        let Some(entry) = entry(&mut self.entries, id, name) else { return };
        match &mut entry.state {
            EntryState::InFlight { again, taken, .. } => {
                *again = again.filter(|_| replaced);
                // A rename outlives a later deletion, because the file in flight may be the one that came back.
                *taken = if *taken == Some(NameLost::Renamed) { *taken } else { Some(how) };
            }
            _ if replaced => {}
            _ => {
                let position = entry.position();
                self.dequeue(id, position);
                self.remove(id, name);
            }
        }
    }

    /// The path's last event was a rename from this absolute path, if that is known.
    pub(crate) fn renamed(&mut self, id: DirectoryId, name: &Name, former: Option<Arc<[u8]>>) {
        if let Some(entry) = entry(&mut self.entries, id, name) {
            entry.former = former;
        }
    }

    /// Whether a path is in the set, waiting or in flight.
    pub(crate) fn holds(&self, id: DirectoryId, name: &Name) -> bool {
        self.entries.get(&id).is_some_and(|names| names.contains_key(name))
    }

    /// Whether a path waits for the file's close, or for the end of its settle time.
    pub(crate) fn is_settling(&self, id: DirectoryId, name: &Name) -> bool {
        let entry = self.entries.get(&id).and_then(|names| names.get(name));
        entry.is_some_and(|entry| matches!(entry.state, EntryState::Settling { .. }))
    }

    /// A directory was removed from the tree, with all names in it. Removals that are due stay due.
    pub(crate) fn remove_directory(&mut self, id: DirectoryId) {
        let exists =
            |(name, entry): (&Name, &Entry)| (!entry.awaits_removal() && !entry.is_deleted()).then(|| Arc::clone(name));
        let names = self.entries.get(&id).map(|names| names.iter().filter_map(exists).collect::<Vec<_>>());
        names.into_iter().flatten().for_each(|name| self.gone(id, &name, NameLost::Renamed, false));
    }

    /// A rescan found a path with another version than the last confirmed one. Returns whether the path is in the set. A
    /// waiting path will be read anyway; a path in flight is read once more, because its reader may have come before the
    /// change. A removal that waits is none any more. `renamed`: the file came to the path by a rename.
    pub(crate) fn read_again(&mut self, id: DirectoryId, name: &Name, renamed: bool, seen_at: Timestamp) -> bool {
        let Some(entry) = entry(&mut self.entries, id, name) else { return false };
        if let EntryState::InFlight { again, .. } = &mut entry.state {
            let change = if renamed { Change::MovedTo } else { Change::Closed };
            if again.is_none_or(|(change, _)| change.lost().is_some()) {
                *again = Some((change, seen_at));
            }
        } else if entry.lost.take().is_some() {
            entry.seen_at = seen_at;
            if renamed {
                entry.event = EventType::MovedTo;
            }
        }
        true
    }

    /// A volume has room for so many paths: as many of its parked ones become due again.
    pub(crate) fn unpark(&mut self, volume: usize, room: usize) {
        self.queues.unpark(volume, room);
    }

    /// The next due path of a volume that has room. A [`Due::Ready`] path is in flight from now on.
    pub fn next_due(&mut self, now: Instant, has_room: impl Fn(usize) -> bool) -> Option<Due> {
        let (id, name, position) = self.queues.pop_due(now, has_room)?;
        let Some(entry) = entry(&mut self.entries, id, &name) else {
            unreachable!("a path without an entry stands in a queue");
        };
        debug_assert_eq!(entry.position(), Some(position), "a path stands where its entry does not say");
        match entry.state {
            EntryState::Settling { version, .. } => Some(Due::Settled { id, name, version }),
            EntryState::Ready { pause, .. } => {
                entry.state = EntryState::InFlight { again: None, taken: None, pause };
                Some(Due::Ready {
                    id,
                    name,
                    event: entry.event,
                    seen_at: entry.seen_at,
                    lost: entry.lost,
                    former: entry.former.clone(),
                })
            }
            EntryState::InFlight { .. } => unreachable!("a path in flight stands in a queue"),
        }
    }

    /// Answers [`Due::Settled`] with the fingerprint of the current version, or nothing when there is no file.
    pub(crate) fn settled(&mut self, id: DirectoryId, name: &Name, before: u64, now_is: Option<u64>, now: Instant) {
        let times = self.due_times(now);
        let Some(entry) = entry(&mut self.entries, id, name) else { return };
        let Some(version) = now_is else { return self.remove(id, name) };
        entry.state = if version == before {
            EntryState::Ready { due: times.now, pause: BUSY_PAUSE_MIN }
        } else {
            EntryState::Settling { due: times.settled, version }
        };
        let position = entry.position();
        self.enqueue(id, name, position);
    }

    /// The job of a path has completed: its message is confirmed, or there is nothing to publish. Returns how the file lost
    /// its name while the job was in flight, if it did.
    pub fn done(&mut self, id: DirectoryId, name: &Name, now: Instant) -> Option<NameLost> {
        self.complete(id, name, true, now)
    }

    /// The file could not be read. The next event of the path brings it again, as the event that it was. Returns how the
    /// file lost its name while the job was in flight, if it did.
    pub(crate) fn failed(&mut self, id: DirectoryId, name: &Name, now: Instant) -> Option<NameLost> {
        self.complete(id, name, false, now)
    }

    /// The file cannot be published now, for this reason: it is dispatched again after a pause, or with its next event.
    pub(crate) fn busy(&mut self, id: DirectoryId, name: &Name, held: Held, now: Instant) {
        let number = self.next_number();
        let entry = in_flight(&mut self.entries, id, name);
        let EntryState::InFlight { again: None, taken: None, pause } = entry.state else {
            self.complete(id, name, false, now);
            return;
        };
        let due = DueTime::new(now + pause, number);
        entry.state = EntryState::Ready { due, pause: (pause * 2).min(BUSY_PAUSE_MAX) };
        entry.held = held;
        let position = entry.position();
        self.enqueue(id, name, position);
    }

    fn complete(&mut self, id: DirectoryId, name: &Name, published: bool, now: Instant) -> Option<NameLost> {
        let times = self.due_times(now);
        let entry = in_flight(&mut self.entries, id, name);
        let EntryState::InFlight { again, taken, .. } = entry.state else { unreachable!("see in_flight") };
        match again {
            None => self.remove(id, name),
            Some((change, seen_at)) => {
                let before = (!published && taken.is_none()).then_some(entry.event);
                let event = event_type(before, change, published && taken.is_none());
                let state = EntryState::after(change, &times);
                let former = entry.former.take();
                let lost = change.lost();
                let held = entry.held;
                *entry = Entry { event, seen_at, lost, former, since: now, backlog: false, held, state };
                let position = entry.position();
                self.enqueue(id, name, position);
            }
        }
        how_lost(again.map(|(change, _)| change), taken)
    }

    /// Drops every waiting path, because a rescan finds it again. Paths in flight stay.
    pub(crate) fn drop_waiting(&mut self) {
        self.queues.clear();
        self.entries.retain(|_, names| {
            names.retain(|_, entry| matches!(entry.state, EntryState::InFlight { .. }));
            names.shrink_to_fit();
            !names.is_empty()
        });
        self.entries.shrink_to_fit();
        self.spare = Map::default();
        self.len = self.entries.values().map(Map::len).sum();
    }

    /// When the next path is due, parked ones aside: only room makes them due.
    pub(crate) fn next_time(&self) -> Option<Instant> {
        self.queues.next_time()
    }

    /// Waiting paths of the backlog, parked ones aside.
    pub(crate) fn backlog(&self) -> usize {
        self.queues.backlog()
    }

    /// When the oldest entry had its first event. The search visits every entry, so it is for once a second.
    pub(crate) fn oldest(&self) -> Option<Instant> {
        self.entries.values().flat_map(Map::values).map(|entry| entry.since).min()
    }

    fn remove(&mut self, id: DirectoryId, name: &Name) {
        let MapEntry::Occupied(mut names) = self.entries.entry(id) else { return };
        self.len -= usize::from(names.get_mut().remove(name).is_some());
        if names.get().is_empty() {
            self.spare = names.remove();
            self.spare.shrink_to(SPARE_MAX);
        }
    }

    fn enqueue(&mut self, id: DirectoryId, name: &Name, position: Option<Position>) {
        if let Some(position) = position {
            self.queues.insert(id, Arc::clone(name), position);
        }
    }

    fn dequeue(&mut self, id: DirectoryId, position: Option<Position>) {
        if let Some(position) = position {
            self.queues.remove(id, position);
        }
    }

    fn due_times(&mut self, now: Instant) -> DueTimes {
        let number = self.next_number();
        let after = |pause| DueTime::new(now + pause, number);
        DueTimes { now: DueTime::new(now, number), quiet: after(self.quiet), settled: after(self.settle) }
    }

    fn next_number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }
}

#[cfg(test)]
mod model_test;
#[cfg(test)]
mod tests;
