//! Directory listings, and the stat of a path.

use rustix::fs::{Dir, FileType};
use rustix::io::Errno;

use super::errno::{Call, Meaning, meaning};
use super::names::Name;
use super::root::Root;
use super::version::{Version, version_of};

/// One entry of a listing that may be published: a regular file, or a link that may lead to one.
#[derive(Debug)]
pub struct Found {
    /// The file's name in its directory.
    pub name: Name,
    /// The inode number. Reading in this order saves a cold disk's head movements.
    pub inode: u64,
    /// It is a regular file. A link is no neighbor.
    pub regular: bool,
}

/// The entries of one listing.
#[derive(Debug, Default)]
pub struct Listing {
    /// Files and links, in the order of their inodes.
    pub files: Vec<Found>,
    /// Names of sub-directories.
    pub directories: Vec<Name>,
}

impl Listing {
    /// The names of the files that can be neighbors: the regular ones.
    pub fn neighbors(&self) -> impl Iterator<Item = &Name> {
        self.files.iter().filter(|found| found.regular).map(|found| &found.name)
    }
}

/// The path from the root of a name in the directory at `below` (empty for the root itself).
#[must_use]
pub fn path_in(below: &[u8], name: &[u8]) -> Vec<u8> {
    let slash: &[u8] = if below.is_empty() || below.ends_with(b"/") { b"" } else { b"/" };
    [below, slash, name].concat()
}

/// Lists a directory below the root (empty for the root itself).
///
/// # Errors
/// The error of open(2) or getdents64(2).
pub fn list(root: &Root, below: &[u8]) -> Result<Listing, Errno> {
    let mut listing = Listing::default();
    let mut entries = Dir::new(root.open_directory(below)?)?;
    while let Some(entry) = entries.read() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name == b"." || name == b".." {
            continue;
        }
        let kind = match entry.file_type() {
            // Some file systems leave the type out of the listing.
            FileType::Unknown => match root.look(&path_in(below, name)) {
                Ok(stat) => FileType::from_raw_mode(stat.st_mode),
                Err(errno) if meaning(Call::Stat, errno) == Meaning::Gone => continue,
                // As a link it is compared, which fails in the same way and is remembered there.
                Err(_) => FileType::Symlink,
            },
            kind => kind,
        };
        match kind {
            FileType::RegularFile | FileType::Symlink => listing.files.push(Found {
                name: name.into(),
                inode: entry.ino(),
                regular: kind == FileType::RegularFile,
            }),
            FileType::Directory => listing.directories.push(name.into()),
            _ => {}
        }
    }
    listing.files.sort_unstable_by_key(|found| found.inode);
    Ok(listing)
}

/// What lstat(2) shows of a regular file or a link.
#[derive(Debug, Clone, Copy)]
pub struct FileStat {
    /// The version. That of a link is its own: its target is examined when it is read.
    pub version: Version,
    /// It is a regular file, not a link.
    pub regular: bool,
    /// The file has further hard links.
    pub linked: bool,
    /// The user id of the owner.
    pub owner: u32,
}

/// The stat of a path, or `None` when it is neither a regular file nor a link.
///
/// # Errors
/// The error of lstat(2) when the path exists or may exist.
pub fn look(root: &Root, below: &[u8]) -> Result<Option<FileStat>, Errno> {
    let stat = match root.look(below) {
        Ok(stat) => stat,
        Err(errno) if meaning(Call::Stat, errno) == Meaning::Gone => return Ok(None),
        Err(errno) => return Err(errno),
    };
    let regular = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => true,
        FileType::Symlink => false,
        _ => return Ok(None),
    };
    Ok(Some(FileStat { version: version_of(&stat), regular, linked: stat.st_nlink > 1, owner: stat.st_uid }))
}

/// The version of the regular file that a link leads to, if it leads to one.
#[must_use]
pub fn target_of(root: &Root, below: &[u8]) -> Option<Version> {
    let target = root.look_through(below).ok()?;
    (FileType::from_raw_mode(target.st_mode) == FileType::RegularFile).then(|| version_of(&target))
}
