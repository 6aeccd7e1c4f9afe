//! Which read engine is faster on files in the page cache, by size of file?
//!
//! Each engine stands beside the other, on the same files: from jobs handed in to messages confirmed by the output
//! `none`, with a hashing thread a CPU. Neither the listing nor the start of the threads is counted. `floor` is what the
//! same system calls cost on bare threads.
//!
//! The files have just been made, as those that land in a watched directory have: each name is looked at once more
//! after reading, which older files are spared.

mod common;

use std::fs;
use std::path::Path;
use std::sync::Arc;

use apollonia_ingestor::cli::Cli;
use apollonia_ingestor::config::Config;
use apollonia_ingestor::error::Error;
use apollonia_ingestor::message::EventType;
use apollonia_ingestor::pipeline::{Job, Letter, Outcome, Pipeline};
use apollonia_ingestor::read::stable::Stamp;
use apollonia_ingestor::service::prepare;
use apollonia_ingestor::watch::index::Directory;
use apollonia_ingestor::watch::lookover::{Found, list};
use clap::Parser;
use criterion::{Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use tempfile::TempDir;

/// Files and bytes of each, small, one chunk, many chunks: the number keeps a pass over all of them short.
const DIRECTORIES: [(usize, usize); 3] = [(2000, 1024), (200, 64 * 1024), (4, 16 * 1024 * 1024)];

/// Jobs handed in at a time, as `scan` does.
const BATCH: usize = 256;

fn directory(files: usize, bytes: usize) -> TempDir {
    let directory = tempfile::tempdir().expect("a place for temporary files");
    for number in 0..files {
        let content = vec![number as u8; bytes];
        fs::write(directory.path().join(format!("{number:04}.flac")), content).expect("room for the files");
    }
    directory
}

/// The running pipeline behind a directory that has been listed.
struct Bench {
    pipeline: Pipeline,
    directory: Arc<Directory>,
    files: Vec<Found>,
}

impl Bench {
    fn start(path: &Path, engine: &str) -> Result<Self, Error> {
        let words = ["apollonia-ingestor", "scan", "--output", "none", "--read-engine", engine].map(str::as_ref);
        let cli = Cli::parse_from(words.into_iter().chain([path.as_os_str()]));
        let config = Config::new(cli.settings, cli.command.as_ref())?;
        let root = prepare(config.root)?;
        let directory = Directory::new(root.path().as_os_str().as_encoded_bytes(), b"");
        let files = list(&root, b"").expect("it has just been made").files;
        directory.update(|names| files.iter().for_each(|found| names.insert(&found.name)));
        let pipeline = Pipeline::start(&config.pipeline, root)?;
        Ok(Self { pipeline, directory: Arc::new(directory), files })
    }

    /// Has every file read, hashed and its message confirmed.
    fn pass(&mut self) {
        let Self { pipeline, directory, files } = self;
        let job = |found: &Found| Job {
            directory: Arc::clone(directory),
            name: Arc::clone(&found.name),
            event: EventType::Create,
            seen_at: Stamp { seconds: 0, nanoseconds: 0 },
            known: None,
        };
        let mut batches = files.chunks(BATCH).peekable();
        loop {
            while let Some(letter) = pipeline.next_letter() {
                match letter {
                    Letter::Reports(reports) => {
                        assert!(reports.iter().all(|report| matches!(report.outcome, Outcome::Confirmed { .. })));
                    }
                    letter => panic!("{letter:?}"),
                }
            }
            if let Some(batch) = batches.next_if(|batch| batch.len() <= pipeline.room()) {
                pipeline.submit(batch.iter().map(job));
            } else if pipeline.busy() {
                pipeline.mailbox.sleep(None, None).expect("poll has no reason to fail");
            } else {
                return;
            }
        }
    }
}

fn engines(criterion: &mut Criterion) {
    for (files, bytes) in DIRECTORIES {
        let directory = directory(files, bytes);
        let mut group = criterion.benchmark_group(format!("{files} files of {} KB", bytes / 1024));
        group.sampling_mode(SamplingMode::Flat);
        // Files a second tell more of small files, bytes a second of large ones.
        group.throughput(if bytes < 64 * 1024 {
            Throughput::Elements(files as u64)
        } else {
            Throughput::Bytes((files * bytes) as u64)
        });
        for engine in ["io_uring", "blocking"] {
            match Bench::start(directory.path(), engine) {
                Ok(mut bench) => {
                    group.bench_function(engine, |bencher| bencher.iter(|| bench.pass()));
                    bench.pipeline.finish().expect("nothing has failed");
                }
                Err(error) => eprintln!("{engine} is left out: {error}"),
            }
        }
    }
}

criterion_group!(name = benches; config = common::criterion(); targets = engines);
criterion_main!(benches);
