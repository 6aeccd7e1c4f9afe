//! The tree on real directories and real watches: each rule by itself, and any sequence of changes against the disk.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use proptest::prelude::*;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use tempfile::TempDir;

use super::*;
use crate::files::root::open_root;
use crate::watch::inotify::Watch;

const ROOT: DirectoryId = DirectoryId::FIRST;

struct Fixture {
    top: TempDir,
    /// Keeps the inotify instance open.
    _watch: Watch,
    tree: Tree,
}

impl Fixture {
    fn new(directories: &[&str]) -> Self {
        let top = tempfile::tempdir().unwrap();
        let root = Arc::new(open_root(top.path()).unwrap());
        let watch = Watch::new(&[top.path()]).unwrap();
        let tree = Tree::new([(&root, Some(watch.roots()[0]))], watch.watches().unwrap());
        let mut fixture = Self { top, _watch: watch, tree };
        for directory in directories {
            fixture.make(directory);
            fixture.resolve(directory);
        }
        fixture
    }

    fn path(&self, below: &str) -> PathBuf {
        self.top.path().join(below)
    }

    fn make(&self, path: &str) {
        let _ = fs::create_dir(self.path(path));
    }

    fn rename(&self, from: &str, to: &str) {
        let _ = fs::rename(self.path(from), self.path(to));
    }

    /// The directory that the tree has at a path.
    fn id(&self, path: &str) -> Option<DirectoryId> {
        path.split('/').try_fold(ROOT, |id, name| self.tree.child(id, &name.as_bytes().into()))
    }

    /// Resolves a path whose parent is in the tree. Returns the removed directories, too.
    fn resolve(&mut self, path: &str) -> (Resolved, Vec<DirectoryId>) {
        let (parent, name) = path.rsplit_once('/').map_or((Some(ROOT), path), |(up, name)| (self.id(up), name));
        let mut removed = Vec::new();
        let Some(parent) = parent else { return (Resolved::Nothing, Vec::new()) };
        let resolved = self.tree.resolve(parent, &name.as_bytes().into(), Origin::Found, &mut removed);
        self.tree.assert_consistent();
        (resolved, removed.into_iter().map(|removed| removed.id).collect())
    }

    /// Resolves every name that the disk or the tree has, from the top, and compares the two.
    fn assert_follows_the_disk(&mut self) {
        let mut ahead = vec![(ROOT, PathBuf::new())];
        while let Some((id, below)) = ahead.pop() {
            let on_disk = fs::read_dir(self.top.path().join(&below)).unwrap();
            let on_disk: BTreeSet<Vec<u8>> =
                on_disk.map(|entry| entry.unwrap().file_name().into_encoded_bytes()).collect();
            let known = self.tree.children(id).into_iter().map(|name| name.to_vec());
            for name in on_disk.iter().cloned().chain(known).collect::<BTreeSet<_>>() {
                self.tree.resolve(id, &name[..].into(), Origin::Found, &mut Vec::new());
                self.tree.assert_consistent();
            }
            let children: BTreeSet<Vec<u8>> = self.tree.children(id).iter().map(|name| name.to_vec()).collect();
            assert_eq!(children, on_disk, "in {below:?}");
            ahead.extend(children.into_iter().map(|name| {
                let child = self.tree.child(id, &name[..].into()).unwrap();
                (child, below.join(String::from_utf8(name).unwrap()))
            }));
        }
    }
}

impl Tree {
    /// Asserts what the module says of watches, of draining directories, and of parents and children.
    fn assert_consistent(&self) {
        for (id, node) in &self.nodes {
            assert_eq!(node.directory.id(), *id);
            let watch_id = node.watch_id;
            assert!(watch_id.is_none_or(|watch_id| self.of(watch_id) == Some(*id)), "its watch is another's");
            assert_eq!(self.draining.get(node.directory.prefix()) == Some(id), node.draining);
            if node.draining {
                assert!(node.in_flight > 0 && node.children.is_empty() && watch_id.is_none());
            } else {
                assert_eq!(self.unwatched().contains(id), watch_id.is_none());
                let parent = node.parent.as_ref();
                assert!(parent.is_none_or(|(parent, name)| self.child(*parent, name) == Some(*id)));
                assert!(node.children.values().all(|child| self.get(*child).is_some()));
            }
        }
        assert_eq!(self.watched(), self.nodes.values().filter(|node| node.watch_id.is_some()).count());
        assert_eq!(self.draining.len(), self.nodes.values().filter(|node| node.draining).count());
    }
}

#[test]
fn a_renamed_directory_leaves_its_old_path_and_keeps_its_watch() {
    let mut fixture = Fixture::new(&["a", "a/sub"]);
    let (a, sub) = (fixture.id("a").unwrap(), fixture.id("a/sub").unwrap());
    let watch_id = fixture.tree.get(a).unwrap().watch_id;
    fixture.rename("a", "b");
    let (resolved, removed) = fixture.resolve("b");
    let b = fixture.id("b").unwrap();
    assert_eq!((resolved, removed), (Resolved::New(b), vec![a, sub]));
    assert_eq!(fixture.tree.get(b).unwrap().watch_id, watch_id);
    assert_eq!(fixture.resolve("a"), (Resolved::Nothing, Vec::new()));
    assert_eq!(fixture.resolve("b"), (Resolved::Same { id: b, again: false }, Vec::new()));
    assert_eq!(fixture.tree.watched(), 2);
    fixture.assert_follows_the_disk();
    assert_eq!(fixture.tree.watched(), 3);
}

#[test]
fn a_directory_created_at_the_path_of_a_draining_one_takes_over_its_id() {
    let mut fixture = Fixture::new(&["a"]);
    let a = fixture.id("a").unwrap();
    fixture.tree.dispatched(a);
    fs::remove_dir(fixture.path("a")).unwrap();
    assert_eq!(fixture.resolve("a"), (Resolved::Nothing, vec![a]));
    assert!(fixture.tree.get(a).is_none());
    fixture.make("a");
    assert_eq!(fixture.resolve("a"), (Resolved::New(a), Vec::new()));
    fixture.tree.completed(a);
    assert!(fixture.tree.get(a).is_some());
    fs::remove_dir(fixture.path("a")).unwrap();
    fixture.resolve("a");
    fixture.make("a");
    fixture.resolve("a");
    assert_ne!(fixture.id("a"), Some(a), "nothing drained any more");
}

#[test]
fn a_parent_that_was_removed_with_the_renamed_directory_gets_no_child() {
    let mut fixture = Fixture::new(&["a", "a/x"]);
    let x = fixture.id("a/x").unwrap();
    // The old `a` ends up below its own child, at the path a/x/a.
    fixture.rename("a/x", "x");
    fixture.rename("a", "x/a");
    fixture.make("a");
    fixture.rename("x", "a/x");
    let (resolved, removed) = fixture.resolve("a/x/a");
    assert_eq!(resolved, Resolved::Nothing);
    assert!(removed.contains(&x));
    fixture.assert_follows_the_disk();
}

#[test]
fn a_link_is_not_entered_and_ends_the_directory_before_it() {
    let mut fixture = Fixture::new(&["a", "b"]);
    let a = fixture.id("a").unwrap();
    fs::remove_dir(fixture.path("a")).unwrap();
    symlink(fixture.path("b"), fixture.path("a")).unwrap();
    assert_eq!(fixture.resolve("a"), (Resolved::Nothing, vec![a]));
}

const PATHS: [&str; 8] = ["a", "b", "c", "a/a", "a/b", "b/a", "b/b", "a/a/a"];

#[derive(Debug, Clone)]
enum Step {
    Make(usize),
    Remove(usize),
    Rename(usize, usize),
    Exchange(usize, usize),
    Resolve(usize),
    Dispatch(usize),
    Complete,
    EndOrphaned(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let path = || 0..PATHS.len();
    let step = prop_oneof![
        4 => path().prop_map(Step::Make),
        1 => path().prop_map(Step::Remove),
        3 => (path(), path()).prop_map(|(from, to)| Step::Rename(from, to)),
        1 => (path(), path()).prop_map(|(one, other)| Step::Exchange(one, other)),
        6 => path().prop_map(Step::Resolve),
        2 => path().prop_map(Step::Dispatch),
        1 => Just(Step::Complete),
        1 => (0..3usize).prop_map(Step::EndOrphaned),
    ];
    prop::collection::vec(step, 0..60)
}

proptest! {
    /// Whichever names are resolved between the changes, and in whichever order, the tree stays consistent, and it agrees
    /// with the disk once every name has been resolved.
    #[test]
    fn the_tree_follows_the_disk_in_any_order_of_events(steps in steps()) {
        let mut fixture = Fixture::new(&[]);
        let mut in_flight = Vec::new();
        for step in steps {
            match step {
                Step::Make(path) => fixture.make(PATHS[path]),
                Step::Remove(path) => drop(fs::remove_dir(fixture.path(PATHS[path]))),
                Step::Rename(from, to) => fixture.rename(PATHS[from], PATHS[to]),
                Step::Exchange(one, other) => {
                    let (one, other) = (fixture.path(PATHS[one]), fixture.path(PATHS[other]));
                    let _ = renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE);
                }
                Step::Resolve(path) => drop(fixture.resolve(PATHS[path])),
                Step::Dispatch(path) => {
                    let id = fixture.id(PATHS[path]);
                    id.into_iter().for_each(|id| fixture.tree.dispatched(id));
                    in_flight.extend(id);
                }
                Step::Complete => in_flight.pop().into_iter().for_each(|id| fixture.tree.completed(id)),
                Step::EndOrphaned(most) => fixture.tree.end_orphaned(most),
            }
            fixture.tree.assert_consistent();
        }
        fixture.assert_follows_the_disk();
        in_flight.into_iter().for_each(|id| fixture.tree.completed(id));
        fixture.tree.assert_consistent();
        prop_assert!(fixture.tree.draining.is_empty());
    }
}

#[test]
fn only_what_is_no_directory_of_the_tree_is_nothing_to_enter() {
    for errno in [Errno::NOENT, Errno::NOTDIR, Errno::LOOP, Errno::XDEV] {
        assert!(nothing_to_enter(Call::Open, errno), "{errno}");
    }
    // It is there, and may be entered another time.
    for errno in [Errno::ACCESS, Errno::PERM, Errno::IO, Errno::STALE, Errno::MFILE, Errno::NOMEM, Errno::AGAIN] {
        assert!(!nothing_to_enter(Call::Open, errno), "{errno}");
    }
}
