//! With `--removals`: what each path's last message said, until the path's removal is confirmed.

use std::ops::Bound;
use std::sync::Arc;

use super::{Confirmed, Read};
use crate::files::names::Name;
use crate::job::{Job, Last, Removal};
use crate::ledger::Ledger;
use crate::message::RemovalType;
use crate::watch::pending::NameLost;
use crate::watch::tree::{Node, Tree};

/// A directory's absolute path, and what the last messages of its files said.
pub(in crate::watch) type LostRows = (Vec<u8>, Vec<(Name, Last)>);

impl Confirmed {
    /// What takes a path's last message back, where it had one.
    pub(in crate::watch) fn removal(node: &Node, name: &Name, how: NameLost) -> Option<Box<Removal>> {
        let last = node.last.get(name).filter(|last| last.published)?;
        let event = match how {
            NameLost::Deleted => RemovalType::Delete,
            NameLost::Renamed => RemovalType::MovedFrom,
        };
        Some(Box::new(Removal { event, last: last.content(), id: last.id() }))
    }

    /// A path's removal is confirmed: nothing is known of the path any more.
    pub(in crate::watch) fn confirm_removal(&self, node: &mut Node, name: &Name) {
        node.known.remove(name);
        node.last.remove(name);
        self.ledger.iter().for_each(|ledger| ledger.forget(node.directory.absolute(name)));
    }

    /// The names in a directory below which rows wait for directories to be listed. `above` is its absolute path, which ends
    /// in `/`.
    pub(in crate::watch) fn unlisted_in(&self, above: &[u8]) -> Vec<Name> {
        let mut names: Vec<Name> = Vec::new();
        let mut from = Bound::Excluded(above.to_vec());
        while let Some((path, _)) = self.unlisted.range((from, Bound::Unbounded)).next()
            && let Some(below) = path.strip_prefix(above)
        {
            let name = below.split(|&byte| byte == b'/').next().unwrap_or(below);
            // The next byte after `/` leads past everything below the name.
            from = Bound::Included([above, name, &[b'/' + 1]].concat());
            names.push(name.into());
        }
        names
    }

    /// Takes the rows of files that have had a message, in a directory that could not be entered and is gone, and below it:
    /// what each last message said, by directory. `gone` is its absolute path, which ends in `/`.
    pub(in crate::watch) fn take_unlisted(&mut self, gone: &[u8]) -> Vec<LostRows> {
        let within = self.unlisted.range(gone.to_vec()..).map(|(path, _)| path);
        let within = within.take_while(|path| path.starts_with(gone));
        let paths: Vec<Vec<u8>> = within.filter(|_| self.removals).cloned().collect();
        let mut taken = Vec::new();
        for path in paths {
            let Some(mut rows) = self.unlisted.remove(&path) else { continue };
            let lost = rows.iter().filter_map(|(name, row)| Some((Arc::clone(name), row.last?))).collect();
            rows.retain(|_, row| row.last.is_none());
            if !rows.is_empty() {
                self.unlisted.insert(path.clone(), rows);
            }
            taken.push((path, lost));
        }
        taken
    }

    /// A message was confirmed for a path that has no file any more.
    pub(super) fn confirm_lost(&self, node: &mut Node, job: &Job, read: &Read) {
        if self.removals {
            let last = Last::new(&read.content(), read.id.or_else(|| node.last.get(&job.name)?.id()));
            node.last.insert(Arc::clone(&job.name), last);
        }
    }

    /// As [`Confirmed::confirm_lost`], and the row of what was published says that no version counts.
    pub(in crate::watch) fn confirm_without_row(&self, node: &mut Node, job: &Job, read: &Read) {
        self.confirm_lost(node, job, read);
        if read.id.is_some() {
            self.void(node, &job.name);
        }
    }

    /// A file was read in a directory that is not in the tree. It is known from now on, so that it is not published once more,
    /// and gets its row when its directory is entered.
    pub(in crate::watch) fn confirm_outside(&self, node: &mut Node, job: &Job, read: &Read) {
        self.confirm_without_row(node, job, read);
        node.known.insert(Arc::clone(&job.name), read.known().rowless());
    }

    /// A message was confirmed of which no row is written: the row says what it said, and that no version counts.
    fn void(&self, node: &mut Node, name: &Name) {
        if let (Some(ledger), true) = (&self.ledger, node.last.contains_key(name)) {
            self.invalidate_row(ledger, node, name);
        }
    }

    /// Invalidates a path's row. With `--removals` the row stays as a void one where the path has had a message.
    pub(super) fn invalidate_row(&self, ledger: &Ledger, node: &mut Node, name: &Name) {
        let path = node.directory.absolute(name);
        match node.last.get_mut(name) {
            Some(last) => {
                last.void = true;
                ledger.void(&path, last);
            }
            None => ledger.invalidate(&path),
        }
    }

    /// Deletes the rows of files that may have been published and were not, because the process ends with nothing in flight.
    pub(super) fn forget_announced(tree: &Tree, ledger: &Ledger) {
        for (_, node) in tree.iter() {
            let announced = node.last.iter().filter(|(_, last)| !last.published);
            announced.for_each(|(name, _)| ledger.forget(node.directory.absolute(name)));
        }
    }
}
