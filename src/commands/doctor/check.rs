//! One check of `doctor`, and how it is printed.

use std::fmt;

use serde::Serialize;

use crate::error::{Error, os_message};

/// How one check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Status {
    Ok,
    /// The service runs, but worse than it could.
    Warn,
    /// The service does not run.
    Fail,
}

/// One check.
#[derive(Debug, Serialize)]
pub(super) struct Check {
    pub(super) name: &'static str,
    pub(super) status: Status,
    pub(super) found: String,
    /// What to do about it; `None` for a check that is ok.
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

    /// A failure of the service itself: its cause and its next step. The name of the check stands for that of the setting.
    pub(super) fn refused(name: &'static str, error: &Error) -> Self {
        let found = match error {
            Error::DataDirectory { path, cause, .. } | Error::StateDirectory { path, cause, .. } => {
                format!("{path:?}: {cause}")
            }
            Error::Watch { path, cause, .. } => format!("{path:?}: {}", os_message(cause)),
            Error::Broker { url, cause, .. } => format!("{url}: {cause}"),
            other => other.cause(),
        };
        Self::fail(name, found, error.next().unwrap_or("see --help"))
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
