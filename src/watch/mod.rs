//! The watch: kernel events into the pending set, batches out of it, confirms back into what is known.
//!
//! One thread owns all of this and never waits for a file or for the broker: it reads what the kernel has
//! queued, then what the pipeline reports, then hands out as large a batch as there is room for. A batch is
//! whatever came in while the last one was being handled: one file when idle, more under load.

pub mod filter;
pub mod index;
pub mod inotify;
pub mod lookover;
pub mod pending;

use std::collections::{HashMap, HashSet};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::vec;

use crate::cli::CatchUp;
use crate::config::WatchSettings;
use crate::error::Error;
use crate::ledger::{Ledger, Store};
use crate::logging::FileLines;
use crate::metrics::Totals;
use crate::notify;
use crate::pipeline::{Job, Known, Letter, Outcome, Pipeline, Report, STOP_PATIENCE};
use crate::read::stable::{Root, Stamp, Unread, Version};
use crate::vitals::{Phase, Vitals};
use filter::Filter;
use index::{Directory, Name};
use inotify::{Event, Watch};
use lookover::{list, look};
use pending::{Due, Full, Hint, PENDING_MAX, Pending};

/// Jobs of one batch at most.
const BATCH_MAX: usize = 1024;

/// Reads of the kernel's queue in a row before the rest of the loop has its turn.
const READS_IN_A_ROW: usize = 8;

/// Files that a look-over compares before the rest of the loop has its turn.
const LOOKS_IN_A_ROW: usize = 1024;

/// How often the path is compared with the directory that is watched: it can be replaced or covered by a
/// mount without any event.
const ROOT_CHECK: Duration = Duration::from_secs(1);

/// Pause between two look-overs that events ask for; doubles to the longest while they keep asking.
const LOOK_OVER_PAUSE_MIN: Duration = Duration::from_secs(1);

/// See [`LOOK_OVER_PAUSE_MIN`].
const LOOK_OVER_PAUSE_MAX: Duration = Duration::from_secs(30);

/// The source of work of `watch`.
pub struct Watcher {
    watch: Watch,
    books: Books,
    pipeline: Pipeline,
    rescan: Option<Duration>,
}

impl Watcher {
    /// Sets the watch up first and looks over the directory then: what lands in between is seen by both.
    ///
    /// # Errors
    /// [`Error::Watch`], or [`Error::DataDirectory`] when it cannot be listed.
    pub fn new(
        root: Arc<Root>,
        watch: Watch,
        pipeline: Pipeline,
        store: Option<Store>,
        filter: Filter,
        settings: WatchSettings,
        vitals: Arc<Vitals>,
    ) -> Result<Self, Error> {
        let mut books = Books::new(root, filter, settings.settle, vitals);
        books.list()?;
        books.vitals.metrics.look_overs.start.inc();
        if let Some(store) = store {
            books.recall(store)?;
        }
        match settings.catch_up {
            CatchUp::None => books.take_as_seen(),
            CatchUp::Changed => {}
            CatchUp::All => books.look_over.everything = true,
        }
        Ok(Self { watch, books, pipeline, rescan: settings.rescan })
    }

    /// Follows the directory until it is told to stop, then finishes what is in progress.
    ///
    /// # Errors
    /// What ended it otherwise.
    pub fn run(mut self) -> Result<(), Error> {
        let vitals = Arc::clone(&self.books.vitals);
        vitals.watch.take_on(1);
        let ended = self.follow();
        vitals.enter(Phase::Stopping);
        notify::stopping();
        if matches!(ended, Ok(()) | Err(Error::DirectoryGone { .. })) {
            self.drain()?;
        }
        self.books.lines.rest();
        let Totals { files, bytes, confirmed, failed, gone, refused } = vitals.metrics.totals();
        tracing::info!(
            "stopped: {files} files and {bytes} bytes read, {confirmed} messages confirmed, {failed} failures, {gone} gone before they could be read, {refused} links refused"
        );
        vitals.watch.done(1);
        ended?;
        self.pipeline.finish()
    }

    fn follow(&mut self) -> Result<(), Error> {
        let mut root_check = Instant::now() + ROOT_CHECK;
        let mut rescan = self.rescan.map(|every| Instant::now() + every);
        loop {
            self.books.vitals.watch.get_on();
            let more = self.read_events()?;
            if self.read_letters()? {
                return Ok(());
            }
            let now = Instant::now();
            if now >= root_check {
                if !self.books.root.still_there() {
                    return Err(self.books.gone("its path leads elsewhere"));
                }
                root_check = now + ROOT_CHECK;
                self.books.tell(now);
            }
            if rescan.is_some_and(|at| now >= at) {
                self.books.vitals.metrics.look_overs.rescan.inc();
                self.books.look_over.ask_now(now);
                rescan = self.rescan.map(|every| now + every);
            }
            self.books.look_over(now)?;
            let batch = self.books.batch(self.pipeline.room().min(BATCH_MAX), now);
            let handed_out = batch.len();
            self.pipeline.submit(batch.into_iter());
            if more || handed_out == BATCH_MAX || self.books.looks_now(now) {
                continue;
            }
            let mut next = root_check;
            if self.pipeline.room() > 0 {
                next = self.books.pending.next_time().map_or(next, |time| next.min(time));
            }
            next = rescan.into_iter().chain(self.books.look_over.next_time()).fold(next, Instant::min);
            self.pipeline.mailbox.sleep(Some(self.watch.as_fd()), Some(next.saturating_duration_since(now)))?;
        }
    }

    /// Whether more may be queued.
    fn read_events(&mut self) -> Result<bool, Error> {
        for _ in 0..READS_IN_A_ROW {
            let (now, seen_at) = (Instant::now(), Stamp::now());
            let mut gone = None;
            let books = &mut self.books;
            let any = self.watch.read(|event| match event {
                Event::DirectoryGone(cause) => gone = gone.or(Some(cause)),
                event => books.take(event, seen_at, now),
            })?;
            if let Some(cause) = gone {
                return Err(self.books.gone(cause));
            }
            if !any {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether one of them says stop.
    fn read_letters(&mut self) -> Result<bool, Error> {
        let (now, time_of_day) = (Instant::now(), Stamp::now());
        while let Some(letter) = self.pipeline.next_letter() {
            match letter {
                Letter::Reports(reports) => {
                    reports.into_iter().for_each(|report| self.books.settle(report, now, time_of_day));
                }
                Letter::Failed(error) => return Err(error),
                Letter::Stop => return Ok(true),
            }
        }
        Ok(false)
    }

    /// Waits for the confirms of what is in progress; takes no more events.
    fn drain(&mut self) -> Result<(), Error> {
        let deadline = Instant::now() + STOP_PATIENCE;
        while self.pipeline.busy() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                tracing::warn!(
                    "{} files were still in progress after {} s and are left unconfirmed",
                    self.pipeline.in_flight(),
                    STOP_PATIENCE.as_secs()
                );
                break;
            }
            self.pipeline.mailbox.sleep(None, Some(left))?;
            self.read_letters()?;
        }
        Ok(())
    }
}

/// What the watch knows: pure but for looking at files and listing the directory.
struct Books {
    root: Arc<Root>,
    filter: Filter,
    directory: Arc<Directory>,
    pending: Pending,
    /// What was confirmed, or was there before us, by name.
    known: HashMap<Name, Known>,
    ledger: Option<Ledger>,
    look_over: LookOver,
    settle: Duration,
    vitals: Arc<Vitals>,
    lines: FileLines,
}

/// Where the current look-over stands.
struct LookOver {
    /// One more is needed once this one is through.
    needed: bool,
    /// Names not compared yet.
    left: vec::IntoIter<Name>,
    /// Files found other than they are known.
    found: usize,
    /// What is known counts as well: `--catch-up all`.
    everything: bool,
    /// When the last one began.
    began: Option<Instant>,
    not_before: Instant,
    pause: Duration,
}

impl LookOver {
    fn running(&self) -> bool {
        !self.left.as_slice().is_empty()
    }

    /// Asked for by an event: after a pause that grows while they keep asking.
    fn ask(&mut self, now: Instant) {
        if self.needed {
            return;
        }
        self.needed = true;
        match self.began {
            Some(began) if now.saturating_duration_since(began) <= LOOK_OVER_PAUSE_MAX => {
                self.not_before = began + self.pause;
                self.pause = (self.pause * 2).min(LOOK_OVER_PAUSE_MAX);
            }
            _ => {
                self.not_before = now;
                self.pause = LOOK_OVER_PAUSE_MIN;
            }
        }
    }

    /// Asked for by the timer.
    fn ask_now(&mut self, now: Instant) {
        self.needed = true;
        self.not_before = now;
    }

    fn next_time(&self) -> Option<Instant> {
        (self.needed && !self.running()).then_some(self.not_before)
    }
}

impl Books {
    fn new(root: Arc<Root>, filter: Filter, settle: Duration, vitals: Arc<Vitals>) -> Self {
        let directory = Arc::new(Directory::new(root.path().as_os_str().as_encoded_bytes(), b""));
        let look_over = LookOver {
            needed: false,
            left: Vec::new().into_iter(),
            found: 0,
            everything: false,
            began: None,
            not_before: Instant::now(),
            pause: LOOK_OVER_PAUSE_MIN,
        };
        Self {
            root,
            filter,
            directory,
            pending: Pending::new(settle, PENDING_MAX),
            known: HashMap::new(),
            ledger: None,
            look_over,
            settle,
            vitals,
            lines: FileLines::limited(),
        }
    }

    fn gone(&self, cause: &'static str) -> Error {
        Error::DirectoryGone { path: self.root.path().to_owned(), cause }
    }

    /// Takes one event in.
    fn take(&mut self, event: Event<'_>, seen_at: Stamp, now: Instant) {
        let events = &self.vitals.metrics.events;
        match event {
            Event::Created(name) => {
                events.created.inc();
                let name = Name::from(name);
                self.forget(&name);
                if let Some((version, regular)) = self.admit(&name) {
                    // Nothing closes a link: it is as complete as it will be.
                    let hint = if regular { Hint::Created { version: version.fingerprint() } } else { Hint::Closed };
                    self.wait(&name, hint, seen_at, now);
                }
            }
            Event::MovedTo(name) => {
                events.moved_to.inc();
                let name = Name::from(name);
                self.forget(&name);
                if self.admit(&name).is_some() {
                    self.wait(&name, Hint::MovedTo, seen_at, now);
                }
            }
            Event::Closed(name) => {
                events.closed.inc();
                let name = Name::from(name);
                let present = self.directory.update(|names| names.contains(&name)) || self.admit(&name).is_some();
                if present {
                    self.wait(&name, Hint::Closed, seen_at, now);
                }
            }
            Event::Removed(name) => {
                events.removed.inc();
                let name = Name::from(name);
                self.forget(&name);
                self.directory.update(|names| names.remove(&name));
                let replaced = self.admit(&name).is_some();
                self.pending.gone(&name, replaced);
            }
            Event::Overflow => {
                self.vitals.metrics.overflows_kernel.inc();
                if !self.look_over.needed {
                    self.vitals.metrics.look_overs.asked.inc();
                    tracing::warn!(
                        "the kernel's event queue was full and events were lost: the directory is looked over; if this repeats, raise the sysctl fs.inotify.max_queued_events"
                    );
                }
                self.look_over.ask(now);
            }
            Event::DirectoryGone(_) => {} // the caller's
        }
    }

    /// Looks at a new name and adds it to the index; nothing when it is no file (or gone).
    fn admit(&mut self, name: &Name) -> Option<(Version, bool)> {
        let (version, regular) = look(&self.root, &self.directory.below(name))?;
        if regular {
            self.directory.update(|names| names.insert(name));
        }
        Some((version, regular))
    }

    fn wait(&mut self, name: &Name, hint: Hint, seen_at: Stamp, now: Instant) {
        if !self.filter.admits(&self.directory.below(name)) {
            tracing::debug!(path = %String::from_utf8_lossy(name), "left out by the filter");
            return;
        }
        let announced = self.known.contains_key(name);
        let waiting = self.pending.len();
        if self.pending.event(name, hint, announced, seen_at, now) == Err(Full) {
            self.vitals.metrics.overflows_pending.inc();
            if !self.look_over.needed {
                self.vitals.metrics.look_overs.asked.inc();
                tracing::warn!(
                    "more than {PENDING_MAX} files wait: the list is dropped and the directory looked over when there is room"
                );
            }
            self.pending.drop_waiting();
            self.look_over.ask(now);
        } else if self.pending.len() == waiting {
            self.vitals.metrics.events_coalesced.inc();
        }
    }

    /// A batch of at most so many jobs.
    fn batch(&mut self, most: usize, now: Instant) -> Vec<Job> {
        let mut batch = Vec::new();
        while batch.len() < most {
            match self.pending.next_due(now) {
                None => break,
                Some(Due::Settled { name, version }) => {
                    let version_now = look(&self.root, &self.directory.below(&name));
                    let version_now = version_now.map(|(version, _)| version.fingerprint());
                    self.pending.settled(&name, version, version_now, now);
                }
                Some(Due::Ready { name, event, seen_at }) => {
                    let known = self.known.get(&name).copied();
                    batch.push(Job { directory: Arc::clone(&self.directory), name, event, seen_at, known });
                }
            }
        }
        batch
    }

    /// Takes a job's end in.
    fn settle(&mut self, report: Report, now: Instant, time_of_day: Stamp) {
        self.vitals.metrics.count(&report, time_of_day);
        self.lines.tell(&report, now);
        let name = &report.job.name;
        match report.outcome {
            Outcome::Confirmed { version, digests } => {
                let deleted = self.pending.done(name, now);
                if !deleted {
                    self.known.insert(Arc::clone(name), Known::new(&version, &digests));
                    if let Some(ledger) = &self.ledger {
                        ledger.confirm(self.directory.absolute(name), version, digests);
                    }
                }
            }
            Outcome::Unchanged => drop(self.pending.done(name, now)),
            Outcome::Unread(Unread::Busy) => self.pending.busy(name, now),
            Outcome::Unread(_) => drop(self.pending.failed(name, now)),
        }
    }

    /// Tells how much there is to do: once a second, for whoever asks.
    fn tell(&mut self, now: Instant) {
        let metrics = &self.vitals.metrics;
        metrics.pending_files.set(self.pending.len() as i64);
        metrics.known_files.set(self.known.len() as i64);
        let oldest = self.pending.oldest().map_or(0.0, |since| now.saturating_duration_since(since).as_secs_f64());
        metrics.oldest_pending_seconds.set(oldest);
        self.lines.overdue(now);
    }

    /// Lists the directory: the index is exactly this from now on, and every file in it is to be compared.
    ///
    /// In one go, so that no event comes in between: what is missing here is gone, or its event is still queued.
    fn list(&mut self) -> Result<(), Error> {
        let listing = list(&self.root, b"").map_err(|errno| Error::DataDirectory {
            path: self.root.path().to_owned(),
            cause: format!("it cannot be listed: {errno}"),
            next: "give this user the right to read it",
        })?;
        let present: HashSet<&Name> = listing.files.iter().map(|found| &found.name).collect();
        let gone: Vec<Name> = self.known.keys().filter(|name| !present.contains(name)).cloned().collect();
        gone.iter().for_each(|name| self.forget(name));
        self.known.shrink_to_fit();
        self.directory.update(|names| {
            *names = listing.neighbors().collect();
        });
        self.look_over.everything = false;
        self.look_over.found = 0;
        self.look_over.left = listing.files.into_iter().map(|found| found.name).collect::<Vec<_>>().into_iter();
        Ok(())
    }

    /// Takes over what the ledger knows of the listed files.
    fn recall(&mut self, mut store: Store) -> Result<(), Error> {
        let present: HashSet<Name> = self.look_over.left.as_slice().iter().cloned().collect();
        self.known = store.recall(&self.directory.absolute(b""), &present);
        tracing::info!("the ledger holds {} of {} files", self.known.len(), present.len());
        self.ledger = Some(store.serve(Arc::clone(&self.vitals))?);
        Ok(())
    }

    /// The name is gone, or another file's from now on.
    fn forget(&mut self, name: &Name) {
        if self.known.remove(name).is_some()
            && let Some(ledger) = &self.ledger
        {
            ledger.forget(self.directory.absolute(name));
        }
    }

    /// Takes the listed files as they are now for known: they were there before us.
    fn take_as_seen(&mut self) {
        for name in std::mem::take(&mut self.look_over.left) {
            if let Some((version, _)) = look(&self.root, &self.directory.below(&name)) {
                let seen = Known::seen(&version);
                let known = self.known.entry(name).or_insert(seen);
                if known.version != seen.version {
                    *known = seen;
                }
            }
        }
    }

    /// Whether a look-over can go on at once.
    fn looks_now(&self, now: Instant) -> bool {
        let room = self.pending.len() < PENDING_MAX / 2;
        room && (self.look_over.running() || self.look_over.next_time().is_some_and(|time| time <= now))
    }

    /// Begins the look-over that is needed, or goes on with the one that runs.
    fn look_over(&mut self, now: Instant) -> Result<(), Error> {
        if !self.looks_now(now) {
            return Ok(());
        }
        if !self.look_over.running() {
            self.look_over.needed = false;
            self.look_over.began = Some(now);
            self.list()?;
        }
        let seen_at = Stamp::now();
        for _ in 0..LOOKS_IN_A_ROW {
            let Some(name) = self.look_over.left.next() else { break };
            let below = self.directory.below(&name);
            if !self.filter.admits(&below) {
                continue;
            }
            let Some((version, _)) = look(&self.root, &below) else { continue };
            if self.known.get(&name).is_some_and(|known| known.version == version.fingerprint()) {
                if !self.look_over.everything {
                    continue;
                }
                self.known.remove(&name);
            }
            self.look_over.found += 1;
            if !self.pending.look_again(&name, seen_at) {
                let hint = if self.rests(&version, seen_at) {
                    Hint::Closed
                } else {
                    Hint::Changed { version: version.fingerprint() }
                };
                self.wait(&name, hint, seen_at, now);
            }
        }
        if !self.look_over.running() {
            match self.look_over.found {
                0 => tracing::debug!("the directory was looked over: nothing new"),
                found => tracing::info!("the directory was looked over: {found} files to be read"),
            }
        }
        Ok(())
    }

    /// Whether a file was last changed longer ago than the settle time. ctime, for it cannot be set.
    fn rests(&self, version: &Version, now: Stamp) -> bool {
        let settle = i64::try_from(self.settle.as_secs() + 1).unwrap_or(i64::MAX);
        now.seconds.saturating_sub(version.changed.seconds) > settle
    }
}
