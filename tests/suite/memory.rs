//! Memory stays bounded however many files wait. It takes minutes, so run it by name: `scripts/test --test suite memory
//! -- --ignored`.

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::support::broker::Broker;
use crate::support::consumer::Consumer;
use crate::support::message::Message;
use crate::support::service::Service;
use crate::support::setup::Setup;
use crate::support::world::directories;

/// The result of the formula in docs/troubleshooting.md for 300,000 names and as many waiting files, and a quarter more.
const RSS_MAX_KB: u64 = 250_000;
/// For hundreds of thousands of messages on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(300);

fn rss(service: &Service, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", service.id())).unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Files of a few bytes, each a creation and a close.
fn burst(data: &Path, files: usize) {
    for number in 0..files {
        fs::write(data.join(format!("file-{number:06}")), format!("content {number}")).unwrap();
    }
}

/// Why the files wait.
enum Held {
    ByABlockedBroker,
    ByAMissingQueue,
}

fn memory_is_bounded(held: &Held, files: usize) {
    let mut broker = Broker::borrow();
    let url = broker.vhost();
    let (_root, data, _) = directories();
    let bound = matches!(held, Held::ByABlockedBroker).then(|| Consumer::bind(&url));
    let mut service = Setup::watch(&data, &url).spawn();
    service.wait_ready();
    let idle = rss(&service, "VmRSS");

    if bound.is_some() {
        broker.block();
    }
    burst(&data, files);
    // The service has read all events when its memory no longer grows.
    service.wait_log("why they wait", |line| line.contains("takes no messages") || line.contains("no queue is bound"));
    let (mut before, mut steady) = (0, Instant::now());
    while steady.elapsed() < Duration::from_secs(3) {
        let now = rss(&service, "VmRSS");
        if now != before {
            (before, steady) = (now, Instant::now());
        }
        assert!(service.is_running(), "{}", service.stderr());
        std::thread::sleep(Duration::from_millis(100));
    }
    let (waiting, most) = (rss(&service, "VmRSS"), rss(&service, "VmHWM"));
    eprintln!("{files} files ({} events): idle {idle} kB, waiting {waiting} kB, at most {most} kB", 2 * files);
    assert!(most < RSS_MAX_KB, "{most} kB");

    let consumer = bound.unwrap_or_else(|| Consumer::bind(&url));
    broker.unblock();
    let distinct = |messages: &[Message]| messages.iter().map(Message::path).collect::<HashSet<_>>().len();
    let deadline = Instant::now() + TIMEOUT;
    while distinct(&consumer.messages()) < files {
        assert!(Instant::now() < deadline && service.is_running(), "{}", service.stderr());
        consumer.wait_until(Duration::from_secs(5), |messages| messages.len() >= files);
    }
    assert_eq!(consumer.drain().len(), files, "no repeat");
    eprintln!("all published: at most {} kB", rss(&service, "VmHWM"));
    service.stop();
}

#[test]
#[ignore = "takes a minute and a half, and 300,000 files"]
fn a_burst_of_300_000_events_while_the_broker_is_blocked() {
    memory_is_bounded(&Held::ByABlockedBroker, 150_000);
}

#[test]
#[ignore = "takes minutes, and 300,000 files"]
fn more_files_than_may_wait_while_the_broker_is_blocked() {
    memory_is_bounded(&Held::ByABlockedBroker, 300_000);
}

#[test]
#[ignore = "takes minutes, and 300,000 files"]
fn more_files_than_may_wait_while_no_queue_is_bound() {
    memory_is_bounded(&Held::ByAMissingQueue, 300_000);
}
