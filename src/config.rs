//! From what was typed to what is used: every value checked, each stage's few settings in a struct of their own.

use std::ffi::OsStr;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use tracing::level_filters::LevelFilter;

use crate::address::Broker;
use crate::cli::{CatchUp, Command, LogFormat, LogLevel, Output, ReadEngine, Settings, Unroutable};
use crate::error::Error;
use crate::files::root::{Root, open_roots};
use crate::filter::Filter;

/// What a command runs with.
#[derive(Debug)]
pub struct Config {
    /// How much is logged.
    pub log_level: LevelFilter,
    /// How log lines look.
    pub log_format: LogFormat,
    /// The broker, also when the output is another: `listen` needs it alone.
    pub broker: Broker,
    /// The data directories, opened. `listen` has none.
    pub roots: Vec<Root>,
    /// Where the ledger lives, if there is one.
    pub state_dir: Option<PathBuf>,
    /// Which files are published.
    pub filter: Filter,
    /// Settings of the watch.
    pub watch: WatchSettings,
    /// Settings of the pipeline.
    pub pipeline: PipelineSettings,
    /// Settings of the control socket.
    pub control: ControlSettings,
    /// Whether `scan` goes into sub-directories.
    pub recursive: bool,
}

/// Settings of the control socket.
#[derive(Debug)]
pub struct ControlSettings {
    /// Where it is.
    pub socket: PathBuf,
    /// It was asked for by name: without it the service does not start.
    pub socket_by_name: bool,
    /// Where the same is answered over TCP.
    pub metrics_address: Option<SocketAddr>,
    /// How long a stage may have work and get no further.
    pub stall: Duration,
}

/// Settings of the watch.
#[derive(Debug, Clone, Copy)]
pub struct WatchSettings {
    /// Whether sub-directories are watched too.
    pub recursive: bool,
    /// How long a created file without a close must stay unchanged.
    pub settle: Duration,
    /// How long nothing must have happened to a file after its close.
    pub quiet: Duration,
    /// What happens to files that are there at start.
    pub catch_up: CatchUp,
    /// How often the directory is looked over without a cause.
    pub rescan: Option<Duration>,
}

/// Settings of the pipeline.
#[derive(Debug, Clone)]
pub struct PipelineSettings {
    /// Hashing threads.
    pub workers: usize,
    /// How files are read.
    pub engine: ReadEngine,
    /// Where messages go.
    pub output: Output,
    /// Settings of the publisher.
    pub publish: PublishSettings,
}

/// Settings of the publisher.
#[derive(Debug, Clone)]
pub struct PublishSettings {
    /// The broker.
    pub broker: Broker,
    /// Unconfirmed messages in flight at most.
    pub window: usize,
    /// What an unroutable message means.
    pub unroutable: Unroutable,
    /// What this publisher holds at the broker while it publishes, where it is one of a kind.
    pub publishers: Vec<Publisher>,
}

/// The publisher of a directory's files.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Publisher {
    /// Its name at the broker.
    pub name: String,
    /// The directory.
    pub directory: PathBuf,
}

impl Config {
    /// Checks every setting and opens the data directories.
    ///
    /// # Errors
    /// [`Error::Usage`] or [`Error::DataDirectory`], naming the setting and what is wrong with it.
    pub fn new(settings: Settings, command: Option<&Command>) -> Result<Self, Error> {
        let broker = Broker::new(&settings.amqp)?;
        let filter = Filter::new(&settings.include, &settings.exclude, settings.ignore_partial)?;
        let roots = match command {
            Some(Command::Listen { .. } | Command::Health { .. } | Command::Doctor { .. }) => Vec::new(),
            Some(Command::Scan { dirs }) if !dirs.is_empty() => open_roots(dirs)?,
            Some(Command::Scan { .. } | Command::Watch) | None => open_roots(&settings.data_dirs)?,
        };
        if let (Some(state_dir), Some(Command::Watch) | None) = (&settings.state_dir, command) {
            roots.iter().try_for_each(|root| refuse_inside(state_dir, root))?;
        }
        let (catch_up, workers, socket) = (catch_up(&settings)?, workers(&settings), control_socket(&settings));
        Ok(Self {
            log_level: settings.log_level.into(),
            log_format: settings.log_format,
            broker: broker.clone(),
            roots,
            state_dir: settings.state_dir,
            filter,
            watch: WatchSettings {
                recursive: settings.recursive,
                settle: Duration::from_millis(settings.settle_ms),
                quiet: Duration::from_millis(settings.quiet_ms),
                catch_up,
                rescan: (settings.rescan_seconds > 0).then(|| Duration::from_secs(settings.rescan_seconds.into())),
            },
            pipeline: PipelineSettings {
                workers,
                engine: settings.read_engine,
                output: settings.output,
                publish: PublishSettings {
                    broker,
                    window: settings.confirm_window as usize,
                    unroutable: settings.unroutable,
                    publishers: Vec::new(),
                },
            },
            control: ControlSettings {
                socket_by_name: settings.control_socket.is_some(),
                socket,
                metrics_address: settings.metrics_address,
                stall: Duration::from_secs(settings.stall_seconds.into()),
            },
            recursive: settings.recursive,
        })
    }
}

impl From<LogLevel> for LevelFilter {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Trace => Self::TRACE,
            LogLevel::Debug => Self::DEBUG,
            LogLevel::Info => Self::INFO,
            LogLevel::Warn => Self::WARN,
            LogLevel::Error => Self::ERROR,
        }
    }
}

/// What happens to files that are there at start.
///
/// # Errors
/// [`Error::Usage`]: `changed` without a ledger.
pub fn catch_up(settings: &Settings) -> Result<CatchUp, Error> {
    match (settings.catch_up, &settings.state_dir) {
        (Some(CatchUp::Changed), None) => Err(Error::Usage(
            "--catch-up (INGESTOR_CATCH_UP): `changed` needs a ledger to compare with; set --state-dir (STATE_DIRECTORY)".into(),
        )),
        (Some(chosen), _) => Ok(chosen),
        (None, Some(_)) => Ok(CatchUp::Changed),
        (None, None) => Ok(CatchUp::None),
    }
}

/// Hashing threads: as many as are asked for, else one for each CPU.
#[must_use]
pub fn workers(settings: &Settings) -> usize {
    let cpus = || thread::available_parallelism().map_or(1, NonZeroUsize::get);
    settings.workers.map_or_else(cpus, |workers| workers as usize)
}

/// Where the control socket is: as it was asked for, or where systemd gives the service a directory of its own
/// (systemd.exec(5), RuntimeDirectory=), else one for each user.
#[must_use]
pub fn control_socket(settings: &Settings) -> PathBuf {
    settings.control_socket.clone().unwrap_or_else(default_socket)
}

fn default_socket() -> PathBuf {
    match std::env::var_os("RUNTIME_DIRECTORY").filter(|given| !given.is_empty()) {
        // More than one are separated by colons; the first is ours.
        Some(given) => {
            let first = given.as_bytes().split(|&byte| byte == b':').next().unwrap_or_default();
            Path::new(OsStr::from_bytes(first)).join("ingestor.sock")
        }
        None => PathBuf::from(format!("/tmp/apollonia-ingestor-{}.sock", rustix::process::geteuid().as_raw())),
    }
}

/// A ledger among the files that it is about would change with each of its own changes.
///
/// # Errors
/// [`Error::StateDirectory`] when it would be.
pub fn refuse_inside(state_dir: &Path, root: &Root) -> Result<(), Error> {
    // It need not exist yet; what exists of its path tells where it will be.
    let absolute = std::path::absolute(state_dir).unwrap_or_else(|_| state_dir.to_owned());
    match absolute.ancestors().find_map(|ancestor| std::fs::canonicalize(ancestor).ok()) {
        Some(real) if real.starts_with(root.path()) => Err(Error::StateDirectory {
            path: state_dir.to_owned(),
            cause: format!("it lies in the data directory {:?}", root.path()),
            next: "name a directory outside of it",
        }),
        _ => Ok(()),
    }
}
