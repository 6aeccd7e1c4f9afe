//! The ledger's first form, brought to today's where it is found: it had the device's number in each row, and the message
//! id of those days for a checksum.

use rusqlite::{Connection, Row, TransactionBehavior, params};
use xxhash_rust::xxh3::Xxh3;

use super::row::{Confirmed, Trouble, blob, decode_file, not_as_written};
use crate::files::version::Version;
use crate::hash::Digests;

/// Its number in `user_version`.
pub(super) const FORM: i64 = 1;

/// Rows read before they are written again.
const ROWS_TOGETHER: i64 = 4096;

/// Brings the table to form 2, in one transaction.
///
/// The two columns that have another meaning keep their places: each row is written over its old bytes, so that a full
/// disk is needed for no second copy but that in the log.
pub(super) fn migrate(connection: &mut Connection) -> Result<(), Trouble> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let mut carried = 0;
    {
        let mut select = transaction.prepare("SELECT * FROM confirmed WHERE path > ?1 ORDER BY path LIMIT ?2")?;
        let mut update = transaction.prepare("UPDATE confirmed SET device = ?2, message_id = ?3 WHERE path = ?1")?;
        let mut last: Box<[u8]> = Box::default();
        loop {
            let mut batch: Vec<(Box<[u8]>, u8, u128)> = Vec::new();
            let mut rows = select.query(params![last, ROWS_TOGETHER])?;
            while let Some(row) = rows.next()? {
                let path = blob(row, 0)?;
                let confirmed = decode(path, row)?;
                batch.push((path.into(), confirmed.flags(), confirmed.checksum(path)));
            }
            for (path, flags, checksum) in &batch {
                update.execute(params![path, flags, checksum.to_be_bytes()])?;
            }
            carried += batch.len();
            match batch.pop() {
                Some((path, ..)) => last = path,
                None => break,
            }
        }
    }
    transaction.execute_batch(
        "ALTER TABLE confirmed RENAME COLUMN device TO flags;
        ALTER TABLE confirmed RENAME COLUMN message_id TO checksum;
        PRAGMA user_version = 2;",
    )?;
    transaction.commit()?;
    tracing::info!("the ledger was of an earlier version's form: its {carried} rows are carried over");
    Ok(())
}

fn decode(path: &[u8], row: &Row<'_>) -> Result<Confirmed, Trouble> {
    let device = row.get::<_, i64>(1)?.cast_unsigned();
    match decode_file(row)? {
        (version, Some(digests))
            if row.get::<_, [u8; 16]>(10)? == message_id(path, device, &version, &digests).to_be_bytes() =>
        {
            // It was not noted when a file was examined.
            let racy = version.changed.nanoseconds == 0;
            Ok(Confirmed { version, digests: Some(digests), racy, by_version_only: false })
        }
        _ => Err(not_as_written(path)),
    }
}

/// As it was: with the device in front of the version, and all seconds in front of all nanoseconds.
pub(super) fn message_id(path: &[u8], device: u64, version: &Version, digests: &Digests) -> u128 {
    let mut hasher = Xxh3::new();
    hasher.update(path);
    hasher.update(&[0]);
    for field in [device, version.inode, version.size] {
        hasher.update(&field.to_le_bytes());
    }
    for seconds in [version.modified.seconds, version.changed.seconds] {
        hasher.update(&seconds.to_le_bytes());
    }
    for nanoseconds in [version.modified.nanoseconds, version.changed.nanoseconds] {
        hasher.update(&nanoseconds.to_le_bytes());
    }
    hasher.update(&digests.sha256);
    hasher.digest128()
}
