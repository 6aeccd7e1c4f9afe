//! A service manager that keeps what it is notified of (sd_notify(3)).

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::{Duration, Instant};

use super::wait::TIMEOUT;

/// The service manager, with the lines that it was notified of so far.
pub struct Manager {
    socket: UnixDatagram,
    pub lines: Vec<String>,
}

impl Manager {
    pub fn listen(path: &Path) -> Self {
        let socket = UnixDatagram::bind(path).expect("a socket for the notifications");
        socket.set_read_timeout(Some(Duration::from_millis(200))).expect("a timeout");
        Self { socket, lines: Vec::new() }
    }

    /// Fills its queue of notifications, of which it reads none until something is waited for.
    pub fn fill(&self, path: &Path) {
        let filler = UnixDatagram::unbound().expect("a socket");
        filler.set_nonblocking(true).expect("a socket that does not wait");
        while filler.send_to(b"FILLED=1", path).is_ok() {}
    }

    #[track_caller]
    pub fn wait_for(&mut self, what: &str, enough: impl Fn(&[String]) -> bool) {
        let deadline = Instant::now() + TIMEOUT;
        let mut datagram = [0; 4096];
        while !enough(&self.lines) {
            assert!(Instant::now() < deadline, "{what} did not come; the lines so far: {:#?}", self.lines);
            if let Ok(length) = self.socket.recv(&mut datagram) {
                self.lines.extend(String::from_utf8_lossy(&datagram[..length]).lines().map(str::to_owned));
            }
        }
    }
}

pub fn position(lines: &[String], wanted: &str) -> Option<usize> {
    lines.iter().position(|line| line.starts_with(wanted))
}
