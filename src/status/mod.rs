//! The answers to `GET /status` and `GET /`: the verdict, the rates, and what became of single files.
//!
//! It is put together from what the stages write (`progress`), and from what the source of jobs answers (`inquiry`). Each
//! list in it is bounded by [`LISTED_MAX`], and stands beside the count of all.

pub mod file;
pub mod history;
pub mod page;

use std::time::{Duration, Instant};

use serde::Serialize;

use crate::files::version::Timestamp;
use crate::files::writers::Writer;
use crate::health::{Health, Readiness};
use crate::inquiry::{Answer, Held, LISTED_MAX, Waiting};
use crate::progress::{BrokerState, Facts, Progress};
use file::{EndedFile, FileStatus, OpenBy, Reading, RefusedFile, ShownPath, WaitingFile, shown_time};
use history::{History, Rates, Sample};

/// The answer to `GET /status`.
#[derive(Debug, Serialize)]
pub struct Status<'a> {
    /// When it was put together.
    pub time: String,
    /// The verdict of `GET /health`: `starting`, `healthy`, `unhealthy` or `stopping`.
    pub status: crate::health::Status,
    /// The line that explains it.
    pub summary: String,
    /// Whether a file that lands now can be delivered.
    pub ready: bool,
    /// The line that says so, or names every obstacle.
    pub readiness: String,
    /// The version of the program.
    pub version: &'static str,
    /// The process id.
    pub pid: u32,
    /// The time since the start.
    pub uptime_seconds: u64,
    /// What was settled at start, once it is.
    pub service: Option<&'a Facts>,
    /// The connection to the broker.
    pub broker: BrokerState,
    /// The exchange that messages go to, once an output publishes to it.
    pub exchange: Option<&'a str>,
    /// Files between their first event and their confirm.
    pub pending_files: i64,
    /// Messages that wait until a queue is bound to the exchange.
    pub unroutable_messages: usize,
    /// Messages that the output has confirmed since the start.
    pub confirmed_messages: u64,
    /// Files that could not be read since the start.
    pub failed_files: u64,
    /// What was done in the last minutes.
    pub rates: Rates,
    /// Large files that are being read.
    pub reading: Vec<Reading>,
    /// What the watches of the volumes know of single files; `null` where none answers.
    pub files: Option<Files>,
    /// Why one does not, where one does not.
    pub files_missing: Option<String>,
    /// What became of the file that was asked for, if one was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<FileStatus>,
}

/// What the watch knows of single files.
#[derive(Debug, Serialize)]
pub struct Files {
    /// Files that wait: all of them.
    pub pending: usize,
    /// The oldest, oldest first.
    pub waiting: Vec<WaitingFile>,
    /// Files and directories that exist and cannot be read now: all of them.
    pub unreadable: usize,
    /// Those that are unreadable for the longest time.
    pub unreadable_files: Vec<RefusedFile>,
    /// Directories without a watch: all of them.
    pub unwatched: usize,
    /// Some of them.
    pub unwatched_directories: Vec<ShownPath>,
    /// What the kernel said about the last of them.
    pub unwatched_error: Option<String>,
    /// The last outcomes, last first.
    pub recent: Vec<EndedFile>,
    /// The last failures, last first.
    pub failures: Vec<EndedFile>,
}

/// What an answer is made of, beside the source's.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// What the stages write.
    pub progress: &'a Progress,
    /// See `--stall-seconds`.
    pub stall: Duration,
    /// When the service began.
    pub began: Instant,
}

impl<'a> View<'a> {
    /// The status without the files that the source knows. `missing` says why.
    #[must_use]
    pub fn status(self, history: &History, missing: Option<String>) -> Status<'a> {
        let Self { progress, stall, began } = self;
        let health = Health::of(progress, stall, began);
        let Readiness { ready, summary: readiness } = Readiness::of(progress, stall);
        let now = Instant::now();
        Status {
            time: shown_time(Timestamp::now()),
            status: health.status,
            summary: health.summary,
            ready,
            readiness,
            version: health.version,
            pid: health.pid,
            uptime_seconds: health.uptime_seconds,
            service: health.service,
            broker: health.broker,
            exchange: progress.exchange.get().map(String::as_str),
            pending_files: health.pending_files,
            unroutable_messages: health.unroutable_messages,
            confirmed_messages: health.confirmed_messages,
            failed_files: health.failed_files,
            rates: history.rates(&Sample::of(&progress.metrics, now)),
            reading: self.reading(),
            files: None,
            files_missing: missing,
            file: None,
        }
    }

    /// The files that the source knows. `writers` are of the paths of `answer.waiting`.
    #[must_use]
    pub fn files(self, answer: &Answer, writers: &[Writer]) -> Files {
        let waiting = answer.waiting.iter().enumerate();
        Files {
            pending: answer.pending,
            waiting: waiting.map(|(number, waiting)| self.waiting(waiting, number, writers)).collect(),
            unreadable: answer.refused,
            unreadable_files: answer.refusals.iter().cloned().map(RefusedFile::from).collect(),
            unwatched: answer.unwatched,
            unwatched_directories: answer.unwatched_paths.iter().map(|path| ShownPath::of(path)).collect(),
            unwatched_error: answer.unwatched_cause.clone().filter(|_| answer.unwatched > 0),
            recent: answer.recent.iter().map(EndedFile::from).collect(),
            failures: answer.failures.iter().map(EndedFile::from).collect(),
        }
    }

    fn reading(self) -> Vec<Reading> {
        let all = self.progress.volumes().iter().flat_map(|volume| volume.long.all());
        let shown = |read: std::sync::Arc<crate::progress::LongRead>| Reading {
            path: ShownPath::of(&read.path),
            bytes: read.at(),
            of_bytes: read.size,
        };
        all.take(LISTED_MAX).map(shown).collect()
    }

    /// A file that waits, `number` being its place among the paths of `writers`.
    #[must_use]
    pub fn waiting(self, waiting: &Waiting, number: usize, writers: &[Writer]) -> WaitingFile {
        let own = writers.iter().filter(|writer| writer.path == number);
        let open_by: Vec<OpenBy> =
            own.map(|writer| OpenBy { pid: writer.pid, command: writer.command.clone() }).collect();
        let (reason, why) = self.reason(waiting, &open_by);
        let path = ShownPath::of(&waiting.path);
        WaitingFile { path, seconds: waiting.age.as_secs_f64(), reason, why, open_by }
    }

    fn reason(self, waiting: &Waiting, open_by: &[OpenBy]) -> (&'static str, String) {
        let by = |open_by: &[OpenBy]| {
            let named: Vec<_> = open_by.iter().map(|by| format!("pid {} ({})", by.pid, by.command)).collect();
            if named.is_empty() { "a process that is not known here".to_owned() } else { named.join(", ") }
        };
        match waiting.held {
            Held::Settling if !open_by.is_empty() => {
                ("open_for_writing", format!("open for writing by {}", by(open_by)))
            }
            Held::Settling => (
                "settling",
                "created and not closed: it waits for its close, or for --settle-ms without a change".to_owned(),
            ),
            Held::Quiet => ("quiet", "closed or renamed: it waits for --quiet-ms without a change".to_owned()),
            Held::Writer => ("open_for_writing", format!("open for writing by {}", by(open_by))),
            Held::Changing => ("changing", "it changed while it was read, and is read again".to_owned()),
            Held::Wanting => ("no_descriptors", "the service has no descriptor or no memory for it now".to_owned()),
            Held::Row => ("ledger_row", "the ledger's row of what was here before is being deleted first".to_owned()),
            Held::Room => ("queued", "as many files are in flight as there may be: it is read next".to_owned()),
            Held::InFlight => self.in_flight(waiting),
        }
    }

    /// The reason of a file that is in flight, as far as the stages show it: which message is whose only they know.
    fn in_flight(self, waiting: &Waiting) -> (&'static str, String) {
        let progress = self.progress;
        let volume = progress.volumes().get(waiting.volume);
        if let Some(read) = volume.and_then(|volume| volume.long.all().into_iter().find(|it| it.path == waiting.path)) {
            return ("reading", format!("being read: {} of {} bytes", read.at(), read.size));
        }
        let publishing = progress.publish.waiting();
        if publishing == 0 {
            return ("reading", "being read".to_owned());
        }
        let read_first = match volume.map_or(0, |volume| volume.read.waiting()) {
            0 => "",
            _ => "being read, or ",
        };
        let (reason, why) = match progress.broker() {
            BrokerState::Disconnected => ("broker_away", "it waits for a connection to the broker".to_owned()),
            BrokerState::Blocked => ("broker_blocked", "it waits because the broker takes no messages now".to_owned()),
            BrokerState::Unused | BrokerState::Connected => match progress.unroutable() {
                0 => ("unconfirmed", "it waits for the confirm of its message".to_owned()),
                all if all >= publishing => ("no_queue", "no queue is bound for its message".to_owned()),
                some => {
                    let why = format!(
                        "it waits for the confirm of its message; no queue is bound for {some} of {publishing}"
                    );
                    ("unconfirmed", why)
                }
            },
        };
        (reason, format!("{read_first}{why}"))
    }
}
