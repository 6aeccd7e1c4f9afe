//! The watchdog is fed only while every stage makes progress, and `health` reports a stage that stalls.

use serde_json::Value;

use crate::support::broker::Broker;
use crate::support::control::{health, health_command, wait_for_health};
use crate::support::service_manager::{Manager, position};
use crate::support::setup::Setup;
use crate::support::world::directories;

#[test]
fn the_watchdog_is_fed_while_every_stage_makes_progress() {
    let mut broker = Broker::borrow();
    // With the default heartbeat the connection would be closed before the stage counts as stalled.
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
    manager.wait_for("READY and a ping behind it", |lines| {
        position(lines, "READY=1").is_some_and(|ready| position(&lines[ready..], "WATCHDOG=1").is_some())
    });
    assert!(
        position(&manager.lines, "STATUS=healthy").is_some() || position(&manager.lines, "STATUS=starting").is_some()
    );

    broker.freeze();
    std::fs::write(data.join("file"), "content").unwrap();
    manager.wait_for("that it is unhealthy", |lines| position(lines, "STATUS=unhealthy: publish").is_some());
    let (status, body) = health(&socket);
    assert_eq!((status, &body["status"]), (503, &Value::from("unhealthy")), "{body:#}");
    assert_eq!(body["stages"]["publish"]["alive"], false, "{body:#}");
    assert_eq!(body["stages"]["read"]["alive"], true, "{body:#}");
    let ended = health_command(&socket).expect_code(1);
    assert!(ended.stderr.contains("unhealthy: publish"), "{}", ended.stderr);
    assert_eq!(ended.stderr.lines().count(), 1, "{}", ended.stderr);

    broker.thaw();
    let unhealthy = position(&manager.lines, "STATUS=unhealthy").expect("waited for above");
    manager.wait_for("that it is healthy again", |lines| position(&lines[unhealthy..], "STATUS=healthy").is_some());
    let healthy = unhealthy + position(&manager.lines[unhealthy..], "STATUS=healthy").expect("waited for above");
    assert_eq!(position(&manager.lines[unhealthy..healthy], "WATCHDOG=1"), None, "fed while it was unhealthy");
    manager.wait_for("a ping again", |lines| position(&lines[healthy..], "WATCHDOG=1").is_some());
    assert!(service.is_running());
    service.stop();
    manager.wait_for("STOPPING", |lines| position(lines, "STOPPING=1").is_some());
}

#[test]
fn a_service_manager_that_reads_nothing_holds_up_nothing_and_is_notified_once_it_reads() {
    let (_root, data, outside) = directories();
    let socket = outside.join("notify.sock");
    let mut manager = Manager::listen(&socket);
    manager.fill(&socket);
    let setup = Setup::new(&["watch", "--output", "stdout"]).env("DATA_DIRECTORY", &data);
    let service = setup.env("NOTIFY_SOCKET", &socket).env("WATCHDOG_USEC", "300000").spawn();
    service.wait_ready();
    std::fs::write(data.join("file"), "content").unwrap();
    service.wait_stdout("its message", |line| line.contains("/file"));
    let (status, body) = health(&service.control_socket());
    assert_eq!((status, &body["status"]), (200, &Value::from("healthy")), "{body:#}");
    service.wait_log("that the manager does not read", |line| line.contains("WARN") && line.contains("NOTIFY_SOCKET"));
    for state in ["READY=1", "STATUS=healthy", "WATCHDOG=1"] {
        manager.wait_for(state, |lines| position(lines, state).is_some());
    }
    service.wait_log("that it reads again", |line| line.contains("is notified again"));

    manager.fill(&socket);
    let ended = service.stop().expect_code(0);
    assert_eq!(ended.stderr.matches("not_notified").count(), 2, "once for each time: {}", ended.stderr);
    assert_eq!(ended.stderr.matches("is notified again").count(), 1, "{}", ended.stderr);
}

#[test]
fn a_blocked_broker_is_not_unhealthy() {
    let mut broker = Broker::borrow();
    let (_root, data, _) = directories();
    let service = Setup::watch(&data, &broker.vhost()).args(&["--stall-seconds", "15"]).spawn();
    service.wait_ready();
    broker.block();
    std::fs::write(data.join("file"), "content").unwrap();
    let socket = service.control_socket();
    let (status, body) = wait_for_health(&socket, "a blocked broker", |_, health| {
        health["broker"] == "blocked" && health["stages"]["publish"]["waiting"] == 1
    });
    assert_eq!((status, &body["status"]), (200, &Value::from("healthy")), "{body:#}");
    assert!(body["summary"].as_str().is_some_and(|line| line.contains("takes no messages")), "{body:#}");
    broker.unblock();
    service.wait_log("that it takes messages again", |line| line.contains("takes messages again"));
}
