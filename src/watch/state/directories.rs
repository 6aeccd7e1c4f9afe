//! Directories that appear, leave their paths, or have no watch.

use std::path::Path;
use std::time::Instant;

use super::{Depth, State, directory_gone};
use crate::error::{Error, os_message};
use crate::files::directory::DirectoryId;
use crate::files::names::Name;
use crate::files::version::Timestamp;
use crate::watch::retry::Retry;
use crate::watch::root_checks::Answer;
use crate::watch::tree::{Node, Origin, Removed, Resolved};

impl State {
    /// Takes the answers whether each data directory is still at its path. One that cannot be looked at for the moment is
    /// listed again once it can be.
    ///
    /// # Errors
    /// [`Error::DirectoryGone`].
    pub(in crate::watch) fn check_roots(
        &mut self,
        answers: impl Iterator<Item = Answer>,
        now: Instant,
    ) -> Result<(), Error> {
        for (directory, answer) in self.tree.roots().to_vec().into_iter().zip(answers) {
            match answer {
                Ok(true) => {}
                Ok(false) => return Err(directory_gone(directory.root(), "its path leads elsewhere")),
                Err(errno) => self.refuse_listing(directory.id(), errno, now),
            }
        }
        Ok(())
    }

    /// Looks at which directory is at a name. One that is new is listed next, to this depth.
    pub(super) fn resolve(&mut self, parent: DirectoryId, name: &Name, origin: Origin, depth: Depth, now: Instant) {
        let enters = |node: &Node| self.filter.enters(&node.directory.below(name));
        if !self.recursive || !self.tree.get(parent).is_some_and(enters) {
            return;
        }
        let mut removed = Vec::new();
        let resolved = self.tree.resolve(parent, name, origin, &mut removed);
        self.remove_directories(&removed, now);
        match resolved {
            Resolved::New(new) => {
                self.retries.forget(parent, name, now);
                self.enter(new, depth);
            }
            Resolved::Same { id, again } => {
                self.retries.forget(parent, name, now);
                self.stays(id, origin, again, depth);
            }
            Resolved::Covered => {}
            Resolved::Nothing => {
                self.lose_unlisted(parent, name);
                self.retries.no_directory(parent, name);
            }
            Resolved::Refused(errno) => {
                self.refuse_because(parent, name, Retry::Name { directory: true, origin }, &errno.into(), now);
            }
        }
        self.report_unwatched(now);
    }

    /// What was mounted at a path is not any more, so the directory or file below it is there again.
    pub(in crate::watch) fn unmounted(&mut self, point: &Path, now: Instant) {
        let Some((id, name)) = self.tree.place(point) else { return };
        tracing::info!(
            event = "unmounted_below",
            path = &*point.to_string_lossy(),
            "nothing is mounted at {point:?} any more: what is there is looked at"
        );
        self.resolve(id, &name, Origin::Found, Depth::All, now);
        self.compare(id, &name, Origin::Found, Timestamp::now(), now);
    }

    /// A directory is new in the tree.
    fn enter(&mut self, new: DirectoryId, depth: Depth) {
        if let Some(node) = self.tree.get_mut(new) {
            self.confirmed.entered(node);
        }
        if self.starting {
            self.progress.start.watched(1);
        }
        self.list_next(new, depth);
    }

    /// A directory that is in the tree is at its name. `again`: what is in it may not be known.
    fn stays(&mut self, id: DirectoryId, origin: Origin, again: bool, depth: Depth) {
        if origin == Origin::MovedTo {
            // The event of the name that was taken away came first, and has listed it already.
            if let Some(node) = self.tree.get_mut(id).filter(|node| !node.listed) {
                node.origin = origin;
            }
            // The directory was renamed away and back: readers that came meanwhile have found nothing.
            self.list_again(id, Depth::All);
        } else if again || depth == Depth::All {
            self.list_again(id, depth);
        }
    }

    pub(super) fn list_again(&mut self, id: DirectoryId, depth: Depth) {
        if let Some(node) = self.tree.get_mut(id) {
            node.listed = false;
            self.list_next(id, depth);
        }
    }

    fn list_next(&mut self, id: DirectoryId, depth: Depth) {
        self.rescan.list_later(id, depth == Depth::All);
    }

    /// Forgets what was kept for directories that left their paths. Each comes before those below it.
    fn remove_directories(&mut self, removed: &[Removed], now: Instant) {
        for Removed { id, known, .. } in removed {
            self.pending.remove_directory(*id);
            self.retries.remove_directory(*id);
            self.links.remove_directory(*id);
            if let Some(node) = self.tree.with_draining(*id).filter(|node| !node.last.is_empty()) {
                let lost: Vec<Name> = node.last.keys().cloned().collect();
                self.rescan.compare_later(*id, lost, Origin::Found);
            }
            if !self.hard_links.is_empty() {
                known.iter().for_each(|(name, known)| self.follow_lost_name(*id, name, *known, now));
            }
        }
        self.confirmed.removed(removed, &self.tree);
        if self.rescan.is_whole_outstanding() {
            self.confirmed.keep_departed(removed);
        }
    }

    /// Logs once that there are directories without a watch, and has them rescanned as long as there are any.
    fn report_unwatched(&mut self, now: Instant) {
        let unwatched = self.tree.unwatched().len();
        match (unwatched, self.unwatched_at) {
            (1.., None) => {
                let error = self.tree.unwatched_cause().map(|errno| os_message(&errno));
                let cause = error.as_ref().map_or_else(String::new, |error| format!(" ({error})"));
                tracing::warn!(
                    event = "watch_limit",
                    directories = self.tree.watched(),
                    seconds = self.unwatched_every.as_secs(),
                    error,
                    "no more than {} directories can be watched{cause}: the others are rescanned every {} s instead; raise the sysctl fs.inotify.max_user_watches",
                    self.tree.watched(),
                    self.unwatched_every.as_secs()
                );
                self.unwatched_at = Some(now + self.unwatched_every);
            }
            (0, Some(_)) => {
                let directories = self.tree.watched();
                tracing::info!(
                    event = "all_watched",
                    directories,
                    "none is without a watch any more: {directories} directories are watched"
                );
                self.unwatched_at = None;
            }
            _ => {}
        }
    }

    /// Lists every directory without a watch when that is due, and adds a watch where that is possible now.
    pub(super) fn rescan_unwatched(&mut self, now: Instant) {
        if self.unwatched_at.is_none_or(|at| now < at) {
            return;
        }
        self.unwatched_at = Some(now + self.unwatched_every);
        if self.rescan.running() {
            return; // not faster than it can be done
        }
        let unwatched: Vec<DirectoryId> = self.tree.unwatched().iter().copied().collect();
        for id in unwatched {
            if let Some((parent, name)) = self.tree.parent(id) {
                self.resolve(parent, &name, Origin::Found, Depth::New, now);
                self.list_again(id, Depth::New);
            }
        }
    }

    /// Ends orphaned watches, so many at most. Not while rescans run, which may find their directories elsewhere.
    pub(in crate::watch) fn end_orphaned(&mut self, most: usize) {
        if !self.rescan.running() {
            self.tree.end_orphaned(most);
        }
    }
}
