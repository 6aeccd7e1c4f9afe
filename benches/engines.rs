//! Which read engine is faster on files in the page cache, by size of file?
//!
//! Each engine stands beside the other, on the same files: from jobs handed in to messages confirmed by the output
//! `none`, with a hashing thread a CPU. Neither the listing nor the start of the threads is counted. `floor` is what the
//! same system calls cost on bare threads.
//!
//! The files have just been made, as those that land in a watched directory have: each name is looked at once more
//! after reading, which older files are spared.

mod common;
#[path = "common/passes.rs"]
mod passes;

use criterion::{Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use passes::{Passes, directory};

/// Files and bytes of each, small, one chunk, many chunks: the number keeps a pass over all of them short.
const DIRECTORIES: [(usize, usize); 3] = [(2000, 1024), (200, 64 * 1024), (4, 16 * 1024 * 1024)];

fn engines(criterion: &mut Criterion) {
    for (files, bytes) in DIRECTORIES {
        let files_of = directory(files, bytes);
        let mut group = criterion.benchmark_group(format!("{files} files of {} KB", bytes / 1024));
        group.sampling_mode(SamplingMode::Flat);
        // Files a second tell more of small files, bytes a second of large ones.
        group.throughput(if bytes < 64 * 1024 {
            Throughput::Elements(files as u64)
        } else {
            Throughput::Bytes((files * bytes) as u64)
        });
        for engine in ["io_uring", "blocking"] {
            match Passes::start(files_of.path(), engine) {
                Ok(mut passes) => {
                    group.bench_function(engine, |bencher| bencher.iter(|| passes.pass()));
                    passes.pipeline.finish().expect("nothing has failed");
                }
                Err(error) => eprintln!("{engine} is left out: {error}"),
            }
        }
    }
}

criterion_group!(name = benches; config = common::criterion(); targets = engines);
criterion_main!(benches);
