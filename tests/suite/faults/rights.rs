//! Operations that change no byte of a file: rights that root takes from the service and grants again, metadata, and
//! files that are too large to be read.

use std::path::Path;

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, XattrFlags, setxattr, utimensat};

use super::Kind;
use super::workload::Workload;
use crate::oracle::name::{Name, Side};
use crate::oracle::tree::OPEN_MODE;
use crate::support::files::chmod;
use crate::support::setup::NOBODY;

const ROOT: u32 = 0;
/// The mode of a directory that is open to the service.
const OPEN_DIRECTORY: u32 = 0o755;
/// Without search or read permission for the service, in each combination.
const SHUT_DIRECTORY: [u32; 4] = [0o000, 0o700, 0o744, 0o711];
const SHUT_FILE: [u32; 3] = [0o000, 0o600, 0o200];
/// Huge files at a time.
const HUGE_MAX: usize = 2;
/// How many operations a huge file lives for, at most.
const HUGE_LIFE: usize = 60;

/// A huge file, and how many operations it has left.
pub(super) struct Huge {
    name: Name,
    left: usize,
}

impl Workload {
    /// Files and directories are closed to the service, or opened to it again.
    pub(super) fn operate_on_rights(&mut self, name: &Name) {
        match self.random.below(10) {
            0..3 if self.tree.is_file(name) => self.shut(name),
            3..5 if self.kind == Kind::Recursive => {
                if let Some(directory) = self.directory(Side::Data) {
                    self.shut(&directory);
                }
            }
            5..7 => self.arrive_shut(name),
            _ => self.open_some(2),
        }
    }

    fn shut(&mut self, name: &Name) {
        let modes: &[u32] = if self.tree.is_directory(name) { &SHUT_DIRECTORY } else { &SHUT_FILE };
        let mode = modes[self.random.below(modes.len())];
        self.tree.set_rights(name, mode, ROOT);
        if self.random.below(2) == 0 {
            // At once.
            self.open(name);
        }
    }

    /// By its mode or by its owner.
    fn open(&mut self, name: &Name) {
        let (open, owned) = if self.tree.is_directory(name) { (OPEN_DIRECTORY, 0o700) } else { (OPEN_MODE, 0o600) };
        let (mode, owner) = if self.random.below(3) == 0 { (owned, NOBODY) } else { (open, ROOT) };
        self.tree.set_rights(name, mode, owner);
    }

    /// The file is closed until it is complete and for a while after, as with `umask 077; cp` and `install -m`.
    fn arrive_shut(&mut self, name: &Name) {
        self.tree.new_mode = 0o600;
        self.rewrite_unlinked(name);
        self.tree.new_mode = OPEN_MODE;
        if self.random.below(2) == 0 {
            self.open(name);
        }
    }

    /// Opens one of so many closed files and directories.
    pub(super) fn open_some(&mut self, one_of: usize) {
        for name in self.tree.names() {
            if !self.tree.is_link(&name) && !self.tree.is_open(&name) && self.random.below(one_of) == 0 {
                self.open(&name);
            }
        }
    }

    /// Changes metadata of a file that the service can read before and after. None of it makes another version.
    pub(super) fn touch_metadata(&mut self, name: &Name) {
        match self.random.below(5) {
            0 => {
                let status = self.tree.status(name);
                let mode = std::os::unix::fs::MetadataExt::mode(&status) & 0o777 ^ 0o100;
                self.tree.retouch(name, "has another mode", |path| chmod(path, mode));
            }
            1 => self.tree.retouch(name, "read, by its time of access", set_accessed),
            2 => self.tree.retouch(name, "has another attribute", |path| {
                // Not every file system has them.
                let _ = setxattr(path, "user.faults", b"value", XattrFlags::empty());
            }),
            3 if self.rights => self.tree.retouch(name, "has another group", |path| {
                std::os::unix::fs::lchown(path, None, Some(NOBODY)).expect("chown");
            }),
            _ => {
                let other = Name::top(Side::Staging).child("another-name");
                self.tree.link(name, &other);
                self.tree.remove(&other);
            }
        }
    }

    /// Makes a huge file, if there may be one more.
    pub(super) fn make_huge(&mut self) {
        let name = Name::top(Side::Data).child(&format!("huge-{}", self.contents));
        self.contents += 1;
        if self.huge.len() < HUGE_MAX {
            self.tree.make_huge(&name);
            self.huge_so_far += 1;
            let left = 1 + self.random.below(HUGE_LIFE);
            self.huge.push(Huge { name, left });
        }
    }

    /// Counts one operation and removes the files whose time is over, or all.
    pub(super) fn remove_huge(&mut self, all: bool) {
        let mut kept = std::mem::take(&mut self.huge);
        for huge in kept.extract_if(.., |huge| {
            huge.left -= 1;
            all || huge.left == 0
        }) {
            self.tree.remove_huge(&huge.name);
        }
        self.huge = kept;
    }
}

fn set_accessed(path: &Path) {
    let last_access = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
    let last_modification = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
    utimensat(CWD, path, &Timestamps { last_access, last_modification }, AtFlags::empty()).expect("utimensat");
}
