//! Parse, dispatch, exit status; nothing else.

use std::process::ExitCode;

use apollonia_ingestor::cli::{self, Command};
use apollonia_ingestor::config::Config;
use apollonia_ingestor::error::Error;
use apollonia_ingestor::read::limits;
use apollonia_ingestor::{doctor, health, listen, logging, scan, service};

/// Every message is a few short-lived allocations that cross threads; mimalloc is made for that.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // Names and messages are small and many: huge pages would gain nothing and hold megabytes of nothing.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            logging::failure(&error);
            ExitCode::from(error.exit_status())
        }
    }
}

fn run() -> Result<(), Error> {
    limits::raise_descriptors();
    let Some(cli) = cli::parse()? else {
        return Ok(()); // --help or --version, already printed
    };
    if let Some(Command::Doctor { json }) = cli.command {
        return doctor::run(&cli.settings, json); // before the settings are refused: it tells what is wrong with them
    }
    let config = Config::new(cli.settings, cli.command.as_ref())?;
    logging::start(config.log_level, config.log_format);
    match cli.command.unwrap_or(Command::Watch) {
        Command::Watch => service::run(config),
        Command::Scan { .. } => scan::run(config),
        Command::Listen { count, timeout } => listen::run(&config.broker, count, timeout),
        Command::Health => health::run(&config.control.socket),
        Command::Doctor { .. } => Ok(()), // above
    }
}
