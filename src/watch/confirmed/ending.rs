//! The orderly end: the rows that were withheld are written, and the ledger is marked complete.

use super::Confirmed;
use crate::files::names::Name;
use crate::ledger::Ledger;
use crate::watch::tree::Tree;

/// Rows that may lag, and are named at the end: those of links that lead nowhere, and of directories that cannot be entered.
/// Where there are more, the start has not compared them yet, and the ledger as a whole is not complete.
pub(super) const LAGGING_MAX: usize = 4096;

/// Ends the ledger. Where the end was `orderly`, nothing is in flight any more, and the ledger is marked complete but for the
/// paths whose rows may lag (see [`Confirmed::end`]), those of all volumes.
pub(in crate::watch) fn end(ledger: &Ledger, lagging: Vec<Box<[u8]>>, orderly: bool) {
    if orderly && lagging.len() <= LAGGING_MAX {
        ledger.end_exact(lagging);
    } else {
        ledger.end();
    }
}

impl Confirmed {
    /// Writes no more to the ledger. Returns the paths whose rows may lag, one more than [`LAGGING_MAX`] at most. `orderly`:
    /// nothing is in flight any more.
    pub(in crate::watch) fn end(&mut self, tree: &Tree, orderly: bool) -> Vec<Box<[u8]>> {
        let Some(ledger) = self.ledger.take() else { return Vec::new() };
        if orderly {
            self.write_withheld(tree, &ledger);
            Self::forget_announced(tree, &ledger);
        }
        let nodes = tree
            .iter()
            .flat_map(|(_, node)| node.known.iter().map(|(name, known)| (node.directory.prefix(), name, known)));
        let unlisted = self
            .unlisted
            .iter()
            .flat_map(|(directory, rows)| rows.iter().map(|(name, row)| (&directory[..], name, &row.known)));
        let lagging = nodes.chain(unlisted).filter(|(_, _, known)| !known.is_exact());
        let path = |(directory, name, _): (&[u8], &Name, _)| [directory, name].concat().into();
        lagging.map(path).take(LAGGING_MAX + 1).collect()
    }

    /// Writes the rows that were withheld because their paths had changed: nothing is published any more, so what was
    /// confirmed last for these paths stays so.
    fn write_withheld(&mut self, tree: &Tree, ledger: &Ledger) {
        if self.withheld.is_empty() {
            return;
        }
        for (_, node) in tree.iter() {
            for (name, known) in node.known.iter().filter(|(_, known)| known.is_rowless()) {
                let path = node.directory.absolute(name);
                if let Some(read) = self.withheld.remove(&path).filter(|read| read.known().rowless() == *known) {
                    let id = read.row_id(node, name);
                    ledger.confirm(path, read.version, read.digests, read.racy, id);
                }
            }
        }
    }
}
