//! What the benches share: the binary's allocator, and how long each figure is measured.

use std::time::Duration;

use criterion::Criterion;

/// The one of the binary, or the figures would be another program's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Short, so that a whole `cargo bench` is a matter of three minutes; criterion's own options override it.
pub fn criterion() -> Criterion {
    Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .nresamples(10_000)
        .without_plots()
        .configure_from_args()
}
