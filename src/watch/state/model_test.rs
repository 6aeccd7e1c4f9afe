//! The state against real directories, a real watch and a real ledger: changes of a tree come in any order with reads of
//! events, rescans, batches, reports, restarts and kills. In the end the content that was published last for each path has to
//! be its file's, and no path may ever have two jobs in flight.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ffi::OsString;
use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
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
use super::start::{self, Begun, Start};
use crate::cli::CatchUp;
use crate::config::WatchSettings;
use crate::error::Error;
use crate::files::errno::Call;
use crate::files::root::Root;
use crate::files::unread::{Unread, Why};
use crate::files::version::{Timestamp, version_of};
use crate::hash::Digests;
use crate::job::{Job, Known, Last, Outcome, Report};
use crate::ledger::store::{FILE, Store};
use crate::ledger::tests::{crash, wait_until_gone};
use crate::message::Content;
use crate::watch::confirmed::{Loaded, ending};
use crate::watch::inotify::{Event, Watch};
use crate::watch::tree::Tree;

mod flat;

/// Files for links to lead to.
const TARGETS: [&str; 2] = ["targets/one", "targets/two"];

/// A watch on a data directory, and a directory beside it.
struct Scene {
    top: TempDir,
    /// How many there have been.
    kills: usize,
    watch: Watch,
    state: State,
    now: Instant,
    seen_at: Timestamp,
    in_flight: Vec<InFlight>,
    /// What was published last, by path. A removal takes the path out.
    published: BTreeMap<PathBuf, Digests>,
    /// `--removals`.
    removals: bool,
    /// `--recursive`.
    recursive: bool,
    written: usize,
    /// A file that has a writer.
    writer: Option<File>,
    /// A writer has closed its file outside of the tree, of which no event tells.
    unseen: bool,
}

/// A job in flight, and what the reader found once it looked.
struct InFlight {
    job: Job,
    found: Option<Outcome>,
}

impl Scene {
    /// Its data directory holds the [`TARGETS`] alone.
    fn new(removals: bool, recursive: bool) -> Self {
        let top = tempfile::tempdir().unwrap();
        fs::create_dir_all(top.path().join("data/targets")).unwrap();
        fs::create_dir(top.path().join("beside")).unwrap();
        let (watch, state) = begin(&top, 0, CatchUp::Changed, removals, recursive);
        let (in_flight, published) = (Vec::new(), BTreeMap::new());
        let (now, seen_at) = (Instant::now(), Timestamp::now());
        let (written, writer, unseen) = (0, None, false);
        let kills = 0;
        let mut scene = Self {
            top,
            kills,
            watch,
            state,
            now,
            seen_at,
            in_flight,
            published,
            removals,
            recursive,
            written,
            writer,
            unseen,
        };
        TARGETS.iter().for_each(|path| scene.write(path));
        scene.rest();
        scene
    }

    /// In each of these directories there is a file `file`, which has been published.
    fn with(directories: &[&str]) -> Self {
        Self::with_or_without_removals(directories, false)
    }

    fn with_removals(directories: &[&str]) -> Self {
        Self::with_or_without_removals(directories, true)
    }

    fn with_or_without_removals(directories: &[&str], removals: bool) -> Self {
        let mut scene = Self::new(removals, true);
        for directory in directories {
            fs::create_dir(scene.path(directory)).unwrap();
            scene.write(&format!("{directory}/file"));
        }
        scene.rest();
        scene
    }

    /// There is a new link `one/link`, which has been read, and not reported yet.
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

    /// Each content is another, and has another length, because time stamps may be the same.
    fn write(&mut self, path: &str) {
        self.written += 1;
        let _ = fs::write(self.path(path), vec![b'x'; self.written]);
    }

    /// Opens a file for writing and closes it.
    fn touch(&self, path: &str) {
        drop(File::options().append(true).open(self.path(path)));
    }

    /// Opens a file for writing, in place of the one that has a writer.
    fn open_writer(&mut self, path: &str) {
        self.close_writer();
        self.writer = File::options().write(true).open(self.path(path)).ok();
    }

    /// The writer writes another content, wherever its file is now.
    fn write_by_writer(&mut self) {
        let Some(file) = &self.writer else { return };
        self.written += 1;
        file.set_len(0).and_then(|()| file.write_all_at(&vec![b'w'; self.written], 0)).unwrap();
    }

    /// Where the file has left the tree, no event tells of the close.
    fn close_writer(&mut self) {
        let Some(file) = self.writer.take() else { return };
        let name = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap();
        self.unseen |= !name.starts_with(self.path(""));
    }

    /// Changes metadata alone.
    fn chmod(&self, path: &str) {
        if let Ok(metadata) = fs::metadata(self.path(path)) {
            let other = if metadata.permissions().readonly() { 0o700 } else { 0o500 };
            fs::set_permissions(self.path(path), Permissions::from_mode(other)).unwrap();
        }
    }

    /// Writes another content of the same size and mtime: ctime alone shows it, as if metadata alone had changed.
    fn disguise(&mut self, path: &str) {
        let path = self.path(path);
        let Some(metadata) = fs::metadata(&path).ok().filter(fs::Metadata::is_file) else { return };
        self.written += 1;
        let letter = b'A' + (self.written % 26) as u8;
        fs::write(&path, vec![letter; metadata.len() as usize]).unwrap();
        File::options().append(true).open(&path).unwrap().set_modified(metadata.modified().unwrap()).unwrap();
    }

    fn exchange(&self, one: &str, other: &str) {
        let _ = renameat_with(CWD, self.path(one), CWD, self.path(other), RenameFlags::EXCHANGE);
    }

    /// Makes a link, or points one elsewhere.
    fn link(&self, target: &str, path: &str) {
        let made = self.top.path().join("beside/link");
        symlink(self.path(target), &made).unwrap();
        let _ = fs::rename(&made, self.path(path)).or_else(|_| fs::remove_file(&made));
    }

    /// The process ends in order, and the next begins.
    fn restart(&mut self) {
        self.restart_with(CatchUp::Changed, |_| {});
    }

    fn restart_with(&mut self, catch_up: CatchUp, meanwhile: impl FnOnce(&mut Self)) {
        self.complete_all();
        let ledger = self.state.confirmed.ledger().unwrap();
        ending::end(&ledger, self.state.end(true), true);
        meanwhile(self);
        (self.watch, self.state) = begin(&self.top, self.kills, catch_up, self.removals, self.recursive);
    }

    /// The process is killed, and the next begins with the ledger as it was on disk. What had been read has been published.
    fn kill(&mut self, meanwhile: impl FnOnce(&Self)) {
        crash(&state_directory(&self.top, self.kills), &state_directory(&self.top, self.kills + 1));
        self.kills += 1;
        for InFlight { job, found } in self.in_flight.drain(..) {
            found.iter().for_each(|outcome| publish(&mut self.published, &job, outcome));
        }
        meanwhile(self);
        (self.watch, self.state) = begin(&self.top, self.kills, CatchUp::Changed, self.removals, self.recursive);
    }

    fn read_events(&mut self) {
        let Self { watch, state, now, seen_at, .. } = self;
        while watch.read(|watch_id, event| assert!(state.take(watch_id, event, *seen_at, *now).is_ok())).unwrap() {}
    }

    /// The kernel's queued events are lost.
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
                "two jobs of one path in flight: {job:?}"
            );
            self.in_flight.push(InFlight { job, found: None });
        }
    }

    /// A reader comes to a job.
    fn read(&mut self, at: usize) {
        self.read_across(at, |_| {});
    }

    /// A reader comes to a job. `something` is done between its look at the directory and its last look at the name, and is
    /// undone because it is done again.
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
                true => Ok(Outcome::Confirmed { id: 1, version, racy: false, linked: named.st_nlink > 1, digests }),
                false => Err(Unread::Busy(Why::Changed)),
            }
        };
        let found = read().unwrap_or_else(|unread| match &job.removal {
            Some(_) if unread.says_no_file() => Outcome::Removed,
            _ => Outcome::Unread(unread),
        });
        self.in_flight[at].found = Some(found);
    }

    /// A job is reported.
    fn complete(&mut self, at: usize) {
        self.read(at);
        let InFlight { job, found } = self.in_flight.swap_remove(at);
        let outcome = found.unwrap();
        publish(&mut self.published, &job, &outcome);
        self.state.complete(Report { job, outcome }, self.now, self.seen_at);
    }

    /// Everything that is due is done, while nothing changes any more.
    fn rest(&mut self) {
        loop {
            self.now += Duration::from_secs(60);
            self.catch_up();
            if self.state.pending.is_empty() && self.state.rescan.next_time().is_none() {
                break;
            }
            self.dispatch(100);
            if self.in_flight.is_empty() {
                thread::yield_now(); // the ledger's thread has rows to write first
            }
            self.complete_all();
        }
    }

    /// Every row so far is on disk.
    fn write_ledger(&self) {
        let ledger = self.state.confirmed.ledger().unwrap();
        ledger.invalidate(b"/nothing");
        wait_until_gone(&ledger, b"/", b"nothing");
    }

    /// A kill publishes nothing again.
    #[track_caller]
    fn assert_in_ledger(&mut self) {
        self.write_ledger();
        self.published.clear();
        self.kill(|_| {});
        self.rest();
        assert_eq!(self.published, BTreeMap::new());
    }

    #[track_caller]
    fn assert_published_last(&self, below: &str) {
        let path = self.path(below);
        assert_eq!(self.published[&path], Digests::of(&fs::read(&path).unwrap()));
    }

    fn complete_all(&mut self) {
        while !self.in_flight.is_empty() {
            self.complete(0);
        }
    }
}

/// The message of a job reaches its consumers.
fn publish(published: &mut BTreeMap<PathBuf, Digests>, job: &Job, outcome: &Outcome) {
    match outcome {
        Outcome::Confirmed { digests, .. } => drop(published.insert(path_of(job), *digests)),
        Outcome::Removed => drop(published.remove(&path_of(job))),
        _ => {}
    }
}

/// A process begins: its watch is set up, and the ledger is loaded.
fn begin(top: &TempDir, kills: usize, catch_up: CatchUp, removals: bool, recursive: bool) -> (Watch, State) {
    let data = top.path().join("data");
    let root = Arc::new(Root::new(File::open(&data).unwrap().into(), data.as_os_str().as_encoded_bytes()));
    let watch = Watch::new(&[&data]).unwrap();
    let tree = Tree::new([(&root, Some(watch.roots()[0]))], watch.watches().unwrap());
    let settings =
        WatchSettings { recursive, settle: Duration::ZERO, quiet: Duration::ZERO, catch_up, rescan: None, removals };
    let state = State::new(tree, Arc::default(), &settings, Arc::default(), Arc::default());
    let begun = state.begin(true, catch_up, Instant::now()).and_then(Begun::complete).unwrap();
    let store = open(&state_directory(top, kills));
    let (_, starts) = start::begin(vec![Some(begun)], &[root], Some(store), catch_up, &Arc::default()).unwrap();
    let Ok([Start::Now(state)]) = <[Start; 1]>::try_from(starts) else { panic!("one volume, which is listed") };
    (watch, *state)
}

/// Waits for the last process's ledger, whose thread may still write: a busy disk can take longer than its drop waits.
fn open(state: &Path) -> Store {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        match Store::open(state) {
            Err(Error::StateLocked { .. }) if Instant::now() < deadline => thread::yield_now(),
            other => return other.unwrap(),
        }
    }
}

/// The ledger is in another directory after each kill.
fn state_directory(top: &TempDir, kills: usize) -> PathBuf {
    top.path().join(format!("state-{kills}"))
}

fn path_of(job: &Job) -> PathBuf {
    OsString::from_vec(job.directory.absolute(&job.name)).into()
}

/// The reader came while the other of two directories was at the path. When the events of that were read, the directories had
/// been exchanged again.
#[test]
fn a_file_read_while_another_directory_was_at_the_path_is_read_once_more() {
    let mut scene = Scene::with(&["one", "two"]);
    scene.touch("one/file");
    scene.catch_up();
    scene.dispatch(1);
    scene.read_across(0, |scene| scene.exchange("one", "two"));
    scene.catch_up();
    scene.complete(0);
    scene.dispatch(1);
    assert_eq!(scene.in_flight.iter().map(|it| path_of(&it.job)).collect::<Vec<_>>(), [scene.path("one/file")]);
}

/// A file that could not be read for a moment, for example, is compared again long after the start.
#[test]
fn catch_up_all_publishes_what_earlier_runs_have_published_and_that_once() {
    let mut scene = Scene::with(&["one"]);
    scene.restart_with(CatchUp::All, |_| {});
    scene.catch_up();
    scene.dispatch(10);
    let file = scene.path("one/file");
    let job = scene.in_flight.iter().map(|it| &it.job).find(|job| path_of(job) == file).expect("it is published again");
    let (id, name) = (job.directory.id(), job.name.clone());
    scene.complete_all();
    scene.state.rescan.compare_later(id, vec![name], crate::watch::tree::Origin::Found);
    scene.catch_up();
    scene.dispatch(10);
    assert_eq!(scene.in_flight.len(), 0, "{:?}", scene.in_flight.first().map(|it| path_of(&it.job)));
}

/// The target is in flight when another directory comes to its path, with another file of that name.
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
    scene.assert_published_last("link");
}

/// The chain has its last link later than its first.
#[test]
fn a_link_through_a_link_follows_the_end_of_the_chain() {
    let mut scene = Scene::with(&["one"]);
    scene.link("one/middle", "link");
    scene.rest();
    scene.link("one/end", "one/middle");
    scene.rest();
    scene.write("one/end");
    scene.rest();
    scene.assert_published_last("link");
    fs::remove_file(scene.path("one/middle")).unwrap();
    scene.write("one/middle");
    scene.rest();
    scene.write("one/middle");
    scene.rest();
    scene.assert_published_last("link");
}

/// Its file is written under its other name, which is published first.
#[test]
fn a_name_in_flight_while_its_file_is_written_by_another_name_is_read_again() {
    let mut scene = Scene::with(&["one"]);
    scene.write("one/a");
    fs::hard_link(scene.path("one/a"), scene.path("one/b")).unwrap();
    scene.now += Duration::from_secs(60);
    scene.catch_up();
    scene.dispatch(2);
    (0..2).for_each(|at| scene.read(at));
    scene.write("one/a");
    scene.catch_up();
    let at =
        |scene: &Scene, name: &str| scene.in_flight.iter().position(|it| path_of(&it.job) == scene.path(name)).unwrap();
    scene.complete(at(&scene, "one/a"));
    scene.dispatch(1);
    scene.complete(at(&scene, "one/a"));
    scene.complete(at(&scene, "one/b"));
    scene.rest();
    scene.assert_published_last("one/b");
}

#[test]
fn a_link_taken_away_and_made_again_while_in_flight_is_no_news() {
    let mut scene = Scene::with_a_link_that_is_read();
    fs::remove_file(scene.path("one/link")).unwrap();
    scene.link(TARGETS[0], "one/link");
    scene.catch_up();
    scene.complete(0);
    scene.write_ledger(); // the link's row goes first, because the link may lead elsewhere
    scene.now += Duration::from_secs(60);
    scene.dispatch(1);
    scene.read(0);
    assert!(matches!(scene.in_flight[0].found, Some(Outcome::Unchanged { .. })), "{:?}", scene.in_flight[0].found);
    // A link that leads elsewhere is news.
    scene.complete(0);
    scene.link(TARGETS[1], "one/link");
    scene.rest();
    scene.assert_published_last("one/link");
}

#[test]
fn a_path_in_a_directory_made_anew_waits_for_its_job_in_flight() {
    let mut scene = Scene::with(&["one"]);
    scene.write("one/file");
    scene.catch_up();
    scene.dispatch(1);
    fs::rename(scene.path("one"), scene.path("away")).unwrap();
    fs::create_dir(scene.path("one")).unwrap();
    scene.write("one/file");
    scene.catch_up();
    scene.dispatch(100); // lists the directory itself
    let paths: Vec<_> = scene.in_flight.iter().map(|it| path_of(&it.job)).collect();
    assert_eq!(paths, ["one/file", "away/file"].map(|path| scene.path(path)));
    scene.rest();
    scene.assert_published_last("one/file");
}

/// The row describes a file of the directory that was at the path at the last run, and is again at the next.
#[test]
fn a_file_taken_away_and_made_again_before_the_start_has_compared_it_is_published_once_its_row_is_gone() {
    let mut scene = Scene::with(&["one", "two"]);
    scene.restart(); // all of it is in the ledger
    scene.kill(|scene| scene.exchange("one", "two"));
    fs::remove_file(scene.path("one/file")).unwrap();
    scene.write("one/file");
    scene.read_events();
    scene.dispatch(100);
    scene.complete_all();
    scene.kill(|scene| scene.exchange("one", "two"));
    scene.rest();
    scene.assert_published_last("one/file");
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
    ["one/file", "two/file"].iter().for_each(|path| scene.assert_published_last(path));
}

#[test]
fn what_is_confirmed_for_a_link_when_a_file_has_replaced_it_is_not_kept() {
    let mut scene = Scene::with_a_link_that_is_read();
    scene.write("new");
    fs::rename(scene.path("new"), scene.path("one/link")).unwrap();
    scene.read_events();
    scene.complete(0);
    scene.write_ledger();
    scene.rest();
    scene.kill(|scene| scene.link(TARGETS[0], "one/link"));
    scene.rest();
    scene.assert_published_last("one/link");
}

#[test]
fn a_link_made_again_while_in_flight_is_in_the_ledger() {
    let mut scene = Scene::with_a_link_that_is_read();
    scene.link(TARGETS[0], "one/link");
    scene.catch_up();
    scene.rest();
    scene.restart();
    scene.published.clear();
    scene.rest();
    assert_eq!(scene.published, BTreeMap::new());
}

/// The reader finds the file that has replaced the link, and is confirmed while the event of that waits. So the ledger gets
/// its row when the event's job finds the file unchanged.
#[test]
fn a_file_in_the_place_of_a_link_is_in_the_ledger() {
    let mut scene = Scene::with(&["one"]);
    scene.link(TARGETS[0], "one/link");
    scene.catch_up();
    scene.dispatch(1);
    scene.write("new");
    fs::rename(scene.path("new"), scene.path("one/link")).unwrap();
    scene.read(0);
    scene.read_events();
    scene.complete(0);
    scene.rest();
    scene.assert_in_ledger();
}

/// The events are lost by which another directory came to the path, and with it the one below that is still the same.
#[test]
fn a_rescan_publishes_nothing_again_where_the_directory_above_is_another() {
    let mut scene = Scene::with(&["one", "one/sub"]);
    scene.published.clear();
    let beside = |name: &str| scene.top.path().join("beside").join(name);
    fs::create_dir(beside("other")).unwrap();
    fs::rename(scene.path("one/sub"), beside("other/sub")).unwrap();
    fs::rename(scene.path("one"), beside("one")).unwrap();
    fs::rename(beside("other"), scene.path("one")).unwrap();
    scene.overflow();
    scene.rest();
    assert_eq!(scene.published, BTreeMap::new());
    // The rows of the directory that was replaced are deleted, and that of the file is written again.
    scene.assert_in_ledger();
}

/// The same with `--removals`: the directory that is still there has nothing taken back, also where readers come while the
/// rescan has not come to it, and one that is gone has.
#[test]
fn a_rescan_takes_back_what_is_gone_with_the_directory_above_and_only_that() {
    for stays in [true, false] {
        let mut scene = Scene::with_removals(&["one", "one/sub"]);
        scene.published.clear();
        let beside = |name: &str| scene.top.path().join("beside").join(name);
        fs::create_dir(beside("other")).unwrap();
        if stays {
            fs::rename(scene.path("one/sub"), beside("other/sub")).unwrap();
        }
        fs::rename(scene.path("one"), beside("one")).unwrap();
        fs::rename(beside("other"), scene.path("one")).unwrap();
        scene.overflow();
        let sub = scene.path("one/sub/file");
        scene.published.insert(sub.clone(), Digests::of(b"before"));
        scene.published.insert(scene.path("one/file"), Digests::of(b"before"));
        scene.rest();
        let left = stays.then(|| (sub, Digests::of(b"before")));
        assert_eq!(scene.published, left.into_iter().collect());
        assert_eq!(scene.state.tree.draining().count(), 0);
        scene.write_ledger();
        scene.kill(|_| {});
        scene.rest();
        assert_eq!(scene.published.len(), usize::from(stays));
    }
}

/// The directory `one/shut` could not be entered at the start, and the ledger has a row of a `file` in each of these.
fn with_rows_of_a_directory_that_is_shut(below: &[&str]) -> Scene {
    let mut scene = Scene::with_removals(&["one"]);
    let last = Last::new(&Content { digests: Digests::of(b"before"), size: 6 }, Some(7));
    for below in below {
        let directory = scene.path(below);
        let prefix = directory.as_os_str().as_encoded_bytes();
        let loaded = Loaded { known: Known::PUBLISHED, last: Some(last) };
        scene.state.confirmed.load_unlisted(prefix, b"file", loaded);
        scene.published.insert(directory.join("file"), Digests::of(b"before"));
    }
    scene
}

/// The sub-directories went before the directory could be entered: no event and no row of the tree names them.
#[test]
fn what_had_a_message_below_a_directory_that_was_shut_is_taken_back_once_that_is_entered() {
    let rows = ["one/shut/", "one/shut/gone/", "one/shut/gone/deep/", "one/shut/there/", "one/shut/there/gone/"];
    let mut scene = with_rows_of_a_directory_that_is_shut(&rows);
    fs::create_dir_all(scene.path("one/shut/there")).unwrap();
    scene.write("one/shut/gone"); // a file now
    scene.rest();
    assert_eq!(scene.left(), ["one/file", "one/shut/gone"]);
    assert_eq!(scene.state.tree.draining().count(), 0);
}

/// A directory that could not be entered at the start goes before it can be.
#[test]
fn what_had_a_message_in_a_directory_that_was_never_entered_is_taken_back_when_that_goes() {
    let mut scene = with_rows_of_a_directory_that_is_shut(&["one/shut/", "one/shut/deep/"]);
    fs::create_dir(scene.path("one/shut")).unwrap();
    fs::remove_dir(scene.path("one/shut")).unwrap();
    scene.rest();
    assert_eq!(scene.left(), ["one/file"]);
    assert_eq!(scene.state.tree.draining().count(), 0);
}

/// A directory that left its path for another one in the tree while events were lost has its removals.
#[test]
fn a_rescan_takes_back_what_was_at_the_former_path_of_a_directory() {
    let mut scene = Scene::with_removals(&["one", "one/sub", "two"]);
    let beside = scene.top.path().join("beside/one");
    fs::rename(scene.path("one/sub"), scene.path("two/sub")).unwrap();
    fs::rename(scene.path("one"), beside).unwrap();
    fs::create_dir(scene.path("one")).unwrap();
    scene.overflow();
    scene.rest();
    assert_eq!(scene.left(), ["two/file", "two/sub/file"]);
    assert_eq!(scene.state.tree.draining().count(), 0);
}

/// What was published last is what the next process takes back, after an orderly end too.
#[test]
fn a_message_confirmed_after_its_file_went_is_the_one_that_is_taken_back() {
    let mut scene = Scene::with_removals(&["one"]);
    scene.write("one/file");
    scene.catch_up();
    while scene.in_flight.is_empty() {
        scene.now += Duration::from_secs(60);
        scene.dispatch(1);
    }
    scene.read(0);
    fs::remove_file(scene.path("one/file")).unwrap();
    scene.catch_up();
    let last = scene.published.clone();
    scene.restart();
    assert_ne!(scene.published, last);
    scene.now += Duration::from_secs(60);
    scene.catch_up();
    while scene.in_flight.is_empty() {
        scene.now += Duration::from_secs(60);
        scene.dispatch(1);
    }
    let removal = scene.in_flight[0].job.removal.clone().unwrap();
    assert_eq!(removal.last.unwrap().digests, scene.published[&scene.path("one/file")]);
    scene.rest();
    assert!(scene.left().is_empty());
}

#[test]
fn a_rescan_publishes_what_came_back_from_elsewhere_in_the_tree() {
    let mut scene = Scene::with(&["one"]);
    fs::rename(scene.path("one"), scene.path("two")).unwrap();
    scene.rest();
    scene.published.clear();
    fs::rename(scene.path("two"), scene.path("one")).unwrap();
    scene.overflow();
    scene.rest();
    scene.assert_published_last("one/file");
}

/// A rescan asks for a link again while it is in flight, and the process ends in order before that is done.
#[test]
fn what_is_in_flight_at_an_orderly_end_while_its_next_event_waits_is_in_the_ledger() {
    let mut scene = Scene::with_a_link_that_is_read();
    scene.touch(TARGETS[0]);
    scene.read_events();
    scene.restart();
    scene.published.clear();
    scene.rest();
    assert_eq!(scene.published, BTreeMap::new());
}

/// The same, where the link was confirmed before, and the process is killed.
#[test]
fn a_link_found_unchanged_while_its_next_event_waits_stays_in_the_ledger() {
    let mut scene = Scene::with(&["one"]);
    scene.link(TARGETS[0], "one/link");
    scene.rest();
    scene.touch(TARGETS[0]);
    scene.catch_up();
    scene.dispatch(100);
    scene.touch(TARGETS[0]);
    scene.catch_up();
    scene.complete_all();
    scene.assert_in_ledger();
}

/// The file is written by one of its names, which another file takes before it is read: no event names the other.
#[test]
fn what_was_written_by_a_name_that_the_file_has_lost_is_published_by_the_other() {
    for in_flight in [false, true] {
        let mut scene = Scene::with(&["one"]);
        fs::hard_link(scene.path("one/file"), scene.path("one/other")).unwrap();
        if in_flight {
            scene.catch_up();
            scene.dispatch(100);
            (0..scene.in_flight.len()).for_each(|at| scene.read(at));
        } else {
            scene.rest();
        }
        scene.write("one/file");
        scene.write("new");
        fs::rename(scene.path("new"), scene.path("one/file")).unwrap();
        scene.catch_up();
        scene.complete_all();
        scene.rest();
        ["one/file", "one/other"].iter().for_each(|path| scene.assert_published_last(path));
    }
}

/// The directory is back at its path, and its event is still to be read: the file there is published once, and not again and
/// again until then.
#[test]
fn a_file_that_is_found_where_a_removal_was_due_outside_of_the_tree_is_published_once() {
    let mut scene = Scene::with_removals(&["one"]);
    fs::rename(scene.path("one"), scene.path("../beside/one")).unwrap();
    scene.catch_up();
    fs::rename(scene.path("../beside/one"), scene.path("one")).unwrap();
    let mut read = 0;
    for _ in 0..20 {
        scene.write_ledger();
        scene.now += Duration::from_secs(1);
        scene.dispatch(1);
        read += scene.in_flight.len();
        scene.complete_all();
    }
    assert_eq!(read, 1);
    scene.rest();
    scene.assert_published_last("one/file");
    fs::remove_file(scene.path("one/file")).unwrap();
    scene.rest();
    assert!(!scene.published.contains_key(&scene.path("one/file")));
}

/// The removal of the file before was on its way, and was due once more for the one after.
#[test]
fn a_file_that_a_rescan_finds_while_its_paths_removal_is_in_flight_is_published() {
    for waits in [false, true] {
        let mut scene = Scene::with_removals(&["one"]);
        fs::remove_file(scene.path("one/file")).unwrap();
        scene.catch_up();
        scene.write_ledger();
        scene.now += Duration::from_secs(60);
        scene.dispatch(1);
        scene.write_ledger();
        scene.now += Duration::from_secs(60);
        scene.dispatch(1);
        scene.read(0);
        scene.write("one/file");
        fs::remove_file(scene.path("one/file")).unwrap();
        scene.read_events();
        if waits {
            scene.complete(0);
        }
        scene.write("one/file");
        scene.overflow();
        scene.rescan();
        scene.catch_up();
        scene.complete_all();
        scene.rest();
        scene.assert_published_last("one/file");
    }
}

/// The file is written by a name that it has lost before that was looked at, so that nothing tells which file was closed.
#[test]
fn what_is_written_by_a_name_that_was_lost_unseen_is_published_by_the_other() {
    for deleted in [false, true] {
        let mut scene = Scene::with(&["one"]);
        scene.write("new");
        scene.rest();
        fs::hard_link(scene.path("one/file"), scene.path("one/other")).unwrap();
        let mut writer = File::options().append(true).open(scene.path("one/other")).unwrap();
        if deleted {
            fs::remove_file(scene.path("one/other")).unwrap();
        } else {
            fs::rename(scene.path("new"), scene.path("one/other")).unwrap();
        }
        scene.rest();
        writer.write_all(b"more").unwrap();
        drop(writer);
        scene.rest();
        scene.assert_published_last("one/file");
    }
}

/// A temporary file that is closed before it is deleted, or renamed, needs no rescan, however often.
#[test]
fn temporary_files_ask_for_no_rescan() {
    let mut scene = Scene::with(&["one"]);
    for late in [false, true] {
        for _ in 0..3 {
            scene.write("one/temporary");
            if !late {
                scene.rest();
            }
            fs::remove_file(scene.path("one/temporary")).unwrap();
            scene.write("one/temporary");
            fs::rename(scene.path("one/temporary"), scene.path("one/file")).unwrap();
            scene.read_events();
            assert!(!scene.state.rescan.is_needed());
            scene.rest();
        }
    }
}

/// A reader came while another file had the name, and its message went out. The file that is there again is the one that was
/// published before that.
#[test]
fn a_file_that_is_back_is_published_after_the_one_that_was_there_meanwhile() {
    let mut scene = Scene::with(&["one"]);
    let kept = scene.top.path().join("beside/kept");
    fs::hard_link(scene.path("one/file"), &kept).unwrap();
    scene.touch("one/file");
    scene.catch_up();
    scene.dispatch(1);
    let version = version_of(&rustix::fs::stat(scene.path("targets")).unwrap());
    let digests = Digests::of(b"another content");
    scene.in_flight[0].found = Some(Outcome::Confirmed { id: 1, version, racy: false, linked: false, digests });
    fs::remove_file(scene.path("one/file")).unwrap();
    fs::hard_link(&kept, scene.path("one/file")).unwrap();
    scene.catch_up();
    scene.complete(0);
    scene.rest();
    scene.assert_published_last("one/file");
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

/// Both of these changes change nothing of the file but its ctime.
#[test]
fn metadata_alone_is_silent_and_the_ledger_follows_it() {
    let mut scene = Scene::with(&["one"]);
    scene.published.clear();
    for restarts in [false, true, true] {
        scene.chmod("one/file");
        if restarts {
            scene.restart();
        } else {
            scene.overflow();
            scene.touch("one/file");
        }
        scene.rest();
        assert_eq!(scene.published, BTreeMap::new());
    }
    // The row has the new ctime: nothing is published where the version alone counts either.
    scene.assert_in_ledger();
}

/// After a kill nobody can say what the link's row is worth; but each other row can be compared.
#[test]
fn a_link_that_leads_nowhere_keeps_no_other_row_from_being_relied_on() {
    let mut scene = Scene::with(&["one"]);
    scene.link("one/file", "one/link");
    scene.rest();
    scene.restart(); // all of it is in the ledger
    scene.kill(|scene| fs::rename(scene.path("one/file"), scene.path("one/other")).unwrap());
    scene.rest();
    scene.restart();
    scene.published.clear();
    scene.chmod("one/other");
    scene.restart();
    scene.rest();
    assert_eq!(scene.published, BTreeMap::new());
}

/// The version that the row describes came back with another ctime. Its content alone must not decide, because the row lags.
#[test]
fn a_file_renamed_back_after_a_kill_is_published_again_though_its_row_lags() {
    let mut scene = Scene::with(&["one"]);
    scene.restart(); // all of it is in the ledger
    scene.rest();
    let away = scene.top.path().join("beside/away");
    fs::rename(scene.path("one/file"), &away).unwrap();
    scene.write("one/file");
    scene.rest();
    scene.kill(|scene| fs::rename(&away, scene.path("one/file")).unwrap());
    scene.rest();
    scene.assert_published_last("one/file");
}

#[test]
fn a_content_of_the_same_size_and_mtime_is_published() {
    let mut scene = Scene::with(&["one"]);
    for (at, restarts) in [false, true, false, true].into_iter().enumerate() {
        scene.disguise("one/file");
        if restarts {
            scene.restart();
        } else if at == 0 {
            scene.overflow();
        }
        scene.rest();
        scene.assert_published_last("one/file");
    }
}

#[test]
fn a_start_without_catch_up_publishes_nothing_and_deletes_or_replaces_the_rows_of_earlier_versions() {
    let mut scene = Scene::with(&["one"]);
    for catch_up in [CatchUp::Baseline, CatchUp::None] {
        scene.published.clear();
        scene.restart_with(catch_up, |scene| {
            scene.write("one/file");
            scene.write("one/new");
        });
        scene.rest();
        assert_eq!(scene.published, BTreeMap::new());
        scene.restart();
        scene.rest();
        if catch_up == CatchUp::Baseline {
            assert_eq!(scene.published, BTreeMap::new());
        } else {
            ["one/file", "one/new"].iter().for_each(|path| scene.assert_published_last(path));
        }
    }
}

impl Scene {
    /// The paths below the data directory whose last message is one of a file.
    fn left(&self) -> Vec<String> {
        let below = |path: &PathBuf| path.strip_prefix(self.path("")).unwrap().to_str().unwrap().to_owned();
        self.published.keys().map(below).filter(|path| !path.starts_with("targets/")).collect()
    }
}

#[test]
fn what_is_deleted_renamed_or_moved_away_with_its_directory_is_taken_back() {
    let mut scene = Scene::with_removals(&["one", "two", "two/deep", "three"]);
    scene.write("one/other");
    scene.rest();
    fs::remove_file(scene.path("one/file")).unwrap();
    fs::rename(scene.path("one/other"), scene.path("one/renamed")).unwrap();
    fs::rename(scene.path("two"), scene.top.path().join("beside/two")).unwrap();
    fs::remove_dir_all(scene.path("three")).unwrap();
    scene.rest();
    assert_eq!(scene.left(), ["one/renamed"]);
    fs::rename(scene.top.path().join("beside/two"), scene.path("two")).unwrap();
    scene.rest();
    assert_eq!(scene.left(), ["one/renamed", "two/deep/file", "two/file"]);
    assert_eq!(scene.state.tree.draining().count(), 0);
}

#[test]
fn what_vanished_while_no_process_ran_is_taken_back() {
    for (catch_up, kill) in [(CatchUp::Changed, false), (CatchUp::Changed, true), (CatchUp::None, false)] {
        let mut scene = Scene::with_removals(&["one", "two", "two/deep"]);
        let vanish = |scene: &Scene| {
            fs::remove_file(scene.path("one/file")).unwrap();
            fs::rename(scene.path("two"), scene.top.path().join("beside/two")).unwrap();
        };
        if kill {
            scene.write_ledger();
            scene.kill(vanish);
        } else {
            scene.restart_with(catch_up, |scene| vanish(scene));
        }
        scene.rest();
        assert!(scene.left().is_empty(), "{:?}", scene.left());
        scene.kill(|_| {});
        scene.rest();
        assert!(scene.left().is_empty() && scene.state.tree.draining().count() == 0);
    }
}

/// The broker may have got the message, and the ledger has no row of it yet.
#[test]
fn what_was_published_just_before_a_kill_and_is_gone_is_taken_back() {
    let mut scene = Scene::with_removals(&["one"]);
    scene.write("one/new");
    scene.catch_up();
    while scene.in_flight.is_empty() {
        scene.now += Duration::from_secs(60);
        scene.dispatch(1);
    }
    scene.read(0);
    scene.kill(|scene| fs::remove_file(scene.path("one/new")).unwrap());
    assert_eq!(scene.left(), ["one/file", "one/new"]);
    scene.rest();
    assert_eq!(scene.left(), ["one/file"]);
}

/// A rename changes no version of a directory's files.
#[test]
fn a_directory_that_comes_back_after_a_kill_has_its_files_published_again() {
    let mut scene = Scene::with_removals(&["one"]);
    scene.write_ledger();
    let beside = scene.top.path().join("beside/one");
    fs::rename(scene.path("one"), &beside).unwrap();
    scene.catch_up();
    while scene.in_flight.is_empty() {
        scene.now += Duration::from_secs(60);
        scene.catch_up();
        scene.dispatch(1);
    }
    scene.read(0);
    scene.kill(|scene| fs::rename(&beside, scene.path("one")).unwrap());
    assert!(scene.left().is_empty());
    scene.rest();
    scene.assert_published_last("one/file");
}

#[test]
fn a_file_that_comes_back_is_published_last_and_one_that_is_never_published_is_not_taken_back() {
    let mut scene = Scene::with_removals(&["one"]);
    for waits in [true, false] {
        fs::remove_file(scene.path("one/file")).unwrap();
        scene.catch_up();
        while !waits && scene.in_flight.is_empty() {
            scene.now += Duration::from_secs(60);
            scene.dispatch(1);
        }
        scene.write("one/file");
        scene.rest();
        scene.assert_published_last("one/file");
    }
    scene.published.clear();
    scene.write("one/never");
    scene.catch_up();
    fs::remove_file(scene.path("one/never")).unwrap();
    scene.rest();
    scene.kill(|_| {});
    scene.dispatch(1);
    assert!(scene.in_flight.is_empty());
    let known = scene.state.tree.iter().map(|(_, node)| node.last.len()).sum::<usize>();
    assert_eq!(known, 1 + TARGETS.len());
}

#[test]
fn a_link_that_leads_nowhere_is_taken_back_until_it_leads_somewhere() {
    let mut scene = Scene::with_removals(&["one"]);
    scene.link("one/file", "link");
    scene.rest();
    assert_eq!(scene.left(), ["link", "one/file"]);
    fs::remove_file(scene.path("one/file")).unwrap();
    scene.rest();
    assert!(scene.left().is_empty(), "{:?}", scene.left());
    scene.write("one/file");
    scene.rest();
    ["link", "one/file"].iter().for_each(|path| scene.assert_published_last(path));
}

#[test]
fn removals_that_find_no_room_are_found_by_the_rescan() {
    let mut scene = Scene::with_removals(&["one", "two"]);
    fs::remove_file(scene.path("one/file")).unwrap();
    fs::rename(scene.path("two"), scene.top.path().join("beside/two")).unwrap();
    scene.overflow();
    scene.state.pending.drop_waiting();
    scene.rest();
    assert!(scene.left().is_empty(), "{:?}", scene.left());
}

/// A step. It does nothing where a path is not there, or is something else.
#[derive(Debug, Clone)]
enum Step {
    Make(String),
    Link(&'static str, String),
    HardLink(String, String),
    /// A complete file gets this name, which no close follows.
    LinkIn(String),
    Write(String),
    Touch(String),
    OpenWriter(String),
    WriteByWriter,
    CloseWriter,
    Rename(String, String),
    Exchange(String, String),
    /// The paths are exchanged, all is published, the process is killed, and they are exchanged again before the next start.
    ThereAndBack(String, String),
    /// As `ThereAndBack`, but they are exchanged first while no process runs. `true`: the next process reads events of their
    /// files before it compares them.
    BehindOurBack(String, String, bool),
    /// A link is pointed elsewhere while it is in flight, its target is published, the process is killed, and the link is
    /// pointed back before the next start.
    Astray(&'static str, &'static str, String),
    /// Metadata alone changes. `true`: while no process runs.
    Chmod(String, bool),
    /// See [`Scene::disguise`]. `true`: while no process runs.
    Disguise(String, bool),
    /// A file is renamed away, another is published, the process is killed, and the file is renamed back before the next
    /// start.
    Aside(String),
    /// As `Aside`, after metadata alone was changed, in a ledger that was complete.
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
    Dispatch(usize),
    Read(Index),
    ReadAcross(String, String, Index),
    Complete(Index),
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

fn step() -> impl Strategy<Value = Step> {
    let either = || prop_oneof![path(), file()];
    prop_oneof![
        6 => path().prop_map(Step::Make),
        6 => file().prop_map(Step::Write),
        3 => target().prop_map(|path| Step::Write(path.to_owned())),
        2 => file().prop_map(Step::Touch),
        2 => file().prop_map(Step::OpenWriter),
        2 => Just(Step::WriteByWriter),
        2 => Just(Step::CloseWriter),
        4 => (either(), either()).prop_map(|(from, to)| Step::Rename(from, to)),
        4 => (either(), either()).prop_map(|(one, other)| Step::Exchange(one, other)),
        2 => (either(), either()).prop_map(|(one, other)| Step::ThereAndBack(one, other)),
        2 => (either(), either(), any::<bool>())
            .prop_map(|(one, other, heard)| Step::BehindOurBack(one, other, heard)),
        2 => (target(), target(), link()).prop_map(|(one, other, path)| Step::Astray(one, other, path)),
        3 => (file(), any::<bool>()).prop_map(|(path, down)| Step::Chmod(path, down)),
        2 => (file(), any::<bool>()).prop_map(|(path, down)| Step::Disguise(path, down)),
        2 => file().prop_map(Step::Aside),
        1 => file().prop_map(Step::AsideTouched),
        2 => either().prop_map(Step::Remove),
        1 => path().prop_map(Step::MoveOut),
        1 => path().prop_map(Step::MoveIn),
        2 => (target(), file()).prop_map(|(target, path)| Step::Link(target, path)),
        3 => (file(), file()).prop_map(|(from, to)| Step::HardLink(from, to)),
        2 => Just(Step::Rest),
        2 => Just(Step::Restart),
        1 => Just(Step::Kill),
        4 => Just(Step::ReadEvents),
        1 => Just(Step::Overflow),
        4 => Just(Step::Rescan),
        4 => (1..4usize).prop_map(Step::Dispatch),
        3 => any::<Index>().prop_map(Step::Read),
        2 => (path(), path(), any::<Index>()).prop_map(|(one, other, at)| Step::ReadAcross(one, other, at)),
        3 => any::<Index>().prop_map(Step::Complete),
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

    fn act(&mut self, step: &Step) {
        let beside = self.top.path().join("beside/it");
        let in_flight = self.in_flight.len();
        match step {
            Step::Make(path) => drop(fs::create_dir_all(self.path(path))),
            Step::Write(path) => self.write(path),
            Step::Touch(path) => self.touch(path),
            Step::OpenWriter(path) => self.open_writer(path),
            Step::WriteByWriter => self.write_by_writer(),
            Step::CloseWriter => self.close_writer(),
            Step::Rename(from, to) => drop(fs::rename(self.path(from), self.path(to))),
            Step::Exchange(one, other) => self.exchange(one, other),
            Step::ThereAndBack(one, other) => {
                self.exchange(one, other);
                self.rest();
                self.kill(|scene| scene.exchange(one, other));
            }
            Step::BehindOurBack(one, other, heard) => {
                self.rest();
                self.restart(); // all of it is in the ledger
                self.kill(|scene| scene.exchange(one, other));
                if *heard {
                    [one, other].iter().for_each(|path| self.touch(&format!("{path}/file")));
                    self.read_events();
                    self.dispatch(100);
                    self.complete_all();
                }
                self.rest();
                self.kill(|scene| scene.exchange(one, other));
            }
            Step::Astray(one, other, path) => {
                self.link(one, path);
                self.rest();
                self.restart();
                self.catch_up();
                self.dispatch(100);
                self.link(other, path);
                self.complete_all();
                self.kill(|scene| scene.link(one, path));
            }
            Step::Chmod(path, false) => self.chmod(path),
            Step::Chmod(path, true) => self.kill(|scene| scene.chmod(path)),
            Step::Disguise(path, false) => self.disguise(path),
            Step::Disguise(path, true) => self.restart_with(CatchUp::Changed, |scene| scene.disguise(path)),
            Step::Aside(path) => self.aside(path),
            Step::AsideTouched(path) => {
                self.rest();
                self.restart();
                self.chmod(path);
                self.rest();
                self.chmod(path);
                self.aside(path);
            }
            Step::Remove(path) => {
                let path = self.path(path);
                let _ = fs::remove_dir_all(&path).or_else(|_| fs::remove_file(&path));
            }
            Step::MoveOut(path) => drop(fs::rename(self.path(path), beside)),
            Step::MoveIn(path) => drop(fs::rename(beside, self.path(path))),
            Step::Link(target, path) => self.link(target, path),
            Step::HardLink(from, to) => drop(fs::hard_link(self.path(from), self.path(to))),
            Step::LinkIn(path) => {
                let made = self.top.path().join("beside/linked");
                self.written += 1;
                fs::write(&made, vec![b'l'; self.written]).unwrap();
                let _ = fs::hard_link(&made, self.path(path));
                fs::remove_file(&made).unwrap();
            }
            Step::Rest => self.rest(),
            Step::Restart => self.restart(),
            Step::Kill => self.kill(|_| {}),
            Step::ReadEvents => self.read_events(),
            Step::Overflow => self.overflow(),
            Step::Rescan => self.rescan(),
            Step::Dispatch(most) => self.dispatch(*most),
            Step::Read(at) if in_flight > 0 => self.read(at.index(in_flight)),
            Step::ReadAcross(one, other, at) if in_flight > 0 => {
                self.read_across(at.index(in_flight), |scene| scene.exchange(one, other));
            }
            Step::Complete(at) if in_flight > 0 => self.complete(at.index(in_flight)),
            Step::Read(_) | Step::ReadAcross(..) | Step::Complete(_) => {}
        }
    }
}

/// Collects the files and the directories below one, itself included.
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
    fn whatever_becomes_of_a_tree_each_file_that_is_left_is_published_last(
        steps in prop::collection::vec(step(), 1..60),
        removals: bool,
    ) {
        let mut scene = Scene::with_or_without_removals(&["a", "a/a", "b"], removals);
        TARGETS.iter().zip(["a/link", "b/link"]).for_each(|(target, path)| scene.link(target, path));
        scene.rest();
        scene.restart(); // all of it is in the ledger
        steps.iter().for_each(|step| scene.act(step));
        scene.close_writer();
        scene.rest();
        let (mut files, mut directories) = (BTreeMap::new(), BTreeSet::new());
        walk(&scene.path(""), &mut files, &mut directories);
        if !scene.unseen {
            let left = scene.published.iter().filter(|(path, _)| removals || files.contains_key(*path));
            prop_assert_eq!(&left.map(|(path, digests)| (path.clone(), *digests)).collect::<BTreeMap<_, _>>(), &files);
        }
        scene.kill(|_| {});
        scene.rest();

        if !removals {
            scene.published.retain(|path, _| files.contains_key(path));
        }
        prop_assert_eq!(&scene.published, &files);

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
