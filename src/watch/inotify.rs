//! The inotify instance: its events as types, and its watches. No other file knows inotify(7).

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use inotify::{EventMask, Inotify, WatchMask};
use rustix::fs::inotify::{WatchFlags, add_watch, remove_watch};
use rustix::io::Errno;

use crate::advice;
use crate::error::Error;

/// Bytes of one read. Two of them empty a full queue of the default length (`fs.inotify.max_queued_events`, 16384) if the
/// names are short.
const READ_BYTES: usize = 512 * 1024;

/// The three kinds of events that are published, and those that keep the names true. Without IN_EXCL_UNLINK the close of a
/// file that has lost its name comes under that name, which may be another file's by now (see `unseen.rs`), and that of
/// a file that never had one under `#INODE`.
const MASK: WatchMask = WatchMask::CREATE
    .union(WatchMask::MOVED_TO)
    .union(WatchMask::CLOSE_WRITE)
    .union(WatchMask::DELETE)
    .union(WatchMask::MOVED_FROM)
    .union(WatchMask::DELETE_SELF)
    .union(WatchMask::MOVE_SELF)
    .union(WatchMask::ONLYDIR);

/// The kernel's watch descriptor for one directory. It is the same for the same directory whatever its path, and never
/// another's, because the kernel counts to 2^31 before it uses a number again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct WatchId(i32);

/// What happened in a watched directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event<'a> {
    /// A name is new: the file was created or linked there.
    Created(&'a [u8]),
    /// A file was renamed to this name. The number is that of the [`Event::MovedFrom`] of the same rename, which comes first.
    MovedTo(&'a [u8], u32),
    /// A writer has closed the file.
    Closed(&'a [u8]),
    /// The name was deleted.
    Deleted(&'a [u8]),
    /// The file was renamed to another name.
    MovedFrom(&'a [u8], u32),
    /// The kernel's queue was full, so events are lost.
    Overflow,
    /// A directory was created.
    DirectoryCreated(&'a [u8]),
    /// A directory was renamed to this name.
    DirectoryMovedTo(&'a [u8]),
    /// A directory was deleted, or renamed to another name.
    DirectoryRemoved(&'a [u8]),
    /// The rights or another attribute of a file have changed. It is reported where [`Watches::attend`] asked for it.
    Attributes(&'a [u8]),
    /// The rights or another attribute of a sub-directory have changed.
    DirectoryAttributes(&'a [u8]),
    /// The rights or another attribute of the watched directory itself have changed.
    OwnAttributes,
    /// The watched directory itself was renamed, and keeps its watch.
    Renamed,
    /// The watched directory itself does not exist any more, or its watch has ended.
    Gone(&'static str),
}

/// The reading end of the kernel's queue, with a watch for each data directory.
pub struct Watch {
    inotify: Inotify,
    roots: Vec<WatchId>,
    buffer: Box<[u8]>,
}

impl Watch {
    /// Adds the watches. From then on the kernel queues events.
    ///
    /// # Errors
    /// [`Error::Watch`], which names the limit to raise if there was one.
    pub fn new(directories: &[&Path]) -> Result<Self, Error> {
        let first = directories.first().copied().unwrap_or(Path::new("."));
        let inotify = Inotify::init().map_err(|cause| refuse_watch(first, cause))?;
        let add = |directory: &&Path| {
            let added = inotify.watches().add(directory, MASK).map_err(|cause| refuse_watch(directory, cause))?;
            Ok(WatchId(added.get_watch_descriptor_id()))
        };
        let roots = directories.iter().map(add).collect::<Result<_, _>>()?;
        Ok(Self { inotify, roots, buffer: vec![0; READ_BYTES].into_boxed_slice() })
    }

    /// The watches of the data directories, in the order of the directories.
    #[must_use]
    pub fn roots(&self) -> &[WatchId] {
        &self.roots
    }

    /// A second handle to the same instance, to add further watches.
    ///
    /// # Errors
    /// [`Error::System`] when no descriptor is left.
    pub fn watches(&self) -> Result<Watches, Error> {
        let instance = self.inotify.as_fd().try_clone_to_owned();
        instance.map(Watches).map_err(|cause| Error::system("no descriptor for watches can be had", cause))
    }

    /// Passes the events of one read to `take`. Returns whether there were any.
    ///
    /// # Errors
    /// [`Error::System`] when the kernel refuses the read, for which it has no reason.
    pub fn read(&mut self, mut take: impl FnMut(WatchId, Event<'_>)) -> Result<bool, Error> {
        let events = match self.inotify.read_events(&mut self.buffer) {
            Ok(events) => events,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                return Ok(false);
            }
            Err(error) => return Err(Error::system("inotify events cannot be read", error)),
        };
        for event in events {
            let watch_id = WatchId(event.wd.get_watch_descriptor_id());
            if let Some(event) = typed(event.mask, event.cookie, event.name) {
                take(watch_id, event);
            }
        }
        Ok(true)
    }
}

/// The error of a data directory that cannot be watched.
pub(super) fn refuse_watch(directory: &Path, cause: io::Error) -> Error {
    let next = match cause.raw_os_error() {
        Some(libc::ENOSPC) => "raise the sysctl fs.inotify.max_user_watches",
        Some(libc::EMFILE) => "raise the sysctl fs.inotify.max_user_instances, or the limit of open files",
        _ => advice::want(&cause).unwrap_or("check that it exists and that this user may read it"),
    };
    Error::Watch { path: directory.to_owned(), cause, next }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}

/// Adds watches and removes them.
pub struct Watches(OwnedFd);

impl Watches {
    /// Watches an open directory. Returns the watch that it has already, if it has one.
    ///
    /// # Errors
    /// That of inotify_add_watch(2): ENOSPC at the user's limit.
    pub fn add(&self, directory: BorrowedFd<'_>) -> Result<WatchId, Errno> {
        // IN_MASK_ADD keeps the IN_ATTRIB of a watch that has it: see `attend`.
        self.set(directory, MASK.union(WatchMask::MASK_ADD))
    }

    /// Makes the watch of an open directory report IN_ATTRIB for the directory and the names in it, or stop to. Returns that
    /// watch, which is added if there was none.
    ///
    /// # Errors
    /// That of inotify_add_watch(2).
    pub fn attend(&self, directory: BorrowedFd<'_>, attributes: bool) -> Result<WatchId, Errno> {
        self.set(directory, if attributes { MASK.union(WatchMask::ATTRIB).union(WatchMask::MASK_ADD) } else { MASK })
    }

    fn set(&self, directory: BorrowedFd<'_>, mask: WatchMask) -> Result<WatchId, Errno> {
        // The path of the descriptor is used because any other path could lead elsewhere by now.
        let path = format!("/proc/self/fd/{}", directory.as_raw_fd());
        add_watch(&self.0, path, WatchFlags::from_bits_retain(mask.bits())).map(WatchId)
    }

    /// Removes a watch. Nothing happens if the kernel has removed it already.
    pub fn remove(&self, watch_id: WatchId) {
        let _ = remove_watch(&self.0, watch_id.0);
    }
}

/// What an event means. An overflow has neither a watch nor a name, so its bit is checked first.
fn typed<'a>(mask: EventMask, cookie: u32, name: Option<&'a OsStr>) -> Option<Event<'a>> {
    if mask.contains(EventMask::Q_OVERFLOW) {
        return Some(Event::Overflow);
    }
    for (flag, event) in [
        (EventMask::DELETE_SELF, Event::Gone("it was removed")),
        (EventMask::MOVE_SELF, Event::Renamed),
        (EventMask::UNMOUNT, Event::Gone("its file system was unmounted")),
        (EventMask::IGNORED, Event::Gone("its watch was removed")),
    ] {
        if mask.contains(flag) {
            return Some(event);
        }
    }
    let Some(name) = name.map(OsStrExt::as_bytes) else {
        return mask.contains(EventMask::ATTRIB).then_some(Event::OwnAttributes);
    };
    if mask.contains(EventMask::ISDIR) { of_directory(mask, name) } else { of_file(mask, cookie, name) }
}

/// What happened to a sub-directory.
fn of_directory(mask: EventMask, name: &[u8]) -> Option<Event<'_>> {
    if mask.contains(EventMask::CREATE) {
        Some(Event::DirectoryCreated(name))
    } else if mask.contains(EventMask::MOVED_TO) {
        Some(Event::DirectoryMovedTo(name))
    } else if mask.intersects(EventMask::DELETE | EventMask::MOVED_FROM) {
        Some(Event::DirectoryRemoved(name))
    } else if mask.contains(EventMask::ATTRIB) {
        Some(Event::DirectoryAttributes(name))
    } else {
        None
    }
}

/// What happened to a name that is no directory.
fn of_file(mask: EventMask, cookie: u32, name: &[u8]) -> Option<Event<'_>> {
    if mask.contains(EventMask::CREATE) {
        Some(Event::Created(name))
    } else if mask.contains(EventMask::MOVED_TO) {
        Some(Event::MovedTo(name, cookie))
    } else if mask.contains(EventMask::CLOSE_WRITE) {
        Some(Event::Closed(name))
    } else if mask.contains(EventMask::DELETE) {
        Some(Event::Deleted(name))
    } else if mask.contains(EventMask::MOVED_FROM) {
        Some(Event::MovedFrom(name, cookie))
    } else if mask.contains(EventMask::ATTRIB) {
        Some(Event::Attributes(name))
    } else {
        None
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;
    use rustix::pipe::{PipeFlags, pipe_with};

    pub(crate) fn watch_id(number: i32) -> WatchId {
        WatchId(number)
    }

    /// What gives no watches: each is refused with EINVAL, as for a descriptor that is no inotify instance.
    pub(crate) fn no_watches() -> Watches {
        Watches(std::fs::File::open("/dev/null").unwrap().into())
    }

    fn read_all(watch: &mut Watch) -> Vec<String> {
        let mut seen = Vec::new();
        while watch.read(|_, event| seen.push(format!("{event:?}"))).unwrap() {}
        seen.iter().map(|line| line.split_once('(').map_or(line.clone(), |(kind, _)| kind.to_owned())).collect()
    }

    #[test]
    fn each_kind_of_event_has_its_type() {
        let dir = tempfile::tempdir().unwrap();
        let mut watch = Watch::new(&[dir.path()]).unwrap();
        std::fs::write(dir.path().join("f"), "x").unwrap();
        assert_eq!(read_all(&mut watch), ["Created", "Closed"]);
        std::fs::rename(dir.path().join("f"), dir.path().join("g")).unwrap();
        assert_eq!(read_all(&mut watch), ["MovedFrom", "MovedTo"]);
        std::fs::create_dir(dir.path().join("sub")).unwrap();
        std::fs::rename(dir.path().join("sub"), dir.path().join("sub2")).unwrap();
        std::fs::remove_dir(dir.path().join("sub2")).unwrap();
        let directories = ["DirectoryCreated", "DirectoryRemoved", "DirectoryMovedTo", "DirectoryRemoved"];
        assert_eq!(read_all(&mut watch), directories);
        std::fs::remove_file(dir.path().join("g")).unwrap();
        assert_eq!(read_all(&mut watch), ["Deleted"]);
        std::fs::remove_dir_all(dir.path()).unwrap();
        assert_eq!(read_all(&mut watch), ["Gone", "Gone"]);
    }

    #[test]
    fn a_file_cannot_be_watched() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(matches!(Watch::new(&[file.path()]), Err(Error::Watch { .. })));
    }

    /// A record as the kernel writes it: inotify(7), `struct inotify_event`.
    #[derive(Debug, Clone)]
    struct Record {
        watch: i32,
        mask: u32,
        cookie: u32,
        name: Vec<u8>,
    }

    impl Record {
        fn append_to(&self, bytes: &mut Vec<u8>) {
            // The kernel pads a name with at least one NUL to a multiple of the header's size.
            let length = if self.name.is_empty() { 0 } else { (self.name.len() + 1).next_multiple_of(16) };
            bytes.extend(self.watch.to_ne_bytes());
            bytes.extend(self.mask.to_ne_bytes());
            bytes.extend(self.cookie.to_ne_bytes());
            bytes.extend((length as u32).to_ne_bytes());
            bytes.extend(&self.name);
            bytes.resize(bytes.len() + length - self.name.len(), 0);
        }

        /// The event that inotify(7) and this module's documentation promise.
        fn meaning(&self) -> Option<String> {
            let has = |bits: u32| self.mask & bits != 0;
            let about_the_directory = [
                (libc::IN_Q_OVERFLOW, "Overflow"),
                (libc::IN_DELETE_SELF, "Gone(\"it was removed\")"),
                (libc::IN_MOVE_SELF, "Renamed"),
                (libc::IN_UNMOUNT, "Gone(\"its file system was unmounted\")"),
                (libc::IN_IGNORED, "Gone(\"its watch was removed\")"),
            ];
            if let Some((_, meaning)) = about_the_directory.iter().find(|(bit, _)| has(*bit)) {
                return Some((*meaning).to_owned());
            }
            if self.name.is_empty() {
                return has(libc::IN_ATTRIB).then(|| "OwnAttributes".to_owned());
            }
            let about_a_name = [
                (libc::IN_CREATE, "Created"),
                (libc::IN_MOVED_TO, "MovedTo"),
                (libc::IN_CLOSE_WRITE, "Closed"),
                (libc::IN_DELETE, "Deleted"),
                (libc::IN_MOVED_FROM, "MovedFrom"),
                (libc::IN_ATTRIB, "Attributes"),
            ];
            // A directory has no writers.
            let is_reported = |kind| !(has(libc::IN_ISDIR) && kind == "Closed");
            let (_, kind) = about_a_name.iter().find(|(bits, kind)| has(*bits) && is_reported(*kind))?;
            if let ("MovedFrom" | "MovedTo", false) = (*kind, has(libc::IN_ISDIR)) {
                return Some(format!("{kind}({:?}, {})", self.name, self.cookie));
            }
            let (directory, kind) = match (has(libc::IN_ISDIR), *kind) {
                (true, "Deleted" | "MovedFrom") => ("Directory", "Removed"),
                (true, kind) => ("Directory", kind),
                (false, kind) => ("", kind),
            };
            Some(format!("{directory}{kind}({:?})", self.name))
        }
    }

    /// The kernel sets one bit, with or without IN_ISDIR. Other combinations must do no harm.
    fn mask() -> impl Strategy<Value = u32> {
        // fsnotify reports no other bits than these.
        let reported = libc::IN_ALL_EVENTS | libc::IN_UNMOUNT | libc::IN_Q_OVERFLOW | libc::IN_IGNORED | libc::IN_ISDIR;
        let bits: Vec<u32> = (0..32).map(|shift| 1 << shift).filter(|bit| reported & bit != 0).collect();
        let directory = prop::sample::select(vec![0, 0, 0, libc::IN_ISDIR]);
        prop_oneof![
            4 => (prop::sample::select(bits), directory).prop_map(|(bit, directory)| bit | directory),
            1 => any::<u32>().prop_map(move |bits| bits & reported),
        ]
    }

    fn record() -> impl Strategy<Value = Record> {
        let byte = prop::sample::select((1..=255u8).filter(|byte| *byte != b'/').collect::<Vec<u8>>());
        let name = prop_oneof![
            1 => Just(Vec::new()),
            4 => prop::collection::vec(byte.clone(), 0..20),
            1 => prop::collection::vec(byte, 0..=255),
        ];
        let watch = prop_oneof![Just(-1), Just(1), any::<i32>()];
        (watch, mask(), any::<u32>(), name).prop_map(|(watch, mask, cookie, name)| Record { watch, mask, cookie, name })
    }

    proptest! {
        /// Any bytes that the kernel could queue, a few records a read: each record gives its event, and no other.
        #[test]
        fn every_record_becomes_its_event(reads in prop::collection::vec(prop::collection::vec(record(), 1..40), 1..5)) {
            let (from_kernel, kernel) = pipe_with(PipeFlags::NONBLOCK).unwrap();
            let buffer = vec![0; READ_BYTES].into_boxed_slice();
            let mut watch = Watch { inotify: from_kernel.into(), roots: vec![WatchId(1)], buffer };
            for records in reads {
                let mut bytes = Vec::new();
                records.iter().for_each(|record| record.append_to(&mut bytes));
                prop_assert_eq!(rustix::io::write(&kernel, &bytes).unwrap(), bytes.len());
                let mut seen = Vec::new();
                let any = watch.read(|_, event| seen.push(format!("{event:?}"))).unwrap();
                prop_assert!(any);
                let expected: Vec<String> = records.iter().filter_map(Record::meaning).collect();
                prop_assert_eq!(seen, expected);
                let more = watch.read(|_, event| panic!("{event:?} without a record")).unwrap();
                prop_assert!(!more);
            }
        }
    }
}
