//! The data directories, and the limits of inotify.

use std::fs;
use std::sync::Arc;

use super::check::Check;
use super::state;
use crate::cli::Settings;
use crate::error::Error;
use crate::files::listing::{list, path_in};
use crate::files::mounts::{self, Mounts};
use crate::files::root::opening::PATIENCE;
use crate::files::root::{Protection, Root};
use crate::memory::{Budget, MORE_MEMORY};
use crate::watch::inotify::Watch;

const DATA: &str = "data directory";

/// The kernel's default for the queue of events. A larger burst overflows it (IN_Q_OVERFLOW), which costs a rescan.
const QUEUED_EVENTS_MIN: u64 = 16_384;

/// Directories are counted up to this number: that takes a minute on a cold disk, and the kernel chooses no larger
/// `max_user_watches` by itself (inotify(7): 1,048,576).
const COUNT_MAX: usize = 1 << 20;

/// The type of an overlay (statfs(2)).
const OVERLAYFS: u64 = 0x794c_7630;

pub fn checks(settings: &Settings, roots: Result<&[Arc<Root>], &Error>) -> Vec<Check> {
    let state = state::check(settings, roots.unwrap_or_default());
    let (roots, hanging): (Vec<_>, Vec<_>) = match roots {
        Ok(roots) => roots.iter().cloned().partition(|root| root.is_open()),
        Err(error) => return vec![Check::refused(DATA, error), state],
    };
    let limit = limit("max_user_watches");
    // A tree with more directories than the limit needs no exact number.
    let most = limit.and_then(|limit| usize::try_from(limit).ok()).map_or(COUNT_MAX, |limit| limit.min(COUNT_MAX));
    let count = count(&roots, settings.recursive, most);
    let of_each = roots.iter().flat_map(|root| [data_directory(root, settings), leases(root)]);
    of_each
        .chain(hanging.iter().map(|root| does_not_answer(root)))
        .chain([watches(&roots, limit, count.directories, most), queued_events(), memory(settings, count.names), state])
        .collect()
}

fn data_directory(root: &Root, settings: &Settings) -> Check {
    let mounts = Mounts::read();
    let kind = root.look(b".").ok().and_then(|stat| mounts.kind(stat.st_dev));
    let kind = kind.map_or_else(String::new, |kind| format!(" ({kind})"));
    let found = format!("{:?}{kind} can be read", root.path());
    let nested = if settings.recursive { mounts.below(root.path()) } else { Vec::new() };
    if root.is_remote() && settings.rescan_seconds == 0 {
        Check::warn(
            DATA,
            format!("{found}; its file system reports nothing of what other hosts write"),
            "set --rescan-seconds (to 60, for example)",
        )
    } else if root.file_system() == Some(OVERLAYFS) {
        Check::warn(
            DATA,
            format!("{found}; it is an overlay (a container's own layer), which is lost with its container"),
            "mount a volume or a directory of the host there",
        )
    } else if let Some((first, others)) = nested.split_first() {
        let mounted = mounts::in_words(first, others.len());
        Check::warn(DATA, format!("{found}; {mounted}"), "run a service for each of these directories, too")
    } else {
        Check::ok(DATA, found)
    }
}

fn does_not_answer(root: &Root) -> Check {
    let found = format!("{:?} has not answered for {} s", root.path(), PATIENCE.as_secs());
    Check::fail(DATA, found, "its disk, its server or its mount hangs: see the kernel's log")
}

fn leases(root: &Root) -> Check {
    const NAME: &str = "half-written files";
    let protection = root.protection();
    let found = format!("recognized by {protection}");
    match protection {
        Protection::Leases => Check::ok(NAME, found),
        Protection::OwnLeases { .. } => Check::warn(
            NAME,
            found,
            "give the binary or the unit CAP_LEASE (setcap cap_lease+p, AmbientCapabilities=CAP_LEASE), where files have other owners",
        ),
        Protection::Stat => {
            Check::warn(NAME, found, "let writers use a partial name and rename, or write to a local file system")
        }
    }
}

/// Checks whether the memory that this process may have is enough for the names.
fn memory(settings: &Settings, names: usize) -> Check {
    const NAME: &str = "memory";
    let budget = Budget::of_this_process(settings.state_dir.is_some(), settings.removals);
    match (budget.add(names), budget.need()) {
        (Some(need), _) => Check::warn(NAME, format!("{need}"), MORE_MEMORY),
        (None, Some(need)) => Check::ok(NAME, format!("{need}")),
        (None, None) => Check::ok(NAME, "no cgroup limits it"),
    }
}

/// Checks the limit of watches, one a directory, and whether a watch can be added now. The directories were counted up to
/// `most`.
fn watches(roots: &[Arc<Root>], limit: Option<u64>, directories: usize, most: usize) -> Check {
    const NAME: &str = "inotify watches";
    if let Err(error) = Watch::new(&roots.iter().map(|root| root.path()).collect::<Vec<_>>()) {
        return Check::refused(NAME, &error);
    }
    match limit {
        Some(limit) if directories as u64 > limit => Check::warn(
            NAME,
            format!("at most {limit} for this user, and there are more directories"),
            "raise the sysctl fs.inotify.max_user_watches",
        ),
        Some(limit) => {
            let more = if directories > most { "more than " } else { "" };
            Check::ok(NAME, format!("at most {limit} for this user; {more}{} needed", directories.min(most)))
        }
        None => Check::ok(NAME, "one can be had"),
    }
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Count {
    directories: usize,
    names: usize,
}

/// The number of the roots and, if `recursive`, the directories below them, counted up to `most` and one; and the files in
/// them.
fn count(roots: &[Arc<Root>], recursive: bool, most: usize) -> Count {
    let mut left: Vec<(&Root, Vec<u8>)> = roots.iter().map(|root| (&**root, Vec::new())).collect();
    let mut count = Count::default();
    while let Some((root, below)) = left.pop() {
        count.directories += 1;
        if count.directories > most {
            break;
        }
        let Ok(listing) = list(root, &below) else { continue };
        count.names += listing.files.len();
        if recursive {
            left.extend(listing.directories.iter().map(|name| (root, path_in(&below, name))));
        }
    }
    count
}

fn queued_events() -> Check {
    const NAME: &str = "inotify queue";
    match limit("max_queued_events") {
        Some(limit) if limit < QUEUED_EVENTS_MIN => Check::warn(
            NAME,
            format!("{limit} events; a larger burst costs a rescan"),
            format!("raise the sysctl fs.inotify.max_queued_events to {QUEUED_EVENTS_MIN} or more"),
        ),
        Some(limit) => Check::ok(NAME, format!("{limit} events; a larger burst costs a rescan")),
        None => Check::ok(NAME, "not reported by this kernel"),
    }
}

fn limit(name: &str) -> Option<u64> {
    fs::read_to_string(format!("/proc/sys/fs/inotify/{name}")).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::root::open_root;

    #[test]
    fn directories_are_counted_up_to_a_limit() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("a/b/c")).unwrap();
        fs::create_dir(dir.path().join("d")).unwrap();
        let roots = [Arc::new(open_root(dir.path()).unwrap())];
        fs::write(dir.path().join("a/b/file"), "").unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        assert_eq!(count(&roots, true, 100), Count { directories: 5, names: 2 });
        assert_eq!(count(&roots, true, 2).directories, 3);
        assert_eq!(count(&roots, false, 100), Count { directories: 1, names: 1 });
    }
}
