//! The program: dispatch of the command, exit status.

use std::process::ExitCode;

use apollonia_ingestor::cli::{self, Cli, Command};
use apollonia_ingestor::commands::{completions, doctor, health, listen, process, scan, status, verify, watch};
use apollonia_ingestor::error::Error;

/// mimalloc, because every message is a few short-lived allocations that cross threads. scripts/sanitize has an allocator
/// of its own.
#[cfg(not(sanitized))]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    process::prepare();
    let status = match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            process::failure(&error);
            ExitCode::from(error.exit_status())
        }
    };
    process::finish();
    status
}

fn run() -> Result<(), Error> {
    let Some(Cli { command, settings, settings_given }) = cli::parse()? else {
        return Ok(()); // --help or --version, already printed
    };
    let command = command.unwrap_or(Command::Watch { dirs: Vec::new() });
    process::address_advice(&command);
    match command {
        Command::Watch { dirs } => watch::run(&settings, &dirs),
        Command::Scan { dirs } => scan::run(&settings, &dirs),
        Command::Listen { count, timeout } => listen::run(&settings, count, timeout),
        Command::Health { ready } => health::run(&settings, ready),
        Command::Status { path, json } => status::run(&settings, path.as_deref(), json),
        Command::Verify { dir, content, grace, json } => {
            verify::run(&settings, dir.as_deref(), &verify::Options { content, grace, json })
        }
        Command::Doctor { json, env_file, unit, settings_loaded } => {
            let (env_file, unit) = (env_file.as_deref(), unit.as_deref());
            doctor::run(
                &settings,
                &doctor::Asked { env_file, unit, given: settings_given, loaded: settings_loaded },
                json,
            )
        }
        Command::Completions { shell } => completions::run(shell),
    }
}
