//! `listen`: a temporary queue on the exchange, and each message on standard output, one a line.

use std::fs::File;
use std::future::{Future, pending};
use std::io::{self, Write};
use std::num::NonZeroU32;
use std::time::Duration;

use futures_util::StreamExt;
use lapin::options::{BasicConsumeOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{FieldTable, ShortString};
use lapin::{Consumer, ExchangeKind};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::sleep;

use crate::address::Broker;
use crate::cli::{RouteSettings, Settings};
use crate::error::{Error, os_message};
use crate::logging;
use crate::publish::errors::{answer, failure};
use crate::publish::local::stdout;
use crate::publish::session::Session;
use crate::routing::Exchange;

/// Prints messages until their number is reached, the time is over, or a signal asks for the end.
///
/// It checks only the settings of the broker and of logging.
///
/// # Errors
/// [`Error::Usage`] when the broker's settings cannot be used; [`Error::Broker`] when the broker cannot be used or is lost;
/// [`Error::Stdout`].
pub fn run(settings: &Settings, count: Option<NonZeroU32>, timeout: Option<NonZeroU32>) -> Result<(), Error> {
    let broker = Broker::new(&settings.amqp)?;
    let (exchange, keys) = (settings.route.exchange(), binding_keys(&settings.route)?);
    logging::start(settings);
    logging::warn_of_unknown_variables();
    let refuse = |error: io::Error| Error::Internal(format!("cannot start: {}", os_message(&error)));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(refuse)?;
    runtime.block_on(listen(&broker, &exchange, &keys, count, timeout))
}

async fn listen(
    broker: &Broker,
    exchange: &Exchange,
    keys: &[ShortString],
    count: Option<NonZeroU32>,
    timeout: Option<NonZeroU32>,
) -> Result<(), Error> {
    let refuse = |error: io::Error| Error::Internal(format!("cannot listen for signals: {}", os_message(&error)));
    let end = end(timeout).map_err(refuse)?;
    let stdout = stdout()?;
    let session = Session::open(broker, exchange).await?;
    let deliveries = subscribe(&session, exchange, keys).await?;
    tracing::info!(event = "ready", url = session.at, "ready: listening at {}", session.at);
    tokio::select! {
        printed = print_all(deliveries, &session.at, count, stdout) => printed?,
        () = end => {}
    }
    session.close().await;
    Ok(())
}

/// The keys by which the queue is bound, so that it gets what the service publishes.
///
/// # Errors
/// [`Error::Usage`] where the exchange delivers by the exact key and the files fill that in.
fn binding_keys(route: &RouteSettings) -> Result<Vec<ShortString>, Error> {
    let key = &route.routing_key;
    match (&route.exchange_type, key.literal()) {
        // A fanout exchange looks at no key.
        (ExchangeKind::Fanout, _) => Ok(vec![ShortString::default()]),
        (ExchangeKind::Topic, _) => Ok(vec!["#".into()]),
        (_, Some(literal)) => Ok(vec![literal.clone()]),
        (_, None) => Err(Error::usage(
            "--routing-key (INGESTOR_ROUTING_KEY): an exchange of this type delivers by whole keys, and each file has another",
            "name one whole key with it",
        )),
    }
}

/// Ends with the time-out, SIGINT or SIGTERM. The signals are caught from the call on, before the future is polled.
fn end(timeout: Option<NonZeroU32>) -> io::Result<impl Future<Output = ()>> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    Ok(async move {
        let over = async {
            match timeout {
                Some(seconds) => sleep(Duration::from_secs(seconds.get().into())).await,
                None => pending().await,
            }
        };
        tokio::select! {
            () = over => {}
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}

/// Binds a queue of this connection to the exchange, and consumes from it.
async fn subscribe(session: &Session, exchange: &Exchange, keys: &[ShortString]) -> Result<Consumer, Error> {
    let Session { channel, at, .. } = session;
    let temporary = QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
    let queue = answer(at, channel.queue_declare("".into(), temporary, FieldTable::default())).await?;
    let name = queue.name();
    for key in keys {
        let (exchange, options) = (exchange.name.clone(), QueueBindOptions::default());
        answer(at, channel.queue_bind(name.clone(), exchange, key.clone(), options, FieldTable::default())).await?;
    }
    let unacknowledged = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
    answer(at, channel.basic_consume(name.clone(), "".into(), unacknowledged, FieldTable::default())).await
}

async fn print_all(
    mut deliveries: Consumer,
    at: &str,
    count: Option<NonZeroU32>,
    mut stdout: File,
) -> Result<(), Error> {
    let mut printed = 0;
    while count.is_none_or(|count| printed < count.get()) {
        match deliveries.next().await {
            Some(Ok(delivery)) => print(&mut stdout, delivery.data)?,
            Some(Err(error)) => return Err(failure(at, &error)),
            None => {
                return Err(Error::Broker {
                    url: at.to_owned(),
                    cause: "the broker has ended the delivery".to_owned(),
                    next: "check the broker, then start again",
                });
            }
        }
        printed += 1;
    }
    Ok(())
}

/// Prints a message on one line, also one that another program wrote over several lines.
fn print(stdout: &mut File, mut body: Vec<u8>) -> Result<(), Error> {
    if body.contains(&b'\n') {
        match simd_json::to_owned_value(&mut body).and_then(|value| simd_json::to_vec(&value)) {
            Ok(compact) => body = compact,
            Err(error) => {
                tracing::warn!(event = "not_json", %error, "a message that is no JSON was passed over: {error}");
                return Ok(());
            }
        }
    }
    body.push(b'\n');
    stdout.write_all(&body).map_err(Error::Stdout)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::Cli;

    #[test]
    fn settings_of_other_commands_do_not_keep_it_from_the_broker() {
        let wrong = ["--include", "[", "--catch-up", "changed", "--data-dir", "/nonexistent", "--log-level", "error"];
        let broker = ["--amqp-url", "amqp://127.0.0.1:1"]; // nothing listens at port 1
        let words = ["apollonia-ingestor", "listen"].into_iter().chain(wrong).chain(broker);
        let ended = run(&Cli::parse_from(words).settings, None, None);
        assert!(matches!(ended, Err(Error::Broker { .. })), "{ended:?}");
    }
}
