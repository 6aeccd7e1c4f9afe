//! Paths in the order in which they are due: the queue behind the pending set and behind the retries.
//!
//! Pure: the times are passed in.

use std::collections::BTreeMap;
use std::time::Instant;

use crate::files::directory::DirectoryId;
use crate::files::names::Name;

/// When a path is due. The number makes each key unique, and keeps paths of one time in the order of their insertion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct DueTime {
    at: Instant,
    number: u64,
}

impl DueTime {
    /// The owner of a schedule never uses a number twice for one time.
    pub(crate) fn new(at: Instant, number: u64) -> Self {
        Self { at, number }
    }

    pub(crate) fn is_over(self, now: Instant) -> bool {
        self.at <= now
    }
}

/// Paths by the time at which they are due.
#[derive(Debug, Default)]
pub(crate) struct Schedule(BTreeMap<DueTime, (DirectoryId, Name)>);

impl Schedule {
    pub(crate) fn insert(&mut self, due: DueTime, id: DirectoryId, name: Name) {
        let before = self.0.insert(due, (id, name));
        assert!(before.is_none(), "two paths of a schedule have the same key");
    }

    /// Whether a path stood there.
    pub(crate) fn remove(&mut self, due: DueTime) -> bool {
        self.0.remove(&due).is_some()
    }

    pub(crate) fn pop_due(&mut self, now: Instant) -> Option<(DueTime, DirectoryId, Name)> {
        let first = self.0.first_entry().filter(|first| first.key().is_over(now))?;
        let (due, (id, name)) = first.remove_entry();
        Some((due, id, name))
    }

    pub(crate) fn is_due(&self, now: Instant) -> bool {
        self.0.first_key_value().is_some_and(|(due, _)| due.is_over(now))
    }

    pub(crate) fn next_time(&self) -> Option<Instant> {
        self.0.first_key_value().map(|(due, _)| due.at)
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    #[cfg(test)]
    pub(crate) fn iter(&self) -> impl Iterator<Item = (DueTime, DirectoryId, &Name)> {
        self.0.iter().map(|(due, (id, name))| (*due, *id, name))
    }
}
