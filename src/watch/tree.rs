//! The directories that are watched: which watch is whose, what is kept for each, and what stands where.
//!
//! A directory's name is looked at again whenever an event, a listing or the end of a watch says something of it, and
//! the watch itself tells which directory stands there: the kernel gives one directory one watch, whatever its path.
//! So it makes no difference in which order renames are heard of, or how many of them: the last event of a name comes
//! after its last change. What was kept for a directory that stands elsewhere, or nowhere, is given up; where it
//! stands now it is one that has just arrived. Only its watch is kept for a while, orphaned: a renamed tree is watched
//! by the watches that it had, and the ends of many, which are events too, don't fill the kernel's queue.

use std::mem;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use rustix::fs::fstat;
use rustix::io::Errno;

use super::inotify::{WatchId, Watches};
use crate::files::directory::{Directory, DirectoryId};
use crate::files::errno::{Call, Meaning, meaning};
use crate::files::names::{Map, Name, Set};
use crate::files::root::Root;
use crate::job::Known;

/// How a directory came to be looked at: what is in it came the same way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// It was made, or a listing shows it.
    Found,
    /// It was renamed to its path, or is below one that was.
    MovedTo,
}

/// What is kept for one directory.
pub struct Node {
    /// Its path and its index.
    pub directory: Arc<Directory>,
    /// What was confirmed, or was there before us, by name.
    pub known: Map<Name, Known>,
    /// What is known is the ledger's, and not compared yet: it may be of another directory's files.
    pub loaded: bool,
    /// Whether its index is complete.
    pub listed: bool,
    /// How it came here.
    pub origin: Origin,
    /// Nothing where no watch could be had.
    watch_id: Option<WatchId>,
    /// Its inode's number, unless it is a root: another can come to stand at its path.
    pub inode: Option<u64>,
    /// Nothing for a root.
    parent: Option<(DirectoryId, Name)>,
    children: Map<Name, DirectoryId>,
    /// Its files that are with the readers.
    in_flight: usize,
    /// Given up, and kept only until the readers return the last file.
    left: bool,
}

/// What was kept for a directory that was given up.
pub struct Removed {
    /// Its number.
    pub id: DirectoryId,
    /// Its path.
    pub directory: Arc<Directory>,
    /// See [`Node::known`].
    pub known: Map<Name, Known>,
}

/// What a look at a directory's name shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stands {
    /// The directory that we know there; `again`: it had no watch before.
    Same {
        /// Its number.
        id: DirectoryId,
        /// What happened in it until now went unseen.
        again: bool,
    },
    /// Another, or the first.
    New(DirectoryId),
    /// None, or none to enter: a link, or another file system's.
    Nothing,
    /// One that cannot be opened.
    Refused(Errno),
}

/// Whether a refusal to open or list a directory says that there is none to enter: it is gone, another kind of file, a
/// link, or another file system's.
#[must_use]
pub fn nothing_to_enter(call: Call, errno: Errno) -> bool {
    matches!(meaning(call, errno), Meaning::Gone | Meaning::NotRegular | Meaning::Link | Meaning::LeadsOut)
}

/// See the module.
pub struct Tree {
    /// The data directories: never given up.
    roots: Vec<Arc<Directory>>,
    watches: Watches,
    nodes: Map<DirectoryId, Node>,
    watch_ids: Map<WatchId, DirectoryId>,
    unwatched: Set<DirectoryId>,
    /// Why the last of them has no watch.
    unwatched_cause: Option<Errno>,
    /// Directories whose watches tell of changed rights.
    attending: Set<DirectoryId>,
    /// Watches of directories that were given up, and that may turn up elsewhere.
    orphaned: Set<WatchId>,
    /// By path: given up while files of theirs were with the readers. One that is made there again takes over the
    /// number, so that messages of one path stay in order.
    draining: Map<Vec<u8>, DirectoryId>,
    next: DirectoryId,
}

impl Tree {
    /// Of the data directories alone, which are watched already.
    #[must_use]
    pub fn new<'a>(roots: impl IntoIterator<Item = (&'a Arc<Root>, &'a WatchId)>, watches: Watches) -> Self {
        let mut tree = Self {
            roots: Vec::new(),
            watches,
            nodes: Map::default(),
            watch_ids: Map::default(),
            unwatched: Set::default(),
            unwatched_cause: None,
            attending: Set::default(),
            orphaned: Set::default(),
            draining: Map::default(),
            next: DirectoryId::FIRST,
        };
        for (root, &watch_id) in roots {
            let id = tree.number(root.volume());
            let directory = Arc::new(Directory::new(root, b"").at(id));
            tree.roots.push(Arc::clone(&directory));
            tree.nodes.insert(id, Node::new(directory, Some(watch_id), None, None, Origin::Found));
            tree.watch_ids.insert(watch_id, id);
        }
        tree
    }

    fn number(&mut self, volume: usize) -> DirectoryId {
        let id = self.next;
        self.next = id.next();
        id.on_volume(volume)
    }

    /// Whose watch it is, if it still is one's.
    #[must_use]
    pub fn of(&self, watch_id: WatchId) -> Option<DirectoryId> {
        self.watch_ids.get(&watch_id).copied()
    }

    /// What is kept for a directory, while it is in the tree.
    #[must_use]
    pub fn get(&self, id: DirectoryId) -> Option<&Node> {
        self.nodes.get(&id).filter(|node| !node.left)
    }

    /// The same, to be changed.
    pub fn get_mut(&mut self, id: DirectoryId) -> Option<&mut Node> {
        self.nodes.get_mut(&id).filter(|node| !node.left)
    }

    /// The data directory that this is, if it is one.
    #[must_use]
    pub fn root(&self, id: DirectoryId) -> Option<&Root> {
        self.roots.iter().find(|directory| directory.id() == id).map(|directory| directory.root())
    }

    /// The data directories.
    #[must_use]
    pub fn roots(&self) -> &[Arc<Directory>] {
        &self.roots
    }

    /// The directories in the tree.
    pub fn iter(&self) -> impl Iterator<Item = (DirectoryId, &Node)> {
        self.nodes.iter().filter(|(_, node)| !node.left).map(|(id, node)| (*id, node))
    }

    /// The same, to be changed.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Node> {
        self.nodes.values_mut().filter(|node| !node.left)
    }

    /// Directories without a watch.
    #[must_use]
    pub fn unwatched(&self) -> &Set<DirectoryId> {
        &self.unwatched
    }

    /// Why the last one has none.
    #[must_use]
    pub fn unwatched_cause(&self) -> Option<Errno> {
        self.unwatched_cause
    }

    /// How many are watched.
    #[must_use]
    pub fn watched(&self) -> usize {
        self.watch_ids.len()
    }

    /// The parent and the name of a directory below a root.
    #[must_use]
    pub fn parent(&self, id: DirectoryId) -> Option<(DirectoryId, Name)> {
        self.get(id)?.parent.clone()
    }

    /// The sub-directory of a name, where it is in the tree.
    #[must_use]
    pub fn child(&self, id: DirectoryId, name: &Name) -> Option<DirectoryId> {
        self.get(id)?.children.get(name).copied()
    }

    /// The names of its sub-directories that are in the tree.
    #[must_use]
    pub fn children(&self, id: DirectoryId) -> Vec<Name> {
        self.get(id).map(|node| node.children.keys().cloned().collect()).unwrap_or_default()
    }

    /// A file of it goes to the readers.
    pub fn dispatched(&mut self, id: DirectoryId) {
        if let Some(node) = self.nodes.get_mut(&id) {
            node.in_flight += 1;
        }
    }

    /// A file of it came back.
    pub fn returned(&mut self, id: DirectoryId) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        node.in_flight -= 1;
        if node.left && node.in_flight == 0 {
            self.draining.remove(node.directory.prefix());
            self.nodes.remove(&id);
        }
    }

    /// Looks at what stands at a name: it is watched from then on. What is given up for it is added to `left`.
    pub fn resolve(&mut self, parent: DirectoryId, name: &Name, origin: Origin, left: &mut Vec<Removed>) -> Stands {
        let Some(node) = self.get(parent) else { return Stands::Nothing };
        let existing = node.children.get(name).copied();
        let (above, below) = (Arc::clone(&node.directory), node.directory.below(name));
        let opened = above.root().open_directory(&below).and_then(|dir| Ok((fstat(&dir)?.st_ino, dir)));
        let (inode, dir) = match opened {
            Ok((inode, dir)) => (Some(inode), dir),
            Err(errno) => {
                if nothing_to_enter(Call::Open, errno) || self.is_other(existing, above.root(), &below) {
                    existing.into_iter().for_each(|id| self.leave(id, left));
                }
                return if nothing_to_enter(Call::Open, errno) { Stands::Nothing } else { Stands::Refused(errno) };
            }
        };
        let watch_id = self.watch(dir.as_fd());
        // Before anything is given up, for that sets watches orphaned: this one is the new directory's.
        let elsewhere = watch_id.and_then(|watch_id| self.of(watch_id)).filter(|&id| Some(id) != existing);
        if elsewhere.is_some_and(|id| self.nodes[&id].parent.is_none()) {
            return Stands::Nothing; // a path through a directory that has been moved since
        }
        if let Some(id) = elsewhere {
            self.unmark(id);
        }
        let same = existing.filter(|id| match (self.nodes[id].watch_id, watch_id) {
            (Some(before), now) => Some(before) == now,
            (None, _) => self.nodes[id].inode == inode,
        });
        if same.is_none() {
            existing.into_iter().for_each(|id| self.leave(id, left));
        }
        elsewhere.into_iter().for_each(|id| self.leave(id, left));
        // What was given up may have held the parent, or what was known here.
        if self.get(parent).is_none() {
            self.orphaned.extend(watch_id);
            return Stands::Nothing;
        }
        match same {
            Some(id) => Stands::Same { id, again: self.watch_id(id, watch_id) },
            None => {
                let id = self.enter(&above, name, &below, inode, origin);
                self.watch_id(id, watch_id);
                Stands::New(id)
            }
        }
    }

    /// Whether another than a directory that we know stands at its name, which is shut. What cannot be looked at is taken for
    /// the same: what is known of it is not thrown away for a moment's want of rights.
    fn is_other(&self, existing: Option<DirectoryId>, root: &Root, below: &[u8]) -> bool {
        let Some(node) = existing.and_then(|id| self.get(id)) else { return false };
        root.look(below).is_ok_and(|stat| Some(stat.st_ino) != node.inode)
    }

    /// Has the watches of exactly these directories tell of changed rights too, as far as they let us: without the right to
    /// read a directory its watch stays as it is, and time alone brings what is in it.
    pub fn attend(&mut self, wanted: &Set<DirectoryId>) {
        for id in wanted.difference(&self.attending).copied().collect::<Vec<_>>() {
            if self.attend_one(id, true) {
                self.attending.insert(id);
            }
        }
        for id in self.attending.difference(wanted).copied().collect::<Vec<_>>() {
            self.attend_one(id, false);
            self.attending.remove(&id);
        }
    }

    fn attend_one(&mut self, id: DirectoryId, attributes: bool) -> bool {
        let Some(node) = self.get(id) else { return false };
        let Some(watch_id) = node.watch_id else { return false };
        let Ok(dir) = node.directory.root().open_directory(&node.directory.below(b"")) else { return false };
        match self.watches.attend(dir.as_fd(), attributes) {
            Ok(told) if told == watch_id => true,
            Ok(told) => {
                // Another stands there by now, whose event is still to come: it is not for us to watch it yet.
                if self.of(told).is_none() {
                    self.orphaned.insert(told);
                }
                false
            }
            Err(_) => false,
        }
    }

    /// Gives up a directory, and those below it.
    pub fn leave(&mut self, id: DirectoryId, left: &mut Vec<Removed>) {
        let Some((parent, name)) = self.parent(id) else { return };
        if let Some(parent) = self.nodes.get_mut(&parent) {
            parent.children.remove(&name);
        }
        let mut ids = vec![id];
        while let Some(id) = ids.pop() {
            let watch_id = self.unmark(id);
            self.orphaned.extend(watch_id);
            self.unwatched.remove(&id);
            self.attending.remove(&id);
            let Some(node) = self.nodes.get_mut(&id) else { continue };
            ids.extend(node.children.drain().map(|(_, child)| child));
            let directory = Arc::clone(&node.directory);
            left.push(Removed { id, directory, known: mem::take(&mut node.known) });
            if node.in_flight == 0 {
                self.nodes.remove(&id);
            } else {
                node.left = true;
                node.directory.update(mem::take);
                self.draining.insert(node.directory.prefix().to_vec(), id);
            }
        }
    }

    /// Ends watches orphaned, so many at the most.
    pub fn end_orphaned(&mut self, most: usize) {
        if self.orphaned.is_empty() {
            return;
        }
        let ended: Vec<WatchId> = self.orphaned.iter().take(most).copied().collect();
        for watch_id in ended {
            self.orphaned.remove(&watch_id);
            self.watches.remove(watch_id);
        }
        if self.orphaned.is_empty() {
            self.orphaned = Set::default(); // a large one's memory goes with it
        }
    }

    /// A watch has ended by itself.
    pub fn ended(&mut self, watch_id: WatchId) {
        self.orphaned.remove(&watch_id);
    }

    /// At the limit one orphaned makes room; a directory that is watched still tells its watch.
    fn watch(&mut self, directory: BorrowedFd<'_>) -> Option<WatchId> {
        let added = self.watches.add(directory).or_else(|errno| {
            if self.orphaned.is_empty() {
                return Err(errno);
            }
            self.end_orphaned(1);
            self.watches.add(directory)
        });
        match added {
            Ok(watch_id) => {
                self.orphaned.remove(&watch_id);
                Some(watch_id)
            }
            // It is kept without a watch, and why is told with the number of those.
            Err(errno) => {
                self.unwatched_cause = Some(errno);
                None
            }
        }
    }

    fn enter(
        &mut self,
        above: &Directory,
        name: &Name,
        below: &[u8],
        inode: Option<u64>,
        origin: Origin,
    ) -> DirectoryId {
        let directory = above.deeper(below);
        let up = Some((above.id(), Arc::clone(name)));
        let id = match self.draining.remove(directory.prefix()) {
            Some(id) => {
                if let Some(node) = self.nodes.get_mut(&id) {
                    (node.left, node.listed, node.origin, node.inode) = (false, false, origin, inode);
                    node.parent = up;
                }
                id
            }
            None => {
                let id = self.number(above.root().volume());
                self.nodes.insert(id, Node::new(Arc::new(directory.at(id)), None, inode, up, origin));
                id
            }
        };
        if let Some(parent) = self.nodes.get_mut(&above.id()) {
            parent.children.insert(Arc::clone(name), id);
        }
        id
    }

    /// Whether a directory without a watch has one now.
    fn watch_id(&mut self, id: DirectoryId, watch_id: Option<WatchId>) -> bool {
        let Some(node) = self.nodes.get_mut(&id) else { return false };
        match watch_id {
            Some(watch_id) => {
                let new = node.watch_id.replace(watch_id) != Some(watch_id);
                self.watch_ids.insert(watch_id, id);
                self.unwatched.remove(&id);
                if new {
                    self.attending.remove(&id);
                }
                new
            }
            None => {
                self.unwatched.insert(id);
                false
            }
        }
    }

    fn unmark(&mut self, id: DirectoryId) -> Option<WatchId> {
        let watch_id = self.nodes.get_mut(&id)?.watch_id.take()?;
        self.watch_ids.remove(&watch_id);
        Some(watch_id)
    }
}

impl Node {
    fn new(
        directory: Arc<Directory>,
        watch_id: Option<WatchId>,
        inode: Option<u64>,
        parent: Option<(DirectoryId, Name)>,
        origin: Origin,
    ) -> Self {
        Self {
            directory,
            known: Map::default(),
            loaded: false,
            listed: false,
            origin,
            watch_id,
            inode,
            parent,
            children: Map::default(),
            in_flight: 0,
            left: false,
        }
    }
}
