//! A stage that has work and gets no further: `health` says so, and the watchdog is fed no more.

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::broker::Broker;
use crate::control::{ask_by_command, health};
use crate::service::{PATIENCE, Setup};
use crate::world::directories;

/// What the service manager has been told so far, a line each, in order.
struct Manager {
    socket: UnixDatagram,
    told: Vec<String>,
}

impl Manager {
    fn listen(path: &Path) -> Self {
        let socket = UnixDatagram::bind(path).expect("a socket for the notifications");
        socket.set_read_timeout(Some(Duration::from_millis(200))).expect("a timeout");
        Self { socket, told: Vec::new() }
    }

    #[track_caller]
    fn wait_for(&mut self, what: &str, enough: impl Fn(&[String]) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        let mut datagram = [0; 4096];
        while !enough(&self.told) {
            assert!(Instant::now() < deadline, "{what} was not told; told so far: {:#?}", self.told);
            if let Ok(length) = self.socket.recv(&mut datagram) {
                self.told.extend(String::from_utf8_lossy(&datagram[..length]).lines().map(str::to_owned));
            }
        }
    }
}

fn position(told: &[String], wanted: &str) -> Option<usize> {
    told.iter().position(|line| line.starts_with(wanted))
}

#[test]
fn the_watchdog_is_fed_while_every_stage_gets_on_and_no_longer() {
    let mut broker = Broker::start_with(1);
    // A long heartbeat: with the default the connection would be given up before the stage counts as stalled.
    let url = format!("{}?heartbeat=60", broker.vhost());
    let (_root, data, outside) = directories();
    let mut manager = Manager::listen(&outside.join("notify.sock"));
    let mut service = Setup::watch(&data, &url)
        .args(&["--stall-seconds", "15"])
        .env("NOTIFY_SOCKET", outside.join("notify.sock"))
        .env("WATCHDOG_USEC", "1000000")
        .spawn();
    service.wait_ready();
    let socket = service.control_socket();
    manager.wait_for("READY and a ping behind it", |told| {
        position(told, "READY=1").is_some_and(|ready| position(&told[ready..], "WATCHDOG=1").is_some())
    });
    assert!(
        position(&manager.told, "STATUS=healthy").is_some() || position(&manager.told, "STATUS=starting").is_some()
    );

    broker.freeze();
    std::fs::write(data.join("file"), "content").unwrap();
    manager.wait_for("that it is unhealthy", |told| position(told, "STATUS=unhealthy: publish").is_some());
    let (status, told) = health(&socket);
    assert_eq!((status, &told["status"]), (503, &Value::from("unhealthy")), "{told:#}");
    assert_eq!(told["stages"]["publish"]["alive"], false, "{told:#}");
    assert_eq!(told["stages"]["read"]["alive"], true, "{told:#}");
    let ended = ask_by_command(&socket).expect_code(1);
    assert!(ended.stderr.contains("unhealthy: publish"), "{}", ended.stderr);
    assert_eq!(ended.stderr.lines().count(), 1, "{}", ended.stderr);

    broker.thaw();
    let sick = position(&manager.told, "STATUS=unhealthy").expect("told above");
    manager.wait_for("that it is healthy again", |told| position(&told[sick..], "STATUS=healthy").is_some());
    let well = sick + position(&manager.told[sick..], "STATUS=healthy").expect("told above");
    assert_eq!(position(&manager.told[sick..well], "WATCHDOG=1"), None, "fed while it was not well");
    manager.wait_for("a ping again", |told| position(&told[well..], "WATCHDOG=1").is_some());
    assert!(service.is_running());
    service.stop();
    manager.wait_for("STOPPING", |told| position(told, "STOPPING=1").is_some());
}

#[test]
fn a_blocked_broker_is_no_illness() {
    let broker = Broker::start_with(1);
    let (_root, data, _) = directories();
    let service = Setup::watch(&data, &broker.vhost()).args(&["--stall-seconds", "15"]).spawn();
    service.wait_ready();
    broker.rabbitmqctl(&["set_vm_memory_high_watermark", "0"]);
    std::fs::write(data.join("file"), "content").unwrap();
    let socket = service.control_socket();
    let deadline = Instant::now() + PATIENCE;
    let (status, told) = loop {
        let (status, told) = health(&socket);
        if told["broker"] == "blocked" && told["stages"]["publish"]["waiting"] == 1 {
            break (status, told);
        }
        assert!(Instant::now() < deadline, "it was not blocked: {told:#}");
        std::thread::sleep(Duration::from_millis(20));
    };
    assert_eq!((status, &told["status"]), (200, &Value::from("healthy")), "{told:#}");
    assert!(told["summary"].as_str().is_some_and(|line| line.contains("takes no messages")), "{told:#}");
    broker.rabbitmqctl(&["set_vm_memory_high_watermark", "0.6"]);
    service.wait_log("that it takes messages again", |line| line.contains("takes messages again"));
}

#[test]
fn totals_are_logged_once_a_minute_while_there_is_work() {
    let (_root, data, _) = directories();
    let service = Setup::new(&["watch", "--output", "stdout"]).env("DATA_DIRECTORY", &data).spawn();
    service.wait_ready();
    std::fs::write(data.join("file"), "content").unwrap();
    service.wait_log_within(2 * PATIENCE, "the totals", |line| {
        line.contains("in the last minute: 1 files read, 1 messages confirmed (7 bytes)")
    });
    let ended = service.stop();
    assert_eq!(ended.stderr.matches("in the last minute").count(), 1, "{}", ended.stderr);
}
