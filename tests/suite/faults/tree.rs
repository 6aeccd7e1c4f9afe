//! A directory, the one beside it, and a model of both that is always right: every change goes through
//! here. The model keeps, for each path in the watched directory, every content that may be published.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::{self, File, Metadata};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};

use super::journal::Journal;
use super::name::{Name, Side};
use super::repeats::{Micros, now};
use crate::support::files::{Mapping, chmod, exchange, give_name, nameless, sha256};
use crate::support::setup::NOBODY;

type Id = usize;

/// More links than this do not lead to one another.
const HOPS_MAX: usize = 20;
/// Who writes a file, and what others may do with it, where nothing else is said.
pub const OPEN_MODE: u32 = 0o644;
/// Much more than anybody reads while a test runs.
const HUGE: u64 = 1 << 40;

#[derive(Clone, PartialEq, Eq)]
enum Entry {
    File(Id),
    Directory,
    /// A symbolic link, and what is written in it.
    Link(String),
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
    /// Where each link in the watched directory led to last.
    led_to: BTreeMap<Name, Option<Id>>,
    /// When the change that is being made began.
    begun: Micros,
    /// Whether it is one of a directory above the names that it is about.
    with_directory: bool,
    /// Of files that are made from now on.
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

    /// All that there is, but for the two directories themselves.
    pub fn names(&self) -> Vec<Name> {
        self.entries.keys().filter(|name| !name.is_top()).cloned().collect()
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
        self.file(name).is_some_and(|id| self.files().filter(|(_, it)| *it == id).count() > 1)
    }

    /// Whether a file there is being written that has another name elsewhere: the end of its writer would be seen by no
    /// name of its in the watched directory, were this one taken out of it.
    pub fn is_held_from_elsewhere(&self, top: &Name) -> bool {
        let written = self.files().filter(|(name, id)| name.within(top) && self.inodes[*id].writers > 0);
        written.into_iter().any(|(_, id)| self.files().any(|(name, it)| it == id && !name.within(top)))
    }

    fn file(&self, name: &Name) -> Option<Id> {
        match self.entries.get(name) {
            Some(Entry::File(id)) => Some(*id),
            _ => None,
        }
    }

    pub fn open(&mut self, name: &Name, how: &Open) -> Handle {
        self.begin();
        if self.is_link(name) {
            // It would be opened where it leads to.
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
        self.begin();
        give_name(&handle.file, &self.path(name));
        self.journal.tell(format!("{name} linked from an unnamed file"));
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
        self.begin();
        fs::rename(self.path(from), self.path(to)).expect("rename");
        self.journal.tell(format!("{from} renamed to {to}"));
        // One name, or two of one file: rename(2) does nothing then.
        if from == to || (self.is_file(from) && self.file(from) == self.file(to)) {
            return;
        }
        self.leave(to);
        let moved = self.take(from);
        self.put(moved, from, to);
        self.follow_links();
    }

    /// Whatever they are, unless one of them is in the other.
    pub fn exchange(&mut self, one: &Name, other: &Name) {
        self.begin();
        exchange(&self.path(one), &self.path(other));
        self.journal.tell(format!("{one} exchanged with {other}"));
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
                self.journal.tell(format!("{name} came to {now} with its directory"));
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
        fs::remove_file(self.path(name)).expect("unlink");
        self.leave(name);
        self.journal.tell(format!("{name} removed"));
        self.follow_links();
    }

    pub fn make_directory(&mut self, name: &Name) {
        self.begin();
        fs::create_dir(self.path(name)).expect("mkdir");
        self.enter(name, Entry::Directory);
        self.journal.tell(format!("{name} made, a directory"));
    }

    /// An empty one.
    pub fn remove_directory(&mut self, name: &Name) {
        self.begin();
        fs::remove_dir(self.path(name)).expect("rmdir");
        self.leave(name);
        self.journal.tell(format!("{name} removed, an empty directory"));
    }

    /// A directory with all that is in it.
    pub fn remove_tree(&mut self, name: &Name) {
        self.begin();
        fs::remove_dir_all(self.path(name)).expect("rm -r");
        for (name, _) in self.take(name) {
            self.journal.tell(format!("{name} removed with the whole tree"));
        }
        self.follow_links();
    }

    pub fn link(&mut self, from: &Name, to: &Name) {
        self.begin();
        fs::hard_link(self.path(from), self.path(to)).expect("link");
        let id = self.file(from).expect("a file");
        self.enter(to, Entry::File(id));
        self.journal.tell(format!("{from} linked to {to}"));
        self.note(id);
    }

    /// A symbolic link, made at a free place for another: there it leads to that path of the watched directory, whatever
    /// is there.
    pub fn symbolic_link(&mut self, made: &Name, place: &Name, target: &Name) {
        let text = format!("{}{}", "../".repeat(place.parent().depth()), target.below());
        self.begin();
        symlink(&text, self.path(made)).expect("symlink");
        self.journal.tell(format!("{made} made, a link to {target}"));
        self.enter(made, Entry::Link(text));
        self.follow_links();
    }

    /// The file that a link leads to, if any, and its own path.
    fn resolve(&self, link: &Name) -> Option<(Id, Name)> {
        let Some(Entry::Link(text)) = self.entries.get(link) else { return None };
        let parts = |text: &str| text.split('/').map(str::to_owned).collect::<VecDeque<_>>();
        let (mut at, mut ahead) = (link.parent(), parts(text));
        let mut hops = 1;
        while let Some(part) = ahead.pop_front() {
            if part == ".." {
                if at.is_top() {
                    return None;
                }
                at = at.parent();
                continue;
            }
            let name = at.child(&part);
            match self.entries.get(&name)? {
                Entry::File(id) => return ahead.is_empty().then_some((*id, name)),
                Entry::Directory => at = name,
                Entry::Link(text) => {
                    hops += 1;
                    if hops > HOPS_MAX {
                        return None;
                    }
                    let mut through = parts(text);
                    through.append(&mut ahead);
                    ahead = through;
                }
            }
        }
        None
    }

    /// What may be published for links, since a name has changed or a file is complete.
    fn follow_links(&mut self) {
        let links =
            self.entries.iter().filter(|(name, entry)| name.side() == Side::Data && matches!(entry, Entry::Link(_)));
        let links: Vec<Name> = links.map(|(name, _)| name.clone()).collect();
        self.led_to.retain(|name, _| links.contains(name));
        for link in links {
            let file = self.resolve(&link).map(|(id, _)| id);
            if self.led_to.insert(link.clone(), file) != Some(file) {
                self.journal.turn(&link, self.begun, false);
            }
            if let Some(id) = file.filter(|id| self.inodes[*id].writers == 0) {
                let (hash, length) = (self.hash(id).to_owned(), self.inodes[id].content.len());
                self.journal.allow(&link, &hash, length);
            }
        }
    }

    /// A file with no byte in it and a length that nobody reads to its end. The model knows nothing of it: no message is
    /// right, and it is gone before the end.
    pub fn make_huge(&mut self, name: &Name) {
        let file = File::options().write(true).create_new(true).mode(OPEN_MODE).open(self.path(name)).expect("a file");
        file.set_len(HUGE).expect("a sparse file");
        self.journal.tell(format!("{name} made, {HUGE} bytes"));
    }

    pub fn remove_huge(&mut self, name: &Name) {
        fs::remove_file(self.path(name)).expect("unlink");
        self.journal.tell(format!("{name} removed"));
    }

    /// Who may do what with a file or a directory changes, and nothing else.
    pub fn set_rights(&mut self, name: &Name, mode: u32, owner: u32) {
        let path = self.path(name);
        std::os::unix::fs::lchown(&path, Some(owner), None).expect("chown");
        chmod(&path, mode);
        self.journal.tell(format!("{name} has mode {mode:04o} and owner {owner}"));
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

    /// And all directories above it.
    fn is_reachable(&self, name: &Name) -> bool {
        let mut at = name.clone();
        while !at.is_top() {
            if !self.is_open(&at) {
                return false;
            }
            at = at.parent();
        }
        true
    }

    /// What changes a file's version and not its content.
    pub fn retouch(&mut self, name: &Name, what: &str, change: impl FnOnce(&Path)) {
        change(&self.path(name));
        self.journal.tell(format!("{name} {what}"));
    }

    /// Path, hash and size of every file in the watched directory that the service can read, from the disk; and the model's
    /// proof that it is right.
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
                } else if !kind.is_symlink() {
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
            let content = fs::read(self.path(&link)).ok();
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

    fn files(&self) -> impl Iterator<Item = (Name, Id)> {
        let entries = self.entries.iter();
        entries.filter_map(|(name, entry)| match entry {
            Entry::File(id) => Some((name.clone(), *id)),
            Entry::Directory | Entry::Link(_) => None,
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
        self.follow_links();
    }
}
