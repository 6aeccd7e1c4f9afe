//! `watch`: the stages in the order in which they start, and the end.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::ValueEnum;

use crate::cli::{CatchUp, Output, Settings};
use crate::commands::roots::{log_protections, prepare, protections, publishers};
use crate::config::{Config, WatchSettings};
use crate::control::Control;
use crate::dispatch::Stages;
use crate::error::{Error, named};
use crate::files::root::Root;
use crate::ledger::store::Store;
use crate::mailbox::Sender;
use crate::progress::{Facts, Phase, Progress};
use crate::signals::{Caller, CaughtSignals};
use crate::streams::stdout::Stdout;
use crate::watch::{Watchers, watches};
use crate::{logging, notify, pipeline};

/// Runs the service until SIGINT or SIGTERM.
///
/// # Errors
/// What kept it from starting, or ended it.
pub fn run(settings: &Settings, dirs: &[PathBuf]) -> Result<(), Error> {
    let configured = configure(settings, dirs);
    // A wrong setting is no line of the log. What no setting is to blame for is one, as is what keeps the start from succeeding later.
    if configured.as_ref().err().is_none_or(|error| error.exit_status() != 2) {
        logging::start_for_service(settings);
    }
    let (signals, config) = configured?;
    logging::warn_of_unknown_variables();
    let roots = prepare(config.roots)?;
    log_protections(&roots);
    let progress = Arc::new(Progress::default());
    let _control = Control::start(config.control, Arc::clone(&progress))?;
    let without_ledger = without_ledger(config.state_dir.is_some(), config.pipeline.output, config.watch.catch_up);
    // The output `none` confirms nothing, so a ledger would have no rows.
    let state_dir = config.state_dir.filter(|_| config.pipeline.output != Output::None);
    let store = state_dir.as_deref().map(Store::open).transpose()?;
    let paths: Vec<&Path> = roots.iter().map(|root| root.path()).collect();
    let watches = watches(&roots)?;
    let mut pipeline = config.pipeline;
    pipeline.publish.publishers = publishers(&roots, &pipeline.publish.exchange);
    let running = pipeline::start(&pipeline, &roots, Arc::clone(&progress))?;
    signals.ask_source(running.sender.clone());
    if pipeline.output == Output::Stdout {
        end_with_the_reader(running.sender.clone())?;
    }
    drop(progress.sources.set(running.sources.iter().map(|(_, sender)| sender.clone()).collect()));
    let facts = facts(settings, &roots, pipeline.publish.broker.describe(pipeline.output), &running.stages);
    let facts = progress.facts.get_or_init(|| facts);
    let watchers = Watchers::new(&roots, watches, running, store, config.filter, config.watch, Arc::clone(&progress))?;
    progress.enter(Phase::Ready);
    notify::of_phase(&progress);
    // The warning comes after the start, because a start that fails is one line.
    if let Some(line) = without_ledger {
        tracing::warn!(event = "no_ledger", "{line}");
    }
    log_ready(settings, &config.watch, state_dir.as_deref(), &paths, facts);
    watchers.run()
}

/// Catches the signals, and checks the settings. In this order: a directory may be waited for, and no thread that waits for it is
/// to be the one that a signal is given to.
fn configure(settings: &Settings, dirs: &[PathBuf]) -> Result<(CaughtSignals, Config), Error> {
    Ok((CaughtSignals::listen(Caller::Service)?, Config::for_watch(settings, dirs)?))
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

fn facts(settings: &Settings, roots: &[Arc<Root>], output: &str, stages: &Stages) -> Facts {
    let shown = |root: &Arc<Root>| root.path().to_string_lossy().into_owned();
    Facts {
        directories: roots.iter().map(shown).collect(),
        recursive: settings.recursive,
        filters: filters(settings),
        output: output.to_owned(),
        engine: stages.engine,
        engines: roots.iter().map(|root| (shown(root), stages.engines[root.volume()])).collect(),
        workers: stages.workers,
        protection: protections(roots).join("; "),
    }
}

/// Logs that the service has started, with what it was started with.
fn log_ready(settings: &Settings, watch: &WatchSettings, ledger: Option<&Path>, paths: &[&Path], facts: &Facts) {
    let (Facts { output, engine, workers, .. }, read_by) = (facts, facts.engine_in_words());
    let (watched, filters) = (named(paths.iter()), filters(settings));
    let catch_up = watch.catch_up.to_possible_value().map_or_else(String::new, |word| word.get_name().to_owned());
    let exchange = (settings.output == Output::Amqp).then_some(settings.route.exchange.as_str());
    let tree = if watch.recursive { "recursive" } else { "not recursive" };
    let filtered = match (settings.include.is_empty() && settings.exclude.is_empty(), settings.ignore_partial) {
        (false, _) => "filtered",
        (true, true) => "partial names left out",
        (true, false) => "no filters",
    };
    let kept = ledger.map_or_else(|| "no ledger".to_owned(), |path| format!("ledger {path:?}"));
    let to = exchange.map_or_else(String::new, |exchange| format!(", exchange {exchange}"));
    let path = match paths {
        [one] => one.to_string_lossy().into_owned(),
        _ => watched.clone(),
    };
    tracing::info!(
        event = "ready",
        path,
        directories = paths.len(),
        recursive = watch.recursive,
        filters,
        ledger = ledger.map(|path| path.to_string_lossy().into_owned()),
        catch_up,
        exchange,
        output,
        engine,
        workers,
        "ready: watching {watched}, output {output}, {read_by}, {workers} workers, {tree}, {filtered}, {kept}, catch-up {catch_up}{to}"
    );
}

/// The filters, by their flags; empty where every file is published.
fn filters(settings: &Settings) -> String {
    let globs = |flag: &str, globs: &[OsString]| match globs {
        [] => None,
        globs => Some(format!("{flag} {}", named(globs.iter()))),
    };
    let partial = settings.ignore_partial.then(|| "--ignore-partial".to_owned());
    let all = [globs("--include", &settings.include), globs("--exclude", &settings.exclude), partial];
    all.into_iter().flatten().collect::<Vec<_>>().join(" ")
}
