//! `scan` publishes the files that are there and ends; `listen` prints messages.

use std::fs;
use std::io::{BufReader, Read};
use std::os::unix::fs::symlink;
use std::path::Path;

use rustix::process::Signal;

use crate::support::broker::{self, binary, vhost_of};
use crate::support::consumer::{Consumer, EXCHANGE, publish};
use crate::support::files::{chmod, fifo, noise, sha256};
use crate::support::is_root;
use crate::support::message::Message;
use crate::support::service::{Ended, Service};
use crate::support::setup::Setup;
use crate::support::wait::retry;
use crate::support::world::{World, directories, list};

fn scan(directory: &Path) -> Setup {
    Setup::new(&["scan", "--output", "stdout"]).arg(directory)
}

/// The messages on standard output, sorted by path.
fn messages(ended: &Ended) -> Vec<Message> {
    let mut messages = ended.messages();
    messages.sort_by(|one, other| one.path().cmp(other.path()));
    messages
}

fn paths_below<'a>(messages: &'a [Message], directory: &Path) -> Vec<&'a str> {
    let below = |it: &'a Message| Path::new(it.path()).strip_prefix(directory).unwrap();
    messages.iter().map(|it| below(it).to_str().unwrap()).collect()
}

#[test]
fn a_scan_prints_one_line_for_each_regular_file_and_ends() {
    let (_root, data, outside) = directories();
    for number in 0..25 {
        fs::write(data.join(format!("file-{number:02}")), noise(number * 1_000, 1)).unwrap();
    }
    fs::create_dir(data.join("directory")).unwrap();
    fs::write(data.join("directory/below"), "x").unwrap();
    fifo(&data.join("fifo"));
    fs::write(outside.join("secret"), "x").unwrap();
    symlink(outside.join("secret"), data.join("link-out")).unwrap();
    let messages = messages(&scan(&data).run().expect_code(0));
    assert_eq!(messages.len(), 25, "{}", list(&messages));
    for (number, message) in messages.iter().enumerate() {
        assert_eq!(message.path(), data.join(format!("file-{number:02}")).to_str().unwrap());
        assert_eq!(message.sha256(), sha256(&noise(number * 1_000, 1)));
        assert_eq!(message.event(), "IN_CREATE");
    }
}

#[test]
fn a_scan_goes_into_sub_directories_when_asked() {
    let (_root, data, outside) = directories();
    fs::create_dir_all(data.join("a/b/c")).unwrap();
    fs::create_dir_all(outside.join("tree")).unwrap();
    for path in ["top", "a/one", "a/b/two", "a/b/c/three"] {
        fs::write(data.join(path), path).unwrap();
    }
    fs::write(outside.join("tree/not-ours"), "x").unwrap();
    symlink(outside.join("tree"), data.join("linked-tree")).unwrap();
    symlink("..", data.join("a/up")).unwrap();
    let all = messages(&scan(&data).recursive().run().expect_code(0));
    assert_eq!(paths_below(&all, &data), ["a/b/c/three", "a/b/two", "a/one", "top"]);
    for message in &all {
        let path = Path::new(message.path()).strip_prefix(&data).unwrap();
        assert_eq!(message.sha256(), sha256(path.to_str().unwrap().as_bytes()));
    }
    let top = messages(&scan(&data).run().expect_code(0));
    assert_eq!(paths_below(&top, &data), ["top"]);
}

#[test]
fn a_scan_without_a_directory_takes_the_data_directory() {
    let (_root, data, _) = directories();
    fs::write(data.join("file"), "content").unwrap();
    let setup = Setup::new(&["scan", "--output", "stdout"]).env("DATA_DIRECTORY", &data);
    assert_eq!(messages(&setup.run().expect_code(0)).len(), 1);
}

#[test]
fn a_scan_of_an_empty_directory_prints_nothing_and_is_a_success() {
    let (_root, data, _) = directories();
    let ended = scan(&data).run().expect_code(0);
    assert_eq!(ended.stdout, "");
}

#[test]
fn a_scan_ends_with_a_summary_on_stderr() {
    let (_root, data, _) = directories();
    for number in 0..37 {
        fs::write(data.join(format!("{number}")), "content").unwrap();
    }
    let ended = scan(&data).run().expect_code(0);
    let last = ended.stderr.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
    let mut numbers = last.split(|it: char| !it.is_ascii_digit());
    assert!(numbers.any(|number| number == "37"), "no summary of 37 files: {:?}", ended.stderr);
    assert!(!ended.stderr.contains('\u{1b}'), "a progress bar in a pipe: {:?}", ended.stderr);
}

#[test]
fn a_scan_that_cannot_read_a_file_publishes_the_others_and_fails() {
    let (_root, data, _) = directories();
    fs::write(data.join("readable"), "content").unwrap();
    fs::write(data.join("unreadable"), "content").unwrap();
    chmod(&data.join("unreadable"), 0o000);
    let setup = scan(&data);
    let setup = if is_root() { setup.by_nobody() } else { setup };
    let ended = setup.run().expect_code(1);
    assert_eq!(paths_below(&messages(&ended), &data), ["readable"]);
    ended.assert_error_before_totals();
    let path = data.join("unreadable");
    assert!(ended.stderr.contains(path.to_str().unwrap()), "{}", ended.stderr);
}

#[test]
fn a_scan_to_the_broker_has_every_message_confirmed_when_it_ends() {
    let world = World::without_service();
    for number in 0..500 {
        world.write(&format!("file-{number}"), noise(number * 10, number as u64));
    }
    Setup::new(&["scan"]).arg(&world.data).env("AMQP_CONNECTION_STRING", &world.url).run().expect_code(0);
    let messages = world.consumer.drain();
    assert_eq!(messages.len(), 500);
    for number in 0..500 {
        let message = &world.messages_for(&format!("file-{number}"))[0];
        assert_eq!(message.sha256(), sha256(&noise(number * 10, number as u64)));
    }
}

/// A running `listen` whose queue is bound, so that it misses no message.
#[track_caller]
fn listen(url: &str, arguments: &[&str]) -> Service {
    let service = Setup::new(&["listen"]).args(arguments).env("AMQP_CONNECTION_STRING", url).spawn();
    retry("the binding of its queue", || {
        let [vhost, exchange] = [vhost_of(url), EXCHANGE].map(binary);
        let exchange = format!("rabbit_misc:r({vhost}, exchange, {exchange})");
        let bindings = broker::shared().eval(&format!("length(rabbit_binding:list_for_source({exchange}))"));
        if bindings == "0" { Err(service.stderr()) } else { Ok(()) }
    });
    service
}

fn scan_to(url: &str, directory: &Path) {
    Setup::new(&["scan"]).arg(directory).env("AMQP_CONNECTION_STRING", url).run().expect_code(0);
}

#[test]
fn listen_prints_one_json_object_a_line_and_ends_after_its_count() {
    let (_root, data, _) = directories();
    let names = ["one", "two", "new\nline"];
    for name in names {
        fs::write(data.join(name), name).unwrap();
    }
    // On a virtual host without the exchange: it may be started before the service.
    let url = broker::shared().vhost();
    let listener = listen(&url, &["--count", "3"]);
    let consumer = Consumer::bind(&url);
    scan_to(&url, &data);
    let ended = listener.wait_exit().expect_code(0);
    let mut printed: Vec<&[u8]> = ended.stdout.lines().map(str::as_bytes).collect();
    let delivered = consumer.drain();
    let mut expected: Vec<&[u8]> = delivered.iter().map(|it| it.body.as_slice()).collect();
    printed.sort_unstable();
    expected.sort_unstable();
    assert_eq!(printed, expected, "{}", ended.stdout);
    assert_eq!(printed.len(), 3);
}

#[test]
fn listen_prints_no_more_than_its_count() {
    let (_root, data, _) = directories();
    for number in 0..10 {
        fs::write(data.join(format!("{number}")), "content").unwrap();
    }
    let url = broker::shared().vhost();
    let listener = listen(&url, &["--count", "2"]);
    let _rest = Consumer::bind(&url); // the listener's queue goes with it, and `scan` waits for one
    scan_to(&url, &data);
    let ended = listener.wait_exit().expect_code(0);
    assert_eq!(ended.stdout.lines().count(), 2, "{}", ended.stdout);
}

#[test]
fn listen_ends_after_its_timeout() {
    let url = broker::shared().vhost();
    let setup = |words: &[&str]| Setup::new(words).env("AMQP_CONNECTION_STRING", &url);
    // Side by side, because each waits out its time.
    let counting = setup(&["listen", "--timeout", "1", "--count", "2"]).spawn();
    let ended = setup(&["listen", "--timeout", "1"]).run().expect_code(0);
    assert_eq!((ended.stdout.as_str(), ended.errors().len()), ("", 0));
    let fewer = counting.wait_exit().expect_code(1);
    fewer.assert_one_error("0 of 2 messages");
}

#[test]
fn listen_prints_json_objects_alone() {
    let url = broker::shared().vhost();
    let listener = listen(&url, &["--count", "3"]);
    let others: [&[u8]; 8] =
        [b"", b"text", b"[1]", b"1", b"\xff", b"{\"a\":1}\n{\"b\":2}", b"{\"a\":\"\n\"}", b"{\"a\":1"];
    others.iter().for_each(|body| publish(&url, body));
    for body in ["{\"one\": 1}", "{\"two\":\n {\"a b\": [1,\r\n\t2]}\n}", "{}"] {
        publish(&url, body.as_bytes());
    }
    let ended = listener.wait_exit().expect_code(0);
    assert_eq!(ended.stdout, "{\"one\": 1}\n{\"two\":{\"a b\":[1,2]}}\n{}\n");
    assert_eq!(ended.warnings().len(), others.len(), "{}", ended.stderr);
}

#[test]
fn listen_hears_a_signal_while_nobody_reads_it_and_ends_silently_with_its_reader() {
    let url = broker::shared().vhost();
    let start = |arguments: &[&str]| {
        let setup = Setup::new(&["listen"]).args(arguments).env("AMQP_CONNECTION_STRING", &url);
        let (service, stdout) = setup.spawn_held();
        service.wait_ready();
        (service, stdout)
    };
    let (waiting, mut unread) = start(&["--count", "20"]);
    let (abandoned, reader) = start(&[]);
    let (idle, closed) = start(&[]);
    drop(closed);
    assert_eq!(idle.wait_exit().expect_code(0).errors().len(), 0);
    let body = format!("{{\"long\":\"{}\"}}", "x".repeat(60_000));
    (0..10).for_each(|_| publish(&url, body.as_bytes()));
    // Each waits for its reader, in the middle of a line.
    unread.read_exact(&mut [0; 1]).unwrap();
    BufReader::new(reader).read_exact(&mut [0; 1]).unwrap();
    let ended = abandoned.wait_exit().expect_code(0);
    assert_eq!((ended.errors().len(), ended.warnings().len()), (0, 0), "{}", ended.stderr);
    waiting.signal(Signal::TERM);
    waiting.wait_exit().expect_code(1).assert_one_error("of 20 messages");
}

#[test]
fn listen_ends_cleanly_on_a_signal_and_takes_its_queue_with_it() {
    let url = broker::shared().vhost();
    listen(&url, &[]).stop();
    retry("the end of its queue", || {
        let queues = broker::shared().queues(vhost_of(&url));
        if queues.is_empty() { Ok(()) } else { Err(format!("{queues:?}")) }
    });
}
