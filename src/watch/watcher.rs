//! The loop of a volume's watch.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::inotify::Watch;
use super::root_checks::{ROOT_CHECK, RootChecks};
use super::state::{BATCH_MAX, State};
use crate::dispatch::Dispatcher;
use crate::error::Error;
use crate::files::version::Timestamp;
use crate::mailbox::{Notice, Reports, Sender};
use crate::pace::{GATHER, LEAVE, Load, Pace};
use crate::progress::{self, Phase, Progress};

/// Reads of the kernel's queue in a row before the rest of the loop has its turn.
const READS_IN_A_ROW: usize = 8;

/// Watches ended in a row. Each end is an event in the kernel's queue, which holds 16,384 by default.
const ENDS_IN_A_ROW: usize = 4096;

/// How long the end dispatches what is due. A file that was refused for a writer on its way out is tried again after 20 ms.
const LAST_BATCHES: Duration = Duration::from_millis(200);

/// The watch of a volume: the source of the jobs of its files.
pub(super) struct Watcher {
    pub(super) watch: Watch,
    pub(super) state: State,
    pub(super) dispatcher: Dispatcher,
    pub(super) roots: RootChecks,
    pub(super) rescan: Option<Duration>,
    /// How fast files come.
    pub(super) pace: Pace,
    pub(super) progress: Arc<Progress>,
    pub(super) volume: Arc<progress::Volume>,
    pub(super) main: Sender,
    /// Nothing in flight is waited for any more.
    pub(super) leaves: bool,
}

impl Watcher {
    /// Follows the directories until the main thread asks for the end, which a failure here asks it for, then completes what
    /// is in flight.
    pub(super) fn run(mut self) -> Self {
        self.volume.watch.add(1);
        if let Err(error) = self.follow() {
            self.main.fail(error);
        }
        if let Err(error) = self.drain() {
            self.main.fail(error);
        }
        self.volume.watch.done(1);
        self.main.ended();
        self
    }

    fn follow(&mut self) -> Result<(), Error> {
        let mut root_check = Instant::now() + ROOT_CHECK;
        let mut rescan = self.rescan.map(|every| Instant::now() + every);
        loop {
            self.volume.watch.touch();
            let more = self.read_events()?;
            if self.read_notices() {
                return Ok(());
            }
            let now = Instant::now();
            if now >= root_check {
                self.state.check_roots(self.roots.answers(), now)?;
                self.roots.unmounted().iter().for_each(|point| self.state.unmounted(point, now));
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

    /// Reads the notices in the mailbox. Returns whether one of them asks for the end.
    pub(super) fn read_notices(&mut self) -> bool {
        let (now, time_of_day) = (Instant::now(), Timestamp::now());
        let mut ends = false;
        while let Some(notice) = self.dispatcher.next_notice() {
            match notice {
                Notice::Reports(reports) => {
                    reports.into_iter().for_each(|report| self.state.complete(report, now, time_of_day));
                }
                // What is not found now is found at the next start.
                Notice::Rescan if self.progress.phase() == Phase::Stopping => {}
                Notice::Rescan => self.state.rescan_on_signal(now),
                Notice::Asked(question) => self.state.answer(*question, now),
                Notice::Stop(_) => ends = true,
                Notice::Leave => (ends, self.leaves) = (true, true),
                Notice::Failed(_) | Notice::Ended => {} // for the main thread alone
            }
        }
        ends
    }

    /// Waits for the reports of what is in flight. No more events are read. What was read of them before is dispatched for a moment
    /// longer, so that a file that was closed before the signal is published, also one that was refused just now, because the
    /// event of a close comes before the kernel counts the writer out.
    fn drain(&mut self) -> Result<(), Error> {
        let mut now = Instant::now();
        let until = now + LAST_BATCHES;
        self.dispatcher.begin_no_more();
        while !self.leaves {
            if now < until {
                let batch = self.state.batch(self.dispatcher.rooms(), now);
                self.dispatcher.submit(batch);
            }
            let due = self.state.next_pending().filter(|due| now < until && *due < until);
            if due.is_none() && !self.dispatcher.busy() {
                break;
            }
            self.volume.watch.touch();
            let next = due.map_or(ROOT_CHECK, |due| due.saturating_duration_since(now));
            self.dispatcher.mailbox.sleep(None, Some(next), Reports::Wake)?;
            self.read_notices();
            now = Instant::now();
        }
        Ok(())
    }
}
