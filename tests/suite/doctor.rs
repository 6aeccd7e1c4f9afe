//! `doctor` reports each problem with its cure, and changes nothing.

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;

use lapin::ExchangeKind;
use lapin::options::ExchangeDeclareOptions;
use lapin::types::FieldTable;
use serde_json::Value;

use crate::support::broker::{self, NO_BROKER};
use crate::support::consumer::{block_on, connect, declare_exchange};
use crate::support::files::fifo;
use crate::support::namespaces::{self, Mounted};
use crate::support::seccomp::{io_uring_is_allowed, without_io_uring};
use crate::support::service::Ended;
use crate::support::setup::Setup;
use crate::support::slow_directory::SlowDirectory;
use crate::support::world::directories;
use crate::support::{is_root, skip};

fn doctor(data: &Path, url: &str) -> Setup {
    Setup::new(&["doctor"]).env("DATA_DIRECTORY", data).env("AMQP_CONNECTION_STRING", url)
}

/// Each check's verdict and line, by the check's name.
#[track_caller]
fn verdicts(ended: &Ended) -> BTreeMap<String, (String, String)> {
    let lines = ended.stdout.lines().map(|line| {
        let (status, rest) = line.split_once(' ').unwrap_or_else(|| panic!("no check: {line:?}"));
        let (name, _) = rest.trim_start().split_once(": ").unwrap_or_else(|| panic!("no check: {line:?}"));
        (name.to_owned(), (status.to_owned(), line.to_owned()))
    });
    lines.collect()
}

/// The check of this name has this verdict, and its line contains all words.
#[track_caller]
fn assert_verdict(ended: &Ended, name: &str, status: &str, words: &[&str]) {
    let verdicts = verdicts(ended);
    let (found, line) = verdicts.get(name).unwrap_or_else(|| panic!("{name} was not checked: {}", ended.stdout));
    assert_eq!(found, status, "{line}");
    for word in words {
        assert!(line.contains(word), "{word:?} is not in {line:?}");
    }
    assert!(!ended.stdout.contains("hunter2") && !ended.stderr.contains("hunter2"), "a password: {ended:?}");
}

/// This check fails alone, and the line on standard error counts it.
#[track_caller]
fn assert_one_fails(ended: &Ended, name: &str, words: &[&str]) {
    assert_verdict(ended, name, "fail", words);
    assert_eq!(ended.stdout.matches("fail ").count(), 1, "{}", ended.stdout);
    assert_eq!(ended.stderr.lines().count(), 1, "{}", ended.stderr);
    assert!(ended.stderr.contains("1 of "), "{}", ended.stderr);
}

/// Every name in a directory with its modification time.
fn listing(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap());
    let mut state: Vec<_> = entries
        .map(|entry| format!("{:?} {:?}", entry.path(), entry.metadata().unwrap().modified().unwrap()))
        .collect();
    state.sort();
    state
}

fn exchange_exists(url: &str) -> bool {
    block_on(async {
        let channel = connect(url).await.unwrap().create_channel().await.unwrap();
        let passive = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
        channel.exchange_declare("apollonia".into(), ExchangeKind::Fanout, passive, FieldTable::default()).await.is_ok()
    })
}

#[test]
fn without_a_problem_nothing_fails_and_nothing_is_changed() {
    let url = broker::shared().vhost();
    let (_root, data, outside) = directories();
    fs::write(data.join("file"), "content").unwrap();
    let state = outside.join("made/by/watch");
    let before = (listing(&data), listing(&outside));
    let ended = doctor(&data, &url).env("STATE_DIRECTORY", &state).run().expect_code(0);
    assert_eq!(ended.stderr, "");
    for name in ["settings", "kernel", "data directory", "inotify watches", "state directory", "broker"] {
        assert_verdict(&ended, name, "ok", &[]);
    }
    assert_verdict(&ended, "broker", "ok", &["not there yet", "127.0.0.1"]);
    assert_verdict(&ended, "state directory", "ok", &["will be made"]);
    assert_verdict(&ended, "service", "ok", &["none answers"]);
    assert_eq!((listing(&data), listing(&outside)), before);
    assert!(!exchange_exists(&url), "the exchange was declared");
}

#[test]
fn a_running_service_is_reported() {
    let url = broker::shared().vhost();
    let (_root, data, outside) = directories();
    let service = Setup::watch(&data, &url).env("STATE_DIRECTORY", &outside).spawn();
    service.wait_ready();
    let ended = doctor(&data, &url)
        .env("STATE_DIRECTORY", &outside)
        .env("INGESTOR_CONTROL_SOCKET", service.control_socket())
        .run()
        .expect_code(0);
    assert_verdict(&ended, "service", "ok", &["healthy"]);
    assert_verdict(&ended, "state directory", "ok", &["in use by a running service"]);
    assert_verdict(&ended, "broker", "ok", &["`apollonia` is there"]);
    service.stop();
}

#[test]
fn json_reports_the_same_as_the_lines() {
    let (_root, data, _) = directories();
    let lines = doctor(&data, NO_BROKER).run().expect_code(1);
    let object = doctor(&data, NO_BROKER).arg("--json").run().expect_code(1);
    let object: Value = serde_json::from_str(&object.stdout).expect("one JSON object");
    assert_eq!(object["status"], "fail");
    let verdicts = verdicts(&lines);
    let checks = object["checks"].as_array().expect("checks");
    assert_eq!(checks.len(), verdicts.len());
    for check in checks {
        let (status, line) = &verdicts[check["name"].as_str().expect("a name")];
        assert_eq!(check["status"], status.as_str(), "{line}");
        assert_eq!(check["cure"].is_null(), status == "ok", "{check}");
    }
}

#[test]
fn a_broker_that_cannot_be_used_fails_with_its_cure() {
    let (_root, data, _) = directories();
    let ended = doctor(&data, NO_BROKER).run().expect_code(1);
    assert_one_fails(&ended, "broker", &["127.0.0.1:1", "connection refused", "start the broker"]);
    let ended = doctor(&data, &broker::shared().url("guest:hunter2", "t0")).run().expect_code(1);
    assert_one_fails(&ended, "broker", &["correct user, password"]);
    let ended = doctor(&data, "amqp://someone:hunter2@host:port/").run().expect_code(1);
    assert_one_fails(&ended, "broker", &["AMQP_CONNECTION_STRING"]);
    doctor(&data, NO_BROKER).args(&["--output", "stdout"]).run().expect_code(0);
}

#[test]
fn an_exchange_of_another_type_fails() {
    let url = broker::shared().vhost();
    block_on(async {
        let connection = connect(&url).await.unwrap();
        declare_exchange(&connection.create_channel().await.unwrap(), ExchangeKind::Direct).await;
    });
    let (_root, data, _) = directories();
    let ended = doctor(&data, &url).run().expect_code(1);
    assert_one_fails(&ended, "broker", &["apollonia", "fanout"]);
}

#[test]
fn directories_that_the_service_would_refuse_fail() {
    let (_root, data, outside) = directories();
    let check = |data: &Path| doctor(data, NO_BROKER).args(&["--output", "none"]);
    let missing = outside.join("missing");
    assert_one_fails(&check(&missing).run().expect_code(1), "data directory", &["missing", "create it"]);
    assert!(!missing.exists());
    let file = outside.join("file");
    fs::write(&file, "content").unwrap();
    assert_one_fails(&check(&file).run().expect_code(1), "data directory", &["not a directory"]);
    let inside = check(&data).env("STATE_DIRECTORY", data.join("state")).run().expect_code(1);
    assert_one_fails(&inside, "state directory", &["lies in the data directory"]);
    let unreadable = outside.join("unreadable");
    fs::create_dir(&unreadable).unwrap();
    fs::set_permissions(&unreadable, PermissionsExt::from_mode(0o333)).unwrap();
    let setup = check(&data).env("STATE_DIRECTORY", &unreadable);
    let setup = if is_root() { setup.by_nobody() } else { setup };
    assert_one_fails(&setup.run().expect_code(1), "state directory", &["unreadable", "Permission denied"]);
    let on_a_file = check(&data).env("STATE_DIRECTORY", file.join("state")).run().expect_code(1);
    assert_one_fails(&on_a_file, "state directory", &["is no directory"]);
}

#[test]
fn contradicting_settings_fail_and_unreadable_ones_are_refused() {
    let (_root, data, _) = directories();
    let check = || doctor(&data, NO_BROKER).args(&["--output", "none"]);
    let ended = check().args(&["--catch-up", "changed"]).run().expect_code(1);
    assert_one_fails(&ended, "settings", &["--catch-up", "--state-dir"]);
    let ended = check().args(&["--include", "[a"]).run().expect_code(1);
    assert_one_fails(&ended, "settings", &["--include"]);
    check().args(&["--workers", "none"]).run().expect_code(2);
}

/// A file of settings, which takes the place of the variables that are set, read as systemd reads it.
#[test]
fn the_settings_of_a_file_are_checked() {
    let (_root, data, outside) = directories();
    let file = outside.join("settings.env");
    let check = || doctor(Path::new("/not/there"), NO_BROKER).arg("--env-file").arg(&file);
    let text = format!("# the service\nDATA_DIRECTORY=\"{}\"\nINGESTOR_OUTPUT = none\n", data.display());
    fs::write(&file, &text).unwrap();
    let ended = check().run().expect_code(0);
    assert_verdict(&ended, "settings file", "ok", &["settings.env", "2 variables"]);
    assert_verdict(&ended, "data directory", "ok", &[]);
    assert_verdict(&check().args(&["--data-dir", "/srv/none"]).run(), "data directory", "fail", &["/srv/none"]);

    fs::write(&file, format!("{text}export INGESTOR_WORKERS=1\nINGESTOR_WORKER=2\n")).unwrap();
    let ended = check().run().expect_code(0);
    assert_verdict(&ended, "settings file", "warn", &["line 4 sets nothing"]);
    assert_verdict(&ended, "settings", "warn", &["INGESTOR_WORKER is none", "INGESTOR_WORKERS"]);

    fs::write(&file, "AMQP_CONNECTION_STRING=amqp://someone:hunter2@host:port/\n").unwrap();
    assert_verdict(&check().run().expect_code(1), "broker", "fail", &["host:port"]);
    fs::write(&file, "INGESTOR_WORKERS=none\n").unwrap();
    assert!(check().run().expect_code(2).stderr.contains("INGESTOR_WORKERS"));
    fs::write(&file, "#".repeat(1024 * 1024 + 1)).unwrap();
    check().run().expect_code(2).assert_one_line(&["settings.env\" cannot be read: it is longer than 1048576 bytes"]);
    fs::remove_file(&file).unwrap();
    check().run().expect_code(2).assert_one_line(&["settings.env\" cannot be read: No such file"]);
}

/// A FIFO would be waited for, and a device read without an end.
#[test]
fn settings_are_read_from_a_regular_file_alone() {
    let (_root, data, outside) = directories();
    fifo(&outside.join("fifo"));
    for other in [&outside.join("fifo"), Path::new("/dev/zero"), &outside] {
        let ended = doctor(&data, NO_BROKER).arg("--env-file").arg(other).run().expect_code(2);
        ended.assert_one_line(&[&format!("{other:?} cannot be read: it is not a regular file")]);
    }
}

#[test]
fn a_unit_that_systemd_does_not_know_is_refused() {
    let (_root, data, _) = directories();
    let ended = doctor(&data, NO_BROKER).args(&["--unit", "no-such-thing"]).run().expect_code(2);
    assert!(ended.stderr.contains("no-such-thing") && ended.stderr.lines().count() == 1, "{}", ended.stderr);
}

#[test]
fn denied_io_uring_is_a_warning_and_a_failure_where_it_is_set() {
    if !io_uring_is_allowed() {
        return skip("io_uring is denied here already");
    }
    let (_root, data, _) = directories();
    let check = || doctor(&data, NO_BROKER).args(&["--output", "none"]);
    assert_verdict(&check().run().expect_code(0), "io_uring", "ok", &[]);
    let denied = || without_io_uring(check(), libc::EPERM);
    let ended = denied().run().expect_code(0);
    let words = ["Operation not permitted", "by the seccomp filter", "blocking engine", "seccomp profile"];
    assert_verdict(&ended, "io_uring", "warn", &words);
    assert_verdict(&ended, "seccomp", "ok", &["a filter"]);
    let ended = denied().args(&["--read-engine", "io_uring"]).run().expect_code(1);
    assert_one_fails(&ended, "io_uring", &["seccomp profile"]);
    let ended = denied().args(&["--read-engine", "blocking"]).run().expect_code(0);
    assert!(!ended.stdout.contains("io_uring"), "{}", ended.stdout);
}

#[test]
fn too_little_locked_memory_is_reported_with_the_amount() {
    let (_root, data, _) = directories();
    let check = || {
        let setup = doctor(&data, NO_BROKER).args(&["--output", "none", "--workers", "2"]).by_nobody();
        setup.limited(libc::RLIMIT_MEMLOCK, 65_536, 65_536)
    };
    let words = ["64 KiB", "576 KiB at the least", "4224 KiB", "LimitMEMLOCK", "--workers"];
    assert_verdict(&check().run().expect_code(0), "locked memory", "warn", &words);
    let ended = check().args(&["--read-engine", "io_uring"]).run().expect_code(1);
    assert_verdict(&ended, "locked memory", "fail", &words);
}

#[test]
fn a_stranger_at_the_control_socket_is_reported() {
    let (_root, data, _) = directories();
    let other = doctor(&data, NO_BROKER).args(&["--output", "none"]);
    let listener = UnixListener::bind(other.control_socket()).unwrap();
    std::thread::scope(|scope| {
        // It closes the connection without an answer.
        scope.spawn(|| listener.accept().map(drop));
        assert_verdict(&other.run().expect_code(0), "service", "warn", &["somebody listens", "control.sock"]);
    });
}

#[test]
fn a_control_socket_that_cannot_be_made_fails_where_it_is_set() {
    let (_root, data, outside) = directories();
    let check = || doctor(&data, NO_BROKER).args(&["--output", "none"]);
    let ended = check().env("INGESTOR_CONTROL_SOCKET", outside.join("missing/s")).run().expect_code(1);
    assert_one_fails(&ended, "service", &["INGESTOR_CONTROL_SOCKET", "missing", "name another path"]);
    let file = outside.join("file");
    fs::write(&file, "content").unwrap();
    let ended = check().env("INGESTOR_CONTROL_SOCKET", &file).run().expect_code(1);
    assert_one_fails(&ended, "service", &["a file of that name"]);
    assert_eq!(fs::read(&file).unwrap(), b"content");
    // At its default place it is a warning only.
    let by_default = check().env("INGESTOR_CONTROL_SOCKET", "").env("RUNTIME_DIRECTORY", outside.join("missing"));
    assert_verdict(&by_default.run().expect_code(0), "service", "warn", &["missing", "--control-socket"]);
}

#[test]
fn a_ledger_of_another_user_is_a_warning() {
    if !is_root() {
        return skip("only root can make another user's file");
    }
    let (_root, data, outside) = directories();
    let ledger = outside.join("ledger.sqlite");
    fs::write(&ledger, "").unwrap();
    fs::set_permissions(&ledger, PermissionsExt::from_mode(0o600)).unwrap();
    let check = || doctor(&data, NO_BROKER).args(&["--output", "none"]).env("STATE_DIRECTORY", &outside);
    let ended = check().by_nobody().run().expect_code(0);
    assert_verdict(&ended, "state directory", "warn", &["ledger.sqlite", "Permission denied", "count as empty"]);
    assert_verdict(&check().run().expect_code(0), "state directory", "ok", &["can be used"]);
}

#[test]
fn a_ledger_that_the_service_would_refuse_or_set_aside_is_reported() {
    let (_root, data, outside) = directories();
    let ledger = outside.join("ledger.sqlite");
    let check = || doctor(&data, NO_BROKER).args(&["--output", "none"]).env("STATE_DIRECTORY", &outside);
    let service = Setup::watch(&data, NO_BROKER).args(&["--output", "stdout"]).env("STATE_DIRECTORY", &outside).spawn();
    service.wait_ready();
    service.stop();
    assert_verdict(&check().run().expect_code(0), "state directory", "ok", &["can be used"]);

    let sound = fs::read(&ledger).unwrap();
    let mut newer = sound.clone();
    newer[63] = 99; // the end of the version number in its header
    fs::write(&ledger, &newer).unwrap();
    assert_one_fails(&check().run().expect_code(1), "state directory", &["newer version", "upgrade"]);
    fs::write(&ledger, &sound[1..]).unwrap();
    assert_verdict(&check().run().expect_code(0), "state directory", "warn", &["damaged", "sets it aside"]);
    assert_eq!(fs::read(&ledger).unwrap(), sound[1..]);
    let mut names: Vec<_> = fs::read_dir(&outside).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["ledger.complete", "ledger.sqlite"], "something was left beside it");
}

/// It is asked when something hangs, so it must not hang itself.
#[test]
fn a_directory_that_does_not_answer_fails_in_time() {
    let Some(slow) = SlowDirectory::mount() else { return };
    let (_root, data, _) = directories();
    slow.freeze();
    for beside in [None, Some(&data)] {
        let check = doctor(&slow.path, NO_BROKER).args(&["--output", "none"]).arg("--data-dir").arg(&slow.path);
        let check = beside.into_iter().fold(check, |check, data| check.arg("--data-dir").arg(data));
        let ended = check.run().expect_code(1);
        let line = ended.stdout.lines().find(|line| line.starts_with("fail ")).unwrap_or_default();
        assert!(line.contains(&format!("{:?} has not answered for 5 s", slow.path)), "{}", ended.stdout);
        assert_eq!(ended.stdout.matches("can be read").count(), usize::from(beside.is_some()), "{}", ended.stdout);
        assert!(ended.stderr.contains("1 of "), "{}", ended.stderr);
    }
}

#[test]
fn a_metrics_address_in_use_fails_unless_the_service_has_it() {
    let (_root, data, _) = directories();
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = other.local_addr().unwrap().to_string();
    let with = |setup: Setup| setup.args(&["--output", "none", "--metrics-address", &address]);
    let check = || with(doctor(&data, NO_BROKER));
    let ended = check().run().expect_code(1);
    assert_one_fails(&ended, "metrics address", &[&address, "in use", "name another"]);
    drop(other);
    assert_verdict(&check().run().expect_code(0), "metrics address", "ok", &["can be had"]);

    let service = with(Setup::watch(&data, NO_BROKER)).spawn();
    service.wait_ready();
    let ended = check().env("INGESTOR_CONTROL_SOCKET", service.control_socket()).run().expect_code(0);
    assert_verdict(&ended, "metrics address", "ok", &["in use", "the service that runs here"]);
    service.stop();
}

#[test]
fn a_dead_host_beside_a_good_one_is_a_warning() {
    let (_root, data, _) = directories();
    let url = broker::shared().vhost();
    for hosts in [url.replace('@', "@127.0.0.1:1,"), url.replace("/t", ",127.0.0.1:1/t")] {
        let ended = doctor(&data, &hosts).run().expect_code(0);
        assert_verdict(
            &ended,
            "broker",
            "warn",
            &["logged in", "127.0.0.1:1/", "connection refused", "start the broker"],
        );
        assert!(!ended.stdout.contains(":guest@"), "a password: {}", ended.stdout);
    }
}

#[test]
fn a_mount_in_the_tree_is_a_warning_with_recursive() {
    if !namespaces::are_allowed() {
        return skip("no user namespaces here");
    }
    let (_root, data, _) = directories();
    let mounted = data.join("mounted here");
    fs::create_dir(&mounted).unwrap();
    let check = |words: &[&str]| {
        let setup = doctor(&data, NO_BROKER).args(&["--output", "none"]).args(words);
        namespaces::with_mounts(setup, &[(Mounted::Tmpfs, &mounted)]).run().expect_code(0)
    };
    assert_verdict(&check(&["--recursive"]), "data directory", "warn", &["mounted here", "not gone into"]);
    assert_verdict(&check(&[]), "data directory", "ok", &[]);
}
