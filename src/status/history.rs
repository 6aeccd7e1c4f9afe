//! The numbers of the last quarter of an hour, sampled every few seconds. Pure: the time is passed in.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::metrics::Metrics;

/// Between two samples.
pub const EVERY: Duration = Duration::from_secs(5);

/// Samples that are kept: those of 15 minutes. At 72 bytes each they take 13 KB.
pub const SAMPLES_MAX: usize = 181;

/// The counters at one moment.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    at: Instant,
    files: u64,
    bytes: u64,
    confirmed: u64,
    failed: u64,
    /// The sum of all seconds from event to confirm, and how many they were.
    seconds: f64,
    timed: u64,
    pending: i64,
}

impl Sample {
    /// The counters now.
    #[must_use]
    pub fn of(metrics: &Metrics, at: Instant) -> Self {
        let totals = metrics.totals();
        let whole = &metrics.end_to_end_seconds;
        Self {
            at,
            files: totals.files,
            bytes: totals.bytes,
            confirmed: totals.confirmed,
            failed: totals.failed,
            seconds: whole.get_sample_sum(),
            timed: whole.get_sample_count(),
            pending: metrics.pending_files.get(),
        }
    }
}

/// What happened between two samples.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Rate {
    /// The time between them.
    pub seconds: f64,
    /// Files read to their end, a second.
    pub files_per_second: f64,
    /// Bytes of published files, a second.
    pub bytes_per_second: f64,
    /// Messages confirmed, a second.
    pub confirms_per_second: f64,
    /// The mean time from event to confirm; `null` where nothing was confirmed.
    pub latency_seconds: Option<f64>,
    /// Files that could not be read, or whose message was refused.
    pub failures: u64,
    /// Files that were pending at the end.
    pub pending: i64,
}

impl Rate {
    fn between(before: &Sample, after: &Sample) -> Self {
        let seconds = after.at.saturating_duration_since(before.at).as_secs_f64();
        let rate = |before: u64, after: u64| after.saturating_sub(before) as f64 / seconds.max(f64::MIN_POSITIVE);
        let timed = after.timed.saturating_sub(before.timed);
        Self {
            seconds,
            files_per_second: rate(before.files, after.files),
            bytes_per_second: rate(before.bytes, after.bytes),
            confirms_per_second: rate(before.confirmed, after.confirmed),
            latency_seconds: (timed > 0).then(|| (after.seconds - before.seconds).max(0.0) / timed as f64),
            failures: after.failed.saturating_sub(before.failed),
            pending: after.pending,
        }
    }
}

/// The rates over three spans that end now; each is shorter while the service is younger.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Rates {
    /// Over a minute.
    pub one_minute: Option<Rate>,
    /// Over five.
    pub five_minutes: Option<Rate>,
    /// Over fifteen.
    pub fifteen_minutes: Option<Rate>,
}

/// The samples, the oldest first.
#[derive(Debug, Default)]
pub struct History(VecDeque<Sample>);

impl History {
    /// Adds a sample, and forgets the oldest where there are too many.
    pub fn add(&mut self, sample: Sample) {
        if self.0.len() == SAMPLES_MAX {
            self.0.pop_front();
        }
        self.0.push_back(sample);
    }

    /// The rates until this sample.
    #[must_use]
    pub fn rates(&self, now: &Sample) -> Rates {
        let over = |minutes: u64| self.over(now, Duration::from_secs(60 * minutes));
        Rates { one_minute: over(1), five_minutes: over(5), fifteen_minutes: over(15) }
    }

    fn over(&self, now: &Sample, span: Duration) -> Option<Rate> {
        // Half a step more, because ticks come a little late.
        let within = |sample: &&Sample| now.at.saturating_duration_since(sample.at) <= span + EVERY / 2;
        let first = self.0.iter().find(within).filter(|first| first.at < now.at)?;
        Some(Rate::between(first, now))
    }

    /// What happened from each sample to the next, the oldest first.
    #[must_use]
    pub fn steps(&self) -> Vec<Rate> {
        self.0.iter().zip(self.0.iter().skip(1)).map(|(before, after)| Rate::between(before, after)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(start: Instant, second: u64) -> Sample {
        let at = start + Duration::from_secs(second);
        Sample {
            at,
            files: 10 * second,
            bytes: 1000 * second,
            confirmed: 10 * second,
            failed: second / 60,
            seconds: second as f64,
            timed: 10 * second,
            pending: 7,
        }
    }

    #[test]
    fn rates_are_of_their_span_and_the_history_is_bounded() {
        let (start, mut history) = (Instant::now(), History::default());
        assert!(history.rates(&sample(start, 0)).one_minute.is_none(), "nothing to compare with");
        (0..=1000).for_each(|number| history.add(sample(start, 5 * number)));
        assert_eq!((history.0.len(), history.steps().len()), (SAMPLES_MAX, SAMPLES_MAX - 1));
        let Rates { one_minute, fifteen_minutes, .. } = history.rates(&sample(start, 5001));
        let (minute, quarter) = (one_minute.unwrap(), fifteen_minutes.unwrap());
        assert!((minute.files_per_second - 10.0).abs() < 1e-9 && (minute.bytes_per_second - 1000.0).abs() < 1e-6);
        assert!((minute.seconds - 61.0).abs() < 1e-9 && (quarter.seconds - 901.0).abs() < 1e-9);
        assert!((minute.latency_seconds.unwrap() - 0.1).abs() < 1e-9 && (quarter.failures, minute.pending) == (15, 7));
    }

    #[test]
    fn without_a_confirm_there_is_no_latency() {
        let (start, mut history) = (Instant::now(), History::default());
        let idle = |second| Sample { seconds: 0.0, timed: 0, ..sample(start, second) };
        history.add(idle(0));
        assert_eq!(history.rates(&idle(5)).one_minute.unwrap().latency_seconds, None);
    }
}
