//! Rescans: directories are listed, and each file is compared with what was confirmed for its path.

use std::mem;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::{BACKLOG_MAX, Depth, Noticed, State};
use crate::files::directory::DirectoryId;
use crate::files::errno::Call;
use crate::files::listing::{FileStat, list};
use crate::files::names::{Name, Set};
use crate::files::version::{Timestamp, Version};
use crate::watch::confirmed::{Comparison, Confirmed};
use crate::watch::pending::{Change, NameLost};
use crate::watch::rescan::{Finished, Step};
use crate::watch::tree::{Origin, nothing_to_enter};

/// Files that a rescan compares before the rest of the loop has its turn.
const FILES_IN_A_ROW: usize = 1024;

/// How many of them a directory counts for that is listed.
const FILES_FOR_A_LISTING: usize = 16;

impl State {
    /// The timer asks for a rescan.
    pub(in crate::watch) fn rescan_on_timer(&mut self, now: Instant) {
        self.progress.metrics.rescans.timer.inc();
        self.rescan.ask_now(now);
    }

    /// A signal asks for a rescan.
    pub(in crate::watch) fn rescan_on_signal(&mut self, now: Instant) {
        self.progress.metrics.rescans.signal.inc();
        self.rescan.ask_now(now);
    }

    /// Whether a rescan can go on at once.
    pub(in crate::watch) fn may_rescan(&self, now: Instant) -> bool {
        let room = self.pending.len() < self.pending_max / 2 && self.pending.backlog() < BACKLOG_MAX;
        self.rescan.has_work(now) && room && !self.confirmed.is_pressed()
    }

    /// Begins the rescan that is needed, or goes on with those that run.
    pub(super) fn rescan(&mut self, now: Instant) {
        if !self.may_rescan(now) {
            return;
        }
        if self.rescan.is_due(now) {
            self.rescan.begin(self.tree.roots(), now);
            self.rescan_lost();
        }
        let seen_at = Timestamp::now();
        let mut files = FILES_IN_A_ROW;
        while files > 0 {
            match self.rescan.next_step() {
                None => break,
                Some(Step::Compare { id, name, origin }) => {
                    self.compare(id, &name, origin, seen_at, now);
                    files -= 1;
                }
                Some(Step::Compared(id)) => self.tree.get_mut(id).into_iter().for_each(Confirmed::compared),
                // It may have been listed before its turn, for the sake of a file in it.
                Some(Step::List { id, deep }) if deep || self.tree.get(id).is_some_and(|node| !node.listed) => {
                    self.list_or_refuse(id, Depth::of(deep), now);
                    files = files.saturating_sub(FILES_FOR_A_LISTING);
                }
                Some(Step::List { .. }) => {}
            }
        }
        if let Some(finished) = self.rescan.finish() {
            report(&finished);
            if !self.rescan.is_whole_outstanding() && self.confirmed.forget_departed() {
                self.rescan_lost();
            }
        }
    }

    /// Lists a directory, or remembers that it cannot be listed.
    pub(super) fn list_or_refuse(&mut self, id: DirectoryId, depth: Depth, now: Instant) {
        if let Err(errno) = self.list(id, depth, now) {
            self.refuse_listing(id, errno, now);
        }
    }

    /// Lists a directory: its names are exactly the listed ones from now on, and every file is to be compared. Sub-directories
    /// are watched, and listed next, to this depth.
    ///
    /// No event is read in between, so a name that is missing here is gone, or its event is still queued.
    ///
    /// # Errors
    /// Why it cannot be listed. Nothing that is known of it is forgotten then.
    pub(super) fn list(&mut self, id: DirectoryId, depth: Depth, now: Instant) -> Result<(), Errno> {
        let Some(node) = self.tree.get(id) else { return Ok(()) };
        let listing = match (list(node.directory.root(), &node.directory.below(b"")), self.tree.parent(id)) {
            (Ok(listing), _) => listing,
            (Err(errno), Some((parent, name))) if nothing_to_enter(Call::Open, errno) => {
                self.resolve(parent, &name, Origin::Found, Depth::New, now);
                return Ok(());
            }
            (Err(errno), _) => return Err(errno),
        };
        self.retries.forget(id, &Name::from(&b""[..]), now);
        if self.starting {
            self.count_names(listing.files.len());
        }
        let Some(node) = self.tree.get_mut(id) else { return Ok(()) };
        node.listed = true;
        let origin = mem::replace(&mut node.origin, Origin::Found);
        let lost = self.confirmed.listed(node, &listing.files);
        node.directory.set_names(listing.neighbors());
        let names = listing.files.into_iter().map(|found| found.name).chain(lost).collect();
        self.rescan.compare_later(id, names, origin);
        self.list_children(id, &listing.directories, origin, depth, now);
        self.lose_unlisted_but(id, &listing.directories);
        Ok(())
    }

    fn list_children(&mut self, id: DirectoryId, listed: &[Name], origin: Origin, depth: Depth, now: Instant) {
        if !self.recursive {
            return;
        }
        let known: Set<Name> = self.tree.children(id).into_iter().collect();
        let all = depth == Depth::All || self.tree.unwatched().contains(&id);
        for name in listed.iter().filter(|name| all || !known.contains(*name)) {
            self.resolve(id, name, origin, depth, now);
        }
        if known.is_empty() {
            return;
        }
        let listed: Set<&Name> = listed.iter().collect();
        for name in known.iter().filter(|name| !listed.contains(name)) {
            self.resolve(id, name, Origin::Found, depth, now);
        }
    }

    /// Compares a file with what was confirmed for its path, and puts it into the pending set where it has to be read.
    pub(super) fn compare(&mut self, id: DirectoryId, name: &Name, origin: Origin, seen_at: Timestamp, now: Instant) {
        let Some(node) = self.tree.get(id) else { return self.compare_lost(id, name, seen_at, now) };
        if !self.filter.admits(&node.directory.below(name)) {
            return;
        }
        let stat = match self.look(id, name) {
            Ok(Some(stat)) => stat,
            Ok(None) => {
                // The name was taken away; its event has been read, or is still queued.
                self.forget(id, name);
                self.record(id, name, None);
                self.retries.no_file(id, name);
                return self.lose_all(id, name, NameLost::Deleted, Noticed::by_rescan(seen_at, now));
            }
            Err(errno) => return self.refuse(id, name, origin, errno, now),
        };
        self.rescan.count_compared();
        if !stat.regular {
            self.record_link(id, name);
        }
        let Some(node) = self.tree.get_mut(id) else { return };
        let comparison = Confirmed::compare(node, name, &stat, self.rescan.publishes_known());
        match comparison {
            Comparison::Confirmed => {
                self.retries.forget(id, name, now);
                // A job in flight may have read another file, whose directory was at this path for a moment.
                self.pending.read_again(id, name, false, seen_at);
                return;
            }
            Comparison::InQuestion | Comparison::Repeated | Comparison::Other => {}
        }
        self.rescan.count_found(comparison == Comparison::InQuestion);
        self.found(id, name, &stat, origin, seen_at, now);
        if stat.regular && comparison == Comparison::Other {
            self.invalidate(id, name);
        }
    }

    /// A rescan found a file that has to be read.
    fn found(
        &mut self,
        id: DirectoryId,
        name: &Name,
        stat: &FileStat,
        origin: Origin,
        seen_at: Timestamp,
        now: Instant,
    ) {
        if self.pending.read_again(id, name, origin == Origin::MovedTo, seen_at) {
            // The links that lead through it may have been read before it came to this path.
            return self.follow(id, name, Noticed::by_rescan(seen_at, now));
        }
        let Some(node) = self.tree.get(id) else { return };
        let FileStat { version, owner, .. } = stat;
        let leased = node.directory.root().grants_lease(*owner);
        let change = match origin {
            Origin::MovedTo => Change::MovedTo,
            // The file is complete, or the lease will show that it is not. The lease says nothing of a file that was made just
            // now, because the kernel makes it before it counts its writer.
            Origin::Found if leased && version.size > 0 || rests(version, seen_at, self.settle) => {
                let quiet = self.quiet.is_zero() || rests(version, seen_at, self.quiet);
                if quiet { Change::Complete } else { Change::Closed }
            }
            Origin::Found => Change::Changed { version: version.fingerprint() },
        };
        self.put(id, name, change, Noticed::by_rescan(seen_at, now));
    }
}

/// Logs the result of a rescan of the whole tree.
fn report(finished: &Finished) {
    let &Finished { first, found, in_question, compared } = finished;
    if first {
        let content_decides = match in_question {
            0 => String::new(),
            more => format!(", and {more} more if their content is another"),
        };
        let new = found - in_question;
        tracing::info!(
            event = "rescan_finished",
            files = compared,
            publish = new,
            "rescan finished: {new} of {compared} files are to be published{content_decides}"
        );
    } else if found == 0 {
        tracing::debug!(event = "rescan_finished", files = compared, publish = 0, "rescan finished: nothing new");
    } else {
        tracing::info!(
            event = "rescan_finished",
            files = compared,
            publish = found,
            "rescan finished: {found} files to be read"
        );
    }
}

/// Whether a file was last changed longer ago than this, by its ctime, which cannot be set.
fn rests(version: &Version, now: Timestamp, pause: Duration) -> bool {
    let pause = i64::try_from(pause.as_secs() + 1).unwrap_or(i64::MAX);
    now.seconds.saturating_sub(version.changed.seconds) > pause
}
