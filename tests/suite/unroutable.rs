//! No queue is bound to the exchange: a message that no queue took waits, and is published once there is one.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use lapin::options::ExchangeDeleteOptions;
use rustix::process::Signal;
use serde_json::Value;

use crate::support::broker::{self, Broker};
use crate::support::consumer::{Consumer, EXCHANGE, bind_queue};
use crate::support::control::{get, health, health_command, metrics, ready_command, wait_for_metrics};
use crate::support::files::sha256;
use crate::support::message::Message;
use crate::support::queue::{Queue, unbind_queue};
use crate::support::service::{Ended, Service};
use crate::support::setup::Setup;
use crate::support::wait::{TIMEOUT, retry};
use crate::support::world::{World, directories};

/// The name of the test's queue.
const QUEUE: &str = "kept";

fn write_files(data: &Path, prefix: &str, count: usize) {
    for number in 0..count {
        fs::write(data.join(format!("{prefix}-{number}")), format!("{prefix} {number}")).unwrap();
    }
}

/// How often each name came.
fn by_name(messages: &[Message]) -> HashMap<&str, usize> {
    let mut counts = HashMap::new();
    messages.iter().for_each(|message| *counts.entry(message.name()).or_default() += 1);
    counts
}

#[track_caller]
fn assert_once_each(messages: &[Message], count: usize) {
    let counts = by_name(messages);
    let repeated: Vec<_> = counts.iter().filter(|(_, count)| **count != 1).take(5).collect();
    assert!(
        counts.len() == count && repeated.is_empty(),
        "{} names, not {count}; repeated: {repeated:?}",
        counts.len()
    );
}

/// Waits until the service knows that so many messages wait for a queue.
#[track_caller]
fn wait_until_unroutable(service: &Service, messages: usize) {
    wait_for_metrics(&service.control_socket(), "that messages wait for a queue", |seen| {
        seen["apollonia_unroutable_messages"] >= messages as f64
    });
}

/// How many messages the last line counts as left unpublished.
#[track_caller]
fn left(ended: &Ended) -> usize {
    let totals = ended.stderr.lines().rfind(|line| line.contains(" left unpublished")).unwrap_or_else(|| {
        panic!("no line counts what is left unpublished:\n{}", ended.stderr);
    });
    let before = totals.split(" left unpublished").next().unwrap();
    before.rsplit(' ').next().unwrap().parse().unwrap()
}

fn watch(data: &Path, url: &str, state: &Path) -> Setup {
    Setup::watch(data, url).env("STATE_DIRECTORY", state)
}

#[test]
fn messages_without_a_queue_wait_and_each_comes_once() {
    const FILES: usize = 2000;
    let url = broker::shared().vhost();
    let (_root, data, state) = directories();
    let service = watch(&data, &url, &state).spawn();
    service.wait_ready();
    let socket = service.control_socket();
    assert_eq!(get(&socket, "/ready").0, 200, "no message has been returned yet");
    write_files(&data, "file", FILES);
    // More than may be in flight: the others are pending.
    wait_until_unroutable(&service, 1000);
    for number in 0..10 {
        fs::write(data.join(format!("file-{number}")), format!("rewritten {number}")).unwrap();
    }

    let (status, body) = health(&socket);
    assert_eq!((status, &body["status"]), (200, &Value::from("healthy")), "a restart would repair nothing: {body:#}");
    assert!(body["summary"].as_str().is_some_and(|line| line.contains("no queue is bound")), "{body:#}");
    assert!(body["unroutable_messages"].as_u64().is_some_and(|count| count >= 1000), "{body:#}");
    assert_eq!(body["broker"], "connected");
    assert!(health_command(&socket).expect_code(0).stdout.contains("no queue is bound"));
    let (status, _, body) = get(&socket, "/ready");
    assert!(status == 503 && body.contains("not ready: no queue is bound"), "{status} {body}");
    let asked = ready_command(&socket).expect_code(1);
    assert!(asked.stderr.contains("not ready: no queue is bound") && asked.stderr.lines().count() == 1, "{asked:?}");
    let seen = metrics(&socket);
    assert_eq!((seen["apollonia_messages_confirmed_total"], seen["apollonia_ledger_rows"]), (0.0, 0.0));
    assert_eq!(seen["apollonia_ready"], 0.0);

    let consumer = Consumer::bind(&url);
    let all = |messages: &[Message]| {
        (0..10).all(|number| {
            let hash = sha256(format!("rewritten {number}").as_bytes());
            messages.iter().any(|it| it.name() == format!("file-{number}") && it.sha256() == hash)
        }) && by_name(messages).len() == FILES
    };
    assert!(consumer.wait_until(TIMEOUT, all), "{} came:\n{}", consumer.messages().len(), service.stderr());
    wait_for_metrics(&socket, "that no message waits", |seen| seen["apollonia_unroutable_messages"] == 0.0);
    assert_eq!(get(&socket, "/ready").0, 200);
    assert!(ready_command(&socket).expect_code(0).stdout.starts_with("ready: "));
    let ended = service.stop();
    assert_eq!(left(&ended), 0, "{}", ended.stderr);
    let warnings = ended.warnings().len();
    assert_eq!(warnings, 1, "at most one such line a minute:\n{}", ended.stderr);
    let messages = consumer.drain();
    let (rewritten, once): (Vec<Message>, Vec<Message>) =
        messages.into_iter().partition(|it| (0..10).any(|number| it.name() == format!("file-{number}")));
    assert_once_each(&once, FILES - 10);
    for number in 0..10 {
        let name = format!("file-{number}");
        let hashes: Vec<&str> = rewritten.iter().filter(|it| it.name() == name).map(Message::sha256).collect();
        assert!(hashes.len() <= 2, "{name} came {} times", hashes.len());
        assert_eq!(hashes.last().unwrap(), &sha256(format!("rewritten {number}").as_bytes()));
    }
}

/// The broker acknowledges many messages at once and has returned some of them: none may be taken for another.
#[test]
fn a_binding_that_comes_and_goes_loses_and_repeats_nothing() {
    const ROUNDS: usize = 10;
    const FILES: usize = 500;
    let url = broker::shared().vhost();
    let (_root, data, state) = directories();
    let queue = Queue::declare(&url, QUEUE);
    queue.bind();
    let service = watch(&data, &url, &state).spawn();
    service.wait_ready();
    let socket = service.control_socket();
    for round in 1..=ROUNDS {
        let data = data.clone();
        queue.with(async |channel| {
            unbind_queue(channel, QUEUE).await;
            // Not before: all files could be published before the connection is made.
            let writer = std::thread::spawn(move || write_files(&data, &format!("round-{round}"), FILES));
            while !writer.is_finished() {
                bind_queue(channel, QUEUE).await;
                unbind_queue(channel, QUEUE).await;
            }
            bind_queue(channel, QUEUE).await;
            writer.join().unwrap();
        });
        wait_for_metrics(&socket, "every confirm", |seen| {
            seen["apollonia_messages_confirmed_total"] >= (round * FILES) as f64
        });
    }
    let returned = metrics(&socket)["apollonia_messages_returned_total"];
    assert!(returned > 0.0, "nothing was returned: the test proves nothing");
    service.stop();
    assert_once_each(&queue.take(), ROUNDS * FILES);
}

#[test]
fn a_stop_counts_what_waits_and_the_next_start_publishes_it() {
    const FILES: usize = 300;
    let url = broker::shared().vhost();
    let (_root, data, state) = directories();
    let service = watch(&data, &url, &state).spawn();
    service.wait_ready();
    write_files(&data, "file", FILES);
    wait_until_unroutable(&service, FILES);
    let ended = service.stop();
    assert_eq!(left(&ended), FILES, "{}", ended.stderr);
    assert!(!ended.stderr.contains("still in progress"), "a stop does not wait for a queue:\n{}", ended.stderr);

    let consumer = Consumer::bind(&url);
    let service = watch(&data, &url, &state).spawn();
    service.wait_log("that the ledger is empty", |line| line.contains("the ledger holds 0 of 300 files"));
    assert!(consumer.wait_until(TIMEOUT, |all| all.len() >= FILES), "{}", service.stderr());
    assert_eq!(left(&service.stop()), 0);
    assert_once_each(&consumer.drain(), FILES);
}

#[test]
fn a_lost_connection_counts_what_waits() {
    let broker = broker::shared();
    let url = broker.vhost();
    let (_root, data, state) = directories();
    let service = watch(&data, &url, &state).spawn();
    service.wait_ready();
    write_files(&data, "file", 20);
    wait_until_unroutable(&service, 20);
    let ended = broker.disconnect(&url, service).expect_code(1);
    assert_eq!((ended.errors().len(), left(&ended)), (1, 20), "{}", ended.stderr);
}

#[test]
fn an_exchange_deleted_while_messages_wait_is_one_error_line() {
    let url = broker::shared().vhost();
    let (_root, data, state) = directories();
    let service = watch(&data, &url, &state).spawn();
    service.wait_ready();
    write_files(&data, "file", 20);
    wait_until_unroutable(&service, 20);
    Queue::declare(&url, QUEUE).with(async |channel| {
        channel.exchange_delete(EXCHANGE.into(), ExchangeDeleteOptions::default()).await.expect("deleted");
    });
    let ended = service.wait_exit().expect_code(1);
    assert_eq!((ended.errors().len(), left(&ended)), (1, 20), "{}", ended.stderr);
    assert!(ended.errors()[0].contains("NOT_FOUND"), "{}", ended.stderr);
}

#[test]
fn rejected_and_returned_messages_each_come_once() {
    const FILES: usize = 60;
    let url = broker::shared().vhost();
    let (_root, data, state) = directories();
    let queue = Queue::declare_with_room_for(&url, QUEUE, 5);
    queue.bind();
    let service = watch(&data, &url, &state).spawn();
    service.wait_ready();
    let socket = service.control_socket();
    write_files(&data, "file", FILES / 2);
    wait_for_metrics(&socket, "a rejection", |seen| seen["apollonia_messages_nacked_total"] > 0.0);
    queue.unbind();
    write_files(&data, "more", FILES / 2);
    wait_for_metrics(&socket, "that the others wait", |seen| seen["apollonia_unroutable_messages"] > 0.0);
    queue.bind();
    let mut messages = Vec::new();
    retry("every message", || {
        messages.extend(queue.take());
        if messages.len() >= FILES { Ok(()) } else { Err(format!("{} came\n{}", messages.len(), service.stderr())) }
    });
    wait_for_metrics(&socket, "every confirm", |seen| seen["apollonia_messages_confirmed_total"] == FILES as f64);
    assert_eq!(left(&service.stop()), 0);
    messages.extend(queue.take());
    assert_once_each(&messages, FILES);
}

#[test]
fn a_blocked_broker_does_not_keep_waiting_messages_from_a_clean_stop() {
    let mut broker = Broker::borrow();
    let url = broker.vhost();
    let (_root, data, state) = directories();
    let service = watch(&data, &url, &state).spawn();
    service.wait_ready();
    write_files(&data, "file", 20);
    wait_until_unroutable(&service, 20);
    broker.block();
    let socket = service.control_socket();
    service.wait_log("that the broker takes no messages", |line| line.contains("takes no messages"));
    let (status, _, body) = get(&socket, "/ready");
    assert!(
        status == 503 && body.contains("takes no messages") && body.contains("no queue is bound"),
        "{status} {body}"
    );
    assert_eq!(health(&socket).0, 200);
    assert_eq!(left(&service.stop()), 20);

    // A service that waits for the broker alone is not ready either, and healthy.
    broker.unblock();
    let consumer = Consumer::bind(&url);
    let service = watch(&data, &url, &state).spawn();
    service.wait_ready();
    assert!(consumer.wait_until(TIMEOUT, |all| all.len() >= 20), "{}", service.stderr());
    broker.block();
    fs::write(data.join("blocked"), "content").unwrap();
    service.wait_log("that the broker takes no messages", |line| line.contains("takes no messages"));
    let asked = ready_command(&service.control_socket()).expect_code(1);
    assert!(asked.stderr.contains("not ready: the broker takes no messages"), "{}", asked.stderr);
    let ended = service.stop();
    assert_eq!(left(&ended), 1, "{}", ended.stderr);
}

#[test]
fn messages_without_a_queue_are_warned_about_once_and_come_later() {
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
        consumer.wait_until(TIMEOUT, |all| all.len() >= 21),
        "not every message came after a queue was bound:\n{}",
        service.stderr()
    );
    let ended = service.stop();
    let count = ended.stderr.lines().filter(|line| warns(line)).count();
    assert_eq!(count, 1, "at most one such line a minute:\n{}", ended.stderr);
}

#[test]
fn with_unroutable_fail_a_message_without_a_queue_ends_the_service() {
    let url = broker::shared().vhost();
    let (_root, data, _) = directories();
    let service = Setup::watch(&data, &url).args(&["--unroutable", "fail"]).spawn();
    service.wait_ready();
    fs::write(data.join("file"), "content").unwrap();
    let ended = service.wait_exit().expect_code(1);
    ended.assert_one_error("queue");
}

#[test]
fn scan_waits_for_a_queue_and_logs_so() {
    const FILES: usize = 3000;
    let url = broker::shared().vhost();
    let (_root, data, _) = directories();
    write_files(&data, "file", FILES);
    let scan = || {
        let service = Setup::new(&["scan"]).arg(&data).env("AMQP_CONNECTION_STRING", &url).spawn();
        service.wait_log("a WARN that no queue is bound", |line| line.contains("WARN") && line.contains("no queue"));
        service
    };
    let stopped = scan();
    stopped.signal(Signal::INT);
    let ended = stopped.wait_exit();
    assert!(ended.stderr.contains("stopped before the end") && left(&ended) > 0, "{}", ended.stderr);
    assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);

    let waiting = scan();
    let consumer = Consumer::bind(&url);
    let ended = waiting.wait_exit().expect_code(0);
    assert_eq!(left(&ended), 0, "{}", ended.stderr);
    assert!(ended.stderr.contains(&format!("{FILES} messages confirmed")), "{}", ended.stderr);
    assert_once_each(&consumer.drain(), FILES);
}

#[test]
fn with_unroutable_warn_a_message_without_a_queue_counts_as_confirmed() {
    let mut world = World::without_service();
    let url = broker::shared().vhost();
    world.url.clone_from(&url);
    world.launch(|it| it.args(&["--unroutable", "warn"]));
    for number in 0..20 {
        world.write(&format!("unseen-{number}"), "content");
    }
    let socket = world.service().control_socket();
    wait_for_metrics(&socket, "twenty of them", |seen| seen["apollonia_messages_confirmed_total"] == 20.0);
    let seen = metrics(&socket);
    assert_eq!(seen["apollonia_messages_returned_total"], 20.0);
    assert_eq!(seen["apollonia_unroutable_messages"], 0.0);
    let ended = world.stop_service();
    let warnings = ended.stderr.lines().filter(|line| line.contains("WARN") && line.contains("no queue")).count();
    assert_eq!((warnings, left(&ended)), (1, 0), "{}", ended.stderr);
}

#[test]
fn a_queue_that_is_deleted_is_waited_for_again() {
    let url = broker::shared().vhost();
    let (_root, data, state) = directories();
    let queue = Queue::declare(&url, QUEUE);
    queue.bind();
    let service = watch(&data, &url, &state).spawn();
    service.wait_ready();
    let socket = service.control_socket();
    for round in 1..=3 {
        write_files(&data, &format!("seen-{round}"), 10);
        wait_for_metrics(&socket, "the confirms", |seen| {
            seen["apollonia_messages_confirmed_total"] == (20 * round - 10) as f64
        });
        queue.delete();
        write_files(&data, &format!("unseen-{round}"), 10);
        wait_until_unroutable(&service, 10);
        Queue::declare(&url, QUEUE).bind();
        wait_for_metrics(&socket, "the others' confirms", |seen| {
            seen["apollonia_messages_confirmed_total"] == (20 * round) as f64
        });
        assert_once_each(&queue.take(), 10);
    }
    let ended = service.stop();
    let warnings = ended.warnings().len();
    assert_eq!(warnings, 1, "at most one such line a minute:\n{}", ended.stderr);
}
