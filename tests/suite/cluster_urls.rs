//! Several hosts in the connection string are tried in turn, and the broker's own list names the service.

use std::io;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::thread;

use crate::support::broker::{self, vhost_of};
use crate::support::namespaces::{self, Mounted};
use crate::support::service::assert_no_warning;
use crate::support::setup::Setup;
use crate::support::skip;
use crate::support::wait::retry;
use crate::support::world::{World, directories};

/// Nothing listens there.
const DEAD: &str = "127.0.0.1:1";

fn url(login: &str, hosts: &[&str], vhost: &str) -> String {
    format!("amqp://{login}@{}/{vhost}", hosts.join(","))
}

fn shared_host() -> String {
    format!("127.0.0.1:{}", broker::shared().port())
}

#[test]
fn the_next_host_is_used_when_the_first_is_dead() {
    let mut world = World::without_service();
    let hosts = url("guest:guest", &[DEAD, "[::1]:1", &shared_host()], vhost_of(&world.url));
    world.launch(|it| it.env("AMQP_CONNECTION_STRING", hosts));
    world.write("file", "content");
    world.wait_for_one("file");
    let log = world.stop_service().stderr;
    for dead in [DEAD, "[::1]:1"] {
        let warnings = log.lines().filter(|line| line.contains("WARN") && line.contains(dead)).count();
        assert_eq!(warnings, 1, "one warning for {dead}:\n{log}");
    }
    assert!(log.contains(&format!("connected to {}", shared_host())), "{log}");
    assert!(!log.contains(":guest@"), "a password:\n{log}");
}

#[test]
fn scan_and_listen_take_several_hosts_too() {
    let (_root, data, _) = directories();
    let hosts = url("guest:guest", &[DEAD, &shared_host()], vhost_of(&broker::shared().vhost()));
    for command in [&["scan"][..], &["listen", "--timeout", "1"]] {
        let setup = Setup::new(command).env("DATA_DIRECTORY", &data).env("AMQP_CONNECTION_STRING", &hosts);
        setup.run().expect_code(0);
    }
}

#[test]
fn the_first_host_is_used_when_it_answers() {
    let (_root, data, _) = directories();
    let second = TcpListener::bind("127.0.0.1:0").unwrap();
    second.set_nonblocking(true).unwrap();
    let hosts = [shared_host(), second.local_addr().unwrap().to_string()];
    let hosts = url("guest:guest", &hosts.each_ref().map(String::as_str), vhost_of(&broker::shared().vhost()));
    let service = Setup::watch(&data, &hosts).spawn();
    service.wait_ready();
    let log = service.stop().stderr;
    assert_no_warning(&log);
    assert!(second.accept().is_err(), "the second host was tried");
}

#[test]
fn a_login_that_one_host_refuses_is_not_tried_at_the_next() {
    let (_root, data, _) = directories();
    let second = TcpListener::bind("127.0.0.1:0").unwrap();
    second.set_nonblocking(true).unwrap();
    let first = shared_host();
    for (login, vhost) in [("guest:hunter2", "t0"), ("guest:guest", "no-such-vhost")] {
        let hosts = url(login, &[&first, &second.local_addr().unwrap().to_string()], vhost);
        let ended = Setup::watch(&data, &hosts).env("LOG_LEVEL", "WARN").run().expect_code(1);
        ended.assert_one_line(&[&format!("@{first}/")]);
        assert!(!ended.stderr.contains("hunter2"), "a password: {}", ended.stderr);
        assert!(second.accept().is_err(), "the second host was tried");
    }
}

#[test]
fn a_host_that_accepts_and_never_answers_is_skipped() {
    let (_root, data, _) = directories();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = silent.local_addr().map(|address| (address.to_string(), silent)).unwrap();
    let hosts = url("guest:guest", &[&silent.0, &shared_host()], vhost_of(&broker::shared().vhost()));
    let service = Setup::watch(&data, &hosts).spawn();
    service.wait_ready();
    service.wait_log("a warning of the silent host", |line| line.contains("WARN") && line.contains(&silent.0));
    service.stop();
}

#[test]
fn when_no_host_can_be_used_one_line_names_them_all() {
    let (_root, data, _) = directories();
    for command in ["watch", "scan", "listen"] {
        let ended = Setup::new(&[command])
            .env("DATA_DIRECTORY", &data)
            .env("AMQP_CONNECTION_STRING", url("someone:hunter2", &[DEAD, "broker.invalid", "[::1]:1"], ""))
            .env("LOG_LEVEL", "ERROR")
            .run()
            .expect_code(1);
        for host in [DEAD, "broker.invalid:5672", "[::1]:1"] {
            ended.assert_one_line(&[&format!("{host}: ")]);
        }
        assert!(!ended.stderr.contains("hunter2"), "a password: {}", ended.stderr);
    }
}

/// A listener that never answers at 127.0.0.1, and another at 127.0.0.2, the same port, which passes one connection on to the
/// broker's port.
fn silent_first(to: u16) -> (TcpListener, u16) {
    let (silent, passing) = (1..100)
        .find_map(|_| {
            let silent = TcpListener::bind("127.0.0.1:0").unwrap();
            let second = TcpListener::bind(("127.0.0.2", silent.local_addr().unwrap().port())).ok()?;
            Some((silent, second))
        })
        .expect("a port that is free at both addresses");
    thread::spawn(move || {
        let (client, _) = passing.accept().unwrap();
        let broker = TcpStream::connect(("127.0.0.1", to)).unwrap();
        let (mut from, mut back) = (client.try_clone().unwrap(), broker.try_clone().unwrap());
        thread::spawn(move || io::copy(&mut from, &mut &broker));
        io::copy(&mut back, &mut &client)
    });
    let port = silent.local_addr().unwrap().port();
    silent.set_nonblocking(true).unwrap();
    (silent, port)
}

#[test]
fn every_address_of_a_host_is_tried_and_none_takes_the_time_of_the_others() {
    if !namespaces::are_allowed() {
        return skip("no user namespaces here");
    }
    let (_root, _, outside) = directories();
    let hosts = outside.join("hosts");
    std::fs::write(&hosts, "127.0.0.1 localhost\n127.0.0.2 localhost\n").unwrap();
    let broker = broker::shared();
    let ca = broker.authority.file(&outside);
    let vhost = broker.vhost();
    // Both at once, because each waits for half of its ten seconds.
    let begun = [("amqp", broker.port()), ("amqps", broker.tls_port())].map(|(scheme, to)| {
        let (silent, port) = silent_first(to);
        let url = format!("{scheme}://guest:guest@localhost:{port}/{}", vhost_of(&vhost));
        let setup = Setup::new(&["listen", "--timeout", "1"])
            .env("AMQP_CONNECTION_STRING", url)
            .env("LOG_LEVEL", "DEBUG")
            .env("INGESTOR_AMQP_CA_FILE", if scheme == "amqps" { ca.as_os_str() } else { "".as_ref() });
        let etc_hosts = Path::new("/etc/hosts");
        (silent, namespaces::with_mounts(setup, &[(Mounted::Bind(&hosts), etc_hosts)]).spawn())
    });
    for (silent, service) in begun {
        let ended = service.wait_exit().expect_code(0);
        assert!(silent.accept().is_ok(), "the first address was not asked:\n{}", ended.stderr);
        assert!(ended.stderr.contains("has not answered for 5 s"), "{}", ended.stderr);
    }
}

/// An item that the broker lists about the service's connection, the only one of the virtual host.
#[track_caller]
fn listed(url: &str, item: &str) -> String {
    retry("the service in the broker's list", || {
        let list = broker::shared().connections(vhost_of(url), &[item]);
        if let [ours] = &list[..] { Ok(ours.clone()) } else { Err(format!("{list:?}")) }
    })
}

#[test]
fn the_broker_lists_program_version_host_and_process() {
    let (_root, data, _) = directories();
    let url = broker::shared().vhost();
    let service = Setup::watch(&data, &url).spawn();
    service.wait_ready();
    let listed = listed(&url, "client_properties");
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let version = env!("CARGO_PKG_VERSION");
    let name = format!("apollonia-ingestor {version} on {} pid {}", host.trim(), service.id());
    for (key, value) in [("connection_name", &name[..]), ("product", "apollonia-ingestor"), ("version", version)] {
        assert!(listed.contains(&format!("{{<<\"{key}\">>,longstr,<<\"{value}\">>}}")), "no {key} {value} in {listed}");
    }
    service.stop();
}

#[test]
fn the_heartbeat_is_of_the_flag_then_the_variable_then_the_url() {
    let (_root, data, _) = directories();
    let cases = [
        (None, None, "", "10"),
        (None, None, "?heartbeat=7", "7"),
        (None, Some("8"), "?heartbeat=7", "8"),
        (Some("9"), Some("8"), "?heartbeat=7", "9"),
    ];
    for (flag, variable, query, wanted) in cases {
        let url = broker::shared().vhost();
        let setup = Setup::watch(&data, &format!("{url}{query}"));
        let setup = variable.into_iter().fold(setup, |it, seconds| it.env("INGESTOR_AMQP_HEARTBEAT", seconds));
        let setup = flag.into_iter().fold(setup, |it, seconds| it.args(&["--amqp-heartbeat", seconds]));
        let service = setup.spawn();
        service.wait_ready();
        assert_eq!(listed(&url, "timeout"), format!("[{{timeout,{wanted}}}]"), "{flag:?} {variable:?} {query:?}");
        service.stop();
    }
}
