//! Files in the answer to `GET /status`: what each waits for, how it ended, what became of the one that was asked for.

use chrono::{DateTime, SecondsFormat, Utc};
use percent_encoding::{AsciiSet, CONTROLS, percent_encode};
use rustix::fs::{FileType, stat};
use rustix::io::Errno;
use serde::Serialize;

use crate::error::os_message;
use crate::files::version::{Timestamp, Version, version_of};
use crate::hash::Digests;
use crate::inquiry::recent::{End, Ended};
use crate::inquiry::{FileAnswer, Place, Refusal, Row};

/// What is percent-encoded in the path of a query, beside bytes that are not ASCII.
const ESCAPED: &AsciiSet =
    &CONTROLS.add(b' ').add(b'"').add(b'#').add(b'%').add(b'&').add(b'+').add(b'<').add(b'>').add(b'?').add(b'`');

/// A path for the query of `GET /status?path=`: percent-encoded, byte for byte.
#[must_use]
pub fn encoded(path: &[u8]) -> String {
    percent_encode(path, ESCAPED).to_string()
}

/// A path in JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ShownPath {
    /// The absolute path; U+FFFD stands for what is not UTF-8.
    pub path: String,
    /// The same, percent-encoded byte for byte, where it is not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path_encoded: Option<String>,
}

impl ShownPath {
    /// From the bytes of a path.
    #[must_use]
    pub fn of(path: &[u8]) -> Self {
        let is_text = str::from_utf8(path).is_ok();
        Self { path: String::from_utf8_lossy(path).into_owned(), path_encoded: (!is_text).then(|| encoded(path)) }
    }
}

/// A point in time as answers show it: UTC, to the millisecond.
#[must_use]
pub fn shown_time(stamp: Timestamp) -> String {
    let utc = DateTime::<Utc>::from_timestamp(stamp.seconds, stamp.nanoseconds).unwrap_or(DateTime::<Utc>::MAX_UTC);
    utc.to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// A process that has a file open for writing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OpenBy {
    /// The process id.
    pub pid: u32,
    /// The name of its program.
    pub command: String,
}

/// A file that waits.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WaitingFile {
    /// Its path.
    #[serde(flatten)]
    pub path: ShownPath,
    /// The time since its first event.
    pub seconds: f64,
    /// What it waits for, as a word.
    pub reason: &'static str,
    /// The same as a sentence.
    pub why: String,
    /// The processes that have it open for writing, as far as the service may know.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub open_by: Vec<OpenBy>,
}

/// A large file that is being read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reading {
    /// Its path.
    #[serde(flatten)]
    pub path: ShownPath,
    /// The bytes that were read so far.
    pub bytes: u64,
    /// The bytes that it has.
    pub of_bytes: u64,
}

/// A file or a directory that exists and cannot be read now.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RefusedFile {
    /// Its path.
    #[serde(flatten)]
    pub path: ShownPath,
    /// It is a directory.
    pub directory: bool,
    /// The time since it was refused first.
    pub seconds: f64,
    /// What the kernel said.
    pub error: String,
}

impl From<Refusal> for RefusedFile {
    fn from(Refusal { path, directory, age, cause }: Refusal) -> Self {
        Self { path: ShownPath::of(&path), directory, seconds: age.as_secs_f64(), error: cause }
    }
}

/// How a file's job ended.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EndedFile {
    /// Its path.
    #[serde(flatten)]
    pub path: ShownPath,
    /// When.
    pub time: String,
    /// How, as a word.
    pub outcome: &'static str,
    /// From the event to the end.
    pub seconds: f64,
    /// What its message or its content is.
    #[serde(flatten)]
    pub said: Said,
    /// What was wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// What the last message said, as far as it is known.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Said {
    /// The message id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message_id: Option<String>,
    /// The number of bytes of the file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// As in the message.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256_hash: Option<String>,
    /// As in the message.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub xxh128_hash: Option<String>,
}

impl Said {
    fn of(id: Option<u128>, size: u64, digests: Option<&Digests>) -> Self {
        Self {
            message_id: id.map(|id| format!("{id:032x}")),
            bytes: Some(size),
            sha256_hash: digests.map(Digests::sha256_hex),
            xxh128_hash: digests.map(|digests| format!("{:032x}", digests.xxh128)),
        }
    }
}

impl From<&Ended> for EndedFile {
    fn from(Ended { path, at, seconds, end }: &Ended) -> Self {
        let (outcome, said, error) = match end {
            End::Confirmed { id, size, digests } => ("confirmed", Said::of(Some(*id), *size, Some(digests)), None),
            End::Unchanged { size, digests } => ("unchanged", Said::of(None, *size, Some(digests)), None),
            End::Removed => ("removed", Said::default(), None),
            End::Gone => ("gone", Said::default(), None),
            End::NotRegular => ("not_regular", Said::default(), None),
            End::LeadsOut => ("leads_out", Said::default(), Some("it leads out of the data directory".to_owned())),
            End::Unreadable(cause) => ("unreadable", Said::default(), Some(cause.to_string())),
            End::TooLarge(bytes, answer) => {
                let error = format!("the broker refuses its message of {bytes} bytes: {answer}");
                ("too_large", Said::default(), Some(error))
            }
        };
        Self { path: ShownPath::of(path), time: shown_time(*at), outcome, seconds: *seconds, said, error }
    }
}

/// What became of the file that was asked for.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FileStatus {
    /// Its path.
    #[serde(flatten)]
    pub path: ShownPath,
    /// What became of it, as a word.
    pub fate: &'static str,
    /// The same as a sentence.
    pub line: String,
    /// The file waits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waiting: Option<WaitingFile>,
    /// The last outcome that the service remembers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last: Option<EndedFile>,
    /// What the ledger says that its last message was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ledger: Option<Said>,
}

/// What is at a path now.
#[derive(Debug)]
pub enum OnDisk {
    /// A regular file, or what a link leads to.
    File(Version),
    /// Nothing.
    Nothing,
    /// Something else, in words.
    Other(&'static str),
    /// It cannot be seen, for this reason.
    Unseen(String),
}

impl OnDisk {
    /// Looks. The caller can be held up by the file system for any time.
    #[must_use]
    pub fn look(path: &[u8]) -> Self {
        match stat(path) {
            Ok(file) => match FileType::from_raw_mode(file.st_mode) {
                FileType::RegularFile => Self::File(version_of(&file)),
                other => Self::Other(kind(other)),
            },
            Err(Errno::NOENT) => Self::Nothing,
            Err(errno) => Self::Unseen(os_message(&errno)),
        }
    }
}

fn kind(kind: FileType) -> &'static str {
    match kind {
        FileType::Directory => "a directory",
        FileType::Fifo => "a FIFO",
        FileType::Socket => "a socket",
        _ => "a device",
    }
}

/// The word and the sentence for a path where nothing is to be done.
fn idle(answer: &FileAnswer, row: Option<&Row>, disk: &OnDisk) -> (&'static str, String) {
    let last = answer.last.as_ref().map(|last| (EndedFile::from(last), last.end.is_failure()));
    let changed = match (disk, answer.known) {
        (OnDisk::File(version), Some(known)) => !known.may_be(version),
        _ => false,
    };
    match (disk, &last, answer.known, row) {
        (OnDisk::Other(kind), ..) => ("not_a_file", format!("it is {kind}, which is never published")),
        // What was confirmed since is known for longer than outcomes are remembered.
        (_, Some((last, true)), known, _) if known.is_none() || changed => {
            ("failed", format!("it failed at {}: {}", last.time, last.error.as_deref().unwrap_or(last.outcome)))
        }
        (OnDisk::Nothing, Some((last, _)), ..) => {
            ("gone", format!("there is no file any more; the last outcome was `{}` at {}", last.outcome, last.time))
        }
        (OnDisk::Nothing, None, ..) => ("never_seen", "there is no such file, and none is remembered".to_owned()),
        (OnDisk::Unseen(cause), None, None, _) => ("unseen", format!("it cannot be looked at: {cause}")),
        _ if changed => {
            ("changed", "it has changed since what was confirmed last, and no event has come for that yet".to_owned())
        }
        (_, Some((last, _)), ..) if last.outcome == "confirmed" => ("confirmed", format!("confirmed at {}", last.time)),
        (_, Some((last, _)), ..) if last.outcome == "unchanged" => {
            ("unchanged", format!("read at {}: it is what was confirmed before", last.time))
        }
        (_, _, Some(known), row) => known_before(answer, known.is_read() || row.is_some_and(|row| row.id.is_some())),
        (_, Some((last, _)), ..) => ("ended", format!("the last outcome was `{}` at {}", last.outcome, last.time)),
        (OnDisk::File(_), None, None, _) => {
            ("never_seen", "the file is there, and the service has not seen it".to_owned())
        }
    }
}

fn known_before(answer: &FileAnswer, read: bool) -> (&'static str, String) {
    if !read {
        let line = "it was there before the service, and took no message (--catch-up none)";
        return ("there_before", line.to_owned());
    }
    let when = match answer.since {
        Some(since) => format!("before {}, from which on outcomes are remembered", shown_time(since)),
        None => "before this start of the service".to_owned(),
    };
    ("in_ledger", format!("confirmed {when}, and unchanged since"))
}

impl FileStatus {
    /// What became of a path. `waiting`: the same file, if it waits.
    #[must_use]
    pub fn of(
        path: &[u8],
        answer: &FileAnswer,
        row: Option<&Row>,
        disk: &OnDisk,
        waiting: Option<WaitingFile>,
    ) -> Self {
        let (fate, line) = match (&answer.place, &waiting) {
            (_, Some(waiting)) => ("waiting", waiting.why.clone()),
            (Place::Outside, _) => ("outside", "it is in none of the data directories".to_owned()),
            (Place::NotRecursive, _) => {
                ("outside", "it is in a sub-directory, and those are not watched without --recursive".to_owned())
            }
            (Place::LeftOut(why), _) => ("filtered", why.clone()),
            (Place::Refused(Refusal { path: refused, directory, age, cause }), _) => {
                let what = if *directory { "its directory" } else { "it" };
                let which =
                    if refused == path { String::new() } else { format!(" {:?}", String::from_utf8_lossy(refused)) };
                (
                    "unreadable",
                    format!("{what}{which} cannot be read since {} s: {cause}; it is tried again", age.as_secs()),
                )
            }
            (Place::UnknownDirectory, _) if matches!(disk, OnDisk::File(_)) => {
                ("never_seen", "the service does not know its directory yet".to_owned())
            }
            (Place::UnknownDirectory | Place::Idle | Place::Waiting(_), _) => idle(answer, row, disk),
        };
        let last = answer.last.as_ref().map(EndedFile::from);
        let ledger = row.map(|row| Said::of(row.id, row.version.size, row.digests.as_ref()));
        Self { path: ShownPath::of(path), fate, line, waiting, last, ledger }
    }
}
