//! The writer: a seeded sequence of all that users do to files, over so few names that their histories cross.
//! Operations on directories are in `directories`.

use std::collections::VecDeque;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, utimensat};

use super::Kind;
use super::pace::{Ending, Pace};
use super::rights::Huge;
use crate::oracle::name::{Name, Side};
use crate::oracle::tree::{Handle, Open, Tree};
use crate::support::files::{Random, noise};

const DATA_NAMES: usize = 40;
/// In each of several directories.
const NAMES_EACH: usize = 7;
const STAGING_NAMES: usize = 6;
/// One of so many operations is one on directories.
const ONE_ON_DIRECTORIES: usize = 5;
/// Writers that stay open across operations.
const SLOW_MAX: usize = 3;
/// Symbolic links on both sides.
const LINKS_MAX: usize = 8;
/// Between two operations; without any pause they come in bursts.
const PAUSE_MS: usize = 5;
/// The mtime to which files are set back: 2001-09-09.
const LONG_AGO: i64 = 1_000_000_000;

/// A file that is written in several parts, with other operations between them.
struct Slow {
    handle: Handle,
    parts: usize,
}

pub struct Workload {
    pub(super) random: Random,
    pub(super) kind: Kind,
    seed: u64,
    pub(super) contents: u64,
    slow: Vec<Slow>,
    /// Whether files and directories may be closed to the service, which is another user then.
    pub(super) rights: bool,
    /// Whether there are files too large to be read to their end.
    with_huge: bool,
    pub(super) huge: Vec<Huge>,
    /// How many huge files there were.
    pub huge_so_far: usize,
    pub tree: Tree,
    /// Operations on directories so far.
    pub on_directories: usize,
    /// The last renames of directories, from and to.
    pub(super) moves: VecDeque<(Name, Name)>,
}

impl Workload {
    pub fn new(kind: Kind, seed: u64, tree: Tree, rights: bool, with_huge: bool) -> Self {
        Self {
            random: Random::new(seed),
            kind,
            seed,
            contents: 0,
            slow: Vec::new(),
            rights,
            with_huge,
            huge: Vec::new(),
            huge_so_far: 0,
            tree,
            on_directories: 0,
            moves: VecDeque::new(),
        }
    }

    /// Works until the pace ends, then closes what is open.
    pub fn run(mut self, pace: &Pace) -> Self {
        let _ending = Ending(pace);
        while pace.step() {
            self.operate();
            if self.random.below(3) == 0 {
                std::thread::sleep(Duration::from_millis(self.random.below(PAUSE_MS) as u64));
            }
        }
        for slow in std::mem::take(&mut self.slow) {
            self.tree.close(slow.handle);
        }
        self.remove_huge(true);
        self
    }

    /// Opens all files and directories to the service.
    pub fn open_all(&mut self) {
        self.open_some(1);
    }

    fn operate(&mut self) {
        self.tree.journal.operation += 1;
        self.remove_huge(false);
        if self.with_huge && self.random.below(15) == 0 {
            return self.make_huge();
        }
        if !self.slow.is_empty() && self.random.below(4) == 0 {
            return self.go_on_writing();
        }
        if self.kind == Kind::Recursive && self.random.below(ONE_ON_DIRECTORIES) == 0 {
            self.on_directories += 1;
            return self.operate_on_directories();
        }
        let (name, other) = (self.data(), self.data());
        self.operate_on(&name, &other);
    }

    pub(super) fn operate_on(&mut self, name: &Name, other: &Name) {
        if self.tree.is_directory(name) || self.tree.is_directory(other) {
            return self.move_directory(name, other);
        }
        if self.tree.is_free(name) {
            return self.make(name, other);
        }
        if self.tree.is_link(name) {
            return self.operate_on_link(name, other);
        }
        match self.random.below(130) {
            0..16 => self.rewrite(name),
            16..24 => self.append(name),
            24..32 => self.overwrite(name),
            32..38 if self.slow.len() < SLOW_MAX => {
                let how = match self.random.below(3) {
                    0 => Open::Emptied,
                    1 => Open::Append,
                    _ => Open::At(self.random.below(self.tree.length(name) + 1)),
                };
                self.begin_slow(name, &how);
            }
            38..43 if self.tree.length(name) > 0 => self.overwrite_mapped(name),
            43..52 => self.save(name),
            52..62 => self.tree.rename(name, other),
            62..66 if self.tree.is_file(other) => self.tree.exchange(name, other),
            66..72 => self.tree.remove(name),
            72..76 => {
                self.tree.remove(name);
                self.rewrite(name);
            }
            76..82 if self.tree.is_free(other) => self.tree.link(name, other),
            82..86 if !self.tree.is_held_from_elsewhere(name) => {
                let staged = self.staged();
                self.tree.rename(name, &staged);
            }
            86..92 => self.retouch(name),
            92..95 => self.open_and_close(name),
            95..105 if self.rights => self.operate_on_rights(name),
            105..115 => self.touch_metadata(name),
            115..123 => self.hurry(name, other),
            123..125 => self.link_to(name, other),
            _ => self.save(name),
        }
    }

    /// Makes the name appear in one of the ways there are.
    fn make(&mut self, name: &Name, other: &Name) {
        match self.random.below(13) {
            0..4 => self.rewrite(name),
            4 if self.slow.len() < SLOW_MAX => self.begin_slow(name, &Open::Emptied),
            5 => self.save(name),
            6 if self.tree.is_file(other) => self.tree.link(other, name),
            7 => self.appear_from_nameless(name),
            8 if self.rights => self.operate_on_rights(name),
            9 => self.link_to(name, other),
            10 => self.hurry(name, other),
            _ => self.move_in(name),
        }
    }

    /// Makes `name` a symbolic link to `target`, whatever they are.
    fn link_to(&mut self, name: &Name, target: &Name) {
        if self.tree.links() >= LINKS_MAX {
            return self.rewrite(name);
        }
        if self.tree.is_free(name) {
            return self.tree.symbolic_link(name, name, target);
        }
        // As `ln -sfn` does it.
        let staged = self.staged();
        if self.tree.is_free(&staged) {
            self.tree.symbolic_link(&staged, name, target);
            self.tree.rename(&staged, name);
        }
    }

    fn operate_on_link(&mut self, name: &Name, other: &Name) {
        match self.random.below(10) {
            0..3 => self.link_to(name, other),
            3..5 => self.tree.rename(name, other),
            5 if !self.tree.is_free(other) => self.tree.exchange(name, other),
            6 => self.tree.remove(name),
            7 => {
                self.tree.remove(name);
                self.rewrite(name);
            }
            8 => self.save(name),
            _ => self.hurry(name, other),
        }
    }

    /// Makes, renames and removes a file faster than events are read, as tests of file systems do.
    fn hurry(&mut self, name: &Name, other: &Name) {
        for _ in 0..=self.random.below(4) {
            if self.tree.is_free(name) || self.random.below(2) == 0 {
                self.rewrite_unlinked(name);
            }
            match self.random.below(4) {
                0 if name != other && self.tree.is_free(other) => {
                    self.tree.rename(name, other);
                    self.tree.rename(other, name);
                }
                1 => {
                    let staged = self.staged();
                    if self.tree.is_free(&staged) && !self.tree.is_held_from_elsewhere(name) {
                        self.tree.rename(name, &staged);
                        self.tree.rename(&staged, name);
                    }
                }
                2 => {
                    self.tree.remove(name);
                    self.rewrite(name);
                }
                _ => self.touch_if_file(name),
            }
        }
    }

    fn touch_if_file(&mut self, name: &Name) {
        if self.tree.is_file(name) {
            self.touch_metadata(name);
        }
    }

    pub(super) fn rewrite(&mut self, name: &Name) {
        let bytes = self.content();
        self.tree.save(name, &bytes);
    }

    fn append(&mut self, name: &Name) {
        let bytes = self.content();
        let mut handle = self.tree.open(name, &Open::Append);
        self.tree.write(&mut handle, &bytes);
        self.tree.close(handle);
    }

    /// Writes within the same length, so that no size distinguishes the versions.
    fn overwrite(&mut self, name: &Name) {
        let length = self.tree.length(name);
        let start = self.random.below(length + 1);
        let bytes = self.bytes((length - start).min(100_000));
        let mut handle = self.tree.open(name, &Open::At(start));
        self.tree.write(&mut handle, &bytes);
        self.tree.close(handle);
        if self.random.below(3) == 0 {
            self.set_back(name);
        }
    }

    fn overwrite_mapped(&mut self, name: &Name) {
        let bytes = self.bytes(self.tree.length(name));
        let handle = self.tree.open(name, &Open::At(0));
        let outlive = self.random.below(2) == 0;
        self.tree.write_mapped(handle, &bytes, outlive);
    }

    fn begin_slow(&mut self, name: &Name, how: &Open) {
        let handle = self.tree.open(name, how);
        let parts = 1 + self.random.below(4);
        self.slow.push(Slow { handle, parts });
    }

    fn go_on_writing(&mut self) {
        let which = self.random.below(self.slow.len());
        let bytes = self.content();
        let slow = &mut self.slow[which];
        self.tree.write(&mut slow.handle, &bytes);
        slow.parts -= 1;
        if slow.parts == 0 {
            let done = self.slow.swap_remove(which);
            self.tree.close(done.handle);
        }
    }

    /// Writes under another name first and renames that over the old one, as editors do.
    fn save(&mut self, name: &Name) {
        let temporary = if self.random.below(2) == 0 { self.staged() } else { self.data() };
        if temporary == *name || self.tree.is_directory(&temporary) || self.tree.linked(&temporary) {
            return self.rewrite_unlinked(name);
        }
        self.rewrite(&temporary);
        self.tree.rename(&temporary, name);
    }

    pub(super) fn rewrite_unlinked(&mut self, name: &Name) {
        if self.tree.is_file(name) || self.tree.is_link(name) {
            self.tree.remove(name);
        }
        self.rewrite(name);
    }

    fn appear_from_nameless(&mut self, name: &Name) {
        let bytes = self.content();
        let mut handle = self.tree.nameless(name);
        let written_before = self.random.below(2) == 0;
        if written_before {
            self.tree.write(&mut handle, &bytes);
        }
        self.tree.give_name(&handle, name);
        if !written_before {
            self.tree.write(&mut handle, &bytes);
        }
        self.tree.close(handle);
    }

    fn move_in(&mut self, name: &Name) {
        let staged = self.staged();
        if self.tree.is_free(&staged) {
            self.rewrite(&staged);
        }
        self.tree.rename(&staged, name);
    }

    fn retouch(&mut self, name: &Name) {
        match self.random.below(3) {
            0 => self.touch_metadata(name),
            1 => self.tree.retouch(name, "touched", |path| set_modified(path, None)),
            _ => self.set_back(name),
        }
    }

    /// Gives many versions of many files the same mtime.
    fn set_back(&mut self, name: &Name) {
        self.tree.retouch(name, "set back", |path| set_modified(path, Some(LONG_AGO)));
    }

    fn open_and_close(&mut self, name: &Name) {
        let handle = self.tree.open(name, &Open::Append);
        self.tree.close(handle);
    }

    pub(super) fn data(&mut self) -> Name {
        let directories = self.tree.directories(Side::Data);
        let directory = &directories[self.random.below(directories.len())];
        let names = if self.kind == Kind::Recursive { NAMES_EACH } else { DATA_NAMES };
        self.file_in(directory, names)
    }

    fn staged(&mut self) -> Name {
        self.file_in(&Name::top(Side::Staging), STAGING_NAMES)
    }

    pub(super) fn file_of(&mut self, directory: &Name) -> Name {
        self.file_in(directory, NAMES_EACH)
    }

    fn file_in(&mut self, directory: &Name, names: usize) -> Name {
        directory.child(&format!("file-{:02}", self.random.below(names)))
    }

    /// Mostly small, sometimes empty, sometimes long enough for a fault to come during the read.
    fn content(&mut self) -> Vec<u8> {
        let length = match self.random.below(100) {
            0..5 => 0,
            5..85 => self.random.below(20_000),
            85..97 => self.random.below(500_000),
            _ => 1_000_000 + self.random.below(6_000_000),
        };
        self.bytes(length)
    }

    /// Never the same bytes twice, unless they are few.
    fn bytes(&mut self, length: usize) -> Vec<u8> {
        self.contents += 1;
        noise(length, self.seed << 32 | self.contents)
    }
}

/// Sets mtime to a time or to now, and keeps atime.
fn set_modified(path: &Path, seconds: Option<i64>) {
    let tv_nsec = if seconds.is_some() { 0 } else { UTIME_NOW };
    let last_modification = Timespec { tv_sec: seconds.unwrap_or(0), tv_nsec };
    let last_access = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
    utimensat(CWD, path, &Timestamps { last_access, last_modification }, AtFlags::empty()).expect("utimensat");
}
