//! Advice that depends on who reads it: nobody who types `scan` or `listen` at a terminal has a unit or workers to change.

use std::sync::OnceLock;
use std::{env, io, process};

use rustix::io::Errno;

/// Who reads the lines of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reader {
    /// Somebody who operates the service: of `watch`, and of `doctor`, which speaks of it.
    Operator,
    /// Somebody who publishes files once: `scan`.
    Publisher,
    /// Somebody who reads along: `listen`, `health`, `completions`.
    Listener,
}

static READER: OnceLock<Reader> = OnceLock::new();

/// Sets the reader, once.
pub fn address_to(reader: Reader) {
    let _ = READER.set(reader);
}

fn reader() -> Reader {
    READER.get().copied().unwrap_or(Reader::Operator)
}

/// Whether the reader may have a unit of systemd: who operates the service, and whose command systemd has started.
fn may_have_a_unit() -> bool {
    // systemd.exec(5): it is the id of the process that systemd itself has started, and children inherit it.
    let started = env::var("SYSTEMD_EXEC_PID").is_ok_and(|id| id.parse() == Ok(process::id()));
    reader() == Reader::Operator || started
}

/// The names of a limit: in a unit of systemd, and in a shell.
#[must_use]
pub fn limit(unit: &str, shell: &str) -> String {
    if may_have_a_unit() { format!("{unit} in systemd, {shell}") } else { shell.to_owned() }
}

/// What to do if descriptors are short while files are read.
#[must_use]
pub fn open_files() -> String {
    format!("Raise the limit of open files ({}), or lower --workers", limit("LimitNOFILE", "ulimit -n"))
}

/// What to do about a cause that no setting is to blame for, and that may pass: see [`want`] and [`disk`]; `None` for any other.
#[must_use]
pub fn passing(cause: &io::Error) -> Option<&'static str> {
    want(cause).or_else(|| disk(cause))
}

/// What to do if the disk, the server or the mount behind a path fails; `None` for any other cause. The errnos are those of
/// disks and of network and user-space file systems in open(2), read(2) and stat(2), and of their transports.
fn disk(cause: &io::Error) -> Option<&'static str> {
    let errno = Errno::from_io_error(cause)?;
    let fails = [
        Errno::IO,
        Errno::STALE,
        Errno::NOTCONN,
        Errno::TIMEDOUT,
        Errno::HOSTDOWN,
        Errno::HOSTUNREACH,
        Errno::NETDOWN,
        Errno::NETUNREACH,
        Errno::CONNREFUSED,
        Errno::CONNABORTED,
        Errno::CONNRESET,
        Errno::SHUTDOWN,
        Errno::REMOTEIO,
        Errno::BUSY,
    ];
    fails.contains(&errno).then_some("its disk, its server or its mount fails: see the kernel's log, and start again")
}

/// What to do if the process lacks descriptors or memory, whatever it wants them for; `None` for any other cause.
#[must_use]
pub fn want(cause: &io::Error) -> Option<&'static str> {
    Some(match Errno::from_io_error(cause)? {
        Errno::MFILE if may_have_a_unit() => "raise the limit of open files (ulimit -n, LimitNOFILE= in systemd)",
        Errno::MFILE => "raise the limit of open files (ulimit -n)",
        Errno::NFILE => "raise the sysctl fs.file-max, or end what holds many files open on this host",
        Errno::NOMEM | Errno::NOBUFS => "leave it more memory, or raise the limit of it that this process has",
        _ => return None,
    })
}

/// What to do if the system refuses a thread.
#[must_use]
pub fn threads() -> &'static str {
    match reader() {
        Reader::Operator | Reader::Publisher => {
            "raise the limit of threads (ulimit -u, TasksMax= in systemd, --pids-limit of a container), or lower --workers"
        }
        Reader::Listener => "raise the limit of threads (ulimit -u, --pids-limit of a container)",
    }
}

/// What to do if a file on standard output may not grow.
#[must_use]
pub fn file_size() -> &'static str {
    if may_have_a_unit() {
        "raise the limit of a file's size (ulimit -f, LimitFSIZE=)"
    } else {
        "raise the limit of a file's size (ulimit -f)"
    }
}

/// What to do if standard output cannot be written.
#[must_use]
pub fn stdout() -> &'static str {
    match reader() {
        Reader::Operator | Reader::Publisher => "keep its reader running, or choose --output amqp",
        Reader::Listener => "keep its reader running",
    }
}
