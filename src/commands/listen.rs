//! `listen`: a temporary queue on the exchange, and each message on standard output, one JSON object a line.
//!
//! A thread of its own prints, so that the connection lives and signals are heard while nobody reads. The broker sends no
//! more messages than are acknowledged, so those that nobody reads wait in the queue.

use std::future::pending;
use std::io::{self, Write};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{FieldTable, ShortString};
use lapin::{Consumer, ExchangeKind};
use serde::de::IgnoredAny;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use crate::address::Broker;
use crate::cli::{RouteSettings, Settings};
use crate::commands::runtime::runtime;
use crate::error::Error;
use crate::logging::{self, Repeats};
use crate::publish::errors::{answer, failure};
use crate::publish::session::Session;
use crate::routing::Exchange;
use crate::signals::{Caller, CaughtSignals};
use crate::streams::stdout::Stdout;

/// Messages that the broker sends ahead of their acknowledgement.
const AHEAD_MAX: u16 = 256;

/// Lines that wait for standard output.
const LINES_MAX: usize = 16;

/// How long the end waits for lines that standard output has not taken.
const LAST_LINES_TIMEOUT: Duration = Duration::from_secs(1);

/// Prints messages until their number is reached, the time is over, or a signal asks for the end.
///
/// It checks only the settings of the broker and of logging.
///
/// # Errors
/// [`Error::Usage`] when the broker's settings cannot be used; [`Error::Broker`] when the broker cannot be used or is lost;
/// [`Error::Fewer`] when it ends with fewer messages than their number; [`Error::Stdout`].
pub fn run(settings: &Settings, count: Option<NonZeroU32>, time: Option<NonZeroU32>) -> Result<(), Error> {
    let broker = Broker::new(&settings.amqp)?;
    let (exchange, keys) = (settings.route.exchange(), binding_keys(&settings.route)?);
    logging::start(settings);
    logging::warn_of_unknown_variables();
    let signals = CaughtSignals::listen(Caller::Listener)?;
    let runtime = runtime()?;
    let source = Source { exchange, keys };
    runtime.block_on(listen(&broker, &source, count.map(NonZeroU32::get), time, signals))
}

/// Where the messages come from.
struct Source {
    exchange: Exchange,
    /// The keys by which the queue is bound.
    keys: Vec<ShortString>,
}

async fn listen(
    broker: &Broker,
    source: &Source,
    count: Option<u32>,
    time: Option<NonZeroU32>,
    signals: CaughtSignals,
) -> Result<(), Error> {
    let (stop, mut stopped) = mpsc::channel(1);
    signals.ask(move |_| {
        let _ = stop.try_send(()); // one is enough
    });
    let mut printer = Printer::start(Stdout::given()?)?;
    let session = tokio::select! {
        opened = Session::open(broker, &source.exchange) => opened?,
        _ = stopped.recv() => return enough(0, count),
    };
    let ended = tokio::select! {
        relayed = relay(&session, source, count, &printer.lines) => relayed,
        Some(error) = printer.failed.recv() => Err(Error::Stdout(error)),
        Some(()) = printer.reader_gone.recv() => Err(Error::Stdout(io::ErrorKind::BrokenPipe.into())),
        () = over(time) => Ok(()),
        _ = stopped.recv() => Ok(()),
    };
    let printed = printer.finish().await;
    session.close().await;
    ended.and(printed).and_then(|printed| enough(printed, count))
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

fn enough(printed: u32, count: Option<u32>) -> Result<(), Error> {
    match count {
        Some(count) if printed < count => Err(Error::Fewer { printed, count }),
        _ => Ok(()),
    }
}

async fn over(time: Option<NonZeroU32>) {
    match time {
        Some(seconds) => sleep(Duration::from_secs(seconds.get().into())).await,
        None => pending().await,
    }
}

/// Binds a queue of this connection to the exchange, and consumes from it.
async fn subscribe(session: &Session, source: &Source) -> Result<Consumer, Error> {
    let (Session { channel, at, .. }, Source { exchange, keys }) = (session, source);
    let temporary = QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
    let queue = answer(at, channel.queue_declare("".into(), temporary, FieldTable::default())).await?;
    let name = queue.name();
    for key in keys {
        let (exchange, options) = (exchange.name.clone(), QueueBindOptions::default());
        answer(at, channel.queue_bind(name.clone(), exchange, key.clone(), options, FieldTable::default())).await?;
    }
    answer(at, channel.basic_qos(AHEAD_MAX, BasicQosOptions::default())).await?;
    let options = BasicConsumeOptions::default();
    answer(at, channel.basic_consume(name.clone(), "".into(), options, FieldTable::default())).await
}

/// Hands each message that is a JSON object to the printer, until their number is reached.
async fn relay(
    session: &Session,
    source: &Source,
    count: Option<u32>,
    lines: &mpsc::Sender<Vec<u8>>,
) -> Result<(), Error> {
    let at = &session.at;
    let mut deliveries = subscribe(session, source).await?;
    tracing::info!(event = "ready", url = at, "ready: listening at {at}");
    let mut passed_over = Repeats::limited("messages that are no JSON object");
    let mut relayed = 0;
    while count.is_none_or(|count| relayed < count) {
        let Some(delivery) = deliveries.next().await else {
            return Err(Error::Broker {
                url: at.clone(),
                cause: "the broker has ended the delivery".to_owned(),
                next: "check the broker, then start again",
            });
        };
        let Delivery { data, acker, .. } = delivery.map_err(|error| failure(at, &error))?;
        match line(data) {
            Ok(line) => match lines.send(line).await {
                Ok(()) => relayed += 1,
                // The printer has failed and says why.
                Err(_) => return pending().await,
            },
            Err(why) if passed_over.admits(Instant::now()) => {
                tracing::warn!(
                    event = "not_json",
                    error = why,
                    "a message that is no JSON object was passed over: {why}"
                );
            }
            Err(_) => {}
        }
        acker.ack(BasicAckOptions::default()).await.map_err(|error| failure(at, &error))?;
    }
    passed_over.report();
    Ok(())
}

/// The body of a message as one line. Anybody can publish to the exchange, so it need not be one of ours.
///
/// # Errors
/// Why the body is not one JSON object.
fn line(mut body: Vec<u8>) -> Result<Vec<u8>, String> {
    let text = std::str::from_utf8(&body).map_err(|_| "it is not UTF-8".to_owned())?;
    serde_json::from_str::<IgnoredAny>(text).map_err(|error| error.to_string())?;
    if !text.trim_start().starts_with('{') {
        return Err("it is JSON, but no object".to_owned());
    }
    if body.iter().any(|byte| matches!(byte, b'\n' | b'\r')) {
        remove_white_space(&mut body);
    }
    body.push(b'\n');
    Ok(body)
}

/// Removes the white space outside of strings from a JSON text. A line break can only be there (RFC 8259).
fn remove_white_space(text: &mut Vec<u8>) {
    let (mut in_string, mut escaped) = (false, false);
    text.retain(|byte| {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => in_string = !in_string,
            b' ' | b'\t' | b'\n' | b'\r' => return in_string,
            _ => {}
        }
        true
    });
}

/// The thread that prints.
struct Printer {
    lines: mpsc::Sender<Vec<u8>>,
    /// Why standard output takes no more lines. It closes when the thread has ended.
    failed: mpsc::Receiver<io::Error>,
    reader_gone: mpsc::Receiver<()>,
    printed: Arc<AtomicU32>,
}

impl Printer {
    fn start(mut stdout: Stdout) -> Result<Self, Error> {
        let (lines, mut to_print) = mpsc::channel::<Vec<u8>>(LINES_MAX);
        let (failed, failure) = mpsc::channel(1);
        let (gone, reader_gone) = mpsc::channel(1);
        stdout.when_its_reader_goes(move || {
            let _ = gone.try_send(()); // whoever does not listen has ended
        });
        let printed = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&printed);
        let print = move || {
            while let Some(line) = to_print.blocking_recv() {
                if let Err(error) = stdout.write_all(&line) {
                    let _ = failed.try_send(error);
                    return;
                }
                counted.fetch_add(1, Ordering::Relaxed);
            }
        };
        let thread = thread::Builder::new().name("print".to_owned()).spawn(print);
        thread.map_err(|cause| Error::Threads { what: "the printing thread", cause })?;
        Ok(Self { lines, failed: failure, reader_gone, printed })
    }

    /// Waits until the last lines are printed, within a timeout, and returns how many were printed in all.
    async fn finish(self) -> Result<u32, Error> {
        let Self { lines, mut failed, printed, .. } = self;
        drop(lines);
        match timeout(LAST_LINES_TIMEOUT, failed.recv()).await {
            Ok(Some(error)) => Err(Error::Stdout(error)),
            // The thread has ended, or hangs in a write.
            Ok(None) | Err(_) => Ok(printed.load(Ordering::Relaxed)),
        }
    }
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

    #[test]
    fn a_body_that_is_one_json_object_is_a_line() {
        let printed = |body: &str| line(body.into()).map(|line| String::from_utf8(line).unwrap());
        for (body, expected) in [
            ("{\"good\": 1}", "{\"good\": 1}\n"),
            ("{}", "{}\n"),
            ("{\"pretty\":\n\t1,\r\n \"x y\": \" a\\\\\\\" \\n \"}\n", "{\"pretty\":1,\"x y\":\" a\\\\\\\" \\n \"}\n"),
            (
                " {\"n\": 1e999, \"same\": 1, \"same\": 18446744073709551616}",
                " {\"n\": 1e999, \"same\": 1, \"same\": 18446744073709551616}\n",
            ),
        ] {
            assert_eq!(printed(body).as_deref(), Ok(expected));
        }
    }

    #[test]
    fn other_bodies_are_none() {
        let others: [&[u8]; 12] = [
            b"",
            b" ",
            b"text",
            b"[1]",
            b"1",
            b"\"{}\"",
            b"{",
            b"{\"a\":1}\n{\"b\":2}",
            b"{\"a\":1}{\"b\":2}",
            b"{\"a\":\"\n\"}",
            b"{\"a\":\"\xff\"}",
            b"\xef\xbb\xbf{}",
        ];
        for body in others {
            assert!(line(body.into()).is_err(), "{:?}", String::from_utf8_lossy(body));
        }
    }
}
