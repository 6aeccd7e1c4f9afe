//! What the benches share: the program's allocator, and how long each figure is measured.

use std::time::Duration;

use criterion::Criterion;

/// The allocator of the program, because another one would give other figures.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Short measurements, so that a whole `cargo bench` takes three minutes; criterion's own options override them.
pub fn criterion() -> Criterion {
    Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .nresamples(10_000)
        .without_plots()
        .configure_from_args()
}
