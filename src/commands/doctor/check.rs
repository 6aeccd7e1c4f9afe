//! One check of `doctor`, and how it is printed.

use std::fmt;

use serde::Serialize;

use crate::error::Error;

/// How one check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Status {
    Ok,
    /// The service runs, but something is worse than it need be.
    Warn,
    /// The service does not run like this.
    Fail,
}

/// One check.
#[derive(Debug, Serialize)]
pub(super) struct Check {
    pub(super) name: &'static str,
    pub(super) status: Status,
    pub(super) found: String,
    /// What to do about it; nothing where all is well.
    pub(super) cure: Option<String>,
}

impl Check {
    pub(super) fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, status: Status::Ok, found: found.into(), cure: None }
    }

    pub(super) fn warn(name: &'static str, found: impl Into<String>, cure: impl Into<String>) -> Self {
        Self { name, status: Status::Warn, found: found.into(), cure: Some(cure.into()) }
    }

    pub(super) fn fail(name: &'static str, found: impl Into<String>, cure: impl Into<String>) -> Self {
        Self { name, status: Status::Fail, found: found.into(), cure: Some(cure.into()) }
    }

    /// What keeps the service from running: cause and next step, as its own error line says them.
    pub(super) fn refused(name: &'static str, error: Error) -> Self {
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
