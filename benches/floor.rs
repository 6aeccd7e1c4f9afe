//! What do the system calls of a scan cost, if the content is thrown away? And what does one have to pay in any case?
//!
//! ```sh
//! cargo bench --bench floor -- DIR THREADS [checked|hashed]
//! ```
//!
//! A bare loop on THREADS threads, each over its contiguous share of DIR's regular files: openat, fstat, read to the
//! size that fstat reported into a buffer of 64 KB, close. The time goes from before the listing to the last thread's
//! end; it is the lower bound of `apollonia-ingestor scan DIR --output none --workers THREADS`. `checked` adds what shows that
//! nobody wrote the file meanwhile, a read lease taken and released and a second fstat, and `hashed` both hashes, one file
//! after another. Without arguments the bench makes a directory of 20,000 files of 1 KB and takes 2 threads.

use std::error::Error;
use std::ffi::{CStr, CString};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;
use std::{fs, hint, io, thread};

use apollonia_ingestor::bench::{Before, Digests};
use rustix::fd::{AsFd, BorrowedFd};
use rustix::fs::{CWD, Dir, FileType, Mode, OFlags, fstat, openat};
use rustix::io::{Errno, read};

const BUFFER_BYTES: usize = 64 * 1024;
const OWN_FILES: usize = 20_000;
const OWN_FILE_BYTES: usize = 1024;
const OWN_THREADS: usize = 2;

/// The number of files under `cargo test --all-targets`, which only shows that the bench runs.
const TEST_FILES: usize = 20;

fn main() -> ExitCode {
    // Cargo adds `--bench`, except for `cargo test`.
    let (flags, words): (Vec<String>, Vec<String>) = std::env::args().skip(1).partition(|word| word.starts_with('-'));
    let done = match &words[..] {
        [] if flags.iter().any(|flag| flag == "--bench") => measure_own(OWN_FILES),
        [] => measure_own(TEST_FILES),
        [directory, threads] => measure_given(directory, threads, Work::Bare),
        [directory, threads, work] => match work.as_str() {
            "checked" => measure_given(directory, threads, Work::Checked),
            "hashed" => measure_given(directory, threads, Work::Hashed),
            _ => Err(format!("the work cannot be {work:?}: it is checked or hashed").into()),
        },
        _ => Err("it takes DIR, THREADS and perhaps the work, or nothing".into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("floor: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What is done with each file beyond opening, examining, reading and closing it.
#[derive(Clone, Copy, PartialEq)]
enum Work {
    Bare,
    /// It is shown that nobody wrote it meanwhile.
    Checked,
    /// And it is hashed.
    Hashed,
}

fn measure_given(directory: &str, threads: &str, work: Work) -> Result<(), Box<dyn Error>> {
    match threads.parse() {
        Ok(threads) if threads > 0 => measure(&PathBuf::from(directory), threads, work),
        _ => Err(format!("THREADS cannot be {threads:?}: it is a number from 1 on").into()),
    }
}

fn measure_own(files: usize) -> Result<(), Box<dyn Error>> {
    let directory = tempfile::tempdir()?;
    for number in 0..files {
        fs::write(directory.path().join(format!("{number:05}.flac")), [number as u8; OWN_FILE_BYTES])?;
    }
    measure(directory.path(), OWN_THREADS, Work::Bare)
}

fn measure(directory: &Path, threads: usize, work: Work) -> Result<(), Box<dyn Error>> {
    let began = Instant::now();
    let directory = openat(CWD, directory, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| format!("{}: {errno}", directory.display()))?;
    let names = list(directory.as_fd())?;
    let bytes = thread::scope(|scope| {
        let share = names.len().div_ceil(threads).max(1);
        let spawn = |names| {
            scope.spawn({
                let directory = directory.as_fd();
                move || read_all(directory, names, work)
            })
        };
        let running: Vec<_> = names.chunks(share).map(spawn).collect();
        running.into_iter().map(|thread| thread.join().expect("a loop without panics")).sum::<io::Result<u64>>()
    })?;
    let (files, seconds) = (names.len(), began.elapsed().as_secs_f64());
    println!("files={files} bytes={bytes} seconds={seconds:.6} files/s={:.0}", files as f64 / seconds);
    Ok(())
}

fn list(directory: BorrowedFd<'_>) -> Result<Vec<CString>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        if entry.file_type() == FileType::RegularFile {
            names.push(entry.file_name().to_owned());
        }
    }
    Ok(names)
}

fn read_all(directory: BorrowedFd<'_>, names: &[CString], work: Work) -> io::Result<u64> {
    let mut buffer = vec![0; BUFFER_BYTES];
    names.iter().map(|name| read_one(directory, name, &mut buffer, work)).sum()
}

/// Reads a file to its size, with the service's own checks before and after where these are asked for. Returns the number of bytes read, which is smaller where the file has shrunk.
fn read_one(directory: BorrowedFd<'_>, name: &CStr, buffer: &mut [u8], work: Work) -> io::Result<u64> {
    let file = openat(directory, name, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    let before = match work {
        Work::Bare => None,
        Work::Checked | Work::Hashed => Some(Before::examine(file.as_fd()).map_err(|_| io::ErrorKind::ResourceBusy)?),
    };
    let size = match before {
        None => u64::try_from(fstat(&file)?.st_size).unwrap_or(0),
        Some(before) => before.version.size,
    };
    let mut at = 0;
    while at < size {
        let count = read(&file, &mut *buffer)?;
        if count == 0 {
            break;
        }
        at += count as u64;
        if work == Work::Hashed {
            hint::black_box(Digests::of(&buffer[..count]));
        }
    }
    if let Some(before) = before {
        before.confirm(file.as_fd()).map_err(|_| io::ErrorKind::ResourceBusy)?;
    }
    Ok(at)
}
