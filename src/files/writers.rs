//! Which processes have a file open for writing, as far as /proc shows it to this user: its own processes, and all to root.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long the search may take: a host can have thousands of processes, and the answer is only a help.
const SEARCH_TIME: Duration = Duration::from_millis(300);

/// In a descriptor's flags: O_WRONLY or O_RDWR (open(2)).
const WRITES: u32 = 0o3;

/// A process that has a file open for writing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Writer {
    /// Which of the paths that were asked for.
    pub path: usize,
    /// The process id.
    pub pid: u32,
    /// The name of its program (proc(5), comm), at most 15 bytes.
    pub command: String,
}

/// The writers of files at these absolute paths, as the kernel names them: without links. Other users' processes, those in
/// other mount namespaces, and those that the search has no time for are missing.
#[must_use]
pub fn writers(paths: &[&[u8]]) -> Vec<Writer> {
    let (mut found, until) = (Vec::new(), Instant::now() + SEARCH_TIME);
    let Ok(processes) = fs::read_dir("/proc") else { return found };
    for process in processes.flatten() {
        if paths.is_empty() || Instant::now() >= until {
            break;
        }
        let pid = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok());
        if let Some(pid) = pid.filter(|pid| *pid != std::process::id()) {
            // It may have ended, or be another user's.
            let _ = add_writer(&process.path(), pid, paths, &mut found);
        }
    }
    found
}

fn add_writer(process: &Path, pid: u32, paths: &[&[u8]], found: &mut Vec<Writer>) -> io::Result<()> {
    for descriptor in fs::read_dir(process.join("fd"))?.flatten() {
        // The link's text, because a look through it would ask its file system, which may hang.
        let Ok(target) = fs::read_link(descriptor.path()) else { continue };
        let Some(path) = paths.iter().position(|path| *path == target.as_os_str().as_bytes()) else { continue };
        let about = fs::read_to_string(process.join("fdinfo").join(descriptor.file_name()))?;
        if writes(&about) && !found.iter().any(|writer| (writer.path, writer.pid) == (path, pid)) {
            let command = fs::read_to_string(process.join("comm")).unwrap_or_default().trim_end().to_owned();
            found.push(Writer { path, pid, command });
        }
    }
    Ok(())
}

/// Whether /proc/PID/fdinfo shows a descriptor that is open for writing.
fn writes(about: &str) -> bool {
    let flags = about.lines().find_map(|line| line.strip_prefix("flags:"));
    flags.and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok()).is_some_and(|flags| flags & WRITES != 0)
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_writer_is_found_and_a_reader_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().canonicalize().unwrap();
        let [written, read] = ["written", "read"].map(|name| real.join(name));
        fs::write(&read, "").unwrap();
        let mut cat = Command::new("cat")
            .stdin(Stdio::piped())
            .stdout(fs::File::create(&written).unwrap())
            .stderr(fs::File::open(&read).unwrap())
            .spawn()
            .unwrap();
        // This process has not opened either any more.
        let found = writers(&[written.as_os_str().as_bytes(), read.as_os_str().as_bytes()]);
        let ours: Vec<_> = found.iter().filter(|writer| writer.pid == cat.id()).collect();
        assert!(ours.len() == 1 && ours[0].path == 0, "{found:?}");
        drop(cat.stdin.take());
        cat.wait().unwrap();
    }

    #[test]
    fn flags_are_octal() {
        assert!(writes("pos:\t0\nflags:\t0100001\n") && writes("flags:\t02\n"));
        assert!(!writes("pos:\t0\nflags:\t0100000\n") && !writes("") && !writes("flags:\tx\n"));
    }
}
