//! Files with several names (hard links): a write changes the file under all of them, and the kernel's event names one.
//!
//! No I/O; the only clock that is read is the one that measures a search. Nothing is kept for a file until it is published
//! under one of several names. Then its names are searched for among all known ones, many files in one pass, and kept for
//! the next time. A name takes some 60 bytes. Beyond [`NAMES_MAX`] all names are dropped and searched for again.

use std::mem;
use std::time::{Duration, Instant};

use crate::files::directory::DirectoryId;
use crate::files::names::{Map, Name};
use crate::files::version::{Timestamp, Version};

/// Names that are kept. They take 4 MB.
pub(crate) const NAMES_MAX: usize = 1 << 16;

/// Files that may wait for a search. Beyond it a rescan finds the other names.
pub(crate) const WANTED_MAX: usize = 1 << 16;

/// The shortest pause between two searches.
const PAUSE_MIN: Duration = Duration::from_millis(50);

/// Searches take at most one part in so many of the time.
const PAUSE_SHARE: u32 = 20;

/// The names of files that have several.
#[derive(Debug, Default)]
pub(crate) struct HardLinks {
    /// By inode, the names that were found and the version that was published last.
    files: Map<u64, File>,
    /// What `files` takes: each name, and one for each file that was searched for.
    len: usize,
    /// Inodes whose names are to be searched for, each with the version that was published last.
    wanted: Map<u64, Published>,
    /// When the next search may begin.
    not_before: Option<Instant>,
}

#[derive(Debug)]
struct File {
    /// Some may be another file's by now.
    names: Vec<(DirectoryId, Name)>,
    last: Published,
}

/// A version that was published under one of a file's names.
#[derive(Debug, Clone, Copy)]
struct Published {
    changed: Timestamp,
    /// `None` once versions were published in another order than the file had them: no name is certain to have the last.
    fingerprint: Option<u64>,
}

impl Published {
    /// `racy`: the version may hide that two contents were published ([`Version::is_racy`]).
    fn of(version: &Version, racy: bool) -> Self {
        Self { changed: version.changed, fingerprint: Some(version.fingerprint()).filter(|_| !racy) }
    }

    /// The one that is published after this. A name can be read before a write and published after another name that was
    /// read behind it; its ctime is the older one then, or the same where stamps are coarse.
    /// A clock that was set back costs one more read.
    fn then(self, version: &Version, racy: bool) -> Self {
        let next = Self::of(version, racy);
        let time = |stamp: Timestamp| (stamp.seconds, stamp.nanoseconds);
        let overtaken = next.fingerprint != self.fingerprint && time(next.changed) <= time(self.changed);
        Self { fingerprint: if overtaken { None } else { next.fingerprint }, ..next }
    }
}

/// Names of a file, each with the fingerprint of the version that it ought to have; nothing where it is to be read in any
/// case.
pub(crate) type Names = Vec<(DirectoryId, Name, Option<u64>)>;

/// The names of a file that have to be read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Others {
    /// All names except the published one, and that too where it was overtaken by another.
    Known(Names),
    /// A search will find them.
    Wanted,
    /// There is no room for one more file in the search.
    Full,
}

impl HardLinks {
    /// A file with several names was published under this one.
    pub(crate) fn published(&mut self, version: &Version, racy: bool, id: DirectoryId, name: &Name) -> Others {
        let inode = version.inode;
        self.seen(inode, id, name);
        if let Some(file) = self.files.get_mut(&inode) {
            let fingerprint = file.last.then(version, racy).fingerprint;
            file.last = Published::of(version, racy);
            let to_read = file.names.iter().filter(|(at, it)| fingerprint.is_none() || (*at, it) != (id, name));
            return Others::Known(to_read.map(|(id, name)| (*id, Name::clone(name), fingerprint)).collect());
        }
        if self.wanted.len() >= WANTED_MAX && !self.wanted.contains_key(&inode) {
            return Others::Full;
        }
        let first = Published::of(version, racy);
        self.wanted.entry(inode).and_modify(|last| *last = last.then(version, racy)).or_insert(first);
        Others::Wanted
    }

    /// A file that may have several names was read under this one.
    pub(crate) fn seen(&mut self, inode: u64, id: DirectoryId, name: &Name) {
        let Some(file) = self.files.get_mut(&inode) else { return };
        if !file.names.iter().any(|(at, it)| (*at, it) == (id, name)) {
            file.names.push((id, Name::clone(name)));
            self.len += 1;
        }
    }

    /// A file that may have several names lost this one, by which it may have been written since it was published last. Returns
    /// its other names, as far as they are known; a search that is due finds them.
    pub(crate) fn lost(&mut self, inode: u64, id: DirectoryId, name: &Name) -> Names {
        if let Some(last) = self.wanted.get_mut(&inode) {
            last.fingerprint = None;
        }
        let Some(file) = self.files.get_mut(&inode) else { return Names::new() };
        file.last.fingerprint = None;
        let before = file.names.len();
        file.names.retain(|(at, it)| (*at, it) != (id, name));
        self.len -= before - file.names.len();
        file.names.iter().map(|(id, name)| (*id, Name::clone(name), None)).collect()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.files.is_empty() && self.wanted.is_empty()
    }

    /// When the next search is due, if a file waits for one.
    pub(crate) fn next_time(&self, now: Instant) -> Option<Instant> {
        (!self.wanted.is_empty()).then(|| self.not_before.unwrap_or(now))
    }

    /// Searches all known names, each with its inode. Returns the names of the wanted files, each with the fingerprint of the
    /// version that was published last under one of them.
    pub(crate) fn search<'a>(
        &mut self,
        known: impl Iterator<Item = (DirectoryId, &'a Name, u64)>,
        began: Instant,
    ) -> Names {
        if self.len >= NAMES_MAX {
            (self.files, self.len) = (Map::default(), 0);
        }
        let wanted = mem::take(&mut self.wanted);
        self.files.extend(wanted.iter().map(|(&inode, &last)| (inode, File { names: Vec::new(), last })));
        let mut found = Names::new();
        for (id, name, inode) in known {
            if let Some(last) = wanted.get(&inode) {
                found.push((id, Name::clone(name), last.fingerprint));
                self.seen(inode, id, name);
            }
        }
        // A file whose only name is known counts too, because it keeps an entry and is not searched for again.
        self.len += wanted.len();
        let took = began.elapsed();
        self.not_before = Some(began + took + (took * PAUSE_SHARE).max(PAUSE_MIN));
        found
    }
}

#[cfg(test)]
mod tests {
    use std::iter;

    use super::*;

    const HERE: DirectoryId = DirectoryId::FIRST;

    fn name(text: &str) -> Name {
        text.as_bytes().into()
    }

    fn version(inode: u64, second: i64) -> Version {
        let changed = Timestamp { seconds: second, nanoseconds: 0 };
        Version { inode, size: second as u64, modified: changed, changed }
    }

    fn fingerprint(second: i64) -> Option<u64> {
        Some(version(7, second).fingerprint())
    }

    #[test]
    fn a_version_that_may_hide_another_content_is_read_by_all_names() {
        let (mut links, now) = (HardLinks::default(), Instant::now());
        let (a, b) = (name("a"), name("b"));
        assert_eq!(links.published(&version(7, 1), true, HERE, &a), Others::Wanted);
        let found = links.search([(HERE, &a, 7), (HERE, &b, 7)].into_iter(), now);
        let both = vec![(HERE, a.clone(), None), (HERE, b.clone(), None)];
        assert_eq!(found, both);
        assert_eq!(links.published(&version(7, 1), true, HERE, &b), Others::Known(both));
    }

    #[test]
    fn names_are_searched_for_once_and_later_ones_join() {
        let (mut links, now) = (HardLinks::default(), Instant::now());
        let (a, b, c, other) = (name("a"), name("b"), name("c"), name("other"));
        assert_eq!(links.next_time(now), None);
        assert_eq!(links.published(&version(7, 1), false, HERE, &b), Others::Wanted);
        assert_eq!(links.next_time(now), Some(now));
        let known = [(HERE, &a, 7), (HERE, &other, 8), (HERE, &b, 7)];
        let found = links.search(known.into_iter(), now);
        assert_eq!(found, [(HERE, a.clone(), fingerprint(1)), (HERE, b.clone(), fingerprint(1))]);
        assert_eq!(links.next_time(now), None);
        let others = vec![(HERE, a.clone(), fingerprint(2))];
        assert_eq!(links.published(&version(7, 2), false, HERE, &b), Others::Known(others));
        let others = vec![(HERE, a.clone(), fingerprint(3)), (HERE, b.clone(), fingerprint(3))];
        assert_eq!(links.published(&version(7, 3), false, HERE, &c), Others::Known(others));
        links.seen(8, HERE, &other);
        assert_eq!(
            links.published(&version(8, 1), false, HERE, &other),
            Others::Wanted,
            "nothing is kept for a file that was not published"
        );
    }

    #[test]
    fn a_name_that_is_published_after_a_newer_version_of_its_file_is_read_again() {
        let (mut links, now) = (HardLinks::default(), Instant::now());
        let (a, b) = (name("a"), name("b"));
        // Before the search.
        links.published(&version(7, 2), false, HERE, &a);
        links.published(&version(7, 1), false, HERE, &b);
        let known = [(HERE, &a, 7), (HERE, &b, 7)];
        assert_eq!(links.search(known.into_iter(), now), [(HERE, a.clone(), None), (HERE, b.clone(), None)]);
        // And after it.
        let others = vec![(HERE, b.clone(), fingerprint(4))];
        assert_eq!(links.published(&version(7, 4), false, HERE, &a), Others::Known(others));
        let both = vec![(HERE, a.clone(), None), (HERE, b.clone(), None)];
        assert_eq!(links.published(&version(7, 3), false, HERE, &b), Others::Known(both));
        let others = vec![(HERE, a, fingerprint(4))];
        assert_eq!(links.published(&version(7, 4), false, HERE, &b), Others::Known(others));
    }

    #[test]
    fn both_bounds_hold() {
        let (mut links, now) = (HardLinks::default(), Instant::now());
        let a = name("a");
        for inode in 0..WANTED_MAX as u64 {
            assert_eq!(links.published(&version(inode, 1), false, HERE, &a), Others::Wanted);
        }
        assert_eq!(links.published(&version(u64::MAX, 1), false, HERE, &a), Others::Full);
        links.search(iter::empty(), now);
        assert_eq!(links.published(&version(u64::MAX, 1), false, HERE, &a), Others::Wanted);
        links.search(iter::empty(), now);
        assert_eq!(links.files.len(), 1, "the others are dropped");
    }
}
