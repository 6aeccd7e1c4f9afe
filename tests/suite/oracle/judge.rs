//! Judges the messages by the queue's record, the workload's journal and the disk.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde_json::{Map, Value};

use super::journal::{Journal, Turn};
use super::life;
use super::record::Entry;
use super::repeats::{Confirmed, Confirms, Excuses, Losses, Micros, parse};
use crate::support::files::utc;
use crate::support::message::FIELDS;
use crate::support::setup::NOBODY;

/// The kernel follows so many links: see path_resolution(7).
const LINKS_FOLLOWED_MAX: usize = 40;
/// The longest tick of a file system's clock, and of one with whole seconds.
pub const TICK: Micros = 12_000;
pub const COARSE_TICK: Micros = 1_012_000;

/// Path below the watched directory, hash and size.
pub type Finals = BTreeMap<String, (String, u64)>;

/// The last message for each name, kept up to date while messages come.
#[derive(Default)]
pub struct Last {
    seen: usize,
    by_name: HashMap<String, (String, u64)>,
}

impl Last {
    pub fn take(&mut self, entries: &[Entry], data: &Path) {
        for entry in &entries[self.seen..] {
            if let Some(removal) = Removal::of(entry, data) {
                drop(removal.map(|removal| self.by_name.remove(&removal.name)));
            } else if let Ok(message) = Parsed::of(entry, data) {
                self.by_name.insert(message.name, (message.hash, message.size));
            }
        }
        self.seen = entries.len();
    }

    /// The names whose last message is not their final content, or that have none.
    pub fn missing(&self, finals: &Finals) -> Vec<String> {
        let lost = finals.iter().filter(|(name, truth)| self.by_name.get(*name) != Some(truth));
        lost.map(|(name, _)| name.clone()).collect()
    }
}

impl Last {
    /// The names whose last message is one of a file, although they have none: with removals there are none of these. A name
    /// below a directory that is closed to the service is taken back once it can be looked at.
    pub fn not_taken_back(&self, finals: &Finals, data: &Path) -> Vec<String> {
        let is_gone = |name: &&String| !finals.contains_key(*name) && data.join(name).metadata().is_err();
        let can_be_seen = |name: &&String| can_be_seen(&data.join(name));
        self.by_name.keys().filter(is_gone).filter(can_be_seen).cloned().collect()
    }
}

/// Whether the service can tell that there is no file at a path, to which links may lead.
fn can_be_seen(path: &Path) -> bool {
    let mut path = path.to_owned();
    for _ in 0..LINKS_FOLLOWED_MAX {
        if !path.ancestors().skip(1).flat_map(Path::metadata).all(|directory| is_open(&directory)) {
            return false;
        }
        let Ok(target) = path.read_link() else { return true };
        path.set_file_name(target);
    }
    true
}

/// Whether the service, as its own user, can list a directory and look at what is in it.
fn is_open(directory: &Metadata) -> bool {
    let bits = if directory.uid() == NOBODY { 0o500 } else { 0o005 };
    directory.mode() & bits == bits
}

/// A message that takes the last one of its path back.
struct Removal {
    name: String,
    id: String,
    /// The id of the last message, where it is known.
    of: Option<String>,
    read: Micros,
}

impl Removal {
    /// Nothing where it is a message of another kind.
    fn of(entry: &Entry, data: &Path) -> Option<Result<Self, String>> {
        let read = || {
            let fields: Map<String, Value> = serde_json::from_slice(&entry.body).ok()?;
            let name = Path::new(fields["file_path"].as_str()?).strip_prefix(data).ok()?.to_str()?.to_owned();
            let of = fields["message_id"].as_str().map(str::to_owned);
            Some(Self { name, id: entry.id.clone()?, of, read: parse(fields["timestamp"].as_str()?)? })
        };
        let whole = || format!("a strange removal: {}", String::from_utf8_lossy(&entry.body));
        (entry.kind.as_deref() == Some("apollonia.file-removed.v1")).then(|| read().ok_or_else(whole))
    }
}

struct Parsed {
    name: String,
    hash: String,
    size: u64,
    /// The times of the version, as they are printed.
    times: [String; 2],
    /// When its event was read.
    read: Micros,
    id: String,
}

impl Parsed {
    fn of(entry: &Entry, data: &Path) -> Result<Self, String> {
        let whole = || String::from_utf8_lossy(&entry.body).into_owned();
        let fields: Map<String, Value> =
            serde_json::from_slice(&entry.body).map_err(|error| format!("{error}: {}", whole()))?;
        let mut names: Vec<&str> = fields.keys().map(String::as_str).collect();
        names.sort_unstable();
        if names != FIELDS {
            return Err(format!("not the ten fields: {}", whole()));
        }
        let text = |field: &str| fields[field].as_str().map(str::to_owned).ok_or(format!("{field}: {}", whole()));
        let path = text("file_path")?;
        let name = Path::new(&path).strip_prefix(data).map_err(|_| format!("a strange path: {path}"))?;
        let id = entry.id.clone().filter(|id| id.len() == 32).ok_or(format!("no message id: {}", whole()))?;
        Ok(Self {
            name: name.to_str().ok_or("a strange name")?.to_owned(),
            hash: text("sha256_hash")?,
            size: fields["size"].as_u64().ok_or(format!("size: {}", whole()))?,
            times: [text("modified_time")?, text("changed_time")?],
            read: parse(&text("timestamp")?).ok_or(format!("timestamp: {}", whole()))?,
            id,
        })
    }
}

/// All that is wrong, by name and in words.
#[derive(Default)]
pub struct Verdict {
    pub messages: usize,
    pub removals: usize,
    /// Messages whose id was there before.
    pub repeats: usize,
    /// Messages of half a file that others followed, in seeds without leases.
    pub unfinished: usize,
    pub losses: Vec<(String, String)>,
    pub wrong: Vec<(String, String)>,
    /// Repeats that no crash excuses.
    pub repeated: Vec<(String, String)>,
    pub broken: Vec<(String, String)>,
}

impl Verdict {
    pub fn is_clean(&self) -> bool {
        self.faults().next().is_none()
    }

    pub fn faults(&self) -> impl Iterator<Item = &(String, String)> {
        self.losses.iter().chain(&self.wrong).chain(&self.repeated).chain(&self.broken)
    }
}

/// What the judgment is based on, beside the record and the disk.
pub struct Known<'a> {
    pub journal: &'a Journal,
    pub excuses: &'a Excuses,
    pub confirms: Confirms,
    pub losses: Losses,
    /// Whether the service has leases, without which half a file may be published before the whole.
    pub leases: bool,
    /// How long the file system's clock stands still.
    pub tick: Micros,
    /// The service runs with `--removals`.
    pub removals: bool,
}

pub fn judge(entries: &[Entry], data: &Path, finals: &Finals, known: &Known) -> Verdict {
    let mut verdict = Verdict { messages: entries.len(), ..Verdict::default() };
    let mut last = Last::default();
    last.take(entries, data);
    for name in last.missing(finals) {
        let (found, truth) = (last.by_name.get(&name), &finals[&name]);
        verdict.losses.push((name, format!("the last message says {found:?}, the disk {truth:?}")));
    }
    if known.removals {
        for name in last.not_taken_back(finals, data) {
            if !known.excuses.may_forget() {
                verdict.losses.push((name, "the last message says that there is a file".to_owned()));
            }
        }
    }
    let mut version_of_id = HashMap::new();
    let mut id_of_version = HashMap::new();
    let mut messages: Vec<(usize, Parsed)> = Vec::new();
    let mut by_id: HashMap<String, usize> = HashMap::new();
    let mut by_name: HashMap<String, usize> = HashMap::new();
    let mut removed: HashMap<String, (usize, Removal)> = HashMap::new();
    for (number, entry) in entries.iter().enumerate() {
        if let Some(removal) = Removal::of(entry, data) {
            known.judge_removal(number, removal, &mut by_name, &mut removed, &by_id, &mut verdict);
            continue;
        }
        let message = match Parsed::of(entry, data) {
            Ok(message) => message,
            Err(why) => {
                verdict.broken.push((String::new(), why));
                continue;
            }
        };
        let at = messages.len();
        let earlier = by_id.insert(message.id.clone(), at);
        // What was taken back meanwhile is new when it comes back.
        let since = removed.get(&message.name).map_or(0, |(number, _)| *number);
        let earlier = earlier.filter(|at| messages[*at].0 >= since);
        verdict.repeats += usize::from(earlier.is_some());
        let before = by_name.insert(message.name.clone(), at);
        let same = |at: &usize| known.is_metadata_alone(&messages[*at].1, &message);
        // One finding is enough for one message.
        if let Some(at) = earlier.or_else(|| before.filter(same))
            && !known.may_repeat(&messages[at].1, &message)
        {
            let how = if earlier.is_some() { "repeats" } else { "has nothing new but metadata after" };
            let mut what = format!("message {number} {how} message {}, and nothing excuses it", messages[at].0);
            for turn in known.journal.turns(&message.name) {
                let with = if turn.with_directory { ", with its directory" } else { "" };
                let _ = write!(what, "\n  another file or none from {} to {}{with}", time(turn.begun), time(turn.over));
            }
            verdict.repeated.push((message.name.clone(), what));
        }
        let Parsed { name, hash, size, times, id, .. } = &message;
        if !known.journal.allows(name, hash) {
            if known.leases {
                let what = format!("message {number} says {hash}, {size} bytes: never its content");
                verdict.wrong.push((name.clone(), what));
            } else {
                verdict.unfinished += 1;
            }
        }
        // Empty files all look alike: two of them within a tick of the clock cannot be distinguished here.
        let version = (name.clone(), hash.clone(), *size, times.clone());
        let earlier = version_of_id.entry(id.clone()).or_insert_with(|| version.clone());
        if *earlier != version {
            verdict.broken.push((name.clone(), format!("one id, two versions: {earlier:?}, {version:?}")));
        }
        let earlier = id_of_version.entry(version).or_insert_with(|| id.clone());
        if earlier != id && *size > 0 {
            verdict.broken.push((name.clone(), format!("message {number}: one version, two ids: {earlier}, {id}")));
        }
        messages.push((number, message));
    }
    verdict
}

impl Known<'_> {
    /// Judges one removal by the messages before it.
    fn judge_removal(
        &self,
        number: usize,
        removal: Result<Removal, String>,
        by_name: &mut HashMap<String, usize>,
        removed: &mut HashMap<String, (usize, Removal)>,
        by_id: &HashMap<String, usize>,
        verdict: &mut Verdict,
    ) {
        verdict.removals += 1;
        let removal = match removal {
            Ok(removal) if self.removals => removal,
            Ok(removal) => return verdict.broken.push((removal.name, format!("message {number} is a removal"))),
            Err(why) => return verdict.broken.push((String::new(), why)),
        };
        let name = removal.name.clone();
        if removal.of.as_ref().is_some_and(|of| !by_id.contains_key(of)) {
            verdict
                .broken
                .push((name.clone(), format!("message {number} takes back {:?}, which never came", removal.of)));
        }
        // What a killed process was about to publish may never have been published, and is taken back all the same.
        let unsure = removal.of.is_none() && self.excuses.any_crash();
        // A ledger that has lost its last rows has those before them, of an earlier message.
        let is_earlier = |before: &Removal| self.excuses.may_forget_between([before.read, removal.read]);
        let before = removed.get(&name).map(|(_, before)| before);
        let before = before.filter(|before| before.of == removal.of || is_earlier(before));
        let repeats = |before: &Removal| {
            self.is_again(&name, Confirmed::Removal, [(&before.id, before.read), (&removal.id, removal.read)])
                || self.excuses.allow([before.read, removal.read], None)
        };
        if by_name.remove(&name).is_none() && !unsure {
            if before.is_none_or(|before| !repeats(before)) {
                let what = format!("message {number} takes back what is taken back already");
                verdict.repeated.push((name.clone(), what));
            } else if before.is_some_and(|before| before.of == removal.of && before.id != removal.id) {
                verdict.broken.push((name.clone(), format!("message {number} repeats a removal by another id")));
            }
        }
        removed.insert(name, (number, removal));
    }

    /// Whether nothing but ctime is new in a message, compared with the one before it.
    fn is_metadata_alone(&self, before: &Parsed, message: &Parsed) -> bool {
        let is = |of: &Parsed| (of.hash.clone(), of.size, of.times[0].clone());
        // Empty files all look alike.
        message.size > 0 && is(before) == is(message)
    }

    /// A repeat is allowed after a crash. It is also allowed when the name had another file meanwhile, for longer than
    /// a tick of the clock or after the first message was confirmed, or when its directory went and came back: then the
    /// service publishes the name again, though with a version that was there before.
    fn may_repeat(&self, first: &Parsed, second: &Parsed) -> bool {
        let changed = parse(&first.times[1]).expect("a time that was parsed by the service");
        let confirmed = self.confirms.after(&first.name, Confirmed::File(first.size), first.read);
        let turns = self.journal.turns(&first.name).iter();
        let turns: Vec<&Turn> = turns.filter(|turn| changed < turn.over && turn.begun <= second.read).collect();
        let late = |turn: &&Turn| {
            turn.begun > changed + self.tick || confirmed.is_some_and(|confirmed| turn.begun >= confirmed)
        };
        let with_directory = turns.iter().filter(|turn| turn.with_directory).count();
        // The change of the version's own time may be one of them.
        let came_back = turns.iter().any(late) || with_directory > 1 || (first.id != second.id && turns.len() > 1);
        // After a crash a row may be stale, so the service does not trust it for a file that differs in ctime alone:
        // that file could have been moved away, and another published in its place.
        let row_since = confirmed.filter(|_| first.id == second.id);
        let messages = [(&first.id, first.read), (&second.id, second.read)];
        came_back
            || self.is_again(&first.name, Confirmed::File(first.size), messages)
            || self.excuses.allow([first.read, second.read], row_since)
    }

    /// Whether two messages, each with its id and the time at which its event was read, are the very same one, which is
    /// published again where its confirm did not come before the connection was lost.
    fn is_again(&self, name: &str, what: Confirmed, [first, second]: [(&String, Micros); 2]) -> bool {
        first == second && self.losses.repeat(name, what, first.1, &self.confirms)
    }
}

/// Each finding with the operations, the messages and the log lines of its names.
pub fn explain(verdict: &Verdict, entries: &[Entry], data: &Path, journal: &Journal, log: &str) -> String {
    let mut details = String::new();
    for (name, what) in verdict.faults() {
        let names = journal.together(name);
        let done = journal.history_of(&names);
        let said = life::about(log, data, &names);
        let listed = list(entries, data, name);
        let _ = write!(details, "{name}: {what}\noperations:\n{done}messages:\n{listed}the service's log:\n{said}");
    }
    details
}

/// The messages for one name.
fn list(entries: &[Entry], data: &Path, name: &str) -> String {
    let mut lines = String::new();
    for (number, entry) in entries.iter().enumerate() {
        if let Some(Ok(removal)) = Removal::of(entry, data) {
            if removal.name == name {
                let _ = writeln!(lines, "  {number}: taken back {:?}, id {}", removal.of, removal.id);
            }
        } else if let Ok(message) = Parsed::of(entry, data)
            && message.name == name
        {
            let Parsed { hash, size, times: [modified, changed], id, read, .. } = message;
            let _ = writeln!(
                lines,
                "  {number}: {}, {size} bytes, event {}, mtime {modified}, ctime {changed}, id {id}",
                &hash[..12],
                time(read)
            );
        }
    }
    lines
}

fn time(micros: Micros) -> String {
    utc(micros.div_euclid(1_000_000), micros.rem_euclid(1_000_000) * 1_000)
}
