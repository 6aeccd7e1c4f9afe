//! A session with the broker: connection, channel and declarations, and the properties of a message.

use std::mem;
use std::time::{Duration, Instant};

use lapin::options::{ConfirmSelectOptions, ExchangeDeclareOptions, QueueDeclareOptions};
use lapin::protocol::AMQPSoftError;
use lapin::types::{AMQPValue, ByteArray, FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Connection, ExchangeKind};

use super::connect::connect;
use super::errors::{answer, answer_or_refusal, failure, soft_error};
use crate::address::Broker;
use crate::config::Publisher;
use crate::error::Error;
use crate::job::Outgoing;
use crate::message::{APP_ID, EXCHANGE};

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
}

impl Session {
    /// Connects and declares the exchange.
    ///
    /// # Errors
    /// [`Error::Broker`], with the next step for each cause that has one.
    pub async fn open(broker: &Broker) -> Result<Self, Error> {
        let (connection, at) = connect(broker).await?;
        let channel = answer(&at, connection.create_channel()).await?;
        answer(&at, declare(&channel)).await?;
        Ok(Self { connection, channel, at })
    }

    /// Connects and checks whether the exchange exists and is of the right type, and changes nothing. Returns the address and
    /// whether the exchange exists.
    ///
    /// # Errors
    /// As [`Session::open`].
    pub async fn look(broker: &Broker) -> Result<(String, bool), Error> {
        let (connection, at) = connect(broker).await?;
        let channel = answer(&at, connection.create_channel()).await?;
        let passive = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
        let declared = channel.exchange_declare(exchange(), ExchangeKind::Fanout, passive, FieldTable::default());
        let exists = match answer_or_refusal(&at, declared).await? {
            Ok(()) => true,
            Err(refused) if soft_error(&refused) == Some(AMQPSoftError::NOTFOUND) => false,
            Err(refused) => return Err(failure(&at, &refused)),
        };
        if exists {
            // A passive declaration does not compare the type. This one does, and creates nothing because the exchange exists.
            answer(&at, declare(&channel)).await?;
        }
        Self { connection, channel, at: at.clone() }.close().await;
        Ok((at, exists))
    }

    /// Fences off this publisher's earlier connections: waits until the broker can receive no more messages from them.
    ///
    /// A killed process may leave messages in its connection. A broker that was blocked or busy handles them after those of a
    /// new connection, and then an older version is a path's last message. So a publisher holds an exclusive queue of its
    /// name, bound to nothing. The broker gives the queue to the next connection only when it has handled everything from
    /// the last one (AMQP 0-9-1, queue.declare: 405 resource-locked).
    ///
    /// # Errors
    /// [`Error::Broker`], also when the other connection does not end within a minute.
    pub async fn supersede(&mut self, publisher: &Publisher) -> Result<(), Error> {
        let Publisher { name, directory } = publisher;
        let deadline = Instant::now() + SUPERSEDE_TIMEOUT;
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
                            "another connection publishes the files of {directory:?}, or did until it was killed: waiting for its end, so that none of its messages comes after ours"
                        );
                    }
                    self.reopen_channel().await?;
                    tokio::time::sleep(SUPERSEDE_PAUSE).await;
                }
                Some(AMQPSoftError::RESOURCELOCKED) => return Err(self.still_held(publisher)),
                Some(AMQPSoftError::ACCESSREFUSED) => {
                    tracing::warn!(
                        "this user may not declare the queue {name}: after a crash a path's last message may be an older one; allow `configure` on ^apollonia"
                    );
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

    fn still_held(&self, Publisher { name, directory }: &Publisher) -> Error {
        Error::Broker {
            url: self.at.clone(),
            cause: format!(
                "another connection has published the files of {directory:?} for the last {} s (it holds the queue {name})",
                SUPERSEDE_TIMEOUT.as_secs()
            ),
            next: "stop the other apollonia-ingestor; if there is none, the broker has yet to end the connection of one that was killed: start again",
        }
    }

    /// Asks for publisher confirms on this channel.
    ///
    /// # Errors
    /// [`Error::Broker`].
    pub async fn confirm_publishes(&self) -> Result<(), Error> {
        answer(&self.at, self.channel.confirm_select(ConfirmSelectOptions::default())).await
    }

    /// Closes the connection, within a timeout. A close that fails costs nothing, because every message that counts is
    /// confirmed by then.
    pub async fn close(self) {
        let closed = tokio::time::timeout(CLOSE_TIMEOUT, self.connection.close(200, "done".into())).await;
        tracing::debug!("connection closed: {closed:?}");
    }
}

async fn declare(channel: &Channel) -> lapin::Result<()> {
    let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    channel.exchange_declare(exchange(), ExchangeKind::Fanout, durable, FieldTable::default()).await
}

/// The exchange's name in the type of the protocol.
#[must_use]
pub fn exchange() -> ShortString {
    EXCHANGE.into()
}

/// The properties that a message is published with.
#[must_use]
pub fn properties(message: &Outgoing) -> BasicProperties {
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
