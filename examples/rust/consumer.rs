//! A consumer to begin with, in Rust with lapin: prints one line for each file version that apollonia-ingestor publishes.
//!
//! `cargo run --example consumer -- --help`. What to take over:
//!
//! - The queue is durable and bound before the ingestor publishes; what comes earlier goes past it. From then on nothing is
//!   lost while the consumer is away.
//! - A message is acknowledged when the work is done, not before: a consumer that dies is given it again.
//! - For that reason, and because an ingestor that died publishes its last messages again, a message can come twice. Its
//!   message id is the same each time; it stands for one version of one path. Here the last 100,000 ids are remembered, and
//!   forgotten at the end.
//!
//! What must not be done twice even after a restart takes a unique key in the database that the work ends in. In one
//! transaction, and then the acknowledgement:
//!
//! ```sql
//! INSERT INTO seen (message_id) VALUES (...) ON CONFLICT DO NOTHING; -- its primary key
//! -- the work, if that has inserted a row
//! ```

use std::collections::{HashSet, VecDeque};
use std::io::{self, Write};
use std::num::NonZeroU64;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use clap::Parser;
use futures_util::StreamExt;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicQosOptions, BasicRejectOptions, ExchangeDeclareOptions,
    QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::uri::AMQPUri;
use lapin::{Connection, ConnectionProperties, ExchangeKind};
use serde::Deserialize;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tokio::sync::oneshot;
use tokio::time::timeout;

const EXCHANGE: &str = "apollonia";
/// Messages here without an acknowledgement, at most: enough to keep the connection busy.
const PREFETCH: u16 = 200;
/// Some 20 MB of ids: more than an ingestor with a ledger repeats after a crash. `--catch-up all` repeats everything.
const REMEMBERED: usize = 100_000;
/// A broker that is frozen takes a connection and says nothing.
const ANSWER: Duration = Duration::from_secs(10);

/// Prints one line for each file version that apollonia-ingestor publishes.
#[derive(Parser)]
struct Options {
    /// The broker
    #[arg(value_name = "AMQP_URL", env = "AMQP_CONNECTION_STRING", hide_env_values = true)]
    #[arg(default_value = "amqp://guest:guest@localhost:5672/")]
    url: String,
    /// Its queue, declared and bound if it is not there; consumers of one queue share the messages, each queue has them all
    #[arg(long, value_name = "NAME", default_value = "apollonia.example")]
    queue: String,
    /// As a quorum queue, which a cluster keeps in several copies
    #[arg(long)]
    quorum: bool,
    /// End after N lines
    #[arg(long, value_name = "N")]
    count: Option<NonZeroU64>,
}

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("AMQP_URL cannot be used: write amqp://USER:PASSWORD@HOST:PORT/VHOST; see --help")]
    Url,
    #[error("no answer within {ANSWER:?}")]
    Silent,
    #[error("{0}")]
    Broker(#[from] lapin::Error),
    #[error("the queue was deleted")]
    Deleted,
    #[error("signals: {0}")]
    Signals(io::Error),
    #[error("standard output: {0}; the message stays in the queue")]
    Output(io::Error),
}

/// What the work needs of a message.
#[derive(Deserialize)]
struct Message {
    event_type: String,
    size: u64,
    sha256_hash: String,
    file_path: String,
}

/// The last so many ids.
#[derive(Default)]
struct Recent {
    ids: HashSet<ShortString>,
    order: VecDeque<ShortString>,
}

impl Recent {
    fn add(&mut self, id: ShortString) {
        self.order.push_back(id.clone());
        self.ids.insert(id);
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.ids.remove(&oldest);
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let options = match Options::try_parse() {
        Ok(options) => options,
        Err(error) if error.use_stderr() => {
            // One line, like every other failure.
            eprintln!("{}; see --help", error.to_string().lines().next().unwrap_or_default());
            return ExitCode::from(2);
        }
        Err(help) => help.exit(),
    };
    match consume(&options).await {
        Ok((done, repeats)) => {
            eprintln!("end: {done} files, {repeats} repeats dropped");
            ExitCode::SUCCESS
        }
        Err(error @ Failure::Url) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
        Err(error @ (Failure::Output(_) | Failure::Signals(_))) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
        Err(error) => {
            // Without user and password.
            let broker = options.url.rsplit('@').next().unwrap_or_default();
            let cause = error.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
            eprintln!("error: {broker}: {cause}; check the broker and AMQP_CONNECTION_STRING, then start again");
            ExitCode::FAILURE
        }
    }
}

async fn consume(options: &Options) -> Result<(u64, u64), Failure> {
    let mut end = asked_to_end().map_err(Failure::Signals)?;
    let mut uri: AMQPUri = options.url.parse().map_err(|_: String| Failure::Url)?;
    if uri.vhost.is_empty() {
        uri.vhost = "/".to_owned(); // what a URL that ends with / means to other clients
    }
    let connecting = Connection::connect_uri(uri, ConnectionProperties::default());
    let connection = timeout(ANSWER, connecting).await.map_err(|_| Failure::Silent)??;
    let channel = connection.create_channel().await?;

    // As the ingestor declares it: whoever comes first makes it.
    let durable = ExchangeDeclareOptions { durable: true, ..Default::default() };
    channel.exchange_declare(EXCHANGE.into(), ExchangeKind::Fanout, durable, FieldTable::default()).await?;
    let queue = ShortString::from(options.queue.as_str());
    let mut arguments = FieldTable::default();
    if options.quorum {
        arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    }
    let durable = QueueDeclareOptions { durable: true, ..Default::default() };
    channel.queue_declare(queue.clone(), durable, arguments).await?;
    let bind = QueueBindOptions::default();
    channel.queue_bind(queue.clone(), EXCHANGE.into(), "".into(), bind, FieldTable::default()).await?;
    channel.basic_qos(PREFETCH, BasicQosOptions::default()).await?;
    let acknowledged = BasicConsumeOptions::default();
    let mut deliveries = channel.basic_consume(queue, "".into(), acknowledged, FieldTable::default()).await?;
    eprintln!("ready: {} is bound to {EXCHANGE}", options.queue);

    let (mut recent, mut done, mut repeats) = (Recent::default(), 0, 0);
    while options.count.is_none_or(|count| done < count.get()) {
        let delivery = tokio::select! {
            delivery = deliveries.next() => delivery.ok_or(Failure::Deleted)??,
            _ = &mut end => break,
        };
        let id = delivery.properties.message_id().as_ref();
        if id.is_some_and(|id| recent.ids.contains(id)) {
            repeats += 1;
        } else {
            match serde_json::from_slice(&delivery.data) {
                Ok(message) => work(&message).map_err(Failure::Output)?,
                Err(error) => {
                    // Requeued it would come for ever. This sends it to the queue's dead-letter exchange, if there is one.
                    eprintln!("warning: a message that is not the ingestor's: {error}");
                    delivery.reject(BasicRejectOptions { requeue: false }).await?;
                    continue;
                }
            }
            done += 1;
            if let Some(id) = id {
                recent.add(id.clone());
            }
        }
        delivery.ack(BasicAckOptions::default()).await?;
    }
    // What is here and not acknowledged goes back to the queue. A broker that hangs must not keep us.
    let _ = timeout(ANSWER, connection.close(200, "done".into())).await;
    Ok((done, repeats))
}

/// SIGINT and SIGTERM.
fn asked_to_end() -> io::Result<oneshot::Receiver<()>> {
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    let (ask, asked) = oneshot::channel();
    thread::spawn(move || {
        signals.wait();
        let _ = ask.send(());
    });
    Ok(asked)
}

/// Yours.
fn work(message: &Message) -> io::Result<()> {
    let Message { event_type, size, sha256_hash, file_path } = message;
    let path = serde_json::to_string(file_path)?; // a name can hold the end of a line
    writeln!(io::stdout(), "{event_type} {size} {sha256_hash} {path}")
}
