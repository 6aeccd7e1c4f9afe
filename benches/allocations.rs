//! How many allocations does a file take?
//!
//! dhat counts them over passes of 1,000 and of 3,000 files through the whole pipeline with the output `none`; the
//! difference leaves out the cost of the start. A message needs its body; a batch shares one allocation.

#[path = "common/passes.rs"]
mod passes;

use dhat::{HeapStats, Profiler};
use passes::{Passes, directory};

#[global_allocator]
static ALLOCATOR: dhat::Alloc = dhat::Alloc;

/// A small file, one chunk, several chunks.
const SIZES: [usize; 3] = [1024, 64 * 1024, 256 * 1024];

fn main() {
    let _counting = Profiler::builder().testing().build();
    for engine in ["io_uring", "blocking"] {
        for bytes in SIZES {
            let blocks = |files| {
                let files = directory(files, bytes);
                let mut passes = Passes::start(files.path(), engine).expect("this machine has both engines");
                passes.pass(); // so that buffers which are used again have their size
                let before = HeapStats::get().total_blocks;
                passes.pass();
                let allocated = HeapStats::get().total_blocks - before;
                passes.end();
                allocated
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
