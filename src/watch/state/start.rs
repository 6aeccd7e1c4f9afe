//! The start: the tree is listed, the ledger is loaded, and the listed files are left to be compared.
//!
//! Each volume's own thread lists its directories ([`State::begin`]), and the main thread loads the ledger for all volumes that
//! have been listed in time ([`begin`]). The others join later ([`Late`]): what the ledger holds of them is kept until then.

mod loader;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;
use std::{iter, mem};

use loader::{Kept, load};
use rustix::io::Errno;

use super::{Depth, State};
use crate::cli::CatchUp;
use crate::error::{Error, os_message};
use crate::files::directory::{Directory, DirectoryId};
use crate::files::errno::{Call, Meaning, meaning};
use crate::files::listing::{FileStat, look, target_of};
use crate::files::names::Name;
use crate::files::root::Root;
use crate::files::root::opening::PATIENCE;
use crate::files::version::{Timestamp, Version};
use crate::ledger::store::{Entered, Entry, Fate, Store};
use crate::ledger::{ALL, Ledger};
use crate::memory::MORE_MEMORY;
use crate::progress::{Phase, Progress};
use crate::watch::confirmed::{Before, Confirmed};
use crate::watch::inotify::refuse_watch;
use crate::watch::tree::{Node, Origin};

/// Rows entered in one transaction at a start that takes what is there for confirmed; some 250 bytes each.
const ENTRIES_TOGETHER: usize = 1 << 16;

/// A volume's state whose directories are listed.
pub(in crate::watch) struct Begun {
    state: State,
    /// How many files were taken for confirmed.
    taken: usize,
    pub(in crate::watch) listed: Result<(), NotListed>,
}

/// What a volume has to be given that is listed later than the service could wait for.
pub(in crate::watch) struct Late {
    rows: Kept,
    catch_up: CatchUp,
    ledger: Option<Arc<Ledger>>,
}

/// How the watch of a volume begins.
pub(in crate::watch) enum Start {
    /// With all others.
    Now(Box<State>),
    /// Once its thread has listed the directories.
    Late(Late),
}

/// Rows of files that were there before this process: they are written before anything is published.
struct Entries<'a> {
    /// `None` without a ledger, or when it could not be written.
    store: Option<&'a mut Store>,
    catch_up: CatchUp,
    waiting: Vec<Entered>,
    /// All could be written.
    whole: bool,
}

impl Entries<'_> {
    /// See [`State::take_as_confirmed`]. `seen` as in [`Confirmed::take_as_confirmed`].
    fn take_as_confirmed(&mut self, node: &mut Node, name: &Name, regular: bool, seen: Option<(Version, bool)>) {
        let entered = self.catch_up == CatchUp::Baseline;
        match Confirmed::take_as_confirmed(node, name, regular, seen) {
            Before::Other => {}
            Before::Nothing if entered => {}
            Before::Same | Before::Nothing => return,
        }
        let entry = match (seen, node.last.get_mut(name)) {
            (Some((version, racy)), _) if entered => Entry::Seen(version, racy),
            (_, Some(last)) => {
                last.void = true;
                Entry::Void(*last)
            }
            _ => Entry::None,
        };
        self.push((node.directory.absolute(name), entry));
    }

    fn push(&mut self, entered: Entered) {
        self.waiting.push(entered);
        if self.waiting.len() >= ENTRIES_TOGETHER {
            self.write();
        }
    }

    fn write(&mut self) {
        let entries = mem::take(&mut self.waiting);
        if let Some(store) = &mut self.store
            && let Err(trouble) = store.enter(entries)
        {
            let error = os_message(&trouble);
            tracing::warn!(
                event = "baseline_failed",
                %error,
                "what is there cannot be entered in the ledger: {error}; the ledger begins empty"
            );
            (self.store, self.whole) = (None, false);
        }
    }
}

/// A file or a link that was there before this process.
struct Present {
    regular: bool,
    /// The version, and whether it is racy; `None` for a link that leads nowhere.
    seen: Option<(Version, bool)>,
}

impl State {
    /// Counts names that were found at the start, and warns as soon as they do not fit into memory.
    pub(super) fn count_names(&mut self, names: usize) {
        self.progress.start.listed(names);
        if let Some(need) = self.memory.add(names) {
            tracing::warn!(
                event = "memory_short",
                next = MORE_MEMORY,
                "{need}, so the kernel may end the service without a word: {MORE_MEMORY}"
            );
        }
    }

    /// Watches and lists the whole tree. Without a ledger, which other files could be compared with, it also does with them what
    /// `--catch-up` says. Where the service ends meanwhile, it returns early.
    ///
    /// # Errors
    /// What kept a data directory that did not answer in time from being opened and watched: see [`Root::opened`].
    pub(in crate::watch) fn begin(
        mut self,
        with_ledger: bool,
        catch_up: CatchUp,
        now: Instant,
    ) -> Result<Begun, Error> {
        let began = Timestamp::of_a_change_now();
        let late = self.watch_late_roots()?;
        let listed = self.list_all(now);
        let known = !with_ledger && matches!(catch_up, CatchUp::None | CatchUp::Baseline);
        let mut entries = Entries { store: None, catch_up, waiting: Vec::new(), whole: true };
        let since = Some(began).filter(|_| late || now.elapsed() >= PATIENCE);
        let taken = if known { self.take_as_confirmed(&mut entries, since) } else { 0 };
        Ok(Begun { state: self, taken, listed })
    }

    /// Waits for the data directories that did not answer in time, and watches them. Returns whether there are any.
    fn watch_late_roots(&mut self) -> Result<bool, Error> {
        let mut late = false;
        for directory in self.tree.roots().to_vec() {
            let root = directory.root();
            if !root.opened()? {
                continue;
            }
            let path = root.path();
            self.tree.watch_root(&directory).map_err(|errno| refuse_watch(path, errno.into()))?;
            let protection = root.protection();
            tracing::info!(
                event = "protection",
                path = &*path.to_string_lossy(),
                "no half-written file is published in {path:?}: {protection}"
            );
            late = true;
        }
        Ok(late)
    }

    /// Watches and lists the whole tree.
    fn list_all(&mut self, now: Instant) -> Result<(), NotListed> {
        self.progress.start.watched(self.tree.roots().len());
        self.rescan.begin(self.tree.roots(), now);
        let mut first = Ok(());
        while let Some((id, deep)) = self.rescan.next_to_list() {
            if self.progress.phase() == Phase::Stopping {
                break;
            }
            match (self.list(id, Depth::of(deep), now), self.tree.root(id)) {
                (Ok(()), _) => {}
                (Err(errno), Some(_)) => first = first.and(Err(NotListed { id, errno })),
                (Err(errno), None) => self.refuse_listing(id, errno, now),
            }
        }
        self.progress.metrics.rescans.start.inc();
        first
    }

    /// The error of a data directory that cannot be listed.
    fn not_listed(&self, NotListed { id, errno }: NotListed) -> Error {
        self.tree.root(id).map_or_else(
            || Error::Internal("what cannot be listed is no data directory".to_owned()),
            |root| not_listed(root, errno),
        )
    }

    /// A data directory that cannot be listed is listed again later.
    pub(in crate::watch) fn list_later(&mut self, NotListed { id, errno }: NotListed, now: Instant) {
        self.refuse_listing(id, errno, now);
    }

    /// Takes the listed files as they are now for confirmed, because they were there before this process. What the ledger
    /// holds of another file is deleted before anything is published, and with [`CatchUp::Baseline`] what is there is
    /// entered. What has come or changed since this time is left to be compared: the others' start has not waited for it. Returns
    /// the number of files.
    fn take_as_confirmed(&mut self, entries: &mut Entries<'_>, since: Option<Timestamp>) -> usize {
        let mut files = 0;
        let mut lost = Vec::new();
        for (id, names) in self.rescan.finish_uncompared() {
            let Some(node) = self.tree.get_mut(id) else {
                lost.push((id, names));
                continue;
            };
            Confirmed::compared(node);
            let (mut links, mut gone, mut later) = (Vec::new(), Vec::new(), Vec::new());
            for name in names {
                if !self.filter.admits(&node.directory.below(&name)) {
                    continue;
                }
                // A file that cannot be looked at is new once it can be, because nothing else is known of it.
                let Some(Present { regular, seen }) = present(node, &name) else {
                    gone.push(name);
                    continue;
                };
                if seen.zip(since).is_some_and(|((version, _), since)| version.changed >= since) {
                    later.push(name);
                    continue;
                }
                files += 1;
                self.progress.start.compared();
                entries.take_as_confirmed(node, &name, regular, seen);
                if !regular {
                    links.push(name);
                }
            }
            gone.retain(|name| node.last.contains_key(name));
            gone.append(&mut later);
            lost.push((id, gone));
            links.iter().for_each(|name| self.record_link(id, name));
        }
        // A removal is due whatever `--catch-up` says of files that are there, and so is what has come since.
        let lost = lost.into_iter().filter(|(_, names)| !names.is_empty());
        lost.for_each(|(id, names)| self.rescan.compare_later(id, names, Origin::Found));
        files
    }
}

impl Begun {
    /// The same, if each data directory could be listed.
    ///
    /// # Errors
    /// [`Error::DataDirectory`], or [`Error::System`] for a cause that may pass.
    pub(in crate::watch) fn complete(self) -> Result<Self, Error> {
        match self.listed {
            Ok(()) => Ok(self),
            Err(refused) => Err(self.state.not_listed(refused)),
        }
    }
}

/// Loads what the ledger holds, and does with the listed files of all volumes what `--catch-up` says. Returns the ledger, to which
/// each confirm is written from then on, and how each volume's watch begins. `begun`: by the volumes' numbers, `None` for one
/// that is not listed yet. `roots`: the data directories of all.
///
/// # Errors
/// [`Error::StateDirectory`], or [`Error::Threads`] when the ledger's thread cannot be had.
pub(in crate::watch) fn begin(
    begun: Vec<Option<Begun>>,
    roots: &[Arc<Root>],
    mut store: Option<Store>,
    catch_up: CatchUp,
    progress: &Arc<Progress>,
) -> Result<(Option<Arc<Ledger>>, Vec<Start>), Error> {
    let mut taken = begun.iter().flatten().map(|begun| begun.taken).sum();
    let mut states: Vec<Option<State>> = begun.into_iter().map(|begun| begun.map(|begun| begun.state)).collect();
    let (mut whole, mut kept) = (true, BTreeMap::new());
    if let Some(store) = &mut store {
        let late: Vec<Directory> = roots.iter().filter(|root| states[root.volume()].is_none()).map(of_root).collect();
        (whole, kept) = load(&mut states, &late, store.rows_max(), progress, |loader| {
            store.load(|path, row| loader.load(path, row))
        })?;
    }
    match catch_up {
        CatchUp::None | CatchUp::Baseline => {
            if store.is_some() {
                let mut entries = Entries { store: store.as_mut(), catch_up, waiting: Vec::new(), whole: true };
                taken = states.iter_mut().flatten().map(|state| state.take_as_confirmed(&mut entries, None)).sum();
                entries.write();
                whole &= entries.whole;
            }
            report_taken(taken);
        }
        CatchUp::Changed => {}
        CatchUp::All => states.iter_mut().flatten().for_each(|state| state.rescan.publish_known()),
    }
    let ledger = store.map(|store| Ledger::start(store, Arc::clone(progress)).map(Arc::new)).transpose()?;
    if let Some(ledger) = ledger.as_ref().filter(|_| !whole) {
        // It could not be read to its end, or what is there could not be entered: no row counts, at the next start either.
        ledger.forget_below(ALL);
    }
    let start = |(volume, state): (usize, Option<State>)| match state {
        Some(mut state) => {
            state.started(ledger.as_ref());
            Start::Now(Box::new(state))
        }
        None => {
            let rows = kept.remove(&volume).unwrap_or_default();
            Start::Late(Late { rows, catch_up, ledger: ledger.clone() })
        }
    };
    let starts = states.into_iter().enumerate().map(start).collect();
    Ok((ledger, starts))
}

impl Late {
    /// The second half of the start of a volume: as [`begin`] does it for the others.
    ///
    /// # Errors
    /// None that has to do with the volume: see [`begin`].
    pub(in crate::watch) fn join(
        self,
        Begun { state, taken, .. }: Begun,
        progress: &Arc<Progress>,
    ) -> Result<State, Error> {
        let Self { rows, catch_up, ledger } = self;
        let volume = state.volume;
        let mut states: Vec<Option<State>> = iter::repeat_with(|| None).take(volume).chain([Some(state)]).collect();
        if let Some(ledger) = &ledger {
            load(&mut states, &[], rows.len(), progress, |loader| {
                for (path, row) in rows {
                    if loader.load(&path, &row) == Fate::Gone {
                        ledger.invalidate(&path);
                    }
                }
                Ok(true)
            })?;
        }
        let none = || Error::Internal("a volume has lost its state".to_owned());
        let mut state = states.pop().flatten().ok_or_else(none)?;
        match catch_up {
            CatchUp::None | CatchUp::Baseline => report_taken(taken),
            CatchUp::Changed => {}
            CatchUp::All => state.rescan.publish_known(),
        }
        state.started(ledger.as_ref());
        Ok(state)
    }
}

impl State {
    /// The start is over, and each confirm is written to the ledger from now on.
    fn started(&mut self, ledger: Option<&Arc<Ledger>>) {
        self.starting = false;
        ledger.into_iter().for_each(|ledger| self.confirmed.write_to(Arc::clone(ledger)));
    }
}

/// A data directory of a volume that is not listed yet.
fn of_root(root: &Arc<Root>) -> Directory {
    Directory::new(root, b"").at(DirectoryId::FIRST.on_volume(root.volume()))
}

/// Logs that all files that were there count as confirmed.
fn report_taken(files: usize) {
    tracing::info!(
        event = "rescan_finished",
        files,
        publish = 0,
        "rescan finished: 0 of {files} files are to be published (--catch-up)"
    );
}

/// A data directory that cannot be listed at a start, and why.
#[derive(Debug, Clone, Copy)]
pub(in crate::watch) struct NotListed {
    id: DirectoryId,
    errno: Errno,
}

/// What is at a name at the start, if that can be looked at.
fn present(node: &Node, name: &Name) -> Option<Present> {
    let (root, below) = (node.directory.root(), node.directory.below(name));
    let examined = Timestamp::now();
    let Ok(Some(FileStat { version, regular, .. })) = look(root, &below) else { return None };
    let version = if regular { Some(version) } else { target_of(root, &below) };
    Some(Present { regular, seen: version.map(|version| (version, version.is_racy(examined, false))) })
}

/// The error of a data directory that cannot be listed at start.
fn not_listed(root: &Root, errno: Errno) -> Error {
    let next = match meaning(Call::List, errno) {
        Meaning::Broken => "allow openat2 in the seccomp filter (systemd: without RestrictSUIDSGID=)",
        // A profile can answer EPERM where systemd's answers ENOSYS.
        _ => "give this user the right to read it; where it has it, allow openat2 in the seccomp filter",
    };
    let path = root.path();
    Error::of_setting(format!("the data directory {path:?} cannot be listed"), errno, |cause| Error::DataDirectory {
        path: path.to_owned(),
        cause: format!("it cannot be listed: {cause}"),
        next,
    })
}
