//! Every setting: its flag, its variable, its default and its help.
//!
//! A setting stands under the heading of its group, which decides which commands show and use it ([`super::groups`]).

use std::ffi::OsString;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;
use clap::builder::BoolishValueParser;

use super::groups::{BROKER, FILES, LOG, PUBLISHING, READING, SERVICE, WATCHING};
use super::route::RouteSettings;
use super::values::{CatchUp, LogFormat, LogLevel, Output, ReadEngine, Unroutable};
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

/// The connection string where none is set.
pub const AMQP_URL_DEFAULT: &str = "amqp://guest:guest@localhost:5672/";

/// The settings, in groups. A flag wins over its variable; an empty variable counts as unset.
#[derive(Debug, Args)]
pub struct Settings {
    /// The directory to watch; must exist and be readable. Several: the flag repeats, the variable takes colons between
    /// them; none may lie in another
    #[arg(
        id = "data_dir",
        help_heading = FILES,
        long = "data-dir",
        env = "DATA_DIRECTORY",
        global = true,
        value_name = "DIR",
        default_value = "/data"
    )]
    pub data_dirs: Vec<PathBuf>,
    /// Go into sub-directories too; watch: those made or moved in later included
    #[arg(
        help_heading = FILES, long, env = "INGESTOR_RECURSIVE", global = true, value_name = "BOOL", value_parser = BoolishValueParser::new(),
        num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false"
    )]
    pub recursive: bool,
    /// Publish only files that match one of these globs: without a / the name in any directory, with one the path below
    /// the data directory; ** crosses directories, a / at the end names a directory and all below it. The flag repeats,
    /// the variable takes commas [default: every file]
    #[arg(help_heading = FILES, long, env = "INGESTOR_INCLUDE", global = true, value_name = "GLOB")]
    pub include: Vec<OsString>,
    /// Publish no file that matches one of these globs, included or not [default: none]
    #[arg(help_heading = FILES, long, env = "INGESTOR_EXCLUDE", global = true, value_name = "GLOB")]
    pub exclude: Vec<OsString>,
    /// Its help is [`partial_help`].
    #[arg(
        help_heading = FILES, long, env = "INGESTOR_IGNORE_PARTIAL", global = true, value_name = "BOOL", value_parser = BoolishValueParser::new(),
        num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "true", help = partial_help()
    )]
    pub ignore_partial: bool,
    /// Where the ledger of confirmed file versions lives, so that a restart publishes what changed meanwhile and
    /// nothing else [default: no ledger]
    #[arg(help_heading = WATCHING, long, env = "STATE_DIRECTORY", global = true, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Files already there when the watch starts: leave them, publish those whose version the ledger does not hold,
    /// publish them all, or enter them in the ledger as known and publish none [default: changed with a ledger, else none]
    #[arg(help_heading = WATCHING, long, env = "INGESTOR_CATCH_UP", global = true, value_enum)]
    pub catch_up: Option<CatchUp>,
    /// Rescan the directories this often, for network file systems and changes that raise no event; 0 is never
    #[arg(help_heading = WATCHING, long, env = "INGESTOR_RESCAN_SECONDS", global = true, value_name = "SECONDS", default_value_t = 0)]
    pub rescan_seconds: u32,
    /// Publish a message for what went away too, of a kind of its own (routing key `file.removed`): for each path that has
    /// had a message and has no file any more, because it was deleted, renamed, moved out, or a directory above it was; with
    /// a ledger also where that happened while the service was down
    #[arg(
        help_heading = WATCHING, long, env = "INGESTOR_REMOVALS", global = true, value_name = "BOOL", value_parser = BoolishValueParser::new(),
        num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false"
    )]
    pub removals: bool,
    /// How long a file that was created but not closed must stay unchanged before it counts as complete
    #[arg(
        help_heading = WATCHING, long, env = "INGESTOR_SETTLE_MS", global = true, value_name = "MILLISECONDS", default_value_t = 1000,
        value_parser = clap::value_parser!(u64).range(1..=SETTLE_MS_MAX)
    )]
    pub settle_ms: u64,
    /// How long a file must stay unchanged after its close before it is read, for writers that close and open again
    /// (torrent clients, scanners); 0 is at once
    #[arg(
        help_heading = WATCHING, long, env = "INGESTOR_QUIET_MS", global = true, value_name = "MILLISECONDS", default_value_t = 0,
        value_parser = clap::value_parser!(u64).range(0..=SETTLE_MS_MAX)
    )]
    pub quiet_ms: u64,
    /// Hashing threads [default: one per CPU, 8 at most]
    #[arg(
        help_heading = READING, long, env = "INGESTOR_WORKERS", global = true, value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..=i64::from(WORKERS_MAX))
    )]
    pub workers: Option<u32>,
    /// How files are read; `auto` is io_uring, and blocking reads (with a warning) where that is forbidden
    #[arg(help_heading = READING, long, env = "INGESTOR_READ_ENGINE", global = true, value_enum, default_value_t = ReadEngine::Auto)]
    pub read_engine: ReadEngine,
    /// The connection to the broker.
    #[command(flatten)]
    pub amqp: AmqpSettings,
    /// The way of a message at the broker.
    #[command(flatten)]
    pub route: RouteSettings,
    /// Where messages go: the broker, standard output (one JSON object a line), or nowhere, for measuring
    #[arg(help_heading = PUBLISHING, long, env = "INGESTOR_OUTPUT", global = true, value_enum, default_value_t = Output::Amqp)]
    pub output: Output,
    /// Unconfirmed messages in flight at most
    #[arg(
        help_heading = PUBLISHING, long, env = "INGESTOR_CONFIRM_WINDOW", global = true, value_name = "N", default_value_t = 1024,
        value_parser = clap::value_parser!(u32).range(1..=i64::from(CONFIRM_WINDOW_MAX))
    )]
    pub confirm_window: u32,
    /// When no queue is bound to the exchange, so that the broker returns what is published: wait and publish it again until
    /// one is bound, count it as done and warn, or fail
    #[arg(help_heading = PUBLISHING, long, env = "INGESTOR_UNROUTABLE", global = true, value_enum, default_value_t = Unroutable::Wait)]
    pub unroutable: Unroutable,
    /// When the connection to the broker is lost: end with an error at once (0), or go on watching and try for so long to
    /// connect again. What was not confirmed is published again then
    #[arg(help_heading = PUBLISHING, long, env = "INGESTOR_RECONNECT_SECONDS", global = true, value_name = "SECONDS", default_value_t = 0)]
    pub reconnect_seconds: u32,
    /// Unix socket of the service that answers HTTP GET /health, /ready and /metrics, mode 0600 [default:
    /// $RUNTIME_DIRECTORY/ingestor.sock, else $XDG_RUNTIME_DIR/apollonia-ingestor.sock, else
    /// /tmp/apollonia-ingestor-UID.sock; `health` looks at /run/apollonia-ingestor/ingestor.sock first]
    #[arg(help_heading = SERVICE, long, env = "INGESTOR_CONTROL_SOCKET", global = true, value_name = "PATH")]
    pub control_socket: Option<PathBuf>,
    /// Answer the same requests over TCP, at this ADDRESS:PORT [default: no network port is opened]
    #[arg(help_heading = SERVICE, long, env = "INGESTOR_METRICS_ADDRESS", global = true, value_name = "ADDRESS:PORT")]
    pub metrics_address: Option<SocketAddr>,
    /// How long a stage may have work and make no progress. After that the service is unhealthy: `health` fails and the
    /// service manager's watchdog is no longer fed
    #[arg(
        help_heading = SERVICE, long, env = "INGESTOR_STALL_SECONDS", global = true, value_name = "SECONDS", default_value_t = 60,
        value_parser = clap::value_parser!(u32).range(STALL_SECONDS_MIN..=STALL_SECONDS_MAX)
    )]
    pub stall_seconds: u32,
    /// TRACE, DEBUG, INFO, WARN (or WARNING) or ERROR, in any case
    #[arg(help_heading = LOG, long, env = "LOG_LEVEL", global = true, value_enum, ignore_case = true, default_value_t = LogLevel::Info)]
    pub log_level: LogLevel,
    /// Log lines on standard error as text, or as one JSON object a line
    #[arg(help_heading = LOG, long, env = "INGESTOR_LOG_FORMAT", global = true, value_enum, default_value_t = LogFormat::Text)]
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
#[command(next_help_heading = BROKER)]
pub struct AmqpSettings {
    /// The broker; amqps:// is TLS, and several hosts of a cluster (host1:5672,host2) are tried in order
    /// [default: amqp://guest:guest@localhost:5672/]
    #[arg(id = "amqp_url", long = "amqp-url", env = "AMQP_CONNECTION_STRING", global = true, value_name = "URL")]
    pub url: Option<ConnectionString>,
    /// A file that holds the connection string, instead of --amqp-url, which others on this host can see
    /// [default: $CREDENTIALS_DIRECTORY/amqp-url where that exists]
    #[arg(
        id = "amqp_url_file",
        long = "amqp-url-file",
        env = "AMQP_CONNECTION_STRING_FILE",
        global = true,
        value_name = "FILE"
    )]
    pub url_file: Option<PathBuf>,
    /// A file that holds the password alone, as it is; the connection string then has none
    /// [default: $CREDENTIALS_DIRECTORY/amqp-password where that exists]
    #[arg(
        id = "amqp_password_file",
        long = "amqp-password-file",
        env = "AMQP_PASSWORD_FILE",
        global = true,
        value_name = "FILE"
    )]
    pub password_file: Option<PathBuf>,
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

/// The help of --ignore-partial, made from the patterns themselves.
fn partial_help() -> String {
    let names: Vec<String> = PARTIAL.iter().map(|(pattern, writer)| format!("{} ({writer})", shown(pattern))).collect();
    format!("Publish no file under a name that writers use until it is complete: {}", names.join(", "))
}
