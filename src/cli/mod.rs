//! The command line: every flag and variable with its default and its help.

mod lists;

use std::ffi::OsString;
use std::fmt;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;

use clap::builder::BoolishValueParser;
use clap::error::{ContextKind, ErrorKind};
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use lists::Given;

use crate::error::Error;
use crate::filter::{PARTIAL, shown};

/// The largest number of hashing threads: each takes 2 MiB of registered buffers, so more is a typing error.
pub const WORKERS_MAX: u32 = 256;

/// The largest window of unconfirmed messages. The protocol has no bound; memory has.
pub const CONFIRM_WINDOW_MAX: u32 = 65_535;

/// The longest settle time and the longest quiet time, one hour in milliseconds.
pub const SETTLE_MS_MAX: u64 = 3_600_000;

/// The shortest stall time: a healthy stage pauses for up to 10 s.
pub const STALL_SECONDS_MIN: i64 = 15;

/// The longest stall time, one day.
pub const STALL_SECONDS_MAX: i64 = 86_400;

/// Turn files landing in a directory into RabbitMQ messages.
///
/// Watches a directory, hashes every file version that is complete (SHA-256 and XXH3-128 in one pass)
/// and publishes one persistent JSON message for it to the fanout exchange `apollonia`.
#[derive(Debug, Parser)]
#[command(name = "apollonia-ingestor", version, propagate_version = true, disable_help_subcommand = true)]
pub struct Cli {
    /// What to do; without a command it is `watch`
    #[command(subcommand)]
    pub command: Option<Command>,
    /// The settings of all commands.
    #[command(flatten)]
    pub settings: Settings,
}

/// The commands.
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
    /// Ask the running service on this host whether it is alive and making progress; exit status 0 or 1
    Health {
        /// Ask whether it can deliver, too: started, the broker connected and not blocked, a queue bound, its directories
        /// readable
        #[arg(long)]
        ready: bool,
    },
    /// Check all that the service needs here, and print what is wrong and how to mend it; changes nothing
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
    /// The connection to the broker.
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
    /// Its help is [`partial_help`].
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
    /// Rescan the directories this often, for network file systems and changes that raise no event; 0 is never
    #[arg(long, env = "INGESTOR_RESCAN_SECONDS", global = true, value_name = "SECONDS", default_value_t = 0)]
    pub rescan_seconds: u32,
    /// Publish a message for what went away too, of a kind of its own (routing key `file.removed`): for each path that has
    /// had a message and has no file any more, because it was deleted, renamed, moved out, or a directory above it was; with
    /// a ledger also where that happened while the service was down
    #[arg(
        long, env = "INGESTOR_REMOVALS", global = true, value_name = "BOOL", value_parser = BoolishValueParser::new(),
        num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false"
    )]
    pub removals: bool,
    /// How long a file that was created but not closed must stay unchanged before it counts as complete
    #[arg(
        long, env = "INGESTOR_SETTLE_MS", global = true, value_name = "MILLISECONDS", default_value_t = 1000,
        value_parser = clap::value_parser!(u64).range(1..=SETTLE_MS_MAX)
    )]
    pub settle_ms: u64,
    /// How long a file must stay unchanged after its close before it is read, for writers that close and open again
    /// (torrent clients, scanners); 0 is at once
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
    /// Answer the same requests over TCP, at this ADDRESS:PORT [default: no network port is opened]
    #[arg(long, env = "INGESTOR_METRICS_ADDRESS", global = true, value_name = "ADDRESS:PORT")]
    pub metrics_address: Option<SocketAddr>,
    /// How long a stage may have work and make no progress. After that the service is unhealthy: `health` fails and the
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

/// A connection string as it was given, with its password: `Debug` does not show it.
#[derive(Clone)]
pub struct ConnectionString(String);

impl ConnectionString {
    /// All of it, for [`crate::address`], which shows it with the password masked.
    #[must_use]
    pub fn with_password(&self) -> &str {
        &self.0
    }
}

impl From<&str> for ConnectionString {
    fn from(given: &str) -> Self {
        Self(given.to_owned())
    }
}

impl fmt::Debug for ConnectionString {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str("ConnectionString(***)")
    }
}

/// The settings of the connection to the broker.
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
    pub url: ConnectionString,
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
    /// Nowhere, for measuring all but the broker.
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
    /// Enter them in the ledger as known, and publish none of them.
    Baseline,
}

/// How files are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ReadEngine {
    /// io_uring where the kernel allows it, else blocking.
    Auto,
    /// io_uring, or fail.
    #[value(name = "io_uring")]
    IoUring,
    /// Plain reads.
    Blocking,
}

/// What to do with a message that the broker returns because no queue is bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Unroutable {
    /// Publish it again, after growing pauses, until a queue is bound.
    Wait,
    /// Count it as confirmed, and warn at most once a minute.
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

/// The form of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Text for people.
    Text,
    /// One JSON object a line.
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
        Ok((mut cli, matches)) => {
            let (Settings { include, exclude, data_dirs, .. }, given) =
                (&mut cli.settings, Given { args: &args, matches: &matches });
            given.patterns("include", include)?;
            given.patterns("exclude", exclude)?;
            given.directories("data_dir", "--data-dir", data_dirs)?;
            Ok(Some(cli))
        }
        Err(shown) if matches!(shown.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
            // A closed standard output is no failure: its reader has seen what it wanted.
            let _ = shown.print();
            Ok(None)
        }
        Err(error) => Err(Error::usage(one_line(&error, &command), "see --help")),
    }
}

/// The help of --ignore-partial, made from the patterns themselves.
fn partial_help() -> String {
    let names: Vec<String> = PARTIAL.iter().map(|(pattern, writer)| format!("{} ({writer})", shown(pattern))).collect();
    format!("Publish no file under a name that writers use until it is complete: {}", names.join(", "))
}

/// Makes an empty variable count as unset, because clap has no setting for that.
fn without_empty_variables(command: clap::Command) -> clap::Command {
    command.mut_args(|arg| {
        let empty = arg.get_env().and_then(std::env::var_os).is_some_and(|value| value.is_empty());
        if empty { arg.env(None::<&'static str>) } else { arg }
    })
}

/// An error of clap, which has several lines, in one, with the variable's name beside the flag's.
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
        return format!("{flag}{variable}: {value:?} cannot be used: {cause}");
    }
    let rendered = error.to_string();
    let first: Vec<&str> = rendered.lines().take_while(|line| !line.is_empty()).map(str::trim).collect();
    let line = first.join(" ");
    line.strip_prefix("error: ").unwrap_or(&line).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_words(words: &str) -> Result<Option<Cli>, Error> {
        parse_from(std::iter::once("apollonia-ingestor").chain(words.split_whitespace()).map(OsString::from))
    }

    #[test]
    fn the_command_line_shows_no_password_for_debugging() {
        let cli = parse_words("--amqp-url amqp://user:hidden@host watch").unwrap();
        assert!(!format!("{cli:?}").contains("hidden"), "{cli:?}");
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
