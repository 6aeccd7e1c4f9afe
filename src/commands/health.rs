//! `health`: asks the service on this host whether it is healthy, or ready.

use std::os::unix::net::UnixStream;
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Deserialize;

use crate::cli::Settings;
use crate::config::{SocketPlaces, socket_places};
use crate::error::{Error, os_message};
use crate::shown::line;
use crate::streams::stdout::print;
use crate::{control, logging};

/// The longest wait for an answer, which the service composes from memory.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// The longest answer, in bytes: that of a service with the longest paths has some thousands.
const ANSWER_BYTES_MAX: usize = 1 << 20;

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
    let places = socket_places(settings);
    let answer = ask(&places, if ready { Question::Ready } else { Question::Alive })?;
    print(&(line(answer) + "\n"))
}

/// The line of a service that is healthy, or ready. It comes from another process, so it is not fit to be printed yet.
///
/// # Errors
/// [`Error::NoService`] and [`Error::Unhealthy`].
pub fn ask(places: &SocketPlaces, question: Question) -> Result<String, Error> {
    let (socket, stream) = control::reach(places)?;
    let refuse = |cause: String| Error::NoService { socket: socket.to_owned(), cause };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::Internal(format!("cannot start: {}", os_message(&error))))?;
    let asked = async { tokio::time::timeout(ANSWER_TIMEOUT, get(stream, question.path())).await };
    let (status, body) = match runtime.block_on(asked) {
        Ok(answered) => answered.map_err(refuse)?,
        Err(_) => return Err(refuse(format!("it has not answered for {} s", ANSWER_TIMEOUT.as_secs()))),
    };
    let mut body = Vec::from(body);
    let Answer { summary } =
        simd_json::from_slice(&mut body).map_err(|_| refuse("what answers there is another program".to_owned()))?;
    if status == StatusCode::OK { Ok(summary) } else { Err(Error::Unhealthy(summary)) }
}

async fn get(stream: UnixStream, path: &str) -> Result<(StatusCode, Bytes), String> {
    let stream = tokio::net::UnixStream::from_std(stream).map_err(|error| os_message(&error))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| os_message(&error))?;
    tokio::spawn(connection);
    let request = Request::get(path).header("host", "localhost").body(Empty::<Bytes>::new());
    let request = request.map_err(|error| os_message(&error))?;
    let response = sender.send_request(request).await.map_err(|error| os_message(&error))?;
    let status = response.status();
    let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX);
    let body = body.collect().await.map_err(|error| os_message(&*error))?;
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
