//! Names and directories that were refused, and when each is tried again.
//!
//! Pure: no I/O, and the time is passed in. A file or directory that this process may not open, or that its disk does not
//! deliver at the moment, is not forgotten. It is tried again with growing pauses, and at once when its rights change. An
//! entry that is not refused again before its next try is due has succeeded, and is removed then.
//!
//! The bound is on names. When there is no room for one more, its directory is entered instead, which is listed again as a
//! whole. There are no more such entries than watched directories.

mod refusals;

use std::collections::hash_map::Entry as MapEntry;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::schedule::{DueTime, Schedule};
use super::tree::Origin;
use crate::error::os_message;
use crate::files::directory::DirectoryId;
use crate::files::names::{Map, Name};

/// The first pause before a refused name is tried again; it doubles each time. It is short, because whoever made the file
/// mostly grants the rights a moment later, and the watch for IN_ATTRIB may have come too late for that.
const PAUSE_MIN: Duration = Duration::from_millis(100);

/// The longest such pause: contract 4.6 says five minutes at most.
const PAUSE_MAX: Duration = Duration::from_secs(300);

/// How long a file that was published early is checked: ten minutes.
const RECHECK_TIME: Duration = Duration::from_secs(600);

/// A file that was published early is checked whenever its age has grown by one part in so many. Writes are seen soon while
/// it is young, and some forty checks are all it costs.
const RECHECK_SHARE: u32 = 8;

/// Names that may be kept. At some 200 bytes each they take 13 MB.
pub(crate) const NAMES_MAX: usize = 1 << 16;

/// What is to be tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Retry {
    /// A name, which is compared with the disk and then read or entered, whichever kind of file it is by then.
    Name {
        /// It was a directory that could not be entered.
        directory: bool,
        /// How it came to its path.
        origin: Origin,
    },
    /// The directory itself, which is listed together with all below it.
    Listing {
        /// It could not be listed. Otherwise the entry replaces names that there was no room for.
        shut: bool,
    },
    /// Not refused: a file was published while it may still have had a writer whose close raises no event.
    Recheck {
        /// The fingerprint of the version that was published.
        version: u64,
    },
}

impl Retry {
    /// Whether it is a directory that cannot be entered or listed.
    pub(crate) fn is_directory(self) -> bool {
        matches!(self, Self::Listing { shut: true } | Self::Name { directory: true, .. })
    }

    fn is_refused(self) -> bool {
        !self.is_recheck()
    }

    fn is_recheck(self) -> bool {
        matches!(self, Self::Recheck { .. })
    }

    /// Two refusals of one name in a row. A directory that was renamed to its path counts as that until it can be entered.
    fn joined_with(self, after: Self) -> Self {
        match (self, after) {
            (Self::Name { origin: Origin::MovedTo, .. }, Self::Name { directory, .. }) => {
                Self::Name { directory, origin: Origin::MovedTo }
            }
            (Self::Listing { shut }, Self::Listing { shut: again }) => Self::Listing { shut: shut || again },
            (_, after) => after,
        }
    }

    fn next_pause(self, pause: Duration) -> Duration {
        if self.is_refused() { (pause * 2).min(PAUSE_MAX) } else { pause }
    }
}

/// Whether a refusal is to be counted and logged as a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Recorded {
    /// The name was not refused before, or has succeeded since.
    New,
    /// The name was refused before.
    Again,
}

#[derive(Debug)]
struct Entry {
    what: Retry,
    due: DueTime,
    /// Between the next try and the one after it. For a [`Retry::Recheck`] it is the shortest pause.
    pause: Duration,
    since: Instant,
    /// The errno of the last refusal.
    cause: i32,
    /// There was a refusal since the last try. Always set for a [`Retry::Recheck`].
    fresh: bool,
    /// What is checked once a refused file has been read, see [`Retries::recheck`].
    recheck: Option<Recheck>,
}

/// A version that was published early, by its fingerprint, and the pause before it is checked.
#[derive(Debug, Clone, Copy)]
struct Recheck {
    version: u64,
    pause: Duration,
}

impl Entry {
    fn try_again(&mut self, now: Instant, number: u64) -> DueTime {
        let recheck = self.what.is_recheck();
        let pause = if recheck { self.pause.max(self.age(now) / RECHECK_SHARE) } else { self.pause };
        self.due = DueTime::new(now + pause, number);
        self.pause = self.what.next_pause(self.pause);
        self.fresh = recheck;
        self.due
    }

    fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.since)
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Retries {
    /// By directory. The empty name is the directory itself. None of the inner maps is empty.
    entries: Map<DirectoryId, Map<Name, Entry>>,
    /// Each entry stands here once, at its due time.
    schedule: Schedule,
    /// The number of the last due time.
    last_number: u64,
    /// Entries with a name.
    names: usize,
    refused: usize,
    directories: usize,
    bound: usize,
}

impl Retries {
    /// Without entries. `bound` is the number of names that may be kept.
    pub(crate) fn new(bound: usize) -> Self {
        Self {
            entries: Map::default(),
            schedule: Schedule::default(),
            last_number: 0,
            names: 0,
            refused: 0,
            directories: 0,
            bound,
        }
    }

    /// A name was refused, or its directory when `what` is a [`Retry::Listing`] (the name does not matter then). The last
    /// cause is kept for [`Self::example`].
    pub(crate) fn refuse(
        &mut self,
        id: DirectoryId,
        name: &Name,
        what: Retry,
        cause: &io::Error,
        now: Instant,
    ) -> Recorded {
        // An error without an errno is our own failure to interpret what was read.
        let errno = cause.raw_os_error().unwrap_or(libc::EIO);
        let listing = matches!(what, Retry::Listing { .. });
        let known = !listing && self.get(id, name).is_some();
        if listing || !known && self.names >= self.bound {
            let shut = what == Retry::Listing { shut: true };
            return self.put(id, &Name::from(&b""[..]), Retry::Listing { shut }, errno, PAUSE_MIN, now);
        }
        self.put(id, name, what, errno, PAUSE_MIN, now)
    }

    /// A file is published that may still have a writer whose close raises no event. It is checked after the pause, and after
    /// growing ones. When there is no room, it is not. One that is refused stays refused, and is checked once it could be read.
    pub(crate) fn recheck(&mut self, id: DirectoryId, name: &Name, version: u64, pause: Duration, now: Instant) {
        let has_room = self.names < self.bound;
        match self.get_mut(id, name) {
            Some(entry) if entry.what.is_refused() => entry.recheck = Some(Recheck { version, pause }),
            None if !has_room => {}
            _ => drop(self.put(id, name, Retry::Recheck { version }, 0, pause, now)),
        }
    }

    fn put(
        &mut self,
        id: DirectoryId,
        name: &Name,
        what: Retry,
        cause: i32,
        pause: Duration,
        now: Instant,
    ) -> Recorded {
        let due = DueTime::new(now + pause, self.next_number());
        match self.entries.entry(id).or_default().entry(Arc::clone(name)) {
            MapEntry::Occupied(mut occupied) => {
                let entry = occupied.get_mut();
                let before = entry.what;
                let renewed = what.is_recheck() || before.is_recheck();
                if renewed {
                    assert!(self.schedule.remove(entry.due), "an entry has no place in the schedule");
                    self.schedule.insert(due, id, Arc::clone(name));
                    (entry.due, entry.pause, entry.since) = (due, what.next_pause(pause), now);
                }
                let after = before.joined_with(what);
                (entry.what, entry.cause, entry.fresh) = (after, cause, true);
                self.uncount(name, before);
                self.count(name, after);
                if renewed { Recorded::New } else { Recorded::Again }
            }
            MapEntry::Vacant(vacant) => {
                let pause = what.next_pause(pause);
                vacant.insert(Entry { what, due, pause, since: now, cause, fresh: true, recheck: None });
                self.schedule.insert(due, id, Arc::clone(name));
                self.count(name, what);
                assert!(self.names <= self.bound, "more names are kept than there is room for");
                Recorded::New
            }
        }
    }

    /// The next entry that is due for a try. It stays in the set until it succeeds, see [`Self::completed`]. `waits` says whether a
    /// name's last try is still under way.
    pub(crate) fn next_due(
        &mut self,
        now: Instant,
        waits: impl Fn(DirectoryId, &Name) -> bool,
    ) -> Option<(DirectoryId, Name, Retry)> {
        while let Some((_, id, name)) = self.schedule.pop_due(now) {
            let number = self.next_number();
            let Some(entry) = self.get_mut(id, &name) else { unreachable!("a scheduled name has no entry") };
            let (what, tries) = (entry.what, entry.fresh);
            let ends = if what.is_recheck() { entry.age(now) >= RECHECK_TIME } else { !tries && !waits(id, &name) };
            if ends {
                let ended = self.remove_unscheduled(id, &name);
                self.check_later(id, &name, ended, now);
            } else {
                let due = entry.try_again(now, number);
                self.schedule.insert(due, id, Arc::clone(&name));
            }
            if tries {
                return Some((id, name, what));
            }
        }
        None
    }

    /// A refused name has succeeded: it was read, entered or listed.
    pub(crate) fn forget(&mut self, id: DirectoryId, name: &Name, now: Instant) {
        let ended = self.remove_if(id, name, Retry::is_refused);
        self.check_later(id, name, ended, now);
    }

    /// What was to be checked of a refused name that has succeeded.
    fn check_later(&mut self, id: DirectoryId, name: &Name, ended: Option<Entry>, now: Instant) {
        if let Some(Recheck { version, pause }) = ended.and_then(|entry| entry.recheck) {
            self.recheck(id, name, version, pause, now);
        }
    }

    /// A job of a refused name has ended with its file. Where the name was refused again since its last try, that may have
    /// been while the job was in flight, about a later file: it is tried once more, at once.
    pub(crate) fn completed(&mut self, id: DirectoryId, name: &Name, now: Instant) {
        if !self.get(id, name).is_some_and(|entry| entry.fresh && entry.what.is_refused()) {
            return self.forget(id, name, now);
        }
        self.hurry(id, name, now);
    }

    /// The name is neither a file nor a link any more; it may be a directory.
    pub(crate) fn no_file(&mut self, id: DirectoryId, name: &Name) {
        self.remove_if(id, name, |what| what.is_refused() && !what.is_directory());
    }

    /// The name is no directory any more that could be entered; it may be a file.
    pub(crate) fn no_directory(&mut self, id: DirectoryId, name: &Name) {
        self.remove_if(id, name, Retry::is_directory);
    }

    /// A file was closed. Its writer raises events after all, so it needs no further check.
    pub(crate) fn closed(&mut self, id: DirectoryId, name: &Name) {
        if let Some(entry) = self.get_mut(id, name) {
            entry.recheck = None;
        }
        self.remove_if(id, name, Retry::is_recheck);
    }

    /// The name does not exist any more.
    pub(crate) fn gone(&mut self, id: DirectoryId, name: &Name) {
        self.remove_if(id, name, |_| true);
    }

    fn remove_if(&mut self, id: DirectoryId, name: &Name, is_meant: fn(Retry) -> bool) -> Option<Entry> {
        let due = self.get(id, name).filter(|entry| is_meant(entry.what))?.due;
        assert!(self.schedule.remove(due), "an entry has no place in the schedule");
        self.remove_unscheduled(id, name)
    }

    /// The rights of a name have changed: if it was refused, it is tried at once. Returns whether it was.
    pub(crate) fn hurry(&mut self, id: DirectoryId, name: &Name, now: Instant) -> bool {
        let due = DueTime::new(now, self.next_number());
        let Some(entry) = self.get_mut(id, name).filter(|entry| entry.what.is_refused()) else { return false };
        let before = entry.due;
        (entry.due, entry.pause, entry.fresh) = (due, PAUSE_MIN, true);
        assert!(self.schedule.remove(before), "an entry has no place in the schedule");
        self.schedule.insert(due, id, Arc::clone(name));
        true
    }

    /// The rights of a directory have changed: everything that was refused in it is tried at once.
    pub(crate) fn hurry_all(&mut self, id: DirectoryId, now: Instant) {
        let names: Vec<Name> = self.entries.get(&id).map(|names| names.keys().cloned().collect()).unwrap_or_default();
        for name in names {
            self.hurry(id, &name, now);
        }
    }

    /// A directory was removed from the tree, with everything that was refused in it.
    pub(crate) fn remove_directory(&mut self, id: DirectoryId) {
        for (name, Entry { what, due, .. }) in self.entries.remove(&id).into_iter().flatten() {
            assert!(self.schedule.remove(due), "an entry has no place in the schedule");
            self.uncount(&name, what);
        }
    }

    /// Whether a directory waits for being listed.
    pub(crate) fn is_shut(&self, id: DirectoryId) -> bool {
        !self.entries.is_empty() && self.get(id, b"").is_some_and(|entry| entry.what == Retry::Listing { shut: true })
    }

    /// Directories with something refused in them, and those that were refused themselves.
    pub(crate) fn ids(&self) -> impl Iterator<Item = DirectoryId> {
        let refused = |names: &Map<Name, Entry>| names.values().any(|entry| entry.what.is_refused());
        self.entries.iter().filter(move |(_, names)| refused(names)).map(|(id, _)| *id)
    }

    /// Names and directories that are refused now. A directory entered in place of its names counts once.
    pub(crate) fn refused(&self) -> usize {
        self.refused
    }

    /// The directories among them, which cannot be entered or listed.
    pub(crate) fn directories(&self) -> usize {
        self.directories
    }

    /// A refused directory or file: the directory that it is in, its name there (empty for that directory itself), and the
    /// cause. The search may visit every entry, so it is for once a second.
    pub(crate) fn example(&self, directory: bool) -> Option<(DirectoryId, Name, String)> {
        if (if directory { self.directories } else { self.refused - self.directories }) == 0 {
            return None;
        }
        let mut all = self.entries.iter().flat_map(|(id, names)| names.iter().map(move |(name, it)| (id, name, it)));
        all.find(|(.., entry)| entry.what.is_refused() && entry.what.is_directory() == directory)
            .map(|(id, name, entry)| (*id, Arc::clone(name), os_message(&io::Error::from_raw_os_error(entry.cause))))
    }

    /// When the next entry is due.
    pub(crate) fn next_time(&self) -> Option<Instant> {
        self.schedule.next_time()
    }

    fn get(&self, id: DirectoryId, name: &[u8]) -> Option<&Entry> {
        self.entries.get(&id)?.get(name)
    }

    fn get_mut(&mut self, id: DirectoryId, name: &Name) -> Option<&mut Entry> {
        self.entries.get_mut(&id)?.get_mut(name)
    }

    fn remove_unscheduled(&mut self, id: DirectoryId, name: &Name) -> Option<Entry> {
        let MapEntry::Occupied(mut names) = self.entries.entry(id) else { return None };
        let removed = names.get_mut().remove(name);
        if names.get().is_empty() {
            names.remove();
        }
        removed.inspect(|entry| self.uncount(name, entry.what))
    }

    fn count(&mut self, name: &Name, what: Retry) {
        self.names += usize::from(!name.is_empty());
        self.refused += usize::from(what.is_refused());
        self.directories += usize::from(what.is_directory());
    }

    fn uncount(&mut self, name: &Name, what: Retry) {
        self.names -= usize::from(!name.is_empty());
        self.refused -= usize::from(what.is_refused());
        self.directories -= usize::from(what.is_directory());
    }

    fn next_number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }
}

#[cfg(test)]
mod tests;
