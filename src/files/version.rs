//! One state of a file, by its times, its size and its inode.

use std::mem;

use rustix::fs::Stat;
use xxhash_rust::xxh3::xxh3_64;

/// A point in time as the file system keeps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Since 1970-01-01 UTC.
    pub seconds: i64,
    /// 0 to 999,999,999.
    pub nanoseconds: u32,
}

impl Stamp {
    /// The time of day.
    #[must_use]
    pub fn now() -> Self {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
        Self { seconds: now.tv_sec, nanoseconds: nanoseconds(now.tv_nsec) }
    }

    /// Seconds since an earlier point in time; 0 where the clock was set back in between.
    #[must_use]
    pub fn seconds_since(self, earlier: Self) -> f64 {
        let whole = self.seconds.saturating_sub(earlier.seconds) as f64;
        (whole + (f64::from(self.nanoseconds) - f64::from(earlier.nanoseconds)) * 1e-9).max(0.0)
    }
}

/// Every file system and clock keeps this below 10^9; what does not fit counts as 0.
pub(crate) fn nanoseconds(value: impl TryInto<u32>) -> u32 {
    value.try_into().ok().filter(|&value| value < 1_000_000_000).unwrap_or(0)
}

/// Seconds that the coarsest ctime is exact to: FAT keeps even seconds (its specification, DIR_WrtTime, and
/// fat_truncate_time() in linux/fs/fat/misc.c); ext4 with inodes of 128 bytes, HFS+ and many FUSE servers whole ones.
const COARSEST_SECONDS: i64 = 2;

/// Bytes of [`Version::to_bytes`].
const VERSION_BYTES: usize = 40;

/// See [`Version::to_bytes`].
const CTIME_BYTES: usize = 12;

/// One state of a file. Compared for equality only: clocks go backwards, inodes are used again.
///
/// The device's number is no part of it: it is another when a volume is mounted again, and no file of another file system
/// is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Version {
    /// `st_ino`.
    pub inode: u64,
    /// Bytes.
    pub size: u64,
    /// mtime.
    pub modified: Stamp,
    /// ctime.
    pub changed: Stamp,
}

impl Version {
    /// All of it in a fixed form, for hashing; ctime stands at the end, in the last `CTIME_BYTES`.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; VERSION_BYTES] {
        let mut bytes = [0; VERSION_BYTES];
        let mut rest = &mut bytes[..];
        let mut put = |field: &[u8]| {
            let (place, behind) = mem::take(&mut rest).split_at_mut(field.len());
            place.copy_from_slice(field);
            rest = behind;
        };
        put(&self.inode.to_le_bytes());
        put(&self.size.to_le_bytes());
        for stamp in [self.modified, self.changed] {
            put(&stamp.seconds.to_le_bytes());
            put(&stamp.nanoseconds.to_le_bytes());
        }
        bytes
    }

    /// 64 bits that stand for it where a directory's worth of versions is remembered.
    #[must_use]
    pub fn fingerprint(&self) -> u64 {
        xxh3_64(&self.to_bytes())
    }

    /// The same of all but ctime, which is what metadata alone leaves as it is.
    #[must_use]
    pub fn fingerprint_without_ctime(&self) -> u64 {
        xxh3_64(&self.to_bytes()[..VERSION_BYTES - CTIME_BYTES])
    }

    /// Whether a change soon after the file was examined can leave the same ctime (git: a racily clean entry): it is of
    /// whole seconds, and those were not over. `again`: the file had been examined at this version before, and what
    /// was in doubt was what came between; a ctime in the future, by a clock that was set back, is then not waited for.
    #[must_use]
    pub fn is_racy(&self, examined: Stamp, again: bool) -> bool {
        let age = examined.seconds.saturating_sub(self.changed.seconds);
        self.changed.nanoseconds == 0 && age < COARSEST_SECONDS && !(again && age < 0)
    }
}

/// The version that a stat shows.
#[must_use]
pub fn version_of(stat: &Stat) -> Version {
    Version {
        inode: stat.st_ino,
        size: u64::try_from(stat.st_size).unwrap_or(0),
        modified: Stamp { seconds: stat.st_mtime, nanoseconds: nanoseconds(stat.st_mtime_nsec) },
        changed: Stamp { seconds: stat.st_ctime, nanoseconds: nanoseconds(stat.st_ctime_nsec) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_seconds_that_are_not_over_leave_a_doubt() {
        let at = |seconds, nanoseconds| Stamp { seconds, nanoseconds };
        let racy = |changed, examined, again| {
            Version { inode: 1, size: 1, modified: changed, changed }.is_racy(examined, again)
        };
        for again in [false, true] {
            assert!(racy(at(100, 0), at(100, 0), again) && racy(at(100, 0), at(101, 999_999_999), again));
            assert!(!racy(at(100, 0), at(102, 0), again) && !racy(at(100, 1), at(100, 2), again));
        }
        assert!(racy(at(100, 0), at(99, 0), false), "by another clock");
        assert!(!racy(at(100, 0), at(99, 0), true), "and not for ever");
    }
}
