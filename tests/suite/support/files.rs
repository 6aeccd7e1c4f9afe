//! What tests do to files, and the right answers about them.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::ptr;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RenameFlags};
use sha2::{Digest, Sha256};
use twox_hash::XxHash3_128;

use super::wait::retry;

/// Writes a file, whose close is an event by the time it returns. A child that another test starts meanwhile has all files of
/// this process open until it calls execve(2), and what closes a file last counts as its close.
pub fn write(path: &Path, content: impl AsRef<[u8]>) {
    fs::write(path, content).expect("a file is written");
    let file = File::open(path).expect("the file that was written");
    retry(
        "the end of a file's last writer",
        || if has_writer(&file) { Err(path.display().to_string()) } else { Ok(()) },
    );
}

/// Whether anybody has a file open for writing: then the kernel grants no read lease (fcntl(2), F_SETLEASE). A file system
/// without leases says nothing of writers.
fn has_writer(file: &File) -> bool {
    let lease = |kind: i32| {
        // SAFETY: F_SETLEASE takes two integers and touches no memory of ours; the descriptor is open as long as `file`.
        unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, kind) == 0 }
    };
    let granted = lease(libc::F_RDLCK);
    let refused = !granted && io::Error::last_os_error().kind() == io::ErrorKind::WouldBlock;
    // Released at once: its holder gets a signal when a writer comes.
    assert!(!granted || lease(libc::F_UNLCK), "a lease is released");
    refused
}

pub fn sha256(content: &[u8]) -> String {
    hex(&Sha256::digest(content))
}

/// XXH3-128 with seed 0 in the canonical, big-endian form, by two implementations that have to agree.
pub fn xxh128(content: &[u8]) -> String {
    let digest = XxHash3_128::oneshot(content);
    assert_eq!(digest, xxhash_rust::xxh3::xxh3_128(content));
    format!("{digest:032x}")
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The hashes by coreutils, for all of `files` in one call and in their order.
pub fn sha256sum(directory: &Path, files: &[String]) -> Vec<String> {
    let output = Command::new("xargs")
        .args(["-0", "sha256sum", "--"])
        .current_dir(directory)
        .stdin(list_file(files))
        .output()
        .expect("sha256sum");
    assert!(output.status.success(), "sha256sum failed: {output:?}");
    let text = String::from_utf8(output.stdout).expect("hex digits and plain names");
    text.lines().map(|line| line[..64].to_owned()).collect()
}

/// The names with a NUL behind each, as a file open for reading.
fn list_file(names: &[String]) -> File {
    use std::io::{Seek, Write};
    let mut file = tempfile::tempfile().expect("a temporary file");
    for name in names {
        file.write_all(name.as_bytes()).expect("a list of names");
        file.write_all(b"\0").expect("a list of names");
    }
    file.rewind().expect("a list of names");
    file
}

/// Bytes that no chunk or block boundary repeats, the same for the same seed.
pub fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut random = Random::new(seed);
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        bytes.extend_from_slice(&random.next().to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// A seeded generator (SplitMix64), good enough for names, contents and the order of operations.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

pub fn fifo(path: &Path) {
    node(path, FileType::Fifo, 0).expect("a FIFO");
}

/// Needs CAP_MKNOD for anything but a FIFO or a socket.
pub fn node(path: &Path, kind: FileType, device: u64) -> io::Result<()> {
    Ok(rustix::fs::mknodat(CWD, path, kind, Mode::from_raw_mode(0o666), device)?)
}

/// A file without a name in `directory`; `give_name` makes it appear there.
pub fn nameless(directory: &Path) -> File {
    let descriptor: OwnedFd =
        rustix::fs::open(directory, OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC, Mode::from_raw_mode(0o644))
            .expect("a file system with O_TMPFILE");
    descriptor.into()
}

pub fn give_name(file: &File, path: &Path) {
    let open_file = format!("/proc/self/fd/{}", file.as_raw_fd());
    rustix::fs::linkat(CWD, open_file.as_str(), CWD, path, AtFlags::SYMLINK_FOLLOW).expect("linkat");
}

pub fn exchange(one: &Path, other: &Path) {
    rustix::fs::renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE).expect("renameat2");
}

/// A mapping of a whole file that can be written through.
pub struct Mapping {
    start: *mut libc::c_void,
    length: usize,
}

impl Mapping {
    pub fn of(file: &File, length: usize) -> Self {
        // SAFETY: a new shared mapping of an open file; the result is checked.
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        assert!(start != libc::MAP_FAILED, "{}", io::Error::last_os_error());
        Self { start, length }
    }

    pub fn write(&mut self, content: &[u8]) {
        assert_eq!(content.len(), self.length);
        // SAFETY: the mapping is `length` bytes long and ours alone.
        unsafe { ptr::copy_nonoverlapping(content.as_ptr(), self.start.cast(), self.length) };
    }

    /// Returns when what was written is in the file.
    pub fn sync(&self) {
        // SAFETY: the mapping is `length` bytes long.
        let result = unsafe { libc::msync(self.start, self.length, libc::MS_SYNC) };
        assert_eq!(result, 0, "msync: {}", io::Error::last_os_error());
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped in `of` and not used after.
        unsafe { libc::munmap(self.start, self.length) };
    }
}

/// Makes a directory for every user.
pub fn directory(path: &Path) -> PathBuf {
    if !path.exists() {
        fs::create_dir(path).expect("a directory");
    }
    open_to_all(path);
    path.to_owned()
}

pub fn open_to_all(path: &Path) {
    fs::set_permissions(path, PermissionsExt::from_mode(0o777)).expect("permissions");
}

/// Sets the mode of `path`, which need not be readable for the test.
pub fn chmod(path: &Path, mode: u32) {
    let path = CString::new(path.as_os_str().as_bytes()).expect("a path");
    // SAFETY: a NUL-terminated string that lives across the call.
    let result = unsafe { libc::chmod(path.as_ptr(), mode) };
    assert_eq!(result, 0, "chmod: {}", io::Error::last_os_error());
}

/// The times of a file as its message must print them.
pub struct Times {
    pub modified: String,
    pub accessed: String,
    pub changed: String,
}

pub fn times(path: &Path) -> Times {
    let status = fs::symlink_metadata(path).expect("stat");
    Times {
        modified: utc(status.mtime(), status.mtime_nsec()),
        accessed: utc(status.atime(), status.atime_nsec()),
        changed: utc(status.ctime(), status.ctime_nsec()),
    }
}

/// Seconds since 1970 as `2026-11-23T16:05:09.123456+00:00`, the rest cut off, by the civil-calendar
/// arithmetic of Howard Hinnant: independent of any library that the service may use.
pub fn utc(seconds: i64, nanoseconds: i64) -> String {
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12 + 1;
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:06}+00:00",
        second / 3_600,
        second / 60 % 60,
        second % 60,
        nanoseconds / 1_000
    )
}
