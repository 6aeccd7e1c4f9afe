//! The directories, and what inotify takes of them.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{Access, AtFlags, CWD, accessat, statvfs};
use rustix::io::Errno;

use super::check::Check;
use super::mounts::Mounts;
use crate::cli::Settings;
use crate::config::{open_directories, refuse_inside};
use crate::error::os_message;
use crate::files::listing::{list, path_in};
use crate::files::root::{Protection, Root};
use crate::ledger::store::{FILE, looks_sound};
use crate::watch::inotify::Watch;

/// The kernel's default: a burst of so many events on a directory is taken up without a look-over.
const QUEUED_EVENTS_MIN: u64 = 16_384;

/// A ledger of a million files takes some 150 MB.
const FREE_BYTES_MIN: u64 = 256 << 20;

/// Directories are counted no further: a minute's work on a cold disk, and more than the kernel's own choice of
/// `max_user_watches` goes (inotify(7): 1,048,576 at the most).
const COUNT_MAX: usize = 1 << 20;

/// statfs(2).
const OVERLAYFS: u64 = 0x794c_7630;

pub fn checks(settings: &Settings) -> Vec<Check> {
    let roots = open_directories(&settings.data_dirs);
    let state = state_directory(settings, roots.as_deref().unwrap_or_default());
    let roots = match roots {
        Ok(roots) => roots,
        Err(error) => return vec![Check::refused(DATA, &error), state],
    };
    let of_each = roots.iter().flat_map(|root| [data_directory(root, settings), leases(root)]);
    of_each.chain([watches(&roots, settings), queued_events(), state]).collect()
}

const DATA: &str = "data directory";

fn data_directory(root: &Root, settings: &Settings) -> Check {
    let mounts = Mounts::read();
    let kind = root.look(b".").ok().and_then(|there| mounts.kind(there.st_dev));
    let kind = kind.map_or_else(String::new, |kind| format!(" ({kind})"));
    let found = format!("{:?}{kind} can be read", root.path());
    if root.is_remote() && settings.rescan_seconds == 0 {
        return Check::warn(
            DATA,
            format!("{found}; its file system tells nothing of what other hosts write"),
            "set --rescan-seconds (60, for one)",
        );
    }
    if root.file_system() == Some(OVERLAYFS) {
        return Check::warn(
            DATA,
            format!("{found}; it is an overlay (a container's own layer), which is lost with its container"),
            "mount a volume or a directory of the host there",
        );
    }
    let nested = if settings.recursive { mounts.below(root.path()) } else { Vec::new() };
    if let Some((first, others)) = nested.split_first() {
        let more = if others.is_empty() { String::new() } else { format!(" and at {} more places", others.len()) };
        return Check::warn(
            DATA,
            format!("{found}; something is mounted at {first:?}{more}, which is not gone into"),
            "run a service for each of these directories, too",
        );
    }
    Check::ok(DATA, found)
}

fn leases(root: &Root) -> Check {
    const NAME: &str = "half-written files";
    let protection = root.protection();
    let found = format!("told by {protection}");
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

/// The limit that a directory each counts against, and whether a watch can be had now.
fn watches(roots: &[Root], settings: &Settings) -> Check {
    const NAME: &str = "inotify watches";
    if let Err(error) = Watch::new(&roots.iter().map(Root::path).collect::<Vec<_>>()) {
        return Check::refused(NAME, &error);
    }
    let limit = limit("max_user_watches");
    // Not further than the limit: a tree that has more needs no exact number.
    let most = limit.and_then(|limit| usize::try_from(limit).ok()).map_or(COUNT_MAX, |limit| limit.min(COUNT_MAX));
    let directories = if settings.recursive { count_directories(roots, most) } else { roots.len() };
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

/// Directories below the roots and the roots themselves, one more than `most` at the most.
fn count_directories(roots: &[Root], most: usize) -> usize {
    let mut left: Vec<(&Root, Vec<u8>)> = roots.iter().map(|root| (root, Vec::new())).collect();
    let mut count = 0;
    while let Some((root, below)) = left.pop() {
        count += 1;
        if count > most {
            break;
        }
        if let Ok(listing) = list(root, &below) {
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
            format!("{limit} events; a larger burst makes the directory be looked over"),
            format!("raise the sysctl fs.inotify.max_queued_events to {QUEUED_EVENTS_MIN} or more"),
        ),
        Some(limit) => Check::ok(NAME, format!("{limit} events; a larger burst makes the directory be looked over")),
        None => Check::ok(NAME, "not told by this kernel"),
    }
}

fn limit(name: &str) -> Option<u64> {
    fs::read_to_string(format!("/proc/sys/fs/inotify/{name}")).ok()?.trim().parse().ok()
}

fn state_directory(settings: &Settings, roots: &[Root]) -> Check {
    const NAME: &str = "state directory";
    let Some(path) = &settings.state_dir else {
        return Check::warn(
            NAME,
            "none: what lands while the service is down is not noticed",
            "set --state-dir (STATE_DIRECTORY) to a directory outside of the data directory",
        );
    };
    if let Some(error) = roots.iter().find_map(|root| refuse_inside(path, root).err()) {
        return Check::refused(NAME, &error);
    }
    // What exists of its path is where it will be made.
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.clone());
    let Some(there) = absolute.ancestors().find(|ancestor| ancestor.exists()) else {
        return Check::fail(NAME, format!("{path:?} leads nowhere"), "name another directory");
    };
    if !there.is_dir() {
        return Check::fail(NAME, format!("{there:?} is no directory"), "name another directory");
    }
    let exists = there == absolute;
    // What is there is opened; what is made is ours.
    let read = if exists { Access::READ_OK } else { Access::empty() };
    if let Err(errno) = accessat(CWD, there, read | Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS) {
        return Check::fail(
            NAME,
            format!("{there:?} cannot be read and written: {}", os_message(&errno.into())),
            "give this user the right to write there, or name another directory",
        );
    }
    let how = match (exists, is_locked(there)) {
        (false, _) => "will be made",
        (true, true) => "is in use by a running service",
        (true, false) => "can be used",
    };
    let found = format!("{path:?} {how}");
    let ledger = absolute.join(FILE);
    match accessat(CWD, &ledger, Access::READ_OK | Access::WRITE_OK, AtFlags::EACCESS) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(errno) => {
            return Check::warn(
                NAME,
                format!("{found}, but not {ledger:?}: {}; it would count as empty", os_message(&errno.into())),
                "give this user the right to read and write it, or move it away",
            );
        }
    }
    match looks_sound(path) {
        Ok(true) => {}
        Ok(false) => {
            return Check::warn(
                NAME,
                format!(
                    "{found}, but {ledger:?} is damaged, behind since its disk was full, or no ledger: a start sets it aside, and files that it held may be published again"
                ),
                "put a copy from before in its place, or leave it so",
            );
        }
        Err(error) => return Check::refused(NAME, &error),
    }
    match statvfs(there).map(|found| found.f_bavail.saturating_mul(found.f_frsize)) {
        Ok(free) if free < FREE_BYTES_MIN => Check::warn(
            NAME,
            format!("{found}; {} MB are free", free / 1_000_000),
            "make room: a million files take some 150 MB",
        ),
        Ok(_) => Check::ok(NAME, found),
        Err(_) => Check::ok(NAME, format!("{found}; what is free there is not told")),
    }
}

/// Whether a process holds a lock on it, as the kernel's own list tells: taking the lock to see could keep a service that
/// just starts from having it.
fn is_locked(directory: &Path) -> bool {
    let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
    directory.metadata().is_ok_and(|there| {
        let (major, minor) = (rustix::fs::major(there.dev()), rustix::fs::minor(there.dev()));
        holds(&locks, &format!("{major:02x}:{minor:02x}:{}", there.ino()))
    })
}

/// `1: FLOCK  ADVISORY  WRITE 4711 fe:00:123 0 EOF` (proc_locks(5)).
fn holds(locks: &str, file: &str) -> bool {
    locks.lines().any(|line| {
        let mut words = line.split_ascii_whitespace().skip(1);
        words.next() == Some("FLOCK") && words.nth(3) == Some(file)
    })
}

#[cfg(test)]
mod tests {
    use rustix::fs::{FlockOperation, flock};

    use super::*;

    #[test]
    fn the_kernels_list_tells_who_is_locked() {
        let locks = "1: FLOCK  ADVISORY  WRITE 4711 fe:00:123 0 EOF\n2: POSIX  ADVISORY  READ  12 fe:00:77 0 EOF\n";
        assert!(holds(locks, "fe:00:123"));
        assert!(!holds(locks, "fe:00:12") && !holds(locks, "fe:00:77"));
        let dir = tempfile::tempdir().unwrap();
        assert!(!is_locked(dir.path()));
        let held = fs::File::open(dir.path()).unwrap();
        flock(&held, FlockOperation::NonBlockingLockExclusive).unwrap();
        assert!(is_locked(dir.path()), "{}", fs::read_to_string("/proc/locks").unwrap());
    }

    #[test]
    fn directories_are_counted_no_further_than_is_asked() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("a/b/c")).unwrap();
        fs::create_dir(dir.path().join("d")).unwrap();
        let roots = open_directories(&[dir.path().to_owned()]).unwrap();
        assert_eq!(count_directories(&roots, 100), 5);
        assert_eq!(count_directories(&roots, 2), 3);
    }
}
