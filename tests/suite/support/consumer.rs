//! A real consumer: a durable, exclusive queue bound to the exchange before the service starts.

use std::future::Future;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use lapin::options::{
    BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions, QueueBindOptions,
    QueueDeclareOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, ExchangeKind};
use tokio::sync::oneshot;

use super::message::{Envelope, Message};

pub const EXCHANGE: &str = "apollonia";
/// An answer takes milliseconds; the rest is for a machine busy with other work.
const ANSWER: Duration = Duration::from_secs(20);
/// The body of the message that the consumer itself publishes behind all of the service's.
pub const END_MARK: &[u8] = b"end of messages";

#[derive(Default)]
struct Inbox {
    messages: Vec<Message>,
    ended: bool,
    lost: Option<String>,
}

#[derive(Default)]
struct Shared {
    inbox: Mutex<Inbox>,
    changed: Condvar,
}

pub struct Consumer {
    url: String,
    shared: Arc<Shared>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Consumer {
    pub fn bind(url: &str) -> Self {
        let shared = Arc::new(Shared::default());
        let (stop, stopped) = oneshot::channel();
        let (bound, is_bound) = std::sync::mpsc::channel();
        let thread = std::thread::spawn({
            let (url, shared) = (url.to_owned(), Arc::clone(&shared));
            move || block_on(consume(&url, &shared, bound, stopped))
        });
        is_bound.recv_timeout(ANSWER).expect("the consumer's queue was not bound");
        Self { url: url.to_owned(), shared, stop: Some(stop), thread: Some(thread) }
    }

    pub fn messages(&self) -> Vec<Message> {
        self.inbox().messages.clone()
    }

    /// Waits at most `timeout` for `enough` and returns whether it came.
    pub fn wait_until(&self, timeout: Duration, enough: impl Fn(&[Message]) -> bool) -> bool {
        self.wait_for(timeout, |inbox| enough(&inbox.messages))
    }

    /// All messages published so far: a message of the test's own goes through the same exchange behind the service's
    /// and is waited for. The service may publish more afterwards.
    pub fn drain(&self) -> Vec<Message> {
        publish(&self.url, END_MARK);
        assert!(self.wait_for(ANSWER, |inbox| inbox.ended), "the consumer's own mark did not come within {ANSWER:?}");
        self.messages()
    }

    fn wait_for(&self, timeout: Duration, enough: impl Fn(&Inbox) -> bool) -> bool {
        let deadline = Instant::now() + timeout;
        let mut inbox = self.inbox();
        loop {
            if enough(&inbox) {
                return true;
            }
            if let Some(error) = &inbox.lost {
                panic!("the test's own consumer lost the broker: {error}");
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            inbox = self.shared.changed.wait_timeout(inbox, left).expect("inbox").0;
        }
    }

    fn inbox(&self) -> std::sync::MutexGuard<'_, Inbox> {
        self.shared.inbox.lock().expect("inbox")
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic in it was already shown; a second one here would hide the test's own.
            let _ = thread.join();
        }
    }
}

async fn consume(url: &str, shared: &Shared, bound: std::sync::mpsc::Sender<()>, mut stopped: oneshot::Receiver<()>) {
    let connection = connect(url).await.expect("the test's consumer connects");
    let channel = connection.create_channel().await.expect("a channel");
    declare_exchange(&channel, ExchangeKind::Fanout).await;
    let queue = channel
        .queue_declare(
            "".into(),
            QueueDeclareOptions { durable: true, exclusive: true, ..Default::default() },
            FieldTable::default(),
        )
        .await
        .expect("a queue");
    let name = queue.name().clone();
    bind_queue(&channel, name.as_str()).await;
    let options = BasicConsumeOptions { no_ack: true, ..Default::default() };
    let mut deliveries =
        channel.basic_consume(name, "".into(), options, FieldTable::default()).await.expect("deliveries");
    bound.send(()).expect("the test waits for this");
    loop {
        let delivery = tokio::select! {
            delivery = deliveries.next() => delivery,
            _ = &mut stopped => return,
        };
        let mut inbox = shared.inbox.lock().expect("inbox");
        match delivery {
            Some(Ok(delivery)) if delivery.data == END_MARK => inbox.ended = true,
            Some(Ok(delivery)) => {
                let envelope = Envelope {
                    exchange: delivery.exchange.to_string(),
                    routing_key: delivery.routing_key.to_string(),
                    properties: delivery.properties,
                };
                let mut message = Message::parse(&delivery.data);
                message.envelope = Some(envelope);
                inbox.messages.push(message);
            }
            Some(Err(error)) => inbox.lost = Some(error.to_string()),
            None => inbox.lost = Some("the deliveries ended".into()),
        }
        let lost = inbox.lost.is_some();
        drop(inbox);
        shared.changed.notify_all();
        if lost {
            return;
        }
    }
}

/// Has one conversation with the broker on this thread.
pub fn block_on<T>(conversation: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(conversation)
}

pub async fn connect(url: &str) -> Result<Connection, String> {
    let connecting = Connection::connect(url, ConnectionProperties::default());
    match tokio::time::timeout(ANSWER, connecting).await {
        Ok(connected) => connected.map_err(|error| error.to_string()),
        Err(_) => Err(format!("no answer within {ANSWER:?}")),
    }
}

pub fn try_connect(url: &str) -> Result<(), String> {
    block_on(async { connect(url).await.map(drop) })
}

pub async fn declare_exchange(channel: &Channel, kind: ExchangeKind) {
    let options = ExchangeDeclareOptions { durable: true, ..Default::default() };
    channel
        .exchange_declare(EXCHANGE.into(), kind, options, FieldTable::default())
        .await
        .expect("the exchange is declared");
}

pub async fn bind_queue(channel: &Channel, queue: &str) {
    channel
        .queue_bind(queue.into(), EXCHANGE.into(), "".into(), QueueBindOptions::default(), FieldTable::default())
        .await
        .expect("the queue is bound");
}

pub fn publish(url: &str, body: &[u8]) {
    block_on(async {
        let connection = connect(url).await.expect("the test's publisher connects");
        let channel = connection.create_channel().await.expect("a channel");
        channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirm mode");
        channel
            .basic_publish(EXCHANGE.into(), "".into(), BasicPublishOptions::default(), body, BasicProperties::default())
            .await
            .expect("published")
            .await
            .expect("confirmed");
    });
}
