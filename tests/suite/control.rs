//! The control socket: what it answers, to whom, and the command that asks it.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::service::{Ended, PATIENCE, Setup};
use crate::world::{World, directories};

/// What a client and a server say over any stream.
pub trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

/// One request, as text, and the whole answer: status, head and body.
#[track_caller]
pub fn ask(mut stream: impl Stream, request: &str) -> (u16, String, String) {
    write!(stream, "{request} HTTP/1.1\r\nHost: test\r\n\r\n").expect("the request is taken");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no HTTP: {answer:?}"));
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    (status.unwrap_or_else(|| panic!("no status: {head:?}")), head.to_ascii_lowercase(), body.to_owned())
}

#[track_caller]
pub fn get(socket: &Path, path: &str) -> (u16, String, String) {
    ask(UnixStream::connect(socket).expect("the control socket"), &format!("GET {path}"))
}

#[track_caller]
pub fn health(socket: &Path) -> (u16, Value) {
    let (status, head, body) = get(socket, "/health");
    assert!(head.contains("content-type: application/json"), "{head}");
    (status, serde_json::from_str(&body).unwrap_or_else(|error| panic!("{error}: {body}")))
}

/// Every sample, by its name and labels.
#[track_caller]
pub fn metrics(socket: &Path) -> BTreeMap<String, f64> {
    let (status, head, body) = get(socket, "/metrics");
    assert_eq!(status, 200);
    assert!(head.contains("content-type: text/plain; version=0.0.4"), "{head}");
    let samples = body.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    samples
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no sample: {line:?}"));
            (name.to_owned(), value.parse().unwrap_or_else(|_| panic!("no number: {line:?}")))
        })
        .collect()
}

/// The numbers that change with a tick of the service are waited for.
#[track_caller]
pub fn wait_for_metrics(socket: &Path, what: &str, enough: impl Fn(&BTreeMap<String, f64>) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let seen = metrics(socket);
        if enough(&seen) {
            return;
        }
        assert!(Instant::now() < deadline, "{what} did not come: {seen:#?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// `health` against this socket.
pub fn ask_by_command(socket: &Path) -> Ended {
    Setup::new(&["health"]).env("INGESTOR_CONTROL_SOCKET", socket).run()
}

/// `health --ready` against this socket.
pub fn ask_whether_ready(socket: &Path) -> Ended {
    Setup::new(&["health", "--ready"]).env("INGESTOR_CONTROL_SOCKET", socket).run()
}

#[test]
fn a_service_that_is_ready_says_that_it_is_healthy() {
    let mut world = World::start();
    let socket = world.service().control_socket();
    let file = fs::symlink_metadata(&socket).unwrap();
    assert_eq!(file.permissions().mode() & 0o777, 0o600);
    let (status, health) = health(&socket);
    assert_eq!((status, &health["status"]), (200, &Value::from("healthy")), "{health:#}");
    assert_eq!(health["broker"], "connected");
    assert_eq!(health["service"]["directories"][0], world.data.to_str().unwrap());
    assert_eq!(health["service"]["engine"], "io_uring");
    assert_eq!(health["pid"], world.service().id());
    for stage in ["watch", "read", "publish", "ledger"] {
        assert_eq!(health["stages"][stage]["alive"], true, "{stage}: {health:#}");
    }
    assert!(!health.to_string().contains("guest:guest"), "a password: {health}");
    let ended = ask_by_command(&socket).expect_code(0);
    assert!(ended.stdout.starts_with("healthy") && ended.stdout.lines().count() == 1, "{ended:?}");
    let ended = ask_whether_ready(&socket).expect_code(0);
    assert!(ended.stdout.starts_with("ready: ") && ended.stdout.lines().count() == 1, "{ended:?}");
    let (status, head, body) = get(&socket, "/ready");
    assert!(status == 200 && head.contains("content-type: application/json"), "{head}");
    let told: Value = serde_json::from_str(&body).unwrap();
    assert!(
        told["ready"] == true && told["summary"].as_str().is_some_and(|line| line.starts_with("ready: ")),
        "{body}"
    );
    world.stop_service();
    assert!(!socket.exists(), "the socket is taken away at the end");
}

#[test]
fn a_probe_that_nobody_listens_to_fails_in_one_line() {
    let mut world = World::start();
    let socket = world.service().control_socket();
    let ended = Setup::new(&["health"]).env("INGESTOR_CONTROL_SOCKET", &socket).spawn_unread().wait_exit();
    assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
    assert_eq!(ended.stderr.lines().count(), 1, "{}", ended.stderr);
    assert!(ended.expect_code(1).stderr.contains("standard output"));
}

#[test]
fn nobody_there_is_one_line_and_status_1() {
    let (_root, data, _) = directories();
    let ended = ask_by_command(&data.join("nobody.sock")).expect_code(1);
    assert_eq!(ended.stdout, "");
    assert_eq!(ended.stderr.lines().count(), 1, "{}", ended.stderr);
    assert!(ended.stderr.contains("nobody.sock"), "{}", ended.stderr);
}

#[test]
fn a_service_that_waits_for_its_broker_is_starting() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let (_root, data, _) = directories();
    let url = format!("amqp://guest:guest@{}/", silent.local_addr().unwrap());
    let service = Setup::watch(&data, &url).spawn();
    let _broker = silent.accept().unwrap();
    let socket = service.control_socket();
    let (status, health) = health(&socket);
    assert_eq!((status, &health["status"]), (503, &Value::from("starting")), "{health:#}");
    assert_eq!(health["broker"], "disconnected");
    let ended = ask_by_command(&socket).expect_code(1);
    assert!(ended.stderr.contains("starting"), "{}", ended.stderr);
    assert_eq!(get(&socket, "/ready").0, 503);
    let ended = ask_whether_ready(&socket).expect_code(1);
    assert!(ended.stderr.contains("not ready: starting") && ended.stderr.lines().count() == 1, "{}", ended.stderr);
}

/// A probe runs where the service does, with whatever is set there.
#[test]
fn health_is_asked_whatever_else_is_set() {
    let (_root, data, _) = directories();
    let service = Setup::new(&["watch", "--output", "none"]).env("DATA_DIRECTORY", &data).spawn();
    service.wait_ready();
    let socket = service.control_socket();
    for question in [&["health"][..], &["health", "--ready"]] {
        let asked = Setup::new(question)
            .env("INGESTOR_CONTROL_SOCKET", &socket)
            .env("AMQP_CONNECTION_STRING", "no broker")
            .env("INGESTOR_INCLUDE", "[")
            .env("INGESTOR_AMQP_CA_FILE", data.join("missing"))
            .env("INGESTOR_CATCH_UP", "changed");
        asked.run().expect_code(0);
    }
}

#[test]
fn the_metrics_count_what_happened() {
    let mut world = World::without_service();
    world.launch(|it| {
        let state = it.control_socket().with_file_name("state");
        it.env("STATE_DIRECTORY", state)
    });
    let socket = world.service().control_socket();
    for number in 0..5 {
        world.write(&format!("file-{number}"), vec![b'x'; 1000]);
    }
    fs::write(world.outside.join("moved"), "moved").unwrap();
    fs::rename(world.outside.join("moved"), world.path("moved")).unwrap();
    std::os::unix::fs::symlink("/etc/hostname", world.path("link-out")).unwrap();
    world.pass_sentinel();
    fs::remove_file(world.path("file-0")).unwrap();
    world.pass_sentinel();
    let size = fs::metadata(world.path("zz-sentinel-0")).unwrap().size() * 2;
    wait_for_metrics(&socket, "eight messages and their rows", |seen| {
        seen["apollonia_messages_confirmed_total"] == 8.0
            && seen["apollonia_ledger_rows"] == 7.0
            && seen["apollonia_known_files"] == 7.0
            && seen["apollonia_pending_files"] == 0.0
    });
    let seen = metrics(&socket);
    let expected = [
        ("apollonia_messages_published_total", 8.0),
        ("apollonia_messages_nacked_total", 0.0),
        ("apollonia_messages_returned_total", 0.0),
        ("apollonia_files_read_total", 8.0),
        ("apollonia_read_bytes_total", 5000.0 + 5.0 + size as f64),
        ("apollonia_events_total{kind=\"moved_to\"}", 1.0),
        ("apollonia_events_total{kind=\"closed\"}", 7.0),
        ("apollonia_events_total{kind=\"removed\"}", 1.0),
        ("apollonia_failures_total{cause=\"leads_out\"}", 1.0),
        ("apollonia_overflows_total{queue=\"kernel\"}", 0.0),
        ("apollonia_look_overs_total{cause=\"start\"}", 1.0),
        ("apollonia_in_flight_files", 0.0),
        ("apollonia_unconfirmed_messages", 0.0),
        ("apollonia_unroutable_messages", 0.0),
        ("apollonia_ready", 1.0),
        ("apollonia_broker_connected", 1.0),
        ("apollonia_broker_blocked", 0.0),
        ("apollonia_ledger_waiting_rows", 0.0),
        ("apollonia_ledger_failures_total", 0.0),
        ("apollonia_end_to_end_seconds_count", 8.0),
        ("apollonia_read_seconds_count", 8.0),
        ("apollonia_stage_stalled_seconds{stage=\"publish\"}", 0.0),
    ];
    for (name, value) in expected {
        assert_eq!(seen.get(name), Some(&value), "{name} in {seen:#?}");
    }
    assert!(seen["apollonia_ledger_bytes"] > 0.0 && seen["process_resident_memory_bytes"] > 0.0);
    assert!(seen["apollonia_end_to_end_seconds_sum"] > 0.0);
    let info = seen.keys().find(|name| name.starts_with("apollonia_info{")).expect("apollonia_info");
    assert!(info.contains("engine=\"io_uring\"") && info.contains("output=\"amqp\""), "{info}");
}

#[test]
fn over_tcp_only_where_it_is_asked_for() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let address = format!("127.0.0.1:{port}");
    let mut world = World::start_with(|it| it.args(&["--metrics-address", &address]));
    let connect = || TcpStream::connect(&address).unwrap();
    assert_eq!(ask(connect(), "GET /health").0, 200);
    assert_eq!(ask(connect(), "GET /ready").0, 200);
    assert_eq!(ask(connect(), "POST /ready").0, 405);
    assert!(ask(connect(), "GET /metrics").2.contains("apollonia_files_read_total 0"));
    assert_eq!(ask(connect(), "GET /").0, 404);
    assert_eq!(ask(connect(), "POST /metrics").0, 405);
    assert_eq!(ask(connect(), "GET /metrics?name=value").0, 200);
    // One that says nothing keeps nobody else from asking.
    let silent: Vec<TcpStream> = (0..8).map(|_| connect()).collect();
    assert_eq!(ask(connect(), "GET /health").0, 200);
    drop(silent);
    let ended = Setup::watch(&world.data, &world.url).args(&["--metrics-address", &address]).run().expect_code(2);
    assert!(ended.stderr.contains("INGESTOR_METRICS_ADDRESS") && ended.stderr.contains(&address), "{}", ended.stderr);
    world.stop_service();
    let plain = World::start();
    drop(plain);
    assert!(TcpStream::connect(&address).is_err());
}

#[test]
fn a_control_socket_that_cannot_be_had_is_refused_by_name() {
    let mut world = World::start();
    let taken = world.service().control_socket();
    let file = world.outside.join("file");
    fs::write(&file, "content").unwrap();
    let missing = world.outside.join("missing/control.sock");
    for path in [&taken, &file, &missing] {
        let ended = Setup::watch(&world.data, &world.url).env("INGESTOR_CONTROL_SOCKET", path).run().expect_code(2);
        assert_eq!(ended.stderr.lines().filter(|line| line.contains("ERROR")).count(), 1, "{}", ended.stderr);
        assert!(ended.stderr.contains("INGESTOR_CONTROL_SOCKET"), "{}", ended.stderr);
    }
    assert_eq!(fs::read(&file).unwrap(), b"content");
    assert_eq!(health(&taken).0, 200, "the first still answers");
}

#[test]
fn the_default_socket_is_in_the_runtime_directory() {
    let (_root, data, outside) = directories();
    let setup = Setup::new(&["watch", "--output", "none"]).env("DATA_DIRECTORY", &data);
    let service = setup.env("INGESTOR_CONTROL_SOCKET", "").env("RUNTIME_DIRECTORY", &outside).spawn();
    service.wait_ready();
    assert_eq!(health(&outside.join("ingestor.sock")).0, 200);
    let asked = Setup::new(&["health"]).env("INGESTOR_CONTROL_SOCKET", "").env("RUNTIME_DIRECTORY", &outside);
    asked.run().expect_code(0);
}

#[test]
fn many_files_that_cannot_be_read_are_told_of_in_a_few_lines() {
    let (_root, data, _) = directories();
    for number in 0..40 {
        std::os::unix::fs::symlink("/etc/hostname", data.join(format!("link-{number}"))).unwrap();
    }
    let service =
        Setup::new(&["watch", "--output", "stdout", "--catch-up", "all"]).env("DATA_DIRECTORY", &data).spawn();
    service.wait_ready();
    wait_for_metrics(&service.control_socket(), "forty refusals", |seen| {
        seen["apollonia_failures_total{cause=\"leads_out\"}"] == 40.0
    });
    let ended = service.stop();
    let named = ended.stderr.lines().filter(|line| line.contains("leads out")).count();
    assert_eq!(named, 10, "{}", ended.stderr);
    assert!(ended.stderr.contains("and 30 more links"), "{}", ended.stderr);
}
