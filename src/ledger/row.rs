//! A row of the ledger: its columns, its checksum, and what can be wrong with it or with the database.

use std::collections::BTreeMap;
use std::io;

use rusqlite::{ErrorCode, Row};
use xxhash_rust::xxh3::Xxh3;

use crate::error::os_message;
use crate::files::version::{Timestamp, Version};
use crate::hash::Digests;
use crate::inquiry;
use crate::job::{Known, Last};
use crate::message::{Content, message_id};

/// The table's columns, in the order in which each statement names them. The positions below count in it.
pub(super) const COLUMNS: &str = "path, flags, inode, size, modified_seconds, modified_nanoseconds, changed_seconds, \
                                  changed_nanoseconds, sha256, xxh128, checksum, message_id";

pub(super) const PATH: usize = 0;
pub(super) const FLAGS: usize = 1;
const INODE: usize = 2;
const SIZE: usize = 3;
const MODIFIED_SECONDS: usize = 4;
const MODIFIED_NANOSECONDS: usize = 5;
const CHANGED_SECONDS: usize = 6;
const CHANGED_NANOSECONDS: usize = 7;
const SHA256: usize = 8;
const XXH128: usize = 9;
pub(super) const CHECKSUM: usize = 10;
const MESSAGE_ID: usize = 11;

/// In a row's `flags`: see [`Version::is_racy`].
const RACY: u8 = 1;

/// In a row's `flags`: see [`Confirmed::by_version_only`].
const BY_VERSION_ONLY: u8 = 2;

/// In a row's `flags`: see [`Confirmed::void`].
const VOID: u8 = 4;

/// What `message_id` holds where nobody knows it.
const UNKNOWN_ID: &[u8] = &[0];

/// The id of the message that a row is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MessageId {
    /// It follows from the row's version and digests.
    OfVersion,
    /// Metadata alone has changed since the message, or the row is void.
    Other(u128),
    /// As `Other`, and nobody remembers it.
    Unknown,
}

/// What the broker confirmed last for a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Confirmed {
    pub(super) version: Version,
    /// `None` for a file that was there before the service: it was entered without being read.
    pub(super) digests: Option<Digests>,
    /// See [`Version::is_racy`].
    pub(super) racy: bool,
    /// The row may lag: its file was not compared with it since the ledger was not
    /// [`COMPLETE`](super::state_directory::COMPLETE).
    pub(super) by_version_only: bool,
    /// The path has had a message, or may have had one, and no version of its file counts as published: of the version, the
    /// size alone is kept. Without digests, not even that is known. Written with `--removals` alone.
    pub(super) void: bool,
    pub(super) id: MessageId,
}

impl Confirmed {
    /// A row for what was read of a version.
    pub(super) fn new(version: Version, digests: Digests, racy: bool, id: MessageId) -> Self {
        Self { version, digests: Some(digests), racy, by_version_only: false, void: false, id }
    }

    /// A row for a file that was there before the service.
    pub(super) fn seen(version: Version, racy: bool) -> Self {
        let id = MessageId::OfVersion;
        Self { version, digests: None, racy, by_version_only: false, void: false, id }
    }

    /// A row that says what a path's last message was, and that no version of its file counts as published.
    pub(super) fn void(last: &Last) -> Self {
        let never = Timestamp { seconds: 0, nanoseconds: 0 };
        let size = last.content().map_or(0, |content| content.size);
        Self {
            version: Version { inode: 0, size, modified: never, changed: never },
            digests: last.content().map(|content| content.digests),
            racy: false,
            by_version_only: false,
            void: true,
            id: last.id().map_or(MessageId::Unknown, MessageId::Other),
        }
    }

    /// What the path's last message was; `None` where it had none.
    pub fn last(&self, path: &[u8]) -> Option<Last> {
        let Some(digests) = self.digests else { return self.void.then(Last::unknown) };
        let id = match self.id {
            MessageId::OfVersion => Some(message_id(&[path], &self.version, &digests.sha256)),
            MessageId::Other(id) => Some(id),
            MessageId::Unknown => None,
        };
        let mut last = Last::new(&Content { digests, size: self.version.size }, id);
        last.void = self.void;
        Some(last)
    }

    /// Whether its file could have changed and be of the same version: see [`Version::is_racy`].
    pub fn is_racy(&self) -> bool {
        self.racy
    }

    /// The row as people are shown it.
    pub fn shown(&self, path: &[u8]) -> inquiry::Row {
        let id = self.last(path).and_then(|last| last.id());
        inquiry::Row { version: self.version, digests: self.digests, id, void: self.void }
    }

    /// What counts as published.
    pub fn known(&self) -> Known {
        if self.void {
            return Known::PUBLISHED;
        }
        let known = match &self.digests {
            Some(digests) => Known::new(&self.version, digests, self.racy),
            None => Known::seen(&self.version, self.racy),
        };
        if self.by_version_only { known.by_version_only() } else { known }
    }

    pub(super) fn flags(&self) -> u8 {
        let racy = if self.racy { RACY } else { 0 };
        let by_version_only = if self.by_version_only { BY_VERSION_ONLY } else { 0 };
        racy | by_version_only | if self.void { VOID } else { 0 }
    }

    /// Covers all that a row holds, because SQLite does not notice every damage by itself.
    pub(super) fn checksum(&self, path: &[u8]) -> u128 {
        let mut hasher = Xxh3::new();
        hasher.update(path);
        hasher.update(&[0, self.flags(), u8::from(self.digests.is_some())]);
        hasher.update(&self.version.to_bytes());
        if let Some(Digests { sha256, xxh128 }) = &self.digests {
            hasher.update(sha256);
            hasher.update(&xxh128.to_be_bytes());
        }
        hasher.update(&self.id_bytes());
        hasher.digest128()
    }
}

impl Confirmed {
    /// The column `message_id`, which is empty in most rows.
    pub(super) fn id_bytes(&self) -> Vec<u8> {
        match self.id {
            MessageId::OfVersion => Vec::new(),
            MessageId::Other(id) => id.to_be_bytes().to_vec(),
            MessageId::Unknown => UNKNOWN_ID.to_vec(),
        }
    }
}

/// Rows by path, `None` for a row that is to be deleted. They are sorted as the table is.
pub(super) type Rows = BTreeMap<Box<[u8]>, Option<Confirmed>>;

/// Why the database could not be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// What is read differs from what was written.
    #[error("it is damaged: {0}")]
    Damaged(String),
    /// Rows that ought to be deleted are still in it.
    #[error("it is behind: its disk was full")]
    Behind,
    /// A newer version of this program gave it a form that is not known here.
    #[error("it was written by a newer version")]
    Newer,
    /// SQLite cannot read or write it.
    #[error("{}", os_message(.0))]
    Sqlite(rusqlite::Error),
    /// There is no thread to read it.
    #[error("{}", os_message(.0))]
    Thread(io::Error),
    /// A file beside it cannot be read or written.
    #[error("{}", os_message(.0))]
    Io(#[from] io::Error),
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            // The last two, and an error without a code: a table or a column of another form.
            Some(
                ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase | ErrorCode::Unknown | ErrorCode::TypeMismatch,
            )
            | None => Self::Damaged(os_message(&error)),
            Some(_) => Self::Sqlite(error),
        }
    }
}

pub(super) fn blob<'row>(row: &'row Row<'_>, column: usize) -> Result<&'row [u8], StoreError> {
    row.get_ref(column)?.as_blob().map_err(|error| StoreError::Damaged(error.to_string()))
}

/// Decodes the version and the digests, whose columns are the same in every form of the table.
pub(super) fn decode_file(row: &Row<'_>) -> Result<(Version, Option<Digests>), StoreError> {
    let stamp = |seconds, nanoseconds| -> rusqlite::Result<Timestamp> {
        Ok(Timestamp { seconds: row.get(seconds)?, nanoseconds: row.get(nanoseconds)? })
    };
    let version = Version {
        inode: row.get::<_, i64>(INODE)?.cast_unsigned(),
        size: row.get::<_, i64>(SIZE)?.cast_unsigned(),
        modified: stamp(MODIFIED_SECONDS, MODIFIED_NANOSECONDS)?,
        changed: stamp(CHANGED_SECONDS, CHANGED_NANOSECONDS)?,
    };
    let digests = match (blob(row, SHA256)?, blob(row, XXH128)?) {
        ([], []) => None,
        _ => Some(Digests { sha256: row.get(SHA256)?, xxh128: u128::from_be_bytes(row.get(XXH128)?) }),
    };
    Ok((version, digests))
}

/// Decodes a row of [`COLUMNS`]. One whose checksum does not fit is damage.
pub(super) fn decode(path: &[u8], row: &Row<'_>) -> Result<Confirmed, StoreError> {
    let (version, digests) = decode_file(row)?;
    let flags: u8 = row.get(FLAGS)?;
    let id = match blob(row, MESSAGE_ID)? {
        [] => MessageId::OfVersion,
        UNKNOWN_ID => MessageId::Unknown,
        id => MessageId::Other(u128::from_be_bytes(id.try_into().map_err(|_| not_as_written(path))?)),
    };
    let [racy, by_version_only, void] = [RACY, BY_VERSION_ONLY, VOID].map(|flag| flags & flag != 0);
    let confirmed = Confirmed { version, digests, racy, by_version_only, void, id };
    let checksum: [u8; 16] = row.get(CHECKSUM)?;
    let intact = flags == confirmed.flags() && checksum == confirmed.checksum(path).to_be_bytes();
    if intact { Ok(confirmed) } else { Err(not_as_written(path)) }
}

pub(super) fn not_as_written(path: &[u8]) -> StoreError {
    let path = String::from_utf8_lossy(path).into_owned();
    StoreError::Damaged(format!("its row of {path:?} is not what was written"))
}
