//! Listing a directory against what is known of it: at start, after an overflow, and on a timer.

use rustix::fs::{Dir, FileType};
use rustix::io::Errno;

use super::index::Name;
use crate::read::stable::{Root, Version, version_of};

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
    pub fn neighbors(&self) -> impl Iterator<Item = Name> {
        self.files.iter().filter(|found| found.regular).map(|found| Name::clone(&found.name))
    }
}

/// Lists a directory below the root (empty for the root itself).
///
/// # Errors
/// What open(2) or getdents64(2) says.
pub fn list(root: &Root, below: &[u8]) -> Result<Listing, Errno> {
    let mut listing = Listing::default();
    let mut entries = Dir::new(root.open_directory(below)?)?;
    let prefix = if below.is_empty() || below.ends_with(b"/") { below.to_vec() } else { [below, b"/"].concat() };
    while let Some(entry) = entries.read() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name == b"." || name == b".." {
            continue;
        }
        let kind = match entry.file_type() {
            // Some file systems do not tell in the listing.
            FileType::Unknown => match root.look(&[&prefix[..], name].concat()) {
                Ok(stat) => FileType::from_raw_mode(stat.st_mode),
                Err(Errno::NOENT) => continue,
                Err(errno) => return Err(errno),
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

/// The version of what stands at a path, and whether it is a regular file; nothing when it is neither that nor a
/// link. A link shows its own version here: what it leads to is looked at when it is read.
#[must_use]
pub fn look(root: &Root, below: &[u8]) -> Option<(Version, bool)> {
    let stat = root.look(below).ok()?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Some((version_of(&stat), true)),
        FileType::Symlink => Some((version_of(&stat), false)),
        _ => None,
    }
}
