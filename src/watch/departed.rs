//! What was confirmed in directories that were found to have left their paths, while events are lost.
//!
//! Pure: no I/O. After IN_Q_OVERFLOW a rescan can find another directory at a path than the tree has there, and below it
//! a directory that is at its own path as before. The files of that one were published at these paths already, while the
//! tree took the directory above for the one that it had there. So what was confirmed for them holds, and they are not
//! published again. It is kept until the rescan ends, and not beyond that the directory enters the tree at another path, or
//! another directory enters the tree at this one.

use crate::files::name_map::NameMap;
use crate::files::names::{Map, Name};
use crate::job::Known;

/// Names that are kept at most, some 100 bytes each. The files of what goes beyond it are published again.
const NAMES_MAX: usize = 1 << 16;

/// See the module.
#[derive(Default)]
pub(super) struct Departed {
    /// By the directory's inode: its absolute path, which ends in `/`, and what was confirmed in it.
    directories: Map<u64, (Vec<u8>, NameMap<Known>)>,
    inodes: Map<Vec<u8>, u64>,
    names: usize,
    /// A directory was kept.
    any: bool,
}

impl Departed {
    /// Keeps what was confirmed in a directory that left its path. The rows of these files are deleted.
    pub(super) fn keep(&mut self, inode: u64, path: &[u8], known: &NameMap<Known>) {
        self.enter(inode, path);
        if known.is_empty() || self.names + known.len() > NAMES_MAX {
            return;
        }
        self.names += known.len();
        self.any = true;
        let known = known.iter().map(|(name, known)| (Name::clone(name), known.rowless())).collect();
        self.directories.insert(inode, (path.to_vec(), known));
        self.inodes.insert(path.to_vec(), inode);
    }

    /// A directory enters the tree at a path. Returns what was confirmed in it at this path, and forgets what was confirmed in
    /// it elsewhere and in another directory here.
    pub(super) fn enter(&mut self, inode: u64, path: &[u8]) -> NameMap<Known> {
        let before = self.inodes.get(path).copied();
        let known = before.map(|before| self.remove(before)).filter(|_| before == Some(inode));
        self.remove(inode);
        known.unwrap_or_default()
    }

    /// Whether this directory, which left this path, is kept.
    pub(super) fn keeps(&self, inode: u64, path: &[u8]) -> bool {
        self.inodes.get(path) == Some(&inode)
    }

    /// Whether any directory was kept.
    pub(super) fn has_kept(&self) -> bool {
        self.any
    }

    fn remove(&mut self, inode: u64) -> NameMap<Known> {
        let Some((path, known)) = self.directories.remove(&inode) else { return NameMap::default() };
        self.inodes.remove(&path);
        self.names -= known.len();
        known
    }

    /// Another version was published at this path.
    pub(super) fn forget(&mut self, directory: &[u8], name: &Name) {
        let inode = self.inodes.get(directory);
        if let Some((_, known)) = inode.and_then(|inode| self.directories.get_mut(inode))
            && known.remove(name).is_some()
        {
            self.names -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(count: usize) -> NameMap<Known> {
        (0..count).map(|number| (number.to_string().into_bytes().into(), Known::PUBLISHED)).collect()
    }

    #[test]
    fn a_directory_gets_back_what_was_confirmed_at_its_own_path() {
        let mut departed = Departed::default();
        departed.keep(1, b"/a/", &known(3));
        departed.forget(b"/a/", &b"1"[..].into());
        departed.forget(b"/b/", &b"2"[..].into());
        let back = departed.enter(1, b"/a/");
        assert_eq!((back.len(), back.get(b"2")), (2, Some(&Known::PUBLISHED.rowless())));
        assert!(departed.enter(1, b"/a/").is_empty());
        departed.keep(1, b"/a/", &known(3));
        assert!(departed.enter(2, b"/a/").is_empty(), "another directory was here");
        assert!(departed.enter(1, b"/a/").is_empty());
        departed.keep(1, b"/a/", &known(3));
        assert!(departed.enter(1, b"/b/").is_empty(), "it was elsewhere");
        assert!(departed.enter(1, b"/a/").is_empty());
        assert_eq!((departed.names, departed.directories.len(), departed.inodes.len()), (0, 0, 0));
    }

    #[test]
    fn the_names_are_bounded() {
        let mut departed = Departed::default();
        departed.keep(1, b"/a/", &known(NAMES_MAX - 1));
        departed.keep(2, b"/b/", &known(2));
        assert!(departed.enter(2, b"/b/").is_empty());
        departed.keep(1, b"/c/", &known(NAMES_MAX));
        assert_eq!((departed.names, departed.enter(1, b"/c/").len()), (NAMES_MAX, NAMES_MAX));
    }
}
