//! File systems of a test's own: an ext4 on a loop device, and a tmpfs that is small enough to be filled.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use rustix::fs::{Mode, OFlags, SeekFrom, open, seek, statvfs};

use super::wait::retry;

/// Inodes of 128 bytes have no room for nanoseconds (ext4(5)): time stamps are whole seconds.
pub const WHOLE_SECONDS: [&str; 2] = ["-I", "128"];
/// The image is sparse: room for all that any test has at a time.
const IMAGE: u64 = 2 << 30;
/// Of an ext4 of this size (mke2fs.conf(5)).
const BLOCK: usize = 4096;
const FILLER: &str = "filler";

/// An ext4 on a loop device, unmounted when dropped.
pub struct Volume {
    image: PathBuf,
    at: PathBuf,
    /// One loop device for each mount. All stay attached until the end, so that each mount has another device number.
    devices: Vec<String>,
}

impl Volume {
    /// Formats `image` with these options of mkfs.ext4 and mounts it; `None` where that is not possible.
    pub fn mount(image: &Path, at: &Path, options: &[&str]) -> Option<Self> {
        File::create(image).and_then(|file| file.set_len(IMAGE)).expect("an image");
        let mut volume = Self { image: image.to_owned(), at: at.to_owned(), devices: Vec::new() };
        run(Command::new("mkfs.ext4").args(["-q", "-F"]).args(options).arg(image))?;
        volume.mount_image()?;
        Some(volume)
    }

    /// Unmounts it and mounts it again under another device number. No file on it may be open.
    pub fn remount(&mut self) {
        self.unmount();
        self.mount_image().expect("the volume is mounted again");
    }

    /// Remounts it with another content of the same length in one of its files, as a disk loses it: nobody has written it, so
    /// inode, size and time stamps are what they were.
    pub fn rot(&mut self, content: &[u8], rotten: &[u8]) {
        assert_eq!(content.len(), rotten.len());
        self.unmount();
        let image = File::options().read(true).write(true).open(&self.image).expect("the image");
        let places = blocks_with(&image, content);
        assert_eq!(places.len(), 1, "the content is in one block of the image");
        image.write_all_at(rotten, places[0]).expect("the image is written");
        self.mount_image().expect("the volume is mounted again");
    }

    /// Returns when no file system is mounted from the image.
    fn unmount(&self) {
        let unmounted = Command::new("umount").arg(&self.at).output().expect("umount");
        assert!(unmounted.status.success(), "{}", String::from_utf8_lossy(&unmounted.stderr));
        // A process in a mount namespace of its own that was made meanwhile keeps the volume mounted until it ends. Two mounts
        // of one image at a time would destroy each other's files.
        let device = self.devices.last().expect("it was mounted");
        retry("the end of the last mount", || {
            open(device, OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC, Mode::empty())
                .map(drop)
                .map_err(|errno| errno.to_string())
        });
    }

    fn mount_image(&mut self) -> Option<()> {
        let attached = run(Command::new("losetup").args(["--find", "--show"]).arg(&self.image))?;
        let device = String::from_utf8_lossy(&attached.stdout).trim().to_owned();
        self.devices.push(device.clone());
        run(Command::new("mount").arg(device).arg(&self.at)).map(drop)
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        unmount_lazily(&self.at);
        for device in &self.devices {
            let _ = Command::new("losetup").arg("--detach").arg(device).output();
        }
    }
}

/// The places of the blocks in an image that begin with this content. Holes of the image are passed over.
fn blocks_with(image: &File, content: &[u8]) -> Vec<u64> {
    let (mut places, mut at, mut block) = (Vec::new(), 0, vec![0; content.len()]);
    while let Ok(data) = seek(image, SeekFrom::Data(at)) {
        at = seek(image, SeekFrom::Hole(data)).expect("each file ends in a hole");
        for place in (data..at).step_by(BLOCK) {
            image.read_exact_at(&mut block, place).expect("the image is read");
            if block == content {
                places.push(place);
            }
        }
    }
    places
}

/// A small tmpfs, unmounted when dropped.
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Mounts it on a directory, which it makes, with these options of tmpfs(5); `None` where that is not possible.
    pub fn mount(at: &Path, options: &str) -> Option<Self> {
        fs::create_dir_all(at).expect("a directory");
        run(Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(at))?;
        Some(Self(at.to_owned()))
    }

    /// Fills it to the last byte.
    pub fn fill(&self) {
        let mut filler = File::create(self.0.join(FILLER)).expect("a filler");
        // Whole blocks come first, then what is left, because SQLite makes do with little.
        for size in [65_536, 4_096, 1] {
            while filler.write_all(&vec![0; size]).is_ok() {}
        }
    }

    /// Leaves it no inode, and room for what is in the files that are there.
    pub fn use_up_inodes(&self) {
        let left = statvfs(&self.0).expect("a file system").f_ffree;
        for number in 0..left {
            File::create(self.0.join(format!("{FILLER}-{number}"))).expect("a filler");
        }
    }

    /// Undoes `use_up_inodes`.
    pub fn free_inodes(&self) {
        for number in 0.. {
            if fs::remove_file(self.0.join(format!("{FILLER}-{number}"))).is_err() {
                return;
            }
        }
    }

    /// Undoes `fill`.
    pub fn free(&self) {
        fs::remove_file(self.0.join(FILLER)).expect("the filler is removed");
    }

    /// Whether `path` is the file that `fill` has made.
    pub fn is_filler(path: &Path) -> bool {
        path.ends_with(FILLER)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        unmount_lazily(&self.0);
    }
}

/// A service that is just being killed may still have files open there.
/// Another path of a directory or file, or something else over it; unmounted when dropped.
pub struct Bind(PathBuf);

impl Bind {
    /// Mounts `source` at `at`, which is there (mount(8), --bind); `None` where that is not possible.
    pub fn mount(source: &Path, at: &Path) -> Option<Self> {
        run(Command::new("mount").arg("--bind").arg(source).arg(at))?;
        Some(Self(at.to_owned()))
    }
}

impl Drop for Bind {
    fn drop(&mut self) {
        unmount_lazily(&self.0);
    }
}

fn unmount_lazily(at: &Path) {
    let _ = Command::new("umount").arg("--lazy").arg(at).output();
}

fn run(command: &mut Command) -> Option<Output> {
    command.stdin(Stdio::null()).output().ok().filter(|output| output.status.success())
}
