//! `watch`: the stages in the order in which they start, and the end.

use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::{fs, process};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use xxhash_rust::xxh3::xxh3_128;

use crate::cli::{CatchUp, Output};
use crate::config::{Config, Publisher};
use crate::control::Control;
use crate::error::Error;
use crate::ledger::store::Store;
use crate::notify;
use crate::pipeline::{Pipeline, Post};
use crate::read::stable::{self, Root, lease};
use crate::vitals::{Facts, Phase, Vitals};
use crate::watch::Watcher;
use crate::watch::inotify::Watch;

/// Runs the service until SIGINT or SIGTERM.
///
/// # Errors
/// What kept it from starting, or ended it.
pub fn run(config: Config) -> Result<(), Error> {
    let roots = prepare(config.roots)?;
    let signals = StopSignals::listen()?;
    let vitals = Arc::new(Vitals::default());
    let _control = Control::start(config.control, Arc::clone(&vitals))?;
    let without_ledger = without_ledger(config.state_dir.is_some(), config.pipeline.output, config.watch.catch_up);
    // What is published nowhere is not confirmed.
    let state_dir = config.state_dir.filter(|_| config.pipeline.output != Output::None);
    let store = state_dir.as_deref().map(Store::open).transpose()?;
    let paths: Vec<&Path> = roots.iter().map(|root| root.path()).collect();
    let watch = Watch::new(&paths)?;
    let mut settings = config.pipeline;
    settings.publish.publishers = publishers(&roots);
    let pipeline = Pipeline::start(&settings, &roots, Arc::clone(&vitals))?;
    signals.ask(pipeline.post.clone());
    let (engine, workers) = (pipeline.engine, pipeline.workers);
    let output = settings.output.describe(&config.broker).to_owned();
    let told: Vec<String> = paths.iter().map(|path| format!("{path:?}")).collect();
    let ready = format!("ready: watching {}, output {output}, {engine} engine, {workers} workers", told.join(", "));
    let directories = paths.iter().map(|path| path.to_string_lossy().into_owned()).collect();
    let protection = protections(&roots).join("; ");
    let _ = vitals.facts.set(Facts { directories, output, engine, workers, protection });
    let watcher = Watcher::new(&roots, watch, pipeline, store, config.filter, config.watch, Arc::clone(&vitals))?;
    vitals.enter(Phase::Ready);
    notify::ready();
    // Not before: a start that fails is one line.
    if let Some(line) = without_ledger {
        tracing::warn!("{line}");
    }
    tracing::info!("{ready}");
    watcher.run()
}

/// What it means that no ledger is kept, where somebody relies on one or would miss it.
fn without_ledger(named: bool, output: Output, catch_up: CatchUp) -> Option<&'static str> {
    match (output, named) {
        (Output::None, true) => Some(
            "--output none publishes nothing, so no ledger is kept: STATE_DIRECTORY (--state-dir) is neither read nor written",
        ),
        // By `all` the next start publishes what is there, known or not.
        (Output::Amqp, false) if catch_up != CatchUp::All => Some(
            "no ledger is kept: what waits when the broker goes away or the service ends is lost, and so is what lands while it is down; set STATE_DIRECTORY (--state-dir)",
        ),
        _ => None,
    }
}

/// A name for whatever publishes a directory from this host: the same in each container, another on each host. In one
/// order for all, so that no two services wait for each other.
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

/// What keeps half-written files back, in words; for each directory where it is not the same for all.
fn protections(roots: &[Arc<Root>]) -> Vec<String> {
    let first = roots.first().map(|root| root.protection());
    if roots.iter().all(|root| Some(root.protection()) == first) {
        return first.iter().map(ToString::to_string).collect();
    }
    roots.iter().map(|root| format!("{:?}: {}", root.path(), root.protection())).collect()
}

/// What both sources of work need before their first file.
///
/// # Errors
/// [`Error::Internal`]: the command line left no directory.
pub fn prepare(roots: Vec<Root>) -> Result<Vec<Arc<Root>>, Error> {
    if roots.is_empty() {
        return Err(Error::Internal("no data directory".to_owned()));
    }
    let devices: Vec<Option<u64>> = roots.iter().map(Root::device).collect();
    let numbered = roots.into_iter().zip(volumes(&devices));
    let roots: Vec<Arc<Root>> = numbered.map(|(root, volume)| Arc::new(root.on_volume(volume))).collect();
    lease::ignore_break_signal();
    stable::raise_lease_capability();
    for protection in protections(&roots) {
        tracing::info!("no half-written file is published: {protection}");
    }
    Ok(roots)
}

/// A number for each directory's file system, from 0 on: the same for those of one device. One whose device is not known
/// is its own.
#[must_use]
pub fn volumes(devices: &[Option<u64>]) -> Vec<usize> {
    let mut numbers: Vec<usize> = Vec::with_capacity(devices.len());
    for (at, device) in devices.iter().enumerate() {
        let same = devices[..at].iter().position(|other| device.is_some() && other == device);
        numbers.push(same.map_or_else(|| numbers.iter().max().map_or(0, |last| last + 1), |first| numbers[first]));
    }
    numbers
}

/// The first SIGINT or SIGTERM asks for an orderly end, the second ends the process at once. Where the first comes before
/// there is anybody to ask (the broker is still being waited for), nothing is in progress, and it ends the process.
pub struct StopSignals(Arc<OnceLock<Post>>);

impl StopSignals {
    /// Takes the signals from now on.
    ///
    /// # Errors
    /// [`Error::Internal`] when the system refuses handlers or a thread.
    pub fn listen() -> Result<Self, Error> {
        let refuse = |error| Error::Internal(format!("cannot listen for signals: {error}"));
        let mut signals = Signals::new([SIGINT, SIGTERM]).map_err(refuse)?;
        let post = Arc::new(OnceLock::<Post>::new());
        let listening = Self(Arc::clone(&post));
        let listen = move || {
            let mut asked = false;
            for _ in signals.forever() {
                let Some(post) = post.get() else {
                    tracing::info!("stopped before it was ready");
                    process::exit(0);
                };
                if asked {
                    process::exit(1);
                }
                asked = true;
                tracing::info!("stopping: files in progress are finished; a second signal ends at once");
                post.stop();
            }
        };
        let thread = thread::Builder::new().name("signals".to_owned()).spawn(listen);
        thread.map_err(|cause| Error::Threads { what: "the signals' thread", cause })?;
        Ok(listening)
    }

    /// Whom to ask.
    pub fn ask(self, post: Post) {
        let _ = self.0.set(post); // taken by value: set once
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_of_one_file_system_share_a_volume() {
        assert_eq!(volumes(&[Some(7), Some(9), Some(7), None, None, Some(9)]), [0, 1, 0, 2, 3, 1]);
    }
}
