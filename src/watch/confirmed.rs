//! The one owner of the rule about what was confirmed last for a path.
//!
//! A file is published unless its version and its content are those that the broker confirmed last for its path. That is
//! kept twice: in memory by name ([`Node::known`]), and with a state directory as one row a path in the [`Ledger`]. A row
//! is written after its confirm, so the ledger lags behind the broker. A lost row costs a repeated message. A row that
//! describes an *earlier* version is worse, if that version can reappear unchanged: the next start would take it for the
//! last one published, and skip it. Two histories show how a version reappears.
//!
//! 1. `one/file` was confirmed in version A. The directory `one` is renamed away, another is renamed to `one`, and its
//!    `one/file` is published in version B. The process is killed before the row of B is on disk. Then the directories are
//!    renamed back. To rename a directory changes no version of a file in it, so the next start finds version A, and a row
//!    that says that A was confirmed last.
//! 2. The symbolic link `link` was confirmed when it led to a file of version A. It is pointed at another file, whose
//!    version B is published as the link's. The process is killed before the row of B is on disk, and the link is pointed
//!    back. The next start finds version A behind it, and a row that says A.
//!
//! In both the last message says B for good, and the path holds A. So for a path whose confirmed version can reappear, the
//! row is deleted on disk *before* another version is published:
//!
//! - [`can_reappear`] says which paths these are: links, rows of an earlier run that are not compared yet, because they may
//!   describe a file of the directory that was there at the time, and versions whose time stamps may hide a change
//!   ([`Version::is_racy`](crate::files::version::Version::is_racy)). A regular file that this process has seen in its
//!   directory is none of them: to rename or to write it changes its ctime, and ctime is part of the version.
//! - A job of such a path carries `invalidate_first`. The reader that finds another version than the confirmed one publishes
//!   nothing and reports a stale row. [`Confirmed::invalidate`] then has the row deleted, and puts [`Known::PUBLISHED`] in
//!   its place in memory, which equals no version. [`Confirmed::holds_back`] keeps the job back until the row is gone.
//! - A directory that is removed from its path takes all rows below that path with it ([`Confirmed::removed`]), and files
//!   that appear there wait for that.
//! - A confirm writes no row where the path has changed since the job was dispatched: what was confirmed may be an earlier
//!   version by now. Its row is deleted instead ([`Confirmed::confirm`]), and written when the file is read for that change.
//! - Every other row that is out of date ([`Confirmed::forget`]) may stay for a while, because its version cannot reappear.
//!
//! Where a file differs from its row by ctime alone (after a chmod), the content decides whether it is published. For a row
//! that lags it must not: in the first history with files instead of directories, A comes back with another ctime and the
//! same content, and B was published last. So the ledger is marked complete at an orderly end only, and without that mark
//! the next start takes the version of each row as a whole. Paths whose rows may lag even so are named with the mark
//! ([`Known::is_exact`], [`Confirmed::end`]).

mod answers;
mod departures;
pub(super) mod ending;
mod removals;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use super::departed::Departed;
use super::pending::{NameLost, Pending};
use super::tree::{Node, Removed, Tree};
use crate::files::directory::Directory;
use crate::files::listing::{FileStat, Found, target_of};
use crate::files::names::{Map, Name, Set};
use crate::files::version::Version;
use crate::hash::Digests;
use crate::job::{Job, Known, Last};
use crate::ledger::{Ledger, MessageId};
use crate::message::Content;

/// Confirms without a row that are kept for an orderly end, at some 300 bytes each. Those of more are published again by the
/// next start.
const WITHHELD_MAX: usize = 4096;

/// The version and the content that a reader found at a path.
pub(super) struct Read {
    pub(super) version: Version,
    pub(super) digests: Digests,
    /// See [`Version::is_racy`].
    pub(super) racy: bool,
    /// The id of the message that was published for it; `None` where it is unchanged since an earlier one.
    pub(super) id: Option<u128>,
}

impl Read {
    fn content(&self) -> Content {
        Content { digests: self.digests, size: self.version.size }
    }

    /// Which message a row of it stands for.
    fn row_id(&self, node: &Node, name: &Name) -> MessageId {
        // Metadata alone has changed since the message of an unchanged file, and the id is of the version that it had then.
        match (self.id, node.last.get(name).and_then(Last::id)) {
            (Some(_), _) => MessageId::OfVersion,
            (None, Some(id)) => MessageId::Other(id),
            (None, None) => MessageId::Unknown,
        }
    }

    pub(super) fn known(&self) -> Known {
        Known::new(&self.version, &self.digests, self.racy)
    }
}

/// How a file that a rescan finds compares with what was confirmed last for its path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Comparison {
    Confirmed,
    /// The version does not decide: the reader compares the content.
    InQuestion,
    /// The version may have been confirmed, and is published again all the same (`--catch-up all`).
    Repeated,
    Other,
}

/// What was confirmed for a path before a start took the file that is there for confirmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Before {
    /// This version, or one with the same content as far as can be seen.
    Same,
    Other,
    Nothing,
}

/// The rows that are not in the tree. See the module for the rule.
#[derive(Default)]
pub(super) struct Confirmed {
    /// `None` without a state directory, and until the start has loaded it.
    ledger: Option<Arc<Ledger>>,
    /// Loaded rows below directories that could not be listed, by the directory's path.
    unlisted: BTreeMap<Vec<u8>, Map<Name, Loaded>>,
    /// What was confirmed and got no row, by path: see [`Confirmed::confirm`].
    withheld: Map<Vec<u8>, Read>,
    departed: Departed,
    /// What each path's last message was is kept until the path's removal is confirmed: `--removals`.
    removals: bool,
}

/// What was loaded for a path.
#[derive(Debug, Clone, Copy)]
pub(super) struct Loaded {
    pub(super) known: Known,
    /// With `--removals` alone.
    pub(super) last: Option<Last>,
}

impl Confirmed {
    pub(super) fn new(removals: bool) -> Self {
        Self { removals, ..Self::default() }
    }

    pub(super) fn keeps_last(&self) -> bool {
        self.removals
    }

    /// Keeps a loaded row of a listed directory, which is to be compared yet.
    pub(super) fn load(node: &mut Node, name: &Name, loaded: Loaded) {
        node.known.insert(Arc::clone(name), loaded.known);
        node.loaded = true;
        node.last.extend(loaded.last.map(|last| (Arc::clone(name), last)));
    }

    /// Keeps a loaded row of a directory that could not be listed, until it can be.
    pub(super) fn load_unlisted(&mut self, directory: &[u8], name: &[u8], loaded: Loaded) {
        self.unlisted.entry(directory.into()).or_default().insert(name.into(), loaded);
    }

    /// Drops all loaded rows, because the ledger could not be read to its end.
    pub(super) fn unload(&mut self, tree: &mut Tree) {
        self.unlisted.clear();
        tree.forget_vanished();
        tree.iter_mut().for_each(|node| {
            node.known.clear();
            node.last.clear();
        });
    }

    /// Takes a file that was there before this process for confirmed. `seen`: its version, and whether that is racy; `None`
    /// for a link that leads nowhere.
    pub(super) fn take_as_confirmed(
        node: &mut Node,
        name: &Name,
        regular: bool,
        seen: Option<(Version, bool)>,
    ) -> Before {
        let before = node.known.get(name).copied();
        // A link's target is not read at the start, so its content decides nothing.
        let is = |known: Known, version: &Version| known.is_of(version) || regular && known.may_be(version);
        match (before, seen) {
            (Some(known), Some((version, _))) if is(known, &version) => return Before::Same,
            (_, Some((version, racy))) => drop(node.known.insert(Arc::clone(name), Known::seen(&version, racy))),
            (_, None) => drop(node.known.remove(name)),
        }
        if before.is_some() { Before::Other } else { Before::Nothing }
    }

    /// From now on each confirm is written to the ledger.
    pub(super) fn write_to(&mut self, ledger: Arc<Ledger>) {
        assert!(self.ledger.is_none(), "the ledger is started once");
        self.ledger = Some(ledger);
    }

    /// A directory has been listed: its rows that waited for that are compared next, and names that it lists no more are
    /// forgotten. Call it before the directory's names are set: see [`Confirmed::forget`]. Returns the names of which a
    /// removal is due.
    pub(super) fn listed(&mut self, node: &mut Node, files: &[Found]) -> Vec<Name> {
        for (name, loaded) in self.unlisted.remove(node.directory.prefix()).into_iter().flatten() {
            Self::load(node, &name, loaded);
        }
        // Usually every known name is listed, and to count is cheaper than to build a set. A name that readdir(3) returns
        // twice, because it was renamed meanwhile, can hide one removed name until the next listing.
        let known = files.iter().filter(|found| node.known.contains_key(&found.name)).count();
        let last = files.iter().filter(|found| node.last.contains_key(&found.name)).count();
        if known == node.known.len() && last == node.last.len() {
            return Vec::new();
        }
        let listed: Set<&Name> = files.iter().map(|found| &found.name).collect();
        let gone: Vec<Name> = node.known.keys().filter(|name| !listed.contains(name)).cloned().collect();
        gone.iter().for_each(|name| self.forget(node, name));
        node.last.keys().filter(|name| !listed.contains(name)).cloned().collect()
    }

    /// Compares a file that a rescan finds with what was confirmed. `everything`: what earlier runs confirmed is published
    /// again, once. The readers compare what a link leads to, unless they have never read it.
    pub(super) fn compare(node: &mut Node, name: &Name, stat: &FileStat, everything: bool) -> Comparison {
        let everything = everything && node.loaded;
        let Some(known) = node.known.get_mut(name) else { return Comparison::Other };
        let through = !stat.regular && !known.is_read();
        let found =
            if through { target_of(node.directory.root(), &node.directory.below(name)) } else { Some(stat.version) };
        match found.filter(|version| known.may_be(version)) {
            Some(_) if everything => {
                node.known.remove(name);
                Comparison::Repeated
            }
            Some(version) if known.is_of(&version) => {
                // A row that lags would describe another version, because a rename changes the file's ctime.
                *known = known.exact(&version);
                if known.is_racy() || known.is_rowless() { Comparison::InQuestion } else { Comparison::Confirmed }
            }
            Some(_) => Comparison::InQuestion,
            None if !stat.regular && !through && !everything => Comparison::InQuestion,
            None => Comparison::Other,
        }
    }

    /// Every loaded row of a directory has been compared.
    pub(super) fn compared(node: &mut Node) {
        node.loaded = false;
    }

    /// Whether another version of this path may be published only once its row is gone.
    pub(super) fn invalidates_first(&self, node: &Node, name: &Name) -> bool {
        self.ledger.is_some() && can_reappear(node, name)
    }

    /// Whether a path's job has to wait: a row that has to go first may still be on disk, or so many rows have to go that the
    /// readers are to find no further ones. `removal`: the path may have no file any more, and its removal is due.
    pub(super) fn holds_back(&self, node: &mut Node, name: &Name, removal: bool) -> bool {
        let Some(ledger) = &self.ledger else { return false };
        if ledger.still_holds(node.directory.prefix(), name) || can_reappear(node, name) && ledger.is_pressed() {
            return true;
        }
        let stale = |last: &Last| !last.void && (removal || !node.known.contains_key(name));
        if !self.removals || node.last.get(name).is_some_and(|last| !stale(last)) {
            return false;
        }
        if !ledger.is_pressed() {
            let last = node.last.get_or_insert_with(name, Last::announced);
            last.void = true;
            ledger.void(&node.directory.absolute(name), last);
            // The file may be there all the same, and be the known one: then it gets its row back.
            if let Some(known) = node.known.get_mut(name) {
                *known = known.rowless();
            }
        }
        true
    }

    /// Whether so many rows have to go first that rescans are to find no further ones.
    pub(super) fn is_pressed(&self) -> bool {
        self.ledger.as_ref().is_some_and(|ledger| ledger.is_pressed())
    }

    /// Whether a job that found its file unchanged leaves memory and row as they are. The row of a job with
    /// `invalidate_first` may have been deleted meanwhile, [`Known::rowless`] has none, and where the content alone is the
    /// same, the version is new.
    pub(super) fn is_kept(job: &Job, read: &Read) -> bool {
        !job.invalidate_first && job.known == Some(read.known())
    }

    /// Remembers what was confirmed for a job's path.
    pub(super) fn confirm(&mut self, node: &mut Node, job: &Job, read: Read, pending: &Pending) {
        debug_assert_eq!(node.directory.prefix(), job.directory.prefix(), "a directory id keeps its path");
        let Job { name, invalidate_first, .. } = job;
        let before = node.known.insert(Arc::clone(name), read.known());
        self.confirm_lost(node, job, &read);
        let Some(ledger) = &self.ledger else { return };
        let path = node.directory.absolute(name);
        if *invalidate_first && pending.holds(job.directory.id(), name) {
            // The path has changed since, and what was confirmed can reappear after another version.
            let kept = before.filter(|known| job.known == before && known.is(&read.version, &read.digests));
            if let Some(known) = kept.filter(|known| !known.is_rowless()) {
                // The row says so already. The event that waits has left it, or comes to it.
                node.known.insert(Arc::clone(name), known);
                return;
            }
            node.known.insert(Arc::clone(name), read.known().rowless());
            self.invalidate_row(ledger, node, name);
            if self.withheld.len() >= WITHHELD_MAX {
                self.withheld.clear();
            }
            self.withheld.insert(path, read);
        } else {
            self.withheld.remove(&path);
            let id = read.row_id(node, name);
            ledger.confirm(path, read.version, read.digests, read.racy, id);
        }
    }

    /// Forgets a name that is gone, or another file's from now on. Call it before the directory's names change, because
    /// [`can_reappear`] asks them whether a regular file had the name.
    pub(super) fn forget(&self, node: &mut Node, name: &Name) {
        let reappears = can_reappear(node, name);
        if node.known.remove(name).is_none() || node.last.contains_key(name) {
            // The row stays until the removal is confirmed. It is void before anything else is published here, because nothing
            // is known of the path: see `holds_back`.
            return;
        }
        let Some(ledger) = &self.ledger else { return };
        let path = node.directory.absolute(name);
        if reappears { ledger.invalidate(&path) } else { ledger.forget(path) }
    }

    /// Forgets a name that has come to another file, unless the file's version is the confirmed one: a rescan can have
    /// published it before its event was read.
    pub(super) fn forget_other(&self, node: &mut Node, name: &Name, version: &Version) {
        if node.known.get(name).is_some_and(|known| !known.may_be(version)) {
            self.forget(node, name);
        }
    }

    /// Has a path's row deleted before another version is published, where the confirmed version can reappear.
    pub(super) fn invalidate(&self, node: &mut Node, name: &Name) {
        let Some(ledger) = &self.ledger else { return };
        if !can_reappear(node, name) {
            return;
        }
        if let Some(known) = node.known.get_mut(name).filter(|known| **known != Known::PUBLISHED) {
            *known = Known::PUBLISHED;
            self.invalidate_row(ledger, node, name);
        }
    }

    /// Has all rows deleted below directories that were removed from their paths, because they can come back. Each directory
    /// comes before those below it.
    pub(super) fn removed(&self, removed: &[Removed], tree: &Tree) {
        let Some(ledger) = &self.ledger else { return };
        if self.removals {
            // Rows of files that had a message are needed for their removals, and each is void before another is published.
            for Removed { id, directory, known, .. } in removed {
                let last = tree.with_draining(*id).map(|node| &node.last);
                let rows = known.keys().filter(|name| last.is_none_or(|last| !last.contains_key(name)));
                rows.for_each(|name| ledger.invalidate(&directory.absolute(name)));
            }
            return;
        }
        let mut tops: Vec<(&Directory, bool)> = Vec::new();
        for Removed { directory, known, .. } in removed {
            match tops.last_mut() {
                Some((top, any)) if directory.prefix().starts_with(top.prefix()) => *any |= !known.is_empty(),
                _ => tops.push((directory, !known.is_empty())),
            }
        }
        tops.iter().filter(|(_, any)| *any).for_each(|(top, _)| ledger.forget_below(top.prefix()));
    }

    #[cfg(test)]
    pub(super) fn ledger(&self) -> Option<Arc<Ledger>> {
        self.ledger.clone()
    }
}

/// Whether the version that is known for a name can be replaced and reappear unchanged: it is what a link leads to, a loaded
/// row that is not compared yet, or of this second where time stamps are of whole seconds. Any other version of a regular
/// file, seen in this directory, shows each change by its ctime.
fn can_reappear(node: &Node, name: &Name) -> bool {
    node.loaded || !node.directory.contains(name) || node.known.get(name).is_some_and(|known| known.is_racy())
}

/// Whether a file of this version is the one that is known for a name, although an event says that the name was taken away:
/// the event came late, and is about an earlier file. Where that was deleted, ctime may differ, because the content
/// decides then. Where it was renamed, the file itself may have come back, which is worth a message.
pub(super) fn is_still(known: Known, how: NameLost, version: &Version) -> bool {
    match how {
        NameLost::Deleted => known.may_be(version),
        NameLost::Renamed => known.is_of(version),
    }
}
