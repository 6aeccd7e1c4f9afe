//! Links and further names: what happens to a file happens to each path that it is read by.

use std::mem;
use std::sync::Arc;
use std::time::Instant;

use super::{Noticed, State};
use crate::files::directory::DirectoryId;
use crate::files::names::Name;
use crate::files::version::{Timestamp, Version};
use crate::job::Known;
use crate::watch::hard_links::{Names, Others};
use crate::watch::links::{LINKS_MAX, depends_on, real};
use crate::watch::pending::Change;
use crate::watch::tree::Node;

impl State {
    /// Records what a link leads through, and anew what those links lead through that lead through it.
    pub(super) fn record_link(&mut self, id: DirectoryId, name: &Name) {
        if self.record_one(id, name) {
            self.record_followers(id, name);
        }
    }

    /// A name is no link any more: what led through it ends there.
    pub(super) fn remove_link(&mut self, id: DirectoryId, name: &Name) {
        if self.links.remove(id, name) {
            self.record_followers(id, name);
        }
    }

    fn record_followers(&mut self, id: DirectoryId, name: &Name) {
        let Some(node) = self.tree.get(id) else { return };
        for (id, name) in self.links.followers_from(&node.directory.absolute(name)) {
            self.record_one(id, &name);
        }
    }

    /// Whether the link leads through other paths than before.
    pub(super) fn record_one(&mut self, id: DirectoryId, name: &Name) -> bool {
        let Some(node) = self.tree.get(id) else { return false };
        let directory = Arc::clone(&node.directory);
        let (root, real) = (directory.root(), real(directory.root()));
        let target = |path: &[u8]| path.get(real.len() + 1..).and_then(|below| root.target(below));
        let paths = depends_on(real, &directory.below(name), target);
        // Before the link is read, so that nothing which is written later goes unnoticed.
        self.watch_targets(root, &paths);
        if self.links.depends_on(id, name, &paths) {
            return false;
        }
        if !self.links.set(id, name, paths) && !mem::replace(&mut self.links_warned, true) {
            tracing::warn!(
                event = "links_not_followed",
                links = LINKS_MAX,
                "there are more than {LINKS_MAX} symbolic links: of the others a change of what they lead to is seen at a rescan alone (--rescan-seconds)"
            );
        }
        true
    }

    /// Puts the links that lead through a path into the pending set, because what happened to it happened to them.
    pub(super) fn follow(&mut self, id: DirectoryId, name: &Name, noticed: Noticed) {
        if self.links.is_empty() {
            return;
        }
        let Some(node) = self.tree.get(id) else { return };
        // Below it, too: it may be, or have been, a link to a directory.
        for (id, name) in self.links.followers_from(&node.directory.absolute(name)) {
            self.put_admitted(id, &name, Change::Closed, noticed);
        }
    }

    /// Puts a name into the pending set if the filter admits it.
    pub(super) fn put_admitted(&mut self, id: DirectoryId, name: &Name, change: Change, noticed: Noticed) {
        let admits = |node: &Node| self.filter.admits(&node.directory.below(name));
        if self.tree.get(id).is_some_and(admits) {
            self.put_one(id, name, change, noticed);
        }
    }

    /// A file with further names was published by this one: it is to be read by the others too.
    pub(super) fn follow_names(&mut self, id: DirectoryId, name: &Name, version: &Version, racy: bool, now: Instant) {
        match self.hard_links.published(version, racy, id, name) {
            Others::Known(names) => self.put_names(names, version.inode, now),
            Others::Wanted => {}
            Others::Full => self.ask_for_rescan(now, || {
                tracing::warn!(
                    event = "hard_links_not_followed",
                    "more files with several names were written than can be followed: a rescan follows"
                );
            }),
        }
    }

    /// A name is another file's, or no file's. What was written by it last is to be published by the file's other names.
    pub(super) fn follow_lost_name(&mut self, id: DirectoryId, name: &Name, known: Known, now: Instant) {
        let names = self.hard_links.lost(known.inode(), id, name);
        self.put_names(names, known.inode(), now);
    }

    /// A file with several names was published by this one, which it was read by before. Where the file was written since
    /// by a name that it has lost, no event says that this name has another version.
    pub(super) fn look_at_linked(&mut self, id: DirectoryId, name: &Name, read: &Version, now: Instant) {
        if let Ok(Some(stat)) = self.look(id, name)
            && stat.version.inode == read.inode
            && stat.version != *read
        {
            self.put_one(id, name, Change::Closed, Noticed::by_event(Timestamp::now(), now));
        }
    }

    /// Searches for the other names of files that were published by one of them, when that is due.
    pub(super) fn search_names(&mut self, now: Instant) {
        if self.hard_links.next_time(now).is_none_or(|at| now < at) {
            return;
        }
        let names = self.tree.iter().flat_map(|(id, node)| node.known.iter().map(move |known| (id, known)));
        let known = names.map(|(id, (name, known))| (id, name, known.inode()));
        let found = self.hard_links.search(known, Instant::now());
        for (id, name, version) in found {
            let inode = self.tree.get(id).and_then(|node| node.known.get(&name)).map(|known| known.inode());
            self.put_names(vec![(id, name, version)], inode.unwrap_or(0), now);
        }
    }

    /// Puts those names of one file into the pending set whose confirmed version is another than the one that they ought to
    /// have.
    fn put_names(&mut self, names: Names, inode: u64, now: Instant) {
        let seen_at = Timestamp::now();
        for (id, name, version) in names {
            let Some(node) = self.tree.get(id) else { continue };
            let has_it = |known: &Known| version.is_some_and(|version| known.is_of_fingerprint(version));
            // A racy version may hide that the content is another.
            let lags = |known: &Known| known.inode() == inode && (known.is_racy() || !has_it(known));
            if node.known.get(&name).is_some_and(lags) && self.filter.admits(&node.directory.below(&name)) {
                self.put_one(id, &name, Change::Closed, Noticed::by_event(seen_at, now));
            }
        }
    }
}
