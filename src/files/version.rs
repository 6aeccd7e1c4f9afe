//! The version of a file: its inode, size and times.

use std::hash::{BuildHasher, RandomState};
use std::mem;
use std::sync::LazyLock;

use rustix::fs::Stat;
use rustix::time::{ClockId, clock_gettime};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// A point in time as file systems store it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp {
    /// Seconds since 1970-01-01 UTC.
    pub seconds: i64,
    /// Nanoseconds of the second, 0 to 999,999,999.
    pub nanoseconds: u32,
}

impl Timestamp {
    /// The time of the realtime clock.
    #[must_use]
    pub fn now() -> Self {
        Self::of(ClockId::Realtime)
    }

    /// The time that the kernel stamps a change of a file with now: up to a tick behind [`Timestamp::now`]
    /// (CLOCK_REALTIME_COARSE, clock_gettime(2); current_time() in linux/fs/inode.c).
    #[must_use]
    pub fn of_a_change_now() -> Self {
        Self::of(ClockId::RealtimeCoarse)
    }

    fn of(clock: ClockId) -> Self {
        let now = clock_gettime(clock);
        Self { seconds: now.tv_sec, nanoseconds: nanoseconds(now.tv_nsec) }
    }

    /// Seconds since an earlier point in time, or 0 if the clock was set back in between.
    #[must_use]
    pub fn seconds_since(self, earlier: Self) -> f64 {
        let whole = self.seconds.saturating_sub(earlier.seconds) as f64;
        (whole + (f64::from(self.nanoseconds) - f64::from(earlier.nanoseconds)) * 1e-9).max(0.0)
    }
}

/// The nanoseconds of a second. Every file system and clock keeps them below 10^9; a larger value counts as 0.
pub(crate) fn nanoseconds(value: impl TryInto<u32>) -> u32 {
    value.try_into().ok().filter(|&value| value < 1_000_000_000).unwrap_or(0)
}

/// The resolution of the coarsest ctime in seconds: FAT keeps even seconds (its specification, DIR_WrtTime, and
/// fat_truncate_time() in linux/fs/fat/misc.c); ext4 with inodes of 128 bytes, HFS+ and many FUSE servers whole ones.
const COARSEST_SECONDS: i64 = 2;

/// The length of [`Version::to_bytes`].
const VERSION_BYTES: usize = 40;

/// The length of ctime at the end of [`Version::to_bytes`].
const CTIME_BYTES: usize = 12;

/// One state of a file. Versions are compared for equality only, because clocks go backwards and inodes are reused.
///
/// The device number is not part of it: it changes when a volume is mounted again, and no file of another file system is
/// read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Version {
    /// The inode number, `st_ino`.
    pub inode: u64,
    /// The size in bytes.
    pub size: u64,
    /// The time of the last change of the content, mtime.
    pub modified: Timestamp,
    /// The time of the last change of content or metadata, ctime.
    pub changed: Timestamp,
}

impl Version {
    /// All fields in a fixed form, for hashing. ctime is the last `CTIME_BYTES`.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; VERSION_BYTES] {
        let mut bytes = [0; VERSION_BYTES];
        let mut rest = &mut bytes[..];
        let mut put = |field: &[u8]| {
            let (head, tail) = mem::take(&mut rest).split_at_mut(field.len());
            head.copy_from_slice(field);
            rest = tail;
        };
        put(&self.inode.to_le_bytes());
        put(&self.size.to_le_bytes());
        for stamp in [self.modified, self.changed] {
            put(&stamp.seconds.to_le_bytes());
            put(&stamp.nanoseconds.to_le_bytes());
        }
        debug_assert!(rest.is_empty(), "the fields fill the bytes");
        bytes
    }

    /// A hash of the version for this process alone, which saves memory where those of whole directories are kept.
    #[must_use]
    pub fn fingerprint(&self) -> u64 {
        fingerprint(&self.to_bytes())
    }

    /// A hash of all fields but ctime: a change of metadata alone leaves it as it is.
    #[must_use]
    pub fn fingerprint_without_ctime(&self) -> u64 {
        fingerprint(&self.to_bytes()[..VERSION_BYTES - CTIME_BYTES])
    }

    /// Whether a change soon after the file was examined can leave the same ctime (git: a racily clean entry). It can if
    /// ctime is of whole seconds and these had not passed. `again` is true if the file had been examined at this version
    /// before, so that only a change in between is in question: a ctime in the future, because the clock was set back, then
    /// does not count.
    #[must_use]
    pub fn is_racy(&self, examined: Timestamp, again: bool) -> bool {
        let age = examined.seconds.saturating_sub(self.changed.seconds);
        self.changed.nanoseconds == 0 && age < COARSEST_SECONDS && !(again && age < 0)
    }
}

/// Seeds the fingerprints, by the standard library's source of randomness for such uses.
static SEED: LazyLock<u64> = LazyLock::new(|| RandomState::new().hash_one(0));

/// A hash that stands for bytes within this process: another process has another hash of them.
///
/// Sizes, times and contents are chosen by whoever writes the files. With a hash that they can compute, they could make two
/// versions that count as one, and the second would not be published.
#[must_use]
pub fn fingerprint(bytes: &[u8]) -> u64 {
    xxh3_64_with_seed(bytes, *SEED)
}

/// The version in a stat.
#[must_use]
pub fn version_of(stat: &Stat) -> Version {
    Version {
        inode: stat.st_ino,
        size: u64::try_from(stat.st_size).unwrap_or(0),
        modified: Timestamp { seconds: stat.st_mtime, nanoseconds: nanoseconds(stat.st_mtime_nsec) },
        changed: Timestamp { seconds: stat.st_ctime, nanoseconds: nanoseconds(stat.st_ctime_nsec) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What this program stores is compared with what a later process computes, so no fingerprint may get there.
    #[test]
    fn fingerprints_are_seeded_and_the_bytes_are_not() {
        let stamp = Timestamp { seconds: 1, nanoseconds: 2 };
        let version = Version { inode: 3, size: 4, modified: stamp, changed: stamp };
        assert_eq!(version.fingerprint(), version.fingerprint());
        assert_ne!(version.fingerprint(), xxhash_rust::xxh3::xxh3_64(&version.to_bytes()));
        assert_ne!(version.fingerprint(), Version { size: 5, ..version }.fingerprint());
        assert_eq!(version.to_bytes()[..9], [3, 0, 0, 0, 0, 0, 0, 0, 4]);
    }

    #[test]
    fn a_version_is_racy_until_its_whole_seconds_have_passed() {
        let at = |seconds, nanoseconds| Timestamp { seconds, nanoseconds };
        let racy = |changed, examined, again| {
            Version { inode: 1, size: 1, modified: changed, changed }.is_racy(examined, again)
        };
        for again in [false, true] {
            assert!(racy(at(100, 0), at(100, 0), again) && racy(at(100, 0), at(101, 999_999_999), again));
            assert!(!racy(at(100, 0), at(102, 0), again) && !racy(at(100, 1), at(100, 2), again));
        }
        assert!(racy(at(100, 0), at(99, 0), false), "the clock was set back");
        assert!(!racy(at(100, 0), at(99, 0), true), "but it is not racy for ever");
    }
}
