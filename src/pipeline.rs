//! The wiring: each thread, each channel and each bound between a source of jobs and its confirms.
//!
//! A source (the watch of a volume, or a scan) submits jobs while there is room for their volume ([`Dispatcher::rooms`]) and
//! gets exactly one [`Report`](crate::job::Report) for each. The number of jobs in flight is bounded, and each channel has
//! room for all of them, so no stage ever waits for a full channel, and a slow broker slows reading. Each volume has a
//! bound of its own, so that a volume that hangs does not keep the files of others waiting. A job whose file is found
//! to be large moves to a second queue with a bound of its own, so that no number of large files keeps a small one
//! waiting.

use std::sync::Arc;

use tokio::sync::mpsc;

use crate::cli::{Output, ReadEngine};
use crate::config::PipelineSettings;
use crate::dispatch::{Dispatcher, NOTICES_BESIDE_REPORTS, Pipeline, Stages, Volume};
use crate::error::{Error, named};
use crate::files::inline_reads;
use crate::files::root::{Root, of_volume, volume_count};
use crate::mailbox::{Mailbox, ReportSender, Sender};
use crate::progress::Progress;
use crate::publish;
use crate::queue::Deadline;
use crate::read;
use crate::read::limits::{self, FILES_IN_FLIGHT};
use crate::read::readers::Readers;

/// Starts the readers, then the output (for AMQP: connected, exchange declared), with a source for each volume.
///
/// # Errors
/// The first failure of a reader or of the output to start.
pub fn start(settings: &PipelineSettings, roots: &[Arc<Root>], progress: Arc<Progress>) -> Result<Pipeline, Error> {
    let volumes = volumes(settings, roots);
    let (sender, mailbox) = Mailbox::new(volumes.len() * NOTICES_BESIDE_REPORTS)?;
    let to_each = volumes.iter().map(|volume| Mailbox::new(volume.bound() + NOTICES_BESIDE_REPORTS));
    let (senders, mailboxes): (Vec<Sender>, Vec<Mailbox>) = to_each.collect::<Result<Vec<_>, _>>()?.into_iter().unzip();
    let stages = stages(settings, roots, progress, &volumes, &ReportSender::new(sender.clone(), senders.clone()))?;
    let dispatchers = volumes.into_iter().zip(mailboxes).enumerate();
    let dispatchers = dispatchers.map(|(number, (volume, mailbox))| Dispatcher::new(mailbox, vec![volume], number));
    Ok(Pipeline { stages, mailbox, sender, sources: dispatchers.zip(senders).collect() })
}

/// As [`start`], with one source for all volumes, which the main thread is.
///
/// # Errors
/// As [`start`].
pub fn start_for_one_source(
    settings: &PipelineSettings,
    roots: &[Arc<Root>],
    progress: Arc<Progress>,
) -> Result<(Stages, Dispatcher, Sender), Error> {
    let volumes = volumes(settings, roots);
    let in_flight_max: usize = volumes.iter().map(Volume::bound).sum();
    let (sender, mailbox) = Mailbox::new(in_flight_max + NOTICES_BESIDE_REPORTS)?;
    let stages = stages(settings, roots, progress, &volumes, &sender.clone().into())?;
    Ok((stages, Dispatcher::new(mailbox, volumes, 0), sender))
}

fn stages(
    settings: &PipelineSettings,
    roots: &[Arc<Root>],
    progress: Arc<Progress>,
    volumes: &[Volume],
    sender: &ReportSender,
) -> Result<Stages, Error> {
    progress.set_volumes(volumes.iter().map(|volume| Arc::clone(&volume.progress)).collect());
    let (messages, outgoing) = mpsc::channel(volumes.iter().map(Volume::bound).sum());
    let deadline = Arc::new(Deadline::default());
    let readers = |(number, volume): (usize, &Volume)| Readers {
        roots: roots.to_vec(),
        small: Arc::clone(&volume.small.queue),
        large: Arc::clone(&volume.large.queue),
        volume: Arc::clone(&volume.progress),
        progress: Arc::clone(&progress),
        workers: settings.workers,
        files: limits::files_each(settings.workers, None),
        plain_reads: settings.engine == ReadEngine::Auto && !reads_inline(roots, number),
        deadline: Arc::clone(&deadline),
        messages: (settings.output != Output::None).then(|| messages.clone()),
        sender: sender.clone(),
    };
    let readers = volumes.iter().enumerate().map(readers).collect();
    let read::Started { engine, engines, workers, threads } = read::start(settings.engine, settings.workers, readers)?;
    // The output comes last: if a reader cannot start, no connection has to be closed, for which the client would need
    // another thread.
    let publisher = publish::start(settings.output, &settings.publish, outgoing, sender.clone(), &progress)?;
    let queues = volumes.iter().flat_map(|volume| [&volume.small.queue, &volume.large.queue]).cloned().collect();
    Ok(Stages { engine, engines, workers, queues, progress, deadline, readers: threads, publisher, ended: false })
}

/// The volumes that the data directories are on, with their shares of what may be in flight.
fn volumes(settings: &PipelineSettings, roots: &[Arc<Root>]) -> Vec<Volume> {
    let shares = limits::share_out(settings.workers, volume_count(roots)).enumerate();
    let volume = |(number, workers): (usize, usize)| {
        // A window of unconfirmed messages, and for each thread the files it reads and as many queued ones.
        let bound = settings.publish.window + 2 * workers * FILES_IN_FLIGHT;
        Volume::new(bound, directories(roots, number))
    };
    shares.map(volume).collect()
}

/// Whether a ring can read the files of a volume's data directories inline. One that is not open yet cannot be asked, and a ring's
/// threads are the better place to wait for it in.
fn reads_inline(roots: &[Arc<Root>], volume: usize) -> bool {
    of_volume(roots, volume).all(|root| !root.is_open() || inline_reads::can_be_had(root))
}

/// The paths of a volume's data directories.
fn directories(roots: &[Arc<Root>], volume: usize) -> String {
    let paths: Vec<_> = of_volume(roots, volume).map(|root| root.path()).collect();
    named(paths.into_iter())
}
