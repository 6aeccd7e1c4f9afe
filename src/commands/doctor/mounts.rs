//! The kernel's list of mounts (proc_pid_mountinfo(5)):
//! `36 35 98:0 / /mnt rw,noatime master:1 - ext4 /dev/root rw`.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// The list of mounts as text.
pub struct Mounts(String);

impl Mounts {
    /// Reads the list; it is empty where it cannot be read.
    pub fn read() -> Self {
        Self(String::from_utf8_lossy(&fs::read("/proc/self/mountinfo").unwrap_or_default()).into_owned())
    }

    /// The type of the file system on a device, which is the word behind the lone `-`.
    pub fn kind(&self, device: u64) -> Option<&str> {
        let device = format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
        let line = self.0.lines().find(|line| line.split(' ').nth(2) == Some(&device))?;
        line.split(' ').skip_while(|word| *word != "-").nth(1)
    }

    /// The mount points below a directory.
    pub fn below(&self, directory: &Path) -> Vec<PathBuf> {
        let points = self.0.lines().filter_map(|line| line.split(' ').nth(4)).map(unescape);
        points.filter(|point| point.starts_with(directory) && point != directory).collect()
    }
}

/// A path of the list. A blank is written `\040`; a tab, a newline and a backslash are escaped likewise.
fn unescape(written: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(written.len());
    let mut left = written.as_bytes();
    while let Some((&first, rest)) = left.split_first() {
        let digits = rest.get(..3).filter(|_| first == b'\\').and_then(|digits| str::from_utf8(digits).ok());
        let escaped = digits.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        bytes.push(escaped.unwrap_or(first));
        left = if escaped.is_some() { &rest[3..] } else { rest };
    }
    OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use rustix::fs::makedev;

    use super::*;

    fn mounts() -> Mounts {
        let list = [
            "22 1 254:0 / / rw,relatime - ext4 /dev/root rw",
            r"36 22 0:53 /a\040b /mnt/a\040b rw master:1 shared:2 - fuse.sshfs x rw",
            r"37 22 0:54 / /mnt/a\134b rw - tmpfs t rw",
            "38 22 0:55 / /mntx rw - tmpfs t rw",
        ];
        Mounts(list.join("\n"))
    }

    #[test]
    fn the_type_of_a_file_system_is_read_from_its_mount() {
        assert_eq!(mounts().kind(makedev(254, 0)), Some("ext4"));
        assert_eq!(mounts().kind(makedev(0, 53)), Some("fuse.sshfs"));
        assert_eq!(mounts().kind(makedev(0, 5)), None);
        assert_eq!(Mounts::read().kind(fs::metadata("/proc").unwrap().dev()), Some("proc"));
    }

    #[test]
    fn mount_points_below_are_found_by_their_real_names() {
        let below = |directory| mounts().below(Path::new(directory));
        assert_eq!(below("/mnt"), [Path::new("/mnt/a b"), Path::new(r"/mnt/a\b")]);
        assert!(below("/mnt/a b").is_empty());
        assert_eq!(below("/").len(), 3);
        assert!(Mounts::read().below(Path::new("/")).contains(&PathBuf::from("/proc")));
    }
}
