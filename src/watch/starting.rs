//! The first half of a volume's watch: its thread lists the directories, and the main thread waits for those that take no longer
//! than others.

use std::mem;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::inotify::Watch;
use super::root_checks::RootChecks;
use super::state::State;
use super::state::start::{Begun, Late, Start};
use super::watcher::Watcher;
use crate::cli::CatchUp;
use crate::dispatch::Dispatcher;
use crate::error::Error;
use crate::files::root::opening::PATIENCE;
use crate::mailbox::Sender;
use crate::pace::Pace;
use crate::progress::{self, Phase, Progress};

/// The thread of a volume's watch, which lists the directories first.
pub(super) struct Thread {
    give: SyncSender<Given>,
    handle: JoinHandle<Option<Watcher>>,
    listing: Arc<Listing>,
}

/// What the main thread gives the thread of a watch.
pub(super) struct Given {
    pub(super) watcher: WatcherParts,
    pub(super) start: Start,
}

/// A [`Watcher`] without its state.
pub(super) struct WatcherParts {
    pub(super) watch: Watch,
    pub(super) dispatcher: Dispatcher,
    pub(super) roots: RootChecks,
    pub(super) rescan: Option<Duration>,
    pub(super) progress: Arc<Progress>,
    pub(super) volume: Arc<progress::Volume>,
    pub(super) main: Sender,
}

/// The way of a listed state to the main thread, unless that has gone on without it.
#[derive(Default)]
struct Listing(Mutex<Listed>);

#[derive(Default)]
enum Listed {
    #[default]
    NotYet,
    Done(Box<Result<Begun, Error>>),
    /// The main thread does not wait for it any more.
    TooLate,
}

impl Thread {
    /// Starts to list the directories of a volume. `listed` is told when they are.
    pub(super) fn start(
        state: State,
        volume: usize,
        (with_ledger, catch_up): (bool, CatchUp),
        main: Sender,
        listed: mpsc::Sender<()>,
    ) -> Result<Self, Error> {
        let (give, given) = sync_channel::<Given>(1);
        let listing = Arc::new(Listing::default());
        let own = Arc::clone(&listing);
        let run = move || {
            let _guard = main.guard_panics();
            let late = own.put(state.begin(with_ledger, catch_up, Instant::now()));
            // The main thread may wait no more.
            let _ = listed.send(());
            drop(listed);
            let Given { watcher, start } = given.recv().ok()?;
            match (start, late) {
                (Start::Now(state), _) => Some(watcher.with(*state).run()),
                (Start::Late(late), Some(begun)) => watcher.join(late, begun),
                (Start::Late(_), None) => None, // it is late only when it was not put
            }
        };
        let handle = thread::Builder::new().name(format!("watch-{volume}")).spawn(run);
        let handle = handle.map_err(|cause| Error::Threads { what: "the thread of a watch", cause })?;
        Ok(Self { give, handle, listing })
    }

    pub(super) fn give(self, given: Given) -> JoinHandle<Option<Watcher>> {
        // Its thread waits for it, and has room for one.
        let _ = self.give.send(given);
        self.handle
    }
}

impl Listing {
    /// Leaves what was listed for the main thread; returns it where that does not wait for it any more.
    fn put(&self, begun: Result<Begun, Error>) -> Option<Result<Begun, Error>> {
        let mut held = self.lock();
        if matches!(*held, Listed::TooLate) {
            return Some(begun);
        }
        *held = Listed::Done(Box::new(begun));
        None
    }

    fn is_done(&self) -> bool {
        matches!(*self.lock(), Listed::Done(_))
    }

    /// Takes what was listed, if it was, and does not wait for it any more.
    fn take(&self) -> Option<Result<Begun, Error>> {
        match mem::replace(&mut *self.lock(), Listed::TooLate) {
            Listed::Done(begun) => Some(*begun),
            Listed::NotYet | Listed::TooLate => None,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Listed> {
        // Each change is a whole one.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits until the directories of all volumes are listed, or for so long where those of one are. `is_open`: each data directory
/// of a volume is open; one that is not has been waited for already. Returns the states of those that are listed, by the volumes'
/// numbers.
pub(super) fn wait_for_listings(
    threads: &[Thread],
    listed: &Receiver<()>,
    patience: Option<Duration>,
    is_open: impl Fn(usize) -> bool,
) -> Result<Vec<Option<Begun>>, Error> {
    let until = patience.map(|patience| Instant::now() + patience);
    loop {
        let (done, left): (Vec<_>, Vec<_>) = (0..threads.len()).partition(|&volume| threads[volume].listing.is_done());
        let over = until.map(|until| until.saturating_duration_since(Instant::now())).filter(|_| !done.is_empty());
        let is_over = |over: Duration| over.is_zero() || !left.iter().any(|&volume| is_open(volume));
        if left.is_empty() || over.is_some_and(is_over) {
            break;
        }
        let told = match over {
            Some(left) => listed.recv_timeout(left),
            None => listed.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        // Each thread that has listed its directories has said so.
        if told == Err(RecvTimeoutError::Disconnected) && threads.iter().any(|thread| !thread.listing.is_done()) {
            return Err(Error::Internal("a thread that lists directories has panicked".to_owned()));
        }
    }
    threads.iter().map(|thread| thread.listing.take().map(|begun| begun?.complete()).transpose()).collect()
}

impl WatcherParts {
    fn with(self, state: State) -> Watcher {
        let Self { watch, dispatcher, roots, rescan, progress, volume, main } = self;
        Watcher {
            watch,
            state,
            dispatcher,
            roots,
            rescan,
            pace: Pace::default(),
            progress,
            volume,
            main,
            leaves: false,
        }
    }

    /// Warns that the service begins without the volume's directories, which keep it from being ready.
    pub(super) fn report_late(&self, number: usize) {
        let (directories, seconds) = (&self.volume.directories, PATIENCE.as_secs());
        tracing::warn!(
            event = "listed_later",
            path = directories,
            seconds,
            "{directories} could not be listed within {seconds} s: its files follow once it is, and the others do not wait for it"
        );
        self.progress.unreadable.are(number, 1, directories, "its listing goes on");
    }

    /// Begins once the directories are listed, after the others. `None` where the service ends before.
    fn join(self, late: Late, begun: Result<Begun, Error>) -> Option<Watcher> {
        let (progress, main) = (Arc::clone(&self.progress), self.main.clone());
        if progress.phase() == Phase::Stopping {
            main.ended();
            return None;
        }
        let directories = &self.volume.directories;
        match begun.and_then(|begun| Ok((begun.listed, late.join(begun, &progress)?))) {
            Ok((listed, mut state)) => {
                tracing::info!(event = "listed", path = directories, "{directories} is listed and watched now");
                listed.err().into_iter().for_each(|refused| state.list_later(refused, Instant::now()));
                Some(self.with(state).run())
            }
            Err(error) => {
                main.fail(error);
                main.ended();
                None
            }
        }
    }
}
