//! How many threads, buffers and files the process's limits of descriptors and locked memory allow.
//!
//! The calculations are pure; `doctor` and the start of the readers use the same ones.

use std::fs;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CapabilitySet, capabilities};

use super::buffer::CHUNK_BYTES;
use crate::advice;

/// The size in bytes up to which a file does not wait for larger ones (contract, 4.7).
pub const LARGE_BYTES: u64 = 1024 * 1024;

/// Files in flight on each ring: 32 are enough while files are in the page cache, 128 keep a cold disk busy.
pub const FILES_IN_FLIGHT: usize = 128;

/// Large files in flight on each ring, beside those: four fill the lanes while four more are read.
pub const LARGE_IN_FLIGHT: usize = 8;

/// Registered buffers of each thread (2 MiB), if locked memory is enough for them.
pub const BUFFERS: usize = 32;

/// Fewer buffers than this are not worth a ring.
pub const BUFFERS_MIN: usize = 8;

/// Locked memory that a ring of 256 entries is charged beside its buffers (by Linux 6.18; other versions charge none).
const RING_BYTES: u64 = 64 * 1024;

/// Descriptors of a thread with a ring beside its files: ring, epoll and its copy, eventfd, the signals' socket.
const DESCRIPTORS_A_RING: u64 = 5;

/// Fewer files in flight than this are not worth a thread with a ring, where descriptors are short.
const FILES_MIN: u64 = 4;

/// Descriptors kept for all else while files are read: 16 of the control socket, ledger, broker, directories being
/// listed.
const DESCRIPTORS_BESIDE: u64 = 32;

/// How many threads get a ring, and how many buffers each of them gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// At least one, although the kernel may refuse even that one.
    pub rings: usize,
    /// From [`BUFFERS_MIN`] to [`BUFFERS`].
    pub buffers: usize,
    /// The limit that keeps these below what is wanted, if any.
    pub short_of: Option<Short>,
}

/// A limit that is lower than what is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Short {
    /// RLIMIT_MEMLOCK.
    LockedMemory,
    /// RLIMIT_NOFILE.
    Descriptors,
}

impl Plan {
    /// The resource that is short for so many workers, and what to do about it, as two parts of a log line.
    #[must_use]
    pub fn shortage(&self, workers: usize) -> Option<(String, String)> {
        let Self { rings, buffers, short_of } = *self;
        Some(match short_of? {
            Short::LockedMemory if rings < workers => (
                format!(
                    "locked memory is enough for {rings} of {workers} workers, with {buffers} of {BUFFERS} buffers each"
                ),
                more_memory(workers),
            ),
            Short::LockedMemory => (
                format!("{workers} workers share the locked memory that there is: {buffers} of {BUFFERS} buffers each"),
                more_memory(workers),
            ),
            Short::Descriptors => {
                (format!("descriptors are enough for {rings} of {workers} workers"), more_descriptors(workers))
            }
        })
    }
}

/// What to do if locked memory is short.
#[must_use]
pub fn more_memory(workers: usize) -> String {
    format!(
        "raise RLIMIT_MEMLOCK ({}) to {} KiB, or lower --workers",
        advice::limit("LimitMEMLOCK", "ulimit -l"),
        locked_bytes(workers, BUFFERS) / 1024
    )
}

/// What to do if descriptors are short.
#[must_use]
pub fn more_descriptors(workers: usize) -> String {
    format!(
        "raise RLIMIT_NOFILE ({}) to {}, or lower --workers",
        advice::limit("LimitNOFILE", "ulimit -n"),
        descriptors_wanted(workers)
    )
}

/// Divides locked memory (in bytes) and free descriptors among so many workers; `None` is no limit. If they are short,
/// each worker gets fewer buffers first, then fewer workers get a ring.
///
/// # Panics
/// When `workers` is 0.
#[must_use]
pub fn plan(workers: usize, locked: Option<u64>, descriptors: Option<u64>) -> Plan {
    assert!(workers > 0, "at least one worker reads");
    let by_descriptors = descriptors.map_or(workers, |free| {
        let rings = free.saturating_sub(DESCRIPTORS_BESIDE) / (DESCRIPTORS_A_RING + FILES_MIN);
        usize::try_from(rings).unwrap_or(usize::MAX).clamp(1, workers)
    });
    let least = locked_bytes(1, BUFFERS_MIN);
    let rings = locked
        .map_or(by_descriptors, |limit| usize::try_from(limit / least).unwrap_or(usize::MAX).clamp(1, by_descriptors));
    let buffers = locked.map_or(BUFFERS, |limit| {
        let each = (limit / rings as u64).saturating_sub(RING_BYTES) / CHUNK_BYTES as u64;
        usize::try_from(each).unwrap_or(usize::MAX).clamp(BUFFERS_MIN, BUFFERS)
    });
    let short_of = if rings < by_descriptors || buffers < BUFFERS {
        Some(Short::LockedMemory)
    } else if rings < workers {
        Some(Short::Descriptors)
    } else {
        None
    };
    debug_assert!((1..=workers).contains(&rings) && (BUFFERS_MIN..=BUFFERS).contains(&buffers));
    Plan { rings, buffers, short_of }
}

/// Bytes of locked memory that so many rings with so many buffers each are charged.
#[must_use]
pub fn locked_bytes(rings: usize, buffers: usize) -> u64 {
    rings as u64 * ((buffers * CHUNK_BYTES) as u64 + RING_BYTES)
}

/// Descriptors that the process needs for so many workers with rings and all their files in flight.
#[must_use]
pub fn descriptors_wanted(workers: usize) -> u64 {
    let files = (FILES_IN_FLIGHT + LARGE_IN_FLIGHT) as u64;
    2 * DESCRIPTORS_BESIDE + workers as u64 * (DESCRIPTORS_A_RING + files)
}

/// Descriptors that the process needs with the blocking engine: each worker has one small and one large file open.
#[must_use]
pub fn descriptors_wanted_blocking(workers: usize) -> u64 {
    2 * DESCRIPTORS_BESIDE + 2 * workers as u64
}

/// How many files of each size a thread may have open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Files {
    /// Files of up to [`LARGE_BYTES`]: from 1 to [`FILES_IN_FLIGHT`].
    pub small: usize,
    /// Larger files: from 1 to [`LARGE_IN_FLIGHT`].
    pub large: usize,
}

/// Divides the free descriptors (`None` is no limit) among threads that have their rings already.
#[must_use]
pub fn files_each(threads: usize, descriptors: Option<u64>) -> Files {
    let all = FILES_IN_FLIGHT + LARGE_IN_FLIGHT;
    let each = descriptors.map_or(all, |free| {
        let each = free.saturating_sub(DESCRIPTORS_BESIDE) / threads.max(1) as u64;
        usize::try_from(each).unwrap_or(usize::MAX).min(all)
    });
    let large = (each / 4).clamp(1, LARGE_IN_FLIGHT);
    Files { small: each.saturating_sub(large).clamp(1, FILES_IN_FLIGHT), large }
}

/// Divides so many pieces among so many takers, each of whom gets at least one.
pub fn share_out(pieces: usize, among: usize) -> impl Iterator<Item = usize> {
    let (each, over) = (pieces / among.max(1), pieces % among.max(1));
    (0..among).map(move |at| (each + usize::from(at < over)).max(1))
}

/// The limit of locked memory in bytes; `None` where there is none, or none for this process.
#[must_use]
pub fn locked_memory() -> Option<u64> {
    let unlimited = capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::IPC_LOCK));
    getrlimit(Resource::Memlock).current.filter(|_| !unlimited)
}

/// The limit of descriptors; `None` is no limit.
#[must_use]
pub fn descriptors() -> Option<u64> {
    getrlimit(Resource::Nofile).current
}

/// How many descriptors this process may open beside those that are open now; `None` is no limit.
#[must_use]
pub fn descriptors_free() -> Option<u64> {
    // Without /proc the number is a guess: few are open, because this is called at start.
    let open = fs::read_dir("/proc/self/fd").map_or(DESCRIPTORS_BESIDE, |open| open.count() as u64);
    descriptors().map(|limit| limit.saturating_sub(open))
}

/// Raises the soft limit of descriptors to the hard one. It has to be called before the descriptors are divided.
pub fn raise_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        // A refusal leaves the limit as it is, and the files in flight are bounded by that.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1024 * 1024;

    fn by_memory(workers: usize, locked: u64) -> (usize, usize) {
        let Plan { rings, buffers, .. } = plan(workers, Some(locked), None);
        (rings, buffers)
    }

    #[test]
    fn locked_memory_is_divided_and_never_exceeded() {
        // Containers and systemd give 8 MiB.
        assert_eq!(by_memory(3, 8 * MIB), (3, 32));
        assert_eq!(by_memory(4, 8 * MIB), (4, 31));
        assert_eq!(by_memory(8, 8 * MIB), (8, 15));
        assert_eq!(by_memory(16, 8 * MIB), (14, 8));
        assert_eq!(by_memory(64, 8 * MIB), (14, 8));
        assert_eq!(by_memory(64, 64 * 1024), (1, 8), "the kernel may refuse even this one");
        for workers in 1..=256 {
            for limit in (MIB..=64 * MIB).step_by(512 * 1024 + 4096) {
                let (rings, buffers) = by_memory(workers, limit);
                assert!(locked_bytes(rings, buffers) <= limit, "{workers} workers, {limit} bytes");
            }
        }
        assert_eq!(plan(256, None, None), Plan { rings: 256, buffers: BUFFERS, short_of: None });
    }

    #[test]
    fn threads_and_their_files_stay_below_the_limit_of_descriptors() {
        for limit in [16, 40, 64, 256, 1024, 65_536] {
            for workers in [1, 2, 8, 32, 256] {
                let Plan { rings, .. } = plan(workers, None, Some(limit));
                let left = limit.saturating_sub(rings as u64 * DESCRIPTORS_A_RING);
                let Files { small, large } = files_each(rings, Some(left));
                assert!(small >= 1 && large >= 1 && small <= FILES_IN_FLIGHT && large <= LARGE_IN_FLIGHT);
                let all = rings as u64 * (DESCRIPTORS_A_RING + (small + large) as u64);
                assert!(all + DESCRIPTORS_BESIDE <= limit || (rings == 1 && small + large == 2), "{limit} {workers}");
            }
        }
        assert_eq!(files_each(2, None), Files { small: FILES_IN_FLIGHT, large: LARGE_IN_FLIGHT });
        assert_eq!(plan(32, None, Some(1000)).short_of, None);
        assert_eq!(plan(32, None, Some(256)).short_of, Some(Short::Descriptors));
    }

    #[test]
    fn each_gets_its_share_and_at_least_one() {
        assert!(share_out(8, 3).eq([3, 3, 2]));
        assert!(share_out(2, 4).eq([1, 1, 1, 1]));
        assert!(share_out(5, 1).eq([5]));
    }
}
