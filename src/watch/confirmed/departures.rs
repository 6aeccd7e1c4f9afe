//! What is kept of directories that left their paths while events are lost: see [`Departed`].

use std::mem;

use super::Confirmed;
use crate::job::Job;
use crate::watch::tree::{Node, Removed};

impl Confirmed {
    /// Keeps what was confirmed below directories that were removed from their paths: see [`Departed`].
    pub(in crate::watch) fn keep_departed(&mut self, removed: &[Removed]) {
        for Removed { directory, inode, known, .. } in removed {
            self.departed.keep(*inode, directory.prefix(), known);
        }
    }

    /// A directory has entered the tree.
    pub(in crate::watch) fn entered(&mut self, node: &mut Node) {
        if let Some(inode) = node.inode {
            node.known.extend(self.departed.enter(inode, node.directory.prefix()));
        }
    }

    /// A job has ended whose directory has left the tree, so that another version may have been published at its path.
    pub(in crate::watch) fn ended_elsewhere(&mut self, job: &Job) {
        self.departed.forget(job.directory.prefix(), &job.name);
    }

    /// Whether a directory that left its path is kept for the rescan.
    pub(in crate::watch) fn may_come_back(&self, node: &Node) -> bool {
        node.inode.is_some_and(|inode| self.departed.keeps(inode, node.directory.prefix()))
    }

    /// The rescan has ended for which departed directories were kept. Returns whether there were any.
    pub(in crate::watch) fn forget_departed(&mut self) -> bool {
        mem::take(&mut self.departed).has_kept()
    }
}
