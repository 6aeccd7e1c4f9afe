//! A directory, the one beside it, and an exact model of both, because every change goes through here. The model keeps
//! every content that may be published for each path in the watched directory.

mod finals;
mod links;
mod queries;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::journal::Journal;
use super::name::{Name, Side};
use super::repeats::{Micros, now};
use crate::support::files::{Mapping, chmod, exchange, fifo, give_name, nameless, sha256};

type Id = usize;

/// The mode of files that are open to the service.
pub const OPEN_MODE: u32 = 0o644;
/// Much more than is read while a test runs.
const HUGE: u64 = 1 << 40;

#[derive(Clone, PartialEq, Eq)]
enum Entry {
    File(Id),
    Directory,
    /// A symbolic link, and what is written in it.
    Link(String),
    /// A FIFO, of which nothing is published.
    Fifo,
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
    /// The file to which each link in the watched directory led last.
    led_to: BTreeMap<Name, Option<Id>>,
    /// When the present change began.
    begun: Micros,
    /// Whether the present change is one of a directory above the names.
    with_directory: bool,
    /// The mode of files that are made from now on.
    pub new_mode: u32,
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
            led_to: BTreeMap::new(),
            begun: now(),
            with_directory: false,
            new_mode: OPEN_MODE,
            journal: Journal::default(),
        }
    }

    pub fn open(&mut self, name: &Name, how: &Open) -> Handle {
        self.begin();
        if self.is_link(name) {
            // Otherwise its target would be opened.
            self.remove(name);
        }
        let mut options = File::options();
        options.read(true).write(true).mode(self.new_mode);
        if let Open::Emptied = how {
            options.create(true).truncate(true);
        }
        let file = options.open(self.path(name)).expect("a file of the workload opens");
        let new = self.is_free(name);
        let id = self.file(name).unwrap_or_else(|| self.inode());
        self.inodes[id].writers += 1;
        if new {
            self.enter(name, Entry::File(id));
        }
        let length = self.inodes[id].content.len();
        let (offset, what) = match how {
            Open::Emptied => {
                self.change(id, Vec::clear);
                (0, "opened empty")
            }
            Open::Append => (length, "opened at its end"),
            Open::At(offset) => (*offset, "opened in its middle"),
        };
        self.journal.log(format!("{name} {what}"));
        Handle { file, id, offset }
    }

    pub fn nameless(&mut self, beside: &Name) -> Handle {
        let file = nameless(&self.path(&beside.parent()));
        let id = self.inode();
        self.inodes[id].writers += 1;
        Handle { file, id, offset: 0 }
    }

    pub fn give_name(&mut self, handle: &Handle, name: &Name) {
        self.begin();
        give_name(&handle.file, &self.path(name));
        self.journal.log(format!("{name} linked from an unnamed file"));
        self.enter(name, Entry::File(handle.id));
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

    /// Cuts the file off there, or lengthens it by zeros.
    pub fn set_length(&mut self, handle: &Handle, length: usize) {
        handle.file.set_len(length as u64).expect("ftruncate");
        self.change(handle.id, |content| content.resize(length, 0));
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

    /// Writes a file and closes it.
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

    /// Renames a file, over another one or none, or a directory, over an empty one or none.
    pub fn rename(&mut self, from: &Name, to: &Name) {
        self.begin();
        fs::rename(self.path(from), self.path(to)).expect("rename");
        self.journal.log(format!("{from} renamed to {to}"));
        // One name, or two of one file: rename(2) does nothing then.
        if from == to || (self.is_file(from) && self.file(from) == self.file(to)) {
            return;
        }
        self.leave(to);
        let moved = self.take(from);
        self.put(moved, from, to);
        self.follow_links();
    }

    /// Exchanges two names, whatever they are, unless one is in the other.
    pub fn exchange(&mut self, one: &Name, other: &Name) {
        self.begin();
        exchange(&self.path(one), &self.path(other));
        self.journal.log(format!("{one} exchanged with {other}"));
        if one == other {
            return;
        }
        let (of_one, of_other) = (self.take(one), self.take(other));
        self.put(of_one, one, other);
        self.put(of_other, other, one);
        self.follow_links();
    }

    fn take(&mut self, top: &Name) -> Vec<(Name, Entry)> {
        let names: Vec<Name> = self.entries.keys().filter(|name| name.within(top)).cloned().collect();
        let taken = names.into_iter().filter_map(|name| {
            self.with_directory = name != *top;
            self.leave(&name).map(|entry| (name, entry))
        });
        let taken = taken.collect();
        self.with_directory = false;
        taken
    }

    fn put(&mut self, moved: Vec<(Name, Entry)>, from: &Name, to: &Name) {
        for (name, entry) in moved {
            let now = name.moved(from, to);
            if name != *from {
                self.journal.log(format!("{name} came to {now} with its directory"));
            }
            let file = if let Entry::File(id) = entry { Some(id) } else { None };
            self.with_directory = name != *from;
            self.enter(&now, entry);
            self.with_directory = false;
            if let Some(id) = file {
                self.note(id);
            }
        }
    }

    /// A change begins now.
    fn begin(&mut self) {
        self.begun = now();
    }

    fn enter(&mut self, name: &Name, entry: Entry) {
        self.entries.insert(name.clone(), entry);
        self.journal.turn(name, self.begun, self.with_directory);
    }

    fn leave(&mut self, name: &Name) -> Option<Entry> {
        let entry = self.entries.remove(name);
        self.journal.turn(name, self.begun, self.with_directory);
        entry
    }

    pub fn remove(&mut self, name: &Name) {
        self.begin();
        if let Err(error) = fs::remove_file(self.path(name)) {
            let history = self.journal.history_of(&[name.to_string()].into());
            panic!("unlink of {name}: {error}\n{history}");
        }
        self.leave(name);
        self.journal.log(format!("{name} removed"));
        self.follow_links();
    }

    pub fn make_directory(&mut self, name: &Name) {
        self.begin();
        fs::create_dir(self.path(name)).expect("mkdir");
        self.enter(name, Entry::Directory);
        self.journal.log(format!("{name} made, a directory"));
    }

    pub fn make_fifo(&mut self, name: &Name) {
        self.begin();
        fifo(&self.path(name));
        self.enter(name, Entry::Fifo);
        self.journal.log(format!("{name} made, a FIFO"));
    }

    /// Removes an empty directory.
    pub fn remove_directory(&mut self, name: &Name) {
        self.begin();
        fs::remove_dir(self.path(name)).expect("rmdir");
        self.leave(name);
        self.journal.log(format!("{name} removed, an empty directory"));
    }

    /// Removes a directory with all that is in it.
    pub fn remove_tree(&mut self, name: &Name) {
        self.begin();
        fs::remove_dir_all(self.path(name)).expect("rm -r");
        for (name, _) in self.take(name) {
            self.journal.log(format!("{name} removed with the whole tree"));
        }
        self.follow_links();
    }

    pub fn link(&mut self, from: &Name, to: &Name) {
        self.begin();
        fs::hard_link(self.path(from), self.path(to)).expect("link");
        let id = self.file(from).expect("a file");
        self.enter(to, Entry::File(id));
        self.journal.log(format!("{from} linked to {to}"));
        self.note(id);
    }

    /// A file with no byte in it and a length that nobody reads to its end. The model knows nothing of it: no message
    /// is right, and it is gone before the end.
    pub fn make_huge(&mut self, name: &Name) {
        let file = File::options().write(true).create_new(true).mode(OPEN_MODE).open(self.path(name)).expect("a file");
        file.set_len(HUGE).expect("a sparse file");
        self.journal.log(format!("{name} made, {HUGE} bytes"));
    }

    pub fn remove_huge(&mut self, name: &Name) {
        fs::remove_file(self.path(name)).expect("unlink");
        self.journal.log(format!("{name} removed"));
    }

    /// Changes the mode and owner of a file or a directory, and nothing else.
    pub fn set_rights(&mut self, name: &Name, mode: u32, owner: u32) {
        let path = self.path(name);
        std::os::unix::fs::lchown(&path, Some(owner), None).expect("chown");
        chmod(&path, mode);
        self.journal.log(format!("{name} has mode {mode:04o} and owner {owner}"));
    }

    /// Changes a file's version and not its content.
    pub fn retouch(&mut self, name: &Name, what: &str, change: impl FnOnce(&Path)) {
        change(&self.path(name));
        self.journal.log(format!("{name} {what}"));
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

    /// If no writer has it open, its content may be published for each of its names from now on.
    fn note(&mut self, id: Id) {
        if self.inodes[id].writers > 0 {
            return;
        }
        let names: Vec<Name> = self.files().filter(|(_, it)| *it == id).map(|(name, _)| name).collect();
        let (hash, length) = (self.hash(id).to_owned(), self.inodes[id].content.len());
        names.iter().for_each(|name| self.journal.allow(name, &hash, length));
        self.follow_links();
    }
}
