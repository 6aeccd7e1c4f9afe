//! The connection string: the hosts that it names, their logins, and the text that may be shown of it.
//!
//! What can be secret, a password and an unknown parameter of the query, is private to this module. `Debug` and `Display`
//! show the masked text alone, so no log line and no error can leak a secret by accident.

mod given;
mod parts;
#[cfg(test)]
mod tests;

use std::fmt;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;

use given::Given;
use lapin::uri::{AMQPScheme, AMQPUri, SASLMechanism};
use parts::{NEXT, Parts};
use rustls::ClientConfig;

use crate::cli::{AmqpSettings, Output};
use crate::error::Error;
use crate::routing::SHORT_STRING_MAX;
use crate::shown::mask;
use crate::tls;

/// Seconds between heartbeats when no setting names any: a broker that hangs is noticed after two.
const HEARTBEAT_SECONDS: u16 = 10;

/// The longest frame that is asked for when the connection string names none, in bytes: RabbitMQ's own limit by default.
const FRAME_BYTES: u32 = 131_072;

/// The longest and the shortest frame that can be asked for, in bytes. Every broker takes the shortest (AMQP 0-9-1, 1.1), and
/// the client keeps buffers for 64 of the longest.
const FRAME_BYTES_RANGE: RangeInclusive<u32> = 4096..=1_048_576;

/// The fewest channels that a connection has room for: one for messages, one for the queues that fence off other services.
const CHANNELS_MIN: u16 = 2;

/// More hosts than a cluster has nodes are a mistake, and each that does not answer delays the start by ten seconds.
const HOSTS_MAX: usize = 16;

/// A value of the connection string that holds secrets, and the text that may be shown of it.
#[derive(Clone)]
struct Masked<T> {
    secret: T,
    shown: String,
}

impl<T> Masked<T> {
    /// The text comes from the connection string that the value was made of.
    fn new(secret: T, connection_string: &str) -> Self {
        Self { secret, shown: mask(connection_string) }
    }
}

impl<T> fmt::Debug for Masked<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.shown, f)
    }
}

impl<T> fmt::Display for Masked<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

/// The broker: one host, or those of a cluster.
#[derive(Debug, Clone)]
pub struct Broker {
    /// The hosts in the order in which they are tried; there is at least one.
    addresses: Masked<Vec<Address>>,
    /// `None` is plain AMQP.
    tls: Option<Arc<ClientConfig>>,
}

/// One host, with everything that a login there needs.
#[derive(Debug, Clone)]
pub struct Address(Masked<AMQPUri>);

impl Address {
    /// The connection string with this host alone, its secrets masked.
    #[must_use]
    pub fn shown(&self) -> &str {
        &self.0.shown
    }

    /// The address with its password, for the client alone.
    pub(crate) fn with_password(&self) -> AMQPUri {
        self.0.secret.clone()
    }

    /// Host and port.
    #[must_use]
    pub fn host(&self) -> String {
        let authority = &self.0.secret.authority;
        match authority.host.contains(':') {
            true => format!("[{}]:{}", authority.host, authority.port),
            false => format!("{}:{}", authority.host, authority.port),
        }
    }

    /// The longest frame that is asked for, in bytes.
    pub(crate) fn frame_bytes(&self) -> u32 {
        self.0.secret.query.frame_max.unwrap_or(FRAME_BYTES)
    }

    pub(crate) fn is_encrypted(&self) -> bool {
        self.0.secret.scheme == AMQPScheme::AMQPS
    }

    /// Whether the user is whoever the client certificate names (SASL EXTERNAL).
    pub(crate) fn logs_in_by_certificate(&self) -> bool {
        self.0.secret.query.auth_mechanism == Some(SASLMechanism::External)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Broker {
    /// Reads and checks the connection string, and reads the files that TLS needs.
    ///
    /// # Errors
    /// [`Error::Usage`], naming the setting and what is wrong with it.
    pub fn new(settings: &AmqpSettings) -> Result<Self, Error> {
        let mut broker = Self::read_from(settings, &given::credential)?;
        broker.tls = tls::client_config(settings, broker.addresses().iter().any(Address::is_encrypted))?;
        Ok(broker)
    }

    /// The hosts and the login, from the settings and the files that hold secrets.
    fn read_from(settings: &AmqpSettings, credential: &dyn Fn(&str) -> Option<PathBuf>) -> Result<Self, Error> {
        let understood = |given: &Given| match &given.file {
            None => Self::parse(given.with_password(), settings.heartbeat),
            Some(file) => {
                Self::divide(given.with_password(), settings.heartbeat).map_err(|cause| Given::refusal(file, &cause))
            }
        };
        let given = given::connection_string(settings, credential)?;
        understood(&given)?;
        understood(&given::with_password_file(given, settings, credential)?)
    }

    /// The connection string, its secrets masked.
    #[must_use]
    pub fn shown(&self) -> &str {
        &self.addresses.shown
    }

    /// The hosts in the order in which they are tried; there is at least one.
    pub(crate) fn addresses(&self) -> &[Address] {
        &self.addresses.secret
    }

    /// How TLS is spoken; `None` is plain AMQP.
    pub(crate) fn tls(&self) -> Option<&Arc<ClientConfig>> {
        self.tls.as_ref()
    }

    /// The destination of messages, as log lines show it.
    #[must_use]
    pub fn describe(&self, output: Output) -> &str {
        match output {
            Output::Amqp => self.shown(),
            Output::Stdout => "standard output",
            Output::None => "none",
        }
    }

    /// A broker for each host alone.
    pub fn each(&self) -> impl Iterator<Item = Self> {
        self.addresses().iter().map(|address| Self {
            addresses: Masked { secret: vec![address.clone()], shown: address.shown().to_owned() },
            tls: self.tls.clone(),
        })
    }

    fn parse(typed: &str, heartbeat: Option<u16>) -> Result<Self, Error> {
        Self::divide(typed, heartbeat).map_err(|cause| {
            let shown = mask(typed);
            Error::usage(format!("AMQP_CONNECTION_STRING (--amqp-url): {shown:?} cannot be used: {cause}"), NEXT)
        })
    }

    /// A broker of each host, or the reason why the connection string has none.
    fn divide(typed: &str, heartbeat: Option<u16>) -> Result<Self, String> {
        let parts = Parts::of(typed);
        if parts.rest.contains('@') {
            return Err(
                "an `@` that is no separator is written %40, and `/`, `?` and `#` in a password %2f, %3f and %23"
                    .to_owned(),
            );
        }
        if parts.login.is_some_and(|login| login.split_once('@').is_some_and(|(_, rest)| rest.contains(','))) {
            return Err("user and password stand once, before the first host; an `@` in them is written %40".to_owned());
        }
        if parts.hosts.len() > HOSTS_MAX {
            return Err(format!("it names more than {HOSTS_MAX} hosts"));
        }
        let address = |host: &&str| {
            let alone = parts.with_host(host);
            Ok(Address(Masked::new(uri(&alone, heartbeat)?, &alone)))
        };
        let addresses = parts.hosts.iter().map(address).collect::<Result<_, String>>()?;
        Ok(Self { addresses: Masked::new(addresses, typed), tls: None })
    }
}

impl fmt::Display for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.addresses.fmt(f)
    }
}

/// The address of a connection string with one host, or the reason why it has none.
fn uri(typed: &str, heartbeat: Option<u16>) -> Result<AMQPUri, String> {
    let mut uri = parse(typed)?;
    if uri.vhost.len() > SHORT_STRING_MAX {
        return Err(format!("the name of a virtual host has at most {SHORT_STRING_MAX} bytes"));
    }
    // 0 is no limit of the client's own.
    let frame_bytes = uri.query.frame_max.filter(|bytes| *bytes > 0).unwrap_or(FRAME_BYTES);
    if !FRAME_BYTES_RANGE.contains(&frame_bytes) {
        let (min, max) = (FRAME_BYTES_RANGE.start(), FRAME_BYTES_RANGE.end());
        return Err(format!("frame_max is {min} to {max} bytes"));
    }
    uri.query.frame_max = Some(frame_bytes);
    if uri.query.channel_max.is_some_and(|channels| (1..CHANNELS_MIN).contains(&channels)) {
        return Err(format!("the service needs {CHANNELS_MIN} channels (channel_max)"));
    }
    let seconds = heartbeat.or(uri.query.heartbeat).unwrap_or(HEARTBEAT_SECONDS);
    if seconds == 0 {
        return Err(
            "without a heartbeat a broker that hangs is never noticed: heartbeat is 1 to 65535 seconds".to_owned()
        );
    }
    uri.query.heartbeat = Some(seconds);
    Ok(uri)
}

/// The client's reading of a connection string, where that differs from what others read in it.
fn parse(typed: &str) -> Result<AMQPUri, String> {
    // A URL's parser leaves tabs and newlines out without a word.
    if typed.contains(|each: char| each.is_control()) {
        return Err("it holds a newline or another control character".to_owned());
    }
    let url = url::Url::parse(typed).map_err(|error| error.to_string())?;
    if !matches!(url.scheme(), "amqp" | "amqps") {
        return Err("the scheme must be amqp or amqps".to_owned());
    }
    if url.host_str().is_none_or(str::is_empty) {
        return Err("it names no host".to_owned());
    }
    if url.path().trim_start_matches('/').contains('/') {
        return Err("a virtual host's `/` is written %2f".to_owned());
    }
    // After a colon the client's errors repeat their input, which may hold a secret.
    let mut uri: AMQPUri =
        typed.parse().map_err(|error: String| error.split(':').next().unwrap_or_default().to_owned())?;
    if let Some(url::Host::Ipv6(address)) = url.host() {
        uri.authority.host = address.to_string();
    }
    // With "amqp://host:port/" this client means the virtual host "", and all others mean "/".
    if uri.vhost.is_empty() {
        uri.vhost = "/".to_owned();
    }
    Ok(uri)
}
