//! The settings of a command, checked: a struct for each stage, with the few values that it uses.

use std::ffi::OsStr;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use crate::address::Broker;
use crate::cli::{CatchUp, Output, ReadEngine, Settings, Unroutable};
use crate::error::Error;
use crate::files::root::opening::open_roots_in_time;
use crate::files::root::{Root, open_roots};
use crate::filter::Filter;
use crate::routing::{Exchange, RoutingKey};

/// What `watch` and `scan` run with. The other commands take the few settings that they use from [`Settings`] themselves.
#[derive(Debug)]
pub struct Config {
    /// The data directories, opened.
    pub roots: Vec<Root>,
    /// The directory of the ledger; `scan` keeps none.
    pub state_dir: Option<PathBuf>,
    /// The globs of the files that are published.
    pub filter: Filter,
    /// What `watch` alone uses.
    pub watch: WatchSettings,
    /// What the readers and the output use.
    pub pipeline: PipelineSettings,
    /// What the control socket uses; `scan` has none.
    pub control: ControlSettings,
}

impl Config {
    /// Checks the settings of `watch`, and opens its directories: those of the command line, else the data directories.
    ///
    /// # Errors
    /// [`Error::Usage`], [`Error::DataDirectory`] or [`Error::StateDirectory`], naming the setting and what is wrong with it.
    pub fn for_watch(settings: &Settings, dirs: &[PathBuf]) -> Result<Self, Error> {
        Self::new(settings, dirs, settings.state_dir.as_deref(), |dirs| {
            // Nobody is kept waiting by all of them.
            open_roots_in_time(dirs, Duration::MAX)
        })
    }

    /// Checks the settings of `scan`, and opens its directories: those of the command line, else the data directories.
    ///
    /// # Errors
    /// [`Error::Usage`] or [`Error::DataDirectory`], naming the setting and what is wrong with it.
    pub fn for_scan(settings: &Settings, dirs: &[PathBuf]) -> Result<Self, Error> {
        Self::new(settings, dirs, None, open_roots)
    }

    fn new(
        settings: &Settings,
        dirs: &[PathBuf],
        state_dir: Option<&Path>,
        open: impl FnOnce(&[PathBuf]) -> Result<Vec<Root>, Error>,
    ) -> Result<Self, Error> {
        let pipeline = PipelineSettings::new(settings)?;
        let filter = Filter::new(&settings.include, &settings.exclude, settings.ignore_partial)?;
        let dirs = if dirs.is_empty() { &settings.data_dirs } else { dirs };
        let roots = open_directories(dirs, open)?;
        if let Some(state_dir) = state_dir {
            roots.iter().try_for_each(|root| refuse_inside(state_dir, root))?;
        }
        let (watch, control) = (WatchSettings::new(settings)?, ControlSettings::new(settings));
        Ok(Self { roots, state_dir: state_dir.map(Path::to_owned), filter, watch, pipeline, control })
    }
}

/// Settings of the control socket.
#[derive(Debug)]
pub struct ControlSettings {
    /// Where the Unix socket can be.
    pub places: SocketPlaces,
    /// A TCP address that answers the same requests.
    pub metrics_address: Option<SocketAddr>,
    /// The longest time that a stage may have work and make no progress.
    pub stall: Duration,
}

impl ControlSettings {
    fn new(settings: &Settings) -> Self {
        Self {
            places: socket_places(settings),
            metrics_address: settings.metrics_address,
            stall: Duration::from_secs(settings.stall_seconds.into()),
        }
    }
}

/// Settings of the watch.
#[derive(Debug, Clone, Copy)]
pub struct WatchSettings {
    /// Whether sub-directories are watched, too.
    pub recursive: bool,
    /// How long a created file without a close must stay unchanged.
    pub settle: Duration,
    /// How long a file must stay unchanged after its close.
    pub quiet: Duration,
    /// Which of the files that exist at start are published.
    pub catch_up: CatchUp,
    /// The interval of rescans that no event asks for.
    pub rescan: Option<Duration>,
    /// Whether a path that has had a message and has no file any more gets one that says so.
    pub removals: bool,
}

impl WatchSettings {
    fn new(settings: &Settings) -> Result<Self, Error> {
        Ok(Self {
            recursive: settings.recursive,
            settle: Duration::from_millis(settings.settle_ms),
            quiet: Duration::from_millis(settings.quiet_ms),
            catch_up: catch_up(settings)?,
            rescan: (settings.rescan_seconds > 0).then(|| Duration::from_secs(settings.rescan_seconds.into())),
            removals: settings.removals,
        })
    }
}

/// Settings of the readers and the output.
#[derive(Debug, Clone)]
pub struct PipelineSettings {
    /// The number of hashing threads.
    pub workers: usize,
    /// The read engine that was chosen.
    pub engine: ReadEngine,
    /// Where messages go.
    pub output: Output,
    /// Settings of the publisher.
    pub publish: PublishSettings,
}

impl PipelineSettings {
    fn new(settings: &Settings) -> Result<Self, Error> {
        Ok(Self {
            workers: workers(settings),
            engine: settings.read_engine,
            output: settings.output,
            publish: PublishSettings {
                broker: Broker::new(&settings.amqp)?,
                exchange: settings.route.exchange(),
                routing_key: settings.route.routing_key.clone(),
                window: settings.confirm_window as usize,
                unroutable: settings.unroutable,
                reconnect: Duration::from_secs(settings.reconnect_seconds.into()),
                publishers: Vec::new(),
            },
        })
    }
}

/// Settings of the publisher.
#[derive(Debug, Clone)]
pub struct PublishSettings {
    /// The broker, also when the output is another one.
    pub broker: Broker,
    /// The exchange that messages go to.
    pub exchange: Exchange,
    /// The routing key of messages.
    pub routing_key: RoutingKey,
    /// The largest number of unconfirmed messages in flight.
    pub window: usize,
    /// What to do with a message that no queue is bound for.
    pub unroutable: Unroutable,
    /// How long it is tried to connect again when the connection is lost; zero: not at all.
    pub reconnect: Duration,
    /// The fences that this publisher holds at the broker while it publishes, one a data directory. `watch` fills them in,
    /// because they are named after the opened directories.
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

/// Opens data directories with `open`.
///
/// # Errors
/// [`Error::Usage`] for an empty name, which only a variable can hold; [`Error::DataDirectory`], naming what is wrong with a
/// directory.
pub fn open_directories(
    dirs: &[PathBuf],
    open: impl FnOnce(&[PathBuf]) -> Result<Vec<Root>, Error>,
) -> Result<Vec<Root>, Error> {
    if dirs.iter().any(|dir| dir.as_os_str().is_empty()) {
        return Err(Error::usage(
            "DATA_DIRECTORY (--data-dir): no directory stands at one side of a colon",
            "write one there, or leave the colon out",
        ));
    }
    open(dirs)
}

/// Which of the files that exist at start are published.
///
/// # Errors
/// [`Error::Usage`]: `changed` without a ledger.
pub fn catch_up(settings: &Settings) -> Result<CatchUp, Error> {
    match (settings.catch_up, &settings.state_dir) {
        (Some(CatchUp::Changed), None) => Err(Error::usage(
            "--catch-up (INGESTOR_CATCH_UP): `changed` needs a ledger to compare with",
            "set --state-dir (STATE_DIRECTORY)",
        )),
        (Some(chosen), _) => Ok(chosen),
        (None, Some(_)) => Ok(CatchUp::Changed),
        (None, None) => Ok(CatchUp::None),
    }
}

/// The most hashing threads by default: eight hash faster than disks and brokers take, and each costs 2 MiB of locked memory.
const WORKERS_DEFAULT_MAX: usize = 8;

/// The number of hashing threads: the setting, else one for each CPU that this process may use, within the quota of its
/// cgroup.
#[must_use]
pub fn workers(settings: &Settings) -> usize {
    let cpus = || thread::available_parallelism().map_or(1, NonZeroUsize::get).min(WORKERS_DEFAULT_MAX);
    settings.workers.map_or_else(cpus, |workers| workers as usize)
}

/// The socket of the service that the systemd unit runs (RuntimeDirectory=).
const UNIT_SOCKET: &str = "/run/apollonia-ingestor/ingestor.sock";

/// The largest number of services of one user that share a default place. Each further one is a mistake.
const SOCKETS_MAX: usize = 8;

/// Where the control socket can be.
#[derive(Debug)]
pub struct SocketPlaces {
    /// Whether the path was set by flag or variable: then it is the only one, and the service does not start without it.
    pub by_name: bool,
    /// Where a service makes it: at the first path that is free.
    pub made: Vec<PathBuf>,
    /// Where it is looked for, in this order.
    pub asked: Vec<PathBuf>,
}

/// Where the control socket can be: at the path that is set, else in the service's runtime directory (systemd.exec(5),
/// RuntimeDirectory=), else in that of the user (XDG_RUNTIME_DIR), else in /tmp under a name with the user's number. A second
/// service of the user takes a name with a 2.
#[must_use]
pub fn socket_places(settings: &Settings) -> SocketPlaces {
    if let Some(path) = &settings.control_socket {
        return SocketPlaces { by_name: true, made: vec![path.clone()], asked: vec![path.clone()] };
    }
    let directory = |name| std::env::var_os(name).filter(|given| !given.is_empty());
    if let Some(given) = directory("RUNTIME_DIRECTORY") {
        // systemd separates several directories by colons; the socket is in the first.
        let first = given.as_bytes().split(|&byte| byte == b':').next().unwrap_or_default();
        let made = numbered(Path::new(OsStr::from_bytes(first)), "ingestor");
        return SocketPlaces { by_name: false, asked: made.clone(), made };
    }
    let user = rustix::process::geteuid().as_raw();
    // With the variable of another user, as sudo -E leaves it, the directory would be another user's, too.
    let own = |directory: &PathBuf| directory.metadata().is_ok_and(|there| there.is_dir() && there.uid() == user);
    let of_user = directory("XDG_RUNTIME_DIR").map(PathBuf::from).filter(own);
    let mut made: Vec<PathBuf> =
        of_user.iter().flat_map(|directory| numbered(directory, "apollonia-ingestor")).collect();
    made.extend(numbered(Path::new("/tmp"), &format!("apollonia-ingestor-{user}")));
    let asked = [PathBuf::from(UNIT_SOCKET)].into_iter().chain(made.iter().cloned()).collect();
    SocketPlaces { by_name: false, made, asked }
}

/// The names of the first service's socket in a directory, and of further ones.
fn numbered(directory: &Path, name: &str) -> Vec<PathBuf> {
    let further = (2..=SOCKETS_MAX).map(|number| format!("{name}-{number}.sock"));
    [format!("{name}.sock")].into_iter().chain(further).map(|name| directory.join(name)).collect()
}

/// Refuses a state directory inside of a data directory, because each write to the ledger would be an event there.
///
/// # Errors
/// [`Error::StateDirectory`] when it is inside.
pub fn refuse_inside(state_dir: &Path, root: &Root) -> Result<(), Error> {
    // The state directory need not exist yet: the deepest directory of its path that exists shows where it will be.
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

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::Cli;

    fn settings(words: &[&str]) -> Settings {
        Cli::parse_from(["apollonia-ingestor"].iter().chain(words)).settings
    }

    #[test]
    fn scan_takes_its_own_directories_and_no_state_directory() {
        let (data, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let inside = data.path().join("state");
        let settings =
            settings(&["--data-dir", data.path().to_str().unwrap(), "--state-dir", inside.to_str().unwrap()]);
        assert!(matches!(Config::for_watch(&settings, &[]), Err(Error::StateDirectory { .. })));
        let config = Config::for_scan(&settings, &[dir.path().to_owned()]).unwrap();
        assert_eq!(config.roots[0].path(), dir.path().canonicalize().unwrap());
        assert_eq!(config.state_dir, None);
        assert_eq!(Config::for_scan(&settings, &[]).unwrap().roots[0].path(), data.path().canonicalize().unwrap());
    }

    #[test]
    fn an_empty_directory_name_is_refused_as_a_colon_too_many() {
        let error = open_directories(&[PathBuf::from("/tmp"), PathBuf::new()], open_roots).unwrap_err().to_string();
        assert!(error.starts_with("DATA_DIRECTORY (--data-dir): no directory stands"), "{error}");
    }

    #[test]
    fn catching_up_by_version_needs_a_ledger() {
        assert_eq!(catch_up(&settings(&[])).unwrap(), CatchUp::None);
        assert_eq!(catch_up(&settings(&["--state-dir", "/s"])).unwrap(), CatchUp::Changed);
        assert!(matches!(catch_up(&settings(&["--catch-up", "changed"])), Err(Error::Usage { .. })));
    }
}
