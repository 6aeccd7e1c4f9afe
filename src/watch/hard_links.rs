//! Files with several names (hard links): a write changes the file under all of them, and the kernel's event names one.
//!
//! No I/O; the only clock that is read is the one that measures a search. Nothing is kept for a file until it is published
//! under one of several names. Then its names are searched for among all known ones, many files in one pass, and kept for
//! the next time. A name takes some 60 bytes. Beyond [`NAMES_MAX`] all names are dropped and searched for again.

use std::mem;
use std::time::{Duration, Instant};

use crate::files::directory::DirectoryId;
use crate::files::names::{Map, Name};

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
    /// By inode, the names that were found. Some may be another file's by now.
    names: Map<u64, Vec<(DirectoryId, Name)>>,
    /// What `names` takes: each name, and one for each file that was searched for.
    len: usize,
    /// Inodes whose names are to be searched for, each with the fingerprint of the published version.
    wanted: Map<u64, u64>,
    /// When the next search may begin.
    not_before: Option<Instant>,
}

/// The other names of a file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Others {
    /// All names except the published one.
    Known(Vec<(DirectoryId, Name)>),
    /// A search will find them.
    Wanted,
    /// There is no room for one more file in the search.
    Full,
}

impl HardLinks {
    /// A file with several names was published under this one. `version` is its fingerprint.
    pub(crate) fn published(&mut self, inode: u64, version: u64, id: DirectoryId, name: &Name) -> Others {
        if self.names.contains_key(&inode) {
            self.seen(inode, id, name);
            let names = self.names.get(&inode).into_iter().flatten();
            return Others::Known(names.filter(|(at, it)| (*at, it) != (id, name)).cloned().collect());
        }
        if self.wanted.len() >= WANTED_MAX && !self.wanted.contains_key(&inode) {
            return Others::Full;
        }
        self.wanted.insert(inode, version);
        Others::Wanted
    }

    /// A file that may have several names was read under this one.
    pub(crate) fn seen(&mut self, inode: u64, id: DirectoryId, name: &Name) {
        let Some(names) = self.names.get_mut(&inode) else { return };
        if !names.iter().any(|(at, it)| (*at, it) == (id, name)) {
            names.push((id, Name::clone(name)));
            self.len += 1;
        }
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
    ) -> Vec<(DirectoryId, Name, u64)> {
        if self.len >= NAMES_MAX {
            (self.names, self.len) = (Map::default(), 0);
        }
        let wanted = mem::take(&mut self.wanted);
        self.names.extend(wanted.keys().map(|&inode| (inode, Vec::new())));
        let mut found = Vec::new();
        for (id, name, inode) in known {
            if let Some(&version) = wanted.get(&inode) {
                found.push((id, Name::clone(name), version));
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

    #[test]
    fn names_are_searched_for_once_and_later_ones_join() {
        let (mut links, now) = (HardLinks::default(), Instant::now());
        let (a, b, c, other) = (name("a"), name("b"), name("c"), name("other"));
        assert_eq!(links.next_time(now), None);
        assert_eq!(links.published(7, 1, HERE, &b), Others::Wanted);
        assert_eq!(links.next_time(now), Some(now));
        let known = [(HERE, &a, 7), (HERE, &other, 8), (HERE, &b, 7)];
        let found = links.search(known.into_iter(), now);
        assert_eq!(found, [(HERE, a.clone(), 1), (HERE, b.clone(), 1)]);
        assert_eq!(links.next_time(now), None);
        assert_eq!(links.published(7, 2, HERE, &b), Others::Known(vec![(HERE, a.clone())]));
        assert_eq!(links.published(7, 3, HERE, &c), Others::Known(vec![(HERE, a), (HERE, b)]));
        links.seen(8, HERE, &other);
        assert_eq!(
            links.published(8, 1, HERE, &other),
            Others::Wanted,
            "nothing is kept for a file that was not published"
        );
    }

    #[test]
    fn both_bounds_hold() {
        let (mut links, now) = (HardLinks::default(), Instant::now());
        let a = name("a");
        for inode in 0..WANTED_MAX as u64 {
            assert_eq!(links.published(inode, 1, HERE, &a), Others::Wanted);
        }
        assert_eq!(links.published(u64::MAX, 1, HERE, &a), Others::Full);
        links.search(iter::empty(), now);
        assert_eq!(links.published(u64::MAX, 1, HERE, &a), Others::Wanted);
        links.search(iter::empty(), now);
        assert_eq!(links.names.len(), 1, "the others are dropped");
    }
}
