//! A session with the broker: connection, channel and declarations, and the properties of a message.

use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions};
use lapin::protocol::AMQPSoftError;
use lapin::types::{AMQPValue, ByteArray, FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Confirmation, Connection};

use super::connect::connect;
use super::deferred::{Deferred, Until};
use super::errors::{answer, answer_or_refusal, failure, soft_error};
use super::exchange::{declare, log};
use super::fence::{Fence, warn_forbidden};
use super::frame::FrameLimit;
use super::window::Sent;
use crate::address::Broker;
use crate::config::{PublishSettings, Publisher};
use crate::error::{Error, os_message};
use crate::job::{Job, Outgoing, Subject};
use crate::message::{APP_ID, REMOVED_ROUTING_KEY};
use crate::routing::{Exchange, Routed, RoutingKey};

/// The header that carries a path which is not UTF-8.
const RAW_PATH_HEADER: &str = "x-file-path-bytes";

/// The header that carries the former path of a file that was renamed inside the data directories.
const MOVED_FROM_HEADER: &str = "x-moved-from";

/// Delivery mode of a message that survives the broker's restart (AMQP 0-9-1, basic class).
const PERSISTENT: u8 = 2;

/// How long the end of an earlier connection is awaited. The connection of a killed process ends at once, and that of a
/// vanished host with its second missed heartbeat. One that a blocked broker does not read ends only when it is unblocked.
const SUPERSEDE_TIMEOUT: Duration = Duration::from_secs(60);

/// Pause between two attempts to declare the queue that an earlier connection holds.
const SUPERSEDE_PAUSE: Duration = Duration::from_millis(100);

/// Timeout of an orderly close, because a blocked broker never answers it.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// An open channel to the exchange.
pub struct Session {
    /// The channel lives as long as its connection.
    pub connection: Connection,
    /// Messages, their confirms and declarations share this channel.
    pub channel: Channel,
    /// The address in use, its secrets masked.
    pub at: String,
    /// What keeps other publishers of the same directories waiting.
    pub fence: Fence,
}

impl Session {
    /// Connects and declares the exchange.
    ///
    /// # Errors
    /// [`Error::Broker`], with the next step for each cause that has one.
    pub async fn open(broker: &Broker, exchange: &Exchange) -> Result<Self, Error> {
        let (connection, at) = connect(broker).await?;
        let channel = answer(&at, connection.create_channel()).await?;
        let (channel, known) = declare(&connection, channel, &at, exchange).await?;
        log(exchange, &known);
        Ok(Self { connection, channel, at, fence: Fence::default() })
    }

    /// Makes the channel one to publish on: takes the fence of each publisher, and asks for confirms.
    ///
    /// # Errors
    /// [`Error::Broker`], also when another connection still holds a fence after a minute, or at `until`.
    pub async fn begin_publishing(&mut self, publishers: &[Publisher], until: Option<Instant>) -> Result<(), Error> {
        for publisher in publishers {
            self.supersede(publisher, until).await?;
        }
        self.fence = Fence::hold(&self.connection, &self.at, publishers).await?;
        self.confirm_publishes().await
    }

    /// Opens another channel to publish on, in place of one that the broker has closed. The fences have a channel of their own.
    ///
    /// # Errors
    /// [`Error::Broker`].
    pub async fn reopen(&mut self) -> Result<(), Error> {
        self.reopen_channel().await?;
        self.confirm_publishes().await
    }

    /// Fences off this publisher's earlier connections: waits until the broker can receive no more messages from them.
    ///
    /// A killed process may leave messages in its connection. A broker that was blocked or busy handles them after those of a
    /// new connection, and then an older version is a path's last message. So a publisher holds an exclusive queue of its
    /// name, bound to nothing. The broker gives the queue to the next connection only when it has handled everything from
    /// the last one (AMQP 0-9-1, queue.declare: 405 resource-locked).
    ///
    /// # Errors
    /// [`Error::Broker`], also when the other connection does not end within a minute, or by `until`.
    async fn supersede(&mut self, publisher: &Publisher, until: Option<Instant>) -> Result<(), Error> {
        let Publisher { name, directory } = publisher;
        let began = Instant::now();
        let deadline = until.unwrap_or(began + SUPERSEDE_TIMEOUT).min(began + SUPERSEDE_TIMEOUT);
        let mut warned = false;
        loop {
            let exclusive = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
            let declared = self.channel.queue_declare(name.as_str().into(), exclusive, FieldTable::default());
            let Err(refused) = answer_or_refusal(&self.at, declared).await? else { return Ok(()) };
            // The refusal has closed the channel.
            match soft_error(&refused) {
                Some(AMQPSoftError::RESOURCELOCKED) if Instant::now() < deadline => {
                    if !mem::replace(&mut warned, true) {
                        tracing::warn!(
                            event = "waits_for_other",
                            path = &*directory.to_string_lossy(),
                            "another connection publishes the files of {directory:?}, or did until it was killed: waiting for its end, so that none of its messages comes after ours"
                        );
                    }
                    self.reopen_channel().await?;
                    tokio::time::sleep(SUPERSEDE_PAUSE).await;
                }
                Some(AMQPSoftError::RESOURCELOCKED) => return Err(self.still_held(publisher, began.elapsed())),
                Some(AMQPSoftError::ACCESSREFUSED) => {
                    warn_forbidden(publisher);
                    return self.reopen_channel().await;
                }
                _ => return Err(failure(&self.at, &refused)),
            }
        }
    }

    async fn reopen_channel(&mut self) -> Result<(), Error> {
        self.channel = answer(&self.at, self.connection.create_channel()).await?;
        Ok(())
    }

    fn still_held(&self, Publisher { name, directory }: &Publisher, waited: Duration) -> Error {
        Error::Broker {
            url: self.at.clone(),
            cause: format!(
                "another connection has published the files of {directory:?} for the last {} s (it holds the queue {name})",
                waited.as_secs()
            ),
            next: "stop the other apollonia-ingestor; if there is none, the broker has yet to end the connection of one that was killed: start again",
        }
    }

    /// Asks for publisher confirms on this channel.
    async fn confirm_publishes(&self) -> Result<(), Error> {
        answer(&self.at, self.channel.confirm_select(ConfirmSelectOptions::default())).await
    }

    /// Closes the connection, within a timeout.
    pub async fn close(self) {
        close(&self.connection).await;
    }
}

/// Closes a connection, within a timeout. A close that fails costs nothing, because every message that counts is confirmed by
/// then.
pub(super) async fn close(connection: &Connection) {
    let closed = tokio::time::timeout(CLOSE_TIMEOUT, connection.close(200, "done".into())).await;
    let error = match closed {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(os_message(&error)),
        Err(_) => Some("the broker has not answered in time".to_owned()),
    };
    tracing::debug!(event = "connection_closed", error, "connection closed");
}

/// Publishes a message, and waits for the broker's answer.
pub(super) async fn publish(
    channel: &Channel,
    settings: &PublishSettings,
    frame: &FrameLimit,
    deferred: &Arc<Deferred>,
    sent: Sent<Outgoing>,
) -> (Sent<Outgoing>, lapin::Result<Confirmation>) {
    // Without `mandatory` the broker drops a message that no queue is bound for, and acknowledges it like any other.
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let message = sent.message();
    let (exchange, key) = (settings.exchange.name.clone(), routing_key(&settings.routing_key, message));
    let properties = frame.fit(properties(message), || message.job.directory.absolute(&message.job.name));
    let published = channel.basic_publish(exchange, key, options, &message.body, properties);
    match deferred.wait(Until::Written, published).await {
        Ok(confirm) => (sent, deferred.wait(Until::Answered, confirm).await),
        Err(error) => (sent, Err(error)),
    }
}

/// The routing key of a message: as it is set, and of a removal always the same.
fn routing_key(key: &RoutingKey, message: &Outgoing) -> ShortString {
    if matches!(message.subject, Subject::Removal) {
        return REMOVED_ROUTING_KEY.into();
    }
    if let Some(literal) = key.literal() {
        return literal.clone();
    }
    let Job { directory, name, event, .. } = &message.job;
    let root = directory.root().path().as_os_str().as_encoded_bytes();
    key.of(Routed { event: event.name(), path: &directory.below(name), root })
}

/// The properties that a message is published with.
fn properties(message: &Outgoing) -> BasicProperties {
    let seconds = u64::try_from(message.job.seen_at.seconds).unwrap_or(0);
    let properties = BasicProperties::default()
        .with_delivery_mode(PERSISTENT)
        .with_content_type("application/json".into())
        .with_type(message.subject.message_type().into())
        .with_app_id(APP_ID.into())
        .with_timestamp(seconds)
        .with_message_id(format!("{:032x}", message.id).into());
    let mut headers = FieldTable::default();
    if let Some(path) = &message.raw_path {
        headers.insert(RAW_PATH_HEADER.into(), bytes(path));
    }
    if let Some(path) = message.moved_from() {
        headers.insert(MOVED_FROM_HEADER.into(), text_or_bytes(path));
    }
    if headers.inner().is_empty() { properties } else { properties.with_headers(headers) }
}

fn bytes(path: &[u8]) -> AMQPValue {
    AMQPValue::ByteArray(ByteArray::from(path))
}

/// A path as consumers expect text, and as bytes only where it is none: clients hand a long string over as their own kind
/// of text, and many of them fail on one that is not UTF-8.
fn text_or_bytes(path: &[u8]) -> AMQPValue {
    match str::from_utf8(path) {
        Ok(text) => AMQPValue::LongString(text.into()),
        Err(_) => bytes(path),
    }
}
