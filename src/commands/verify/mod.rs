//! `verify`: compares the disk with the ledger, while the service runs or while it does not, and changes nothing.

mod judge;
mod totals;

use std::collections::HashMap;
use std::ffi::{CString, OsStr};
use std::mem;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use judge::{Judged, judge};
use rustix::fs::stat;
use totals::{Kind, Totals};

use super::progress_bar::Bar;
use super::roots::prepare;
use super::walk::{Start, Walk};
use crate::cli::{Output, Settings};
use crate::config::Config;
use crate::dispatch::{Dispatcher, Stages};
use crate::error::{Error, StopSignal, named, os_message};
use crate::files::listing::{FileStat, look, target_of};
use crate::files::root::{Root, open_root};
use crate::files::unread::Unread;
use crate::files::version::{Timestamp, Version, version_of};
use crate::filter::Filter;
use crate::hash::Digests;
use crate::inquiry::Row;
use crate::job::{Job, Outcome, Report};
use crate::ledger::snapshot::Snapshot;
use crate::mailbox::{Notice, Reports};
use crate::signals::{Caller, CaughtSignals};
use crate::{logging, pipeline};

/// Files that are compared between two looks whether a signal has come, and jobs that are dispatched at a time.
const BATCH: usize = 256;

/// Files in flight at most. It bounds what is kept of large files, each of which leaves its room to small ones.
const IN_FLIGHT_MAX: usize = 16 * BATCH;

/// The pause before a file is read again that there was no descriptor or memory for.
const PAUSE: Duration = Duration::from_millis(50);

/// Rows between two looks whether a signal has come.
const ROWS_BETWEEN_LOOKS: u64 = 1024;

/// How to compare.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Read each file whose row has digests, too.
    pub content: bool,
    /// What has changed within so many seconds before the ledger was copied, or since, is not judged.
    pub grace: u32,
    /// Print JSON.
    pub json: bool,
}

/// Compares each file with its row, and each row with its file.
///
/// # Errors
/// [`Error::Differs`] when something differs or cannot be read; [`Error::StateDirectory`] without a ledger;
/// [`Error::Interrupted`] when a signal has ended it early.
pub fn run(settings: &Settings, directory: Option<&Path>, options: &Options) -> Result<(), Error> {
    let config = Config::for_scan(settings, &[])?;
    logging::start(settings);
    logging::warn_of_unknown_variables();
    let no_ledger =
        || Error::usage("--state-dir (STATE_DIRECTORY): there is no ledger to compare with", "name the service's");
    let state = settings.state_dir.as_deref().ok_or_else(no_ledger)?;
    let below = scope(&config.roots, directory)?;
    let signals = CaughtSignals::listen(Caller::OneShot)?;
    let snapshot = Snapshot::take(state)?;
    if snapshot.behind {
        tracing::warn!(
            event = "ledger_behind",
            path = &*state.to_string_lossy(),
            "the ledger in {state:?} holds rows that ought to be deleted, because its disk was full: published files may be shown as changed"
        );
    }
    let roots = prepare(config.roots)?;
    let starts = starts(&roots, below);
    let filter = Arc::new(config.filter);
    let mut pipeline = config.pipeline;
    pipeline.output = Output::None;
    let (stages, dispatcher, sender) = pipeline::start_for_one_source(&pipeline, &roots, Arc::default())?;
    signals.ask_source(sender);
    let verify = Verify {
        walk: Walk::new(&starts, Arc::clone(&filter), settings.recursive),
        bar: Bar::start(&starts, &filter, settings.recursive),
        scope: Scope { starts, filter, recursive: settings.recursive },
        early: Timestamp { seconds: snapshot.at.seconds.saturating_sub(options.grace.into()), ..snapshot.at },
        snapshot,
        stages,
        dispatcher,
        content: options.content,
        expected: HashMap::new(),
        again: Vec::new(),
        totals: Totals::new(options.json),
    };
    verify.run()
}

/// The path of a data directory, and what is compared of it: the path below it.
type Part = (PathBuf, Vec<u8>);

/// Which part of which data directory is compared where one was named. It is compared as a part, so that the globs mean the
/// same.
///
/// # Errors
/// [`Error::Usage`]: it is in no data directory, so that the ledger has nothing of it. [`Error::DataDirectory`]: it cannot be
/// opened.
fn scope(roots: &[Root], directory: Option<&Path>) -> Result<Option<Part>, Error> {
    let Some(directory) = directory else { return Ok(None) };
    let own = open_root(directory)?;
    let below = |root: &Root| Some((root.path().to_owned(), own.path().strip_prefix(root.path()).ok()?.to_owned()));
    let Some((root, below)) = roots.iter().find_map(below) else {
        let watched = named(roots.iter().map(Root::path));
        return Err(Error::usage(
            format!("{directory:?} is no data directory, nor does it lie in one: nothing of it is published"),
            format!("name one in {watched}, or set DATA_DIRECTORY (--data-dir) as it is set for the service"),
        ));
    };
    Ok(Some((root, below.into_os_string().into_encoded_bytes())))
}

fn starts(roots: &[Arc<Root>], part: Option<Part>) -> Vec<Start> {
    match part {
        None => roots.iter().map(Start::whole).collect(),
        Some((path, below)) => {
            let root = roots.iter().filter(|root| root.path() == path);
            root.map(|root| Start { root: Arc::clone(root), below: below.clone() }).collect()
        }
    }
}

/// Which paths are compared.
struct Scope {
    starts: Vec<Start>,
    filter: Arc<Filter>,
    recursive: bool,
}

impl Scope {
    /// The root of an absolute path and the path below it, if it is compared.
    fn find<'a>(&self, path: &'a [u8]) -> Option<(&Root, &'a [u8])> {
        self.starts.iter().find_map(|Start { root, below }| {
            let under = |path: &'a [u8], above: &[u8]| match above {
                b"" | b"/" => Some(path.strip_prefix(b"/").unwrap_or(path)),
                above => path.strip_prefix(above)?.strip_prefix(b"/"),
            };
            let from_root = under(path, root.path().as_os_str().as_encoded_bytes())?;
            let from_start = under(from_root, below)?;
            let deep = from_start.contains(&b'/');
            ((self.recursive || !deep) && self.filter.admits(from_root)).then_some((&**root, from_root))
        })
    }
}

/// What a file's content is to be.
struct Expected {
    version: Version,
    digests: Digests,
    /// The row is of exactly this version, and no change can have left the version as it is: so another content is no change
    /// that anybody made.
    same_version: bool,
}

struct Verify {
    walk: Walk,
    scope: Scope,
    snapshot: Snapshot,
    stages: Stages,
    dispatcher: Dispatcher,
    content: bool,
    /// What has changed from this time on is not judged.
    early: Timestamp,
    /// By path, of the files in flight.
    expected: HashMap<Vec<u8>, Expected>,
    /// Files to be read again.
    again: Vec<Job>,
    totals: Totals,
    bar: Bar,
}

impl Verify {
    fn run(mut self) -> Result<(), Error> {
        let worked = self.compare_files().and_then(|stopped| match stopped {
            None => self.compare_rows(),
            stopped => Ok(stopped),
        });
        self.bar.end();
        if let Ok(stopped) = worked {
            if stopped.is_some() {
                self.stages.read_no_more();
            }
            self.stages.finish(&mut self.dispatcher.mailbox)?;
        }
        if let Some(signal) = worked? {
            return Err(Error::Interrupted { signal, left: "not everything was compared".to_owned() });
        }
        self.totals.print()?;
        // The process ends here, and to free the names of a large directory one by one would only delay it.
        mem::forget(self.walk);
        match self.totals.differ() {
            0 => Ok(()),
            differ => Err(Error::Differs { differ, files: self.totals.files }),
        }
    }

    /// Walks the directories. Returns the signal that has ended it early.
    fn compare_files(&mut self) -> Result<Option<StopSignal>, Error> {
        loop {
            if let Some(signal) = self.read_notices()? {
                return Ok(Some(signal));
            }
            if !self.again.is_empty() {
                self.dispatcher.mailbox.sleep(None, None, Reports::Leave(PAUSE))?;
            }
            if self.fill()? {
                continue;
            }
            if !self.dispatcher.busy() {
                return Ok(None);
            }
            self.dispatcher.mailbox.sleep(None, None, Reports::Wake)?;
        }
    }

    /// Compares some files, and dispatches those to be read. Returns whether there were any.
    fn fill(&mut self) -> Result<bool, Error> {
        let in_flight = self.dispatcher.in_flight();
        let room = self.dispatcher.room().min(IN_FLIGHT_MAX.saturating_sub(in_flight)).min(BATCH);
        // Adding single jobs would cost a wake-up each.
        if room < BATCH && in_flight > 0 {
            return Ok(false);
        }
        let mut batch: Vec<Job> = self.again.drain(..room.min(self.again.len())).collect();
        let mut any = !batch.is_empty();
        for _ in batch.len()..room {
            let Some(job) = self.walk.next(&mut self.totals.unlisted) else { break };
            any = true;
            batch.extend(self.compare(job)?);
        }
        self.dispatcher.submit(batch);
        Ok(any)
    }

    /// Compares a file with its row. Returns its job where its content is to be read, too.
    fn compare(&mut self, job: Job) -> Result<Option<Job>, Error> {
        let (root, below) = (job.directory.root(), job.directory.below(&job.name));
        let version = match look(root, &below) {
            Ok(Some(FileStat { regular: true, version, .. })) => Some(version),
            // A link that leads nowhere has no message.
            Ok(Some(_)) => target_of(root, &below),
            Ok(None) => None,
            Err(errno) => {
                self.totals.note(Kind::Unreadable, &job.directory.absolute(&job.name), Some(os_message(&errno)))?;
                None
            }
        };
        let Some(version) = version else { return Ok(None) };
        let path = job.directory.absolute(&job.name);
        let confirmed = self.snapshot.row(&path)?;
        let row = confirmed.map(|row| row.shown(&path));
        let judged = judge(row.as_ref(), &version, self.early);
        if matches!(judged, Judged::Differs(_)) && leads_out(root, &below) {
            self.totals.lead_out += 1;
            return Ok(None);
        }
        self.totals.files += 1;
        self.totals.bytes += version.size;
        match judged {
            Judged::Early => self.totals.early += 1,
            Judged::Differs(kind) => self.totals.note(kind, &path, None)?,
            Judged::Same { same_version } => {
                let digests = row.and_then(|row: Row| row.digests);
                if let (true, Some(digests)) = (self.content, digests) {
                    let same_version = same_version && confirmed.is_some_and(|row| !row.is_racy());
                    self.expected.insert(path, Expected { version, digests, same_version });
                    return Ok(Some(job));
                }
                self.totals.same += 1;
            }
        }
        self.bar.advance(version.size);
        Ok(None)
    }

    /// Acts on the notices in the mailbox. Returns the signal, if one of them is a signal's.
    fn read_notices(&mut self) -> Result<Option<StopSignal>, Error> {
        let mut stopped = None;
        while let Some(notice) = self.dispatcher.next_notice() {
            match notice {
                Notice::Reports(reports) => reports.into_iter().try_for_each(|report| self.read(report))?,
                Notice::Failed(error) => return Err(error),
                Notice::Stop(signal) => stopped = Some(signal),
                Notice::Rescan | Notice::Asked(_) | Notice::Leave | Notice::Ended => {}
            }
        }
        Ok(stopped)
    }

    /// Compares the content that was read with what was confirmed.
    fn read(&mut self, Report { job, outcome }: Report) -> Result<(), Error> {
        if let Outcome::Unread(Unread::Wanting(_)) = outcome {
            self.again.push(job);
            return Ok(());
        }
        let path = job.directory.absolute(&job.name);
        let Some(Expected { version: before, digests: confirmed, same_version }) = self.expected.remove(&path) else {
            return Ok(());
        };
        self.bar.advance(before.size);
        match outcome {
            Outcome::Confirmed { version, digests, .. } if version == before && digests == confirmed => {
                self.totals.same += 1;
            }
            Outcome::Confirmed { version, digests, .. } if version == before => {
                let kind = if same_version { Kind::Content } else { Kind::Changed };
                let cause = format!("its SHA-256 was {} and is {}", confirmed.sha256_hex(), digests.sha256_hex());
                self.totals.note(kind, &path, Some(cause))?;
            }
            Outcome::Unread(Unread::Failed(cause)) => {
                self.totals.note(Kind::Unreadable, &path, Some(os_message(&cause)))?;
            }
            // It is written, or has changed or gone, while this runs.
            _ => self.totals.early += 1,
        }
        Ok(())
    }

    /// Looks for the file of each row. Returns the signal that has ended it early.
    fn compare_rows(&mut self) -> Result<Option<StopSignal>, Error> {
        let (mut rows, mut stopped) = (0, None);
        let Self { snapshot, scope, totals, dispatcher, early, .. } = self;
        snapshot.each(|path, _| {
            rows += 1;
            if rows % ROWS_BETWEEN_LOOKS == 0 {
                match dispatcher.next_notice() {
                    Some(Notice::Stop(signal)) => stopped = Some(signal),
                    Some(Notice::Failed(error)) => return Err(error),
                    _ => {}
                }
            }
            let Some((root, below)) = scope.find(path).filter(|_| stopped.is_none()) else { return Ok(()) };
            match look(root, below) {
                Ok(Some(_)) => Ok(()),
                Ok(None) if changed_since(path, *early) => {
                    totals.early += 1;
                    Ok(())
                }
                Ok(None) => totals.note(Kind::Gone, path, None),
                Err(errno) => totals.note(Kind::Unreadable, path, Some(os_message(&errno))),
            }
        })?;
        Ok(stopped)
    }
}

/// Whether the service refuses to read what is at a path: a link out of the data directory, or a file of another file system.
/// It is asked only of what differs, because it opens the file.
fn leads_out(root: &Root, below: &[u8]) -> bool {
    CString::new(below).is_ok_and(|below| matches!(root.open_file(&below), Err(Unread::LeadsOut)))
}

/// Whether names came or went since then in the directory of a path, or in the next one above it that is still there.
fn changed_since(path: &[u8], early: Timestamp) -> bool {
    let above = Path::new(OsStr::from_bytes(path)).ancestors().skip(1).find_map(|above| stat(above).ok());
    // The time of the last change of anything, because who copies trees sets the other one back.
    above.is_some_and(|above| judge::is_early(version_of(&above).changed, early))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_path_is_compared_where_the_service_would_publish_it() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().canonicalize().unwrap();
        fs::create_dir_all(real.join("sub/deep")).unwrap();
        let roots = vec![open_root(&real).unwrap()];
        assert_eq!(scope(&roots, None).unwrap(), None);
        assert_eq!(scope(&roots, Some(&real)).unwrap(), Some((real.clone(), Vec::new())));
        let part = scope(&roots, Some(&real.join("sub"))).unwrap();
        let other = tempfile::tempdir().unwrap();
        for not_in_one in [other.path(), Path::new("/")] {
            let error = scope(&roots, Some(not_in_one)).unwrap_err();
            let named = error.to_string().contains(&format!("{not_in_one:?}"))
                && error.to_string().contains(&format!("{real:?}"));
            assert!(named && error.exit_status() == 2, "{error}");
        }
        let roots: Vec<Arc<Root>> = roots.into_iter().map(Arc::new).collect();
        let filter = Arc::new(Filter::new(&[], &["*.tmp".into()], false).unwrap());
        let within = |recursive, part: Option<Part>, name: &str| {
            let scope = Scope { starts: starts(&roots, part), filter: Arc::clone(&filter), recursive };
            let path = real.join(name);
            scope.find(path.as_os_str().as_encoded_bytes()).map(|(_, below)| below.to_vec())
        };
        assert_eq!(within(true, part.clone(), "sub/deep/a"), Some(b"sub/deep/a".to_vec()));
        assert_eq!(within(false, part.clone(), "sub/deep/a"), None);
        assert_eq!(within(false, part.clone(), "sub/a"), Some(b"sub/a".to_vec()));
        assert!(within(true, part.clone(), "a").is_none() && within(true, part, "subs/a").is_none());
        assert!(within(false, None, "a").is_some() && within(true, None, "a.tmp").is_none());
    }
}
