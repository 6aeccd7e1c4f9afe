//! How often is memory asked for, for each file?
//!
//! Counted by dhat over passes of 1,000 and of 3,000 files through the whole pipeline with the output `none`: the
//! difference leaves out what the start costs. A message needs its body; batches share what they travel in.

#[path = "common/passes.rs"]
mod passes;

use dhat::{HeapStats, Profiler};
use passes::{Passes, directory};

#[global_allocator]
static ALLOCATOR: dhat::Alloc = dhat::Alloc;

/// 1 KB, one chunk, several.
const SIZES: [usize; 3] = [1024, 64 * 1024, 256 * 1024];

fn main() {
    let _counting = Profiler::builder().testing().build();
    for engine in ["io_uring", "blocking"] {
        for bytes in SIZES {
            let blocks = |files| {
                let files = directory(files, bytes);
                let mut passes = Passes::start(files.path(), engine).expect("an engine that the machine has");
                passes.pass(); // grows what is used again
                let before = HeapStats::get().total_blocks;
                passes.pass();
                let asked = HeapStats::get().total_blocks - before;
                passes.pipeline.finish().expect("nothing has failed");
                asked
            };
            let (few, many) = (blocks(1000), blocks(3000));
            println!(
                "{engine}, files of {} KB: {:.2} allocations a file",
                bytes / 1024,
                (many as f64 - few as f64) / 2000.0
            );
        }
    }
}
