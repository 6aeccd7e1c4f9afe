//! Requests to the control socket, and `health`, the command that makes them.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde_json::Value;

use super::service::Ended;
use super::setup::Setup;
use super::wait::retry;

/// A connection of any kind.
pub trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

/// Makes one request and returns the answer: status, head in lower case, and body.
#[track_caller]
pub fn ask(mut stream: impl Stream, request: &str) -> (u16, String, String) {
    write!(stream, "{request} HTTP/1.1\r\nHost: test\r\n\r\n").expect("the request is taken");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no HTTP: {answer:?}"));
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    (status.unwrap_or_else(|| panic!("no status: {head:?}")), head.to_ascii_lowercase(), body.to_owned())
}

#[track_caller]
pub fn get(socket: &Path, path: &str) -> (u16, String, String) {
    ask(UnixStream::connect(socket).expect("the control socket"), &format!("GET {path}"))
}

#[track_caller]
pub fn health(socket: &Path) -> (u16, Value) {
    let (status, head, body) = get(socket, "/health");
    assert!(head.contains("content-type: application/json"), "{head}");
    (status, serde_json::from_str(&body).unwrap_or_else(|error| panic!("{error}: {body}")))
}

/// Every sample by its name and labels.
#[track_caller]
pub fn metrics(socket: &Path) -> BTreeMap<String, f64> {
    let (status, head, body) = get(socket, "/metrics");
    assert_eq!(status, 200);
    assert!(head.contains("content-type: text/plain; version=0.0.4"), "{head}");
    let samples = body.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    samples
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no sample: {line:?}"));
            (name.to_owned(), value.parse().unwrap_or_else(|_| panic!("no number: {line:?}")))
        })
        .collect()
}

/// The service updates some numbers once a tick only.
#[track_caller]
pub fn wait_for_metrics(socket: &Path, what: &str, enough: impl Fn(&BTreeMap<String, f64>) -> bool) {
    retry(what, || {
        let metrics = metrics(socket);
        if enough(&metrics) { Ok(()) } else { Err(format!("{metrics:#?}")) }
    });
}

/// Waits until `/health` answers so, and returns its status and body.
#[track_caller]
pub fn wait_for_health(socket: &Path, what: &str, enough: impl Fn(u16, &Value) -> bool) -> (u16, Value) {
    retry(what, || {
        let (status, health) = health(socket);
        if enough(status, &health) { Ok((status, health)) } else { Err(format!("{health:#}")) }
    })
}

/// `health` on this socket.
pub fn health_command(socket: &Path) -> Ended {
    Setup::new(&["health"]).env("INGESTOR_CONTROL_SOCKET", socket).run()
}

/// `health --ready` on this socket.
pub fn ready_command(socket: &Path) -> Ended {
    Setup::new(&["health", "--ready"]).env("INGESTOR_CONTROL_SOCKET", socket).run()
}
