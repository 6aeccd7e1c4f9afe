//! The files on disk in the end, by which the messages are judged; they prove the model too.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use super::super::name::{Name, Side};
use super::{Id, Tree};
use crate::support::files::sha256;

impl Tree {
    /// Whether it and all directories above it are open.
    pub(super) fn is_reachable(&self, name: &Name) -> bool {
        let mut at = name.clone();
        while !at.is_top() {
            if !self.is_open(&at) {
                return false;
            }
            at = at.parent();
        }
        true
    }

    /// Path, hash and size of every file in the watched directory that the service can read, from the disk; and the
    /// model's proof that it is right.
    pub fn finals(&mut self) -> BTreeMap<String, (String, u64)> {
        let (mut finals, mut directories) = (BTreeMap::new(), BTreeSet::from([Name::top(Side::Data)]));
        let mut to_list = vec![Name::top(Side::Data)];
        while let Some(directory) = to_list.pop() {
            for entry in fs::read_dir(self.path(&directory)).expect("a watched directory") {
                let entry = entry.expect("an entry");
                let name = directory.child(entry.file_name().to_str().expect("a plain name"));
                let kind = entry.file_type().expect("its kind");
                if kind.is_dir() {
                    directories.insert(name.clone());
                    to_list.push(name);
                } else if kind.is_file() {
                    let content = fs::read(entry.path()).expect("a file of the workload");
                    finals.insert(name.below().to_owned(), (sha256(&content), content.len() as u64));
                }
            }
        }
        assert!(self.directories(Side::Data).into_iter().eq(directories), "the test's own model lost a directory");
        let files: Vec<(Name, Id)> = self.files().filter(|(name, _)| name.side() == Side::Data).collect();
        assert_eq!(files.len(), finals.len(), "the test's own model lost count");
        for (name, id) in files {
            let on_disk = &finals[name.below()].0;
            assert_eq!(self.inodes[id].writers, 0, "a writer was left open");
            assert!(self.journal.allows(name.below(), on_disk), "the test's own model is wrong about {name}");
            assert_eq!(self.hash(id), on_disk, "the test's own model is wrong about {name}");
            if !self.is_reachable(&name) {
                finals.remove(name.below());
            }
        }
        for link in self.led_to.keys().cloned().collect::<Vec<_>>() {
            let target = self.path(&link).canonicalize().ok().filter(|target| target.starts_with(&self.data));
            let content = target.filter(|target| target.is_file()).and_then(|target| fs::read(target).ok());
            let found = self.resolve(&link);
            assert_eq!(content.is_some(), found.is_some(), "the test's own model is wrong about the link {link}");
            if let (Some(content), Some((id, target))) = (content, found) {
                let hash = sha256(&content);
                assert_eq!(self.hash(id), hash, "the test's own model is wrong about the link {link}");
                if self.is_reachable(&link.parent()) && self.is_reachable(&target) {
                    finals.insert(link.below().to_owned(), (hash, content.len() as u64));
                }
            }
        }
        finals
    }
}
