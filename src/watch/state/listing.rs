//! Look-overs of what the books are about: at start, of a directory that is new, after lost events, and on a timer.

use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::{BACKLOG_MAX, State};
use crate::cli::CatchUp;
use crate::error::Error;
use crate::files::directory::{Directory, DirectoryId};
use crate::files::errno::{Call, Meaning, meaning};
use crate::files::listing::{FileStat, list, look, target_of};
use crate::files::names::{Map, Name, Set};
use crate::files::root::Root;
use crate::files::version::{Stamp, Version};
use crate::filter::Filter;
use crate::job::Known;
use crate::ledger::store::{Fate, Seen, Store};
use crate::ledger::{ALL, Ledger};
use crate::watch::pending::{Change, PENDING_MAX, Pending};
use crate::watch::rescan::{Compare, Rescan};
use crate::watch::tree::{Origin, nothing_to_enter};

/// Files that a look-over compares before the rest of the loop has its turn.
const LOOKS_IN_A_ROW: usize = 1024;

/// Rows entered in one transaction at a start that takes what is there for known; some 250 bytes each.
const ENTRIES_TOGETHER: usize = 1 << 16;

/// Rows that may lag and are marked so at the end: links that lead nowhere, and directories that cannot be entered. Where
/// there are more, the start has not compared them yet, and the ledger as a whole is not complete.
const LAGGING_MAX: usize = 4096;

/// What listing a directory counts for among them.
const LOOKS_FOR_A_LISTING: usize = 16;

/// What becomes of the ledger's rows below a directory that is not listed at the start.
#[derive(Clone, Copy)]
enum Unlisted<'a> {
    /// There is none to enter.
    Gone,
    /// It is there, or may be, and was not to be entered: it cannot be said what is in it.
    Refused(&'a Directory),
    /// This process does not follow it: below an excluded directory, a sub-directory without `--recursive`, another data
    /// directory.
    LeftOut,
}

/// See [`Unlisted`]. `directory` ends in `/`.
fn unlisted_at<'a>(directory: &[u8], roots: &'a [Arc<Directory>], recursive: bool, filter: &Filter) -> Unlisted<'a> {
    let Some(root) = roots.iter().find(|root| recursive && directory.starts_with(root.prefix())) else {
        return Unlisted::LeftOut;
    };
    let below = &directory[root.prefix().len()..];
    let below = below.strip_suffix(b"/").unwrap_or(below);
    match root.root().open_directory(below) {
        Err(errno) if nothing_to_enter(Call::Open, errno) => Unlisted::Gone,
        _ if !filter.enters(below) => Unlisted::LeftOut,
        _ => Unlisted::Refused(root),
    }
}

/// On their way into the ledger before anything is told.
struct Entries<'a> {
    /// Nothing without a ledger, or when it could not be written.
    store: Option<&'a mut Store>,
    waiting: Vec<Seen>,
    /// All could be written.
    whole: bool,
}

impl Entries<'_> {
    fn push(&mut self, seen: Seen) {
        self.waiting.push(seen);
        if self.waiting.len() >= ENTRIES_TOGETHER {
            self.write();
        }
    }

    fn write(&mut self) {
        let entries = mem::take(&mut self.waiting);
        if let Some(store) = &mut self.store
            && let Err(trouble) = store.enter(entries)
        {
            tracing::warn!("what is there cannot be entered in the ledger: {trouble}; the ledger begins empty");
            (self.store, self.whole) = (None, false);
        }
    }
}

impl State {
    /// Ends the ledger. `orderly`: nothing is on its way any more.
    pub(in crate::watch) fn end(&mut self, orderly: bool) {
        let Some(ledger) = self.ledger.take() else { return };
        let below = |directory: &[u8], known: &Map<Name, Known>| -> Vec<Box<[u8]>> {
            let lagging = known.iter().filter(|(_, known)| !known.is_exact());
            lagging.map(|(name, _)| [directory, name].concat().into()).collect()
        };
        let nodes = self.tree.iter().map(|(_, node)| (node.directory.prefix(), &node.known));
        let all = nodes.chain(self.aside.iter().map(|(directory, known)| (&directory[..], known)));
        let lagging: Vec<_> =
            all.flat_map(|(directory, known)| below(directory, known)).take(LAGGING_MAX + 1).collect();
        if orderly && lagging.len() <= LAGGING_MAX {
            ledger.end_exact(lagging);
        }
    }

    /// Watches and lists the whole tree; its files are left to be compared.
    ///
    /// # Errors
    /// [`Error::DataDirectory`] when a data directory itself cannot be listed.
    pub(in crate::watch) fn list_all(&mut self, now: Instant) -> Result<(), Error> {
        self.rescan.begin(self.tree.roots(), now);
        while let Some((id, deep)) = self.rescan.to_list.pop_front() {
            match (self.list(id, deep, now), self.tree.root(id)) {
                (Ok(()), _) => {}
                (Err(errno), Some(root)) => return Err(unlisted(root, errno)),
                (Err(errno), None) => self.shut(id, errno, now),
            }
        }
        Ok(())
    }

    /// Takes over what the ledger holds, and makes of the listed files what the start is to make of them.
    ///
    /// # Errors
    /// [`Error::StateDirectory`], or [`Error::Internal`] when the ledger's thread cannot be had.
    pub(in crate::watch) fn begin(&mut self, mut store: Option<Store>, catch_up: CatchUp) -> Result<(), Error> {
        let mut whole = match &mut store {
            Some(store) => self.recall(store)?,
            None => true,
        };
        match catch_up {
            CatchUp::None | CatchUp::Baseline => whole &= self.take_as_seen(store.as_mut(), catch_up),
            CatchUp::Changed => {}
            CatchUp::All => self.rescan.everything = true,
        }
        if let Some(store) = store {
            let ledger = Ledger::start(store, Arc::clone(&self.progress))?;
            if !whole {
                ledger.forget_below(ALL);
            }
            self.ledger = Some(ledger);
        }
        Ok(())
    }

    /// Takes over what the ledger knows of the listed files. `false`: it could not be read, and nothing of it counts.
    fn recall(&mut self, store: &mut Store) -> Result<bool, Error> {
        let mut present: Map<Vec<u8>, (DirectoryId, Set<Name>)> = Map::default();
        let mut files = 0;
        for compare in &self.rescan.to_compare {
            let Some(node) = self.tree.get(compare.id) else { continue };
            let names: Set<Name> = compare.left.as_slice().iter().cloned().collect();
            files += names.iter().filter(|name| self.filter.admits(&node.directory.below(name))).count();
            present.insert(node.directory.prefix().to_vec(), (compare.id, names));
        }
        let (mut loaded, recursive, roots) = (0, self.recursive, self.tree.roots().to_vec());
        let mut unlisted: Map<Vec<u8>, Unlisted> = Map::default();
        let Self { tree, filter, aside, .. } = self;
        let whole = store.load(|path, known| {
            let (directory, name) = path.split_at(path.iter().rposition(|&byte| byte == b'/').map_or(0, |at| at + 1));
            let left_out = |directory: &Directory| !filter.admits(&directory.below(name));
            let Some((id, names)) = present.get(directory) else {
                let found = match unlisted.get(directory) {
                    Some(found) => *found,
                    None => {
                        *unlisted.entry(directory.into()).or_insert(unlisted_at(directory, &roots, recursive, filter))
                    }
                };
                return match found {
                    Unlisted::Gone => Fate::Gone,
                    Unlisted::Refused(root) if !left_out(&root.deeper(&directory[root.prefix().len()..])) => {
                        aside.entry(directory.into()).or_default().insert(name.into(), known);
                        loaded += 1;
                        Fate::Known
                    }
                    Unlisted::Refused(_) | Unlisted::LeftOut => Fate::LeftOut,
                };
            };
            let (Some(name), Some(node)) = (names.get(name), tree.get_mut(*id)) else { return Fate::Gone };
            if left_out(&node.directory) {
                return Fate::LeftOut;
            }
            node.known.insert(Arc::clone(name), known);
            node.loaded = true;
            loaded += 1;
            Fate::Known
        })?;
        if !whole {
            loaded = 0;
            self.aside.clear();
            self.tree.iter_mut().for_each(|node| node.known.clear());
        }
        tracing::info!("the ledger holds {loaded} of {files} files");
        Ok(whole)
    }

    /// Takes the listed files as they are now for known: they were there before us. What the ledger holds of another file
    /// goes before anything is told, and with [`CatchUp::Baseline`] what stands there is entered. `false`: it could not be
    /// written, and nothing of it may count.
    fn take_as_seen(&mut self, store: Option<&mut Store>, catch_up: CatchUp) -> bool {
        let mut entries = Entries { store, waiting: Vec::new(), whole: true };
        let mut files = 0;
        for Compare { id, left, .. } in mem::take(&mut self.rescan.to_compare) {
            let Some(node) = self.tree.get_mut(id) else { continue };
            node.loaded = false;
            let mut links = Vec::new();
            for name in left {
                let below = node.directory.below(&name);
                if !self.filter.admits(&below) {
                    continue;
                }
                let examined = Stamp::now();
                // What cannot be looked at is new once it can be: nothing else is known of it.
                let Ok(Some(FileStat { version, regular, .. })) = look(node.directory.root(), &below) else { continue };
                files += 1;
                if !regular {
                    links.push(Name::clone(&name));
                }
                let known = node.known.get(&name).copied();
                let stands = if regular { Some(version) } else { target_of(node.directory.root(), &below) };
                // What a link leads to is not read, so its content decides nothing.
                let is = |known: Known, stands| known.is_of(&stands) || regular && known.may_be(&stands);
                if known.zip(stands).is_some_and(|(known, stands)| is(known, stands)) {
                    continue;
                }
                let seen = stands.map(|version| (version, version.is_racy(examined, false)));
                let path = node.directory.absolute(&name);
                match seen {
                    Some((version, racy)) => drop(node.known.insert(name, Known::seen(&version, racy))),
                    None => drop(node.known.remove(&name)),
                }
                if catch_up == CatchUp::Baseline || known.is_some() {
                    entries.push((path, seen.filter(|_| catch_up == CatchUp::Baseline)));
                }
            }
            links.iter().for_each(|name| self.seen_link(id, name));
        }
        entries.write();
        (self.rescan.whole, self.rescan.first) = (false, false);
        tracing::info!("rescan finished: 0 of {files} files are to be published (--catch-up)");
        entries.whole
    }

    /// Whether a look-over can go on at once.
    pub(in crate::watch) fn looks_now(&self, now: Instant) -> bool {
        let begins = self.rescan.next_time().is_some_and(|time| time <= now);
        let wanted = self.rescan.running() || self.rescan.whole || begins;
        let room = self.pending.len() < PENDING_MAX / 2 && self.pending.backlog() < BACKLOG_MAX;
        wanted && room && !self.ledger.as_ref().is_some_and(Ledger::is_pressed)
    }

    /// Begins the look-over that is needed, or goes on with those that run.
    pub(in crate::watch) fn rescan(&mut self, now: Instant) {
        if !self.looks_now(now) {
            return;
        }
        if self.rescan.next_time().is_some_and(|time| time <= now) {
            self.rescan.begin(self.tree.roots(), now);
        }
        let seen_at = Stamp::now();
        let mut looks = LOOKS_IN_A_ROW;
        while looks > 0 {
            if let Some(Compare { id, left, origin }) = self.rescan.to_compare.front_mut() {
                match (left.next(), *id, *origin) {
                    (Some(name), id, origin) => self.compare(id, &name, origin, seen_at, now),
                    (None, id, _) => {
                        self.rescan.to_compare.pop_front();
                        self.tree.get_mut(id).into_iter().for_each(|node| node.loaded = false);
                    }
                }
                looks -= 1;
            } else if let Some((id, deep)) = self.rescan.to_list.pop_front() {
                // It may have been listed before its turn, for the sake of a file in it.
                if deep || self.tree.get(id).is_some_and(|node| !node.listed) {
                    self.list_or_shut(id, deep, now);
                    looks = looks.saturating_sub(LOOKS_FOR_A_LISTING);
                }
            } else {
                break;
            }
        }
        if self.rescan.whole && !self.rescan.running() {
            self.rescan.whole = false;
            let Rescan { found, in_question, compared, .. } = self.rescan;
            let first = mem::take(&mut self.rescan.first);
            match found {
                _ if first => {
                    let content_decides = match in_question {
                        0 => String::new(),
                        more => format!(", and {more} more if their content is another"),
                    };
                    let new = found - in_question;
                    tracing::info!("rescan finished: {new} of {compared} files are to be published{content_decides}");
                }
                0 => tracing::debug!("rescan finished: nothing new"),
                found => tracing::info!("rescan finished: {found} files to be read"),
            }
        }
    }

    /// Lists a directory, or remembers that it cannot be.
    pub(super) fn list_or_shut(&mut self, id: DirectoryId, deep: bool, now: Instant) {
        if let Err(errno) = self.list(id, deep, now) {
            self.shut(id, errno, now);
        }
    }

    /// Lists a directory: the index is exactly this from now on, and every file in it is to be compared; what is new of
    /// its sub-directories is watched and listed next. `deep`: and what is not.
    ///
    /// In one go, so that no event comes in between: what is missing here is gone, or its event is still queued.
    ///
    /// # Errors
    /// What keeps it from being listed. Nothing that is known of it is forgotten then.
    fn list(&mut self, id: DirectoryId, deep: bool, now: Instant) -> Result<(), Errno> {
        let Some(node) = self.tree.get(id) else { return Ok(()) };
        let listing = match (list(node.directory.root(), &node.directory.below(b"")), self.tree.parent(id)) {
            (Ok(listing), _) => listing,
            (Err(errno), Some((parent, name))) if nothing_to_enter(Call::Open, errno) => {
                self.resolve(parent, &name, Origin::Found, false, now);
                return Ok(());
            }
            (Err(errno), _) => return Err(errno),
        };
        self.retries.had(id, &Name::from(&b""[..]));
        let Some(node) = self.tree.get_mut(id) else { return Ok(()) };
        node.listed = true;
        let origin = mem::replace(&mut node.origin, Origin::Found);
        if let Some(rows) = self.aside.remove(node.directory.prefix()) {
            // Found out only now whether its files are still there.
            node.known.extend(rows);
            node.loaded = true;
        }
        node.known.shrink_to_fit();
        // Mostly all that is known is listed, and counting is cheaper than a set of the listed. A name that is listed
        // twice, for it was renamed meanwhile, can hide one that is gone until the next listing.
        let known = listing.files.iter().filter(|found| node.known.contains_key(&found.name)).count();
        if known < node.known.len() {
            let present: Set<&Name> = listing.files.iter().map(|found| &found.name).collect();
            let gone: Vec<Name> = node.known.keys().filter(|name| !present.contains(name)).cloned().collect();
            gone.iter().for_each(|name| self.forget(id, name));
        }
        if let Some(node) = self.tree.get(id) {
            node.directory.set_names(listing.neighbors());
        }
        let left = listing.files.into_iter().map(|found| found.name).collect::<Vec<_>>().into_iter();
        self.rescan.to_compare.push_back(Compare { id, left, origin });
        self.list_children(id, &listing.directories, origin, deep, now);
        Ok(())
    }

    fn list_children(&mut self, id: DirectoryId, listed: &[Name], origin: Origin, deep: bool, now: Instant) {
        if !self.recursive {
            return;
        }
        let known: Set<Name> = self.tree.children(id).into_iter().collect();
        let unseen = deep || self.tree.unwatched().contains(&id);
        for name in listed.iter().filter(|name| unseen || !known.contains(*name)) {
            self.resolve(id, name, origin, deep, now);
        }
        if known.is_empty() {
            return;
        }
        let listed: Set<&Name> = listed.iter().collect();
        for name in known.iter().filter(|name| !listed.contains(name)) {
            self.resolve(id, name, Origin::Found, deep, now);
        }
    }

    pub(super) fn compare(&mut self, id: DirectoryId, name: &Name, origin: Origin, seen_at: Stamp, now: Instant) {
        let Some(node) = self.tree.get_mut(id) else { return };
        let below = node.directory.below(name);
        if !self.filter.admits(&below) {
            return;
        }
        let FileStat { version, regular, owner, .. } = match look(node.directory.root(), &below) {
            Ok(Some(stat)) => stat,
            Ok(None) => {
                // Its name was taken away, or its event is still to come.
                self.forget(id, name);
                self.seen(id, name, None);
                return self.retries.no_file(id, name);
            }
            Err(errno) => return self.refuse(id, name, false, origin, errno, now),
        };
        self.rescan.compared += 1;
        if !regular {
            self.seen_link(id, name);
        }
        let Some(node) = self.tree.get_mut(id) else { return };
        let known = node.known.get_mut(name);
        // What a link leads to is compared by the readers, unless they have never read it.
        let through = !regular && known.as_ref().is_some_and(|known| !known.is_read());
        let stands = if through { target_of(node.directory.root(), &below) } else { Some(version) };
        let may_lead_to_it = !regular && !through && known.is_some();
        let known = known.zip(stands).filter(|(known, stands)| known.may_be(stands));
        let may_be_known = known.is_some();
        match known {
            Some(_) if self.rescan.everything => drop(node.known.remove(name)),
            Some((known, stands)) if known.is_of(&stands) => {
                // A row that lags would be of another version.
                *known = known.exact(&stands);
                if !known.is_racy() {
                    self.retries.had(id, name);
                    // The readers may have met another file, whose directory stood here for a moment.
                    self.pending.look_again(id, name, false, seen_at);
                    return;
                }
                self.rescan.in_question += 1;
            }
            Some(_) => self.rescan.in_question += 1,
            None => self.rescan.in_question += usize::from(may_lead_to_it && !self.rescan.everything),
        }
        let leased = node.directory.root().grants_lease(owner);
        self.rescan.found += 1;
        if self.pending.look_again(id, name, origin == Origin::MovedTo, seen_at) {
            // The links that lead through it may have been read before it came to stand there.
            self.follow(Pending::found, id, name, seen_at, now);
        } else {
            let change = match origin {
                Origin::MovedTo => Change::MovedTo,
                // Complete as it stands, or the lease will tell that it is not: but for one that was made just now, which the
                // kernel does before it counts its writer.
                Origin::Found if leased && version.size > 0 || rests(&version, seen_at, self.settle) => {
                    let quiet = self.quiet.is_zero() || rests(&version, seen_at, self.quiet);
                    if quiet { Change::Complete } else { Change::Closed }
                }
                Origin::Found => Change::Changed { version: version.fingerprint() },
            };
            self.put(Pending::found, id, name, change, seen_at, now);
        }
        if regular && !may_be_known {
            self.invalidate(id, name);
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
