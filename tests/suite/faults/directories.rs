//! Operations on directories, over so few names that their histories cross: a name is now a file's, now a directory's.

use super::workload::Workload;
use crate::oracle::name::{Name, Side};

/// With more directories than these, none is made or moved there.
const DATA_DIRECTORIES: usize = 12;
const STAGING_DIRECTORIES: usize = 5;
/// Names of subdirectories in each directory.
const NAMES_EACH: usize = 4;
/// Levels of directories on either side.
const DEPTH_MAX: usize = 6;
/// How many names are tried to find a free one.
const TRIES: usize = 8;
/// How many moves can be undone.
const MOVES_REMEMBERED: usize = 8;

impl Workload {
    pub(super) fn operate_on_directories(&mut self) {
        let Some(directory) = self.directory(Side::Data) else { return self.make_directories() };
        if self.random.below(2) == 0 {
            // So that something in it is being read.
            self.work_in(&directory);
        }
        match self.random.below(100) {
            0..18 => self.make_directories(),
            18..22 => self.remove_an_empty_one(),
            22..30 => {
                let directory = self.the_lesser(directory);
                self.tree.remove_tree(&directory);
                if self.random.below(3) > 0 {
                    self.make_again(&directory);
                }
            }
            30..44 => {
                let place = self.place(Side::Data);
                self.move_directory(&directory, &place);
            }
            44..49 => {
                if let Some(empty) = self.free_place(Side::Data, &directory).filter(|_| self.room(Side::Data)) {
                    self.tree.make_directory(&empty);
                    self.rename(&directory, &empty);
                }
            }
            49..56 => self.move_there_and_back(&directory, Side::Data),
            56..64 => {
                let other = self.directory(Side::Data).unwrap_or_else(|| directory.clone());
                self.move_directory(&directory, &other);
            }
            64..70 if self.room(Side::Staging) => {
                let directory = self.the_lesser(directory);
                if let Some(staged) = self.free_place(Side::Staging, &directory) {
                    self.move_directory(&directory, &staged);
                }
            }
            64..79 => self.move_one_in(),
            79..83 => self.move_there_and_back(&directory, Side::Staging),
            83..95 => self.undo_a_move(),
            _ => match self.directory(Side::Staging) {
                Some(staged) => self.work_in(&staged),
                None => self.move_one_in(),
            },
        }
    }

    /// Renames or exchanges, whichever the kernel allows for the two names, if any.
    pub(super) fn move_directory(&mut self, from: &Name, to: &Name) {
        if from.within(to) || to.within(from) {
            return;
        }
        let leaves = from.side() != to.side() && [from, to].iter().any(|top| self.tree.is_held_from_elsewhere(top));
        if leaves {
            return;
        }
        let (from, to) = if self.tree.is_free(from) { (to, from) } else { (from, to) };
        if !self.fits(from, to) {
            return;
        }
        let renamed = self.tree.is_free(to) || (self.tree.is_directory(from) && self.tree.is_empty(to));
        if renamed {
            self.rename(from, to);
        } else if self.fits(to, from) {
            self.tree.exchange(from, to);
            self.remember(from, to);
        }
    }

    fn rename(&mut self, from: &Name, to: &Name) {
        self.tree.rename(from, to);
        self.remember(from, to);
    }

    fn remember(&mut self, from: &Name, to: &Name) {
        if self.moves.len() == MOVES_REMEMBERED {
            self.moves.pop_front();
        }
        self.moves.push_back((from.clone(), to.clone()));
    }

    /// Moves the same files back, with their old times, to paths where others were meanwhile.
    fn undo_a_move(&mut self) {
        if let Some((from, to)) = self.moves.pop_back()
            && !self.tree.is_free(&to)
            && self.tree.is_directory(&from.parent())
        {
            self.move_directory(&to, &from);
        }
    }

    /// Makes directories in one another and files in them at once.
    fn make_directories(&mut self) {
        let mut name = self.place(Side::Data);
        for _ in 0..=self.random.below(3) {
            if !self.room(Side::Data) || name.depth() > DEPTH_MAX || self.tree.is_directory(&name) {
                break;
            }
            self.make_directory(&name);
            if self.random.below(2) == 0 {
                self.work_in(&name);
            }
            if !self.tree.is_directory(&name) {
                break;
            }
            name = self.directory_in(&name);
        }
    }

    /// Replaces a file, if the name has one.
    fn make_directory(&mut self, name: &Name) {
        if self.tree.is_file(name) || self.tree.is_link(name) {
            self.tree.remove(name);
        }
        self.tree.make_directory(name);
    }

    fn make_again(&mut self, name: &Name) {
        if self.random.below(5) == 0 {
            return self.rewrite(name);
        }
        self.tree.make_directory(name);
        self.work_in(name);
    }

    fn remove_an_empty_one(&mut self) {
        let all = self.tree.directories(Side::Data).into_iter();
        let mut empty: Vec<Name> = all.filter(|name| !name.is_top() && self.tree.is_empty(name)).collect();
        if empty.is_empty() {
            let name = self.place(Side::Data);
            if !self.tree.is_free(&name) {
                return;
            }
            self.tree.make_directory(&name);
            empty.push(name);
        }
        self.tree.remove_directory(&empty[self.random.below(empty.len())]);
    }

    /// Moves it away and back, sometimes to another name.
    fn move_there_and_back(&mut self, directory: &Name, side: Side) {
        let Some(there) = self.free_place(side, directory) else { return };
        self.move_directory(directory, &there);
        if self.random.below(2) == 0 {
            self.work_in(&there);
        }
        let back = if self.random.below(4) == 0 { self.place(Side::Data) } else { directory.clone() };
        // Work in it may have moved what it was in.
        if self.tree.is_directory(&back.parent()) && self.tree.is_directory(&there) {
            self.move_directory(&there, &back);
        }
    }

    /// Moves a directory in, with files and directories in it and writers that still have files open.
    fn move_one_in(&mut self) {
        let staged = match self.directory(Side::Staging) {
            Some(staged) => staged,
            None => {
                let staged = self.directory_in(&Name::top(Side::Staging));
                self.make_directory(&staged);
                let inner = self.directory_in(&staged);
                self.tree.make_directory(&inner);
                for _ in 0..2 + self.random.below(4) {
                    let directory = if self.random.below(2) == 0 { &staged } else { &inner };
                    self.work_in(directory);
                }
                staged
            }
        };
        let place = self.place(Side::Data);
        self.move_directory(&staged, &place);
    }

    /// Does an operation on a file in it.
    fn work_in(&mut self, directory: &Name) {
        if self.tree.is_directory(directory) {
            let (name, other) = (self.file_of(directory), self.data());
            self.operate_on(&name, &other);
        }
    }

    /// A directory of this side other than its own.
    pub(super) fn directory(&mut self, side: Side) -> Option<Name> {
        let mut all = self.tree.directories(side);
        all.retain(|name| !name.is_top());
        if all.is_empty() { None } else { Some(all.swap_remove(self.random.below(all.len()))) }
    }

    /// This directory or a smaller one, so that not too much goes away at once.
    fn the_lesser(&mut self, directory: Name) -> Name {
        let other = self.directory(directory.side()).unwrap_or_else(|| directory.clone());
        if self.tree.height(&other) < self.tree.height(&directory) { other } else { directory }
    }

    /// A name for a directory, whether or not it is free.
    fn place(&mut self, side: Side) -> Name {
        let mut all = self.tree.directories(side);
        let parent = all.swap_remove(self.random.below(all.len()));
        self.directory_in(&parent)
    }

    /// A free name to which the directory can be renamed.
    fn free_place(&mut self, side: Side, directory: &Name) -> Option<Name> {
        let tries = (0..TRIES).map(|_| self.place(side)).collect::<Vec<_>>().into_iter();
        let mut free = tries.filter(|name| self.tree.is_free(name) && !name.within(directory));
        free.find(|name| self.fits(directory, name))
    }

    fn directory_in(&mut self, parent: &Name) -> Name {
        parent.child(&format!("dir-{}", self.random.below(NAMES_EACH)))
    }

    /// Whether the directory would not be too deep there.
    fn fits(&self, directory: &Name, place: &Name) -> bool {
        place.depth() + self.tree.height(directory) <= DEPTH_MAX
    }

    fn room(&self, side: Side) -> bool {
        let most = if side == Side::Data { DATA_DIRECTORIES } else { STAGING_DIRECTORIES };
        self.tree.directories(side).len() <= most
    }
}
