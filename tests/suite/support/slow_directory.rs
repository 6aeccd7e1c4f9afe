//! A directory on a file system in user space whose calls take as long as a test says.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::Pid;
use tempfile::TempDir;

use super::process;
use super::wait::retry;
use super::{is_root, skip};

/// Unmounted when dropped.
pub struct SlowDirectory {
    pub path: PathBuf,
    /// What it shows, without delays.
    pub source: PathBuf,
    delay: PathBuf,
    server: Child,
    _private: TempDir,
}

impl SlowDirectory {
    /// `None` where it cannot be mounted, which is printed.
    pub fn mount() -> Option<Self> {
        if !is_root() || !Path::new("/dev/fuse").exists() {
            skip("a file system in user space needs root and /dev/fuse");
            return None;
        }
        let private = TempDir::with_prefix("ingestor-suite-").expect("a temporary directory");
        let at = |name: &str| private.path().canonicalize().expect("its real path").join(name);
        let (program, source, path, delay) = (at("slow_directory"), at("source"), at("mounted"), at("delay"));
        let code = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/suite/support/slow_directory.c");
        let build = format!("cc -O1 -o {} {} $(pkg-config fuse3 --cflags --libs)", program.display(), code.display());
        if !Command::new("sh").args(["-c", &build]).stderr(Stdio::null()).status().is_ok_and(|it| it.success()) {
            skip("a file system in user space needs cc, pkg-config and libfuse3-dev");
            return None;
        }
        fs::create_dir(&source).expect("a directory");
        fs::create_dir(&path).expect("a directory");
        fs::write(&delay, "0 0").expect("a file");
        let mut server = Command::new(&program)
            .args([&source, &delay])
            .arg("-f")
            .arg(&path)
            .stderr(Stdio::null())
            .spawn()
            .expect("it was built");
        let outside = fs::metadata(private.path()).expect("its parent").dev();
        let mounted = retry("the file system in user space", || {
            let ended = server.try_wait().is_ok_and(|ended| ended.is_some());
            match fs::metadata(&path) {
                _ if ended => Ok(false),
                Ok(found) if found.dev() != outside => Ok(true),
                found => Err(format!("{found:?}")),
            }
        });
        if !mounted {
            skip("the file system in user space could not be mounted");
            return None;
        }
        Some(Self { path, source, delay, server, _private: private })
    }

    /// Sets how many seconds each read takes from now on.
    pub fn set_delay(&self, seconds: u32) {
        fs::write(&self.delay, format!("{seconds} 0")).expect("a file");
    }

    /// Sets how many seconds each look at a name or a directory takes from now on.
    pub fn set_delay_of_looks(&self, seconds: u32) {
        fs::write(&self.delay, format!("0 {seconds}")).expect("a file");
    }

    /// SIGSTOP: no call to the file system is answered any more.
    pub fn freeze(&self) {
        process::pause(Pid::from_child(&self.server));
    }

    /// SIGCONT: calls are answered again.
    pub fn thaw(&self) {
        process::resume(Pid::from_child(&self.server));
    }

    /// The server dies, and what is left of the mount answers ENOTCONN.
    pub fn die(&mut self) {
        self.server.kill().expect("it runs");
        self.server.wait().expect("its end");
    }

    /// The server dies, and somebody unmounts what is left.
    pub fn die_and_unmount(&mut self) {
        self.die();
        let unmount = Command::new("fusermount3").arg("-uz").arg(&self.path).status();
        assert!(unmount.expect("fusermount3").success());
    }

    pub fn fill(&self, files: usize) {
        for number in 0..files {
            fs::write(self.path.join(format!("slow-{number}")), "x".repeat(100)).expect("a file");
        }
    }
}

impl Drop for SlowDirectory {
    fn drop(&mut self) {
        // The kernel fails the reads that wait for the server when it ends.
        let _ = self.server.kill();
        let _ = self.server.wait();
        let _ = Command::new("fusermount3").arg("-uz").arg(&self.path).status();
    }
}
