//! Signals: SIGINT and SIGTERM ask for the end, SIGXFSZ is ignored.

#![allow(unsafe_code)]

use std::sync::{Arc, OnceLock};
use std::{process, thread};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::error::{Error, os_message};
use crate::mailbox::Sender;

/// The first SIGINT or SIGTERM asks the source of jobs for an orderly end, the second ends the process at once. So does the
/// first one before the source has a mailbox (the start still waits for the broker), because nothing is in progress then.
pub struct StopSignals(Arc<OnceLock<Sender>>);

impl StopSignals {
    /// Catches the signals from now on.
    ///
    /// # Errors
    /// [`Error::Internal`] when the system refuses handlers or a thread.
    pub fn listen() -> Result<Self, Error> {
        let refuse = |error| Error::Internal(format!("cannot listen for signals: {}", os_message(&error)));
        let mut signals = Signals::new([SIGINT, SIGTERM]).map_err(refuse)?;
        let sender = Arc::new(OnceLock::<Sender>::new());
        let listening = Self(Arc::clone(&sender));
        let listen = move || {
            let mut asked = false;
            for _ in signals.forever() {
                let Some(sender) = sender.get() else {
                    tracing::info!(event = "stopped", "stopped before it was ready");
                    process::exit(0);
                };
                if asked {
                    process::exit(1);
                }
                asked = true;
                tracing::info!(
                    event = "stopping",
                    "stopping: files in progress are finished; a second signal ends at once"
                );
                sender.stop();
            }
        };
        let thread = thread::Builder::new().name("signals".to_owned()).spawn(listen);
        thread.map_err(|cause| Error::Threads { what: "the signals' thread", cause })?;
        Ok(listening)
    }

    /// Names the mailbox that gets the request for an orderly end.
    pub fn ask(self, sender: Sender) {
        let set = self.0.set(sender);
        assert!(set.is_ok(), "this takes the one value of its kind, so it runs once");
    }
}

/// Ignores SIGXFSZ, so that a write beyond the limit of a file's size (`ulimit -f`, `LimitFSIZE=`) fails with EFBIG, as on a
/// full disk it fails with ENOSPC (setrlimit(2)).
pub fn ignore_file_size_signal() {
    // SAFETY: SIG_IGN installs no handler, so no code of ours can run at a bad moment.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}
