//! The last outcomes of jobs, in two rings: of all, and of failures alone, which the others would push out of the first.
//!
//! The source of jobs owns them. An outcome costs it a copy of some 100 bytes and of the path, into the place of the oldest
//! one: once the ring is full, nothing is allocated.

use std::collections::VecDeque;
use std::io;

use crate::error::os_message;
use crate::files::unread::Unread;
use crate::files::version::Timestamp;
use crate::hash::Digests;
use crate::job::{Outcome, Report};

/// Outcomes that are remembered. At some 250 bytes each, with a usual path, they take 1 MB.
const OUTCOMES_MAX: usize = 1 << 12;

/// Failures that are remembered.
const FAILURES_MAX: usize = 1 << 8;

/// The longest path that is kept, in bytes: the kernel's longest (PATH_MAX) has no more. Should all paths be as long, the
/// rings take 20 MB.
const PATH_BYTES_MAX: usize = 4096;

/// How a file's last job ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Ended {
    /// The absolute path.
    pub path: Vec<u8>,
    /// When.
    pub at: Timestamp,
    /// From the event to the end, in seconds.
    pub seconds: f64,
    /// How.
    pub end: End,
}

/// How a job ended, as it is remembered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// The output has confirmed the message.
    Confirmed {
        /// The message id.
        id: u128,
        /// The number of bytes of the file.
        size: u64,
        /// The digests of its content.
        digests: Digests,
    },
    /// The file is what was confirmed last.
    Unchanged {
        /// The number of bytes of the file.
        size: u64,
        /// The digests of its content.
        digests: Digests,
    },
    /// The output has confirmed the path's removal.
    Removed,
    /// It was not there any more.
    Gone,
    /// It is neither a regular file nor a link to one.
    NotRegular,
    /// It is a link that leads out of the data directory.
    LeadsOut,
    /// It exists and cannot be read, for this reason.
    Unreadable(Box<str>),
    /// The broker has refused its message of so many bytes, in these words.
    TooLarge(usize, Box<str>),
}

impl End {
    /// How a job ended; `None` where it is tried again soon, or is about to be read.
    fn of(outcome: &Outcome) -> Option<Self> {
        Some(match outcome {
            Outcome::Confirmed { id, version, digests, .. } => {
                Self::Confirmed { id: *id, size: version.size, digests: *digests }
            }
            Outcome::Unchanged { version, digests, .. } => Self::Unchanged { size: version.size, digests: *digests },
            Outcome::Removed => Self::Removed,
            Outcome::Unread(unread) => match unread {
                Unread::Gone => Self::Gone,
                Unread::NotRegular => Self::NotRegular,
                Unread::LeadsOut => Self::LeadsOut,
                Unread::Failed(cause) => Self::Unreadable(os_message(cause).into()),
                Unread::TooLarge { bytes, answer } => Self::TooLarge(*bytes, (&**answer).into()),
                Unread::Busy(_) | Unread::StaleRow | Unread::Wanting(_) | Unread::Large | Unread::Stopped => {
                    return None;
                }
            },
        })
    }

    /// Whether somebody may want to see to it. A file that was gone is none: names of writers go all the time.
    #[must_use]
    pub fn is_failure(&self) -> bool {
        matches!(self, Self::LeadsOut | Self::Unreadable(_) | Self::TooLarge(..))
    }
}

/// See the module.
#[derive(Debug)]
pub struct Recent {
    outcomes: Ring,
    failures: Ring,
}

impl Default for Recent {
    fn default() -> Self {
        Self { outcomes: Ring::new(OUTCOMES_MAX), failures: Ring::new(FAILURES_MAX) }
    }
}

impl Recent {
    /// Remembers how a job ended, unless it goes on.
    pub fn note(&mut self, report: &Report, at: Timestamp) {
        if let Some(end) = End::of(&report.outcome) {
            let (directory, seconds) = (&report.job.directory, at.seconds_since(report.job.seen_at));
            self.add(directory.prefix(), &report.job.name, at, seconds, end);
        }
    }

    /// Remembers that a file or a directory was refused.
    pub fn refused(&mut self, path: &[u8], cause: &io::Error, at: Timestamp) {
        self.add(path, b"", at, 0.0, End::Unreadable(os_message(cause).into()));
    }

    fn add(&mut self, directory: &[u8], name: &[u8], at: Timestamp, seconds: f64, end: End) {
        if end.is_failure() {
            self.failures.add([directory, name], at, seconds, end.clone());
        }
        self.outcomes.add([directory, name], at, seconds, end);
    }

    /// The last outcomes, last first.
    #[must_use]
    pub fn outcomes(&self, most: usize) -> Vec<Ended> {
        self.outcomes.last(most)
    }

    /// The last failures, last first.
    #[must_use]
    pub fn failures(&self, most: usize) -> Vec<Ended> {
        self.failures.last(most)
    }

    /// The last outcome of a path, if it is remembered.
    #[must_use]
    pub fn of_path(&self, path: &[u8]) -> Option<&Ended> {
        let last = |ring: &'_ Ring| ring.ended.iter().rposition(|ended| ended.path == path);
        last(&self.outcomes)
            .map(|at| &self.outcomes.ended[at])
            .or_else(|| last(&self.failures).map(|at| &self.failures.ended[at]))
    }

    /// The time from which on all outcomes are remembered; `None` as long as none was forgotten.
    #[must_use]
    pub fn since(&self) -> Option<Timestamp> {
        let full = self.outcomes.ended.len() == self.outcomes.bound;
        self.outcomes.ended.front().filter(|_| full).map(|first| first.at)
    }
}

#[derive(Debug)]
struct Ring {
    /// The oldest first.
    ended: VecDeque<Ended>,
    bound: usize,
}

impl Ring {
    fn new(bound: usize) -> Self {
        Self { ended: VecDeque::new(), bound }
    }

    fn add(&mut self, [directory, name]: [&[u8]; 2], at: Timestamp, seconds: f64, end: End) {
        // The oldest one's memory for the path is used again.
        let oldest = if self.ended.len() < self.bound { None } else { self.ended.pop_front() };
        let mut path = oldest.map(|oldest| oldest.path).unwrap_or_default();
        path.clear();
        path.extend_from_slice(directory);
        path.extend_from_slice(name);
        path.truncate(PATH_BYTES_MAX);
        self.ended.push_back(Ended { path, at, seconds, end });
        debug_assert!(self.ended.len() <= self.bound, "the ring holds more than its bound");
    }

    fn last(&self, most: usize) -> Vec<Ended> {
        self.ended.iter().rev().take(most).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::tests::jobs;

    const NOW: Timestamp = Timestamp { seconds: 7, nanoseconds: 0 };

    fn note(recent: &mut Recent, count: usize, outcome: impl Fn() -> Outcome) {
        jobs(count).into_iter().for_each(|job| recent.note(&Report { job, outcome: outcome() }, NOW));
    }

    #[test]
    fn the_rings_are_bounded_and_failures_outlive_what_follows() {
        let mut recent = Recent::default();
        note(&mut recent, 1, || Outcome::Unread(Unread::LeadsOut));
        assert_eq!(recent.since(), None);
        note(&mut recent, OUTCOMES_MAX + 7, || Outcome::Removed);
        assert_eq!(recent.outcomes.ended.len(), OUTCOMES_MAX);
        assert_eq!((recent.failures(9).len(), &recent.failures(9)[0].end), (1, &End::LeadsOut));
        let last = format!("/{}", OUTCOMES_MAX + 6);
        assert_eq!(recent.outcomes(2)[0].path, last.as_bytes());
        assert_eq!(recent.of_path(last.as_bytes()).unwrap().end, End::Removed);
        assert!(recent.of_path(b"/5").is_none() && recent.since() == Some(NOW), "forgotten");
        assert_eq!(recent.of_path(b"/0").unwrap().end, End::LeadsOut, "the failures still know it");
    }

    #[test]
    fn what_goes_on_is_no_outcome_and_what_was_gone_no_failure() {
        let mut recent = Recent::default();
        for unread in [Unread::Large, Unread::Stopped, Unread::StaleRow] {
            let job = jobs(1).remove(0);
            recent.note(&Report { job, outcome: Outcome::Unread(unread) }, NOW);
        }
        assert!(recent.outcomes(9).is_empty());
        note(&mut recent, 1, || Outcome::Unread(Unread::Gone));
        assert!(recent.outcomes(9).len() == 1 && recent.failures(9).is_empty());
    }
}
