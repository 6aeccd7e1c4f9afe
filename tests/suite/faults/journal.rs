//! What was done, and what may be published for it.

use std::collections::{HashMap, HashSet};

use super::name::{Name, Side};
use super::repeats::{Micros, now};

/// Contents that each path had while nobody was writing them: the only ones that may be published.
#[derive(Default)]
pub struct Journal {
    legal: HashMap<String, HashSet<String>>,
    history: Vec<(usize, String)>,
    /// When something came to a name or went away from it, each from when to when.
    turns: HashMap<String, Vec<(Micros, Micros)>>,
    /// The number of the operation that is being done.
    pub operation: usize,
}

impl Journal {
    pub fn tell(&mut self, what: String) {
        self.history.push((self.operation, what));
    }

    /// From now on this content may be published for this path.
    pub fn allow(&mut self, name: &Name, hash: &str, length: usize) {
        if name.side() != Side::Data {
            return;
        }
        let known = self.legal.entry(name.below().to_owned()).or_default();
        if known.insert(hash.to_owned()) {
            self.tell(format!("{name} is complete: {length} bytes, {}", &hash[..12]));
        }
    }

    /// Something else is at that name, or nothing, by a change that began then.
    pub fn turn(&mut self, name: &Name, begun: Micros) {
        if name.side() == Side::Data {
            self.turns.entry(name.below().to_owned()).or_default().push((begun, now()));
        }
    }

    /// Changes of what is at a name, each from when to when.
    pub fn turns(&self, below: &str) -> &[(Micros, Micros)] {
        self.turns.get(below).map_or(&[], Vec::as_slice)
    }

    /// By its path below the watched directory.
    pub fn allows(&self, below: &str, hash: &str) -> bool {
        self.legal.get(below).is_some_and(|hashes| hashes.contains(hash))
    }

    /// What was done to a name, and which of its contents were legal since when; and what was done to the names that its
    /// last contents stood under, too.
    pub fn story(&self, name: &str) -> String {
        let is_of = |text: &str, name: &str| text.split([' ', ',']).any(|word| word == name);
        let complete =
            |text: &str| text.split_once(" is complete: ").map(|(name, what)| (name.to_owned(), what.to_owned()));
        let of_name = self.history.iter().filter(|(_, what)| is_of(what, name));
        let contents: Vec<String> = of_name.filter_map(|(_, what)| Some(complete(what)?.1)).collect();
        let last = &contents[contents.len().saturating_sub(2)..];
        let shared = self.history.iter().filter_map(|(_, what)| complete(what)).filter(|(_, what)| last.contains(what));
        let names: HashSet<String> = shared.map(|(name, _)| name).chain([name.to_owned()]).collect();
        let done = self.history.iter().filter(|(_, what)| names.iter().any(|name| is_of(what, name)));
        done.map(|(operation, what)| format!("  operation {operation}: {what}\n")).collect()
    }
}
