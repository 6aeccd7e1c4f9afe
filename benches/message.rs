//! What does a message with ten neighbors cost to encode?
//!
//! For comparison: serde_json on the same structure.

mod common;

use std::hint::black_box;

use apollonia_ingestor::bench::{Digests, EventType, Message, NEIGHBORS_MAX, Paths, Timestamp, Version};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

const STAMP: Timestamp = Timestamp { seconds: 1_795_449_909, nanoseconds: 123_456_789 };
const VERSION: Version = Version { inode: 2, size: 31_415_926, modified: STAMP, changed: STAMP };

/// Composes a file's path and those of its neighbors.
fn compose(paths: &mut Paths, names: &[Vec<u8>]) {
    paths.begin(b"/srv/media/");
    names.iter().for_each(|name| paths.push(name));
}

fn message<'a>(paths: &'a Paths, digests: &Digests) -> Message<'a> {
    Message::new(paths, EventType::Create, digests, &VERSION, STAMP, STAMP)
}

fn encode(criterion: &mut Criterion) {
    let names: Vec<Vec<u8>> =
        (0..=NEIGHBORS_MAX).map(|track| format!("Artist - Album - {track:02}.flac").into_bytes()).collect();
    let digests = Digests::of(b"abc");
    let (mut paths, mut scratch) = (Paths::default(), Vec::new());
    compose(&mut paths, &names);
    let body = message(&paths, &digests).encode(&mut scratch).expect("strings and numbers have a JSON form");
    assert_eq!(body[..], serde_json::to_vec(&message(&paths, &digests)).expect("as above"));

    let mut group = criterion.benchmark_group("message with 10 neighbors");
    group.throughput(Throughput::Bytes(body.len() as u64));
    group.bench_function("composed and encoded", |bencher| {
        bencher.iter(|| {
            compose(&mut paths, black_box(&names));
            message(&paths, black_box(&digests)).encode(&mut scratch)
        });
    });
    let ready = message(&paths, &digests);
    group.bench_function("encoded", |bencher| bencher.iter(|| black_box(&ready).encode(&mut scratch)));
    group.bench_function("encoded, serde_json", |bencher| bencher.iter(|| serde_json::to_vec(black_box(&ready))));
}

criterion_group!(name = benches; config = common::criterion(); targets = encode);
criterion_main!(benches);
