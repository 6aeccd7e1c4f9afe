//! How much there is to do: for the metrics, the readiness check, and the last line of the log.

use std::time::Instant;

use super::State;

impl State {
    /// Reports how many files are pending: whenever there is nothing else to do.
    pub(super) fn report_pending(&mut self) {
        self.shares.pending.set(&self.progress.metrics.pending_files, self.pending.len());
    }

    /// Reports once a second what only scrapes and checks ask for.
    pub(in crate::watch) fn report(&mut self, now: Instant) {
        let metrics = &self.progress.metrics;
        let (refused, directories) = (self.retries.refused(), self.retries.directories());
        let known = self.tree.iter().map(|(_, node)| node.known.len()).sum();
        self.shares.known.set(&metrics.known_files, known);
        self.shares.watched.set(&metrics.watched_directories, self.tree.watched());
        self.shares.unwatched.set(&metrics.unwatched_directories, self.tree.unwatched().len() + directories);
        self.shares.refused.set(&metrics.refused_files, refused - directories);
        if let Some(volume) = self.progress.volumes().get(self.volume) {
            volume.set_oldest(self.pending.oldest().map(|since| now.saturating_duration_since(since)));
        }
        self.report_unreadable();
        self.lines.report_held_back(now);
        self.attend();
    }

    /// Logs how many lines about single files were held back: at the end.
    pub(in crate::watch) fn report_held_back(&mut self) {
        self.lines.report_all_held_back();
    }

    /// How many files are known to have no message yet: those that are pending, and those that cannot be read now; and
    /// whether there may be more, because a rescan is needed or under way.
    pub(in crate::watch) fn left_unpublished(&self) -> (usize, bool) {
        let more = self.rescan.is_outstanding() || self.retries.directories() > 0;
        (self.pending.len() + self.retries.refused(), more)
    }
}
