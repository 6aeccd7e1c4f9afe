//! The fence: an exclusive queue for each data directory, bound to nothing, which keeps two publishers of its files apart.
//!
//! A killed process may leave messages in its connection. A broker that was blocked or busy handles them after those of a
//! new connection, and then an older version is a path's last message. The broker gives an exclusive queue to the next
//! connection only when it has handled everything from the last one (AMQP 0-9-1, queue.declare: 405 resource-locked).
//!
//! An administrator's policy may let unused queues expire. A queue with a consumer is in use, and so is one that is declared
//! again and again. A fence that is deleted all the same is taken again at once.

use std::future::pending;
use std::mem;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::{SelectAll, select_all};
use lapin::options::{BasicConsumeOptions, QueueDeclareOptions};
use lapin::protocol::AMQPSoftError;
use lapin::types::FieldTable;
use lapin::{Channel, Consumer};

use super::errors::{answer, answer_or_refusal, failure, soft_error};
use super::session::Session;
use crate::config::Publisher;
use crate::error::Error;

/// How long the end of an earlier connection is awaited. The connection of a killed process ends at once, and that of a
/// vanished host with its second missed heartbeat. One that a blocked broker does not read ends only when it is unblocked.
const SUPERSEDE_TIMEOUT: Duration = Duration::from_secs(60);

/// Pause between two attempts to declare the queue that an earlier connection holds.
const SUPERSEDE_PAUSE: Duration = Duration::from_millis(100);

/// Where this user may not consume from a fence, it is declared again so often: the broker counts that as use.
const RENEWAL: Duration = Duration::from_secs(1);

/// The fences that this publisher holds.
#[derive(Debug)]
pub struct Fence {
    /// The directories whose fences these are.
    held: Vec<Publisher>,
    /// A channel of their own, because the one of the messages closes with every refusal.
    channel: Option<Channel>,
    /// One a fence; none where this user may not read the queues.
    consumers: SelectAll<Consumer>,
    renewing: bool,
}

impl Fence {
    /// Takes a fence for each directory: waits until the broker can receive no more messages from its earlier publisher.
    /// Where this user may not declare it, there is none, and the log says what that means.
    ///
    /// # Errors
    /// [`Error::Broker`], also when the other connection does not end within a minute.
    pub async fn take(session: &mut Session, publishers: &[Publisher]) -> Result<Self, Error> {
        let mut held = Vec::new();
        for publisher in publishers {
            if supersede(session, publisher).await? {
                held.push(publisher.clone());
            }
        }
        let mut fence = Self { held, channel: None, consumers: SelectAll::new(), renewing: false };
        if !fence.held.is_empty() {
            fence.hold(session).await?;
        }
        Ok(fence)
    }

    /// Consumes from the fences, which is what keeps them. They have no messages.
    async fn hold(&mut self, session: &Session) -> Result<(), Error> {
        let channel = answer(&session.at, session.connection.create_channel()).await?;
        let mut consumers = Vec::new();
        for publisher in &self.held {
            match answer_or_refusal(&session.at, consume(&channel, &publisher.name)).await? {
                Ok(consumer) => consumers.push(consumer),
                Err(refused) if soft_error(&refused) == Some(AMQPSoftError::ACCESSREFUSED) => {
                    tracing::debug!("the fences are declared again each {RENEWAL:?}: {refused}");
                    self.renewing = true;
                    self.channel = Some(answer(&session.at, session.connection.create_channel()).await?);
                    return Ok(());
                }
                Err(refused) => return Err(failure(&session.at, &refused)),
            }
        }
        (self.consumers, self.channel) = (select_all(consumers), Some(channel));
        Ok(())
    }

    /// Keeps the fences, for as long as it is polled. It ends only when one cannot be had any more.
    pub async fn lost(mut self, at: &str) -> Error {
        loop {
            match self.gone().await {
                Ok(()) => {}
                Err(Lost::WithTheConnection) => return pending().await,
                Err(Lost::To(publisher)) => return taken(at, &publisher),
                Err(Lost::Refused(refused)) => return failure(at, &refused),
            }
        }
    }

    /// Waits until a fence may be gone, and takes all of them again. Nothing here has a timeout, because a blocked broker
    /// answers only when it is unblocked.
    async fn gone(&mut self) -> Result<(), Lost> {
        let Some(channel) = &self.channel else { return pending().await };
        if self.renewing {
            tokio::time::sleep(RENEWAL).await;
        } else if let Some(Ok(_)) = self.consumers.next().await {
            return Ok(()); // somebody has written to the queue itself
        }
        if !channel.status().connected() {
            return Err(Lost::WithTheConnection);
        }
        if !self.renewing {
            tracing::warn!(
                "the broker has deleted a queue by which this service holds its directories: it is taken again"
            );
        }
        let mut consumers = Vec::new();
        for publisher in &self.held {
            let taken = async {
                declare(channel, &publisher.name).await?;
                if self.renewing { Ok(None) } else { consume(channel, &publisher.name).await.map(Some) }
            };
            match taken.await {
                Ok(consumer) => consumers.extend(consumer),
                Err(refused) if soft_error(&refused) == Some(AMQPSoftError::RESOURCELOCKED) => {
                    return Err(Lost::To(publisher.clone()));
                }
                Err(_) if !channel.status().connected() => return Err(Lost::WithTheConnection),
                Err(refused) => return Err(Lost::Refused(refused)),
            }
        }
        self.consumers = select_all(consumers);
        Ok(())
    }
}

/// Why a fence is not held any more.
enum Lost {
    /// The connection has ended, which is noticed elsewhere.
    WithTheConnection,
    To(Publisher),
    Refused(lapin::Error),
}

/// What the broker says to one who asks for the fences and does not wait.
#[derive(Debug, PartialEq, Eq)]
pub enum Fenced {
    /// They can be had.
    Free,
    /// Another connection holds one.
    Held,
    /// This user may not declare them.
    Refused(String),
}

/// Asks for each fence once, and holds none: they go with the connection.
///
/// # Errors
/// [`Error::Broker`], as when they are taken.
pub async fn ask(session: &mut Session, publishers: &[Publisher]) -> Result<Fenced, Error> {
    let mut asked = Fenced::Free;
    for publisher in publishers {
        let Err(refused) = answer_or_refusal(&session.at, declare(&session.channel, &publisher.name)).await? else {
            continue;
        };
        session.reopen_channel().await?;
        match soft_error(&refused) {
            Some(AMQPSoftError::RESOURCELOCKED) => asked = Fenced::Held,
            Some(AMQPSoftError::ACCESSREFUSED) => return Ok(Fenced::Refused(publisher.name.clone())),
            _ => return Err(failure(&session.at, &refused)),
        }
    }
    Ok(asked)
}

/// Fences off the earlier connections of a directory's publisher. Returns whether there is a fence: the broker may refuse
/// this user the queue.
async fn supersede(session: &mut Session, publisher: &Publisher) -> Result<bool, Error> {
    let Publisher { name, directory } = publisher;
    let deadline = Instant::now() + SUPERSEDE_TIMEOUT;
    let mut warned = false;
    loop {
        let declared = declare(&session.channel, name);
        let Err(refused) = answer_or_refusal(&session.at, declared).await? else { return Ok(true) };
        // The refusal has closed the channel.
        match soft_error(&refused) {
            Some(AMQPSoftError::RESOURCELOCKED) if Instant::now() < deadline => {
                if !mem::replace(&mut warned, true) {
                    tracing::warn!(
                        "another connection publishes the files of {directory:?}, or did until it was killed: waiting for its end, so that none of its messages comes after ours"
                    );
                }
                session.reopen_channel().await?;
                tokio::time::sleep(SUPERSEDE_PAUSE).await;
            }
            Some(AMQPSoftError::RESOURCELOCKED) => return Err(still_held(&session.at, publisher)),
            Some(AMQPSoftError::ACCESSREFUSED) => {
                tracing::warn!(
                    "this user may not declare the queue {name}: after a crash a path's last message may be an older one; allow `configure` on ^apollonia-ingestor-"
                );
                session.reopen_channel().await?;
                return Ok(false);
            }
            _ => return Err(failure(&session.at, &refused)),
        }
    }
}

async fn declare(channel: &Channel, name: &str) -> lapin::Result<()> {
    let exclusive = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(name.into(), exclusive, FieldTable::default()).await.map(drop)
}

async fn consume(channel: &Channel, name: &str) -> lapin::Result<Consumer> {
    let unacknowledged = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
    channel.basic_consume(name.into(), "".into(), unacknowledged, FieldTable::default()).await
}

fn still_held(at: &str, Publisher { name, directory }: &Publisher) -> Error {
    Error::Broker {
        url: at.to_owned(),
        cause: format!(
            "another connection has published the files of {directory:?} for the last {} s (it holds the queue {name})",
            SUPERSEDE_TIMEOUT.as_secs()
        ),
        next: "stop the other apollonia-ingestor; if there is none, the broker has yet to end the connection of one that was killed: start again",
    }
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
