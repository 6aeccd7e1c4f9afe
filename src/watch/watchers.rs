//! The watches of all volumes: their common start, the main thread's wait for the end, and that end.
//!
//! Each watch runs in a thread of its own. What they have in common is the ledger, the output behind the readers, and the
//! limits of memory. No name, link or rename crosses a file system's border, so no watch needs to know of another.

use std::iter;
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::inotify::Watch;
use super::root_checks::RootChecks;
use super::starting::{Given, Thread, WatcherParts, wait_for_listings};
use super::state::State;
use super::state::start::Start;
use super::tree::Tree;
use super::watcher::Watcher;
use super::{confirmed, state};
use crate::cli::CatchUp;
use crate::config::WatchSettings;
use crate::dispatch::{Pipeline, READ_TIMEOUT, STOP_LOOKS, STOP_TIMEOUT, Stages};
use crate::error::{Error, StopSignal};
use crate::files::root::opening::PATIENCE;
use crate::files::root::{Root, of_volume, volume_count};
use crate::filter::Filter;
use crate::ledger::Ledger;
use crate::ledger::store::Store;
use crate::logging::failed;
use crate::mailbox::{Mailbox, Notice, Reports, Sender};
use crate::memory::{Budget, Need};
use crate::metrics::Totals;
use crate::notify;
use crate::progress::{Phase, Progress};

/// The longest pause between two looks whether a watch that was told to leave has ended.
const LEAVE_LOOKS: Duration = Duration::from_millis(5);

/// The watches of all volumes, ready to run.
pub struct Watchers {
    /// By the numbers of the volumes, each with what it waits for.
    threads: Vec<(Thread, Given)>,
    /// The ways to them.
    sources: Vec<Sender>,
    mailbox: Mailbox,
    stages: Stages,
    ledger: Option<Arc<Ledger>>,
    progress: Arc<Progress>,
    /// Watches that have ended.
    ended: usize,
}

impl Watchers {
    /// The watches were set up first (see [`watches`]), and the directories are listed now: what lands in between is seen by
    /// both. A volume that takes long for it, while another does not, joins once it is listed.
    ///
    /// # Errors
    /// [`Error::Watch`], [`Error::DataDirectory`] when one cannot be listed, [`Error::StateDirectory`], or
    /// [`Error::Threads`].
    pub fn new(
        roots: &[Arc<Root>],
        watches: Vec<Watch>,
        pipeline: Pipeline,
        store: Option<Store>,
        filter: Filter,
        settings: WatchSettings,
        progress: Arc<Progress>,
    ) -> Result<Self, Error> {
        let filter = Arc::new(filter);
        let memory = Arc::new(Budget::of_this_process(store.is_some(), settings.removals));
        let checks = |volume| RootChecks::start(of_volume(roots, volume), settings.recursive);
        let checks = (0..watches.len()).map(checks).collect::<Result<Vec<_>, Error>>()?;
        let Pipeline { stages, mailbox, sender: main, sources } = pipeline;
        let (sender, listed) = mpsc::channel();
        let thread = |(volume, watch): (usize, &Watch)| {
            let watched = watch.roots().iter().copied().map(Some).chain(iter::repeat(None));
            let tree = Tree::new(of_volume(roots, volume).zip(watched), watch.watches()?);
            let state = State::new(tree, Arc::clone(&filter), &settings, Arc::clone(&memory), Arc::clone(&progress));
            Thread::start(state, volume, (store.is_some(), settings.catch_up), main.clone(), sender.clone())
        };
        let threads = watches.iter().enumerate().map(thread).collect::<Result<Vec<_>, Error>>()?;
        drop(sender);
        // What is entered in the ledger before anything is published has to be whole.
        let enters = store.is_some() && matches!(settings.catch_up, CatchUp::None | CatchUp::Baseline);
        let patience = if enters { None } else { Some(PATIENCE) };
        let is_open = |volume| of_volume(roots, volume).all(|root| root.is_open());
        let begun = wait_for_listings(&threads, &listed, patience, is_open)?;
        if let Some(need) = memory.need().filter(Need::fits) {
            tracing::info!(event = "memory", "{need}");
        }
        let (ledger, starts) = state::start::begin(begun, roots, store, settings.catch_up, &progress)?;
        let mut senders = Vec::new();
        let mut waiting = Vec::new();
        let parts = watches.into_iter().zip(checks).zip(sources).zip(progress.volumes()).zip(threads).zip(starts);
        for (number, (((((watch, roots), (dispatcher, sender)), volume), thread), start)) in parts.enumerate() {
            senders.push(sender);
            let watcher = WatcherParts {
                watch,
                dispatcher,
                roots,
                rescan: settings.rescan,
                progress: Arc::clone(&progress),
                volume: Arc::clone(volume),
                main: main.clone(),
            };
            if matches!(start, Start::Late(_)) {
                watcher.report_late(number);
            }
            waiting.push((thread, Given { watcher, start }));
        }
        Ok(Self { threads: waiting, sources: senders, mailbox, stages, ledger, progress, ended: 0 })
    }

    /// Follows the directories until a stop is asked for, then finishes what is in progress.
    ///
    /// # Errors
    /// What ended it otherwise.
    pub fn run(mut self) -> Result<(), Error> {
        let running: Vec<_> = self.threads.drain(..).map(|(thread, given)| thread.give(given)).collect();
        let count = running.len();
        let followed = self.follow();
        let until = Instant::now() + STOP_TIMEOUT;
        self.progress.enter(Phase::Stopping);
        notify::of_phase(&self.progress);
        let orderly = matches!(followed, Ok(()) | Err(Error::DirectoryGone { .. }));
        let drained = if orderly { self.drain(count, until) } else { Ok(()) };
        self.sources.iter().for_each(Sender::leave);
        let (mut watchers, all) = self.join(running, until);
        // One that was never listed has no watcher, and rows of its files are not compared.
        let all = all && watchers.len() == count;
        let finished = match (orderly, &drained) {
            (true, Ok(())) => self.stages.finish(&mut self.mailbox),
            _ => Ok(()),
        };
        // Whatever has ended it: what was reported counts.
        let rest = self.read_rest();
        for watcher in &mut watchers {
            watcher.read_notices();
        }
        let in_order = all && followed.is_ok() && drained.is_ok() && finished.is_ok() && rest.is_ok();
        // What has ended it comes before the totals, which are the last line of every run.
        let ended = followed.and(drained).and(finished).and(rest).map_err(failed);
        log_end(&self.progress, &mut watchers, all);
        let in_order = in_order && !self.stages.may_have_published();
        let lagging = watchers.iter_mut().flat_map(|watcher| watcher.state.end(in_order)).collect();
        if let Some(ledger) = &self.ledger {
            confirmed::ending::end(ledger, lagging, in_order);
        }
        ended
    }

    /// Waits until a stop is asked for. What else is asked for goes to each watch.
    fn follow(&mut self) -> Result<(), Error> {
        loop {
            while let Some(notice) = self.mailbox.take() {
                match notice {
                    Notice::Failed(error) => return Err(error),
                    Notice::Stop(signal) => {
                        tracing::info!(
                            event = "stopping",
                            %signal,
                            "{signal}: files in progress are finished; a second signal ends at once"
                        );
                        return Ok(());
                    }
                    Notice::Rescan => {
                        tracing::info!(event = "rescan_asked", "SIGHUP: the directories are rescanned now");
                        self.sources.iter().for_each(Sender::rescan);
                    }
                    Notice::Ended => self.ended += 1,
                    Notice::Reports(_) | Notice::Asked(_) | Notice::Leave => {} // for the watches alone
                }
            }
            self.mailbox.sleep(None, None, Reports::Wake)?;
        }
    }

    /// Waits for the confirms of what is in progress, except for messages that only wait until a queue is bound. No more
    /// events are read.
    fn drain(&mut self, running: usize, until: Instant) -> Result<(), Error> {
        let mut reading = Some(until - STOP_TIMEOUT + READ_TIMEOUT);
        self.sources.iter().for_each(|source| source.stop(StopSignal::Terminate));
        loop {
            self.read_notices()?;
            let now = Instant::now();
            if self.ended == running || self.stages.wait_for_a_queue() {
                return Ok(());
            }
            if reading.take_if(|until| now >= *until).is_some() {
                self.stages.read_no_more();
            }
            let left = until.saturating_duration_since(now);
            if left.is_zero() {
                break;
            }
            self.mailbox.sleep(None, Some(left.min(STOP_LOOKS)), Reports::Wake)?;
        }
        let (files, seconds) = (self.progress.in_flight(), STOP_TIMEOUT.as_secs());
        if files > 0 {
            tracing::warn!(
                event = "left_in_progress",
                files,
                seconds,
                "{files} files were still in progress after {seconds} s and are left unconfirmed"
            );
        }
        Ok(())
    }

    /// Takes the watches back that end in time, and says whether all have. One that looks at a file system that does not
    /// answer is left behind.
    fn join(&mut self, mut running: Vec<JoinHandle<Option<Watcher>>>, until: Instant) -> (Vec<Watcher>, bool) {
        let until = until.max(Instant::now() + STOP_LOOKS);
        while running.iter().any(|thread| !thread.is_finished()) && Instant::now() < until {
            thread::sleep(LEAVE_LOOKS);
        }
        let volumes = self.progress.volumes().iter().zip(&running);
        for (volume, _) in volumes.filter(|(_, thread)| !thread.is_finished()) {
            let directories = &volume.directories;
            tracing::warn!(
                event = "watch_left",
                path = directories,
                "the watch of {directories} is left behind, because its file system does not answer: what was confirmed there last may be published again"
            );
        }
        let ended: Vec<_> = running.extract_if(.., |thread| thread.is_finished()).collect();
        // A panic of the thread has been logged, and has ended the service.
        (ended.into_iter().filter_map(|thread| thread.join().ok().flatten()).collect(), running.is_empty())
    }

    /// Reads what is in the mailbox. Returns the first failure.
    fn read_notices(&mut self) -> Result<(), Error> {
        while let Some(notice) = self.mailbox.take() {
            match notice {
                Notice::Failed(error) => return Err(error),
                Notice::Ended => self.ended += 1,
                _ => {}
            }
        }
        Ok(())
    }

    /// Reads all that is left in the mailbox, also behind a failure. Returns the first failure.
    fn read_rest(&mut self) -> Result<(), Error> {
        let mut first = Ok(());
        while let Err(error) = self.read_notices() {
            first = first.and(Err(error));
        }
        first
    }
}

/// Watches the data directories: an inotify instance for each volume, by the volumes' numbers. One that is not open yet, which
/// has a volume of its own, is watched once it is ([`State::begin`]).
///
/// # Errors
/// [`Error::Watch`], which names the limit to raise if there was one.
pub fn watches(roots: &[Arc<Root>]) -> Result<Vec<Watch>, Error> {
    let open = |volume| of_volume(roots, volume).filter(|root| root.is_open());
    let watch = |volume| Watch::new(&open(volume).map(|root| root.path()).collect::<Vec<_>>());
    (0..volume_count(roots)).map(watch).collect()
}

/// `all`: no watch was left behind.
fn log_end(progress: &Progress, watchers: &mut [Watcher], all: bool) {
    watchers.iter_mut().for_each(|watcher| watcher.state.report_held_back());
    let Totals { files, bytes, confirmed, failed, gone, refused } = progress.metrics.totals();
    let (left, more) = watchers
        .iter()
        .map(|watcher| watcher.state.left_unpublished())
        .fold((0, !all), |sum, own| (sum.0 + own.0, sum.1 || own.1));
    let at_least = if more { "at least " } else { "" };
    tracing::info!(
        event = "stopped",
        files,
        bytes,
        confirmed,
        left,
        failed,
        gone,
        refused,
        "stopped: {files} files and {bytes} bytes read, {confirmed} messages confirmed, {at_least}{left} left unpublished, {failed} failures, {gone} gone before they could be read, {refused} links refused"
    );
}
