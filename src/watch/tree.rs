//! The directories that are watched: which watch is whose, what is kept for each, and what stands where.
//!
//! A directory's name is looked at again whenever an event, a listing or the end of a watch says something of it, and
//! the watch itself tells which directory stands there: the kernel gives one directory one watch, whatever its path.
//! So it makes no difference in which order renames are heard of, or how many of them: the last event of a name comes
//! after its last change. What was kept for a directory that stands elsewhere, or nowhere, is given up; where it
//! stands now it is one that has just arrived. Only its watch is kept for a while, adrift: a renamed tree is watched
//! by the watches that it had, and the ends of many, which are events too, don't fill the kernel's queue.

use std::mem;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use rustix::fs::fstat;
use rustix::io::Errno;

use super::inotify::{Mark, Watches};
use crate::files::directory::{Directory, Place};
use crate::files::errno::{Call, Meaning, meaning};
use crate::files::names::{Map, Name, Set};
use crate::files::root::Root;
use crate::job::Known;

/// How a directory came to be looked at: what is in it came the same way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// It was made, or a listing shows it.
    Found,
    /// It was renamed to its path, or is below one that was.
    MovedTo,
}

/// What is kept for one directory.
pub struct Node {
    /// Its path and its index.
    pub directory: Arc<Directory>,
    /// What was confirmed, or was there before us, by name.
    pub known: Map<Name, Known>,
    /// What is known is the ledger's, and not compared yet: it may be of another directory's files.
    pub recalled: bool,
    /// Whether its index is complete.
    pub listed: bool,
    /// How it came here.
    pub arrival: Arrival,
    /// Nothing where no watch could be had.
    mark: Option<Mark>,
    /// Its inode's number, unless it is a root: another can come to stand at its path.
    pub inode: Option<u64>,
    /// Nothing for a root.
    parent: Option<(Place, Name)>,
    children: Map<Name, Place>,
    /// Its files that are with the readers.
    in_flight: usize,
    /// Given up, and kept only until the readers return the last file.
    left: bool,
}

/// What was kept for a directory that was given up.
pub struct Left {
    /// Its number.
    pub place: Place,
    /// Its path.
    pub directory: Arc<Directory>,
    /// See [`Node::known`].
    pub known: Map<Name, Known>,
}

/// What a look at a directory's name shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stands {
    /// The directory that we know there; `again`: it had no watch before.
    Same {
        /// Its number.
        place: Place,
        /// What happened in it until now went unseen.
        again: bool,
    },
    /// Another, or the first.
    New(Place),
    /// None, or none to enter: a link, or another file system's.
    Nothing,
    /// One that cannot be opened.
    Refused(Errno),
}

/// Whether a refusal to open or list a directory says that there is none to enter: it is gone, another kind of file, a
/// link, or another file system's.
#[must_use]
pub fn nothing_to_enter(call: Call, errno: Errno) -> bool {
    matches!(meaning(call, errno), Meaning::Gone | Meaning::NotRegular | Meaning::Link | Meaning::LeadsOut)
}

/// See the module.
pub struct Tree {
    /// The data directories: never given up.
    roots: Vec<Arc<Directory>>,
    watches: Watches,
    nodes: Map<Place, Node>,
    marks: Map<Mark, Place>,
    unwatched: Set<Place>,
    /// Why the last of them has no watch.
    unwatched_cause: Option<Errno>,
    /// Directories whose watches tell of changed rights.
    attending: Set<Place>,
    /// Watches of directories that were given up, and that may turn up elsewhere.
    adrift: Set<Mark>,
    /// By path: given up while files of theirs were with the readers. One that is made there again takes over the
    /// number, so that messages of one path stay in order.
    lingering: Map<Vec<u8>, Place>,
    next: Place,
}

impl Tree {
    /// Of the data directories alone, which are watched already.
    #[must_use]
    pub fn new<'a>(roots: impl IntoIterator<Item = (&'a Arc<Root>, &'a Mark)>, watches: Watches) -> Self {
        let mut tree = Self {
            roots: Vec::new(),
            watches,
            nodes: Map::default(),
            marks: Map::default(),
            unwatched: Set::default(),
            unwatched_cause: None,
            attending: Set::default(),
            adrift: Set::default(),
            lingering: Map::default(),
            next: Place::FIRST,
        };
        for (root, &mark) in roots {
            let place = tree.number(root.volume());
            let directory = Arc::new(Directory::new(root, b"").at(place));
            tree.roots.push(Arc::clone(&directory));
            tree.nodes.insert(place, Node::new(directory, Some(mark), None, None, Arrival::Found));
            tree.marks.insert(mark, place);
        }
        tree
    }

    fn number(&mut self, volume: usize) -> Place {
        let place = self.next;
        self.next = place.next();
        place.on_volume(volume)
    }

    /// Whose watch it is, if it still is one's.
    #[must_use]
    pub fn of(&self, mark: Mark) -> Option<Place> {
        self.marks.get(&mark).copied()
    }

    /// What is kept for a directory, while it is in the tree.
    #[must_use]
    pub fn get(&self, place: Place) -> Option<&Node> {
        self.nodes.get(&place).filter(|node| !node.left)
    }

    /// The same, to be changed.
    pub fn get_mut(&mut self, place: Place) -> Option<&mut Node> {
        self.nodes.get_mut(&place).filter(|node| !node.left)
    }

    /// The data directory that this is, if it is one.
    #[must_use]
    pub fn root(&self, place: Place) -> Option<&Root> {
        self.roots.iter().find(|directory| directory.place() == place).map(|directory| directory.root())
    }

    /// The data directories.
    #[must_use]
    pub fn roots(&self) -> &[Arc<Directory>] {
        &self.roots
    }

    /// The directories in the tree.
    pub fn iter(&self) -> impl Iterator<Item = (Place, &Node)> {
        self.nodes.iter().filter(|(_, node)| !node.left).map(|(place, node)| (*place, node))
    }

    /// The same, to be changed.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Node> {
        self.nodes.values_mut().filter(|node| !node.left)
    }

    /// Directories without a watch.
    #[must_use]
    pub fn unwatched(&self) -> &Set<Place> {
        &self.unwatched
    }

    /// Why the last one has none.
    #[must_use]
    pub fn unwatched_cause(&self) -> Option<Errno> {
        self.unwatched_cause
    }

    /// How many are watched.
    #[must_use]
    pub fn watched(&self) -> usize {
        self.marks.len()
    }

    /// The parent and the name of a directory below a root.
    #[must_use]
    pub fn parent(&self, place: Place) -> Option<(Place, Name)> {
        self.get(place)?.parent.clone()
    }

    /// The sub-directory of a name, where it is in the tree.
    #[must_use]
    pub fn child(&self, place: Place, name: &Name) -> Option<Place> {
        self.get(place)?.children.get(name).copied()
    }

    /// The names of its sub-directories that are in the tree.
    #[must_use]
    pub fn children(&self, place: Place) -> Vec<Name> {
        self.get(place).map(|node| node.children.keys().cloned().collect()).unwrap_or_default()
    }

    /// A file of it goes to the readers.
    pub fn handed_out(&mut self, place: Place) {
        if let Some(node) = self.nodes.get_mut(&place) {
            node.in_flight += 1;
        }
    }

    /// A file of it came back.
    pub fn returned(&mut self, place: Place) {
        let Some(node) = self.nodes.get_mut(&place) else { return };
        node.in_flight -= 1;
        if node.left && node.in_flight == 0 {
            self.lingering.remove(node.directory.prefix());
            self.nodes.remove(&place);
        }
    }

    /// Looks at what stands at a name: it is watched from then on. What is given up for it is added to `left`.
    pub fn resolve(&mut self, parent: Place, name: &Name, arrival: Arrival, left: &mut Vec<Left>) -> Stands {
        let Some(node) = self.get(parent) else { return Stands::Nothing };
        let existing = node.children.get(name).copied();
        let (above, below) = (Arc::clone(&node.directory), node.directory.below(name));
        let opened = above.root().open_directory(&below).and_then(|dir| Ok((fstat(&dir)?.st_ino, dir)));
        let (inode, dir) = match opened {
            Ok((inode, dir)) => (Some(inode), dir),
            Err(errno) => {
                if nothing_to_enter(Call::Open, errno) || self.is_other(existing, above.root(), &below) {
                    existing.into_iter().for_each(|place| self.leave(place, left));
                }
                return if nothing_to_enter(Call::Open, errno) { Stands::Nothing } else { Stands::Refused(errno) };
            }
        };
        let mark = self.watch(dir.as_fd());
        // Before anything is given up, for that sets watches adrift: this one is the new directory's.
        let elsewhere = mark.and_then(|mark| self.of(mark)).filter(|&place| Some(place) != existing);
        if elsewhere.is_some_and(|place| self.nodes[&place].parent.is_none()) {
            return Stands::Nothing; // a path through a directory that has been moved since
        }
        if let Some(place) = elsewhere {
            self.unmark(place);
        }
        let same = existing.filter(|place| match (self.nodes[place].mark, mark) {
            (Some(before), now) => Some(before) == now,
            (None, _) => self.nodes[place].inode == inode,
        });
        if same.is_none() {
            existing.into_iter().for_each(|place| self.leave(place, left));
        }
        elsewhere.into_iter().for_each(|place| self.leave(place, left));
        // What was given up may have held the parent, or what was known here.
        if self.get(parent).is_none() {
            self.adrift.extend(mark);
            return Stands::Nothing;
        }
        match same {
            Some(place) => Stands::Same { place, again: self.mark(place, mark) },
            None => {
                let place = self.enter(&above, name, &below, inode, arrival);
                self.mark(place, mark);
                Stands::New(place)
            }
        }
    }

    /// Whether another than a directory that we know stands at its name, which is shut. What cannot be looked at is taken for
    /// the same: what is known of it is not thrown away for a moment's want of rights.
    fn is_other(&self, existing: Option<Place>, root: &Root, below: &[u8]) -> bool {
        let Some(node) = existing.and_then(|place| self.get(place)) else { return false };
        root.look(below).is_ok_and(|stat| Some(stat.st_ino) != node.inode)
    }

    /// Has the watches of exactly these directories tell of changed rights too, as far as they let us: without the right to
    /// read a directory its watch stays as it is, and time alone brings what is in it.
    pub fn attend(&mut self, wanted: &Set<Place>) {
        for place in wanted.difference(&self.attending).copied().collect::<Vec<_>>() {
            if self.attend_one(place, true) {
                self.attending.insert(place);
            }
        }
        for place in self.attending.difference(wanted).copied().collect::<Vec<_>>() {
            self.attend_one(place, false);
            self.attending.remove(&place);
        }
    }

    fn attend_one(&mut self, place: Place, attributes: bool) -> bool {
        let Some(node) = self.get(place) else { return false };
        let Some(mark) = node.mark else { return false };
        let Ok(dir) = node.directory.root().open_directory(&node.directory.below(b"")) else { return false };
        match self.watches.attend(dir.as_fd(), attributes) {
            Ok(told) if told == mark => true,
            Ok(told) => {
                // Another stands there by now, whose event is still to come: it is not for us to watch it yet.
                if self.of(told).is_none() {
                    self.adrift.insert(told);
                }
                false
            }
            Err(_) => false,
        }
    }

    /// Gives up a directory, and those below it.
    pub fn leave(&mut self, place: Place, left: &mut Vec<Left>) {
        let Some((parent, name)) = self.parent(place) else { return };
        if let Some(parent) = self.nodes.get_mut(&parent) {
            parent.children.remove(&name);
        }
        let mut places = vec![place];
        while let Some(place) = places.pop() {
            let mark = self.unmark(place);
            self.adrift.extend(mark);
            self.unwatched.remove(&place);
            self.attending.remove(&place);
            let Some(node) = self.nodes.get_mut(&place) else { continue };
            places.extend(node.children.drain().map(|(_, child)| child));
            let directory = Arc::clone(&node.directory);
            left.push(Left { place, directory, known: mem::take(&mut node.known) });
            if node.in_flight == 0 {
                self.nodes.remove(&place);
            } else {
                node.left = true;
                node.directory.update(mem::take);
                self.lingering.insert(node.directory.prefix().to_vec(), place);
            }
        }
    }

    /// Ends watches adrift, so many at the most.
    pub fn end_adrift(&mut self, most: usize) {
        if self.adrift.is_empty() {
            return;
        }
        let ended: Vec<Mark> = self.adrift.iter().take(most).copied().collect();
        for mark in ended {
            self.adrift.remove(&mark);
            self.watches.remove(mark);
        }
        if self.adrift.is_empty() {
            self.adrift = Set::default(); // a large one's memory goes with it
        }
    }

    /// A watch has ended by itself.
    pub fn ended(&mut self, mark: Mark) {
        self.adrift.remove(&mark);
    }

    /// At the limit one adrift makes room; a directory that is watched still tells its watch.
    fn watch(&mut self, directory: BorrowedFd<'_>) -> Option<Mark> {
        let added = self.watches.add(directory).or_else(|errno| {
            if self.adrift.is_empty() {
                return Err(errno);
            }
            self.end_adrift(1);
            self.watches.add(directory)
        });
        match added {
            Ok(mark) => {
                self.adrift.remove(&mark);
                Some(mark)
            }
            // It is kept without a watch, and why is told with the number of those.
            Err(errno) => {
                self.unwatched_cause = Some(errno);
                None
            }
        }
    }

    fn enter(&mut self, above: &Directory, name: &Name, below: &[u8], inode: Option<u64>, arrival: Arrival) -> Place {
        let directory = above.deeper(below);
        let up = Some((above.place(), Arc::clone(name)));
        let place = match self.lingering.remove(directory.prefix()) {
            Some(place) => {
                if let Some(node) = self.nodes.get_mut(&place) {
                    (node.left, node.listed, node.arrival, node.inode) = (false, false, arrival, inode);
                    node.parent = up;
                }
                place
            }
            None => {
                let place = self.number(above.root().volume());
                self.nodes.insert(place, Node::new(Arc::new(directory.at(place)), None, inode, up, arrival));
                place
            }
        };
        if let Some(parent) = self.nodes.get_mut(&above.place()) {
            parent.children.insert(Arc::clone(name), place);
        }
        place
    }

    /// Whether a directory without a watch has one now.
    fn mark(&mut self, place: Place, mark: Option<Mark>) -> bool {
        let Some(node) = self.nodes.get_mut(&place) else { return false };
        match mark {
            Some(mark) => {
                let new = node.mark.replace(mark) != Some(mark);
                self.marks.insert(mark, place);
                self.unwatched.remove(&place);
                if new {
                    self.attending.remove(&place);
                }
                new
            }
            None => {
                self.unwatched.insert(place);
                false
            }
        }
    }

    fn unmark(&mut self, place: Place) -> Option<Mark> {
        let mark = self.nodes.get_mut(&place)?.mark.take()?;
        self.marks.remove(&mark);
        Some(mark)
    }
}

impl Node {
    fn new(
        directory: Arc<Directory>,
        mark: Option<Mark>,
        inode: Option<u64>,
        parent: Option<(Place, Name)>,
        arrival: Arrival,
    ) -> Self {
        Self {
            directory,
            known: Map::default(),
            recalled: false,
            listed: false,
            arrival,
            mark,
            inode,
            parent,
            children: Map::default(),
            in_flight: 0,
            left: false,
        }
    }
}
