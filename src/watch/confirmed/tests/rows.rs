//! What the rule writes to the ledger, and which files it has wait for that.

use std::time::{Duration, Instant};

use super::*;
use crate::files::root::Root;
use crate::ledger::tests::{Queued, press, take_queued, without_writer};
use crate::watch::pending::Change;

/// What was queued, by name, each with whether files wait for it.
type Queue = Vec<(String, Queued, bool)>;

/// A directory, and a ledger that keeps what is queued. Of the names in it `file` is a regular file's.
struct Fixture {
    _dir: TempDir,
    root: Arc<Root>,
    node: Node,
    confirmed: Confirmed,
    ledger: Arc<Ledger>,
}

impl Fixture {
    fn new(removals: bool) -> Self {
        let (dir, root) = root();
        let root = Arc::new(root);
        let node = Node::new(Directory::new(&root, b""), None, None);
        node.directory.update(|names| names.insert(&name("file")));
        let mut confirmed = Confirmed::new(removals);
        let ledger = Arc::new(without_writer());
        confirmed.write_to(Arc::clone(&ledger));
        Self { _dir: dir, root, node, confirmed, ledger }
    }

    fn know(&mut self, text: &str, known: Known) {
        self.node.known.insert(name(text), known);
    }

    fn known(&self, text: &str) -> Option<Known> {
        self.node.known.get(text.as_bytes()).copied()
    }

    fn last(&self, text: &str) -> Option<&Last> {
        self.node.last.get(text.as_bytes())
    }

    fn set_last(&mut self, text: &str, last: Last) {
        self.node.last.insert(name(text), last);
    }

    fn job(&self, text: &str, known: Option<Known>, invalidate_first: bool) -> Job {
        let job = Job::new(Arc::clone(&self.node.directory), name(text), EventType::Create, Timestamp::now());
        Job { known, invalidate_first, ..job }
    }

    /// A job's confirm. `changed`: its path has changed since the job was dispatched.
    fn confirm(&mut self, job: &Job, read: Read, changed: bool) {
        let mut pending = Pending::new(Duration::ZERO, Duration::ZERO, 1);
        if changed {
            let id = self.node.directory.id();
            pending.found(id, &job.name, Change::Closed, true, Timestamp::now(), Instant::now()).unwrap();
        }
        self.confirmed.confirm(&mut self.node, job, read, &pending);
    }

    /// Takes what was queued since.
    fn queued(&self) -> Queue {
        let prefix = self.node.directory.prefix();
        let below = |path: Vec<u8>| String::from_utf8(path.strip_prefix(prefix).unwrap_or(&path).to_vec()).unwrap();
        take_queued(&self.ledger).into_iter().map(|(path, queued, waits)| (below(path), queued, waits)).collect()
    }

    /// A tree of the directory without its files.
    fn tree(&self) -> Tree {
        Tree::new([(&self.root, None)], no_watches())
    }

    /// Ends it with this directory as the whole tree. Returns the paths whose rows may lag, and what was queued for the end.
    fn end(mut self, orderly: bool) -> (Vec<Vec<u8>>, Queue) {
        let mut tree = self.tree();
        let top = tree.get_mut(DirectoryId::FIRST).unwrap();
        top.known = std::mem::take(&mut self.node.known);
        top.last = std::mem::take(&mut self.node.last);
        self.queued();
        let lagging = self.confirmed.end(&tree, orderly).into_iter().map(Vec::from).collect();
        assert!(self.confirmed.ledger().is_none(), "nothing is written afterwards");
        (lagging, self.queued())
    }
}

/// What a reader found, and published with this id.
fn found(version: Version, id: Option<u128>) -> Read {
    Read { version, digests: Digests::of(b"x"), racy: false, id }
}

/// A row of what a reader found, for which nothing waits.
fn row(text: &str, read: &Read, id: MessageId) -> (String, Queued, bool) {
    (text.into(), Queued::Row(read.known(), id), false)
}

/// The deletion of a row, for which files wait.
fn invalidated(text: &str) -> (String, Queued, bool) {
    (text.into(), Queued::Deletion, true)
}

fn message(id: u128) -> Last {
    Last::new(&Content { digests: Digests::of(b"x"), size: 1 }, Some(id))
}

#[test]
fn a_row_has_to_go_first_where_its_version_can_reappear() {
    let mut fixture = Fixture::new(false);
    let first = |fixture: &Fixture, text| fixture.confirmed.invalidates_first(&fixture.node, &name(text));
    assert!(first(&fixture, "link") && !first(&fixture, "file"));
    fixture.node.loaded = true;
    assert!(first(&fixture, "file"));
}

#[test]
fn a_job_waits_for_its_rows_deletion_and_where_rows_press_for_the_others() {
    let mut fixture = Fixture::new(false);
    for (text, removal) in [("file", false), ("link", true)] {
        assert!(!fixture.confirmed.holds_back(&mut fixture.node, &name(text), removal), "{text}");
        fixture.ledger.invalidate(&fixture.node.directory.absolute(&name(text)));
        assert!(fixture.confirmed.holds_back(&mut fixture.node, &name(text), removal), "{text}");
        fixture.queued();
    }
    assert!(!fixture.confirmed.is_pressed());
    press(&fixture.ledger);
    assert!(fixture.confirmed.is_pressed());
    assert!(fixture.confirmed.holds_back(&mut fixture.node, &name("link"), false));
    assert!(!fixture.confirmed.holds_back(&mut fixture.node, &name("file"), false));
}

#[test]
fn with_removals_a_path_is_announced_before_its_first_message() {
    let mut fixture = Fixture::new(true);
    let file = name("file");
    assert!(fixture.confirmed.holds_back(&mut fixture.node, &file, false));
    assert!(fixture.last("file").is_some_and(|last| !last.published && last.void));
    assert_eq!(fixture.queued(), [("file".into(), Queued::Void(MessageId::Unknown), true)]);
    assert!(!fixture.confirmed.holds_back(&mut fixture.node, &file, false), "it has been");
    assert!(fixture.queued().is_empty());

    press(&fixture.ledger);
    assert!(fixture.confirmed.holds_back(&mut fixture.node, &name("other"), false), "there is no room for its row");
    assert!(fixture.last("other").is_none());
    assert!(!fixture.confirmed.holds_back(&mut fixture.node, &file, false));
}

#[test]
fn with_removals_a_row_is_void_before_its_path_is_taken_back_or_is_anothers() {
    for (is_known, removal, waits) in [(true, false, false), (true, true, true), (false, false, true)] {
        let mut fixture = Fixture::new(true);
        let known = known(&version(1, 1));
        if is_known {
            fixture.know("file", known);
        }
        fixture.set_last("file", message(7));
        assert_eq!(fixture.confirmed.holds_back(&mut fixture.node, &name("file"), removal), waits);
        let voided = ("file".into(), Queued::Void(MessageId::Other(7)), true);
        assert_eq!(fixture.queued(), if waits { vec![voided] } else { vec![] });
        assert_eq!(fixture.last("file").unwrap().void, waits);
        // Should it be there after all, it gets its row back.
        assert_eq!(fixture.known("file"), is_known.then_some(if waits { known.rowless() } else { known }));
        assert!(!fixture.confirmed.holds_back(&mut fixture.node, &name("file"), removal), "it is void");
    }
}

#[test]
fn what_is_confirmed_gets_a_row_with_the_id_of_its_message() {
    for (id, last, wanted) in [
        (Some(5), None, MessageId::OfVersion),
        (Some(5), Some(7), MessageId::OfVersion),
        (None, Some(7), MessageId::Other(7)),
        (None, None, MessageId::Unknown),
    ] {
        let mut fixture = Fixture::new(false);
        last.into_iter().for_each(|id| fixture.set_last("file", message(id)));
        let job = fixture.job("file", None, false);
        fixture.confirm(&job, found(version(1, 1), id), false);
        let read = found(version(1, 1), id);
        assert_eq!(fixture.known("file"), Some(read.known()));
        assert_eq!(fixture.queued(), [row("file", &read, wanted)]);
    }
}

#[test]
fn a_row_is_written_unless_its_path_has_changed_and_its_version_can_reappear() {
    let (known, read) = (known(&version(1, 1)), || found(version(2, 2), Some(5)));
    for (invalidate_first, changed, written) in
        [(false, false, true), (true, false, true), (false, true, true), (true, true, false)]
    {
        let mut fixture = Fixture::new(false);
        fixture.know("file", known);
        let job = fixture.job("file", Some(known), invalidate_first);
        fixture.confirm(&job, read(), changed);
        let wanted = if written { row("file", &read(), MessageId::OfVersion) } else { invalidated("file") };
        assert_eq!(fixture.queued(), [wanted]);
        let known = if written { read().known() } else { read().known().rowless() };
        assert_eq!(fixture.known("file"), Some(known));
    }
}

#[test]
fn a_row_that_says_already_what_is_confirmed_stays() {
    let same = known(&version(1, 1));
    let touched = found(version(1, 2), None);
    for (job, before, kept) in [
        (Some(same), Some(same), true),
        // What is known has come since the job was dispatched, with a row of its own or without one.
        (None, Some(same), false),
        (Some(known(&version(2, 2))), Some(same), false),
        (Some(same), None, false),
        (Some(same.rowless()), Some(same.rowless()), false),
        (Some(known(&version(2, 2))), Some(known(&version(2, 2))), false),
    ] {
        let mut fixture = Fixture::new(false);
        before.into_iter().for_each(|known| fixture.know("file", known));
        let job = fixture.job("file", job, true);
        fixture.confirm(&job, found(version(1, 2), None), true);
        if kept {
            assert_eq!((fixture.known("file"), fixture.queued()), (Some(same), vec![]), "{before:?}");
        } else {
            assert_eq!(fixture.known("file"), Some(touched.known().rowless()), "{before:?}");
            assert_eq!(fixture.queued(), [invalidated("file")], "{before:?}");
        }
    }
}

#[test]
fn what_was_withheld_is_written_at_an_orderly_end_if_it_still_holds() {
    let read = || found(version(1, 1), Some(5));
    let withheld = || {
        let mut fixture = Fixture::new(false);
        let job = fixture.job("file", None, true);
        fixture.confirm(&job, read(), true);
        (fixture, job)
    };
    assert_eq!(withheld().0.end(true), (vec![], vec![row("file", &read(), MessageId::OfVersion)]));
    assert_eq!(withheld().0.end(false), (vec![], vec![]));
    // Another version has been confirmed since, or the path has gone.
    let (mut fixture, job) = withheld();
    fixture.confirm(&job, found(version(2, 2), Some(6)), false);
    fixture.know("file", read().known().rowless());
    assert_eq!(fixture.end(true).1, []);
    for known in [Some(read().known()), Some(known(&version(2, 2)).rowless()), None] {
        let (mut fixture, _) = withheld();
        fixture.node.known.clear();
        known.into_iter().for_each(|known| fixture.know("file", known));
        assert_eq!(fixture.end(true).1, [], "{known:?}");
    }
}

#[test]
fn as_many_rows_are_withheld_as_there_is_room_for() {
    let written = |confirms: usize| {
        let mut fixture = Fixture::new(false);
        for number in 0..confirms {
            let job = fixture.job(&format!("link-{number}"), None, true);
            fixture.confirm(&job, found(version(1, 1), Some(5)), true);
        }
        fixture.end(true).1.len()
    };
    assert_eq!(written(WITHHELD_MAX), WITHHELD_MAX);
    assert_eq!(written(WITHHELD_MAX + 1), 1, "those before are published again");
}

#[test]
fn a_forgotten_names_row_goes_and_where_its_version_can_reappear_files_wait_for_it() {
    let mut fixture = Fixture::new(true);
    for (text, waits) in [("file", false), ("link", true)] {
        fixture.confirmed.forget(&mut fixture.node, &name(text));
        assert!(fixture.queued().is_empty(), "nothing is known of it");
        fixture.know(text, known(&version(1, 1)));
        fixture.confirmed.forget(&mut fixture.node, &name(text));
        assert_eq!(fixture.known(text), None);
        assert_eq!(fixture.queued(), [(text.into(), Queued::Deletion, waits)]);
        // The row of a path that is to be taken back is needed for that.
        fixture.know(text, known(&version(1, 1)));
        fixture.set_last(text, message(7));
        fixture.confirmed.forget(&mut fixture.node, &name(text));
        assert_eq!((fixture.known(text), fixture.queued()), (None, vec![]));
    }
}

#[test]
fn a_stale_row_is_invalidated_once_where_its_version_can_reappear() {
    let mut fixture = Fixture::new(true);
    for text in ["file", "link"] {
        fixture.know(text, known(&version(1, 1)));
        fixture.confirmed.invalidate(&mut fixture.node, &name(text));
    }
    assert_eq!(fixture.known("file"), Some(known(&version(1, 1))));
    assert_eq!(fixture.known("link"), Some(Known::PUBLISHED));
    assert_eq!(fixture.queued(), [invalidated("link")]);
    for text in ["link", "unknown"] {
        fixture.confirmed.invalidate(&mut fixture.node, &name(text));
    }
    assert!(fixture.queued().is_empty());
    // The path's last message is still to be taken back one day.
    fixture.know("link", known(&version(1, 1)));
    fixture.set_last("link", message(7));
    fixture.confirmed.invalidate(&mut fixture.node, &name("link"));
    assert!(fixture.last("link").unwrap().void);
    assert_eq!(fixture.queued(), [("link".into(), Queued::Void(MessageId::Other(7)), true)]);
}

#[test]
fn rows_below_directories_that_left_their_paths_are_invalidated_from_the_top() {
    let fixture = Fixture::new(false);
    let removed = |below: &str, names: &[&str]| Removed {
        id: DirectoryId::FIRST,
        directory: Arc::new(Directory::new(&fixture.root, below.as_bytes())),
        inode: 1,
        known: names.iter().map(|text| (name(text), known(&version(1, 1)))).collect(),
    };
    let tree = fixture.tree();
    let all = [
        removed("a/", &[]),
        removed("a/b/", &["file"]),
        removed("a/c/", &[]),
        removed("d/", &[]),
        removed("d/e/", &[]),
        removed("f/", &["file"]),
        removed("f-g/", &["file"]),
    ];
    fixture.confirmed.removed(&all, &tree);
    assert_eq!(fixture.queued(), ["a/", "f/", "f-g/"].map(invalidated));
}

#[test]
fn with_removals_only_rows_that_nothing_takes_back_are_invalidated_with_their_directories() {
    let fixture = Fixture::new(true);
    let mut tree = fixture.tree();
    tree.get_mut(DirectoryId::FIRST).unwrap().last.insert(name("file"), message(7));
    let removed = |id| Removed {
        id,
        directory: Arc::new(Directory::new(&fixture.root, b"a/")),
        inode: 1,
        known: ["file", "silent"].iter().map(|text| (name(text), known(&version(1, 1)))).collect(),
    };
    fixture.confirmed.removed(&[removed(DirectoryId::FIRST)], &tree);
    assert_eq!(fixture.queued(), [invalidated("a/silent")]);
    let elsewhere = tree.vanished(&tree.roots()[0].clone(), b"b/");
    fixture.confirmed.removed(&[removed(elsewhere)], &tree);
    assert_eq!(fixture.queued(), ["a/file", "a/silent"].map(invalidated));
}

#[test]
fn an_end_names_the_rows_that_may_lag_and_forgets_what_was_only_announced() {
    for orderly in [true, false] {
        let mut fixture = Fixture::new(true);
        fixture.know("file", known(&version(1, 1)));
        fixture.know("lags", known(&version(1, 1)).by_version_only());
        for (directory, known) in [("/a/", known(&version(1, 1))), ("/b/", known(&version(1, 1)).by_version_only())] {
            fixture.confirmed.load_unlisted(directory.as_bytes(), b"file", Loaded { known, last: None });
        }
        fixture.set_last("file", message(7));
        fixture.set_last("announced", Last::announced());
        let lags = fixture.node.directory.absolute(&name("lags"));
        let forgotten = ("announced".into(), Queued::Deletion, false);
        let queued = if orderly { vec![forgotten] } else { vec![] };
        assert_eq!(fixture.end(orderly), (vec![lags, b"/b/file".to_vec()], queued));
    }
    let mut fixture = Fixture::new(false);
    for number in 0..ending::LAGGING_MAX + 2 {
        fixture.know(&format!("lags-{number}"), known(&version(1, 1)).by_version_only());
    }
    assert_eq!(fixture.end(true).0.len(), ending::LAGGING_MAX + 1, "too many to be named");
}

#[test]
fn a_removal_says_what_is_gone_and_once_it_is_confirmed_nothing_is_known() {
    let mut fixture = Fixture::new(true);
    let removal = |fixture: &Fixture, how| Confirmed::removal(&fixture.node, &name("file"), how);
    assert!(removal(&fixture, NameLost::Deleted).is_none());
    fixture.set_last("file", Last::announced());
    assert!(removal(&fixture, NameLost::Deleted).is_none(), "it has had no message");
    fixture.set_last("file", message(7));
    fixture.know("file", known(&version(1, 1)));
    for (how, event) in [(NameLost::Deleted, RemovalType::Delete), (NameLost::Renamed, RemovalType::MovedFrom)] {
        let removal = removal(&fixture, how).unwrap();
        assert_eq!((removal.event, removal.id), (event, Some(7)));
        assert_eq!(removal.last.map(|content| content.size), Some(1));
    }
    fixture.confirmed.confirm_removal(&mut fixture.node, &name("file"));
    assert!(fixture.known("file").is_none() && fixture.last("file").is_none());
    assert_eq!(fixture.queued(), [("file".into(), Queued::Deletion, false)]);
}

#[test]
fn what_is_confirmed_in_a_directory_that_is_not_in_the_tree_leaves_a_void_row() {
    let job = |fixture: &Fixture| fixture.job("file", None, false);
    for removals in [true, false] {
        for id in [Some(5), None] {
            let mut fixture = Fixture::new(removals);
            let (job, read) = (job(&fixture), found(version(1, 1), id));
            fixture.confirmed.confirm_outside(&mut fixture.node, &job, &read);
            assert_eq!(fixture.known("file"), Some(read.known().rowless()));
            assert_eq!(fixture.last("file").is_some(), removals);
            let voided = ("file".into(), Queued::Void(MessageId::Other(5)), true);
            assert_eq!(fixture.queued(), if removals && id.is_some() { vec![voided] } else { vec![] });
        }
    }
    // Unchanged since an earlier message, whose id stays.
    let mut fixture = Fixture::new(true);
    fixture.set_last("file", message(7));
    let job = job(&fixture);
    fixture.confirmed.confirm_without_row(&mut fixture.node, &job, &found(version(1, 1), None));
    assert_eq!(fixture.last("file").and_then(Last::id), Some(7));
    assert!(fixture.queued().is_empty() && fixture.known("file").is_none());
}
