//! Connecting to the broker: one host after the other, by TLS where the connection string says amqps, under a name that the
//! broker lists.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::Once;
use std::{io, thread};

use lapin::protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError};
use lapin::runtime::default_runtime;
use lapin::tcp::RustlsConnector;
use lapin::uri::AMQPUri;
use lapin::{AsyncTcpStream, Connection, ConnectionProperties, ErrorKind};
use tokio::sync::oneshot;

use super::errors::{answer_or_refusal, failure};
use crate::address::{Address, Broker};
use crate::error::{Error, os_message};
use crate::message::APP_ID;
use crate::tls;

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
    let mut causes = Vec::new();
    let mut next = "name a host";
    let mut addresses = broker.addresses().iter();
    while let Some(address) = addresses.next() {
        let refused = match answer_or_refusal(address.shown(), open(broker, address)).await {
            Ok(Ok(connection)) => {
                if several {
                    tracing::info!(event = "connected", url = address.shown(), "connected to {}", address.host());
                }
                return Ok((connection, address.shown().to_owned()));
            }
            Ok(Err(error)) if is_final(&error) => return Err(explained(broker, address, &error)),
            Ok(Err(error)) => explained(broker, address, &error),
            Err(silent) => silent,
        };
        let Error::Broker { cause, next: first_step, .. } = refused else { return Err(refused) };
        if !several {
            return Err(Error::Broker { url: broker.shown().to_owned(), cause, next: first_step });
        }
        if addresses.len() > 0 {
            tracing::warn!(
                event = "host_failed",
                url = address.shown(),
                error = cause,
                "{} cannot be used: {cause}; the next host is tried",
                address.host()
            );
        }
        if causes.is_empty() {
            next = first_step;
        }
        causes.push(format!("{}: {cause}", address.host()));
    }
    let cause = format!("no host can be used: {}", causes.join("; "));
    Err(Error::Broker { url: broker.shown().to_owned(), cause, next })
}

/// Makes `async-compat` create its fallback runtime now. The client's own thread drops the connection's socket outside of any
/// runtime and so needs that one; created only then, it panics if this process has no descriptor left.
fn create_fallback_runtime() {
    // The thread is in no runtime, so the fallback is used. If it cannot be created, the client has no runtime of its own
    // either, and reports that.
    let created = thread::Builder::new().spawn(|| drop(async_compat::Compat::new(())));
    let _ = created.map(thread::JoinHandle::join);
}

async fn open(broker: &Broker, address: &Address) -> lapin::Result<Connection> {
    static FALLBACK_RUNTIME: Once = Once::new();
    FALLBACK_RUNTIME.call_once(create_fallback_runtime);
    let tls = broker.tls().cloned().map(RustlsConnector::from);
    let runtime = default_runtime()?;
    let stream_runtime = runtime.clone();
    let stream = async move |uri: AMQPUri, _| {
        let host = uri.authority.host;
        let resolved = resolve(host.clone(), uri.authority.port).await?;
        let stream = AsyncTcpStream::connect(&stream_runtime, resolved).await?;
        match &tls {
            None => Ok(stream),
            Some(tls) => Ok(stream.into_rustls(tls, &host).await?),
        }
    };
    Connection::connector(address.with_password(), runtime, stream, properties()).await
}

/// A host's addresses. The look-up has a thread of its own, because the runtime's would panic where the system has no thread
/// left.
async fn resolve(host: String, port: u16) -> io::Result<Vec<SocketAddr>> {
    if let Ok(address) = host.trim_matches(['[', ']']).parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    let (sender, result) = oneshot::channel();
    // The receiver may have run into its timeout meanwhile.
    let look_up = move || drop(sender.send((host.as_str(), port).to_socket_addrs().map(Iterator::collect)));
    thread::Builder::new().name("resolve".to_owned()).spawn(look_up)?;
    result.await.unwrap_or_else(|_| Err(io::Error::other("the name's look-up has ended without an answer")))
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

/// Whether the other side has ended an established connection.
fn is_hang_up(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    error.get_ref().is_none_or(|inner| !inner.is::<rustls::Error>())
        && matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof)
}
