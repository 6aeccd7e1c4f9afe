//! The order in which waiting paths are dispatched: events go before the backlog, and no volume waits for another.
//!
//! Each waiting path stands in exactly one of three queues. `events` and `backlog` are ordered by due time. A path that was
//! due while its volume had no room is parked, so that it neither blocks nor wakes anybody until there is room again.

use std::collections::BTreeMap;
use std::iter;
use std::time::Instant;

use crate::files::directory::DirectoryId;
use crate::files::names::Name;
use crate::watch::schedule::{DueTime, Schedule};

/// While events wait, one path in so many is dispatched from the backlog: it advances under any load.
pub(super) const BACKLOG_SHARE: u32 = 16;

/// The key of a waiting path. Events (`backlog: false`) sort before the backlog.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Position {
    pub(super) backlog: bool,
    pub(super) due: DueTime,
}

#[derive(Debug, Default)]
pub(super) struct Queues {
    /// Paths with an event.
    events: Schedule,
    /// Paths that a rescan has found and no event has named.
    backlog: Schedule,
    /// By volume. None of the inner maps is empty.
    parked: BTreeMap<usize, BTreeMap<Position, (DirectoryId, Name)>>,
    /// Events dispatched since the last path of the backlog, while one was due there.
    since_backlog: u32,
}

impl Queues {
    pub(super) fn insert(&mut self, id: DirectoryId, name: Name, position: Position) {
        self.schedule(position.backlog).insert(position.due, id, name);
    }

    pub(super) fn remove(&mut self, id: DirectoryId, position: Position) {
        let removed = self.schedule(position.backlog).remove(position.due) || self.remove_parked(id.volume(), position);
        assert!(removed, "a waiting path stands in none of the queues");
    }

    fn remove_parked(&mut self, volume: usize, position: Position) -> bool {
        let Some(parked) = self.parked.get_mut(&volume) else { return false };
        let removed = parked.remove(&position).is_some();
        if parked.is_empty() {
            self.parked.remove(&volume);
        }
        removed
    }

    /// Takes out the next due path of a volume that has room, and parks due paths of other volumes on the way.
    pub(super) fn pop_due(
        &mut self,
        now: Instant,
        has_room: impl Fn(usize) -> bool,
    ) -> Option<(DirectoryId, Name, Position)> {
        loop {
            let (event_is_due, backlog_is_due) = (self.events.is_due(now), self.backlog.is_due(now));
            let backlog = backlog_is_due && (!event_is_due || self.since_backlog + 1 >= BACKLOG_SHARE);
            let (due, id, name) = self.schedule(backlog).pop_due(now)?;
            let position = Position { backlog, due };
            if has_room(id.volume()) {
                self.since_backlog = if backlog { 0 } else { self.since_backlog + u32::from(backlog_is_due) };
                return Some((id, name, position));
            }
            self.parked.entry(id.volume()).or_default().insert(position, (id, name));
        }
    }

    /// Makes so many of a volume's parked paths due again.
    pub(super) fn unpark(&mut self, volume: usize, room: usize) {
        let Some(mut parked) = self.parked.remove(&volume) else { return };
        for (position, (id, name)) in iter::from_fn(|| parked.pop_first()).take(room) {
            self.insert(id, name, position);
        }
        if !parked.is_empty() {
            self.parked.insert(volume, parked);
        }
    }

    pub(super) fn clear(&mut self) {
        *self = Self { since_backlog: self.since_backlog, ..Self::default() };
    }

    /// When the next path is due that is not parked.
    pub(super) fn next_time(&self) -> Option<Instant> {
        self.events.next_time().into_iter().chain(self.backlog.next_time()).min()
    }

    /// Paths of the backlog that are not parked.
    pub(super) fn backlog(&self) -> usize {
        self.backlog.len()
    }

    fn schedule(&mut self, backlog: bool) -> &mut Schedule {
        if backlog { &mut self.backlog } else { &mut self.events }
    }

    #[cfg(test)]
    pub(super) fn iter(&self) -> impl Iterator<Item = (DirectoryId, &Name, Position)> {
        let waiting = [(false, &self.events), (true, &self.backlog)].into_iter().flat_map(|(backlog, schedule)| {
            schedule.iter().map(move |(due, id, name)| (id, name, Position { backlog, due }))
        });
        let parked = self.parked.values().flatten().map(|(position, (id, name))| (*id, name, *position));
        waiting.chain(parked)
    }
}
