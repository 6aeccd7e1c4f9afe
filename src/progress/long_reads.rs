//! How far the reading of large files has come.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Files of which a reading has come some way, so that it takes long: [`LongReads::begin`]. There are as many as large files
/// are in flight at most, eight a reading thread.
#[derive(Debug, Default)]
pub struct LongReads(Mutex<Vec<Arc<LongRead>>>);

impl LongReads {
    /// Shows a file from now on, until what this returns is dropped. Readers call it after some MiB of a file, so that no small
    /// one takes the lock.
    pub fn begin(&self, path: Vec<u8>, size: u64) -> Shown<'_> {
        let read = Arc::new(LongRead { path, size, at: AtomicU64::new(0) });
        self.lock().push(Arc::clone(&read));
        Shown { reads: self, read }
    }

    /// The files that are shown now.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<LongRead>> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<LongRead>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A file whose reading takes long.
#[derive(Debug)]
pub struct LongRead {
    /// The absolute path.
    pub path: Vec<u8>,
    /// The bytes that the file has.
    pub size: u64,
    at: AtomicU64,
}

impl LongRead {
    /// The bytes that were read so far.
    #[must_use]
    pub fn at(&self) -> u64 {
        self.at.load(Ordering::Relaxed)
    }
}

/// Keeps a file among the [`LongReads`].
#[derive(Debug)]
pub struct Shown<'a> {
    reads: &'a LongReads,
    read: Arc<LongRead>,
}

impl Shown<'_> {
    /// So many bytes were read so far.
    pub fn advance(&self, at: u64) {
        self.read.at.store(at, Ordering::Relaxed);
    }
}

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        self.reads.lock().retain(|read| !Arc::ptr_eq(read, &self.read));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_shown_until_its_reading_ends() {
        let reads = LongReads::default();
        let (first, second) = (reads.begin(b"/a".to_vec(), 9), reads.begin(b"/a".to_vec(), 9));
        second.advance(4);
        assert_eq!(reads.all().iter().map(|read| read.at()).collect::<Vec<_>>(), [0, 4]);
        drop(first);
        assert_eq!(reads.all().iter().map(|read| (read.at(), read.size)).collect::<Vec<_>>(), [(4, 9)]);
        drop(second);
        assert!(reads.all().is_empty());
    }
}
