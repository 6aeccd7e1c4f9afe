//! Files with several names: one that is written by one of them has changed under all, and the kernel's event names one.
//!
//! Pure. Nothing is kept of a file until it has been published under one of its names and has more: then its names are
//! searched for among all that are known, many files in one pass, and kept for the next time. A name takes some 60 bytes;
//! beyond [`NAMES_MAX`] of them all are forgotten and searched for again.

use std::time::{Duration, Instant};

use crate::files::directory::DirectoryId;
use crate::files::names::{Map, Name};

/// Names that are kept, 4 MB of them.
pub const NAMES_MAX: usize = 1 << 16;

/// Files that may wait for a search. Beyond it a rescan finds what they changed.
pub const WANTED_MAX: usize = 1 << 16;

/// The least pause between two searches.
const PAUSE_MIN: Duration = Duration::from_millis(50);

/// A search takes at most one part in so many of the time.
const PAUSE_SHARE: u32 = 20;

/// See the module.
#[derive(Debug, Default)]
pub struct HardLinks {
    /// By inode: names that were found of it. Some may be another file's by now.
    names: Map<u64, Vec<(DirectoryId, Name)>>,
    /// Of all of them.
    len: usize,
    /// Inodes whose names are to be searched for.
    wanted: Map<u64, u64>,
    not_before: Option<Instant>,
}

/// What is known of a file's names.
#[derive(Debug, PartialEq, Eq)]
pub enum Others {
    /// These, the one that was asked with aside.
    Known(Vec<(DirectoryId, Name)>),
    /// They are searched for.
    Wanted,
    /// There is no room for one more search.
    Full,
}

impl HardLinks {
    /// A file with several names was published under this one. `version`: a fingerprint of it.
    pub fn published(&mut self, inode: u64, version: u64, id: DirectoryId, name: &Name) -> Others {
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
    pub fn seen(&mut self, inode: u64, id: DirectoryId, name: &Name) {
        let Some(names) = self.names.get_mut(&inode) else { return };
        if !names.iter().any(|(at, it)| (*at, it) == (id, name)) {
            names.push((id, Name::clone(name)));
            self.len += 1;
        }
    }

    /// When the next search is due, if one is wanted.
    #[must_use]
    pub fn next_time(&self, now: Instant) -> Option<Instant> {
        (!self.wanted.is_empty()).then(|| self.not_before.unwrap_or(now))
    }

    /// Searches all names that are known, each with its inode. Returns those of the files that were wanted, with the version
    /// that was published last under another name.
    pub fn search<'a>(
        &mut self,
        known: impl Iterator<Item = (DirectoryId, &'a Name, u64)>,
        began: Instant,
    ) -> Vec<(DirectoryId, Name, u64)> {
        if self.len >= NAMES_MAX {
            (self.names, self.len) = (Map::default(), 0);
        }
        let wanted = std::mem::take(&mut self.wanted);
        self.names.extend(wanted.keys().map(|&inode| (inode, Vec::new())));
        let mut found = Vec::new();
        for (id, name, inode) in known {
            if let Some(&version) = wanted.get(&inode) {
                found.push((id, Name::clone(name), version));
                self.seen(inode, id, name);
            }
        }
        // Files under a single name count, too: nothing of them has to be searched for again.
        self.len += wanted.len();
        let took = began.elapsed();
        self.not_before = Some(began + took + (took * PAUSE_SHARE).max(PAUSE_MIN));
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: DirectoryId = DirectoryId::FIRST;

    fn name(text: &str) -> Name {
        text.as_bytes().into()
    }

    #[test]
    fn names_are_searched_for_once_and_new_ones_join() {
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
            "nothing is kept of a file that nobody asked for"
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
        links.search(std::iter::empty(), now);
        assert_eq!(links.published(u64::MAX, 1, HERE, &a), Others::Wanted);
        links.search(std::iter::empty(), now);
        assert_eq!(links.names.len(), 1, "the others are forgotten");
    }
}
