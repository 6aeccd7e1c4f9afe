//! What the watch knows: pure but for looking at files and listing directories.

mod listing;

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::hard_links::{HardLinks, Others};
use super::inotify::{Event, WatchId};
use super::links::{LINKS_MAX, Links, depends_on};
use super::pending::{Change, Due, Full, PENDING_MAX, Pending, Taken};
use super::rescan::Rescan;
use super::retry::{NAMES_MAX, Recorded, Retries, What};
use super::tree::{Node, Origin, Removed, Stands, Tree};
use crate::config::WatchSettings;
use crate::error::Error;
use crate::files::directory::{Directory, DirectoryId};
use crate::files::errno::{Call, Meaning, meaning};
use crate::files::listing::{FileStat, look, target_of};
use crate::files::names::{Map, Name, Set};
use crate::files::root::Root;
use crate::files::unread::Unread;
use crate::files::version::{Stamp, Version};
use crate::filter::Filter;
use crate::job::{Job, Known, Outcome, Report};
use crate::ledger::Ledger;
use crate::logging::FileLines;
use crate::message::EventType;
use crate::progress::Progress;

/// How often directories without a watch are looked over, unless `--rescan-seconds` says it for all.
const UNWATCHED_RESCAN: Duration = Duration::from_secs(30);

/// Jobs of one batch at most.
pub(super) const BATCH_MAX: usize = 1024;

/// Files of the backlog that wait at most: what a look at the directories finds is read little by little, so that an event
/// never waits for more of it than is under way.
pub(super) const BACKLOG_MAX: usize = 4096;

/// So few refused names are told of, and their rights asked for, at once.
const REFUSED_FEW: usize = 64;

/// Names that are tried again before the rest of the loop has its turn.
const RETRIES_IN_A_ROW: usize = 256;

/// [`Pending::event`] or [`Pending::found`].
pub(super) type Take = fn(&mut Pending, DirectoryId, &Name, Change, bool, Stamp, Instant) -> Result<(), Full>;

/// See the module.
pub(super) struct State {
    pub(super) pending: Pending,
    pub(super) retries: Retries,
    links: Links,
    pub(super) hard_links: HardLinks,
    /// It was said that there are too many links.
    links_warned: bool,
    pub(super) rescan: Rescan,
    pub(super) progress: Arc<Progress>,
    pub(super) lines: FileLines,
    pub(super) filter: Filter,
    pub(super) tree: Tree,
    pub(super) recursive: bool,
    pub(super) ledger: Option<Ledger>,
    /// What the ledger holds below directories that could not be listed, by their paths.
    pub(super) aside: Map<Vec<u8>, Map<Name, Known>>,
    pub(super) settle: Duration,
    pub(super) quiet: Duration,
    /// How often directories without a watch are looked over.
    unwatched_every: Duration,
    /// When that is due, while there are any.
    unwatched_at: Option<Instant>,
}

impl State {
    pub(super) fn new(tree: Tree, filter: Filter, settings: &WatchSettings, progress: Arc<Progress>) -> Self {
        let settle = settings.settle;
        Self {
            pending: Pending::new(settle, settings.quiet, PENDING_MAX),
            retries: Retries::new(NAMES_MAX),
            links: Links::default(),
            hard_links: HardLinks::default(),
            links_warned: false,
            rescan: Rescan::new(),
            progress,
            lines: FileLines::limited(),
            filter,
            tree,
            recursive: settings.recursive,
            ledger: None,
            aside: Map::default(),
            settle,
            quiet: settings.quiet,
            unwatched_every: settings.rescan.unwrap_or(UNWATCHED_RESCAN),
            unwatched_at: None,
        }
    }

    /// Compares each data directory with what its path leads to. One that cannot be looked at for the moment is listed again
    /// once it can be.
    ///
    /// # Errors
    /// [`Error::DirectoryGone`].
    pub(super) fn check_roots(&mut self, now: Instant) -> Result<(), Error> {
        for directory in self.tree.roots().to_vec() {
            match directory.root().still_there() {
                Ok(true) => {}
                Ok(false) => return Err(gone(directory.root(), "its path leads elsewhere")),
                Err(errno) => self.shut(directory.id(), errno, now),
            }
        }
        Ok(())
    }

    /// Takes one event in; an error, when it is that a data directory is going away.
    pub(super) fn take(&mut self, watch_id: WatchId, event: Event<'_>, seen_at: Stamp, now: Instant) -> Option<Error> {
        if event == Event::Overflow {
            self.overflow(now);
            return None;
        }
        let Some(id) = self.tree.of(watch_id) else {
            // Of a directory that has been given up: whatever it was, where it stands now it is looked over since.
            if let Event::Gone(_) = event {
                self.tree.ended(watch_id);
            }
            return None;
        };
        let events = &self.progress.metrics.events;
        match event {
            Event::Created(name) => {
                events.created.inc();
                self.arrived(id, &name.into(), Origin::Found, seen_at, now);
            }
            Event::MovedTo(name) => {
                events.moved_to.inc();
                self.arrived(id, &name.into(), Origin::MovedTo, seen_at, now);
            }
            Event::Closed(name) => {
                events.closed.inc();
                let name = Name::from(name);
                self.retries.closed(id, &name);
                if self.tree.get(id)?.directory.contains(&name) || self.admit(id, &name, now) {
                    self.wait(id, &name, Change::Closed, seen_at, now);
                }
            }
            Event::Deleted(name) => {
                events.removed.inc();
                self.removed(id, &name.into(), Taken::Deleted, now);
            }
            Event::MovedFrom(name) => {
                events.removed.inc();
                self.removed(id, &name.into(), Taken::Renamed, now);
            }
            Event::DirectoryCreated(name) | Event::DirectoryRemoved(name) => {
                self.resolve(id, &name.into(), Origin::Found, false, now);
            }
            Event::DirectoryMovedTo(name) => self.resolve(id, &name.into(), Origin::MovedTo, false, now),
            Event::Attributes(name) | Event::DirectoryAttributes(name) => {
                let name = Name::from(name);
                self.retries.hurry(id, &name, now);
                if let Some(below) = self.tree.child(id, &name) {
                    self.hurry_below(below, now);
                }
            }
            Event::OwnAttributes => self.hurry_below(id, now),
            Event::Renamed | Event::Gone(_) => match self.tree.parent(id) {
                Some((parent, name)) => self.resolve(parent, &name, Origin::Found, false, now),
                None => {
                    let cause = if let Event::Gone(cause) = event { cause } else { "it was renamed" };
                    return Some(gone(self.tree.get(id)?.directory.root(), cause));
                }
            },
            Event::Overflow => {}
        }
        None
    }

    fn overflow(&mut self, now: Instant) {
        self.progress.metrics.overflows_kernel.inc();
        self.ask_for_rescan(now, || {
            tracing::warn!(
                "IN_Q_OVERFLOW: the kernel's event queue was full and events were lost; a rescan follows; if this repeats, raise the sysctl fs.inotify.max_queued_events"
            );
        });
    }

    /// Counts and tells of a look-over that becomes needed; one that is needed already makes up for this loss, too.
    fn ask_for_rescan(&mut self, now: Instant, tell: impl FnOnce()) {
        if !self.rescan.needed {
            self.progress.metrics.rescans.overflow.inc();
            tell();
        }
        self.rescan.ask(now);
    }

    /// A name is new, or another file's.
    fn arrived(&mut self, id: DirectoryId, name: &Name, origin: Origin, seen_at: Stamp, now: Instant) {
        let stat = match self.look(id, name) {
            Ok(stat) => stat,
            // What is known of the name stays until it can be compared.
            Err(errno) => return self.refuse(id, name, false, origin, errno, now),
        };
        let Some(FileStat { version, regular, .. }) = stat else {
            self.forget(id, name);
            return self.seen(id, name, None);
        };
        self.forget_other(id, name, &version);
        self.seen(id, name, stat.as_ref());
        let change = match origin {
            Origin::MovedTo => Change::MovedTo,
            Origin::Found if regular => Change::Created { version: version.fingerprint() },
            // Nothing closes a link: it is as complete as it will be.
            Origin::Found => Change::Closed,
        };
        self.wait(id, name, change, seen_at, now);
    }

    /// The name was taken away from a file. What stands there by now can be another, or the same again.
    fn removed(&mut self, id: DirectoryId, name: &Name, how: Taken, now: Instant) {
        let standing = match self.look(id, name) {
            Ok(standing) => standing,
            Err(errno) => {
                // What is known of it stays until it can be compared.
                self.pending.gone(id, name, how, true);
                return self.refuse(id, name, false, Origin::Found, errno, now);
            }
        };
        let known = self.tree.get(id).and_then(|node| node.known.get(name)).copied();
        let stands = |stat: FileStat| stat.regular && known.is_some_and(|known| still_is(known, how, &stat.version));
        if !standing.is_some_and(stands) {
            self.forget(id, name);
        }
        self.seen(id, name, standing.as_ref());
        self.pending.gone(id, name, how, standing.is_some());
        self.retries.gone(id, name);
    }

    /// Whether what was read of a name that was taken away meanwhile stands there no more. What cannot be looked at now may
    /// still.
    fn is_gone(&self, id: DirectoryId, name: &Name, how: Taken, read: Known) -> bool {
        let Some(node) = self.tree.get(id) else { return true };
        let version = |stat: FileStat| match stat.regular {
            true => Some(stat.version),
            false => target_of(node.directory.root(), &node.directory.below(name)),
        };
        let found = self.look(id, name);
        found.is_ok_and(|stat| !stat.and_then(version).is_some_and(|version| still_is(read, how, &version)))
    }

    /// What stands at a name; nothing when it is no file (or gone).
    fn look(&self, id: DirectoryId, name: &Name) -> Result<Option<FileStat>, Errno> {
        let Some(node) = self.tree.get(id) else { return Ok(None) };
        look(node.directory.root(), &node.directory.below(name))
    }

    /// Notes what stands at a name: regular files are in the index, whatever stood there before, and links are followed.
    pub(super) fn seen(&mut self, id: DirectoryId, name: &Name, stat: Option<&FileStat>) {
        let Some(node) = self.tree.get(id) else { return };
        if stat.is_some_and(|stat| stat.regular) {
            node.directory.update(|names| names.insert(name));
        } else if node.directory.contains(name) {
            node.directory.update(|names| names.remove(name));
        }
        match stat {
            Some(FileStat { regular: false, .. }) => self.seen_link(id, name),
            _ => self.links.remove(id, name),
        }
    }

    /// Notes what a link leads through.
    pub(super) fn seen_link(&mut self, id: DirectoryId, name: &Name) {
        let Some(node) = self.tree.get(id) else { return };
        let root = node.directory.root();
        // Without its slash, where it is /.
        let real = root.path().as_os_str().as_encoded_bytes();
        let real = real.strip_suffix(b"/").unwrap_or(real);
        let below = |path: &[u8]| path.get(real.len() + 1..).and_then(|below| root.target(below));
        let paths = depends_on(real, &node.directory.below(name), below);
        if !self.links.set(id, name, paths) && !std::mem::replace(&mut self.links_warned, true) {
            tracing::warn!(
                "there are more than {LINKS_MAX} symbolic links: of the others a change of what they lead to is seen at a rescan alone (--rescan-seconds)"
            );
        }
    }

    /// A file with further names was published under this one: it is to be read under the others.
    fn follow_names(&mut self, id: DirectoryId, name: &Name, version: &Version, now: Instant) {
        match self.hard_links.published(version.inode, version.fingerprint(), id, name) {
            Others::Known(others) => {
                let others = others.into_iter().map(|(id, name)| (id, name, version.fingerprint()));
                self.put_others(others.collect(), version.inode, now);
            }
            Others::Wanted => {}
            Others::Full => self.ask_for_rescan(now, || {
                tracing::warn!("more files with several names were written than can be followed: a rescan follows");
            }),
        }
    }

    /// Searches for the other names of files that were published under one of them, when that is due.
    pub(super) fn search_names(&mut self, now: Instant) {
        if self.hard_links.next_time(now).is_none_or(|at| now < at) {
            return;
        }
        let known = self
            .tree
            .iter()
            .flat_map(|(id, node)| node.known.iter().map(move |(name, known)| (id, name, known.inode())));
        let found = self.hard_links.search(known, Instant::now());
        for (id, name, version) in found {
            let inode = self.tree.get(id).and_then(|node| node.known.get(&name)).map(|known| known.inode());
            self.put_others(vec![(id, name, version)], inode.unwrap_or(0), now);
        }
    }

    /// Names of one file, each with the version that was published under another: those with another version are read.
    fn put_others(&mut self, others: Vec<(DirectoryId, Name, u64)>, inode: u64, now: Instant) {
        let seen_at = Stamp::now();
        for (id, name, version) in others {
            let Some(node) = self.tree.get(id) else { continue };
            let lags = |known: &Known| known.inode() == inode && !known.is_of_fingerprint(version);
            if node.known.get(&name).is_some_and(lags) && self.filter.admits(&node.directory.below(&name)) {
                self.put_one(Pending::event, id, &name, Change::Closed, seen_at, now);
            }
        }
    }

    /// What happened to a path happened to the links that lead through it.
    fn follow(&mut self, take: Take, id: DirectoryId, name: &Name, seen_at: Stamp, now: Instant) {
        if self.links.is_empty() {
            return;
        }
        let Some(node) = self.tree.get(id) else { return };
        for (id, name) in self.links.followers(&node.directory.absolute(name)) {
            let admits = |node: &Node| self.filter.admits(&node.directory.below(&name));
            if self.tree.get(id).is_some_and(admits) {
                self.put_one(take, id, &name, Change::Closed, seen_at, now);
            }
        }
    }

    /// Looks at a name and adds it to the index. Tells whether there is a file.
    fn admit(&mut self, id: DirectoryId, name: &Name, now: Instant) -> bool {
        match self.look(id, name) {
            Ok(stat) => {
                self.seen(id, name, stat.as_ref());
                stat.is_some()
            }
            Err(errno) => {
                self.refuse(id, name, false, Origin::Found, errno, now);
                false
            }
        }
    }

    /// A name cannot be looked at, read or entered: it is kept, counted and told of, and tried again.
    pub(super) fn refuse(
        &mut self,
        id: DirectoryId,
        name: &Name,
        directory: bool,
        origin: Origin,
        errno: Errno,
        now: Instant,
    ) {
        self.refuse_because(id, name, What::Name { directory, origin }, &errno.into(), now);
    }

    fn refuse_because(&mut self, id: DirectoryId, name: &Name, what: What, cause: &io::Error, now: Instant) {
        let Some(node) = self.tree.get(id) else { return };
        let path = node.directory.absolute(name);
        if self.retries.refuse(id, name, what, cause, now) == Recorded::Again {
            return FileLines::still_shut(&path, cause);
        }
        if Errno::from_io_error(cause).is_some_and(|errno| meaning(Call::Open, errno) == Meaning::Ours) {
            self.progress.metrics.wants.inc();
        } else {
            self.progress.metrics.count_refusal(cause);
        }
        self.lines.shut(&path, what.is_directory(), cause, now);
        // Of more of them both are done once a second: each looks at all that is refused.
        if self.retries.refused() <= REFUSED_FEW {
            self.attend();
            self.report_unreadable();
        }
    }

    /// Says what cannot be read now, with an example: directories, which keep the service from being ready, and files.
    fn report_unreadable(&self) {
        let example = |directory| {
            let (id, name, cause) = self.retries.example(directory)?;
            let path = self.tree.get(id)?.directory.absolute(&name);
            Some((String::from_utf8_lossy(&path).into_owned(), cause))
        };
        let (directories, files) = (self.retries.directories(), self.retries.refused() - self.retries.directories());
        for (told, count, directory) in
            [(&self.progress.unreadable, directories, true), (&self.progress.unreadable_files, files, false)]
        {
            let (path, cause) = example(directory).unwrap_or_default();
            told.are(count, &path, &cause);
        }
    }

    /// A directory cannot be listed.
    pub(super) fn shut(&mut self, id: DirectoryId, errno: Errno, now: Instant) {
        self.refuse_because(id, &Name::from(&b""[..]), What::Listing { shut: true }, &errno.into(), now);
    }

    /// The rights of a directory have changed.
    fn hurry_below(&mut self, top: DirectoryId, now: Instant) {
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

    /// Has the kernel tell of changed rights where something is refused, and above it, and nowhere else: the event is
    /// frequent wherever files are copied.
    fn attend(&mut self) {
        let mut wanted = Set::default();
        for id in self.retries.ids() {
            let mut next = Some(id);
            while let Some(id) = next.filter(|&id| wanted.insert(id)) {
                next = self.tree.parent(id).map(|(parent, _)| parent);
            }
        }
        self.tree.attend(&wanted);
    }

    /// When the next of what was refused has its turn, if there is room for what that finds.
    pub(super) fn retries_at(&self) -> Option<Instant> {
        self.retries.next_time().filter(|_| self.pending.backlog() < BACKLOG_MAX)
    }

    /// Tries again what was refused and whose turn it is, while there is room for what that finds.
    pub(super) fn retry(&mut self, now: Instant) {
        let seen_at = Stamp::now();
        for _ in 0..RETRIES_IN_A_ROW {
            if self.pending.backlog() >= BACKLOG_MAX {
                return;
            }
            let Self { retries, pending, .. } = self;
            let Some((id, name, what)) = retries.next_due(now, |id, name| pending.holds(id, name)) else {
                return;
            };
            match what {
                What::Listing { .. } => self.list_again(id, true),
                What::Name { origin, .. } => {
                    self.resolve(id, &name, origin, false, now);
                    self.compare(id, &name, origin, seen_at, now);
                }
                What::Recheck { version } => match self.look(id, &name) {
                    Ok(Some(stat)) if stat.version.fingerprint() == version => {}
                    _ => {
                        self.retries.gone(id, &name);
                        self.compare(id, &name, Origin::Found, seen_at, now);
                    }
                },
            }
        }
    }

    fn wait(&mut self, id: DirectoryId, name: &Name, change: Change, seen_at: Stamp, now: Instant) {
        let Some(node) = self.tree.get(id) else { return };
        if self.filter.admits(&node.directory.below(name)) {
            self.put(Pending::event, id, name, change, seen_at, now);
        } else {
            tracing::debug!(path = %String::from_utf8_lossy(&node.directory.absolute(name)), "left out by the filter");
            self.follow(Pending::event, id, name, seen_at, now);
            // It is not read, and a name of the same file may be.
            if let Ok(Some(stat)) = self.look(id, name)
                && stat.regular
                && stat.linked
            {
                self.follow_names(id, name, &stat.version, now);
            }
        }
    }

    /// Puts a file that the filter admits into the pending set, and the links that lead through it. `take`: as one of which
    /// an event has come ([`Pending::event`]), or that a look at its directory has found ([`Pending::found`]).
    pub(super) fn put(
        &mut self,
        take: Take,
        id: DirectoryId,
        name: &Name,
        change: Change,
        seen_at: Stamp,
        now: Instant,
    ) {
        self.put_one(take, id, name, change, seen_at, now);
        // One that may still be written is followed once it has settled.
        if !matches!(change, Change::Created { .. } | Change::Changed { .. }) {
            self.follow(take, id, name, seen_at, now);
        }
    }

    fn put_one(&mut self, take: Take, id: DirectoryId, name: &Name, change: Change, seen_at: Stamp, now: Instant) {
        let published = self.tree.get(id).is_some_and(|node| node.known.contains_key(name));
        let waiting = self.pending.len();
        if take(&mut self.pending, id, name, change, published, seen_at, now) == Err(Full) {
            self.progress.metrics.overflows_pending.inc();
            self.pending.drop_waiting();
            self.ask_for_rescan(now, || {
                tracing::warn!(
                    "more than {PENDING_MAX} files wait: the list is dropped, and a rescan follows when there is room"
                );
            });
        } else if self.pending.len() == waiting {
            self.progress.metrics.events_coalesced.inc();
        }
    }

    /// Looks at what directory stands at a name. What is new there is listed next; `deep`: and what is not.
    pub(super) fn resolve(&mut self, parent: DirectoryId, name: &Name, origin: Origin, deep: bool, now: Instant) {
        let enters = |node: &Node| self.filter.enters(&node.directory.below(name));
        if !self.recursive || !self.tree.get(parent).is_some_and(enters) {
            return;
        }
        let mut left = Vec::new();
        let stands = self.tree.resolve(parent, name, origin, &mut left);
        self.remove_directories(left);
        match stands {
            Stands::New(new) => {
                self.retries.had(parent, name);
                self.rescan.to_list.push_back((new, deep));
            }
            Stands::Same { id, .. } if origin == Origin::MovedTo => {
                self.retries.had(parent, name);
                // The event of the name that was taken away comes first, and has shown it already.
                if let Some(node) = self.tree.get_mut(id).filter(|node| !node.listed) {
                    node.origin = origin;
                }
                // Renamed away and back: readers that came meanwhile have found nothing.
                self.list_again(id, true);
            }
            Stands::Same { id, again } => {
                self.retries.had(parent, name);
                if again || deep {
                    self.list_again(id, deep);
                }
            }
            Stands::Nothing => self.retries.no_directory(parent, name),
            Stands::Refused(errno) => self.refuse(parent, name, true, origin, errno, now),
        }
        self.heed_limit(now);
    }

    fn list_again(&mut self, id: DirectoryId, deep: bool) {
        if let Some(node) = self.tree.get_mut(id) {
            node.listed = false;
            self.rescan.to_list.push_back((id, deep));
        }
    }

    /// Forgets what was kept for directories that stand there no more: each before those below it.
    fn remove_directories(&mut self, left: Vec<Removed>) {
        let mut tops: Vec<(Arc<Directory>, bool)> = Vec::new();
        for Removed { id, directory, known } in left {
            self.pending.all_gone(id);
            self.retries.all_gone(id);
            self.links.all_gone(id);
            match tops.last_mut() {
                Some((top, any)) if directory.prefix().starts_with(top.prefix()) => *any |= !known.is_empty(),
                _ => tops.push((directory, !known.is_empty())),
            }
        }
        if let Some(ledger) = &self.ledger {
            tops.iter().filter(|(_, any)| *any).for_each(|(top, _)| ledger.forget_below(top.prefix()));
        }
    }

    /// Says once that there are directories without a watch, and sees to their look-overs.
    fn heed_limit(&mut self, now: Instant) {
        let unwatched = self.tree.unwatched().len();
        match (unwatched, self.unwatched_at) {
            (1.., None) => {
                let cause = self.tree.unwatched_cause().map_or_else(String::new, |errno| format!(" ({errno})"));
                tracing::warn!(
                    "no more than {} directories can be watched{cause}: the others are rescanned every {} s instead; raise the sysctl fs.inotify.max_user_watches",
                    self.tree.watched(),
                    self.unwatched_every.as_secs()
                );
                self.unwatched_at = Some(now + self.unwatched_every);
            }
            (0, Some(_)) => {
                tracing::info!("none is without a watch any more: {} directories are watched", self.tree.watched());
                self.unwatched_at = None;
            }
            _ => {}
        }
    }

    /// When directories without a watch have to be looked over, if there are any.
    pub(super) fn unwatched_at(&self) -> Option<Instant> {
        self.unwatched_at
    }

    /// The time has come: every directory without a watch is listed, and given one where that can be had now.
    pub(super) fn rescan_unwatched(&mut self, now: Instant) {
        if self.unwatched_at.is_none_or(|at| now < at) {
            return;
        }
        self.unwatched_at = Some(now + self.unwatched_every);
        if self.rescan.running() {
            return; // not faster than it can be done
        }
        let unwatched: Vec<DirectoryId> = self.tree.unwatched().iter().copied().collect();
        for id in unwatched {
            if let Some((parent, name)) = self.tree.parent(id) {
                self.resolve(parent, &name, Origin::Found, false, now);
                self.list_again(id, false);
            }
        }
    }

    /// A batch of at most [`BATCH_MAX`] jobs, and as many of each volume as there is room for.
    pub(super) fn batch(&mut self, mut rooms: Vec<usize>, now: Instant) -> Vec<Job> {
        let mut batch = Vec::new();
        rooms.iter().enumerate().for_each(|(volume, room)| self.pending.unpark(volume, *room));
        while batch.len() < BATCH_MAX && rooms.iter().any(|room| *room > 0) {
            match self.pending.next_due(now, |volume| rooms.get(volume).is_some_and(|room| *room > 0)) {
                None => break,
                Some(Due::Settled { id, name, version }) => {
                    self.settled(id, &name, version, now);
                }
                Some(Due::Ready { id, name, event, seen_at }) => {
                    if self.tree.get(id).is_some_and(|node| !node.listed) && !self.retries.is_shut(id) {
                        self.list_or_shut(id, false, now); // its neighbors are to be complete
                    }
                    let Some(node) = self.tree.get(id) else {
                        self.pending.failed(id, &name, now);
                        continue;
                    };
                    let (known, within, directory) = (node.known.get(&name).copied(), node.inode, &node.directory);
                    let invalidate_first = self.ledger.is_some() && !is_own(node, &name);
                    let held = |ledger: &Ledger| {
                        ledger.still_holds(directory.prefix(), &name) || invalidate_first && ledger.is_pressed()
                    };
                    // In a moment it will not be; nothing wakes us for it.
                    if self.ledger.as_ref().is_some_and(held) {
                        self.pending.busy(id, &name, now);
                        continue;
                    }
                    let directory = Arc::clone(directory);
                    if let Some(room) = rooms.get_mut(id.volume()) {
                        *room -= 1;
                    }
                    batch.push(Job { directory, name, event, seen_at, known, within, invalidate_first, large: false });
                    self.tree.dispatched(id);
                }
            }
        }
        batch
    }

    /// The settle time of a file that nobody has closed is over.
    fn settled(&mut self, id: DirectoryId, name: &Name, before: u64, now: Instant) {
        match self.look(id, name) {
            Ok(stat) => {
                let version = stat.map(|stat| stat.version.fingerprint());
                self.pending.settled(id, name, before, version, now);
                if version == Some(before) {
                    self.follow(Pending::event, id, name, Stamp::now(), now);
                }
                // Where no lease tells of a writer, one that has it open still raises no event that names it (linked from an
                // unnamed file, for one): it is looked at again.
                if let (Some(node), Some(stat)) = (self.tree.get(id), stat)
                    && version == Some(before)
                    && stat.regular
                    && !node.directory.root().grants_lease(stat.owner)
                {
                    self.retries.recheck(id, name, before, self.settle, now);
                }
            }
            Err(errno) => {
                self.pending.settled(id, name, before, None, now);
                self.refuse(id, name, false, Origin::Found, errno, now);
            }
        }
    }

    /// Takes a job's end in.
    pub(super) fn settle(&mut self, report: Report, now: Instant, time_of_day: Stamp) {
        let &Job { ref directory, ref name, invalidate_first, event, .. } = &report.job;
        let id = directory.id();
        self.tree.returned(id);
        match &report.outcome {
            Outcome::Unread(Unread::Failed(cause)) => {
                let origin = if event == EventType::MovedTo { Origin::MovedTo } else { Origin::Found };
                self.refuse_because(id, name, What::Name { directory: false, origin }, cause, now);
            }
            outcome => {
                self.progress.metrics.count(&report, time_of_day);
                self.lines.tell(&report, now);
                if !matches!(outcome, Outcome::Unread(Unread::Busy(_) | Unread::Wanting(_) | Unread::StaleRow)) {
                    self.retries.had(id, name);
                }
            }
        }
        match report.outcome {
            Outcome::Confirmed { version, linked: true, .. } => self.follow_names(id, name, &version, now),
            Outcome::Confirmed { version, .. } | Outcome::Unchanged { version, .. } => {
                self.hard_links.seen(version.inode, id, name);
            }
            Outcome::Unread(_) => {}
        }
        match report.outcome {
            Outcome::Unchanged { version, racy, ref digests }
                if !invalidate_first && report.job.known == Some(Known::new(&version, digests, racy)) =>
            {
                self.pending.done(id, name, now);
            }
            // What is invalidate_first and found to be the same may have been forgotten meanwhile. Where the content alone is the
            // same, this is the version from now on.
            Outcome::Confirmed { version, racy, digests, .. } | Outcome::Unchanged { version, racy, digests } => {
                // One that was taken away and put back as it was before we heard of either is there all the same.
                let read = Known::new(&version, &digests, racy);
                let taken = self.pending.done(id, name, now);
                let deleted = taken.is_some_and(|how| self.is_gone(id, name, how, read));
                if !deleted && let Some(node) = self.tree.get_mut(id) {
                    node.known.insert(Arc::clone(name), read);
                    if let Some(ledger) = &self.ledger {
                        let path = directory.absolute(name);
                        // It may be another by now, and what was told can come back.
                        if invalidate_first && self.pending.holds(id, name) {
                            ledger.invalidate(&path);
                        } else {
                            ledger.confirm(path, version, digests, racy);
                        }
                    }
                }
            }
            Outcome::Unread(Unread::Busy(_) | Unread::Wanting(_)) => self.pending.busy(id, name, now),
            Outcome::Unread(Unread::StaleRow) => {
                self.invalidate(id, name);
                self.pending.busy(id, name, now);
            }
            Outcome::Unread(_) => drop(self.pending.failed(id, name, now)),
        }
    }

    /// Tells how many files are under way: whenever there is nothing else to do.
    pub(super) fn report_pending(&self) {
        self.progress.metrics.pending_files.set(self.pending.len() as i64);
    }

    /// Files that are known to have no message yet: pending ones, and those that cannot be read now.
    pub(super) fn left(&self) -> usize {
        self.pending.len() + self.retries.refused()
    }

    /// Whether there may be files without a message that are not pending: a look-over is needed, or under way.
    pub(super) fn misses_some(&self) -> bool {
        self.rescan.needed || self.rescan.whole || self.rescan.running() || self.retries.directories() > 0
    }

    /// Tells how much there is to do: once a second, for whoever asks.
    pub(super) fn tell(&mut self, now: Instant) {
        let metrics = &self.progress.metrics;
        metrics.known_files.set(self.tree.iter().map(|(_, node)| node.known.len()).sum::<usize>() as i64);
        metrics.watched_directories.set(self.tree.watched() as i64);
        metrics.unwatched_directories.set((self.tree.unwatched().len() + self.retries.directories()) as i64);
        self.report_unreadable();
        metrics.refused_files.set((self.retries.refused() - self.retries.directories()) as i64);
        let oldest = self.pending.oldest().map_or(0.0, |since| now.saturating_duration_since(since).as_secs_f64());
        metrics.oldest_pending_seconds.set(oldest);
        self.lines.overdue(now);
        self.attend();
    }

    /// The name is gone, or another file's from now on. To be said before the index is told, which has no links in it.
    pub(super) fn forget(&mut self, id: DirectoryId, name: &Name) {
        if let Some(node) = self.tree.get_mut(id)
            && node.known.remove(name).is_some()
            && let Some(ledger) = &self.ledger
        {
            let path = node.directory.absolute(name);
            if is_own(node, name) { ledger.forget(path) } else { ledger.invalidate(&path) }
        }
    }

    /// Another stands there than is known, and what is known may come back as it was.
    pub(super) fn invalidate(&mut self, id: DirectoryId, name: &Name) {
        if let (Some(ledger), Some(node)) = (&self.ledger, self.tree.get_mut(id))
            && !is_own(node, name)
            && let Some(known) = node.known.get_mut(name).filter(|known| **known != Known::PUBLISHED)
        {
            *known = Known::PUBLISHED;
            ledger.invalidate(&node.directory.absolute(name));
        }
    }

    /// The same, unless what stands there is what was confirmed: a look-over saw it before its event was read.
    fn forget_other(&mut self, id: DirectoryId, name: &Name, version: &Version) {
        let known = self.tree.get(id).and_then(|node| node.known.get(name));
        if known.is_some_and(|known| !known.may_be(version)) {
            self.forget(id, name);
        }
    }
}

/// Whether what is known of a name is of the file itself that stood there in this directory: a change leaves a trace in
/// its version. That of what a link leads to, or of the ledger's last, can come and go without any.
fn is_own(node: &Node, name: &Name) -> bool {
    !node.loaded && node.directory.contains(name)
}

/// Whether a file of this version is what was told last for a name, although the name was taken away since: that was told
/// late, of the file that stood there before. Where it was deleted, metadata may have changed as well (the content
/// decides then); where it was renamed, the same file may have come back, which is worth a message.
fn still_is(known: Known, how: Taken, version: &Version) -> bool {
    match how {
        Taken::Deleted => known.may_be(version),
        Taken::Renamed => known.is_of(version),
    }
}

fn gone(root: &Root, cause: &'static str) -> Error {
    Error::DirectoryGone { path: root.path().to_owned(), cause }
}

#[cfg(test)]
mod model;
