//! What a directory lists, and what stands at a path.

use rustix::fs::{Dir, FileType};
use rustix::io::Errno;

use super::errno::{Call, Meaning, meaning};
use super::names::Name;
use super::root::Root;
use super::version::{Version, version_of};

/// One entry of a listing that may be published: a regular file, or a link that may lead to one.
#[derive(Debug)]
pub struct Found {
    /// Its name.
    pub name: Name,
    /// Its inode's number: reading in this order spares a cold disk's head.
    pub inode: u64,
    /// A link itself is no neighbor.
    pub regular: bool,
}

/// What one listing shows.
#[derive(Debug, Default)]
pub struct Listing {
    /// Files and links, in the order of their inodes.
    pub files: Vec<Found>,
    /// Names of sub-directories.
    pub directories: Vec<Name>,
}

impl Listing {
    /// The files that can be neighbors.
    pub fn neighbors(&self) -> impl Iterator<Item = &Name> {
        self.files.iter().filter(|found| found.regular).map(|found| &found.name)
    }
}

/// The path below the root of a name in a directory below it (empty for the root itself).
#[must_use]
pub fn path_in(below: &[u8], name: &[u8]) -> Vec<u8> {
    let slash: &[u8] = if below.is_empty() || below.ends_with(b"/") { b"" } else { b"/" };
    [below, slash, name].concat()
}

/// Lists a directory below the root (empty for the root itself).
///
/// # Errors
/// What open(2) or getdents64(2) says.
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
            // Some file systems do not tell in the listing.
            FileType::Unknown => match root.look(&path_in(below, name)) {
                Ok(stat) => FileType::from_raw_mode(stat.st_mode),
                Err(errno) if meaning(Call::Stat, errno) == Meaning::Gone => continue,
                // Whoever compares it is refused too, and remembers it.
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

/// What stands at a path.
#[derive(Debug, Clone, Copy)]
pub struct FileStat {
    /// Its version. A link shows its own here: what it leads to is looked at when it is read.
    pub version: Version,
    /// It is a file and no link.
    pub regular: bool,
    /// It has further names.
    pub linked: bool,
    /// The number of the user that it belongs to.
    pub owner: u32,
}

/// Looks at a path; nothing when there is neither a regular file nor a link.
///
/// # Errors
/// What keeps us from telling: the path is there, or may be.
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
