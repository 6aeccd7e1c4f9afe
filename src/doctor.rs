//! `doctor`: everything that the service needs here, looked at one by one, and for each what is wrong and how to mend it.
//!
//! It changes nothing: no exchange is declared, no directory made, no lock taken. A setting that the service would refuse
//! is a finding here, by the same rules ([`crate::config`]).

mod broker;
mod files;
mod kernel;
mod mounts;
mod service;

use std::fmt;
use std::io::{self, Write};

use serde::Serialize;

use crate::cli::Settings;
use crate::config;
use crate::error::Error;
use crate::read::stable;
use crate::watch::filter::Filter;

/// How one check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    Ok,
    /// The service runs, but something is worse than it need be.
    Warn,
    /// The service does not run like this.
    Fail,
}

/// One check.
#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    status: Status,
    found: String,
    /// What to do about it; nothing where all is well.
    cure: Option<String>,
}

#[derive(Serialize)]
struct Findings {
    status: Status,
    version: &'static str,
    checks: Vec<Check>,
}

impl Check {
    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, status: Status::Ok, found: found.into(), cure: None }
    }

    fn warn(name: &'static str, found: impl Into<String>, cure: impl Into<String>) -> Self {
        Self { name, status: Status::Warn, found: found.into(), cure: Some(cure.into()) }
    }

    fn fail(name: &'static str, found: impl Into<String>, cure: impl Into<String>) -> Self {
        Self { name, status: Status::Fail, found: found.into(), cure: Some(cure.into()) }
    }

    /// What keeps the service from running: cause and next step, as its own error line says them.
    fn refused(name: &'static str, error: Error) -> Self {
        match error {
            Error::DataDirectory { path, cause, next } | Error::StateDirectory { path, cause, next } => {
                Self::fail(name, format!("{path:?}: {cause}"), next)
            }
            Error::Watch { path, cause, next } => Self::fail(name, format!("{path:?}: {cause}"), next),
            Error::Broker { url, cause, next } => Self::fail(name, format!("{url}: {cause}"), next),
            other => {
                // The next step stands behind the last semicolon.
                let told = other.to_string();
                let (found, cure) = told.rsplit_once("; ").unwrap_or((&told, "see --help"));
                Self::fail(name, found, cure)
            }
        }
    }
}

impl fmt::Display for Check {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let status = match self.status {
            Status::Ok => "ok",
            Status::Warn => "warn",
            Status::Fail => "fail",
        };
        write!(to, "{status:<4}  {}: {}", self.name, self.found)?;
        match &self.cure {
            Some(cure) => write!(to, "; {cure}"),
            None => Ok(()),
        }
    }
}

/// Looks at everything and tells it on standard output, a line each or as one JSON object.
///
/// # Errors
/// [`Error::Unfit`] when a check failed; [`Error::Stdout`].
pub fn run(settings: &Settings, json: bool) -> Result<(), Error> {
    stable::raise_lease_capability(); // as the service does
    let mut checks = vec![sound(settings)];
    checks.extend(kernel::checks(settings));
    checks.extend(files::checks(settings));
    checks.extend(service::checks(settings));
    checks.push(broker::check(settings));
    let (failed, total) = (checks.iter().filter(|check| check.status == Status::Fail).count(), checks.len());
    let status = checks.iter().map(|check| check.status).max().unwrap_or(Status::Ok);
    let told = if json {
        let mut object = simd_json::to_string(&Findings { status, version: env!("CARGO_PKG_VERSION"), checks })
            .map_err(|error| Error::Internal(format!("the findings cannot be written: {error}")))?;
        object.push('\n');
        object
    } else {
        checks.iter().map(|check| format!("{check}\n")).collect()
    };
    io::stdout().write_all(told.as_bytes()).map_err(Error::Stdout)?;
    if failed > 0 { Err(Error::Unfit { failed, total }) } else { Ok(()) }
}

/// Settings that stand in no other check.
fn sound(settings: &Settings) -> Check {
    let filter = Filter::new(&settings.include, &settings.exclude, settings.ignore_partial);
    match filter.and_then(|_| config::catch_up(settings)) {
        Ok(_) => Check::ok("settings", "they can be used"),
        Err(error) => Check::refused("settings", error),
    }
}
