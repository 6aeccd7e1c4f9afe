//! `watch`: the stages in the order in which they start, and the end.

use std::path::Path;
use std::sync::Arc;

use crate::cli::{CatchUp, Output, Settings};
use crate::commands::roots::{prepare, protections, publishers};
use crate::config::Config;
use crate::control::Control;
use crate::dispatch::Dispatcher;
use crate::error::Error;
use crate::files::root::Root;
use crate::ledger::store::Store;
use crate::progress::{Facts, Phase, Progress};
use crate::signals::StopSignals;
use crate::watch::Watcher;
use crate::watch::inotify::Watch;
use crate::{logging, notify, pipeline};

/// Runs the service until SIGINT or SIGTERM.
///
/// # Errors
/// What kept it from starting, or ended it.
pub fn run(settings: &Settings) -> Result<(), Error> {
    let config = Config::for_watch(settings)?;
    logging::start(settings);
    let roots = prepare(config.roots)?;
    let signals = StopSignals::listen()?;
    let progress = Arc::new(Progress::default());
    let _control = Control::start(config.control, Arc::clone(&progress))?;
    let without_ledger = without_ledger(config.state_dir.is_some(), config.pipeline.output, config.watch.catch_up);
    // The output `none` confirms nothing, so a ledger would have no rows.
    let state_dir = config.state_dir.filter(|_| config.pipeline.output != Output::None);
    let store = state_dir.as_deref().map(Store::open).transpose()?;
    let paths: Vec<&Path> = roots.iter().map(|root| root.path()).collect();
    let watch = Watch::new(&paths)?;
    let mut pipeline = config.pipeline;
    pipeline.publish.publishers = publishers(&roots, &pipeline.publish.exchange);
    let dispatcher = pipeline::start(&pipeline, &roots, Arc::clone(&progress))?;
    signals.ask(dispatcher.sender.clone());
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
