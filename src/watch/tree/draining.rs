//! Directories that have left the tree, while jobs of them are in flight or removals are due.

use super::{Node, Tree};
use crate::files::directory::{Directory, DirectoryId};

impl Tree {
    /// As [`Self::get`], and a draining directory too.
    pub(crate) fn with_draining(&self, id: DirectoryId) -> Option<&Node> {
        self.nodes.get(&id)
    }

    /// As [`Self::get_mut`], and a draining directory too.
    pub(crate) fn with_draining_mut(&mut self, id: DirectoryId) -> Option<&mut Node> {
        self.nodes.get_mut(&id)
    }

    /// The draining directories.
    pub(crate) fn draining(&self) -> impl Iterator<Item = (DirectoryId, &Node)> {
        self.draining.values().filter_map(|id| Some((*id, self.nodes.get(id)?)))
    }

    /// Drops a draining directory that nothing is kept for any more.
    pub(crate) fn end_drained(&mut self, id: DirectoryId) {
        let Some(node) = self.nodes.get(&id) else { return };
        if node.draining && node.in_flight == 0 && node.last.is_empty() {
            let drained = self.draining.remove(node.directory.prefix());
            assert_eq!(drained, Some(id), "another directory drains at this path");
            self.nodes.remove(&id);
        }
    }

    /// The directory at this path below a data directory vanished while no process ran, and the removals of its files are
    /// due. It drains from the beginning.
    pub(crate) fn vanished(&mut self, root: &Directory, below: &[u8]) -> DirectoryId {
        let directory = root.deeper(below);
        if let Some(id) = self.draining.get(directory.prefix()) {
            return *id;
        }
        let id = self.next_id(root.root().volume());
        self.draining.insert(directory.prefix().to_vec(), id);
        let node = Node { draining: true, ..Node::new(directory.at(id), None, None) };
        self.nodes.insert(id, node);
        id
    }

    /// Forgets the directories that vanished while no process ran: at the start, before anything is dispatched.
    pub(crate) fn forget_vanished(&mut self) {
        for (_, id) in self.draining.drain() {
            self.nodes.remove(&id);
        }
    }
}
