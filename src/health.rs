//! `health`: is the service on this host alive and getting on? What it says of itself, and the command that asks.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;

use crate::error::{Error, os_message};
use crate::vitals::{BrokerState, Facts, Phase, Stage, Vitals};

/// How long an answer is waited for: the service makes it up from memory.
const ANSWER_PATIENCE: Duration = Duration::from_secs(5);

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
pub fn assess(vitals: &Vitals, stall: Duration) -> (Status, String) {
    let worst = vitals.stages().into_iter().filter(|stage| stage.stalled >= stall).max_by_key(|stage| stage.stalled);
    let hanging = hanging(vitals, stall);
    if let Some(Stage { name, waiting, stalled }) = worst {
        let told =
            format!("unhealthy: {name} has got no further for {} s with {waiting} waiting{hanging}", stalled.as_secs());
        return (Status::Unhealthy, told);
    }
    let metrics = &vitals.metrics;
    let counts =
        || format!("{} pending, {} messages confirmed", metrics.pending_files.get(), metrics.messages_confirmed.get());
    match (vitals.phase(), vitals.broker()) {
        (Phase::Starting, BrokerState::Disconnected) => (Status::Starting, "starting: waits for the broker".to_owned()),
        (Phase::Starting, _) => (Status::Starting, "starting: looks over the directory".to_owned()),
        (Phase::Stopping, _) => (Status::Stopping, format!("stopping: {}", counts())),
        (Phase::Ready, BrokerState::Blocked) => {
            (Status::Healthy, format!("healthy: {}; the broker takes no messages now{hanging}", counts()))
        }
        (Phase::Ready, _) => (Status::Healthy, format!("healthy: {}{hanging}", counts())),
    }
}

/// Names the directories whose file system does not answer, in words for the end of the line.
fn hanging(vitals: &Vitals, stall: Duration) -> String {
    let told = vitals.hanging(stall).map(|(volume, stalled)| {
        let (directories, waiting) = (&volume.directories, volume.read.waiting());
        format!("; nothing could be read in {directories} for {} s, {waiting} files wait", stalled.as_secs())
    });
    told.collect()
}

impl<'a> Health<'a> {
    /// Of what runs.
    #[must_use]
    pub fn of(vitals: &'a Vitals, stall: Duration, began: Instant) -> Self {
        let (status, summary) = assess(vitals, stall);
        let stage = |Stage { name, waiting, stalled }| {
            (name, StageHealth { alive: stalled < stall, waiting, stalled_seconds: stalled.as_secs_f64() })
        };
        let metrics = &vitals.metrics;
        Self {
            status,
            summary,
            version: env!("CARGO_PKG_VERSION"),
            pid: std::process::id(),
            uptime_seconds: began.elapsed().as_secs(),
            service: vitals.facts.get(),
            broker: vitals.broker(),
            stages: vitals.stages().into_iter().map(stage).collect(),
            hanging_directories: vitals.hanging(stall).map(|(volume, _)| volume.directories.as_str()).collect(),
            pending_files: metrics.pending_files.get(),
            oldest_pending_seconds: metrics.oldest_pending_seconds.get(),
            unconfirmed_messages: metrics.unconfirmed_messages.get(),
            confirmed_messages: metrics.messages_confirmed.get(),
            failed_files: metrics.totals().failed,
        }
    }
}

/// What of the answer the command needs.
#[derive(Deserialize)]
struct Answer {
    summary: String,
}

/// Asks the service behind this socket, and prints its line when it is healthy.
///
/// # Errors
/// [`Error::NoService`] when nobody answers, [`Error::Unhealthy`] with the service's own line; [`Error::Stdout`].
pub fn run(socket: &Path) -> Result<(), Error> {
    let line = ask(socket)?;
    writeln!(io::stdout(), "{line}").map_err(Error::Stdout)
}

/// The line of a service that is healthy.
///
/// # Errors
/// [`Error::NoService`] and [`Error::Unhealthy`].
pub fn ask(socket: &Path) -> Result<String, Error> {
    let refuse = |cause: String| Error::NoService { socket: socket.to_owned(), cause };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::Internal(format!("cannot start: {error}")))?;
    let asked = async { tokio::time::timeout(ANSWER_PATIENCE, get(socket)).await };
    let (status, body) = match runtime.block_on(asked) {
        Ok(answered) => answered.map_err(refuse)?,
        Err(_) => return Err(refuse(format!("it has not answered for {} s", ANSWER_PATIENCE.as_secs()))),
    };
    let mut body = Vec::from(body);
    let Answer { summary } =
        simd_json::from_slice(&mut body).map_err(|_| refuse("what answers there is another program".to_owned()))?;
    if status == StatusCode::OK { Ok(summary) } else { Err(Error::Unhealthy(summary)) }
}

async fn get(socket: &Path) -> Result<(StatusCode, Bytes), String> {
    let stream = UnixStream::connect(socket).await.map_err(|error| os_message(&error))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    tokio::spawn(connection);
    let request = Request::get("/health").header("host", "localhost").body(Empty::<Bytes>::new());
    let request = request.map_err(|error| error.to_string())?;
    let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
    let status = response.status();
    let body = response.into_body().collect().await.map_err(|error| error.to_string())?;
    Ok((status, body.to_bytes()))
}
