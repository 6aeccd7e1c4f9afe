//! Which read engine is faster on files in the page cache, by size of file?
//!
//! Both engines read the same files, with one hashing thread a CPU. The time goes from the dispatch of the jobs to the
//! reports of the output `none`; it contains neither the listing nor the start of the threads. `floor` measures the same
//! system calls on bare threads.
//!
//! The files are new, as those that land in a watched directory are: so the reader stats each name once more after
//! reading, which it need not do for older files.

mod common;
#[path = "common/passes.rs"]
mod passes;

use criterion::{Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use passes::{Passes, directory};

/// The number of files and the bytes of each: small, one chunk, many chunks. The numbers keep a pass short.
const DIRECTORIES: [(usize, usize); 3] = [(2000, 1024), (200, 64 * 1024), (4, 16 * 1024 * 1024)];

fn engines(criterion: &mut Criterion) {
    for (files, bytes) in DIRECTORIES {
        let files_of = directory(files, bytes);
        let mut group = criterion.benchmark_group(format!("{files} files of {} KB", bytes / 1024));
        group.sampling_mode(SamplingMode::Flat);
        // Small files are measured in files a second, large ones in bytes a second.
        group.throughput(if bytes < 64 * 1024 {
            Throughput::Elements(files as u64)
        } else {
            Throughput::Bytes((files * bytes) as u64)
        });
        for engine in ["io_uring", "blocking"] {
            match Passes::start(files_of.path(), engine) {
                Ok(mut passes) => {
                    group.bench_function(engine, |bencher| bencher.iter(|| passes.pass()));
                    passes.end();
                }
                Err(error) => eprintln!("{engine} is left out: {error}"),
            }
        }
    }
}

criterion_group!(name = benches; config = common::criterion(); targets = engines);
criterion_main!(benches);
