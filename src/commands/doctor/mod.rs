//! `doctor`: everything that the service needs here, looked at one by one, and for each what is wrong and how to mend it.
//!
//! It changes nothing: no exchange is declared, no directory made, no lock taken. A setting that the service would refuse
//! is a finding here, by the same rules ([`crate::config`]).

mod broker;
mod check;
mod files;
mod kernel;
mod mounts;
mod service;

use std::io::{self, Write};

use check::{Check, Status};
use serde::Serialize;

use crate::cli::Settings;
use crate::config;
use crate::error::Error;
use crate::files::root::raise_lease_capability;
use crate::filter::Filter;

#[derive(Serialize)]
struct Findings {
    status: Status,
    version: &'static str,
    checks: Vec<Check>,
}

/// Looks at everything and tells it on standard output, a line each or as one JSON object.
///
/// # Errors
/// [`Error::Unfit`] when a check failed; [`Error::Stdout`].
pub fn run(settings: &Settings, json: bool) -> Result<(), Error> {
    raise_lease_capability(); // as the service does
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
        Err(error) => Check::refused("settings", &error),
    }
}
