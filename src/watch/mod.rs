//! The watch: kernel events into the pending set, batches of jobs out of it, confirms back into what is known.
//!
//! One thread owns all of this and never waits for a file or for the broker. It reads the kernel's queued events, then the
//! pipeline's reports, then dispatches as large a batch as there is room for. A batch is whatever came in while the last one
//! was being handled: one file when idle, more under load.

mod confirmed;
mod departed;
pub mod hard_links;
pub mod inotify;
pub mod links;
pub mod pending;
mod renames;
pub mod rescan;
pub mod retry;
mod root_checks;
mod schedule;
mod state;
mod target_directories;
pub mod tree;
mod unseen;

use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use inotify::Watch;
use root_checks::{ROOT_CHECK, RootChecks};
use state::{BATCH_MAX, State};
use tree::Tree;

use crate::config::WatchSettings;
use crate::dispatch::{Dispatcher, READ_TIMEOUT, STOP_LOOKS, STOP_TIMEOUT};
use crate::error::Error;
use crate::files::root::Root;
use crate::files::version::Timestamp;
use crate::filter::Filter;
use crate::ledger::store::Store;
use crate::logging::failed;
use crate::mailbox::{Notice, Reports};
use crate::metrics::Totals;
use crate::notify;
use crate::pace::{GATHER, LEAVE, Load, Pace};
use crate::progress::{Phase, Progress};

/// Reads of the kernel's queue in a row before the rest of the loop has its turn.
const READS_IN_A_ROW: usize = 8;

/// Watches ended in a row. Each end is an event in the kernel's queue, which holds 16,384 by default.
const ENDS_IN_A_ROW: usize = 4096;

/// The source of jobs for `watch`.
pub struct Watcher {
    watch: Watch,
    state: State,
    dispatcher: Dispatcher,
    roots: RootChecks,
    rescan: Option<Duration>,
    /// How fast files come.
    pace: Pace,
    progress: Arc<Progress>,
}

impl Watcher {
    /// The watch was set up first, and the directories are listed now: what lands in between is seen by both.
    ///
    /// # Errors
    /// [`Error::Watch`], [`Error::DataDirectory`] when it cannot be listed, or [`Error::Threads`].
    pub fn new(
        roots: &[Arc<Root>],
        watch: Watch,
        dispatcher: Dispatcher,
        store: Option<Store>,
        filter: Filter,
        settings: WatchSettings,
        progress: Arc<Progress>,
    ) -> Result<Self, Error> {
        let root_checks = RootChecks::start(roots)?;
        let tree = Tree::new(roots.iter().zip(watch.roots()), watch.watches()?);
        let mut state = State::new(tree, filter, &settings, Arc::clone(&progress));
        state.list_all(store.is_some(), Instant::now())?;
        state.begin(store, settings.catch_up)?;
        Ok(Self {
            watch,
            state,
            dispatcher,
            roots: root_checks,
            rescan: settings.rescan,
            pace: Pace::default(),
            progress,
        })
    }

    /// Follows the directories until a stop is asked for, then finishes what is in progress.
    ///
    /// # Errors
    /// What ended it otherwise.
    pub fn run(mut self) -> Result<(), Error> {
        self.progress.watch.add(1);
        let followed = self.follow();
        self.progress.enter(Phase::Stopping);
        notify::of_phase(&self.progress);
        let drained = match followed {
            Ok(()) | Err(Error::DirectoryGone { .. }) => self.drain().and_then(|()| self.dispatcher.finish()),
            Err(_) => Ok(()),
        };
        // Whatever has ended it: what was reported counts.
        let rest = self.read_rest();
        let orderly = followed.is_ok() && drained.is_ok() && rest.is_ok();
        // What has ended it comes before the totals, which are the last line of every run.
        let ended = followed.and(drained).and(rest).map_err(failed);
        self.log_end();
        self.progress.watch.done(1);
        self.state.end(orderly && !self.dispatcher.may_have_published());
        ended
    }

    fn follow(&mut self) -> Result<(), Error> {
        let mut root_check = Instant::now() + ROOT_CHECK;
        let mut rescan = self.rescan.map(|every| Instant::now() + every);
        loop {
            self.progress.watch.touch();
            let more = self.read_events()?;
            if self.read_notices()? {
                return Ok(());
            }
            let now = Instant::now();
            if now >= root_check {
                self.state.check_roots(self.roots.answers(), now)?;
                root_check = now + ROOT_CHECK;
                self.state.report(now);
            }
            if rescan.is_some_and(|at| now >= at) {
                self.state.rescan_on_timer(now);
                rescan = self.rescan.map(|every| now + every);
            }
            self.state.advance(now);
            let batch = self.state.batch(self.dispatcher.rooms(), now);
            let dispatched = batch.len();
            self.pace.add(dispatched, now);
            self.dispatcher.submit(batch);
            if !more {
                self.state.end_orphaned(ENDS_IN_A_ROW);
            }
            if more || dispatched == BATCH_MAX || self.state.may_rescan(now) {
                continue;
            }
            let has_room = self.dispatcher.rooms().iter().any(|room| *room > 0);
            let times = rescan.into_iter().chain(self.state.next_time(has_room, now));
            let next = times.fold(root_check, Instant::min);
            self.rest(next.saturating_duration_since(now))?;
        }
    }

    /// Sleeps until there is something to do, for so long at most. Where files come fast, it is a little more than one thing:
    /// events gather, and reports, which nobody waits for then, are left for the next events.
    fn rest(&mut self, longest: Duration) -> Result<(), Error> {
        let load = self.pace.load(Instant::now());
        let leave = load > Load::Idle && self.dispatcher.busy() && self.dispatcher.has_much_room();
        let reports = if leave { Reports::Leave(LEAVE) } else { Reports::Wake };
        if load == Load::Busy {
            thread::sleep(GATHER.min(longest));
        }
        self.dispatcher.mailbox.sleep(Some(self.watch.as_fd()), Some(longest), reports)
    }

    /// Whether more may be queued.
    fn read_events(&mut self) -> Result<bool, Error> {
        for _ in 0..READS_IN_A_ROW {
            let (now, seen_at) = (Instant::now(), Timestamp::now());
            let mut taken = Ok(());
            let state = &mut self.state;
            let any = self.watch.read(|watch_id, event| {
                if taken.is_ok() {
                    taken = state.take(watch_id, event, seen_at, now);
                }
            })?;
            taken?;
            if !any {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether one of the notices says stop.
    fn read_notices(&mut self) -> Result<bool, Error> {
        let (now, time_of_day) = (Instant::now(), Timestamp::now());
        while let Some(notice) = self.dispatcher.next_notice() {
            match notice {
                Notice::Reports(reports) => {
                    reports.into_iter().for_each(|report| self.state.complete(report, now, time_of_day));
                }
                Notice::Failed(error) => return Err(error),
                // What is not found now is found at the next start.
                Notice::Rescan if self.progress.phase() == Phase::Stopping => {}
                Notice::Rescan => self.state.rescan_on_signal(now),
                Notice::Asked(question) => self.state.answer(*question, now),
                Notice::Stop(signal) => {
                    tracing::info!(
                        event = "stopping",
                        %signal,
                        "{signal}: files in progress are finished; a second signal ends at once"
                    );
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// Reads all notices that are left, also behind a failure. Returns the first failure.
    fn read_rest(&mut self) -> Result<(), Error> {
        let mut first = Ok(());
        loop {
            match self.read_notices() {
                Err(error) => first = first.and(Err(error)),
                Ok(true) => {}
                Ok(false) => return first,
            }
        }
    }

    /// Waits for the confirms of what is in progress, except for messages that only wait until a queue is bound. No more
    /// events are read.
    fn drain(&mut self) -> Result<(), Error> {
        let began = Instant::now();
        let (deadline, mut reading) = (began + STOP_TIMEOUT, Some(began + READ_TIMEOUT));
        self.dispatcher.begin_no_more();
        while self.dispatcher.busy() {
            let now = Instant::now();
            if reading.take_if(|until| now >= *until).is_some() {
                self.dispatcher.read_no_more();
            }
            let left = deadline.saturating_duration_since(now);
            if self.dispatcher.waits_for_a_queue() {
                break;
            }
            if left.is_zero() {
                tracing::warn!(
                    event = "left_in_progress",
                    files = self.dispatcher.in_flight(),
                    seconds = STOP_TIMEOUT.as_secs(),
                    "{} files were still in progress after {} s and are left unconfirmed",
                    self.dispatcher.in_flight(),
                    STOP_TIMEOUT.as_secs()
                );
                break;
            }
            self.dispatcher.mailbox.sleep(None, Some(left.min(STOP_LOOKS)), Reports::Wake)?;
            self.read_notices()?;
        }
        Ok(())
    }

    fn log_end(&mut self) {
        self.state.report_held_back();
        let Totals { files, bytes, confirmed, failed, gone, refused } = self.progress.metrics.totals();
        let (left, more) = self.state.left_unpublished();
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
}
