//! `scan`: publishes the files that exist now through the pipeline of `watch`, each once, and ends.

use std::collections::BTreeMap;
use std::mem;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::progress_bar::Bar;
use super::roots::{log_protections, prepare};
use super::walk::{Start, Walk};
use crate::cli::Settings;
use crate::config::Config;
use crate::dispatch::{Dispatcher, READ_TIMEOUT, STOP_LOOKS, STOP_TIMEOUT, Stages};
use crate::error::{Error, StopSignal};
use crate::files::unread::Unread;
use crate::files::version::Timestamp;
use crate::job::{Job, Outcome, Report};
use crate::logging::{FileLines, failed};
use crate::mailbox::{Notice, Reports};
use crate::metrics::Totals;
use crate::progress::Progress;
use crate::signals::{Caller, CaughtSignals};
use crate::watch::pending::BUSY_PAUSE_MIN;
use crate::{logging, pipeline};

/// The number of tries for a file that is being written, with pauses that double from [`BUSY_PAUSE_MIN`]: 2.5 s in all.
const BUSY_TRIES: u32 = 8;

const _: () = assert!(BUSY_PAUSE_MIN.as_millis() * ((1 << (BUSY_TRIES - 1)) - 1) / 100 == 25);

/// The pause before a file is tried again that could not be opened for want of descriptors or memory.
const WANT_PAUSE: Duration = Duration::from_millis(50);

/// The number of jobs that are dispatched at a time: small enough that the first is read while the last is listed.
const BATCH: usize = 256;

/// Publishes every file that is in the directories now.
///
/// # Errors
/// [`Error::Incomplete`] when some files could not be read, [`Error::Interrupted`] when a signal has ended it early, else the
/// failure that ended it.
pub fn run(settings: &Settings, dirs: &[PathBuf]) -> Result<(), Error> {
    let config = Config::for_scan(settings, dirs)?;
    logging::start(settings);
    logging::warn_of_unknown_variables();
    let roots = prepare(config.roots)?;
    log_protections(&roots);
    let signals = CaughtSignals::listen(Caller::OneShot)?;
    let progress = Arc::new(Progress::default());
    let (stages, dispatcher, sender) = pipeline::start_for_one_source(&config.pipeline, &roots, Arc::clone(&progress))?;
    signals.ask_source(sender);
    let filter = Arc::new(config.filter);
    let starts: Vec<Start> = roots.iter().map(Start::whole).collect();
    let bar = Bar::start(&starts, &filter, settings.recursive);
    let scan = Scan {
        walk: Walk::new(&starts, filter, settings.recursive),
        stages,
        dispatcher,
        progress,
        lines: FileLines::all(),
        unread: 0,
        found: 0,
        ended: 0,
        unlisted: 0,
        tries: BTreeMap::new(),
        again: BTreeMap::new(),
        next_number: 0,
        bar,
    };
    scan.run()
}

struct Scan {
    walk: Walk,
    stages: Stages,
    dispatcher: Dispatcher,
    progress: Arc<Progress>,
    lines: FileLines,
    /// The number of files that were still being written at their last try.
    unread: u64,
    /// The number of files found.
    found: u64,
    /// The number of those whose last report has come.
    ended: u64,
    /// The number of directories that could not be listed.
    unlisted: u64,
    /// How often each file that is being written was tried, by its absolute path.
    tries: BTreeMap<Vec<u8>, u32>,
    /// Files to try again, by their time. A number keeps those of one time apart.
    again: BTreeMap<(Instant, u64), Job>,
    next_number: u64,
    bar: Bar,
}

impl Scan {
    fn run(mut self) -> Result<(), Error> {
        let began = Instant::now();
        let worked = self.work();
        self.bar.end();
        let seconds = began.elapsed().as_secs_f64();
        let finished = if worked.is_ok() { self.stages.finish(&mut self.dispatcher.mailbox) } else { Ok(()) };
        // Whatever has ended the scan, the reports in the mailbox count.
        let rest = self.read_rest();
        let how = match &worked {
            Ok(None) => "done",
            Err(error) if !error.is_reader_gone() => "failed before the end",
            Ok(Some(_)) | Err(_) => "stopped before the end",
        };
        // What has ended it comes before the totals, which are the last line of every run.
        let ended = worked.and_then(|signal| finished.and(rest).and_then(|()| self.outcome(signal))).map_err(failed);
        self.log_totals(how, seconds);
        // The process ends here, and freeing the names of a large directory one by one would only delay it.
        mem::forget(self.walk);
        ended
    }

    /// The outcome of a scan that no stage's failure has ended.
    fn outcome(&self, signal: Option<StopSignal>) -> Result<(), Error> {
        if let Some(signal) = signal {
            return Err(Error::Interrupted {
                signal,
                left: format!("{} files without a message are left", self.left()),
            });
        }
        match self.failures() {
            0 => Ok(()),
            failed => Err(Error::Incomplete { failed, total: self.found + self.unlisted }),
        }
    }

    fn log_totals(&self, how: &str, seconds: f64) {
        let Totals { files, bytes, confirmed, refused, .. } = self.progress.metrics.totals();
        tracing::info!(
            event = "scan_finished",
            outcome = how,
            files,
            bytes,
            seconds,
            confirmed,
            left = self.found - self.ended,
            failed = self.failures(),
            refused,
            "{how}: {files} files and {bytes} bytes in {seconds:.3} s ({:.0} files/s, {:.1} MB/s), {confirmed} messages confirmed, {} left unpublished, {} failures, {refused} links refused",
            files as f64 / seconds,
            bytes as f64 / seconds / 1e6,
            self.left(),
            self.failures(),
        );
    }

    /// The number of files without a message so far, in words: not all need have been found.
    fn left(&self) -> String {
        let left = self.found - self.ended;
        if self.walk.is_through() { left.to_string() } else { format!("at least {left}") }
    }

    fn failures(&self) -> u64 {
        self.progress.metrics.totals().failed + self.unread + self.unlisted
    }

    /// Dispatches and waits until every file has its report. Returns the signal that ended it before that.
    fn work(&mut self) -> Result<Option<StopSignal>, Error> {
        loop {
            let stopped = self.read_notices()?;
            if self.walk.is_through() && !self.dispatcher.busy() && self.again.is_empty() {
                return Ok(None);
            }
            if let Some(signal) = stopped {
                tracing::info!(
                    event = "stopping",
                    %signal,
                    "{signal}: files in progress are finished; a second signal ends at once"
                );
                self.drain()?;
                return Ok(Some(signal));
            }
            if self.fill() {
                continue;
            }
            let next = self.again.first_key_value().map(|((at, _), _)| *at);
            if self.dispatcher.busy() || next.is_some() {
                let longest = next.map(|at| at.saturating_duration_since(Instant::now()));
                self.dispatcher.mailbox.sleep(None, longest, Reports::Wake)?;
            }
        }
    }

    /// Acts on the notices in the mailbox. Returns the signal, if one of them is a signal's.
    fn read_notices(&mut self) -> Result<Option<StopSignal>, Error> {
        let mut stopped = None;
        while let Some(notice) = self.dispatcher.next_notice() {
            match notice {
                Notice::Reports(reports) => reports.into_iter().for_each(|report| self.finish_job(report)),
                Notice::Failed(error) => return Err(error),
                Notice::Stop(signal) => stopped = Some(signal),
                Notice::Rescan | Notice::Asked(_) | Notice::Leave | Notice::Ended => {} // for a service alone
            }
        }
        Ok(stopped)
    }

    /// Reads all that is in the mailbox, also behind a failure. Returns the first failure.
    fn read_rest(&mut self) -> Result<(), Error> {
        let mut first = Ok(());
        while let Err(error) = self.read_notices() {
            first = first.and(Err(error));
        }
        first
    }

    /// Waits for the confirms of what is in flight, except for messages that only wait until a queue is bound.
    fn drain(&mut self) -> Result<(), Error> {
        let began = Instant::now();
        let mut reading = Some(began + READ_TIMEOUT);
        self.dispatcher.begin_no_more();
        while self.dispatcher.busy() && !self.stages.wait_for_a_queue() && began.elapsed() < STOP_TIMEOUT {
            if reading.take_if(|until| Instant::now() >= *until).is_some() {
                self.stages.read_no_more();
            }
            self.dispatcher.mailbox.sleep(None, Some(STOP_LOOKS), Reports::Wake)?;
            self.read_notices()?;
        }
        Ok(())
    }

    /// Dispatches the next batch; `false` when there is none now.
    fn fill(&mut self) -> bool {
        let room = self.dispatcher.room();
        // Adding single jobs would cost a wake-up each.
        if room < BATCH && self.dispatcher.busy() {
            return false;
        }
        let most = room.min(BATCH);
        let mut batch = Vec::with_capacity(most);
        let now = Instant::now();
        while batch.len() < most {
            if let Some(due) = self.again.first_entry().filter(|first| first.key().0 <= now) {
                batch.push(due.remove());
            } else if let Some(job) = self.walk.next(&mut self.unlisted) {
                self.found += 1;
                batch.push(job);
            } else {
                break;
            }
        }
        let any = !batch.is_empty();
        self.dispatcher.submit(batch);
        any
    }

    fn try_again(&mut self, job: Job, pause: Duration) {
        self.next_number += 1;
        let other = self.again.insert((Instant::now() + pause, self.next_number), job);
        debug_assert!(other.is_none(), "a number is given once");
    }

    fn finish_job(&mut self, report: Report) {
        self.progress.metrics.count(&report, Timestamp::now());
        self.lines.log(&report, Instant::now());
        if let Outcome::Confirmed { version, .. } = report.outcome {
            self.bar.advance(version.size);
        }
        match report.outcome {
            Outcome::Unread(Unread::Busy(_)) => {}
            // The want passes when other files have been read, so the number of tries has no bound.
            Outcome::Unread(Unread::Wanting(_)) => return self.try_again(report.job, WANT_PAUSE),
            Outcome::Unread(Unread::Stopped) => return,
            _ => return self.ended += 1,
        }
        let path = report.job.directory.absolute(&report.job.name);
        let tries = self.tries.entry(path.clone()).or_insert(0);
        *tries += 1;
        if *tries < BUSY_TRIES {
            let pause = BUSY_PAUSE_MIN * 2u32.pow(*tries - 1);
            self.try_again(report.job, pause);
        } else {
            self.unread += 1;
            self.ended += 1;
            let path = String::from_utf8_lossy(&path);
            tracing::warn!(
                event = "busy",
                path = &*path,
                "{path:?} is being written and was not read; scan again later"
            );
        }
    }
}
