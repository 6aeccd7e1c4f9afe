//! Makes metrics, each registered under its name.

use prometheus::core::Collector;
use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry};

/// Makes metrics and registers them. All names are constants of the code, so a name that is taken or not allowed is a
/// programming error, which every test that makes metrics hits.
pub(super) struct Maker(pub(super) Registry);

impl Maker {
    pub(super) fn add<T: Collector + Clone + 'static>(&self, made: prometheus::Result<T>) -> T {
        let made = made.expect("names and labels are constants of the code");
        let added = self.0.register(Box::new(made.clone()));
        assert!(added.is_ok(), "{added:?}");
        made
    }

    pub(super) fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.add(IntCounter::new(name, help))
    }

    pub(super) fn counters<const N: usize>(
        &self,
        name: &str,
        help: &str,
        label: &str,
        values: [&str; N],
    ) -> [IntCounter; N] {
        let family = self.add(IntCounterVec::new(Opts::new(name, help), &[label]));
        values.map(|value| family.with_label_values(&[value]))
    }

    pub(super) fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.add(IntGauge::new(name, help))
    }

    pub(super) fn histogram(&self, name: &str, help: &str, bounds: &[f64]) -> Histogram {
        self.add(Histogram::with_opts(HistogramOpts::new(name, help).buckets(bounds.to_vec())))
    }
}
