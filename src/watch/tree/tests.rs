//! The tree on real directories and real watches: each rule by itself, and any sequence of changes against the disk.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use proptest::prelude::*;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use tempfile::TempDir;

use super::*;
use crate::files::root::open_root;
use crate::job::Last;
use crate::watch::inotify::Watch;
use crate::watch::inotify::tests::no_watches;

const ROOT: DirectoryId = DirectoryId::FIRST;

struct Fixture {
    top: TempDir,
    root: Arc<Root>,
    watch: Watch,
    tree: Tree,
}

impl Fixture {
    fn new(directories: &[&str]) -> Self {
        let top = tempfile::tempdir().unwrap();
        let root = Arc::new(open_root(top.path()).unwrap());
        let watch = Watch::new(&[top.path()]).unwrap();
        let tree = Tree::new([(&root, Some(watch.roots()[0]))], watch.watches().unwrap());
        let mut fixture = Self { top, root, watch, tree };
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

    fn open(&self, path: &str) -> File {
        File::open(self.path(path)).unwrap()
    }

    /// How many watches the kernel has, and how many of them report IN_ATTRIB: proc_pid_fdinfo(5).
    fn kernel_watches(&self) -> (usize, usize) {
        let path = format!("/proc/self/fdinfo/{}", self.watch.as_fd().as_raw_fd());
        let watches = fs::read_to_string(path).unwrap();
        let mask = |line: &str| {
            let digits = line.split_once(" mask:")?.1.split(' ').next()?;
            u32::from_str_radix(digits, 16).ok()
        };
        let masks: Vec<u32> =
            watches.lines().filter(|line| line.starts_with("inotify wd:")).map(|line| mask(line).unwrap()).collect();
        (masks.len(), masks.iter().filter(|&mask| mask & libc::IN_ATTRIB != 0).count())
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

#[test]
fn a_path_lies_in_the_last_directory_of_the_tree_above_it() {
    let fixture = Fixture::new(&["a", "a/sub"]);
    let placed = |path: &str| fixture.tree.place(&fixture.path(path));
    assert_eq!(placed("file"), Some((ROOT, b"file"[..].into())));
    assert_eq!(placed("a"), Some((ROOT, b"a"[..].into())));
    assert_eq!(placed("a/sub/file"), Some((fixture.id("a/sub").unwrap(), b"file"[..].into())));
    assert_eq!(placed("b/file"), None, "the tree has no such directory");
    assert_eq!(fixture.tree.place(fixture.top.path()), None, "the data directory lies in none");
    assert_eq!(fixture.tree.place(Path::new("/file")), None);
    assert_eq!(fixture.tree.parent(fixture.id("a/sub").unwrap()), Some((fixture.id("a").unwrap(), b"sub"[..].into())));
    assert_eq!(fixture.tree.parent(ROOT), None);
}

#[test]
fn a_data_directory_is_known_by_its_id_and_no_other_is() {
    let mut fixture = Fixture::new(&["a", "b"]);
    let (a, b) = (fixture.id("a").unwrap(), fixture.id("b").unwrap());
    assert_eq!(fixture.tree.root(ROOT).unwrap().path(), fixture.tree.roots()[0].root().path());
    assert!(fixture.tree.root(a).is_none());
    fixture.tree.dispatched(b);
    fs::remove_dir(fixture.path("b")).unwrap();
    fixture.resolve("b");
    let ids: Set<DirectoryId> = fixture.tree.iter().map(|(id, _)| id).collect();
    assert_eq!(ids, [ROOT, a].into_iter().collect(), "a draining directory is in the tree");
    assert_eq!(fixture.tree.iter_mut().count(), 2);
    assert!(fixture.tree.get(b).is_none() && fixture.tree.get_mut(b).is_none());
    assert!(fixture.tree.with_draining(b).is_some_and(Node::is_draining));
    assert!(fixture.tree.with_draining_mut(b).is_some());
    assert!(fixture.tree.with_draining(a).is_some_and(|node| !node.is_draining()));
    assert_eq!(fixture.tree.draining().map(|(id, _)| id).collect::<Vec<_>>(), [b]);
}

#[test]
fn watches_of_directories_that_left_are_ended_a_few_at_a_time() {
    let mut fixture = Fixture::new(&["a", "b", "c"]);
    let elsewhere = tempfile::tempdir().unwrap();
    for name in ["a", "b"] {
        fs::rename(fixture.path(name), elsewhere.path().join(name)).unwrap();
        fixture.resolve(name);
    }
    assert_eq!((fixture.kernel_watches().0, fixture.tree.watched()), (4, 2));
    fixture.tree.end_orphaned(1);
    assert_eq!(fixture.kernel_watches().0, 3);
    for name in ["a", "b"] {
        fs::rename(elsewhere.path().join(name), fixture.path(name)).unwrap();
        fixture.resolve(name);
    }
    fixture.tree.end_orphaned(9);
    assert_eq!(
        (fixture.kernel_watches().0, fixture.tree.watched()),
        (4, 4),
        "they came back before their watches ended"
    );
}

#[test]
fn a_watch_that_the_kernel_has_ended_is_not_ended_once_more() {
    let names = ["a", "b", "c", "d", "e", "f", "g", "h"];
    let mut fixture = Fixture::new(&names);
    let elsewhere = tempfile::tempdir().unwrap();
    for name in names {
        let watch_id = fixture.id(name).and_then(|id| fixture.tree.get(id)?.watch_id).unwrap();
        fs::rename(fixture.path(name), elsewhere.path().join(name)).unwrap();
        fixture.resolve(name);
        if name != "e" {
            fs::remove_dir(elsewhere.path().join(name)).unwrap();
            fixture.tree.ended(watch_id);
        }
    }
    assert_eq!(fixture.kernel_watches().0, 2);
    fixture.tree.end_orphaned(1);
    assert_eq!(fixture.kernel_watches().0, 1, "the one that was left");
}

#[test]
fn a_watch_beside_the_tree_ends_unless_its_directory_has_entered_the_tree() {
    let mut fixture = Fixture::new(&["a"]);
    assert_eq!(fixture.tree.watch_aside(fixture.open("a")), Ok(None), "it has its watch");
    let [b, c] = ["b", "c"].map(|name| {
        fixture.make(name);
        let open = fixture.open(name);
        fixture.tree.watch_aside(open).unwrap().expect("it is not in the tree")
    });
    assert_eq!(fixture.kernel_watches().0, 4);
    fixture.resolve("b");
    fixture.tree.end_aside(b);
    fixture.tree.end_aside(c);
    assert_eq!((fixture.kernel_watches().0, fixture.tree.watched()), (3, 3));
}

#[test]
fn the_wanted_directories_report_attributes_and_no_others() {
    let mut fixture = Fixture::new(&["a", "b", "c"]);
    let [a, b, c] = ["a", "b", "c"].map(|name| fixture.id(name).unwrap());
    fixture.tree.attend(&[a, b].into_iter().collect());
    assert_eq!(fixture.kernel_watches(), (4, 2));
    fixture.resolve("a");
    assert_eq!(fixture.kernel_watches(), (4, 2), "it still is wanted");
    fixture.tree.attend(&[b, c].into_iter().collect());
    assert_eq!(fixture.kernel_watches(), (4, 2));
    fixture.tree.attend(&[c].into_iter().collect());
    assert_eq!(fixture.kernel_watches(), (4, 1));
    // Another directory has the path by now, and its event is still queued.
    fixture.rename("b", "d");
    fixture.make("b");
    fixture.tree.attend(&[b].into_iter().collect());
    assert_eq!(fixture.kernel_watches().0, 5, "the new directory is watched before it enters the tree");
    fixture.tree.end_orphaned(9);
    assert_eq!(fixture.kernel_watches(), (4, 0));
    fixture.tree.attend(&Set::default());
    fixture.assert_follows_the_disk();
}

#[test]
fn a_directory_that_cannot_be_opened_stays_while_its_name_may_still_be_its_own() {
    let mut fixture = Fixture::new(&["a", "b"]);
    let (a, b) = (fixture.id("a").unwrap(), fixture.id("b").unwrap());
    let root = Arc::clone(&fixture.root);
    let refused = |fixture: &mut Fixture, existing, below: &str, errno| {
        let mut removed = Vec::new();
        let resolved = fixture.tree.not_opened(existing, &root, below.as_bytes(), errno, &mut removed);
        fixture.tree.assert_consistent();
        (resolved, removed.into_iter().map(|removed| removed.id).collect::<Vec<_>>())
    };
    let refusal = Resolved::Refused(Errno::ACCESS);
    assert_eq!(refused(&mut fixture, Some(a), "a", Errno::ACCESS), (refusal, vec![]));
    assert_eq!(refused(&mut fixture, None, "new", Errno::ACCESS), (refusal, vec![]));
    assert_eq!(refused(&mut fixture, Some(a), "a", Errno::XDEV), (Resolved::Covered, vec![]));
    assert_eq!(refused(&mut fixture, None, "new", Errno::XDEV), (Resolved::Nothing, vec![]));
    fixture.rename("a", "elsewhere");
    assert_eq!(refused(&mut fixture, Some(a), "a", Errno::ACCESS), (refusal, vec![]), "who knows what is there");
    fixture.make("a");
    assert_eq!(refused(&mut fixture, Some(a), "a", Errno::ACCESS), (refusal, vec![a]), "another directory is there");
    assert_eq!(refused(&mut fixture, Some(b), "b", Errno::NOENT), (Resolved::Nothing, vec![b]));
}

#[test]
#[should_panic(expected = "each job completes once")]
fn a_job_that_completes_twice_is_a_fault() {
    let mut fixture = Fixture::new(&[]);
    fixture.tree.dispatched(ROOT);
    fixture.tree.completed(ROOT);
    fixture.tree.completed(ROOT);
}

#[test]
fn a_directory_that_cannot_be_watched_is_in_the_tree_and_counts_as_unwatched() {
    let mut fixture = Fixture::new(&[]);
    assert!(fixture.tree.unwatched().is_empty() && fixture.tree.unwatched_cause().is_none());
    fixture.tree = Tree::new([(&fixture.root, None)], no_watches());
    let directory = Arc::clone(&fixture.tree.roots()[0]);
    assert_eq!(fixture.tree.watch_root(&directory), Err(Errno::INVAL));
    fixture.make("a");
    let (resolved, _) = fixture.resolve("a");
    let a = fixture.id("a").unwrap();
    assert_eq!(resolved, Resolved::New(a));
    assert_eq!(fixture.resolve("a"), (Resolved::Same { id: a, again: false }, Vec::new()));
    assert_eq!((fixture.tree.unwatched().len(), fixture.tree.unwatched_cause()), (2, Some(Errno::INVAL)));
    assert_eq!(fixture.tree.watched(), 0);
    fs::remove_dir(fixture.path("a")).unwrap();
    assert_eq!(fixture.resolve("a"), (Resolved::Nothing, vec![a]));
    assert_eq!(fixture.tree.unwatched().len(), 1, "it has gone");
}

#[test]
fn a_data_directory_that_is_late_is_watched_once_it_is_open() {
    let mut fixture = Fixture::new(&[]);
    fixture.watch = Watch::new(&[]).unwrap();
    fixture.tree = Tree::new([(&fixture.root, None)], fixture.watch.watches().unwrap());
    assert_eq!((fixture.kernel_watches().0, fixture.tree.unwatched().len()), (0, 1));
    let directory = Arc::clone(&fixture.tree.roots()[0]);
    fixture.tree.watch_root(&directory).unwrap();
    assert_eq!((fixture.kernel_watches().0, fixture.tree.unwatched().len(), fixture.tree.watched()), (1, 0, 1));
    fixture.tree.assert_consistent();
}

#[test]
fn a_directory_drains_until_the_removals_of_its_files_are_confirmed() {
    let mut fixture = Fixture::new(&["a"]);
    let a = fixture.id("a").unwrap();
    fixture.tree.get_mut(a).unwrap().last.insert(b"file"[..].into(), Last::default());
    fixture.tree.dispatched(a);
    fs::remove_dir(fixture.path("a")).unwrap();
    fixture.resolve("a");
    fixture.tree.completed(a);
    assert!(fixture.tree.with_draining(a).is_some());
    fixture.tree.with_draining_mut(a).unwrap().last.clear();
    fixture.tree.end_drained(a);
    assert!(fixture.tree.with_draining(a).is_none() && fixture.tree.draining().next().is_none());
}

#[test]
fn a_directory_that_vanished_before_the_start_drains_until_it_is_forgotten() {
    let mut fixture = Fixture::new(&["a"]);
    let root = Arc::clone(&fixture.tree.roots()[0]);
    let gone = fixture.tree.vanished(&root, b"gone/");
    assert_eq!(fixture.tree.vanished(&root, b"gone/"), gone);
    assert_ne!(fixture.tree.vanished(&root, b"other/"), gone);
    assert!(fixture.tree.get(gone).is_none() && fixture.tree.with_draining(gone).is_some());
    assert_eq!(fixture.tree.draining().count(), 2);
    fixture.tree.forget_vanished();
    assert!(fixture.tree.with_draining(gone).is_none());
    assert_eq!((fixture.tree.draining().count(), fixture.tree.iter().count()), (0, 2));
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
