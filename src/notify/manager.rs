//! The service manager's socket: what it is notified of, one datagram each (sd_notify(3)).
//!
//! Nothing here waits for the service manager. One that does not read its socket for a while has no room for a datagram
//! (unix(7), net.unix.max_dgram_qlen), and whoever waited for room could not publish, answer or end meanwhile. So what finds no
//! room is dropped, and the caller sends it again.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{env, fmt, io, mem, process};

use crate::error::os_message;
use crate::progress::{Phase, Progress};

/// What the service manager is notified of.
#[derive(Debug, Clone, Copy)]
pub(super) enum State<'a> {
    Ready,
    Stopping,
    /// The service makes progress.
    Watchdog,
    /// One line: a newline would begin another state.
    Status(&'a str),
    /// A start may take so much longer from now.
    ExtendTimeout(Duration),
}

impl fmt::Display for State<'_> {
    fn fmt(&self, datagram: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ready => datagram.write_str("READY=1"),
            Self::Stopping => datagram.write_str("STOPPING=1"),
            Self::Watchdog => datagram.write_str("WATCHDOG=1"),
            Self::Status(status) => write!(datagram, "STATUS={status}"),
            Self::ExtendTimeout(time) => write!(datagram, "EXTEND_TIMEOUT_USEC={}", time.as_micros()),
        }
    }
}

/// What the service manager has been notified of. The main thread notifies it of a phase at once and the control thread of
/// all else, so it is behind a lock, which nobody waits for long, because no notification waits.
pub(super) struct Manager {
    /// The last phase that it was notified of.
    phase: Phase,
    /// The last notification did not reach it.
    missed: bool,
}

/// The environment of a process names one service manager.
static MANAGER: Mutex<Manager> = Mutex::new(Manager { phase: Phase::Starting, missed: false });

pub(super) fn manager() -> MutexGuard<'static, Manager> {
    // No change of it can panic half-way.
    MANAGER.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Manager {
    /// Notifies it of the phase, unless it has been. Where that does not reach it, the next call does it again.
    pub(super) fn notify_of_phase(&mut self, progress: &Progress) {
        let phase = progress.phase();
        let state = match phase {
            Phase::Starting => return,
            Phase::Ready => State::Ready,
            Phase::Stopping => State::Stopping,
        };
        if phase != self.phase && self.notify(state) {
            self.phase = phase;
        }
    }

    /// Notifies it, if one has started this process. Returns whether nothing is left to be sent.
    pub(super) fn notify(&mut self, state: State<'_>) -> bool {
        let Some(address) = env::var_os("NOTIFY_SOCKET") else { return true };
        match send(address.as_bytes(), &state.to_string()) {
            Ok(()) => {
                if mem::take(&mut self.missed) {
                    tracing::info!(event = "notified_again", "the service manager is notified again");
                }
                true
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => true,
            Err(error) => {
                if !mem::replace(&mut self.missed, true) {
                    log_missed(state, &error);
                }
                false
            }
        }
    }
}

fn log_missed(state: State<'_>, error: &io::Error) {
    let no_room = error.kind() == io::ErrorKind::WouldBlock;
    let error = os_message(error);
    if no_room {
        tracing::warn!(
            event = "not_notified",
            error,
            "the service manager does not read its socket (NOTIFY_SOCKET), which has no room for {state:?}: {error}; the service goes on and notifies it again until it reads"
        );
    } else {
        tracing::debug!(
            event = "not_notified",
            error,
            "the service manager was not notified of {state:?}, which is tried again: {error}"
        );
    }
}

/// Sends one datagram to an address of sd_notify(3), a path or, behind an `@`, an abstract name.
///
/// # Errors
/// [`io::ErrorKind::WouldBlock`] where the other side has no room for it.
fn send(address: &[u8], datagram: &str) -> io::Result<()> {
    let address = match address.strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(address))?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.connect_addr(&address)?;
    socket.send(datagram.as_bytes()).map(drop) // a datagram is sent as a whole
}

/// The longest time between two signs of progress that the service manager allows (sd_watchdog_enabled(3)).
pub(super) fn watchdog() -> Option<Duration> {
    let number = |name| env::var(name).ok().and_then(|number| number.parse().ok());
    let for_this_process = number("WATCHDOG_PID").is_none_or(|id| id == u64::from(process::id()));
    number("WATCHDOG_USEC").filter(|_| for_this_process).map(Duration::from_micros)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_datagram_goes_to_a_path_and_to_an_abstract_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let name = format!("apollonia-ingestor-test-{}", process::id());
        let at_path = UnixDatagram::bind(&path).unwrap();
        let at_name = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        for (socket, address) in [(at_path, path.as_os_str().as_bytes()), (at_name, format!("@{name}").as_bytes())] {
            send(address, &State::Status("a line").to_string()).unwrap();
            let mut datagram = [0; 64];
            let length = socket.recv(&mut datagram).unwrap();
            assert_eq!(&datagram[..length], b"STATUS=a line");
        }
    }

    #[test]
    fn a_datagram_does_not_wait_for_room() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let _unread = UnixDatagram::bind(&path).unwrap();
        let refused = (0..1 << 20).find_map(|_| send(path.as_os_str().as_bytes(), "WATCHDOG=1").err());
        assert_eq!(refused.map(|error| error.kind()), Some(io::ErrorKind::WouldBlock));
    }

    #[test]
    fn an_address_that_nobody_can_have_is_an_error() {
        for address in ["/nowhere/socket", "vsock:2:1234", "", &format!("/{}", "long".repeat(64))] {
            assert!(send(address.as_bytes(), "READY=1").is_err(), "{address:?}");
        }
    }
}
