//! `doctor`: a check for everything that the service needs on this machine, each with its cure.
//!
//! It leaves nothing behind: it declares no exchange, makes no directory, takes no lock. A queue that it has to declare to see
//! whether it may is exclusive, so it goes with the connection. A setting that the service would refuse
//! is a failed check here, by the same rules ([`crate::config`]).

mod broker;
mod check;
mod files;
mod kernel;
mod service;
mod source;
mod state;

use std::sync::Arc;

use check::{Check, Status};
use serde::Serialize;
pub use source::Asked;
use source::Source;

use crate::cli::{self, Settings, UnknownVariable};
use crate::config;
use crate::error::Error;
use crate::files::root::opening::{PATIENCE, open_roots_in_time};
use crate::files::root::raise_lease_capability;
use crate::filter::Filter;
use crate::shown::{json_line, line};
use crate::streams::stdout::print;

#[derive(Serialize)]
struct Findings {
    status: Status,
    version: &'static str,
    checks: Vec<Check>,
}

/// Runs every check and prints them on standard output, a line each or as one JSON object. Where the settings are another's
/// (`asked`), it begins again with them first.
///
/// # Errors
/// [`Error::Unfit`] when a check failed; [`Error::Stdout`]; [`Error::Usage`] when the settings asked for cannot be had.
pub fn run(settings: &Settings, asked: &Asked<'_>, json: bool) -> Result<(), Error> {
    let source = Source::of(asked)?;
    if !asked.loaded {
        source.begin_again(asked)?;
    }
    raise_lease_capability(); // as the service does before it takes leases
    let roots = config::open_directories(&settings.data_dirs, |dirs| open_roots_in_time(dirs, PATIENCE));
    let roots = roots.map(|roots| roots.into_iter().map(Arc::new).collect::<Vec<_>>());
    let usable = roots.as_deref().unwrap_or_default();
    let mut checks = source.checks();
    checks.push(sound(settings));
    checks.extend(kernel::checks(settings, usable));
    checks.extend(files::checks(settings, roots.as_deref()));
    checks.extend(service::checks(settings));
    checks.push(broker::check(settings, usable));
    let (failed, total) = (checks.iter().filter(|check| check.status == Status::Fail).count(), checks.len());
    let status = checks.iter().map(|check| check.status).max().unwrap_or(Status::Ok);
    let text = if json {
        let mut object = simd_json::to_string(&Findings { status, version: env!("CARGO_PKG_VERSION"), checks })
            .map_err(|error| Error::Internal(format!("the findings cannot be written: {error}")))?;
        object = json_line(&object);
        object.push('\n');
        object
    } else {
        checks.iter().map(|check| line(check) + "\n").collect()
    };
    print(&text)?;
    if failed > 0 { Err(Error::Unfit { failed, total }) } else { Ok(()) }
}

/// The settings that no other check covers.
fn sound(settings: &Settings) -> Check {
    let filter = Filter::new(&settings.include, &settings.exclude, settings.ignore_partial);
    let unknown = cli::unknown_variables();
    match (filter.and_then(|_| config::catch_up(settings)), unknown.first()) {
        (Err(error), _) => Check::refused("settings", &error),
        (Ok(_), Some(UnknownVariable { name, nearest })) => {
            let more = match unknown.len() - 1 {
                0 => String::new(),
                more => format!(", and neither are {more} more"),
            };
            let found = format!("they can be used, but the variable {name} is none{more}");
            Check::warn("settings", found, format!("write {nearest}, if that is meant, or unset it"))
        }
        (Ok(_), None) => Check::ok("settings", "they can be used"),
    }
}
