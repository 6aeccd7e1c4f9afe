//! The service manager's notifications (sd_notify(3)), and the totals that are logged once a minute.

mod manager;

use std::mem;
use std::time::Duration;

use manager::{State, manager};
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::health::{Status, assess};
use crate::metrics::Totals;
use crate::progress::{Phase, Progress, StartCounts};
use crate::shown::line;

/// The interval of the status line where no watchdog asks for a shorter one, and of the lines of a long start.
const STATUS_EVERY: Duration = Duration::from_secs(5);

/// The time that the service manager is asked for whenever a start has come further. It is its own default for a whole start
/// (systemd-system.conf(5), DefaultTimeoutStartSec=), so that a step may take that long.
const START_STEP: Duration = Duration::from_secs(90);

/// Pings in the time that the watchdog allows: one may be late and the next still counts (sd_watchdog_enabled(3) advises
/// two).
const PINGS: u32 = 3;

/// The shortest interval of pings, whatever the watchdog asks for.
const PING_MIN: Duration = Duration::from_millis(50);

const _: () = assert!(PING_MIN.as_millis() < STATUS_EVERY.as_millis());

/// The interval of the totals in the log while there is work.
const TOTALS_EVERY: Duration = Duration::from_secs(60);

/// Notifies the service manager that the service is ready, or that it stops. Where it has no room for that now,
/// [`keep_informed`] notifies it again.
pub fn of_phase(progress: &Progress) {
    manager().notify_of_phase(progress);
}

/// Notifies and logs for as long as the service runs: watchdog pings while every stage makes progress, the status line,
/// directories that hang, totals.
pub async fn keep_informed(progress: &Progress, stall: Duration) {
    let watchdog = manager::watchdog();
    let every = watchdog.map_or(STATUS_EVERY, |allowed| (allowed / PINGS).clamp(PING_MIN, STATUS_EVERY));
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut status_line = StatusLine::default();
    let mut hanging: Vec<&str> = Vec::new();
    let mut minutes = Minutes::begin(progress);
    let mut start = LongStart::begin();
    loop {
        ticks.tick().await;
        let (status, summary) = assess(progress, stall);
        of_phase(progress);
        start.report(progress);
        status_line.renew(status, summary);
        log_hanging(progress, stall, &mut hanging);
        if watchdog.is_some() && status != Status::Unhealthy {
            manager().notify(State::Watchdog);
        }
        minutes.log(progress);
    }
}

/// The status line that the service manager shows.
#[derive(Default)]
struct StatusLine {
    /// The line that it was notified of last.
    shown: String,
    unhealthy: bool,
}

impl StatusLine {
    /// Notifies the service manager until it has the line, and logs where the service becomes unhealthy.
    fn renew(&mut self, status: Status, summary: String) {
        let unhealthy = status == Status::Unhealthy;
        if !mem::replace(&mut self.unhealthy, unhealthy) && unhealthy {
            tracing::error!(
                event = "unhealthy",
                error = summary,
                "{summary}; what it waits for is at fault, or is slower than --stall-seconds"
            );
        }
        // A notification is of lines: a newline in a name must not begin one (sd_notify(3)).
        if summary != self.shown && manager().notify(State::Status(&line(&summary))) {
            self.shown = summary;
        }
    }
}

/// A start over a large tree or a large ledger.
struct LongStart {
    before: StartCounts,
    due: Instant,
}

impl LongStart {
    fn begin() -> Self {
        Self { before: StartCounts::default(), due: Instant::now() + STATUS_EVERY }
    }

    /// Where the start has come further, asks the service manager for more time, and logs how far it is once that is due.
    fn report(&mut self, progress: &Progress) {
        let counts = progress.start.counts();
        if progress.phase() != Phase::Starting || counts == self.before {
            return;
        }
        if manager().notify(State::ExtendTimeout(START_STEP)) {
            self.before = counts;
        }
        if Instant::now() >= self.due {
            self.due = Instant::now() + STATUS_EVERY;
            let StartCounts { directories, listed, files, rows, compared } = counts;
            tracing::info!(event = "starting", directories, listed, files, rows, compared, "starting: {counts}");
        }
    }
}

/// The totals of each minute in the log.
struct Minutes {
    before: Totals,
    due: Instant,
}

impl Minutes {
    fn begin(progress: &Progress) -> Self {
        Self { before: progress.metrics.totals(), due: Instant::now() + TOTALS_EVERY }
    }

    /// Logs once a minute is over, unless nothing has happened in it and nothing is pending.
    fn log(&mut self, progress: &Progress) {
        if Instant::now() < self.due {
            return;
        }
        self.due += TOTALS_EVERY;
        let (totals, pending) = (progress.metrics.totals(), progress.metrics.pending_files.get());
        if totals != self.before || pending > 0 {
            let Totals { files, bytes, confirmed, failed, gone, .. } = totals - self.before;
            tracing::info!(
                event = "totals",
                files,
                bytes,
                confirmed,
                failed,
                gone,
                pending,
                "in the last minute: {files} files read, {confirmed} messages confirmed ({bytes} bytes), {failed} failures, {gone} gone before they could be read; {pending} pending"
            );
        }
        self.before = totals;
    }
}

/// Logs once for each volume that it hangs, and once that it answers again. `logged` holds those that hung the last time.
fn log_hanging<'a>(progress: &'a Progress, stall: Duration, logged: &mut Vec<&'a str>) {
    let hanging: Vec<&str> = progress.hanging(stall).map(|(volume, _)| volume.directories.as_str()).collect();
    for directories in hanging.iter().filter(|directories| !logged.contains(directories)) {
        tracing::warn!(
            event = "directories_hang",
            path = directories,
            seconds = stall.as_secs(),
            "nothing could be read in {directories} for {} s, and its files wait: see to its file system; other file systems' directories go on",
            stall.as_secs()
        );
    }
    for directories in logged.iter().filter(|directories| !hanging.contains(directories)) {
        tracing::info!(event = "directories_answer", path = directories, "files are read in {directories} again");
    }
    *logged = hanging;
}
