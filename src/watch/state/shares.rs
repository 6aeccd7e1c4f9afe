//! Gauges that the watches of all volumes have in common: each adds its part.

use prometheus::IntGauge;

/// The part of a volume in a gauge that the watches of all volumes have in common.
#[derive(Debug, Default)]
pub(super) struct Share(i64);

impl Share {
    pub(super) fn set(&mut self, gauge: &IntGauge, value: usize) {
        let value = value as i64;
        gauge.add(value - self.0);
        self.0 = value;
    }
}

/// The parts in all such gauges.
#[derive(Debug, Default)]
pub(super) struct Shares {
    pub(super) pending: Share,
    pub(super) known: Share,
    pub(super) watched: Share,
    pub(super) unwatched: Share,
    pub(super) refused: Share,
}
