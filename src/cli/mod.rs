//! The command line: the commands, and how it is read together with the environment.

mod groups;
mod lists;
mod refusal;
mod route;
mod settings;
mod values;
mod variables;

use std::ffi::OsString;
use std::num::NonZeroU32;
use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand};
use lists::Given;
pub use route::{DEFAULT_EXCHANGE, RouteSettings};
pub use settings::{
    AMQP_URL_DEFAULT, AmqpSettings, CONFIRM_WINDOW_MAX, ConnectionString, SETTLE_MS_MAX, STALL_SECONDS_MAX,
    STALL_SECONDS_MIN, Settings, WORKERS_MAX,
};
pub use values::{CatchUp, LogFormat, LogLevel, Output, ReadEngine, Shell, Unroutable};
pub use variables::UnknownVariable;

use crate::error::Error;
use crate::streams::{stdout, terminal};

/// Turn files landing in a directory into RabbitMQ messages.
///
/// Watches a directory, hashes every file version that is complete (SHA-256 and XXH3-128 in one pass)
/// and publishes one persistent JSON message for it to an exchange, the fanout exchange `apollonia` by default.
#[derive(Debug, Parser)]
#[command(name = "apollonia-ingestor", version, propagate_version = true, disable_help_subcommand = true)]
pub struct Cli {
    /// What to do; without a command it is `watch`
    #[command(subcommand)]
    pub command: Option<Command>,
    /// The settings of all commands.
    #[command(flatten)]
    pub settings: Settings,
    /// Whether a flag or a variable gives a setting.
    #[arg(skip)]
    pub settings_given: bool,
}

/// The commands.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Follow a directory and publish one message per file version, until SIGINT or SIGTERM; SIGHUP asks for a rescan
    Watch {
        /// The directories, in place of DATA_DIRECTORY and --data-dir
        #[arg(value_name = "DIR")]
        dirs: Vec<PathBuf>,
    },
    /// Hash the files that exist now, emit one message each, exit
    Scan {
        /// The directories, in place of DATA_DIRECTORY and --data-dir
        #[arg(value_name = "DIR")]
        dirs: Vec<PathBuf>,
    },
    /// Print the messages that arrive at the exchange, one JSON object a line
    Listen {
        /// End after this many messages; exit status 1 if it ends with fewer
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
    /// Ask the running service on this host what waits and why, what failed, and how fast it is; with PATH, what became of
    /// that file
    Status {
        /// The file
        #[arg(value_name = "PATH")]
        path: Option<PathBuf>,
        /// One JSON object instead of lines
        #[arg(long)]
        json: bool,
    },
    /// Compare the disk with the ledger, while the service runs too, and print each file that was never confirmed, has changed
    /// since or is gone; changes nothing; exit status 1 when something differs
    Verify {
        /// Compare this directory alone, with those below it under --recursive
        #[arg(value_name = "DIR")]
        dir: Option<PathBuf>,
        /// Read each file, too: a version that was confirmed with another content is bit rot
        #[arg(long)]
        content: bool,
        /// Do not judge what has changed within so many seconds before the ledger was copied, or since: the service may be
        /// about to publish it
        #[arg(long, value_name = "SECONDS", default_value_t = 10)]
        grace: u32,
        /// One JSON object a line, the last with the totals
        #[arg(long)]
        json: bool,
    },
    /// Check all that the service needs here, and print what is wrong and how to mend it; changes nothing
    Doctor {
        /// One JSON object instead of lines
        #[arg(long)]
        json: bool,
        /// Check with the settings in this file, in place of the variables set here; it is read as systemd reads its
        /// EnvironmentFile
        #[arg(long, value_name = "FILE", conflicts_with = "unit")]
        env_file: Option<PathBuf>,
        /// Check with the settings of this systemd unit; for root without any setting it is apollonia-ingestor.service
        #[arg(long, value_name = "UNIT")]
        unit: Option<String>,
        /// The settings asked for are in the environment already: `doctor` has begun again with them
        #[arg(long, hide = true)]
        settings_loaded: bool,
    },
    /// Print the completion script for a shell
    Completions {
        /// The shell that reads it
        #[arg(value_name = "SHELL", value_enum)]
        shell: Shell,
    },
}

/// The definition of the command line, in which each command has the settings that it uses: for completions and man pages.
#[must_use]
pub fn definition() -> clap::Command {
    groups::leave_out_unused(Cli::command())
}

/// The variables of the environment that are named like settings and are none.
#[must_use]
pub fn unknown_variables() -> Vec<UnknownVariable> {
    variables::unknown(&Cli::command(), std::env::vars_os().map(|(name, _)| name))
}

/// The variables of all settings.
#[must_use]
pub fn variables() -> Vec<String> {
    let definition = Cli::command();
    let variables = definition.get_arguments().filter_map(clap::Arg::get_env);
    variables.map(|variable| variable.to_string_lossy().into_owned()).collect()
}

/// Reads the command line and the environment. `None` when help or the version was asked for and printed.
///
/// # Errors
/// [`Error::Usage`], one line, when something there cannot be used.
pub fn parse() -> Result<Option<Cli>, Error> {
    parse_from(std::env::args_os())
}

fn parse_from(args: impl IntoIterator<Item = OsString>) -> Result<Option<Cli>, Error> {
    let args: Vec<OsString> = args.into_iter().collect();
    let definition = groups::hide_unused(without_empty_variables(without_values(Cli::command())));
    let definition = groups::without_unused_variables(definition, asked(&args).as_deref());
    let read = definition.clone().try_get_matches_from(&args);
    match read.and_then(|matches| Ok((Cli::from_arg_matches(&matches)?, matches))) {
        Ok((mut cli, matches)) => {
            let (Settings { include, exclude, data_dirs, .. }, given) =
                (&mut cli.settings, Given { args: &args, matches: &matches });
            given.patterns("include", include)?;
            given.patterns("exclude", exclude)?;
            given.directories("data_dir", "--data-dir", data_dirs)?;
            cli.command.as_ref().map_or(Ok(()), |command| refuse_both(command, &matches))?;
            cli.settings_given = given.any(&definition);
            Ok(Some(cli))
        }
        Err(shown) if matches!(shown.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
            let text = shown.render();
            let text = if terminal::colors(&std::io::stdout()) { text.ansi().to_string() } else { text.to_string() };
            stdout::print(&text)?;
            Ok(None)
        }
        Err(error) => Err(Error::usage(refusal::one_line(&error, &definition), "see --help")),
    }
}

/// The form of log lines as far as it can be known where the command line cannot be used: a failure is in the form that was
/// asked for, also one that is found before any setting counts.
#[must_use]
pub fn log_format_asked() -> LogFormat {
    log_format_of(std::env::args_os(), std::env::var_os("INGESTOR_LOG_FORMAT"))
}

fn log_format_of(args: impl IntoIterator<Item = OsString>, variable: Option<OsString>) -> LogFormat {
    let mut words = args.into_iter().skip(1).take_while(|word| word != "--");
    let mut asked = variable;
    while let Some(word) = words.next() {
        let bytes = word.as_encoded_bytes();
        if bytes == b"--log-format" {
            asked = words.next();
        } else if let Some(value) = bytes.strip_prefix(b"--log-format=") {
            asked = Some(OsString::from(String::from_utf8_lossy(value).into_owned()));
        }
    }
    if asked.is_some_and(|asked| asked == "json") { LogFormat::Json } else { LogFormat::Text }
}

/// The name of the command, found before anything is checked.
fn asked(args: &[OsString]) -> Option<String> {
    let lenient = Cli::command().mut_args(|arg| arg.env(None::<&'static str>)).ignore_errors(true);
    lenient.try_get_matches_from(args).ok()?.subcommand_name().map(str::to_owned)
}

/// Refuses directories that are named in both ways, because one of the two would not be read.
fn refuse_both(command: &Command, matches: &ArgMatches) -> Result<(), Error> {
    let (Command::Watch { dirs } | Command::Scan { dirs }) = command else { return Ok(()) };
    if dirs.is_empty() || matches.value_source("data_dir") != Some(ValueSource::CommandLine) {
        return Ok(());
    }
    let cause = format!("--data-dir: {:?} is named beside it", dirs[0]);
    Err(Error::usage(cause, "name all directories behind the command, or each by --data-dir"))
}

/// Keeps the values of variables out of the help: what it shows is the same in every environment, and no secret.
fn without_values(command: clap::Command) -> clap::Command {
    command.mut_args(|arg| arg.hide_env_values(true))
}

/// Makes an empty variable count as unset, because clap has no setting for that.
fn without_empty_variables(command: clap::Command) -> clap::Command {
    command.mut_args(|arg| {
        let empty = arg.get_env().and_then(std::env::var_os).is_some_and(|value| value.is_empty());
        if empty { arg.env(None::<&'static str>) } else { arg }
    })
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
        for words in ["--frobnicate", "--output file", "--recursive=perhaps", "listen --count 0", "watch --output"] {
            let error = parse_words(words).unwrap_err().to_string();
            assert_eq!(error.lines().count(), 1, "{error}");
        }
    }

    #[test]
    fn the_form_of_log_lines_is_known_where_the_command_line_cannot_be_used() {
        let json = |words: &str, variable: &str| {
            let args = std::iter::once("program").chain(words.split_whitespace()).map(OsString::from);
            log_format_of(args, Some(OsString::from(variable))) == LogFormat::Json
        };
        assert!(json("--workers 0 --log-format json", "") && json("scan --log-format=json --nonsense", "text"));
        assert!(json("--workers 0", "json") && !json("--log-format text --workers 0", "json"));
        assert!(
            !json("--log-format", "json") && !json("--log-format=xml", "json") && !json("-- --log-format json", "")
        );
    }

    #[test]
    fn a_word_that_is_not_known_brings_what_is_similar() {
        for (words, similar) in [
            ("--wrokers 3", "argument exists: --workers"),
            ("scan --recursiv", "argument exists: --recursive"),
            ("wach", "command exists: watch"),
            ("--output stdou", "value exists: stdout"),
        ] {
            let error = parse_words(words).unwrap_err().to_string();
            assert!(error.contains(similar) && error.lines().count() == 1, "{error}");
        }
        let error = parse_words("scan --data-dir").unwrap_err().to_string();
        assert!(error.starts_with("--data-dir (DATA_DIRECTORY): its value is missing"), "{error}");
    }

    #[test]
    fn each_setting_has_a_group_and_belongs_to_a_command() {
        let whole = Cli::command();
        for setting in whole.get_arguments().filter(|arg| arg.is_global_set()) {
            let (id, heading) = (setting.get_id(), setting.get_help_heading());
            assert!(heading.is_some(), "{id} has no heading");
            let watch = definition().find_subcommand("watch").unwrap().clone();
            assert!(watch.get_arguments().any(|arg| arg.get_id() == id), "{id}");
        }
    }

    #[test]
    fn a_setting_that_is_given_is_known_to_be() {
        for (words, given) in [("doctor --json", false), ("doctor --unit a", false), ("doctor --workers 2", true)] {
            assert_eq!(parse_words(words).unwrap().unwrap().settings_given, given, "{words}");
        }
    }

    #[test]
    fn directories_are_named_in_one_way() {
        let Cli { command, .. } = parse_words("watch a b").unwrap().unwrap();
        assert!(matches!(command, Some(Command::Watch { dirs }) if dirs.len() == 2));
        for words in ["--data-dir a watch b", "scan b --data-dir a"] {
            assert!(parse_words(words).unwrap_err().to_string().starts_with("--data-dir: \"b\""), "{words}");
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
