//! What does an event cost in the pending set?
//!
//! Each file has two events, its creation and its close. For comparison: a map that only counts the events of each path,
//! which is the least that coalescing can cost.

mod common;

use std::collections::HashMap;
use std::iter;
use std::sync::Arc;
use std::time::{Duration, Instant};

use apollonia_ingestor::bench::{Change, DirectoryId, Due, Name, PENDING_MAX, Pending, Timestamp};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

const FILES: usize = 10_000;
const FEW_FILES: usize = 16;
const EVENTS: [Change; 2] = [Change::Created { version: 1 }, Change::Closed];
const SEEN: Timestamp = Timestamp { seconds: 1_795_449_909, nanoseconds: 0 };

fn names(count: usize) -> Vec<Name> {
    (0..count).map(|number| format!("Artist - Album - {number:06}.flac").into_bytes().into()).collect()
}

/// The pending set at one point in time, because no rule depends on the passing of time here.
struct Set {
    pending: Pending,
    now: Instant,
}

impl Set {
    fn new() -> Self {
        Self { pending: Pending::new(Duration::from_secs(1), Duration::ZERO, PENDING_MAX), now: Instant::now() }
    }

    fn event(&mut self, name: &Name, change: Change) {
        self.pending
            .event(DirectoryId::FIRST, name, change, false, SEEN, self.now)
            .expect("there are fewer names than there is room");
    }

    fn written(&mut self, name: &Name) {
        EVENTS.into_iter().for_each(|change| self.event(name, change));
    }

    /// Takes the next due file, as for a job.
    fn dispatch(&mut self) -> Option<Name> {
        match self.pending.next_due(self.now, |_| true)? {
            Due::Ready { name, .. } => Some(name),
            Due::Settled { .. } => panic!("every file was closed"),
        }
    }

    /// Completes the job of a file.
    fn done(&mut self, name: &Name) {
        self.pending.done(DirectoryId::FIRST, name, self.now);
    }

    fn finish(&mut self) {
        while let Some(name) = self.dispatch() {
            self.done(&name);
        }
        assert!(self.pending.is_empty());
    }
}

/// The map for comparison, which keeps none of the rules.
#[derive(Default)]
struct Bare(HashMap<Name, u64>);

impl Bare {
    fn written(&mut self, name: &Name) {
        EVENTS.iter().for_each(|_| *self.0.entry(Arc::clone(name)).or_default() += 1);
    }

    fn finish(&mut self, names: &[Name]) {
        names.iter().for_each(|name| assert!(self.0.remove(name).is_some()));
    }
}

/// Every file is created, closed, dispatched and completed.
fn distinct_files(criterion: &mut Criterion) {
    let names = names(FILES);
    let (mut set, mut bare) = (Set::new(), Bare::default());
    let mut group = criterion.benchmark_group("10,000 files of two events");
    group.throughput(Throughput::Elements((EVENTS.len() * FILES) as u64));
    group.bench_function("one after the other", |bencher| {
        bencher.iter(|| {
            for name in &names {
                set.written(name);
                set.finish();
            }
        });
    });
    group.bench_function("all, then the first is dispatched", |bencher| {
        bencher.iter(|| {
            names.iter().for_each(|name| set.written(name));
            set.finish();
        });
    });
    group.bench_function("all, in a bare map", |bencher| {
        bencher.iter(|| {
            names.iter().for_each(|name| bare.written(name));
            bare.finish(&names);
        });
    });
}

/// A few files get all the events: what does an event cost on a path that is in the set?
fn few_files(criterion: &mut Criterion) {
    let names = names(FEW_FILES);
    let (mut set, mut bare) = (Set::new(), Bare::default());
    let rounds = || iter::repeat_n(&names, FILES / FEW_FILES).flatten();
    let mut group = criterion.benchmark_group("16 files of 1,250 events");
    group.throughput(Throughput::Elements((EVENTS.len() * FILES) as u64));
    group.bench_function("while they wait", |bencher| {
        bencher.iter(|| {
            rounds().for_each(|name| set.written(name));
            set.finish();
        });
    });
    group.bench_function("while they are in flight", |bencher| {
        bencher.iter(|| {
            names.iter().for_each(|name| set.written(name));
            let dispatched: Vec<Name> = iter::from_fn(|| set.dispatch()).collect();
            rounds().for_each(|name| set.written(name));
            dispatched.iter().for_each(|name| set.done(name));
            set.finish(); // each file is dispatched once more, for all its events
        });
    });
    group.bench_function("in a bare map", |bencher| {
        bencher.iter(|| {
            rounds().for_each(|name| bare.written(name));
            bare.finish(&names);
        });
    });
}

criterion_group!(name = benches; config = common::criterion(); targets = distinct_files, few_files);
criterion_main!(benches);
