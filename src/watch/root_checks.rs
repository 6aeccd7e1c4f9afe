//! Whether each data directory is still at its path, asked once a second: it can be replaced or covered by a mount without
//! any event.
//!
//! Where a file system hangs, stat(2) does, too. So a thread of its own asks for each volume, and the volume's watch looks at its
//! answers.

use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::io::Errno;

use crate::error::Error;
use crate::files::root::Root;

/// The pause between two checks of a volume's data directories.
pub(super) const ROOT_CHECK: Duration = Duration::from_secs(1);

/// The answer of [`Root::still_there`].
pub(super) type Answer = Result<bool, Errno>;

/// A data directory, and the last answer.
#[derive(Debug)]
struct Check {
    root: Arc<Root>,
    answer: Mutex<Answer>,
}

/// The checks of a volume's data directories. Their thread ends when it is dropped. It is not waited for: it may hang.
#[derive(Debug)]
pub(super) struct RootChecks {
    /// In the order of the data directories.
    checks: Vec<Arc<Check>>,
    _until: Sender<()>,
}

impl RootChecks {
    /// # Errors
    /// [`Error::Threads`] when the thread cannot be started.
    pub(super) fn start<'a>(roots: impl Iterator<Item = &'a Arc<Root>>) -> Result<Self, Error> {
        let check = |root: &Arc<Root>| Arc::new(Check { root: Arc::clone(root), answer: Mutex::new(Ok(true)) });
        let checks: Vec<Arc<Check>> = roots.map(check).collect();
        let (sender, until) = mpsc::channel();
        let (own, volume) = (checks.clone(), checks.first().map_or(0, |check| check.root.volume()));
        let thread = thread::Builder::new().name(format!("roots-{volume}")).spawn(move || ask(&own, &until));
        thread.map_err(|cause| Error::Threads { what: "a thread that checks data directories", cause })?;
        Ok(Self { checks, _until: sender })
    }

    /// The last answer for each data directory.
    pub(super) fn answers(&self) -> impl Iterator<Item = Answer> {
        self.checks.iter().map(|check| *check.answer.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Asks again and again, until the other side of the channel is dropped.
fn ask(checks: &[Arc<Check>], until: &Receiver<()>) {
    while until.recv_timeout(ROOT_CHECK) == Err(RecvTimeoutError::Timeout) {
        for check in checks {
            let answer = check.root.still_there();
            *check.answer.lock().unwrap_or_else(PoisonError::into_inner) = answer;
        }
    }
}
