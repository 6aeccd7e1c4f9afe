//! What the watch knows: pure but for looking at files and listing directories.

mod listing;

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::hard_links::{HardLinks, Others};
use super::inotify::{Event, Mark};
use super::links::{LINKS_MAX, Links, depends_on};
use super::lookover::LookOver;
use super::pending::{Due, Full, Hint, PENDING_MAX, Pending, Taken};
use super::retry::{NAMES_MAX, Recorded, Retries, What};
use super::tree::{Arrival, Left, Node, Stands, Tree};
use crate::config::WatchSettings;
use crate::error::Error;
use crate::files::directory::{Directory, Place};
use crate::files::errno::{Call, Meaning, meaning};
use crate::files::listing::{Sight, look, target_of};
use crate::files::names::{Map, Name, Set};
use crate::files::root::Root;
use crate::files::unread::Unread;
use crate::files::version::{Stamp, Version};
use crate::filter::Filter;
use crate::job::{Job, Known, Outcome, Report};
use crate::ledger::Ledger;
use crate::logging::FileLines;
use crate::message::EventType;
use crate::progress::Vitals;

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
pub(super) type Take = fn(&mut Pending, Place, &Name, Hint, bool, Stamp, Instant) -> Result<(), Full>;

/// See the module.
pub(super) struct Books {
    pub(super) pending: Pending,
    pub(super) retries: Retries,
    links: Links,
    pub(super) hard_links: HardLinks,
    /// It was said that there are too many links.
    links_warned: bool,
    pub(super) look_over: LookOver,
    pub(super) vitals: Arc<Vitals>,
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

impl Books {
    pub(super) fn new(tree: Tree, filter: Filter, settings: &WatchSettings, vitals: Arc<Vitals>) -> Self {
        let settle = settings.settle;
        Self {
            pending: Pending::new(settle, settings.quiet, PENDING_MAX),
            retries: Retries::new(NAMES_MAX),
            links: Links::default(),
            hard_links: HardLinks::default(),
            links_warned: false,
            look_over: LookOver::new(),
            vitals,
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
                Err(errno) => self.shut(directory.place(), errno, now),
            }
        }
        Ok(())
    }

    /// Takes one event in; an error, when it is that a data directory is going away.
    pub(super) fn take(&mut self, mark: Mark, event: Event<'_>, seen_at: Stamp, now: Instant) -> Option<Error> {
        if event == Event::Overflow {
            self.overflow(now);
            return None;
        }
        let Some(place) = self.tree.of(mark) else {
            // Of a directory that has been given up: whatever it was, where it stands now it is looked over since.
            if let Event::Gone(_) = event {
                self.tree.ended(mark);
            }
            return None;
        };
        let events = &self.vitals.metrics.events;
        match event {
            Event::Created(name) => {
                events.created.inc();
                self.arrived(place, &name.into(), Arrival::Found, seen_at, now);
            }
            Event::MovedTo(name) => {
                events.moved_to.inc();
                self.arrived(place, &name.into(), Arrival::MovedTo, seen_at, now);
            }
            Event::Closed(name) => {
                events.closed.inc();
                let name = Name::from(name);
                self.retries.closed(place, &name);
                if self.tree.get(place)?.directory.contains(&name) || self.admit(place, &name, now) {
                    self.wait(place, &name, Hint::Closed, seen_at, now);
                }
            }
            Event::Deleted(name) => {
                events.removed.inc();
                self.removed(place, &name.into(), Taken::Deleted, now);
            }
            Event::MovedFrom(name) => {
                events.removed.inc();
                self.removed(place, &name.into(), Taken::Renamed, now);
            }
            Event::DirectoryCreated(name) | Event::DirectoryRemoved(name) => {
                self.resolve(place, &name.into(), Arrival::Found, false, now);
            }
            Event::DirectoryMovedTo(name) => self.resolve(place, &name.into(), Arrival::MovedTo, false, now),
            Event::Attributes(name) | Event::DirectoryAttributes(name) => {
                let name = Name::from(name);
                self.retries.hurry(place, &name, now);
                if let Some(below) = self.tree.child(place, &name) {
                    self.hurry_below(below, now);
                }
            }
            Event::OwnAttributes => self.hurry_below(place, now),
            Event::Renamed | Event::Gone(_) => match self.tree.parent(place) {
                Some((parent, name)) => self.resolve(parent, &name, Arrival::Found, false, now),
                None => {
                    let cause = if let Event::Gone(cause) = event { cause } else { "it was renamed" };
                    return Some(gone(self.tree.get(place)?.directory.root(), cause));
                }
            },
            Event::Overflow => {}
        }
        None
    }

    fn overflow(&mut self, now: Instant) {
        self.vitals.metrics.overflows_kernel.inc();
        self.ask_for_look_over(now, || {
            tracing::warn!(
                "the kernel's event queue was full and events were lost: the directory is looked over; if this repeats, raise the sysctl fs.inotify.max_queued_events"
            );
        });
    }

    /// Counts and tells of a look-over that becomes needed; one that is needed already makes up for this loss, too.
    fn ask_for_look_over(&mut self, now: Instant, tell: impl FnOnce()) {
        if !self.look_over.needed {
            self.vitals.metrics.look_overs.asked.inc();
            tell();
        }
        self.look_over.ask(now);
    }

    /// A name is new, or another file's.
    fn arrived(&mut self, place: Place, name: &Name, arrival: Arrival, seen_at: Stamp, now: Instant) {
        let sight = match self.look(place, name) {
            Ok(sight) => sight,
            // What is known of the name stays until it can be compared.
            Err(errno) => return self.refuse(place, name, false, arrival, errno, now),
        };
        let Some(Sight { version, regular, .. }) = sight else {
            self.forget(place, name);
            return self.seen(place, name, None);
        };
        self.forget_other(place, name, &version);
        self.seen(place, name, sight.as_ref());
        let hint = match arrival {
            Arrival::MovedTo => Hint::MovedTo,
            Arrival::Found if regular => Hint::Created { version: version.fingerprint() },
            // Nothing closes a link: it is as complete as it will be.
            Arrival::Found => Hint::Closed,
        };
        self.wait(place, name, hint, seen_at, now);
    }

    /// The name was taken away from a file. What stands there by now can be another, or the same again.
    fn removed(&mut self, place: Place, name: &Name, how: Taken, now: Instant) {
        let standing = match self.look(place, name) {
            Ok(standing) => standing,
            Err(errno) => {
                // What is known of it stays until it can be compared.
                self.pending.gone(place, name, how, true);
                return self.refuse(place, name, false, Arrival::Found, errno, now);
            }
        };
        let known = self.tree.get(place).and_then(|node| node.known.get(name)).copied();
        let stands = |sight: Sight| sight.regular && known.is_some_and(|known| still_is(known, how, &sight.version));
        if !standing.is_some_and(stands) {
            self.forget(place, name);
        }
        self.seen(place, name, standing.as_ref());
        self.pending.gone(place, name, how, standing.is_some());
        self.retries.gone(place, name);
    }

    /// Whether what was read of a name that was taken away meanwhile stands there no more. What cannot be looked at now may
    /// still.
    fn is_gone(&self, place: Place, name: &Name, how: Taken, read: Known) -> bool {
        let Some(node) = self.tree.get(place) else { return true };
        let version = |sight: Sight| match sight.regular {
            true => Some(sight.version),
            false => target_of(node.directory.root(), &node.directory.below(name)),
        };
        let found = self.look(place, name);
        found.is_ok_and(|sight| !sight.and_then(version).is_some_and(|version| still_is(read, how, &version)))
    }

    /// What stands at a name; nothing when it is no file (or gone).
    fn look(&self, place: Place, name: &Name) -> Result<Option<Sight>, Errno> {
        let Some(node) = self.tree.get(place) else { return Ok(None) };
        look(node.directory.root(), &node.directory.below(name))
    }

    /// Notes what stands at a name: regular files are in the index, whatever stood there before, and links are followed.
    pub(super) fn seen(&mut self, place: Place, name: &Name, sight: Option<&Sight>) {
        let Some(node) = self.tree.get(place) else { return };
        if sight.is_some_and(|sight| sight.regular) {
            node.directory.update(|names| names.insert(name));
        } else if node.directory.contains(name) {
            node.directory.update(|names| names.remove(name));
        }
        match sight {
            Some(Sight { regular: false, .. }) => self.seen_link(place, name),
            _ => self.links.remove(place, name),
        }
    }

    /// Notes what a link leads through.
    pub(super) fn seen_link(&mut self, place: Place, name: &Name) {
        let Some(node) = self.tree.get(place) else { return };
        let root = node.directory.root();
        // Without its slash, where it is /.
        let real = root.path().as_os_str().as_encoded_bytes();
        let real = real.strip_suffix(b"/").unwrap_or(real);
        let below = |path: &[u8]| path.get(real.len() + 1..).and_then(|below| root.target(below));
        let paths = depends_on(real, &node.directory.below(name), below);
        if !self.links.set(place, name, paths) && !std::mem::replace(&mut self.links_warned, true) {
            tracing::warn!(
                "there are more than {LINKS_MAX} symbolic links: of the others a change of what they lead to is seen at a rescan alone (--rescan-seconds)"
            );
        }
    }

    /// A file with further names was published under this one: it is to be read under the others.
    fn follow_names(&mut self, place: Place, name: &Name, version: &Version, now: Instant) {
        match self.hard_links.published(version.inode, version.fingerprint(), place, name) {
            Others::Known(others) => {
                let others = others.into_iter().map(|(place, name)| (place, name, version.fingerprint()));
                self.put_others(others.collect(), version.inode, now);
            }
            Others::Wanted => {}
            Others::Full => self.ask_for_look_over(now, || {
                tracing::warn!(
                    "more files with several names were written than can be followed: the directory is looked over"
                );
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
            .flat_map(|(place, node)| node.known.iter().map(move |(name, known)| (place, name, known.inode())));
        let found = self.hard_links.search(known, Instant::now());
        for (place, name, version) in found {
            let inode = self.tree.get(place).and_then(|node| node.known.get(&name)).map(|known| known.inode());
            self.put_others(vec![(place, name, version)], inode.unwrap_or(0), now);
        }
    }

    /// Names of one file, each with the version that was published under another: those with another version are read.
    fn put_others(&mut self, others: Vec<(Place, Name, u64)>, inode: u64, now: Instant) {
        let seen_at = Stamp::now();
        for (place, name, version) in others {
            let Some(node) = self.tree.get(place) else { continue };
            let lags = |known: &Known| known.inode() == inode && !known.is_of_fingerprint(version);
            if node.known.get(&name).is_some_and(lags) && self.filter.admits(&node.directory.below(&name)) {
                self.put_one(Pending::event, place, &name, Hint::Closed, seen_at, now);
            }
        }
    }

    /// What happened to a path happened to the links that lead through it.
    fn follow(&mut self, take: Take, place: Place, name: &Name, seen_at: Stamp, now: Instant) {
        if self.links.is_empty() {
            return;
        }
        let Some(node) = self.tree.get(place) else { return };
        for (place, name) in self.links.followers(&node.directory.absolute(name)) {
            let admits = |node: &Node| self.filter.admits(&node.directory.below(&name));
            if self.tree.get(place).is_some_and(admits) {
                self.put_one(take, place, &name, Hint::Closed, seen_at, now);
            }
        }
    }

    /// Looks at a name and adds it to the index. Tells whether there is a file.
    fn admit(&mut self, place: Place, name: &Name, now: Instant) -> bool {
        match self.look(place, name) {
            Ok(sight) => {
                self.seen(place, name, sight.as_ref());
                sight.is_some()
            }
            Err(errno) => {
                self.refuse(place, name, false, Arrival::Found, errno, now);
                false
            }
        }
    }

    /// A name cannot be looked at, read or entered: it is kept, counted and told of, and tried again.
    pub(super) fn refuse(
        &mut self,
        place: Place,
        name: &Name,
        directory: bool,
        arrival: Arrival,
        errno: Errno,
        now: Instant,
    ) {
        self.refuse_because(place, name, What::Name { directory, arrival }, &errno.into(), now);
    }

    fn refuse_because(&mut self, place: Place, name: &Name, what: What, cause: &io::Error, now: Instant) {
        let Some(node) = self.tree.get(place) else { return };
        let path = node.directory.absolute(name);
        if self.retries.refuse(place, name, what, cause, now) == Recorded::Again {
            return FileLines::still_shut(&path, cause);
        }
        if Errno::from_io_error(cause).is_some_and(|errno| meaning(Call::Open, errno) == Meaning::Ours) {
            self.vitals.metrics.wants.inc();
        } else {
            self.vitals.metrics.count_refusal(cause);
        }
        self.lines.shut(&path, what.is_directory(), cause, now);
        // Of more of them both are done once a second: each looks at all that is refused.
        if self.retries.refused() <= REFUSED_FEW {
            self.attend();
            self.tell_unreadable();
        }
    }

    /// Says what cannot be read now, with an example: directories, which keep the service from being ready, and files.
    fn tell_unreadable(&self) {
        let example = |directory| {
            let (place, name, cause) = self.retries.example(directory)?;
            let path = self.tree.get(place)?.directory.absolute(&name);
            Some((String::from_utf8_lossy(&path).into_owned(), cause))
        };
        let (directories, files) = (self.retries.directories(), self.retries.refused() - self.retries.directories());
        for (told, count, directory) in
            [(&self.vitals.unreadable, directories, true), (&self.vitals.unreadable_files, files, false)]
        {
            let (path, cause) = example(directory).unwrap_or_default();
            told.are(count, &path, &cause);
        }
    }

    /// A directory cannot be listed.
    pub(super) fn shut(&mut self, place: Place, errno: Errno, now: Instant) {
        self.refuse_because(place, &Name::from(&b""[..]), What::Listing { shut: true }, &errno.into(), now);
    }

    /// The rights of a directory have changed.
    fn hurry_below(&mut self, top: Place, now: Instant) {
        let within = |mut place: Place| loop {
            if place == top {
                return true;
            }
            match self.tree.parent(place) {
                Some((parent, _)) => place = parent,
                None => return false,
            }
        };
        let places: Vec<Place> = self.retries.places().filter(|&place| within(place)).collect();
        places.into_iter().for_each(|place| self.retries.hurry_all(place, now));
    }

    /// Has the kernel tell of changed rights where something is refused, and above it, and nowhere else: the event is
    /// frequent wherever files are copied.
    fn attend(&mut self) {
        let mut wanted = Set::default();
        for place in self.retries.places() {
            let mut next = Some(place);
            while let Some(place) = next.filter(|&place| wanted.insert(place)) {
                next = self.tree.parent(place).map(|(parent, _)| parent);
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
            let Some((place, name, what)) = retries.next_due(now, |place, name| pending.holds(place, name)) else {
                return;
            };
            match what {
                What::Listing { .. } => self.list_again(place, true),
                What::Name { arrival, .. } => {
                    self.resolve(place, &name, arrival, false, now);
                    self.compare(place, &name, arrival, seen_at, now);
                }
                What::Recheck { version } => match self.look(place, &name) {
                    Ok(Some(sight)) if sight.version.fingerprint() == version => {}
                    _ => {
                        self.retries.gone(place, &name);
                        self.compare(place, &name, Arrival::Found, seen_at, now);
                    }
                },
            }
        }
    }

    fn wait(&mut self, place: Place, name: &Name, hint: Hint, seen_at: Stamp, now: Instant) {
        let Some(node) = self.tree.get(place) else { return };
        if self.filter.admits(&node.directory.below(name)) {
            self.put(Pending::event, place, name, hint, seen_at, now);
        } else {
            tracing::debug!(path = %String::from_utf8_lossy(&node.directory.absolute(name)), "left out by the filter");
            self.follow(Pending::event, place, name, seen_at, now);
            // It is not read, and a name of the same file may be.
            if let Ok(Some(sight)) = self.look(place, name)
                && sight.regular
                && sight.linked
            {
                self.follow_names(place, name, &sight.version, now);
            }
        }
    }

    /// Puts a file that the filter admits into the pending set, and the links that lead through it. `take`: as one of which
    /// an event has come ([`Pending::event`]), or that a look at its directory has found ([`Pending::found`]).
    pub(super) fn put(&mut self, take: Take, place: Place, name: &Name, hint: Hint, seen_at: Stamp, now: Instant) {
        self.put_one(take, place, name, hint, seen_at, now);
        // One that may still be written is followed once it has settled.
        if !matches!(hint, Hint::Created { .. } | Hint::Changed { .. }) {
            self.follow(take, place, name, seen_at, now);
        }
    }

    fn put_one(&mut self, take: Take, place: Place, name: &Name, hint: Hint, seen_at: Stamp, now: Instant) {
        let announced = self.tree.get(place).is_some_and(|node| node.known.contains_key(name));
        let waiting = self.pending.len();
        if take(&mut self.pending, place, name, hint, announced, seen_at, now) == Err(Full) {
            self.vitals.metrics.overflows_pending.inc();
            self.pending.drop_waiting();
            self.ask_for_look_over(now, || {
                tracing::warn!(
                    "more than {PENDING_MAX} files wait: the list is dropped and the directory looked over when there is room"
                );
            });
        } else if self.pending.len() == waiting {
            self.vitals.metrics.events_coalesced.inc();
        }
    }

    /// Looks at what directory stands at a name. What is new there is listed next; `deep`: and what is not.
    pub(super) fn resolve(&mut self, parent: Place, name: &Name, arrival: Arrival, deep: bool, now: Instant) {
        let enters = |node: &Node| self.filter.enters(&node.directory.below(name));
        if !self.recursive || !self.tree.get(parent).is_some_and(enters) {
            return;
        }
        let mut left = Vec::new();
        let stands = self.tree.resolve(parent, name, arrival, &mut left);
        self.give_up(left);
        match stands {
            Stands::New(new) => {
                self.retries.had(parent, name);
                self.look_over.to_list.push_back((new, deep));
            }
            Stands::Same { place, .. } if arrival == Arrival::MovedTo => {
                self.retries.had(parent, name);
                // The event of the name that was taken away comes first, and has shown it already.
                if let Some(node) = self.tree.get_mut(place).filter(|node| !node.listed) {
                    node.arrival = arrival;
                }
                // Renamed away and back: readers that came meanwhile have found nothing.
                self.list_again(place, true);
            }
            Stands::Same { place, again } => {
                self.retries.had(parent, name);
                if again || deep {
                    self.list_again(place, deep);
                }
            }
            Stands::Nothing => self.retries.no_directory(parent, name),
            Stands::Refused(errno) => self.refuse(parent, name, true, arrival, errno, now),
        }
        self.heed_limit(now);
    }

    fn list_again(&mut self, place: Place, deep: bool) {
        if let Some(node) = self.tree.get_mut(place) {
            node.listed = false;
            self.look_over.to_list.push_back((place, deep));
        }
    }

    /// Forgets what was kept for directories that stand there no more: each before those below it.
    fn give_up(&mut self, left: Vec<Left>) {
        let mut tops: Vec<(Arc<Directory>, bool)> = Vec::new();
        for Left { place, directory, known } in left {
            self.pending.all_gone(place);
            self.retries.all_gone(place);
            self.links.all_gone(place);
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
                    "no more than {} directories can be watched{cause}: the others are looked over every {} s instead; raise the sysctl fs.inotify.max_user_watches",
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
    pub(super) fn look_over_unwatched(&mut self, now: Instant) {
        if self.unwatched_at.is_none_or(|at| now < at) {
            return;
        }
        self.unwatched_at = Some(now + self.unwatched_every);
        if self.look_over.running() {
            return; // not faster than it can be done
        }
        let unwatched: Vec<Place> = self.tree.unwatched().iter().copied().collect();
        for place in unwatched {
            if let Some((parent, name)) = self.tree.parent(place) {
                self.resolve(parent, &name, Arrival::Found, false, now);
                self.list_again(place, false);
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
                Some(Due::Settled { place, name, version }) => {
                    self.settled(place, &name, version, now);
                }
                Some(Due::Ready { place, name, event, seen_at }) => {
                    if self.tree.get(place).is_some_and(|node| !node.listed) && !self.retries.is_shut(place) {
                        self.list_or_shut(place, false, now); // its neighbors are to be complete
                    }
                    let Some(node) = self.tree.get(place) else {
                        self.pending.failed(place, &name, now);
                        continue;
                    };
                    let (known, within, directory) = (node.known.get(&name).copied(), node.inode, &node.directory);
                    let doubted = self.ledger.is_some() && !is_own(node, &name);
                    let held = |ledger: &Ledger| {
                        ledger.still_holds(directory.prefix(), &name) || doubted && ledger.is_pressed()
                    };
                    // In a moment it will not be; nothing wakes us for it.
                    if self.ledger.as_ref().is_some_and(held) {
                        self.pending.busy(place, &name, now);
                        continue;
                    }
                    let directory = Arc::clone(directory);
                    if let Some(room) = rooms.get_mut(place.volume()) {
                        *room -= 1;
                    }
                    batch.push(Job { directory, name, event, seen_at, known, within, doubted, large: false });
                    self.tree.handed_out(place);
                }
            }
        }
        batch
    }

    /// The settle time of a file that nobody has closed is over.
    fn settled(&mut self, place: Place, name: &Name, before: u64, now: Instant) {
        match self.look(place, name) {
            Ok(sight) => {
                let version = sight.map(|sight| sight.version.fingerprint());
                self.pending.settled(place, name, before, version, now);
                if version == Some(before) {
                    self.follow(Pending::event, place, name, Stamp::now(), now);
                }
                // Where no lease tells of a writer, one that has it open still raises no event that names it (linked from an
                // unnamed file, for one): it is looked at again.
                if let (Some(node), Some(sight)) = (self.tree.get(place), sight)
                    && version == Some(before)
                    && sight.regular
                    && !node.directory.root().grants_lease(sight.owner)
                {
                    self.retries.recheck(place, name, before, self.settle, now);
                }
            }
            Err(errno) => {
                self.pending.settled(place, name, before, None, now);
                self.refuse(place, name, false, Arrival::Found, errno, now);
            }
        }
    }

    /// Takes a job's end in.
    pub(super) fn settle(&mut self, report: Report, now: Instant, time_of_day: Stamp) {
        let &Job { ref directory, ref name, doubted, event, .. } = &report.job;
        let place = directory.place();
        self.tree.returned(place);
        match &report.outcome {
            Outcome::Unread(Unread::Failed(cause)) => {
                let arrival = if event == EventType::MovedTo { Arrival::MovedTo } else { Arrival::Found };
                self.refuse_because(place, name, What::Name { directory: false, arrival }, cause, now);
            }
            outcome => {
                self.vitals.metrics.count(&report, time_of_day);
                self.lines.tell(&report, now);
                if !matches!(outcome, Outcome::Unread(Unread::Busy | Unread::Wanting(_) | Unread::Another)) {
                    self.retries.had(place, name);
                }
            }
        }
        match report.outcome {
            Outcome::Confirmed { version, linked: true, .. } => self.follow_names(place, name, &version, now),
            Outcome::Confirmed { version, .. } | Outcome::Unchanged { version, .. } => {
                self.hard_links.seen(version.inode, place, name);
            }
            Outcome::Unread(_) => {}
        }
        match report.outcome {
            Outcome::Unchanged { version, racy, ref digests }
                if !doubted && report.job.known == Some(Known::new(&version, digests, racy)) =>
            {
                self.pending.done(place, name, now);
            }
            // What is doubted and found to be the same may have been forgotten meanwhile. Where the content alone is the
            // same, this is the version from now on.
            Outcome::Confirmed { version, racy, digests, .. } | Outcome::Unchanged { version, racy, digests } => {
                // One that was taken away and put back as it was before we heard of either is there all the same.
                let read = Known::new(&version, &digests, racy);
                let taken = self.pending.done(place, name, now);
                let deleted = taken.is_some_and(|how| self.is_gone(place, name, how, read));
                if !deleted && let Some(node) = self.tree.get_mut(place) {
                    node.known.insert(Arc::clone(name), read);
                    if let Some(ledger) = &self.ledger {
                        let path = directory.absolute(name);
                        // It may be another by now, and what was told can come back.
                        if doubted && self.pending.holds(place, name) {
                            ledger.forget_first(&path);
                        } else {
                            ledger.confirm(path, version, digests, racy);
                        }
                    }
                }
            }
            Outcome::Unread(Unread::Busy | Unread::Wanting(_)) => self.pending.busy(place, name, now),
            Outcome::Unread(Unread::Another) => {
                self.doubt(place, name);
                self.pending.busy(place, name, now);
            }
            Outcome::Unread(_) => drop(self.pending.failed(place, name, now)),
        }
    }

    /// Tells how many files are under way: whenever there is nothing else to do.
    pub(super) fn tell_pending(&self) {
        self.vitals.metrics.pending_files.set(self.pending.len() as i64);
    }

    /// Files that are known to have no message yet: pending ones, and those that cannot be read now.
    pub(super) fn left(&self) -> usize {
        self.pending.len() + self.retries.refused()
    }

    /// Whether there may be files without a message that are not pending: a look-over is needed, or under way.
    pub(super) fn misses_some(&self) -> bool {
        self.look_over.needed || self.look_over.whole || self.look_over.running() || self.retries.directories() > 0
    }

    /// Tells how much there is to do: once a second, for whoever asks.
    pub(super) fn tell(&mut self, now: Instant) {
        let metrics = &self.vitals.metrics;
        metrics.known_files.set(self.tree.iter().map(|(_, node)| node.known.len()).sum::<usize>() as i64);
        metrics.watched_directories.set(self.tree.watched() as i64);
        metrics.unwatched_directories.set((self.tree.unwatched().len() + self.retries.directories()) as i64);
        self.tell_unreadable();
        metrics.refused_files.set((self.retries.refused() - self.retries.directories()) as i64);
        let oldest = self.pending.oldest().map_or(0.0, |since| now.saturating_duration_since(since).as_secs_f64());
        metrics.oldest_pending_seconds.set(oldest);
        self.lines.overdue(now);
        self.attend();
    }

    /// The name is gone, or another file's from now on. To be said before the index is told, which has no links in it.
    pub(super) fn forget(&mut self, place: Place, name: &Name) {
        if let Some(node) = self.tree.get_mut(place)
            && node.known.remove(name).is_some()
            && let Some(ledger) = &self.ledger
        {
            let path = node.directory.absolute(name);
            if is_own(node, name) { ledger.forget(path) } else { ledger.forget_first(&path) }
        }
    }

    /// Another stands there than is known, and what is known may come back as it was.
    pub(super) fn doubt(&mut self, place: Place, name: &Name) {
        if let (Some(ledger), Some(node)) = (&self.ledger, self.tree.get_mut(place))
            && !is_own(node, name)
            && let Some(known) = node.known.get_mut(name).filter(|known| **known != Known::ANNOUNCED)
        {
            *known = Known::ANNOUNCED;
            ledger.forget_first(&node.directory.absolute(name));
        }
    }

    /// The same, unless what stands there is what was confirmed: a look-over saw it before its event was read.
    fn forget_other(&mut self, place: Place, name: &Name, version: &Version) {
        let known = self.tree.get(place).and_then(|node| node.known.get(name));
        if known.is_some_and(|known| !known.may_be(version)) {
            self.forget(place, name);
        }
    }
}

/// Whether what is known of a name is of the file itself that stood there in this directory: a change leaves a trace in
/// its version. That of what a link leads to, or of the ledger's last, can come and go without any.
fn is_own(node: &Node, name: &Name) -> bool {
    !node.recalled && node.directory.contains(name)
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
