//! The kernel's list of mounts (proc_pid_mountinfo(5)):
//! `36 35 98:0 / /mnt rw,noatime master:1 - ext4 /dev/root rw`.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

const LIST: &str = "/proc/self/mountinfo";

/// The list of mounts, as the kernel writes it: its paths are any bytes.
pub struct Mounts(Vec<u8>);

impl Mounts {
    /// Reads the list; it is empty where it cannot be read.
    pub fn read() -> Self {
        Self(fs::read(LIST).unwrap_or_default())
    }

    /// The words of each line.
    fn lines(&self) -> impl Iterator<Item = impl Iterator<Item = &[u8]> + Clone> {
        self.0.split(|&byte| byte == b'\n').map(|line| line.split(|&byte| byte == b' '))
    }

    /// The type of the file system on a device, which is the word behind the lone `-`.
    pub fn kind(&self, device: u64) -> Option<&str> {
        let device = format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
        let line = self.lines().find(|line| line.clone().nth(2) == Some(device.as_bytes()))?;
        line.skip_while(|word| *word != b"-").nth(1).and_then(|kind| str::from_utf8(kind).ok())
    }

    /// The mount points below a directory.
    pub fn below(&self, directory: &Path) -> Vec<PathBuf> {
        self.points_below(directory).map(|(_, point)| point).collect()
    }

    /// Where a path is on its file system, given the number of its mount (statx(2): `stx_mnt_id`).
    pub fn place(&self, mount: u64, path: &Path) -> Option<Place> {
        let mut line = self.lines().find(|line| line.clone().next().and_then(number) == Some(mount))?;
        let (device, top, point) = (line.nth(2)?, unescape(line.next()?), unescape(line.next()?));
        Some(Place { device: device.to_vec(), path: top.join(path.strip_prefix(point).ok()?) })
    }

    /// The mount points below a directory, each with the number of what is mounted there.
    fn points_below(&self, directory: &Path) -> impl Iterator<Item = (u64, PathBuf)> {
        let points = self.lines().filter_map(|mut words| Some((number(words.next()?)?, unescape(words.nth(3)?))));
        points.filter(move |(_, point)| point.starts_with(directory) && point != directory)
    }
}

/// Says that something is mounted at a place, and at so many others.
#[must_use]
pub fn in_words(first: &Path, others: usize) -> String {
    let more = if others == 0 { String::new() } else { format!(" and at {others} more places") };
    format!("something is mounted at {first:?}{more}, which is not gone into")
}

/// A path from the top of its file system: the same by each path that mounts have made for it.
#[derive(Debug, PartialEq, Eq)]
pub struct Place {
    /// Its numbers, as in the list.
    device: Vec<u8>,
    path: PathBuf,
}

impl Place {
    /// Whether it is the other, or below it.
    #[must_use]
    pub fn lies_in(&self, other: &Self) -> bool {
        self.device == other.device && self.path.starts_with(&other.path)
    }
}

/// What is mounted below some directories, as it comes and goes.
#[derive(Debug)]
pub struct MountsBelow {
    list: File,
    directories: Vec<PathBuf>,
    points: BTreeSet<(u64, PathBuf)>,
    /// The list has changed and could not be read.
    outdated: bool,
}

/// Mount points at which something was mounted or unmounted since the last look.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Something is mounted there now.
    pub mounted: Vec<PathBuf>,
    /// What was mounted there is not any more.
    pub unmounted: Vec<PathBuf>,
}

impl MountsBelow {
    /// Begins with nothing that is mounted: the first changes are all that is.
    ///
    /// # Errors
    /// The list cannot be opened.
    pub fn follow(directories: Vec<PathBuf>) -> io::Result<Self> {
        Ok(Self { list: File::open(LIST)?, directories, points: BTreeSet::new(), outdated: true })
    }

    /// What has changed since the last call. The kernel marks the open list when it does (proc_pid_mounts(5): POLLPRI).
    ///
    /// # Errors
    /// The list cannot be read. The next call finds what this one has missed.
    pub fn changes(&mut self) -> io::Result<Changes> {
        let mut asked = [PollFd::new(&self.list, PollFlags::PRI)];
        self.outdated |= poll(&mut asked, Some(&Timespec::default()))? > 0;
        if !self.outdated {
            return Ok(Changes::default());
        }
        let mut list = Vec::new();
        self.list.rewind()?;
        self.list.read_to_end(&mut list)?;
        self.outdated = false;
        let mounts = Mounts(list);
        let now = self.directories.iter().flat_map(|directory| mounts.points_below(directory)).collect();
        let only_in =
            |one: &BTreeSet<(u64, PathBuf)>, other| one.difference(other).map(|(_, point)| point.clone()).collect();
        let changes = Changes { mounted: only_in(&now, &self.points), unmounted: only_in(&self.points, &now) };
        self.points = now;
        Ok(changes)
    }
}

fn number(word: &[u8]) -> Option<u64> {
    str::from_utf8(word).ok()?.parse().ok()
}

/// A path of the list. A blank is written `\040`; a tab, a newline and a backslash are escaped likewise.
fn unescape(written: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(written.len());
    let mut left = written;
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
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
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
        let other = b"39 22 0:56 / /other/\xff rw - tmpfs t rw\n";
        Mounts([list.join("\n").as_bytes(), b"\n", other].concat())
    }

    #[test]
    fn the_type_of_a_file_system_is_read_from_its_mount() {
        assert_eq!(mounts().kind(makedev(254, 0)), Some("ext4"));
        assert_eq!(mounts().kind(makedev(0, 53)), Some("fuse.sshfs"));
        assert_eq!(mounts().kind(makedev(0, 5)), None);
        assert_eq!(Mounts::read().kind(fs::metadata("/proc").unwrap().dev()), Some("proc"));
    }

    #[test]
    fn the_place_of_a_bind_mount_is_that_of_its_source() {
        let place = |mount, path| mounts().place(mount, Path::new(path));
        let expected = Place { device: b"0:53".to_vec(), path: "/a b/c".into() };
        assert_eq!(place(36, "/mnt/a b/c"), Some(expected));
        assert_eq!(place(22, "/").map(|place| place.path), Some("/".into()));
        assert_eq!((place(36, "/mnt/other"), place(99, "/")), (None, None));
        let of = |device: &str, path: &str| Place { device: device.as_bytes().to_vec(), path: path.into() };
        assert!(of("0:1", "/a/b").lies_in(&of("0:1", "/a")) && of("0:1", "/a").lies_in(&of("0:1", "/a")));
        assert!(!of("0:1", "/ab").lies_in(&of("0:1", "/a")) && !of("0:2", "/a/b").lies_in(&of("0:1", "/a")));
    }

    #[test]
    fn mount_points_below_are_found_by_their_real_names() {
        let below = |directory| mounts().below(Path::new(directory));
        assert_eq!(below("/mnt"), [Path::new("/mnt/a b"), Path::new(r"/mnt/a\b")]);
        assert!(below("/mnt/a b").is_empty());
        assert_eq!(below("/other"), [Path::new(OsStr::from_bytes(b"/other/\xff"))]);
        assert_eq!(below("/").len(), 4);
        assert!(Mounts::read().below(Path::new("/")).contains(&PathBuf::from("/proc")));
    }
}
