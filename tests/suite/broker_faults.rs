//! Contract 6: what the broker may do to us.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::time::{Duration, Instant};

use lapin::options::{BasicAckOptions, BasicGetOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, ExchangeKind};
use rustix::process::Signal;

use crate::broker::{self, Broker};
use crate::consumer::{Consumer, Message, bind_queue, block_on, connect, declare_exchange};
use crate::files::sha256;
use crate::service::{PATIENCE, Setup, is_ready_line};
use crate::world::{World, directories};

/// The connection is closed from the broker's side until the service has noticed.
#[test]
fn a_connection_closed_by_the_broker_ends_the_service_with_one_error_line() {
    let broker = broker::shared();
    let url = broker.vhost();
    let vhost = url.rsplit('/').next().unwrap();
    let (_root, data, _) = directories();
    let mut service = Setup::watch(&data, &url).spawn();
    service.wait_ready();
    let deadline = Instant::now() + PATIENCE;
    while service.is_running() {
        assert!(Instant::now() < deadline, "it goes on without a broker:\n{}", service.stderr());
        broker.rabbitmqctl(&["close_all_connections", "--vhost", vhost, "by a test"]);
    }
    let ended = service.wait_exit().expect_code(1);
    assert_eq!(ended.stderr.matches("ERROR").count(), 1, "{}", ended.stderr);
    assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
}

#[test]
fn a_memory_alarm_is_waited_out_and_a_broker_that_dies_ends_the_service() {
    // A node of its own: the alarm stops every publisher on it.
    let broker = Broker::start();
    let url = broker.vhost();
    let (_root, data, _) = directories();
    let consumer = Consumer::bind(&url);
    let mut service = Setup::watch(&data, &url).spawn();
    service.wait_ready();

    broker.rabbitmqctl(&["set_vm_memory_high_watermark", "0"]);
    let mut contents = HashSet::new();
    for number in 0..200 {
        let content = format!("file {number}");
        fs::write(data.join(format!("file-{number}")), &content).unwrap();
        contents.insert(sha256(content.as_bytes()));
    }
    let deadline = Instant::now() + PATIENCE;
    let connections = || broker.rabbitmqctl(&["-q", "list_connections", "name", "state"]);
    while !connections().contains("\tblocked") {
        assert!(Instant::now() < deadline, "the broker blocked nobody:\n{}", connections());
    }
    assert!(service.is_running(), "an alarm ended it:\n{}", service.stderr());
    let early = consumer.messages().len();
    assert!(early < 200, "the alarm held nothing back: the test proves nothing");

    broker.rabbitmqctl(&["set_vm_memory_high_watermark", "0.4"]);
    let all = |messages: &[Message]| messages.len() >= 200;
    assert!(
        consumer.wait_until(PATIENCE, all),
        "{} of 200 messages came after the alarm:\n{}",
        consumer.messages().len(),
        service.stderr()
    );
    let messages = consumer.drain();
    assert_eq!(messages.len(), 200, "no repeat");
    let hashes: HashSet<String> = messages.iter().map(|it| it.sha256().to_owned()).collect();
    assert_eq!(hashes, contents);

    drop(consumer);
    drop(broker);
    let ended = service.wait_exit().expect_code(1);
    assert_eq!(ended.stderr.matches("ERROR").count(), 1, "{}", ended.stderr);
}

/// What a killed process left in its connection must not come after what its successor publishes.
#[test]
fn messages_of_a_killed_process_never_overtake_those_of_the_next() {
    const FILES: usize = 100;
    let broker = Broker::start();
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
    broker.rabbitmqctl(&["set_vm_memory_high_watermark", "0"]);
    write_all("old");
    first.wait_log("that the broker takes no messages", |line| line.contains("takes no messages"));
    first.signal(Signal::KILL);
    first.wait_exit();
    write_all("new");
    let second = Setup::watch(&data, &url).args(&["--catch-up", "all", "--settle-ms", "10"]).spawn();
    second.wait_log("that it waits for the other connection", |line| line.contains("waiting for its end"));
    assert!(!second.stderr().lines().any(is_ready_line), "{}", second.stderr());

    broker.rabbitmqctl(&["set_vm_memory_high_watermark", "0.4"]);
    second.wait_ready();
    let last = |messages: &[Message]| -> HashMap<String, String> {
        messages.iter().map(|it| (it.name().to_owned(), it.sha256().to_owned())).collect()
    };
    let new = (0..FILES).map(|number| (format!("file-{number}"), sha256(format!("new {number}").as_bytes()))).collect();
    assert!(consumer.wait_until(PATIENCE, |messages| last(messages) == new), "{}", second.stderr());
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
    block_on(async {
        let connection = connect(&url).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        declare_exchange(&channel, ExchangeKind::Fanout).await;
        declare_queue_of_one(&channel).await;
        let service = Setup::watch(&data, &url).spawn();
        service.wait_ready();
        let names: HashSet<String> = (0..FILES).map(|it| format!("file-{it}")).collect();
        for name in &names {
            fs::write(data.join(name), name).unwrap();
        }
        // One message fits: of the others each must be offered again after it was refused.
        let mut seen = HashSet::new();
        let deadline = Instant::now() + PATIENCE;
        while seen != names {
            assert!(Instant::now() < deadline, "only {seen:?} came; standard error:\n{}", service.stderr());
            let got = channel.basic_get("one".into(), BasicGetOptions::default()).await.unwrap();
            let Some(got) = got else {
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            };
            got.delivery.acker.ack(BasicAckOptions::default()).await.unwrap();
            seen.insert(Message::parse(&got.delivery.data).name().to_owned());
        }
        service.stop();
    });
}

/// A queue named `one` that holds one message and refuses, by a nack, what does not fit.
async fn declare_queue_of_one(channel: &Channel) {
    let mut arguments = FieldTable::default();
    arguments.insert("x-max-length".into(), AMQPValue::LongInt(1));
    arguments.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
    let options = QueueDeclareOptions { durable: true, ..Default::default() };
    channel.queue_declare("one".into(), options, arguments).await.unwrap();
    bind_queue(channel, "one").await;
}

#[test]
fn without_a_queue_the_service_warns_once_and_all_comes_when_there_is_one() {
    let url = broker::shared().vhost();
    let (_root, data, _) = directories();
    let service = Setup::watch(&data, &url).spawn();
    service.wait_ready();
    for number in 0..20 {
        fs::write(data.join(format!("unseen-{number}")), "content").unwrap();
    }
    let warns = |line: &str| line.contains("WARN") && line.contains("queue");
    service.wait_log("a WARN that no queue is bound", warns);
    let consumer = Consumer::bind(&url);
    fs::write(data.join("seen"), "content").unwrap();
    assert!(
        consumer.wait_until(PATIENCE, |all| all.len() >= 21),
        "not every message came after a queue was bound:\n{}",
        service.stderr()
    );
    let ended = service.stop();
    let count = ended.stderr.lines().filter(|line| warns(line)).count();
    assert_eq!(count, 1, "at most one such line a minute:\n{}", ended.stderr);
}

#[test]
fn without_a_queue_the_service_fails_when_it_was_told_to() {
    let url = broker::shared().vhost();
    let (_root, data, _) = directories();
    let service = Setup::watch(&data, &url).args(&["--unroutable", "fail"]).spawn();
    service.wait_ready();
    fs::write(data.join("file"), "content").unwrap();
    let ended = service.wait_exit().expect_code(1);
    let errors: Vec<&str> = ended.stderr.lines().filter(|line| line.contains("ERROR")).collect();
    assert_eq!(errors.len(), 1, "{}", ended.stderr);
    assert!(errors[0].contains("queue"), "{}", errors[0]);
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
