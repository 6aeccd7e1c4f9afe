//! The broker's answers and refusals, and the error line for each failure.

use std::future::Future;
use std::io;
use std::time::Duration;

use lapin::ErrorKind;
use lapin::protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError};

use crate::advice;
use crate::error::{Error, os_message};
use crate::tls;

/// Timeout of an answer, because a broker can accept the connection and then never answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Waits for the broker's answer, within a timeout.
///
/// # Errors
/// [`Error::Broker`], when the broker refuses or does not answer.
pub async fn answer<T>(at: &str, asked: impl Future<Output = lapin::Result<T>>) -> Result<T, Error> {
    answer_or_refusal(at, asked).await?.map_err(|error| failure(at, &error))
}

/// Waits for the broker's answer, within a timeout, and leaves a refusal to the caller.
///
/// # Errors
/// [`Error::Broker`], when the broker does not answer.
pub async fn answer_or_refusal<T>(
    at: &str,
    asked: impl Future<Output = lapin::Result<T>>,
) -> Result<lapin::Result<T>, Error> {
    match tokio::time::timeout(ANSWER_TIMEOUT, asked).await {
        Ok(answered) => Ok(answered),
        Err(_) => Err(Error::Broker {
            url: at.to_owned(),
            cause: format!("it has not answered for {} s", ANSWER_TIMEOUT.as_secs()),
            next: "check that the broker works and that this is its AMQP port",
        }),
    }
}

/// The broker's refusal, if it is one that closes the channel alone.
pub(super) fn soft_error(error: &lapin::Error) -> Option<AMQPSoftError> {
    match error.kind() {
        ErrorKind::ProtocolError(refusal) => match refusal.kind() {
            AMQPErrorKind::Soft(soft) => Some(soft.clone()),
            AMQPErrorKind::Hard(_) => None,
        },
        _ => None,
    }
}

/// The error line for a failure of the client, with the next step.
#[must_use]
pub fn failure(at: &str, error: &lapin::Error) -> Error {
    let (cause, next) = match error.kind() {
        ErrorKind::IOError(io) if io.kind() == io::ErrorKind::ConnectionRefused => {
            ("connection refused".to_owned(), "start the broker, or correct host and port in AMQP_CONNECTION_STRING")
        }
        ErrorKind::IOError(io) => tls::explain(io).unwrap_or_else(|| {
            (os_message(io), "check that the broker runs and can be reached from here, then start again")
        }),
        ErrorKind::MissingHeartbeatError => {
            ("connection lost: no heartbeat".to_owned(), "check the broker and the network, then start again")
        }
        ErrorKind::ProtocolError(refusal) => {
            let next = match refusal.kind() {
                AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED) => advice::permissions(),
                AMQPErrorKind::Soft(AMQPSoftError::PRECONDITIONFAILED) => {
                    "the exchange `apollonia` must be a durable fanout exchange: delete the other, or use another virtual host"
                }
                AMQPErrorKind::Soft(AMQPSoftError::NOTFOUND) => "the exchange was deleted; start again to declare it",
                AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED) => "correct the virtual host and who may use it",
                AMQPErrorKind::Hard(AMQPHardError::CONNECTIONFORCED) => {
                    "the broker has closed the connection; start again"
                }
                _ => "see the broker's log",
            };
            (one_line(refusal.get_message().as_str()), next)
        }
        _ => (one_line(&os_message(error)), "check the broker and the network, then start again"),
    };
    Error::Broker { url: at.to_owned(), cause, next }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
