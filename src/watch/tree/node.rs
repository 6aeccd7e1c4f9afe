//! One directory of the tree.

use std::sync::Arc;

use crate::files::directory::{Directory, DirectoryId};
use crate::files::name_map::NameMap;
use crate::files::names::{Map, Name};
use crate::job::{Known, Last};
use crate::watch::inotify::WatchId;

/// How a directory or a file came to its path. Files that a listing finds in a directory have the directory's origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// It was created, or a listing found it.
    Found,
    /// It was renamed to its path, or is below a directory that was.
    MovedTo,
}

pub(crate) struct Node {
    pub(crate) directory: Arc<Directory>,
    /// By name, the versions that were confirmed last or were there before the service started.
    pub(crate) known: NameMap<Known>,
    /// By name, what consumers were sent last: with `--removals` alone, and until the path's removal is confirmed.
    pub(crate) last: NameMap<Last>,
    /// `known` comes from the ledger and has not been compared yet, so it may describe the files of another directory.
    pub(crate) loaded: bool,
    /// Whether the names in `directory` are complete.
    pub(crate) listed: bool,
    pub(crate) origin: Origin,
    /// The inode number; nothing for a root, which is held open. Another directory can replace any other at its path.
    pub(crate) inode: Option<u64>,
    /// Nothing while the directory has no watch.
    pub(super) watch_id: Option<WatchId>,
    /// Nothing for a root.
    pub(super) parent: Option<(DirectoryId, Name)>,
    pub(super) children: Map<Name, DirectoryId>,
    /// Jobs in flight.
    pub(super) in_flight: usize,
    /// Removed from the tree, and kept only until its jobs have completed and the removal of each of its files is confirmed.
    pub(super) draining: bool,
}

impl Node {
    pub(in crate::watch) fn new(directory: Directory, inode: Option<u64>, parent: Option<(DirectoryId, Name)>) -> Self {
        Self {
            directory: Arc::new(directory),
            known: NameMap::default(),
            last: NameMap::default(),
            loaded: false,
            listed: false,
            origin: Origin::Found,
            inode,
            watch_id: None,
            parent,
            children: Map::default(),
            in_flight: 0,
            draining: false,
        }
    }

    /// Whether it was removed from the tree and is kept only until its jobs and removals are done.
    pub(crate) fn is_draining(&self) -> bool {
        self.draining
    }

    /// Whether this is the directory with that watch. The inode decides for a directory that had no watch.
    pub(super) fn is(&self, watch_id: Option<WatchId>, inode: Option<u64>) -> bool {
        match self.watch_id {
            Some(own) => Some(own) == watch_id,
            None => self.inode == inode,
        }
    }
}
