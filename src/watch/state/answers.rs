//! Answers to questions about files: what waits and why, what was refused, what became of one path.

use std::time::Instant;

use super::State;
use crate::error::os_message;
use crate::files::directory::DirectoryId;
use crate::files::names::Name;
use crate::inquiry::{Answer, FileAnswer, LISTED_MAX, Place, Question, Refusal, Waiting};

impl State {
    /// Answers a question. Who asked may have gone away meanwhile.
    pub(in crate::watch) fn answer(&self, question: Question, now: Instant) {
        let Question { path, reply, .. } = question;
        if reply.is_closed() {
            return;
        }
        let answer = Answer {
            pending: self.pending.len(),
            waiting: self.waiting(now),
            refused: self.retries.refused(),
            refusals: self.refusals(now),
            unwatched: self.tree.unwatched().len(),
            unwatched_paths: self.unwatched_paths(),
            unwatched_cause: self.tree.unwatched_cause().map(|errno| os_message(&errno)),
            recent: self.recent.outcomes(LISTED_MAX),
            failures: self.recent.failures(LISTED_MAX),
            file: path.map(|path| self.file(&path, now)),
        };
        drop(reply.send(answer));
    }

    fn waiting(&self, now: Instant) -> Vec<Waiting> {
        let oldest = self.pending.oldest_entries(LISTED_MAX, now).into_iter();
        let waiting = oldest.filter_map(|(since, id, name, held)| {
            let path = self.tree.with_draining(id)?.directory.absolute(&name);
            Some(Waiting { path, volume: id.volume(), age: now.saturating_duration_since(since), held })
        });
        waiting.collect()
    }

    fn refusals(&self, now: Instant) -> Vec<Refusal> {
        let longest = self.retries.longest_refused(LISTED_MAX);
        longest.into_iter().filter_map(|(id, name)| self.refusal(id, &name, now)).collect()
    }

    fn refusal(&self, id: DirectoryId, name: &[u8], now: Instant) -> Option<Refusal> {
        let (directory, since, cause) = self.retries.refusal(id, name)?;
        let path = self.tree.get(id)?.directory.absolute(name);
        Some(Refusal { path, directory, age: now.saturating_duration_since(since), cause })
    }

    fn unwatched_paths(&self) -> Vec<Vec<u8>> {
        let nodes = self.tree.unwatched().iter().filter_map(|id| self.tree.get(*id));
        nodes.take(LISTED_MAX).map(|node| node.directory.absolute(b"")).collect()
    }

    /// What is known of a path.
    fn file(&self, path: &[u8], now: Instant) -> FileAnswer {
        let found = self.find(path, now);
        let known = found.as_ref().ok().and_then(|(id, name)| self.tree.get(*id)?.known.get(name).copied());
        let place = found.map_or_else(|place| place, |(id, name)| self.place(id, &name, path, now));
        let (last, since) = (self.recent.of_path(path).cloned(), self.recent.since());
        FileAnswer { place, known, last, since, row: self.confirmed.row(path) }
    }

    /// The directory of a path and its name there, or why neither is followed.
    fn find(&self, path: &[u8], now: Instant) -> Result<(DirectoryId, Name), Place> {
        let root = self.tree.roots().iter().find(|root| path.starts_with(root.prefix())).ok_or(Place::Outside)?;
        let below = &path[root.prefix().len()..];
        if let Some(why) = self.filter.leaves_out(below) {
            return Err(Place::LeftOut(why));
        }
        let mut parts = below.split(|byte| *byte == b'/');
        let name = parts.next_back().unwrap_or_default();
        let mut id = root.id();
        for part in parts {
            if !self.recursive {
                return Err(Place::NotRecursive);
            }
            let part = Name::from(part);
            let refused = || self.refusal(id, &part, now).map_or(Place::UnknownDirectory, Place::Refused);
            id = self.tree.child(id, &part).ok_or_else(refused)?;
        }
        Ok((id, Name::from(name)))
    }

    fn place(&self, id: DirectoryId, name: &Name, path: &[u8], now: Instant) -> Place {
        if let Some((since, held)) = self.pending.held(id, name, now) {
            let age = now.saturating_duration_since(since);
            return Place::Waiting(Waiting { path: path.to_owned(), volume: id.volume(), age, held });
        }
        let refused = self.refusal(id, name, now).or_else(|| self.refusal(id, b"", now));
        refused.map_or(Place::Idle, Place::Refused)
    }
}
