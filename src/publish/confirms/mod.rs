//! The publish loop: messages go to the broker's client, and its confirms to the confirm window.
//!
//! Publishing futures are polled together, so that the client writes many messages with one system call, and confirms
//! are handled in batches. The window judges each confirm by itself: only an acknowledged message that was not returned is
//! delivered. Rejected and returned messages are published again, and so is everything without an answer when a channel or
//! a connection is lost and another one can be had.

mod recovery;

use std::future::Future;
use std::mem;
use std::pin::pin;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use futures_util::future::FutureExt;
use futures_util::stream::{FuturesUnordered, StreamExt};
use lapin::message::BasicReturnMessage;
use lapin::protocol::AMQPSoftError;
use lapin::{Channel, Confirmation, Event, ExchangeKind};
use tokio::sync::mpsc::Receiver;
use tokio::time::sleep_until;

use super::deferred::WakeUps;
use super::errors::{failure, soft_error};
use super::frame::FrameLimit;
use super::outage::Outage;
use super::refusal::Refusal;
use super::session::{Session, close, publish};
use super::window::{Resolution, Route, Sent, Window};
use crate::cli::Unroutable;
use crate::config::PublishSettings;
use crate::error::Error;
use crate::job::Outgoing;
use crate::mailbox::ReportSender;
use crate::progress::{BrokerState, Progress};

/// The most batches of messages received at once.
const BATCHES_TOGETHER: usize = 64;

/// The shortest time between two warnings about unroutable messages.
const UNROUTABLE_EVERY: Duration = Duration::from_secs(60);

/// Connects, reports the result by `ready`, and publishes until the messages end.
///
/// # Errors
/// [`Error::Broker`] when the connection is lost for longer than the settings allow; [`Error::Unroutable`] when a message is
/// returned and the settings say `fail`.
pub fn run(
    settings: &PublishSettings,
    messages: Receiver<Vec<Outgoing>>,
    sender: &ReportSender,
    progress: &Progress,
    ready: &SyncSender<Result<(), Error>>,
) -> Result<(), Error> {
    let wake_ups = WakeUps::new(settings.window);
    let runtime = match wake_ups.deferred().runtime() {
        Ok(runtime) => runtime,
        Err(cause) => {
            let _ = ready.send(Err(Error::system("cannot start the publisher's runtime", cause)));
            return Ok(());
        }
    };
    runtime.block_on(async {
        let opened = async {
            let mut session = Session::open(&settings.broker, &settings.exchange).await?;
            session.begin_publishing(&settings.publishers, None).await?;
            Ok(session)
        };
        match opened.await {
            Err(error) => drop(ready.send(Err(error))),
            Ok(session) => {
                progress.set_broker(BrokerState::Connected);
                let _ = ready.send(Ok(()));
                let ended = PublishLoop::new(settings, sender, progress, messages, wake_ups).run(session).await;
                progress.set_broker(BrokerState::Disconnected);
                ended?;
            }
        }
        Ok(())
    })
}

/// Publishes messages and follows what the broker answers.
struct PublishLoop<'a> {
    settings: &'a PublishSettings,
    sender: &'a ReportSender,
    progress: &'a Progress,
    messages: Receiver<Vec<Outgoing>>,
    batches: Vec<Vec<Outgoing>>,
    /// No more messages come.
    ended: bool,
    wake_ups: WakeUps,
    window: Window<Outgoing>,
    /// Messages of a channel that is lost, until the window has them back.
    unanswered: Vec<Sent<Outgoing>>,
    /// The size in bytes above which this connection's broker refuses a message, and its words. `None` until it has refused one.
    limit: Option<(usize, Arc<str>)>,
    /// The outage that is not certain to be over.
    outage: Option<Outage>,
    warned_at: Option<Instant>,
    /// The log's last line about the route says that no queue is bound.
    warned: bool,
    /// Of the last returned message, in words; empty where the exchange does not look at it (fanout).
    returned_key: String,
}

/// A message and the broker's answer to it.
type Answer = (Sent<Outgoing>, lapin::Result<Confirmation>);

/// Why publishing on a channel ends.
enum End {
    /// Every message is confirmed that can be, and no more come.
    Done,
    /// The broker has closed the channel for the size of a message.
    Refused(Refusal),
    /// The channel or the connection is lost, for this reason.
    Lost(Error),
}

/// What keeps the loop from going on.
enum Broken {
    /// The channel or the connection is lost.
    Lost(lapin::Error),
    /// Another connection would not help.
    Failed(Error),
}

impl<'a> PublishLoop<'a> {
    fn new(
        settings: &'a PublishSettings,
        sender: &'a ReportSender,
        progress: &'a Progress,
        messages: Receiver<Vec<Outgoing>>,
        wake_ups: WakeUps,
    ) -> Self {
        let window = match settings.exchange.kind {
            ExchangeKind::Fanout => Window::new(settings.window),
            _ => Window::by_key(settings.window),
        };
        Self {
            settings,
            sender,
            progress,
            messages,
            batches: Vec::with_capacity(BATCHES_TOGETHER),
            ended: false,
            wake_ups,
            window,
            unanswered: Vec::new(),
            limit: None,
            outage: None,
            warned_at: None,
            warned: false,
            returned_key: String::new(),
        }
    }

    async fn run(mut self, mut session: Session) -> Result<(), Error> {
        loop {
            let lost = match self.publish_on(&mut session).await? {
                End::Done => {
                    session.close().await;
                    return Ok(());
                }
                End::Refused(refusal) => {
                    self.drop_too_large(&refusal);
                    match session.reopen().await {
                        Ok(()) => continue,
                        Err(error) => error,
                    }
                }
                End::Lost(error) => error,
            };
            if self.settings.reconnect.is_zero() {
                return Err(lost);
            }
            // A channel can be lost alone, and the connection would keep its fences.
            session.close().await;
            match self.connect_again(lost).await? {
                Some(another) => session = another,
                None => return Ok(()),
            }
        }
    }

    async fn publish_on(&mut self, session: &mut Session) -> Result<End, Error> {
        let Session { connection, channel, at, fence } = session;
        let connection = &*connection;
        let mut fence_lost = pin!(fence.keep(connection, at));
        let frame = FrameLimit::of(connection);
        let mut events = connection.events_listener();
        let deferred = Arc::clone(self.wake_ups.deferred());
        let mut unconfirmed = FuturesUnordered::new();
        loop {
            self.report_unconfirmed();
            if self.ended && self.window.is_done() {
                return Ok(End::Done);
            }
            // As many as the window releases at once, for one write.
            let (now, before) = (Instant::now(), unconfirmed.len());
            while let Some(message) = self.window.next(now) {
                unconfirmed.push(publish(channel, self.settings, &frame, &deferred, message));
            }
            debug_assert_eq!(unconfirmed.len(), self.window.unconfirmed());
            self.report_published(unconfirmed.len() - before, now);
            let next_at = self.next_at(!unconfirmed.is_empty());
            let handled = tokio::select! {
                count = self.messages.recv_many(&mut self.batches, BATCHES_TOGETHER),
                    if !self.ended && self.window.wants_more() =>
                {
                    self.take_in(count);
                    Ok(())
                }
                Some(answer) = unconfirmed.next() => self.on_answers(answer, &mut unconfirmed),
                () = sleep_until(next_at.unwrap_or(now).into()), if next_at.is_some() => {
                    self.wake_ups.on_time(Instant::now());
                    Ok(())
                }
                // The connection's own events: it is blocked, or lost even while no message is on its way.
                Some(event) = events.next() => self.on_event(&event, channel),
                lost = &mut fence_lost => {
                    let cause = lost?;
                    close(connection).await; // so that the client gives back what it has no answer to
                    Err(Broken::Lost(cause))
                }
            };
            match handled {
                Ok(()) => {}
                Err(Broken::Failed(error)) => return Err(error),
                Err(Broken::Lost(cause)) => {
                    let cause = self.take_back(cause, &mut unconfirmed, &mut events, connection, channel).await?;
                    return Ok(self.end_for(at, &cause));
                }
            }
        }
    }

    /// How publishing on a channel ends that was closed for this cause.
    fn end_for(&self, at: &str, cause: &lapin::Error) -> End {
        let refusal = Refusal::of(cause).filter(|_| !self.unanswered.is_empty());
        refusal.map_or_else(|| End::Lost(failure(at, cause)), End::Refused)
    }

    /// When the publisher has to go on although nothing comes. `waits`: confirms are on their way.
    fn next_at(&self, waits: bool) -> Option<Instant> {
        let deferred_until = self.wake_ups.until().filter(|_| waits);
        self.window.next_at().into_iter().chain(deferred_until).min()
    }

    /// Takes in the batches that were received; none means that no more come.
    fn take_in(&mut self, count: usize) {
        self.ended = count == 0;
        let messages = self.batches.drain(..).flatten();
        let Some((limit, answer)) = &self.limit else { return self.window.add(messages) };
        let (fit, too_large): (Vec<_>, Vec<_>) = messages.partition(|message| message.body.len() <= *limit);
        self.window.add(fit);
        let answer = Arc::clone(answer);
        self.report_too_large(too_large, &answer);
    }

    /// Handles the first answer, and with it all the others that have come.
    fn on_answers(
        &mut self,
        first: Answer,
        unconfirmed: &mut FuturesUnordered<impl Future<Output = Answer>>,
    ) -> Result<(), Broken> {
        let now = Instant::now();
        let mut handled = self.on_answer(first, now);
        while handled.is_ok()
            && let Some(Some(answer)) = unconfirmed.next().now_or_never()
        {
            handled = self.on_answer(answer, now);
        }
        // Before a failure, too: a message that is confirmed need not be published again. Where the channel is lost, that is
        // decided once the client has given back all messages.
        if !matches!(handled, Err(Broken::Lost(_))) {
            self.report_delivered(now);
        }
        handled
    }

    fn on_answer(&mut self, (sent, answer): Answer, now: Instant) -> Result<(), Broken> {
        let (acked, returned) = match answer {
            Ok(Confirmation::Ack(returned)) => (true, returned),
            Ok(Confirmation::Nack(returned)) => (false, returned),
            Ok(Confirmation::NotRequested) => {
                return Err(Broken::Failed(Error::Internal("the channel is not in confirm mode".to_owned())));
            }
            Err(error) => {
                self.unanswered.push(sent);
                return Err(Broken::Lost(error));
            }
        };
        // The connection works.
        self.outage = None;
        if let Some(returned) = returned {
            self.on_return(&returned).map_err(Broken::Failed)?;
        }
        if acked {
            self.window.acked(sent.message().id, sent);
            return Ok(());
        }
        self.progress.metrics.messages_nacked.inc();
        if let Some(pause) = self.window.nacked(sent, now) {
            tracing::warn!(event = "rejected", "the broker rejects messages; they are published again in {pause:?}");
        }
        Ok(())
    }

    /// The broker has returned a message because no queue is bound. It is not the message whose confirm it comes with.
    fn on_return(&mut self, returned: &BasicReturnMessage) -> Result<(), Error> {
        self.progress.metrics.messages_returned.inc();
        self.returned_key = self.settings.exchange.routed_by(returned.delivery.routing_key.as_str());
        match self.settings.unroutable {
            Unroutable::Fail => {
                let (exchange, key) = (self.settings.exchange.name.to_string(), mem::take(&mut self.returned_key));
                return Err(Error::Unroutable { exchange, key });
            }
            Unroutable::Warn => {
                let returned = self.progress.metrics.messages_returned.get();
                self.warn(|| format!("{returned} messages so far reached nobody; bind a queue"));
            }
            Unroutable::Wait => {
                let id = returned.delivery.properties.message_id().as_ref();
                self.window.returned(id.and_then(|id| u128::from_str_radix(id.as_str(), 16).ok()));
            }
        }
        Ok(())
    }

    fn report_published(&mut self, messages: usize, now: Instant) {
        self.progress.metrics.messages_published.inc_by(messages as u64);
        self.wake_ups.published(messages, now);
        self.report_unconfirmed();
    }

    /// Reports how many messages have no answer, and how many wait for a queue.
    fn report_unconfirmed(&self) {
        self.progress.set_unroutable(self.window.unroutable());
        self.progress.metrics.unconfirmed_messages.set(self.window.unanswered() as i64);
    }

    /// Reports the messages that are certainly delivered, and logs it when messages begin or cease to reach a queue.
    fn report_delivered(&mut self, now: Instant) {
        let Resolution { delivered, route } = self.window.resolve(now);
        // This is progress even where nothing was delivered: while no queue is bound the broker answers a probe at least
        // every 10 s (UNROUTABLE_PAUSE_MAX), which is less than the shortest stall time.
        self.progress.publish.done(delivered.len());
        self.sender.report(delivered.into_iter().map(|sent| sent.into_message().confirmed()).collect());
        match route {
            Route::Unchanged => {}
            Route::Missing { waiting } => {
                self.warn(|| format!("{waiting} messages wait and go out when one is; bind a queue"));
            }
            Route::Found { waited } => {
                if mem::take(&mut self.warned) {
                    tracing::info!(
                        event = "queue_bound",
                        messages = waited,
                        "a queue is bound: {waited} messages that waited for one go out"
                    );
                }
            }
        }
    }

    /// Logs that no queue is bound, at most once a minute.
    fn warn(&mut self, consequence: impl FnOnce() -> String) {
        let now = Instant::now();
        if self.warned_at.is_none_or(|at| now - at >= UNROUTABLE_EVERY) {
            (self.warned_at, self.warned) = (Some(now), true);
            let exchange = self.settings.exchange.name.as_str();
            tracing::warn!(
                event = "no_queue",
                exchange,
                "no queue is bound to the exchange `{exchange}`{}: {}",
                self.returned_key,
                consequence()
            );
        }
    }

    fn on_event(&self, event: &Event, channel: &Channel) -> Result<(), Broken> {
        match event {
            Event::ConnectionBlocked(reason) => {
                self.progress.set_broker(BrokerState::Blocked);
                tracing::warn!(
                    event = "broker_blocked",
                    error = %reason,
                    "the broker takes no messages now ({reason}); files wait until it does"
                );
            }
            Event::ConnectionUnblocked => {
                self.progress.set_broker(BrokerState::Connected);
                tracing::info!(event = "broker_unblocked", "the broker takes messages again");
            }
            // Only a fence can be another's, and it says so in its own words.
            Event::Error(error) if soft_error(error) == Some(AMQPSoftError::RESOURCELOCKED) => {}
            // Of a channel before this one, in whose place this one was opened.
            Event::Error(error) if soft_error(error).is_some() && channel.status().connected() => {}
            Event::Error(error) => return Err(Broken::Lost(error.clone())),
            _ => {}
        }
        Ok(())
    }
}
