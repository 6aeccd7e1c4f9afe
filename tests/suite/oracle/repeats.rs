//! What may be published twice: a confirmed version is published again only after a crash, so the schedule notes what
//! counts as a crash, and when. Every other repeat is an error of the service.

use std::collections::HashMap;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use chrono::DateTime;

/// Since 1970, on the clock that messages, log lines and files have their times from.
pub type Micros = i64;

const SECOND: Micros = 1_000_000;
/// A row is on disk tens of milliseconds after its confirm; the rest is for a machine busy with other work. A version
/// that was confirmed longer ago is not published again after a kill.
const ROW_WRITTEN: Micros = SECOND / 2;
/// A refused message is published again with growing pauses, long after its file was read.
const REFUSED_FOR: Micros = 20 * SECOND;
/// A line of the service that it has lost the broker, and tries to connect again.
pub const LOST: &str = "WARN the connection is lost";
/// The ledger writes some time after the confirm.
const FULL_FOR: Micros = 5 * SECOND;

pub fn now() -> Micros {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("a time after 1970");
    since.as_micros().try_into().expect("microseconds that fit")
}

/// Parses a time of a message or a log line.
pub fn parse(time: &str) -> Option<Micros> {
    DateTime::parse_from_rfc3339(time).ok().map(|time| time.timestamp_micros())
}

type Span = (Micros, Micros);

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub enum Lasting {
    /// Confirms wait, by an alarm or a broker that hangs.
    HeldUp,
    /// Messages are nacked, though the record has them.
    Refused,
    /// The ledger's disk is full, so that rows are missing.
    Full,
}

#[derive(Default)]
pub struct Excuses {
    crashes: Vec<Micros>,
    forgotten: Vec<Micros>,
    since: HashMap<Lasting, Micros>,
    over: Vec<(Lasting, Span)>,
}

impl Excuses {
    /// The service ended with messages that were not confirmed or whose rows were not written.
    pub fn crash(&mut self) {
        self.crashes.push(now());
    }

    /// The ledger has lost rows.
    pub fn forgotten(&mut self) {
        self.forgotten.push(now());
    }

    pub fn begin(&mut self, what: Lasting) {
        self.since.entry(what).or_insert_with(now);
    }

    pub fn end(&mut self, what: Lasting) {
        if let Some(since) = self.since.remove(&what) {
            self.over.push((what, (since, now())));
        }
    }

    pub fn any_crash(&self) -> bool {
        !self.crashes.is_empty()
    }

    /// Whether the ledger may have lost what was published: rows that it had, or those of a full disk at a crash. What has
    /// vanished until the next start then has no removal.
    pub fn may_forget(&self) -> bool {
        let full = |crash: &Micros| {
            let mut spans = self.spans(Lasting::Full);
            spans.any(|(from, to)| from <= *crash && *crash <= to.saturating_add(FULL_FOR))
        };
        !self.forgotten.is_empty() || self.crashes.iter().any(full)
    }

    /// Whether the ledger has lost rows that it had, between two events.
    pub fn may_forget_between(&self, times: [Micros; 2]) -> bool {
        self.forgotten.iter().any(|time| times[0] <= *time && *time <= times[1])
    }

    fn spans(&self, what: Lasting) -> impl Iterator<Item = Span> {
        let open = self.since.get(&what).map(|since| (*since, Micros::MAX));
        self.over.iter().filter(move |(it, _)| *it == what).map(|(_, span)| *span).chain(open)
    }

    /// Whether a version may be published twice, for events that were read at these two times. `confirmed` is when the
    /// first message was confirmed, if that was logged.
    pub fn allow(&self, times: [Micros; 2], confirmed: Option<Micros>) -> bool {
        let (first, second) = (times[0].min(times[1]), times[0].max(times[1]));
        let between = |time: &&Micros| first <= **time && **time <= second;
        self.may_forget_between([first, second])
            || self.spans(Lasting::Full).any(|(from, to)| first <= to.saturating_add(FULL_FOR) && from <= second)
            || self.spans(Lasting::Refused).any(|(from, to)| from - REFUSED_FOR <= first && first <= to)
            || self.crashes.iter().filter(between).any(|crash| {
                let held_up = self.spans(Lasting::HeldUp).any(|(from, to)| from <= *crash && first <= to);
                held_up || confirmed.is_none_or(|confirmed| confirmed + ROW_WRITTEN > *crash)
            })
    }
}

/// The times at which the service has logged that its connection is lost, where it makes another.
pub struct Losses(Vec<Micros>);

impl Losses {
    pub fn of(log: &str) -> Self {
        let lost = log.lines().filter(|line| line.contains(LOST));
        Self(lost.filter_map(|line| line.split(' ').next().and_then(parse)).collect())
    }

    /// Whether a connection was lost behind the event of a message and before its confirm, as far as the log tells the
    /// confirms of versions of one size apart.
    pub fn repeat(&self, name: &str, what: Confirmed, read: Micros, confirms: &Confirms) -> bool {
        let next_confirm = |time| confirms.after(name, what, time);
        let before_confirm =
            |lost| next_confirm(lost).is_some() || next_confirm(read).is_none_or(|first| lost <= first);
        self.0.iter().any(|&lost| read <= lost && before_confirm(lost))
    }
}

/// What a line of the log says of a message that was confirmed.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub enum Confirmed {
    /// So many bytes of a file.
    File(u64),
    Removal,
}

/// The times at which the service has logged the confirm of a message, by name.
pub struct Confirms(HashMap<(String, Confirmed), Vec<Micros>>);

impl Confirms {
    pub fn of(log: &str, data: &Path) -> Self {
        let mut all: HashMap<_, Vec<Micros>> = HashMap::new();
        let file = format!("event=\"confirmed\" path=\"{}/", data.display());
        let removal = format!("event=\"removal_confirmed\" path=\"{}/", data.display());
        for line in log.lines() {
            let confirmed = if let Some((_, after)) = line.split_once(&file) {
                let bytes = after.split_once("\" bytes=").and_then(|(name, bytes)| Some((name, bytes.parse().ok()?)));
                bytes.map(|(name, bytes)| (name, Confirmed::File(bytes)))
            } else {
                let name = line.split_once(&removal).and_then(|(_, after)| after.strip_suffix('"'));
                name.map(|name| (name, Confirmed::Removal))
            };
            if let Some((name, what)) = confirmed
                && let Some(time) = line.split(' ').next().and_then(parse)
            {
                all.entry((name.to_owned(), what)).or_default().push(time);
            }
        }
        Self(all)
    }

    /// Whether the log names no confirm of a file at all.
    pub fn is_empty(&self) -> bool {
        self.0.keys().all(|(_, what)| *what == Confirmed::Removal)
    }

    /// The first one after that time.
    pub fn after(&self, name: &str, what: Confirmed, time: Micros) -> Option<Micros> {
        self.0.get(&(name.to_owned(), what))?.iter().copied().find(|confirmed| *confirmed >= time)
    }
}
