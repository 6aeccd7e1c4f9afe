//! A directory, the one beside it, and a model of both that is always right: every change goes through
//! here. The model keeps, for each path in the watched directory, every content that may be published.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::journal::Journal;
use super::name::{Name, Side};
use crate::files::{Mapping, exchange, give_name, nameless, sha256};

type Id = usize;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Entry {
    File(Id),
    Directory,
}

struct Inode {
    content: Vec<u8>,
    hash: Option<String>,
    /// Handles open for writing.
    writers: usize,
}

/// A file open for writing.
pub struct Handle {
    file: File,
    id: Id,
    offset: usize,
}

pub enum Open {
    /// Made if it is not there, emptied if it is.
    Emptied,
    /// At its end.
    Append,
    /// At a place below its length, nothing cut off.
    At(usize),
}

pub struct Tree {
    data: PathBuf,
    staging: PathBuf,
    inodes: Vec<Inode>,
    /// Both directories themselves are in it.
    entries: BTreeMap<Name, Entry>,
    pub journal: Journal,
}

impl Tree {
    pub fn new(data: &Path, staging: &Path) -> Self {
        let tops = [Side::Data, Side::Staging].map(|side| (Name::top(side), Entry::Directory));
        Self {
            data: data.to_owned(),
            staging: staging.to_owned(),
            inodes: Vec::new(),
            entries: BTreeMap::from(tops),
            journal: Journal::default(),
        }
    }

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

    /// The side's own among them.
    pub fn directories(&self, side: Side) -> Vec<Name> {
        let all = self.entries.iter().filter(|(name, entry)| name.side() == side && **entry == Entry::Directory);
        all.map(|(name, _)| name.clone()).collect()
    }

    /// A directory with nothing in it.
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
        let entry = self.entries.get(name).filter(|entry| **entry != Entry::Directory);
        entry.is_some_and(|entry| self.entries.values().filter(|it| *it == entry).count() > 1)
    }

    fn file(&self, name: &Name) -> Option<Id> {
        match self.entries.get(name) {
            Some(Entry::File(id)) => Some(*id),
            _ => None,
        }
    }

    pub fn open(&mut self, name: &Name, how: &Open) -> Handle {
        let mut options = File::options();
        options.read(true).write(true);
        if let Open::Emptied = how {
            options.create(true).truncate(true);
        }
        let file = options.open(self.path(name)).expect("a file of the workload opens");
        let id = self.file(name).unwrap_or_else(|| self.inode());
        self.entries.insert(name.clone(), Entry::File(id));
        self.inodes[id].writers += 1;
        let length = self.inodes[id].content.len();
        let (offset, what) = match how {
            Open::Emptied => {
                self.change(id, Vec::clear);
                (0, "opened empty")
            }
            Open::Append => (length, "opened at its end"),
            Open::At(offset) => (*offset, "opened in its middle"),
        };
        self.journal.tell(format!("{name} {what}"));
        Handle { file, id, offset }
    }

    pub fn nameless(&mut self, beside: &Name) -> Handle {
        let file = nameless(&self.path(&beside.parent()));
        let id = self.inode();
        self.inodes[id].writers += 1;
        Handle { file, id, offset: 0 }
    }

    pub fn give_name(&mut self, handle: &Handle, name: &Name) {
        give_name(&handle.file, &self.path(name));
        self.journal.tell(format!("{name} linked from an unnamed file"));
        self.entries.insert(name.clone(), Entry::File(handle.id));
        self.note(handle.id);
    }

    pub fn write(&mut self, handle: &mut Handle, bytes: &[u8]) {
        if bytes.is_empty() {
            // Writing nothing behind the end of a file that was cut off meanwhile does not lengthen it.
            return;
        }
        handle.file.write_all_at(bytes, handle.offset as u64).expect("the workload writes");
        let (start, end) = (handle.offset, handle.offset + bytes.len());
        handle.offset = end;
        self.change(handle.id, |content| {
            content.resize(content.len().max(end), 0);
            content[start..end].copy_from_slice(bytes);
        });
    }

    /// Fills the file through a mapping, which may outlive the descriptor.
    pub fn write_mapped(&mut self, handle: Handle, bytes: &[u8], outlive: bool) {
        let mut mapping = Mapping::of(&handle.file, bytes.len());
        mapping.write(bytes);
        mapping.sync();
        self.change(handle.id, |content| *content = bytes.to_vec());
        if outlive {
            self.inodes[handle.id].writers += 1;
            let id = handle.id;
            self.close(handle);
            drop(mapping);
            self.closed(id);
        } else {
            drop(mapping);
            self.close(handle);
        }
    }

    /// Written and closed at once.
    pub fn save(&mut self, name: &Name, content: &[u8]) {
        let mut handle = self.open(name, &Open::Emptied);
        self.write(&mut handle, content);
        self.close(handle);
    }

    pub fn close(&mut self, handle: Handle) {
        drop(handle.file);
        self.closed(handle.id);
    }

    fn closed(&mut self, id: Id) {
        self.inodes[id].writers -= 1;
        self.note(id);
    }

    /// A file, over another one or none; or a directory, over an empty one or none.
    pub fn rename(&mut self, from: &Name, to: &Name) {
        fs::rename(self.path(from), self.path(to)).expect("rename");
        self.journal.tell(format!("{from} renamed to {to}"));
        // Two names of one file: rename(2) does nothing then.
        if self.is_file(from) && self.file(from) == self.file(to) {
            return;
        }
        self.entries.remove(to);
        let moved = self.take(from);
        self.put(moved, from, to);
    }

    /// Whatever they are, unless one of them is in the other.
    pub fn exchange(&mut self, one: &Name, other: &Name) {
        exchange(&self.path(one), &self.path(other));
        self.journal.tell(format!("{one} exchanged with {other}"));
        if one == other {
            return;
        }
        let (of_one, of_other) = (self.take(one), self.take(other));
        self.put(of_one, one, other);
        self.put(of_other, other, one);
    }

    fn take(&mut self, top: &Name) -> Vec<(Name, Entry)> {
        let names: Vec<Name> = self.entries.keys().filter(|name| name.within(top)).cloned().collect();
        names.into_iter().filter_map(|name| self.entries.remove_entry(&name)).collect()
    }

    fn put(&mut self, moved: Vec<(Name, Entry)>, from: &Name, to: &Name) {
        for (name, entry) in moved {
            let now = name.moved(from, to);
            if name != *from {
                self.journal.tell(format!("{name} came to {now} with its directory"));
            }
            self.entries.insert(now, entry);
            if let Entry::File(id) = entry {
                self.note(id);
            }
        }
    }

    pub fn remove(&mut self, name: &Name) {
        fs::remove_file(self.path(name)).expect("unlink");
        self.entries.remove(name);
        self.journal.tell(format!("{name} removed"));
    }

    pub fn make_directory(&mut self, name: &Name) {
        fs::create_dir(self.path(name)).expect("mkdir");
        self.entries.insert(name.clone(), Entry::Directory);
        self.journal.tell(format!("{name} made, a directory"));
    }

    /// An empty one.
    pub fn remove_directory(&mut self, name: &Name) {
        fs::remove_dir(self.path(name)).expect("rmdir");
        self.entries.remove(name);
        self.journal.tell(format!("{name} removed, an empty directory"));
    }

    /// A directory with all that is in it.
    pub fn remove_tree(&mut self, name: &Name) {
        fs::remove_dir_all(self.path(name)).expect("rm -r");
        for (name, _) in self.take(name) {
            self.journal.tell(format!("{name} removed with the whole tree"));
        }
    }

    pub fn link(&mut self, from: &Name, to: &Name) {
        fs::hard_link(self.path(from), self.path(to)).expect("link");
        let id = self.file(from).expect("a file");
        self.entries.insert(to.clone(), Entry::File(id));
        self.journal.tell(format!("{from} linked to {to}"));
        self.note(id);
    }

    /// What changes a file's version and not its content.
    pub fn retouch(&mut self, name: &Name, what: &str, change: impl FnOnce(&Path)) {
        change(&self.path(name));
        self.journal.tell(format!("{name} {what}"));
    }

    /// Path, hash and size of every file in the watched directory, from the disk; and the model's proof that it is
    /// right.
    pub fn finals(&mut self) -> BTreeMap<String, (String, u64)> {
        let (mut finals, mut directories) = (BTreeMap::new(), BTreeSet::from([Name::top(Side::Data)]));
        let mut to_list = vec![Name::top(Side::Data)];
        while let Some(directory) = to_list.pop() {
            for entry in fs::read_dir(self.path(&directory)).expect("a watched directory") {
                let entry = entry.expect("an entry");
                let name = directory.child(entry.file_name().to_str().expect("a plain name"));
                if entry.file_type().expect("its kind").is_dir() {
                    directories.insert(name.clone());
                    to_list.push(name);
                } else {
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
        }
        finals
    }

    fn files(&self) -> impl Iterator<Item = (Name, Id)> {
        let entries = self.entries.iter();
        entries.filter_map(|(name, entry)| match entry {
            Entry::File(id) => Some((name.clone(), *id)),
            Entry::Directory => None,
        })
    }

    fn inode(&mut self) -> Id {
        self.inodes.push(Inode { content: Vec::new(), hash: None, writers: 0 });
        self.inodes.len() - 1
    }

    fn change(&mut self, id: Id, change: impl FnOnce(&mut Vec<u8>)) {
        change(&mut self.inodes[id].content);
        self.inodes[id].hash = None;
    }

    fn hash(&mut self, id: Id) -> &str {
        let inode = &mut self.inodes[id];
        inode.hash.get_or_insert_with(|| sha256(&inode.content))
    }

    /// Nobody writes it: from now on its content may be published for each of its names.
    fn note(&mut self, id: Id) {
        if self.inodes[id].writers > 0 {
            return;
        }
        let names: Vec<Name> = self.files().filter(|(_, it)| *it == id).map(|(name, _)| name).collect();
        let (hash, length) = (self.hash(id).to_owned(), self.inodes[id].content.len());
        names.iter().for_each(|name| self.journal.allow(name, &hash, length));
    }
}
