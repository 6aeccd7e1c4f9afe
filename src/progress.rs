//! Signs of life: what each stage has to do, when it last got on with it, and the numbers that it counts.
//!
//! The stages write here and hardly read; the control socket, the watchdog and the log read. All of it is atomics, but for one
//! example that is held while it is copied: nobody waits for anybody.

use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;

use crate::metrics::Metrics;

/// What runs and how it gets on.
#[derive(Debug, Default)]
pub struct Progress {
    /// The loop of the watch. It has work for as long as it runs: it comes round at least once a second.
    pub watch: StageProgress,
    /// Messages handed to the output and not yet confirmed.
    pub publish: StageProgress,
    /// Rows that wait for the ledger.
    pub ledger: StageProgress,
    /// Directories that are there and cannot be read now.
    pub unreadable: Unreadable,
    /// Files that are.
    pub unreadable_files: Unreadable,
    /// The numbers.
    pub metrics: Metrics,
    /// What was settled at start, once it is.
    pub facts: OnceLock<Facts>,
    /// By their numbers, once the readers are about to start.
    volumes: OnceLock<Vec<Arc<Volume>>>,
    phase: AtomicU8,
    broker: AtomicU8,
    unroutable: AtomicUsize,
}

/// A file system that data directories are on: their files are read by threads of their own.
#[derive(Debug)]
pub struct Volume {
    /// The paths of the data directories, quoted, with commas between.
    pub directories: String,
    /// Files handed to the readers and not yet read.
    pub read: StageProgress,
    /// The large ones among them.
    pub large: AtomicUsize,
}

impl Volume {
    /// With nothing to do yet.
    #[must_use]
    pub fn new(directories: String) -> Self {
        Self { directories, read: StageProgress::default(), large: AtomicUsize::new(0) }
    }
}

/// A stage, and how it gets on.
#[derive(Debug, Clone, Copy)]
pub struct Stage {
    /// Its name.
    pub name: &'static str,
    /// Pieces that wait or are being worked on.
    pub waiting: usize,
    /// For how long it has got no further; zero where nothing waits.
    pub stalled: Duration,
}

/// What does not change while the service runs.
#[derive(Debug, Serialize)]
pub struct Facts {
    /// The directories that are watched.
    pub directories: Vec<String>,
    /// Where messages go; a broker's address has its password masked.
    pub output: String,
    /// The read engine's name.
    pub engine: &'static str,
    /// Hashing threads.
    pub workers: usize,
    /// What tells a file that is complete from one that is being written.
    pub protection: String,
}

/// How far the service has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum Phase {
    /// The watch or the broker does not stand yet.
    Starting,
    /// Files become messages.
    Ready,
    /// A signal came, or the end.
    Stopping,
}

/// What the broker is to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum BrokerState {
    /// The output is another.
    Unused,
    /// Not connected yet, or not any more.
    Disconnected,
    /// It takes messages.
    Connected,
    /// It takes no messages now: a memory or disk alarm.
    Blocked,
}

impl Progress {
    /// How far the service has come.
    #[must_use]
    pub fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Relaxed) {
            0 => Phase::Starting,
            1 => Phase::Ready,
            _ => Phase::Stopping,
        }
    }

    /// It has come further.
    pub fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Relaxed);
    }

    /// What the broker is to us.
    #[must_use]
    pub fn broker(&self) -> BrokerState {
        match self.broker.load(Ordering::Relaxed) {
            0 => BrokerState::Unused,
            1 => BrokerState::Disconnected,
            2 => BrokerState::Connected,
            _ => BrokerState::Blocked,
        }
    }

    /// The broker has become this.
    pub fn broker_is(&self, state: BrokerState) {
        // What a broker that was blocked has not confirmed, it has from now on time to.
        self.publish.touch();
        self.broker.store(state as u8, Ordering::Relaxed);
    }

    /// Messages that the broker has returned, and those behind them, that wait until a queue is bound; 0 while none is
    /// missing, as far as is known.
    #[must_use]
    pub fn unroutable(&self) -> usize {
        self.unroutable.load(Ordering::Relaxed)
    }

    /// So many messages wait until a queue is bound.
    pub fn unroutable_are(&self, messages: usize) {
        if self.unroutable.swap(messages, Ordering::Relaxed) > 0 && messages == 0 {
            // What waited for a queue has from now on time to be confirmed.
            self.publish.touch();
        }
    }

    /// Tells which volumes there are.
    pub fn set_volumes(&self, volumes: Vec<Arc<Volume>>) {
        let _ = self.volumes.set(volumes); // once a pipeline, and there is one
    }

    /// The volumes that files are read from.
    #[must_use]
    pub fn volumes(&self) -> &[Arc<Volume>] {
        self.volumes.get().map_or(&[], Vec::as_slice)
    }

    /// Volumes whose files wait and get no further for so long, each with that time: their file system does not answer.
    pub fn hanging(&self, stall: Duration) -> impl Iterator<Item = (&Volume, Duration)> {
        let stalled = self.volumes().iter().map(|volume| (&**volume, volume.read.stalled()));
        stalled.filter(move |(_, stalled)| *stalled >= stall)
    }

    /// Each stage, in the order of the data. Reading gets on while one volume does, or has nothing to do: what a file
    /// system that hangs holds up a restart would not mend, and would take from the others (see [`Progress::hanging`]).
    #[must_use]
    pub fn stages(&self) -> [Stage; 4] {
        let publish = match self.broker() {
            // It waits for the broker by order, which is no illness of its own.
            BrokerState::Blocked => Duration::ZERO,
            _ => self.publish.stalled(),
        };
        let volumes = self.volumes().iter();
        let read = Stage {
            name: "read",
            waiting: volumes.clone().map(|volume| volume.read.waiting()).sum(),
            stalled: volumes.map(|volume| volume.read.stalled()).min().unwrap_or_default(),
        };
        let of = |name, pulse: &StageProgress, stalled| Stage { name, waiting: pulse.waiting(), stalled };
        [
            of("watch", &self.watch, self.watch.stalled()),
            read,
            of("publish", &self.publish, publish),
            of("ledger", &self.ledger, self.ledger.stalled()),
        ]
    }
}

/// How many directories or files are there and cannot be read now, and one of them with what the kernel says of it.
#[derive(Debug, Default)]
pub struct Unreadable(Mutex<Option<Example>>);

#[derive(Debug)]
struct Example {
    count: usize,
    /// In quotes, at most [`SHOWN_MAX`] characters of it.
    path: String,
    cause: String,
}

/// The longest path that is shown, in characters: the kernel's longest (PATH_MAX, 4096 bytes) has no more.
const SHOWN_MAX: usize = 4096;

impl Unreadable {
    /// So many cannot be read now, this one among them, for this cause in the kernel's words. None: all can be read, and path
    /// and cause are not looked at.
    pub fn are(&self, count: usize, path: &str, cause: &str) {
        let shown: String = path.chars().take(SHOWN_MAX).collect();
        let example = Example { count, path: format!("{shown:?}"), cause: cause.to_owned() };
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = (count > 0).then_some(example);
    }

    /// What is wrong, in words, with the words for one of them and for several; nothing when all can be read.
    #[must_use]
    pub fn describe(&self, one: &str, several: &str) -> Option<String> {
        let held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        held.as_ref().map(|Example { count, path, cause }| match count {
            1 => format!("the {one} {path} cannot be read: {cause}"),
            _ => format!("{count} {several} cannot be read, {path} for one: {cause}"),
        })
    }
}

/// One stage's work, and when it last got on with it.
#[derive(Debug, Default)]
pub struct StageProgress {
    waiting: AtomicUsize,
    /// Milliseconds of the monotonic clock.
    last: AtomicU64,
}

impl StageProgress {
    /// More work is there. Of a stage that had none, the time counts from here.
    pub fn add(&self, pieces: usize) {
        if self.waiting() == 0 {
            self.touch();
        }
        self.waiting.fetch_add(pieces, Ordering::Relaxed);
    }

    /// It got a step further.
    pub fn touch(&self) {
        self.last.store(milliseconds(), Ordering::Relaxed);
    }

    /// So many pieces are done.
    pub fn done(&self, pieces: usize) {
        self.touch();
        self.waiting.fetch_sub(pieces, Ordering::Relaxed);
    }

    /// Pieces that wait or are being worked on.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// For how long it has got no further; zero where nothing waits.
    #[must_use]
    pub fn stalled(&self) -> Duration {
        match self.waiting() {
            0 => Duration::ZERO,
            _ => Duration::from_millis(milliseconds().saturating_sub(self.last.load(Ordering::Relaxed))),
        }
    }
}

/// The coarse clock: some milliseconds exact, and read without a look at the hardware.
fn milliseconds() -> u64 {
    let now = clock_gettime(ClockId::MonotonicCoarse);
    u64::try_from(now.tv_sec * 1000 + now.tv_nsec / 1_000_000).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As if the last step had been so long ago.
    fn age(pulse: &StageProgress, milliseconds: u64) {
        pulse.last.fetch_sub(milliseconds, Ordering::Relaxed);
    }

    #[test]
    fn a_stage_stalls_only_while_work_waits() {
        let pulse = StageProgress::default();
        assert_eq!(pulse.stalled(), Duration::ZERO, "it never had any");
        pulse.add(2);
        age(&pulse, 5000);
        assert!(pulse.stalled() >= Duration::from_secs(5));
        pulse.done(1);
        assert!(pulse.stalled() < Duration::from_secs(5), "a step");
        age(&pulse, 7000);
        pulse.done(1);
        assert_eq!(pulse.stalled(), Duration::ZERO, "all done");
        age(&pulse, 60_000);
        pulse.add(1);
        assert!(pulse.stalled() < Duration::from_secs(5), "idleness is no stall");
        age(&pulse, 5000);
        pulse.add(1);
        assert!(pulse.stalled() >= Duration::from_secs(5), "more work is no step");
    }

    #[test]
    fn a_blocked_broker_stalls_nobody() {
        let progress = Progress::default();
        progress.publish.add(1);
        progress.broker_is(BrokerState::Blocked);
        age(&progress.publish, 60_000);
        assert!(progress.stages().iter().all(|stage| stage.stalled.is_zero()));
        progress.broker_is(BrokerState::Connected);
        age(&progress.publish, 60_000);
        assert_eq!(progress.stages().iter().filter(|stage| !stage.stalled.is_zero()).count(), 1);
    }

    #[test]
    fn reading_stalls_only_where_every_volume_does() {
        let volumes: Vec<_> = ["one", "two"].map(|name| Arc::new(Volume::new(name.to_owned()))).into();
        let progress = Progress::default();
        progress.set_volumes(volumes.clone());
        let minute = Duration::from_secs(60);
        let told = || {
            let names: Vec<&str> = progress.hanging(minute).map(|(volume, _)| &*volume.directories).collect();
            (progress.stages()[1].stalled >= minute, names.join(" "))
        };
        volumes[0].read.add(2);
        age(&volumes[0].read, 60_000);
        assert_eq!(told(), (false, "one".to_owned()), "the other has nothing to do");
        volumes[1].read.add(1);
        assert_eq!(told(), (false, "one".to_owned()));
        age(&volumes[1].read, 60_000);
        assert_eq!(told(), (true, "one two".to_owned()));
        assert_eq!(progress.stages()[1].waiting, 3);
        volumes[0].read.done(1);
        assert_eq!(told(), (false, "two".to_owned()));
    }

    #[test]
    fn want_of_a_queue_is_no_stall_while_the_broker_answers() {
        let progress = Progress::default();
        progress.broker_is(BrokerState::Connected);
        progress.publish.add(1);
        progress.unroutable_are(1);
        age(&progress.publish, 60_000);
        assert!(progress.publish.stalled() >= Duration::from_secs(60), "no probe was answered for so long");
        progress.publish.done(0);
        assert!(progress.stages().iter().all(|stage| stage.stalled < Duration::from_secs(5)), "one was");
        age(&progress.publish, 60_000);
        progress.unroutable_are(0);
        assert!(progress.publish.stalled() < Duration::from_secs(5), "the time counts from here");
        age(&progress.publish, 60_000);
        assert_eq!(progress.stages().iter().filter(|stage| !stage.stalled.is_zero()).count(), 1);
    }

    #[test]
    fn directories_that_cannot_be_read_are_told_of_with_one_example() {
        let unreadable = Unreadable::default();
        assert_eq!(unreadable.describe("directory", "directories"), None);
        unreadable.are(2, "/srv/x", "Permission denied");
        let told = unreadable.describe("directory", "directories").unwrap();
        assert_eq!(told, "2 directories cannot be read, \"/srv/x\" for one: Permission denied");
        unreadable.are(1, "/srv/x", "Permission denied");
        assert_eq!(
            unreadable.describe("directory", "directories").unwrap(),
            "the directory \"/srv/x\" cannot be read: Permission denied"
        );
        unreadable.are(1, &"é".repeat(5000), "Permission denied");
        assert!(unreadable.describe("directory", "directories").unwrap().chars().count() < SHOWN_MAX + 64);
        unreadable.are(0, "", "");
        assert_eq!(unreadable.describe("directory", "directories"), None);
    }

    #[test]
    fn states_are_kept_as_they_are_told() {
        let progress = Progress::default();
        assert_eq!((progress.phase(), progress.broker()), (Phase::Starting, BrokerState::Unused));
        for phase in [Phase::Starting, Phase::Ready, Phase::Stopping] {
            progress.enter(phase);
            assert_eq!(progress.phase(), phase);
        }
        for state in [BrokerState::Unused, BrokerState::Disconnected, BrokerState::Connected, BrokerState::Blocked] {
            progress.broker_is(state);
            assert_eq!(progress.broker(), state);
        }
    }
}
