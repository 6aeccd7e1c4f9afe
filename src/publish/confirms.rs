//! The window: messages published and not yet confirmed, many at a time, and what the broker says of each.
//!
//! Publishing futures are polled together: the client then writes many messages with one system call, and confirms
//! are taken in batches. Every confirm is looked at by itself: only a plain acknowledgement is success.

use std::collections::VecDeque;
use std::mem;
use std::sync::mpsc::SyncSender;
use std::time::Duration;

use futures_util::future::FutureExt;
use futures_util::stream::{FuturesUnordered, StreamExt};
use lapin::options::BasicPublishOptions;
use lapin::{Channel, Confirmation, Event};
use tokio::sync::mpsc::Receiver;
use tokio::time::{Instant, sleep_until};

use super::broker::{EXCHANGE, ROUTING_KEY, Session, exchange, failure, properties};
use crate::cli::Unroutable;
use crate::config::PublishSettings;
use crate::error::Error;
use crate::pipeline::{Outgoing, Post, Report};
use crate::vitals::{BrokerState, Vitals};

/// The first pause after the broker has rejected a message; it doubles while it goes on rejecting.
const NACK_PAUSE_MIN: Duration = Duration::from_millis(100);

/// The longest such pause.
const NACK_PAUSE_MAX: Duration = Duration::from_secs(10);

/// Batches of messages taken in at once.
const BATCHES_TOGETHER: usize = 64;

/// How often unroutable messages are warned of.
const UNROUTABLE_EVERY: Duration = Duration::from_secs(60);

/// Connects, tells so by `ready`, and publishes until the messages end.
///
/// # Errors
/// [`Error::Broker`] when the connection is lost, [`Error::Unroutable`] where that was asked for.
pub fn run(
    settings: &PublishSettings,
    messages: Receiver<Vec<Outgoing>>,
    post: &Post,
    vitals: &Vitals,
    ready: &SyncSender<Result<(), Error>>,
) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::Internal(format!("cannot start the publisher's runtime: {error}")))?;
    runtime.block_on(async {
        let opened = async {
            let mut session = Session::open(&settings.broker).await?;
            for publisher in &settings.publishers {
                session.supersede(publisher).await?;
            }
            session.confirm_publishes().await?;
            Ok(session)
        };
        match opened.await {
            Err(error) => drop(ready.send(Err(error))),
            Ok(session) => {
                vitals.broker_is(BrokerState::Connected);
                let _ = ready.send(Ok(()));
                let ended = Window::new(settings, post, vitals, &session.at).publish(&session, messages).await;
                vitals.broker_is(BrokerState::Disconnected);
                ended?;
                session.close().await;
            }
        }
        Ok(())
    })
}

/// What has been published and not been confirmed, and what has been rejected.
struct Window<'a> {
    settings: &'a PublishSettings,
    post: &'a Post,
    vitals: &'a Vitals,
    /// The broker's address, its password masked.
    at: &'a str,
    /// Not published yet, for want of room.
    waiting: VecDeque<Outgoing>,
    /// Confirmed, and not reported yet.
    confirmed: Vec<Report>,
    rejected: Vec<Outgoing>,
    pause: Duration,
    again_at: Instant,
    warned_at: Option<Instant>,
}

/// What the broker said of one message.
type Answer = (Outgoing, lapin::Result<Confirmation>);

impl<'a> Window<'a> {
    fn new(settings: &'a PublishSettings, post: &'a Post, vitals: &'a Vitals, at: &'a str) -> Self {
        Self {
            settings,
            post,
            vitals,
            at,
            waiting: VecDeque::new(),
            confirmed: Vec::new(),
            rejected: Vec::new(),
            pause: NACK_PAUSE_MIN,
            again_at: Instant::now(),
            warned_at: None,
        }
    }

    async fn publish(&mut self, session: &Session, mut messages: Receiver<Vec<Outgoing>>) -> Result<(), Error> {
        let mut events = session.connection.events_listener();
        let mut unconfirmed = FuturesUnordered::new();
        let mut batches = Vec::with_capacity(BATCHES_TOGETHER);
        let mut ended = false;
        while !(ended && self.waiting.is_empty() && unconfirmed.is_empty() && self.rejected.is_empty()) {
            // As many as there is room for at once, for one write; none while the broker rejects.
            if self.rejected.is_empty() {
                let room = self.waiting.len().min(self.settings.window - unconfirmed.len());
                self.vitals.metrics.messages_published.inc_by(room as u64);
                unconfirmed.extend(self.waiting.drain(..room).map(|message| send(&session.channel, message)));
            }
            self.vitals.metrics.unconfirmed_messages.set(unconfirmed.len() as i64);
            tokio::select! {
                count = messages.recv_many(&mut batches, BATCHES_TOGETHER), if self.waiting.is_empty() && !ended => {
                    ended = count == 0;
                    self.waiting.extend(batches.drain(..).flatten());
                }
                // The first confirm, and with it all the others that have come.
                Some(answer) = unconfirmed.next() => {
                    let mut taken = self.take(answer);
                    while taken.is_ok() && let Some(Some(answer)) = unconfirmed.next().now_or_never() {
                        taken = self.take(answer);
                    }
                    // Before a failure, too: what is confirmed need not be published again.
                    self.vitals.publish.done(self.confirmed.len());
                    self.post.report(mem::take(&mut self.confirmed));
                    taken?;
                }
                // What was rejected goes out again after a pause.
                () = sleep_until(self.again_at), if !self.rejected.is_empty() => {
                    self.vitals.metrics.messages_published.inc_by(self.rejected.len() as u64);
                    unconfirmed.extend(self.rejected.drain(..).map(|message| send(&session.channel, message)));
                }
                // The connection's own news: blocked, and lost even while nothing is under way.
                Some(event) = events.next() => self.hear(&event)?,
            }
        }
        Ok(())
    }

    fn take(&mut self, (message, answer): Answer) -> Result<(), Error> {
        match answer.map_err(|error| failure(self.at, &error))? {
            Confirmation::Ack(None) => self.pause = NACK_PAUSE_MIN,
            Confirmation::Ack(Some(_)) => self.unroutable()?,
            Confirmation::Nack(_) => {
                self.vitals.metrics.messages_nacked.inc();
                if self.rejected.is_empty() {
                    tracing::warn!("the broker rejects messages; they are published again in {:?}", self.pause);
                    self.again_at = Instant::now() + self.pause;
                    self.pause = (self.pause * 2).min(NACK_PAUSE_MAX);
                }
                self.rejected.push(message);
                return Ok(());
            }
            Confirmation::NotRequested => {
                return Err(Error::Internal("the channel is not in confirm mode".to_owned()));
            }
        }
        self.confirmed.push(message.confirmed());
        Ok(())
    }

    /// No queue is bound: the broker has confirmed a message that nobody will read.
    fn unroutable(&mut self) -> Result<(), Error> {
        if self.settings.unroutable == Unroutable::Fail {
            return Err(Error::Unroutable { exchange: EXCHANGE });
        }
        self.vitals.metrics.messages_returned.inc();
        let now = Instant::now();
        if self.warned_at.is_none_or(|at| now - at >= UNROUTABLE_EVERY) {
            self.warned_at = Some(now);
            tracing::warn!(
                "no queue is bound to the exchange `{EXCHANGE}`: {} messages so far reached nobody; bind a queue",
                self.vitals.metrics.messages_returned.get()
            );
        }
        Ok(())
    }

    fn hear(&self, event: &Event) -> Result<(), Error> {
        match event {
            Event::ConnectionBlocked(reason) => {
                self.vitals.broker_is(BrokerState::Blocked);
                tracing::warn!("the broker takes no messages now ({reason}); files wait until it does");
            }
            Event::ConnectionUnblocked => {
                self.vitals.broker_is(BrokerState::Connected);
                tracing::info!("the broker takes messages again");
            }
            Event::Error(error) => return Err(failure(self.at, error)),
            _ => {}
        }
        Ok(())
    }
}

async fn send(channel: &Channel, message: Outgoing) -> Answer {
    // mandatory: without it a message that reaches no queue is confirmed like any other.
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let sent =
        channel.basic_publish(exchange(), ROUTING_KEY.into(), options, &message.body, properties(&message)).await;
    match sent {
        Ok(confirm) => (message, confirm.await),
        Err(error) => (message, Err(error)),
    }
}
