//! Jobs out of the pending set, and their reports back into what is known.

use std::sync::Arc;
use std::time::Instant;

use super::{BATCH_MAX, Depth, Noticed, State};
use crate::files::directory::DirectoryId;
use crate::files::listing::{FileStat, target_of};
use crate::files::names::Name;
use crate::files::unread::{Unread, Why};
use crate::files::version::Timestamp;
use crate::inquiry::Held;
use crate::job::{Job, Known, Outcome, Report};
use crate::message::EventType;
use crate::watch::confirmed::{Confirmed, Read, is_still};
use crate::watch::pending::{Due, NameLost};
use crate::watch::retry::Retry;
use crate::watch::tree::{Node, Origin};

impl State {
    /// A batch of at most [`BATCH_MAX`] jobs, and of at most as many of each volume as it has room for.
    pub(in crate::watch) fn batch(&mut self, mut rooms: Vec<usize>, now: Instant) -> Vec<Job> {
        let mut batch = Vec::new();
        let mut taken = 0;
        rooms.iter().enumerate().for_each(|(volume, room)| self.pending.unpark(volume, *room));
        while taken < BATCH_MAX && rooms.iter().any(|room| *room > 0) {
            taken += 1; // those that have to wait are counted too, so that events have their turn
            match self.pending.next_due(now, |volume| rooms.get(volume).is_some_and(|room| *room > 0)) {
                None => break,
                Some(Due::Settled { id, name, version }) => self.settled(id, &name, version, now),
                Some(due @ Due::Ready { id, .. }) => {
                    let Some(job) = self.job(due, now) else { continue };
                    if let Some(room) = rooms.get_mut(id.volume()) {
                        *room -= 1;
                    }
                    batch.push(job);
                    self.tree.dispatched(id);
                }
            }
        }
        batch
    }

    /// The job of a path that is due, unless it has to wait.
    fn job(&mut self, due: Due, now: Instant) -> Option<Job> {
        let Due::Ready { id, name, event, seen_at, lost, former } = due else { return None };
        if self.tree.get(id).is_some_and(|node| !node.listed) && !self.retries.is_shut(id) {
            self.list_or_refuse(id, Depth::New, now); // its neighbors are to be complete
        }
        // A removal that was confirmed meanwhile is not due any more.
        let is_due = |node: &Node| lost.map_or(!node.is_draining(), |_| node.last.contains_key(&name));
        let Some(node) = self.tree.with_draining_mut(id).filter(|node| is_due(node)) else {
            self.pending.failed(id, &name, now);
            return None;
        };
        if self.confirmed.holds_back(node, &name, lost.is_some()) {
            // For a moment only, and nothing wakes this loop at its end.
            self.pending.busy(id, &name, Held::Row, now);
            return None;
        }
        Some(Job {
            directory: Arc::clone(&node.directory),
            event,
            seen_at,
            known: node.known.get(&name).copied(),
            within: node.inode,
            invalidate_first: self.confirmed.invalidates_first(node, &name),
            moved_from: former,
            removal: lost.and_then(|how| Confirmed::removal(node, &name, how)),
            large: false,
            name,
        })
    }

    /// The settle time of a file that nobody has closed is over. `before`: a fingerprint of its version when that began.
    fn settled(&mut self, id: DirectoryId, name: &Name, before: u64, now: Instant) {
        let stat = match self.look(id, name) {
            Ok(stat) => stat,
            Err(errno) => {
                self.pending.settled(id, name, before, None, now);
                return self.refuse(id, name, Origin::Found, errno, now);
            }
        };
        let version = stat.map(|stat| stat.version.fingerprint());
        self.pending.settled(id, name, before, version, now);
        if version != Some(before) {
            return;
        }
        self.follow(id, name, Noticed::by_event(Timestamp::now(), now));
        // Where no lease shows that somebody has the file open for writing, the writer's close may raise no event by this
        // name (the name was linked to an unnamed file, for example): the file is looked at again.
        if let (Some(node), Some(stat)) = (self.tree.get(id), stat)
            && stat.regular
            && !node.directory.root().grants_lease(stat.owner)
        {
            self.retries.recheck(id, name, before, self.settle, now);
        }
    }

    /// Takes a job's report in.
    pub(in crate::watch) fn complete(&mut self, report: Report, now: Instant, time_of_day: Timestamp) {
        self.count_report(&report, now, time_of_day);
        let Report { job, outcome } = report;
        let (id, name) = (job.directory.id(), &job.name);
        match outcome {
            Outcome::Confirmed { id: message_id, version, racy, linked, digests } => {
                self.published(&job, Read { version, digests, racy, id: Some(message_id) }, linked, now);
            }
            Outcome::Unchanged { version, racy, digests } => {
                self.hard_links.seen(version.inode, id, name);
                let read = Read { version, digests, racy, id: None };
                if Confirmed::is_kept(&job, &read) {
                    self.pending.done(id, name, now);
                } else {
                    self.confirm(&job, read, now);
                }
            }
            Outcome::Unread(Unread::Busy(Why::WriterPresent)) => self.pending.busy(id, name, Held::Writer, now),
            Outcome::Unread(Unread::Busy(_)) => self.pending.busy(id, name, Held::Changing, now),
            Outcome::Unread(Unread::Wanting(_)) => self.pending.busy(id, name, Held::Wanting, now),
            Outcome::Unread(Unread::StaleRow) => {
                self.invalidate(id, name);
                self.pending.busy(id, name, Held::Row, now);
            }
            Outcome::Removed => self.confirm_removal(id, name, now),
            // Nothing else brings back a removal of a directory that has left the tree.
            Outcome::Unread(Unread::Failed(_)) if job.removal.is_some() && self.tree.get(id).is_none() => {
                self.pending.busy(id, name, Held::Changing, now);
            }
            Outcome::Unread(_) => drop(self.pending.failed(id, name, now)),
        }
        if let Outcome::Unread(unread) = outcome {
            self.end_unread(&job, &unread, now);
        }
        self.tree.completed(id);
    }

    /// A version was published and confirmed. `linked`: its file has further names.
    fn published(&mut self, job: &Job, read: Read, linked: bool, now: Instant) {
        let (id, name, version, racy) = (job.directory.id(), &job.name, read.version, read.racy);
        if linked {
            self.follow_names(id, name, &version, racy, now);
        } else {
            self.hard_links.seen(version.inode, id, name);
        }
        self.confirm(job, read, now);
        if linked {
            self.look_at_linked(id, name, &version, now);
        }
    }

    /// Counts and logs a report, and keeps what could not be read to be tried again.
    fn count_report(&mut self, report: &Report, now: Instant, time_of_day: Timestamp) {
        let Job { directory, name, event, .. } = &report.job;
        let id = directory.id();
        if let Outcome::Unread(Unread::Failed(cause)) = &report.outcome {
            let origin = if *event == EventType::MovedTo { Origin::MovedTo } else { Origin::Found };
            return self.refuse_because(id, name, Retry::Name { directory: false, origin }, cause, now);
        }
        self.progress.metrics.count(report, time_of_day);
        self.recent.note(report, time_of_day);
        self.lines.log(report, now);
        if !matches!(report.outcome, Outcome::Unread(Unread::Busy(_) | Unread::Wanting(_) | Unread::StaleRow)) {
            self.retries.completed(id, name, now);
        }
    }

    /// A job's version is the one that was confirmed last for its path, unless the path is gone.
    fn confirm(&mut self, job: &Job, read: Read, now: Instant) {
        let (id, name) = (job.directory.id(), &job.name);
        // A file that was taken away and put back unchanged before either event was read is still there.
        let taken = self.pending.done(id, name, now);
        let gone = taken.is_some_and(|how| self.is_gone(id, name, how, read.known()));
        match self.tree.get_mut(id) {
            Some(node) if !gone => return self.confirmed.confirm(node, job, read, &self.pending),
            // What is known was published before, and the file that is there by now may look the same.
            Some(node) if job.known != Some(read.known()) => self.confirmed.forget(node, name),
            Some(_) => {}
            None => self.confirmed.ended_elsewhere(job),
        }
        self.confirm_lost(job, &read, taken.unwrap_or(NameLost::Renamed), now);
    }

    pub(super) fn invalidate(&mut self, id: DirectoryId, name: &Name) {
        if let Some(node) = self.tree.get_mut(id) {
            self.confirmed.invalidate(node, name);
        }
    }

    /// Whether the file that was read is no longer at its name, which was taken away meanwhile. Where that cannot be looked
    /// at now, the file may still be there.
    fn is_gone(&self, id: DirectoryId, name: &Name, how: NameLost, read: Known) -> bool {
        let Some(node) = self.tree.get(id) else { return true };
        let version = |stat: FileStat| match stat.regular {
            true => Some(stat.version),
            false => target_of(node.directory.root(), &node.directory.below(name)),
        };
        let found = self.look(id, name);
        found.is_ok_and(|stat| !stat.and_then(version).is_some_and(|version| is_still(read, how, &version)))
    }
}
