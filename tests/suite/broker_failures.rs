//! What the broker may do to the service: it closes the connection, raises an alarm, refuses a message, or dies.

use std::collections::{HashMap, HashSet};
use std::fs;

use rustix::process::Signal;

use crate::support::broker::{self, Broker, vhost_of};
use crate::support::consumer::Consumer;
use crate::support::files::sha256;
use crate::support::message::Message;
use crate::support::queue::Queue;
use crate::support::service::is_ready_line;
use crate::support::setup::Setup;
use crate::support::wait::{TIMEOUT, retry};
use crate::support::world::{World, directories};

#[test]
fn a_connection_closed_by_the_broker_ends_the_service_in_one_line() {
    let broker = broker::shared();
    let url = broker.vhost();
    let (_root, data, _) = directories();
    let service = Setup::watch(&data, &url).spawn();
    service.wait_ready();
    let ended = broker.disconnect(&url, service).expect_code(1);
    ended.assert_one_error("connection");
    ended.assert_error_before_totals();
}

#[test]
fn a_memory_alarm_is_waited_out_and_a_dead_broker_ends_the_service() {
    // A node to itself, because the alarm stops every publisher on it.
    let mut broker = Broker::borrow();
    let url = broker.vhost();
    let (_root, data, _) = directories();
    let consumer = Consumer::bind(&url);
    let mut service = Setup::watch(&data, &url).spawn();
    service.wait_ready();

    broker.block();
    let mut contents = HashSet::new();
    for number in 0..200 {
        let content = format!("file {number}");
        fs::write(data.join(format!("file-{number}")), &content).unwrap();
        contents.insert(sha256(content.as_bytes()));
    }
    retry("a blocked connection", || {
        let states = broker.connections(vhost_of(&url), &["state"]);
        if states.iter().any(|state| state == "[{state,blocked}]") { Ok(()) } else { Err(format!("{states:?}")) }
    });
    assert!(service.is_running(), "an alarm ended it:\n{}", service.stderr());
    let early = consumer.messages().len();
    assert!(early < 200, "the alarm held nothing back: the test proves nothing");

    broker.unblock();
    let all = |messages: &[Message]| messages.len() >= 200;
    assert!(
        consumer.wait_until(TIMEOUT, all),
        "{} of 200 messages came after the alarm:\n{}",
        consumer.messages().len(),
        service.stderr()
    );
    let messages = consumer.drain();
    assert_eq!(messages.len(), 200, "no repeat");
    let hashes: HashSet<String> = messages.iter().map(|it| it.sha256().to_owned()).collect();
    assert_eq!(hashes, contents);

    drop(consumer);
    broker.kill();
    service.wait_exit().expect_code(1).assert_one_error("");
}

/// What a killed process has left in its connection must not come after the messages of its successor.
#[test]
fn messages_of_a_killed_process_never_overtake_those_of_the_next() {
    const FILES: usize = 100;
    let mut broker = Broker::borrow();
    let url = broker.vhost();
    let (_root, data, _) = directories();
    let consumer = Consumer::bind(&url);
    let first = Setup::watch(&data, &url).spawn();
    first.wait_ready();
    let write_all = |content: &str| {
        for number in 0..FILES {
            fs::write(data.join(format!("file-{number}")), format!("{content} {number}")).unwrap();
        }
    };
    broker.block();
    write_all("old");
    first.wait_log("that the broker takes no messages", |line| line.contains("takes no messages"));
    first.signal(Signal::KILL);
    first.wait_exit();
    write_all("new");
    let second = Setup::watch(&data, &url).args(&["--catch-up", "all", "--settle-ms", "10"]).spawn();
    second.wait_log("that it waits for the other connection", |line| line.contains("waiting for its end"));
    assert!(!second.stderr().lines().any(is_ready_line), "{}", second.stderr());

    broker.unblock();
    second.wait_ready();
    let last = |messages: &[Message]| -> HashMap<String, String> {
        messages.iter().map(|it| (it.name().to_owned(), it.sha256().to_owned())).collect()
    };
    let new = (0..FILES).map(|number| (format!("file-{number}"), sha256(format!("new {number}").as_bytes()))).collect();
    assert!(consumer.wait_until(TIMEOUT, |messages| last(messages) == new), "{}", second.stderr());
    second.stop();
    assert_eq!(last(&consumer.drain()), new);
}

#[test]
fn a_second_service_on_a_directory_waits_for_the_first_to_end() {
    let mut world = World::start();
    let waiting = || {
        let service = Setup::watch(&world.data, &world.url).spawn();
        service.wait_log("that it waits for the other", |line| line.contains("waiting for its end"));
        service
    };
    // Nothing is in progress yet: a signal is a clean end at once.
    waiting().stop();
    let second = waiting();
    world.stop_service();
    second.wait_ready();
    second.stop();
}

#[test]
fn a_rejected_message_is_published_again_until_it_is_taken() {
    const FILES: usize = 8;
    let url = broker::shared().vhost();
    let (_root, data, _) = directories();
    // One message fits: each of the others must be published again after it was refused.
    let queue = Queue::declare_with_room_for(&url, "one", 1);
    queue.bind();
    let service = Setup::watch(&data, &url).spawn();
    service.wait_ready();
    let names: HashSet<String> = (0..FILES).map(|it| format!("file-{it}")).collect();
    for name in &names {
        fs::write(data.join(name), name).unwrap();
    }
    let mut seen = HashSet::new();
    retry("every message", || {
        seen.extend(queue.take().iter().map(|message| message.name().to_owned()));
        if seen == names { Ok(()) } else { Err(format!("only {seen:?} came\n{}", service.stderr())) }
    });
    service.stop();
}

#[test]
fn one_message_in_flight_is_enough_to_deliver_all() {
    let mut world = World::start_with(|it| it.args(&["--confirm-window", "1"]));
    for number in 0..100 {
        world.write(&format!("file-{number}"), format!("content {number}"));
    }
    world.wait_until("100 messages", |messages| messages.len() >= 100);
    assert_eq!(world.finish().len(), 100);
}
