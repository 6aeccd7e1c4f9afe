//! One request to the service behind the control socket.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;

use crate::commands::runtime::runtime;
use crate::config::SocketPlaces;
use crate::control;
use crate::error::{Error, os_message};

/// The longest wait for an answer. The service composes it from memory; `status` may ask a file system that hangs for 4 s.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(8);

/// What the service has answered.
pub(super) struct Answered {
    /// The socket that it answered at.
    pub(super) socket: PathBuf,
    pub(super) status: StatusCode,
    /// It comes from another process.
    pub(super) body: Vec<u8>,
}

/// Asks the service for a path of its control socket, and takes an answer of at most so many bytes.
///
/// # Errors
/// [`Error::NoService`] when nobody answers, or not in time.
pub(super) fn request(places: &SocketPlaces, path: &str, bytes_max: usize) -> Result<Answered, Error> {
    let (socket, stream) = control::reach(places)?;
    let refuse = |cause: String| Error::NoService { socket: socket.to_owned(), cause };
    let runtime = runtime()?;
    let asked = async { tokio::time::timeout(ANSWER_TIMEOUT, get(stream, path, bytes_max)).await };
    let (status, body) = match runtime.block_on(asked) {
        Ok(answered) => answered.map_err(refuse)?,
        Err(_) => return Err(refuse(format!("it has not answered for {} s", ANSWER_TIMEOUT.as_secs()))),
    };
    Ok(Answered { socket: socket.to_owned(), status, body: Vec::from(body) })
}

/// The error for an answer that no service of ours gives.
pub(super) fn another_program(socket: &Path) -> Error {
    Error::NoService { socket: socket.to_owned(), cause: "what answers there is another program".to_owned() }
}

async fn get(stream: UnixStream, path: &str, bytes_max: usize) -> Result<(StatusCode, Bytes), String> {
    let stream = tokio::net::UnixStream::from_std(stream).map_err(|error| os_message(&error))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| os_message(&error))?;
    tokio::spawn(connection);
    let request = Request::get(path).header("host", "localhost").body(Empty::<Bytes>::new());
    let request = request.map_err(|error| os_message(&error))?;
    let response = sender.send_request(request).await.map_err(|error| os_message(&error))?;
    let status = response.status();
    let body = Limited::new(response.into_body(), bytes_max);
    let body = body.collect().await.map_err(|error| os_message(&*error))?;
    Ok((status, body.to_bytes()))
}
