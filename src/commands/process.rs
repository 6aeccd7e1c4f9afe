//! What every command does to its process, and the line of its failure.

use crate::advice::{self, Reader};
use crate::cli::Command;
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

/// Says who reads the advice in the lines of this process.
pub fn address_advice(command: &Command) {
    advice::address_to(match command {
        Command::Watch { .. } | Command::Doctor { .. } => Reader::Operator,
        Command::Scan { .. } | Command::Verify { .. } => Reader::Publisher,
        Command::Listen { .. } | Command::Health { .. } | Command::Status { .. } | Command::Completions { .. } => {
            Reader::Listener
        }
    });
}
