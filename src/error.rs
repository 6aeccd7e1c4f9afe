//! The errors that end a command: what each names, why it happened, and what to do next.
//!
//! A file that cannot be read is not here: it is logged, counted and left behind (see [`crate::read`]).

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

/// A failure of the whole command, shown as one line.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An argument or a setting that cannot be used.
    #[error("{0}")]
    Usage(String),
    /// The data directory cannot be used as it is.
    #[error("DATA_DIRECTORY (--data-dir): {path:?} cannot be used: {cause}; {next}")]
    DataDirectory {
        /// The directory as it was given.
        path: PathBuf,
        /// What the kernel said.
        cause: String,
        /// What to do about it.
        next: &'static str,
    },
    /// The state directory cannot be used as it is.
    #[error("STATE_DIRECTORY (--state-dir): {path:?} cannot be used: {cause}; {next}")]
    StateDirectory {
        /// The directory as it was given.
        path: PathBuf,
        /// What the kernel said, or what is in it.
        cause: String,
        /// What to do about it.
        next: &'static str,
    },
    /// Another process keeps its ledger there.
    #[error(
        "the state directory {path:?} is used by another apollonia-ingestor; stop that one, or give each a state directory of its own"
    )]
    StateLocked {
        /// The directory as it was given.
        path: PathBuf,
    },
    /// inotify refused an instance or a watch.
    #[error("cannot watch {path:?}: {cause}; {next}")]
    Watch {
        /// The directory to be watched.
        path: PathBuf,
        /// What the kernel said.
        cause: io::Error,
        /// What to do about it.
        next: &'static str,
    },
    /// The data directory was removed, moved, unmounted or covered by a mount while it was watched.
    #[error("the data directory {path:?} is gone: {cause}; put it back and start again")]
    DirectoryGone {
        /// The directory that was watched.
        path: PathBuf,
        /// How that was noticed.
        cause: &'static str,
    },
    /// The chosen read engine cannot be had.
    #[error("the io_uring read engine cannot be used: {cause}; {next}")]
    Engine {
        /// What the kernel said.
        cause: io::Error,
        /// What to do about it.
        next: String,
    },
    /// The broker could not be reached, or refused.
    #[error("broker {url}: {cause}; {next}")]
    Broker {
        /// The broker's address, its password masked.
        url: String,
        /// What the broker or the network said.
        cause: String,
        /// What to do about it.
        next: &'static str,
    },
    /// No queue is bound to the exchange and `--unroutable fail` was asked for.
    #[error(
        "no queue is bound to the exchange `{exchange}`: the broker returned a message; bind a queue, or set --unroutable wait and bind it later"
    )]
    Unroutable {
        /// The exchange's name.
        exchange: &'static str,
    },
    /// The control socket cannot be had where it was asked for.
    #[error(
        "INGESTOR_CONTROL_SOCKET (--control-socket): {path:?} cannot be used: {cause}; name another path, one a service"
    )]
    ControlSocket {
        /// Where it was to be.
        path: PathBuf,
        /// Who or what is in the way.
        cause: String,
    },
    /// The address for metrics cannot be had.
    #[error("INGESTOR_METRICS_ADDRESS (--metrics-address): {address} cannot be used: {cause}; name another")]
    MetricsAddress {
        /// As it was given.
        address: SocketAddr,
        /// What the kernel said.
        cause: String,
    },
    /// `health` has found nobody.
    #[error(
        "no service answers at {socket:?}: {cause}; start it, or name the --control-socket that it was started with"
    )]
    NoService {
        /// Where it asked.
        socket: PathBuf,
        /// What it found.
        cause: String,
    },
    /// `health` was told that the service is not well, or not ready: the service's own words.
    #[error("{0}")]
    Unhealthy(String),
    /// `doctor` has found what keeps the service from working; each was told.
    #[error("{failed} of {total} checks failed; each says above how to mend it")]
    Unfit {
        /// Checks that failed.
        failed: usize,
        /// All of them.
        total: usize,
    },
    /// Standard output was closed or cannot be written.
    #[error("standard output: {0}; {next}", next = stdout_cure(.0))]
    Stdout(io::Error),
    /// The system gave no thread.
    #[error(
        "cannot start {what}: {}; raise the limit of threads (ulimit -u, TasksMax= in systemd, --pids-limit of a container), or lower --workers",
        os_message(cause)
    )]
    Threads {
        /// What it was to be.
        what: &'static str,
        /// What the kernel said.
        cause: io::Error,
    },
    /// A thread of the pipeline ended by itself.
    #[error("{0}; this should not happen, please report it")]
    Internal(String),
    /// `scan` could not read some files; each was logged.
    #[error("{failed} of {total} files could not be read; each is named above")]
    Incomplete {
        /// Files without a message.
        failed: u64,
        /// Files found.
        total: u64,
    },
}

fn stdout_cure(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "make room on its disk, or in its quota",
        io::ErrorKind::FileTooLarge => "raise the limit of a file's size (ulimit -f, LimitFSIZE=)",
        _ => "keep its reader running, or choose --output amqp",
    }
}

impl Error {
    /// The process's exit status: 2 for what the user can set right before starting, else 1.
    #[must_use]
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::Usage(_)
            | Self::DataDirectory { .. }
            | Self::StateDirectory { .. }
            | Self::ControlSocket { .. }
            | Self::MetricsAddress { .. } => 2,
            _ => 1,
        }
    }
}

/// The system's text for an error, without Rust's "(os error N)".
#[must_use]
pub fn os_message(error: &std::io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_owned()
}
