//! What is refused now, for who asks.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use super::Retries;
use crate::error::os_message;
use crate::files::directory::DirectoryId;
use crate::files::names::Name;

impl Retries {
    /// A refused name (empty for the directory itself): whether it is a directory, since when, and why.
    pub(crate) fn refusal(&self, id: DirectoryId, name: &[u8]) -> Option<(bool, Instant, String)> {
        let entry = self.get(id, name).filter(|entry| entry.what.is_refused())?;
        let cause = os_message(&io::Error::from_raw_os_error(entry.cause));
        Some((entry.what.is_directory(), entry.since, cause))
    }

    /// The names that are refused for the longest time, longest first, at most so many. The search visits every entry.
    pub(crate) fn longest_refused(&self, most: usize) -> Vec<(DirectoryId, Name)> {
        let all = self.entries.iter().flat_map(|(id, names)| names.iter().map(move |(name, entry)| (id, name, entry)));
        let mut refused: Vec<_> = all.filter(|(.., entry)| entry.what.is_refused()).collect();
        refused.sort_unstable_by_key(|(.., entry)| entry.since);
        refused.into_iter().take(most).map(|(id, name, _)| (*id, Arc::clone(name))).collect()
    }
}
