//! The start: the tree is listed, the ledger is loaded, and the listed files are left to be compared.

use std::mem;
use std::sync::Arc;
use std::time::Instant;

use rustix::io::Errno;

use super::{Depth, State};
use crate::cli::CatchUp;
use crate::error::{Error, os_message};
use crate::files::directory::{Directory, DirectoryId};
use crate::files::errno::{Call, Meaning, meaning};
use crate::files::listing::{FileStat, look, target_of};
use crate::files::names::{Map, Name, Set};
use crate::files::root::Root;
use crate::files::version::{Timestamp, Version};
use crate::filter::Filter;
use crate::job::Last;
use crate::ledger::store::{Entered, Entry, Fate, Row, Store};
use crate::ledger::{ALL, Ledger};
use crate::memory::MORE_MEMORY;
use crate::progress::Progress;
use crate::watch::confirmed::{Before, Confirmed, Loaded};
use crate::watch::tree::{Node, Origin, nothing_to_enter};

/// Rows entered in one transaction at a start that takes what is there for confirmed; some 250 bytes each.
const ENTRIES_TOGETHER: usize = 1 << 16;

/// What becomes of the ledger's rows below a directory that is not listed at the start.
#[derive(Clone, Copy)]
enum Unlisted<'a> {
    /// There is no directory to enter, below this data directory.
    Gone(&'a Directory),
    /// The directory is there, or may be, and could not be listed: nobody can say what is in it.
    Refused(&'a Directory),
    /// This process does not follow the directory: it is excluded, a sub-directory without `--recursive`, or below another
    /// data directory.
    LeftOut,
}

impl<'a> Unlisted<'a> {
    /// `directory` ends in `/`.
    fn at(directory: &[u8], roots: &'a [Arc<Directory>], recursive: bool, filter: &Filter) -> Self {
        let Some(root) = roots.iter().find(|root| recursive && directory.starts_with(root.prefix())) else {
            return Self::LeftOut;
        };
        let below = &directory[root.prefix().len()..];
        let below = below.strip_suffix(b"/").unwrap_or(below);
        match root.root().open_directory(below) {
            Err(errno) if nothing_to_enter(Call::Open, errno) => Self::Gone(root),
            _ if !filter.enters(below) => Self::LeftOut,
            _ => Self::Refused(root),
        }
    }
}

/// A listed directory. Its index holds the names of the regular files, so that none of a million is kept twice.
struct Listed {
    id: DirectoryId,
    /// Listed names that the index lacks: those of links.
    links: Set<Name>,
}

impl Listed {
    fn new(id: DirectoryId, directory: &Directory, names: &[Name]) -> Self {
        let links = directory.update(|index| {
            // The index holds no names but listed ones.
            let all = index.len() == names.len();
            names.iter().filter(|name| !all && !index.contains(name)).cloned().collect()
        });
        Self { id, links }
    }

    fn name(&self, directory: &Directory, name: &[u8]) -> Option<Name> {
        directory.name(name).or_else(|| self.links.get(name).cloned())
    }
}

/// Loads the ledger, row by row.
struct Loader<'a> {
    /// By the numbers of the volumes.
    states: &'a mut [State],
    filter: Arc<Filter>,
    recursive: bool,
    /// With `--removals`.
    keeps_last: bool,
    progress: Arc<Progress>,
    roots: &'a [Arc<Directory>],
    /// By path.
    listed: Map<Vec<u8>, Listed>,
    unlisted: Map<Vec<u8>, Unlisted<'a>>,
    /// Names that have had a message and are gone.
    lost: Map<DirectoryId, Vec<Name>>,
    loaded: usize,
}

impl<'a> Loader<'a> {
    /// Loads one row. `path` is absolute.
    fn load(&mut self, path: &[u8], row: &Row) -> Fate {
        self.progress.start.loaded();
        let last = if self.keeps_last { row.last(path) } else { None };
        let loaded = Loaded { known: row.known(), last };
        let (directory, name) = path.split_at(path.iter().rposition(|&byte| byte == b'/').map_or(0, |at| at + 1));
        match self.listed.get(directory) {
            Some(listed) => {
                let id = listed.id;
                let Some(node) = self.states[id.volume()].tree.get_mut(id) else { return Fate::Gone };
                let Some(name) = listed.name(&node.directory, name) else {
                    return self.load_lost(id, name, last);
                };
                if !self.filter.admits(&node.directory.below(&name)) {
                    return Fate::LeftOut;
                }
                Confirmed::load(node, &name, loaded);
            }
            None => match self.unlisted(directory) {
                Unlisted::Gone(_) if last.is_none() => return Fate::Gone,
                Unlisted::Gone(root) | Unlisted::Refused(root) if !self.admits(root, directory, name) => {
                    return Fate::LeftOut;
                }
                Unlisted::Gone(root) => {
                    let id = self.states[root.id().volume()].tree.vanished(root, &directory[root.prefix().len()..]);
                    return self.load_lost(id, name, last);
                }
                Unlisted::Refused(root) => {
                    self.states[root.id().volume()].confirmed.load_unlisted(directory, name, loaded);
                }
                Unlisted::LeftOut => return Fate::LeftOut,
            },
        }
        self.loaded += 1;
        Fate::Known
    }

    /// Keeps the row of a path that has had a message and has no file any more. Its removal is due.
    fn load_lost(&mut self, id: DirectoryId, name: &[u8], last: Option<Last>) -> Fate {
        let (Some(last), Some(node)) = (last, self.states[id.volume()].tree.with_draining_mut(id)) else {
            return Fate::Gone;
        };
        if !self.filter.admits(&node.directory.below(name)) {
            return Fate::LeftOut;
        }
        let name = Name::from(name);
        node.last.insert(Arc::clone(&name), last);
        self.lost.entry(id).or_default().push(name);
        Fate::Known
    }

    fn admits(&self, root: &Directory, directory: &[u8], name: &[u8]) -> bool {
        let directory = root.deeper(&directory[root.prefix().len()..]);
        self.filter.admits(&directory.below(name))
    }

    /// Each directory is opened once, however many rows there are below it.
    fn unlisted(&mut self, directory: &[u8]) -> Unlisted<'a> {
        if let Some(found) = self.unlisted.get(directory) {
            return *found;
        }
        let found = Unlisted::at(directory, self.roots, self.recursive, &self.filter);
        self.unlisted.insert(directory.into(), found);
        found
    }
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

    /// Watches and lists the whole tree.
    ///
    /// # Errors
    /// [`Error::DataDirectory`] when a data directory itself cannot be listed.
    pub(in crate::watch) fn list_all(&mut self, now: Instant) -> Result<(), Error> {
        self.progress.start.watched(self.tree.roots().len());
        self.rescan.begin(self.tree.roots(), now);
        while let Some((id, deep)) = self.rescan.next_to_list() {
            match (self.list(id, Depth::of(deep), now), self.tree.root(id)) {
                (Ok(()), _) => {}
                (Err(errno), Some(root)) => return Err(not_listed(root, errno)),
                (Err(errno), None) => self.refuse_listing(id, errno, now),
            }
        }
        self.progress.metrics.rescans.start.inc();
        Ok(())
    }

    /// Takes the listed files as they are now for confirmed, because they were there before this process. What the ledger
    /// holds of another file is deleted before anything is published, and with [`CatchUp::Baseline`] what is there is
    /// entered. Returns the number of files.
    fn take_as_confirmed(&mut self, entries: &mut Entries<'_>) -> usize {
        let mut files = 0;
        let mut lost = Vec::new();
        for (id, names) in self.rescan.finish_uncompared() {
            let Some(node) = self.tree.get_mut(id) else {
                lost.push((id, names));
                continue;
            };
            Confirmed::compared(node);
            let (mut links, mut gone) = (Vec::new(), Vec::new());
            for name in names {
                if !self.filter.admits(&node.directory.below(&name)) {
                    continue;
                }
                // A file that cannot be looked at is new once it can be, because nothing else is known of it.
                let Some(Present { regular, seen }) = present(node, &name) else {
                    gone.push(name);
                    continue;
                };
                files += 1;
                self.progress.start.compared();
                entries.take_as_confirmed(node, &name, regular, seen);
                if !regular {
                    links.push(name);
                }
            }
            gone.retain(|name| node.last.contains_key(name));
            lost.push((id, gone));
            links.iter().for_each(|name| self.record_link(id, name));
        }
        // A removal is due whatever `--catch-up` says of files that are there.
        let lost = lost.into_iter().filter(|(_, names)| !names.is_empty());
        lost.for_each(|(id, names)| self.rescan.compare_later(id, names, Origin::Found));
        files
    }
}

/// Loads what the ledger holds, and does with the listed files of all volumes what `--catch-up` says. Returns the ledger, to
/// which each confirm is written from then on.
///
/// # Errors
/// [`Error::StateDirectory`], or [`Error::Threads`] when the ledger's thread cannot be had.
pub(in crate::watch) fn begin(
    states: &mut [State],
    mut store: Option<Store>,
    catch_up: CatchUp,
    progress: &Arc<Progress>,
) -> Result<Option<Arc<Ledger>>, Error> {
    let mut whole = match &mut store {
        Some(store) => load(states, store, progress)?,
        None => true,
    };
    match catch_up {
        CatchUp::None | CatchUp::Baseline => {
            let mut entries = Entries { store: store.as_mut(), catch_up, waiting: Vec::new(), whole: true };
            let files = states.iter_mut().map(|state| state.take_as_confirmed(&mut entries)).sum();
            entries.write();
            report_taken(files);
            whole &= entries.whole;
        }
        CatchUp::Changed => {}
        CatchUp::All => states.iter_mut().for_each(|state| state.rescan.publish_known()),
    }
    let Some(store) = store else { return Ok(None) };
    let ledger = Arc::new(Ledger::start(store, Arc::clone(progress))?);
    if !whole {
        // It could not be read to its end, or what is there could not be entered: no row counts, at the next start either.
        ledger.forget_below(ALL);
    }
    states.iter_mut().for_each(|state| state.confirmed.write_to(Arc::clone(&ledger)));
    Ok(Some(ledger))
}

/// Loads what the ledger holds of the listed files. `false`: it could not be read, and nothing of it counts.
fn load(states: &mut [State], store: &mut Store, progress: &Arc<Progress>) -> Result<bool, Error> {
    let mut listed = Map::default();
    let mut files = 0;
    let rows_max = store.rows_max();
    for State { rescan, tree, filter, .. } in &mut *states {
        for (id, names) in rescan.listed() {
            let Some(node) = tree.get_mut(id) else { continue };
            files += names.iter().filter(|name| filter.admits(&node.directory.below(name))).count();
            // A map that grows by the row is for a while there twice, the second time with room for twice as many.
            node.known.reserve(names.len().min(rows_max));
            listed.insert(node.directory.prefix().to_vec(), Listed::new(id, &node.directory, names));
        }
    }
    let roots: Vec<_> = states.iter().flat_map(|state| state.tree.roots()).cloned().collect();
    let Some(State { filter, recursive, confirmed, .. }) = states.first() else { return Ok(true) };
    let (filter, recursive, keeps_last) = (Arc::clone(filter), *recursive, confirmed.keeps_last());
    let mut loader = Loader {
        states,
        filter,
        recursive,
        keeps_last,
        progress: Arc::clone(progress),
        roots: &roots,
        listed,
        unlisted: Map::default(),
        lost: Map::default(),
        loaded: 0,
    };
    let whole = store.load(|path, row| loader.load(path, row))?;
    let Loader { states, mut loaded, lost, listed, .. } = loader;
    for Listed { id, .. } in listed.values() {
        states[id.volume()].tree.get_mut(*id).into_iter().for_each(|node| node.known.shrink_to_fit());
    }
    if whole {
        for (id, names) in lost {
            states[id.volume()].rescan.compare_later(id, names, Origin::Found);
        }
    } else {
        loaded = 0;
        for State { confirmed, tree, .. } in states {
            confirmed.unload(tree);
        }
    }
    tracing::info!(event = "ledger_loaded", rows = loaded, files, "the ledger holds {loaded} of {files} files");
    Ok(whole)
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
