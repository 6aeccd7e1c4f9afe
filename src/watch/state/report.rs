//! How much there is to do: for the metrics, the readiness check, and the last line of the log.

use std::time::Instant;

use super::State;

impl State {
    /// Reports how many files are pending: whenever there is nothing else to do.
    pub(super) fn report_pending(&self) {
        self.progress.metrics.pending_files.set(self.pending.len() as i64);
    }

    /// Reports once a second what only scrapes and checks ask for.
    pub(in crate::watch) fn report(&mut self, now: Instant) {
        let metrics = &self.progress.metrics;
        let (refused, directories) = (self.retries.refused(), self.retries.directories());
        metrics.known_files.set(self.tree.iter().map(|(_, node)| node.known.len()).sum::<usize>() as i64);
        metrics.watched_directories.set(self.tree.watched() as i64);
        metrics.unwatched_directories.set((self.tree.unwatched().len() + directories) as i64);
        metrics.refused_files.set((refused - directories) as i64);
        let oldest = self.pending.oldest().map_or(0.0, |since| now.saturating_duration_since(since).as_secs_f64());
        metrics.oldest_pending_seconds.set(oldest);
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
