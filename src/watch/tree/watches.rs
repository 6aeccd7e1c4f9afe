//! The inotify watches of the tree: the directory that each belongs to, and the directories without one.

use std::os::fd::BorrowedFd;

use rustix::io::Errno;

use crate::files::directory::DirectoryId;
use crate::files::names::{Map, Set};
use crate::watch::inotify::{WatchId, Watches};

/// Each watch that the service has added either belongs to one directory or is orphaned.
pub(super) struct WatchTable {
    kernel: Watches,
    owners: Map<WatchId, DirectoryId>,
    /// Watches of removed directories, which may appear at another path.
    orphaned: Set<WatchId>,
    pub(super) unwatched: Set<DirectoryId>,
    /// Why the last unwatched directory has no watch.
    pub(super) unwatched_cause: Option<Errno>,
    /// Directories whose watches report IN_ATTRIB.
    pub(super) attending: Set<DirectoryId>,
}

impl WatchTable {
    pub(super) fn new(kernel: Watches) -> Self {
        Self {
            kernel,
            owners: Map::default(),
            orphaned: Set::default(),
            unwatched: Set::default(),
            unwatched_cause: None,
            attending: Set::default(),
        }
    }

    pub(super) fn owner(&self, watch_id: WatchId) -> Option<DirectoryId> {
        self.owners.get(&watch_id).copied()
    }

    pub(super) fn owned(&self) -> usize {
        self.owners.len()
    }

    /// Watches an open directory, whose watch is no longer orphaned if it was. At the user's limit an orphaned watch is
    /// removed to make room. A directory that cannot be watched is kept without a watch, and the cause is logged with the
    /// number of such directories.
    pub(super) fn add(&mut self, directory: BorrowedFd<'_>) -> Option<WatchId> {
        self.add_aside(directory).inspect_err(|&errno| self.unwatched_cause = Some(errno)).ok()
    }

    /// As [`Self::add`], for a directory that the tree does not keep.
    ///
    /// # Errors
    /// That of inotify_add_watch(2).
    pub(super) fn add_aside(&mut self, directory: BorrowedFd<'_>) -> Result<WatchId, Errno> {
        let added = self.kernel.add(directory).or_else(|errno| {
            if self.orphaned.is_empty() {
                return Err(errno);
            }
            self.end_orphaned(1);
            self.kernel.add(directory)
        });
        let watch_id = added?;
        self.orphaned.remove(&watch_id);
        Ok(watch_id)
    }

    /// Ends a watch that belongs to no directory of the tree.
    pub(super) fn remove(&mut self, watch_id: WatchId) {
        self.orphaned.remove(&watch_id);
        self.kernel.remove(watch_id);
    }

    pub(super) fn assign(&mut self, watch_id: WatchId, id: DirectoryId) {
        debug_assert!(!self.orphaned.contains(&watch_id), "a watch belongs to a directory and is orphaned");
        let before = self.owners.insert(watch_id, id);
        assert!(before.is_none_or(|before| before == id), "a watch belongs to two directories");
        self.unwatched.remove(&id);
    }

    /// Takes a watch from its directory. The caller orphans it or assigns it to another.
    pub(super) fn release(&mut self, watch_id: WatchId) {
        assert!(self.owners.remove(&watch_id).is_some(), "a directory has a watch that belongs to none");
    }

    pub(super) fn orphan(&mut self, watch_id: WatchId) {
        debug_assert!(!self.owners.contains_key(&watch_id), "a watch is orphaned and belongs to a directory");
        self.orphaned.insert(watch_id);
    }

    pub(super) fn end_orphaned(&mut self, most: usize) {
        if self.orphaned.is_empty() {
            return;
        }
        let ended: Vec<WatchId> = self.orphaned.iter().take(most).copied().collect();
        for watch_id in ended {
            self.orphaned.remove(&watch_id);
            self.kernel.remove(watch_id);
        }
        if self.orphaned.is_empty() {
            self.orphaned = Set::default(); // a large set's memory is freed with it
        }
    }

    /// The kernel has removed an orphaned watch.
    pub(super) fn ended(&mut self, watch_id: WatchId) {
        self.orphaned.remove(&watch_id);
    }

    /// Makes the watch of an open directory report IN_ATTRIB, or stop to. Returns whether the directory has the watch that is
    /// expected.
    pub(super) fn attend(&mut self, directory: BorrowedFd<'_>, expected: WatchId, attributes: bool) -> bool {
        match self.kernel.attend(directory, attributes) {
            Ok(watch_id) if watch_id == expected => true,
            Ok(watch_id) => {
                // Another directory has the path by now and its event is still queued, so it is not in the tree yet.
                if self.owner(watch_id).is_none() {
                    self.orphan(watch_id);
                }
                false
            }
            Err(_) => false,
        }
    }

    pub(super) fn forget(&mut self, id: DirectoryId) {
        self.unwatched.remove(&id);
        self.attending.remove(&id);
    }
}
