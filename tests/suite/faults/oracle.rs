//! What must hold, judged from the queue's record, the workload's journal and the disk.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Write;
use std::path::Path;

use serde_json::{Map, Value};

use super::journal::Journal;
use super::record::Entry;
use crate::message::FIELDS;

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
            if let Ok(message) = Parsed::of(entry, data) {
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

struct Parsed {
    name: String,
    hash: String,
    size: u64,
    /// The times of the version, as they are printed.
    times: [String; 2],
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
            id,
        })
    }
}

/// Everything that does not hold, in words, by the name that it is about.
#[derive(Default)]
pub struct Verdict {
    pub messages: usize,
    /// Messages whose id was there before.
    pub repeats: usize,
    pub losses: Vec<(String, String)>,
    pub wrong: Vec<(String, String)>,
    pub broken: Vec<(String, String)>,
}

impl Verdict {
    pub fn is_clean(&self) -> bool {
        self.losses.is_empty() && self.wrong.is_empty() && self.broken.is_empty()
    }

    pub fn faults(&self) -> impl Iterator<Item = &(String, String)> {
        self.losses.iter().chain(&self.wrong).chain(&self.broken)
    }
}

pub fn judge(entries: &[Entry], data: &Path, finals: &Finals, journal: &Journal) -> Verdict {
    let mut verdict = Verdict { messages: entries.len(), ..Verdict::default() };
    let mut last = Last::default();
    last.take(entries, data);
    for name in last.missing(finals) {
        let (found, truth) = (last.by_name.get(&name), &finals[&name]);
        verdict.losses.push((name, format!("the last message says {found:?}, the disk {truth:?}")));
    }
    let mut version_of_id = HashMap::new();
    let mut id_of_version = HashMap::new();
    let mut ids = HashSet::new();
    for (number, entry) in entries.iter().enumerate() {
        let message = match Parsed::of(entry, data) {
            Ok(message) => message,
            Err(why) => {
                verdict.broken.push((String::new(), why));
                continue;
            }
        };
        let Parsed { name, hash, size, times, id } = message;
        if !ids.insert(id.clone()) {
            verdict.repeats += 1;
        }
        if !journal.allows(&name, &hash) {
            let what = format!("message {number} says {hash}, {size} bytes: never its content");
            verdict.wrong.push((name.clone(), what));
        }
        // Empty files all look alike: two of them within a tick of the clock cannot be told apart here.
        let version = (name.clone(), hash, size, times);
        let earlier = version_of_id.entry(id.clone()).or_insert_with(|| version.clone());
        if *earlier != version {
            verdict.broken.push((name.clone(), format!("one id, two versions: {earlier:?}, {version:?}")));
        }
        let earlier = id_of_version.entry(version).or_insert_with(|| id.clone());
        if *earlier != id && size > 0 {
            verdict.broken.push((name, format!("message {number}: one version, two ids: {earlier}, {id}")));
        }
    }
    verdict
}

/// The messages for one name, for whoever looks into a failure.
pub fn list(entries: &[Entry], data: &Path, name: &str) -> String {
    let mut lines = String::new();
    for (number, entry) in entries.iter().enumerate() {
        if let Ok(message) = Parsed::of(entry, data)
            && message.name == name
        {
            let Parsed { hash, size, times: [modified, changed], id, .. } = message;
            let _ = writeln!(
                lines,
                "  {number}: {}, {size} bytes, mtime {modified}, ctime {changed}, id {id}",
                &hash[..12]
            );
        }
    }
    lines
}
