//! A directory, the one beside it, and a model of both that is always right: every change goes through
//! here. The model keeps, for each path in the watched directory, every content that may be published.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::files::{Mapping, exchange, give_name, nameless, sha256};

/// One of a few names, so that histories cross.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Name {
    /// In the watched directory.
    Data(usize),
    /// Beside it.
    Staging(usize),
}

/// Of the watched names; other files there are not the workload's.
const PREFIX: &str = "file-";

type Id = usize;

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

/// Contents that each path had while nobody was writing them: the only ones that may be published.
#[derive(Default)]
pub struct Journal {
    legal: HashMap<String, HashMap<String, usize>>,
    history: Vec<(usize, String)>,
}

impl Journal {
    pub fn allows(&self, name: &str, hash: &str) -> bool {
        self.legal.get(name).is_some_and(|hashes| hashes.contains_key(hash))
    }

    /// What was done to a name, and which of its contents were legal since when.
    pub fn story(&self, name: &str) -> String {
        let mentioned = |text: &str| text.split(' ').any(|word| word == name);
        let done = self.history.iter().filter(|(_, what)| mentioned(what));
        done.map(|(operation, what)| format!("  operation {operation}: {what}\n")).collect()
    }
}

pub struct Tree {
    data: PathBuf,
    staging: PathBuf,
    inodes: Vec<Inode>,
    names: BTreeMap<Name, Id>,
    pub journal: Journal,
    /// The number of the operation that is being done.
    pub operation: usize,
}

impl Tree {
    pub fn new(data: &Path, staging: &Path) -> Self {
        Self {
            data: data.to_owned(),
            staging: staging.to_owned(),
            inodes: Vec::new(),
            names: BTreeMap::new(),
            journal: Journal::default(),
            operation: 0,
        }
    }

    pub fn path(&self, name: Name) -> PathBuf {
        match name {
            Name::Data(_) => self.data.join(text(name)),
            Name::Staging(_) => self.staging.join(text(name)),
        }
    }

    pub fn exists(&self, name: Name) -> bool {
        self.names.contains_key(&name)
    }

    pub fn length(&self, name: Name) -> usize {
        self.inodes[self.names[&name]].content.len()
    }

    /// Whether the file has another name.
    pub fn linked(&self, name: Name) -> bool {
        let id = self.names.get(&name);
        self.names.values().filter(|it| Some(*it) == id).count() > 1
    }

    pub fn open(&mut self, name: Name, how: &Open) -> Handle {
        let mut options = File::options();
        options.read(true).write(true);
        if let Open::Emptied = how {
            options.create(true).truncate(true);
        }
        let file = options.open(self.path(name)).expect("a file of the workload opens");
        let id = self.names.get(&name).copied().unwrap_or_else(|| self.inode());
        self.names.insert(name, id);
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
        self.tell(format!("{} {what}", text(name)));
        Handle { file, id, offset }
    }

    pub fn nameless(&mut self, beside: Name) -> Handle {
        let file = nameless(self.path(beside).parent().expect("a directory"));
        let id = self.inode();
        self.inodes[id].writers += 1;
        Handle { file, id, offset: 0 }
    }

    pub fn give_name(&mut self, handle: &Handle, name: Name) {
        give_name(&handle.file, &self.path(name));
        self.tell(format!("{} linked from an unnamed file", text(name)));
        self.names.insert(name, handle.id);
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

    pub fn close(&mut self, handle: Handle) {
        drop(handle.file);
        self.closed(handle.id);
    }

    fn closed(&mut self, id: Id) {
        self.inodes[id].writers -= 1;
        self.note(id);
    }

    pub fn rename(&mut self, from: Name, to: Name) {
        fs::rename(self.path(from), self.path(to)).expect("rename");
        let id = self.names[&from];
        // Two names of one file: rename(2) does nothing then.
        if self.names.get(&to) != Some(&id) {
            self.names.remove(&from);
            self.names.insert(to, id);
        }
        self.tell(format!("{} renamed to {}", text(from), text(to)));
        self.note(id);
    }

    pub fn exchange(&mut self, one: Name, other: Name) {
        exchange(&self.path(one), &self.path(other));
        let (of_one, of_other) = (self.names[&one], self.names[&other]);
        self.names.insert(one, of_other);
        self.names.insert(other, of_one);
        self.tell(format!("{} exchanged with {}", text(one), text(other)));
        self.note(of_one);
        self.note(of_other);
    }

    pub fn remove(&mut self, name: Name) {
        fs::remove_file(self.path(name)).expect("unlink");
        self.names.remove(&name);
        self.tell(format!("{} removed", text(name)));
    }

    pub fn link(&mut self, from: Name, to: Name) {
        fs::hard_link(self.path(from), self.path(to)).expect("link");
        let id = self.names[&from];
        self.names.insert(to, id);
        self.tell(format!("{} linked to {}", text(from), text(to)));
        self.note(id);
    }

    /// What changes a file's version and not its content.
    pub fn retouch(&mut self, name: Name, what: &str, change: impl FnOnce(&Path)) {
        change(&self.path(name));
        self.tell(format!("{} {what}", text(name)));
    }

    /// Name, hash and size of every file in the watched directory, from the disk; and the model's
    /// proof that it is right.
    pub fn finals(&mut self) -> BTreeMap<String, (String, u64)> {
        let mut finals = BTreeMap::new();
        for entry in fs::read_dir(&self.data).expect("the watched directory") {
            let entry = entry.expect("an entry");
            let content = fs::read(entry.path()).expect("a file of the workload");
            let name = entry.file_name().into_string().expect("a plain name");
            if !name.starts_with(PREFIX) {
                continue;
            }
            finals.insert(name, (sha256(&content), content.len() as u64));
        }
        let names: Vec<Name> = self.names.keys().copied().filter(|it| matches!(it, Name::Data(_))).collect();
        assert_eq!(names.len(), finals.len(), "the test's own model lost count");
        for name in names {
            let (id, on_disk) = (self.names[&name], &finals[&text(name)].0);
            assert_eq!(self.inodes[id].writers, 0, "a writer was left open");
            assert!(self.journal.allows(&text(name), on_disk), "the test's own model is wrong about {}", text(name));
            assert_eq!(self.hash(id), on_disk, "the test's own model is wrong about {}", text(name));
        }
        finals
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
        let names: Vec<Name> = self.names.iter().filter(|(_, it)| **it == id).map(|(name, _)| *name).collect();
        let hash = self.hash(id).to_owned();
        for name in names.into_iter().filter(|it| matches!(it, Name::Data(_))) {
            let known = self.journal.legal.entry(text(name)).or_default();
            if known.insert(hash.clone(), self.operation).is_none() {
                let length = self.inodes[id].content.len();
                self.tell(format!("{} is complete: {length} bytes, {}", text(name), &hash[..12]));
            }
        }
    }

    fn tell(&mut self, what: String) {
        self.journal.history.push((self.operation, what));
    }
}

fn text(name: Name) -> String {
    match name {
        Name::Data(number) => format!("{PREFIX}{number:02}"),
        Name::Staging(number) => format!("staged-{number:02}"),
    }
}
