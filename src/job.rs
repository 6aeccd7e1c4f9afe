//! A file on its way: what is asked for, and what became of it.

use std::num::NonZeroU64;
use std::sync::Arc;

use crate::files::directory::Directory;
use crate::files::names::Name;
use crate::files::unread::Unread;
use crate::files::version::{Stamp, Version};
use crate::hash::Digests;
use crate::message::EventType;

/// A file to be read and published.
#[derive(Debug)]
pub struct Job {
    /// Where it is.
    pub directory: Arc<Directory>,
    /// Its name there.
    pub name: Name,
    /// How its version came to its path.
    pub event: EventType,
    /// When the event was read.
    pub seen_at: Stamp,
    /// What was confirmed last for this path, if anything: the same again is not published.
    pub known: Option<Known>,
    /// The inode of the directory that is meant, where a rename can put another in its place.
    pub within: Option<u64>,
    /// What the ledger holds may be of a file that can come back to this path as it was: it has to be forgotten before
    /// another is told.
    pub invalidate_first: bool,
    /// It was found to be large, and its turn has come: the pipeline says so, and not the source.
    pub large: bool,
}

impl Job {
    /// Whether this version may be told.
    ///
    /// # Errors
    /// [`Unread::StaleRow`].
    pub fn admit(&self, version: &Version) -> Result<(), Unread> {
        let another = |known: Known| known != Known::PUBLISHED && !known.may_be(version);
        if self.invalidate_first && self.known.is_some_and(another) { Err(Unread::StaleRow) } else { Ok(()) }
    }

    /// Whether what was read is what was confirmed last.
    ///
    /// # Errors
    /// [`Unread::StaleRow`]: it is not, and may not be told yet. That showed only when it was read.
    pub fn is_known(&self, version: &Version, digests: &Digests) -> Result<bool, Unread> {
        match self.known {
            Some(known) if known.is(version, digests) => Ok(true),
            Some(known) if self.invalidate_first && known.content.is_some() => Err(Unread::StaleRow),
            _ => Ok(false),
        }
    }
}

/// What was confirmed for a path: its version and its content, by hashes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// [`Version::fingerprint`].
    version: u64,
    /// [`Version::fingerprint_without_ctime`] but for its last bit, which is [`RACY`]. Nothing in the others: the version
    /// counts as a whole only.
    data: u64,
    /// The first half of the content's SHA-256; nothing when only the version is known.
    content: Option<NonZeroU64>,
    /// The inode's number.
    inode: u64,
}

/// See [`Known::is_racy`].
const RACY: u64 = 1;

impl Known {
    /// Of a path that had a message, of whatever file: it equals nothing that is read.
    pub const PUBLISHED: Self = Self { version: 0, data: 0, content: None, inode: 0 };

    /// Of what was read. `racy`: see [`Version::is_racy`].
    #[must_use]
    pub fn new(version: &Version, digests: &Digests, racy: bool) -> Self {
        Self { content: content(digests), ..Self::seen(version, racy) }.exact(version)
    }

    /// Of a file that was there before us, and has not been read.
    #[must_use]
    pub fn seen(version: &Version, racy: bool) -> Self {
        Self { version: version.fingerprint(), data: u64::from(racy), content: None, inode: version.inode }
    }

    /// The same, where it may not be what was told last unless the whole version agrees, ctime too.
    #[must_use]
    pub fn by_version_only(self) -> Self {
        Self { data: self.data & RACY, ..self }
    }

    /// The same, once it is certain to be what was told last: of this version.
    #[must_use]
    pub fn exact(self, version: &Version) -> Self {
        let data = version.fingerprint_without_ctime() & !RACY | self.data & RACY;
        Self { data: if self.content.is_some() { data } else { self.data }, ..self }
    }

    /// Whether it is certain to be what was told last: not of [`Known::by_version_only`].
    #[must_use]
    pub fn is_exact(self) -> bool {
        self.content.is_none() || self.data & !RACY != 0
    }

    /// Whether the content is known, and not the version alone.
    #[must_use]
    pub fn is_read(self) -> bool {
        self.content.is_some()
    }

    /// The number of the inode that it is of.
    #[must_use]
    pub fn inode(self) -> u64 {
        self.inode
    }

    /// Whether it is of the version with this fingerprint.
    #[must_use]
    pub fn is_of_fingerprint(self, version: u64) -> bool {
        self.version == version
    }

    /// Whether it is of this version.
    #[must_use]
    pub fn is_of(self, version: &Version) -> bool {
        self.version == version.fingerprint()
    }

    /// Whether a file of this version may be the one that is known: it is of this version, or of another one with all but
    /// ctime the same, which the content decides.
    #[must_use]
    pub fn may_be(self, version: &Version) -> bool {
        let without_ctime = || {
            let data = self.data & !RACY;
            data != 0 && data == version.fingerprint_without_ctime() & !RACY
        };
        self.is_of(version) || self.content.is_some() && without_ctime()
    }

    /// Whether the version may hide a later change, so that the content has to be looked at once more.
    #[must_use]
    pub fn is_racy(self) -> bool {
        self.data & RACY != 0
    }

    /// Whether this version with this content is what is known.
    #[must_use]
    pub fn is(self, version: &Version, digests: &Digests) -> bool {
        self.may_be(version) && self.content == content(digests)
    }
}

fn content(digests: &Digests) -> Option<NonZeroU64> {
    let mut half = [0; 8];
    half.copy_from_slice(&digests.sha256[..8]);
    // 0 would mean "unknown"; as a hash it is worth no more than 1.
    NonZeroU64::new(u64::from_le_bytes(half)).or(NonZeroU64::new(1))
}

/// A message on its way to the output.
#[derive(Debug)]
pub struct Outgoing {
    /// The JSON.
    pub body: Box<[u8]>,
    /// The message id.
    pub id: u128,
    /// The path, where it is not UTF-8.
    pub raw_path: Option<Vec<u8>>,
    /// The version that was read.
    pub version: Version,
    /// See [`Version::is_racy`].
    pub racy: bool,
    /// The file has further names.
    pub linked: bool,
    /// The digests of its content.
    pub digests: Digests,
    /// The job that it answers.
    pub job: Job,
}

impl Outgoing {
    /// The job's end, once the output has confirmed the message.
    #[must_use]
    pub fn confirmed(self) -> Report {
        let Self { job, version, racy, linked, digests, .. } = self;
        Report { job, outcome: Outcome::Confirmed { version, racy, linked, digests } }
    }
}

/// What became of a job.
#[derive(Debug)]
pub struct Report {
    /// The job.
    pub job: Job,
    /// Its end.
    pub outcome: Outcome,
}

/// How a job ended.
#[derive(Debug)]
pub enum Outcome {
    /// The output has confirmed the message.
    Confirmed {
        /// The version that was read.
        version: Version,
        /// See [`Version::is_racy`].
        racy: bool,
        /// The file has further names.
        linked: bool,
        /// The digests of its content.
        digests: Digests,
    },
    /// The file is what was confirmed last; no message.
    Unchanged {
        /// The version that was read.
        version: Version,
        /// See [`Version::is_racy`].
        racy: bool,
        /// The digests of its content.
        digests: Digests,
    },
    /// No message now, and why.
    Unread(Unread),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_needs_version_and_content() {
        let stamp = Stamp { seconds: 0, nanoseconds: 0 };
        let version = Version { inode: 1, size: 1, modified: stamp, changed: stamp };
        let later = Stamp { seconds: 1, nanoseconds: 0 };
        let [a, b] = [Digests::of(b"a"), Digests::of(b"b")];
        let (other_file, touched) = (Version { inode: 2, ..version }, Version { modified: later, ..version });
        let metadata_alone = Version { changed: later, ..version };
        let known = Known::new(&version, &a, false);
        assert!(known.is(&version, &a) && !known.is(&version, &b));
        assert!(known.is(&metadata_alone, &a) && !known.is(&metadata_alone, &b) && !known.is_of(&metadata_alone));
        assert!(!known.may_be(&other_file) && !known.may_be(&touched));
        let only = known.by_version_only();
        assert!(only.is(&version, &a) && !only.may_be(&metadata_alone) && !only.is_exact());
        assert_eq!(only.exact(&version), known);
        let racy = Known::new(&version, &a, true);
        assert!(racy.is_racy() && racy.by_version_only().is_racy() && racy.is(&metadata_alone, &a) && racy != known);
        let seen = Known::seen(&version, true);
        assert!(seen.is_of(&version) && seen.is_racy() && seen.is_exact() && seen.exact(&version) == seen);
        assert!(!seen.may_be(&metadata_alone) && !seen.is(&version, &a));
        assert!(!Known::PUBLISHED.may_be(&version) && !Known::PUBLISHED.is_racy() && Known::PUBLISHED.is_exact());
    }
}
