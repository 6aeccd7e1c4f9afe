//! Contract 6: a broker that is there and says nothing, frozen by SIGSTOP. Each test has a node of its own.

use rustix::process::Signal;

use crate::broker::Broker;
use crate::consumer::Consumer;
use crate::service::{Ended, PATIENCE, Service, Setup, is_ready_line};
use crate::world::directories;

/// One line that says what is wrong, and no panic.
#[track_caller]
fn assert_one_error(ended: &Ended, wanted: &str) {
    let errors: Vec<&str> = ended.stderr.lines().filter(|line| line.contains("ERROR")).collect();
    assert_eq!(errors.len(), 1, "{}", ended.stderr);
    assert!(errors[0].contains(wanted), "{}", errors[0]);
    assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
}

/// A service that is ready and whose first message has arrived.
fn at_work(data: &std::path::Path, url: &str) -> Service {
    let consumer = Consumer::bind(url.split('?').next().unwrap());
    let service = Setup::watch(data, url).spawn();
    service.wait_ready();
    std::fs::write(data.join("first"), "content").unwrap();
    assert!(consumer.wait_until(PATIENCE, |messages| !messages.is_empty()), "{}", service.stderr());
    service
}

#[test]
fn a_frozen_broker_is_noticed_by_its_missing_heartbeat() {
    let mut broker = Broker::start_with(1);
    let url = format!("{}?heartbeat=1", broker.vhost());
    let (_root, data, _) = directories();
    let service = at_work(&data, &url);
    broker.freeze();
    let ended = service.wait_exit().expect_code(1);
    assert_one_error(&ended, "heartbeat");
}

#[test]
fn a_frozen_broker_is_noticed_with_messages_under_way_too() {
    let mut broker = Broker::start_with(1);
    let url = format!("{}?heartbeat=1", broker.vhost());
    let (_root, data, _) = directories();
    let service = at_work(&data, &url);
    broker.freeze();
    // More than the window: what is written fills the socket's buffers and waits.
    for number in 0..5_000 {
        std::fs::write(data.join(format!("file-{number}")), format!("content {number}")).unwrap();
    }
    let ended = service.wait_exit().expect_code(1);
    assert_one_error(&ended, "heartbeat");
}

#[test]
fn a_broker_frozen_at_start_is_not_waited_for_without_end() {
    let mut broker = Broker::start_with(1);
    let url = broker.vhost();
    let (_root, data, _) = directories();
    // The kernel accepts connections for it; nobody answers.
    broker.freeze();
    let ended = Setup::watch(&data, &url).run().expect_code(1);
    assert_one_error(&ended, "has not answered");
    assert!(!ended.stderr.lines().any(is_ready_line), "{}", ended.stderr);

    // Nothing is the matter with it once it goes on.
    broker.thaw();
    let service = at_work(&data, &url);
    service.stop();
}

#[test]
fn a_frozen_broker_does_not_keep_the_service_from_stopping() {
    let mut broker = Broker::start_with(1);
    let url = broker.vhost();
    let (_root, data, _) = directories();
    let service = at_work(&data, &url);
    broker.freeze();
    std::fs::write(data.join("second"), "content").unwrap();
    service.signal(Signal::TERM);
    let ended = service.wait_exit().expect_code(0);
    assert_eq!(ended.stderr.matches("ERROR").count(), 0, "{}", ended.stderr);
    assert!(ended.stderr.contains(", 1 left unpublished"), "{}", ended.stderr);
}
