//! Raw kernel events become typed ones. Nothing above this file knows inotify(7).

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use inotify::{EventMask, Inotify, WatchMask};

use crate::error::Error;

/// Bytes of one read: the kernel's whole default queue (`fs.inotify.max_queued_events`, 16384) of short names
/// comes in two of them.
const READ_BYTES: usize = 512 * 1024;

/// What happened in the watched directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event<'a> {
    /// A name is new: made, linked, or renamed from elsewhere on another file system.
    Created(&'a [u8]),
    /// A file was renamed to this name.
    MovedTo(&'a [u8]),
    /// A writer has closed the file of this name.
    Closed(&'a [u8]),
    /// The name was deleted, or renamed to another.
    Removed(&'a [u8]),
    /// The kernel's queue was full: events are lost.
    Overflow,
    /// The directory itself is going away.
    DirectoryGone(&'static str),
}

/// A watch of one directory.
pub struct Watch {
    inotify: Inotify,
    buffer: Box<[u8]>,
}

impl Watch {
    /// Sets the watch up; events queue in the kernel from here on.
    ///
    /// # Errors
    /// [`Error::Watch`], with the limit to raise where it was a limit.
    pub fn new(directory: &Path) -> Result<Self, Error> {
        let refuse = |cause: io::Error| {
            let next = match cause.raw_os_error() {
                Some(libc::ENOSPC) => "raise the sysctl fs.inotify.max_user_watches",
                Some(libc::EMFILE) => "raise the sysctl fs.inotify.max_user_instances, or the limit of open files",
                _ => "check that it exists and that this user may read it",
            };
            Error::Watch { path: directory.to_owned(), cause, next }
        };
        let inotify = Inotify::init().map_err(refuse)?;
        // The three kinds that are published, and what keeps the index true. EXCL_UNLINK: closes of files that
        // have lost their name would come under a name that is another file's by now, or under `#INODE`.
        let mask = WatchMask::CREATE
            | WatchMask::MOVED_TO
            | WatchMask::CLOSE_WRITE
            | WatchMask::DELETE
            | WatchMask::MOVED_FROM
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF
            | WatchMask::ONLYDIR
            | WatchMask::EXCL_UNLINK;
        inotify.watches().add(directory, mask).map_err(refuse)?;
        Ok(Self { inotify, buffer: vec![0; READ_BYTES].into_boxed_slice() })
    }

    /// Hands on what one read brings; `false` when nothing was there.
    ///
    /// # Errors
    /// [`Error::Internal`] when the kernel refuses the read, which it has no reason to.
    pub fn read(&mut self, mut hand_on: impl FnMut(Event<'_>)) -> Result<bool, Error> {
        let events = match self.inotify.read_events(&mut self.buffer) {
            Ok(events) => events,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                return Ok(false);
            }
            Err(error) => return Err(Error::Internal(format!("reading inotify events: {error}"))),
        };
        for event in events {
            if let Some(event) = typed(event.mask, event.name) {
                hand_on(event);
            }
        }
        Ok(true)
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}

/// An overflow comes without a watch and without a name, so the mask is looked at first.
fn typed<'a>(mask: EventMask, name: Option<&'a OsStr>) -> Option<Event<'a>> {
    if mask.contains(EventMask::Q_OVERFLOW) {
        return Some(Event::Overflow);
    }
    for (flag, cause) in [
        (EventMask::DELETE_SELF, "it was removed"),
        (EventMask::MOVE_SELF, "it was renamed"),
        (EventMask::UNMOUNT, "its file system was unmounted"),
        (EventMask::IGNORED, "its watch was removed"),
    ] {
        if mask.contains(flag) {
            return Some(Event::DirectoryGone(cause));
        }
    }
    let name = name.filter(|_| !mask.contains(EventMask::ISDIR))?.as_bytes();
    if mask.contains(EventMask::CREATE) {
        Some(Event::Created(name))
    } else if mask.contains(EventMask::MOVED_TO) {
        Some(Event::MovedTo(name))
    } else if mask.contains(EventMask::CLOSE_WRITE) {
        Some(Event::Closed(name))
    } else if mask.intersects(EventMask::DELETE | EventMask::MOVED_FROM) {
        Some(Event::Removed(name))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_all(watch: &mut Watch) -> Vec<String> {
        let mut seen = Vec::new();
        while watch.read(|event| seen.push(format!("{event:?}"))).unwrap() {}
        seen.iter().map(|line| line.split_once('(').map_or(line.clone(), |(kind, _)| kind.to_owned())).collect()
    }

    #[test]
    fn each_kind_comes_as_itself_and_directories_do_not_come() {
        let dir = tempfile::tempdir().unwrap();
        let mut watch = Watch::new(dir.path()).unwrap();
        std::fs::write(dir.path().join("f"), "x").unwrap();
        assert_eq!(read_all(&mut watch), ["Created", "Closed"]);
        std::fs::rename(dir.path().join("f"), dir.path().join("g")).unwrap();
        assert_eq!(read_all(&mut watch), ["Removed", "MovedTo"]);
        std::fs::create_dir(dir.path().join("sub")).unwrap();
        assert!(read_all(&mut watch).is_empty());
        std::fs::remove_file(dir.path().join("g")).unwrap();
        assert_eq!(read_all(&mut watch), ["Removed"]);
        std::fs::remove_dir_all(dir.path()).unwrap();
        assert_eq!(read_all(&mut watch), ["DirectoryGone", "DirectoryGone"]);
    }

    #[test]
    fn a_file_is_no_directory_to_watch() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(matches!(Watch::new(file.path()), Err(Error::Watch { .. })));
    }
}
