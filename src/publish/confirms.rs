//! The publish loop: messages go to the broker's client, and its confirms to the confirm window.
//!
//! Publishing futures are polled together, so that the client writes many messages with one system call, and confirms
//! are handled in batches. The window judges each confirm by itself: only an acknowledged message that was not returned is
//! delivered. Rejected and returned messages are published again.

use std::future::Future;
use std::mem;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use futures_util::future::FutureExt;
use futures_util::stream::{FuturesUnordered, StreamExt};
use lapin::message::BasicReturnMessage;
use lapin::options::BasicPublishOptions;
use lapin::{Channel, Confirmation, Event};
use tokio::sync::mpsc::Receiver;
use tokio::time::sleep_until;

use super::errors::failure;
use super::session::{Session, exchange, properties};
use super::window::{Resolution, Route, Sent, Window};
use crate::cli::Unroutable;
use crate::config::PublishSettings;
use crate::error::Error;
use crate::job::Outgoing;
use crate::mailbox::Sender;
use crate::message::EXCHANGE;
use crate::progress::{BrokerState, Progress};

/// The most batches of messages received at once.
const BATCHES_TOGETHER: usize = 64;

/// The shortest time between two warnings about unroutable messages.
const UNROUTABLE_EVERY: Duration = Duration::from_secs(60);

/// Connects, reports the result by `ready`, and publishes until the messages end.
///
/// # Errors
/// [`Error::Broker`] when the connection is lost; [`Error::Unroutable`] when a message is returned and the settings say `fail`.
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
                progress.set_broker(BrokerState::Connected);
                let _ = ready.send(Ok(()));
                let ended = PublishLoop::new(settings, sender, progress, &session.at).run(&session, messages).await;
                progress.set_broker(BrokerState::Disconnected);
                ended?;
                session.close().await;
            }
        }
        Ok(())
    })
}

/// Publishes messages and follows what the broker answers.
struct PublishLoop<'a> {
    settings: &'a PublishSettings,
    sender: &'a Sender,
    progress: &'a Progress,
    /// The broker's address, its password masked.
    at: &'a str,
    window: Window<Outgoing>,
    warned_at: Option<Instant>,
    /// The log's last line about the route says that no queue is bound.
    warned: bool,
}

/// A message and the broker's answer to it.
type Answer = (Sent<Outgoing>, lapin::Result<Confirmation>);

impl<'a> PublishLoop<'a> {
    fn new(settings: &'a PublishSettings, sender: &'a Sender, progress: &'a Progress, at: &'a str) -> Self {
        let window = Window::new(settings.window);
        Self { settings, sender, progress, at, window, warned_at: None, warned: false }
    }

    async fn run(&mut self, session: &Session, mut messages: Receiver<Vec<Outgoing>>) -> Result<(), Error> {
        let mut events = session.connection.events_listener();
        let mut unconfirmed = FuturesUnordered::new();
        let mut batches = Vec::with_capacity(BATCHES_TOGETHER);
        let mut ended = false;
        loop {
            self.progress.set_unroutable(self.window.unroutable());
            if ended && self.window.is_done() {
                return Ok(());
            }
            // As many as the window releases at once, for one write.
            let (now, before) = (Instant::now(), unconfirmed.len());
            while let Some(message) = self.window.next(now) {
                unconfirmed.push(publish(&session.channel, message));
            }
            debug_assert_eq!(unconfirmed.len(), self.window.unconfirmed());
            self.progress.metrics.messages_published.inc_by((unconfirmed.len() - before) as u64);
            self.progress.metrics.unconfirmed_messages.set(unconfirmed.len() as i64);
            let next_at = self.window.next_at();
            tokio::select! {
                count = messages.recv_many(&mut batches, BATCHES_TOGETHER), if !ended && self.window.wants_more() => {
                    ended = count == 0;
                    self.window.add(batches.drain(..).flatten());
                }
                Some(answer) = unconfirmed.next() => self.on_answers(answer, &mut unconfirmed)?,
                () = sleep_until(next_at.unwrap_or(now).into()), if next_at.is_some() => {}
                // The connection's own events: it is blocked, or lost even while no message is on its way.
                Some(event) = events.next() => self.on_event(&event)?,
            }
        }
    }

    /// Handles the first answer, and with it all the others that have come.
    fn on_answers(
        &mut self,
        first: Answer,
        unconfirmed: &mut FuturesUnordered<impl Future<Output = Answer>>,
    ) -> Result<(), Error> {
        let now = Instant::now();
        let mut handled = self.on_answer(first, now);
        while handled.is_ok()
            && let Some(Some(answer)) = unconfirmed.next().now_or_never()
        {
            handled = self.on_answer(answer, now);
        }
        // Before a failure, too: a message that is confirmed need not be published again.
        self.report_delivered(now);
        handled
    }

    fn on_answer(&mut self, (sent, answer): Answer, now: Instant) -> Result<(), Error> {
        let (acked, returned) = match answer {
            Ok(Confirmation::Ack(returned)) => (true, returned),
            Ok(Confirmation::Nack(returned)) => (false, returned),
            Ok(Confirmation::NotRequested) => {
                return self.fail(sent, Error::Internal("the channel is not in confirm mode".to_owned()));
            }
            Err(error) => return self.fail(sent, failure(self.at, &error)),
        };
        if let Some(returned) = returned
            && let Err(error) = self.on_return(&returned)
        {
            return self.fail(sent, error);
        }
        if acked {
            self.window.acked(sent.message().id, sent);
            return Ok(());
        }
        self.progress.metrics.messages_nacked.inc();
        if let Some(pause) = self.window.nacked(sent, now) {
            tracing::warn!("the broker rejects messages; they are published again in {pause:?}");
        }
        Ok(())
    }

    fn fail(&mut self, sent: Sent<Outgoing>, error: Error) -> Result<(), Error> {
        self.window.failed(sent);
        Err(error)
    }

    /// The broker has returned a message because no queue is bound. It is not the message whose confirm it comes with.
    fn on_return(&mut self, returned: &BasicReturnMessage) -> Result<(), Error> {
        self.progress.metrics.messages_returned.inc();
        match self.settings.unroutable {
            Unroutable::Fail => return Err(Error::Unroutable { exchange: EXCHANGE }),
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
                    tracing::info!("a queue is bound: {waited} messages that waited for one go out");
                }
            }
        }
    }

    /// Logs that no queue is bound, at most once a minute.
    fn warn(&mut self, consequence: impl FnOnce() -> String) {
        let now = Instant::now();
        if self.warned_at.is_none_or(|at| now - at >= UNROUTABLE_EVERY) {
            (self.warned_at, self.warned) = (Some(now), true);
            tracing::warn!("no queue is bound to the exchange `{EXCHANGE}`: {}", consequence());
        }
    }

    fn on_event(&self, event: &Event) -> Result<(), Error> {
        match event {
            Event::ConnectionBlocked(reason) => {
                self.progress.set_broker(BrokerState::Blocked);
                tracing::warn!("the broker takes no messages now ({reason}); files wait until it does");
            }
            Event::ConnectionUnblocked => {
                self.progress.set_broker(BrokerState::Connected);
                tracing::info!("the broker takes messages again");
            }
            Event::Error(error) => return Err(failure(self.at, error)),
            _ => {}
        }
        Ok(())
    }
}

async fn publish(channel: &Channel, sent: Sent<Outgoing>) -> Answer {
    // Without `mandatory` the broker drops a message that no queue is bound for, and acknowledges it like any other.
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let message = sent.message();
    let key = message.subject.routing_key().into();
    let published = channel.basic_publish(exchange(), key, options, &message.body, properties(message)).await;
    match published {
        Ok(confirm) => (sent, confirm.await),
        Err(error) => (sent, Err(error)),
    }
}
