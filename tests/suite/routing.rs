//! `--exchange`, `--exchange-type` and `--routing-key`: each message goes to the exchange that is set, by the key of its file.

use std::fs;
use std::path::Path;

use lapin::ExchangeKind;
use lapin::options::{BasicGetOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::FieldTable;

use crate::support::broker::{self, vhost_of};
use crate::support::control::{ready_command, wait_for_metrics};
use crate::support::message::Message;
use crate::support::queue::Queue;
use crate::support::service::Service;
use crate::support::setup::Setup;
use crate::support::wait::retry;
use crate::support::world::directories;

const QUEUE: &str = "kept";

/// Declares a durable exchange, and a queue that is bound to it by this key.
fn bind(url: &str, exchange: &str, kind: ExchangeKind, key: &str) {
    Queue::declared(url, QUEUE).with(async |channel| {
        let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        channel.exchange_declare(exchange.into(), kind, durable, FieldTable::default()).await.expect("an exchange");
        let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        channel.queue_declare(QUEUE.into(), durable, FieldTable::default()).await.expect("a queue");
        let options = QueueBindOptions::default();
        let bound = channel.queue_bind(QUEUE.into(), exchange.into(), key.into(), options, FieldTable::default());
        bound.await.expect("the queue is bound");
    });
}

/// Takes all messages out of the queue: the exchange, the routing key and the file's name of each, sorted.
fn taken(url: &str) -> Vec<(String, String, String)> {
    let mut taken = Queue::declared(url, QUEUE).with(async |channel| {
        let mut taken = Vec::new();
        while let Some(got) =
            channel.basic_get(QUEUE.into(), BasicGetOptions { no_ack: true }).await.expect("an answer")
        {
            let name = Message::parse(&got.delivery.data).name().to_owned();
            taken.push((got.delivery.exchange.to_string(), got.delivery.routing_key.to_string(), name));
        }
        taken
    });
    taken.sort();
    taken
}

fn setup(command: &str, data: &Path, url: &str, words: &[&str]) -> Setup {
    Setup::new(&[command]).env("DATA_DIRECTORY", data).env("AMQP_CONNECTION_STRING", url).args(words)
}

/// A `listen` whose queue is bound beside the test's own.
#[track_caller]
fn listen(data: &Path, url: &str, words: &[&str]) -> Service {
    let service = setup("listen", data, url, words).spawn();
    service.wait_ready();
    service
}

#[test]
fn a_topic_exchange_gets_each_file_by_its_own_key_and_listen_all_of_them() {
    const KEY: &str = "{root}.{dir}.{ext}.{event}";
    let url = broker::shared().vhost();
    let (_root, data, _) = directories();
    bind(&url, "files", ExchangeKind::Topic, "#");
    let deep = format!("{}/{}", "é".repeat(100), "x".repeat(100));
    for name in ["plain", "a/b.c/track.tar.gz", "a/.hidden", &format!("{deep}/long.txt")] {
        let path = data.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, name).unwrap();
    }
    let words = ["--exchange", "files", "--exchange-type", "topic", "--routing-key", KEY];
    let listener = listen(&data, &url, &[&words[..], &["--count", "4"]].concat());
    setup("scan", &data, &url, &words).recursive().run().expect_code(0);
    let keys = |name: &str| {
        let names = ["plain", "track.tar.gz", ".hidden", "long.txt"];
        let keys = ["data...IN_CREATE", "data.a.b.c.gz.IN_CREATE", "data.a..IN_CREATE"].map(str::to_owned);
        // As much of it as the protocol carries, in whole characters: 255 bytes, of which 5 stand before the path.
        let long = format!("data.{}.{}", "é".repeat(100), "x".repeat(49));
        let of = |(at, _): (usize, &&str)| keys.get(at).unwrap_or(&long).clone();
        names.iter().enumerate().find(|(_, known)| **known == name).map(of).expect("a known name")
    };
    let taken = taken(&url);
    assert_eq!(taken.len(), 4, "{taken:?}");
    for (exchange, key, name) in taken {
        assert_eq!((exchange.as_str(), key), ("files", keys(&name)), "{name}");
    }
    assert_eq!(listener.wait_exit().expect_code(0).messages().len(), 4);
}

#[test]
fn a_direct_exchange_delivers_by_the_whole_key_to_listen_too() {
    let url = broker::shared().vhost();
    let (_root, data, _) = directories();
    bind(&url, "files", ExchangeKind::Direct, "landed");
    fs::write(data.join("file"), "content").unwrap();
    let words = ["--exchange", "files", "--exchange-type", "direct", "--routing-key"];
    let listener = listen(&data, &url, &[&words[..], &["landed", "--count", "1"]].concat());
    setup("scan", &data, &url, &[&words[..], &["landed"]].concat()).run().expect_code(0);
    assert_eq!(taken(&url), [("files".to_owned(), "landed".to_owned(), "file".to_owned())]);
    assert_eq!(listener.wait_exit().expect_code(0).messages().len(), 1);
    let doctor = setup("doctor", &data, &url, &words[..4]).run().expect_code(0);
    assert!(doctor.stdout.contains("the exchange `files` is there"), "{}", doctor.stdout);
    let refused = setup("listen", &data, &url, &[&words[..], &["{ext}"]].concat()).run().expect_code(2);
    refused.assert_one_line(&["--routing-key (INGESTOR_ROUTING_KEY)"]);
}

#[test]
fn one_directory_can_go_to_two_exchanges_and_each_service_names_its_own() {
    let url = broker::shared().vhost();
    let (_root, data, _) = directories();
    bind(&url, "one", ExchangeKind::Fanout, "");
    let watch = |exchange| setup("watch", &data, &url, &["--exchange", exchange]).spawn();
    let services = ["one", "apollonia", "other"].map(watch);
    services.iter().for_each(Service::wait_ready);
    fs::write(data.join("file"), "content").unwrap();
    let wait = |service: &Service, name, count| {
        wait_for_metrics(&service.control_socket(), name, |seen| seen.get(name) == Some(&count));
    };
    wait(&services[0], "apollonia_messages_confirmed_total", 1.0);
    // Nothing is bound to the others, and each says of which exchange that is true.
    for (service, exchange) in services[1..].iter().zip(["apollonia", "other"]) {
        wait(service, "apollonia_unroutable_messages", 1.0);
        let line = ready_command(&service.control_socket()).expect_code(1).stderr;
        assert!(line.contains(&format!("no queue is bound to the exchange `{exchange}`")), "{line}");
        let warned = format!("no queue is bound to the exchange `{exchange}`");
        service.wait_log("a warning", |line| line.contains("WARN") && line.contains(&warned));
    }
    let fences = retry("three fences", || {
        let queues = broker::shared().queues(vhost_of(&url));
        let fences = queues.iter().filter(|name| name.starts_with("apollonia-ingestor-")).count();
        if fences == 3 { Ok(fences) } else { Err(format!("{queues:?}")) }
    });
    assert_eq!(fences, services.len());
    services.into_iter().for_each(|service| drop(service.stop()));
}

#[test]
fn a_file_that_no_queue_asks_for_waits_and_holds_up_no_other() {
    let url = broker::shared().vhost();
    let (_root, data, _) = directories();
    bind(&url, "files", ExchangeKind::Topic, "flac.#");
    let words = ["--exchange", "files", "--exchange-type", "topic", "--routing-key", "{ext}.{dir}"];
    let service = setup("watch", &data, &url, &words).spawn();
    service.wait_ready();
    let write = |extension: &str, range: std::ops::Range<usize>| {
        range.for_each(|number| fs::write(data.join(format!("{number}.{extension}")), "content").unwrap());
    };
    let wait = |confirmed: f64, unroutable: f64| {
        wait_for_metrics(&service.control_socket(), "what is asked for, and no more", |seen| {
            seen["apollonia_messages_confirmed_total"] == confirmed
                && seen.get("apollonia_unroutable_messages") == Some(&unroutable)
        });
    };
    write("txt", 0..20);
    wait(0.0, 20.0);
    let named = "no queue is bound to the exchange `files` for the routing key \"txt.";
    service.wait_log("the key that nobody asks for", |line| line.contains("WARN") && line.contains(named));
    write("flac", 0..20);
    wait(20.0, 20.0);
    ready_command(&service.control_socket()).expect_code(1);
    bind(&url, "files", ExchangeKind::Topic, "txt.#");
    wait(40.0, 0.0);
    ready_command(&service.control_socket()).expect_code(0);
    service.stop();
    let names: std::collections::BTreeSet<String> = taken(&url).into_iter().map(|(_, _, name)| name).collect();
    assert_eq!(names.len(), 40);
}
