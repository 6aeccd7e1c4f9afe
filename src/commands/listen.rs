//! `listen`: a temporary queue on the exchange, and each message on standard output, one a line.

use std::fs::File;
use std::io::Write;
use std::num::NonZeroU32;
use std::pin::pin;
use std::time::Duration;

use futures_util::StreamExt;
use lapin::options::{BasicConsumeOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep_until};

use crate::address::Broker;
use crate::error::Error;
use crate::publish::errors::{answer, failure};
use crate::publish::local::stdout;
use crate::publish::session::{Session, exchange};

/// A time-out that never comes, for no time-out: a hundred years.
const NEVER: Duration = Duration::from_secs(100 * 365 * 86_400);

/// Prints messages until so many have come, the time is over, or a signal asks for the end.
///
/// # Errors
/// [`Error::Broker`] when the broker cannot be used or is lost; [`Error::Stdout`].
pub fn run(broker: &Broker, count: Option<NonZeroU32>, timeout: Option<NonZeroU32>) -> Result<(), Error> {
    let refuse = |error| Error::Internal(format!("cannot start: {error}"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(refuse)?;
    runtime.block_on(listen(broker, count, timeout))
}

async fn listen(broker: &Broker, count: Option<NonZeroU32>, timeout: Option<NonZeroU32>) -> Result<(), Error> {
    let refuse = |error| Error::Internal(format!("cannot listen for signals: {error}"));
    let mut interrupt = signal(SignalKind::interrupt()).map_err(refuse)?;
    let mut stdout = stdout()?;
    let mut terminate = signal(SignalKind::terminate()).map_err(refuse)?;
    let session = Session::open(broker).await?;
    let (channel, at) = (&session.channel, &session.at[..]);
    let temporary = QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
    let queue = answer(at, channel.queue_declare("".into(), temporary, FieldTable::default())).await?;
    let name = queue.name().clone();
    let bound =
        channel.queue_bind(name.clone(), exchange(), "".into(), QueueBindOptions::default(), FieldTable::default());
    answer(at, bound).await?;
    let unacknowledged = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
    let consumer = channel.basic_consume(name, "".into(), unacknowledged, FieldTable::default());
    let mut deliveries = answer(at, consumer).await?;
    tracing::info!("ready: listening at {at}");

    let end = Instant::now() + timeout.map_or(NEVER, |seconds| Duration::from_secs(seconds.get().into()));
    let mut over = pin!(sleep_until(end));
    let mut seen = 0;
    while count.is_none_or(|count| seen < count.get()) {
        tokio::select! {
            delivery = deliveries.next() => match delivery {
                Some(Ok(delivery)) => {
                    print(&mut stdout, delivery.data)?;
                    seen += 1;
                }
                Some(Err(error)) => return Err(failure(at, &error)),
                None => return Err(Error::Broker {
                    url: at.to_owned(),
                    cause: "the broker has ended the delivery".to_owned(),
                    next: "check the broker, then start again",
                }),
            },
            () = &mut over => break,
            _ = interrupt.recv() => break,
            _ = terminate.recv() => break,
        }
    }
    session.close().await;
    Ok(())
}

/// One object a line, also of a message that somebody else wrote over several lines.
fn print(stdout: &mut File, mut body: Vec<u8>) -> Result<(), Error> {
    if body.contains(&b'\n') {
        match simd_json::to_owned_value(&mut body).and_then(|value| simd_json::to_vec(&value)) {
            Ok(compact) => body = compact,
            Err(error) => {
                tracing::warn!("a message that is no JSON was passed over: {error}");
                return Ok(());
            }
        }
    }
    body.push(b'\n');
    stdout.write_all(&body).map_err(Error::Stdout)
}
