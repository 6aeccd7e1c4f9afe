//! The broker: connecting, declaring, and the properties of a message.

use std::time::{Duration, Instant};

use lapin::options::{ConfirmSelectOptions, ExchangeDeclareOptions, QueueDeclareOptions};
use lapin::protocol::AMQPSoftError;
use lapin::types::{AMQPValue, ByteArray, FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Connection, ExchangeKind};

use super::connect::connect;
use crate::address::Broker;
use crate::config::Publisher;
use crate::error::Error;
use crate::job::Outgoing;
use crate::message::{APP_ID, EXCHANGE};
use crate::publish::errors::{answer, answer_or_refusal, failure, soft_error};

/// The header that carries a path which is not UTF-8.
const RAW_PATH_HEADER: &str = "x-file-path-bytes";

/// Delivery mode of a message that survives the broker's restart (AMQP 0-9-1, basic class).
const PERSISTENT: u8 = 2;

/// How long the end of an earlier connection is waited for: one that was killed ends at once, one whose host has
/// vanished with its second missed heartbeat, one that a blocked broker does not read not before it is unblocked.
const SUPERSEDE_TIMEOUT: Duration = Duration::from_secs(60);

/// Pause between two tries to take its place.
const SUPERSEDE_PAUSE: Duration = Duration::from_millis(100);

/// How long an orderly close may take: a blocked broker never answers it.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// An open channel to the exchange.
pub struct Session {
    /// The connection; the channel lives as long.
    pub connection: Connection,
    /// The channel.
    pub channel: Channel,
    /// The address in use, its password masked.
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

    /// Connects and looks whether the exchange is there, as it has to be, and changes nothing. Tells the address and
    /// whether it is there.
    ///
    /// # Errors
    /// As [`Session::open`].
    pub async fn look(broker: &Broker) -> Result<(String, bool), Error> {
        let (connection, at) = connect(broker).await?;
        let channel = answer(&at, connection.create_channel()).await?;
        let passive = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
        let declared = channel.exchange_declare(exchange(), ExchangeKind::Fanout, passive, FieldTable::default());
        let there = match answer_or_refusal(&at, declared).await? {
            Ok(()) => true,
            Err(refused) if soft_error(&refused) == Some(AMQPSoftError::NOTFOUND) => false,
            Err(refused) => return Err(failure(&at, &refused)),
        };
        if there {
            // A passive declaration does not look at the type. This one makes nothing, for it is there.
            answer(&at, declare(&channel)).await?;
        }
        Self { connection, channel, at: at.clone() }.close().await;
        Ok((at, there))
    }

    /// Waits until no earlier connection of this publisher can bring the broker anything any more.
    ///
    /// A process that was killed may leave messages in its connection, and a broker that was blocked or busy takes them up
    /// after those of a new one: an older version would be a path's last message. So a publisher holds an exclusive
    /// queue, bound to nothing, by its name: the broker gives it to the next connection only when it has worked off
    /// the last one (AMQP 0-9-1, queue.declare: 405 resource-locked).
    ///
    /// # Errors
    /// [`Error::Broker`], when the other connection does not end for one.
    pub async fn supersede(&mut self, publisher: &Publisher) -> Result<(), Error> {
        let Publisher { name, directory } = publisher;
        let deadline = Instant::now() + SUPERSEDE_TIMEOUT;
        let mut waiting = false;
        loop {
            let exclusive = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
            let declared = self.channel.queue_declare(name.as_str().into(), exclusive, FieldTable::default());
            let refused = match answer_or_refusal(&self.at, declared).await? {
                Ok(_) => return Ok(()),
                Err(refused) => refused,
            };
            match soft_error(&refused) {
                Some(AMQPSoftError::RESOURCELOCKED) if Instant::now() >= deadline => {
                    return Err(Error::Broker {
                        url: self.at.clone(),
                        cause: format!(
                            "another connection has published the files of {directory:?} for the last {} s (it holds the queue {name})",
                            SUPERSEDE_TIMEOUT.as_secs()
                        ),
                        next: "stop the other apollonia-ingestor; if there is none, the broker has yet to end the connection of one that was killed: start again",
                    });
                }
                Some(AMQPSoftError::RESOURCELOCKED) => {
                    if !waiting {
                        waiting = true;
                        tracing::warn!(
                            "another connection publishes the files of {directory:?}, or did until it was killed: waiting for its end, so that none of its messages comes after ours"
                        );
                    }
                }
                Some(AMQPSoftError::ACCESSREFUSED) => {
                    tracing::warn!(
                        "this user may not declare the queue {name}: after a crash a path's last message may be an older one; allow `configure` on ^apollonia"
                    );
                }
                _ => return Err(failure(&self.at, &refused)),
            }
            // The refusal has closed the channel.
            self.channel = answer(&self.at, self.connection.create_channel()).await?;
            if soft_error(&refused) == Some(AMQPSoftError::ACCESSREFUSED) {
                return Ok(());
            }
            tokio::time::sleep(SUPERSEDE_PAUSE).await;
        }
    }

    /// Asks for publisher confirms on this channel.
    ///
    /// # Errors
    /// [`Error::Broker`].
    pub async fn confirm_publishes(&self) -> Result<(), Error> {
        answer(&self.at, self.channel.confirm_select(ConfirmSelectOptions::default())).await
    }

    /// Closes the connection, within a limit. All that matters has been confirmed by then.
    pub async fn close(self) {
        let closed = tokio::time::timeout(CLOSE_TIMEOUT, self.connection.close(200, "done".into())).await;
        tracing::debug!("connection closed: {closed:?}");
    }
}

async fn declare(channel: &Channel) -> lapin::Result<()> {
    let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    channel.exchange_declare(exchange(), ExchangeKind::Fanout, durable, FieldTable::default()).await
}

/// The exchange's name as the protocol wants it.
#[must_use]
pub fn exchange() -> ShortString {
    EXCHANGE.into()
}

/// The properties of a message.
#[must_use]
pub fn properties(message: &Outgoing) -> BasicProperties {
    let seconds = u64::try_from(message.job.seen_at.seconds).unwrap_or(0);
    let properties = BasicProperties::default()
        .with_delivery_mode(PERSISTENT)
        .with_content_type("application/json".into())
        .with_app_id(APP_ID.into())
        .with_timestamp(seconds)
        .with_message_id(format!("{:032x}", message.id).into());
    match &message.raw_path {
        None => properties,
        Some(path) => {
            let mut headers = FieldTable::default();
            headers.insert(RAW_PATH_HEADER.into(), AMQPValue::ByteArray(ByteArray::from(path.as_slice())));
            properties.with_headers(headers)
        }
    }
}
