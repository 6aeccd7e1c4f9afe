//! Where `doctor` takes the settings from, when not from its own environment: a file, or a unit of systemd.
//!
//! The program then begins again (execve(2)) with the environment that the service would have. So every setting is read as
//! the service reads it, defaults and secrets of systemd included.

mod env_file;
mod unit;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, io};

use env_file::EnvFile;
use unit::Unit;

use super::check::Check;
use crate::cli;
use crate::error::Error;
use crate::files::whole::read_whole;

/// The longest file of settings that is read, in bytes: all settings with long globs take a hundredth of it.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// What was asked for.
#[derive(Debug, Default, Clone, Copy)]
pub struct Asked<'a> {
    /// The file of settings.
    pub env_file: Option<&'a Path>,
    /// The unit.
    pub unit: Option<&'a str>,
    /// Whether any setting is given by a flag or a variable: then no unit is looked for.
    pub given: bool,
    /// Whether this process has them already.
    pub loaded: bool,
}

/// Where the settings come from.
pub(super) enum Source {
    Own,
    File(PathBuf),
    Unit(Box<Unit>),
}

impl Source {
    /// The source that was asked for; for root without any setting it is the unit, if there is one.
    ///
    /// # Errors
    /// [`Error::Usage`] when there is no such unit, or systemd cannot be asked.
    pub(super) fn of(asked: &Asked<'_>) -> Result<Self, Error> {
        match (asked.env_file, asked.unit) {
            (Some(file), _) => Ok(Self::File(file.to_owned())),
            (None, Some(name)) => match Unit::find(name)? {
                Some(unit) => Ok(Self::Unit(Box::new(unit))),
                None => Err(Error::usage(
                    format!("--unit: systemd has loaded no {name:?}"),
                    "see `systemctl list-unit-files`, or name the file by --env-file",
                )),
            },
            (None, None) if !asked.given && rustix::process::geteuid().is_root() => {
                Ok(Unit::find(unit::DEFAULT)?.map_or(Self::Own, |unit| Self::Unit(Box::new(unit))))
            }
            (None, None) => Ok(Self::Own),
        }
    }

    /// Begins the program again, with the settings of the source. It comes back only when that cannot be done.
    ///
    /// # Errors
    /// [`Error::Usage`] when a file cannot be read, [`Error::System`] when the program cannot be started.
    pub(super) fn begin_again(&self, asked: &Asked<'_>) -> Result<(), Error> {
        let (mut variables, files) = match self {
            Self::Own => return Ok(()),
            Self::File(file) => (Vec::new(), vec![(file.as_path(), false)]),
            Self::Unit(unit) => (unit.environment(), unit.env_files().collect()),
        };
        for (path, optional) in files {
            let file = read(path, optional)?;
            variables.extend(file.variables.into_iter().map(|(name, value)| (name.into(), value.into())));
        }
        let program = env::current_exe().map_err(not_again)?;
        let mut command = Command::new(program);
        command.args(env::args_os().skip(1));
        if let (Self::Unit(unit), None) = (self, asked.unit) {
            command.args(["--unit", &unit.name]);
        }
        command.arg("--settings-loaded").env_clear().envs(without_settings()).envs(with_one_url(variables));
        Err(not_again(command.exec()))
    }

    /// What there is to say of the source.
    pub(super) fn checks(&self) -> Vec<Check> {
        match self {
            Self::Own => Vec::new(),
            Self::File(file) => vec![file_check(file, false)],
            Self::Unit(unit) => {
                let files = unit.env_files().map(|(path, optional)| file_check(path, optional));
                std::iter::once(unit_check(unit)).chain(files).collect()
            }
        }
    }
}

/// This process's environment without what is a setting, or is systemd's word to a service.
fn without_settings() -> impl Iterator<Item = (OsString, OsString)> {
    const OF_SYSTEMD: [&str; 3] = ["CREDENTIALS_DIRECTORY", "RUNTIME_DIRECTORY", "NOTIFY_SOCKET"];
    let settings = cli::variables();
    env::vars_os().filter(move |(name, _)| {
        !settings.iter().any(|setting| name == setting.as_str()) && !OF_SYSTEMD.iter().any(|other| name == other)
    })
}

/// The variables, the last of each name. A connection string wins over a credential, as it does in the service.
fn with_one_url(variables: Vec<(OsString, OsString)>) -> BTreeMap<OsString, OsString> {
    let mut variables: BTreeMap<_, _> = variables.into_iter().collect();
    if variables.contains_key(&OsString::from("AMQP_CONNECTION_STRING")) {
        variables.remove(&OsString::from("AMQP_CONNECTION_STRING_FILE"));
    }
    variables
}

fn read(path: &Path, optional: bool) -> Result<EnvFile, Error> {
    match read_whole(path, FILE_BYTES_MAX) {
        Ok(bytes) => Ok(EnvFile::parse(&String::from_utf8_lossy(&bytes))),
        Err(error) if optional && error.kind() == io::ErrorKind::NotFound => Ok(EnvFile::default()),
        Err(error) => {
            let unread = format!("the settings file {path:?} cannot be read");
            let next = "name another by --env-file, or ask as root";
            Err(Error::of_setting(unread.clone(), error, |cause| Error::usage(format!("{unread}: {cause}"), next)))
        }
    }
}

fn not_again(cause: io::Error) -> Error {
    Error::system("doctor cannot begin again with other settings", cause)
}

fn file_check(path: &Path, optional: bool) -> Check {
    const NAME: &str = "settings file";
    match read(path, optional) {
        Ok(file) if file.ignored.is_empty() => {
            Check::ok(NAME, format!("{path:?} sets {} variables", file.variables.len()))
        }
        Ok(file) => Check::warn(
            NAME,
            format!("{path:?}: line {} sets nothing, and systemd passes over it", file.ignored[0]),
            "write NAME=value, or # before a comment",
        ),
        Err(error) => Check::refused(NAME, &error),
    }
}

fn unit_check(unit: &Unit) -> Check {
    let found = format!("the settings are those of {}, whose service runs as {:?}", unit.name, unit.user());
    Check::ok(
        "unit",
        format!("{found}, and these checks have the rights of who asks; to check with its rights: {}", unit.command()),
    )
}
