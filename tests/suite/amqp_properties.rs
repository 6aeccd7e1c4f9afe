//! The properties and headers that only AMQP carries, and the exchange.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use lapin::ExchangeKind;
use lapin::options::ExchangeDeclareOptions;
use lapin::types::FieldTable;

use crate::support::broker;
use crate::support::consumer::{EXCHANGE, block_on, connect, declare_exchange};
use crate::support::message::Message;
use crate::support::setup::Setup;
use crate::support::world::{World, directories, of_name};

fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.expect("after 1970").as_secs()
}

#[test]
fn the_exchange_is_durable_fanout_and_outlives_its_last_queue() {
    let (_root, data, _) = directories();
    let url = broker::shared().vhost();
    let service = Setup::watch(&data, &url).spawn();
    service.wait_ready();
    block_on(async {
        let connection = connect(&url).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        let passive = ExchangeDeclareOptions { passive: true, ..Default::default() };
        channel
            .exchange_declare(EXCHANGE.into(), ExchangeKind::Fanout, passive, FieldTable::default())
            .await
            .expect("the exchange exists before the service is ready");
        // The broker refuses to declare it again in any other form.
        declare_exchange(&channel, ExchangeKind::Fanout).await;
    });
    service.stop();
    let kinds = broker::shared().rabbitmqctl(&[
        "-q",
        "list_exchanges",
        "-p",
        broker::vhost_of(&url),
        "name",
        "type",
        "durable",
        "auto_delete",
        "internal",
    ]);
    let ours = kinds.lines().find(|line| line.starts_with(EXCHANGE));
    assert_eq!(ours, Some("apollonia\tfanout\ttrue\tfalse\tfalse"), "{kinds}");
}

#[test]
fn every_amqp_property_is_as_written() {
    let mut world = World::start();
    let before = now();
    world.write("file", "content");
    let message = world.wait_for_one("file");
    let envelope = message.envelope();
    assert_eq!(envelope.exchange, "apollonia");
    assert_eq!(envelope.routing_key, "file.created");
    let properties = &envelope.properties;
    let text = |value: &Option<lapin::types::ShortString>| value.as_ref().map(|it| it.to_string());
    assert_eq!(*properties.delivery_mode(), Some(2));
    assert_eq!(text(properties.content_type()).as_deref(), Some("application/json"));
    assert_eq!(text(properties.app_id()).as_deref(), Some("apollonia-ingestor"));
    let timestamp = properties.timestamp().expect("a timestamp");
    assert!((before..=now()).contains(&timestamp), "timestamp {timestamp}, test began {before}");
    assert!(is_hex(message.message_id(), 32), "message id {:?}", message.message_id());
    assert_eq!(text(properties.content_encoding()), None, "JSON is no encoding");
    assert_eq!(text(properties.expiration()), None, "no message expires");
    assert_eq!(message.path_bytes_header(), None, "the name is UTF-8");
}

#[test]
fn the_same_version_has_the_same_message_id_whoever_publishes_it() {
    let mut world = World::start();
    world.write("one", "content");
    world.write("other", "content");
    let by_watch = id(&[world.wait_for_one("one")], "one");
    world.stop_service();

    let by_scan = scan(&mut world, 1);
    assert_eq!(id(&by_scan, "one"), by_watch, "watch, then scan");
    let again = scan(&mut world, 2);
    assert_eq!(id(&again, "one"), by_watch, "scan, then scan");

    world.launch(|setup| setup.args(&["--catch-up", "all"]));
    let caught_up = world.wait_for("one", 4);
    assert_eq!(id(&caught_up, "one"), by_watch, "watch again with --catch-up all");
    assert_ne!(id(&caught_up, "one"), id(&again, "other"), "another path is another message");
}

#[test]
fn another_version_has_another_message_id() {
    let mut world = World::start();
    let mut ids = Vec::new();
    for (count, content) in ["a", "b", "a"].iter().enumerate() {
        world.write("file", content);
        ids.push(world.wait_for("file", count + 1)[count].message_id().to_owned());
    }
    // The third has the content of the first, but is a version of its own.
    assert!(ids[0] != ids[1] && ids[1] != ids[2] && ids[0] != ids[2], "{ids:?}");

    fs::rename(world.path("file"), world.path("renamed")).unwrap();
    let renamed = world.wait_for_one("renamed");
    assert!(!ids.contains(&renamed.message_id().to_owned()), "another path, the same id");
}

fn id(messages: &[Message], name: &str) -> String {
    of_name(messages, name).last().unwrap_or_else(|| panic!("no message for {name}")).message_id().to_owned()
}

/// Scans to the broker and returns all messages. This is scan number `round`, after a watch that has published each
/// file once.
fn scan(world: &mut World, round: usize) -> Vec<Message> {
    Setup::new(&["scan"]).arg(&world.data).env("AMQP_CONNECTION_STRING", &world.url).run().expect_code(0);
    world.wait_for("one", 1 + round);
    world.wait_for("other", 1 + round);
    world.consumer.messages()
}
