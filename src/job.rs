//! A file on its way through the stages: the job, its message, and the report of how it ended.

use std::num::NonZeroU64;
use std::sync::Arc;

use crate::files::directory::Directory;
use crate::files::names::Name;
use crate::files::unread::Unread;
use crate::files::version::{Timestamp, Version, fingerprint};
use crate::hash::Digests;
use crate::message::{Content, EventType, REMOVED_TYPE, RemovalType, TYPE};

/// A file to be read and published.
#[derive(Debug)]
pub struct Job {
    /// The directory that the file is in.
    pub directory: Arc<Directory>,
    /// The file's name in that directory.
    pub name: Name,
    /// How this version came to its path, as the message says it.
    pub event: EventType,
    /// The time at which the event was read.
    pub seen_at: Timestamp,
    /// What was confirmed last for this path, if anything. The same content of the same version is not published again.
    pub known: Option<Known>,
    /// The inode of the directory, where a rename can put another directory at its path.
    pub within: Option<u64>,
    /// The ledger's row may be of a file that can come back to this path unchanged, so the row has to be invalidated
    /// before another version is published.
    pub invalidate_first: bool,
    /// The absolute path that the file was renamed from, where that is known.
    pub moved_from: Option<Arc<[u8]>>,
    /// What the path's consumers are sent if there is no file any more; `None` where they have not been sent one, and
    /// without `--removals`.
    pub removal: Option<Box<Removal>>,
    /// The job is in the queue for large files. The dispatcher sets this, and the source does not.
    pub large: bool,
}

impl Job {
    /// The job of a file of which nothing was published before. The time is that at which it was found.
    #[must_use]
    pub fn new(directory: Arc<Directory>, name: Name, event: EventType, seen_at: Timestamp) -> Self {
        Self {
            directory,
            name,
            event,
            seen_at,
            known: None,
            within: None,
            invalidate_first: false,
            moved_from: None,
            removal: None,
            large: false,
        }
    }

    /// Checks before reading that this version may be published.
    ///
    /// # Errors
    /// [`Unread::StaleRow`] when the ledger's row is of another version and has to be invalidated first.
    pub fn admit(&self, version: &Version) -> Result<(), Unread> {
        let another = |known: Known| known != Known::PUBLISHED && !known.may_be(version);
        if self.invalidate_first && self.known.is_some_and(another) { Err(Unread::StaleRow) } else { Ok(()) }
    }

    /// Whether the version and content that were read are what was confirmed last.
    ///
    /// # Errors
    /// [`Unread::StaleRow`] when they are not and the ledger's row has to be invalidated first. Only the content shows
    /// that where [`Job::admit`] had to let the version pass.
    pub fn is_known(&self, version: &Version, digests: &Digests) -> Result<bool, Unread> {
        match self.known {
            Some(known) if known.is(version, digests) => Ok(true),
            Some(known) if self.invalidate_first && known.content.is_some() => Err(Unread::StaleRow),
            _ => Ok(false),
        }
    }
}

/// What takes a path's last message back, once a reader finds no file there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removal {
    /// How the file went.
    pub event: RemovalType,
    /// What the last message said; `None` where only a process that crashed can have known it.
    pub last: Option<Content>,
    /// The id of the last message, if it is known.
    pub id: Option<u128>,
}

/// What a path's consumers were sent last, kept with `--removals` alone: in 80 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Last {
    sha256: [u8; 32],
    xxh128: u128,
    /// 0 where it is not known.
    id: u128,
    size: u64,
    /// Digests and size are known.
    read: bool,
    /// The path has had a message, or may have had one of a process that crashed.
    pub published: bool,
    /// The ledger's row says that no version of the file counts as published any more.
    pub void: bool,
}

const _: () = assert!(size_of::<Last>() == 80);

impl Last {
    /// What a message said that was confirmed. `id` is `None` where it is not known.
    #[must_use]
    pub fn new(content: &Content, id: Option<u128>) -> Self {
        let Content { digests: Digests { sha256, xxh128 }, size } = *content;
        Self { sha256, xxh128, id: id.unwrap_or(0), size, read: true, published: true, void: false }
    }

    /// A message that may have been published by a process that crashed before it could write what it said.
    #[must_use]
    pub fn unknown() -> Self {
        Self { published: true, void: true, ..Self::default() }
    }

    /// No message yet, and a row that says that there may be one.
    #[must_use]
    pub fn announced() -> Self {
        Self { published: false, ..Self::unknown() }
    }

    /// What the message said, if that is known.
    #[must_use]
    pub fn content(&self) -> Option<Content> {
        let digests = Digests { sha256: self.sha256, xxh128: self.xxh128 };
        self.read.then_some(Content { digests, size: self.size })
    }

    /// The message id, if it is known.
    #[must_use]
    pub fn id(&self) -> Option<u128> {
        (self.id != 0).then_some(self.id)
    }
}

/// What was confirmed for a path: hashes of its version and its content, in 32 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// [`Version::fingerprint`].
    version: u64,
    /// [`Version::fingerprint_without_ctime`], with the last bits replaced by [`RACY`] and [`ROWLESS`]. If all
    /// others are 0, only the whole version is compared.
    data: u64,
    /// A fingerprint of the content's SHA-256; `None` when only the version is known.
    content: Option<NonZeroU64>,
    inode: u64,
}

const _: () = assert!(size_of::<Known>() == 32);

/// The bit of [`Known::is_racy`].
const RACY: u64 = 1;

/// The bit of [`Known::is_rowless`].
const ROWLESS: u64 = 2;

/// The bits of a fingerprint that these take the place of.
const FLAGS: u64 = RACY | ROWLESS;

impl Known {
    /// The path had a message, of a version that is not known any more: it equals no file that is read.
    pub const PUBLISHED: Self = Self { version: 0, data: 0, content: None, inode: 0 };

    /// From a version and the content that was read of it. `racy`: see [`Version::is_racy`].
    #[must_use]
    pub fn new(version: &Version, digests: &Digests, racy: bool) -> Self {
        Self { content: content(digests), ..Self::seen(version, racy) }.exact(version)
    }

    /// From the version of a file that was there before the service started and has not been read.
    #[must_use]
    pub fn seen(version: &Version, racy: bool) -> Self {
        Self { version: version.fingerprint(), data: u64::from(racy), content: None, inode: version.inode }
    }

    /// A copy that matches only the whole version, ctime included, because it may not be what was published last.
    #[must_use]
    pub fn by_version_only(self) -> Self {
        Self { data: self.data & FLAGS, ..self }
    }

    /// A copy for this version, once it is certain to be what was published last.
    #[must_use]
    pub fn exact(self, version: &Version) -> Self {
        let data = version.fingerprint_without_ctime() & !FLAGS | self.data & FLAGS;
        Self { data: if self.content.is_some() { data } else { self.data }, ..self }
    }

    /// Whether it is certain to be what was published last; `false` after [`Known::by_version_only`].
    #[must_use]
    pub fn is_exact(self) -> bool {
        self.content.is_none() || self.data & !FLAGS != 0
    }

    /// Whether the content is known, beside the version.
    #[must_use]
    pub fn is_read(self) -> bool {
        self.content.is_some()
    }

    /// The inode of the version.
    #[must_use]
    pub fn inode(self) -> u64 {
        self.inode
    }

    /// Whether its version has this fingerprint.
    #[must_use]
    pub fn is_of_fingerprint(self, version: u64) -> bool {
        self.version == version
    }

    /// Whether it is this version, ctime included.
    #[must_use]
    pub fn is_of(self, version: &Version) -> bool {
        self.version == version.fingerprint()
    }

    /// Whether a file of this version may be the known one: the version is the same, or differs in ctime alone, so that
    /// the content decides.
    #[must_use]
    pub fn may_be(self, version: &Version) -> bool {
        let without_ctime = || {
            let data = self.data & !FLAGS;
            data != 0 && data == version.fingerprint_without_ctime() & !FLAGS
        };
        self.is_of(version) || self.content.is_some() && without_ctime()
    }

    /// Whether the version may hide a later change, so that the content has to be read once more.
    #[must_use]
    pub fn is_racy(self) -> bool {
        self.data & RACY != 0
    }

    /// A copy of what was confirmed while the ledger got no row of it.
    #[must_use]
    pub fn rowless(self) -> Self {
        Self { data: self.data | ROWLESS, ..self }
    }

    /// Whether the ledger has no row of it, so that the file has to be read once more and the row be written then.
    #[must_use]
    pub fn is_rowless(self) -> bool {
        self.data & ROWLESS != 0
    }

    /// Whether this version with this content is the known one.
    #[must_use]
    pub fn is(self, version: &Version, digests: &Digests) -> bool {
        self.may_be(version) && self.content == content(digests)
    }
}

/// Two contents whose SHA-256 agree in some 64 bits can be found within hours, so a seeded hash stands for all of it.
fn content(digests: &Digests) -> Option<NonZeroU64> {
    // 0 would mean "unknown", so a hash of 0 becomes 1.
    NonZeroU64::new(fingerprint(&digests.sha256)).or(NonZeroU64::new(1))
}

/// A message on its way to the output, with the job that it came from.
#[derive(Debug)]
pub struct Outgoing {
    /// The message's body, in JSON.
    pub body: Box<[u8]>,
    /// The message id, which depends on path, version and content alone.
    pub id: u128,
    /// The path's bytes, where it is not UTF-8.
    pub raw_path: Option<Vec<u8>>,
    /// What it is about.
    pub subject: Subject,
    /// The job that this message came from.
    pub job: Job,
}

/// What a message is about.
#[derive(Debug)]
pub enum Subject {
    /// A version of a file.
    File {
        /// The version that was read.
        version: Version,
        /// See [`Version::is_racy`].
        racy: bool,
        /// The file has further names.
        linked: bool,
        /// The digests of its content.
        digests: Digests,
    },
    /// The path has no file any more.
    Removal,
}

impl Subject {
    /// The AMQP type of its messages.
    #[must_use]
    pub fn message_type(&self) -> &'static str {
        match self {
            Self::File { .. } => TYPE,
            Self::Removal => REMOVED_TYPE,
        }
    }
}

impl Outgoing {
    /// The absolute path that the file was renamed from, where the message says that it was renamed.
    #[must_use]
    pub fn moved_from(&self) -> Option<&[u8]> {
        let renamed = matches!(self.subject, Subject::File { .. }) && self.job.event == EventType::MovedTo;
        self.job.moved_from.as_deref().filter(|_| renamed)
    }

    /// The job's report, once the output has confirmed the message.
    #[must_use]
    pub fn confirmed(self) -> Report {
        let Self { job, id, subject, .. } = self;
        let outcome = match subject {
            Subject::File { version, racy, linked, digests } => {
                Outcome::Confirmed { id, version, racy, linked, digests }
            }
            Subject::Removal => Outcome::Removed,
        };
        Report { job, outcome }
    }

    /// The job's report, once the broker has refused the message for its size, in these words.
    #[must_use]
    pub fn too_large(self, answer: &Arc<str>) -> Report {
        let bytes = self.body.len();
        Report { job: self.job, outcome: Outcome::Unread(Unread::TooLarge { bytes, answer: Arc::clone(answer) }) }
    }
}

/// The end of a job: each job that was dispatched has exactly one report.
#[derive(Debug)]
pub struct Report {
    /// The job that ended.
    pub job: Job,
    /// How it ended.
    pub outcome: Outcome,
}

/// How a job ended.
#[derive(Debug)]
pub enum Outcome {
    /// The output has confirmed the message.
    Confirmed {
        /// The message id.
        id: u128,
        /// The version that was read.
        version: Version,
        /// See [`Version::is_racy`].
        racy: bool,
        /// The file has further names.
        linked: bool,
        /// The digests of its content.
        digests: Digests,
    },
    /// The file is what was confirmed last, so it has no message.
    Unchanged {
        /// The version that was read.
        version: Version,
        /// See [`Version::is_racy`].
        racy: bool,
        /// The digests of its content.
        digests: Digests,
    },
    /// The output has confirmed the path's removal.
    Removed,
    /// The file has no message now, for this reason.
    Unread(Unread),
}

#[cfg(test)]
pub(crate) mod tests {
    use std::fs::File;

    use super::*;
    use crate::files::root::Root;

    /// So many jobs, for files named by their numbers.
    pub(crate) fn jobs(count: usize) -> Vec<Job> {
        let root = Arc::new(Root::new(File::open("/").unwrap().into(), b"/"));
        let directory = Arc::new(Directory::new(&root, b""));
        let job = |number: usize| {
            Job::new(
                Arc::clone(&directory),
                number.to_string().into_bytes().into(),
                EventType::Create,
                Timestamp { seconds: 0, nanoseconds: 0 },
            )
        };
        (0..count).map(job).collect()
    }

    #[test]
    fn known_compares_version_and_content() {
        let stamp = Timestamp { seconds: 0, nanoseconds: 0 };
        let version = Version { inode: 1, size: 1, modified: stamp, changed: stamp };
        let later = Timestamp { seconds: 1, nanoseconds: 0 };
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
        let rowless = known.rowless();
        assert!(rowless.is_rowless() && rowless != known && rowless.is(&metadata_alone, &a) && !known.is_rowless());
        assert!(rowless.exact(&version) == rowless && !rowless.by_version_only().is_exact());
        assert!(!Known::PUBLISHED.may_be(&version) && !Known::PUBLISHED.is_racy() && Known::PUBLISHED.is_exact());
    }
}
