//! The consumers in `examples/` print each version once and lose none, run by their command lines against the service.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::{env, fs};

use serde_json::Value;

use crate::support::broker::{self, NO_BROKER};
use crate::support::consumer::publish;
use crate::support::files::sha256;
use crate::support::service::{Ended, Service};
use crate::support::setup::Setup;
use crate::support::world::{World, directories};

/// Path to SHA-256.
type Files = BTreeMap<String, String>;

/// A program, and what comes before its own arguments.
#[derive(Debug)]
struct Example {
    program: PathBuf,
    script: Option<PathBuf>,
}

impl Example {
    fn all() -> Vec<Self> {
        let script = |name| Some(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(name));
        let rust = Self { program: built().clone(), script: None };
        let python = Self { program: python(), script: script("python/consumer.py") };
        let node = node().map(|program| Self { program, script: script("node/consumer.js") });
        [rust, python].into_iter().chain(node).collect()
    }

    fn setup(&self, arguments: &[&str]) -> Setup {
        match &self.script {
            None => Setup::of(&self.program, arguments),
            Some(script) => Setup::of(&self.program, &[script]).args(arguments),
        }
    }

    /// It runs and its queue is bound.
    #[track_caller]
    fn start(&self, arguments: &[&str]) -> Service {
        let consumer = self.setup(arguments).spawn();
        consumer.wait_log("`ready`", |line| line.starts_with("ready: "));
        consumer
    }
}

/// The Rust example, built here, because `cargo test --test suite` builds no examples.
fn built() -> &'static PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        // target/PROFILE/deps/suite-HASH
        let suite = env::current_exe().expect("our own path");
        let profile = suite.ancestors().nth(2).expect("the profile's directory");
        let name = profile.file_name().expect("the profile's name");
        let name = if name == "debug" { "dev".as_ref() } else { name };
        let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = Command::new(cargo);
        // The variables that cargo sets for a test's package would make build scripts run again.
        let of_package = |name: &OsString| {
            name.to_str().is_some_and(|name| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_"))
        };
        for name in env::vars_os().map(|(name, _)| name).filter(of_package) {
            command.env_remove(name);
        }
        let status = command
            .args(["build", "--locked", "--quiet", "--example", "consumer", "--profile"])
            .arg(name)
            .arg("--target-dir")
            .arg(profile.parent().expect("the target directory"))
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .status();
        assert!(status.expect("cargo").success(), "the example was not built");
        profile.join("examples/consumer")
    })
}

/// Debian's own interpreter sees Debian's modules; another one on the path may not.
fn python() -> PathBuf {
    let has_pika = |python: &&str| {
        let tried = Command::new(python).args(["-c", "import pika"]).output();
        tried.is_ok_and(|tried| tried.status.success())
    };
    let found = ["/usr/bin/python3", "python3"].into_iter().find(has_pika);
    found.expect("no Python here has pika: install python3-pika, as scripts/test does").into()
}

/// Node, where it and the package amqplib are here; `scripts/test` installs the package.
fn node() -> Option<PathBuf> {
    let package = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/node/node_modules/amqplib");
    let there = package.is_dir() && Command::new("node").arg("--version").output().is_ok_and(|it| it.status.success());
    if !there {
        eprintln!("skipped: the consumer in JavaScript, without node or {}", package.display());
    }
    there.then(|| "node".into())
}

fn write(world: &World, name: &str) -> (String, String) {
    world.write(name, name);
    (world.path(name).to_str().expect("UTF-8").to_owned(), sha256(name.as_bytes()))
}

/// Path and SHA-256 of each line.
fn printed(ended: &Ended) -> Vec<(String, String)> {
    let parse = |line: &str| {
        let fields: Vec<&str> = line.splitn(4, ' ').collect();
        let path: Value = serde_json::from_str(fields[3]).expect("a path in JSON");
        (path.as_str().expect("a path").to_owned(), fields[2].to_owned())
    };
    ended.stdout.lines().map(parse).collect()
}

#[test]
fn each_example_prints_each_version_once() {
    for example in Example::all() {
        let mut world = World::without_service();
        let mut files: Files = ["album.flac", "album.cue", "two\nlines"].map(|name| write(&world, name)).into();
        let consumer = example.start(&["--count", "5", &world.url]);
        // The second start publishes all that the first has published, and each a new file behind that.
        for (last, before, behind) in [("first", 3, 4), ("second", 8, 9)] {
            world.launch(|it| it.args(&["--catch-up", "all"]));
            world.wait_until("every file", |messages| messages.len() == before);
            files.extend([write(&world, last)]);
            world.wait_until("the last file", |messages| messages.len() == behind);
            world.stop_service();
        }
        let ended = consumer.wait_exit().expect_code(0);
        let printed = printed(&ended);
        assert_eq!(printed.len(), files.len(), "{example:?} printed {printed:?}");
        assert_eq!(Files::from_iter(printed), files, "{example:?}");
        assert!(ended.stderr.contains("end: 5 files, 4 repeats dropped"), "{example:?}: {}", ended.stderr);
    }
}

#[test]
fn what_an_example_could_not_print_stays_in_the_queue() {
    for example in Example::all() {
        let mut world = World::start();
        let unread = example.setup(&["--quorum", &world.url]).spawn_unread();
        unread.wait_log("`ready`", |line| line.starts_with("ready: "));
        let files = ["one", "two"].map(|name| {
            let file = write(&world, name);
            world.wait_for(name, 1);
            file
        });
        let failed = unread.wait_exit().expect_code(1);
        let last = failed.stderr.lines().last();
        assert!(
            last.is_some_and(|line| {
                line.starts_with("error: standard output: ") && line.to_lowercase().contains("broken pipe")
            }),
            "{}",
            failed.stderr
        );
        let next = example.start(&["--quorum", "--count", "2", &world.url]).wait_exit().expect_code(0);
        assert_eq!(printed(&next), files, "{example:?}");
        world.finish();
    }
}

#[test]
fn an_example_skips_messages_of_other_publishers() {
    for example in Example::all() {
        let (_root, data, _) = directories();
        let url = broker::shared().vhost();
        let consumer = example.start(&["--count", "1", &url]);
        for body in ["no JSON", "[]", "{\"no\":\"message\"}"] {
            publish(&url, body.as_bytes());
        }
        let service = Setup::watch(&data, &url).spawn();
        service.wait_ready();
        let path = data.join("file");
        fs::write(&path, "content").expect("a file");
        let ended = consumer.wait_exit().expect_code(0);
        let file = (path.to_str().expect("UTF-8").to_owned(), sha256(b"content"));
        assert_eq!(printed(&ended), [file], "{example:?}");
        assert_eq!(ended.stderr.matches("warning: ").count(), 3, "{example:?}: {}", ended.stderr);
        service.stop();
    }
}

#[test]
fn a_failure_of_an_example_is_one_line_without_the_password() {
    let refused = broker::shared().url("guest:hunter2", "t0");
    for example in Example::all() {
        let cases = [
            (example.setup(&[]).env("AMQP_CONNECTION_STRING", NO_BROKER), 1, "127.0.0.1:1/: "),
            (example.setup(&[&refused]), 1, "ACCESS_REFUSED"),
            (example.setup(&["amqp://someone:hunter2@[/"]), 2, "AMQP_URL"),
            (example.setup(&["amqp://someone:hunter2/@host"]), 2, "AMQP_URL"),
            (example.setup(&["--count", "0", NO_BROKER]), 2, "--count"),
            (example.setup(&["--loud", NO_BROKER]), 2, "--loud"),
        ];
        for (setup, code, name) in cases {
            let ended = setup.run().expect_code(code);
            ended.assert_one_line(&[name]);
            assert!(!ended.stderr.contains("hunter2"), "a password: {}", ended.stderr);
        }
    }
}
