//! An exchange that somebody else has declared is used as it is where it can be, and otherwise one line says what differs. No
//! line advises to delete it, because it is others' too.

use lapin::ExchangeKind;
use lapin::options::{ExchangeDeclareOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};

use crate::support::broker::{self, vhost_of};
use crate::support::consumer::{EXCHANGE, bind_queue};
use crate::support::queue::Queue;
use crate::support::setup::Setup;
use crate::support::world::directories;

/// How exchanges are declared that outlive the broker.
const DURABLE: ExchangeDeclareOptions =
    ExchangeDeclareOptions { passive: false, durable: true, auto_delete: false, internal: false, nowait: false };

/// Declares an exchange, with an alternate exchange where `alternate` says so, which need not exist.
fn declare(url: &str, name: &str, kind: ExchangeKind, options: ExchangeDeclareOptions, alternate: bool) {
    Queue::declared(url, "").with(async |channel| {
        let mut arguments = FieldTable::default();
        if alternate {
            arguments.insert("alternate-exchange".into(), AMQPValue::LongString("unrouted".into()));
        }
        channel.exchange_declare(name.into(), kind, options, arguments).await.expect("the test's exchange");
    });
}

/// Declares a queue and binds it to the service's exchange, which is there.
fn bind(url: &str, queue: &str) {
    Queue::declared(url, queue).with(async |channel| {
        let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        channel.queue_declare(queue.into(), durable, FieldTable::default()).await.expect("a queue");
        bind_queue(channel, queue).await;
    });
}

fn run(command: &str, data: &std::path::Path, url: &str) -> Setup {
    Setup::new(&[command]).env("DATA_DIRECTORY", data).env("AMQP_CONNECTION_STRING", url)
}

#[test]
fn an_exchange_with_arguments_of_its_own_is_used_as_it_is() {
    let url = broker::shared().vhost();
    declare(&url, EXCHANGE, ExchangeKind::Fanout, DURABLE, true);
    bind(&url, "kept");
    let (_root, data, _) = directories();
    std::fs::write(data.join("file"), "content").unwrap();
    let ended = run("scan", &data, &url).run().expect_code(0);
    assert!(ended.stderr.contains("alternate-exchange") && ended.warnings().is_empty(), "{}", ended.stderr);
    assert_eq!(Queue::declared(&url, "kept").take().len(), 1);
    let doctor = run("doctor", &data, &url).run().expect_code(0);
    assert!(doctor.stdout.contains("(alternate-exchange) and can be used"), "{}", doctor.stdout);
    // The broker would refuse to declare it in any other form.
    declare(&url, EXCHANGE, ExchangeKind::Fanout, DURABLE, true);
}

#[test]
fn an_exchange_that_cannot_be_used_is_one_line_that_says_what_differs() {
    let url = broker::shared().vhost();
    let (_root, data, _) = directories();
    let transient = ExchangeDeclareOptions { durable: false, ..DURABLE };
    let internal = ExchangeDeclareOptions { internal: true, ..DURABLE };
    let internal_and_auto = ExchangeDeclareOptions { auto_delete: true, ..internal };
    for (name, kind, options, alternate, words) in [
        ("direct", ExchangeKind::Direct, DURABLE, false, ["arg 'type'", "--exchange-type"]),
        ("headers", ExchangeKind::Headers, transient, true, ["arg 'type'", "--exchange-type"]),
        ("transient", ExchangeKind::Fanout, transient, true, ["arg 'durable'", "--exchange (INGESTOR_EXCHANGE)"]),
        ("internal", ExchangeKind::Fanout, internal, true, ["arg 'internal'", "--exchange (INGESTOR_EXCHANGE)"]),
        ("both", ExchangeKind::Fanout, internal_and_auto, false, ["arg 'internal'", "--exchange (INGESTOR_EXCHANGE)"]),
    ] {
        declare(&url, name, kind, options, alternate);
        let ended = run("watch", &data, &url).args(&["--exchange", name]).env("LOG_LEVEL", "WARN").run().expect_code(1);
        ended.assert_one_line(&[&format!("exchange '{name}'")]);
        for word in words {
            assert!(ended.stderr.contains(word), "{word:?} is not in {}", ended.stderr);
        }
        assert!(!ended.stderr.contains("delete"), "{}", ended.stderr);
    }
    // One that goes with its last queue can be used, and is warned of; an argument beside that hides it.
    let auto = ExchangeDeclareOptions { auto_delete: true, ..DURABLE };
    for (name, alternate) in [("auto", false), ("auto with an argument", true)] {
        declare(&url, name, ExchangeKind::Fanout, auto, alternate);
        let ended = run("listen", &data, &url).args(&["--exchange", name, "--timeout", "1"]).run().expect_code(0);
        assert!(ended.warnings()[0].contains("auto_delete"), "{}", ended.stderr);
    }
}

#[test]
fn a_user_who_may_not_declare_the_exchange_uses_the_one_that_is_there() {
    let broker = broker::shared();
    let owner = broker.vhost();
    let (_root, data, _) = directories();
    let url = broker.user("declares-nothing", vhost_of(&owner), ["^$", ".*", ".*"]);
    let watch = || run("watch", &data, &url);
    let ended = watch().env("LOG_LEVEL", "ERROR").run().expect_code(1);
    ended.assert_one_line(&["`apollonia` does not exist, and this user may not declare it"]);
    assert!(ended.stderr.contains("`configure`") && !ended.stderr.contains("hunter2"), "{}", ended.stderr);

    // Durable and of the right type, which the broker does not tell this user.
    let queue = Queue::declare(&owner, "kept");
    queue.bind();
    let service = watch().spawn();
    service.wait_ready();
    std::fs::write(data.join("file"), "content").unwrap();
    crate::support::control::wait_for_metrics(&service.control_socket(), "a confirm", |seen| {
        seen["apollonia_messages_confirmed_total"] == 1.0
    });
    let log = service.stop().stderr;
    assert!(log.contains("may not declare the exchange `apollonia`"), "{log}");
    assert!(log.contains("may not declare the queue apollonia-ingestor-"), "{log}");
    assert_eq!(queue.take().len(), 1);
    let doctor = run("doctor", &data, &url).run().expect_code(0);
    let line = doctor.stdout.lines().find(|line| line.contains("broker: ")).expect("the check");
    for word in ["warn", "is not this user's to declare", "apollonia-ingestor-", "`configure`"] {
        assert!(line.contains(word), "{word:?} is not in {line}");
    }
}
