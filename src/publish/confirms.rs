//! The window: messages published and not yet confirmed, many at a time, and what the broker says of each.
//!
//! Publishing futures are polled together: the client then writes many messages with one system call, and confirms
//! are taken in batches. Every confirm is looked at by itself: only an acknowledgement of a message that was not returned is
//! success. What was rejected, and what no queue is bound for, is published again.

use std::collections::VecDeque;
use std::mem;
use std::sync::mpsc::SyncSender;
use std::time::Duration;

use futures_util::future::FutureExt;
use futures_util::stream::{FuturesUnordered, StreamExt};
use lapin::message::BasicReturnMessage;
use lapin::options::BasicPublishOptions;
use lapin::{Channel, Confirmation, Event};
use tokio::sync::mpsc::Receiver;
use tokio::time::{Instant, sleep_until};

use super::errors::failure;
use super::returned::{Acknowledged, Settled};
use super::session::{Session, exchange, properties};
use crate::cli::Unroutable;
use crate::config::PublishSettings;
use crate::error::Error;
use crate::job::Outgoing;
use crate::mailbox::Sender;
use crate::message::{EXCHANGE, ROUTING_KEY};
use crate::progress::{BrokerState, Progress};

/// The first pause after the broker has rejected a message; it doubles while it goes on rejecting.
const NACK_PAUSE_MIN: Duration = Duration::from_millis(100);

/// The longest such pause.
const NACK_PAUSE_MAX: Duration = Duration::from_secs(10);

/// The first pause before a message is published again that the broker has returned; it doubles while no queue is bound.
const UNROUTABLE_PAUSE_MIN: Duration = Duration::from_millis(100);

/// The longest such pause: how long a queue may be bound before the first message reaches it.
const UNROUTABLE_PAUSE_MAX: Duration = Duration::from_secs(10);

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
    sender: &Sender,
    progress: &Progress,
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
                progress.broker_is(BrokerState::Connected);
                let _ = ready.send(Ok(()));
                let ended = Window::new(settings, sender, progress, &session.at).publish(&session, messages).await;
                progress.broker_is(BrokerState::Disconnected);
                ended?;
                session.close().await;
            }
        }
        Ok(())
    })
}

/// What has been published and not been confirmed, and what has been rejected or returned.
struct Window<'a> {
    settings: &'a PublishSettings,
    sender: &'a Sender,
    progress: &'a Progress,
    /// The broker's address, its password masked.
    at: &'a str,
    /// Not published yet, for want of room or of a queue.
    waiting: VecDeque<Outgoing>,
    /// Acknowledged, and not reported yet.
    acknowledged: Acknowledged<Outgoing>,
    rejected: Vec<Outgoing>,
    pause: Duration,
    again_at: Instant,
    /// No queue is bound: when the next message goes out to see whether one is.
    probe_at: Option<Instant>,
    probe_pause: Duration,
    warned_at: Option<Instant>,
    /// The log's last word is that no queue is bound.
    warned: bool,
}

/// What the broker said of one message.
type Answer = (Outgoing, lapin::Result<Confirmation>);

impl<'a> Window<'a> {
    fn new(settings: &'a PublishSettings, sender: &'a Sender, progress: &'a Progress, at: &'a str) -> Self {
        Self {
            settings,
            sender,
            progress,
            at,
            waiting: VecDeque::new(),
            acknowledged: Acknowledged::new(),
            rejected: Vec::new(),
            pause: NACK_PAUSE_MIN,
            again_at: Instant::now(),
            probe_at: None,
            probe_pause: UNROUTABLE_PAUSE_MIN,
            warned_at: None,
            warned: false,
        }
    }

    async fn publish(&mut self, session: &Session, mut messages: Receiver<Vec<Outgoing>>) -> Result<(), Error> {
        let mut events = session.connection.events_listener();
        let mut unconfirmed = FuturesUnordered::new();
        let mut batches = Vec::with_capacity(BATCHES_TOGETHER);
        let mut ended = false;
        loop {
            let unroutable = self.probe_at.map_or(0, |_| self.waiting.len() + unconfirmed.len());
            self.progress.unroutable_are(unroutable);
            // What no queue is bound for is not waited for: nobody can say how long.
            let left = self.probe_at.is_none() && !(self.waiting.is_empty() && self.rejected.is_empty());
            if ended && unconfirmed.is_empty() && !left {
                return Ok(());
            }
            let settled = self.probe_at.is_none() && !self.acknowledged.in_doubt();
            // As many as there is room for at once, for one write; none while the broker rejects or returns.
            if settled && self.rejected.is_empty() {
                let room = self.waiting.len().min(self.settings.window - unconfirmed.len());
                self.progress.metrics.messages_published.inc_by(room as u64);
                unconfirmed.extend(self.waiting.drain(..room).map(|message| send(&session.channel, message)));
            }
            self.progress.metrics.unconfirmed_messages.set(unconfirmed.len() as i64);
            let probe_at = self.probe_at.filter(|_| unconfirmed.is_empty());
            tokio::select! {
                // While no queue is bound all of them are taken in, which are no more than the pipeline's bound: that they
                // have ended shows only behind the last.
                count = messages.recv_many(&mut batches, BATCHES_TOGETHER),
                    if !ended && (self.waiting.is_empty() || self.probe_at.is_some()) =>
                {
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
                    self.settle(unconfirmed.len());
                    taken?;
                }
                // One message tells whether a queue is bound by now.
                () = sleep_until(probe_at.unwrap_or_else(Instant::now)), if probe_at.is_some() => {
                    let probe = self.waiting.pop_front();
                    self.progress.metrics.messages_published.inc_by(probe.iter().len() as u64);
                    unconfirmed.extend(probe.map(|message| send(&session.channel, message)));
                }
                // What was rejected goes out again after a pause.
                () = sleep_until(self.again_at), if settled && !self.rejected.is_empty() => {
                    self.progress.metrics.messages_published.inc_by(self.rejected.len() as u64);
                    unconfirmed.extend(self.rejected.drain(..).map(|message| send(&session.channel, message)));
                }
                // The connection's own news: blocked, and lost even while nothing is under way.
                Some(event) = events.next() => self.hear(&event)?,
            }
        }
    }

    fn take(&mut self, (message, answer): Answer) -> Result<(), Error> {
        match answer.map_err(|error| failure(self.at, &error))? {
            Confirmation::Ack(returned) => {
                self.came_back(returned)?;
                self.acknowledged.take(message.id, message);
            }
            Confirmation::Nack(returned) => {
                self.came_back(returned)?;
                self.progress.metrics.messages_nacked.inc();
                if self.rejected.is_empty() {
                    tracing::warn!("the broker rejects messages; they are published again in {:?}", self.pause);
                    self.again_at = Instant::now() + self.pause;
                    self.pause = (self.pause * 2).min(NACK_PAUSE_MAX);
                }
                self.rejected.push(message);
            }
            Confirmation::NotRequested => {
                return Err(Error::Internal("the channel is not in confirm mode".to_owned()));
            }
        }
        Ok(())
    }

    /// The broker has returned a message, not that whose confirm it comes with: no queue is bound for it.
    fn came_back(&mut self, returned: Option<BasicReturnMessage>) -> Result<(), Error> {
        let Some(returned) = returned else { return Ok(()) };
        self.progress.metrics.messages_returned.inc();
        match self.settings.unroutable {
            Unroutable::Fail => return Err(Error::Unroutable { exchange: EXCHANGE }),
            Unroutable::Warn => {
                let returned = self.progress.metrics.messages_returned.get();
                self.warn(|| format!("{returned} messages so far reached nobody; bind a queue"));
            }
            Unroutable::Wait => {
                let id = returned.delivery.properties.message_id().as_ref();
                self.acknowledged.came_back(id.and_then(|id| u128::from_str_radix(id.as_str(), 16).ok()));
            }
        }
        Ok(())
    }

    /// Reports what is certainly confirmed, with so many messages not yet answered, and has what reached nobody wait.
    fn settle(&mut self, unanswered: usize) {
        let Settled { delivered, returned } = self.acknowledged.settle(unanswered);
        if !delivered.is_empty() {
            self.pause = NACK_PAUSE_MIN;
        }
        // A step, too, where nothing was delivered: while no queue is bound the broker answers a probe at least every
        // UNROUTABLE_PAUSE_MAX, which is less than the shortest stall time.
        self.progress.publish.done(delivered.len());
        self.sender.report(delivered.into_iter().map(Outgoing::confirmed).collect());
        if !returned.is_empty() {
            returned.into_iter().rev().for_each(|message| self.waiting.push_front(message));
            self.probe_at = Some(Instant::now() + self.probe_pause);
            self.probe_pause = (self.probe_pause * 2).min(UNROUTABLE_PAUSE_MAX);
            let waiting = self.waiting.len();
            self.warn(|| format!("{waiting} messages wait and go out when one is; bind a queue"));
        } else if self.probe_at.is_some() {
            // Delivered or rejected, the probe has reached a queue.
            self.probe_at = None;
            self.probe_pause = UNROUTABLE_PAUSE_MIN;
            if mem::take(&mut self.warned) {
                tracing::info!("a queue is bound: {} messages that waited for one go out", self.waiting.len() + 1);
            }
        }
    }

    /// Says that no queue is bound, at most once a minute.
    fn warn(&mut self, so: impl FnOnce() -> String) {
        let now = Instant::now();
        if self.warned_at.is_none_or(|at| now - at >= UNROUTABLE_EVERY) {
            (self.warned_at, self.warned) = (Some(now), true);
            tracing::warn!("no queue is bound to the exchange `{EXCHANGE}`: {}", so());
        }
    }

    fn hear(&self, event: &Event) -> Result<(), Error> {
        match event {
            Event::ConnectionBlocked(reason) => {
                self.progress.broker_is(BrokerState::Blocked);
                tracing::warn!("the broker takes no messages now ({reason}); files wait until it does");
            }
            Event::ConnectionUnblocked => {
                self.progress.broker_is(BrokerState::Connected);
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
