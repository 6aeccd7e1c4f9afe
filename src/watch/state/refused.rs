//! Names and directories that this process may not read, or that fail: they are kept, counted, logged, and tried again.

use std::io;
use std::time::Instant;

use rustix::io::Errno;

use super::{BACKLOG_MAX, Depth, State};
use crate::files::directory::DirectoryId;
use crate::files::errno::{Call, Meaning, meaning};
use crate::files::names::{Name, Set};
use crate::files::version::Timestamp;
use crate::logging::FileLines;
use crate::watch::retry::{Recorded, Retry};
use crate::watch::tree::Origin;

/// So few refused names are reported, and their rights asked for, at once.
const REFUSED_FEW: usize = 64;

/// Names that are tried again before the rest of the loop has its turn.
const RETRIES_IN_A_ROW: usize = 256;

impl State {
    /// A name cannot be looked at or read.
    pub(super) fn refuse(&mut self, id: DirectoryId, name: &Name, origin: Origin, errno: Errno, now: Instant) {
        self.refuse_because(id, name, Retry::Name { directory: false, origin }, &errno.into(), now);
    }

    /// A directory cannot be listed.
    pub(super) fn refuse_listing(&mut self, id: DirectoryId, errno: Errno, now: Instant) {
        self.refuse_because(id, &Name::from(&b""[..]), Retry::Listing { shut: true }, &errno.into(), now);
    }

    pub(super) fn refuse_because(
        &mut self,
        id: DirectoryId,
        name: &Name,
        what: Retry,
        cause: &io::Error,
        now: Instant,
    ) {
        let Some(node) = self.tree.get(id) else { return };
        let path = node.directory.absolute(name);
        if self.retries.refuse(id, name, what, cause, now) == Recorded::Again {
            return FileLines::still_refused(&path, cause);
        }
        if Errno::from_io_error(cause).is_some_and(|errno| meaning(Call::Open, errno) == Meaning::Ours) {
            self.progress.metrics.wants.inc();
        } else {
            self.progress.metrics.count_refusal(cause);
        }
        self.lines.refused(&path, what.is_directory(), cause, now);
        self.recent.refused(&path, cause, Timestamp::now());
        // Where there are more, both are done once a second, because each looks at all refused names.
        if self.retries.refused() <= REFUSED_FEW {
            self.attend();
            self.report_unreadable();
        }
    }

    /// Reports what cannot be read now, with an example: directories, which keep the service from being ready, and files.
    pub(super) fn report_unreadable(&self) {
        let directories = self.retries.directories();
        for (unreadable, count, directory) in [
            (&self.progress.unreadable, directories, true),
            (&self.progress.unreadable_files, self.retries.refused() - directories, false),
        ] {
            let (path, cause) = self.example(directory).unwrap_or_default();
            unreadable.are(self.volume, count, &path, &cause);
        }
    }

    fn example(&self, directory: bool) -> Option<(String, String)> {
        let (id, name, cause) = self.retries.example(directory)?;
        let path = self.tree.get(id)?.directory.absolute(&name);
        Some((String::from_utf8_lossy(&path).into_owned(), cause))
    }

    /// The rights of a name have changed: it is tried at once if it was refused, and so is what was refused below it.
    pub(super) fn hurry(&mut self, id: DirectoryId, name: &Name, now: Instant) {
        self.retries.hurry(id, name, now);
        if let Some(below) = self.tree.child(id, name) {
            self.hurry_below(below, now);
        }
    }

    /// The rights of a directory have changed: what was refused in it or below is tried at once.
    pub(super) fn hurry_below(&mut self, top: DirectoryId, now: Instant) {
        let within = |mut id: DirectoryId| loop {
            if id == top {
                return true;
            }
            match self.tree.parent(id) {
                Some((parent, _)) => id = parent,
                None => return false,
            }
        };
        let ids: Vec<DirectoryId> = self.retries.ids().filter(|&id| within(id)).collect();
        ids.into_iter().for_each(|id| self.retries.hurry_all(id, now));
    }

    /// Asks the kernel for IN_ATTRIB of the directories in which something is refused, and of those above, and of no others:
    /// the event is frequent wherever files are copied.
    pub(super) fn attend(&mut self) {
        let mut wanted = Set::default();
        for id in self.retries.ids() {
            let mut next = Some(id);
            while let Some(id) = next.filter(|&id| wanted.insert(id)) {
                next = self.tree.parent(id).map(|(parent, _)| parent);
            }
        }
        self.tree.attend(&wanted);
    }

    /// When the next refused name is tried again, if there is room for what that finds.
    pub(super) fn next_retry(&self) -> Option<Instant> {
        self.retries.next_time().filter(|_| self.pending.backlog() < BACKLOG_MAX)
    }

    /// Tries refused names again that are due, while there is room for what that finds.
    pub(super) fn retry(&mut self, now: Instant) {
        let seen_at = Timestamp::now();
        for _ in 0..RETRIES_IN_A_ROW {
            if self.pending.backlog() >= BACKLOG_MAX {
                return;
            }
            let Self { retries, pending, .. } = self;
            let Some((id, name, what)) = retries.next_due(now, |id, name| pending.holds(id, name)) else {
                return;
            };
            match what {
                Retry::Listing { .. } => self.list_again(id, Depth::All),
                Retry::Name { origin, directory } => {
                    // A rescan may have been kept from the directory, and from all below it.
                    self.resolve(id, &name, origin, if directory { Depth::All } else { Depth::New }, now);
                    self.compare(id, &name, origin, seen_at, now);
                }
                Retry::Recheck { version } => match self.look(id, &name) {
                    Ok(Some(stat)) if stat.version.fingerprint() == version => {}
                    _ => {
                        self.retries.gone(id, &name);
                        self.compare(id, &name, Origin::Found, seen_at, now);
                    }
                },
            }
        }
    }
}
