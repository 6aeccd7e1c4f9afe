//! Log lines on standard error, as text or JSON, and the lines about single files with their rate limit.

mod format;

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt};

use format::{JsonLines, TextFields};

use crate::advice;
use crate::cli::{self, LogFormat, LogLevel, Settings, UnknownVariable, log_format_asked};
use crate::error::{Error, os_message};
use crate::files::unread::Unread;
use crate::job::{Outcome, Report};
use crate::shown::line;
use crate::streams::stderr::{self, LogLines};
use crate::streams::terminal;

/// Whether logging has started; before that a failure is printed plainly.
static STARTED: AtomicBool = AtomicBool::new(false);

/// Starts logging. The libraries log only where the level is TRACE: the AMQP client would otherwise print whole messages, and
/// its failures reach the user in our error line.
pub fn start(settings: &Settings) {
    start_as(settings.log_format, level(settings.log_level));
}

/// Starts logging for a service: standard error that is not read costs it log lines, and does not hold it up.
pub fn start_for_service(settings: &Settings) {
    stderr::write_by_a_thread();
    start(settings);
}

fn start_as(format: LogFormat, level: LevelFilter) {
    let libraries = if level == LevelFilter::TRACE { LevelFilter::DEBUG } else { LevelFilter::OFF };
    let filter = Targets::new().with_default(libraries).with_target("apollonia_ingestor", level);
    let lines = fmt::layer().with_writer(|| LogLines).with_target(false);
    let layer = match format {
        LogFormat::Text => lines.with_ansi(terminal::colors(&io::stderr())).fmt_fields(TextFields).boxed(),
        LogFormat::Json => {
            let lines = lines.json().flatten_event(true).with_current_span(false).with_span_list(false);
            lines.map_event_format(JsonLines).boxed()
        }
    };
    if tracing_subscriber::registry().with(layer.with_filter(filter)).try_init().is_ok() {
        STARTED.store(true, Ordering::Relaxed);
    }
}

/// The largest number of unknown variables that are named: more are not mistyped, but another program's.
const VARIABLES_MAX: usize = 10;

/// Warns of variables that are named like settings and are none, each with the setting that may be meant.
pub fn warn_of_unknown_variables() {
    let unknown = cli::unknown_variables();
    for UnknownVariable { name, nearest } in unknown.iter().take(VARIABLES_MAX) {
        tracing::warn!(
            event = "unknown_variable",
            variable = name,
            nearest,
            "the variable {name} is no setting and has no effect; the nearest is {nearest}"
        );
    }
    if let count @ 1.. = unknown.len().saturating_sub(VARIABLES_MAX) {
        tracing::warn!(event = "unknown_variable", count, "and {count} more variables that are no settings");
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

/// Logs the error that ends the command, unless it was logged before or is no failure. Before logging has started it is printed
/// plainly, or in the form that log lines were to have.
pub fn failure(error: &Error) {
    if matches!(error, Error::Logged(_)) {
        return;
    }
    if error.is_reader_gone() {
        return tracing::info!(event = "reader_gone", "standard output: its reader has gone away");
    }
    if !STARTED.load(Ordering::Relaxed) && log_format_asked() == LogFormat::Json {
        start_as(LogFormat::Json, LevelFilter::ERROR);
    }
    if STARTED.load(Ordering::Relaxed) {
        tracing::error!(
            event = "failed",
            error = error.cause(),
            next = error.next(),
            path = error.path().map(|path| path.to_string_lossy().into_owned()),
            url = error.url(),
            "{error}"
        );
    } else {
        // It never fails.
        let _ = LogLines.write_all(format!("error: {}\n", line(error)).as_bytes());
    }
}

/// Logs the error that ends a command before the command's last lines.
#[must_use]
pub fn failed(error: Error) -> Error {
    failure(&error);
    Error::Logged(Box::new(error))
}

/// Waits until the last lines are written, within a timeout.
pub fn finish() {
    stderr::finish();
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
    too_large: Repeats,
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
        let repeats = |subject| Repeats { bound, ..Repeats::limited(subject) };
        Self {
            failed: repeats("files that cannot be read"),
            refused: repeats("links that lead out of the data directory"),
            unwatched: repeats("directories that cannot be entered"),
            too_large: repeats("files whose messages the broker refuses for their size"),
            // All these files wait for the same thing, so one line is enough.
            wanting: Repeats { bound: 1, ..repeats("files that wait for descriptors or memory") },
        }
    }

    /// Logs what became of a job.
    pub fn log(&mut self, report: &Report, now: Instant) {
        let path = || String::from_utf8_lossy(&report.job.directory.absolute(&report.job.name)).into_owned();
        match &report.outcome {
            Outcome::Confirmed { version, .. } => {
                tracing::debug!(event = "confirmed", path = path(), bytes = version.size, "confirmed");
            }
            Outcome::Removed => tracing::debug!(event = "removal_confirmed", path = path(), "removal confirmed"),
            Outcome::Unchanged { .. } => {
                tracing::debug!(event = "unchanged", path = path(), "unchanged since its last message");
            }
            Outcome::Unread(cause) => self.unread(cause, path, now),
        }
    }

    fn unread(&mut self, cause: &Unread, path: impl Fn() -> String, now: Instant) {
        match cause {
            Unread::LeadsOut if self.refused.admits(now) => {
                let path = path();
                tracing::warn!(
                    event = "leads_out",
                    path = &*path,
                    "{path:?} leads out of the data directory and is refused"
                );
            }
            Unread::Wanting(cause) if self.wanting.admits(now) => {
                let (path, error) = (path(), os_message(cause));
                tracing::warn!(
                    event = "waits",
                    path = &*path,
                    errno = cause.raw_os_error(),
                    "{path:?} waits because this process cannot open it now: {error}; it is tried again by itself. {}",
                    advice::open_files()
                );
            }
            Unread::Failed(cause) if self.failed.admits(now) => {
                let (path, error) = (path(), os_message(cause));
                tracing::warn!(event = "unreadable", path = &*path, error, "{path:?} cannot be read: {error}");
            }
            Unread::TooLarge { bytes, answer } if self.too_large.admits(now) => {
                let path = path();
                tracing::warn!(
                    event = "too_large",
                    path = &*path,
                    bytes,
                    error = &**answer,
                    "{path:?} has no message, because the broker refuses its {bytes} bytes ({answer}); raise max_message_size in the broker's rabbitmq.conf, or give shorter names to it and its neighbors, and publish it again by a start or a scan"
                );
            }
            _ => Self::unread_in_detail(cause, &path),
        }
    }

    fn unread_in_detail(cause: &Unread, path: &impl Fn() -> String) {
        match cause {
            Unread::Gone => tracing::debug!(event = "gone", path = path(), "gone before it could be read"),
            Unread::NotRegular => tracing::debug!(event = "not_regular", path = path(), "not a regular file"),
            Unread::Busy(why) => tracing::debug!(event = "busy", path = path(), "{why}"),
            Unread::Large => {
                tracing::debug!(event = "large", path = path(), "large: it is read later, among the large files");
            }
            Unread::Stopped => tracing::debug!(event = "left_unread", path = path(), "left unread: the process stops"),
            Unread::StaleRow => tracing::debug!(
                event = "stale_row",
                path = path(),
                "another version: the row of the confirmed one is invalidated first"
            ),
            Unread::LeadsOut => tracing::debug!(event = "leads_out", path = path(), "leads out of the data directory"),
            Unread::Wanting(cause) => {
                let error = os_message(cause);
                tracing::debug!(event = "waits", path = path(), error, "waits: {error}");
            }
            Unread::Failed(cause) => {
                let error = os_message(cause);
                tracing::debug!(event = "unreadable", path = path(), error, "cannot be read: {error}");
            }
            Unread::TooLarge { bytes, answer } => tracing::debug!(
                event = "too_large",
                path = path(),
                bytes,
                error = &**answer,
                "the broker refuses its message of {bytes} bytes: {answer}"
            ),
        }
    }

    /// Logs that a file or a directory exists and cannot be read now.
    pub fn refused(&mut self, path: &[u8], directory: bool, cause: &io::Error, now: Instant) {
        let (path, error) = (String::from_utf8_lossy(path), os_message(cause));
        let (repeats, what) = if directory { (&mut self.unwatched, "entered") } else { (&mut self.failed, "read") };
        if repeats.admits(now) {
            tracing::warn!(
                event = "unreadable",
                path = &*path,
                error,
                "{path:?} cannot be {what}: {error}; it is tried again when its rights change, and with growing pauses of 5 minutes at most"
            );
        } else {
            tracing::debug!(event = "unreadable", path = &*path, error, "{path:?} cannot be {what}: {error}");
        }
    }

    /// Logs that a further try has failed, too.
    pub fn still_refused(path: &[u8], cause: &io::Error) {
        let (path, error) = (String::from_utf8_lossy(path), os_message(cause));
        tracing::debug!(event = "unreadable", path = &*path, error, "{path:?} still cannot be read: {error}");
    }

    fn all_kinds(&mut self) -> [&mut Repeats; 5] {
        let Self { failed, refused, unwatched, wanting, too_large } = self;
        [failed, refused, unwatched, wanting, too_large]
    }

    /// Logs how many lines were held back, for each kind whose minute is over.
    pub fn report_held_back(&mut self, now: Instant) {
        for repeats in self.all_kinds() {
            if repeats.is_over(now) {
                repeats.report();
            }
        }
    }

    /// Logs how many lines were held back, for each kind, at the end.
    pub fn report_all_held_back(&mut self) {
        for repeats in self.all_kinds() {
            repeats.report();
        }
    }
}

/// The rate limit of one kind of line.
#[derive(Debug)]
pub struct Repeats {
    /// What the lines are about, as the count of the held back ones names it.
    subject: &'static str,
    bound: u32,
    since: Option<Instant>,
    logged: u32,
    held_back: u64,
}

impl Repeats {
    /// Admits [`REPEATS_MAX`] lines a minute. `subject` is what they are about.
    #[must_use]
    pub fn limited(subject: &'static str) -> Self {
        Self { subject, bound: REPEATS_MAX, since: None, logged: 0, held_back: 0 }
    }

    /// Whether a line may be logged now; if not, it is counted.
    pub fn admits(&mut self, now: Instant) -> bool {
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

    /// Logs how many lines were held back.
    pub fn report(&mut self) {
        match std::mem::take(&mut self.held_back) {
            0 => {}
            count => tracing::warn!(
                event = "held_back",
                count,
                "and {count} more {} within a minute; LOG_LEVEL=DEBUG names each",
                self.subject
            ),
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
