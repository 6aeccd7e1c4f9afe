//! The stage that makes messages of jobs: open beneath the root, examine, read and hash in one pass, examine again.
//!
//! Two engines do the same work behind one function, `start`: `uring` with a ring and registered buffers a thread, and
//! `blocking` with plain reads. All that decides a file's result is in `readers` and `verify`, once for both.
//!
//! No file waits for another file system: each has reading threads of its own, so that one that hangs delays only its
//! own files. No small file waits for a large one: files of more than [`LARGE_BYTES`](limits::LARGE_BYTES) have a queue
//! of their own, of which each thread reads only a few at a time.

mod blocking;
pub mod buffer;
pub mod limits;
pub(crate) mod readers;
pub(crate) mod uring;
pub mod verify;

use std::thread::JoinHandle;

use readers::Readers;

use crate::cli::ReadEngine;
use crate::error::{Error, os_message};
use crate::progress::Engine;

/// The reading threads that were started.
pub(crate) struct Started {
    /// The engine's name, for the log.
    pub(crate) engine: &'static str,
    /// How each volume's files are read.
    pub(crate) engines: Vec<Engine>,
    /// The number of hashing threads: as many as were asked for, or as locked memory and descriptors are enough for.
    pub(crate) workers: usize,
    /// The threads, which end when both queues of their volume are closed and empty.
    pub(crate) threads: Vec<JoinHandle<()>>,
}

/// Starts the reading threads of each volume, with the engine that was chosen or that the kernel allows. Each volume
/// gets its share of the workers, and at least one.
///
/// # Errors
/// [`Error::Engine`] when io_uring was asked for by name and is refused; [`Error::Threads`] when the system refuses a
/// thread.
pub(crate) fn start(choice: ReadEngine, workers: usize, volumes: Vec<Readers>) -> Result<Started, Error> {
    let wanted = workers.max(volumes.len());
    if choice != ReadEngine::Blocking {
        match uring::Rings::set_up(wanted)? {
            Ok(rings) => return with_rings(rings, wanted, volumes),
            Err(cause) => {
                let next = uring::cure(&cause, wanted);
                if choice == ReadEngine::IoUring {
                    return Err(Error::Engine { cause, next });
                }
                let error = os_message(&cause);
                tracing::warn!(
                    event = "io_uring_refused",
                    error,
                    "io_uring is refused here ({error}), files are read with the blocking engine; {next}"
                );
            }
        }
    }
    let shares: Vec<usize> = limits::share_out(wanted, volumes.len()).collect();
    let engines = vec![Engine::Blocking; volumes.len()];
    let mut threads = Vec::new();
    for (readers, workers) in volumes.into_iter().zip(shares) {
        threads.extend(blocking::start(&Readers { workers, ..readers })?);
    }
    Ok(Started { engine: "blocking", engines, workers: wanted, threads })
}

/// Assigns each volume its share of the rings. Where rings are fewer than volumes, the blocking engine reads the last.
fn with_rings(mut rings: uring::Rings, wanted: usize, volumes: Vec<Readers>) -> Result<Started, Error> {
    if let Some((found, cure)) = rings.shortage(wanted) {
        tracing::warn!(event = "limits", error = found, "{found}; {cure}");
    }
    let workers = rings.count().max(volumes.len());
    let files = limits::files_each(workers, limits::descriptors_free());
    let shares: Vec<usize> = limits::share_out(workers, volumes.len()).collect();
    let (mut engines, mut threads) = (Vec::new(), Vec::new());
    for (readers, workers) in volumes.into_iter().zip(shares) {
        let readers = Readers { workers, files, ..readers };
        if rings.count() >= workers {
            engines.push(if readers.plain_reads { Engine::PlainReads } else { Engine::IoUring });
            threads.extend(rings.assign(workers, &readers));
        } else {
            engines.push(Engine::Blocking);
            threads.extend(blocking::start(&readers)?);
        }
    }
    Ok(Started { engine: "io_uring", engines, workers, threads })
}
