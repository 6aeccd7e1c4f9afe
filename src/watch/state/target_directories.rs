//! Links into directories that are not in the tree: see [`crate::watch::target_directories`].

use std::sync::Arc;

use rustix::io::Errno;

use super::{Noticed, State};
use crate::error::os_message;
use crate::files::errno::Call;
use crate::files::listing::{FileStat, look};
use crate::files::root::Root;
use crate::watch::inotify::{Event, WatchId};
use crate::watch::links::{inside, real};
use crate::watch::pending::Change;
use crate::watch::target_directories::TARGET_DIRECTORIES_MAX;
use crate::watch::tree::nothing_to_enter;

impl State {
    /// Watches the directories on the way to these absolute paths that are not to be in the tree.
    pub(super) fn watch_targets(&mut self, root: &Root, paths: &[Arc<[u8]>]) {
        for path in paths {
            let Some(start) = below(root, path) else { continue };
            let ends = (start..path.len()).filter(|&at| path[at] == b'/');
            let mut closed = false;
            for end in ends {
                closed = closed || !self.recursive || !self.filter.enters(&path[start..end]);
                if closed && !self.watch_target(root, &Arc::from(&path[..end]), &path[start..end]) {
                    break;
                }
            }
        }
    }

    /// Whether there is such a directory.
    fn watch_target(&mut self, root: &Root, path: &Arc<[u8]>, below: &[u8]) -> bool {
        let dir = match root.open_directory(below) {
            Ok(dir) => dir,
            Err(errno) if nothing_to_enter(Call::Open, errno) => {
                self.end_target(path);
                return false;
            }
            Err(errno) => {
                self.report_unfollowed(path, errno);
                return true;
            }
        };
        if !self.target_directories.has_room_for(path) && !self.end_idle_targets() {
            self.report_unfollowed(path, Errno::NOSPC);
            return true;
        }
        match self.tree.watch_aside(&dir) {
            Ok(Some(watch_id)) => {
                let before = self.target_directories.set(path, watch_id);
                before.into_iter().for_each(|before| self.tree.end_aside(before));
            }
            Ok(None) => {} // another data directory, whose events come from the tree
            Err(errno) => self.report_unfollowed(path, errno),
        }
        true
    }

    fn end_target(&mut self, path: &[u8]) {
        let ended = self.target_directories.remove(path);
        ended.into_iter().for_each(|watch_id| self.tree.end_aside(watch_id));
    }

    /// Ends the watches that no link needs any more. Returns whether there is room then.
    fn end_idle_targets(&mut self) -> bool {
        if !self.target_directories.may_be_idle(self.links.ended()) {
            return false;
        }
        let idle = self.target_directories.paths().filter(|path| !self.links.lead_below(path)).cloned();
        idle.collect::<Vec<_>>().iter().for_each(|path| self.end_target(path));
        self.target_directories.has_room()
    }

    fn report_unfollowed(&mut self, path: &[u8], errno: Errno) {
        if std::mem::replace(&mut self.targets_warned, true) {
            return;
        }
        let path = String::from_utf8_lossy(path);
        let error = os_message(&errno);
        tracing::warn!(
            event = "targets_not_followed",
            path = &*path,
            error,
            "{path:?}, into which a link leads, cannot be watched ({error}): what is written there shows in the link at a rescan alone (--rescan-seconds), and so it is for others like it; check that this user may read it, and the sysctl fs.inotify.max_user_watches ({TARGET_DIRECTORIES_MAX} such directories at most)"
        );
    }

    /// An event of a watch that no directory of the tree has.
    pub(super) fn target_changed(&mut self, watch_id: WatchId, event: Event<'_>, noticed: Noticed) {
        let Some(directory) = self.target_directories.path(watch_id) else {
            // The directory is in the tree no more. If it still exists elsewhere, it was rescanned when it was added there.
            if let Event::Gone(_) = event {
                self.tree.ended(watch_id);
            }
            return;
        };
        let path = |name: &[u8]| [&directory, &b"/"[..], name].concat();
        match event {
            Event::Created(name) => self.follow_target(&path(name), true, noticed),
            Event::MovedTo(name, _) | Event::Closed(name) | Event::Deleted(name) | Event::MovedFrom(name, _) => {
                self.follow_target(&path(name), false, noticed);
            }
            Event::DirectoryCreated(name) | Event::DirectoryMovedTo(name) | Event::DirectoryRemoved(name) => {
                self.follow_targets_from(&path(name), noticed);
            }
            Event::Renamed | Event::Gone(_) => {
                self.end_target(&directory);
                self.follow_targets_from(&directory, noticed);
            }
            Event::Attributes(_) | Event::DirectoryAttributes(_) | Event::OwnAttributes | Event::Overflow => {}
        }
        if !self.links.lead_below(&directory) {
            self.end_target(&directory);
        }
    }

    /// Another directory is at an absolute path, or none: links that lead through it may have other targets.
    pub(super) fn follow_targets_from(&mut self, path: &[u8], noticed: Noticed) {
        let in_tree = self.recursive && !self.filter.closes();
        if in_tree || self.links.is_empty() {
            return; // what is in the tree is listed, and each file that is found is followed
        }
        for path in self.links.followed_from(path) {
            self.follow_target(&path, false, noticed);
        }
    }

    /// Something has become of a path that is not in the tree and that links lead through. `made`: a name is new, and its
    /// file may still have a writer.
    fn follow_target(&mut self, path: &[u8], made: bool, noticed: Noticed) {
        for (id, name) in self.links.followers(path) {
            self.record_one(id, &name);
            let Some(node) = self.tree.get(id) else { continue };
            let root = node.directory.root();
            let Some(start) = below(root, path) else { continue };
            let change = match look(root, &path[start..]) {
                Ok(Some(FileStat { version, regular: true, .. })) if made => {
                    Change::Created { version: version.fingerprint() }
                }
                Ok(None) if !self.confirmed.keeps_last() => continue,
                _ => Change::Closed,
            };
            self.put_admitted(id, &name, change, noticed);
        }
    }
}

/// Where the part of an absolute path below the data directory begins.
fn below(root: &Root, path: &[u8]) -> Option<usize> {
    let rest = inside(real(root), path).filter(|rest| !rest.is_empty())?;
    Some(path.len() - rest.len() + 1)
}
