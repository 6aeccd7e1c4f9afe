//! Removals (`--removals`): a path that has had a message and has no file any more gets a message that says so.
//!
//! A removal is a job like any other, of the same path in the same pending set, so the messages of a path stay in order. It
//! is dispatched with what takes the last message back. The reader decides by the disk: where there is a file, it is read as
//! ever, and where there is none, the removal is published. What consumers were sent last is kept by name
//! ([`Node::last`](crate::watch::tree::Node)) until the removal is confirmed, also of a directory that has left the tree. So
//! a removal that found no room in the pending set is found again by a rescan.

use std::sync::Arc;
use std::time::Instant;

use super::{Noticed, State};
use crate::files::directory::DirectoryId;
use crate::files::listing::FileStat;
use crate::files::names::{Name, Set};
use crate::files::unread::Unread;
use crate::files::version::Timestamp;
use crate::job::Job;
use crate::watch::confirmed::Read;
use crate::watch::pending::{Change, NameLost};
use crate::watch::tree::Origin;

impl State {
    /// A path has no file any more, as far as is known: its removal is due, if it has had a message.
    pub(super) fn lose(&mut self, id: DirectoryId, name: &Name, how: NameLost, noticed: Noticed) {
        let Some(node) = self.tree.with_draining_mut(id) else { return };
        match node.last.get(name) {
            None => {}
            Some(last) if last.published => self.put_one(id, name, Change::Removed { how }, noticed),
            // A message may be on its way.
            Some(_) if self.pending.holds(id, name) => {}
            Some(_) => {
                self.confirmed.confirm_removal(node, name);
                self.tree.end_drained(id);
            }
        }
    }

    /// As [`State::lose`], and the links that lead through the path have no file either.
    pub(super) fn lose_all(&mut self, id: DirectoryId, name: &Name, how: NameLost, noticed: Noticed) {
        if self.confirmed.keeps_last() {
            self.lose(id, name, how, noticed);
            self.follow(id, name, noticed);
        }
    }

    /// A rescan has come to a name of a directory that has left the tree.
    pub(super) fn compare_lost(&mut self, id: DirectoryId, name: &Name, seen_at: Timestamp, now: Instant) {
        // It may be at its path as before, and enters the tree when the rescan comes to it.
        if self.rescan.is_whole_outstanding()
            && self.tree.with_draining(id).is_some_and(|node| self.confirmed.may_come_back(node))
        {
            return;
        }
        // A directory that is deleted has no files left, so these were renamed with it.
        let how = if self.tree.with_draining(id).is_some_and(|node| node.inode.is_some()) {
            NameLost::Renamed
        } else {
            NameLost::Deleted
        };
        self.lose_all(id, name, how, Noticed::by_rescan(seen_at, now));
    }

    /// A name has no directory any more, so the removals are due of what had a message below one that could not be entered.
    pub(super) fn lose_unlisted(&mut self, parent: DirectoryId, name: &Name) {
        if !self.confirmed.keeps_last() || self.tree.child(parent, name).is_some() {
            return;
        }
        let Some(above) = self.tree.get(parent).map(|node| Arc::clone(&node.directory)) else { return };
        let path = [&above.absolute(name)[..], b"/"].concat();
        let Some(root) = self.tree.roots().iter().find(|root| path.starts_with(root.prefix())).cloned() else { return };
        for (directory, last) in self.confirmed.take_unlisted(&path) {
            let id = self.tree.vanished(&root, &directory[root.prefix().len()..]);
            let names = last.iter().map(|(name, _)| Arc::clone(name)).collect();
            if let Some(node) = self.tree.with_draining_mut(id) {
                node.last.extend(last);
            }
            self.rescan.compare_later(id, names, Origin::Found);
            self.tree.end_drained(id);
        }
    }

    /// A directory has been listed that may have been shut before, and these are the directories in it: as
    /// [`State::lose_unlisted`] for each of its sub-directories that went meanwhile.
    pub(super) fn lose_unlisted_but(&mut self, id: DirectoryId, listed: &[Name]) {
        let Some(node) = self.tree.get(id) else { return };
        let waiting = self.confirmed.unlisted_in(node.directory.prefix());
        if waiting.is_empty() {
            return;
        }
        let listed: Set<&Name> = listed.iter().collect();
        waiting.iter().filter(|name| !listed.contains(name)).for_each(|name| self.lose_unlisted(id, name));
    }

    /// Has the removals of directories that have left the tree found by the rescan under way.
    pub(super) fn rescan_lost(&mut self) {
        let draining = self.tree.draining().filter(|(_, node)| !node.last.is_empty());
        let lost: Vec<(DirectoryId, Vec<Name>)> =
            draining.map(|(id, node)| (id, node.last.keys().cloned().collect())).collect();
        lost.into_iter().for_each(|(id, names)| self.rescan.compare_later(id, names, Origin::Found));
    }

    /// A message was confirmed, and its path has lost the file meanwhile.
    pub(super) fn confirm_lost(&mut self, job: &Job, read: &Read, how: NameLost, now: Instant) {
        let (id, name) = (job.directory.id(), &job.name);
        if let Some(node) = self.tree.with_draining_mut(id) {
            self.confirmed.confirm_without_row(node, job, read);
        }
        // What has happened to the path since is dispatched next, and finds out.
        if !self.pending.holds(id, name) {
            self.lose(id, name, how, Noticed::by_event(Timestamp::now(), now));
        }
    }

    /// There was a file where a removal was due, in a directory that is not in the tree: it is back at its path and could not be
    /// entered yet. A rescan enters it, or finds that the removal is due.
    pub(super) fn found_outside(&mut self, job: &Job, read: &Read, now: Instant) {
        if let Some(node) = self.tree.with_draining_mut(job.directory.id()) {
            self.confirmed.confirm_outside(node, job, read);
        }
        self.rescan.ask(now);
    }

    /// A path's removal is confirmed. What has come to the path since is new there.
    pub(super) fn confirm_removal(&mut self, id: DirectoryId, name: &Name, now: Instant) {
        self.pending.failed(id, name, now);
        if let Some(node) = self.tree.with_draining_mut(id) {
            self.confirmed.confirm_removal(node, name);
        }
    }

    /// A job has ended without a message. Where a name is gone its event has been read or is still queued; but no event says
    /// that a link leads nowhere.
    pub(super) fn end_unread(&mut self, job: &Job, unread: &Unread, now: Instant) {
        let (id, name) = (job.directory.id(), &job.name);
        if !self.confirmed.keeps_last() || self.pending.holds(id, name) {
            return;
        }
        match self.look(id, name) {
            Ok(Some(FileStat { regular: true, .. })) | Err(_) => {}
            Ok(Some(_)) if !unread.says_no_file() => {}
            Ok(Some(_)) => self.lose(id, name, NameLost::Deleted, Noticed::by_event(Timestamp::now(), now)),
            Ok(None) => self.drop_announced(id, name),
        }
    }

    /// There is no file of which the ledger says that it may be published.
    fn drop_announced(&mut self, id: DirectoryId, name: &Name) {
        if let Some(node) = self.tree.with_draining_mut(id)
            && node.last.get(name).is_some_and(|last| !last.published)
        {
            self.confirmed.confirm_removal(node, name);
        }
    }
}
