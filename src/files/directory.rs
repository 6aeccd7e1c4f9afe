//! The directories that files are in, each with an id, a path and an index of its names.

use std::mem;
use std::sync::{Arc, PoisonError, RwLock};

use super::errno::Call;
use super::names::{Name, Names, sorted};
use super::root::Root;
use super::unread::{Unread, Why};

/// If more than one in so many of a listing's names differ from the index, a new index is built instead of changing this
/// one: that takes less time, and it does not hold up the readers.
const ONE_BY_ONE_SHARE: usize = 16;

/// A number that stands for a watched directory. It is not reused while anything is kept under it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DirectoryId(u64);

impl DirectoryId {
    /// The id of the first data directory, if it is on the first volume.
    pub const FIRST: Self = Self(0);

    /// Bits of the number itself, which are enough for all directories in the life of a tree. The volume's number is in the
    /// bits above.
    const BITS: u32 = 48;

    /// Returns the number as the id of a directory on this volume ([`Root::volume`]).
    #[must_use]
    pub fn on_volume(self, volume: usize) -> Self {
        debug_assert!(
            volume < 1 << (u64::BITS - Self::BITS),
            "volumes are file systems of data directories: there are few"
        );
        Self(self.0 & ((1 << Self::BITS) - 1) | (volume as u64) << Self::BITS)
    }

    /// The number of the directory's volume.
    #[must_use]
    pub fn volume(self) -> usize {
        (self.0 >> Self::BITS) as usize
    }

    /// The next id on the same volume.
    #[must_use]
    pub fn next(self) -> Self {
        let next = Self(self.0 + 1);
        debug_assert_eq!(next.volume(), self.volume(), "the number does not reach the volume's bits");
        next
    }
}

/// One directory: its path, and the index of its names. The source of work changes the index, the readers look up
/// neighbors in it.
#[derive(Debug)]
pub struct Directory {
    root: Arc<Root>,
    id: DirectoryId,
    /// The path below the root, with a `/` at its end; empty for the root itself.
    below: Box<[u8]>,
    /// The real path, with a `/` at its end.
    absolute: Box<[u8]>,
    names: RwLock<Names>,
}

impl Directory {
    /// Makes the directory at a path below a root (empty for the root itself), without names.
    #[must_use]
    pub fn new(root: &Arc<Root>, below: &[u8]) -> Self {
        let with_slash = |path: &[u8]| {
            let slash: &[u8] = if path.is_empty() || path.ends_with(b"/") { b"" } else { b"/" };
            [path, slash].concat()
        };
        let below = with_slash(below);
        let absolute = [&with_slash(root.path().as_os_str().as_encoded_bytes()), &below[..]].concat();
        debug_assert!(absolute.ends_with(b"/"), "the path of a data directory is not empty");
        let root = Arc::clone(root);
        Self { root, id: DirectoryId::FIRST, below: below.into(), absolute: absolute.into(), names: RwLock::default() }
    }

    /// Makes the directory at another path below the same root, without names.
    #[must_use]
    pub fn deeper(&self, below: &[u8]) -> Self {
        Self::new(&self.root, below)
    }

    /// Returns the directory with this id.
    #[must_use]
    pub fn at(self, id: DirectoryId) -> Self {
        Self { id, ..self }
    }

    /// The data directory that it is in, or is.
    #[must_use]
    pub fn root(&self) -> &Root {
        &self.root
    }

    /// The directory's id.
    #[must_use]
    pub fn id(&self) -> DirectoryId {
        self.id
    }

    /// The real path with a `/` at its end, which all paths below begin with.
    #[must_use]
    pub fn prefix(&self) -> &[u8] {
        &self.absolute
    }

    /// The absolute path of a name in the directory.
    #[must_use]
    pub fn absolute(&self, name: &[u8]) -> Vec<u8> {
        [&self.absolute, name].concat()
    }

    /// The path of a name in the directory, from the root.
    #[must_use]
    pub fn below(&self, name: &[u8]) -> Vec<u8> {
        let mut path = Vec::with_capacity(self.below.len() + name.len());
        self.append_below(name, &mut path);
        path
    }

    /// Appends the path of a name in the directory, from the root, to a buffer.
    pub fn append_below(&self, name: &[u8], buffer: &mut Vec<u8>) {
        buffer.extend_from_slice(&self.below);
        buffer.extend_from_slice(name);
    }

    /// Checks that the path leads to the directory with this inode.
    ///
    /// # Errors
    /// [`Unread::Busy`] when it leads to another directory, or the error of stat(2).
    pub fn confirm(&self, inode: u64) -> Result<(), Unread> {
        let path = self.below.strip_suffix(b"/").unwrap_or(b".");
        let stat = self.root.look(path).map_err(|errno| Unread::of(Call::Stat, errno))?;
        if stat.st_ino == inode { Ok(()) } else { Err(Unread::Busy(Why::DirectoryMoved)) }
    }

    /// Passes the neighbors of a name to `take`. The index does not change while it runs.
    pub fn with_neighbors<T>(&self, name: &Name, take: impl FnOnce(&[&Name]) -> T) -> T {
        take(&self.names.read().unwrap_or_else(PoisonError::into_inner).neighbors(name))
    }

    /// The name as the index holds it, if it holds a regular file of this name.
    #[must_use]
    pub fn name(&self, name: &[u8]) -> Option<Name> {
        self.names.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    /// Whether the index holds a regular file of this name.
    #[must_use]
    pub fn contains(&self, name: &[u8]) -> bool {
        self.names.read().unwrap_or_else(PoisonError::into_inner).contains(name)
    }

    /// Makes the index hold exactly these names. Readers wait only for the change itself, not for the comparison or for a
    /// new index.
    pub fn set_names<'a>(&self, names: impl IntoIterator<Item = &'a Name>) {
        let names = sorted(names);
        let (missing, surplus) = self.names.read().unwrap_or_else(PoisonError::into_inner).differences(&names);
        if (missing.len() + surplus.len()) * ONE_BY_ONE_SHARE > names.len() {
            let mut names = Names::of_sorted(names);
            self.update(|own| mem::swap(own, &mut names)); // the old index is dropped after the lock
        } else {
            self.update(|own| {
                surplus.iter().for_each(|name| own.remove(name));
                missing.iter().for_each(|name| own.insert(name));
            });
        }
    }

    /// Changes the index.
    pub fn update<T>(&self, change: impl FnOnce(&mut Names) -> T) -> T {
        // A panic leaves a usable index, because each change of its sets is complete before the next begins.
        change(&mut self.names.write().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A root of this path. Its descriptor is that of `/`, because tests ask for the path only.
    pub fn root_at(path: &str) -> Arc<Root> {
        Arc::new(Root::new(std::fs::File::open("/").unwrap().into(), path.as_bytes()))
    }

    proptest! {
        #[test]
        fn a_path_is_the_directory_and_the_name_byte_for_byte(
            root in prop::sample::select(vec!["/", "/data", "/d/\u{fffd}"]),
            below in prop::sample::select(vec![&b""[..], b"sub", b"\xff/sub"]),
            name in prop::collection::vec(prop::sample::select((1..=255u8).filter(|byte| *byte != b'/').collect::<Vec<u8>>()), 1..=255),
        ) {
            let directory = Directory::new(&root_at(root), below);
            for (path, ancestors) in [(directory.absolute(&name), vec![root.as_bytes(), below]), (directory.below(&name), vec![below])] {
                prop_assert_eq!(path.rsplit(|byte| *byte == b'/').next(), Some(&name[..]));
                let parts = |path: &[u8]| -> Vec<Vec<u8>> {
                    path.split(|byte| *byte == b'/').filter(|part| !part.is_empty()).map(<[u8]>::to_vec).collect()
                };
                let expected: Vec<Vec<u8>> = ancestors.into_iter().chain([&name[..]]).flat_map(parts).collect();
                prop_assert_eq!(parts(&path), expected);
                prop_assert!(!path.windows(2).any(|pair| pair == b"//"));
            }
        }
    }

    #[test]
    fn paths_are_joined_by_one_slash() {
        let root = Directory::new(&root_at("/data"), b"");
        assert_eq!((root.absolute(b"f"), root.below(b"f")), (b"/data/f".to_vec(), b"f".to_vec()));
        let sub = Directory::new(&root_at("/"), b"sub");
        assert_eq!((sub.absolute(b"f"), sub.below(b"f")), (b"/sub/f".to_vec(), b"sub/f".to_vec()));
    }
}
