//! The client's way to the broker: plain TCP, or TLS over it.
//!
//! The client takes any stream whose type its runtime names. Its own TLS would bring a reader of PKCS#12 files, and some
//! thirty crates with it, which nothing here uses: certificates come from PEM files (see [`crate::tls`]).

use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{fmt, io};

use async_compat::Compat;
use async_rs::traits::{Executor, Reactor, RuntimeKit};
use async_rs::util::Task;
use async_rs::{Runtime, Tokio};
use futures_io::{AsyncRead as FuturesRead, AsyncWrite as FuturesWrite};
use futures_util::Stream;
use lapin::AsyncTcpStream;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Bytes to and from the broker, encrypted or not.
pub(super) trait Bytes: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Bytes for T {}

/// What the client is given.
pub(super) type Transport = AsyncTcpStream<<Kit as Reactor>::TcpStream>;

/// The runtime that the client's tasks run on: the one that this is called in.
pub(super) fn runtime() -> Runtime<Kit> {
    Runtime::new(Kit(Tokio::current()))
}

/// Makes the connection the client's, after a handshake where it is to be encrypted.
///
/// # Errors
/// What the handshake failed with: a [`rustls::Error`] within where it was not the connection.
pub(super) async fn transport(stream: TcpStream, tls: Option<&Arc<ClientConfig>>, host: &str) -> io::Result<Transport> {
    let stream: Box<dyn Bytes> = match tls {
        None => Box::new(stream),
        Some(config) => {
            let name = ServerName::try_from(host.to_owned())
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            Box::new(TlsConnector::from(Arc::clone(config)).connect(name, stream).await?)
        }
    };
    Ok(AsyncTcpStream::Plain(Compat::new(stream)))
}

/// tokio, with [`Bytes`] for a stream.
#[derive(Clone, Debug)]
pub(super) struct Kit(Tokio);

impl RuntimeKit for Kit {}

impl Executor for Kit {
    type Task<T: Send + 'static> = <Tokio as Executor>::Task<T>;

    fn block_on<T, F: Future<Output = T>>(&self, future: F) -> T {
        self.0.block_on(future)
    }

    fn spawn<T: Send + 'static, F: Future<Output = T> + Send + 'static>(&self, future: F) -> Task<Self::Task<T>> {
        self.0.spawn(future)
    }

    fn spawn_blocking<T: Send + 'static, F: FnOnce() -> T + Send + 'static>(&self, work: F) -> Task<Self::Task<T>> {
        self.0.spawn_blocking(work)
    }
}

impl Reactor for Kit {
    type TcpStream = Compat<Box<dyn Bytes>>;
    type Sleep = <Tokio as Reactor>::Sleep;

    fn register<H: io::Read + io::Write + AsFd + AsRawFd + Send + 'static>(
        &self,
        socket: H,
    ) -> io::Result<impl FuturesRead + FuturesWrite + Send + Unpin + 'static> {
        self.0.register(socket)
    }

    fn sleep(&self, duration: Duration) -> Self::Sleep {
        self.0.sleep(duration)
    }

    fn interval(&self, period: Duration) -> impl Stream<Item = Instant> + Send + 'static {
        self.0.interval(period)
    }

    fn tcp_connect_addr(
        &self,
        address: SocketAddr,
    ) -> impl Future<Output = io::Result<Self::TcpStream>> + Send + 'static {
        let connecting = self.0.tcp_connect_addr(address);
        async move {
            let stream: Box<dyn Bytes> = Box::new(connecting.await?.into_inner());
            Ok(Compat::new(stream))
        }
    }
}

impl fmt::Debug for dyn Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Bytes")
    }
}
