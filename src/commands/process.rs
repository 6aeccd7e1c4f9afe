//! What every command does to its process, and the line of its failure.

pub use crate::logging::{failure, finish};
use crate::read::limits;
use crate::signals;

/// Prepares the process, before its command starts.
pub fn prepare() {
    signals::prepare();
    // Names and messages are small and many: huge pages would gain nothing and leave megabytes of each page unused.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    limits::raise_descriptors();
}
