//! Log lines on standard error, as text or JSON, and the lines about single files with their rate limit.

use std::io::{self, IsTerminal};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt};

use crate::cli::{LogFormat, LogLevel, Settings};
use crate::error::Error;
use crate::files::unread::Unread;
use crate::job::{Outcome, Report};
use crate::terminal::AroundTheBar;

/// Whether logging has started; before that a failure is printed plainly.
static STARTED: AtomicBool = AtomicBool::new(false);

/// Starts logging. The libraries log only where the level is TRACE: the AMQP client would otherwise print whole messages, and
/// its failures reach the user in our error line.
pub fn start(settings: &Settings) {
    let level = level(settings.log_level);
    let libraries = if level == LevelFilter::TRACE { LevelFilter::DEBUG } else { LevelFilter::OFF };
    let filter = Targets::new().with_default(libraries).with_target("apollonia_ingestor", level);
    let lines = fmt::layer().with_writer(|| AroundTheBar).with_target(false);
    let layer = match settings.log_format {
        LogFormat::Text => lines.with_ansi(io::stderr().is_terminal()).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).with_current_span(false).with_span_list(false).boxed(),
    };
    if tracing_subscriber::registry().with(layer.with_filter(filter)).try_init().is_ok() {
        STARTED.store(true, Ordering::Relaxed);
    }
}

fn level(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Trace => LevelFilter::TRACE,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Error => LevelFilter::ERROR,
    }
}

/// Prints the error that ends the command, as a log line once logging has started.
pub fn failure(error: &Error) {
    if STARTED.load(Ordering::Relaxed) {
        tracing::error!("{error}");
    } else {
        eprintln!("error: {error}");
    }
}

/// The largest number of WARN lines of one kind about single files in [`REPEATS_TIME`], because nobody reads more of them.
const REPEATS_MAX: u32 = 10;

/// The time that [`REPEATS_MAX`] counts in.
const REPEATS_TIME: Duration = Duration::from_secs(60);

/// The lines about what became of each file: one at DEBUG for each, and one at WARN where somebody has to act.
#[derive(Debug)]
pub struct FileLines {
    failed: Repeats,
    refused: Repeats,
    unwatched: Repeats,
    wanting: Repeats,
}

impl FileLines {
    /// Names every file at WARN, for a command that ends.
    #[must_use]
    pub fn all() -> Self {
        Self::bounded(u32::MAX)
    }

    /// Names at most [`REPEATS_MAX`] files of one kind a minute and counts the others.
    #[must_use]
    pub fn limited() -> Self {
        Self::bounded(REPEATS_MAX)
    }

    fn bounded(bound: u32) -> Self {
        let repeats = |subject| Repeats { subject, bound, since: None, logged: 0, held_back: 0 };
        Self {
            failed: repeats("files that cannot be read"),
            refused: repeats("links that lead out of the data directory"),
            unwatched: repeats("directories that cannot be entered"),
            // All these files wait for the same thing, so one line is enough.
            wanting: Repeats { bound: 1, ..repeats("files that wait for descriptors or memory") },
        }
    }

    /// Logs what became of a job.
    pub fn log(&mut self, report: &Report, now: Instant) {
        let path = || String::from_utf8_lossy(&report.job.directory.absolute(&report.job.name)).into_owned();
        match &report.outcome {
            Outcome::Confirmed { version, .. } => tracing::debug!(path = path(), bytes = version.size, "confirmed"),
            Outcome::Removed => tracing::debug!(path = path(), "removal confirmed"),
            Outcome::Unchanged { .. } => tracing::debug!(path = path(), "unchanged since its last message"),
            Outcome::Unread(cause) => self.unread(cause, path, now),
        }
    }

    fn unread(&mut self, cause: &Unread, path: impl Fn() -> String, now: Instant) {
        match cause {
            Unread::Gone => tracing::debug!(path = path(), "gone before it could be read"),
            Unread::NotRegular => tracing::debug!(path = path(), "not a regular file"),
            Unread::Busy(why) => tracing::debug!(path = path(), "{why}"),
            Unread::Large => tracing::debug!(path = path(), "large: it is read later, among the large files"),
            Unread::Stopped => tracing::debug!(path = path(), "left unread: the service stops"),
            Unread::StaleRow => {
                tracing::debug!(path = path(), "another version: the row of the confirmed one is invalidated first")
            }
            Unread::LeadsOut if self.refused.admits(now) => {
                tracing::warn!("{:?} leads out of the data directory and is refused", path());
            }
            Unread::LeadsOut => tracing::debug!(path = path(), "leads out of the data directory"),
            Unread::Wanting(cause) if self.wanting.admits(now) => {
                tracing::warn!(
                    "{:?} waits because this process cannot open it now: {cause}; it is tried again by itself. Raise the limit of open files (LimitNOFILE in systemd, ulimit -n), or lower --workers",
                    path()
                );
            }
            Unread::Wanting(cause) => tracing::debug!(path = path(), "waits: {cause}"),
            Unread::Failed(cause) if self.failed.admits(now) => {
                tracing::warn!("{:?} cannot be read: {cause}", path());
            }
            Unread::Failed(cause) => tracing::debug!(path = path(), "cannot be read: {cause}"),
        }
    }

    /// Logs that a file or a directory exists and cannot be read now.
    pub fn refused(&mut self, path: &[u8], directory: bool, cause: &io::Error, now: Instant) {
        let path = String::from_utf8_lossy(path);
        let (repeats, what) = if directory { (&mut self.unwatched, "entered") } else { (&mut self.failed, "read") };
        if repeats.admits(now) {
            tracing::warn!(
                "{path:?} cannot be {what}: {cause}; it is tried again when its rights change, and with growing pauses of 5 minutes at most"
            );
        } else {
            tracing::debug!("{path:?} cannot be {what}: {cause}");
        }
    }

    /// Logs that a further try has failed, too.
    pub fn still_refused(path: &[u8], cause: &io::Error) {
        tracing::debug!("{:?} still cannot be read: {cause}", String::from_utf8_lossy(path));
    }

    /// Logs how many lines were held back, for each kind whose minute is over.
    pub fn report_held_back(&mut self, now: Instant) {
        for repeats in [&mut self.failed, &mut self.refused, &mut self.unwatched, &mut self.wanting] {
            if repeats.is_over(now) {
                repeats.report();
            }
        }
    }

    /// Logs how many lines were held back, for each kind, at the end.
    pub fn report_all_held_back(&mut self) {
        for repeats in [&mut self.failed, &mut self.refused, &mut self.unwatched, &mut self.wanting] {
            repeats.report();
        }
    }
}

/// The rate limit of one kind of line.
#[derive(Debug)]
struct Repeats {
    /// What the lines are about, as the count of the held back ones names it.
    subject: &'static str,
    bound: u32,
    since: Option<Instant>,
    logged: u32,
    held_back: u64,
}

impl Repeats {
    fn admits(&mut self, now: Instant) -> bool {
        if self.since.is_none() || self.is_over(now) {
            self.report();
            self.since = Some(now);
            self.logged = 0;
        }
        debug_assert!(self.logged <= self.bound);
        if self.logged == self.bound {
            self.held_back += 1;
            return false;
        }
        self.logged += 1;
        true
    }

    fn is_over(&self, now: Instant) -> bool {
        self.since.is_some_and(|since| now.saturating_duration_since(since) >= REPEATS_TIME)
    }

    fn report(&mut self) {
        match std::mem::take(&mut self.held_back) {
            0 => {}
            count => tracing::warn!("and {count} more {} within a minute; LOG_LEVEL=DEBUG names each", self.subject),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_lines_of_a_minute_are_logged_and_the_others_counted() {
        let mut repeats = FileLines::limited().failed;
        let start = Instant::now();
        let logged = (0..1000).filter(|_| repeats.admits(start)).count();
        assert_eq!((logged, repeats.held_back), (REPEATS_MAX as usize, 1000 - u64::from(REPEATS_MAX)));
        assert!(repeats.admits(start + REPEATS_TIME), "a new minute");
        assert_eq!(repeats.held_back, 0, "the count of the last minute has been logged");
    }

    #[test]
    fn without_a_limit_no_line_is_held_back() {
        let mut repeats = FileLines::all().failed;
        let now = Instant::now();
        assert!((0..100_000).all(|_| repeats.admits(now)));
    }
}
