//! The control socket: `GET /health`, `/ready`, `/metrics`, `/status` and the page `/` over HTTP, on a Unix socket and, where asked for,
//! over TCP.
//!
//! One thread serves both and keeps the service manager informed (see [`crate::notify`]). It only reads what the stages
//! write, so it answers also while a stage hangs; what `/status` says of single files is asked of the watch (`files`).

mod files;
mod socket;

use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use std::{io, thread};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{
    ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderMap, HeaderValue, REFERRER_POLICY,
    X_CONTENT_TYPE_OPTIONS,
};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus::{Encoder, TextEncoder};
use socket::OwnSocket;
pub use socket::{is_listened_at, place_is_free, reach};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{self, TcpSocket};
use tokio::sync::Semaphore;

use crate::config::{ControlSettings, SocketPlaces};
use crate::error::{Error, os_message};
use crate::health::{Health, Readiness, Status};
use crate::progress::{BrokerState, Progress};
use crate::status::history::{self, History, Sample};
use crate::status::page::POLICY;
use crate::streams::stderr;
use crate::{metrics, notify};

/// The largest number of connections at a time, of the socket and of the address for metrics each, so that who can reach the
/// one does not hold up the probe at the other; the next waits to be accepted. A probe and some scrapers need three.
const CONNECTIONS_MAX: usize = 16;

/// The time that a client has for the head of its request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);

/// The time that a connection has for its request and the answer.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);

const _: () = assert!(HEADER_TIMEOUT.as_millis() < CONNECTION_TIMEOUT.as_millis());

/// The pause after the system refused to accept a connection, for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
const HTML: HeaderValue = HeaderValue::from_static("text/html; charset=utf-8");
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// The running server. It removes its socket when it is dropped.
pub struct Control {
    _socket: Option<OwnSocket>,
}

impl Control {
    /// Binds the socket and the address, and starts the thread.
    ///
    /// # Errors
    /// [`Error::ControlSocket`] when the path was set and cannot be bound; [`Error::MetricsAddress`] when the address cannot;
    /// [`Error::System`] and [`Error::Threads`] when descriptors, memory or threads are short.
    pub fn start(settings: ControlSettings, progress: Arc<Progress>) -> Result<Self, Error> {
        let ControlSettings { places, metrics_address, stall } = settings;
        let unix = bind_unix(places)?;
        let tcp = metrics_address.map(bind_tcp).transpose()?;
        let (socket, unix) = unix.unzip();
        let source = Arc::new(Source { progress, stall, began: Instant::now(), history: Mutex::default() });
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|cause| Error::system("cannot start the control socket's runtime", cause))?;
        let entered = runtime.enter();
        let failed = |cause| Error::system("cannot serve the control socket", cause);
        let unix = unix.map(net::UnixListener::from_std).transpose().map_err(failed)?;
        let tcp = tcp.map(net::TcpListener::from_std).transpose().map_err(failed)?;
        drop(entered);
        thread::Builder::new()
            .name("control".to_owned())
            .spawn(move || runtime.block_on(run(source, unix, tcp)))
            .map_err(|cause| Error::Threads { what: "the control thread", cause })?;
        Ok(Self { _socket: socket })
    }
}

/// Makes the control socket; `None` where it can be made at no default place.
fn bind_unix(places: SocketPlaces) -> Result<Option<(OwnSocket, UnixListener)>, Error> {
    let first = places.made.first().cloned().unwrap_or_default();
    match OwnSocket::bind_first(&places.made) {
        Ok((own, listener, taken)) => {
            if let Some(cause) = taken.first().map(os_message) {
                let path = own.path();
                tracing::warn!(
                    event = "other_control_socket",
                    path = &*path.to_string_lossy(),
                    error = cause,
                    "the control socket is at {path:?}, because it cannot be at {first:?}: {cause}; name it to `health` by --control-socket"
                );
            }
            Ok(Some((own, listener)))
        }
        Err(causes) => {
            let cause = causes.into_iter().next().unwrap_or_else(|| io::ErrorKind::NotFound.into());
            let text = os_message(&cause);
            let refused = Error::of_setting(format!("no control socket at {first:?}"), cause, |cause| {
                Error::ControlSocket { path: first.clone(), cause }
            });
            if places.by_name || matches!(refused, Error::System { .. }) {
                return Err(refused);
            }
            tracing::warn!(
                event = "no_control_socket",
                path = &*first.to_string_lossy(),
                error = text,
                "no control socket at {first:?}: {text}; `health` and scrapers get no answer: set --control-socket"
            );
            Ok(None)
        }
    }
}

fn bind_tcp(address: SocketAddr) -> Result<TcpListener, Error> {
    let refuse = |error| refuse_address(address, error);
    let listener = TcpListener::bind(address).map_err(refuse)?;
    listener.set_nonblocking(true).map_err(refuse)?;
    Ok(listener)
}

fn refuse_address(address: SocketAddr, error: io::Error) -> Error {
    let refused = |cause| Error::MetricsAddress { address, cause };
    Error::of_setting(format!("no socket for {address}"), error, refused)
}

/// Checks that the address for metrics can be bound. It is bound for a moment and does not listen, so that a service which
/// starts meanwhile can still have it.
///
/// # Errors
/// [`Error::MetricsAddress`], or [`Error::System`] when there is no descriptor to find out.
pub fn address_is_free(address: SocketAddr) -> Result<(), Error> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
    socket
        .and_then(|socket| {
            socket.set_reuseaddr(true)?; // as TcpListener::bind does
            socket.bind(address)
        })
        .map_err(|error| refuse_address(address, error))
}

async fn run(source: Arc<Source>, unix: Option<net::UnixListener>, tcp: Option<net::TcpListener>) {
    if let Some(listener) = unix {
        let source = Arc::clone(&source);
        tokio::spawn(accept(source, async move || listener.accept().await.map(|(stream, _)| stream)));
    }
    if let Some(listener) = tcp {
        let source = Arc::clone(&source);
        tokio::spawn(accept(source, async move || listener.accept().await.map(|(stream, _)| stream)));
    }
    tokio::spawn(sample(Arc::clone(&source)));
    notify::keep_informed(&source.progress, source.stall).await;
}

/// Samples the numbers of the last minutes for as long as the service runs.
async fn sample(source: Arc<Source>) {
    let mut ticks = tokio::time::interval(history::EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        source.history().add(Sample::of(&source.progress.metrics, Instant::now()));
    }
}

async fn accept<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    source: Arc<Source>,
    next: impl AsyncFn() -> io::Result<S>,
) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
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
    let answer = service_fn(async |request| Ok::<_, Infallible>(source.answer(&request).await));
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
    /// Only the control thread uses it.
    history: Mutex<History>,
}

impl Source {
    fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        // The server itself leaves the body of an answer to HEAD away.
        let method = if request.method() == Method::HEAD { &Method::GET } else { request.method() };
        let (status, content_type, body) = match (method, request.uri().path()) {
            (&Method::GET, "/health") => {
                let health = Health::of(&self.progress, self.stall, self.began);
                let status = match health.status {
                    Status::Healthy | Status::Stopping => StatusCode::OK,
                    Status::Starting | Status::Unhealthy => StatusCode::SERVICE_UNAVAILABLE,
                };
                let body = simd_json::to_vec(&health).unwrap_or_default();
                (status, JSON, body)
            }
            (&Method::GET, "/status") => self.status_answer(request).await,
            (&Method::GET, "/") => (StatusCode::OK, HTML, self.page().await.into_bytes()),
            (&Method::GET, "/ready") => {
                let readiness = Readiness::of(&self.progress, self.stall);
                let status = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
                let body = simd_json::to_vec(&readiness).unwrap_or_default();
                (status, JSON, body)
            }
            (&Method::GET, "/metrics") => {
                let body = encode(&self.progress, Readiness::of(&self.progress, self.stall).ready);
                (StatusCode::OK, HeaderValue::from_static(metrics::CONTENT_TYPE), body)
            }
            (_, "/" | "/health" | "/ready" | "/metrics" | "/status") => {
                (StatusCode::METHOD_NOT_ALLOWED, TEXT, b"only GET and HEAD\n".to_vec())
            }
            _ => (StatusCode::NOT_FOUND, TEXT, b"/, /status, /health, /ready or /metrics\n".to_vec()),
        };
        response(status, content_type, body)
    }
}

fn response(status: StatusCode, content_type: HeaderValue, body: Vec<u8>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    if content_type == HTML {
        add_page_headers(response.headers_mut());
    }
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    if status == StatusCode::METHOD_NOT_ALLOWED {
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    }
    response
}

/// What a browser may do with the page: nothing but show it and ask for it again.
fn add_page_headers(headers: &mut HeaderMap) {
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    // Hashes and words are all that it is made of.
    if let Ok(policy) = HeaderValue::from_str(&POLICY) {
        headers.insert(CONTENT_SECURITY_POLICY, policy);
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
    let hanging = progress.volumes().iter().map(|volume| volume.stalled().as_secs()).max().unwrap_or(0);
    metrics.stage_stalled_seconds.with_label_values(&["read"]).set(hanging.cast_signed());
    metrics.oldest_pending_seconds.set(progress.oldest_pending().as_secs_f64());
    let broker = progress.broker();
    metrics.broker_connected.set(matches!(broker, BrokerState::Connected | BrokerState::Blocked).into());
    metrics.broker_blocked.set((broker == BrokerState::Blocked).into());
    metrics.ready.set(ready.into());
    metrics.unroutable_messages.set(whole(progress.unroutable()));
    let reading: usize = progress.volumes().iter().map(|volume| volume.read.waiting()).sum();
    metrics.in_flight_files.set(whole(reading + progress.publish.waiting()));
    metrics.ledger_waiting_rows.set(whole(progress.ledger.waiting()));
    metrics.process.look();
    let dropped = &metrics.log_lines_dropped;
    dropped.inc_by(stderr::dropped().saturating_sub(dropped.get()));
    let mut text = Vec::new();
    if let Err(error) = TextEncoder::new().encode(&metrics.registry.gather(), &mut text) {
        tracing::warn!(event = "metrics_failed", error = os_message(&error), "the metrics cannot be written: {error}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn every_number_is_there_before_anything_has_happened() {
        let text = String::from_utf8(encode(&Progress::default(), false)).unwrap();
        for name in [
            "apollonia_events_total{kind=\"moved_to\"} 0",
            "apollonia_overflows_total{queue=\"kernel\"} 0",
            "apollonia_stage_stalled_seconds{stage=\"read\"} 0",
            "apollonia_end_to_end_seconds_bucket{le=\"+Inf\"} 0",
            "apollonia_files_gone_total 0",
            "apollonia_build_info{arch=",
            "process_open_fds ",
        ] {
            assert!(text.contains(name), "{name} is not in\n{text}");
        }
        assert!(!text.contains("cause=\"gone\"") && !text.contains("NaN"), "{text}");
    }
}
