//! Look-overs of what the books are about: at start, of a directory that is new, after lost events, and on a timer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::books::{BACKLOG_MAX, Books};
use super::directory::{Directory, Place};
use super::index::{Map, Name, Set};
use super::lookover::{Compare, Sight, list, look};
use super::pending::{Hint, PENDING_MAX};
use super::tree::{Arrival, nothing_to_enter};
use crate::error::Error;
use crate::files::errno::{Call, Meaning, meaning};
use crate::ledger::store::Store;
use crate::ledger::{ALL, Ledger};
use crate::pipeline::Known;
use crate::read::stable::{Root, Stamp, Version};

/// Files that a look-over compares before the rest of the loop has its turn.
const LOOKS_IN_A_ROW: usize = 1024;

/// What listing a directory counts for among them.
const LOOKS_FOR_A_LISTING: usize = 16;

impl Books {
    /// Watches and lists the whole tree; its files are left to be compared.
    ///
    /// # Errors
    /// [`Error::DataDirectory`] when a data directory itself cannot be listed.
    pub(super) fn list_all(&mut self, now: Instant) -> Result<(), Error> {
        self.look_over.begin(self.tree.roots(), now);
        while let Some((place, deep)) = self.look_over.to_list.pop_front() {
            match (self.list(place, deep, now), self.tree.root(place)) {
                (Ok(()), _) => {}
                (Err(errno), Some(root)) => return Err(unlisted(root, errno)),
                (Err(errno), None) => self.shut(place, errno, now),
            }
        }
        Ok(())
    }

    /// Takes over what the ledger knows of the listed files.
    pub(super) fn recall(&mut self, mut store: Store) -> Result<(), Error> {
        let mut present: Map<Vec<u8>, (Place, Set<Name>)> = Map::default();
        let mut files = 0;
        for compare in &self.look_over.to_compare {
            let Some(node) = self.tree.get(compare.place) else { continue };
            let names: Set<Name> = compare.left.as_slice().iter().cloned().collect();
            files += names.len();
            present.insert(node.directory.prefix().to_vec(), (compare.place, names));
        }
        let (mut recalled, recursive, roots) = (0, self.recursive, self.tree.roots().to_vec());
        let whole = store.recall(|path, known| {
            let (directory, name) = path.split_at(path.iter().rposition(|&byte| byte == b'/').map_or(0, |at| at + 1));
            let Some((place, names)) = present.get(directory) else {
                // Without sub-directories nothing is known of what is in them, nor ever of other data directories.
                let ours = |root: &Arc<Directory>| match recursive {
                    true => directory.starts_with(root.prefix()),
                    false => directory == root.prefix(),
                };
                return !roots.iter().any(ours);
            };
            let (Some(name), Some(node)) = (names.get(name), self.tree.get_mut(*place)) else { return false };
            node.known.insert(Arc::clone(name), known);
            node.recalled = true;
            recalled += 1;
            true
        });
        if !whole {
            recalled = 0;
            self.tree.iter_mut().for_each(|node| node.known.clear());
        }
        tracing::info!("the ledger holds {recalled} of {files} files");
        let ledger = Ledger::start(store, Arc::clone(&self.vitals))?;
        if !whole {
            ledger.forget_below(ALL);
        }
        self.ledger = Some(ledger);
        Ok(())
    }

    /// Takes the listed files as they are now for known: they were there before us.
    pub(super) fn take_as_seen(&mut self) {
        for Compare { place, left, .. } in std::mem::take(&mut self.look_over.to_compare) {
            let Some(node) = self.tree.get_mut(place) else { continue };
            node.recalled = false;
            for name in left {
                // What cannot be looked at is new once it can be: nothing else is known of it.
                if let Ok(Some(Sight { version, .. })) = look(node.directory.root(), &node.directory.below(&name)) {
                    let seen = Known::seen(&version);
                    let known = node.known.entry(name).or_insert(seen);
                    if known.version != seen.version {
                        *known = seen;
                    }
                }
            }
        }
        self.look_over.whole = false;
    }

    /// Whether a look-over can go on at once.
    pub(super) fn looks_now(&self, now: Instant) -> bool {
        let begins = self.look_over.next_time().is_some_and(|time| time <= now);
        let wanted = self.look_over.running() || self.look_over.whole || begins;
        let room = self.pending.len() < PENDING_MAX / 2 && self.pending.backlog() < BACKLOG_MAX;
        wanted && room && !self.ledger.as_ref().is_some_and(Ledger::is_pressed)
    }

    /// Begins the look-over that is needed, or goes on with those that run.
    pub(super) fn look_over(&mut self, now: Instant) {
        if !self.looks_now(now) {
            return;
        }
        if self.look_over.next_time().is_some_and(|time| time <= now) {
            self.look_over.begin(self.tree.roots(), now);
        }
        let seen_at = Stamp::now();
        let mut looks = LOOKS_IN_A_ROW;
        while looks > 0 {
            if let Some(Compare { place, left, arrival }) = self.look_over.to_compare.front_mut() {
                match (left.next(), *place, *arrival) {
                    (Some(name), place, arrival) => self.compare(place, &name, arrival, seen_at, now),
                    (None, place, _) => {
                        self.look_over.to_compare.pop_front();
                        self.tree.get_mut(place).into_iter().for_each(|node| node.recalled = false);
                    }
                }
                looks -= 1;
            } else if let Some((place, deep)) = self.look_over.to_list.pop_front() {
                // It may have been listed before its turn, for the sake of a file in it.
                if deep || self.tree.get(place).is_some_and(|node| !node.listed) {
                    self.list_or_shut(place, deep, now);
                    looks = looks.saturating_sub(LOOKS_FOR_A_LISTING);
                }
            } else {
                break;
            }
        }
        if self.look_over.whole && !self.look_over.running() {
            self.look_over.whole = false;
            match self.look_over.found {
                0 => tracing::debug!("the directory was looked over: nothing new"),
                found => tracing::info!("the directory was looked over: {found} files to be read"),
            }
        }
    }

    /// Lists a directory, or remembers that it cannot be.
    pub(super) fn list_or_shut(&mut self, place: Place, deep: bool, now: Instant) {
        if let Err(errno) = self.list(place, deep, now) {
            self.shut(place, errno, now);
        }
    }

    /// Lists a directory: the index is exactly this from now on, and every file in it is to be compared; what is new of
    /// its sub-directories is watched and listed next. `deep`: and what is not.
    ///
    /// In one go, so that no event comes in between: what is missing here is gone, or its event is still queued.
    ///
    /// # Errors
    /// What keeps it from being listed. Nothing that is known of it is forgotten then.
    fn list(&mut self, place: Place, deep: bool, now: Instant) -> Result<(), Errno> {
        let Some(node) = self.tree.get(place) else { return Ok(()) };
        let listing = match (list(node.directory.root(), &node.directory.below(b"")), self.tree.parent(place)) {
            (Ok(listing), _) => listing,
            (Err(errno), Some((parent, name))) if nothing_to_enter(Call::Open, errno) => {
                self.resolve(parent, &name, Arrival::Found, false, now);
                return Ok(());
            }
            (Err(errno), _) => return Err(errno),
        };
        self.retries.had(place, &Name::from(&b""[..]));
        let Some(node) = self.tree.get_mut(place) else { return Ok(()) };
        node.listed = true;
        let arrival = std::mem::replace(&mut node.arrival, Arrival::Found);
        node.known.shrink_to_fit();
        // Mostly all that is known is listed, and counting is cheaper than a set of the listed. A name that is listed
        // twice, for it was renamed meanwhile, can hide one that is gone until the next listing.
        let known = listing.files.iter().filter(|found| node.known.contains_key(&found.name)).count();
        if known < node.known.len() {
            let present: Set<&Name> = listing.files.iter().map(|found| &found.name).collect();
            let gone: Vec<Name> = node.known.keys().filter(|name| !present.contains(name)).cloned().collect();
            gone.iter().for_each(|name| self.forget(place, name));
        }
        if let Some(node) = self.tree.get(place) {
            node.directory.set_names(listing.neighbors());
        }
        let left = listing.files.into_iter().map(|found| found.name).collect::<Vec<_>>().into_iter();
        self.look_over.to_compare.push_back(Compare { place, left, arrival });
        self.list_children(place, &listing.directories, arrival, deep, now);
        Ok(())
    }

    fn list_children(&mut self, place: Place, listed: &[Name], arrival: Arrival, deep: bool, now: Instant) {
        if !self.recursive {
            return;
        }
        let known: Set<Name> = self.tree.children(place).into_iter().collect();
        let unseen = deep || self.tree.unwatched().contains(&place);
        for name in listed.iter().filter(|name| unseen || !known.contains(*name)) {
            self.resolve(place, name, arrival, deep, now);
        }
        if known.is_empty() {
            return;
        }
        let listed: Set<&Name> = listed.iter().collect();
        for name in known.iter().filter(|name| !listed.contains(name)) {
            self.resolve(place, name, Arrival::Found, deep, now);
        }
    }

    pub(super) fn compare(&mut self, place: Place, name: &Name, arrival: Arrival, seen_at: Stamp, now: Instant) {
        let Some(node) = self.tree.get_mut(place) else { return };
        let below = node.directory.below(name);
        if !self.filter.admits(&below) {
            return;
        }
        let Sight { version, regular, owner } = match look(node.directory.root(), &below) {
            Ok(Some(sight)) => sight,
            Ok(None) => return self.retries.no_file(place, name),
            Err(errno) => return self.refuse(place, name, false, arrival, errno, now),
        };
        if node.known.get(name).is_some_and(|known| known.version == version.fingerprint()) {
            if !self.look_over.everything {
                self.retries.had(place, name);
                // The readers may have met another file, whose directory stood here for a moment.
                self.pending.look_again(place, name, false, seen_at);
                return;
            }
            node.known.remove(name);
        }
        let leased = node.directory.root().grants_lease(owner);
        self.look_over.found += 1;
        if !self.pending.look_again(place, name, arrival == Arrival::MovedTo, seen_at) {
            let hint = match arrival {
                Arrival::MovedTo => Hint::MovedTo,
                // Complete as it stands, or the lease will tell that it is not.
                Arrival::Found if leased || rests(&version, seen_at, self.settle) => {
                    let quiet = self.quiet.is_zero() || rests(&version, seen_at, self.quiet);
                    if quiet { Hint::Complete } else { Hint::Closed }
                }
                Arrival::Found => Hint::Changed { version: version.fingerprint() },
            };
            self.wait_found(place, name, hint, seen_at, now);
        }
        // What a link leads to is compared by the readers.
        if regular {
            self.doubt(place, name);
        }
    }
}

/// Whether a file was last changed longer ago than this. ctime, for it cannot be set.
fn rests(version: &Version, now: Stamp, pause: Duration) -> bool {
    let pause = i64::try_from(pause.as_secs() + 1).unwrap_or(i64::MAX);
    now.seconds.saturating_sub(version.changed.seconds) > pause
}

/// A data directory that cannot be listed at start.
fn unlisted(root: &Root, errno: Errno) -> Error {
    let next = match meaning(Call::List, errno) {
        Meaning::Broken => "allow openat2 in the seccomp filter (systemd: without RestrictSUIDSGID=)",
        // A profile can answer EPERM where systemd's answers ENOSYS.
        _ => "give this user the right to read it; where it has it, allow openat2 in the seccomp filter",
    };
    Error::DataDirectory { path: root.path().to_owned(), cause: format!("it cannot be listed: {errno}"), next }
}
