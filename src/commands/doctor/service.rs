//! A service that runs here already, the control socket, and the address for metrics.

use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::fs::{Access, AtFlags, CWD, accessat};

use super::check::{Check, Status};
use crate::cli::Settings;
use crate::commands::health::Question;
use crate::error::{Error, os_message};
use crate::{config, control};

const NAME: &str = "service";

pub fn checks(settings: &Settings) -> Vec<Check> {
    let socket = config::control_socket(settings);
    let running = running(&socket);
    let runs = running.is_some();
    let mut checks = vec![running.unwrap_or_else(|| free_path(&socket, settings))];
    checks.extend(settings.metrics_address.map(|address| metrics_address(address, runs)));
    checks
}

/// The service that answers at the socket, with its own line; `None` where none answers.
fn running(socket: &Path) -> Option<Check> {
    match crate::commands::health::ask(socket, Question::Alive) {
        Ok(line) => Some(Check::ok(NAME, format!("one runs here: {line}"))),
        Err(Error::Unhealthy(line)) => Some(Check::warn(NAME, format!("one runs here: {line}"), "see its log")),
        Err(Error::NoService { cause, .. }) if UnixStream::connect(socket).is_ok() => {
            let cure =
                "see the log of what runs there; where that is no apollonia-ingestor, name another --control-socket";
            Some(Check::warn(NAME, format!("somebody listens at {socket:?}: {cause}"), cure))
        }
        Err(Error::NoService { .. }) => None,
        Err(error) => Some(Check::refused(NAME, &error)),
    }
}

/// Checks that the control socket could be made where no service answers.
fn free_path(socket: &Path, settings: &Settings) -> Check {
    let parent = socket.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let writable = || accessat(CWD, parent, Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS);
    let free = control::place_is_free(socket)
        .and_then(|()| writable().map_err(|errno| format!("{parent:?}: {}", os_message(&errno))));
    match free {
        Ok(()) => Check::ok(NAME, format!("none answers at {socket:?}")),
        Err(cause) if settings.control_socket.is_some() => {
            Check::refused(NAME, &Error::ControlSocket { path: socket.to_owned(), cause })
        }
        Err(cause) => Check::warn(
            NAME,
            format!("none answers at {socket:?}, and a service could not make its socket there: {cause}"),
            "set --control-socket (INGESTOR_CONTROL_SOCKET)",
        ),
    }
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
