//! The output: messages go to the broker, to standard output or nowhere, and a report of each job goes back to its source.

mod backoff;
mod confirms;
mod connect;
mod deferred;
pub mod errors;
pub mod exchange;
pub mod fence;
mod frame;
mod local;
pub mod look;
mod outage;
mod refusal;
mod returned;
pub mod session;
mod transport;
mod window;

use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use tokio::sync::mpsc::Receiver;

use crate::cli::Output;
use crate::config::PublishSettings;
use crate::error::Error;
use crate::job::Outgoing;
use crate::mailbox::ReportSender;
use crate::progress::{BrokerState, Progress};
use crate::streams::stdout::Stdout;

/// Starts the output's thread, if there is an output. With AMQP it returns once the exchange is declared.
///
/// # Errors
/// [`Error::Broker`] when the broker cannot be used; [`Error::Stdout`] when there is no standard output; [`Error::Threads`]
/// when the system gives no thread.
pub fn start(
    output: Output,
    settings: &PublishSettings,
    messages: Receiver<Vec<Outgoing>>,
    sender: ReportSender,
    progress: &Arc<Progress>,
) -> Result<Option<JoinHandle<()>>, Error> {
    if output == Output::None {
        return Ok(None);
    }
    let (ready, started) = sync_channel(1);
    let (settings, progress) = (settings.clone(), Arc::clone(progress));
    if output == Output::Amqp {
        progress.set_broker(BrokerState::Disconnected);
        let _ = progress.exchange.set(settings.exchange.name.to_string());
    }
    let thread = thread::Builder::new()
        .name("publish".to_owned())
        .spawn(move || {
            let _guard = sender.guard_panics();
            let ended = match output {
                Output::Stdout => to_stdout(messages, &sender, &progress, &ready),
                Output::Amqp | Output::None => confirms::run(&settings, messages, &sender, &progress, &ready),
            };
            if let Err(error) = ended {
                sender.fail(error);
            }
        })
        .map_err(|cause| Error::Threads { what: "the publishing thread", cause })?;
    started.recv().unwrap_or_else(|_| Err(Error::Internal("the publishing thread has ended".to_owned())))?;
    Ok(Some(thread))
}

/// Publishes to the standard output that the process was given. `ready` gets what it has, or lacks, at the start.
fn to_stdout(
    messages: Receiver<Vec<Outgoing>>,
    sender: &ReportSender,
    progress: &Progress,
    ready: &SyncSender<Result<(), Error>>,
) -> Result<(), Error> {
    match Stdout::given() {
        Ok(stdout) => {
            let _ = ready.send(Ok(()));
            local::to_stdout(stdout, messages, sender, progress)
        }
        Err(error) => {
            let _ = ready.send(Err(error));
            Ok(())
        }
    }
}
