//! The fence: an exclusive queue for each data directory, bound to nothing, which keeps two publishers of its files apart.
//!
//! A killed process may leave messages in its connection. A broker that was blocked or busy handles them after those of a
//! new connection, and then an older version is a path's last message. The broker gives an exclusive queue to the next
//! connection only when it has handled everything from the last one (AMQP 0-9-1, queue.declare: 405 resource-locked).
//!
//! An administrator's policy may let unused queues expire. A queue with a consumer is in use, and so is one that is declared
//! again and again. A fence that is deleted all the same is taken again a second later. Where this user may not take it any more, the
//! service goes on without it, as a start does.

use std::future::pending;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream, SelectAll};
use lapin::options::{BasicConsumeOptions, QueueDeclareOptions};
use lapin::protocol::AMQPSoftError;
use lapin::types::FieldTable;
use lapin::{Channel, Connection};

use super::errors::{answer, answer_or_refusal, failure, soft_error};
use crate::config::Publisher;
use crate::error::Error;

/// Where this user may not consume from a fence, it is declared again so often: the broker counts that as use.
const RENEWAL: Duration = Duration::from_secs(1);

/// The pause before a deleted fence is taken again. A virtual host that is deleted loses its queues first and its connections
/// after that. What is declared in it meanwhile stays behind (RabbitMQ 3.10), and is locked for good once the virtual host is made again.
const PAUSE: Duration = Duration::from_secs(1);

/// What comes from a fence: `true` for a message, and at its end `false`.
type Deliveries = BoxStream<'static, bool>;

/// The fences that this publisher holds, on a channel of their own, because that of the messages closes with every refusal.
#[derive(Default)]
pub struct Fence {
    /// The directories whose fences these are.
    held: Vec<Publisher>,
    /// `None` where there is nothing to hold.
    channel: Option<Channel>,
    /// One a fence; none where this user may not read the queues.
    consumers: SelectAll<Deliveries>,
    /// The fences have no consumers and are declared again and again.
    renewing: bool,
}

impl Fence {
    /// Holds the fences of these directories, all of which this connection has taken, or may not take.
    ///
    /// # Errors
    /// [`Error::Broker`].
    pub async fn hold(connection: &Connection, at: &str, publishers: &[Publisher]) -> Result<Self, Error> {
        let mut fence = Self::default();
        if publishers.is_empty() {
            return Ok(fence);
        }
        let mut channel = answer(at, connection.create_channel()).await?;
        for publisher in publishers {
            match answer_or_refusal(at, declare(&channel, &publisher.name)).await? {
                Ok(()) => fence.held.push(publisher.clone()),
                Err(refused) if is_forbidden(&refused) => {
                    channel = answer(at, connection.create_channel()).await?;
                }
                Err(refused) => return Err(failure(at, &refused)),
            }
        }
        match answer_or_refusal(at, consume_all(&channel, &fence.held)).await? {
            Ok(consumers) => fence.consumers = consumers,
            Err(refused) if is_forbidden(&refused) => {
                log_renewing(&refused);
                fence.renewing = true;
                channel = answer(at, connection.create_channel()).await?;
            }
            Err(refused) => return Err(failure(at, &refused)),
        }
        fence.channel = Some(channel).filter(|_| !fence.held.is_empty());
        Ok(fence)
    }

    /// Keeps the fences for as long as it is polled. It ends only when there is no virtual host any more to have them in, with the
    /// broker's words: that counts as the loss of the connection, which the broker is about to close.
    ///
    /// # Errors
    /// [`Error::Broker`] when another connection has taken a fence, or the broker refuses one for good.
    pub async fn keep(&mut self, connection: &Connection, at: &str) -> Result<lapin::Error, Error> {
        loop {
            match self.taken_again(connection).await {
                Ok(()) => {}
                Err(Lost::WithTheConnection) => return pending().await,
                Err(Lost::WithTheVhost(cause)) => return Ok(cause),
                Err(Lost::To(publisher)) => return Err(taken(at, &publisher)),
                Err(Lost::Refused(refused)) => return Err(failure(at, &refused)),
            }
        }
    }

    /// Waits until a fence may be gone, and takes all of them again. Nothing here has a timeout, because a blocked broker
    /// answers only when it is unblocked.
    async fn taken_again(&mut self, connection: &Connection) -> Result<(), Lost> {
        let Some(channel) = self.channel.clone() else { return pending().await };
        if self.renewing {
            tokio::time::sleep(RENEWAL).await;
        } else if self.consumers.next().await == Some(true) {
            return Ok(()); // somebody has written to the queue itself
        } else {
            tokio::time::sleep(PAUSE).await;
        }
        if !connection.status().connected() {
            return Err(Lost::WithTheConnection);
        }
        if !self.renewing {
            tracing::warn!(
                event = "fence_deleted",
                "the broker has deleted a queue that keeps other services from this one's directories: it is taken again"
            );
        }
        // Whoever polls may stop at any point and begin again: so all of them are held until it is known which are not.
        let (mut held, mut channel) = (Vec::new(), open(connection, channel).await?);
        for publisher in &self.held {
            match declare(&channel, &publisher.name).await {
                Ok(()) => held.push(publisher.clone()),
                Err(refused) if is_forbidden(&refused) => {
                    warn_forbidden(publisher);
                    channel = open(connection, channel).await?;
                }
                Err(refused) => return Err(lost(&channel, publisher, refused)),
            }
        }
        if !self.renewing && !held.is_empty() {
            // The consumers of fences that are there go with the old ones, and the fences have new ones by then.
            match consume_all(&channel, &held).await {
                Ok(consumers) => self.consumers = consumers,
                Err(refused) if is_forbidden(&refused) => {
                    log_renewing(&refused);
                    self.renewing = true;
                    channel = open(connection, channel).await?;
                }
                Err(refused) => return Err(lost(&channel, &held[0], refused)),
            }
        }
        self.channel = Some(channel).filter(|_| !held.is_empty());
        self.held = held;
        Ok(())
    }
}

/// Why a fence is not held any more.
enum Lost {
    /// The connection has ended, which is noticed elsewhere.
    WithTheConnection,
    /// Its virtual host was deleted.
    WithTheVhost(lapin::Error),
    To(Publisher),
    Refused(lapin::Error),
}

fn lost(channel: &Channel, publisher: &Publisher, refused: lapin::Error) -> Lost {
    match soft_error(&refused) {
        Some(AMQPSoftError::RESOURCELOCKED) => Lost::To(publisher.clone()),
        Some(AMQPSoftError::NOTFOUND) => Lost::WithTheVhost(refused),
        None if !channel.status().connected() => Lost::WithTheConnection,
        _ => Lost::Refused(refused),
    }
}

/// The channel, or another one where a refusal has closed it. To open one fails with the connection alone: there was room for it.
async fn open(connection: &Connection, channel: Channel) -> Result<Channel, Lost> {
    if channel.status().connected() {
        return Ok(channel);
    }
    connection.create_channel().await.map_err(|_| Lost::WithTheConnection)
}

/// Whether the broker's refusal is for want of a permission.
pub fn is_forbidden(refused: &lapin::Error) -> bool {
    soft_error(refused) == Some(AMQPSoftError::ACCESSREFUSED)
}

/// Logs that the service goes on without a fence.
pub fn warn_forbidden(Publisher { name, .. }: &Publisher) {
    tracing::warn!(
        event = "no_fence",
        queue = name,
        "this user may not declare the queue {name}: after a crash a path's last message may be an older one; allow `configure` on ^apollonia-ingestor-"
    );
}

fn log_renewing(refused: &lapin::Error) {
    tracing::debug!(
        event = "fences_renewed",
        error = %refused,
        "the fences are declared again each {RENEWAL:?}, for want of the permission `read`: {refused}"
    );
}

/// What the broker says to one who asks for the fences and does not wait.
#[derive(Debug, PartialEq, Eq)]
pub enum Fenced {
    /// They can be had.
    Free,
    /// Another connection holds one.
    Held,
    /// This user may not declare this queue.
    Refused(String),
}

/// Asks for each fence once. The connection holds those that were free until it ends.
///
/// # Errors
/// [`Error::Broker`], as when they are taken.
pub async fn ask(connection: &Connection, at: &str, publishers: &[Publisher]) -> Result<Fenced, Error> {
    let mut asked = Fenced::Free;
    for publisher in publishers {
        let channel = answer(at, connection.create_channel()).await?;
        let Err(refused) = answer_or_refusal(at, declare(&channel, &publisher.name)).await? else { continue };
        match soft_error(&refused) {
            Some(AMQPSoftError::RESOURCELOCKED) => asked = Fenced::Held,
            Some(AMQPSoftError::ACCESSREFUSED) => return Ok(Fenced::Refused(publisher.name.clone())),
            _ => return Err(failure(at, &refused)),
        }
    }
    Ok(asked)
}

async fn declare(channel: &Channel, name: &str) -> lapin::Result<()> {
    let exclusive = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(name.into(), exclusive, FieldTable::default()).await.map(drop)
}

/// Consumes from each fence. They have no messages, unless somebody writes to the queue itself.
async fn consume_all(channel: &Channel, fences: &[Publisher]) -> lapin::Result<SelectAll<Deliveries>> {
    let mut consumers = SelectAll::new();
    for Publisher { name, .. } in fences {
        let unacknowledged = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
        let consumer = channel.basic_consume(name.as_str().into(), "".into(), unacknowledged, FieldTable::default());
        // Of several streams only the last one's end shows by itself.
        consumers.push(consumer.await?.map(|delivery| delivery.is_ok()).chain(stream::iter([false])).boxed());
    }
    Ok(consumers)
}

fn taken(at: &str, Publisher { name, directory }: &Publisher) -> Error {
    Error::Broker {
        url: at.to_owned(),
        cause: format!(
            "the broker deleted the queue {name}, and another connection has taken it: it publishes the files of {directory:?} now"
        ),
        next: "stop one of the two, and keep policies and people from deleting queues ^apollonia-ingestor-",
    }
}
