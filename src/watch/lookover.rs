//! Listing a directory against what is known of it: at start, after an overflow, and on a timer.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::vec;

use rustix::fs::{Dir, FileType};
use rustix::io::Errno;

use super::directory::{Directory, Place};
use super::index::Name;
use super::tree::Arrival;
use crate::files::errno::{Call, Meaning, meaning};
use crate::read::stable::{Root, Version, version_of};

/// Pause between two look-overs that events ask for; doubles to the longest while they keep asking.
const PAUSE_MIN: Duration = Duration::from_secs(1);

/// See [`PAUSE_MIN`].
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// Where look-overs stand: that of the whole tree, and those of single directories that are new or have no watch.
pub struct LookOver {
    /// One more of the whole tree is needed once this one is through.
    pub needed: bool,
    /// That of the whole tree is under way.
    pub whole: bool,
    /// Directories to be listed. `true`: and those below them.
    pub to_list: VecDeque<(Place, bool)>,
    /// Listed names that are not compared yet.
    pub to_compare: VecDeque<Compare>,
    /// Files found other than they are known.
    pub found: usize,
    /// Of those, the ones whose content decides whether they are.
    pub in_question: usize,
    /// Files compared, those that the filter leaves out aside.
    pub compared: usize,
    /// It is the start's.
    pub first: bool,
    /// What is known counts as well: `--catch-up all`.
    pub everything: bool,
    /// When the last one of the whole tree began.
    began: Option<Instant>,
    not_before: Instant,
    pause: Duration,
}

/// What is left of one directory.
pub struct Compare {
    /// The directory.
    pub place: Place,
    /// Its names.
    pub left: vec::IntoIter<Name>,
    /// How they came there.
    pub arrival: Arrival,
}

impl LookOver {
    /// Nothing is asked for.
    #[must_use]
    pub fn new() -> Self {
        Self {
            needed: false,
            whole: false,
            to_list: VecDeque::new(),
            to_compare: VecDeque::new(),
            found: 0,
            in_question: 0,
            compared: 0,
            first: true,
            everything: false,
            began: None,
            not_before: Instant::now(),
            pause: PAUSE_MIN,
        }
    }

    /// Whether there is something to list or to compare.
    #[must_use]
    pub fn running(&self) -> bool {
        !self.to_list.is_empty() || !self.to_compare.is_empty()
    }

    /// Asked for by an event: after a pause that grows while they keep asking.
    pub fn ask(&mut self, now: Instant) {
        if self.needed {
            return;
        }
        self.needed = true;
        match self.began {
            Some(began) if now.saturating_duration_since(began) <= PAUSE_MAX => {
                self.not_before = began + self.pause;
                self.pause = (self.pause * 2).min(PAUSE_MAX);
            }
            _ => {
                self.not_before = now;
                self.pause = PAUSE_MIN;
            }
        }
    }

    /// Asked for by the timer.
    pub fn ask_now(&mut self, now: Instant) {
        self.needed = true;
        self.not_before = now;
    }

    /// When that of the whole tree has to begin.
    #[must_use]
    pub fn next_time(&self) -> Option<Instant> {
        (self.needed && !self.whole).then_some(self.not_before)
    }

    /// That of the whole tree begins.
    pub fn begin(&mut self, roots: &[Arc<Directory>], now: Instant) {
        (self.needed, self.whole, self.everything) = (false, true, false);
        (self.found, self.in_question, self.compared) = (0, 0, 0);
        self.began = Some(now);
        self.to_list.extend(roots.iter().map(|root| (root.place(), true)));
    }
}

impl Default for LookOver {
    fn default() -> Self {
        Self::new()
    }
}

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
pub struct Sight {
    /// Its version. A link shows its own here: what it leads to is looked at when it is read.
    pub version: Version,
    /// It is a file and no link.
    pub regular: bool,
    /// The number of the user that it belongs to.
    pub owner: u32,
}

/// Looks at a path; nothing when there is neither a regular file nor a link.
///
/// # Errors
/// What keeps us from telling: the path is there, or may be.
pub fn look(root: &Root, below: &[u8]) -> Result<Option<Sight>, Errno> {
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
    Ok(Some(Sight { version: version_of(&stat), regular, owner: stat.st_uid }))
}
