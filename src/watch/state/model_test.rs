//! The books against real directories, a real watch and a real ledger: a tree that changes in any order with the reading
//! of events, look-overs, hand-outs, the readers' answers, restarts and kills. In the end each file's own content has to be
//! the last that was told for its path, and no path may ever be with the readers twice.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ffi::OsString;
use std::fs::{self, File, Permissions};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::sample::Index;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use tempfile::TempDir;

use super::State;
use crate::cli::CatchUp;
use crate::config::WatchSettings;
use crate::error::Error;
use crate::files::errno::Call;
use crate::files::root::Root;
use crate::files::unread::Unread;
use crate::files::version::{Stamp, version_of};
use crate::filter::Filter;
use crate::hash::Digests;
use crate::job::{Job, Outcome, Report};
use crate::ledger::store::{FILE, Store};
use crate::ledger::tests::{crash, wait_until_gone};
use crate::watch::inotify::{Event, Watch};
use crate::watch::tree::Tree;

/// Files for links to lead to.
const TARGETS: [&str; 2] = ["targets/one", "targets/two"];

/// A watch on a data directory, and a directory beside it.
struct Scene {
    top: TempDir,
    /// So far.
    kills: usize,
    watch: Watch,
    state: State,
    now: Instant,
    seen_at: Stamp,
    in_flight: Vec<InFlight>,
    /// By path: what was told last.
    told: BTreeMap<PathBuf, Digests>,
    written: usize,
}

/// A job with the readers, and what they found once they looked.
struct InFlight {
    job: Job,
    found: Option<Outcome>,
}

impl Scene {
    /// On a data directory with nothing but the [`TARGETS`].
    fn new() -> Self {
        let top = tempfile::tempdir().unwrap();
        fs::create_dir_all(top.path().join("data/targets")).unwrap();
        fs::create_dir(top.path().join("beside")).unwrap();
        let (watch, state) = begin(&top, 0);
        let (in_flight, told) = (Vec::new(), BTreeMap::new());
        let (now, seen_at) = (Instant::now(), Stamp::now());
        let mut scene = Self { top, kills: 0, watch, state, now, seen_at, in_flight, told, written: 0 };
        TARGETS.iter().for_each(|path| scene.write(path));
        scene.rest();
        scene
    }

    /// On directories with a file `file` each, which has been told.
    fn with(directories: &[&str]) -> Self {
        let mut scene = Self::new();
        for directory in directories {
            fs::create_dir(scene.path(directory)).unwrap();
            scene.write(&format!("{directory}/file"));
        }
        scene.rest();
        scene
    }

    /// On a new link `one/link` that the readers have read, and not told yet.
    fn with_a_link_that_is_read() -> Self {
        let mut scene = Self::with(&["one"]);
        scene.link(TARGETS[0], "one/link");
        scene.catch_up();
        scene.dispatch(1);
        scene.read(0);
        scene
    }

    fn path(&self, below: &str) -> PathBuf {
        self.top.path().join("data").join(below)
    }

    /// A content like no other, in length too: time stamps may be the same.
    fn write(&mut self, path: &str) {
        self.written += 1;
        let _ = fs::write(self.path(path), vec![b'x'; self.written]);
    }

    /// Opened for writing and closed.
    fn touch(&self, path: &str) {
        drop(File::options().append(true).open(self.path(path)));
    }

    /// Metadata alone.
    fn chmod(&self, path: &str) {
        if let Ok(metadata) = fs::metadata(self.path(path)) {
            let other = if metadata.permissions().readonly() { 0o700 } else { 0o500 };
            fs::set_permissions(self.path(path), Permissions::from_mode(other)).unwrap();
        }
    }

    /// Another content of the same size and mtime: ctime alone shows it, as if it were metadata alone.
    fn disguise(&mut self, path: &str) {
        let path = self.path(path);
        let Some(metadata) = fs::metadata(&path).ok().filter(fs::Metadata::is_file) else { return };
        self.written += 1;
        let notice = b'A' + (self.written % 26) as u8;
        fs::write(&path, vec![notice; metadata.len() as usize]).unwrap();
        File::options().append(true).open(&path).unwrap().set_modified(metadata.modified().unwrap()).unwrap();
    }

    fn exchange(&self, one: &str, other: &str) {
        let _ = renameat_with(CWD, self.path(one), CWD, self.path(other), RenameFlags::EXCHANGE);
    }

    /// Makes a link, or makes one lead elsewhere.
    fn link(&self, target: &str, path: &str) {
        let made = self.top.path().join("beside/link");
        symlink(self.path(target), &made).unwrap();
        let _ = fs::rename(&made, self.path(path)).or_else(|_| fs::remove_file(&made));
    }

    /// The process ends as it is told to, and the next begins.
    fn restart(&mut self) {
        self.settle_all();
        self.state.end(true);
        (self.watch, self.state) = begin(&self.top, self.kills);
    }

    /// The process is killed, and the next begins with what the ledger was. What had been read has been published.
    fn kill(&mut self, meanwhile: impl FnOnce(&Self)) {
        crash(&state_directory(&self.top, self.kills), &state_directory(&self.top, self.kills + 1));
        self.kills += 1;
        for InFlight { job, found } in self.in_flight.drain(..) {
            if let Some(Outcome::Confirmed { digests, .. }) = found {
                self.told.insert(path_of(&job), digests);
            }
        }
        meanwhile(self);
        (self.watch, self.state) = begin(&self.top, self.kills);
    }

    fn read_events(&mut self) {
        let Self { watch, state, now, seen_at, .. } = self;
        while watch.read(|watch_id, event| assert!(state.take(watch_id, event, *seen_at, *now).is_ok())).unwrap() {}
    }

    /// What the kernel has queued is lost.
    fn overflow(&mut self) {
        let mut last = None;
        while self.watch.read(|watch_id, _| last = Some(watch_id)).unwrap() {}
        if let Some(watch_id) = last {
            assert!(self.state.take(watch_id, Event::Overflow, self.seen_at, self.now).is_ok());
        }
    }

    fn rescan(&mut self) {
        self.state.rescan(self.now);
        self.state.tree.end_orphaned(1);
    }

    fn catch_up(&mut self) {
        self.read_events();
        while self.state.may_rescan(self.now) {
            self.rescan();
        }
        self.state.search_names(self.now);
    }

    fn dispatch(&mut self, most: usize) {
        for job in self.state.batch(vec![most], self.now) {
            assert!(
                self.in_flight.iter().all(|other| path_of(&other.job) != path_of(&job)),
                "twice with the readers: {job:?}"
            );
            self.in_flight.push(InFlight { job, found: None });
        }
    }

    /// The readers come to a job.
    fn read(&mut self, at: usize) {
        self.read_across(at, |_| {});
    }

    /// The same, with something that is done for the moment between the look at its directory and the last look at its
    /// name, and is undone when it is done again.
    fn read_across(&mut self, at: usize, something: impl Fn(&Self)) {
        let InFlight { job, found: None } = &self.in_flight[at] else { return };
        let read = || {
            job.within.map_or(Ok(()), |inode| job.directory.confirm(inode))?;
            something(self);
            let read = rustix::fs::stat(path_of(job)).and_then(|stat| {
                let content = fs::read(path_of(job)).map_err(|_| Errno::NOENT)?;
                Ok((version_of(&stat), Digests::of(&content)))
            });
            something(self);
            let (version, digests) = read.map_err(|errno| Unread::of(Call::Stat, errno))?;
            job.admit(&version)?;
            let named = rustix::fs::stat(path_of(job)).map_err(|errno| Unread::of(Call::Stat, errno))?;
            match version_of(&named) == version {
                true if job.is_known(&version, &digests)? => Ok(Outcome::Unchanged { version, racy: false, digests }),
                true => Ok(Outcome::Confirmed { version, racy: false, linked: named.st_nlink > 1, digests }),
                false => Err(Unread::Busy),
            }
        };
        let found = read().unwrap_or_else(Outcome::Unread);
        self.in_flight[at].found = Some(found);
    }

    /// Its end is reported.
    fn settle(&mut self, at: usize) {
        self.read(at);
        let InFlight { job, found } = self.in_flight.swap_remove(at);
        let outcome = found.unwrap();
        if let Outcome::Confirmed { digests, .. } = &outcome {
            self.told.insert(path_of(&job), *digests);
        }
        self.state.complete(Report { job, outcome }, self.now, self.seen_at);
    }

    /// All goes on to its end, with nothing changed any more.
    fn rest(&mut self) {
        loop {
            self.now += Duration::from_secs(60);
            self.catch_up();
            if self.state.pending.is_empty() && self.state.rescan.next_time().is_none() {
                break;
            }
            self.dispatch(100);
            self.settle_all();
        }
    }

    /// What the ledger was told so far stands in it.
    fn write_ledger(&self) {
        let ledger = self.state.confirmed.ledger().unwrap();
        ledger.invalidate(b"/nothing");
        wait_until_gone(ledger, b"/", b"nothing");
    }

    #[track_caller]
    fn assert_told_last(&self, below: &str) {
        let path = self.path(below);
        assert_eq!(self.told[&path], Digests::of(&fs::read(&path).unwrap()));
    }

    fn settle_all(&mut self) {
        while !self.in_flight.is_empty() {
            self.settle(0);
        }
    }
}

/// A process begins: its watch stands, and what the ledger knows is taken over.
fn begin(top: &TempDir, kills: usize) -> (Watch, State) {
    let data = top.path().join("data");
    let root = Arc::new(Root::new(File::open(&data).unwrap().into(), data.as_os_str().as_encoded_bytes()));
    let watch = Watch::new(&[&data]).unwrap();
    let tree = Tree::new([&root].into_iter().zip(watch.roots()), watch.watches().unwrap());
    let settings = WatchSettings {
        recursive: true,
        settle: Duration::ZERO,
        quiet: Duration::ZERO,
        catch_up: CatchUp::Changed,
        rescan: None,
    };
    let mut state = State::new(tree, Filter::default(), &settings, Arc::default());
    state.list_all(Instant::now()).unwrap();
    state.begin(Some(open(&state_directory(top, kills))), CatchUp::Changed).unwrap();
    (watch, state)
}

/// The last process's ledger may not have come to its end: a busy disk takes longer than that waits for it.
fn open(state: &Path) -> Store {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        match Store::open(state) {
            Err(Error::StateLocked { .. }) if Instant::now() < deadline => thread::yield_now(),
            other => return other.unwrap(),
        }
    }
}

/// Where the ledger is: a directory of its own after each kill.
fn state_directory(top: &TempDir, kills: usize) -> PathBuf {
    top.path().join(format!("state-{kills}"))
}

fn path_of(job: &Job) -> PathBuf {
    OsString::from_vec(job.directory.absolute(&job.name)).into()
}

/// The reader came while the other of two directories stood there, and by the time of the events that tell so they had
/// been exchanged again.
#[test]
fn a_file_read_while_another_directory_stood_there_is_read_once_more() {
    let mut scene = Scene::with(&["one", "two"]);
    scene.touch("one/file");
    scene.catch_up();
    scene.dispatch(1);
    scene.read_across(0, |scene| scene.exchange("one", "two"));
    scene.catch_up();
    scene.settle(0);
    scene.dispatch(1);
    assert_eq!(scene.in_flight.iter().map(|it| path_of(&it.job)).collect::<Vec<_>>(), [scene.path("one/file")]);
}

/// The target's path is in flight when another directory comes to stand there, with another file of that name.
#[test]
fn a_link_follows_its_target_when_directories_are_exchanged_while_that_is_in_flight() {
    let mut scene = Scene::with(&["one", "two"]);
    scene.write("two/new");
    scene.rest();
    scene.link("one/new", "link");
    scene.write("one/new");
    scene.catch_up();
    scene.dispatch(2);
    (0..2).for_each(|at| scene.read(at));
    scene.exchange("one", "two");
    scene.catch_up();
    scene.rest();
    scene.assert_told_last("link");
}

#[test]
fn a_link_taken_away_and_made_again_while_in_flight_is_no_news() {
    let mut scene = Scene::with_a_link_that_is_read();
    fs::remove_file(scene.path("one/link")).unwrap();
    scene.link(TARGETS[0], "one/link");
    scene.catch_up();
    scene.settle(0);
    scene.write_ledger(); // the link's row goes first, for it may lead elsewhere
    scene.now += Duration::from_secs(60);
    scene.dispatch(1);
    scene.read(0);
    assert!(matches!(scene.in_flight[0].found, Some(Outcome::Unchanged { .. })), "{:?}", scene.in_flight[0].found);
    // And one that leads elsewhere is.
    scene.settle(0);
    scene.link(TARGETS[1], "one/link");
    scene.rest();
    scene.assert_told_last("one/link");
}

#[test]
fn a_path_in_a_directory_made_anew_waits_for_the_readers_who_have_it() {
    let mut scene = Scene::with(&["one"]);
    scene.write("one/file");
    scene.catch_up();
    scene.dispatch(1);
    fs::rename(scene.path("one"), scene.path("away")).unwrap();
    fs::create_dir(scene.path("one")).unwrap();
    scene.write("one/file");
    scene.catch_up();
    scene.dispatch(100); // looks for it itself
    let paths: Vec<_> = scene.in_flight.iter().map(|it| path_of(&it.job)).collect();
    assert_eq!(paths, ["one/file", "away/file"].map(|path| scene.path(path)));
    scene.rest();
    scene.assert_told_last("one/file");
}

/// Its row is of the directory that stood there at the last run, and stands there again at the next.
#[test]
fn a_file_taken_away_and_made_again_before_the_start_has_looked_is_told_when_its_row_is_gone() {
    let mut scene = Scene::with(&["one", "two"]);
    scene.restart(); // all of it is in the ledger
    scene.kill(|scene| scene.exchange("one", "two"));
    fs::remove_file(scene.path("one/file")).unwrap();
    scene.write("one/file");
    scene.read_events();
    scene.dispatch(100);
    scene.settle_all();
    scene.kill(|scene| scene.exchange("one", "two"));
    scene.rest();
    scene.assert_told_last("one/file");
}

#[test]
fn a_ledger_that_could_not_be_read_does_not_count_at_the_next_start_either() {
    let mut scene = Scene::with(&["one", "two"]);
    scene.restart(); // all of it is in the ledger
    let hidden = |scene: &Scene| state_directory(&scene.top, scene.kills).join("hidden");
    let database = |scene: &Scene| state_directory(&scene.top, scene.kills).join(FILE);
    scene.kill(|scene| {
        scene.exchange("one", "two");
        fs::rename(database(scene), hidden(scene)).unwrap();
        symlink(FILE, database(scene)).unwrap();
    });
    scene.rest();
    scene.kill(|scene| {
        scene.exchange("one", "two");
        fs::rename(hidden(scene), database(scene)).unwrap();
    });
    scene.rest();
    ["one/file", "two/file"].iter().for_each(|path| scene.assert_told_last(path));
}

#[test]
fn what_is_confirmed_of_a_link_when_a_file_has_taken_its_place_is_not_kept() {
    let mut scene = Scene::with_a_link_that_is_read();
    scene.write("new");
    fs::rename(scene.path("new"), scene.path("one/link")).unwrap();
    scene.read_events();
    scene.settle(0);
    scene.write_ledger();
    scene.rest();
    scene.kill(|scene| scene.link(TARGETS[0], "one/link"));
    scene.rest();
    scene.assert_told_last("one/link");
}

#[test]
fn a_link_made_again_while_the_readers_have_it_is_in_the_ledger() {
    let mut scene = Scene::with_a_link_that_is_read();
    scene.link(TARGETS[0], "one/link");
    scene.catch_up();
    scene.rest();
    scene.restart();
    scene.told.clear();
    scene.rest();
    assert_eq!(scene.told, BTreeMap::new());
}

#[test]
fn a_listing_forgets_what_is_gone_and_only_that() {
    let mut scene = Scene::with(&["one"]);
    scene.write("one/gone");
    scene.rest();
    fs::remove_file(scene.path("one/gone")).unwrap();
    scene.write("one/new");
    scene.overflow();
    scene.rest();
    let (_, node) = scene.state.tree.iter().find(|(_, node)| node.directory.below(b"") == b"one/").unwrap();
    assert_eq!(node.known.keys().map(|name| &**name).collect::<BTreeSet<_>>(), BTreeSet::from([&b"file"[..], b"new"]));
    let listed = |name: &[u8]| node.directory.contains(name);
    assert_eq!([&b"file"[..], b"gone", b"new"].map(listed), [true, false, true]);
}

/// Both of these changes leave the file as it was but for its ctime.
#[test]
fn metadata_alone_is_silent_and_the_ledger_follows_it() {
    let mut scene = Scene::with(&["one"]);
    scene.told.clear();
    for restarts in [false, true, true] {
        scene.chmod("one/file");
        if restarts {
            scene.restart();
        } else {
            scene.overflow();
            scene.touch("one/file");
        }
        scene.rest();
        assert_eq!(scene.told, BTreeMap::new());
    }
    // The row has the new ctime: it is silent where the version alone counts, too.
    scene.write_ledger();
    scene.kill(|_| {});
    scene.rest();
    assert_eq!(scene.told, BTreeMap::new());
}

/// Nobody can say what its row is worth, after a kill, but of the others it can be said.
#[test]
fn a_link_that_leads_nowhere_keeps_no_other_row_from_being_relied_on() {
    let mut scene = Scene::with(&["one"]);
    scene.link("one/file", "one/link");
    scene.rest();
    scene.restart(); // all of it is in the ledger
    scene.kill(|scene| fs::rename(scene.path("one/file"), scene.path("one/other")).unwrap());
    scene.rest();
    scene.restart();
    scene.told.clear();
    scene.chmod("one/other");
    scene.restart();
    scene.rest();
    assert_eq!(scene.told, BTreeMap::new());
}

/// What the row shows came back with another ctime, which a lagging row must not be taken for.
#[test]
fn a_file_renamed_back_after_a_kill_is_told_again_though_its_row_lags() {
    let mut scene = Scene::with(&["one"]);
    scene.restart(); // all of it is in the ledger
    scene.rest();
    let away = scene.top.path().join("beside/away");
    fs::rename(scene.path("one/file"), &away).unwrap();
    scene.write("one/file");
    scene.rest();
    scene.kill(|scene| fs::rename(&away, scene.path("one/file")).unwrap());
    scene.rest();
    scene.assert_told_last("one/file");
}

#[test]
fn a_content_of_the_same_size_and_mtime_is_told() {
    let mut scene = Scene::with(&["one"]);
    for (at, restarts) in [false, true, false, true].into_iter().enumerate() {
        scene.disguise("one/file");
        if restarts {
            scene.restart();
        } else if at == 0 {
            scene.overflow();
        }
        scene.rest();
        scene.assert_told_last("one/file");
    }
}

/// What happens. Paths that are not there, or are something else, make it nothing.
#[derive(Debug, Clone)]
enum Deed {
    Make(String),
    Link(&'static str, String),
    HardLink(String, String),
    Write(String),
    Touch(String),
    Rename(String, String),
    Exchange(String, String),
    /// Exchanged, told so, killed, and exchanged again before the next start.
    ThereAndBack(String, String),
    /// The same, the first time while no process runs. `true`: the next hears of their files before it looks them over.
    BehindOurBack(String, String, bool),
    /// Made to lead elsewhere when the readers have it, told so, killed, and made to lead back before the next start.
    Astray(&'static str, &'static str, String),
    /// Metadata alone; `true`: while no process runs.
    Chmod(String, bool),
    /// See [`Scene::disguise`]. The same.
    Disguise(String, bool),
    /// Renamed away, another told, killed, and renamed back before the next start.
    Aside(String),
    /// The same with what metadata alone changes before the kill, in a ledger that was complete.
    AsideTouched(String),
    Remove(String),
    MoveOut(String),
    MoveIn(String),
    Rest,
    Restart,
    Kill,
    ReadEvents,
    Overflow,
    Rescan,
    HandOut(usize),
    Read(Index),
    ReadAcross(String, String, Index),
    Settle(Index),
}

fn path() -> impl Strategy<Value = String> {
    let name = prop::sample::select(vec!["a", "b"]);
    prop::collection::vec(name, 1..=2).prop_map(|names| names.join("/"))
}

fn file() -> impl Strategy<Value = String> {
    (path(), prop::sample::select(vec!["file", "link"])).prop_map(|(directory, name)| format!("{directory}/{name}"))
}

fn target() -> impl Strategy<Value = &'static str> {
    prop::sample::select(TARGETS.to_vec())
}

fn link() -> impl Strategy<Value = String> {
    path().prop_map(|directory| format!("{directory}/link"))
}

fn deed() -> impl Strategy<Value = Deed> {
    let either = || prop_oneof![path(), file()];
    prop_oneof![
        6 => path().prop_map(Deed::Make),
        6 => file().prop_map(Deed::Write),
        3 => target().prop_map(|path| Deed::Write(path.to_owned())),
        2 => file().prop_map(Deed::Touch),
        4 => (either(), either()).prop_map(|(from, to)| Deed::Rename(from, to)),
        4 => (either(), either()).prop_map(|(one, other)| Deed::Exchange(one, other)),
        2 => (either(), either()).prop_map(|(one, other)| Deed::ThereAndBack(one, other)),
        2 => (either(), either(), any::<bool>())
            .prop_map(|(one, other, heard)| Deed::BehindOurBack(one, other, heard)),
        2 => (target(), target(), link()).prop_map(|(one, other, path)| Deed::Astray(one, other, path)),
        3 => (file(), any::<bool>()).prop_map(|(path, down)| Deed::Chmod(path, down)),
        2 => (file(), any::<bool>()).prop_map(|(path, down)| Deed::Disguise(path, down)),
        2 => file().prop_map(Deed::Aside),
        1 => file().prop_map(Deed::AsideTouched),
        2 => either().prop_map(Deed::Remove),
        1 => path().prop_map(Deed::MoveOut),
        1 => path().prop_map(Deed::MoveIn),
        2 => (target(), file()).prop_map(|(target, path)| Deed::Link(target, path)),
        3 => (file(), file()).prop_map(|(from, to)| Deed::HardLink(from, to)),
        2 => Just(Deed::Rest),
        2 => Just(Deed::Restart),
        1 => Just(Deed::Kill),
        4 => Just(Deed::ReadEvents),
        1 => Just(Deed::Overflow),
        4 => Just(Deed::Rescan),
        4 => (1..4usize).prop_map(Deed::HandOut),
        3 => any::<Index>().prop_map(Deed::Read),
        2 => (path(), path(), any::<Index>()).prop_map(|(one, other, at)| Deed::ReadAcross(one, other, at)),
        3 => any::<Index>().prop_map(Deed::Settle),
    ]
}

impl Scene {
    fn aside(&mut self, path: &str) {
        let away = self.top.path().join("beside/away");
        if fs::rename(self.path(path), &away).is_ok() {
            self.write(path);
            self.rest();
            self.kill(|scene| drop(fs::rename(&away, scene.path(path)).or_else(|_| fs::remove_file(&away))));
        }
    }

    fn act(&mut self, deed: &Deed) {
        let beside = self.top.path().join("beside/it");
        let in_flight = self.in_flight.len();
        match deed {
            Deed::Make(path) => drop(fs::create_dir_all(self.path(path))),
            Deed::Write(path) => self.write(path),
            Deed::Touch(path) => self.touch(path),
            Deed::Rename(from, to) => drop(fs::rename(self.path(from), self.path(to))),
            Deed::Exchange(one, other) => self.exchange(one, other),
            Deed::ThereAndBack(one, other) => {
                self.exchange(one, other);
                self.rest();
                self.kill(|scene| scene.exchange(one, other));
            }
            Deed::BehindOurBack(one, other, heard) => {
                self.rest();
                self.restart(); // all of it is in the ledger
                self.kill(|scene| scene.exchange(one, other));
                if *heard {
                    [one, other].iter().for_each(|path| self.touch(&format!("{path}/file")));
                    self.read_events();
                    self.dispatch(100);
                    self.settle_all();
                }
                self.rest();
                self.kill(|scene| scene.exchange(one, other));
            }
            Deed::Astray(one, other, path) => {
                self.link(one, path);
                self.rest();
                self.restart();
                self.catch_up();
                self.dispatch(100);
                self.link(other, path);
                self.settle_all();
                self.kill(|scene| scene.link(one, path));
            }
            Deed::Chmod(path, false) => self.chmod(path),
            Deed::Chmod(path, true) => self.kill(|scene| scene.chmod(path)),
            Deed::Disguise(path, false) => self.disguise(path),
            Deed::Disguise(path, true) => {
                self.settle_all();
                self.state.end(true);
                self.disguise(path);
                (self.watch, self.state) = begin(&self.top, self.kills);
            }
            Deed::Aside(path) => self.aside(path),
            Deed::AsideTouched(path) => {
                self.rest();
                self.restart();
                self.chmod(path);
                self.rest();
                self.chmod(path);
                self.aside(path);
            }
            Deed::Remove(path) => {
                let path = self.path(path);
                let _ = fs::remove_dir_all(&path).or_else(|_| fs::remove_file(&path));
            }
            Deed::MoveOut(path) => drop(fs::rename(self.path(path), beside)),
            Deed::MoveIn(path) => drop(fs::rename(beside, self.path(path))),
            Deed::Link(target, path) => self.link(target, path),
            Deed::HardLink(from, to) => drop(fs::hard_link(self.path(from), self.path(to))),
            Deed::Rest => self.rest(),
            Deed::Restart => self.restart(),
            Deed::Kill => self.kill(|_| {}),
            Deed::ReadEvents => self.read_events(),
            Deed::Overflow => self.overflow(),
            Deed::Rescan => self.rescan(),
            Deed::HandOut(most) => self.dispatch(*most),
            Deed::Read(at) if in_flight > 0 => self.read(at.index(in_flight)),
            Deed::ReadAcross(one, other, at) if in_flight > 0 => {
                self.read_across(at.index(in_flight), |scene| scene.exchange(one, other));
            }
            Deed::Settle(at) if in_flight > 0 => self.settle(at.index(in_flight)),
            Deed::Read(_) | Deed::ReadAcross(..) | Deed::Settle(_) => {}
        }
    }
}

/// The files and the directories below one, itself among them.
fn walk(directory: &Path, files: &mut BTreeMap<PathBuf, Digests>, directories: &mut BTreeSet<PathBuf>) {
    directories.insert(directory.to_owned());
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            walk(&path, files, directories);
        } else {
            files.insert(path.clone(), Digests::of(&fs::read(&path).unwrap()));
        }
    }
}

proptest! {
    #[test]
    fn whatever_becomes_of_a_tree_each_file_that_is_left_is_told_last(deeds in prop::collection::vec(deed(), 1..60)) {
        let mut scene = Scene::with(&["a", "a/a", "b"]);
        TARGETS.iter().zip(["a/link", "b/link"]).for_each(|(target, path)| scene.link(target, path));
        scene.rest();
        scene.restart(); // all of it is in the ledger
        deeds.iter().for_each(|deed| scene.act(deed));
        scene.rest();
        scene.kill(|_| {});
        scene.rest();

        let (mut files, mut directories) = (BTreeMap::new(), BTreeSet::new());
        walk(&scene.path(""), &mut files, &mut directories);
        scene.told.retain(|path, _| files.contains_key(path));
        prop_assert_eq!(&scene.told, &files);

        let directory_of = |prefix: &[u8]| PathBuf::from(str::from_utf8(prefix).unwrap()).components().collect::<PathBuf>();
        let state = &scene.state;
        let held: BTreeSet<PathBuf> = state.tree.iter().map(|(_, node)| directory_of(node.directory.prefix())).collect();
        prop_assert_eq!(&held, &directories.iter().map(|path| path.components().collect()).collect());
        prop_assert_eq!(state.tree.watched(), directories.len());
        let known = state.tree.iter().flat_map(|(_, node)| {
            node.known.keys().map(|name| directory_of(&node.directory.absolute(name)))
        });
        prop_assert_eq!(known.collect::<HashSet<_>>(), files.keys().cloned().collect());
    }
}
