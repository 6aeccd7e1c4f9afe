//! `watch`: the stages in the order in which they start, and the end.

use std::sync::{Arc, OnceLock};
use std::thread;
use std::{fs, process};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use xxhash_rust::xxh3::xxh3_128;

use crate::config::Config;
use crate::control::Control;
use crate::error::Error;
use crate::ledger::Store;
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
    let root = prepare(config.root)?;
    let signals = StopSignals::listen()?;
    let vitals = Arc::new(Vitals::default());
    let _control = Control::start(config.control, Arc::clone(&vitals))?;
    let store = config.state_dir.as_deref().map(Store::open).transpose()?;
    let workers = config.pipeline.workers;
    let watch = Watch::new(root.path())?;
    let mut settings = config.pipeline;
    settings.publish.publisher = publisher(&root);
    let pipeline = Pipeline::start(&settings, Arc::clone(&root), Arc::clone(&vitals))?;
    signals.ask(pipeline.post.clone());
    let engine = pipeline.engine;
    let output = settings.output.describe(&config.broker).to_owned();
    let ready = format!("ready: watching {:?}, output {output}, {engine} engine, {workers} workers", root.path());
    let directories = vec![root.path().to_string_lossy().into_owned()];
    let _ = vitals.facts.set(Facts { directories, output, engine, workers, protection: root.protection().to_string() });
    let watcher =
        Watcher::new(Arc::clone(&root), watch, pipeline, store, config.filter, config.watch, Arc::clone(&vitals))?;
    vitals.enter(Phase::Ready);
    notify::ready();
    tracing::info!("{ready}");
    watcher.run()
}

/// A name for whatever publishes this directory from this host: the same in each container, another on each host.
fn publisher(root: &Root) -> Option<String> {
    let boot = fs::read("/proc/sys/kernel/random/boot_id").ok()?;
    let directory = root.look(b".").ok()?;
    let path = root.path().as_os_str().as_encoded_bytes();
    let identity = [&boot, &directory.st_dev.to_le_bytes()[..], &directory.st_ino.to_le_bytes(), path].concat();
    Some(format!("apollonia-ingestor-{:032x}", xxh3_128(&identity)))
}

/// What both sources of work need before their first file.
///
/// # Errors
/// [`Error::Internal`]: the command line left no directory.
pub fn prepare(root: Option<Root>) -> Result<Arc<Root>, Error> {
    let root = Arc::new(root.ok_or_else(|| Error::Internal("no data directory".to_owned()))?);
    lease::ignore_break_signal();
    stable::raise_lease_capability();
    tracing::info!("no half-written file is published: {}", root.protection());
    Ok(root)
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
        thread::Builder::new().name("signals".to_owned()).spawn(listen).map_err(refuse)?;
        Ok(listening)
    }

    /// Whom to ask.
    pub fn ask(self, post: Post) {
        let _ = self.0.set(post); // taken by value: set once
    }
}
