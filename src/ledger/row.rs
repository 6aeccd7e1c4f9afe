//! A row of the ledger, and what can be wrong with it.

use std::collections::BTreeMap;
use std::io;

use rusqlite::{ErrorCode, Row};
use xxhash_rust::xxh3::Xxh3;

use crate::files::version::{Stamp, Version};
use crate::hash::Digests;
use crate::job::Known;

/// In a row's `flags`: see [`Version::is_racy`].
const RACY: u8 = 1;

/// In a row's `flags`: see [`Confirmed::by_version_only`].
const BY_VERSION_ONLY: u8 = 2;

/// What was confirmed of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Confirmed {
    pub version: Version,
    /// Nothing where the file was there before us: it was entered, and not read.
    pub digests: Option<Digests>,
    /// See [`Version::is_racy`].
    pub racy: bool,
    /// It was not compared with its file since the ledger was not [`COMPLETE`](super::store::COMPLETE), and may lag.
    pub by_version_only: bool,
}

impl Confirmed {
    pub(super) fn known(&self) -> Known {
        let known = match &self.digests {
            Some(digests) => Known::new(&self.version, digests, self.racy),
            None => Known::seen(&self.version, self.racy),
        };
        if self.by_version_only { known.by_version_only() } else { known }
    }

    pub(super) fn flags(&self) -> u8 {
        let racy = if self.racy { RACY } else { 0 };
        if self.by_version_only { racy | BY_VERSION_ONLY } else { racy }
    }

    /// Of all that a row holds, so that damage which SQLite itself would not notice is noticed.
    pub(super) fn checksum(&self, path: &[u8]) -> u128 {
        let mut hasher = Xxh3::new();
        hasher.update(path);
        hasher.update(&[0, self.flags(), u8::from(self.digests.is_some())]);
        hasher.update(&self.version.to_bytes());
        if let Some(Digests { sha256, xxh128 }) = &self.digests {
            hasher.update(sha256);
            hasher.update(&xxh128.to_be_bytes());
        }
        hasher.digest128()
    }
}

/// Rows by path, each with what was confirmed last, or nothing when the path is gone. Sorted, which is the table's own
/// order.
pub(super) type Rows = BTreeMap<Box<[u8]>, Option<Confirmed>>;

/// Why the database could not be used.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    /// What stands there is not what was written.
    #[error("it is damaged: {0}")]
    Damaged(String),
    /// Rows stand in it that ought to be gone.
    #[error("it is behind: its disk was full")]
    Behind,
    /// Its form is not known here.
    #[error("it was written by a newer version")]
    Newer,
    /// It cannot be read or written.
    #[error("{0}")]
    Sqlite(rusqlite::Error),
    /// What stands beside it cannot be.
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl From<rusqlite::Error> for Trouble {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            // The last three: a table or a column of another form.
            Some(
                ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase | ErrorCode::Unknown | ErrorCode::TypeMismatch,
            )
            | None => Self::Damaged(error.to_string()),
            Some(_) => Self::Sqlite(error),
        }
    }
}

pub(super) fn blob<'row>(row: &'row Row<'_>, column: usize) -> Result<&'row [u8], Trouble> {
    row.get_ref(column)?.as_blob().map_err(|error| Trouble::Damaged(error.to_string()))
}

/// The columns that every form has in the same places: the version, and the digests.
pub(super) fn decode_file(row: &Row<'_>) -> Result<(Version, Option<Digests>), Trouble> {
    let nanoseconds = |column| row.get::<_, u32>(column);
    let version = Version {
        inode: row.get::<_, i64>(2)?.cast_unsigned(),
        size: row.get::<_, i64>(3)?.cast_unsigned(),
        modified: Stamp { seconds: row.get(4)?, nanoseconds: nanoseconds(5)? },
        changed: Stamp { seconds: row.get(6)?, nanoseconds: nanoseconds(7)? },
    };
    let digests = match (blob(row, 8)?, blob(row, 9)?) {
        ([], []) => None,
        _ => Some(Digests { sha256: row.get(8)?, xxh128: u128::from_be_bytes(row.get(9)?) }),
    };
    Ok((version, digests))
}

/// A row as it was written, or damage: its checksum says so.
pub(super) fn decode(path: &[u8], row: &Row<'_>) -> Result<Confirmed, Trouble> {
    let (version, digests) = decode_file(row)?;
    let flags: u8 = row.get(1)?;
    let (racy, by_version_only) = (flags & RACY != 0, flags & BY_VERSION_ONLY != 0);
    let confirmed = Confirmed { version, digests, racy, by_version_only };
    let intact = flags == confirmed.flags() && row.get::<_, [u8; 16]>(10)? == confirmed.checksum(path).to_be_bytes();
    if intact { Ok(confirmed) } else { Err(not_as_written(path)) }
}

pub(super) fn not_as_written(path: &[u8]) -> Trouble {
    let path = String::from_utf8_lossy(path).into_owned();
    Trouble::Damaged(format!("its row of {path:?} is not what was written"))
}
