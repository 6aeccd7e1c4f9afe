//! A broker that hangs, frozen by SIGSTOP: it is noticed, and does not keep the service from stopping. Each test has a
//! node to itself.

use rustix::process::Signal;

use crate::support::broker::Broker;
use crate::support::consumer::Consumer;
use crate::support::files::write;
use crate::support::service::{Service, is_ready_line};
use crate::support::setup::Setup;
use crate::support::wait::TIMEOUT;
use crate::support::world::directories;

/// A service that is ready and whose first message has arrived.
fn at_work(data: &std::path::Path, url: &str) -> Service {
    let consumer = Consumer::bind(url.split('?').next().unwrap());
    let service = Setup::watch(data, url).spawn();
    service.wait_ready();
    std::fs::write(data.join("first"), "content").unwrap();
    assert!(consumer.wait_until(TIMEOUT, |messages| !messages.is_empty()), "{}", service.stderr());
    service
}

#[test]
fn a_frozen_broker_is_noticed_by_its_missing_heartbeat() {
    let mut broker = Broker::borrow();
    let url = format!("{}?heartbeat=1", broker.vhost());
    let (_root, data, _) = directories();
    let service = at_work(&data, &url);
    broker.freeze();
    let ended = service.wait_exit().expect_code(1);
    ended.assert_one_error("heartbeat");
}

#[test]
fn a_frozen_broker_is_noticed_with_messages_in_flight_too() {
    let mut broker = Broker::borrow();
    let url = format!("{}?heartbeat=1", broker.vhost());
    let (_root, data, _) = directories();
    let service = at_work(&data, &url);
    broker.freeze();
    // More than the confirm window, so that the socket's buffers are full and messages wait.
    for number in 0..5_000 {
        std::fs::write(data.join(format!("file-{number}")), format!("content {number}")).unwrap();
    }
    let ended = service.wait_exit().expect_code(1);
    ended.assert_one_error("heartbeat");
}

#[test]
fn a_broker_frozen_at_start_is_not_waited_for_forever() {
    let mut broker = Broker::borrow();
    let url = broker.vhost();
    let (_root, data, _) = directories();
    // The kernel accepts connections for it, and no process answers.
    broker.freeze();
    let ended = Setup::watch(&data, &url).run().expect_code(1);
    ended.assert_one_error("has not answered");
    assert!(!ended.stderr.lines().any(is_ready_line), "{}", ended.stderr);

    // It can be used as soon as it goes on.
    broker.thaw();
    let service = at_work(&data, &url);
    service.stop();
}

#[test]
fn a_frozen_broker_does_not_keep_the_service_from_stopping() {
    let mut broker = Broker::borrow();
    let url = broker.vhost();
    let (_root, data, _) = directories();
    let service = at_work(&data, &url);
    broker.freeze();
    write(&data.join("second"), "content");
    service.signal(Signal::TERM);
    let ended = service.wait_exit().expect_code(0);
    assert_eq!(ended.errors().len(), 0, "{}", ended.stderr);
    assert!(ended.stderr.contains(", 1 left unpublished"), "{}", ended.stderr);
}
