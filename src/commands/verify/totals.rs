//! What differs: a line for each, and the sums.

use indicatif::DecimalBytes;
use serde_json::json;

use crate::error::Error;
use crate::shown::{json_line, line};
use crate::status::file::ShownPath;
use crate::streams::stdout::print;
use crate::streams::terminal::BAR;

/// How a path differs from the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// The file has no row.
    NeverConfirmed,
    /// The file is another version than its row's, or has another content although only its metadata has changed.
    Changed,
    /// The row has no file.
    Gone,
    /// The version is the row's, and the content is not: nobody has written it, so the disk has lost it.
    Content,
    /// It cannot be looked at or read.
    Unreadable,
}

impl Kind {
    const ALL: [Self; 5] = [Self::NeverConfirmed, Self::Changed, Self::Gone, Self::Content, Self::Unreadable];

    /// Its word in JSON.
    fn word(self) -> &'static str {
        match self {
            Self::NeverConfirmed => "never_confirmed",
            Self::Changed => "changed",
            Self::Gone => "gone",
            Self::Content => "bit_rot",
            Self::Unreadable => "unreadable",
        }
    }

    /// Its words for people.
    fn words(self) -> &'static str {
        match self {
            Self::NeverConfirmed => "never confirmed",
            Self::Changed => "changed since",
            Self::Gone => "gone",
            Self::Content => "bit rot",
            Self::Unreadable => "unreadable",
        }
    }
}

/// The sums.
pub(super) struct Totals {
    json: bool,
    /// Files that were compared.
    pub(super) files: u64,
    /// Their bytes.
    pub(super) bytes: u64,
    /// Those that are what was confirmed.
    pub(super) same: u64,
    /// Those that are not judged, because they have changed too lately.
    pub(super) early: u64,
    /// Links and files that the service refuses, because they lead out of the data directory.
    pub(super) lead_out: u64,
    /// Directories that could not be listed. The walk has named each.
    pub(super) unlisted: u64,
    counts: [u64; Kind::ALL.len()],
}

impl Totals {
    /// Nothing yet.
    pub(super) fn new(json: bool) -> Self {
        Self { json, files: 0, bytes: 0, same: 0, early: 0, lead_out: 0, unlisted: 0, counts: [0; Kind::ALL.len()] }
    }

    /// Counts and prints how a path differs.
    ///
    /// # Errors
    /// [`Error::Stdout`].
    pub(super) fn note(&mut self, kind: Kind, path: &[u8], cause: Option<String>) -> Result<(), Error> {
        self.counts[kind as usize] += 1;
        let ShownPath { path, path_encoded } = ShownPath::of(path);
        let text = if self.json {
            let mut said = json!({ "kind": kind.word(), "path": path });
            for (key, value) in [("path_encoded", path_encoded), ("cause", cause)] {
                if let Some(value) = value {
                    said[key] = value.into();
                }
            }
            json_line(&said.to_string())
        } else {
            let cause = cause.map_or_else(String::new, |cause| format!(": {cause}"));
            line(format!("{:<16} {path:?}{cause}", kind.words()))
        };
        show(&(text + "\n"))
    }

    /// How many paths differ or could not be compared.
    pub(super) fn differ(&self) -> u64 {
        self.counts.iter().sum::<u64>() + self.unlisted
    }

    /// Prints the sums.
    ///
    /// # Errors
    /// [`Error::Stdout`].
    pub(super) fn print(&self) -> Result<(), Error> {
        let Self { json, files, bytes, same, early, lead_out, unlisted, counts } = self;
        if *json {
            let mut said = json!({
                "kind": "totals", "files": files, "bytes": bytes, "same": same, "not_judged": early,
                "leads_out": lead_out, "directories_not_listed": unlisted,
            });
            Kind::ALL.iter().zip(counts).for_each(|(kind, count)| said[kind.word()] = (*count).into());
            return show(&format!("{said}\n"));
        }
        let differing: Vec<String> =
            Kind::ALL.iter().zip(counts).map(|(kind, count)| format!("{count} {}", kind.words())).collect();
        let early = if *early > 0 { format!("; {early} changed too lately to be judged") } else { String::new() };
        let refused = match lead_out {
            0 => String::new(),
            1 => "; 1 link that leads out of its data directory, which has no message".to_owned(),
            links => format!("; {links} links that lead out of their data directory, which have no message"),
        };
        let bytes = DecimalBytes(*bytes);
        show(&format!("{files} files ({bytes}): {same} as confirmed, {}{early}{refused}\n", differing.join(", ")))
    }
}

/// Prints beside the progress bar.
fn show(text: &str) -> Result<(), Error> {
    match BAR.get() {
        Some(bar) => bar.suspend(|| print(text)),
        None => print(text),
    }
}
