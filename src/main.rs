//! The program: settings of the process, dispatch of the command, exit status.

use std::process::ExitCode;

use apollonia_ingestor::cli::{self, Cli, Command};
use apollonia_ingestor::commands::{doctor, health, listen, scan, watch};
use apollonia_ingestor::error::Error;
use apollonia_ingestor::process;

/// mimalloc, because every message is a few short-lived allocations that cross threads.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // Names and messages are small and many: huge pages would gain nothing and leave megabytes of each page unused.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    process::ignore_file_size_signal();
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            process::failure(&error);
            ExitCode::from(error.exit_status())
        }
    }
}

fn run() -> Result<(), Error> {
    process::raise_descriptors();
    let Some(Cli { command, settings }) = cli::parse()? else {
        return Ok(()); // --help or --version, already printed
    };
    match command.unwrap_or(Command::Watch) {
        Command::Watch => watch::run(&settings),
        Command::Scan { dirs } => scan::run(&settings, &dirs),
        Command::Listen { count, timeout } => listen::run(&settings, count, timeout),
        Command::Health { ready } => health::run(&settings, ready),
        Command::Doctor { json } => doctor::run(&settings, json),
    }
}
