//! What is in memory of the rule; `rows` has what is written. The models of the whole watch hold both together.

mod rows;

use std::collections::BTreeSet;

use tempfile::TempDir;

use super::*;
use crate::files::directory::DirectoryId;
use crate::files::root::tests::root;
use crate::files::version::{Timestamp, version_of};
use crate::message::{EventType, RemovalType};
use crate::watch::inotify::tests::no_watches;

fn version(size: u64, changed: i64) -> Version {
    let stamp = |seconds| Timestamp { seconds, nanoseconds: 1 };
    Version { inode: 1, size, modified: stamp(1), changed: stamp(changed) }
}

/// What is known of a file of this version that was read.
fn known(version: &Version) -> Known {
    Known::new(version, &Digests::of(b"x"), false)
}

fn name(text: &str) -> Name {
    text.as_bytes().into()
}

fn node() -> (TempDir, Node) {
    let (dir, root) = root();
    (dir, Node::new(Directory::new(&Arc::new(root), b""), None, None))
}

/// What a start says of a name of which this is known, and what is known of it then.
fn taken(known: Option<Known>, regular: bool, seen: Option<Version>) -> (Before, Option<Known>) {
    let (_dir, mut node) = node();
    let name = name("name");
    if let Some(known) = known {
        node.known.insert(Arc::clone(&name), known);
    }
    let before = Confirmed::take_as_confirmed(&mut node, &name, regular, seen.map(|version| (version, false)));
    (before, node.known.get(&name).copied())
}

#[test]
fn a_file_that_is_the_known_one_keeps_what_is_known_of_its_content() {
    let known = known(&version(1, 1));
    for changed in [1, 2] {
        let (before, after) = taken(Some(known), true, Some(version(1, changed)));
        assert!(matches!(before, Before::Same) && after.is_some_and(Known::is_read), "ctime {changed}");
    }
    // What a link leads to has not been read, so that ctime decides.
    assert!(matches!(taken(Some(known), false, Some(version(1, 1))).0, Before::Same));
    for (regular, seen) in [(true, version(2, 2)), (false, version(1, 2))] {
        let (before, after) = taken(Some(known), regular, Some(seen));
        assert!(matches!(before, Before::Other), "{seen:?}");
        assert!(after.is_some_and(|known| known.is_of(&seen) && !known.is_read()), "{seen:?}");
    }
    let (before, after) = taken(Some(known), false, None);
    assert!(matches!(before, Before::Other) && after.is_none(), "a link that leads nowhere");
    let (before, after) = taken(None, true, Some(version(1, 1)));
    assert!(matches!(before, Before::Nothing) && after.is_some_and(|known| known.is_of(&version(1, 1))));
}

#[test]
fn a_listing_finds_the_rows_that_waited_for_it_and_ends_the_names_that_it_lacks() {
    let (_dir, mut node) = node();
    let mut confirmed = Confirmed::new(true);
    confirmed.load_unlisted(node.directory.prefix(), b"waited", Loaded { known: known(&version(1, 1)), last: None });
    for text in ["there", "gone"] {
        node.known.insert(name(text), known(&version(1, 1)));
    }
    node.last.insert(name("to be taken back"), Last::default());
    let files = ["there", "waited"].map(|text| Found { name: name(text), inode: 1, regular: true });
    for _ in 0..2 {
        assert_eq!(confirmed.listed(&mut node, &files), [name("to be taken back")]);
        assert_eq!(node.known.keys().cloned().collect::<BTreeSet<_>>(), [name("there"), name("waited")].into());
    }
    assert!(node.loaded, "the row that waited is compared next");
    node.last.clear();
    assert!(confirmed.listed(&mut node, &files).is_empty());
    node.known.insert(name("gone"), known(&version(1, 1)));
    assert!(confirmed.listed(&mut node, &files).is_empty(), "it had no message that could be taken back");
    assert!(!node.known.contains_key(b"gone"));
}

#[test]
fn rows_of_a_ledger_that_cannot_be_read_to_its_end_are_dropped() {
    let (_dir, root) = root();
    let mut tree = Tree::new([(&Arc::new(root), None)], no_watches());
    let mut confirmed = Confirmed::new(true);
    let row = Loaded { known: known(&version(1, 1)), last: Some(Last::default()) };
    Confirmed::load(tree.get_mut(DirectoryId::FIRST).unwrap(), &name("file"), row);
    let top = Arc::clone(&tree.roots()[0]);
    tree.vanished(&top, b"gone/");
    confirmed.load_unlisted(b"/closed/", b"file", row);
    confirmed.unload(&mut tree);
    let node = tree.get(DirectoryId::FIRST).unwrap();
    assert!(node.known.is_empty() && node.last.is_empty() && tree.draining().next().is_none());
    assert!(confirmed.unlisted_in(b"/").is_empty());
}

#[test]
fn rows_below_closed_directories_are_found_by_name_and_taken_with_what_is_below() {
    for removals in [true, false] {
        let mut confirmed = Confirmed::new(removals);
        for (directory, last) in [
            ("/d/a-b/", Some(Last::default())),
            ("/d/a/", None),
            ("/d/a/b/", Some(Last::default())),
            ("/d/c/d/e/", Some(Last::default())),
            ("/e/", Some(Last::default())),
        ] {
            let row = |last| Loaded { known: known(&version(1, 1)), last };
            confirmed.load_unlisted(directory.as_bytes(), b"file", row(last));
            confirmed.load_unlisted(directory.as_bytes(), b"silent", row(None));
        }
        assert_eq!(confirmed.unlisted_in(b"/d/"), ["a-b", "a", "c"].map(name));
        assert_eq!(confirmed.unlisted_in(b"/d/c/"), [name("d")]);
        assert!(confirmed.unlisted_in(b"/f/").is_empty());
        let taken = confirmed.take_unlisted(b"/d/a/");
        if !removals {
            assert!(taken.is_empty());
            continue;
        }
        let rows: Vec<_> = taken.iter().map(|(path, rows)| (&path[..], rows.len())).collect();
        assert_eq!(rows, [(&b"/d/a/"[..], 0), (b"/d/a/b/", 1)]);
        let again = confirmed.take_unlisted(b"/d/a/");
        assert!(again.iter().all(|(_, rows)| rows.is_empty()), "what was taken is there once more");
        assert_eq!(confirmed.take_unlisted(b"/e/").len(), 1);
        assert_eq!(confirmed.unlisted_in(b"/d/"), ["a-b", "a", "c"].map(name), "rows without a message stay");
    }
}

#[test]
fn a_rescan_compares_what_it_finds_with_what_was_confirmed() {
    let (dir, mut node) = node();
    let (first, touched, other) = (version(1, 1), version(1, 2), version(2, 2));
    let read = known(&first);
    let racy = Known::new(&first, &Digests::of(b"x"), true);
    let mut compared = |known: Option<Known>, text: &str, regular, version, everything, loaded| {
        node.loaded = loaded;
        node.known = known.into_iter().map(|known| (name(text), known)).collect();
        let found = Confirmed::compare(
            &mut node,
            &name(text),
            &FileStat { version, regular, linked: false, owner: 0 },
            everything,
        );
        (found, node.known.get(text.as_bytes()).copied())
    };
    for (before, version, wanted) in [
        (None, first, Comparison::Other),
        (Some(read), first, Comparison::Confirmed),
        (Some(read.by_version_only()), first, Comparison::Confirmed),
        (Some(racy), first, Comparison::InQuestion),
        (Some(read.rowless()), first, Comparison::InQuestion),
        (Some(read), touched, Comparison::InQuestion),
        (Some(read.by_version_only()), touched, Comparison::Other),
        (Some(read), other, Comparison::Other),
    ] {
        let (found, after) = compared(before, "file", true, version, false, true);
        assert_eq!(found, wanted, "{before:?} {version:?}");
        assert_eq!(after.is_some(), before.is_some());
        // What this run confirmed is not published again, what an earlier one confirmed is.
        assert_eq!(compared(before, "file", true, version, true, false).0, wanted);
        let (again, kept) = compared(before, "file", true, version, true, true);
        let repeated = wanted != Comparison::Other;
        assert_eq!(again == Comparison::Repeated, repeated, "{before:?} {version:?}");
        assert_eq!(kept.is_none(), repeated || before.is_none());
    }
    let (_, after) = compared(Some(read.by_version_only()), "file", true, first, false, true);
    assert!(after.is_some_and(Known::is_exact), "it is certain now");

    // The reader looks at what a link leads to, unless nobody has read it: then its target is compared here.
    std::fs::write(dir.path().join("target"), "x").unwrap();
    std::os::unix::fs::symlink("target", dir.path().join("link")).unwrap();
    let target = version_of(&rustix::fs::stat(dir.path().join("target")).unwrap());
    for (before, everything, wanted) in [
        (Some(read), false, Comparison::InQuestion),
        (Some(read), true, Comparison::Other),
        (Some(Known::seen(&target, false)), false, Comparison::Confirmed),
        (Some(Known::seen(&first, false)), false, Comparison::Other),
        (None, false, Comparison::Other),
    ] {
        assert_eq!(compared(before, "link", false, other, everything, true).0, wanted, "{before:?} {everything}");
    }
}

#[test]
fn without_a_ledger_nothing_waits_for_it() {
    let (_dir, mut node) = node();
    node.loaded = true;
    for removals in [true, false] {
        let confirmed = Confirmed::new(removals);
        assert_eq!(confirmed.keeps_last(), removals);
        assert!(!confirmed.invalidates_first(&node, &name("file")) && !confirmed.is_pressed());
        assert!(!confirmed.holds_back(&mut node, &name("file"), true));
    }
    Confirmed::compared(&mut node);
    assert!(!node.loaded);
}

#[test]
fn a_name_is_forgotten_when_it_comes_to_another_file() {
    let (_dir, mut node) = node();
    let confirmed = Confirmed::new(false);
    node.known.insert(name("file"), known(&version(1, 1)));
    for same in [version(1, 1), version(1, 2)] {
        confirmed.forget_other(&mut node, &name("file"), &same);
        assert!(node.known.contains_key(b"file"));
    }
    confirmed.forget_other(&mut node, &name("file"), &version(2, 2));
    assert!(node.known.is_empty());
}

#[test]
fn a_late_event_of_a_deletion_is_compared_by_what_decides_then() {
    for (how, changed, still) in [
        (NameLost::Deleted, 1, true),
        (NameLost::Deleted, 2, true),
        (NameLost::Renamed, 1, true),
        (NameLost::Renamed, 2, false),
    ] {
        assert_eq!(is_still(known(&version(1, 1)), how, &version(1, changed)), still, "{how:?}, ctime {changed}");
        assert!(!is_still(known(&version(1, 1)), how, &version(2, changed)));
    }
}

#[test]
fn a_version_can_reappear_unless_this_process_saw_the_regular_file() {
    let (_dir, mut node) = node();
    let file = name("file");
    node.known.insert(Arc::clone(&file), known(&version(1, 1)));
    assert!(can_reappear(&node, &file), "a link");
    node.directory.update(|names| names.insert(&file));
    assert!(!can_reappear(&node, &file));
    node.loaded = true;
    assert!(can_reappear(&node, &file), "a row that is not compared yet");
    node.loaded = false;
    node.known.insert(Arc::clone(&file), Known::new(&version(1, 1), &Digests::of(b"x"), true));
    assert!(can_reappear(&node, &file), "time stamps of whole seconds");
}

#[test]
fn a_job_leaves_all_as_it_is_if_it_found_what_is_known_and_its_row_stayed() {
    let (_dir, node) = node();
    let read = Read { version: version(1, 1), digests: Digests::of(b"x"), racy: false, id: None };
    let found = |known, invalidate_first| {
        let job = Job::new(Arc::clone(&node.directory), name("file"), EventType::Create, Timestamp::now());
        Confirmed::is_kept(&Job { known, invalidate_first, ..job }, &read)
    };
    assert!(found(Some(read.known()), false));
    assert!(!found(Some(read.known()), true) && !found(None, false));
    assert!(!found(Some(known(&version(1, 2))), false) && !found(Some(read.known().rowless()), false));
}
