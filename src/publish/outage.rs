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
    /// The connection was lost at `now`, which `lost` explains. `before` is the outage before, unless a confirm has ended it.
    pub fn begin(before: Option<Self>, lost: Error, longest: Duration, now: Instant) -> Self {
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
                    tracing::debug!(event = "not_connected", error = error.cause(), "not connected again: {error}");
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
    let mut session =
        Session::open(&settings.broker, &settings.exchange).with_subscriber(NoSubscriber::default()).await?;
    session.begin_publishing(&settings.publishers, Some(until)).await?;
    Ok(session)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_that_confirms_nothing_and_is_soon_lost_does_not_end_the_outage() {
        let lost = |cause: &str| Error::Broker { url: "amqp://h".to_owned(), cause: cause.to_owned(), next: "wait" };
        let (start, minute) = (Instant::now(), Duration::from_secs(60));
        let mut outage = Outage::begin(None, lost("stopped"), minute, start);
        assert_eq!(outage.next_attempt, start, "the first attempt is made at once");
        for (number, pause) in [100, 200, 400].into_iter().enumerate() {
            let at = start + Duration::from_secs(number as u64);
            outage.connected_at = Some(at);
            outage = Outage::begin(Some(outage), lost("closed"), minute, at + STEADY / 2);
            assert_eq!((outage.began, outage.deadline), (start, start + minute));
            assert_eq!(outage.next_attempt, at + STEADY / 2 + Duration::from_millis(pause));
        }
        let line = outage.failure().to_string();
        assert_eq!(line, "broker amqp://h: no connection for 60 s (--reconnect-seconds): closed; wait");
        outage.connected_at = Some(start);
        let outage = Outage::begin(Some(outage), lost("closed"), minute, start + STEADY);
        assert_eq!((outage.began, outage.next_attempt), (start + STEADY, start + STEADY), "it was steady");
    }
}
