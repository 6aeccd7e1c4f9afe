//! The state directory, and faults of the disk under it.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, chown};
use std::path::{Path, PathBuf};

use crate::support::files::{Random, noise};
use crate::support::skip;
use crate::support::volume::SmallDisk;

/// Room for the ledger of a few dozen files with its side files, and little more.
const DISK: &str = "size=2m,mode=0700";
/// Smaller files hold nothing to damage.
const LEAST_TO_DAMAGE: u64 = 100;

pub struct StateDirectory {
    path: PathBuf,
    disk: Option<SmallDisk>,
    /// The ledger's files, by name, as they were at some earlier end of the service.
    old: Vec<(OsString, Vec<u8>)>,
    /// Its owner, where that is another user than the test's.
    user: Option<u32>,
}

impl StateDirectory {
    pub fn new(path: &Path) -> Self {
        fs::create_dir(path).expect("a state directory");
        Self { path: path.to_owned(), disk: None, old: Vec::new(), user: None }
    }

    /// Puts it on a small disk of its own. Without the right to mount one it prints so and stays where it is.
    pub fn on_a_small_disk(path: &Path) -> Self {
        let mut state = Self::new(path);
        state.disk = SmallDisk::mount(path, DISK);
        if state.disk.is_none() {
            skip("the fault `full disk` needs the right to mount a tmpfs");
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

    /// Where it is on a small disk.
    pub fn disk(&self) -> Option<&SmallDisk> {
        self.disk.as_ref()
    }

    /// Restores the files of the previous call, as a disk does that has lost its last writes. The first call finds
    /// none, and removes the ledger. The service must not be running.
    pub fn go_back(&mut self) {
        let mut present = Vec::new();
        for path in self.files() {
            let name = path.file_name().expect("a name").to_owned();
            present.push((name, fs::read(&path).expect("a file of the ledger")));
            fs::remove_file(&path).expect("a file of the ledger is removed");
        }
        for (name, content) in std::mem::replace(&mut self.old, present) {
            let path = self.path.join(name);
            // A full disk takes fewer bytes and leaves a damaged file.
            let _ = fs::write(&path, content);
            if let Some(user) = self.user {
                chown(&path, Some(user), None).expect("a file is given to the service's user");
            }
        }
    }

    fn files(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(&self.path).expect("the state directory");
        let paths = entries.map(|entry| entry.expect("an entry").path());
        paths.filter(|path| path.is_file() && !SmallDisk::is_filler(path) && !path.ends_with("lock")).collect()
    }

    /// Damages each file that is large enough: flips bits, cuts off its end, or writes garbage. Returns how many. The
    /// service must not be running.
    pub fn damage(&self, random: &mut Random) -> usize {
        let mut damaged = 0;
        for path in self.files() {
            let length = path.metadata().expect("stat").len();
            if length <= LEAST_TO_DAMAGE {
                continue;
            }
            let file = File::options().read(true).write(true).open(path).expect("a file of the ledger");
            let offset = random.below(length as usize) as u64;
            // The disk may be full, so that there is no damage.
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
