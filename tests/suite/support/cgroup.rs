//! A cgroup of a test's own, with a limit of memory.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process;

use super::setup::Setup;

/// Where the hierarchy of either version is usually mounted, and the file of its limit.
const HIERARCHIES: [(&str, &str); 2] =
    [("/sys/fs/cgroup", "memory.max"), ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")];

/// A cgroup, removed when dropped.
pub struct Cgroup(PathBuf);

impl Cgroup {
    /// Makes one; `None` where that is not possible.
    pub fn with_memory(bytes: u64) -> Option<Self> {
        HIERARCHIES.into_iter().find_map(|(mounted, limit)| {
            let at = Path::new(mounted).join(format!("ingestor-suite-{}", process::id()));
            fs::create_dir(&at).ok()?;
            let cgroup = Self(at);
            // Where the directory is no cgroup of this controller, the file is not there.
            fs::OpenOptions::new()
                .write(true)
                .open(cgroup.0.join(limit))
                .ok()?
                .write_all(bytes.to_string().as_bytes())
                .ok()?;
            Some(cgroup)
        })
    }

    /// Runs the command in it.
    pub fn contain(&self, setup: Setup) -> Setup {
        let procs =
            fs::OpenOptions::new().write(true).open(self.0.join("cgroup.procs")).expect("the cgroup's processes");
        // SAFETY: write(2) is async-signal-safe, and nothing is allocated.
        unsafe { setup.before_exec(move || (&procs).write_all(b"0")) }
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}
