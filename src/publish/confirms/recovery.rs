//! What follows the loss of a channel or a connection: no message is lost, and those without an answer go out again.

use std::future::Future;
use std::mem;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::stream::{FuturesUnordered, Stream, StreamExt};
use lapin::{Channel, Connection, ErrorKind, Event};
use tokio::time::{sleep, timeout};

use super::super::outage::Outage;
use super::super::refusal::Refusal;
use super::super::session::Session;
use super::{Answer, BATCHES_TOGETHER, Broken, PublishLoop};
use crate::error::Error;
use crate::job::Outgoing;
use crate::progress::BrokerState;

/// How long the client may take to give back the messages of a channel that is lost, which it does at once.
const GIVE_BACK_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the cause of a loss is awaited where the client has only said that the channel is closed.
const CAUSE_TIMEOUT: Duration = Duration::from_secs(1);

impl PublishLoop<'_> {
    /// The channel is lost: waits until the client has given back every message that it has no answer to, and until the broker
    /// lets another channel be opened. Returns the cause that says most.
    pub(super) async fn take_back(
        &mut self,
        mut cause: lapin::Error,
        unconfirmed: &mut FuturesUnordered<impl Future<Output = Answer>>,
        events: &mut (impl Stream<Item = Event> + Unpin),
        connection: &Connection,
        channel: &Channel,
    ) -> Result<lapin::Error, Error> {
        self.wake_ups.defer_nothing();
        loop {
            // To a blocked broker the client writes nothing: it neither ends a channel nor opens one.
            let blocked = self.progress.broker() == BrokerState::Blocked && connection.status().connected();
            if unconfirmed.is_empty() && !blocked {
                break;
            }
            let handled = tokio::select! {
                Some(answer) = unconfirmed.next() => self.on_answer(answer, Instant::now()),
                Some(event) = events.next() => self.on_event(&event, channel),
                () = sleep(GIVE_BACK_TIMEOUT), if !blocked => {
                    return Err(Error::Internal(format!("{} messages of a lost channel did not come back", unconfirmed.len())));
                }
            };
            match handled {
                Ok(()) => {}
                Err(Broken::Lost(another)) => cause = clearer(cause, another),
                Err(Broken::Failed(error)) => return Err(error),
            }
        }
        while is_vague(&cause)
            && let Ok(Some(event)) = timeout(CAUSE_TIMEOUT, events.next()).await
        {
            if let Err(Broken::Lost(another)) = self.on_event(&event, channel) {
                cause = another;
            }
        }
        self.report_delivered(Instant::now());
        Ok(cause)
    }

    /// The broker has refused a message for its size: it is reported, and all others without an answer wait again.
    pub(super) fn drop_too_large(&mut self, refusal: &Refusal) {
        let unanswered = mem::take(&mut self.unanswered);
        let limit = refusal.limit(unanswered.iter().map(|sent| sent.message().body.len()));
        let answer = Arc::from(&*refusal.text);
        if let Some(limit) = limit {
            self.limit = Some((limit, Arc::clone(&answer)));
        }
        let is_too_large = |message: &Outgoing| limit.is_some_and(|limit| message.body.len() > limit);
        let too_large = self.window.refused(unanswered, is_too_large);
        self.report_too_large(too_large, &answer);
        self.report_unconfirmed();
    }

    pub(super) fn report_too_large(&self, messages: Vec<Outgoing>, answer: &Arc<str>) {
        if messages.is_empty() {
            return;
        }
        self.progress.publish.done(messages.len());
        self.sender.report(messages.into_iter().map(|message| message.too_large(answer)).collect());
    }

    /// Connects again, for as long as the settings allow. `None` when the messages have ended meanwhile.
    pub(super) async fn connect_again(&mut self, lost: Error) -> Result<Option<Session>, Error> {
        let again = self.window.lost(mem::take(&mut self.unanswered));
        self.limit = None;
        self.progress.set_broker(BrokerState::Disconnected);
        let longest = self.settings.reconnect;
        warn_lost(&lost, again, longest);
        let mut outage = Outage::begin(self.outage.take(), lost, longest, Instant::now());
        let session = {
            let mut connecting = pin!(outage.connect(self.settings));
            loop {
                self.report_unconfirmed();
                if self.ended {
                    return Ok(None);
                }
                // All messages are taken in, because only behind the last one it shows that they have ended. They are no more
                // than the pipeline's bound.
                tokio::select! {
                    connected = &mut connecting => break connected?,
                    count = self.messages.recv_many(&mut self.batches, BATCHES_TOGETHER) => self.take_in(count),
                }
            }
        };
        self.progress.set_broker(BrokerState::Connected);
        self.progress.metrics.reconnects.inc();
        let seconds = outage.lasted().as_secs_f64();
        tracing::info!(
            event = "connected_again",
            url = session.at,
            messages = self.window.unanswered(),
            seconds,
            "connected again after {seconds:.1} s, to {}: {} messages without a confirm are published again",
            session.at,
            self.window.unanswered()
        );
        self.outage = Some(outage);
        Ok(Some(session))
    }
}

fn warn_lost(lost: &Error, messages: usize, longest: Duration) {
    tracing::warn!(
        event = "connection_lost",
        error = lost.cause(),
        messages,
        seconds = longest.as_secs(),
        "the connection is lost: {}; {messages} messages without a confirm and what lands meanwhile wait, and for {} s it is tried to connect again (--reconnect-seconds)",
        lost.cause(),
        longest.as_secs()
    );
}

/// The cause that says more.
fn clearer(first: lapin::Error, second: lapin::Error) -> lapin::Error {
    if is_vague(&first) { second } else { first }
}

/// Whether the error says only that the channel or the connection is closed, and not why.
fn is_vague(error: &lapin::Error) -> bool {
    matches!(error.kind(), ErrorKind::InvalidChannelState(..) | ErrorKind::InvalidConnectionState(_))
}
