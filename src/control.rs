//! The control socket: `GET /health`, `GET /ready` and `GET /metrics` over HTTP, on a Unix socket and, where asked for, over TCP.
//!
//! One thread serves both and keeps the service manager informed (see [`crate::notify`]). It only reads what the stages
//! write, so it answers also while a stage hangs.

use std::convert::Infallible;
use std::fs::Permissions;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{fs, io, thread};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus::{Encoder, TextEncoder};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpSocket;
use tokio::sync::Semaphore;

use crate::config::ControlSettings;
use crate::error::{Error, os_message};
use crate::health::{Health, Readiness, Status};
use crate::progress::{BrokerState, Progress};
use crate::streams::stderr;
use crate::{metrics, notify};

/// The largest number of connections at a time; the next waits to be accepted. A probe and some scrapers need three.
const CONNECTIONS_MAX: usize = 16;

/// The time that a client has for the head of its request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);

/// The time that a connection has for its request and the answer.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);

const _: () = assert!(HEADER_TIMEOUT.as_millis() < CONNECTION_TIMEOUT.as_millis());

/// The pause after the system refused to accept a connection, for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The running server. It removes its socket when it is dropped.
pub struct Control {
    _socket: Option<OwnSocket>,
}

impl Control {
    /// Binds the socket and the address, and starts the thread.
    ///
    /// # Errors
    /// [`Error::ControlSocket`] when the path was set and cannot be bound; [`Error::MetricsAddress`] when the address cannot.
    pub fn start(settings: ControlSettings, progress: Arc<Progress>) -> Result<Self, Error> {
        let ControlSettings { socket, socket_by_name, metrics_address, stall } = settings;
        let unix = match OwnSocket::bind(&socket) {
            Ok(bound) => Some(bound),
            Err(cause) if socket_by_name => return Err(Error::ControlSocket { path: socket, cause }),
            Err(cause) => {
                tracing::warn!(
                    "no control socket at {socket:?}: {cause}; `health` and scrapers get no answer: set --control-socket"
                );
                None
            }
        };
        let tcp = metrics_address.map(bind_tcp).transpose()?;
        let (socket, unix) = unix.unzip();
        let source = Arc::new(Source { progress, stall, began: Instant::now() });
        let refuse = |error: io::Error| Error::Internal(format!("cannot start the control socket's runtime: {error}"));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(refuse)?;
        thread::Builder::new()
            .name("control".to_owned())
            .spawn(move || runtime.block_on(run(source, unix, tcp)))
            .map_err(|cause| Error::Threads { what: "the control thread", cause })?;
        Ok(Self { _socket: socket })
    }
}

fn bind_tcp(address: SocketAddr) -> Result<TcpListener, Error> {
    let refuse = |error| refuse_address(address, &error);
    let listener = TcpListener::bind(address).map_err(refuse)?;
    listener.set_nonblocking(true).map_err(refuse)?;
    Ok(listener)
}

fn refuse_address(address: SocketAddr, error: &io::Error) -> Error {
    Error::MetricsAddress { address, cause: os_message(error) }
}

/// Checks that the address for metrics can be bound. It is bound for a moment and does not listen, so that a service which
/// starts meanwhile can still have it.
///
/// # Errors
/// [`Error::MetricsAddress`].
pub fn address_is_free(address: SocketAddr) -> Result<(), Error> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
    socket
        .and_then(|socket| {
            socket.set_reuseaddr(true)?; // as TcpListener::bind does
            socket.bind(address)
        })
        .map_err(|error| refuse_address(address, &error))
}

/// Checks that the control socket may be made at this path.
///
/// # Errors
/// What is at that path, in words.
pub fn place_is_free(path: &Path) -> Result<(), String> {
    match fs::symlink_metadata(path) {
        Ok(there) if !there.file_type().is_socket() => Err("there is a file of that name".to_owned()),
        Ok(_) if UnixStream::connect(path).is_ok() => Err("another process answers there".to_owned()),
        _ => Ok(()),
    }
}

/// A socket in the file system that this process has made: its path, with its device and inode.
struct OwnSocket {
    path: PathBuf,
    file: (u64, u64),
}

impl OwnSocket {
    /// Binds under another name and renames. So the path never has the rights of the umask, and it always leads to a socket
    /// where it repermits that of a killed process.
    fn bind(path: &Path) -> Result<(Self, UnixListener), String> {
        place_is_free(path)?;
        let mut beside = path.as_os_str().to_owned();
        beside.push(format!(".{}", std::process::id()));
        let beside = PathBuf::from(beside);
        let bound = (|| {
            let _ = fs::remove_file(&beside); // left by a killed process that had the same id
            let listener = UnixListener::bind(&beside)?;
            fs::set_permissions(&beside, Permissions::from_mode(0o600))?;
            listener.set_nonblocking(true)?;
            let there = fs::symlink_metadata(&beside)?;
            fs::rename(&beside, path)?;
            Ok((Self { path: path.to_owned(), file: (there.dev(), there.ino()) }, listener))
        })();
        bound.map_err(|error: io::Error| {
            let _ = fs::remove_file(&beside);
            os_message(&error)
        })
    }
}

impl Drop for OwnSocket {
    fn drop(&mut self) {
        // A socket that a successor has put in its place stays.
        if fs::symlink_metadata(&self.path).is_ok_and(|there| (there.dev(), there.ino()) == self.file) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

async fn run(source: Arc<Source>, unix: Option<UnixListener>, tcp: Option<TcpListener>) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    if let Some(listener) = unix.and_then(|listener| tokio::net::UnixListener::from_std(listener).ok()) {
        let (source, permits) = (Arc::clone(&source), Arc::clone(&permits));
        tokio::spawn(accept(source, permits, async move || listener.accept().await.map(|(stream, _)| stream)));
    }
    if let Some(listener) = tcp.and_then(|listener| tokio::net::TcpListener::from_std(listener).ok()) {
        let source = Arc::clone(&source);
        tokio::spawn(accept(source, permits, async move || listener.accept().await.map(|(stream, _)| stream)));
    }
    notify::keep_informed(&source.progress, source.stall).await;
}

async fn accept<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    source: Arc<Source>,
    permits: Arc<Semaphore>,
    next: impl AsyncFn() -> io::Result<S>,
) {
    while let Ok(permit) = Arc::clone(&permits).acquire_owned().await {
        match next().await {
            Ok(stream) => {
                let source = Arc::clone(&source);
                tokio::spawn(async move {
                    serve(&source, stream).await;
                    drop(permit);
                });
            }
            Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
        }
    }
}

async fn serve<S: AsyncRead + AsyncWrite + Unpin>(source: &Source, stream: S) {
    let answer = service_fn(|request| {
        let answer = source.answer(&request);
        async { Ok::<_, Infallible>(answer) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), answer);
    // A client that leaves early needs no answer.
    let _ = tokio::time::timeout(CONNECTION_TIMEOUT, served).await;
}

/// What answers are made of.
struct Source {
    progress: Arc<Progress>,
    stall: Duration,
    began: Instant,
}

impl Source {
    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
        let (status, content_type, body) = match (request.method(), request.uri().path()) {
            (&Method::GET, "/health") => {
                let health = Health::of(&self.progress, self.stall, self.began);
                let status = match health.status {
                    Status::Healthy | Status::Stopping => StatusCode::OK,
                    Status::Starting | Status::Unhealthy => StatusCode::SERVICE_UNAVAILABLE,
                };
                let body = simd_json::to_vec(&health).unwrap_or_default();
                (status, HeaderValue::from_static("application/json"), body)
            }
            (&Method::GET, "/ready") => {
                let readiness = Readiness::of(&self.progress, self.stall);
                let status = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
                let body = simd_json::to_vec(&readiness).unwrap_or_default();
                (status, HeaderValue::from_static("application/json"), body)
            }
            (&Method::GET, "/metrics") => {
                let body = encode(&self.progress, Readiness::of(&self.progress, self.stall).ready);
                (StatusCode::OK, HeaderValue::from_static(metrics::CONTENT_TYPE), body)
            }
            (_, "/health" | "/ready" | "/metrics") => (StatusCode::METHOD_NOT_ALLOWED, TEXT, b"only GET\n".to_vec()),
            _ => (StatusCode::NOT_FOUND, TEXT, b"/health, /ready or /metrics\n".to_vec()),
        };
        let mut response = Response::new(Full::from(body));
        *response.status_mut() = status;
        response.headers_mut().insert(CONTENT_TYPE, content_type);
        if status == StatusCode::METHOD_NOT_ALLOWED {
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET"));
        }
        response
    }
}

/// The metrics in Prometheus' text format. `ready` says whether a file that lands now can be delivered (see
/// [`crate::health::assess_readiness`]).
#[must_use]
pub fn encode(progress: &Progress, ready: bool) -> Vec<u8> {
    let metrics = &progress.metrics;
    if let Some(facts) = progress.facts.get() {
        let output = if progress.broker() == BrokerState::Unused { facts.output.as_str() } else { "amqp" };
        metrics.info.with_label_values(&[env!("CARGO_PKG_VERSION"), facts.engine, output]).set(1);
    }
    let whole = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
    for stage in progress.stages() {
        metrics.stage_stalled_seconds.with_label_values(&[stage.name]).set(stage.stalled.as_secs().cast_signed());
    }
    // One file system that hangs needs attention, too, though the service goes on beside it.
    let hanging = progress.volumes().iter().map(|volume| volume.read.stalled().as_secs()).max().unwrap_or(0);
    metrics.stage_stalled_seconds.with_label_values(&["read"]).set(hanging.cast_signed());
    let broker = progress.broker();
    metrics.broker_connected.set(matches!(broker, BrokerState::Connected | BrokerState::Blocked).into());
    metrics.broker_blocked.set((broker == BrokerState::Blocked).into());
    metrics.ready.set(ready.into());
    metrics.unroutable_messages.set(whole(progress.unroutable()));
    let reading: usize = progress.volumes().iter().map(|volume| volume.read.waiting()).sum();
    metrics.in_flight_files.set(whole(reading + progress.publish.waiting()));
    metrics.ledger_waiting_rows.set(whole(progress.ledger.waiting()));
    let dropped = &metrics.log_lines_dropped;
    dropped.inc_by(stderr::dropped().saturating_sub(dropped.get()));
    let mut text = Vec::new();
    if let Err(error) = TextEncoder::new().encode(&metrics.registry.gather(), &mut text) {
        tracing::warn!("the metrics cannot be written: {error}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_socket_of_a_killed_process_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.sock");
        drop(UnixListener::bind(&path).unwrap());
        let (own, listener) = OwnSocket::bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(OwnSocket::bind(&path).is_err_and(|cause| cause.contains("another process")));
        drop((own, listener));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "it removes its socket");
        fs::write(&path, "a file").unwrap();
        assert!(OwnSocket::bind(&path).is_err_and(|cause| cause.contains("a file")));
        assert_eq!(fs::read(&path).unwrap(), b"a file");
    }

    #[test]
    fn an_address_is_free_until_somebody_listens_there() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        assert!(matches!(address_is_free(address), Err(Error::MetricsAddress { .. })));
        drop(listener);
        address_is_free(address).unwrap();
        TcpListener::bind(address).unwrap();
    }

    #[test]
    fn a_successors_socket_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.sock");
        let (own, listener) = OwnSocket::bind(&path).unwrap();
        drop(listener);
        let _next = OwnSocket::bind(&path).unwrap();
        drop(own);
        assert!(path.exists());
    }

    #[test]
    fn every_number_is_there_before_anything_has_happened() {
        let text = String::from_utf8(encode(&Progress::default(), false)).unwrap();
        for name in [
            "apollonia_events_total{kind=\"moved_to\"} 0",
            "apollonia_overflows_total{queue=\"kernel\"} 0",
            "apollonia_stage_stalled_seconds{stage=\"read\"} 0",
            "apollonia_end_to_end_seconds_bucket{le=\"+Inf\"} 0",
            "process_open_fds ",
        ] {
            assert!(text.contains(name), "{name} is not in\n{text}");
        }
    }
}
