//! The state directory, and what may happen to the disk under it.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::files::{Random, noise};
use crate::service::is_root;

/// Room for the ledger of a few dozen files with its side files, and little more.
const DISK: &str = "size=2m,mode=0700";
const FILLER: &str = "filler";
/// What is smaller holds nothing worth damaging.
const WORTH_DAMAGING: u64 = 100;

pub struct StateDirectory {
    path: PathBuf,
    mounted: bool,
    /// The ledger's files, by name, as they were at some earlier end of the service.
    old: Vec<(OsString, Vec<u8>)>,
    /// Whose it is, where that is not ours.
    user: Option<u32>,
}

impl StateDirectory {
    pub fn new(path: &Path) -> Self {
        fs::create_dir(path).expect("a state directory");
        Self { path: path.to_owned(), mounted: false, old: Vec::new(), user: None }
    }

    /// On a small disk of its own; without the right to mount one it says so and stays where it is.
    pub fn on_a_small_disk(path: &Path) -> Self {
        let mut state = Self::new(path);
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", DISK, "tmpfs"]).arg(path).stderr(Stdio::null());
        state.mounted = is_root() && mount.status().is_ok_and(|status| status.success());
        if !state.mounted {
            crate::service::skip("the fault `full disk` needs the right to mount a tmpfs");
        }
        state
    }

    /// For a service that is another user.
    pub fn of_user(mut self, user: u32) -> Self {
        self.user = Some(user);
        self
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn can_be_filled(&self) -> bool {
        self.mounted
    }

    /// To the last byte.
    pub fn fill(&self) {
        let mut filler = File::create(self.path.join(FILLER)).expect("a filler");
        // Whole blocks first, then what is left: SQLite can make do with little.
        for size in [65_536, 4_096, 1] {
            while filler.write_all(&vec![0; size]).is_ok() {}
        }
    }

    pub fn free(&self) {
        fs::remove_file(self.path.join(FILLER)).expect("the filler is removed");
    }

    /// Puts back the files that it held when this was called before, as a disk does that lost its tail;
    /// the first time there are none, and the ledger is gone. The service must not be running.
    pub fn go_back(&mut self) {
        let mut present = Vec::new();
        for path in self.files() {
            let name = path.file_name().expect("a name").to_owned();
            present.push((name, fs::read(&path).expect("a file of the ledger")));
            fs::remove_file(&path).expect("a file of the ledger is removed");
        }
        for (name, content) in std::mem::replace(&mut self.old, present) {
            let path = self.path.join(name);
            // A full disk takes less, and leaves a damaged file.
            let _ = fs::write(&path, content);
            if let Some(user) = self.user {
                chown(&path, Some(user), None).expect("a file is given to the service's user");
            }
        }
    }

    fn files(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(&self.path).expect("the state directory");
        let paths = entries.map(|entry| entry.expect("an entry").path());
        paths.filter(|path| path.is_file() && !path.ends_with(FILLER) && !path.ends_with("lock")).collect()
    }

    /// Bits turned over, an end cut off, a stretch of garbage: in each file that is worth it. Tells
    /// in how many. The service must not be running.
    pub fn damage(&self, random: &mut Random) -> usize {
        let mut damaged = 0;
        for path in self.files() {
            let length = path.metadata().expect("stat").len();
            if length <= WORTH_DAMAGING {
                continue;
            }
            let file = File::options().read(true).write(true).open(path).expect("a file of the ledger");
            let offset = random.below(length as usize) as u64;
            // The disk may be full: then the damage is done elsewhere.
            let _ = match random.below(4) {
                0 => file.set_len(offset),
                1 => file.write_all_at(&noise(300, random.next()), offset),
                2 => file.write_all_at(&noise(100, random.next()), 0),
                _ => flip(&file, offset, random),
            };
            damaged += 1;
        }
        damaged
    }
}

fn flip(file: &File, first: u64, random: &mut Random) -> std::io::Result<()> {
    let length = file.metadata()?.len();
    let mut offset = first;
    for _ in 0..8 {
        let mut byte = [0];
        file.read_exact_at(&mut byte, offset)?;
        file.write_all_at(&[byte[0] ^ (1 << random.below(8))], offset)?;
        offset = random.below(length as usize) as u64;
    }
    Ok(())
}

impl Drop for StateDirectory {
    fn drop(&mut self) {
        if self.mounted {
            // Lazily: a service that is just being killed may still have files open there.
            let _ = Command::new("umount").arg("-l").arg(&self.path).status();
        }
    }
}
