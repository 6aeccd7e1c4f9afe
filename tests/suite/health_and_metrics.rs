//! The control socket: health, readiness and metrics, by HTTP and by the command `health`.

use std::collections::BTreeMap;
use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use serde_json::Value;

use crate::support::control::{ask, get, health, health_command, metrics, ready_command, wait_for_metrics};
use crate::support::setup::Setup;
use crate::support::streams::{open_to_write, with};
use crate::support::world::{World, directories};

#[test]
fn a_service_that_is_ready_is_healthy() {
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
    let ended = health_command(&socket).expect_code(0);
    assert!(ended.stdout.starts_with("healthy") && ended.stdout.lines().count() == 1, "{ended:?}");
    let ended = ready_command(&socket).expect_code(0);
    assert!(ended.stdout.starts_with("ready: ") && ended.stdout.lines().count() == 1, "{ended:?}");
    let (status, head, body) = get(&socket, "/ready");
    assert!(status == 200 && head.contains("content-type: application/json"), "{head}");
    let ready: Value = serde_json::from_str(&body).unwrap();
    assert!(
        ready["ready"] == true && ready["summary"].as_str().is_some_and(|line| line.starts_with("ready: ")),
        "{body}"
    );
    world.stop_service();
    assert!(!socket.exists(), "the socket is removed at the end");
}

#[test]
fn health_answers_by_its_status_whoever_reads_its_line() {
    let mut world = World::start();
    let socket = world.service().control_socket();
    let health = || Setup::new(&["health"]).env("INGESTOR_CONTROL_SOCKET", &socket);
    let unread = health().spawn_unread().wait_exit().expect_code(0);
    assert_eq!(unread.stderr, "");
    let full = with(health(), 1, open_to_write("/dev/full")).run().expect_code(1);
    full.assert_one_error("standard output: No space left");
}

#[test]
fn without_a_service_health_is_one_line_and_status_1() {
    let (_root, data, _) = directories();
    let ended = health_command(&data.join("nobody.sock")).expect_code(1);
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
    let ended = health_command(&socket).expect_code(1);
    assert!(ended.stderr.contains("starting"), "{}", ended.stderr);
    assert_eq!(get(&socket, "/ready").0, 503);
    let ended = ready_command(&socket).expect_code(1);
    assert!(ended.stderr.contains("not ready: starting") && ended.stderr.lines().count() == 1, "{}", ended.stderr);
}

/// A probe runs in the environment of the service.
#[test]
fn health_ignores_all_other_settings() {
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
        ("apollonia_rescans_total{cause=\"start\"}", 1.0),
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
    assert!(seen["apollonia_ledger_bytes"] > 0.0);
    assert_process(&seen);
    assert!(seen["apollonia_end_to_end_seconds_sum"] > 0.0);
    let info = seen.keys().find(|name| name.starts_with("apollonia_info{")).expect("apollonia_info");
    assert!(info.contains("engine=\"io_uring\"") && info.contains("output=\"amqp\""), "{info}");
    let build = seen.keys().find(|name| name.starts_with("apollonia_build_info{")).expect("apollonia_build_info");
    assert!(build.contains(concat!("version=\"", env!("CARGO_PKG_VERSION"), "\"")), "{build}");
}

/// What a small service that has just been at work can have used.
#[track_caller]
fn assert_process(seen: &BTreeMap<String, f64>) {
    let expected = [
        ("process_cpu_seconds_total", 0.001, 1000.0),
        ("process_open_fds", 8.0, 1000.0),
        ("process_threads", 5.0, 1000.0),
        ("process_resident_memory_bytes", 4e6, 4e8),
        ("process_virtual_memory_bytes", seen["process_resident_memory_bytes"], 1e12),
        ("process_max_fds", seen["process_open_fds"], f64::INFINITY),
        // 2026, and 2100.
        ("process_start_time_seconds", 1_767_225_600.0, 4_102_444_800.0),
    ];
    for (name, least, most) in expected {
        assert!((least..=most).contains(&seen[name]), "{name} in {seen:#?}");
    }
    let seconds = seen["process_cpu_seconds_total"];
    assert!(seconds.fract() > 0.0, "{seconds} s have no fraction");
}

#[test]
fn metrics_are_served_by_tcp_only_where_it_is_set() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let address = format!("127.0.0.1:{port}");
    let mut world = World::start_with(|it| it.args(&["--metrics-address", &address]));
    let connect = || TcpStream::connect(&address).unwrap();
    assert_eq!(ask(connect(), "GET /health").0, 200);
    assert_eq!(ask(connect(), "GET /ready").0, 200);
    assert_eq!(ask(connect(), "POST /ready").0, 405);
    for path in ["/health", "/ready", "/metrics"] {
        let (status, head, body) = ask(connect(), &format!("HEAD {path}"));
        assert!(status == 200 && body.is_empty(), "{path}: {head}{body}");
        assert!(head.contains("content-type: ") && !head.contains("content-length: 0"), "{path}: {head}");
    }
    assert!(ask(connect(), "GET /metrics").2.contains("apollonia_files_read_total 0"));
    assert_eq!(ask(connect(), "GET /nothing").0, 404);
    assert_eq!(ask(connect(), "POST /metrics").0, 405);
    assert_eq!(ask(connect(), "GET /metrics?name=value").0, 200);
    // Silent connections do not block others.
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
fn a_control_socket_that_cannot_be_used_is_refused_by_name() {
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
fn many_files_that_cannot_be_read_are_logged_in_a_few_lines() {
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
