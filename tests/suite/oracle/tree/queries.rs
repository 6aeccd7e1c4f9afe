//! Questions about the model, which change nothing.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use super::super::name::{Name, Side};
use super::{Entry, Id, Tree};
use crate::support::setup::NOBODY;

impl Tree {
    pub fn path(&self, name: &Name) -> PathBuf {
        match name.side() {
            Side::Data => self.data.join(name.below()),
            Side::Staging => self.staging.join(name.below()),
        }
    }

    pub fn is_free(&self, name: &Name) -> bool {
        !self.entries.contains_key(name)
    }

    pub fn is_file(&self, name: &Name) -> bool {
        self.file(name).is_some()
    }

    pub fn is_directory(&self, name: &Name) -> bool {
        self.entries.get(name) == Some(&Entry::Directory)
    }

    pub fn is_link(&self, name: &Name) -> bool {
        matches!(self.entries.get(name), Some(Entry::Link(_)))
    }

    pub fn links(&self) -> usize {
        self.entries.values().filter(|entry| matches!(entry, Entry::Link(_))).count()
    }

    /// All names but the two directories themselves.
    pub fn names(&self) -> Vec<Name> {
        self.entries.keys().filter(|name| !name.is_top()).cloned().collect()
    }

    /// All directories of a side, its own among them.
    pub fn directories(&self, side: Side) -> Vec<Name> {
        let all = self.entries.iter().filter(|(name, entry)| name.side() == side && **entry == Entry::Directory);
        all.map(|(name, _)| name.clone()).collect()
    }

    /// Whether it is a directory with nothing in it.
    pub fn is_empty(&self, name: &Name) -> bool {
        self.is_directory(name) && !self.entries.keys().any(|other| other != name && other.within(name))
    }

    /// How many levels of directories there are in a directory, itself not counted.
    pub fn height(&self, name: &Name) -> usize {
        let inside = self.directories(name.side()).into_iter().filter(|other| other.within(name));
        inside.map(|other| other.depth() - name.depth()).max().unwrap_or(0)
    }

    pub fn length(&self, name: &Name) -> usize {
        self.file(name).map_or(0, |id| self.inodes[id].content.len())
    }

    /// Whether the file has another name.
    pub fn linked(&self, name: &Name) -> bool {
        self.file(name).is_some_and(|id| self.files().filter(|(_, it)| *it == id).count() > 1)
    }

    /// Whether a file there is being written that has another name elsewhere: the end of its writer would be seen by no
    /// name of its in the watched directory, were this one taken out of it.
    pub fn is_held_from_elsewhere(&self, top: &Name) -> bool {
        let written = self.files().filter(|(name, id)| name.within(top) && self.inodes[*id].writers > 0);
        written.into_iter().any(|(_, id)| self.files().any(|(name, it)| it == id && !name.within(top)))
    }

    pub(super) fn file(&self, name: &Name) -> Option<Id> {
        match self.entries.get(name) {
            Some(Entry::File(id)) => Some(*id),
            _ => None,
        }
    }

    pub fn status(&self, name: &Name) -> Metadata {
        fs::symlink_metadata(self.path(name)).expect("stat")
    }

    /// Whether the service may read that file, or enter, list and search that directory, as far as its own rights go.
    pub fn is_open(&self, name: &Name) -> bool {
        let status = self.status(name);
        let rights = if status.uid() == NOBODY { status.mode() >> 6 } else { status.mode() };
        let wanted = if status.is_dir() { 0o5 } else { 0o4 };
        rights & wanted == wanted
    }

    pub(super) fn files(&self) -> impl Iterator<Item = (Name, Id)> {
        let entries = self.entries.iter();
        entries.filter_map(|(name, entry)| match entry {
            Entry::File(id) => Some((name.clone(), *id)),
            Entry::Directory | Entry::Link(_) | Entry::Fifo => None,
        })
    }
}
