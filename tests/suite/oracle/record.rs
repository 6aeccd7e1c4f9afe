//! The oracle's record is a durable queue: it is bound before the service starts, survives the broker's restarts, and
//! is read in the end.

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use lapin::Connection;
use lapin::options::BasicConsumeOptions;
use lapin::types::FieldTable;
use tokio::runtime::Runtime;

use crate::support::consumer::{END_MARK, connect, publish};
use crate::support::queue::Queue;

const QUEUE: &str = "record";
/// Holds one message and refuses, by a nack, what does not fit.
const REFUSING: &str = "refusing";
const ANSWER: Duration = Duration::from_secs(30);

/// A message in the queue.
pub struct Entry {
    pub body: Vec<u8>,
    pub id: Option<String>,
    /// The kind of the body.
    pub kind: Option<String>,
}

/// Reads the queue further with each call; nothing is acknowledged.
pub struct Reader {
    runtime: Runtime,
    _connection: Connection,
    deliveries: lapin::Consumer,
    entries: Vec<Entry>,
    ended: bool,
}

/// Declares the exchange and an empty, durable queue.
pub fn begin(url: &str) {
    Queue::declare(url, QUEUE).bind();
}

/// Has every publish nacked from the second on, though the record gets them all.
pub fn begin_refusing(url: &str) {
    Queue::declare_with_room_for(url, REFUSING, 1).bind();
}

pub fn end_refusing(url: &str) {
    Queue::declared(url, REFUSING).delete();
}

/// From now on no queue takes a message.
pub fn unbind(url: &str) {
    Queue::declared(url, QUEUE).unbind();
}

pub fn bind(url: &str) {
    Queue::declared(url, QUEUE).bind();
}

/// Leaves the virtual host as it was found.
pub fn end(url: &str) {
    Queue::declared(url, QUEUE).delete();
    Queue::declared(url, REFUSING).delete();
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

    /// Waits for a message, at most that long, and returns all so far.
    pub fn read(&mut self, timeout: Duration) -> &[Entry] {
        let next = async { tokio::time::timeout(timeout, self.deliveries.next()).await };
        let Ok(delivery) = self.runtime.block_on(next) else { return &self.entries };
        let delivery = delivery.expect("the queue lives").expect("a delivery");
        if delivery.data == END_MARK {
            self.ended = true;
        } else {
            let id = delivery.properties.message_id().as_ref().map(ToString::to_string);
            let kind = delivery.properties.kind().as_ref().map(ToString::to_string);
            self.entries.push(Entry { body: delivery.data, id, kind });
        }
        &self.entries
    }

    /// Reads to the end: a message of the test's own is published behind all others and waited for.
    pub fn drain(mut self, url: &str) -> Vec<Entry> {
        publish(url, END_MARK);
        let deadline = Instant::now() + ANSWER;
        while !self.ended {
            if Instant::now() >= deadline {
                let (ready, consumers) = Queue::declared(url, QUEUE).state();
                panic!(
                    "the mark at the queue's end did not come within {ANSWER:?}, after {} messages; \
                     {ready} wait in the queue, which has {consumers} consumers",
                    self.entries.len()
                );
            }
            self.read(ANSWER);
        }
        self.entries
    }
}
