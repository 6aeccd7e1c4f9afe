//! The oracle's record is a durable queue, not our own log: it is bound before the service starts, it
//! outlives the broker's restarts, and it is read when all is over.

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use lapin::options::{BasicConsumeOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection, ExchangeKind};
use tokio::runtime::Runtime;

use crate::consumer::{END_MARK, EXCHANGE, bind_queue, connect, declare_exchange, publish};

const QUEUE: &str = "record";
/// Holds one message and refuses, by a nack, what does not fit.
const REFUSING: &str = "refusing";
const ANSWER: Duration = Duration::from_secs(30);

/// A message as it stands in the queue.
pub struct Entry {
    pub body: Vec<u8>,
    pub id: Option<String>,
}

/// Reads on while it is asked to; nothing is acknowledged.
pub struct Reader {
    runtime: Runtime,
    _connection: Connection,
    deliveries: lapin::Consumer,
    entries: Vec<Entry>,
    ended: bool,
}

/// Declares the exchange and an empty, durable queue.
pub fn begin(url: &str) {
    with_channel(url, async |channel| {
        declare_exchange(&channel, ExchangeKind::Fanout).await;
        declare_queue(&channel, QUEUE, FieldTable::default()).await;
    });
}

/// Lets every publish be nacked from the second on, though the record gets them all.
pub fn begin_refusing(url: &str) {
    let mut arguments = FieldTable::default();
    arguments.insert("x-max-length".into(), AMQPValue::LongInt(1));
    arguments.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
    with_channel(url, async |channel| declare_queue(&channel, REFUSING, arguments).await);
}

pub fn end_refusing(url: &str) {
    with_channel(url, async |channel| delete_queue(&channel, REFUSING).await);
}

/// From now on no message reaches the record, nor anybody else.
pub fn unbind(url: &str) {
    with_channel(url, async |channel| {
        let arguments = FieldTable::default();
        channel.queue_unbind(QUEUE.into(), EXCHANGE.into(), "".into(), arguments).await.expect("the queue is unbound");
    });
}

pub fn bind(url: &str) {
    with_channel(url, async |channel| bind_queue(&channel, QUEUE).await);
}

/// Leaves the virtual host as it was found.
pub fn end(url: &str) {
    with_channel(url, async |channel| {
        delete_queue(&channel, QUEUE).await;
        delete_queue(&channel, REFUSING).await;
    });
}

fn with_channel<T>(url: &str, conversation: impl AsyncFnOnce(Channel) -> T) -> T {
    crate::consumer::block_on(async {
        let connection = connect(url).await.expect("the test connects");
        let channel = connection.create_channel().await.expect("a channel");
        tokio::time::timeout(ANSWER, conversation(channel)).await.expect("the broker answers the test")
    })
}

async fn declare_queue(channel: &Channel, name: &str, arguments: FieldTable) {
    let options = QueueDeclareOptions { durable: true, ..Default::default() };
    channel.queue_declare(name.into(), options, arguments).await.expect("a queue");
    bind_queue(channel, name).await;
}

async fn delete_queue(channel: &Channel, name: &str) {
    channel.queue_delete(name.into(), QueueDeleteOptions::default()).await.expect("the queue is deleted");
}

impl Reader {
    pub fn open(url: &str) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let (connection, deliveries) = runtime.block_on(async {
            let connection = connect(url).await.expect("the test's consumer connects");
            let channel = connection.create_channel().await.expect("a channel");
            let options = BasicConsumeOptions::default();
            let deliveries = channel
                .basic_consume(QUEUE.into(), "".into(), options, FieldTable::default())
                .await
                .expect("deliveries");
            (connection, deliveries)
        });
        Self { runtime, _connection: connection, deliveries, entries: Vec::new(), ended: false }
    }

    /// Reads at most that long, or until a message has come, and returns all so far.
    pub fn read(&mut self, patience: Duration) -> &[Entry] {
        let next = async { tokio::time::timeout(patience, self.deliveries.next()).await };
        let Ok(delivery) = self.runtime.block_on(next) else { return &self.entries };
        let delivery = delivery.expect("the queue lives").expect("a delivery");
        if delivery.data == END_MARK {
            self.ended = true;
        } else {
            let id = delivery.properties.message_id().as_ref().map(ToString::to_string);
            self.entries.push(Entry { body: delivery.data, id });
        }
        &self.entries
    }

    /// All there is: a mark of our own is sent behind it and waited for.
    pub fn drain(mut self, url: &str) -> Vec<Entry> {
        publish(url, END_MARK);
        let deadline = Instant::now() + ANSWER;
        while !self.ended {
            assert!(Instant::now() < deadline, "the mark at the queue's end did not come within {ANSWER:?}");
            self.read(ANSWER);
        }
        self.entries
    }
}
