//! The operations of the workload, and what may be published for them.

use std::collections::{HashMap, HashSet};

use super::name::{Name, Side};
use super::repeats::{Micros, now};

/// A name got another file, link or directory, or lost it.
#[derive(Clone, Copy)]
pub struct Turn {
    pub begun: Micros,
    pub over: Micros,
    /// With the directory that it is in, so that its own times do not show the change.
    pub with_directory: bool,
}

/// Contents that each path had while nobody was writing them: the only ones that may be published.
#[derive(Default)]
pub struct Journal {
    legal: HashMap<String, HashSet<String>>,
    history: Vec<(usize, String)>,
    turns: HashMap<String, Vec<Turn>>,
    /// The number of the present operation.
    pub operation: usize,
}

impl Journal {
    pub fn log(&mut self, what: String) {
        self.history.push((self.operation, what));
    }

    /// From now on this content may be published for this path.
    pub fn allow(&mut self, name: &Name, hash: &str, length: usize) {
        if name.side() != Side::Data {
            return;
        }
        let known = self.legal.entry(name.below().to_owned()).or_default();
        if known.insert(hash.to_owned()) {
            self.log(format!("{name} is complete: {length} bytes, {}", &hash[..12]));
        }
    }

    /// By a change that began then, the name has another file, or none.
    pub fn turn(&mut self, name: &Name, begun: Micros, with_directory: bool) {
        if name.side() == Side::Data {
            let turn = Turn { begun, over: now(), with_directory };
            self.turns.entry(name.below().to_owned()).or_default().push(turn);
        }
    }

    pub fn turns(&self, below: &str) -> &[Turn] {
        self.turns.get(below).map_or(&[], Vec::as_slice)
    }

    /// By its path below the watched directory.
    pub fn allows(&self, below: &str, hash: &str) -> bool {
        self.legal.get(below).is_some_and(|hashes| hashes.contains(hash))
    }

    /// A name, and those under which its last contents were, too.
    pub fn together(&self, name: &str) -> HashSet<String> {
        let complete = |text: &str| {
            let (name, content) = text.split_once(" is complete: ")?;
            Some((name.to_owned(), content.to_owned()))
        };
        let all = || self.history.iter().filter_map(|(_, what)| complete(what));
        let contents: Vec<String> = all().filter(|(it, _)| it == name).map(|(_, content)| content).collect();
        let last = &contents[contents.len().saturating_sub(2)..];
        let shared = all().filter(|(_, content)| last.contains(content)).map(|(name, _)| name);
        shared.chain([name.to_owned()]).collect()
    }

    /// The operations on these names, and since when which of their contents may be published.
    pub fn history_of(&self, names: &HashSet<String>) -> String {
        let mentioned = |text: &str| text.split(' ').any(|word| names.contains(word));
        let done = self.history.iter().filter(|(_, what)| mentioned(what));
        done.map(|(operation, what)| format!("  operation {operation}: {what}\n")).collect()
    }
}
