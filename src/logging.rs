//! Log lines on standard error, as text or JSON, and what is said of each file.

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

/// Set once log lines go out; before that a failure is printed plainly.
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

/// Lines about single files at WARN, of one kind, in [`REPEATS_TIME`]. Somebody who is told more often reads none of them.
const REPEATS_MAX: u32 = 10;

/// See [`REPEATS_MAX`].
const REPEATS_TIME: Duration = Duration::from_secs(60);

/// What is logged of each file's end: a line at DEBUG, and one at WARN where somebody has to know.
#[derive(Debug)]
pub struct FileLines {
    failed: Repeats,
    refused: Repeats,
    unwatched: Repeats,
    wanting: Repeats,
}

/// How often one kind of line has been told lately.
#[derive(Debug)]
struct Repeats {
    /// What the files are that it is about.
    of: &'static str,
    bound: u32,
    since: Option<Instant>,
    told: u32,
    held_back: u64,
}

impl FileLines {
    /// Every file is named.
    #[must_use]
    pub fn all() -> Self {
        Self::bounded(u32::MAX)
    }

    /// At most so many of one kind a minute; the others are counted. DEBUG names them.
    #[must_use]
    pub fn limited() -> Self {
        Self::bounded(REPEATS_MAX)
    }

    fn bounded(bound: u32) -> Self {
        let repeats = |of| Repeats { of, bound, since: None, told: 0, held_back: 0 };
        Self {
            failed: repeats("files that cannot be read"),
            refused: repeats("links that lead out of the data directory"),
            unwatched: repeats("directories that cannot be entered"),
            // The want is the same for all of them: one line says it.
            wanting: Repeats { bound: 1, ..repeats("files that wait for descriptors or memory") },
        }
    }

    /// Says what became of a job.
    pub fn tell(&mut self, report: &Report, now: Instant) {
        let path = || String::from_utf8_lossy(&report.job.directory.absolute(&report.job.name)).into_owned();
        match &report.outcome {
            Outcome::Confirmed { version, .. } => tracing::debug!(path = path(), bytes = version.size, "confirmed"),
            Outcome::Unchanged { .. } => tracing::debug!(path = path(), "unchanged since its last message"),
            Outcome::Unread(Unread::Gone) => tracing::debug!(path = path(), "gone before it could be read"),
            Outcome::Unread(Unread::NotRegular) => tracing::debug!(path = path(), "not a regular file"),
            Outcome::Unread(Unread::Busy) => tracing::debug!(path = path(), "still being written"),
            Outcome::Unread(Unread::Large) => tracing::debug!(path = path(), "large: its turn comes later"),
            Outcome::Unread(Unread::Stopped) => tracing::debug!(path = path(), "left: the end has come"),
            Outcome::Unread(Unread::StaleRow) => tracing::debug!(path = path(), "another: the ledger forgets it first"),
            Outcome::Unread(Unread::LeadsOut) if self.refused.admits(now) => {
                tracing::warn!("{:?} leads out of the data directory and is refused", path());
            }
            Outcome::Unread(Unread::LeadsOut) => tracing::debug!(path = path(), "leads out of the data directory"),
            Outcome::Unread(Unread::Wanting(cause)) if self.wanting.admits(now) => {
                tracing::warn!(
                    "{:?} waits, for this process lacks what opening it takes: {cause}; it is tried again by itself. Raise the limit of open files (LimitNOFILE in systemd, ulimit -n), or lower --workers",
                    path()
                );
            }
            Outcome::Unread(Unread::Wanting(cause)) => tracing::debug!(path = path(), "waits: {cause}"),
            Outcome::Unread(Unread::Failed(cause)) if self.failed.admits(now) => {
                tracing::warn!("{:?} cannot be read: {cause}", path());
            }
            Outcome::Unread(Unread::Failed(cause)) => tracing::debug!(path = path(), "cannot be read: {cause}"),
        }
    }

    /// Says that a file or a directory is there and cannot be had for the moment.
    pub fn shut(&mut self, path: &[u8], directory: bool, cause: &io::Error, now: Instant) {
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

    /// Says that it was tried again in vain.
    pub fn still_shut(path: &[u8], cause: &io::Error) {
        tracing::debug!("{:?} still cannot be had: {cause}", String::from_utf8_lossy(path));
    }

    /// Says how many lines were held back, once their minute is over.
    pub fn overdue(&mut self, now: Instant) {
        for repeats in [&mut self.failed, &mut self.refused, &mut self.unwatched, &mut self.wanting] {
            if repeats.since.is_some_and(|since| now.saturating_duration_since(since) >= REPEATS_TIME) {
                repeats.rest();
            }
        }
    }

    /// The same, at the end.
    pub fn rest(&mut self) {
        self.failed.rest();
        self.refused.rest();
        self.unwatched.rest();
        self.wanting.rest();
    }
}

impl Repeats {
    fn admits(&mut self, now: Instant) -> bool {
        if self.since.is_none_or(|since| now.saturating_duration_since(since) >= REPEATS_TIME) {
            self.rest();
            self.since = Some(now);
            self.told = 0;
        }
        if self.told == self.bound {
            self.held_back += 1;
            return false;
        }
        self.told += 1;
        true
    }

    fn rest(&mut self) {
        match std::mem::take(&mut self.held_back) {
            0 => {}
            count => tracing::warn!("and {count} more {} within a minute; LOG_LEVEL=DEBUG names each", self.of),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_lines_a_minute_the_first_are_told_and_the_others_counted() {
        let mut repeats = FileLines::limited().failed;
        let start = Instant::now();
        let told = (0..1000).filter(|_| repeats.admits(start)).count();
        assert_eq!((told, repeats.held_back), (REPEATS_MAX as usize, 1000 - u64::from(REPEATS_MAX)));
        assert!(repeats.admits(start + REPEATS_TIME), "a new minute");
        assert_eq!(repeats.held_back, 0, "those of the last one have been told of");
    }

    #[test]
    fn where_all_are_told_none_is_held_back() {
        let mut repeats = FileLines::all().failed;
        let now = Instant::now();
        assert!((0..100_000).all(|_| repeats.admits(now)));
    }
}
