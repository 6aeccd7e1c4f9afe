//! Events into the pending set.

use std::time::Instant;

use super::{Depth, Noticed, Source, State, directory_gone};
use crate::error::Error;
use crate::files::directory::DirectoryId;
use crate::files::listing::FileStat;
use crate::files::names::Name;
use crate::files::version::Timestamp;
use crate::job::Known;
use crate::watch::confirmed::is_still;
use crate::watch::inotify::{Event, WatchId};
use crate::watch::pending::{Change, Full, NameLost};
use crate::watch::tree::Origin;

impl State {
    /// Takes one event in.
    ///
    /// # Errors
    /// [`Error::DirectoryGone`] when a data directory itself was removed or renamed.
    pub(in crate::watch) fn take(
        &mut self,
        watch_id: WatchId,
        event: Event<'_>,
        seen_at: Timestamp,
        now: Instant,
    ) -> Result<(), Error> {
        if event == Event::Overflow {
            self.overflow(now);
            return Ok(());
        }
        let Some(id) = self.tree.of(watch_id) else {
            self.target_changed(watch_id, event, Noticed::by_event(seen_at, now));
            return Ok(());
        };
        self.count(event);
        match event {
            Event::Created(name) => self.appeared(id, &name.into(), Origin::Found, seen_at, now),
            Event::MovedTo(name, cookie) => self.moved_to(id, &name.into(), cookie, seen_at, now),
            Event::Closed(name) => self.closed(id, &name.into(), seen_at, now),
            Event::Deleted(name) => self.removed(id, &name.into(), NameLost::Deleted, seen_at, now),
            Event::MovedFrom(name, cookie) => self.moved_from(id, &name.into(), cookie, seen_at, now),
            Event::DirectoryCreated(name) | Event::DirectoryRemoved(name) => {
                self.directory_changed(id, &name.into(), Origin::Found, seen_at, now);
            }
            Event::DirectoryMovedTo(name) => self.directory_changed(id, &name.into(), Origin::MovedTo, seen_at, now),
            Event::Attributes(name) | Event::DirectoryAttributes(name) => self.hurry(id, &name.into(), now),
            Event::OwnAttributes => self.hurry_below(id, now),
            Event::Renamed => return self.left_its_path(id, "it was renamed", now),
            Event::Gone(cause) => return self.left_its_path(id, cause, now),
            Event::Overflow => {}
        }
        Ok(())
    }

    /// Another directory is at a name, or none.
    fn directory_changed(&mut self, id: DirectoryId, name: &Name, origin: Origin, seen_at: Timestamp, now: Instant) {
        self.resolve(id, name, origin, Depth::New, now);
        if let Some(path) = self.tree.get(id).map(|node| node.directory.absolute(name)) {
            self.follow_targets_from(&path, Noticed::by_event(seen_at, now));
        }
    }

    fn count(&self, event: Event<'_>) {
        let events = &self.progress.metrics.events;
        match event {
            Event::Created(_) => events.created.inc(),
            Event::MovedTo(..) => events.moved_to.inc(),
            Event::Closed(_) => events.closed.inc(),
            Event::Deleted(_) | Event::MovedFrom(..) => events.removed.inc(),
            _ => {}
        }
    }

    fn overflow(&mut self, now: Instant) {
        self.progress.metrics.overflows_kernel.inc();
        self.ask_for_rescan(now, || {
            tracing::warn!(
                event = "queue_overflow",
                "IN_Q_OVERFLOW: the kernel's event queue was full and events were lost; a rescan follows; if this repeats, raise the sysctl fs.inotify.max_queued_events"
            );
        });
    }

    /// Counts and logs that a rescan is needed. One that is needed already makes up for this loss too.
    pub(super) fn ask_for_rescan(&mut self, now: Instant, log: impl FnOnce()) {
        if !self.rescan.is_needed() {
            self.progress.metrics.rescans.overflow.inc();
            log();
        }
        self.rescan.ask(now);
    }

    /// A directory was removed from its path, or renamed.
    fn left_its_path(&mut self, id: DirectoryId, cause: &'static str, now: Instant) -> Result<(), Error> {
        if let Some((parent, name)) = self.tree.parent(id) {
            self.resolve(parent, &name, Origin::Found, Depth::New, now);
            return Ok(());
        }
        self.tree.root(id).map_or(Ok(()), |root| Err(directory_gone(root, cause)))
    }

    /// A file was renamed to another name, which the next event with this number says, if that is in the tree.
    fn moved_from(&mut self, id: DirectoryId, name: &Name, cookie: u32, seen_at: Timestamp, now: Instant) {
        if let Some(node) = self.tree.get(id) {
            self.renames.begin(cookie, node.directory.absolute(name));
        }
        self.removed(id, name, NameLost::Renamed, seen_at, now);
    }

    /// A file was renamed to this name.
    fn moved_to(&mut self, id: DirectoryId, name: &Name, cookie: u32, seen_at: Timestamp, now: Instant) {
        let former = self.renames.end(cookie);
        self.appeared(id, name, Origin::MovedTo, seen_at, now);
        self.pending.renamed(id, name, former);
    }

    /// A name is new, or another file's.
    fn appeared(&mut self, id: DirectoryId, name: &Name, origin: Origin, seen_at: Timestamp, now: Instant) {
        let stat = match self.look(id, name) {
            Ok(stat) => stat,
            // What is known of the name stays until it can be compared.
            Err(errno) => return self.refuse(id, name, origin, errno, now),
        };
        if origin == Origin::MovedTo {
            self.lost_unseen(id, name, now);
        }
        let Some(FileStat { version, regular, .. }) = stat else {
            self.unseen.made(id, name, now);
            self.forget(id, name);
            return self.record(id, name, None);
        };
        let lost = self.known(id, name).filter(|known| known.inode() != version.inode);
        if let Some(node) = self.tree.get_mut(id) {
            self.confirmed.forget_other(node, name, &version);
        }
        if let Some(known) = lost {
            self.follow_lost_name(id, name, known, now);
        }
        self.record(id, name, stat.as_ref());
        let change = match origin {
            Origin::MovedTo => Change::MovedTo,
            Origin::Found if regular => Change::Created { version: version.fingerprint() },
            // Nothing closes a link: it is as complete as it will be.
            Origin::Found => Change::Closed,
        };
        self.changed(id, name, change, seen_at, now);
    }

    /// A name is deleted, or another file's from now on.
    fn lost_unseen(&mut self, id: DirectoryId, name: &Name, now: Instant) {
        self.unseen.lost(id, name, self.pending.is_settling(id, name), now);
    }

    fn closed(&mut self, id: DirectoryId, name: &Name, seen_at: Timestamp, now: Instant) {
        self.retries.closed(id, name);
        if self.unseen.closed(id, name, now) && !self.rescan.is_needed() {
            self.progress.metrics.rescans.unseen_writer.inc();
            self.rescan.ask(now);
        }
        let listed = self.tree.get(id).is_some_and(|node| node.directory.contains(name));
        if listed || self.exists(id, name, now) {
            self.changed(id, name, Change::Closed, seen_at, now);
        }
    }

    /// Whether there is a file at a name, which is recorded.
    fn exists(&mut self, id: DirectoryId, name: &Name, now: Instant) -> bool {
        match self.look(id, name) {
            Ok(stat) => {
                self.record(id, name, stat.as_ref());
                stat.is_some()
            }
            Err(errno) => {
                self.refuse(id, name, Origin::Found, errno, now);
                false
            }
        }
    }

    /// A name was taken away from a file. By now there may be another at it, or the same again.
    fn removed(&mut self, id: DirectoryId, name: &Name, how: NameLost, seen_at: Timestamp, now: Instant) {
        let stat = match self.look(id, name) {
            Ok(stat) => stat,
            Err(errno) => {
                // What is known of the name stays until it can be compared.
                self.pending.gone(id, name, how, true);
                return self.refuse(id, name, Origin::Found, errno, now);
            }
        };
        if how == NameLost::Deleted {
            self.lost_unseen(id, name, now);
        }
        let known = self.known(id, name);
        let is_known = |stat: FileStat| stat.regular && known.is_some_and(|known| is_still(known, how, &stat.version));
        if !stat.is_some_and(is_known) {
            self.forget(id, name);
            if let Some(known) = known {
                self.follow_lost_name(id, name, known, now);
            }
        }
        self.record(id, name, stat.as_ref());
        self.pending.gone(id, name, how, stat.is_some());
        self.retries.gone(id, name);
        if stat.is_none() {
            self.lose_all(id, name, how, Noticed::by_event(seen_at, now));
        }
    }

    fn known(&self, id: DirectoryId, name: &Name) -> Option<Known> {
        self.tree.get(id).and_then(|node| node.known.get(name)).copied()
    }

    pub(super) fn forget(&mut self, id: DirectoryId, name: &Name) {
        if let Some(node) = self.tree.get_mut(id) {
            self.confirmed.forget(node, name);
        }
    }

    /// Records what is at a name: regular files are in the directory's names, whatever was there before, and links are
    /// followed.
    pub(super) fn record(&mut self, id: DirectoryId, name: &Name, stat: Option<&FileStat>) {
        let Some(node) = self.tree.get(id) else { return };
        if stat.is_some_and(|stat| stat.regular) {
            node.directory.update(|names| names.insert(name));
        } else if node.directory.contains(name) {
            node.directory.update(|names| names.remove(name));
        }
        match stat {
            Some(FileStat { regular: false, .. }) => self.record_link(id, name),
            _ => self.remove_link(id, name),
        }
    }

    /// Something happened to a file, which the filter may leave out.
    fn changed(&mut self, id: DirectoryId, name: &Name, change: Change, seen_at: Timestamp, now: Instant) {
        let Some(node) = self.tree.get(id) else { return };
        let noticed = Noticed::by_event(seen_at, now);
        if self.filter.admits(&node.directory.below(name)) {
            return self.put(id, name, change, noticed);
        }
        tracing::debug!(
            event = "filtered",
            path = &*String::from_utf8_lossy(&node.directory.absolute(name)),
            "left out by the filter"
        );
        self.follow(id, name, noticed);
        // The file is not read by this name, and may be read by another that it has.
        if let Ok(Some(stat)) = self.look(id, name)
            && stat.regular
            && stat.linked
        {
            self.follow_names(id, name, &stat.version, stat.version.is_racy(seen_at, false), now);
        }
    }

    /// Puts a file that the filter admits into the pending set, and the links that lead through it.
    pub(super) fn put(&mut self, id: DirectoryId, name: &Name, change: Change, noticed: Noticed) {
        self.put_one(id, name, change, noticed);
        // A file that may still be written is followed once it has settled.
        if !matches!(change, Change::Created { .. } | Change::Changed { .. }) {
            self.follow(id, name, noticed);
        }
    }

    pub(super) fn put_one(&mut self, id: DirectoryId, name: &Name, change: Change, noticed: Noticed) {
        let Noticed { source, seen_at, now } = noticed;
        let published = self.tree.get(id).is_some_and(|node| node.known.contains_key(name));
        let waiting = self.pending.len();
        let put = match source {
            Source::Event => self.pending.event(id, name, change, published, seen_at, now),
            Source::Rescan => self.pending.found(id, name, change, published, seen_at, now),
        };
        if put == Err(Full) {
            self.progress.metrics.overflows_pending.inc();
            self.pending.drop_waiting();
            let most = self.pending_max;
            self.ask_for_rescan(now, || {
                tracing::warn!(
                    event = "pending_dropped",
                    files = most,
                    "more than {most} files wait: the list is dropped, and a rescan follows when there is room"
                );
            });
        } else if self.pending.len() == waiting {
            self.progress.metrics.events_coalesced.inc();
        }
    }
}
