//! A service that runs here already, the control socket, and the address for metrics.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD, accessat};

use super::check::{Check, Status};
use crate::cli::Settings;
use crate::commands::health::Question;
use crate::config::SocketPlaces;
use crate::error::{Error, os_message};
use crate::{config, control};

const NAME: &str = "service";

pub fn checks(settings: &Settings) -> Vec<Check> {
    let places = config::socket_places(settings);
    let running = running(&places);
    let runs = running.is_some();
    let mut checks = vec![running.unwrap_or_else(|| free_place(&places))];
    checks.extend(settings.metrics_address.map(|address| metrics_address(address, runs)));
    checks
}

/// The service that answers at the socket, with its own line; `None` where none answers.
fn running(places: &SocketPlaces) -> Option<Check> {
    match crate::commands::health::ask(places, Question::Alive) {
        Ok(line) => Some(Check::ok(NAME, format!("one runs here: {line}"))),
        Err(Error::Unhealthy(line)) => Some(Check::warn(NAME, format!("one runs here: {line}"), "see its log")),
        Err(Error::NoService { socket, cause }) if control::is_listened_at(&socket) => {
            let cure =
                "see the log of what runs there; where that is no apollonia-ingestor, name another --control-socket";
            Some(Check::warn(NAME, format!("somebody listens at {socket:?}: {cause}"), cure))
        }
        Err(Error::NoService { .. }) => None,
        Err(error) => Some(Check::refused(NAME, &error)),
    }
}

/// Checks that the control socket could be made where no service answers.
fn free_place(places: &SocketPlaces) -> Check {
    let first = places.made.first().map_or(Path::new(""), PathBuf::as_path);
    let cause = match could_be_made(first) {
        Ok(()) => return Check::ok(NAME, format!("none answers at {first:?}")),
        Err(cause) if places.by_name => {
            let (path, cause) = (first.to_owned(), os_message(&cause));
            return Check::refused(NAME, &Error::ControlSocket { path, cause });
        }
        Err(cause) => os_message(&cause),
    };
    let found = format!("none answers at {first:?}, and a service could not make its socket there: {cause}");
    match places.made.iter().find(|place| could_be_made(place).is_ok()) {
        Some(other) => Check::warn(
            NAME,
            format!("{found}; it would make it at {other:?}"),
            "set --control-socket (INGESTOR_CONTROL_SOCKET), which `health` asks too",
        ),
        None => Check::warn(NAME, found, "set --control-socket (INGESTOR_CONTROL_SOCKET)"),
    }
}

/// Whether a service could make its socket at this path, or the reason why not.
fn could_be_made(socket: &Path) -> io::Result<()> {
    let parent = socket.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    control::place_is_free(socket)?;
    accessat(CWD, parent, Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS)
        .map_err(|errno| io::Error::other(format!("{parent:?}: {errno}")))
}

/// Checks the address for metrics. Where a service `runs` here, it may be the one that has bound the address.
fn metrics_address(address: SocketAddr, runs: bool) -> Check {
    const NAME: &str = "metrics address";
    let checked = match control::address_is_free(address) {
        Ok(()) => return Check::ok(NAME, format!("{address} can be had")),
        Err(error) => Check::refused(NAME, &error),
    };
    if runs && checked.status == Status::Fail {
        return Check::ok(NAME, format!("{}: the service that runs here has it, as it should", checked.found));
    }
    checked
}
