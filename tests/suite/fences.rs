//! The queue by which a service keeps others from its directory stays, whatever policies and people do to queues that seem
//! unused.

use std::path::Path;

use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;

use crate::support::broker::{self, binary, vhost_of};
use crate::support::consumer::Consumer;
use crate::support::queue::Queue;
use crate::support::service::Service;
use crate::support::setup::Setup;
use crate::support::wait::{TIMEOUT, retry};
use crate::support::world::directories;

fn fences(url: &str) -> Vec<String> {
    broker::shared().queues(vhost_of(url)).into_iter().filter(|name| name.starts_with("apollonia-ingestor-")).collect()
}

fn declare(url: &str, name: &str) {
    Queue::declared(url, name).with(async |channel| {
        let options = QueueDeclareOptions::default();
        channel.queue_declare(name.into(), options, FieldTable::default()).await.expect("a queue");
    });
}

#[track_caller]
fn assert_held(data: &Path, url: &str) {
    let doctor = Setup::new(&["doctor"]).env("DATA_DIRECTORY", data).env("AMQP_CONNECTION_STRING", url);
    let ended = doctor.run().expect_code(0);
    assert!(ended.stdout.contains("a service publishes these directories now"), "{}", ended.stdout);
}

fn watch(data: &Path, url: &str) -> Service {
    let service = Setup::watch(data, url).spawn();
    service.wait_ready();
    service
}

#[test]
fn a_policy_that_lets_unused_queues_expire_leaves_them() {
    let broker = broker::shared();
    let url = broker.vhost();
    let (_root, data, other) = directories();
    // May not read, so its queue cannot have a consumer.
    let writer = broker.user("reads-nothing", vhost_of(&url), [".*", ".*", "^$"]);
    let services = [watch(&data, &url), watch(&other, &writer)];
    let before = fences(&url);
    assert_eq!(before.len(), 2);
    declare(&url, "unused");
    let [vhost, name, pattern, rule] = [vhost_of(&url), "expire", ".*", r#"{"expires": 5000}"#].map(binary);
    let set = "rabbit_policy:parse_set";
    broker.eval_to_ok(&format!("{set}({vhost}, {name}, {pattern}, {rule}, 0, <<\"all\">>, <<\"test\">>)"));
    retry("the expiry of a queue that nobody uses", || {
        let left = broker.queues(vhost_of(&url));
        if left.contains(&"unused".to_owned()) { Err(format!("{left:?}")) } else { Ok(()) }
    });
    assert_eq!(fences(&url), before);
    assert_held(&data, &url);
    assert_held(&other, &url);
    for service in services {
        let log = service.stop().stderr;
        assert!(!log.contains("taken again"), "{log}");
    }
}

#[test]
fn a_queue_that_somebody_deletes_is_taken_again_unless_another_has_it() {
    let broker = broker::shared();
    let url = broker.vhost();
    let (_root, data, _) = directories();
    // While it is stopped below, the broker is not to miss its heartbeats.
    let service = watch(&data, &format!("{url}?heartbeat=600"));
    let name = fences(&url).pop().expect("a fence");
    let delete = || broker.delete_queue(vhost_of(&url), &name);
    delete();
    service.wait_log("that it is taken again", |line| line.contains("WARN") && line.contains("taken again"));
    retry("the fence", || if fences(&url).is_empty() { Err("no fence".to_owned()) } else { Ok(()) });
    assert_held(&data, &url);

    // It cannot answer while the queue goes to another.
    service.pause();
    delete();
    let ended = Queue::declared(&url, &name).with(async |channel| {
        let exclusive = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
        channel.queue_declare(name.as_str().into(), exclusive, FieldTable::default()).await.expect("the fence");
        service.resume();
        service.wait_exit().expect_code(1)
    });
    ended.assert_one_error("another connection has taken it");
}

#[test]
fn a_service_that_may_not_take_its_queue_again_goes_on_without_it() {
    let broker = broker::shared();
    let url = broker.vhost();
    let vhost = vhost_of(&url);
    let (_root, data, other) = directories();
    let user = "loses-a-permission";
    let of_user = broker.user(user, vhost, [".*", ".*", ".*"]);
    let consumer = Consumer::bind(&url);
    let service = Setup::new(&["watch"]).arg(&data).arg(&other).env("AMQP_CONNECTION_STRING", &of_user).spawn();
    service.wait_ready();
    let [lost, kept] = <[String; 2]>::try_from(fences(&url)).expect("one a directory");
    broker.permit(user, vhost, [&format!("^{kept}$"), ".*", ".*"]);
    broker.wait_until_permissions_count(vhost, &lost);
    broker.delete_queue(vhost, &lost);
    service.wait_log("that it goes on without", |line| line.contains("WARN") && line.contains("no_fence"));
    retry("the other directory's queue", || {
        let left = fences(&url);
        if left == [kept.clone()] { Ok(()) } else { Err(format!("{left:?}")) }
    });
    for directory in [&data, &other] {
        std::fs::write(directory.join("file"), "content").unwrap();
    }
    let published = consumer.wait_until(TIMEOUT, |messages| messages.len() >= 2);
    assert!(published, "{}", service.stderr());
    // The one that is left is still watched over.
    broker.delete_queue(vhost, &kept);
    retry("its queue again", || if fences(&url) == [kept.clone()] { Ok(()) } else { Err("no queue".to_owned()) });
    let log = service.stop().stderr;
    assert_eq!(log.matches("no_fence").count(), 1, "{log}");
}
