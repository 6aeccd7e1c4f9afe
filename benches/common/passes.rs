//! Every file of a directory through the pipeline, as often as one likes.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use apollonia_ingestor::cli::Cli;
use apollonia_ingestor::commands::roots::prepare;
use apollonia_ingestor::config::Config;
use apollonia_ingestor::dispatch::Dispatcher;
use apollonia_ingestor::error::Error;
use apollonia_ingestor::files::directory::Directory;
use apollonia_ingestor::files::listing::{Found, list};
use apollonia_ingestor::files::version::Stamp;
use apollonia_ingestor::job::{Job, Outcome};
use apollonia_ingestor::mailbox::Notice;
use apollonia_ingestor::message::EventType;
use apollonia_ingestor::pipeline;
use clap::Parser;
use tempfile::TempDir;

/// Jobs handed in at a time, as `scan` does.
const BATCH: usize = 256;

/// A new directory with so many files of so many bytes.
pub fn directory(files: usize, bytes: usize) -> TempDir {
    let directory = tempfile::tempdir().expect("a place for temporary files");
    for number in 0..files {
        let content = vec![number as u8; bytes];
        fs::write(directory.path().join(format!("{number:04}.flac")), content).expect("room for the files");
    }
    directory
}

/// The running pipeline behind a directory that has been listed.
pub struct Passes {
    pub pipeline: Dispatcher,
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
        let listing = list(directory.root(), b"").expect("it has just been made");
        directory.set_names(listing.neighbors());
        let pipeline = pipeline::start(&config.pipeline, &roots, Arc::default())?;
        Ok(Self { pipeline, directory: Arc::new(directory), files: listing.files })
    }

    /// Has every file read, hashed and its message confirmed.
    pub fn pass(&mut self) {
        let Self { pipeline, directory, files } = self;
        let job = |found: &Found| Job {
            directory: Arc::clone(directory),
            name: Arc::clone(&found.name),
            event: EventType::Create,
            seen_at: Stamp { seconds: 0, nanoseconds: 0 },
            known: None,
            within: None,
            invalidate_first: false,
            large: false,
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
                pipeline.mailbox.sleep(None, None).expect("poll has no reason to fail");
            } else {
                return;
            }
        }
    }
}
