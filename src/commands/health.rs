//! `health`: asks the service on this host whether it is healthy, or ready.

use hyper::StatusCode;
use serde::Deserialize;

use super::request::{Answered, another_program, request};
use crate::cli::Settings;
use crate::config::{SocketPlaces, socket_places};
use crate::error::Error;
use crate::logging;
use crate::shown::line;
use crate::streams::stdout::print;

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
    let Answered { socket, status, mut body } = request(places, question.path(), ANSWER_BYTES_MAX)?;
    let Answer { summary } = simd_json::from_slice(&mut body).map_err(|_| another_program(&socket))?;
    if status == StatusCode::OK { Ok(summary) } else { Err(Error::Unhealthy(summary)) }
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
