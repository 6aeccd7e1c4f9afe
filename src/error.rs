//! The errors that end a command: each says what went wrong and, where there is one, the next step.
//!
//! A file that cannot be read is none of them: it is logged and counted, and the command goes on (see [`crate::read`]).

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::{fmt, io};

use crate::advice;

/// The next step where only the developers have one.
const REPORT: &str = "this should not happen, please report it";

/// A failure of the whole command. It is shown as one line: the cause, a semicolon, the next step.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// An argument or a setting cannot be used.
    Usage {
        /// The setting, and what is wrong with it.
        cause: String,
        /// What to do about it.
        next: String,
    },
    /// The data directory cannot be used as it is.
    DataDirectory {
        /// The directory as it was given.
        path: PathBuf,
        /// What the kernel said.
        cause: String,
        /// What to do about it.
        next: &'static str,
    },
    /// The state directory cannot be used as it is.
    StateDirectory {
        /// The directory as it was given.
        path: PathBuf,
        /// What the kernel said, or what is in the directory.
        cause: String,
        /// What to do about it.
        next: &'static str,
    },
    /// Another process keeps its ledger in the state directory.
    StateLocked {
        /// The directory as it was given.
        path: PathBuf,
    },
    /// inotify refused an instance or a watch.
    Watch {
        /// The directory to be watched.
        path: PathBuf,
        /// What the kernel said.
        cause: io::Error,
        /// What to do about it.
        next: &'static str,
    },
    /// The data directory was removed, moved, unmounted or covered by a mount while it was watched.
    DirectoryGone {
        /// The directory that was watched.
        path: PathBuf,
        /// How the service noticed.
        cause: &'static str,
    },
    /// The read engine that was asked for by name cannot be used.
    Engine {
        /// What the kernel said.
        cause: io::Error,
        /// What to do about it.
        next: String,
    },
    /// The broker could not be reached, or refused.
    Broker {
        /// The broker's address, its password masked.
        url: String,
        /// What the broker or the network said.
        cause: String,
        /// What to do about it.
        next: &'static str,
    },
    /// No queue is bound to the exchange, and the setting is `--unroutable fail`.
    Unroutable {
        /// The exchange's name.
        exchange: String,
        /// The routing key, in words; empty where the exchange does not look at it.
        key: String,
    },
    /// The control socket cannot be made at the path that was set.
    ControlSocket {
        /// The path that was set.
        path: PathBuf,
        /// What the kernel said, or what is at that path.
        cause: String,
    },
    /// The address for metrics cannot be bound.
    MetricsAddress {
        /// The address that was set.
        address: SocketAddr,
        /// What the kernel said.
        cause: String,
    },
    /// `health` got no answer from a service.
    NoService {
        /// The control socket that it asked.
        socket: PathBuf,
        /// What it got in place of an answer.
        cause: String,
    },
    /// The service that `health` asked is not healthy, or not ready. This is the service's own line.
    Unhealthy(String),
    /// `doctor` has reported checks that failed.
    Unfit {
        /// The number of checks that failed.
        failed: usize,
        /// The number of all checks.
        total: usize,
    },
    /// `verify` has printed what differs.
    Differs {
        /// How many files and rows differ or could not be compared.
        differ: u64,
        /// How many files were compared.
        files: u64,
    },
    /// Standard output was closed or cannot be written.
    Stdout(io::Error),
    /// The system refused a thread.
    Threads {
        /// The thread's name in this sentence.
        what: &'static str,
        /// What the kernel said.
        cause: io::Error,
    },
    /// The system refused what no setting is at fault for, for example a descriptor.
    System {
        /// What could not be had or done.
        what: String,
        /// What the kernel said.
        cause: io::Error,
    },
    /// A failure that only a bug or a broken system explains, for example a thread that panicked.
    Internal(String),
    /// A signal has ended a command before its work was done.
    Interrupted {
        /// The signal.
        signal: StopSignal,
        /// What is left undone.
        left: String,
    },
    /// `listen` has printed fewer messages than it was to.
    Fewer {
        /// The messages printed.
        printed: u32,
        /// The messages asked for.
        count: u32,
    },
    /// A failure that was logged before its command's last lines.
    Logged(Box<Error>),
    /// `scan` has logged files that it could not read.
    Incomplete {
        /// The number of files without a message.
        failed: u64,
        /// The number of files found.
        total: u64,
    },
}

impl Error {
    /// A setting that cannot be used: the setting with what is wrong with it, and the next step.
    #[must_use]
    pub fn usage(cause: impl Into<String>, next: impl Into<String>) -> Self {
        Self::Usage { cause: cause.into(), next: next.into() }
    }

    /// What the system refused.
    #[must_use]
    pub fn system(what: impl Into<String>, cause: impl Into<io::Error>) -> Self {
        Self::System { what: what.into(), cause: cause.into() }
    }

    /// What the system refused of something that a setting names. A want of descriptors or memory, and a disk or a server that
    /// fails, are not the setting's fault and pass, so each is a failure at run time; what any other cause means, `refused` says
    /// of its words.
    #[must_use]
    pub fn of_setting(
        what: impl Into<String>,
        cause: impl Into<io::Error>,
        refused: impl FnOnce(String) -> Self,
    ) -> Self {
        let cause = cause.into();
        if advice::passing(&cause).is_some() { Self::system(what, cause) } else { refused(os_message(&cause)) }
    }

    /// What went wrong, in words, without the next step.
    #[must_use]
    pub fn cause(&self) -> String {
        match self {
            Self::Usage { cause, .. } => cause.clone(),
            Self::DataDirectory { path, cause, .. } => {
                format!("DATA_DIRECTORY (--data-dir): {path:?} cannot be used: {cause}")
            }
            Self::StateDirectory { path, cause, .. } => {
                format!("STATE_DIRECTORY (--state-dir): {path:?} cannot be used: {cause}")
            }
            Self::StateLocked { path } => {
                format!("the state directory {path:?} is used by another apollonia-ingestor")
            }
            Self::Watch { path, cause, .. } => format!("cannot watch {path:?}: {}", os_message(cause)),
            Self::DirectoryGone { path, cause } => format!("the data directory {path:?} is gone: {cause}"),
            Self::Engine { cause, .. } => format!("the io_uring read engine cannot be used: {}", os_message(cause)),
            Self::Broker { url, cause, .. } => format!("broker {url}: {cause}"),
            Self::Unroutable { exchange, key } => {
                format!("no queue is bound to the exchange `{exchange}`{key}: the broker returned a message")
            }
            Self::ControlSocket { path, cause } => {
                format!("INGESTOR_CONTROL_SOCKET (--control-socket): {path:?} cannot be used: {cause}")
            }
            Self::MetricsAddress { address, cause } => {
                format!("INGESTOR_METRICS_ADDRESS (--metrics-address): {address} cannot be used: {cause}")
            }
            Self::NoService { socket, cause } => format!("no service answers at {socket:?}: {cause}"),
            Self::Unhealthy(line) | Self::Internal(line) => line.clone(),
            Self::Unfit { failed, total } => format!("{failed} of {total} checks failed"),
            Self::Differs { differ, files } => {
                let differences = if *differ == 1 { "difference" } else { "differences" };
                format!("{differ} {differences} between the ledger and {files} files on the disk")
            }
            Self::Stdout(cause) => format!("standard output: {}", os_message(cause)),
            Self::System { what, cause } => format!("{what}: {}", os_message(cause)),
            Self::Threads { what, cause } => format!("cannot start {what}: {}", os_message(cause)),
            Self::Incomplete { failed, total } => format!("{failed} of {total} files could not be read or published"),
            Self::Interrupted { signal, left } => format!("{signal} has ended it early: {left}"),
            Self::Fewer { printed, count } => format!("{printed} of {count} messages came before the end"),
            Self::Logged(error) => error.cause(),
        }
    }

    /// What to do about it; `None` for a line of the service, which says it itself.
    #[must_use]
    pub fn next(&self) -> Option<&str> {
        Some(match self {
            Self::Usage { next, .. } | Self::Engine { next, .. } => next,
            Self::DataDirectory { next, .. }
            | Self::StateDirectory { next, .. }
            | Self::Watch { next, .. }
            | Self::Broker { next, .. } => next,
            Self::StateLocked { .. } => "stop that one, or give each a state directory of its own",
            Self::DirectoryGone { .. } => "put it back and start again",
            Self::Unroutable { .. } => "bind a queue, or set --unroutable wait and bind it later",
            Self::ControlSocket { .. } => "name another path, one a service",
            Self::MetricsAddress { .. } => "name another",
            Self::NoService { .. } => "start it, or name the --control-socket that it was started with",
            Self::Unhealthy(_) => return None,
            Self::Unfit { .. } => "each says above how to mend it",
            Self::Differs { .. } => "each is named above",
            Self::Stdout(cause) => next_for_stdout(cause),
            Self::Threads { .. } => advice::threads(),
            Self::System { cause, .. } => advice::passing(cause).unwrap_or(REPORT),
            Self::Internal(_) => REPORT,
            Self::Incomplete { .. } => "each is named above",
            Self::Interrupted { .. } => "start it again",
            Self::Fewer { .. } => "give it more time (--timeout), or see whether anything is published",
            Self::Logged(error) => return error.next(),
        })
    }

    /// The file, the directory or the socket that it is about, for those who search the log by it.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::DataDirectory { path, .. }
            | Self::StateDirectory { path, .. }
            | Self::StateLocked { path }
            | Self::Watch { path, .. }
            | Self::DirectoryGone { path, .. }
            | Self::ControlSocket { path, .. }
            | Self::NoService { socket: path, .. } => Some(path),
            Self::Logged(error) => error.path(),
            _ => None,
        }
    }

    /// The broker that it is about, its password masked.
    #[must_use]
    pub fn url(&self) -> Option<&str> {
        match self {
            Self::Broker { url, .. } => Some(url),
            Self::Logged(error) => error.url(),
            _ => None,
        }
    }

    /// Whether the reader of standard output has gone away, as `head` does. It has what it wanted, so that is no failure.
    #[must_use]
    pub fn is_reader_gone(&self) -> bool {
        matches!(self, Self::Stdout(cause) if cause.kind() == io::ErrorKind::BrokenPipe)
    }

    /// The process's exit status: 2 for what the user can set right before starting, 128 and its number for a signal, 0 when the
    /// reader of standard output has gone away, else 1.
    #[must_use]
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::Usage { .. }
            | Self::DataDirectory { .. }
            | Self::StateDirectory { .. }
            | Self::ControlSocket { .. }
            | Self::MetricsAddress { .. } => 2,
            Self::Interrupted { signal, .. } => signal.exit_status(),
            Self::Logged(error) => error.exit_status(),
            _ if self.is_reader_gone() => 0,
            _ => 1,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "{}", self.cause())?;
        self.next().map_or(Ok(()), |next| write!(to, "; {next}"))
    }
}

impl std::error::Error for Error {}

/// A signal that asks for the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopSignal {
    /// SIGHUP, for a command that is no service.
    HangUp,
    /// SIGINT.
    Interrupt,
    /// SIGTERM.
    Terminate,
}

impl StopSignal {
    /// The exit status of a command that the signal ends early, as a shell shows it: 128 and the signal's number.
    #[must_use]
    pub fn exit_status(self) -> u8 {
        128 + match self {
            Self::HangUp => 1,
            Self::Interrupt => 2,
            Self::Terminate => 15,
        }
    }
}

impl fmt::Display for StopSignal {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str(match self {
            Self::HangUp => "SIGHUP",
            Self::Interrupt => "SIGINT",
            Self::Terminate => "SIGTERM",
        })
    }
}

fn next_for_stdout(cause: &io::Error) -> &'static str {
    match cause.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "make room on its disk, or in its quota",
        io::ErrorKind::FileTooLarge => advice::file_size(),
        _ => advice::want(cause).unwrap_or_else(advice::stdout),
    }
}

/// How the standard library introduces the resolver's answer.
const RESOLVING: &str = "failed to lookup address information: ";

/// The text of an error without what is the standard library's own in it: "(os error 13)" says nothing that the words before
/// it do not say. Every line that shows an error of the system, or one that may hold such an error, has it from here.
#[must_use]
pub fn os_message(error: &(impl fmt::Display + ?Sized)) -> String {
    let mut text = error.to_string();
    while let Some(at) = text.find(" (os error ") {
        let end = text[at..].find(')').map_or(text.len(), |length| at + length + 1);
        text.replace_range(at..end, "");
    }
    match text.strip_prefix(RESOLVING) {
        Some(cause) => format!("the host's name cannot be resolved: {cause}"),
        None => text,
    }
}

/// The largest number of names that a line lists, because nobody reads more of them.
const NAMED_MAX: usize = 5;

/// Names in a line: each quoted, and where there are many the first of them and the number of the others.
#[must_use]
pub fn named<N: fmt::Debug>(names: impl ExactSizeIterator<Item = N>) -> String {
    let more = names.len().saturating_sub(NAMED_MAX);
    let first: Vec<String> = names.take(NAMED_MAX).map(|name| format!("{name:?}")).collect();
    let first = first.join(", ");
    if more == 0 { first } else { format!("{first} and {more} more") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_has_the_words_of_the_system_alone() {
        let refused = io::Error::from_raw_os_error(libc::EACCES);
        assert_eq!(os_message(&refused), "Permission denied");
        assert_eq!(
            os_message(&format!("IO error: {refused}, again {refused}")),
            "IO error: Permission denied, again Permission denied"
        );
        assert_eq!(os_message(&io::Error::other("cut short (os error 5")), "cut short");
        let unknown = io::Error::other(format!("{RESOLVING}Name or service not known"));
        assert_eq!(os_message(&unknown), "the host's name cannot be resolved: Name or service not known");
    }

    #[test]
    fn a_want_of_the_process_and_a_failing_disk_are_no_fault_of_a_setting() {
        let of_setting =
            |errno| Error::of_setting("x", io::Error::from_raw_os_error(errno), |cause| Error::usage(cause, "y"));
        for (errno, cure) in [
            (libc::EMFILE, "ulimit -n"),
            (libc::ENFILE, "fs.file-max"),
            (libc::ENOMEM, "memory"),
            (libc::EIO, "disk"),
            (libc::ESTALE, "server"),
            (libc::ENOTCONN, "mount"),
        ] {
            let error = of_setting(errno);
            assert!(error.next().is_some_and(|next| next.contains(cure)), "{error}");
            assert_eq!(error.exit_status(), 1, "{error}");
        }
        let refused = of_setting(libc::EACCES);
        assert_eq!((refused.to_string().as_str(), refused.exit_status()), ("Permission denied; y", 2));
        let unexplained = Error::system("x", io::Error::from_raw_os_error(libc::EINVAL));
        assert_eq!(unexplained.to_string(), format!("x: Invalid argument; {REPORT}"));
    }

    #[test]
    fn many_names_are_counted() {
        assert_eq!(named(["a", "b"].iter()), r#""a", "b""#);
        assert_eq!(named((1..1001).collect::<Vec<_>>().iter()), "1, 2, 3, 4, 5 and 995 more");
    }

    #[test]
    fn the_line_is_the_cause_and_the_next_step() {
        let error = Error::usage("--workers (INGESTOR_WORKERS): x; y", "see --help");
        assert_eq!(error.to_string(), "--workers (INGESTOR_WORKERS): x; y; see --help");
        assert_eq!(error.next(), Some("see --help"));
        let line = Error::Unhealthy("starting: waits for the broker".to_owned());
        assert_eq!((line.to_string(), line.next()), (line.cause(), None));
    }
}
