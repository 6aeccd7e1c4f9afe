//! A durable queue beside the consumer's: it keeps what it gets while it is bound to the exchange.

use std::time::Duration;

use lapin::options::{BasicGetOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, ExchangeKind};

use super::consumer::{EXCHANGE, bind_queue, block_on, connect, declare_exchange};
use super::message::Message;

const ANSWER: Duration = Duration::from_secs(30);

pub struct Queue<'a> {
    url: &'a str,
    name: &'a str,
}

impl<'a> Queue<'a> {
    /// Declares the exchange and the queue, and does not bind them.
    pub fn declare(url: &'a str, name: &'a str) -> Self {
        Self::declare_with(url, name, FieldTable::default())
    }

    /// It holds so many messages and refuses by a nack what does not fit.
    pub fn declare_with_room_for(url: &'a str, name: &'a str, messages: i32) -> Self {
        let mut arguments = FieldTable::default();
        arguments.insert("x-max-length".into(), AMQPValue::LongInt(messages));
        arguments.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
        Self::declare_with(url, name, arguments)
    }

    fn declare_with(url: &'a str, name: &'a str, arguments: FieldTable) -> Self {
        let queue = Self { url, name };
        queue.with(async |channel| {
            declare_exchange(channel, ExchangeKind::Fanout).await;
            let durable = QueueDeclareOptions { durable: true, ..Default::default() };
            channel.queue_declare(name.into(), durable, arguments).await.expect("a queue");
        });
        queue
    }

    /// A queue that was declared before.
    pub fn declared(url: &'a str, name: &'a str) -> Self {
        Self { url, name }
    }

    pub fn bind(&self) {
        self.with(async |channel| bind_queue(channel, self.name).await);
    }

    pub fn unbind(&self) {
        self.with(async |channel| unbind_queue(channel, self.name).await);
    }

    /// Deletes it with its messages; one that is not there counts as deleted.
    pub fn delete(&self) {
        self.with(async |channel| {
            channel.queue_delete(self.name.into(), QueueDeleteOptions::default()).await.expect("the queue is deleted");
        });
    }

    /// How many messages wait in it for a consumer, and how many consumers it has.
    pub fn state(&self) -> (u32, u32) {
        self.with(async |channel| {
            let passive = QueueDeclareOptions { passive: true, ..Default::default() };
            let queue = channel.queue_declare(self.name.into(), passive, FieldTable::default()).await.expect("a queue");
            (queue.message_count(), queue.consumer_count())
        })
    }

    /// Takes all messages out of it.
    pub fn take(&self) -> Vec<Message> {
        self.with(async |channel| {
            let mut messages = Vec::new();
            let options = BasicGetOptions { no_ack: true };
            while let Some(got) = channel.basic_get(self.name.into(), options).await.expect("an answer") {
                messages.push(Message::parse(&got.delivery.data));
            }
            messages
        })
    }

    /// Has one conversation with the broker on a connection of its own.
    pub fn with<T>(&self, conversation: impl AsyncFnOnce(&Channel) -> T) -> T {
        block_on(async {
            let connection = connect(self.url).await.expect("the test connects");
            let channel = connection.create_channel().await.expect("a channel");
            let answer = tokio::time::timeout(ANSWER, async {
                let answer = conversation(&channel).await;
                connection.close(200, "done".into()).await.expect("closed");
                answer
            });
            answer.await.expect("the broker answers the test")
        })
    }
}

pub async fn unbind_queue(channel: &Channel, queue: &str) {
    let unbound = channel.queue_unbind(queue.into(), EXCHANGE.into(), "".into(), FieldTable::default());
    unbound.await.expect("the queue is unbound");
}
