//! Connecting to the broker: one host after the other, by TLS where the connection string says amqps, under a name that the
//! broker lists.

use std::collections::HashSet;
use std::net::{IpAddr, Shutdown, SocketAddr, ToSocketAddrs};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;
use std::{io, thread};

use async_compat::Compat;
use lapin::protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError};
use lapin::uri::AMQPUri;
use lapin::{Connection, ConnectionProperties, ErrorKind};
use tokio::net::TcpStream;
use tokio::runtime::Builder;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::errors::{ANSWER_TIMEOUT, NODE_CONNECTIONS, failure, silent};
use super::transport::{self, transport};
use crate::address::{Address, Broker};
use crate::error::{Error, os_message};
use crate::message::APP_ID;
use crate::tls;

/// The shortest frame that every broker takes, in bytes (AMQP 0-9-1, 1.1: frame-min-size).
const FRAME_MIN: u32 = 4096;

/// The shortest frame that the client and RabbitMQ from 4.1 on ask for, in bytes.
const CLIENT_FRAME_MIN: u32 = 8192;

/// The next step where the connection string asks for shorter frames and the broker hangs up without a reason.
const TAKES_LONGER_FRAMES: &str = "leave frame_max out of AMQP_CONNECTION_STRING (RabbitMQ takes none below 8192 from 4.1 on), and check that this is its AMQP port";

/// The next step where a broker closes a connection of plain AMQP at its start.
const SPEAKS_TLS: &str =
    "check that this is its AMQP port, and write amqps:// if it is the one for TLS (5671, by custom)";

/// Connects to the first host that can be reached. Returns its address too, its secrets masked.
///
/// # Errors
/// [`Error::Broker`], with the answer of the one host or of each. A login that one host refuses is not tried at the next,
/// because that is the same cluster, which would count the failed logins.
pub async fn connect(broker: &Broker) -> Result<(Connection, String), Error> {
    let several = broker.addresses().len() > 1;
    let mut refusals = Refusals::default();
    let mut addresses = broker.addresses().iter();
    while let Some(address) = addresses.next() {
        let refused = match reach(broker, address).await {
            Ok(connection) => {
                if several {
                    tracing::info!(event = "connected", url = address.shown(), "connected to {}", address.host());
                }
                return Ok((connection, address.shown().to_owned()));
            }
            Err(Refused { error, is_final, .. }) if is_final || !several => return Err(error),
            Err(refused) => refused,
        };
        let Refused { error: Error::Broker { cause, next, .. }, answers, .. } = refused else {
            return Err(refused.error);
        };
        if addresses.len() > 0 {
            tracing::warn!(
                event = "host_failed",
                url = address.shown(),
                error = cause,
                "{} cannot be used: {cause}; the next host is tried",
                address.host()
            );
        }
        refusals.add(address.host(), cause, next, answers);
    }
    Err(refusals.error(broker.shown(), "no host can be used"))
}

/// Why a host cannot be used.
struct Refused {
    error: Error,
    /// Every host of the cluster would refuse the same.
    is_final: bool,
    /// Somebody has answered there, and so is more likely to be the one that is meant.
    answers: bool,
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Self { error, is_final: false, answers: false }
    }
}

/// What several hosts, or several addresses of one, have answered.
#[derive(Default)]
struct Refusals {
    by: Vec<(String, String)>,
    /// The next step of the first that has answered, or else of the first, and whether that one has.
    next: Option<(bool, &'static str)>,
}

impl Refusals {
    fn add(&mut self, name: String, cause: String, next: &'static str, answers: bool) {
        self.by.push((name, cause));
        if self.next.is_none_or(|(answered, _)| answers && !answered) {
            self.next = Some((answers, next));
        }
    }

    fn answers(&self) -> bool {
        self.next.is_some_and(|(answered, _)| answered)
    }

    fn next(&self) -> &'static str {
        self.next.map_or("name a host", |(_, next)| next)
    }

    fn error(self, at: &str, which: &str) -> Error {
        let causes: Vec<_> = self.by.iter().map(|(name, cause)| format!("{name}: {cause}")).collect();
        let cause = format!("{which}: {}", causes.join("; "));
        Error::Broker { url: at.to_owned(), cause, next: self.next() }
    }
}

/// Connects to a host: to the first address of its name that can be used. Each gets an equal share of the time that is left.
async fn reach(broker: &Broker, address: &Address) -> Result<Connection, Refused> {
    let at = address.shown();
    let deadline = Instant::now() + ANSWER_TIMEOUT;
    let AMQPUri { authority, .. } = address.with_password();
    let resolved = match timeout(ANSWER_TIMEOUT, resolve(authority.host, authority.port)).await {
        Ok(Ok(resolved)) => resolved,
        Ok(Err(error)) => return Err(explained(broker, address, &error.into()).into()),
        Err(_) => return Err(silent(at, ANSWER_TIMEOUT).into()),
    };
    let several = resolved.len() > 1;
    let mut refusals = Refusals::default();
    for (tried, socket) in resolved.iter().enumerate() {
        let left = deadline.saturating_duration_since(Instant::now());
        let share = left / u32::try_from(resolved.len() - tried).unwrap_or(u32::MAX);
        let refused = match timeout(share, agree(broker, address, *socket)).await {
            Ok(Ok(connection)) => return Ok(connection),
            Ok(Err(error)) => Refused {
                error: explained(broker, address, &error),
                is_final: is_final(&error),
                answers: !is_unreachable(&error),
            },
            Err(_) => silent(at, share).into(),
        };
        if refused.is_final || !several {
            return Err(refused);
        }
        let Refused { error: Error::Broker { cause, next, .. }, answers, .. } = refused else { return Err(refused) };
        tracing::debug!(event = "address_failed", error = cause, "{} at {socket}: {cause}", address.host());
        refusals.add(socket.ip().to_string(), cause, next, answers);
    }
    let answers = refusals.answers();
    let error = match refusals.by.first() {
        // "localhost" has two addresses, and where nothing listens at either, one cause says all.
        Some((_, first)) if refusals.by.iter().all(|(_, cause)| cause == first) => {
            Error::Broker { url: at.to_owned(), cause: first.clone(), next: refusals.next() }
        }
        _ => refusals.error(at, "no address of the host can be used"),
    };
    Err(Refused { error, is_final: false, answers })
}

/// Opens a connection with frames of a size that both sides take.
///
/// The client asks for 8192 bytes at least ([`CLIENT_FRAME_MIN`]) unless it is set to less. A broker that allows less hangs up
/// without a reason, and takes the protocol's own minimum.
async fn agree(broker: &Broker, address: &Address, socket: SocketAddr) -> lapin::Result<Connection> {
    let mut uri = address.with_password();
    let refused = match open(broker, uri.clone(), socket).await {
        Err(error)
            if address.frame_bytes() > FRAME_MIN
                && matches!(error.kind(), ErrorKind::IOError(io) if is_hang_up(io)) =>
        {
            error
        }
        opened => return opened,
    };
    uri.query.frame_max = Some(FRAME_MIN);
    let connection = open(broker, uri, socket).await.map_err(|_| refused)?;
    tracing::info!(
        event = "short_frames",
        bytes = FRAME_MIN,
        "the broker allows only short frames (frame_max): {FRAME_MIN} bytes are used with {}",
        address.host()
    );
    Ok(connection)
}

/// Makes `async-compat` create its fallback runtime now, once. The client's own thread drops the connection's socket outside of
/// any runtime and so needs that one; created only then, it panics if this process has no descriptor left.
///
/// # Errors
/// The system has no thread or no descriptor for it.
fn create_fallback_runtime() -> io::Result<()> {
    static CREATED: AtomicBool = AtomicBool::new(false);
    if CREATED.load(Ordering::Relaxed) {
        return Ok(());
    }
    // The thread is in no runtime, so the fallback is used. It panics where it lacks something, so that is asked for before.
    let create = || -> io::Result<()> {
        drop(thread::Builder::new().spawn(|| ())?.join());
        drop(Builder::new_current_thread().enable_all().build()?);
        drop(Compat::new(()));
        Ok(())
    };
    let created = thread::Builder::new().spawn(create)?.join();
    created.unwrap_or_else(|_| Err(io::Error::other("the client's runtime cannot be created")))?;
    CREATED.store(true, Ordering::Relaxed);
    Ok(())
}

async fn open(broker: &Broker, uri: AMQPUri, socket: SocketAddr) -> lapin::Result<Connection> {
    create_fallback_runtime()?;
    let tls = broker.tls().cloned();
    let stream = TcpStream::connect(socket).await?;
    stream.set_nodelay(true)?;
    let unless_opened = HangUp(Some(stream.as_fd().try_clone_to_owned()?.into()));
    let stream = Mutex::new(Some(stream));
    let stream = async move |uri: AMQPUri, _| {
        let stream = stream.lock().unwrap_or_else(PoisonError::into_inner).take();
        let stream = stream.ok_or_else(|| io::Error::from(io::ErrorKind::ConnectionAborted))?;
        Ok(transport(stream, tls.as_ref(), &uri.authority.host).await?)
    };
    let connection = Connection::connector(uri, transport::runtime(), stream, properties()).await?;
    unless_opened.keep();
    Ok(connection)
}

/// Ends a connection that nobody waits for any more. The client's thread would wait for the broker's answer for as long as
/// the broker is silent.
struct HangUp(Option<std::net::TcpStream>);

impl HangUp {
    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for HangUp {
    fn drop(&mut self) {
        // A connection that has ended already is what is wanted.
        let _ = self.0.take().map(|stream| stream.shutdown(Shutdown::Both));
    }
}

/// A host's addresses. The look-up has a thread of its own, because the runtime's would panic where the system has no thread
/// left.
async fn resolve(host: String, port: u16) -> io::Result<Vec<SocketAddr>> {
    if let Ok(address) = host.trim_matches(['[', ']']).parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    let (sender, result) = oneshot::channel();
    // The receiver may have run into its timeout meanwhile.
    let look_up = move || {
        let resolved = (host.as_str(), port).to_socket_addrs().map(|found| {
            let mut seen = HashSet::new();
            found.filter(|address| seen.insert(*address)).collect::<Vec<_>>()
        });
        // The resolver says that a name is not known where it finds no descriptor for its files.
        let resolved = resolved.or_else(|error| io::stderr().as_fd().try_clone_to_owned().and(Err(error)));
        drop(sender.send(resolved));
    };
    thread::Builder::new().name("resolve".to_owned()).spawn(look_up)?;
    let resolved =
        result.await.unwrap_or_else(|_| Err(io::Error::other("the name's look-up has ended without an answer")))?;
    if resolved.is_empty() { Err(io::Error::other("the name has no address")) } else { Ok(resolved) }
}

/// The client properties, which the broker shows in its list of connections.
fn properties() -> ConnectionProperties {
    let version = env!("CARGO_PKG_VERSION");
    let system = rustix::system::uname();
    let host = system.nodename().to_string_lossy();
    ConnectionProperties::default()
        .with_connection_name(format!("{APP_ID} {version} on {host} pid {}", std::process::id()).into())
        .with_client_property("product".into(), APP_ID.into())
        .with_client_property("version".into(), version.into())
}

/// Whether every host of the cluster would refuse the same.
fn is_final(error: &lapin::Error) -> bool {
    let ErrorKind::ProtocolError(refusal) = error.kind() else { return false };
    if refusal.get_message().as_str().contains(NODE_CONNECTIONS) {
        return false;
    }
    matches!(
        refusal.kind(),
        AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED) | AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED)
    )
}

/// The error for a failed connection. A broker that closes the connection at its start gives no reason, so this names the
/// likely one.
fn explained(broker: &Broker, address: &Address, error: &lapin::Error) -> Error {
    let broker_error = |cause: String, next| Error::Broker { url: address.shown().to_owned(), cause, next };
    let by_certificate = address.logs_in_by_certificate();
    match (error.kind(), broker.tls()) {
        (ErrorKind::IOError(io), _) if io.raw_os_error() == Some(libc::EAGAIN) => {
            Error::Threads { what: "a thread for the broker's connection", cause: os_error(io) }
        }
        (ErrorKind::ProtocolError(refusal), _) if by_certificate && is_final(error) => broker_error(
            refusal.get_message().to_string(),
            "set --amqp-client-cert and --amqp-client-key to a certificate whose name is a user of the broker, with its plugin rabbitmq_auth_mechanism_ssl",
        ),
        (ErrorKind::IOError(io), Some(tls)) if is_hang_up(io) => {
            let (cause, next) = tls::hung_up(tls);
            broker_error(format!("{}: {cause}", os_message(io)), next)
        }
        (ErrorKind::IOError(io), _) if is_hang_up(io) && address.frame_bytes() < CLIENT_FRAME_MIN => {
            broker_error(os_message(io), TAKES_LONGER_FRAMES)
        }
        (ErrorKind::IOError(io), None) if is_hang_up(io) => broker_error(os_message(io), SPEAKS_TLS),
        (ErrorKind::ParsingError(_), None) => {
            broker_error("it does not speak AMQP at this port".to_owned(), SPEAKS_TLS)
        }
        _ => failure(address.shown(), error),
    }
}

/// A copy of the error, because the client gives its own only by reference.
fn os_error(error: &io::Error) -> io::Error {
    error.raw_os_error().map_or_else(|| io::Error::other(error.to_string()), io::Error::from_raw_os_error)
}

/// Whether nobody has answered at the address.
fn is_unreachable(error: &lapin::Error) -> bool {
    use io::ErrorKind::{AddrNotAvailable, ConnectionRefused, HostUnreachable, NetworkUnreachable, TimedOut};
    let unreachable = [AddrNotAvailable, ConnectionRefused, HostUnreachable, NetworkUnreachable, TimedOut];
    matches!(error.kind(), ErrorKind::IOError(io) if unreachable.contains(&io.kind()))
}

/// Whether the other side has ended an established connection.
fn is_hang_up(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    error.get_ref().is_none_or(|inner| !inner.is::<rustls::Error>())
        && matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As where "localhost" is ::1 and 127.0.0.1, and the broker listens at one of them.
    #[test]
    fn the_next_step_is_that_of_the_address_at_which_somebody_answers() {
        let mut refusals = Refusals::default();
        refusals.add("::1".to_owned(), "connection refused".to_owned(), "start the broker", false);
        assert_eq!((refusals.next(), refusals.answers()), ("start the broker", false));
        refusals.add("127.0.0.1".to_owned(), "it speaks no TLS".to_owned(), "write amqp://", true);
        refusals.add("127.0.0.2".to_owned(), "another".to_owned(), "another step", true);
        assert_eq!((refusals.next(), refusals.answers()), ("write amqp://", true));
    }
}
