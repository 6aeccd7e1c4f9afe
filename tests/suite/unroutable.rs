//! Contract 6: no queue is bound to the exchange. A message that nobody got is not done.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::time::Instant;

use lapin::options::{BasicGetOptions, ExchangeDeleteOptions, QueueDeclareOptions, QueuePurgeOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, ExchangeKind};
use rustix::process::Signal;
use serde_json::Value;

use crate::broker::{self, Broker};
use crate::consumer::{Consumer, EXCHANGE, Message, bind_queue, block_on, connect, declare_exchange};
use crate::control::{ask_by_command, ask_whether_ready, get, health, metrics, wait_for_metrics};
use crate::files::sha256;
use crate::service::{Ended, PATIENCE, Service, Setup};
use crate::world::{World, directories};

/// A durable queue that keeps what it gets while it is bound to the exchange, or not.
struct Queue<'a> {
    url: &'a str,
    arguments: FieldTable,
}

const QUEUE: &str = "kept";

impl<'a> Queue<'a> {
    fn declare(url: &'a str) -> Self {
        Self::declare_with(url, FieldTable::default())
    }

    /// One that holds so many and refuses, by a nack, what does not fit.
    fn declare_with_room_for(url: &'a str, messages: i32) -> Self {
        let mut arguments = FieldTable::default();
        arguments.insert("x-max-length".into(), AMQPValue::LongInt(messages));
        arguments.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
        Self::declare_with(url, arguments)
    }

    fn declare_with(url: &'a str, arguments: FieldTable) -> Self {
        let queue = Self { url, arguments };
        queue.with(async |_| {});
        queue
    }

    fn with<T>(&self, conversation: impl AsyncFnOnce(&Channel) -> T) -> T {
        block_on(async {
            let connection = connect(self.url).await.expect("the test connects");
            let channel = connection.create_channel().await.expect("a channel");
            declare_exchange(&channel, ExchangeKind::Fanout).await;
            let durable = QueueDeclareOptions { durable: true, ..Default::default() };
            channel.queue_declare(QUEUE.into(), durable, self.arguments.clone()).await.expect("a queue");
            let said = conversation(&channel).await;
            connection.close(200, "done".into()).await.expect("closed");
            said
        })
    }

    fn bind(&self) {
        self.with(async |channel| bind_queue(channel, QUEUE).await);
    }

    fn unbind(&self) {
        self.with(async |channel| unbind_queue(channel).await);
    }

    /// All that is in it, taken out.
    fn take(&self) -> Vec<Message> {
        self.with(async |channel| {
            let mut messages = Vec::new();
            let options = BasicGetOptions { no_ack: true };
            while let Some(got) = channel.basic_get(QUEUE.into(), options).await.expect("an answer") {
                messages.push(Message::parse(&got.delivery.data));
            }
            messages
        })
    }
}

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

/// What the last line says is left.
#[track_caller]
fn left(ended: &Ended) -> usize {
    let totals = ended.stderr.lines().rfind(|line| line.contains(" left unpublished")).unwrap_or_else(|| {
        panic!("no line says what is left:\n{}", ended.stderr);
    });
    let before = totals.split(" left unpublished").next().unwrap();
    before.rsplit(' ').next().unwrap().parse().unwrap()
}

fn errors(ended: &Ended) -> Vec<&str> {
    ended.stderr.lines().filter(|line| line.contains("ERROR")).collect()
}

fn watch(data: &Path, url: &str, state: &Path) -> Setup {
    Setup::watch(data, url).env("STATE_DIRECTORY", state)
}

#[test]
fn what_no_queue_is_bound_for_waits_and_comes_once_in_its_order() {
    const FILES: usize = 2000;
    let url = broker::shared().vhost();
    let (_root, data, state) = directories();
    let service = watch(&data, &url, &state).spawn();
    service.wait_ready();
    let socket = service.control_socket();
    assert_eq!(get(&socket, "/ready").0, 200, "nothing is known to be wrong");
    write_files(&data, "file", FILES);
    // More than are in flight: the others are pending.
    wait_until_unroutable(&service, 1000);
    for number in 0..10 {
        fs::write(data.join(format!("file-{number}")), format!("rewritten {number}")).unwrap();
    }

    let (status, told) = health(&socket);
    assert_eq!((status, &told["status"]), (200, &Value::from("healthy")), "a restart mends nothing: {told:#}");
    assert!(told["summary"].as_str().is_some_and(|line| line.contains("no queue is bound")), "{told:#}");
    assert!(told["unroutable_messages"].as_u64().is_some_and(|count| count >= 1000), "{told:#}");
    assert_eq!(told["broker"], "connected");
    assert!(ask_by_command(&socket).expect_code(0).stdout.contains("no queue is bound"));
    let (status, _, body) = get(&socket, "/ready");
    assert!(status == 503 && body.contains("not ready: no queue is bound"), "{status} {body}");
    let asked = ask_whether_ready(&socket).expect_code(1);
    assert!(asked.stderr.contains("not ready: no queue is bound") && asked.stderr.lines().count() == 1, "{asked:?}");
    let seen = metrics(&socket);
    assert_eq!((seen["apollonia_messages_confirmed_total"], seen["apollonia_ledger_rows"]), (0.0, 0.0));
    assert_eq!(seen["apollonia_stage_stalled_seconds{stage=\"publish\"}"], 0.0);
    assert_eq!(seen["apollonia_ready"], 0.0);

    let consumer = Consumer::bind(&url);
    let all = |messages: &[Message]| {
        (0..10).all(|number| {
            let hash = sha256(format!("rewritten {number}").as_bytes());
            messages.iter().any(|it| it.name() == format!("file-{number}") && it.sha256() == hash)
        }) && by_name(messages).len() == FILES
    };
    assert!(consumer.wait_until(PATIENCE, all), "{} came:\n{}", consumer.messages().len(), service.stderr());
    wait_for_metrics(&socket, "that none waits", |seen| seen["apollonia_unroutable_messages"] == 0.0);
    assert_eq!(get(&socket, "/ready").0, 200);
    assert!(ask_whether_ready(&socket).expect_code(0).stdout.starts_with("ready: "));
    let ended = service.stop();
    assert_eq!(left(&ended), 0, "{}", ended.stderr);
    let warnings = ended.stderr.lines().filter(|line| line.contains("WARN")).count();
    assert_eq!(warnings, 1, "one line a minute says so:\n{}", ended.stderr);
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

/// The broker acknowledges many messages at once, some of which it has returned: none may be taken for another.
#[test]
fn a_binding_that_comes_and_goes_costs_no_message_and_no_repeat() {
    const ROUNDS: usize = 10;
    const FILES: usize = 500;
    let url = broker::shared().vhost();
    let (_root, data, state) = directories();
    let queue = Queue::declare(&url);
    queue.bind();
    let service = watch(&data, &url, &state).spawn();
    service.wait_ready();
    let socket = service.control_socket();
    for round in 1..=ROUNDS {
        let writer = std::thread::spawn({
            let data = data.clone();
            move || write_files(&data, &format!("round-{round}"), FILES)
        });
        queue.with(async |channel| {
            while !writer.is_finished() {
                unbind_queue(channel).await;
                bind_queue(channel, QUEUE).await;
            }
        });
        writer.join().unwrap();
        wait_for_metrics(&socket, "every confirm", |seen| {
            seen["apollonia_messages_confirmed_total"] >= (round * FILES) as f64
        });
    }
    let returned = metrics(&socket)["apollonia_messages_returned_total"];
    assert!(returned > 0.0, "nothing was returned: the test proves nothing");
    service.stop();
    assert_once_each(&queue.take(), ROUNDS * FILES);
}

async fn unbind_queue(channel: &Channel) {
    let unbound = channel.queue_unbind(QUEUE.into(), EXCHANGE.into(), "".into(), FieldTable::default());
    unbound.await.expect("the queue is unbound");
}

#[test]
fn a_stop_while_they_wait_is_clean_counts_them_and_the_next_start_publishes_them() {
    const FILES: usize = 300;
    let url = broker::shared().vhost();
    let (_root, data, state) = directories();
    let service = watch(&data, &url, &state).spawn();
    service.wait_ready();
    write_files(&data, "file", FILES);
    wait_until_unroutable(&service, FILES);
    let ended = service.stop();
    assert_eq!(left(&ended), FILES, "{}", ended.stderr);
    assert!(!ended.stderr.contains("still in progress"), "nobody waits for what nobody can say:\n{}", ended.stderr);

    let consumer = Consumer::bind(&url);
    let service = watch(&data, &url, &state).spawn();
    service.wait_log("that the ledger is empty", |line| line.contains("the ledger holds 0 of 300 files"));
    assert!(consumer.wait_until(PATIENCE, |all| all.len() >= FILES), "{}", service.stderr());
    assert_eq!(left(&service.stop()), 0);
    assert_once_each(&consumer.drain(), FILES);
}

#[test]
fn a_connection_lost_while_they_wait_ends_it_and_they_are_counted() {
    let broker = broker::shared();
    let url = broker.vhost();
    let vhost = url.rsplit('/').next().unwrap();
    let (_root, data, state) = directories();
    let mut service = watch(&data, &url, &state).spawn();
    service.wait_ready();
    write_files(&data, "file", 20);
    wait_until_unroutable(&service, 20);
    let deadline = Instant::now() + PATIENCE;
    while service.is_running() {
        assert!(Instant::now() < deadline, "it goes on without a broker:\n{}", service.stderr());
        broker.rabbitmqctl(&["close_all_connections", "--vhost", vhost, "by a test"]);
    }
    let ended = service.wait_exit().expect_code(1);
    assert_eq!((errors(&ended).len(), left(&ended)), (1, 20), "{}", ended.stderr);
}

#[test]
fn an_exchange_deleted_while_they_wait_is_one_error_line() {
    let url = broker::shared().vhost();
    let (_root, data, state) = directories();
    let service = watch(&data, &url, &state).spawn();
    service.wait_ready();
    write_files(&data, "file", 20);
    wait_until_unroutable(&service, 20);
    Queue::declare(&url).with(async |channel| {
        channel.exchange_delete(EXCHANGE.into(), ExchangeDeleteOptions::default()).await.expect("deleted");
    });
    let ended = service.wait_exit().expect_code(1);
    assert_eq!((errors(&ended).len(), left(&ended)), (1, 20), "{}", ended.stderr);
    assert!(errors(&ended)[0].contains("NOT_FOUND"), "{}", ended.stderr);
}

#[test]
fn what_is_rejected_and_what_is_returned_all_comes_once() {
    const FILES: usize = 60;
    let url = broker::shared().vhost();
    let (_root, data, state) = directories();
    let queue = Queue::declare_with_room_for(&url, 5);
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
    let deadline = Instant::now() + PATIENCE;
    while messages.len() < FILES {
        assert!(Instant::now() < deadline, "{} came:\n{}", messages.len(), service.stderr());
        messages.extend(queue.take());
    }
    wait_for_metrics(&socket, "every confirm", |seen| seen["apollonia_messages_confirmed_total"] == FILES as f64);
    assert_eq!(left(&service.stop()), 0);
    messages.extend(queue.take());
    assert_once_each(&messages, FILES);
}

#[test]
fn a_broker_that_takes_nothing_while_they_wait_does_not_keep_it_from_stopping() {
    let broker = Broker::start_with(1);
    let url = broker.vhost();
    let (_root, data, state) = directories();
    let service = watch(&data, &url, &state).spawn();
    service.wait_ready();
    write_files(&data, "file", 20);
    wait_until_unroutable(&service, 20);
    broker.rabbitmqctl(&["set_vm_memory_high_watermark", "0"]);
    let socket = service.control_socket();
    service.wait_log("that the broker takes no messages", |line| line.contains("takes no messages"));
    let (status, _, body) = get(&socket, "/ready");
    assert!(
        status == 503 && body.contains("takes no messages") && body.contains("no queue is bound"),
        "{status} {body}"
    );
    assert_eq!(health(&socket).0, 200);
    assert_eq!(left(&service.stop()), 20);

    // And one that waits for the broker alone is not ready, and healthy.
    broker.rabbitmqctl(&["set_vm_memory_high_watermark", "0.6"]);
    let consumer = Consumer::bind(&url);
    let service = watch(&data, &url, &state).spawn();
    service.wait_ready();
    assert!(consumer.wait_until(PATIENCE, |all| all.len() >= 20), "{}", service.stderr());
    broker.rabbitmqctl(&["set_vm_memory_high_watermark", "0"]);
    fs::write(data.join("blocked"), "content").unwrap();
    service.wait_log("that the broker takes no messages", |line| line.contains("takes no messages"));
    let asked = ask_whether_ready(&service.control_socket()).expect_code(1);
    assert!(asked.stderr.contains("not ready: the broker takes no messages"), "{}", asked.stderr);
    let ended = service.stop();
    assert_eq!(left(&ended), 1, "{}", ended.stderr);
}

#[test]
fn scan_waits_for_a_queue_and_says_so() {
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
fn it_counts_as_done_when_that_was_asked_for() {
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
fn a_queue_that_is_emptied_and_deleted_is_waited_for_again() {
    let url = broker::shared().vhost();
    let (_root, data, state) = directories();
    let queue = Queue::declare(&url);
    queue.bind();
    let service = watch(&data, &url, &state).spawn();
    service.wait_ready();
    let socket = service.control_socket();
    for round in 1..=3 {
        write_files(&data, &format!("seen-{round}"), 10);
        wait_for_metrics(&socket, "the confirms", |seen| {
            seen["apollonia_messages_confirmed_total"] == (20 * round - 10) as f64
        });
        queue.with(async |channel| {
            channel.queue_purge(QUEUE.into(), QueuePurgeOptions::default()).await.expect("purged");
            channel.queue_delete(QUEUE.into(), Default::default()).await.expect("deleted");
        });
        write_files(&data, &format!("unseen-{round}"), 10);
        wait_until_unroutable(&service, 10);
        queue.bind();
        wait_for_metrics(&socket, "the others' confirms", |seen| {
            seen["apollonia_messages_confirmed_total"] == (20 * round) as f64
        });
        assert_once_each(&queue.take(), 10);
    }
    let ended = service.stop();
    let warnings = ended.stderr.lines().filter(|line| line.contains("WARN")).count();
    assert_eq!(warnings, 1, "once a minute:\n{}", ended.stderr);
}
