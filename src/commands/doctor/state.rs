//! The state directory, and the ledger in it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Access, AtFlags, CWD, accessat, statvfs};
use rustix::io::Errno;

use super::check::Check;
use crate::cli::Settings;
use crate::config::refuse_inside;
use crate::error::os_message;
use crate::files::root::Root;
use crate::ledger::store::{FILE, looks_sound};

const NAME: &str = "state directory";

/// The free space that is enough: a ledger of a million files takes some 150 MB.
const FREE_BYTES_MIN: u64 = 256 << 20;

pub fn check(settings: &Settings, roots: &[Arc<Root>]) -> Check {
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
    directory(path).unwrap_or_else(|finding| finding)
}

/// The check of the directory, or the first finding that ends it.
fn directory(path: &Path) -> Result<Check, Check> {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let existing = existing(path, &absolute)?;
    let found = match (existing == absolute, is_locked(&existing)) {
        (false, _) => format!("{path:?} will be made"),
        (true, true) => format!("{path:?} is in use by a running service"),
        (true, false) => format!("{path:?} can be used"),
    };
    let found =
        if is_open_to_all(&existing, &absolute) { found + "; all users can see the names in it" } else { found };
    ledger(path, &absolute.join(FILE), &found)?;
    Ok(free_space(&existing, found))
}

/// Whether a state directory that exists can be read by all users: the ledger holds the names of all files.
fn is_open_to_all(existing: &Path, absolute: &Path) -> bool {
    existing == absolute && existing.metadata().is_ok_and(|there| there.mode() & 0o005 == 0o005)
}

/// The deepest directory of the path that exists, once this user may make or use a directory there.
fn existing(path: &Path, absolute: &Path) -> Result<PathBuf, Check> {
    let Some(existing) = absolute.ancestors().find(|ancestor| ancestor.exists()) else {
        return Err(Check::fail(NAME, format!("{path:?} leads nowhere"), "name another directory"));
    };
    if !existing.is_dir() {
        return Err(Check::fail(NAME, format!("{existing:?} is no directory"), "name another directory"));
    }
    // A directory that the service makes is readable for it.
    let read = if existing == absolute { Access::READ_OK } else { Access::empty() };
    match accessat(CWD, existing, read | Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS) {
        Ok(()) => Ok(existing.to_owned()),
        Err(errno) => Err(Check::fail(
            NAME,
            format!("{existing:?} cannot be read and written: {}", os_message(&errno)),
            "give this user the right to write there, or name another directory",
        )),
    }
}

/// Checks that the ledger, if there is one, can be used.
fn ledger(path: &Path, ledger: &Path, found: &str) -> Result<(), Check> {
    match accessat(CWD, ledger, Access::READ_OK | Access::WRITE_OK, AtFlags::EACCESS) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(errno) => {
            return Err(Check::warn(
                NAME,
                format!("{found}, but not {ledger:?}: {}; it would count as empty", os_message(&errno)),
                "give this user the right to read and write it, or move it away",
            ));
        }
    }
    match looks_sound(path) {
        Ok(true) => Ok(()),
        Ok(false) => Err(Check::warn(
            NAME,
            format!(
                "{found}, but {ledger:?} is damaged, behind since its disk was full, or no ledger: a start sets it aside, and files that it held may be published again"
            ),
            "put a copy from before in its place, or leave it so",
        )),
        Err(error) => Err(Check::refused(NAME, &error)),
    }
}

fn free_space(directory: &Path, found: String) -> Check {
    match statvfs(directory).map(|stat| stat.f_bavail.saturating_mul(stat.f_frsize)) {
        Ok(free) if free < FREE_BYTES_MIN => Check::warn(
            NAME,
            format!("{found}; {} MB are free", free / 1_000_000),
            "make room: a million files take some 150 MB",
        ),
        Ok(_) => Check::ok(NAME, found),
        Err(_) => Check::ok(NAME, format!("{found}; its free space is not reported")),
    }
}

/// Whether a process holds a lock on the directory, by the kernel's own list of locks: taking the lock for a test could
/// keep it from a service that starts at that moment.
fn is_locked(directory: &Path) -> bool {
    let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
    directory.metadata().is_ok_and(|stat| {
        let (major, minor) = (rustix::fs::major(stat.dev()), rustix::fs::minor(stat.dev()));
        holds(&locks, &format!("{major:02x}:{minor:02x}:{}", stat.ino()))
    })
}

/// Whether the list has a lock of flock(2) on the file: `1: FLOCK  ADVISORY  WRITE 4711 fe:00:123 0 EOF` (proc_locks(5)).
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
    fn the_kernels_list_shows_which_directory_is_locked() {
        let locks = "1: FLOCK  ADVISORY  WRITE 4711 fe:00:123 0 EOF\n2: POSIX  ADVISORY  READ  12 fe:00:77 0 EOF\n";
        assert!(holds(locks, "fe:00:123"));
        assert!(!holds(locks, "fe:00:12") && !holds(locks, "fe:00:77"));
        let dir = tempfile::tempdir().unwrap();
        assert!(!is_locked(dir.path()));
        let held = fs::File::open(dir.path()).unwrap();
        flock(&held, FlockOperation::NonBlockingLockExclusive).unwrap();
        assert!(is_locked(dir.path()), "{}", fs::read_to_string("/proc/locks").unwrap());
    }
}
