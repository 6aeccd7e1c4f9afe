//! `--reconnect-seconds`: the broker goes away and comes back, and the service goes on.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::PathBuf;

use lapin::ExchangeKind;
use lapin::options::{ExchangeDeclareOptions, QueueBindOptions};
use lapin::types::FieldTable;
use tempfile::TempDir;

use crate::support::broker::{self, Broker, vhost_of};
use crate::support::consumer::Consumer;
use crate::support::control::{health_command, metrics, ready_command, wait_for_metrics};
use crate::support::files::sha256;
use crate::support::link::Link;
use crate::support::message::Message;
use crate::support::queue::Queue;
use crate::support::service::Service;
use crate::support::setup::Setup;
use crate::support::wait::{TIMEOUT, retry};
use crate::support::world::directories;

/// A service behind a link, and a consumer that the link does not touch.
struct Linked {
    data: PathBuf,
    state: PathBuf,
    direct: String,
    url: String,
    link: Link,
    consumer: Consumer,
    _root: TempDir,
}

impl Linked {
    fn new() -> Self {
        let (root, data, outside) = directories();
        let broker = broker::shared();
        let direct = broker.vhost();
        let link = Link::to(broker.port());
        let (url, consumer) = (link.url(&direct), Consumer::bind(&direct));
        Self { data, state: outside, direct, url, link, consumer, _root: root }
    }

    fn setup(&self, seconds: u32) -> Setup {
        Setup::watch(&self.data, &self.url)
            .env("STATE_DIRECTORY", &self.state)
            .env("INGESTOR_RECONNECT_SECONDS", seconds.to_string())
    }

    fn watch(&self, seconds: u32) -> Service {
        let service = self.setup(seconds).spawn();
        service.wait_ready();
        service
    }

    fn write(&self, name: &str, content: &str) {
        fs::write(self.data.join(name), content).unwrap();
    }

    #[track_caller]
    fn wait_until(&self, what: &str, service: &Service, enough: impl Fn(&[Message]) -> bool) {
        assert!(self.consumer.wait_until(TIMEOUT, enough), "{what} did not come:\n{}", service.stderr());
    }

    /// Publishes these files, whose confirms do not arrive, and cuts the link.
    #[track_caller]
    fn lose_the_confirms_of(&self, service: &Service, names: &[&str]) {
        self.link.hold_answers();
        let before = self.consumer.messages().len();
        names.iter().for_each(|name| self.write(name, name));
        self.wait_until("the messages", service, |messages| messages.len() >= before + names.len());
        self.link.cut();
        service.wait_log("that the connection is lost", |line| line.contains("WARN") && line.contains("lost"));
    }
}

/// The ids and hashes of a name's messages, in order.
fn of(messages: &[Message], name: &str) -> Vec<(String, String)> {
    let id = |message: &Message| message.envelope.as_ref()?.properties.message_id().as_ref().map(ToString::to_string);
    let of_name = messages.iter().filter(|message| message.name() == name);
    of_name.map(|message| (id(message).expect("an id"), message.sha256().to_owned())).collect()
}

#[test]
fn what_was_unconfirmed_is_published_again_with_its_id_and_before_what_came_later() {
    let linked = Linked::new();
    let service = linked.watch(60);
    let socket = service.control_socket();
    linked.lose_the_confirms_of(&service, &["rewritten", "kept"]);

    // Alive, because a restart mends nothing, and not ready.
    assert!(health_command(&socket).expect_code(0).stdout.contains("no connection to the broker"));
    assert!(ready_command(&socket).expect_code(1).stderr.contains("no connection to the broker"));
    let seen = metrics(&socket);
    assert_eq!([seen["apollonia_broker_connected"], seen["apollonia_reconnects_total"]], [0.0, 0.0]);
    assert_eq!(seen["apollonia_unconfirmed_messages"], 2.0);
    linked.write("rewritten", "another content");
    linked.write("later", "later");

    linked.link.mend();
    let line = service.wait_log("that it is connected", |line| line.contains("connected again"));
    assert!(line.contains("INFO") && line.contains(" 2 messages"), "{line}");
    wait_for_metrics(&socket, "every confirm", |seen| seen["apollonia_messages_confirmed_total"] == 4.0);
    ready_command(&socket).expect_code(0);
    let seen = metrics(&socket);
    assert_eq!([seen["apollonia_broker_connected"], seen["apollonia_reconnects_total"]], [1.0, 1.0]);
    let ended = service.stop();
    assert_eq!(ended.warnings().len(), 1, "one that it was lost:\n{}", ended.stderr);
    assert!(ended.stderr.contains(", 0 left unpublished"), "{}", ended.stderr);

    let messages = linked.consumer.drain();
    let [kept, rewritten] = ["kept", "rewritten"].map(|name| of(&messages, name));
    assert!(kept.len() == 2 && kept[0] == kept[1], "one repeat: {kept:?}");
    assert!(rewritten.len() == 3 && rewritten[0] == rewritten[1], "one repeat: {rewritten:?}");
    assert_eq!(rewritten[2].1, sha256(b"another content"));
    assert_eq!(of(&messages, "later").len(), 1);

    // All of it is in the ledger.
    linked.watch(60).stop();
    assert_eq!(linked.consumer.drain().len(), messages.len());
}

#[test]
fn without_a_connection_for_so_long_it_ends_with_an_error_and_the_next_start_publishes_the_rest() {
    let linked = Linked::new();
    let service = linked.watch(1);
    linked.lose_the_confirms_of(&service, &["file"]);
    let ended = service.wait_exit().expect_code(1);
    ended.assert_one_error("--reconnect-seconds");
    assert_eq!(ended.warnings().len(), 1, "one that it was lost:\n{}", ended.stderr);
    assert!(!ended.stderr.contains(":guest@") && ended.stderr.contains(", 1 left unpublished"), "{}", ended.stderr);

    linked.link.mend();
    let service = linked.watch(1);
    linked.wait_until("the repeat", &service, |messages| of(messages, "file").len() == 2);
    service.stop();
    // At its start no broker is waited for.
    linked.link.cut();
    linked.setup(60).run().expect_code(1).assert_one_error("broker");
}

#[test]
fn scan_connects_again_too() {
    let (_root, data, _) = directories();
    fs::write(data.join("file"), "file").unwrap();
    let broker = broker::shared();
    let direct = broker.vhost();
    let link = Link::to(broker.port());
    // Without a queue it does not end.
    let scan = |seconds: &str| {
        let setup = Setup::new(&["scan", "--reconnect-seconds", seconds]).env("DATA_DIRECTORY", &data);
        let service = setup.env("AMQP_CONNECTION_STRING", link.url(&direct)).spawn();
        service.wait_log("that no queue is bound", |line| line.contains("no queue is bound"));
        link.cut();
        service.wait_log("that the connection is lost", |line| line.contains("WARN") && line.contains("lost"));
        service
    };
    scan("1").wait_exit().expect_code(1).assert_one_error("--reconnect-seconds");
    link.mend();
    let service = scan("60");
    let consumer = Consumer::bind(&direct);
    link.mend();
    let ended = service.wait_exit().expect_code(0);
    assert!(ended.stderr.contains("connected again"), "{}", ended.stderr);
    assert_eq!(of(&consumer.drain(), "file").len(), 1);
}

#[test]
fn a_signal_ends_it_while_the_broker_is_away() {
    let linked = Linked::new();
    let idle = linked.watch(60);
    // Before its end nobody can say that nothing is left.
    idle.wait_log("the end of the first rescan", |line| line.contains("rescan finished"));
    linked.link.cut();
    idle.wait_log("that the connection is lost", |line| line.contains("WARN") && line.contains("lost"));
    let ended = idle.stop();
    assert!(ended.stderr.contains(", 0 left unpublished") && ended.errors().is_empty(), "{}", ended.stderr);

    linked.link.mend();
    let service = linked.watch(60);
    linked.lose_the_confirms_of(&service, &["one", "two"]);
    let ended = service.stop();
    assert!(ended.stderr.contains("2 files were still in progress"), "{}", ended.stderr);
    assert!(ended.stderr.contains(", 2 left unpublished") && ended.errors().is_empty(), "{}", ended.stderr);

    linked.link.mend();
    let service = linked.watch(60);
    linked.wait_until("the repeats", &service, |messages| messages.len() == 4);
    service.stop();
}

/// Messages that wait for a queue by their keys go on waiting on the next connection, and all others are confirmed there.
#[test]
fn what_no_queue_takes_by_its_key_outlives_the_connection_and_holds_up_no_other() {
    let linked = Linked::new();
    let queue = Queue::declare(&linked.direct, "kept");
    let bind = |key: &'static str| {
        queue.with(async |channel| {
            let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
            let declared =
                channel.exchange_declare("files".into(), ExchangeKind::Topic, durable, FieldTable::default());
            declared.await.expect("an exchange");
            let options = QueueBindOptions::default();
            let bound = channel.queue_bind("kept".into(), "files".into(), key.into(), options, FieldTable::default());
            bound.await.expect("the queue is bound");
        });
    };
    bind("flac");
    let route = ["--exchange", "files", "--exchange-type", "topic", "--routing-key", "{ext}"];
    let service = linked.setup(60).args(&route).spawn();
    service.wait_ready();
    let socket = service.control_socket();
    let wait = |confirmed: f64, unroutable: f64| {
        wait_for_metrics(&socket, "what is asked for, and no more", |seen| {
            seen["apollonia_messages_confirmed_total"] == confirmed
                && seen["apollonia_unroutable_messages"] == unroutable
        });
    };
    (0..20).for_each(|number| linked.write(&format!("{number}.txt"), "content"));
    linked.write("before.flac", "content");
    wait(1.0, 20.0);
    linked.link.cut();
    linked.write("meanwhile.flac", "content");
    linked.write("meanwhile.txt", "content");
    service.wait_log("that the connection is lost", |line| line.contains("WARN") && line.contains("lost"));
    linked.link.mend();
    wait(2.0, 21.0);
    ready_command(&socket).expect_code(1);
    bind("txt");
    wait(23.0, 0.0);
    ready_command(&socket).expect_code(0);
    let ended = service.stop();
    assert!(ended.stderr.contains(", 0 left unpublished"), "{}", ended.stderr);
    let names: HashSet<String> = queue.take().iter().map(|message| message.name().to_owned()).collect();
    assert_eq!(names.len(), 23, "{names:?}");
}

#[test]
fn another_service_that_has_taken_over_meanwhile_is_waited_for() {
    let linked = Linked::new();
    let first = linked.watch(60);
    linked.link.cut();
    first.wait_log("that the connection is lost", |line| line.contains("WARN") && line.contains("lost"));
    let second = Setup::watch(&linked.data, &linked.direct).spawn();
    second.wait_ready();
    linked.link.mend();
    first.wait_log("that it waits for the other", |line| line.contains("waiting for its end"));
    assert!(!first.stderr().contains("connected again"), "{}", first.stderr());
    linked.write("file", "file");
    linked.wait_until("the other's message", &second, |messages| messages.len() == 1);
    second.stop();
    first.wait_log("that it is connected", |line| line.contains("connected again"));
    linked.wait_until("its own message", &first, |messages| messages.len() == 2);
    first.stop();
    assert_eq!(of(&linked.consumer.drain(), "file").len(), 2, "each has published it, with the same id");
}

/// All that a broker does to its connections: it closes them, hangs, dies, or is blocked when it closes them.
#[test]
fn whatever_the_broker_does_nothing_is_lost() {
    let mut broker = Broker::borrow();
    let url = broker.vhost();
    let (_root, data, _) = directories();
    let queue = Queue::declare(&url, "kept");
    queue.bind();
    let setup = Setup::watch(&data, &format!("{url}?heartbeat=1")).args(&["--reconnect-seconds", "120"]);
    let service = setup.spawn();
    service.wait_ready();
    let mut written = 0;
    let mut write = || {
        for _ in 0..50 {
            fs::write(data.join(format!("file-{written}")), format!("content {written}")).unwrap();
            written += 1;
        }
    };
    let reconnected = |times: usize| {
        retry("another connection", || {
            let log = service.stderr();
            if log.matches("connected again").count() >= times { Ok(()) } else { Err(log) }
        });
    };
    let vhost = vhost_of(&url);
    write();
    broker.close_connections(vhost);
    write();
    reconnected(1);
    broker.freeze();
    write();
    service.wait_log("that no heartbeat comes", |line| line.contains("no heartbeat"));
    broker.thaw();
    reconnected(2);
    write();
    broker.block();
    write();
    service.wait_log("that the broker takes no messages", |line| line.contains("takes no messages now"));
    broker.close_connections(vhost);
    write();
    broker.unblock();
    reconnected(3);
    write();
    broker.kill();
    write();
    broker.boot();
    reconnected(4);
    write();
    let mut seen = HashMap::<String, usize>::new();
    retry("every file's message", || {
        queue.take().iter().for_each(|message| *seen.entry(message.name().to_owned()).or_default() += 1);
        if seen.len() == written { Ok(()) } else { Err(format!("{} of {written}\n{}", seen.len(), service.stderr())) }
    });
    let ended = service.stop();
    assert!(ended.errors().is_empty() && ended.stderr.contains(", 0 left unpublished"), "{}", ended.stderr);
}

#[test]
fn a_virtual_host_that_is_deleted_and_made_again_is_an_outage() {
    let broker = broker::shared();
    let url = broker.vhost();
    let (_root, data, _) = directories();
    let service = Setup::watch(&data, &url).env("INGESTOR_RECONNECT_SECONDS", "120").spawn();
    service.wait_ready();
    broker.delete_vhost(vhost_of(&url));
    service.wait_log("that the connection is lost", |line| line.contains("connection_lost"));
    fs::write(data.join("file"), "content").unwrap();
    broker.add_vhost(vhost_of(&url));
    service.wait_log("that it has connected again", |line| line.contains("connected_again"));
    let consumer = Consumer::bind(&url);
    assert!(consumer.wait_until(TIMEOUT, |messages| !messages.is_empty()), "{}", service.stderr());
    service.stop();
}
