//! Getting into the broker: each host in its turn, by TLS where that was asked for, under a name that the broker shows.

use lapin::protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError};
use lapin::runtime::default_runtime;
use lapin::tcp::RustlsConnector;
use lapin::uri::AMQPUri;
use lapin::{AsyncTcpStream, Connection, ConnectionProperties, ErrorKind};

use super::address::{Address, Broker};
use super::broker::{APP_ID, answer_or_refusal, failure};
use crate::error::Error;

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
            Ok(Err(error)) if is_verdict(&error) => return Err(failure(&address.shown, &error)),
            Ok(Err(error)) => failure(&address.shown, &error),
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

async fn open(broker: &Broker, address: &Address) -> lapin::Result<Connection> {
    let tls = broker.tls.clone().map(RustlsConnector::from);
    let runtime = default_runtime()?;
    let here = runtime.clone();
    let stream = async move |uri: AMQPUri, _| {
        let host = uri.authority.host;
        let resolved = here.to_socket_addrs((host.clone(), uri.authority.port));
        let stream = AsyncTcpStream::connect(&here, resolved).await?;
        match &tls {
            None => Ok(stream),
            Some(tls) => Ok(stream.into_rustls(tls, &host).await?),
        }
    };
    Connection::connector(address.uri.clone(), runtime, stream, properties()).await
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
