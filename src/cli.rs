//! Every flag and variable, its default and its help: the one home of the command line.

use std::ffi::{OsStr, OsString};
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use clap::builder::BoolishValueParser;
use clap::error::{ContextKind, ErrorKind};
use clap::parser::ValueSource;
use clap::{ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};

use crate::error::Error;
use crate::filter::{PARTIAL, patterns_of, shown};

/// More hashing threads than this is a slip of the keyboard: each takes 2 MiB of registered buffers.
pub const WORKERS_MAX: u32 = 256;

/// The largest window of unconfirmed messages. The protocol has no bound; memory has.
pub const CONFIRM_WINDOW_MAX: u32 = 65_535;

/// The longest settle time and the longest quiet, one hour in milliseconds.
pub const SETTLE_MS_MAX: u64 = 3_600_000;

/// The shortest time that a stage may take over a step: the longest pauses of one that is well are 10 s.
pub const STALL_SECONDS_MIN: i64 = 15;

/// The longest such time, one day.
pub const STALL_SECONDS_MAX: i64 = 86_400;

/// Turn files landing in a directory into RabbitMQ messages.
///
/// Watches a directory, hashes every file version that is complete (SHA-256 and XXH3-128 in one pass)
/// and publishes one persistent JSON message for it to the fanout exchange `apollonia`.
#[derive(Debug, Parser)]
#[command(name = "apollonia-ingestor", version, propagate_version = true, disable_help_subcommand = true)]
pub struct Cli {
    /// What to do; `watch` when left out
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Settings, each a flag and a variable.
    #[command(flatten)]
    pub settings: Settings,
}

/// What to do.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Follow a directory and publish one message per file version, until SIGINT or SIGTERM
    Watch,
    /// Hash the files that exist now, emit one message each, exit
    Scan {
        /// The directories, instead of --data-dir
        #[arg(value_name = "DIR")]
        dirs: Vec<PathBuf>,
    },
    /// Print the messages that arrive at the exchange, one JSON object a line
    Listen {
        /// End after this many messages
        #[arg(long, value_name = "N")]
        count: Option<NonZeroU32>,
        /// End after this many seconds
        #[arg(long, value_name = "SECONDS")]
        timeout: Option<NonZeroU32>,
    },
    /// Ask the running service on this host whether it is alive and getting on; exit status 0 or 1
    Health {
        /// Ask whether it can deliver, too: started, the broker connected and not blocked, a queue bound, its directories
        /// readable
        #[arg(long)]
        ready: bool,
    },
    /// Check all that the service needs here, and say of each what is wrong and how to mend it; changes nothing
    Doctor {
        /// One JSON object instead of lines
        #[arg(long)]
        json: bool,
    },
}

/// The settings. A flag wins over its variable; an empty variable counts as unset.
#[derive(Debug, Args)]
#[command(next_help_heading = "Settings")]
pub struct Settings {
    /// The broker.
    #[command(flatten)]
    pub amqp: AmqpSettings,
    /// The directory to watch; must exist and be readable. Several: the flag repeats, the variable takes colons between
    /// them; none may lie in another
    #[arg(
        id = "data_dir",
        long = "data-dir",
        env = "DATA_DIRECTORY",
        global = true,
        value_name = "DIR",
        default_value = "/data"
    )]
    pub data_dirs: Vec<PathBuf>,
    /// Where messages go: the broker, standard output (one JSON object a line), or nowhere, for measuring
    #[arg(long, env = "INGESTOR_OUTPUT", global = true, value_enum, default_value_t = Output::Amqp)]
    pub output: Output,
    /// Go into sub-directories too; watch: those made or moved in later included
    #[arg(
        long, env = "INGESTOR_RECURSIVE", global = true, value_name = "BOOL", value_parser = BoolishValueParser::new(),
        num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false"
    )]
    pub recursive: bool,
    /// Publish only files that match one of these globs: without a / the name in any directory, with one the path below
    /// the data directory; ** crosses directories, a / at the end names a directory and all below it. The flag repeats,
    /// the variable takes commas [default: every file]
    #[arg(long, env = "INGESTOR_INCLUDE", global = true, value_name = "GLOB")]
    pub include: Vec<OsString>,
    /// Publish no file that matches one of these globs, included or not [default: none]
    #[arg(long, env = "INGESTOR_EXCLUDE", global = true, value_name = "GLOB")]
    pub exclude: Vec<OsString>,
    /// Leave out what is only half there.
    #[arg(
        long, env = "INGESTOR_IGNORE_PARTIAL", global = true, value_name = "BOOL", value_parser = BoolishValueParser::new(),
        num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "true", help = partial_help()
    )]
    pub ignore_partial: bool,
    /// Where the ledger of confirmed file versions lives, so that a restart publishes what changed meanwhile and
    /// nothing else [default: no ledger]
    #[arg(long, env = "STATE_DIRECTORY", global = true, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Files already there when the watch starts: leave them, publish those whose version the ledger does not hold,
    /// publish them all, or enter them in the ledger as known and publish none [default: changed with a ledger, else none]
    #[arg(long, env = "INGESTOR_CATCH_UP", global = true, value_enum)]
    pub catch_up: Option<CatchUp>,
    /// Look over the directory again this often, for network file systems and changes that raise no event; 0 is never
    #[arg(long, env = "INGESTOR_RESCAN_SECONDS", global = true, value_name = "SECONDS", default_value_t = 0)]
    pub rescan_seconds: u32,
    /// How long a file that was created but not closed must stay unchanged before it counts as complete
    #[arg(
        long, env = "INGESTOR_SETTLE_MS", global = true, value_name = "MILLISECONDS", default_value_t = 1000,
        value_parser = clap::value_parser!(u64).range(1..=SETTLE_MS_MAX)
    )]
    pub settle_ms: u64,
    /// How long nothing must have happened to a file after its close before it is read, for writers that close and open
    /// again (torrent clients, scanners); 0 is at once
    #[arg(
        long, env = "INGESTOR_QUIET_MS", global = true, value_name = "MILLISECONDS", default_value_t = 0,
        value_parser = clap::value_parser!(u64).range(0..=SETTLE_MS_MAX)
    )]
    pub quiet_ms: u64,
    /// Hashing threads [default: one per CPU]
    #[arg(
        long, env = "INGESTOR_WORKERS", global = true, value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..=i64::from(WORKERS_MAX))
    )]
    pub workers: Option<u32>,
    /// How files are read; `auto` is io_uring, and blocking reads (with a warning) where that is forbidden
    #[arg(long, env = "INGESTOR_READ_ENGINE", global = true, value_enum, default_value_t = ReadEngine::Auto)]
    pub read_engine: ReadEngine,
    /// Unconfirmed messages in flight at most
    #[arg(
        long, env = "INGESTOR_CONFIRM_WINDOW", global = true, value_name = "N", default_value_t = 1024,
        value_parser = clap::value_parser!(u32).range(1..=i64::from(CONFIRM_WINDOW_MAX))
    )]
    pub confirm_window: u32,
    /// When no queue is bound to the exchange, so that the broker returns what is published: wait and publish it again until
    /// one is bound, count it as done and warn, or fail
    #[arg(long, env = "INGESTOR_UNROUTABLE", global = true, value_enum, default_value_t = Unroutable::Wait)]
    pub unroutable: Unroutable,
    /// Unix socket of the service that answers HTTP GET /health, /ready and /metrics, mode 0600 [default:
    /// $RUNTIME_DIRECTORY/ingestor.sock, else /tmp/apollonia-ingestor-UID.sock]
    #[arg(long, env = "INGESTOR_CONTROL_SOCKET", global = true, value_name = "PATH")]
    pub control_socket: Option<PathBuf>,
    /// Answer the same over TCP, at this ADDRESS:PORT [default: no network port is opened]
    #[arg(long, env = "INGESTOR_METRICS_ADDRESS", global = true, value_name = "ADDRESS:PORT")]
    pub metrics_address: Option<SocketAddr>,
    /// A stage that has work and gets no further for so long makes the service unhealthy: `health` fails and the
    /// service manager's watchdog is no longer fed
    #[arg(
        long, env = "INGESTOR_STALL_SECONDS", global = true, value_name = "SECONDS", default_value_t = 60,
        value_parser = clap::value_parser!(u32).range(STALL_SECONDS_MIN..=STALL_SECONDS_MAX)
    )]
    pub stall_seconds: u32,
    /// TRACE, DEBUG, INFO, WARN (or WARNING) or ERROR, in any case
    #[arg(long, env = "LOG_LEVEL", global = true, value_enum, ignore_case = true, default_value_t = LogLevel::Info)]
    pub log_level: LogLevel,
    /// Log lines on standard error as text, or as one JSON object a line
    #[arg(long, env = "INGESTOR_LOG_FORMAT", global = true, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
}

/// Settings of the connection to the broker.
#[derive(Debug, Clone, Args)]
pub struct AmqpSettings {
    /// The broker; amqps:// is TLS, and several hosts of a cluster (host1:5672,host2) are tried in order
    #[arg(
        id = "amqp_url",
        long = "amqp-url",
        env = "AMQP_CONNECTION_STRING",
        hide_env_values = true,
        global = true,
        value_name = "URL",
        default_value = "amqp://guest:guest@localhost:5672/"
    )]
    pub url: String,
    /// Seconds between heartbeats at most: a broker that says nothing for two of them is lost. Wins over `?heartbeat=` in
    /// the URL; the broker may ask for less [default: the URL's, else 10]
    #[arg(
        id = "amqp_heartbeat", long = "amqp-heartbeat", env = "INGESTOR_AMQP_HEARTBEAT", global = true,
        value_name = "SECONDS", value_parser = clap::value_parser!(u16).range(1..)
    )]
    pub heartbeat: Option<u16>,
    /// PEM file of the authorities that may vouch for an amqps:// broker, in place of the system's
    #[arg(
        id = "amqp_ca_file",
        long = "amqp-ca-file",
        env = "INGESTOR_AMQP_CA_FILE",
        global = true,
        value_name = "FILE"
    )]
    pub ca_file: Option<PathBuf>,
    /// PEM file of the certificate to show to an amqps:// broker, and those between it and its authority
    #[arg(
        id = "amqp_client_cert",
        long = "amqp-client-cert",
        env = "INGESTOR_AMQP_CLIENT_CERT",
        global = true,
        value_name = "FILE"
    )]
    pub client_cert: Option<PathBuf>,
    /// PEM file of that certificate's private key, not encrypted
    #[arg(
        id = "amqp_client_key",
        long = "amqp-client-key",
        env = "INGESTOR_AMQP_CLIENT_KEY",
        global = true,
        value_name = "FILE"
    )]
    pub client_key: Option<PathBuf>,
}

/// Where messages go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// The broker.
    Amqp,
    /// Standard output, one JSON object a line.
    Stdout,
    /// Nowhere: for measuring all but the broker.
    None,
}

/// What to do with files that are there when the watch starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CatchUp {
    /// Leave them until they change.
    None,
    /// Publish those whose version the ledger does not hold.
    Changed,
    /// Publish them all.
    All,
    /// Enter them as known, and publish none of them.
    Baseline,
}

/// How files are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ReadEngine {
    /// io_uring where the kernel lets us, else blocking.
    Auto,
    /// io_uring, or fail.
    #[value(name = "io_uring")]
    IoUring,
    /// Plain reads.
    Blocking,
}

/// What an unroutable message means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Unroutable {
    /// Not confirmed: it is published again, with a growing pause, until a queue is bound.
    Wait,
    /// Count it as done, and warn at most once a minute.
    Warn,
    /// End with an error.
    Fail,
}

/// How much is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "UPPER")]
#[expect(missing_docs, reason = "the names say it")]
pub enum LogLevel {
    Trace,
    Debug,
    Info,
    #[value(alias = "WARNING")]
    Warn,
    Error,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One object a line.
    Json,
}

/// Reads the command line and the environment. `None` when help or the version was asked for and printed.
///
/// # Errors
/// [`Error::Usage`], one line, when something there cannot be used.
pub fn parse() -> Result<Option<Cli>, Error> {
    parse_from(std::env::args_os())
}

fn parse_from(args: impl IntoIterator<Item = OsString>) -> Result<Option<Cli>, Error> {
    let command = without_empty_variables(Cli::command());
    let args: Vec<OsString> = args.into_iter().collect();
    let read = command.clone().try_get_matches_from(&args);
    match read.and_then(|matches| Ok((Cli::from_arg_matches(&matches)?, matches))) {
        Ok((cli, matches)) => with_lists(cli, &matches, &args).map(Some),
        Err(shown) if matches!(shown.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
            // A closed standard output is no reason to fail: the reader has seen what it wanted.
            let _ = shown.print();
            Ok(None)
        }
        Err(error) => Err(Error::Usage(one_line(&error, &command))),
    }
}

/// The help of --ignore-partial: what counts as partial has one home.
fn partial_help() -> String {
    let names: Vec<String> = PARTIAL.iter().map(|(pattern, writer)| format!("{} ({writer})", shown(pattern))).collect();
    format!("Publish no file under a name that writers use until it is complete: {}", names.join(", "))
}

/// A flag is one value, whatever is in it; a variable is a list of them, which clap would split at every comma, also
/// within braces.
fn with_lists(mut cli: Cli, matches: &ArgMatches, args: &[OsString]) -> Result<Cli, Error> {
    let Settings { data_dirs, include, exclude, .. } = &mut cli.settings;
    for (id, patterns) in [("include", include), ("exclude", exclude)] {
        if matches.value_source(id) == Some(ValueSource::EnvVariable) {
            *patterns = patterns.iter().flat_map(|list| patterns_of(list)).collect();
        } else {
            refuse_split(&format!("--{id}"), patterns.len(), args)?;
        }
    }
    match matches.value_source("data_dir") {
        Some(ValueSource::EnvVariable) => *data_dirs = directories_of(data_dirs)?,
        Some(ValueSource::CommandLine) => refuse_split("--data-dir", data_dirs.len(), args)?,
        _ => {}
    }
    Ok(cli)
}

/// What stands before the command is lost to clap where the same flag stands behind it.
fn refuse_split(flag: &str, values: usize, args: &[OsString]) -> Result<(), Error> {
    let mine = |arg: &&OsString| {
        arg.as_bytes().strip_prefix(flag.as_bytes()).is_some_and(|rest| rest.first().is_none_or(|&byte| byte == b'='))
    };
    if args.iter().take_while(|arg| *arg != "--").filter(mine).count() == values {
        return Ok(());
    }
    Err(Error::Usage(format!("{flag}: it stands before and behind the command; write all of them behind it")))
}

/// The directories between the colons of a variable.
fn directories_of(lists: &[PathBuf]) -> Result<Vec<PathBuf>, Error> {
    let between = lists.iter().flat_map(|list| list.as_os_str().as_bytes().split(|&byte| byte == b':'));
    let directories: Vec<&[u8]> = between.collect();
    if directories.iter().any(|directory| directory.is_empty()) {
        return Err(Error::Usage(
            "DATA_DIRECTORY (--data-dir): no directory stands at one side of a colon; write one there, or leave the colon out"
                .to_owned(),
        ));
    }
    Ok(directories.into_iter().map(|directory| OsStr::from_bytes(directory).into()).collect())
}

/// An empty variable counts as unset, which clap has no setting for.
fn without_empty_variables(command: clap::Command) -> clap::Command {
    command.mut_args(|arg| {
        let empty = arg.get_env().and_then(std::env::var_os).is_some_and(|value| value.is_empty());
        if empty { arg.env(None::<&'static str>) } else { arg }
    })
}

/// clap explains over several lines; we say it in one, with the variable's name beside the flag's.
fn one_line(error: &clap::Error, command: &clap::Command) -> String {
    let context = |kind| error.get(kind).map(ToString::to_string);
    if let (Some(arg), Some(value)) = (context(ContextKind::InvalidArg), context(ContextKind::InvalidValue)) {
        let flag = arg.split([' ', '=', '[']).next().unwrap_or(&arg).to_owned();
        let variable = command
            .get_arguments()
            .find(|known| known.get_long().is_some_and(|long| flag.strip_prefix("--") == Some(long)))
            .and_then(|known| known.get_env())
            .map_or_else(String::new, |variable| format!(" ({})", variable.to_string_lossy()));
        let cause = match (std::error::Error::source(error), context(ContextKind::ValidValue)) {
            (Some(cause), _) => cause.to_string(),
            (None, Some(valid)) => format!("it must be one of {valid}"),
            (None, None) => "it takes another value".to_owned(),
        };
        return format!("{flag}{variable}: {value:?} cannot be used: {cause}; see --help");
    }
    let rendered = error.to_string();
    let first: Vec<&str> = rendered.lines().take_while(|line| !line.is_empty()).map(str::trim).collect();
    let said = first.join(" ");
    format!("{}; see --help", said.strip_prefix("error: ").unwrap_or(&said))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_words(words: &str) -> Result<Option<Cli>, Error> {
        parse_from(std::iter::once("apollonia-ingestor").chain(words.split_whitespace()).map(OsString::from))
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn settings_stand_before_or_after_the_command() {
        for words in ["--workers 3 scan /tmp", "scan /tmp --workers 3"] {
            let cli = parse_words(words).unwrap().unwrap();
            assert_eq!(cli.settings.workers, Some(3), "{words}");
        }
    }

    #[test]
    fn a_flag_that_repeats_loses_none() {
        for words in ["--exclude a --exclude=b,c scan /tmp", "scan /tmp --exclude a --exclude=b,c"] {
            let cli = parse_words(words).unwrap().unwrap();
            assert_eq!(cli.settings.exclude, ["a", "b,c"], "{words}");
        }
        let error = parse_words("--exclude a scan /tmp --exclude b").unwrap_err().to_string();
        assert!(error.starts_with("--exclude: "), "{error}");
        assert!(parse_words("scan --include=--exclude -- --exclude").unwrap().is_some());
    }

    #[test]
    fn a_refusal_is_one_line_with_flag_and_variable() {
        let error = parse_words("--workers 0").unwrap_err().to_string();
        assert!(error.starts_with("--workers (INGESTOR_WORKERS): \"0\" cannot be used: "), "{error}");
        for words in ["--frobnicate", "--output file", "--recursive=perhaps", "listen --count 0", "watch a"] {
            let error = parse_words(words).unwrap_err().to_string();
            assert_eq!(error.lines().count(), 1, "{error}");
        }
    }

    #[test]
    fn log_levels_take_any_case_and_the_long_warning() {
        for (word, level) in [("warning", LogLevel::Warn), ("Debug", LogLevel::Debug), ("ERROR", LogLevel::Error)] {
            let cli = parse_words(&format!("--log-level {word}")).unwrap().unwrap();
            assert_eq!(cli.settings.log_level, level);
        }
    }
}
