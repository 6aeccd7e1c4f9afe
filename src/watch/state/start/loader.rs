//! What the ledger holds comes to the directories that are listed, row by row.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::error::Error;
use crate::files::directory::{Directory, DirectoryId};
use crate::files::errno::Call;
use crate::files::names::{Map, Name, Set};
use crate::filter::Filter;
use crate::job::Last;
use crate::ledger::store::{Fate, Row};
use crate::progress::Progress;
use crate::watch::confirmed::{Confirmed, Loaded};
use crate::watch::state::State;
use crate::watch::tree::{Origin, nothing_to_enter};

/// Rows of a volume that is not listed yet, by absolute path.
pub(super) type Kept = Vec<(Box<[u8]>, Row)>;

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
pub(super) struct Loader<'a> {
    /// By the numbers of the volumes; `None` for one that is not listed yet.
    states: &'a mut [Option<State>],
    filter: Arc<Filter>,
    recursive: bool,
    /// With `--removals`.
    keeps_last: bool,
    progress: Arc<Progress>,
    roots: &'a [Arc<Directory>],
    /// The data directories of volumes that are not listed yet.
    late: &'a [Directory],
    /// By the number of the volume.
    kept: BTreeMap<usize, Kept>,
    /// By path.
    listed: Map<Vec<u8>, Listed>,
    unlisted: Map<Vec<u8>, Unlisted<'a>>,
    /// Names that have had a message and are gone.
    lost: Map<DirectoryId, Vec<Name>>,
    loaded: usize,
}

impl<'a> Loader<'a> {
    /// Loads one row. `path` is absolute.
    pub(super) fn load(&mut self, path: &[u8], row: &Row) -> Fate {
        self.progress.start.loaded();
        if let Some(root) = self.late.iter().find(|root| path.starts_with(root.prefix())) {
            return self.keep(root, path, row);
        }
        let last = if self.keeps_last { row.last(path) } else { None };
        let loaded = Loaded { known: row.known(), last };
        let (directory, name) = path.split_at(path.iter().rposition(|&byte| byte == b'/').map_or(0, |at| at + 1));
        match self.listed.get(directory) {
            Some(listed) => {
                let id = listed.id;
                let state = self.states[id.volume()].as_mut();
                let Some(node) = state.and_then(|state| state.tree.get_mut(id)) else { return Fate::Gone };
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
                Unlisted::Gone(root) | Unlisted::Refused(root) if !self.admits(root, path) => {
                    return Fate::LeftOut;
                }
                Unlisted::Gone(root) => {
                    let Some(state) = &mut self.states[root.id().volume()] else { return Fate::LeftOut };
                    let id = state.tree.vanished(root, &directory[root.prefix().len()..]);
                    return self.load_lost(id, name, last);
                }
                Unlisted::Refused(root) => {
                    let Some(state) = &mut self.states[root.id().volume()] else { return Fate::LeftOut };
                    state.confirmed.load_unlisted(directory, name, loaded);
                }
                Unlisted::LeftOut => return Fate::LeftOut,
            },
        }
        self.loaded += 1;
        Fate::Known
    }

    /// Keeps the row of a path that has had a message and has no file any more. Its removal is due.
    fn load_lost(&mut self, id: DirectoryId, name: &[u8], last: Option<Last>) -> Fate {
        let state = self.states[id.volume()].as_mut();
        let node = state.and_then(|state| state.tree.with_draining_mut(id));
        let (Some(last), Some(node)) = (last, node) else { return Fate::Gone };
        if !self.filter.admits(&node.directory.below(name)) {
            return Fate::LeftOut;
        }
        let name = Name::from(name);
        node.last.insert(Arc::clone(&name), last);
        self.lost.entry(id).or_default().push(name);
        Fate::Known
    }

    /// Keeps a row of a volume that is not listed yet, unless its file is not followed, whatever its directories hold.
    fn keep(&mut self, root: &Directory, path: &[u8], row: &Row) -> Fate {
        let below = &path[root.prefix().len()..];
        let directory = below.iter().rposition(|&byte| byte == b'/').map(|at| &below[..at]);
        let entered = directory.is_none_or(|directory| self.recursive && self.filter.enters(directory));
        if !entered || !self.admits(root, path) {
            return Fate::LeftOut;
        }
        self.kept.entry(root.id().volume()).or_default().push((path.into(), *row));
        Fate::Known
    }

    fn admits(&self, root: &Directory, path: &[u8]) -> bool {
        self.filter.admits(&path[root.prefix().len()..])
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

/// Loads what the ledger holds of the listed files; `read` passes each row to the loader. `false`: it could not be read, and
/// nothing of it counts. Also returns the rows of volumes that are not listed yet.
pub(super) fn load(
    states: &mut [Option<State>],
    late: &[Directory],
    rows_max: usize,
    progress: &Arc<Progress>,
    read: impl FnOnce(&mut Loader<'_>) -> Result<bool, Error>,
) -> Result<(bool, BTreeMap<usize, Kept>), Error> {
    let mut listed = Map::default();
    let mut files = 0;
    for State { rescan, tree, filter, .. } in states.iter_mut().flatten() {
        for (id, names) in rescan.listed() {
            let Some(node) = tree.get_mut(id) else { continue };
            files += names.iter().filter(|name| filter.admits(&node.directory.below(name))).count();
            // A map that grows by the row is for a while there twice, the second time with room for twice as many.
            node.known.reserve(names.len().min(rows_max));
            listed.insert(node.directory.prefix().to_vec(), Listed::new(id, &node.directory, names));
        }
    }
    let roots: Vec<_> = states.iter().flatten().flat_map(|state| state.tree.roots()).cloned().collect();
    let first = states.iter().flatten().next();
    let Some(State { filter, recursive, confirmed, .. }) = first else { return Ok((true, BTreeMap::new())) };
    let (filter, recursive, keeps_last) = (Arc::clone(filter), *recursive, confirmed.keeps_last());
    let mut loader = Loader {
        states,
        filter,
        recursive,
        keeps_last,
        progress: Arc::clone(progress),
        roots: &roots,
        late,
        kept: BTreeMap::new(),
        listed,
        unlisted: Map::default(),
        lost: Map::default(),
        loaded: 0,
    };
    let whole = read(&mut loader)?;
    let Loader { states, mut loaded, lost, listed, mut kept, .. } = loader;
    for Listed { id, .. } in listed.values() {
        let node = states[id.volume()].as_mut().and_then(|state| state.tree.get_mut(*id));
        node.into_iter().for_each(|node| node.known.shrink_to_fit());
    }
    if whole {
        for (id, names) in lost {
            if let Some(state) = &mut states[id.volume()] {
                state.rescan.compare_later(id, names, Origin::Found);
            }
        }
    } else {
        loaded = 0;
        kept.clear();
        for State { confirmed, tree, .. } in states.iter_mut().flatten() {
            confirmed.unload(tree);
        }
    }
    tracing::info!(event = "ledger_loaded", rows = loaded, files, "the ledger holds {loaded} of {files} files");
    Ok((whole, kept))
}
