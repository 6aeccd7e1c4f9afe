//! The service in user and mount namespaces of its own, so that the machine stays as it is.

use std::ffi::{CStr, CString};
use std::io;
use std::path::Path;
use std::process::Command;
use std::ptr;

use rustix::fs::{Mode, OFlags};

use super::setup::Setup;

/// What is mounted on a directory.
pub enum Mounted<'a> {
    /// That directory, by a bind mount.
    Bind(&'a Path),
    Tmpfs,
}

/// Whether this user may have namespaces of its own.
pub fn are_allowed() -> bool {
    Command::new("unshare").args(["-Ur", "true"]).status().is_ok_and(|status| status.success())
}

/// The service has no more than so many inotify watches.
pub fn with_watch_limit(setup: Setup, watches: usize) -> Setup {
    let watches = watches.to_string();
    // SAFETY: only system calls, on a string that was made before.
    unsafe { inside(setup, move || write_text(c"/proc/sys/user/max_inotify_watches", &watches)) }
}

/// The service sees these mounts, each on its directory.
pub fn with_mounts(setup: Setup, mounts: &[(Mounted, &Path)]) -> Setup {
    let text = |path: &Path| CString::new(path.to_str().expect("UTF-8")).expect("a path");
    let mounts: Vec<(Option<CString>, CString)> = mounts
        .iter()
        .map(|(mounted, at)| match mounted {
            Mounted::Bind(from) => (Some(text(from)), text(at)),
            Mounted::Tmpfs => (None, text(at)),
        })
        .collect();
    let mount = move || {
        for (from, at) in &mounts {
            let (source, kind, flags) = match from {
                Some(from) => (from.as_ptr(), ptr::null(), libc::MS_BIND),
                None => (c"tmpfs".as_ptr(), c"tmpfs".as_ptr(), 0),
            };
            // SAFETY: strings that end in NUL and live across the call; neither kind of mount needs data.
            if unsafe { libc::mount(source, at.as_ptr(), kind, flags, ptr::null()) } != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: only system calls, on strings that were made before.
    unsafe { inside(setup, mount) }
}

/// Runs the service in its namespaces, after `prepare`.
///
/// # Safety
/// `prepare` runs in the new process and must be async-signal-safe.
unsafe fn inside(setup: Setup, prepare: impl Fn() -> io::Result<()> + Send + Sync + 'static) -> Setup {
    let map = format!("0 {} 1", rustix::process::geteuid().as_raw());
    let enter = move || {
        // SAFETY: the new process is a copy of one thread, and gets namespaces of its own.
        if unsafe { libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNS) } != 0 {
            return Err(io::Error::last_os_error());
        }
        write_text(c"/proc/self/uid_map", &map)?;
        prepare()
    };
    // SAFETY: only system calls, on strings that were made before, and the caller's promise.
    unsafe { setup.before_exec(enter) }
}

fn write_text(path: &CStr, text: &str) -> io::Result<()> {
    let file = rustix::fs::open(path, OFlags::WRONLY, Mode::empty())?;
    rustix::io::write(&file, text.as_bytes())?;
    Ok(())
}
