//! What does an event cost in the pending set?
//!
//! Counted are the events that the kernel sends for it: creation and close. Printed beside: a bare map that knows of
//! each path only how often it was seen, which is the least that coalescing can cost.

mod common;

use std::collections::HashMap;
use std::iter;
use std::sync::Arc;
use std::time::{Duration, Instant};

use apollonia_ingestor::files::directory::DirectoryId;
use apollonia_ingestor::files::names::Name;
use apollonia_ingestor::files::version::Stamp;
use apollonia_ingestor::watch::pending::{Change, Due, PENDING_MAX, Pending};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

const FILES: usize = 10_000;
const FEW_FILES: usize = 16;
const EVENTS: [Change; 2] = [Change::Created { version: 1 }, Change::Closed];
const SEEN: Stamp = Stamp { seconds: 1_795_449_909, nanoseconds: 0 };

fn names(count: usize) -> Vec<Name> {
    (0..count).map(|number| format!("Artist - Album - {number:06}.flac").into_bytes().into()).collect()
}

/// The pending set, at one point in time: no rule depends on its passing here.
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

    /// To the readers.
    fn dispatch(&mut self) -> Option<Name> {
        match self.pending.next_due(self.now, |_| true)? {
            Due::Ready { name, .. } => Some(name),
            Due::Settled { .. } => panic!("every file was closed"),
        }
    }

    /// From the readers: its message is confirmed.
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

/// What is left when no rule is kept.
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

/// Every file is created, written, closed, handed out and confirmed.
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
    group.bench_function("all, then the first is read", |bencher| {
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

/// The same few files again and again: what an event costs on a path that is in the set.
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
    group.bench_function("while they are read", |bencher| {
        bencher.iter(|| {
            names.iter().for_each(|name| set.written(name));
            let read: Vec<Name> = iter::from_fn(|| set.dispatch()).collect();
            rounds().for_each(|name| set.written(name));
            read.iter().for_each(|name| set.done(name));
            set.finish(); // each came once more, for all that happened meanwhile
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
