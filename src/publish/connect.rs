//! Getting into the broker: each host in its turn, by TLS where that was asked for, under a name that the broker shows.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::Once;
use std::{io, thread};

use lapin::protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError};
use lapin::runtime::default_runtime;
use lapin::tcp::RustlsConnector;
use lapin::uri::{AMQPUri, SASLMechanism};
use lapin::{AsyncTcpStream, Connection, ConnectionProperties, ErrorKind};
use tokio::sync::oneshot;

use super::errors::{answer_or_refusal, failure};
use crate::address::{Address, Broker};
use crate::error::{Error, os_message};
use crate::message::APP_ID;
use crate::tls;

/// For a broker that hangs up on plain AMQP.
const SPEAKS_TLS: &str =
    "check that this is its AMQP port, and write amqps:// if it is the one for TLS (5671, by custom)";

/// Connects to the first host that can be reached, and tells its address.
///
/// # Errors
/// [`Error::Broker`]: what the one host said, or what each of several did. A login that one host refuses is not tried at
/// the next: it is the same cluster, and would count the failed logins.
pub async fn connect(broker: &Broker) -> Result<(Connection, String), Error> {
    let several = broker.addresses.len() > 1;
    let mut causes = Vec::new();
    let mut next = "name a host";
    let mut left = broker.addresses.iter();
    while let Some(address) = left.next() {
        let refused = match answer_or_refusal(&address.shown, open(broker, address)).await {
            Ok(Ok(connection)) => {
                if several {
                    tracing::info!("connected to {}", address.host());
                }
                return Ok((connection, address.shown.clone()));
            }
            Ok(Err(error)) if is_verdict(&error) => return Err(explained(broker, address, &error)),
            Ok(Err(error)) => explained(broker, address, &error),
            Err(silent) => silent,
        };
        let Error::Broker { cause, next: cure, .. } = refused else { return Err(refused) };
        if !several {
            return Err(Error::Broker { url: broker.shown.clone(), cause, next: cure });
        }
        if left.len() > 0 {
            tracing::warn!("{} cannot be used: {cause}; the next host is tried", address.host());
        }
        if causes.is_empty() {
            next = cure;
        }
        causes.push(format!("{}: {cause}", address.host()));
    }
    Err(Error::Broker { url: broker.shown.clone(), cause: format!("no host can be used: {}", causes.join("; ")), next })
}

/// Has the runtime made that `async-compat` enters where there is none, so that it is there when it is wanted: the client's
/// own thread lets go of the connection's socket outside of any, and panicked when this process had no descriptor left for
/// one more at that moment.
fn make_the_last_runtime() {
    // On a thread that is in no runtime. Where none can be made, the client has none of its own either, and says so.
    let made = thread::Builder::new().spawn(|| drop(async_compat::Compat::new(())));
    let _ = made.map(thread::JoinHandle::join);
}

async fn open(broker: &Broker, address: &Address) -> lapin::Result<Connection> {
    static LAST_RUNTIME: Once = Once::new();
    LAST_RUNTIME.call_once(make_the_last_runtime);
    let tls = broker.tls.clone().map(RustlsConnector::from);
    let runtime = default_runtime()?;
    let here = runtime.clone();
    let stream = async move |uri: AMQPUri, _| {
        let host = uri.authority.host;
        let resolved = resolve(host.clone(), uri.authority.port).await?;
        let stream = AsyncTcpStream::connect(&here, resolved).await?;
        match &tls {
            None => Ok(stream),
            Some(tls) => Ok(stream.into_rustls(tls, &host).await?),
        }
    };
    Connection::connector(address.uri.clone(), runtime, stream, properties()).await
}

/// A host's addresses. On a thread of our own: the runtime's would panic where the system gives it none.
async fn resolve(host: String, port: u16) -> io::Result<Vec<SocketAddr>> {
    if let Ok(address) = host.trim_matches(['[', ']']).parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    let (tell, told) = oneshot::channel();
    // Whoever asks may have given up meanwhile.
    let look_up = move || drop(tell.send((host.as_str(), port).to_socket_addrs().map(Iterator::collect)));
    thread::Builder::new().name("resolve".to_owned()).spawn(look_up)?;
    told.await.unwrap_or_else(|_| Err(io::Error::other("the name's look-up has ended without an answer")))
}

/// What the broker's own list shows of us.
fn properties() -> ConnectionProperties {
    let version = env!("CARGO_PKG_VERSION");
    let system = rustix::system::uname();
    let host = system.nodename().to_string_lossy();
    ConnectionProperties::default()
        .with_connection_name(format!("{APP_ID} {version} on {host} pid {}", std::process::id()).into())
        .with_client_property("product".into(), APP_ID.into())
        .with_client_property("version".into(), version.into())
}

/// Whether every host of the cluster would say the same.
fn is_verdict(error: &lapin::Error) -> bool {
    let ErrorKind::ProtocolError(refusal) = error.kind() else { return false };
    matches!(
        refusal.kind(),
        AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED) | AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED)
    )
}

/// What a failed connection means: before the broker has said anything, it tells little of why it hangs up.
fn explained(broker: &Broker, address: &Address, error: &lapin::Error) -> Error {
    let told = |cause: String, next| Error::Broker { url: address.shown.clone(), cause, next };
    let by_certificate = address.uri.query.auth_mechanism == Some(SASLMechanism::External);
    match (error.kind(), &broker.tls) {
        (ErrorKind::IOError(io), _) if io.raw_os_error() == Some(libc::EAGAIN) => {
            Error::Threads { what: "a thread for the broker's connection", cause: os_error(io) }
        }
        (ErrorKind::ProtocolError(refusal), _) if by_certificate && is_verdict(error) => told(
            refusal.get_message().to_string(),
            "set --amqp-client-cert and --amqp-client-key to a certificate whose name is a user of the broker, with its plugin rabbitmq_auth_mechanism_ssl",
        ),
        (ErrorKind::IOError(io), Some(tls)) if is_hang_up(io) => {
            let (cause, next) = tls::hung_up(tls);
            told(format!("{}: {cause}", os_message(io)), next)
        }
        (ErrorKind::IOError(io), None) if is_hang_up(io) => told(os_message(io), SPEAKS_TLS),
        (ErrorKind::ParsingError(_), None) => told("it does not speak AMQP at this port".to_owned(), SPEAKS_TLS),
        _ => failure(&address.shown, error),
    }
}

/// The same error, for a line of its own: the library shares its own with whoever asks.
fn os_error(error: &io::Error) -> io::Error {
    error.raw_os_error().map_or_else(|| io::Error::other(error.to_string()), io::Error::from_raw_os_error)
}

/// The end of a connection that was there.
fn is_hang_up(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    error.get_ref().is_none_or(|inner| !inner.is::<rustls::Error>())
        && matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof)
}
