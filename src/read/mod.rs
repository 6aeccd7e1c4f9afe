//! Jobs become messages: open beneath the root, examine, read and hash in one pass, examine again.
//!
//! Two engines do the same work behind one seam, [`start`]: [`uring`] with a ring and registered buffers a
//! thread, [`blocking`] with plain reads. Everything that decides what a file's result *is* stands here and
//! in [`readers`] and [`verify`], once for both.
//!
//! Nobody waits for somebody else's file: each file system has reading threads of its own, so that one that hangs
//! holds up nobody's calls but those for its own files; and a file of more than [`LARGE_BYTES`](limits::LARGE_BYTES) waits in a queue of its
//! own for one of the few places that there are for such files, so that those below it go past it.

pub mod blocking;
pub mod buffer;
pub mod limits;
pub mod readers;
pub mod uring;
pub mod verify;

use std::thread::JoinHandle;

use readers::Readers;

use crate::cli::ReadEngine;
use crate::error::Error;
pub use crate::queue::{Deadline, Queue};

/// The reading threads that run.
pub struct Started {
    /// Its name, for the log.
    pub engine: &'static str,
    /// How many threads hash: as many as were asked for, or as there is locked memory and descriptors for.
    pub workers: usize,
    /// They end when the jobs' channel is closed.
    pub threads: Vec<JoinHandle<()>>,
}

/// Starts the reading threads of each volume with the engine that was chosen, or that can be had. Each gets its share of
/// the workers, and one at the least.
///
/// # Errors
/// [`Error::Engine`] when io_uring was asked for by name and is refused; [`Error::Threads`] when the system refuses a
/// thread.
pub fn start(choice: ReadEngine, workers: usize, volumes: Vec<Readers>) -> Result<Started, Error> {
    let wanted = workers.max(volumes.len());
    if choice != ReadEngine::Blocking {
        match uring::Rings::set_up(wanted)? {
            Ok(rings) => return with_rings(rings, wanted, volumes),
            Err(cause) => {
                let next = uring::cure(&cause, wanted);
                if choice == ReadEngine::IoUring {
                    return Err(Error::Engine { cause, next });
                }
                tracing::warn!("io_uring is refused here ({cause}), files are read with the blocking engine; {next}");
            }
        }
    }
    let shares: Vec<usize> = limits::share_out(wanted, volumes.len()).collect();
    let mut threads = Vec::new();
    for (readers, workers) in volumes.into_iter().zip(shares) {
        threads.extend(blocking::start(&Readers { workers, ..readers })?);
    }
    Ok(Started { engine: "blocking", workers: wanted, threads })
}

/// Every volume gets its share of the rings; where there are fewer rings than volumes, the last are read without.
fn with_rings(mut rings: uring::Rings, wanted: usize, volumes: Vec<Readers>) -> Result<Started, Error> {
    if let Some((found, cure)) = rings.shortage(wanted) {
        tracing::warn!("{found}; {cure}");
    }
    let workers = rings.count().max(volumes.len());
    let files = limits::files_each(workers, limits::descriptors_free());
    let shares: Vec<usize> = limits::share_out(workers, volumes.len()).collect();
    let mut threads = Vec::new();
    for (readers, workers) in volumes.into_iter().zip(shares) {
        let readers = Readers { workers, files, ..readers };
        if rings.count() >= workers {
            threads.extend(rings.give(workers, &readers));
        } else {
            threads.extend(blocking::start(&readers)?);
        }
    }
    Ok(Started { engine: "io_uring", workers, threads })
}
