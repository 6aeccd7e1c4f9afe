//! How much memory the names of the data directories need, and how much this process may have.
//!
//! The kernel ends a process that takes more than its cgroup may have, without a word. So `doctor` and the start say before it
//! comes to that what does not fit.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// What the process needs without any names: code, threads, rings, the pending set's first thousand.
const BASE_BYTES: u64 = 24 * 1000 * 1000;

/// What each name needs at its peak, while the tree is listed and compared: measured with a million names of 22 bytes.
const NAME_BYTES: u64 = 160;

/// What the last confirmed version of a name needs beside it, with a ledger.
const VERSION_BYTES: u64 = 50;

/// What the last message of a name needs beside it, with removals.
const MESSAGE_BYTES: u64 = 110;

/// A cgroup of version 1 without a limit shows one that no machine has: the largest number of whole pages.
const NO_LIMIT: u64 = 1 << 60;

/// The memory of so many names, and the limit of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Need {
    names: u64,
    bytes: u64,
    limit: u64,
}

impl Need {
    /// Whether the names fit.
    #[must_use]
    pub fn fits(&self) -> bool {
        self.bytes <= self.limit
    }
}

impl fmt::Display for Need {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mega = |bytes: u64| bytes.div_ceil(1_000_000);
        write!(to, "{} names need {} MB of {} MB", self.names, mega(self.bytes), self.limit / 1_000_000)
    }
}

/// What to do where the names do not fit.
pub const MORE_MEMORY: &str = "raise the limit of the container or unit (docker --memory, resources.limits.memory, MemoryMax=), or watch fewer files";

/// The memory that names may take.
#[derive(Debug, Default)]
pub struct Budget {
    /// `None` where there is no limit.
    limit: Option<u64>,
    name_bytes: u64,
    /// Those of all volumes, whose watches find them side by side.
    names: AtomicU64,
    warned: AtomicBool,
}

impl Budget {
    /// The budget of this process. `ledger`, `removals`: whether these are kept in mind for each name.
    #[must_use]
    pub fn of_this_process(ledger: bool, removals: bool) -> Self {
        Self::new(limit(), ledger, removals)
    }

    fn new(limit: Option<u64>, ledger: bool, removals: bool) -> Self {
        let beside = u64::from(ledger) * VERSION_BYTES + u64::from(removals) * MESSAGE_BYTES;
        Self { limit, name_bytes: NAME_BYTES + beside, ..Self::default() }
    }

    /// Adds names that were found. Returns what all of them need as soon as that does not fit, once.
    pub fn add(&self, names: usize) -> Option<Need> {
        self.names.fetch_add(names as u64, Ordering::Relaxed);
        self.need().filter(|need| !need.fits() && !self.warned.swap(true, Ordering::Relaxed))
    }

    /// What the names so far need; `None` where there is no limit.
    #[must_use]
    pub fn need(&self) -> Option<Need> {
        let names = self.names.load(Ordering::Relaxed);
        let bytes = BASE_BYTES.saturating_add(names.saturating_mul(self.name_bytes));
        Some(Need { names, bytes, limit: self.limit? })
    }
}

/// The bytes of memory that this process's cgroup, or one above it, allows; `None` where none has a limit.
fn limit() -> Option<u64> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    limit_of(&read("/proc/self/cgroup"), &read("/proc/self/mountinfo"), |path| fs::read_to_string(path).ok())
}

/// The lowest limit on the way up from a process's cgroup (cgroups(7)). `cgroup` and `mounts` are its files of these names in
/// /proc (proc_pid_cgroup(5), proc_pid_mountinfo(5)). What cannot be read sets no limit.
fn limit_of(cgroup: &str, mounts: &str, read: impl Fn(&Path) -> Option<String>) -> Option<u64> {
    let own = |controller: &str| {
        cgroup.lines().find_map(|line| {
            let mut parts = line.splitn(3, ':').skip(1);
            let named = parts.next()?.split(',').any(|name| name == controller);
            parts.next().filter(|_| named)
        })
    };
    let hierarchies = [("", "cgroup2", "memory.max"), ("memory", "cgroup", "memory.limit_in_bytes")];
    let lowest = |(controller, kind, file): (&str, &str, &str)| {
        let (at, mounted) = (mount(mounts, kind, controller)?, own(controller)?);
        // In a container without a namespace of its own the path is the host's, of which the mount shows the end alone.
        let below = mounted.strip_prefix(&*at.root).unwrap_or(mounted).trim_start_matches('/');
        let directories = Path::new(below).ancestors().map(|above| at.path.join(above));
        let limit = |directory: PathBuf| read(&directory.join(file))?.trim().parse::<u64>().ok();
        directories.filter_map(limit).filter(|bytes| *bytes < NO_LIMIT).min()
    };
    hierarchies.into_iter().filter_map(lowest).min()
}

/// Where a hierarchy of cgroups is mounted, and which of its directories is there.
struct Mount {
    root: String,
    path: PathBuf,
}

fn mount(mounts: &str, kind: &str, controller: &str) -> Option<Mount> {
    mounts.lines().find_map(|line| {
        let (place, system) = line.split_once(" - ")?;
        let mut system = system.split(' ');
        let right =
            system.next()? == kind && system.nth(1)?.split(',').any(|it| controller.is_empty() || it == controller);
        let mut place = place.split(' ').skip(3);
        let (root, path) = (place.next()?, place.next()?);
        right.then(|| Mount { root: if root == "/" { String::new() } else { root.to_owned() }, path: path.into() })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const V2: &str = "25 20 0:22 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
    const V1: &str = "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n";

    fn lowest(cgroup: &str, mounts: &str, files: &[(&str, &str)]) -> Option<u64> {
        limit_of(cgroup, mounts, |path| {
            files.iter().find(|(name, _)| Path::new(name) == path).map(|(_, text)| format!("{text}\n"))
        })
    }

    #[test]
    fn the_lowest_limit_on_the_way_up_counts() {
        let files = [
            ("/sys/fs/cgroup/a/b/memory.max", "max"),
            ("/sys/fs/cgroup/a/memory.max", "268435456"),
            ("/sys/fs/cgroup/memory.max", "1000000000"),
            ("/sys/fs/cgroup/memory/x/memory.limit_in_bytes", "9223372036854771712"),
            ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "300000000"),
        ];
        assert_eq!(lowest("0::/a/b\n", V2, &files), Some(268_435_456));
        assert_eq!(lowest("0::/\n", V2, &files), Some(1_000_000_000));
        assert_eq!(lowest("4:memory:/x\n0::/\n", V1, &files), Some(300_000_000));
        assert_eq!(lowest("4:cpu,memory:/x\n0::/a\n", &[V1, V2].concat(), &files), Some(268_435_456));
        assert_eq!(lowest("4:memory:/x\n", V1, &files[..4]), None, "as good as no limit");
        assert_eq!(lowest("", "", &[]), None);
        // A container with its own directory of the host's tree.
        let own = "25 20 0:22 /docker/1f /sys/fs/cgroup ro - cgroup2 cgroup rw\n";
        assert_eq!(lowest("0::/docker/1f\n", own, &files), Some(1_000_000_000));
        // It may see a path of the host that it has no directory of.
        assert_eq!(lowest("0::/other/1f\n", own, &files), Some(1_000_000_000));
    }

    #[test]
    fn names_that_do_not_fit_are_reported_once_and_before_the_others_are_found() {
        let budget = Budget::new(Some(256 << 20), true, false);
        assert_eq!(budget.add(1_000_000), None);
        assert!(budget.need().unwrap().fits());
        let need = budget.add(400_000).unwrap();
        assert_eq!(need.to_string(), "1400000 names need 318 MB of 268 MB");
        assert_eq!(budget.add(1_000_000), None, "once");
        assert_eq!(Budget::new(None, true, true).add(usize::MAX / 2), None);
    }
}
