//! The connection string: the hosts that it names, and how it is shown.

use std::sync::Arc;

use lapin::uri::{AMQPScheme, AMQPUri};
use rustls::ClientConfig;

use crate::cli::{AmqpSettings, Output};
use crate::error::Error;
use crate::tls;

/// Seconds between heartbeats when nothing names any: a broker that hangs is noticed after two.
const HEARTBEAT_SECONDS: u16 = 10;

/// More hosts than a cluster has nodes are a slip; each that does not answer takes ten seconds of the start.
const HOSTS_MAX: usize = 16;

/// The broker: one host, or those of a cluster.
#[derive(Debug, Clone)]
pub struct Broker {
    /// Each host in the order in which it is tried; there is at least one.
    pub addresses: Vec<Address>,
    /// The connection string for showing: without the password.
    pub shown: String,
    /// How it is spoken to by TLS; `None` is plain AMQP.
    pub tls: Option<Arc<ClientConfig>>,
}

/// One host, with all that is needed to log in there.
#[derive(Debug, Clone)]
pub struct Address {
    /// For connecting.
    pub uri: AMQPUri,
    /// The connection string with this host alone, for showing: without the password.
    pub shown: String,
}

impl Address {
    /// Host and port.
    #[must_use]
    pub fn host(&self) -> String {
        let authority = &self.uri.authority;
        match authority.host.contains(':') {
            true => format!("[{}]:{}", authority.host, authority.port),
            false => format!("{}:{}", authority.host, authority.port),
        }
    }
}

impl Broker {
    /// Where messages go, by name or address, as log lines show it.
    #[must_use]
    pub fn describe(&self, output: Output) -> &str {
        match output {
            Output::Amqp => &self.shown,
            Output::Stdout => "standard output",
            Output::None => "none",
        }
    }

    /// Checks the connection string, and reads the files that TLS needs.
    ///
    /// # Errors
    /// [`Error::Usage`], naming the setting and what is wrong with it.
    pub fn new(settings: &AmqpSettings) -> Result<Self, Error> {
        let mut broker = Self::parse(&settings.url, settings.heartbeat)?;
        let encrypted = broker.addresses.iter().any(|address| address.uri.scheme == AMQPScheme::AMQPS);
        broker.tls = tls::client_config(settings, encrypted)?;
        Ok(broker)
    }

    /// Each host alone.
    pub fn each(&self) -> impl Iterator<Item = Self> {
        self.addresses.iter().map(|address| Self {
            addresses: vec![address.clone()],
            shown: address.shown.clone(),
            tls: self.tls.clone(),
        })
    }

    fn parse(typed: &str, heartbeat: Option<u16>) -> Result<Self, Error> {
        let shown = mask_password(typed);
        let refuse = |cause: &str| {
            Error::usage(
                format!("AMQP_CONNECTION_STRING (--amqp-url): {shown:?} cannot be used: {cause}"),
                "write amqp://USER:PASSWORD@HOST:PORT/VHOST",
            )
        };
        let parts = Parts::of(typed);
        if parts.rest.contains('@') {
            return Err(refuse(
                "an `@` that is no separator is written %40, and `/`, `?` and `#` in a password %2f, %3f and %23",
            ));
        }
        if parts.before.trim_end_matches('@').split_once('@').is_some_and(|(_, rest)| rest.contains(',')) {
            return Err(refuse("user and password stand once, before the first host; an `@` in them is written %40"));
        }
        if parts.hosts.len() > HOSTS_MAX {
            return Err(refuse(&format!("it names more than {HOSTS_MAX} hosts")));
        }
        let address = |host: &&str| {
            let alone = format!("{}{host}{}", parts.before, parts.rest);
            let uri = uri(&alone, heartbeat).map_err(|cause| refuse(&cause))?;
            Ok(Address { uri, shown: mask_password(&alone) })
        };
        let addresses = parts.hosts.iter().map(address).collect::<Result<_, Error>>()?;
        Ok(Self { addresses, shown, tls: None })
    }
}

/// A connection string, taken apart where it is our business.
struct Parts<'a> {
    /// Scheme, user and password.
    before: &'a str,
    hosts: Vec<&'a str>,
    /// Virtual host and query.
    rest: &'a str,
}

impl<'a> Parts<'a> {
    fn of(typed: &'a str) -> Self {
        let start = typed.find("://").map_or(0, |at| at + 3);
        let end = typed[start..].find(['/', '?', '#']).map_or(typed.len(), |at| start + at);
        let hosts = typed[start..end].rfind('@').map_or(start, |at| start + at + 1);
        Self { before: &typed[..hosts], hosts: typed[hosts..end].split(',').collect(), rest: &typed[end..] }
    }
}

/// A connection string with one host, or why it is none.
fn uri(typed: &str, heartbeat: Option<u16>) -> Result<AMQPUri, String> {
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
    let mut uri: AMQPUri = typed.parse().map_err(|error: String| error.replace(typed, "it"))?;
    if let Some(url::Host::Ipv6(address)) = url.host() {
        uri.authority.host = address.to_string();
    }
    // "amqp://host:port/" names the virtual host "/" for every client but this one, where it would be "".
    if uri.vhost.is_empty() {
        uri.vhost = "/".to_owned();
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

/// The connection string with its password replaced, whether or not it parses: what stands between the
/// first `:` of the user information and the last `@`. Where there is no `@` and something after a `:` is no port, the
/// hosts were forgotten, and all behind the first `:` may be the password.
fn mask_password(typed: &str) -> String {
    let start = typed.find("://").map_or(0, |at| at + 3);
    let authority = &typed[start..];
    let secret = match authority.rfind('@') {
        Some(end) => authority[..end].find(':').map(|colon| (colon + 1, end)),
        None if Parts::of(typed).hosts.into_iter().all(looks_like_a_host) => None,
        None => authority.find(':').map(|colon| (colon + 1, authority.len())),
    };
    match secret {
        Some((from, to)) => format!("{}***{}", &typed[..start + from], &authority[to..]),
        None => typed.to_owned(),
    }
}

/// `host`, `host:1`, `[::1]` and `[::1]:1`, whatever the host is.
fn looks_like_a_host(text: &str) -> bool {
    let behind = match text.strip_prefix('[').and_then(|inside| inside.split_once(']')) {
        Some((_, behind)) => behind,
        None => text.find(':').map_or("", |colon| &text[colon..]),
    };
    behind.is_empty() || behind.strip_prefix(':').is_some_and(|port| port.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn only(typed: &str) -> Address {
        let mut broker = Broker::parse(typed, None).unwrap();
        assert_eq!(broker.addresses.len(), 1, "{typed}");
        broker.addresses.remove(0)
    }

    #[test]
    fn an_empty_path_is_the_default_virtual_host() {
        for typed in ["amqp://h", "amqp://h:5672/", "amqp://h/%2f"] {
            assert_eq!(only(typed).uri.vhost, "/", "{typed}");
        }
        assert_eq!(only("amqp://h/jobs").uri.vhost, "jobs");
        assert_eq!(only("amqp://[::1]:5672/").uri.authority.host, "::1");
    }

    #[test]
    fn a_password_is_never_shown() {
        let shown = [
            "amqp://u:s3cret@h/",
            "http://u:s3cret@h",
            "amqp://u:s3cret@:x",
            "u:s3cret@h",
            "amqp://u:a@s3cret@h/",
            "amqp://u:s3cret",
            "amqp://u:s3cret@h,h:1,[::1]:2/",
            "amqp://u:s3cret,s3cret",
            "amqp://h,u:s3cret:1",
            "amqp://u:se/s3cret",
            "amqp://u:1/s3cret@h,i/",
            "amqp://u:p,s3cret@h,i/",
        ];
        for typed in shown {
            assert!(!mask_password(typed).contains("s3cret"), "{typed}");
            if let Err(error) = Broker::parse(typed, None) {
                assert!(!error.to_string().contains("s3cret"), "{error}");
            }
        }
        assert_eq!(mask_password("amqp://u:p@h:1/v"), "amqp://u:***@h:1/v");
        assert_eq!(mask_password("amqp://u:p@h:1,i,[::1]:2/v"), "amqp://u:***@h:1,i,[::1]:2/v");
        for typed in [
            "amqp://h:5672/v",
            "amqp://[::1]",
            "amqp://[::1]:5672/",
            "amqp://h",
            "amqp://h:1,i,[::1]:2/v",
            "amqp://h:5672?heartbeat=5",
            "amqp://h/v:w",
        ] {
            assert_eq!(mask_password(typed), typed);
        }
    }

    #[test]
    fn several_hosts_share_all_the_rest() {
        let broker = Broker::parse(
            "amqps://user:p%2cw@one,two:1,[::1]:2,127.0.0.1/jobs?heartbeat=7&auth_mechanism=external",
            None,
        );
        let addresses = broker.unwrap().addresses;
        let hosts: Vec<_> = addresses.iter().map(Address::host).collect();
        assert_eq!(hosts, ["one:5671", "two:1", "[::1]:2", "127.0.0.1:5671"]);
        for address in &addresses {
            assert_eq!(address.uri.authority.userinfo.password, "p,w");
            assert_eq!((&address.uri.vhost[..], address.uri.query.heartbeat), ("jobs", Some(7)));
            assert_eq!(address.uri.query.auth_mechanism, Some(lapin::uri::SASLMechanism::External));
        }
        assert_eq!(addresses[1].shown, "amqps://user:***@two:1/jobs?heartbeat=7&auth_mechanism=external");
        let seventeen = vec!["h"; HOSTS_MAX + 1].join(",");
        for hosts in ["one,,two", ",one", "one,", "one,two:port", "u:p@one,u:p@two", "one, two", &seventeen] {
            assert!(Broker::parse(&format!("amqp://{hosts}/"), None).is_err(), "{hosts}");
        }
    }

    #[test]
    fn the_heartbeat_of_the_setting_wins_over_the_connection_string() {
        for (typed, setting, wanted) in [
            ("amqp://h/", None, Some(HEARTBEAT_SECONDS)),
            ("amqp://h/?heartbeat=5", None, Some(5)),
            ("amqp://h/?heartbeat=5", Some(20), Some(20)),
            ("amqp://h,i/?heartbeat=0", Some(20), Some(20)),
            ("amqp://h/?heartbeat=0", None, None),
        ] {
            let heartbeat = Broker::parse(typed, setting).ok().and_then(|it| it.addresses[0].uri.query.heartbeat);
            assert_eq!(heartbeat, wanted, "{typed} {setting:?}");
        }
    }

    #[test]
    fn what_is_no_broker_is_refused() {
        for typed in
            ["", "localhost", "http://h/", "amqp://", "amqp://h:notaport/", "amqp://h/a/b", "amqp://h?heartbeat=x"]
        {
            assert!(matches!(Broker::parse(typed, None), Err(Error::Usage { .. })), "{typed}");
        }
    }

    /// Connection strings and what looks like them: their parts in any order.
    fn parts() -> impl Strategy<Value = String> {
        let part = prop::sample::select(vec![
            "amqp",
            "amqps",
            "AMQP",
            "://",
            ":",
            "/",
            "//",
            "@",
            "[",
            "]",
            ",",
            "::1",
            "127.0.0.1",
            "host",
            "5672",
            "99999",
            "%2f",
            "%",
            "%ff",
            "?",
            "heartbeat=",
            "auth_mechanism=",
            "plain",
            "&",
            "#",
            "\\",
            " ",
            "\t",
            "é",
            "\u{1f3b5}",
            "..",
            "-",
        ]);
        prop::collection::vec(part, 0..14).prop_map(|parts| parts.concat())
    }

    /// Letters that stand in no other part of a connection string and in no error, and all that a URL gives a meaning.
    fn password() -> impl Strategy<Value = String> {
        let part = prop::sample::select(vec![
            "Z", "J", "K", "%5a", "@", ",", "1", ":", "%40", "%3A", "%", "%zz", "/", "?", "#", "[", "]", "&", "=",
            "\\", " ", "\"", "é",
        ]);
        prop::collection::vec(part, 0..12).prop_map(|parts| parts.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 8 * ProptestConfig::default().cases, ..ProptestConfig::default() })]
        #[test]
        fn any_string_is_a_broker_or_is_refused_by_name(typed in prop_oneof![3 => parts(), 1 => any::<String>()]) {
            match Broker::parse(&typed, None) {
                Ok(broker) => prop_assert_eq!(broker.shown, mask_password(&typed)),
                Err(error) => prop_assert!(error.to_string().starts_with("AMQP_CONNECTION_STRING (--amqp-url): "), "{error}"),
            }
        }

        #[test]
        fn no_password_is_shown_wherever_it_stands(
            scheme in prop::sample::select(vec!["amqp", "amqps", "http", "AMQP", " amqp", "1"]),
            user in prop::sample::select(vec!["", "user", "user%40example", "user@example", "é"]),
            password in password(),
            hosts in prop::collection::vec(
                prop::sample::select(vec!["host", "127.0.0.1", "[::1]", "[fe80::a]:2", "[::", "", "host name", "%ff", "h:1"]),
                1..4,
            ),
            port in prop::sample::select(vec!["", ":", ":5672", ":99999", ":port"]),
            rest in prop::sample::select(vec!["", "/", "/v%2fhost", "/a/b", "?heartbeat=5", "/v?heartbeat=x", "/v#here"]),
        ) {
            let hosts = hosts.join(",");
            let typed = format!("{scheme}://{user}:{password}@{hosts}{port}{rest}");
            let masked = format!("{scheme}://{user}:***@{hosts}{port}{rest}");
            prop_assert_eq!(mask_password(&typed), &masked[..]);
            match Broker::parse(&typed, None) {
                Ok(broker) => {
                    for address in broker.addresses {
                        let shown = format!("{} {}", address.shown, address.host());
                        prop_assert!(!["Z", "J", "K", "%5a", "%3A"].iter().any(|secret| shown.contains(secret)), "{shown}");
                    }
                    prop_assert_eq!(broker.shown, masked);
                }
                Err(error) => {
                    let told = error.to_string();
                    prop_assert!(!["Z", "J", "K", "%5a", "%3A"].iter().any(|secret| told.contains(secret)), "{told}");
                }
            }
        }

        /// What a URL may hold reaches the broker as it was meant.
        #[test]
        fn a_percent_encoded_login_is_understood(
            user in "[a-z@:/ é]{1,8}",
            password in ".{1,12}",
            host in prop::sample::select(vec!["host", "127.0.0.1", "[::1]"]),
        ) {
            let encode = |text: &str| text.bytes().map(|byte| format!("%{byte:02X}")).collect::<String>();
            let address = only(&format!("amqp://{}:{}@{host}:1/", encode(&user), encode(&password)));
            let login = address.uri.authority.userinfo;
            prop_assert_eq!((login.username, login.password), (user, password));
            prop_assert_eq!(address.uri.authority.host, host.trim_matches(['[', ']']));
            prop_assert_eq!(address.shown.matches("***").count(), 1);
        }
    }
}
