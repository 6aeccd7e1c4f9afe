//! Is the service alive and getting on, and can it deliver? The verdict that it gives of itself.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::message::EXCHANGE;
use crate::progress::{BrokerState, Facts, Phase, Progress, Stage};

/// A verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// The watch or the broker does not stand yet.
    Starting,
    /// Every stage gets on, or has nothing to do.
    Healthy,
    /// A stage has work and gets no further.
    Unhealthy,
    /// It finishes what is in progress.
    Stopping,
}

/// All that the service says of itself.
#[derive(Debug, Serialize)]
pub struct Health<'a> {
    /// The verdict.
    pub status: Status,
    /// The same in a line, with what matters most.
    pub summary: String,
    /// The program's.
    pub version: &'static str,
    /// The process.
    pub pid: u32,
    /// Since its start.
    pub uptime_seconds: u64,
    /// What does not change, once it is settled.
    pub service: Option<&'a Facts>,
    /// What the broker is to us.
    pub broker: BrokerState,
    /// By name.
    pub stages: BTreeMap<&'static str, StageHealth>,
    /// Data directories whose files wait and cannot be read: their file system does not answer.
    pub hanging_directories: Vec<&'a str>,
    /// Files between their first event and their confirm.
    pub pending_files: i64,
    /// Age of the oldest of them.
    pub oldest_pending_seconds: f64,
    /// Messages sent and not yet confirmed.
    pub unconfirmed_messages: i64,
    /// Messages that wait until a queue is bound to the exchange.
    pub unroutable_messages: usize,
    /// Messages that the output has confirmed.
    pub confirmed_messages: u64,
    /// Files that could not be read.
    pub failed_files: u64,
}

/// One stage.
#[derive(Debug, Serialize)]
pub struct StageHealth {
    /// It gets on, or has nothing to do.
    pub alive: bool,
    /// Pieces of work that wait or are being worked on.
    pub waiting: usize,
    /// For how long it has got no further with work waiting.
    pub stalled_seconds: f64,
}

/// The verdict, and the line that says it.
#[must_use]
pub fn assess(progress: &Progress, stall: Duration) -> (Status, String) {
    let worst = progress.stages().into_iter().filter(|stage| stage.stalled >= stall).max_by_key(|stage| stage.stalled);
    if let Some(Stage { name, waiting, stalled }) = worst {
        let told = format!("unhealthy: {name} has got no further for {} s with {waiting} waiting", stalled.as_secs());
        let told = hanging(progress, stall).fold(told, |line, what| line + "; " + &what);
        return (Status::Unhealthy, told);
    }
    let metrics = &progress.metrics;
    let counts =
        || format!("{} pending, {} messages confirmed", metrics.pending_files.get(), metrics.messages_confirmed.get());
    match (progress.phase(), progress.broker()) {
        (Phase::Starting, BrokerState::Disconnected) => (Status::Starting, "starting: waits for the broker".to_owned()),
        (Phase::Starting, _) => (Status::Starting, "starting: the first rescan is under way".to_owned()),
        (Phase::Stopping, _) => (Status::Stopping, format!("stopping: {}", counts())),
        (Phase::Ready, _) => {
            let line = in_the_way(progress, stall)
                .iter()
                .chain(&progress.unreadable_files.describe("file", "files"))
                .fold(format!("healthy: {}", counts()), |line, what| line + "; " + what);
            (Status::Healthy, line)
        }
    }
}

/// What keeps files waiting and no restart would mend, each in words.
fn in_the_way(progress: &Progress, stall: Duration) -> Vec<String> {
    let broker = match progress.broker() {
        BrokerState::Disconnected => Some("there is no connection to the broker".to_owned()),
        BrokerState::Blocked => Some("the broker takes no messages now".to_owned()),
        BrokerState::Unused | BrokerState::Connected => None,
    };
    let queue = (progress.unroutable() > 0).then(|| {
        format!("no queue is bound to the exchange `{EXCHANGE}` and {} messages wait for one", progress.unroutable())
    });
    let told = [broker, queue, progress.unreadable.describe("directory", "directories")].into_iter().flatten();
    told.chain(hanging(progress, stall)).collect()
}

/// Whether what lands now can be delivered, and the line that says it, with all that is in the way.
///
/// Whether a queue is bound is known from the broker's answer to the last message: before the first there is nothing wrong.
#[must_use]
pub fn assess_readiness(progress: &Progress, stall: Duration) -> (bool, String) {
    let (status, summary) = assess(progress, stall);
    if matches!(status, Status::Starting | Status::Stopping) {
        return (false, format!("not ready: {summary}"));
    }
    let stalled = (status == Status::Unhealthy).then_some(summary);
    let told = |what: &String| stalled.as_ref().is_none_or(|summary| !summary.contains(what));
    let others: Vec<String> = in_the_way(progress, stall).into_iter().filter(told).collect();
    let wrong: Vec<String> = stalled.into_iter().chain(others).collect();
    if wrong.is_empty() {
        let metrics = &progress.metrics;
        let (pending, confirmed) = (metrics.pending_files.get(), metrics.messages_confirmed.get());
        return (true, format!("ready: {pending} pending, {confirmed} messages confirmed"));
    }
    (false, format!("not ready: {}", wrong.join("; ")))
}

/// The answer to `GET /ready`.
#[derive(Debug, Serialize)]
pub struct Readiness {
    /// Whether what lands now can be delivered.
    pub ready: bool,
    /// The same in a line, with all that is in the way.
    pub summary: String,
}

impl Readiness {
    /// Of what runs.
    #[must_use]
    pub fn of(progress: &Progress, stall: Duration) -> Self {
        let (ready, summary) = assess_readiness(progress, stall);
        Self { ready, summary }
    }
}

/// Names the directories whose file system does not answer.
fn hanging(progress: &Progress, stall: Duration) -> impl Iterator<Item = String> {
    progress.hanging(stall).map(|(volume, stalled)| {
        let (directories, waiting) = (&volume.directories, volume.read.waiting());
        format!("nothing could be read in {directories} for {} s and {waiting} files wait", stalled.as_secs())
    })
}

impl<'a> Health<'a> {
    /// Of what runs.
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
            oldest_pending_seconds: metrics.oldest_pending_seconds.get(),
            unconfirmed_messages: metrics.unconfirmed_messages.get(),
            unroutable_messages: progress.unroutable(),
            confirmed_messages: metrics.messages_confirmed.get(),
            failed_files: metrics.totals().failed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STALL: Duration = Duration::from_secs(60);

    fn at_work() -> Progress {
        let progress = Progress::default();
        progress.broker_is(BrokerState::Connected);
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
    fn ready_is_what_can_deliver() {
        let progress = at_work();
        assert_eq!(assess_readiness(&progress, STALL), (true, "ready: 0 pending, 0 messages confirmed".to_owned()));
        progress.broker_is(BrokerState::Unused);
        assert!(assess_readiness(&progress, STALL).0, "without a broker there is none to be missed");
        progress.enter(Phase::Starting);
        assert_not_ready(&progress, &["starting"]);
        progress.enter(Phase::Stopping);
        assert_not_ready(&progress, &["stopping"]);
    }

    #[test]
    fn all_that_is_in_the_way_is_named_and_a_restart_mends_none_of_it() {
        let progress = at_work();
        progress.unroutable_are(7);
        assert_not_ready(&progress, &["no queue", "7 messages"]);
        progress.unreadable.are(2, "/srv/x", "Permission denied");
        assert_not_ready(
            &progress,
            &["no queue", "; 2 directories cannot be read, \"/srv/x\" for one: Permission denied"],
        );
        progress.broker_is(BrokerState::Blocked);
        assert_not_ready(&progress, &["takes no messages", "no queue", "2 directories"]);
        let (status, line) = assess(&progress, STALL);
        assert_eq!(status, Status::Healthy);
        assert!(["takes no messages", "no queue", "2 directories"].iter().all(|word| line.contains(word)), "{line}");
        progress.broker_is(BrokerState::Disconnected);
        progress.unroutable_are(0);
        progress.unreadable.are(0, "", "");
        assert_not_ready(&progress, &["no connection"]);
        progress.broker_is(BrokerState::Connected);
        assert!(assess_readiness(&progress, STALL).0);
    }

    #[test]
    fn the_healthy_line_names_the_want_of_a_queue() {
        let progress = at_work();
        progress.unroutable_are(3);
        let (status, line) = assess(&progress, STALL);
        assert_eq!(status, Status::Healthy);
        assert!(line.contains("no queue is bound") && line.contains("3 messages wait"), "{line}");
    }
}
