//! The SQL: opening the database, reading rows by the page, writing them in one transaction.

use std::ops::Range;
use std::path::Path;

use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};

use super::form1;
use super::row::{COLUMNS, Confirmed, PATH, Rows, StoreError, blob, decode};

/// The table's form, in `user_version`.
pub(super) const FORM: i64 = 3;

/// The latest form that a newer version could have. A number beyond it in the header is damage, which SQLite's own check does
/// not look at.
const FORM_MAX: i64 = 255;

/// The form before that, which has no column `message_id`: each row's id follows from the row.
const FORM_WITHOUT_ID: i64 = 2;

/// Rows in a [`Page`], some 200 bytes each; and as many again where all of them change.
const PAGE_ROWS: i64 = 1 << 12;

/// The mode in which a database can return free pages to its disk a few at a time (sqlite.org/pragma.html, auto_vacuum).
const INCREMENTAL: i64 = 2;

/// The smallest database that is worth shrinking, in pages: 4 MiB.
const SHRINK_PAGES_MIN: i64 = 1024;

/// Pages that are returned at a time: 1 MiB, which takes some milliseconds.
const SHRINK_STEP_PAGES: i64 = 256;

/// What becomes of a row when the ledger is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// The caller took the row over.
    Known,
    /// Its file is not there any more: the row is deleted.
    Gone,
    /// This process does not follow its file: the row is kept as it is.
    LeftOut,
}

/// Opens or creates the database, checks all of it and brings it to today's form.
pub(super) fn connect(file: &Path) -> Result<Connection, StoreError> {
    let mut connection = Connection::open(file)?;
    // Exclusive, and that first: else the first look at a database makes the file of shared memory, which a full disk refuses.
    connection.pragma_update(None, "locking_mode", "exclusive")?;
    // It counts for a new database alone, and would write to the header of any other.
    if pages(&connection)?.1 == 0 {
        connection.pragma_update(None, "auto_vacuum", INCREMENTAL)?;
    }
    connection.pragma_update(None, "journal_mode", "wal")?;
    connection.pragma_update(None, "synchronous", "normal")?;
    connection.pragma_update(None, "cache_size", -8192)?; // KiB
    connection.pragma_update(None, "journal_size_limit", 16 << 20)?;
    check(&connection)?;
    match connection.pragma_query_value(None, "user_version", |row| row.get::<_, i64>(0))? {
        FORM => {}
        form1::FORM => {
            form1::migrate(&mut connection)?;
            add_message_id(&connection)?;
        }
        FORM_WITHOUT_ID => add_message_id(&connection)?,
        0 => create(&connection)?,
        form if is_newer(form) => return Err(StoreError::Newer),
        form => return Err(StoreError::Damaged(format!("it is of the form {form}"))),
    }
    Ok(connection)
}

/// Whether a newer version has written a ledger of this form.
pub(super) fn is_newer(form: i64) -> bool {
    (FORM + 1..=FORM_MAX).contains(&form)
}

fn check(connection: &Connection) -> Result<(), StoreError> {
    // SQLite opens a database for reading only if it does not know the version number in its header.
    if connection.is_readonly("main")? {
        return Err(StoreError::Damaged("it can only be read".to_owned()));
    }
    // A fifth of a second for a million rows; without it a page that lost its cells would go unnoticed.
    let found: String = connection.pragma_query_value(None, "quick_check", |row| row.get(0))?;
    if found == "ok" { Ok(()) } else { Err(StoreError::Damaged(found.replace('\n', " "))) }
}

/// Brings the table from form 2 to form 3, without a look at its rows.
fn add_message_id(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute_batch(
        "BEGIN IMMEDIATE;
        ALTER TABLE confirmed ADD COLUMN message_id BLOB NOT NULL DEFAULT x'';
        PRAGMA user_version = 3;
        COMMIT;",
    )
}

fn create(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute_batch(
        "BEGIN IMMEDIATE;
        CREATE TABLE confirmed (
            path BLOB PRIMARY KEY,
            flags INTEGER NOT NULL,
            inode INTEGER NOT NULL,
            size INTEGER NOT NULL,
            modified_seconds INTEGER NOT NULL,
            modified_nanoseconds INTEGER NOT NULL,
            changed_seconds INTEGER NOT NULL,
            changed_nanoseconds INTEGER NOT NULL,
            sha256 BLOB NOT NULL,
            xxh128 BLOB NOT NULL,
            checksum BLOB NOT NULL,
            message_id BLOB NOT NULL DEFAULT x''
        ) STRICT, WITHOUT ROWID;
        PRAGMA user_version = 3;
        COMMIT;",
    )
}

/// The bytes of the database without its log.
pub(super) fn size(connection: &Connection) -> rusqlite::Result<i64> {
    let number = |pragma| connection.pragma_query_value(None, pragma, |row| row.get::<_, i64>(0));
    Ok(number("page_count")? * number("page_size")?)
}

/// Whether most of the database is free pages, which deleted rows have left. One of an earlier form has to be written anew
/// to return them, which takes time for each of its rows: so only where few are left.
pub(super) fn is_mostly_free(connection: &Connection) -> rusqlite::Result<bool> {
    let (free, pages) = pages(connection)?;
    Ok(pages >= SHRINK_PAGES_MIN && 2 * free > pages && (in_steps(connection)? || pages - free < SHRINK_PAGES_MIN))
}

/// Returns some free pages to the disk. Whether there are more.
pub(super) fn shrink(connection: &Connection) -> rusqlite::Result<bool> {
    if in_steps(connection)? {
        // The pragma returns a row for each page, and stops where nobody asks for the next.
        let mut vacuum = connection.prepare(&format!("PRAGMA incremental_vacuum({SHRINK_STEP_PAGES})"))?;
        let mut rows = vacuum.query([])?;
        while rows.next()?.is_some() {}
    } else {
        connection.pragma_update(None, "auto_vacuum", INCREMENTAL)?;
        connection.execute_batch("VACUUM")?;
    }
    let more = pages(connection)?.0 > 0;
    if !more {
        // The file itself becomes smaller with the checkpoint.
        connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
    }
    Ok(more)
}

/// The free pages of the database, and all of them.
fn pages(connection: &Connection) -> rusqlite::Result<(i64, i64)> {
    let number = |pragma| connection.pragma_query_value(None, pragma, |row| row.get::<_, i64>(0));
    Ok((number("freelist_count")?, number("page_count")?))
}

fn in_steps(connection: &Connection) -> rusqlite::Result<bool> {
    connection.pragma_query_value(None, "auto_vacuum", |row| Ok(row.get::<_, i64>(0)? == INCREMENTAL))
}

/// Rows that follow one another by their paths.
#[derive(Default)]
pub(super) struct Page {
    /// The paths, one behind the other.
    paths: Vec<u8>,
    /// Where each path is, and its row.
    rows: Vec<(Range<usize>, Confirmed)>,
}

impl Page {
    /// The last path, or `None` if no rows follow.
    fn end(&self) -> Option<&[u8]> {
        let (path, _) = self.rows().last().filter(|_| self.rows.len() as i64 == PAGE_ROWS)?;
        Some(path)
    }

    /// The paths and their rows.
    pub(super) fn rows(&self) -> impl DoubleEndedIterator<Item = (&[u8], &Confirmed)> {
        self.rows.iter().map(|(path, row)| (&self.paths[path.clone()], row))
    }
}

/// All rows by the page.
pub(super) struct Pages {
    /// The path behind which the next page begins; `None` at the end, which an error is, too.
    after: Option<Box<[u8]>>,
}

impl Pages {
    /// From the first row on.
    pub(super) fn new() -> Self {
        Self { after: Some(Box::default()) }
    }

    /// Reads the next page.
    pub(super) fn next(&mut self, connection: &Connection) -> Option<Result<Page, StoreError>> {
        let page = read_page(connection, &self.after.take()?);
        self.after = page.as_ref().ok().and_then(Page::end).map(Box::from);
        Some(page)
    }
}

/// Reads the rows behind the path `after`.
fn read_page(connection: &Connection, after: &[u8]) -> Result<Page, StoreError> {
    let mut page = Page::default();
    let select = format!("SELECT {COLUMNS} FROM confirmed WHERE path > ?1 ORDER BY path LIMIT ?2");
    let mut select = connection.prepare_cached(&select)?;
    let mut rows = select.query(params![after, PAGE_ROWS])?;
    while let Some(row) = rows.next()? {
        let path = blob(row, PATH)?;
        let begin = page.paths.len();
        page.paths.extend_from_slice(path);
        page.rows.push((begin..page.paths.len(), decode(path, row)?));
    }
    Ok(page)
}

pub(super) fn read_row(connection: &Connection, path: &[u8]) -> Result<Option<Confirmed>, StoreError> {
    let select = format!("SELECT {COLUMNS} FROM confirmed WHERE path = ?1");
    connection.query_row(&select, [path], |row| Ok(decode(path, row))).optional()?.transpose()
}

/// Deletes all rows below these directories, then writes and deletes rows, in one transaction. Returns how many rows
/// there are more than before.
pub(super) fn write(connection: &mut Connection, below: &[Box<[u8]>], rows: &Rows) -> Result<i64, StoreError> {
    let transaction = connection.transaction()?;
    let deleted = delete_below(&transaction, below)?;
    let added = write_rows(&transaction, rows)?;
    transaction.commit()?;
    Ok(added - deleted)
}

fn delete_below(transaction: &Transaction<'_>, directories: &[Box<[u8]>]) -> rusqlite::Result<i64> {
    let mut delete = transaction.prepare_cached("DELETE FROM confirmed WHERE path > ?1 AND path < ?2")?;
    let mut deleted = 0;
    for directory in directories {
        assert_eq!(directory.last(), Some(&b'/'), "a directory's path ends in a slash");
        // All paths below sort before the directory's own with the next byte in place of its last slash.
        let mut end = directory.to_vec();
        end[directory.len() - 1] = b'/' + 1;
        deleted += delete.execute([&**directory, &end])? as i64;
    }
    Ok(deleted)
}

fn write_rows(transaction: &Transaction<'_>, rows: &Rows) -> rusqlite::Result<i64> {
    let into = format!("INTO confirmed ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)");
    // Two statements, because the first one shows whether the row is new.
    let mut add = transaction.prepare_cached(&format!("INSERT OR IGNORE {into}"))?;
    let mut replace = transaction.prepare_cached(&format!("REPLACE {into}"))?;
    let mut delete = transaction.prepare_cached("DELETE FROM confirmed WHERE path = ?1")?;
    let mut added = 0;
    for (path, row) in rows {
        let Some(confirmed @ Confirmed { version, digests, .. }) = row else {
            added -= delete.execute([path])? as i64;
            continue;
        };
        let xxh128 = digests.map(|digests| digests.xxh128.to_be_bytes());
        let values = params![
            path,
            confirmed.flags(),
            version.inode.cast_signed(),
            version.size.cast_signed(),
            version.modified.seconds,
            version.modified.nanoseconds,
            version.changed.seconds,
            version.changed.nanoseconds,
            digests.as_ref().map_or(&[][..], |digests| &digests.sha256),
            xxh128.as_ref().map_or(&[][..], |xxh128| xxh128),
            confirmed.checksum(path).to_be_bytes(),
            confirmed.id_bytes(),
        ];
        if add.execute(values)? == 1 {
            added += 1;
        } else {
            replace.execute(values)?;
        }
    }
    Ok(added)
}

/// Moves the log into the database and closes it. Returns whether all of it is on the disk.
pub(super) fn checkpoint_and_close(connection: Connection) -> Result<bool, StoreError> {
    let columns = |row: &Row<'_>| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?, row.get::<_, i64>(2)?));
    let (busy, log, done) = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], columns)?;
    connection.close().map_err(|(_, error)| error)?;
    Ok(busy == 0 && log == done)
}
