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
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, ExchangeKind};
use serde_json::{Map, Value};
use tokio::sync::oneshot;

pub const EXCHANGE: &str = "apollonia";
/// Everything here answers in milliseconds; the rest is for a machine busy with other work.
const ANSWER: Duration = Duration::from_secs(20);
/// Published by the consumer itself, behind everything the service has published.
pub const END_MARK: &[u8] = b"end of messages";

/// One message, whether it came from the broker or as a line of standard output.
#[derive(Clone, Debug)]
pub struct Message {
    pub body: Vec<u8>,
    pub fields: Map<String, Value>,
    /// What only AMQP carries.
    pub envelope: Option<Envelope>,
}

#[derive(Clone, Debug)]
pub struct Envelope {
    pub exchange: String,
    pub routing_key: String,
    pub properties: BasicProperties,
}

impl Message {
    pub fn parse(body: &[u8]) -> Self {
        let fields = match serde_json::from_slice(body) {
            Ok(Value::Object(fields)) => fields,
            other => panic!("a message is not a JSON object but {other:?}: {}", String::from_utf8_lossy(body)),
        };
        Self { body: body.to_vec(), fields, envelope: None }
    }

    pub fn text(&self, field: &str) -> &str {
        self.fields
            .get(field)
            .and_then(Value::as_str)
            .unwrap_or_else(|| panic!("no string `{field}` in {:?}", self.fields))
    }

    pub fn path(&self) -> &str {
        self.text("file_path")
    }

    /// The last part of the path, as JSON carries it.
    pub fn name(&self) -> &str {
        self.path().rsplit('/').next().unwrap_or_default()
    }

    pub fn event(&self) -> &str {
        self.text("event_type")
    }

    pub fn sha256(&self) -> &str {
        self.text("sha256_hash")
    }

    pub fn size(&self) -> u64 {
        self.fields["size"].as_u64().expect("`size` is an integer")
    }

    pub fn neighbors(&self) -> Vec<&str> {
        self.fields["neighbors"]
            .as_array()
            .expect("`neighbors` is an array")
            .iter()
            .map(|path| path.as_str().expect("a neighbor is a string"))
            .collect()
    }

    pub fn envelope(&self) -> &Envelope {
        self.envelope.as_ref().expect("a message from the broker")
    }

    pub fn message_id(&self) -> &str {
        let id = self.envelope().properties.message_id().as_ref();
        id.expect("a message id").as_str()
    }

    pub fn path_bytes_header(&self) -> Option<Vec<u8>> {
        let headers = self.envelope().properties.headers().as_ref()?;
        match headers.inner().get("x-file-path-bytes")? {
            AMQPValue::ByteArray(bytes) => Some(bytes.as_slice().to_vec()),
            other => panic!("x-file-path-bytes is not a byte array but {other:?}"),
        }
    }
}

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

    /// Waits at most `patience` for `enough` and says whether it came.
    pub fn wait_until(&self, patience: Duration, enough: impl Fn(&[Message]) -> bool) -> bool {
        self.wait_for(patience, |inbox| enough(&inbox.messages))
    }

    /// Everything published so far, certainly: a message of our own goes through the same exchange
    /// behind the service's, and we wait for it. Says nothing of what the service may still publish.
    pub fn drain(&self) -> Vec<Message> {
        publish(&self.url, END_MARK);
        assert!(self.wait_for(ANSWER, |inbox| inbox.ended), "the consumer's own mark did not come within {ANSWER:?}");
        self.messages()
    }

    fn wait_for(&self, patience: Duration, enough: impl Fn(&Inbox) -> bool) -> bool {
        let deadline = Instant::now() + patience;
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

/// Runs one conversation with the broker on this thread.
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
