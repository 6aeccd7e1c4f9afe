//! The files that are in directories now, for the commands that go through all of them once.

use std::path::Path;
use std::sync::Arc;
use std::vec;

use crate::advice;
use crate::error::os_message;
use crate::files::directory::Directory;
use crate::files::errno::{Call, Meaning, meaning};
use crate::files::listing::{Found, list};
use crate::files::mounts;
use crate::files::root::Root;
use crate::files::version::Timestamp;
use crate::filter::Filter;
use crate::job::Job;
use crate::message::EventType;

/// Where a walk begins: a data directory, or a directory below one.
pub(super) struct Start {
    pub(super) root: Arc<Root>,
    /// The path below the root; empty for the root itself.
    pub(super) below: Vec<u8>,
}

impl Start {
    /// A whole data directory.
    pub(super) fn whole(root: &Arc<Root>) -> Self {
        Self { root: Arc::clone(root), below: Vec::new() }
    }
}

/// Finds the files of the data directories and of those below them. It holds the names of one directory at a time, and
/// those of directories with jobs in flight.
pub(super) struct Walk {
    filter: Arc<Filter>,
    recursive: bool,
    /// The directories that are still to be listed, the next one at the end.
    ahead: Vec<Directory>,
    current: Option<Current>,
}

/// The directory whose files are dispatched now.
struct Current {
    directory: Arc<Directory>,
    files: vec::IntoIter<Found>,
    seen_at: Timestamp,
}

impl Walk {
    /// A walk that has not begun.
    pub(super) fn new(starts: &[Start], filter: Arc<Filter>, recursive: bool) -> Self {
        let ahead = starts.iter().rev().map(|start| Directory::new(&start.root, &start.below)).collect();
        Self { filter, recursive, ahead, current: None }
    }

    /// Whether every file has been found.
    pub(super) fn is_through(&self) -> bool {
        self.ahead.is_empty() && self.current.as_ref().is_none_or(|current| current.files.len() == 0)
    }

    /// The job of the next file. Directories that cannot be listed are logged, and counted in `unlisted` unless they are on
    /// another file system.
    pub(super) fn next(&mut self, unlisted: &mut u64) -> Option<Job> {
        loop {
            if let Some(Current { directory, files, seen_at }) = &mut self.current
                && let Some(found) = files.find(|found| self.filter.admits(&directory.below(&found.name)))
            {
                return Some(Job::new(Arc::clone(directory), found.name, EventType::Create, *seen_at));
            }
            let directory = self.ahead.pop()?;
            match list(directory.root(), &directory.below(b"")) {
                Ok(listing) => {
                    directory.set_names(listing.neighbors());
                    if self.recursive {
                        let below = listing.directories.iter().map(|name| directory.below(name));
                        let entered = below.filter(|below| self.filter.enters(below));
                        self.ahead.extend(entered.map(|below| directory.deeper(&below)));
                    }
                    let files = listing.files.into_iter();
                    self.current = Some(Current { directory: Arc::new(directory), files, seen_at: Timestamp::now() });
                }
                // It went away meanwhile, and its files with it.
                Err(errno) if !directory.below(b"").is_empty() && meaning(Call::Open, errno) == Meaning::Gone => {}
                Err(errno) if meaning(Call::Open, errno) == Meaning::LeadsOut => {
                    let path = directory.absolute(b"");
                    let path = String::from_utf8_lossy(&path);
                    tracing::info!(
                        event = "mounted_below",
                        path = &*path,
                        "{}",
                        mounts::in_words(Path::new(&*path), 0)
                    );
                }
                Err(errno) => {
                    *unlisted += 1;
                    let (path, error) = (directory.absolute(b""), os_message(&errno));
                    let path = String::from_utf8_lossy(&path);
                    let next = advice::want(&errno.into()).map(|next| format!("; {next}")).unwrap_or_default();
                    tracing::warn!(
                        event = "not_listed",
                        path = &*path,
                        error,
                        "{path:?} cannot be listed: {error}{next}"
                    );
                }
            }
        }
    }
}
