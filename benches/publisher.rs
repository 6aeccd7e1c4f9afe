//! How fast does the client library publish, if nothing else is done?
//!
//! ```sh
//! cargo bench --bench publisher -- AMQP_URL EXCHANGE BODIES WINDOW
//! ```
//!
//! A bare loop on one thread: each line of the file BODIES is published as a persistent message, up to WINDOW of them
//! without a confirm, until every confirm is in. The time goes from the first publish to the last confirm; it is what a
//! watch that feeds the same queue is held to (row 15 of `scripts/bench`, which makes BODIES of the watch's own
//! messages). Without arguments there is no broker to publish to, and the bench says so.

use std::collections::VecDeque;
use std::error::Error;
use std::fs;
use std::process::ExitCode;
use std::time::Instant;

use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::uri::AMQPUri;
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, PublisherConfirm};
use rustix::time::ClockId;

/// The allocator of the program, because another one would give other figures.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The `delivery-mode` of a message that a durable queue keeps through a restart (AMQP 0-9-1, class basic).
const PERSISTENT: u8 = 2;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    let [url, exchange, bodies, window] = &words[..] else {
        println!("publisher: skipped, it takes AMQP_URL EXCHANGE BODIES WINDOW (scripts/bench --only 15 gives them)");
        return if words.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(2) };
    };
    match measure(url, exchange, bodies, window).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("publisher: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn measure(url: &str, exchange: &str, bodies: &str, window: &str) -> Result<(), Box<dyn Error>> {
    let window: usize = window.parse().map_err(|_| format!("WINDOW cannot be {window:?}: it is a number from 1 on"))?;
    let bodies = fs::read(bodies)?;
    let bodies: Vec<&[u8]> = bodies.split(|&byte| byte == b'\n').filter(|body| !body.is_empty()).collect();
    let mut uri: AMQPUri = url.parse()?;
    if uri.vhost.is_empty() {
        uri.vhost = "/".to_owned(); // what a URL that ends with / means to other clients
    }
    let connection = Connection::connect_uri(uri, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    let began = Instant::now();
    publish(&channel, exchange, &bodies, window.max(1)).await?;
    let seconds = began.elapsed().as_secs_f64();
    connection.close(200, "done".into()).await?;
    let cpu = rustix::time::clock_gettime(ClockId::ProcessCPUTime);
    let cpu = cpu.tv_sec as f64 + cpu.tv_nsec as f64 / 1e9;
    println!("messages={} seconds={seconds:.6} cpu={cpu:.6}", bodies.len());
    Ok(())
}

/// Publishes all and waits for each confirm, the oldest first.
async fn publish(channel: &Channel, exchange: &str, bodies: &[&[u8]], window: usize) -> Result<(), Box<dyn Error>> {
    let properties =
        BasicProperties::default().with_content_type("application/json".into()).with_delivery_mode(PERSISTENT);
    let mut waiting = VecDeque::with_capacity(window);
    for body in bodies {
        if waiting.len() == window
            && let Some(oldest) = waiting.pop_front()
        {
            confirmed(oldest).await?;
        }
        let options = BasicPublishOptions::default();
        waiting.push_back(channel.basic_publish(exchange.into(), "".into(), options, body, properties.clone()).await?);
    }
    for one in waiting {
        confirmed(one).await?;
    }
    Ok(())
}

async fn confirmed(publish: PublisherConfirm) -> Result<(), Box<dyn Error>> {
    match publish.await? {
        Confirmation::Ack(None) => Ok(()),
        other => Err(format!("a message was not taken: {other:?}").into()),
    }
}
