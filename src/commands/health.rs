//! `health`: asks the service on this host whether it is healthy, or ready.

use std::path::Path;
use std::time::Duration;

use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::UnixStream;

use crate::cli::Settings;
use crate::config::control_socket;
use crate::error::{Error, os_message};
use crate::logging;
use crate::streams::stdout::print;

/// The longest wait for an answer, which the service composes from memory.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// The part of the answer that the command needs.
#[derive(Deserialize)]
struct Answer {
    summary: String,
}

/// The question to a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Question {
    /// Whether it is alive and makes progress: if not, a restart would help.
    Alive,
    /// Whether it can deliver, as well.
    Ready,
}

impl Question {
    fn path(self) -> &'static str {
        match self {
            Self::Alive => "/health",
            Self::Ready => "/ready",
        }
    }
}

/// Asks the service behind the control socket, and prints its line when it is healthy, or ready.
///
/// It checks only the settings of the socket and of logging, because the others concern the service that answers.
///
/// # Errors
/// [`Error::NoService`] when nobody answers, [`Error::Unhealthy`] with the service's own line; [`Error::Stdout`].
pub fn run(settings: &Settings, ready: bool) -> Result<(), Error> {
    logging::start(settings);
    let line = ask(&control_socket(settings), if ready { Question::Ready } else { Question::Alive })?;
    print(&format!("{line}\n"))
}

/// The line of a service that is healthy, or ready.
///
/// # Errors
/// [`Error::NoService`] and [`Error::Unhealthy`].
pub fn ask(socket: &Path, question: Question) -> Result<String, Error> {
    let refuse = |cause: String| Error::NoService { socket: socket.to_owned(), cause };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::Internal(format!("cannot start: {error}")))?;
    let asked = async { tokio::time::timeout(ANSWER_TIMEOUT, get(socket, question.path())).await };
    let (status, body) = match runtime.block_on(asked) {
        Ok(answered) => answered.map_err(refuse)?,
        Err(_) => return Err(refuse(format!("it has not answered for {} s", ANSWER_TIMEOUT.as_secs()))),
    };
    let mut body = Vec::from(body);
    let Answer { summary } =
        simd_json::from_slice(&mut body).map_err(|_| refuse("what answers there is another program".to_owned()))?;
    if status == StatusCode::OK { Ok(summary) } else { Err(Error::Unhealthy(summary)) }
}

async fn get(socket: &Path, path: &str) -> Result<(StatusCode, Bytes), String> {
    let stream = UnixStream::connect(socket).await.map_err(|error| os_message(&error))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    tokio::spawn(connection);
    let request = Request::get(path).header("host", "localhost").body(Empty::<Bytes>::new());
    let request = request.map_err(|error| error.to_string())?;
    let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
    let status = response.status();
    let body = response.into_body().collect().await.map_err(|error| error.to_string())?;
    Ok((status, body.to_bytes()))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::Cli;

    #[test]
    fn settings_of_the_service_do_not_fail_a_probe() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("none.sock");
        let wrong = ["--include", "[", "--catch-up", "changed", "--data-dir", "/nonexistent", "--log-level", "error"];
        let broker = ["--amqp-url", "amqps://h", "--amqp-ca-file", "/nonexistent"];
        let words = ["apollonia-ingestor", "health", "--control-socket", socket.to_str().unwrap()];
        let settings = Cli::parse_from(words.into_iter().chain(wrong).chain(broker)).settings;
        assert!(matches!(run(&settings, true), Err(Error::NoService { .. })));
    }
}
