//! Signals: those that ask for the end, and those that are ignored.

#![allow(unsafe_code)]

use std::sync::{Arc, OnceLock};
use std::{process, thread};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::error::Error;
use crate::mailbox::Sender;

/// The first SIGINT or SIGTERM asks for an orderly end, the second ends the process at once. Where the first comes before
/// there is anybody to ask (the broker is still being waited for), nothing is in progress, and it ends the process.
pub struct StopSignals(Arc<OnceLock<Sender>>);

impl StopSignals {
    /// Takes the signals from now on.
    ///
    /// # Errors
    /// [`Error::Internal`] when the system refuses handlers or a thread.
    pub fn listen() -> Result<Self, Error> {
        let refuse = |error| Error::Internal(format!("cannot listen for signals: {error}"));
        let mut signals = Signals::new([SIGINT, SIGTERM]).map_err(refuse)?;
        let sender = Arc::new(OnceLock::<Sender>::new());
        let listening = Self(Arc::clone(&sender));
        let listen = move || {
            let mut asked = false;
            for _ in signals.forever() {
                let Some(sender) = sender.get() else {
                    tracing::info!("stopped before it was ready");
                    process::exit(0);
                };
                if asked {
                    process::exit(1);
                }
                asked = true;
                tracing::info!("stopping: files in progress are finished; a second signal ends at once");
                sender.stop();
            }
        };
        let thread = thread::Builder::new().name("signals".to_owned()).spawn(listen);
        thread.map_err(|cause| Error::Threads { what: "the signals' thread", cause })?;
        Ok(listening)
    }

    /// Whom to ask.
    pub fn ask(self, sender: Sender) {
        let _ = self.0.set(sender); // taken by value: set once
    }
}

/// Ignores SIGXFSZ: a write beyond the limit of a file's size (`ulimit -f`, `LimitFSIZE=`) is then refused with EFBIG, as a
/// full disk refuses it with ENOSPC (setrlimit(2)).
pub fn ignore_file_size_signal() {
    // SAFETY: SIG_IGN installs no handler, so no code of ours can run at a bad moment.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}
