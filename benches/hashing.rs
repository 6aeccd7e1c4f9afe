//! How much faster are SHA-256 streams side by side, and what does the second hash of a pass cost?
//!
//! First comes a table of every kernel that this CPU can run: the rate for each number of lanes, and its ratio to `sha2`
//! on one stream, measured in turns. Then criterion measures, for comparison, `sha2` on one stream, XXH3-128 alone, and
//! twox-hash's XXH3-128. Messages of 1 KB are hashed by `sha2`, in a loop and in a future each; by the lanes without their
//! scheduler (padded beforehand, four by four, which is the upper bound); and by the scheduler, with as many futures as a
//! reading thread has files in flight.

mod common;

use std::hint::black_box;

use apollonia_ingestor::bench::lanes::{BLOCK_BYTES, Block, INITIAL, Kernel, LANES_MAX, Lane, State, advance};
use apollonia_ingestor::bench::scheduler::{Request, Scheduler};
use apollonia_ingestor::bench::{CHUNK_BYTES, Digests, FILES_IN_FLIGHT, Hasher, Xxh128Stream};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use futures_util::future::join_all;
use rustix::time::{ClockId, clock_gettime};
use sha2::{Digest as _, Sha256};
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

const MESSAGE_BYTES: usize = 1024;

/// Turns of the table, each of some milliseconds a kernel, so that what the machine does meanwhile meets all of them.
const TURNS: usize = 61;

/// Bytes that each kernel hashes in a turn.
const TURN_BYTES: usize = 8 << 20;

/// Bytes without a pattern.
fn noise(length: usize, seed: u8) -> Vec<u8> {
    (0u64..).flat_map(|at| xxh3_128(&[&at.to_le_bytes()[..], &[seed]].concat()).to_le_bytes()).take(length).collect()
}

/// A message of whole blocks with its padding (FIPS 180-4, 5.1.1).
fn padded(message: &[u8]) -> Vec<Block> {
    let mut bytes = message.to_vec();
    bytes.push(0x80);
    bytes.resize(message.len() + BLOCK_BYTES - size_of::<u64>(), 0);
    bytes.extend((8 * message.len() as u64).to_be_bytes());
    bytes.as_chunks().0.to_vec()
}

/// Hashes each of the inputs, which have one length, in a lane of its own.
fn side_by_side<'a>(inputs: impl ExactSizeIterator<Item = &'a [Block]>) -> [State; LANES_MAX] {
    let mut states = [INITIAL; LANES_MAX];
    let mut lanes: Vec<Lane> = states.iter_mut().zip(inputs).map(|(state, blocks)| Lane { state, blocks }).collect();
    advance(&mut lanes, usize::MAX);
    states
}

/// Prints for each kernel and number of lanes the median rate, and the ratio to `sha2` on one stream.
fn kernels(_: &mut Criterion) {
    // Neither asks for a measurement.
    if std::env::args().any(|argument| argument == "--list" || argument == "--test") {
        return;
    }
    let chunks: Vec<Vec<u8>> = (0..LANES_MAX as u8).map(|seed| noise(CHUNK_BYTES, seed)).collect();
    let inputs: Vec<&[Block]> = chunks.iter().map(|chunk| chunk.as_chunks().0).collect();
    let runs: Vec<(Kernel, usize)> = Kernel::ALL
        .into_iter()
        .filter(|kernel| kernel.available())
        .flat_map(|kernel| (1..=LANES_MAX).map(move |lanes| (kernel, lanes)))
        .collect();
    let mut seconds = vec![Vec::with_capacity(TURNS); runs.len()];
    for _ in 0..TURNS {
        for (&(kernel, lanes), seconds) in runs.iter().zip(&mut seconds) {
            seconds.push(turn(kernel, &inputs[..lanes]));
        }
    }
    let rates: Vec<f64> = seconds.iter_mut().map(|seconds| TURN_BYTES as f64 / median(seconds) / 1e9).collect();
    let one = runs.iter().position(|&run| run == (Kernel::Sha2, 1)).map_or(f64::NAN, |at| rates[at]);
    println!("SHA-256 of 64 KB chunks, GB/s of processor time (ratio to sha2 on one stream: {one:.2} GB/s)");
    for (of_kernel, rates) in runs.chunks(LANES_MAX).zip(rates.chunks(LANES_MAX)) {
        let cells: Vec<String> = rates.iter().map(|rate| format!("{rate:.2} ({:.2})", rate / one)).collect();
        println!("{:12} 1 to {LANES_MAX} lanes: {}", format!("{:?}", of_kernel[0].0), cells.join("  "));
    }
    println!();
}

/// The processor time of one kernel for [`TURN_BYTES`].
fn turn(kernel: Kernel, inputs: &[&[Block]]) -> f64 {
    let mut states = [INITIAL; LANES_MAX];
    let began = processor_seconds();
    for _ in 0..TURN_BYTES / (inputs.len() * CHUNK_BYTES) {
        let mut lanes: Vec<Lane> =
            states.iter_mut().zip(black_box(inputs)).map(|(state, &blocks)| Lane { state, blocks }).collect();
        kernel.advance(&mut lanes, usize::MAX);
    }
    black_box(states);
    let whole = (TURN_BYTES / (inputs.len() * CHUNK_BYTES)) * inputs.len() * CHUNK_BYTES;
    (processor_seconds() - began) * TURN_BYTES as f64 / whole as f64
}

/// Processor time of this thread: what other programs do on the same core is not in it.
fn processor_seconds() -> f64 {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    now.tv_sec as f64 + now.tv_nsec as f64 / 1e9
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn chunks(criterion: &mut Criterion) {
    let chunks: Vec<Vec<u8>> = (0..LANES_MAX as u8).map(|seed| noise(CHUNK_BYTES, seed)).collect();
    let chunk = &chunks[0][..];
    let mut group = criterion.benchmark_group("64 KB chunks");

    for lanes in 1..=LANES_MAX {
        group.throughput(Throughput::Bytes((lanes * CHUNK_BYTES) as u64));
        group.bench_function(BenchmarkId::new("SHA-256, lanes", lanes), |bencher| {
            bencher.iter(|| side_by_side(black_box(&chunks)[..lanes].iter().map(|chunk| chunk.as_chunks().0)));
        });
    }
    group.throughput(Throughput::Bytes((LANES_MAX * CHUNK_BYTES) as u64));
    group.bench_function("both hashes, 4 lanes", |bencher| {
        bencher.iter(|| {
            let chunks = black_box(&chunks);
            let xxh128: Vec<u128> = chunks.iter().map(|chunk| streamed(chunk)).collect();
            (xxh128, side_by_side(chunks.iter().map(|chunk| chunk.as_chunks().0)))
        });
    });

    group.throughput(Throughput::Bytes(CHUNK_BYTES as u64));
    group.bench_function("both hashes, 1 stream", |bencher| {
        bencher.iter(|| {
            let mut hasher = Hasher::default();
            hasher.update(black_box(chunk));
            hasher.finish()
        });
    });
    group.bench_function("SHA-256, sha2", |bencher| bencher.iter(|| Sha256::digest(black_box(chunk))));
    group.bench_function("XXH3-128, twox-hash", |bencher| bencher.iter(|| streamed(black_box(chunk))));
    group.bench_function("XXH3-128, xxhash-rust", |bencher| {
        bencher.iter(|| {
            let mut hasher = Xxh3::new();
            hasher.update(black_box(chunk));
            hasher.digest128()
        });
    });
}

/// The XXH3-128 of a chunk, hashed as those of a large file are.
fn streamed(chunk: &[u8]) -> u128 {
    let mut hasher = Xxh128Stream::new();
    hasher.write(chunk);
    hasher.finish_128()
}

fn messages(criterion: &mut Criterion) {
    let messages: Vec<Vec<u8>> = (0..FILES_IN_FLIGHT).map(|number| noise(MESSAGE_BYTES, number as u8)).collect();
    let expected: Vec<[u8; 32]> = messages.iter().map(|message| Digests::of(message).sha256).collect();
    let mut group = criterion.benchmark_group("SHA-256 of 1 KB messages");
    group.throughput(Throughput::Bytes((FILES_IN_FLIGHT * MESSAGE_BYTES) as u64));

    group.bench_function("sha2, one by one", |bencher| {
        bencher.iter(|| -> Vec<[u8; 32]> { messages.iter().map(|message| Sha256::digest(message).into()).collect() });
    });

    let padded: Vec<Vec<Block>> = messages.iter().map(|message| padded(message)).collect();
    let first = side_by_side(padded[..LANES_MAX].iter().map(|blocks| &blocks[..]));
    assert_eq!(first.map(|state| state.map(u32::to_be_bytes).concat()), [0, 1, 2, 3].map(|at| expected[at].to_vec()));
    group.bench_function("4 lanes, padded beforehand", |bencher| {
        bencher.iter(|| {
            for four in padded.chunks(LANES_MAX) {
                black_box(side_by_side(four.iter().map(|blocks| &blocks[..])));
            }
        });
    });

    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("the system has a descriptor left");
    let ready = async || join_all(messages.iter().map(async |message| Sha256::digest(message))).await;
    group.bench_function("sha2, a future each", |bencher| bencher.iter(|| runtime.block_on(ready())));

    let scheduler = Scheduler::default();
    let hash_all = async || {
        let all = messages.iter().map(async |message| {
            let mut request = Box::<Request<&[u8]>>::default();
            request.add(&message[..], message.len());
            request.end();
            scheduler.hash(request).await.digest()
        });
        tokio::select! {
            digests = join_all(all) => digests,
            () = scheduler.run() => unreachable!("the scheduler never ends"),
        }
    };
    assert_eq!(runtime.block_on(hash_all()), expected);
    group.bench_function("4 lanes, a future each, through the scheduler", |bencher| {
        bencher.iter(|| runtime.block_on(hash_all()))
    });
}

criterion_group!(name = benches; config = common::criterion(); targets = kernels, chunks, messages);
criterion_main!(benches);
