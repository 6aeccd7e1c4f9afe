use clap::Parser;
use proptest::prelude::*;

use super::*;
use crate::cli::{Cli, ReadEngine};
use crate::config::{Config, PipelineSettings, PublishSettings};

fn only(typed: &str) -> Address {
    let broker = Broker::parse(typed, None).unwrap();
    assert_eq!(broker.addresses().len(), 1, "{typed}");
    broker.addresses()[0].clone()
}

#[test]
fn an_empty_path_is_the_default_virtual_host() {
    for typed in ["amqp://h", "amqp://h:5672/", "amqp://h/%2f"] {
        assert_eq!(only(typed).with_password().vhost, "/", "{typed}");
    }
    assert_eq!(only("amqp://h/jobs").with_password().vhost, "jobs");
    assert_eq!(only("amqp://[::1]:5672/").with_password().authority.host, "::1");
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
        assert!(!mask(typed).contains("s3cret"), "{typed}");
        if let Err(error) = Broker::parse(typed, None) {
            assert!(!error.to_string().contains("s3cret"), "{error}");
        }
    }
}

#[test]
fn a_value_of_the_query_that_the_client_does_not_know_is_never_shown() {
    for (typed, masked) in [
        ("amqp://h/v?heartbeat=5&password=s3cret", "amqp://h/v?heartbeat=5&password=***"),
        ("amqp://u:p@h?s3cret", "amqp://u:***@h?***"),
        (
            "amqp://h?heartbeat&pass%77ord=s=3&auth_mechanism=plain#x",
            "amqp://h?heartbeat&pass%77ord=***&auth_mechanism=plain#x",
        ),
        ("amqp://h?heartbeat=5;password=s3cret", "amqp://h?heartbeat=***"),
        ("amqp://h,i?&frame_max=1&a=", "amqp://h,i?&frame_max=1&a=***"),
        ("amqp://u:p?heartbeat=5@h?password=s3cret", "amqp://u:***@h?password=***"),
    ] {
        assert_eq!(mask(typed), masked);
    }
}

/// All public types that hold the broker: their `Debug` and `Display` show no secret.
#[test]
fn no_type_around_a_connection_string_shows_a_secret() {
    let broker = Broker::parse("amqps://user:s3cret@one,two/v?heartbeat=5&password=s3cret", None).unwrap();
    let address = &broker.addresses()[1];
    assert_eq!(address.with_password().authority.userinfo.password, "s3cret");
    let typed = ["apollonia-ingestor", "--amqp-url", "amqp://user:s3cret@one,two/v?password=s3cret", "listen"];
    let cli = Cli::try_parse_from(typed).unwrap();
    let config = Config::for_scan(&cli.settings, &[".".into()]).unwrap();
    let publish = PublishSettings { broker: broker.clone(), ..config.pipeline.publish.clone() };
    let pipeline =
        PipelineSettings { workers: 1, engine: ReadEngine::Blocking, output: Output::Amqp, publish: publish.clone() };
    let error = Broker::parse("amqps://user:s3cret@one,two/v/w?password=s3cret", None).unwrap_err();
    let mechanism = Broker::parse("amqp://h/?auth_mechanism=plain;password=s3cret", None).unwrap_err();
    let masked = "amqps://user:***@two/v?heartbeat=5&password=***";
    assert_eq!((format!("{address}"), format!("{address:?}")), (masked.to_owned(), format!("Address({masked:?})")));
    for shown in [
        format!("{broker} {broker:?} {broker:#?} {}", broker.describe(Output::Amqp)),
        broker.each().map(|each| format!("{each} {each:?}")).collect(),
        format!("{publish:?} {pipeline:?} {config:?} {config:#?}"),
        format!("{error} {error:?} {mechanism} {mechanism:?}"),
    ] {
        assert!(shown.contains("***") && !shown.contains("s3cret"), "{shown}");
    }
}

#[test]
fn several_hosts_share_all_the_rest() {
    let broker =
        Broker::parse("amqps://user:p%2cw@one,two:1,[::1]:2,127.0.0.1/jobs?heartbeat=7&auth_mechanism=external", None);
    let addresses = broker.unwrap().addresses.secret;
    let hosts: Vec<_> = addresses.iter().map(Address::host).collect();
    assert_eq!(hosts, ["one:5671", "two:1", "[::1]:2", "127.0.0.1:5671"]);
    for address in &addresses {
        let uri = address.with_password();
        assert_eq!(uri.authority.userinfo.password, "p,w");
        assert_eq!((&uri.vhost[..], uri.query.heartbeat), ("jobs", Some(7)));
        assert!(address.logs_in_by_certificate() && address.is_encrypted());
    }
    assert_eq!(addresses[1].shown(), "amqps://user:***@two:1/jobs?heartbeat=7&auth_mechanism=external");
    assert!(!only("amqp://h").is_encrypted() && !only("amqp://h").logs_in_by_certificate());
    let hosts = |number| vec!["h"; number].join(",");
    let most = Broker::parse(&format!("amqp://{}", hosts(HOSTS_MAX)), None).unwrap();
    assert_eq!(most.each().count(), HOSTS_MAX);
    let seventeen = hosts(HOSTS_MAX + 1);
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
        let broker = Broker::parse(typed, setting);
        let heartbeat = broker.ok().and_then(|it| it.addresses()[0].with_password().query.heartbeat);
        assert_eq!(heartbeat, wanted, "{typed} {setting:?}");
    }
}

#[test]
fn a_string_that_names_no_broker_is_refused() {
    for typed in ["", "localhost", "http://h/", "amqp://", "amqp://h:notaport/", "amqp://h/a/b", "amqp://h?heartbeat=x"]
    {
        assert!(matches!(Broker::parse(typed, None), Err(Error::Usage { .. })), "{typed}");
    }
}

/// Strings that are or resemble connection strings: their parts in any order.
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

/// Characters that occur in no other part of a connection string and in no error, and all characters with a meaning in a URL.
fn password() -> impl Strategy<Value = String> {
    let part = prop::sample::select(vec![
        "Z", "J", "K", "%5a", "@", ",", "1", ":", "%40", "%3A", "%", "%zz", "/", "?", "#", "[", "]", "&", "=", "\\",
        " ", "\"", "é",
    ]);
    prop::collection::vec(part, 0..12).prop_map(|parts| parts.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8 * ProptestConfig::default().cases, ..ProptestConfig::default() })]
    #[test]
    fn any_string_is_a_broker_or_is_refused_by_name(typed in prop_oneof![3 => parts(), 1 => any::<String>()]) {
        match Broker::parse(&typed, None) {
            Ok(broker) => prop_assert_eq!(broker.shown(), mask(&typed)),
            Err(error) => prop_assert!(error.to_string().starts_with("AMQP_CONNECTION_STRING (--amqp-url): "), "{error}"),
        }
    }

    #[test]
    fn no_password_is_shown_wherever_it_is(
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
        prop_assert_eq!(mask(&typed), &masked[..]);
        match Broker::parse(&typed, None) {
            Ok(broker) => {
                for address in broker.addresses() {
                    let shown = format!("{address} {address:?} {}", address.host());
                    prop_assert!(!["Z", "J", "K", "%5a", "%3A"].iter().any(|secret| shown.contains(secret)), "{shown}");
                }
                prop_assert_eq!(broker.shown(), masked);
            }
            Err(error) => {
                let shown = format!("{error} {error:?}");
                prop_assert!(!["Z", "J", "K", "%5a", "%3A"].iter().any(|secret| shown.contains(secret)), "{shown}");
            }
        }
    }

    /// A URL can carry any user name and password, and the broker gets both as they were meant.
    #[test]
    fn a_percent_encoded_login_is_understood(
        user in "[a-z@:/ é]{1,8}",
        password in ".{1,12}",
        host in prop::sample::select(vec!["host", "127.0.0.1", "[::1]"]),
    ) {
        let encode = |text: &str| text.bytes().map(|byte| format!("%{byte:02X}")).collect::<String>();
        let address = only(&format!("amqp://{}:{}@{host}:1/", encode(&user), encode(&password)));
        let authority = address.with_password().authority;
        prop_assert_eq!((authority.userinfo.username, authority.userinfo.password), (user, password));
        prop_assert_eq!(authority.host, host.trim_matches(['[', ']']));
        prop_assert_eq!(address.shown().matches("***").count(), 1);
    }
}

#[test]
fn a_frame_that_nobody_takes_or_nobody_has_room_for_is_refused() {
    let frame_max = |query: &str| {
        Broker::parse(&format!("amqp://h/{query}"), None)
            .map(|broker| (broker.addresses()[0].with_password().query.frame_max, broker.addresses()[0].frame_bytes()))
    };
    for (query, wanted) in [("", FRAME_BYTES), ("?frame_max=0", FRAME_BYTES), ("?frame_max=4096", 4096)] {
        assert_eq!(frame_max(query).unwrap(), (Some(wanted), wanted), "{query}");
    }
    for query in ["?frame_max=4095", "?frame_max=1048577", "?frame_max=4294967295", "?channel_max=1"] {
        assert!(frame_max(query).is_err(), "{query}");
    }
    assert!(frame_max("?channel_max=0").is_ok());
}

#[test]
fn a_name_that_the_protocol_cannot_carry_is_refused() {
    let vhost = |length: usize| Broker::parse(&format!("amqp://h/{}", "v".repeat(length)), None);
    assert!(vhost(255).is_ok() && vhost(256).is_err());
}

#[test]
fn a_broker_is_spoken_to_in_plain_amqp_or_over_tls() {
    let top = tempfile::tempdir().unwrap();
    let authority = top.path().join("authority.pem");
    let pair = rcgen::generate_simple_self_signed(vec!["h".to_owned()]).unwrap();
    std::fs::write(&authority, pair.cert.pem()).unwrap();
    let broker = |url: &str, with: &[&str]| {
        let words = ["apollonia-ingestor", "--amqp-url", url].into_iter().chain(with.iter().copied());
        Broker::new(&Cli::parse_from(words).settings.amqp)
    };
    assert!(broker("amqp://h", &[]).unwrap().tls().is_none());
    let encrypted = broker("amqps://h,i", &["--amqp-ca-file", authority.to_str().unwrap()]).unwrap();
    assert!(encrypted.tls().is_some() && encrypted.each().all(|each| each.tls().is_some()));
}

#[test]
fn log_lines_name_the_destination_of_messages() {
    let broker = Broker::parse("amqp://u:s3cret@h,i/v", None).unwrap();
    assert_eq!(broker.to_string(), "amqp://u:***@h,i/v");
    assert_eq!(broker.describe(Output::Amqp), "amqp://u:***@h,i/v");
    assert_eq!((broker.describe(Output::Stdout), broker.describe(Output::None)), ("standard output", "none"));
}
