//! Watches of directories that are not in the tree because links lead into them: sub-directories without `--recursive`, and
//! those that the filter closes. Nothing in them is published by its own path, but a link is by its own, and its content
//! changes there.
//!
//! Each directory on the way from the data directory has one, because it may be renamed or made anew. A watch that no link
//! needs any more ends with the next event from it, or when there is no room for another.

use std::sync::Arc;

use crate::files::names::Map;
use crate::watch::inotify::WatchId;

/// Directories that are watched for links. They take some 6 MB here and in the kernel.
pub(crate) const TARGET_DIRECTORIES_MAX: usize = 4096;

/// Which watch belongs to which directory.
#[derive(Debug, Default)]
pub(crate) struct TargetDirectories {
    /// By absolute path.
    watches: Map<Arc<[u8]>, WatchId>,
    paths: Map<WatchId, Arc<[u8]>>,
    /// How many links had ended when idle watches were searched for.
    searched: u64,
}

impl TargetDirectories {
    pub(crate) fn has_room(&self) -> bool {
        self.watches.len() < TARGET_DIRECTORIES_MAX
    }

    /// Whether the directory at this path can have a watch, which it may have already.
    pub(crate) fn has_room_for(&self, path: &[u8]) -> bool {
        self.has_room() || self.watches.contains_key(path)
    }

    /// Whether a watch may have become idle since this was asked last: links have ended meanwhile, of which there were so
    /// many. Looking at each watch for each link would take a start with thousands of both a minute.
    pub(crate) fn may_be_idle(&mut self, ended: u64) -> bool {
        std::mem::replace(&mut self.searched, ended) != ended
    }

    /// The absolute path of a watched directory.
    pub(crate) fn path(&self, watch_id: WatchId) -> Option<Arc<[u8]>> {
        self.paths.get(&watch_id).cloned()
    }

    pub(crate) fn paths(&self) -> impl Iterator<Item = &Arc<[u8]>> {
        self.watches.keys()
    }

    /// The directory at this path has this watch. Returns the watch of the directory that was there before.
    pub(crate) fn set(&mut self, path: &Arc<[u8]>, watch_id: WatchId) -> Option<WatchId> {
        if let Some(former) = self.paths.insert(watch_id, Arc::clone(path)).filter(|former| former != path) {
            self.watches.remove(&former); // the directory was renamed
        }
        let before = self.watches.insert(Arc::clone(path), watch_id).filter(|&before| before != watch_id)?;
        self.paths.remove(&before);
        Some(before)
    }

    /// Forgets the directory at a path. Returns its watch.
    pub(crate) fn remove(&mut self, path: &[u8]) -> Option<WatchId> {
        let watch_id = self.watches.remove(path)?;
        self.paths.remove(&watch_id);
        Some(watch_id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::watch::inotify::tests::watch_id;

    #[test]
    fn a_watch_belongs_to_the_path_that_it_was_set_for_last() {
        let mut directories = TargetDirectories::default();
        let path = |text: &str| Arc::from(text.as_bytes());
        let (one, two) = (watch_id(1), watch_id(2));
        assert_eq!(directories.set(&path("/data/a"), one), None);
        assert_eq!(directories.set(&path("/data/a"), one), None);
        // It was renamed.
        assert_eq!(directories.set(&path("/data/b"), one), None);
        assert_eq!(directories.path(one), Some(path("/data/b")));
        assert_eq!(directories.remove(b"/data/a"), None);
        // Another took its path.
        assert_eq!(directories.set(&path("/data/b"), two), Some(one));
        assert_eq!((directories.path(one), directories.path(two)), (None, Some(path("/data/b"))));
        assert!(!directories.may_be_idle(0) && directories.may_be_idle(1) && !directories.may_be_idle(1));
        assert_eq!(directories.remove(b"/data/b"), Some(two));
        assert!(directories.watches.is_empty() && directories.paths.is_empty());
    }
}
