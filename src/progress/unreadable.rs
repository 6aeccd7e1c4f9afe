//! What exists and cannot be read now.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// The longest path that is shown, in characters: the kernel's longest (PATH_MAX, 4096 bytes) has no more.
pub(super) const SHOWN_MAX: usize = 4096;

/// How many directories or files exist and cannot be read now, and one of them with the kernel's error as an example: for each
/// volume that has any, by its number.
#[derive(Debug, Default)]
pub struct Unreadable(Mutex<BTreeMap<usize, Example>>);

impl Unreadable {
    /// Sets how many of a volume cannot be read now, and one of them with the kernel's error. Where the number is 0, path and
    /// cause do not count.
    pub fn are(&self, volume: usize, count: usize, path: &str, cause: &str) {
        let shown: String = path.chars().take(SHOWN_MAX).collect();
        let example = Example { count, path: format!("{shown:?}"), cause: cause.to_owned() };
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match count {
            0 => drop(held.remove(&volume)),
            _ => drop(held.insert(volume, example)),
        }
    }

    /// What cannot be read, in words; `one` and `several` name such a thing. `None` when all can be read.
    #[must_use]
    pub fn describe(&self, one: &str, several: &str) -> Option<String> {
        let held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count: usize = held.values().map(|example| example.count).sum();
        held.values().next().map(|Example { path, cause, .. }| match count {
            1 => format!("the {one} {path} cannot be read: {cause}"),
            _ => format!("{count} {several} cannot be read, {path} for one: {cause}"),
        })
    }
}

#[derive(Debug)]
struct Example {
    count: usize,
    /// At most [`SHOWN_MAX`] characters of the path, quoted.
    path: String,
    cause: String,
}
