//! A store that is a map, with what the writer asks of one.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};

use shuttle::rand::{Rng, thread_rng};
use shuttle::thread;

use crate::ledger::row::{Confirmed, Rows, StoreError};

type Map = BTreeMap<Box<[u8]>, Confirmed>;

/// What is on the disk, for the writer and for the test. Each change of it is one step, so std's lock is enough.
#[derive(Default)]
pub(super) struct Disk(Mutex<Content>);

#[derive(Default)]
struct Content {
    rows: Map,
    created: bool,
    behind: bool,
    /// How many writes may still be refused.
    refusals: usize,
    refused_last: bool,
}

impl Disk {
    pub(super) fn new(refusals: usize) -> Self {
        Self(Mutex::new(Content { refusals, ..Content::default() }))
    }

    pub(super) fn rows(&self) -> Map {
        self.0.lock().unwrap().rows.clone()
    }

    pub(super) fn is_behind(&self) -> bool {
        self.0.lock().unwrap().behind
    }

    /// The last write was refused: the ledger ended with rows unwritten.
    pub(super) fn refused_last(&self) -> bool {
        self.0.lock().unwrap().refused_last
    }
}

/// See the module.
pub(in crate::ledger) struct Store(Arc<Disk>);

impl Store {
    pub(super) fn new(disk: Arc<Disk>) -> Self {
        Self(disk)
    }

    pub(in crate::ledger) fn write(&mut self, below: &[Box<[u8]>], rows: &Rows) -> Result<(), StoreError> {
        thread::yield_now();
        let mut disk = self.0.0.lock().unwrap();
        disk.refused_last = disk.refusals > 0 && thread_rng().gen_range(0..2) == 0;
        if disk.refused_last {
            disk.refusals -= 1;
            return Err(io::Error::from_raw_os_error(28).into());
        }
        disk.created = true;
        disk.rows.retain(|path, _| !below.iter().any(|above| path.starts_with(above)));
        for (path, row) in rows {
            match row {
                Some(row) => drop(disk.rows.insert(path.clone(), *row)),
                None => drop(disk.rows.remove(path)),
            }
        }
        Ok(())
    }

    #[allow(clippy::unnecessary_wraps)] // because the real one can fail, here and below
    pub(in crate::ledger) fn create(&mut self) -> Result<(), StoreError> {
        self.0.0.lock().unwrap().created = true;
        Ok(())
    }

    #[allow(clippy::unnecessary_wraps)]
    pub(in crate::ledger) fn mark_behind(&self) -> io::Result<bool> {
        let mut disk = self.0.0.lock().unwrap();
        disk.behind = disk.created;
        Ok(disk.behind)
    }

    pub(in crate::ledger) fn fall_behind(&mut self) -> io::Result<bool> {
        self.mark_behind()
    }

    #[allow(clippy::unnecessary_wraps)]
    pub(in crate::ledger) fn unmark_behind(&self) -> io::Result<()> {
        self.0.0.lock().unwrap().behind = false;
        Ok(())
    }

    #[allow(clippy::unnecessary_wraps)]
    pub(in crate::ledger) fn row(&mut self, path: &[u8]) -> Result<Option<Confirmed>, StoreError> {
        Ok(self.0.rows().get(path).copied())
    }

    #[allow(clippy::unnecessary_wraps)]
    pub(in crate::ledger) fn complete(self, _: &[Box<[u8]>]) -> Result<(), StoreError> {
        Ok(())
    }

    pub(in crate::ledger) fn take_unwritten(&mut self) -> Rows {
        Rows::new()
    }

    pub(in crate::ledger) fn directory(&self) -> &Path {
        Path::new("/")
    }

    pub(in crate::ledger) fn rows(&self) -> i64 {
        0
    }

    pub(in crate::ledger) fn bytes(&self) -> Option<i64> {
        None
    }

    pub(in crate::ledger) fn is_mostly_free(&self) -> bool {
        false
    }

    #[allow(clippy::unnecessary_wraps)]
    pub(in crate::ledger) fn shrink(&mut self) -> Result<bool, StoreError> {
        Ok(false)
    }
}
