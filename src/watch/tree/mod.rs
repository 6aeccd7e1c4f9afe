//! The tree of watched directories: the owner of each watch, what is kept for each directory, and which directory is at a
//! path now.
//!
//! No directory moves within the tree, and the cookies of renames are not used. Whenever an event, a listing or the end of
//! a watch names a directory, [`Tree::resolve`] opens the directory at that path and adds a watch to it. An inotify instance
//! has one watch for an inode, so inotify_add_watch(2) returns the same id for the same directory whatever its path, and
//! the id says which directory this is:
//!
//! - The tree has it under this name: nothing has changed.
//! - The tree has it under another name: it was renamed. It is removed there with everything below it, and enters here as a
//!   new directory.
//! - The tree does not have it: it is new.
//!
//! In the last two cases the directory that the tree had under this name is removed. It makes no difference in which order
//! renames are read or how many of their events are missed, because the last event of a name is queued after its last
//! change: the `resolve` for it meets the final directory.
//!
//! The watch of a removed directory is orphaned, not removed. If the directory appears at another path, it has its watch
//! already: a renamed tree needs no new watches. Orphaned watches are removed a few at a time, because the kernel queues an
//! IN_IGNORED for each, and many at once would fill its queue.
//!
//! A removed directory that has jobs in flight drains: its node is kept until they have completed, and no lookup but
//! [`Tree::with_draining`] returns it. With `--removals` it also drains until the removal of each of its files is confirmed. A directory that is created at the same path meanwhile takes over the node and its id. The pending set, which knows
//! paths by directory id, therefore still knows that they are in flight, and the messages of one path stay in order.

mod draining;
mod node;
mod watches;

use std::ffi::OsStr;
use std::mem;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

pub(crate) use node::{Node, Origin};
use rustix::fs::fstat;
use rustix::io::Errno;
use watches::WatchTable;

use super::inotify::{WatchId, Watches};
use crate::files::directory::{Directory, DirectoryId};
use crate::files::errno::{Call, Meaning, meaning};
use crate::files::name_map::NameMap;
use crate::files::names::{Map, Name, Set};
use crate::files::root::Root;
use crate::job::Known;

/// What the tree had for a directory that was removed from it.
pub(crate) struct Removed {
    pub(crate) id: DirectoryId,
    pub(crate) directory: Arc<Directory>,
    pub(crate) inode: u64,
    /// See [`Node::known`]. The names in [`Node::last`] stay there.
    pub(crate) known: NameMap<Known>,
}

/// What [`Tree::resolve`] finds at a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Resolved {
    /// The directory that the tree has under this name.
    Same {
        id: DirectoryId,
        /// It had no watch until now, so its events until now were missed.
        again: bool,
    },
    /// A directory that has just entered the tree.
    New(DirectoryId),
    /// No directory that can be entered: none, a link, or one of another file system.
    Nothing,
    /// Something is mounted over a directory of the tree, which stays: it is there again when that is unmounted.
    Covered,
    /// A directory that cannot be opened.
    Refused(Errno),
}

/// Whether a refusal to open or list a directory means that there is none to enter: it is gone, another kind of file, a
/// link, or on another file system.
pub(crate) fn nothing_to_enter(call: Call, errno: Errno) -> bool {
    matches!(meaning(call, errno), Meaning::Gone | Meaning::NotRegular | Meaning::Link | Meaning::LeadsOut)
}

/// See the module.
pub(crate) struct Tree {
    /// The data directories, which are never removed.
    roots: Vec<Arc<Directory>>,
    /// With the draining ones.
    nodes: Map<DirectoryId, Node>,
    watches: WatchTable,
    /// Draining directories by path.
    draining: Map<Vec<u8>, DirectoryId>,
    next: DirectoryId,
}

impl Tree {
    /// The data directories alone, with the watches that they have already: none where one is not open yet.
    pub(crate) fn new<'a>(roots: impl IntoIterator<Item = (&'a Arc<Root>, Option<WatchId>)>, watches: Watches) -> Self {
        let mut tree = Self {
            roots: Vec::new(),
            nodes: Map::default(),
            watches: WatchTable::new(watches),
            draining: Map::default(),
            next: DirectoryId::FIRST,
        };
        for (root, watch_id) in roots {
            let id = tree.next_id(root.volume());
            let node = Node::new(Directory::new(root, b"").at(id), None, None);
            tree.roots.push(Arc::clone(&node.directory));
            tree.nodes.insert(id, node);
            // Two paths lead to one directory if one was replaced since it was checked. The check of the roots finds that.
            if watch_id.is_none_or(|watch_id| tree.of(watch_id).is_none()) {
                tree.set_watch(id, watch_id);
            }
        }
        tree
    }

    /// Watches a data directory that was not open before.
    ///
    /// # Errors
    /// That of inotify_add_watch(2).
    pub(crate) fn watch_root(&mut self, root: &Directory) -> Result<(), Errno> {
        let watch_id = self.watches.add_aside(root.root().as_fd())?;
        self.set_watch(root.id(), Some(watch_id));
        Ok(())
    }

    fn next_id(&mut self, volume: usize) -> DirectoryId {
        let id = self.next;
        self.next = id.next();
        id.on_volume(volume)
    }

    /// The directory that a watch belongs to; nothing for an orphaned watch.
    pub(crate) fn of(&self, watch_id: WatchId) -> Option<DirectoryId> {
        self.watches.owner(watch_id)
    }

    pub(crate) fn get(&self, id: DirectoryId) -> Option<&Node> {
        self.nodes.get(&id).filter(|node| !node.draining)
    }

    pub(crate) fn get_mut(&mut self, id: DirectoryId) -> Option<&mut Node> {
        self.nodes.get_mut(&id).filter(|node| !node.draining)
    }

    /// The data directory of this id, if it is one.
    pub(crate) fn root(&self, id: DirectoryId) -> Option<&Root> {
        self.roots.iter().find(|directory| directory.id() == id).map(|directory| directory.root())
    }

    pub(crate) fn roots(&self) -> &[Arc<Directory>] {
        &self.roots
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (DirectoryId, &Node)> {
        self.nodes.iter().filter(|(_, node)| !node.draining).map(|(id, node)| (*id, node))
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Node> {
        self.nodes.values_mut().filter(|node| !node.draining)
    }

    pub(crate) fn unwatched(&self) -> &Set<DirectoryId> {
        &self.watches.unwatched
    }

    /// Why the last directory without a watch has none.
    pub(crate) fn unwatched_cause(&self) -> Option<Errno> {
        self.watches.unwatched_cause
    }

    pub(crate) fn watched(&self) -> usize {
        self.watches.owned()
    }

    /// The parent of a directory and its name there; nothing for a root.
    pub(crate) fn parent(&self, id: DirectoryId) -> Option<(DirectoryId, Name)> {
        self.get(id)?.parent.clone()
    }

    pub(crate) fn child(&self, id: DirectoryId, name: &Name) -> Option<DirectoryId> {
        self.get(id)?.children.get(name).copied()
    }

    /// The directory of the tree that a path lies in, and the path's name there.
    pub(crate) fn place(&self, path: &Path) -> Option<(DirectoryId, Name)> {
        let (root, below) =
            self.roots.iter().find_map(|root| Some((root, path.strip_prefix(root.root().path()).ok()?)))?;
        let name = |part: &OsStr| Name::from(part.as_bytes());
        let above = below.parent()?.iter().try_fold(root.id(), |id, part| self.child(id, &name(part)))?;
        Some((above, name(below.file_name()?)))
    }

    /// The names of the sub-directories that are in the tree.
    pub(crate) fn children(&self, id: DirectoryId) -> Vec<Name> {
        self.get(id).map(|node| node.children.keys().cloned().collect()).unwrap_or_default()
    }

    /// A job of this directory is in flight until [`Self::returned`].
    pub(crate) fn dispatched(&mut self, id: DirectoryId) {
        if let Some(node) = self.nodes.get_mut(&id) {
            node.in_flight += 1;
        }
    }

    pub(crate) fn completed(&mut self, id: DirectoryId) {
        let node = self.nodes.get_mut(&id).filter(|node| node.in_flight > 0);
        let node = node.expect("a directory is kept while jobs of it are in flight, and each job completes once");
        node.in_flight -= 1;
        self.end_drained(id);
    }

    /// Compares a name with the directory that is there now, see the module. The directory is watched from then on.
    /// Directories that are removed for it are added to `removed`.
    pub(crate) fn resolve(
        &mut self,
        parent: DirectoryId,
        name: &Name,
        origin: Origin,
        removed: &mut Vec<Removed>,
    ) -> Resolved {
        let Some(node) = self.get(parent) else { return Resolved::Nothing };
        let existing = node.children.get(name).copied();
        let (above, below) = (Arc::clone(&node.directory), node.directory.below(name));
        let opened = above.root().open_directory(&below).and_then(|dir| Ok((fstat(&dir)?.st_ino, dir)));
        let (inode, dir) = match opened {
            Ok((inode, dir)) => (Some(inode), dir),
            Err(errno) => return self.not_opened(existing, above.root(), &below, errno, removed),
        };
        let watch_id = self.watches.add(dir.as_fd());
        let elsewhere = watch_id.and_then(|watch_id| self.of(watch_id)).filter(|&id| Some(id) != existing);
        if elsewhere.is_some_and(|id| self.nodes[&id].parent.is_none()) {
            // A data directory was moved to this path. Its IN_MOVE_SELF or the next check of the roots ends the service.
            return Resolved::Nothing;
        }
        // The watch leaves its owner before the owner is removed, or it would be orphaned.
        if let Some(id) = elsewhere {
            self.unset_watch(id);
        }
        let same = existing.filter(|id| self.nodes[id].is(watch_id, inode));
        existing.into_iter().filter(|_| same.is_none()).for_each(|id| self.remove(id, removed));
        elsewhere.into_iter().for_each(|id| self.remove(id, removed));
        if self.get(parent).is_none() {
            // The parent was below the directory that is removed: it was renamed, and its own event is still queued.
            watch_id.into_iter().for_each(|watch_id| self.watches.orphan(watch_id));
            return Resolved::Nothing;
        }
        let id = same.unwrap_or_else(|| self.insert(&above, name, &below, inode, origin));
        let again = self.set_watch(id, watch_id);
        if same.is_some() { Resolved::Same { id, again } } else { Resolved::New(id) }
    }

    /// The directory at a name cannot be opened. The one that the tree has there is removed if it is certain that the name is
    /// another's: without the rights to find out, what is known of its files is kept.
    fn not_opened(
        &mut self,
        existing: Option<DirectoryId>,
        root: &Root,
        below: &[u8],
        errno: Errno,
        removed: &mut Vec<Removed>,
    ) -> Resolved {
        let nothing = nothing_to_enter(Call::Open, errno);
        if existing.is_some() && meaning(Call::Open, errno) == Meaning::LeadsOut {
            return Resolved::Covered;
        }
        if let Some(id) = existing {
            let inode = self.nodes[&id].inode;
            if nothing || root.look(below).is_ok_and(|stat| Some(stat.st_ino) != inode) {
                self.remove(id, removed);
            }
        }
        if nothing { Resolved::Nothing } else { Resolved::Refused(errno) }
    }

    /// Makes the watches of exactly these directories report IN_ATTRIB, as far as possible. Without the right to read a
    /// directory its watch stays as it is, and its files are found when they are tried again.
    pub(crate) fn attend(&mut self, wanted: &Set<DirectoryId>) {
        for id in wanted.difference(&self.watches.attending).copied().collect::<Vec<_>>() {
            if self.attend_one(id, true) {
                self.watches.attending.insert(id);
            }
        }
        for id in self.watches.attending.difference(wanted).copied().collect::<Vec<_>>() {
            self.attend_one(id, false);
            self.watches.attending.remove(&id);
        }
    }

    fn attend_one(&mut self, id: DirectoryId, attributes: bool) -> bool {
        let Some(node) = self.get(id) else { return false };
        let Some(watch_id) = node.watch_id else { return false };
        let Ok(dir) = node.directory.root().open_directory(&node.directory.below(b"")) else { return false };
        self.watches.attend(dir.as_fd(), watch_id, attributes)
    }

    /// Removes a directory and those below it. A root is never removed.
    fn remove(&mut self, id: DirectoryId, removed: &mut Vec<Removed>) {
        let Some((parent, name)) = self.parent(id) else { return };
        if let Some(parent) = self.nodes.get_mut(&parent) {
            parent.children.remove(&name);
        }
        let mut ids = vec![id];
        while let Some(id) = ids.pop() {
            if let Some(watch_id) = self.unset_watch(id) {
                self.watches.orphan(watch_id);
            }
            self.watches.forget(id);
            let Some(node) = self.nodes.get_mut(&id) else { unreachable!("a child is not in the tree") };
            let Some(inode) = node.inode else { unreachable!("a root is below another directory") };
            assert!(!node.draining, "a directory is removed twice");
            ids.extend(node.children.drain().map(|(_, child)| child));
            let known = mem::take(&mut node.known);
            removed.push(Removed { id, directory: Arc::clone(&node.directory), inode, known });
            if node.in_flight == 0 && node.last.is_empty() {
                self.nodes.remove(&id);
            } else {
                node.draining = true;
                node.directory.update(mem::take);
                let before = self.draining.insert(node.directory.prefix().to_vec(), id);
                assert!(before.is_none(), "two directories drain at one path");
            }
        }
    }

    /// Watches an open directory that is not to be in the tree. `None`: it is, and has its watch.
    ///
    /// # Errors
    /// That of inotify_add_watch(2).
    pub(crate) fn watch_aside(&mut self, directory: impl AsFd) -> Result<Option<WatchId>, Errno> {
        let watch_id = self.watches.add_aside(directory.as_fd())?;
        Ok(Some(watch_id).filter(|&watch_id| self.of(watch_id).is_none()))
    }

    /// Ends a watch that [`Tree::watch_aside`] has added, unless the directory is in the tree by now.
    pub(crate) fn end_aside(&mut self, watch_id: WatchId) {
        if self.of(watch_id).is_none() {
            self.watches.remove(watch_id);
        }
    }

    pub(crate) fn end_orphaned(&mut self, most: usize) {
        self.watches.end_orphaned(most);
    }

    /// The kernel has removed an orphaned watch.
    pub(crate) fn ended(&mut self, watch_id: WatchId) {
        self.watches.ended(watch_id);
    }

    /// Enters a directory into the tree: as a new node, or as the one that drains at its path.
    fn insert(
        &mut self,
        above: &Directory,
        name: &Name,
        below: &[u8],
        inode: Option<u64>,
        origin: Origin,
    ) -> DirectoryId {
        let directory = above.deeper(below);
        let parent = Some((above.id(), Arc::clone(name)));
        let id = match self.draining.remove(directory.prefix()) {
            Some(id) => id,
            None => {
                let id = self.next_id(above.root().volume());
                self.nodes.insert(id, Node::new(directory.at(id), inode, parent.clone()));
                id
            }
        };
        if let Some(node) = self.nodes.get_mut(&id) {
            (node.draining, node.listed, node.origin) = (false, false, origin);
            (node.inode, node.parent) = (inode, parent);
        }
        let siblings = self.nodes.get_mut(&above.id()).map(|parent| &mut parent.children);
        let before = siblings.and_then(|siblings| siblings.insert(Arc::clone(name), id));
        assert!(before.is_none(), "two directories of the tree have one name");
        id
    }

    /// Gives a directory its watch, or notes that it has none. Returns whether the watch is new to it.
    fn set_watch(&mut self, id: DirectoryId, watch_id: Option<WatchId>) -> bool {
        let Some(node) = self.nodes.get_mut(&id) else { return false };
        let Some(watch_id) = watch_id else {
            assert!(node.watch_id.is_none(), "a directory with a watch counts as unwatched");
            self.watches.unwatched.insert(id);
            return false;
        };
        self.watches.assign(watch_id, id);
        let before = node.watch_id.replace(watch_id);
        assert!(before.is_none_or(|before| before == watch_id), "a directory has two watches");
        debug_assert!(before.is_some() || !self.watches.attending.contains(&id), "a directory without a watch attends");
        before.is_none()
    }

    fn unset_watch(&mut self, id: DirectoryId) -> Option<WatchId> {
        let watch_id = self.nodes.get_mut(&id)?.watch_id.take()?;
        self.watches.release(watch_id);
        Some(watch_id)
    }
}

#[cfg(test)]
mod tests;
