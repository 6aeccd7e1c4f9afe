//! The file system that files are watched on: the test's own, or an ext4 of its own with stamps of whole seconds, which is
//! mounted again under another number.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::service::{is_root, skip};

/// Sparse: room for everything that the workload has at a time.
const IMAGE: u64 = 2 << 30;

pub struct Volume {
    image: PathBuf,
    at: PathBuf,
    /// A loop device for each time that it was mounted: none is given back before the end, so that the number is another.
    devices: Vec<String>,
}

impl Volume {
    /// `None`: it says that there can be none here.
    pub fn make(image: &Path, at: &Path) -> Option<Self> {
        let mut volume = Self { image: image.to_owned(), at: at.to_owned(), devices: Vec::new() };
        File::create(image).and_then(|file| file.set_len(IMAGE)).expect("an image");
        // Inodes of 128 bytes have no room for nanoseconds (ext4(5)).
        let mut format = Command::new("mkfs.ext4");
        format.args(["-q", "-F", "-I", "128"]).arg(image);
        if is_root() && format.output().is_ok_and(|made| made.status.success()) && volume.mount() {
            return Some(volume);
        }
        skip("stamps of whole seconds and another device number need an ext4 on a loop device");
        None
    }

    fn mount(&mut self) -> bool {
        let Ok(attached) = Command::new("losetup").args(["--find", "--show"]).arg(&self.image).output() else {
            return false;
        };
        let device = String::from_utf8_lossy(&attached.stdout).trim().to_owned();
        if !attached.status.success() {
            return false;
        }
        self.devices.push(device.clone());
        Command::new("mount").arg(device).arg(&self.at).output().is_ok_and(|mounted| mounted.status.success())
    }

    /// Under another number. Nothing may be open there.
    pub fn mount_again(&mut self) {
        let unmounted = Command::new("umount").arg(&self.at).output().expect("umount");
        assert!(unmounted.status.success(), "{}", String::from_utf8_lossy(&unmounted.stderr));
        assert!(self.mount(), "the volume was not mounted again");
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        // Lazily: a service that is just being killed may still have files open there.
        let _ = Command::new("umount").arg("--lazy").arg(&self.at).output();
        for device in &self.devices {
            let _ = Command::new("losetup").arg("--detach").arg(device).output();
        }
    }
}
