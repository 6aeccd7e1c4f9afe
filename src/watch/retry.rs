//! What is there and could not be had: names and directories that were refused, and when each is tried again.
//!
//! Pure: no I/O, and the time is passed in. A file or a directory that this process may not open, or that its disk does not
//! give away just now, is not forgotten: it is tried again with growing pauses, and at once when its rights change. Each
//! entry is tried once at a time; one that is not refused again until its next turn has been had, and goes.
//!
//! The bound is on names. Where there is no room for one more its directory stands for it, which is listed again as a
//! whole; there are no more of those than directories are watched.

use std::collections::BTreeMap;
use std::collections::hash_map::Entry as MapEntry;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::tree::Origin;
use crate::error::os_message;
use crate::files::directory::DirectoryId;
use crate::files::names::{Map, Name};

/// The first pause before what was refused is tried again; it doubles each time. Short: rights are mostly given a moment
/// later by whoever made the file, and the watch for that may have come too late.
pub const PAUSE_MIN: Duration = Duration::from_millis(100);

/// The longest such pause: contract 4.6 says five minutes at most.
pub const PAUSE_MAX: Duration = Duration::from_secs(300);

/// How long a file that was published early is looked at: ten minutes.
pub const RECHECK_TIME: Duration = Duration::from_secs(600);

/// A file that was published early is looked at whenever it has become older by one in so many parts: what is written to it
/// is seen soon while it is young, and some forty looks are all it costs.
const RECHECK_SHARE: u32 = 8;

/// Names that may be kept, at some 200 bytes each 13 MB.
pub const NAMES_MAX: usize = 1 << 16;

/// What is to be tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// A name: to be looked at, and read or entered, whatever stands there by then.
    Name {
        /// It was a directory that could not be entered.
        directory: bool,
        /// How it came there.
        origin: Origin,
    },
    /// The directory itself: to be listed, with what is below it.
    Listing {
        /// It could not be listed; otherwise it stands for names in it that there was no room for.
        shut: bool,
    },
    /// Not refused: a file that was published while somebody may still have had it open, without an event to come.
    Recheck {
        /// A fingerprint of the version that was published.
        version: u64,
    },
}

impl What {
    /// Whether it is a directory that cannot be entered or listed.
    #[must_use]
    pub fn is_directory(self) -> bool {
        matches!(self, Self::Listing { shut: true } | Self::Name { directory: true, .. })
    }
}

/// What one refusal is to those who count them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recorded {
    /// It was not refused before, or has been had since.
    New,
    /// It was refused before.
    Again,
}

#[derive(Debug)]
struct Entry {
    what: What,
    at: Turn,
    /// Until the turn after that; of a [`What::Recheck`] at the least.
    pause: Duration,
    /// When it came in.
    since: Instant,
    /// The errno of its last refusal.
    cause: i32,
    /// Refused since its last turn. Of a [`What::Recheck`]: it has a turn to come.
    fresh: bool,
}

type Turn = (Instant, u64);

/// See the module.
#[derive(Debug)]
pub struct Retries {
    /// By directory. The directory itself is the empty name.
    entries: Map<DirectoryId, Map<Name, Entry>>,
    schedule: BTreeMap<Turn, (DirectoryId, Name)>,
    turns: u64,
    names: usize,
    refused: usize,
    directories: usize,
    bound: usize,
}

impl Retries {
    /// Nothing is refused; so many names may be.
    #[must_use]
    pub fn new(bound: usize) -> Self {
        Self {
            entries: Map::default(),
            schedule: BTreeMap::new(),
            turns: 0,
            names: 0,
            refused: 0,
            directories: 0,
            bound,
        }
    }

    /// A name was refused, or a directory where `what` says so (its name is not looked at then).
    /// `cause` is kept for whoever asks what is wrong.
    pub fn refuse(&mut self, id: DirectoryId, name: &Name, what: What, cause: &io::Error, now: Instant) -> Recorded {
        // One that is none of the kernel's is a failure of our own to make something of what was read.
        let errno = cause.raw_os_error().unwrap_or(libc::EIO);
        let listing = matches!(what, What::Listing { .. });
        let known = !listing && self.get(id, name).is_some();
        if listing || !known && self.names >= self.bound {
            let shut = what == What::Listing { shut: true };
            return self.put(id, &Name::from(&b""[..]), What::Listing { shut }, errno, PAUSE_MIN, now);
        }
        self.put(id, name, what, errno, PAUSE_MIN, now)
    }

    /// A file was published that somebody may still be writing, and whose close raises no event: it is to be looked at
    /// after the pause, and after growing ones. Where there is no room it is not.
    pub fn recheck(&mut self, id: DirectoryId, name: &Name, version: u64, pause: Duration, now: Instant) {
        if self.get(id, name).is_some() || self.names < self.bound {
            self.put(id, name, What::Recheck { version }, 0, pause, now);
        }
    }

    fn put(&mut self, id: DirectoryId, name: &Name, what: What, cause: i32, pause: Duration, now: Instant) -> Recorded {
        self.turns += 1;
        let at = (now + pause, self.turns);
        match self.entries.entry(id).or_default().entry(Arc::clone(name)) {
            MapEntry::Occupied(mut occupied) => {
                let entry = occupied.get_mut();
                let (before, recheck) = (entry.what, |what| matches!(what, What::Recheck { .. }));
                let renewed = recheck(what) || recheck(before);
                if renewed {
                    self.schedule.remove(&entry.at);
                    self.schedule.insert(at, (id, Arc::clone(name)));
                    (entry.at, entry.pause, entry.since) = (at, next(what, pause), now);
                }
                (entry.what, entry.cause, entry.fresh) = (joined(before, what), cause, true);
                let after = entry.what;
                self.count(before, after);
                if renewed { Recorded::New } else { Recorded::Again }
            }
            MapEntry::Vacant(vacant) => {
                vacant.insert(Entry { what, at, pause: next(what, pause), since: now, cause, fresh: true });
                self.schedule.insert(at, (id, Arc::clone(name)));
                self.names += usize::from(!name.is_empty());
                self.refused += usize::from(is_refused(what));
                self.directories += usize::from(What::is_directory(what));
                Recorded::New
            }
        }
    }

    fn count(&mut self, before: What, after: What) {
        self.refused = self.refused + usize::from(is_refused(after)) - usize::from(is_refused(before));
        self.directories =
            self.directories + usize::from(What::is_directory(after)) - usize::from(What::is_directory(before));
    }

    /// The next that has to be tried now. It stays until it has been had: see [`Retries::had`]. `waits`: whether a name's last
    /// try is still under way.
    pub fn next_due(
        &mut self,
        now: Instant,
        waits: impl Fn(DirectoryId, &Name) -> bool,
    ) -> Option<(DirectoryId, Name, What)> {
        while let Some(first) = self.schedule.first_entry().filter(|first| first.key().0 <= now) {
            let (id, name) = first.remove();
            let Some(entry) = self.entries.get_mut(&id).and_then(|names| names.get_mut(&name)) else { continue };
            let what = entry.what;
            let recheck = matches!(what, What::Recheck { .. });
            let under_way = !entry.fresh && waits(id, &name);
            let tried = entry.fresh;
            let age = now.saturating_duration_since(entry.since);
            if recheck && age >= RECHECK_TIME || !tried && !under_way {
                self.remove(id, &name);
            } else {
                self.turns += 1;
                let pause = if recheck { entry.pause.max(age / RECHECK_SHARE) } else { entry.pause };
                entry.at = (now + pause, self.turns);
                entry.pause = next(what, entry.pause);
                entry.fresh = recheck;
                self.schedule.insert(entry.at, (id, Arc::clone(&name)));
            }
            if tried {
                return Some((id, name, what));
            }
        }
        None
    }

    /// What was refused has been had.
    pub fn had(&mut self, id: DirectoryId, name: &Name) {
        self.remove_if(id, name, is_refused);
    }

    /// Neither a file nor a link stands at a name any more; a directory may.
    pub fn no_file(&mut self, id: DirectoryId, name: &Name) {
        self.remove_if(id, name, |what| is_refused(what) && !what.is_directory());
    }

    /// No directory that could be entered stands at a name any more; a file may.
    pub fn no_directory(&mut self, id: DirectoryId, name: &Name) {
        self.remove_if(id, name, What::is_directory);
    }

    /// A file has been closed, so that there is an event of its writer: it need not be looked at again for want of one.
    pub fn closed(&mut self, id: DirectoryId, name: &Name) {
        self.remove_if(id, name, |what| !is_refused(what));
    }

    /// The name is not there any more.
    pub fn gone(&mut self, id: DirectoryId, name: &Name) {
        self.remove_if(id, name, |_| true);
    }

    fn remove_if(&mut self, id: DirectoryId, name: &Name, holds: fn(What) -> bool) {
        if self.get(id, name).is_some_and(|entry| holds(entry.what)) {
            self.remove(id, name);
        }
    }

    /// The rights of a name have changed: it is tried at once, if it was refused. Tells whether it was.
    pub fn hurry(&mut self, id: DirectoryId, name: &Name, now: Instant) -> bool {
        self.turns += 1;
        let at = (now, self.turns);
        let Some(entry) = self.entries.get_mut(&id).and_then(|names| names.get_mut(name)) else { return false };
        if matches!(entry.what, What::Recheck { .. }) {
            return false;
        }
        self.schedule.remove(&entry.at);
        self.schedule.insert(at, (id, Arc::clone(name)));
        (entry.at, entry.pause, entry.fresh) = (at, PAUSE_MIN, true);
        true
    }

    /// The rights of a directory have changed: all that was refused in it is tried at once.
    pub fn hurry_all(&mut self, id: DirectoryId, now: Instant) {
        let names: Vec<Name> = self.entries.get(&id).map(|names| names.keys().cloned().collect()).unwrap_or_default();
        for name in names {
            self.hurry(id, &name, now);
        }
    }

    /// A directory has been given up, and with it what was refused in it.
    pub fn all_gone(&mut self, id: DirectoryId) {
        for (name, Entry { what, at, .. }) in self.entries.remove(&id).into_iter().flatten() {
            self.schedule.remove(&at);
            self.uncount(&name, what);
        }
    }

    /// Whether a directory waits for being listed.
    #[must_use]
    pub fn is_shut(&self, id: DirectoryId) -> bool {
        !self.entries.is_empty() && self.get(id, b"").is_some_and(|entry| entry.what == What::Listing { shut: true })
    }

    /// Directories in which something was refused, or that were refused themselves.
    pub fn ids(&self) -> impl Iterator<Item = DirectoryId> {
        let refused = |names: &Map<Name, Entry>| names.values().any(|entry| is_refused(entry.what));
        self.entries.iter().filter(move |(_, names)| refused(names)).map(|(id, _)| *id)
    }

    /// Names and directories that are refused now; one that stands for others counts once.
    #[must_use]
    pub fn refused(&self) -> usize {
        self.refused
    }

    /// Directories among them, which cannot be entered or listed.
    #[must_use]
    pub fn directories(&self) -> usize {
        self.directories
    }

    /// One of what is refused, a directory or a file: the directory that it is in, its name there (empty where it is that
    /// directory itself), and what was said of it. It may have to look at each: for once a second.
    #[must_use]
    pub fn example(&self, directory: bool) -> Option<(DirectoryId, Name, String)> {
        if (if directory { self.directories } else { self.refused - self.directories }) == 0 {
            return None;
        }
        let mut all = self.entries.iter().flat_map(|(id, names)| names.iter().map(move |(name, it)| (id, name, it)));
        all.find(|(.., entry)| is_refused(entry.what) && entry.what.is_directory() == directory)
            .map(|(id, name, entry)| (*id, Arc::clone(name), os_message(&io::Error::from_raw_os_error(entry.cause))))
    }

    /// When the next has to be tried.
    #[must_use]
    pub fn next_time(&self) -> Option<Instant> {
        self.schedule.first_key_value().map(|((at, _), _)| *at)
    }

    fn get(&self, id: DirectoryId, name: &[u8]) -> Option<&Entry> {
        self.entries.get(&id)?.get(name)
    }

    fn remove(&mut self, id: DirectoryId, name: &Name) {
        let MapEntry::Occupied(mut names) = self.entries.entry(id) else { return };
        if let Some(Entry { what, at, .. }) = names.get_mut().remove(name) {
            if names.get().is_empty() {
                names.remove();
            }
            self.schedule.remove(&at);
            self.uncount(name, what);
        }
    }

    fn uncount(&mut self, name: &Name, what: What) {
        self.names -= usize::from(!name.is_empty());
        self.refused -= usize::from(is_refused(what));
        self.directories -= usize::from(What::is_directory(what));
    }
}

fn next(what: What, pause: Duration) -> Duration {
    if is_refused(what) { (pause * 2).min(PAUSE_MAX) } else { pause }
}

fn is_refused(what: What) -> bool {
    !matches!(what, What::Recheck { .. })
}

/// Two refusals of one name. A directory that was renamed there is that until it has been had.
fn joined(before: What, after: What) -> What {
    match (before, after) {
        (What::Name { origin: Origin::MovedTo, .. }, What::Name { directory, .. }) => {
            What::Name { directory, origin: Origin::MovedTo }
        }
        (What::Listing { shut }, What::Listing { shut: again }) => What::Listing { shut: shut || again },
        (_, after) => after,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HERE: DirectoryId = DirectoryId::FIRST;
    const FILE: What = What::Name { directory: false, origin: Origin::Found };

    fn name(text: &str) -> Name {
        text.as_bytes().into()
    }

    fn refuse(retries: &mut Retries, id: DirectoryId, name: &Name, what: What, now: Instant) -> Recorded {
        retries.refuse(id, name, what, &io::Error::from_raw_os_error(libc::EACCES), now)
    }

    fn due(retries: &mut Retries, now: Instant) -> Option<(DirectoryId, Name, What)> {
        retries.next_due(now, |_, _| false)
    }

    #[test]
    fn what_is_refused_is_tried_with_growing_pauses_until_it_is_had() {
        let (mut retries, mut now) = (Retries::new(10), Instant::now());
        assert_eq!(refuse(&mut retries, HERE, &name("a"), FILE, now), Recorded::New);
        let mut pause = PAUSE_MIN;
        for _ in 0..20 {
            assert_eq!(due(&mut retries, now), None);
            now += pause;
            assert_eq!(due(&mut retries, now), Some((HERE, name("a"), FILE)));
            assert_eq!(refuse(&mut retries, HERE, &name("a"), FILE, now), Recorded::Again);
            pause = (pause * 2).min(PAUSE_MAX);
        }
        retries.had(HERE, &name("a"));
        assert_eq!((retries.refused(), retries.next_time()), (0, None));
    }

    #[test]
    fn one_that_is_not_refused_again_goes_by_itself() {
        let (mut retries, now) = (Retries::new(10), Instant::now());
        refuse(&mut retries, HERE, &name("a"), FILE, now);
        assert!(due(&mut retries, now + PAUSE_MIN).is_some());
        assert_eq!(retries.next_due(now + 4 * PAUSE_MIN, |_, _| true), None);
        assert_eq!(retries.refused(), 1, "its try is still under way");
        assert_eq!(due(&mut retries, now + 12 * PAUSE_MIN), None);
        assert_eq!(retries.refused(), 0);
    }

    #[test]
    fn a_change_of_rights_brings_it_at_once_and_with_short_pauses_again() {
        let (mut retries, mut now) = (Retries::new(10), Instant::now());
        refuse(&mut retries, HERE, &name("a"), FILE, now);
        refuse(&mut retries, HERE, &name("b"), FILE, now);
        for _ in 0..10 {
            now = retries.next_time().unwrap();
            let (id, name, what) = due(&mut retries, now).unwrap();
            refuse(&mut retries, id, &name, what, now);
        }
        assert!(retries.hurry(HERE, &name("a"), now) && !retries.hurry(HERE, &name("c"), now));
        assert_eq!(due(&mut retries, now), Some((HERE, name("a"), FILE)));
        refuse(&mut retries, HERE, &name("a"), FILE, now);
        assert_eq!(retries.next_time(), Some(now + PAUSE_MIN));
        retries.hurry_all(HERE, now);
        assert_eq!([due(&mut retries, now), due(&mut retries, now)].iter().flatten().count(), 2);
    }

    #[test]
    fn beyond_the_bound_the_directory_stands_for_its_names() {
        let (mut retries, now) = (Retries::new(2), Instant::now());
        for text in ["a", "b", "c", "d"] {
            refuse(&mut retries, HERE, &name(text), FILE, now);
        }
        let due: Vec<_> =
            std::iter::from_fn(|| due(&mut retries, now + PAUSE_MIN)).map(|(_, name, what)| (name, what)).collect();
        let stands = What::Listing { shut: false };
        assert_eq!(due, [(name("a"), FILE), (name("b"), FILE), (name(""), stands)]);
        assert_eq!((retries.refused(), retries.directories()), (3, 0));
        refuse(&mut retries, HERE, &name(""), What::Listing { shut: true }, now);
        assert!(retries.is_shut(HERE) && retries.directories() == 1);
        retries.all_gone(HERE);
        assert_eq!((retries.refused(), retries.directories(), retries.next_time()), (0, 0, None));
    }

    #[test]
    fn what_was_published_early_is_looked_at_less_and_less_often_until_its_time_is_over() {
        let (mut retries, now) = (Retries::new(10), Instant::now());
        let recheck = What::Recheck { version: 7 };
        retries.recheck(HERE, &name("a"), 7, Duration::from_secs(1), now);
        assert_eq!(retries.refused(), 0);
        let mut looks = Vec::new();
        while let Some(time) = retries.next_time() {
            assert_eq!(due(&mut retries, time), Some((HERE, name("a"), recheck)));
            looks.push(time.duration_since(now).as_secs());
        }
        assert_eq!(looks[..10], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
        assert!(looks.len() < 50 && (600..700).contains(looks.last().unwrap()), "{looks:?}");
    }

    proptest! {
        /// Whatever happens, what is counted and what is scheduled is what is there.
        #[test]
        fn counts_and_schedule_agree_with_the_entries(steps in prop::collection::vec((0..9u8, 0..4u8, 0..3u64), 0..60)) {
            let (mut retries, mut now) = (Retries::new(3), Instant::now());
            for (step, which, seconds) in steps {
                let (id, name) = (if which % 2 == 0 { HERE } else { HERE.next() }, name(&format!("{which}")));
                let directory = What::Name { directory: true, origin: Origin::MovedTo };
                match step {
                    0 => drop(refuse(&mut retries, id, &name, FILE, now)),
                    1 => drop(refuse(&mut retries, id, &name, directory, now)),
                    2 => drop(refuse(&mut retries, id, &name, What::Listing { shut: true }, now)),
                    3 => retries.recheck(id, &name, 1, Duration::from_secs(1), now),
                    4 if seconds == 0 => retries.gone(id, &name),
                    4 if seconds == 1 => retries.closed(id, &name),
                    4 => retries.had(id, &name),
                    5 => drop(retries.hurry(id, &name, now)),
                    6 => retries.all_gone(id),
                    7 => drop(due(&mut retries, now)),
                    _ => now += Duration::from_secs(seconds * seconds * 60),
                }
                let all: Vec<(Name, What, Turn)> = retries.entries.values()
                    .flat_map(|names| names.iter().map(|(name, entry)| (Arc::clone(name), entry.what, entry.at)))
                    .collect();
                prop_assert!(!retries.entries.values().any(Map::is_empty));
                prop_assert_eq!(retries.names, all.iter().filter(|(name, ..)| !name.is_empty()).count());
                prop_assert!(retries.names <= 3);
                prop_assert_eq!(retries.refused, all.iter().filter(|(_, what, _)| is_refused(*what)).count());
                prop_assert_eq!(retries.directories, all.iter().filter(|(_, what, _)| What::is_directory(*what)).count());
                prop_assert_eq!(retries.schedule.len(), all.len());
                prop_assert!(all.iter().all(|(.., at)| retries.schedule.contains_key(at)));
            }
        }
    }
}
