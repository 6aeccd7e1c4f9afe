//! What does a message with ten neighbors cost to encode?
//!
//! Printed beside: serde_json on the same structure.

mod common;

use std::borrow::Cow;
use std::hint::black_box;

use apollonia_ingestor::hash::Digests;
use apollonia_ingestor::message::{EventType, Message};
use apollonia_ingestor::read::stable::{Stamp, Version};
use apollonia_ingestor::watch::index::NEIGHBORS_MAX;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

const STAMP: Stamp = Stamp { seconds: 1_795_449_909, nanoseconds: 123_456_789 };
const VERSION: Version = Version { device: 1, inode: 2, size: 31_415_926, modified: STAMP, changed: STAMP };

fn paths() -> Vec<Vec<u8>> {
    (0..=NEIGHBORS_MAX).map(|track| format!("/srv/media/Artist - Album - {track:02}.flac").into_bytes()).collect()
}

/// The path's message, with the others for neighbors.
fn message<'a>(paths: &'a [Vec<u8>], digests: &Digests) -> Message<'a> {
    let neighbors: Vec<Cow<str>> = paths[1..].iter().map(|path| String::from_utf8_lossy(path)).collect();
    Message::new(&paths[0], EventType::Create, digests, &VERSION, STAMP, STAMP, neighbors)
}

fn encode(criterion: &mut Criterion) {
    let (paths, digests) = (paths(), Digests::of(b"abc"));
    let ready = message(&paths, &digests);
    let body = ready.encode().expect("strings and numbers have a JSON form");
    assert_eq!(body, serde_json::to_vec(&ready).expect("as above"));

    let mut group = criterion.benchmark_group("message with 10 neighbors");
    group.throughput(Throughput::Bytes(body.len() as u64));
    group.bench_function("put together and encoded", |bencher| {
        bencher.iter(|| message(black_box(&paths), black_box(&digests)).encode());
    });
    group.bench_function("encoded", |bencher| bencher.iter(|| black_box(&ready).encode()));
    group.bench_function("encoded, serde_json", |bencher| bencher.iter(|| serde_json::to_vec(black_box(&ready))));
}

criterion_group!(name = benches; config = common::criterion(); targets = encode);
criterion_main!(benches);
