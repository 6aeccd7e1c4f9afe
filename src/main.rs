//! Parse, dispatch, exit status; nothing else.

use std::process::ExitCode;

use apollonia_ingestor::cli::{self, Command};
use apollonia_ingestor::commands::health::Question;
use apollonia_ingestor::commands::{doctor, health, listen, scan, watch};
use apollonia_ingestor::config::{Config, control_socket};
use apollonia_ingestor::error::Error;
use apollonia_ingestor::read::limits;
use apollonia_ingestor::{logging, signals};

/// Every message is a few short-lived allocations that cross threads; mimalloc is made for that.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // Names and messages are small and many: huge pages would gain nothing and hold megabytes of nothing.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    signals::ignore_file_size_signal();
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
    if let Some(Command::Health { ready }) = cli.command {
        // The settings are those of the service that answers: what is wrong with ours is no fault of its.
        logging::start(cli.settings.log_level.into(), cli.settings.log_format);
        return health::run(&control_socket(&cli.settings), if ready { Question::Ready } else { Question::Alive });
    }
    let config = Config::new(cli.settings, cli.command.as_ref())?;
    logging::start(config.log_level, config.log_format);
    match cli.command.unwrap_or(Command::Watch) {
        Command::Watch => watch::run(config),
        Command::Scan { .. } => scan::run(config),
        Command::Listen { count, timeout } => listen::run(&config.broker, count, timeout),
        Command::Health { .. } | Command::Doctor { .. } => Ok(()), // above
    }
}
