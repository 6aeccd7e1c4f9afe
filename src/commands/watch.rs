//! `watch`: the stages in the order in which they start, and the end.

use std::path::Path;
use std::sync::Arc;
use std::{fs, io};

use xxhash_rust::xxh3::xxh3_128;

use crate::cli::{CatchUp, Output, Settings};
use crate::commands::roots::{prepare, protections};
use crate::config::{Config, Publisher};
use crate::control::Control;
use crate::dispatch::Dispatcher;
use crate::error::Error;
use crate::files::root::Root;
use crate::ledger::store::Store;
use crate::mailbox::Sender;
use crate::progress::{Facts, Phase, Progress};
use crate::signals::{Caller, CaughtSignals};
use crate::streams::stdout::Stdout;
use crate::watch::Watcher;
use crate::watch::inotify::Watch;
use crate::{logging, notify, pipeline};

/// Runs the service until SIGINT or SIGTERM.
///
/// # Errors
/// What kept it from starting, or ended it.
pub fn run(settings: &Settings) -> Result<(), Error> {
    let config = Config::for_watch(settings)?;
    logging::start_for_service(settings);
    let roots = prepare(config.roots)?;
    let signals = CaughtSignals::listen(Caller::Service)?;
    let progress = Arc::new(Progress::default());
    let _control = Control::start(config.control, Arc::clone(&progress))?;
    let without_ledger = without_ledger(config.state_dir.is_some(), config.pipeline.output, config.watch.catch_up);
    // The output `none` confirms nothing, so a ledger would have no rows.
    let state_dir = config.state_dir.filter(|_| config.pipeline.output != Output::None);
    let store = state_dir.as_deref().map(Store::open).transpose()?;
    let paths: Vec<&Path> = roots.iter().map(|root| root.path()).collect();
    let watch = Watch::new(&paths)?;
    let mut pipeline = config.pipeline;
    pipeline.publish.publishers = publishers(&roots);
    let dispatcher = pipeline::start(&pipeline, &roots, Arc::clone(&progress))?;
    signals.ask_source(dispatcher.sender.clone());
    if pipeline.output == Output::Stdout {
        end_with_the_reader(dispatcher.sender.clone())?;
    }
    let facts = facts(&roots, pipeline.publish.broker.describe(pipeline.output), &dispatcher);
    let ready = ready_line(&paths, &facts);
    let _ = progress.facts.set(facts);
    let watcher = Watcher::new(&roots, watch, dispatcher, store, config.filter, config.watch, Arc::clone(&progress))?;
    progress.enter(Phase::Ready);
    notify::ready();
    // The warning comes after the start, because a start that fails is one line.
    if let Some(line) = without_ledger {
        tracing::warn!("{line}");
    }
    tracing::info!("{ready}");
    watcher.run()
}

/// Ends the service when nobody reads standard output any more, also while there is nothing to write.
fn end_with_the_reader(sender: Sender) -> Result<(), Error> {
    let gone = move || sender.fail(Error::Stdout(io::ErrorKind::BrokenPipe.into()));
    Stdout::given()?.when_its_reader_goes(gone);
    Ok(())
}

/// The warning for a service that keeps no ledger, where the user relies on one or would miss it.
fn without_ledger(named: bool, output: Output, catch_up: CatchUp) -> Option<&'static str> {
    match (output, named) {
        (Output::None, true) => Some(
            "--output none publishes nothing, so no ledger is kept: STATE_DIRECTORY (--state-dir) is neither read nor written",
        ),
        // With `all` the next start publishes what is there, known or not.
        (Output::Amqp, false) if catch_up != CatchUp::All => Some(
            "no ledger is kept: what waits when the broker goes away or the service ends is lost, and so is what lands while it is down; set STATE_DIRECTORY (--state-dir)",
        ),
        _ => None,
    }
}

/// A name for each directory's publishers on this host: the same name in each container, another name on each host.
///
/// The names are sorted, so that two services take their fences in the same order and cannot wait for each other.
fn publishers(roots: &[Arc<Root>]) -> Vec<Publisher> {
    let publisher = |root: &Arc<Root>| {
        let boot = fs::read("/proc/sys/kernel/random/boot_id").ok()?;
        let directory = root.look(b".").ok()?;
        let path = root.path().as_os_str().as_encoded_bytes();
        let identity = [&boot, &directory.st_dev.to_le_bytes()[..], &directory.st_ino.to_le_bytes(), path].concat();
        let name = format!("apollonia-ingestor-{:032x}", xxh3_128(&identity));
        Some(Publisher { name, directory: root.path().to_owned() })
    };
    let mut publishers: Vec<Publisher> = roots.iter().filter_map(publisher).collect();
    publishers.sort();
    publishers
}

fn facts(roots: &[Arc<Root>], output: &str, dispatcher: &Dispatcher) -> Facts {
    Facts {
        directories: roots.iter().map(|root| root.path().to_string_lossy().into_owned()).collect(),
        output: output.to_owned(),
        engine: dispatcher.engine,
        workers: dispatcher.workers,
        protection: protections(roots).join("; "),
    }
}

/// The log line of a service that has started. The paths are quoted, as in other lines.
fn ready_line(paths: &[&Path], facts: &Facts) -> String {
    let quoted: Vec<String> = paths.iter().map(|path| format!("{path:?}")).collect();
    let Facts { output, engine, workers, .. } = facts;
    format!("ready: watching {}, output {output}, {engine} engine, {workers} workers", quoted.join(", "))
}
