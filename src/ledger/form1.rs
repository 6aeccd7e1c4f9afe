//! The ledger's first form, brought to today's where it is found. Its rows held the device's number, and the message id of
//! those days in place of a checksum.

use rusqlite::{Connection, Row, Statement, Transaction, TransactionBehavior, params};
use xxhash_rust::xxh3::Xxh3;

use super::row::{CHECKSUM, Confirmed, FLAGS, MessageId, PATH, StoreError, blob, decode_file, not_as_written};
use crate::files::version::Version;
use crate::hash::Digests;

/// Its number in `user_version`.
pub(super) const FORM: i64 = 1;

/// The table's columns in this form: two have another name and meaning than in [`COLUMNS`](super::row::COLUMNS).
const COLUMNS: &str = "path, device, inode, size, modified_seconds, modified_nanoseconds, changed_seconds, \
                       changed_nanoseconds, sha256, xxh128, message_id";

const DEVICE: usize = FLAGS;
const MESSAGE_ID: usize = CHECKSUM;

/// Rows that are read before they are written again.
const BATCH_ROWS: i64 = 4096;

/// A path with the flags and the checksum of its row in form 2.
type Carried = (Box<[u8]>, u8, u128);

/// Brings the table to form 2, in one transaction.
///
/// The two columns that get another meaning keep their positions. Each row is written over its old bytes, so that the disk
/// needs room for no second copy but the one in the log.
pub(super) fn migrate(connection: &mut Connection) -> Result<(), StoreError> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let carried = rewrite_rows(&transaction)?;
    transaction.execute_batch(
        "ALTER TABLE confirmed RENAME COLUMN device TO flags;
        ALTER TABLE confirmed RENAME COLUMN message_id TO checksum;
        PRAGMA user_version = 2;",
    )?;
    transaction.commit()?;
    tracing::info!(
        event = "ledger_carried_over",
        rows = carried,
        "the ledger was of an earlier version's form: its {carried} rows are carried over"
    );
    Ok(())
}

/// Returns how many rows there are.
fn rewrite_rows(transaction: &Transaction<'_>) -> Result<usize, StoreError> {
    let select = format!("SELECT {COLUMNS} FROM confirmed WHERE path > ?1 ORDER BY path LIMIT ?2");
    let mut select = transaction.prepare(&select)?;
    let mut update = transaction.prepare("UPDATE confirmed SET device = ?2, message_id = ?3 WHERE path = ?1")?;
    let (mut last, mut carried): (Box<[u8]>, _) = (Box::default(), 0);
    loop {
        let mut batch = read_batch(&mut select, &last)?;
        for (path, flags, checksum) in &batch {
            update.execute(params![path, flags, checksum.to_be_bytes()])?;
        }
        carried += batch.len();
        match batch.pop() {
            Some((path, ..)) => last = path,
            None => return Ok(carried),
        }
    }
}

fn read_batch(select: &mut Statement<'_>, after: &[u8]) -> Result<Vec<Carried>, StoreError> {
    let mut batch = Vec::new();
    let mut rows = select.query(params![after, BATCH_ROWS])?;
    while let Some(row) = rows.next()? {
        let path = blob(row, PATH)?;
        let confirmed = decode(path, row)?;
        batch.push((path.into(), confirmed.flags(), confirmed.checksum(path)));
    }
    Ok(batch)
}

fn decode(path: &[u8], row: &Row<'_>) -> Result<Confirmed, StoreError> {
    let device = row.get::<_, i64>(DEVICE)?.cast_unsigned();
    match decode_file(row)? {
        (version, Some(digests))
            if row.get::<_, [u8; 16]>(MESSAGE_ID)? == message_id(path, device, &version, &digests).to_be_bytes() =>
        {
            // This form did not record when a file was examined, so each ctime of whole seconds counts as racy.
            let racy = version.changed.nanoseconds == 0;
            Ok(Confirmed::new(version, digests, racy, MessageId::OfVersion))
        }
        _ => Err(not_as_written(path)),
    }
}

/// The message id of those days: the device comes before the version, and all seconds before all nanoseconds.
fn message_id(path: &[u8], device: u64, version: &Version, digests: &Digests) -> u128 {
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
