//! The state of the watch of a volume: events and reports go in, batches of jobs come out.
//!
//! It uses no thread and no channel, and takes the time as an argument. It does look at names (lstat), open and list
//! directories, and add watches.

mod answers;
mod directories;
mod events;
mod jobs;
mod links;
mod listing;
mod refused;
mod removals;
mod report;
mod shares;
pub(super) mod start;
mod target_directories;

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use shares::Shares;

use super::confirmed::Confirmed;
use super::hard_links::HardLinks;
use super::links::Links;
use super::pending::{PENDING_MAX, Pending};
use super::renames::Renames;
use super::rescan::Rescan;
use super::retry::{NAMES_MAX, Retries};
use super::target_directories::TargetDirectories;
use super::tree::Tree;
use super::unseen::Unseen;
use crate::config::WatchSettings;
use crate::error::Error;
use crate::files::directory::DirectoryId;
use crate::files::listing::{FileStat, look};
use crate::files::names::Name;
use crate::files::root::Root;
use crate::files::version::Timestamp;
use crate::filter::Filter;
use crate::inquiry::recent::Recent;
use crate::logging::FileLines;
use crate::memory::Budget;
use crate::progress::Progress;

/// How often directories without a watch are rescanned, unless `--rescan-seconds` sets it for all.
const UNWATCHED_RESCAN: Duration = Duration::from_secs(30);

/// Jobs of one batch at most.
pub(super) const BATCH_MAX: usize = 1024;

/// Files of the backlog that wait at most: what a rescan finds is read little by little, so that an event never waits for
/// more of it than is in flight.
const BACKLOG_MAX: usize = 4096;

/// How a change came to be known: see [`Pending::event`] and [`Pending::found`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Event,
    Rescan,
}

/// How and when a change came to be known. [`Timestamp`] is for its message, [`Instant`] for what is due.
#[derive(Debug, Clone, Copy)]
struct Noticed {
    source: Source,
    seen_at: Timestamp,
    now: Instant,
}

impl Noticed {
    /// By an event that was read at this time.
    fn by_event(seen_at: Timestamp, now: Instant) -> Self {
        Self { source: Source::Event, seen_at, now }
    }

    /// By a rescan that has looked at this time.
    fn by_rescan(seen_at: Timestamp, now: Instant) -> Self {
        Self { source: Source::Rescan, seen_at, now }
    }
}

/// Which sub-directories are listed after a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Depth {
    /// Those that are new, or had no watch.
    New,
    All,
}

impl Depth {
    fn of(deep: bool) -> Self {
        if deep { Self::All } else { Self::New }
    }
}

pub(super) struct State {
    /// The number of its volume.
    volume: usize,
    tree: Tree,
    pending: Pending,
    /// Files that may be pending: each volume's share of [`PENDING_MAX`].
    pending_max: usize,
    confirmed: Confirmed,
    retries: Retries,
    rescan: Rescan,
    links: Links,
    /// It was logged that there are too many links.
    links_warned: bool,
    target_directories: TargetDirectories,
    /// It was logged that one cannot be watched.
    targets_warned: bool,
    hard_links: HardLinks,
    renames: Renames,
    unseen: Unseen,
    filter: Arc<Filter>,
    /// Its directories are listed for the first time.
    starting: bool,
    recursive: bool,
    settle: Duration,
    quiet: Duration,
    /// How often directories without a watch are rescanned.
    unwatched_every: Duration,
    /// When that is due next, while there are any.
    unwatched_at: Option<Instant>,
    progress: Arc<Progress>,
    /// What the names that a start finds may take.
    memory: Arc<Budget>,
    shares: Shares,
    lines: FileLines,
    recent: Recent,
}

impl State {
    pub(super) fn new(
        tree: Tree,
        filter: Arc<Filter>,
        settings: &WatchSettings,
        memory: Arc<Budget>,
        progress: Arc<Progress>,
    ) -> Self {
        let pending_max = PENDING_MAX / progress.volumes().len().max(1);
        Self {
            volume: tree.roots().first().map_or(0, |root| root.root().volume()),
            tree,
            pending: Pending::new(settings.settle, settings.quiet, pending_max),
            pending_max,
            confirmed: Confirmed::new(settings.removals),
            retries: Retries::new(NAMES_MAX),
            rescan: Rescan::new(),
            links: Links::default(),
            links_warned: false,
            target_directories: TargetDirectories::default(),
            targets_warned: false,
            hard_links: HardLinks::default(),
            renames: Renames::default(),
            unseen: Unseen::default(),
            filter,
            starting: true,
            recursive: settings.recursive,
            settle: settings.settle,
            quiet: settings.quiet,
            unwatched_every: settings.rescan.unwrap_or(UNWATCHED_RESCAN),
            unwatched_at: None,
            progress,
            memory,
            shares: Shares::default(),
            lines: FileLines::limited(),
            recent: Recent::default(),
        }
    }

    /// Does what is due besides events, reports and jobs, each at most for as long as an event may wait.
    pub(super) fn advance(&mut self, now: Instant) {
        self.rescan_unwatched(now);
        self.report_pending();
        self.search_names(now);
        self.retry(now);
        self.rescan(now);
    }

    /// When the next of these is due: see [`State::advance`]. `has_room`: so is the next pending path.
    pub(super) fn next_time(&self, has_room: bool, now: Instant) -> Option<Instant> {
        let pending = self.next_pending().filter(|_| has_room);
        let rescans = [self.rescan.next_time(), self.unwatched_at, self.next_retry()];
        rescans.into_iter().chain([pending, self.hard_links.next_time(now)]).flatten().min()
    }

    /// When the next pending path is due.
    pub(super) fn next_pending(&self) -> Option<Instant> {
        self.pending.next_time()
    }

    /// Writes no more to the ledger. Returns the paths whose rows may lag: see [`Confirmed::end`]. `orderly`: nothing is in
    /// flight any more.
    pub(super) fn end(&mut self, orderly: bool) -> Vec<Box<[u8]>> {
        self.confirmed.end(&self.tree, orderly)
    }

    /// What is at a name; `None` when it is neither a file nor a link, or gone.
    fn look(&self, id: DirectoryId, name: &Name) -> Result<Option<FileStat>, Errno> {
        let Some(node) = self.tree.get(id) else { return Ok(None) };
        look(node.directory.root(), &node.directory.below(name))
    }
}

fn directory_gone(root: &Root, cause: &'static str) -> Error {
    Error::DirectoryGone { path: root.path().to_owned(), cause }
}

#[cfg(test)]
mod model_test;
