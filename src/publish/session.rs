//! A session with the broker: connection, channel and declarations, and the properties of a message.

use std::time::Duration;

use lapin::options::ConfirmSelectOptions;
use lapin::protocol::basic::gen_properties;
use lapin::types::{AMQPValue, ByteArray, FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Connection};

use super::connect::connect;
use super::errors::answer;
use super::exchange::{declare, log};
use crate::address::Broker;
use crate::error::Error;
use crate::job::{Job, Outgoing};
use crate::message::APP_ID;
use crate::routing::{Exchange, Routed, RoutingKey};

/// The header that carries a path which is not UTF-8.
const RAW_PATH_HEADER: &str = "x-file-path-bytes";

/// Bytes of a frame with a message's properties beside these (AMQP 0-9-1, 2.3.5 and 4.2.6.1): the frame's type, channel, size
/// and end, and the class, the weight and the size of the body.
const CONTENT_HEADER_BYTES: usize = 1 + 2 + 4 + 1 + 2 + 2 + 8;

/// Delivery mode of a message that survives the broker's restart (AMQP 0-9-1, basic class).
const PERSISTENT: u8 = 2;

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
    pub async fn open(broker: &Broker, exchange: &Exchange) -> Result<Self, Error> {
        let (connection, at) = connect(broker).await?;
        let channel = answer(&at, connection.create_channel()).await?;
        let (channel, known) = declare(&connection, channel, &at, exchange).await?;
        log(exchange, &known);
        Ok(Self { connection, channel, at })
    }

    /// The longest frame in bytes that was agreed on with the broker.
    #[must_use]
    pub fn frame_max(&self) -> usize {
        self.connection.configuration().frame_max() as usize
    }

    /// Opens another channel in place of one that a refusal has closed.
    ///
    /// # Errors
    /// [`Error::Broker`].
    pub(super) async fn reopen_channel(&mut self) -> Result<(), Error> {
        self.channel = answer(&self.at, self.connection.create_channel()).await?;
        Ok(())
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

/// The routing key of a message.
#[must_use]
pub fn routing_key(key: &RoutingKey, message: &Outgoing) -> ShortString {
    if let Some(literal) = key.literal() {
        return literal.clone();
    }
    let Job { directory, name, event, .. } = &message.job;
    let root = directory.root().path().as_os_str().as_encoded_bytes();
    key.of(Routed { event: event.name(), path: &directory.below(name), root })
}

/// The properties that a message is published with, over a connection with frames of at most so many bytes.
#[must_use]
pub fn properties(message: &Outgoing, frame_max: usize) -> BasicProperties {
    let seconds = u64::try_from(message.job.seen_at.seconds).unwrap_or(0);
    let properties = BasicProperties::default()
        .with_delivery_mode(PERSISTENT)
        .with_content_type("application/json".into())
        .with_app_id(APP_ID.into())
        .with_timestamp(seconds)
        .with_message_id(format!("{:032x}", message.id).into());
    let Some(path) = &message.raw_path else { return properties };
    let mut headers = FieldTable::default();
    headers.insert(RAW_PATH_HEADER.into(), AMQPValue::ByteArray(ByteArray::from(path.as_slice())));
    let with_path = properties.clone().with_headers(headers);
    if fits_a_frame(&with_path, frame_max) {
        return with_path;
    }
    tracing::warn!(
        "a message goes out without its header {RAW_PATH_HEADER}, which does not fit into a frame of {frame_max} bytes: {:?}; raise frame_max at the broker, or in AMQP_CONNECTION_STRING where it is set there",
        String::from_utf8_lossy(path)
    );
    properties
}

/// Whether the frame of a message's properties is short enough. The protocol cuts the body into several frames, and these
/// not.
fn fits_a_frame(properties: &BasicProperties, frame_max: usize) -> bool {
    let Ok(written) = gen_properties(properties)(Vec::new().into()) else { return false };
    written.write.len() + CONTENT_HEADER_BYTES <= frame_max
}
