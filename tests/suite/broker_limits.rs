//! Each limit and each permission of the broker that keeps the service from its work is one line with its own cure.

use lapin::ExchangeKind;
use lapin::options::ExchangeDeclareOptions;
use lapin::types::FieldTable;

use crate::support::broker::{self, binary, vhost_of};
use crate::support::queue::Queue;
use crate::support::setup::Setup;
use crate::support::world::directories;

/// This command line ends with one error that contains all words.
#[track_caller]
fn assert_line(url: &str, words: &[&str], flags: &[&str]) {
    let (_root, data, _) = directories();
    std::fs::write(data.join("file"), "content").unwrap();
    let setup = Setup::watch(&data, url).args(flags).args(&["--catch-up", "all"]).env("LOG_LEVEL", "ERROR");
    let ended = setup.run().expect_code(1);
    ended.assert_one_line(&["broker amqp://"]);
    for word in words {
        assert!(ended.stderr.contains(word), "{word:?} is not in {}", ended.stderr);
    }
    for wrong in ["delete", "hunter2", ":guest@"] {
        assert!(!ended.stderr.contains(wrong), "{wrong:?} is in {}", ended.stderr);
    }
}

#[test]
fn each_limit_of_a_virtual_host_has_its_own_cure() {
    let broker = broker::shared();
    let url = broker.vhost();
    let vhost = binary(vhost_of(&url));
    let limit = |limits: &str| {
        broker.eval_to_ok(&format!("rabbit_vhost_limit:parse_set({vhost}, {}, <<\"test\">>)", binary(limits)));
    };
    limit(r#"{"max-queues": 0}"#);
    assert_line(&url, &["queue limit in vhost", "set_vhost_limits, max-queues"], &[]);
    limit(r#"{"max-connections": 0}"#);
    assert_line(&url, &["connection limit (0) is reached", "set_vhost_limits, max-connections"], &[]);
}

#[test]
fn each_limit_of_a_user_has_its_own_cure() {
    let broker = broker::shared();
    let url = broker.user("limited", vhost_of(&broker.vhost()), [".*"; 3]);
    let limit = |limits: &str| {
        let set = "rabbit_auth_backend_internal:set_user_limits";
        broker.eval_to_ok(&format!("{set}(<<\"limited\">>, {}, <<\"test\">>)", binary(limits)));
    };
    limit(r#"{"max-channels": 1}"#);
    assert_line(&url, &["maximum allowed user limit of (1)", "set_user_limits, max-channels"], &[]);
    limit(r#"{"max-connections": 0}"#);
    assert_line(&url, &["user connection limit (0)", "set_user_limits, max-connections"], &[]);
}

#[test]
fn each_missing_permission_has_its_own_cure() {
    let broker = broker::shared();
    let owner = broker.vhost();
    declare_topic(&owner);
    let url = broker.user("writes-nothing", vhost_of(&owner), [".*", "^$", ".*"]);
    assert_line(&url, &["access to exchange 'apollonia'", "`write`"], &[]);
    let url = broker.user("writes-few-topics", vhost_of(&owner), [".*"; 3]);
    let permission = ["writes-few-topics", vhost_of(&owner), "topics", "^a$", "^a$", "test"].map(binary).join(", ");
    broker.eval_to_ok(&format!("rabbit_auth_backend_internal:set_topic_permissions({permission})"));
    let flags = ["--exchange", "topics", "--exchange-type", "topic", "--routing-key", "b"];
    assert_line(&url, &["access to topic 'b'", "set_topic_permissions", "--routing-key"], &flags);
    assert_line(&broker.url("limited-nowhere:x", "t0"), &["Login was refused", "correct user, password"], &[]);
    assert_line(&broker.url("guest:guest", "no-such-vhost"), &["no-such-vhost not found", "add_vhost"], &[]);
    let elsewhere = url.replace(vhost_of(&url), "t0");
    assert_line(&elsewhere, &["access to vhost 't0' refused", "set_permissions -p"], &[]);
}

#[test]
fn an_exchange_that_the_broker_cannot_make_has_its_own_cure() {
    let url = broker::shared().vhost();
    assert_line(&url, &["unknown exchange type 'x-none'", "rabbitmq-plugins enable"], &["--exchange-type", "x-none"]);
    assert_line(&url, &["reserved prefix", "--exchange"], &["--exchange", "amq.mine"]);
}

fn declare_topic(url: &str) {
    Queue::declared(url, "").with(async |channel| {
        let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        let declared = channel.exchange_declare("topics".into(), ExchangeKind::Topic, durable, FieldTable::default());
        declared.await.expect("the test's exchange");
    });
}
