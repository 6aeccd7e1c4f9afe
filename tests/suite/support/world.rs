//! One test's world: a directory, a virtual host with a consumer on it, and the service between.

use std::cell::Cell;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::broker;
use super::consumer::Consumer;
use super::control::wait_for_metrics;
use super::files::{self, sha256};
use super::message::Message;
use super::service::{Ended, Service};
use super::setup::Setup;
use super::wait::TIMEOUT;

/// Begins the name of files that tests write to wait for their message. It sorts behind every name that a test uses and
/// is a neighbor to none of them.
pub const SENTINEL: &str = "zz-sentinel-";

pub struct World {
    /// The watched directory.
    pub data: PathBuf,
    /// Beside it and on the same file system, for files that are moved or linked in.
    pub outside: PathBuf,
    pub url: String,
    pub consumer: Consumer,
    service: Option<Service>,
    sentinels: Cell<usize>,
    _root: TempDir,
}

impl World {
    /// The service runs with its defaults and is ready.
    #[track_caller]
    pub fn start() -> Self {
        Self::start_with(|setup| setup)
    }

    #[track_caller]
    pub fn start_with(change: impl FnOnce(Setup) -> Setup) -> Self {
        let mut world = Self::without_service();
        world.launch(change);
        world
    }

    /// A world without a service, for files that must be there before it.
    pub fn without_service() -> Self {
        let (root, data, outside) = directories();
        let url = broker::shared().vhost();
        Self { data, outside, consumer: Consumer::bind(&url), url, service: None, sentinels: Cell::new(0), _root: root }
    }

    #[track_caller]
    pub fn launch(&mut self, change: impl FnOnce(Setup) -> Setup) {
        let service = change(Setup::watch(&self.data, &self.url)).spawn();
        service.wait_ready();
        self.service = Some(service);
    }

    pub fn service(&mut self) -> &mut Service {
        self.service.as_mut().expect("the service was launched")
    }

    /// Hands the running service over to the test, to see how it ends.
    pub fn take_service(&mut self) -> Service {
        self.service.take().expect("the service was launched")
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.data.join(name)
    }

    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        files::write(&self.path(name), content);
    }

    /// The messages for one name so far.
    pub fn messages_for(&self, name: &str) -> Vec<Message> {
        of_name(&self.consumer.messages(), name)
    }

    /// Waits until `count` messages for `name` have come and returns all there are.
    #[track_caller]
    pub fn wait_for(&mut self, name: &str, count: usize) -> Vec<Message> {
        let what = format!("message {count} for {name:?}");
        self.wait_until(&what, |messages| of_name(messages, name).len() >= count);
        self.messages_for(name)
    }

    /// The first message for `name`.
    #[track_caller]
    pub fn wait_for_one(&mut self, name: &str) -> Message {
        self.wait_for(name, 1).swap_remove(0)
    }

    /// Waits until the last message for `name` carries the hash of `content`.
    #[track_caller]
    pub fn wait_for_content(&mut self, name: &str, content: &[u8]) {
        let hash = sha256(content);
        let what = format!("a last message for {name:?} with its final content");
        self.wait_until(&what, |messages| {
            of_name(messages, name).last().is_some_and(|message| message.sha256() == hash)
        });
    }

    #[track_caller]
    pub fn wait_until(&mut self, what: &str, enough: impl Fn(&[Message]) -> bool) {
        self.wait_until_within(TIMEOUT, what, enough);
    }

    #[track_caller]
    pub fn wait_until_within(&mut self, timeout: Duration, what: &str, enough: impl Fn(&[Message]) -> bool) {
        let deadline = Instant::now() + timeout;
        // In slices, to notice a service that has ended.
        let slice = Duration::from_millis(500);
        while !self.consumer.wait_until(slice, &enough) {
            let died = self.service.as_mut().is_some_and(|it| !it.is_running());
            if died || Instant::now() > deadline {
                let why = if died { "the service ended" } else { "time is up" };
                panic!("{what} did not come, {why}\n{}", self.dump());
            }
        }
    }

    /// Writes a file that nothing else touches and waits for its message: the service has by then
    /// read every event raised before.
    #[track_caller]
    pub fn pass_sentinel(&mut self) {
        let number = self.sentinels.replace(self.sentinels.get() + 1);
        let name = format!("{SENTINEL}{number}");
        self.write(&name, format!("sentinel {number}"));
        self.wait_for(&name, 1);
    }

    /// All messages but the sentinels': the service reads every event, finishes what it has in progress and ends, and
    /// then the queue is read to its end.
    #[track_caller]
    pub fn finish(mut self) -> Vec<Message> {
        self.pass_sentinel();
        self.take_service().stop();
        let mut messages = self.consumer.drain();
        messages.retain(|message| !message.name().starts_with(SENTINEL));
        messages
    }

    /// `finish`, for a test that is to end with one message.
    #[track_caller]
    pub fn finish_with_one(self) -> Message {
        let mut messages = self.finish();
        assert_eq!(messages.len(), 1, "exactly one message was due: {}", list(&messages));
        messages.swap_remove(0)
    }

    /// Waits until the service has logged the end of the rescan with which it begins.
    #[track_caller]
    pub fn wait_rescanned(&mut self) -> String {
        self.service().wait_log("the rescan's end", |line| line.contains("rescan finished"))
    }

    /// Waits until no file is pending. What a rescan has found is published after what happens meanwhile.
    #[track_caller]
    pub fn wait_idle(&mut self) {
        let socket = self.service().control_socket();
        wait_for_metrics(&socket, "the end of what is pending", |seen| seen["apollonia_pending_files"] == 0.0);
    }

    /// Stops the service in the middle of the test.
    #[track_caller]
    pub fn stop_service(&mut self) -> Ended {
        self.take_service().stop()
    }

    /// What a failed test shows.
    pub fn dump(&self) -> String {
        format!(
            "messages so far:\n{}\nstandard error of the service:\n{}",
            list(&self.consumer.messages()),
            self.service.as_ref().map(Service::stderr).unwrap_or_default()
        )
    }
}

/// A watched directory and one beside it, reachable by every user. The path is the real one: a
/// message carries that, and the system's temporary directory may be a link.
pub fn directories() -> (TempDir, PathBuf, PathBuf) {
    let root = TempDir::with_prefix("ingestor-suite-").expect("a temporary directory");
    let real = root.path().canonicalize().expect("its real path");
    let (data, outside) = (real.join("data"), real.join("outside"));
    for directory in [&data, &outside] {
        fs::create_dir(directory).expect("a directory");
    }
    for directory in [&real, &data, &outside] {
        fs::set_permissions(directory, PermissionsExt::from_mode(0o777)).expect("permissions");
    }
    (root, data, outside)
}

pub fn of_name(messages: &[Message], name: &str) -> Vec<Message> {
    let belongs = |message: &&Message| Path::new(message.path()).ends_with(name);
    messages.iter().filter(belongs).cloned().collect()
}

pub fn list(messages: &[Message]) -> String {
    messages.iter().map(|it| format!("  {} {:?} {} bytes\n", it.event(), it.path(), it.size())).collect()
}
