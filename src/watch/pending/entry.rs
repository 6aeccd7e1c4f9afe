//! One path of the pending set, and how its changes coalesce.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::queues::Position;
use crate::files::directory::DirectoryId;
use crate::files::names::{Map, Name};
use crate::files::version::Timestamp;
use crate::inquiry::Held;
use crate::message::EventType;
use crate::watch::schedule::DueTime;

/// The first pause before a file with a writer is dispatched again; it doubles each time.
pub(crate) const BUSY_PAUSE_MIN: Duration = Duration::from_millis(20);

/// The longest such pause. It bounds what a file costs that never stops changing.
pub(crate) const BUSY_PAUSE_MAX: Duration = Duration::from_secs(5);

/// What an event or a rescan says about a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// The name is new, and the file may still have a writer.
    Created {
        /// The fingerprint of its current version.
        version: u64,
    },
    /// A rescan found the file new or changed, and it may still have a writer.
    Changed {
        /// The fingerprint of its current version.
        version: u64,
    },
    /// A file was renamed to this name.
    MovedTo,
    /// A writer has closed the file.
    Closed,
    /// A rescan found the file new or changed, and it counts as complete: it was last changed long enough ago, or the read
    /// lease will reveal a writer.
    Complete,
    /// The path has no file any more, and consumers have been sent one for it.
    Removed {
        /// How the file lost its name.
        how: NameLost,
    },
}

impl Change {
    /// How the name was lost, if that is the change.
    pub(super) fn lost(self) -> Option<NameLost> {
        match self {
            Self::Removed { how } => Some(how),
            _ => None,
        }
    }
}

/// How a file lost its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameLost {
    /// The name was deleted.
    Deleted,
    /// The file was renamed, and may come back to this name later.
    Renamed,
}

/// A change on its way into the set.
#[derive(Clone, Copy)]
pub(super) struct Incoming {
    pub(super) change: Change,
    pub(super) published: bool,
    pub(super) seen_at: Timestamp,
    pub(super) now: Instant,
    /// A rescan has found it.
    pub(super) backlog: bool,
}

/// When a path can be due: at once, after the quiet time, or after the settle time.
pub(super) struct DueTimes {
    pub(super) now: DueTime,
    pub(super) quiet: DueTime,
    pub(super) settled: DueTime,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) event: EventType,
    pub(super) seen_at: Timestamp,
    /// The path has no file any more, as far as is known, and its removal is due: how the file lost its name.
    pub(super) lost: Option<NameLost>,
    /// The absolute path that the last file was renamed from which came by a rename, if that is known.
    pub(super) former: Option<Arc<[u8]>>,
    /// Since when the path waits: its first event, or the end of its previous job.
    pub(super) since: Instant,
    /// A rescan has found the path, and no event has named it since.
    pub(super) backlog: bool,
    /// Why the last job ended without a message, if it is to be tried again.
    pub(super) held: Held,
    pub(super) state: EntryState,
}

impl Entry {
    pub(super) fn new(Incoming { change, published, seen_at, now, backlog }: Incoming, times: &DueTimes) -> Self {
        let (event, state) = (event_type(None, change, published), EntryState::after(change, times));
        Self { event, seen_at, lost: change.lost(), former: None, since: now, backlog, held: Held::Changing, state }
    }

    pub(super) fn coalesce(
        &mut self,
        Incoming { change, published, seen_at, now, backlog }: Incoming,
        times: &DueTimes,
    ) {
        if let EntryState::InFlight { again, .. } = &mut self.state {
            // A file that was renamed to this name and written afterwards still came by a rename.
            let renamed = matches!((*again, change), (Some((Change::MovedTo, _)), Change::Closed));
            *again = Some((if renamed { Change::MovedTo } else { change }, seen_at));
            return;
        }
        self.event = event_type(Some(self.event), change, published);
        // An event knows how the name was lost, and a rescan does not.
        self.lost = if backlog && change.lost().is_some() { self.lost.or(change.lost()) } else { change.lost() };
        self.seen_at = seen_at;
        self.backlog &= backlog;
        // A due path keeps its due time, because a path that changes all the time would never be dispatched otherwise.
        if !matches!(self.state, EntryState::Ready { due, .. } if due.is_over(now)) {
            self.state = EntryState::after(change, times);
        }
    }

    /// Whether the last that is known of the path is that it has no file any more.
    pub(super) fn awaits_removal(&self) -> bool {
        match self.state {
            EntryState::InFlight { again, .. } => again.is_some_and(|(change, _)| change.lost().is_some()),
            _ => self.lost.is_some(),
        }
    }

    /// Whether the file in flight was deleted, so that the end of its directory does not rename it.
    pub(super) fn is_deleted(&self) -> bool {
        matches!(self.state, EntryState::InFlight { again: None, taken: Some(NameLost::Deleted), .. })
    }

    /// What the path waits for.
    pub(super) fn held(&self, now: Instant) -> Held {
        match self.state {
            EntryState::Settling { .. } => Held::Settling,
            // Only a job that is to be tried again makes the pause longer.
            EntryState::Ready { pause, .. } | EntryState::InFlight { pause, .. } if pause > BUSY_PAUSE_MIN => self.held,
            EntryState::Ready { due, .. } if due.is_over(now) => Held::Room,
            EntryState::Ready { .. } => Held::Quiet,
            EntryState::InFlight { .. } => Held::InFlight,
        }
    }

    /// Where the path stands in the queues; nothing for a path in flight.
    pub(super) fn position(&self) -> Option<Position> {
        match self.state {
            EntryState::Ready { due, .. } | EntryState::Settling { due, .. } => {
                Some(Position { backlog: self.backlog, due })
            }
            EntryState::InFlight { .. } => None,
        }
    }
}

#[derive(Debug)]
pub(super) enum EntryState {
    /// To be dispatched at a time that may be over.
    Ready { due: DueTime, pause: Duration },
    /// Created and not closed.
    Settling { due: DueTime, version: u64 },
    /// Dispatched. `again` is the last change since, `taken` says how the file lost its name since.
    InFlight { again: Option<(Change, Timestamp)>, taken: Option<NameLost>, pause: Duration },
}

impl EntryState {
    pub(super) fn after(change: Change, times: &DueTimes) -> Self {
        match change {
            Change::Created { version } | Change::Changed { version } => Self::Settling { due: times.settled, version },
            Change::MovedTo | Change::Closed | Change::Removed { .. } => {
                Self::Ready { due: times.quiet, pause: BUSY_PAUSE_MIN }
            }
            Change::Complete => Self::Ready { due: times.now, pause: BUSY_PAUSE_MIN },
        }
    }
}

/// How a version came to its path, in the contract's words: by a rename; as a new path since the last message for it; or as
/// a rewrite of an existing file. `before` is the event type of an earlier event that has had no message yet.
pub(super) fn event_type(before: Option<EventType>, change: Change, published: bool) -> EventType {
    match (change, before) {
        (Change::MovedTo, _) => EventType::MovedTo,
        // A file that comes to a path after its removal is new there.
        (Change::Created { .. } | Change::Removed { .. }, _) => EventType::Create,
        (Change::Closed | Change::Changed { .. } | Change::Complete, Some(before)) => before,
        (Change::Closed | Change::Changed { .. } | Change::Complete, None) if published => EventType::CloseWrite,
        (Change::Closed | Change::Changed { .. } | Change::Complete, None) => EventType::Create,
    }
}

/// How the file in flight lost its name, for what was read to be compared with the file that is there: `taken` says how, and
/// `again` is the last change since. It is known at the end only, because a file that was renamed away can come back after
/// others were created and deleted there.
pub(super) fn how_lost(again: Option<Change>, taken: Option<NameLost>) -> Option<NameLost> {
    match again {
        // The file that is there did not come by a rename, so its metadata alone is worth no message.
        Some(change) if change != Change::MovedTo && change.lost().is_none() => taken.and(Some(NameLost::Deleted)),
        _ => taken,
    }
}

pub(super) fn entry<'a>(
    entries: &'a mut Map<DirectoryId, Map<Name, Entry>>,
    id: DirectoryId,
    name: &Name,
) -> Option<&'a mut Entry> {
    entries.get_mut(&id)?.get_mut(name)
}

/// The entry of a job that completes. Nothing else ends the entry of a path in flight, and each job completes once.
pub(super) fn in_flight<'a>(
    entries: &'a mut Map<DirectoryId, Map<Name, Entry>>,
    id: DirectoryId,
    name: &Name,
) -> &'a mut Entry {
    let entry = entry(entries, id, name).filter(|entry| matches!(entry.state, EntryState::InFlight { .. }));
    entry.expect("a job completes only while its path is in flight")
}
