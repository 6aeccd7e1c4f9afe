//! The directories that files are in: a place, a path and an index each.

use std::mem;
use std::sync::{Arc, PoisonError, RwLock};

use super::errno::Call;
use super::names::{Name, Names, sorted};
use super::root::Root;
use super::unread::{Unread, Why};

/// Of a listing's names, one in so many at the most is added or removed by itself; where more are, a new index is
/// made, which takes less time than that would, and none of the readers'.
const ONE_BY_ONE_SHARE: usize = 16;

/// A number for a directory that is watched, in place of its path: never another's while anything is kept under it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DirectoryId(u64);

impl DirectoryId {
    /// The first data directory, if it is on the first volume.
    pub const FIRST: Self = Self(0);

    /// Bits of the number itself: no tree has so many directories in its life. The volume's stands above them.
    const BITS: u32 = 48;

    /// The same number, of a directory of this volume ([`Root::volume`]).
    #[must_use]
    pub fn on_volume(self, volume: usize) -> Self {
        Self(self.0 & ((1 << Self::BITS) - 1) | (volume as u64) << Self::BITS)
    }

    /// The volume that it is on.
    #[must_use]
    pub fn volume(self) -> usize {
        (self.0 >> Self::BITS) as usize
    }

    /// The one after this.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// One directory: where it is, and its index. The source of work changes it, the readers look at it.
#[derive(Debug)]
pub struct Directory {
    root: Arc<Root>,
    id: DirectoryId,
    /// Below the root, with a `/` at its end; empty for the root itself.
    below: Box<[u8]>,
    /// The real path, with a `/` at its end.
    absolute: Box<[u8]>,
    names: RwLock<Names>,
}

impl Directory {
    /// A directory below a root (empty for the root itself), without names.
    #[must_use]
    pub fn new(root: &Arc<Root>, below: &[u8]) -> Self {
        let with_slash = |path: &[u8]| {
            let slash: &[u8] = if path.is_empty() || path.ends_with(b"/") { b"" } else { b"/" };
            [path, slash].concat()
        };
        let below = with_slash(below);
        let absolute = [&with_slash(root.path().as_os_str().as_encoded_bytes()), &below[..]].concat();
        let root = Arc::clone(root);
        Self { root, id: DirectoryId::FIRST, below: below.into(), absolute: absolute.into(), names: RwLock::default() }
    }

    /// Another below the same root.
    #[must_use]
    pub fn deeper(&self, below: &[u8]) -> Self {
        Self::new(&self.root, below)
    }

    /// The same, under a number of its own.
    #[must_use]
    pub fn at(self, id: DirectoryId) -> Self {
        Self { id, ..self }
    }

    /// The data directory that it is in, or is.
    #[must_use]
    pub fn root(&self) -> &Root {
        &self.root
    }

    /// Its number.
    #[must_use]
    pub fn id(&self) -> DirectoryId {
        self.id
    }

    /// The real path, with a `/` at its end.
    #[must_use]
    pub fn prefix(&self) -> &[u8] {
        &self.absolute
    }

    /// The absolute path of a name in it.
    #[must_use]
    pub fn absolute(&self, name: &[u8]) -> Vec<u8> {
        [&self.absolute, name].concat()
    }

    /// The path below the root of a name in it.
    #[must_use]
    pub fn below(&self, name: &[u8]) -> Vec<u8> {
        let mut path = Vec::with_capacity(self.below.len() + name.len());
        self.append_below(name, &mut path);
        path
    }

    /// The same, behind what is in a buffer.
    pub fn append_below(&self, name: &[u8], buffer: &mut Vec<u8>) {
        buffer.extend_from_slice(&self.below);
        buffer.extend_from_slice(name);
    }

    /// Whether its path leads to the directory with this inode.
    ///
    /// # Errors
    /// [`Unread::Busy`] when it leads to another's, or what stat(2) says.
    pub fn confirm(&self, inode: u64) -> Result<(), Unread> {
        let path = self.below.strip_suffix(b"/").unwrap_or(b".");
        let stands = self.root.look(path).map_err(|errno| Unread::of(Call::Stat, errno))?;
        if stands.st_ino == inode { Ok(()) } else { Err(Unread::Busy(Why::DirectoryMoved)) }
    }

    /// Hands over the neighbors of a name in it, which stand as they are meanwhile.
    pub fn with_neighbors<T>(&self, name: &Name, take: impl FnOnce(&[&Name]) -> T) -> T {
        take(&self.names.read().unwrap_or_else(PoisonError::into_inner).neighbors(name))
    }

    /// Whether a regular file of this name is there, as far as the index knows.
    #[must_use]
    pub fn contains(&self, name: &[u8]) -> bool {
        self.names.read().unwrap_or_else(PoisonError::into_inner).contains(name)
    }

    /// Makes the index exactly these names. What takes long is done beside it, while readers go on.
    pub fn set_names<'a>(&self, names: impl IntoIterator<Item = &'a Name>) {
        let names = sorted(names);
        let (missing, beside) = self.names.read().unwrap_or_else(PoisonError::into_inner).differences(&names);
        if (missing.len() + beside.len()) * ONE_BY_ONE_SHARE > names.len() {
            let mut names = Names::of_sorted(names);
            self.update(|own| mem::swap(own, &mut names)); // the old one is dropped when no reader waits for it
        } else {
            self.update(|own| {
                beside.iter().for_each(|name| own.remove(name));
                missing.iter().for_each(|name| own.insert(name));
            });
        }
    }

    /// Changes the index.
    pub fn update<T>(&self, change: impl FnOnce(&mut Names) -> T) -> T {
        // Each change of the sets is complete before the next, so a panicking writer leaves them usable.
        change(&mut self.names.write().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Of this path, wherever it leads: only its name is asked for.
    pub fn root_at(path: &str) -> Arc<Root> {
        Arc::new(Root::new(std::fs::File::open("/").unwrap().into(), path.as_bytes()))
    }

    proptest! {
        #[test]
        fn a_path_is_its_directory_and_the_name_byte_for_byte(
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
