//! Progress of the stages: how much work each has, when it last made progress, and the numbers that it counts.
//!
//! The stages write here and hardly read; the control socket, the watchdog and the log read. All of it is atomics, except for
//! one example behind a lock that is held only while the example is copied: so no stage waits for a reader.

mod long_reads;
mod unreadable;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

pub use long_reads::{LongRead, LongReads, Shown};
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;
pub use unreadable::Unreadable;

use crate::error::named;
use crate::mailbox::Sender;
use crate::metrics::Metrics;

/// The progress of the whole service.
#[derive(Debug, Default)]
pub struct Progress {
    /// Messages that were handed to the output and are not yet confirmed.
    pub publish: StageProgress,
    /// Rows that wait for the ledger.
    pub ledger: StageProgress,
    /// Directories that exist and cannot be read now.
    pub unreadable: Unreadable,
    /// Files that exist and cannot be read now.
    pub unreadable_files: Unreadable,
    /// How far the start has come.
    pub start: StartProgress,
    /// The numbers for Prometheus.
    pub metrics: Metrics,
    /// What was settled at start, once it is.
    pub facts: OnceLock<Facts>,
    /// The name of the exchange that messages go to, once an output publishes to it.
    pub exchange: OnceLock<String>,
    /// The ways to the watches of the volumes, for questions, by the volumes' numbers, once there are any.
    pub sources: OnceLock<Vec<Sender>>,
    /// The volumes by their numbers, set before the readers start.
    volumes: OnceLock<Vec<Arc<Volume>>>,
    phase: AtomicU8,
    broker: AtomicU8,
    unroutable: AtomicUsize,
}

impl Progress {
    /// How far the service has come.
    #[must_use]
    pub fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Relaxed) {
            phase if phase == Phase::Starting as u8 => Phase::Starting,
            phase if phase == Phase::Ready as u8 => Phase::Ready,
            phase => {
                debug_assert_eq!(phase, Phase::Stopping as u8);
                Phase::Stopping
            }
        }
    }

    /// Sets how far the service has come.
    pub fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Relaxed);
    }

    /// The connection to the broker.
    #[must_use]
    pub fn broker(&self) -> BrokerState {
        match self.broker.load(Ordering::Relaxed) {
            state if state == BrokerState::Unused as u8 => BrokerState::Unused,
            state if state == BrokerState::Disconnected as u8 => BrokerState::Disconnected,
            state if state == BrokerState::Connected as u8 => BrokerState::Connected,
            state => {
                debug_assert_eq!(state, BrokerState::Blocked as u8);
                BrokerState::Blocked
            }
        }
    }

    /// Sets the state of the connection to the broker.
    pub fn set_broker(&self, state: BrokerState) {
        // Restart the stall clock: messages left unconfirmed while the broker was blocked get a full stall time from now.
        self.publish.touch();
        self.broker.store(state as u8, Ordering::Relaxed);
    }

    /// The number of messages that wait until a queue is bound: those that the broker has returned, and those behind them.
    #[must_use]
    pub fn unroutable(&self) -> usize {
        self.unroutable.load(Ordering::Relaxed)
    }

    /// Sets the number of messages that wait until a queue is bound.
    pub fn set_unroutable(&self, messages: usize) {
        if self.unroutable.swap(messages, Ordering::Relaxed) > 0 && messages == 0 {
            // Restart the stall clock: the messages that waited for a queue get a full stall time from now.
            self.publish.touch();
        }
    }

    /// Sets the volumes, once, before the readers start.
    pub fn set_volumes(&self, volumes: Vec<Arc<Volume>>) {
        let set = self.volumes.set(volumes);
        assert!(set.is_ok(), "a process has one pipeline");
    }

    /// The volumes that files are read from.
    #[must_use]
    pub fn volumes(&self) -> &[Arc<Volume>] {
        self.volumes.get().map_or(&[], Vec::as_slice)
    }

    /// The number of jobs in flight.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.volumes().iter().map(|volume| volume.in_flight.load(Ordering::Relaxed)).sum()
    }

    /// The age of the oldest pending file.
    #[must_use]
    pub fn oldest_pending(&self) -> Duration {
        let since = self.volumes().iter().map(|volume| volume.oldest_since.load(Ordering::Relaxed));
        let oldest = since.filter(|since| *since > 0).min();
        oldest.map_or(Duration::ZERO, |since| Duration::from_millis(milliseconds().saturating_sub(since)))
    }

    /// The volumes whose files have waited for at least this time without progress, or whose watch has, each with that time:
    /// their file system does not answer.
    pub fn hanging(&self, stall: Duration) -> impl Iterator<Item = (&Volume, Duration)> {
        let stalled = self.volumes().iter().map(|volume| (&**volume, volume.stalled()));
        stalled.filter(move |(_, stalled)| *stalled >= stall)
    }

    /// Each stage, in the order of the data. The watch and reading stall only if those of every volume do, because a restart
    /// would not mend one file system that hangs, and would interrupt the others (see [`Progress::hanging`]).
    #[must_use]
    pub fn stages(&self) -> [Stage; 4] {
        let publish = match self.broker() {
            // A blocked broker has asked the publisher to wait, so the publisher is not stalled. It is not while it connects
            // again either, for a limited time, because a restart would mend nothing.
            BrokerState::Blocked | BrokerState::Disconnected => Duration::ZERO,
            BrokerState::Connected | BrokerState::Unused => self.publish.stalled(),
        };
        let of_volumes = |name, stage: fn(&Volume) -> &StageProgress| {
            let stages = self.volumes().iter().map(|volume| stage(volume));
            Stage {
                name,
                waiting: stages.clone().map(StageProgress::waiting).sum(),
                stalled: stages.map(StageProgress::stalled).min().unwrap_or_default(),
            }
        };
        let of = |name, stage: &StageProgress, stalled| Stage { name, waiting: stage.waiting(), stalled };
        [
            of_volumes("watch", |volume| &volume.watch),
            of_volumes("read", |volume| &volume.read),
            of("publish", &self.publish, publish),
            of("ledger", &self.ledger, self.ledger.stalled()),
        ]
    }
}

/// A file system with data directories on it. Threads of its own watch them and read their files, so that it can hang alone.
#[derive(Debug, Default)]
pub struct Volume {
    /// The paths of the data directories, quoted, with commas between; the first few where there are many.
    pub directories: String,
    /// The loop of its watch. It has work for as long as it runs, and makes a round at least once a second.
    pub watch: StageProgress,
    /// Files that were dispatched and are not yet read.
    pub read: StageProgress,
    /// The large ones among them.
    pub large: AtomicUsize,
    /// Those that are being read and take long.
    pub long: LongReads,
    /// Jobs that were dispatched and have no report yet.
    pub in_flight: AtomicUsize,
    /// Since when its oldest pending file waits, in milliseconds of the monotonic clock; 0 where there is none.
    oldest_since: AtomicU64,
}

impl Volume {
    /// A volume with nothing to read yet.
    #[must_use]
    pub fn new(directories: String) -> Self {
        Self { directories, ..Self::default() }
    }

    /// The time without progress of its watch or of its files, whichever is longer.
    #[must_use]
    pub fn stalled(&self) -> Duration {
        self.read.stalled().max(self.watch.stalled())
    }

    /// Sets the age of its oldest pending file.
    pub fn set_oldest(&self, age: Option<Duration>) {
        let since = age.map_or(0, |age| milliseconds().saturating_sub(age.as_millis() as u64).max(1));
        self.oldest_since.store(since, Ordering::Relaxed);
    }
}

/// The progress of a stage at one moment.
#[derive(Debug, Clone, Copy)]
pub struct Stage {
    /// The name, as in metrics and in answers.
    pub name: &'static str,
    /// The number of items that wait or are being worked on.
    pub waiting: usize,
    /// The time since its last progress; zero while nothing waits.
    pub stalled: Duration,
}

/// What the start has done so far. It counts on where the tree or the ledger is large, and stays as it is after the start.
#[derive(Debug, Default)]
pub struct StartProgress {
    directories: AtomicU64,
    listed: AtomicU64,
    files: AtomicU64,
    rows: AtomicU64,
    compared: AtomicU64,
}

impl StartProgress {
    /// Counts directories that are watched.
    pub fn watched(&self, directories: usize) {
        self.directories.fetch_add(directories as u64, Ordering::Relaxed);
    }

    /// Counts a directory that is listed, with its files.
    pub fn listed(&self, files: usize) {
        self.listed.fetch_add(1, Ordering::Relaxed);
        self.files.fetch_add(files as u64, Ordering::Relaxed);
    }

    /// Counts a row of the ledger that was loaded.
    pub fn loaded(&self) {
        self.rows.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a file that was compared.
    pub fn compared(&self) {
        self.compared.fetch_add(1, Ordering::Relaxed);
    }

    /// The counts so far.
    #[must_use]
    pub fn counts(&self) -> StartCounts {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        StartCounts {
            directories: count(&self.directories),
            listed: count(&self.listed),
            files: count(&self.files),
            rows: count(&self.rows),
            compared: count(&self.compared),
        }
    }
}

/// The counts of a start at one moment.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct StartCounts {
    /// Directories that are watched, or were to be.
    pub directories: u64,
    /// Those that are listed.
    pub listed: u64,
    /// The files in them.
    pub files: u64,
    /// Rows of the ledger that were loaded.
    pub rows: u64,
    /// Files that were compared.
    pub compared: u64,
}

impl fmt::Display for StartCounts {
    fn fmt(&self, line: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { directories, listed, files, rows, compared } = self;
        write!(line, "{directories} directories watched, {listed} of them listed with {files} files")?;
        if *rows > 0 {
            write!(line, ", {rows} rows of the ledger")?;
        }
        if *compared > 0 {
            write!(line, ", {compared} files compared")?;
        }
        line.write_str(" so far")
    }
}

/// What is settled at start and stays.
#[derive(Debug, Serialize)]
pub struct Facts {
    /// The directories that are watched.
    pub directories: Vec<String>,
    /// Whether their sub-directories are watched, too.
    pub recursive: bool,
    /// The filters, by their flags; empty where every file is published.
    pub filters: String,
    /// Where messages go; a broker's address has its password masked.
    pub output: String,
    /// The read engine's name.
    pub engine: &'static str,
    /// How the files of each data directory are read.
    pub engines: BTreeMap<String, Engine>,
    /// Hashing threads.
    pub workers: usize,
    /// How complete files are distinguished from those that are being written.
    pub protection: String,
}

/// How the files of a data directory are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Engine {
    /// Everything through a ring.
    #[serde(rename = "io_uring")]
    IoUring,
    /// Opened and closed through a ring, and read by plain calls, because the ring cannot read inline there.
    #[serde(rename = "io_uring with plain reads")]
    PlainReads,
    /// By plain calls alone.
    #[serde(rename = "blocking")]
    Blocking,
}

impl Facts {
    /// The engine in words, with the directories that are read in another way than the others.
    #[must_use]
    pub fn engine_in_words(&self) -> String {
        let engine = self.engine;
        let of = |engine| {
            let paths: Vec<_> = self.engines.iter().filter(|(_, own)| **own == engine).map(|(path, _)| path).collect();
            (!paths.is_empty()).then(|| named(paths.into_iter()))
        };
        match (of(Engine::IoUring), of(Engine::PlainReads), of(Engine::Blocking)) {
            (_, None, None) | (None, None, _) => format!("{engine} engine"),
            (None, Some(_), None) => format!("{engine} engine with plain reads"),
            (_, plain, blocking) => {
                let plain = plain.map_or_else(String::new, |paths| format!(", plain reads in {paths}"));
                let blocking = blocking.map_or_else(String::new, |paths| format!(", the blocking engine in {paths}"));
                format!("{engine} engine{plain}{blocking}")
            }
        }
    }
}

/// How far the service has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum Phase {
    /// The first rescan is under way, or the broker is not connected yet.
    Starting,
    /// The service publishes.
    Ready,
    /// A signal or a failure ends the service.
    Stopping,
}

/// The connection to the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum BrokerState {
    /// The output is another one.
    Unused,
    /// There is no connection yet, or it was lost.
    Disconnected,
    /// The broker takes messages.
    Connected,
    /// The broker takes no messages now, because of a memory or disk alarm.
    Blocked,
}

/// One stage's work, and when it last made progress.
#[derive(Debug, Default)]
pub struct StageProgress {
    waiting: AtomicUsize,
    /// The time of its last progress, in milliseconds of the monotonic clock.
    last: AtomicU64,
}

impl StageProgress {
    /// Adds work. The stall clock of a stage that had none starts here.
    pub fn add(&self, items: usize) {
        if self.waiting() == 0 {
            self.touch();
        }
        self.waiting.fetch_add(items, Ordering::Relaxed);
    }

    /// Notes that the stage made progress.
    pub fn touch(&self) {
        self.last.store(milliseconds(), Ordering::Relaxed);
    }

    /// Takes away work that is done.
    pub fn done(&self, items: usize) {
        self.touch();
        let before = self.waiting.fetch_sub(items, Ordering::Relaxed);
        debug_assert!(before >= items, "{items} done of {before}");
    }

    /// The number of items that wait or are being worked on.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// The time since its last progress; zero while nothing waits.
    #[must_use]
    pub fn stalled(&self) -> Duration {
        match self.waiting() {
            0 => Duration::ZERO,
            _ => Duration::from_millis(milliseconds().saturating_sub(self.last.load(Ordering::Relaxed))),
        }
    }
}

/// The coarse monotonic clock: exact to some milliseconds, and cheap, because no hardware is read.
fn milliseconds() -> u64 {
    let now = clock_gettime(ClockId::MonotonicCoarse);
    u64::try_from(now.tv_sec * 1000 + now.tv_nsec / 1_000_000).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Makes the last progress so much older.
    fn age(stage: &StageProgress, milliseconds: u64) {
        stage.last.fetch_sub(milliseconds, Ordering::Relaxed);
    }

    #[test]
    fn a_stage_stalls_only_while_work_waits() {
        let stage = StageProgress::default();
        assert_eq!(stage.stalled(), Duration::ZERO, "it never had work");
        stage.add(2);
        age(&stage, 5000);
        assert!(stage.stalled() >= Duration::from_secs(5));
        stage.done(1);
        assert!(stage.stalled() < Duration::from_secs(5), "it made progress");
        age(&stage, 7000);
        stage.done(1);
        assert_eq!(stage.stalled(), Duration::ZERO, "all done");
        age(&stage, 60_000);
        stage.add(1);
        assert!(stage.stalled() < Duration::from_secs(5), "idleness is no stall");
        age(&stage, 5000);
        stage.add(1);
        assert!(stage.stalled() >= Duration::from_secs(5), "more work is no progress");
    }

    #[test]
    fn a_broker_that_is_blocked_or_away_is_no_stall() {
        let progress = Progress::default();
        progress.publish.add(1);
        for state in [BrokerState::Blocked, BrokerState::Disconnected] {
            progress.set_broker(state);
            age(&progress.publish, 60_000);
            assert!(progress.stages().iter().all(|stage| stage.stalled.is_zero()), "{state:?}");
        }
        progress.set_broker(BrokerState::Connected);
        age(&progress.publish, 60_000);
        assert_eq!(progress.stages().iter().filter(|stage| !stage.stalled.is_zero()).count(), 1);
    }

    #[test]
    fn reading_stalls_only_where_every_volume_does() {
        let volumes: Vec<_> = ["one", "two"].map(|name| Arc::new(Volume::new(name.to_owned()))).into();
        let progress = Progress::default();
        progress.set_volumes(volumes.clone());
        let minute = Duration::from_secs(60);
        let stalled = || {
            let names: Vec<&str> = progress.hanging(minute).map(|(volume, _)| &*volume.directories).collect();
            (progress.stages()[1].stalled >= minute, names.join(" "))
        };
        volumes[0].read.add(2);
        age(&volumes[0].read, 60_000);
        assert_eq!(stalled(), (false, "one".to_owned()), "the other volume has nothing to do");
        volumes[1].read.add(1);
        assert_eq!(stalled(), (false, "one".to_owned()));
        age(&volumes[1].read, 60_000);
        assert_eq!(stalled(), (true, "one two".to_owned()));
        assert_eq!(progress.stages()[1].waiting, 3);
        volumes[0].read.done(1);
        assert_eq!(stalled(), (false, "two".to_owned()));
    }

    #[test]
    fn a_missing_queue_is_no_stall_while_the_broker_answers() {
        let progress = Progress::default();
        progress.set_broker(BrokerState::Connected);
        progress.publish.add(1);
        progress.set_unroutable(1);
        age(&progress.publish, 60_000);
        assert!(progress.publish.stalled() >= Duration::from_secs(60), "no probe was answered for so long");
        progress.publish.done(0);
        assert!(progress.stages().iter().all(|stage| stage.stalled < Duration::from_secs(5)), "one was");
        age(&progress.publish, 60_000);
        progress.set_unroutable(0);
        assert!(progress.publish.stalled() < Duration::from_secs(5), "the time counts from here");
        age(&progress.publish, 60_000);
        assert_eq!(progress.stages().iter().filter(|stage| !stage.stalled.is_zero()).count(), 1);
    }

    #[test]
    fn unreadable_directories_are_described_by_one_example() {
        let unreadable = Unreadable::default();
        assert_eq!(unreadable.describe("directory", "directories"), None);
        unreadable.are(0, 2, "/srv/x", "Permission denied");
        let line = unreadable.describe("directory", "directories").unwrap();
        assert_eq!(line, "2 directories cannot be read, \"/srv/x\" for one: Permission denied");
        unreadable.are(0, 1, "/srv/x", "Permission denied");
        assert_eq!(
            unreadable.describe("directory", "directories").unwrap(),
            "the directory \"/srv/x\" cannot be read: Permission denied"
        );
        unreadable.are(0, 1, &"é".repeat(5000), "Permission denied");
        assert!(unreadable.describe("directory", "directories").unwrap().chars().count() < unreadable::SHOWN_MAX + 64);
        unreadable.are(0, 0, "", "");
        assert_eq!(unreadable.describe("directory", "directories"), None);
    }

    #[test]
    fn states_are_kept_as_they_are_set() {
        let progress = Progress::default();
        assert_eq!((progress.phase(), progress.broker()), (Phase::Starting, BrokerState::Unused));
        for phase in [Phase::Starting, Phase::Ready, Phase::Stopping] {
            progress.enter(phase);
            assert_eq!(progress.phase(), phase);
        }
        for state in [BrokerState::Unused, BrokerState::Disconnected, BrokerState::Connected, BrokerState::Blocked] {
            progress.set_broker(state);
            assert_eq!(progress.broker(), state);
        }
    }
}
