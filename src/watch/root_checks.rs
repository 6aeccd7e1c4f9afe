//! Whether each data directory is still at its path, and what was unmounted below it, asked once a second: it can be replaced
//! or covered by a mount without any event, and so can what is in it.
//!
//! Where a file system hangs, stat(2) does, too. So a thread of its own asks for each volume, and the volume's watch looks at its
//! answers.

use std::mem;
use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::io::Errno;

use crate::error::{Error, os_message};
use crate::files::mounts::{self, MountsBelow};
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

/// What the thread has found.
#[derive(Debug)]
struct Found {
    /// In the order of the data directories.
    checks: Vec<Check>,
    /// Where something was unmounted. No more than the kernel has mounts (fs.mount-max).
    unmounted: Mutex<Vec<PathBuf>>,
}

/// The checks of a volume's data directories. Their thread ends when it is dropped. It is not waited for: it may hang.
#[derive(Debug)]
pub(super) struct RootChecks {
    found: Arc<Found>,
    _until: Sender<()>,
}

impl RootChecks {
    /// `recursive`: what is mounted below is worth a line.
    ///
    /// # Errors
    /// [`Error::Threads`] when the thread cannot be started.
    pub(super) fn start<'a>(roots: impl Iterator<Item = &'a Arc<Root>>, recursive: bool) -> Result<Self, Error> {
        let check = |root: &Arc<Root>| Check { root: Arc::clone(root), answer: Mutex::new(Ok(true)) };
        let checks: Vec<Check> = roots.map(check).collect();
        let mounts = mounts_below(checks.iter().map(|check| check.root.path().to_owned()).collect(), recursive);
        let volume = checks.first().map_or(0, |check| check.root.volume());
        let found = Arc::new(Found { checks, unmounted: Mutex::default() });
        let (sender, until) = mpsc::channel();
        let own = Arc::clone(&found);
        let ask = move || ask(&own, mounts, recursive, &until);
        let thread = thread::Builder::new().name(format!("roots-{volume}")).spawn(ask);
        thread.map_err(|cause| Error::Threads { what: "a thread that checks data directories", cause })?;
        Ok(Self { found, _until: sender })
    }

    /// The last answer for each data directory.
    pub(super) fn answers(&self) -> impl Iterator<Item = Answer> {
        self.found.checks.iter().map(|check| *lock(&check.answer))
    }

    /// Where something was unmounted since the last call.
    pub(super) fn unmounted(&self) -> Vec<PathBuf> {
        mem::take(&mut *lock(&self.found.unmounted))
    }
}

/// A panic under such a lock leaves a whole value.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Asks again and again, until the other side of the channel is dropped.
fn ask(found: &Found, mut mounts: Option<MountsBelow>, recursive: bool, until: &Receiver<()>) {
    while until.recv_timeout(ROOT_CHECK) == Err(RecvTimeoutError::Timeout) {
        for check in &found.checks {
            let answer = check.root.still_there();
            *lock(&check.answer) = answer;
        }
        // What could not be read is read a second later.
        let Some(Ok(changes)) = mounts.as_mut().map(MountsBelow::changes) else { continue };
        if recursive {
            log(&changes.mounted);
        }
        lock(&found.unmounted).extend(changes.unmounted);
    }
}

fn mounts_below(directories: Vec<PathBuf>, recursive: bool) -> Option<MountsBelow> {
    let followed = MountsBelow::follow(directories).and_then(|mut mounts| Ok((mounts.changes()?, mounts)));
    match followed {
        Ok((changes, mounts)) => {
            if recursive {
                log(&changes.mounted);
            }
            Some(mounts)
        }
        Err(cause) => {
            let error = os_message(&cause);
            tracing::warn!(
                event = "mounts_not_followed",
                error,
                "the list of mounts cannot be read ({error}): what is unmounted below a data directory is found by the next rescan; mount /proc"
            );
            None
        }
    }
}

/// Something is mounted at these places.
fn log(points: &[PathBuf]) {
    let Some((first, others)) = points.split_first() else { return };
    let mounted = mounts::in_words(first, others.len());
    tracing::info!(
        event = "mounted_below",
        path = &*first.to_string_lossy(),
        "{mounted}; for its files run a service for it, too"
    );
}
