//! Passes of every file of a directory through the pipeline.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use apollonia_ingestor::bench::{
    Config, Directory, Dispatcher, EventType, Found, Job, Notice, Outcome, Reports, Stages, Timestamp, list, prepare,
    start_pipeline,
};
use apollonia_ingestor::cli::Cli;
use apollonia_ingestor::error::Error;
use clap::Parser;
use tempfile::TempDir;

/// The number of jobs that are dispatched at a time, as in `scan`.
const BATCH: usize = 256;

/// A new directory with files of one size.
pub fn directory(files: usize, bytes: usize) -> TempDir {
    let directory = tempfile::tempdir().expect("a place for temporary files");
    for number in 0..files {
        let content = vec![number as u8; bytes];
        fs::write(directory.path().join(format!("{number:04}.flac")), content).expect("room for the files");
    }
    directory
}

/// A listed directory and the running pipeline.
pub struct Passes {
    stages: Stages,
    pipeline: Dispatcher,
    directory: Arc<Directory>,
    files: Vec<Found>,
}

impl Passes {
    /// Lists the directory and starts the stages, with the output `none`.
    pub fn start(path: &Path, engine: &str) -> Result<Self, Error> {
        let cli = Cli::parse_from(["apollonia-ingestor", "scan", "--output", "none", "--read-engine", engine]);
        let config = Config::for_scan(&cli.settings, &[path.to_owned()])?;
        let roots = prepare(config.roots)?;
        let directory = Directory::new(&roots[0], b"");
        let listing = list(directory.root(), b"").expect("the directory has just been made");
        directory.set_names(listing.neighbors());
        let (stages, pipeline, _) = start_pipeline(&config.pipeline, &roots, Arc::default())?;
        Ok(Self { stages, pipeline, directory: Arc::new(directory), files: listing.files })
    }

    /// Reads and hashes every file, and waits until its message is confirmed.
    pub fn pass(&mut self) {
        let Self { pipeline, directory, files, .. } = self;
        let job = |found: &Found| {
            Job::new(
                Arc::clone(directory),
                Arc::clone(&found.name),
                EventType::Create,
                Timestamp { seconds: 0, nanoseconds: 0 },
            )
        };
        let mut batches = files.chunks(BATCH).peekable();
        loop {
            while let Some(notice) = pipeline.next_notice() {
                match notice {
                    Notice::Reports(reports) => {
                        assert!(reports.iter().all(|report| matches!(report.outcome, Outcome::Confirmed { .. })));
                    }
                    notice => panic!("{notice:?}"),
                }
            }
            if let Some(batch) = batches.next_if(|batch| batch.len() <= pipeline.room()) {
                pipeline.submit(batch.iter().map(job));
            } else if pipeline.busy() {
                pipeline.mailbox.sleep(None, None, Reports::Wake).expect("poll has no reason to fail");
            } else {
                return;
            }
        }
    }

    /// Ends the stages.
    pub fn end(mut self) {
        self.stages.finish(&mut self.pipeline.mailbox).expect("nothing has failed");
    }
}
