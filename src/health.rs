//! The verdict: whether the service is alive and makes progress, whether it can deliver, and the line that says why not.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::progress::{BrokerState, Facts, Phase, Progress, Stage, StartCounts};

/// The verdict of `GET /health`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// The first rescan is under way, or the broker is not connected yet.
    Starting,
    /// Every stage makes progress, or has nothing to do.
    Healthy,
    /// A stage has work and makes no progress.
    Unhealthy,
    /// The service finishes what is in flight.
    Stopping,
}

/// The verdict, and the line that explains it.
#[must_use]
pub fn assess(progress: &Progress, stall: Duration) -> (Status, String) {
    let worst = progress.stages().into_iter().filter(|stage| stage.stalled >= stall).max_by_key(|stage| stage.stalled);
    if let Some(Stage { name, waiting, stalled }) = worst {
        let line = format!("unhealthy: {name} has got no further for {} s with {waiting} waiting", stalled.as_secs());
        return (Status::Unhealthy, hanging(progress, stall).fold(line, |line, what| line + "; " + &what));
    }
    match (progress.phase(), progress.broker()) {
        (Phase::Starting, BrokerState::Disconnected) => (Status::Starting, "starting: waits for the broker".to_owned()),
        (Phase::Starting, _) => {
            let counts = match progress.start.counts() {
                counts if counts == StartCounts::default() => String::new(),
                counts => format!(": {counts}"),
            };
            (Status::Starting, format!("starting: the first rescan is under way{counts}"))
        }
        (Phase::Stopping, _) => (Status::Stopping, format!("stopping: {}", counts(progress))),
        (Phase::Ready, _) => {
            let line = in_the_way(progress, stall)
                .iter()
                .chain(&progress.unreadable_files.describe("file", "files"))
                .fold(format!("healthy: {}", counts(progress)), |line, what| line + "; " + what);
            (Status::Healthy, line)
        }
    }
}

fn counts(progress: &Progress) -> String {
    let metrics = &progress.metrics;
    format!("{} pending, {} messages confirmed", metrics.pending_files.get(), metrics.messages_confirmed.get())
}

/// Each obstacle that keeps files waiting and that a restart would not mend, in words.
fn in_the_way(progress: &Progress, stall: Duration) -> Vec<String> {
    let broker = match progress.broker() {
        BrokerState::Disconnected => Some("there is no connection to the broker".to_owned()),
        BrokerState::Blocked => Some("the broker takes no messages now".to_owned()),
        BrokerState::Unused | BrokerState::Connected => None,
    };
    let queue = (progress.unroutable() > 0).then(|| {
        let exchange = progress.exchange.get().map_or("", String::as_str);
        format!("no queue is bound to the exchange `{exchange}` and {} messages wait for one", progress.unroutable())
    });
    let directories = progress.unreadable.describe("directory", "directories");
    [broker, queue, directories].into_iter().flatten().chain(hanging(progress, stall)).collect()
}

/// The data directories whose file system does not answer, in words.
fn hanging(progress: &Progress, stall: Duration) -> impl Iterator<Item = String> {
    progress.hanging(stall).map(|(volume, stalled)| {
        let (directories, waiting) = (&volume.directories, volume.read.waiting());
        format!("nothing could be read in {directories} for {} s and {waiting} files wait", stalled.as_secs())
    })
}

/// Whether a file that lands now can be delivered, and the line that says so or names every obstacle.
///
/// The service knows from the broker's answer to its last message whether a queue is bound. Before the first message it
/// assumes that one is.
#[must_use]
pub fn assess_readiness(progress: &Progress, stall: Duration) -> (bool, String) {
    let (status, summary) = assess(progress, stall);
    if matches!(status, Status::Starting | Status::Stopping) {
        return (false, format!("not ready: {summary}"));
    }
    let stalled = (status == Status::Unhealthy).then_some(summary);
    let is_new = |what: &String| stalled.as_ref().is_none_or(|summary| !summary.contains(what));
    let others: Vec<String> = in_the_way(progress, stall).into_iter().filter(is_new).collect();
    let obstacles: Vec<String> = stalled.into_iter().chain(others).collect();
    if obstacles.is_empty() {
        return (true, format!("ready: {}", counts(progress)));
    }
    (false, format!("not ready: {}", obstacles.join("; ")))
}

/// The answer to `GET /ready`.
#[derive(Debug, Serialize)]
pub struct Readiness {
    /// Whether a file that lands now can be delivered.
    pub ready: bool,
    /// The line that says so, or names every obstacle.
    pub summary: String,
}

impl Readiness {
    /// The answer at this moment.
    #[must_use]
    pub fn of(progress: &Progress, stall: Duration) -> Self {
        let (ready, summary) = assess_readiness(progress, stall);
        Self { ready, summary }
    }
}

/// The answer to `GET /health`.
#[derive(Debug, Serialize)]
pub struct Health<'a> {
    /// The verdict.
    pub status: Status,
    /// The line that explains it.
    pub summary: String,
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
    /// The stages by their names.
    pub stages: BTreeMap<&'static str, StageHealth>,
    /// Data directories whose files wait and cannot be read, because their file system does not answer.
    pub hanging_directories: Vec<&'a str>,
    /// Files between their first event and their confirm.
    pub pending_files: i64,
    /// The age of the oldest pending file.
    pub oldest_pending_seconds: f64,
    /// Messages that were published and not yet confirmed.
    pub unconfirmed_messages: i64,
    /// Messages that wait until a queue is bound to the exchange.
    pub unroutable_messages: usize,
    /// Messages that the output has confirmed.
    pub confirmed_messages: u64,
    /// Files that could not be read.
    pub failed_files: u64,
}

impl<'a> Health<'a> {
    /// The answer at this moment.
    #[must_use]
    pub fn of(progress: &'a Progress, stall: Duration, began: Instant) -> Self {
        let (status, summary) = assess(progress, stall);
        let stage = |Stage { name, waiting, stalled }| {
            (name, StageHealth { alive: stalled < stall, waiting, stalled_seconds: stalled.as_secs_f64() })
        };
        let metrics = &progress.metrics;
        Self {
            status,
            summary,
            version: env!("CARGO_PKG_VERSION"),
            pid: std::process::id(),
            uptime_seconds: began.elapsed().as_secs(),
            service: progress.facts.get(),
            broker: progress.broker(),
            stages: progress.stages().into_iter().map(stage).collect(),
            hanging_directories: progress.hanging(stall).map(|(volume, _)| volume.directories.as_str()).collect(),
            pending_files: metrics.pending_files.get(),
            oldest_pending_seconds: progress.oldest_pending().as_secs_f64(),
            unconfirmed_messages: metrics.unconfirmed_messages.get(),
            unroutable_messages: progress.unroutable(),
            confirmed_messages: metrics.messages_confirmed.get(),
            failed_files: metrics.totals().failed,
        }
    }
}

/// One stage in the answer to `GET /health`.
#[derive(Debug, Serialize)]
pub struct StageHealth {
    /// Whether the stage makes progress, or has nothing to do.
    pub alive: bool,
    /// The number of items that wait or are being worked on.
    pub waiting: usize,
    /// The time since its last progress while work waits.
    pub stalled_seconds: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    const STALL: Duration = Duration::from_secs(60);

    fn at_work() -> Progress {
        let progress = Progress::default();
        progress.set_broker(BrokerState::Connected);
        progress.enter(Phase::Ready);
        progress
    }

    #[track_caller]
    fn assert_not_ready(progress: &Progress, wanted: &[&str]) {
        let (ready, line) = assess_readiness(progress, STALL);
        assert!(!ready && line.starts_with("not ready: ") && line.lines().count() == 1, "{line}");
        assert!(wanted.iter().all(|word| line.contains(word)), "{line}");
    }

    #[test]
    fn a_service_that_can_deliver_is_ready() {
        let progress = at_work();
        assert_eq!(assess_readiness(&progress, STALL), (true, "ready: 0 pending, 0 messages confirmed".to_owned()));
        progress.set_broker(BrokerState::Unused);
        assert!(assess_readiness(&progress, STALL).0, "an output without a broker misses none");
        progress.enter(Phase::Starting);
        assert_not_ready(&progress, &["starting"]);
        progress.enter(Phase::Stopping);
        assert_not_ready(&progress, &["stopping"]);
    }

    #[test]
    fn every_obstacle_is_named_and_none_makes_the_service_unhealthy() {
        let progress = at_work();
        progress.set_unroutable(7);
        assert_not_ready(&progress, &["no queue", "7 messages"]);
        progress.unreadable.are(0, 2, "/srv/x", "Permission denied");
        assert_not_ready(
            &progress,
            &["no queue", "; 2 directories cannot be read, \"/srv/x\" for one: Permission denied"],
        );
        progress.set_broker(BrokerState::Blocked);
        assert_not_ready(&progress, &["takes no messages", "no queue", "2 directories"]);
        let (status, line) = assess(&progress, STALL);
        assert_eq!(status, Status::Healthy);
        assert!(["takes no messages", "no queue", "2 directories"].iter().all(|word| line.contains(word)), "{line}");
        progress.set_broker(BrokerState::Disconnected);
        progress.set_unroutable(0);
        progress.unreadable.are(0, 0, "", "");
        assert_not_ready(&progress, &["no connection"]);
        progress.set_broker(BrokerState::Connected);
        assert!(assess_readiness(&progress, STALL).0);
    }

    #[test]
    fn the_healthy_line_names_a_missing_queue() {
        let progress = at_work();
        progress.set_unroutable(3);
        let (status, line) = assess(&progress, STALL);
        assert_eq!(status, Status::Healthy);
        assert!(line.contains("no queue is bound") && line.contains("3 messages wait"), "{line}");
    }
}
