//! The properties and headers that only AMQP carries, and the exchange.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use lapin::ExchangeKind;
use lapin::options::ExchangeDeclareOptions;
use lapin::types::{AMQPValue, FieldTable};

use crate::support::broker::{self, binary, vhost_of};
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
    let [vhost, name] = [vhost_of(&url), EXCHANGE].map(binary);
    let described = broker::shared().eval(&format!(
        "{{ok, Exchange}} = rabbit_exchange:lookup(rabbit_misc:r({vhost}, exchange, {name})), \
         rabbit_exchange:info(Exchange, [type, durable, auto_delete, internal])"
    ));
    assert_eq!(described, "[{type,fanout},{durable,true},{auto_delete,false},{internal,false}]");
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
    assert_eq!(text(properties.kind()).as_deref(), Some("apollonia.file.v1"));
    assert_eq!(text(properties.app_id()).as_deref(), Some("apollonia-ingestor"));
    let timestamp = properties.timestamp().expect("a timestamp");
    assert!((before..=now()).contains(&timestamp), "timestamp {timestamp}, test began {before}");
    assert!(is_hex(message.message_id(), 32), "message id {:?}", message.message_id());
    assert_eq!(text(properties.content_encoding()), None, "JSON is no encoding");
    assert_eq!(text(properties.expiration()), None, "no message expires");
    assert_eq!(message.path_bytes_header(), None, "the name is UTF-8");
    assert_eq!(message.moved_from_header(), None, "it was not renamed");
}

/// The body is as ever: the header alone says where a file was renamed from.
#[test]
fn a_rename_inside_the_data_directories_carries_the_former_path() {
    let mut world = World::without_service();
    fs::create_dir(world.path("sub")).unwrap();
    let (_root, other, _) = directories();
    let both = [world.data.as_os_str(), other.as_os_str()].map(OsStr::as_bytes).join(&b':');
    world.launch(|setup| setup.recursive().env("DATA_DIRECTORY", OsStr::from_bytes(&both)));
    let text = |path: &Path| AMQPValue::LongString(path.to_str().unwrap().into());
    world.write("file.part", "left out by its name");
    for (from, to) in [
        (world.path("file.part"), world.path("file")),
        (world.path("file"), world.path("sub/file")),
        (world.path("sub/file"), other.join("moved")),
        (other.join("moved"), world.path("back")),
    ] {
        fs::rename(&from, &to).unwrap();
        let name =
            format!("{}/{}", to.parent().unwrap().file_name().unwrap().display(), to.file_name().unwrap().display());
        let message = world.wait_for_one(&name);
        assert_eq!((message.event(), message.moved_from_header()), ("IN_MOVED_TO", Some(&text(&from))));
    }
    // Not UTF-8: bytes, as clients of most languages make text of a long string.
    let odd = world.data.join(OsStr::from_bytes(b"odd\xff"));
    fs::write(&odd, "odd").unwrap();
    world.pass_sentinel();
    fs::rename(&odd, world.path("even")).unwrap();
    let bytes = AMQPValue::ByteArray(odd.as_os_str().as_bytes().into());
    assert_eq!(world.wait_for_one("even").moved_from_header(), Some(&bytes));
    // Moved in from outside, and written: neither was renamed inside.
    fs::write(world.outside.join("in"), "in").unwrap();
    fs::rename(world.outside.join("in"), world.path("in")).unwrap();
    assert_eq!(world.wait_for_one("in").moved_from_header(), None);
    world.write("even", "written");
    assert_eq!(world.wait_for("even", 2)[1].moved_from_header(), None);
    world.finish();
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
