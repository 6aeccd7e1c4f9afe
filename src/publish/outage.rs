//! The time without a connection: how long it may last, and the attempts to connect again.

use std::time::{Duration, Instant};

use tokio::time::{sleep_until, timeout_at};
use tracing::instrument::WithSubscriber;
use tracing::subscriber::NoSubscriber;

use super::backoff::Backoff;
use super::session::Session;
use crate::config::PublishSettings;
use crate::error::Error;

/// The pause before the second attempt; it doubles with each one that fails.
const ATTEMPT_PAUSE_MIN: Duration = Duration::from_millis(100);

/// The longest pause between two attempts: a broker that is back is found within it.
const ATTEMPT_PAUSE_MAX: Duration = Duration::from_secs(5);

/// A connection that lasts for so long ends the outage, also where there was nothing to publish. One that is lost earlier and
/// has confirmed nothing belongs to the same outage: otherwise a broker that lets the service in and always throws it out
/// would be tried without a pause and without an end.
const STEADY: Duration = Duration::from_secs(10);

/// An outage, from the loss of a connection until another one has shown that it works.
#[derive(Debug)]
pub struct Outage {
    began: Instant,
    deadline: Instant,
    pause: Backoff,
    next_attempt: Instant,
    /// The last failure, in words.
    last: Error,
    connected_at: Option<Instant>,
}

impl Outage {
    /// The connection was just lost, which `lost` explains. `before` is the outage before, unless it is over.
    pub fn begin(before: Option<Self>, lost: Error, longest: Duration) -> Self {
        let now = Instant::now();
        let same = |before: &Self| before.connected_at.is_some_and(|at| now - at < STEADY);
        match before.filter(same) {
            Some(before) => {
                let mut outage = Self { last: lost, connected_at: None, ..before };
                outage.next_attempt = now + outage.pause.advance();
                outage
            }
            None => Self {
                began: now,
                deadline: now + longest,
                pause: Backoff::new(ATTEMPT_PAUSE_MIN, ATTEMPT_PAUSE_MAX),
                next_attempt: now,
                last: lost,
                connected_at: None,
            },
        }
    }

    /// Tries to connect until it succeeds.
    ///
    /// # Errors
    /// [`Error::Broker`] with the last failure, when the time is over.
    pub async fn connect(&mut self, settings: &PublishSettings) -> Result<Session, Error> {
        while self.next_attempt < self.deadline {
            sleep_until(self.next_attempt.into()).await;
            // An attempt that is cut off has only taken long, so what is known of the cause is the failure before.
            match timeout_at(self.deadline.into(), attempt(settings, self.deadline)).await {
                Ok(Ok(session)) => {
                    self.connected_at = Some(Instant::now());
                    return Ok(session);
                }
                Ok(Err(error)) => {
                    tracing::debug!("not connected again: {error}");
                    self.last = error;
                }
                Err(_) => break,
            }
            self.next_attempt = Instant::now() + self.pause.advance();
        }
        sleep_until(self.deadline.into()).await;
        Err(self.failure())
    }

    /// The time since the connection was lost.
    pub fn lasted(&self) -> Duration {
        self.began.elapsed()
    }

    fn failure(&self) -> Error {
        let seconds = (self.deadline - self.began).as_secs();
        match &self.last {
            Error::Broker { url, cause, next } => Error::Broker {
                url: url.clone(),
                cause: format!("no connection for {seconds} s (--reconnect-seconds): {cause}"),
                next,
            },
            other => Error::Internal(format!("no connection to the broker for {seconds} s: {other}")),
        }
    }
}

/// One attempt. The hosts that cannot be reached are not named each time: one warning has said that the connection is lost.
async fn attempt(settings: &PublishSettings, until: Instant) -> Result<Session, Error> {
    let mut session = Session::open(&settings.broker).with_subscriber(NoSubscriber::default()).await?;
    session.begin_publishing(&settings.publishers, Some(until)).await?;
    Ok(session)
}
