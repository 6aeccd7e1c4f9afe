//! What people ask of single files: a question to the sources of jobs, their answers, and the outcomes that they remember.
//!
//! A source owns all that an answer is made of, and answers between two rounds of its loop. So nothing is locked, and
//! nothing is collected while nobody asks, but for the ring of outcomes ([`recent`]).

pub mod recent;

use std::cmp::Reverse;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::files::version::Version;
use crate::hash::Digests;
use crate::job::Known;
use recent::Ended;

/// Entries of each list of an answer at most: more than anybody reads. The counts beside the lists are of all.
pub const LISTED_MAX: usize = 50;

/// A question to a source of jobs.
#[derive(Debug)]
pub struct Question {
    /// The absolute path of a file, if one is asked for.
    pub path: Option<Vec<u8>>,
    /// When it was asked.
    pub asked: Instant,
    /// Where the answer goes.
    pub reply: oneshot::Sender<Answer>,
}

/// What the source knows at one moment.
#[derive(Debug, Default)]
pub struct Answer {
    /// Files between their first event and their confirm.
    pub pending: usize,
    /// The oldest of them, oldest first, [`LISTED_MAX`] at most.
    pub waiting: Vec<Waiting>,
    /// Files and directories that exist and cannot be read now.
    pub refused: usize,
    /// The longest refused among them, [`LISTED_MAX`] at most.
    pub refusals: Vec<Refusal>,
    /// Directories that exist and have no watch, because the kernel refused one.
    pub unwatched: usize,
    /// Paths of some of them, [`LISTED_MAX`] at most.
    pub unwatched_paths: Vec<Vec<u8>>,
    /// What the kernel said about the last of them.
    pub unwatched_cause: Option<String>,
    /// The last outcomes, last first, [`LISTED_MAX`] at most.
    pub recent: Vec<Ended>,
    /// The last failures, last first, [`LISTED_MAX`] at most.
    pub failures: Vec<Ended>,
    /// What became of the path that was asked for.
    pub file: Option<FileAnswer>,
}

impl Answer {
    /// Adds what the source of another volume knows.
    pub fn add(&mut self, other: Self) {
        self.pending += other.pending;
        merge(&mut self.waiting, other.waiting, |waiting| waiting.age);
        self.refused += other.refused;
        merge(&mut self.refusals, other.refusals, |refusal| refusal.age);
        self.unwatched += other.unwatched;
        self.unwatched_paths.extend(other.unwatched_paths);
        self.unwatched_paths.truncate(LISTED_MAX);
        self.unwatched_cause = self.unwatched_cause.take().or(other.unwatched_cause);
        merge(&mut self.recent, other.recent, |ended| ended.at);
        merge(&mut self.failures, other.failures, |ended| ended.at);
        if let Some(file) = other.file.filter(|file| file.place != Place::Outside) {
            self.file = Some(file);
        }
    }
}

/// Adds entries to a list that has those with the largest key first.
fn merge<T, K: Ord>(list: &mut Vec<T>, more: Vec<T>, key: impl Fn(&T) -> K) {
    list.extend(more);
    list.sort_by_key(|entry| Reverse(key(entry)));
    list.truncate(LISTED_MAX);
}

/// A file that waits for its message's confirm.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// Its absolute path.
    pub path: Vec<u8>,
    /// The number of its volume.
    pub volume: usize,
    /// The time since its first event.
    pub age: Duration,
    /// What it waits for.
    pub held: Held,
}

/// What a file waits for, as far as the source knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// It was created and not closed: it counts as complete once it has not changed for the settle time.
    Settling,
    /// It was closed or renamed, and is to stay unchanged for the quiet time.
    Quiet,
    /// A process has it open for writing.
    Writer,
    /// It changed while it was read, or its name or directory led to another file: it is read again soon.
    Changing,
    /// The service had no descriptor or no memory for it.
    Wanting,
    /// The ledger's row of what the path held before is being deleted first.
    Row,
    /// It is due, and as many files are in flight as there may be.
    Room,
    /// It is being read, or its message is not confirmed yet.
    InFlight,
}

/// A file or a directory that exists and cannot be read now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Its absolute path.
    pub path: Vec<u8>,
    /// It is a directory.
    pub directory: bool,
    /// The time since it was refused first.
    pub age: Duration,
    /// What the kernel said.
    pub cause: String,
}

/// What the source knows of one path.
#[derive(Debug)]
pub struct FileAnswer {
    /// Where the path stands.
    pub place: Place,
    /// What is known of the file at that place.
    pub known: Option<Known>,
    /// The last outcome that is remembered of the path.
    pub last: Option<Ended>,
    /// Since when outcomes are remembered; `None` where none was forgotten yet.
    pub since: Option<crate::files::version::Timestamp>,
    /// The ledger's row, once its thread has looked it up; `None` without a ledger.
    pub row: Option<oneshot::Receiver<Option<Row>>>,
}

/// Where a path stands.
#[derive(Debug, PartialEq, Eq)]
pub enum Place {
    /// In none of the data directories.
    Outside,
    /// In a sub-directory, and none is watched.
    NotRecursive,
    /// The filter leaves it out, for this reason.
    LeftOut(String),
    /// It waits.
    Waiting(Waiting),
    /// It cannot be read now.
    Refused(Refusal),
    /// It is in a directory that the source does not know, or not yet.
    UnknownDirectory,
    /// Nothing is to be done for it.
    Idle,
}

/// The ledger's row of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// The version of the file; of a row that counts for no version only the size is known.
    pub version: Version,
    /// The digests of its content; `None` for a file that was there before the service.
    pub digests: Option<Digests>,
    /// The id of its message, if it is known.
    pub id: Option<u128>,
    /// The row says what the last message was, and no version counts as published any more.
    pub void: bool,
}
