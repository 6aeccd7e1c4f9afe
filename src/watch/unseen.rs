//! Names that were taken from a file before it was looked at by them, while it may have been open for writing.
//!
//! No I/O, and the time is passed in. Such a file may be another name's as well: a hard link is made, opened for writing, and
//! replaced or deleted at once. Its writer's close then names the link that is gone, and nothing names the file's other
//! names, nor is the inode known by which they could be searched for. So a rescan follows on each later close by such a name.
//! The kernel sends one for each writer that is left, by the name that it has opened, because IN_EXCL_UNLINK is not asked for
//! ([inotify(7)](https://man7.org/linux/man-pages/man7/inotify.7.html)).
//!
//! A temporary file that is deleted while it is open looks the same, and costs one rescan. One that is closed before it is
//! deleted, or is renamed, costs nothing.

use std::time::{Duration, Instant};

use crate::files::directory::DirectoryId;
use crate::files::names::{Map, Name};

/// Names of each kind that are kept. Beyond it a file of this kind is found by the next rescan.
const NAMES_MAX: usize = 1024;

/// For how long a close is waited for; as for files that were linked while open.
const KEPT: Duration = Duration::from_secs(600);

type Since = Map<(DirectoryId, Name), Instant>;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Unseen {
    /// Made, gone before the look at them, and not closed since.
    made: Since,
    /// Taken from a file that had not been closed by them.
    lost: Since,
}

impl Unseen {
    /// A name was made, and had no file any more when it was looked at.
    pub(crate) fn made(&mut self, id: DirectoryId, name: &Name, now: Instant) {
        insert(&mut self.made, id, name, now);
    }

    /// A name was deleted, or given to another file. `unclosed`: it is known to be made, and not to be closed since.
    pub(crate) fn lost(&mut self, id: DirectoryId, name: &Name, unclosed: bool, now: Instant) {
        let made = !self.made.is_empty() && self.made.remove(&(id, Name::clone(name))).is_some();
        if unclosed || made {
            insert(&mut self.lost, id, name, now);
        }
    }

    /// A writer has closed a file by this name. Returns whether it may be one that has lost it.
    pub(crate) fn closed(&mut self, id: DirectoryId, name: &Name, now: Instant) -> bool {
        if self.made.is_empty() && self.lost.is_empty() {
            return false;
        }
        let key = (id, Name::clone(name));
        self.made.remove(&key);
        self.lost.get(&key).is_some_and(|since| is_kept(*since, now))
    }
}

fn is_kept(since: Instant, now: Instant) -> bool {
    now.saturating_duration_since(since) <= KEPT
}

fn insert(names: &mut Since, id: DirectoryId, name: &Name, now: Instant) {
    if names.len() >= NAMES_MAX {
        names.retain(|_, since| is_kept(*since, now));
    }
    if names.len() < NAMES_MAX {
        names.insert((id, Name::clone(name)), now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_close_counts_by_a_name_that_was_lost_unclosed() {
        let (id, now) = (DirectoryId::FIRST, Instant::now());
        let (mut unseen, name): (_, Name) = (Unseen::default(), Name::from(&b"a"[..]));
        assert!(!unseen.closed(id, &name, now));
        unseen.lost(id, &name, false, now);
        assert!(!unseen.closed(id, &name, now), "it was seen, or closed");
        unseen.made(id, &name, now);
        assert!(!unseen.closed(id, &name, now), "its maker has closed it");
        unseen.lost(id, &name, false, now);
        assert!(!unseen.closed(id, &name, now));
        unseen.made(id, &name, now);
        unseen.lost(id, &name, false, now);
        assert!(unseen.closed(id, &name, now) && unseen.closed(id, &name, now + KEPT));
        assert!(!unseen.closed(id, &name, now + 2 * KEPT));
    }

    #[test]
    fn the_names_are_bounded_and_the_old_ones_make_room() {
        let (id, now) = (DirectoryId::FIRST, Instant::now());
        let mut unseen = Unseen::default();
        let name = |number: usize| Name::from(number.to_string().into_bytes());
        (0..2 * NAMES_MAX).for_each(|number| unseen.lost(id, &name(number), true, now));
        assert_eq!(unseen.lost.len(), NAMES_MAX);
        assert!(!unseen.closed(id, &name(NAMES_MAX), now));
        let later = now + 2 * KEPT;
        unseen.lost(id, &name(NAMES_MAX), true, later);
        assert_eq!(unseen.lost.len(), 1);
        assert!(unseen.closed(id, &name(NAMES_MAX), later));
    }
}
