//! A log line has a word for its kind and the facts of its sentence as fields, in both formats, and none shows words that
//! are Rust's own.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::support::broker::{self, NO_BROKER};
use crate::support::files::chmod;
use crate::support::service::{Ended, is_ready_line};
use crate::support::setup::Setup;
use crate::support::wait::TIMEOUT;
use crate::support::world::directories;

#[track_caller]
fn parsed(ended: &Ended) -> Vec<Value> {
    let lines = ended.stderr.lines();
    lines.map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

#[track_caller]
fn line<'a>(lines: &'a [Value], event: &str) -> &'a Value {
    let mut found = lines.iter().filter(|line| line["event"] == event);
    found.next().unwrap_or_else(|| panic!("no line `{event}`: {lines:#?}"))
}

#[test]
fn every_line_has_its_event_and_its_facts() {
    let (_root, data, outside) = directories();
    let url = broker::shared().vhost();
    let run = |format: &str| {
        let state = outside.join(format);
        let setup = Setup::watch(&data, &url).recursive().args(&["--include", "*.flac", "--log-level", "debug"]);
        let setup = setup.env("STATE_DIRECTORY", &state).args(&["--unroutable", "warn", "--log-format", format]);
        let service = setup.spawn();
        service.wait_ready();
        fs::write(data.join("left.txt"), "content").unwrap();
        fs::write(data.join(format!("{format}.flac")), "content").unwrap();
        service.wait_log("its confirm", |line| line.contains("confirmed") && line.contains(&format!("{format}.flac")));
        service.stop()
    };
    let ended = run("json");
    let lines = parsed(&ended);
    for line in &lines {
        assert!(line["event"].is_string(), "{line}");
    }
    let ready = line(&lines, "ready");
    let expected = [
        ("recursive", Value::from(true)),
        ("catch_up", "changed".into()),
        ("exchange", "apollonia".into()),
        ("ledger", outside.join("json").to_str().unwrap().into()),
        ("directories", 1.into()),
    ];
    for (field, value) in expected {
        assert_eq!(ready[field], value, "{field}: {ready}");
    }
    assert!(ready["filters"].as_str().is_some_and(|filters| filters.contains("*.flac")), "{ready}");
    for word in ["recursive", "filtered", "ledger \"", "catch-up changed", "exchange apollonia"] {
        assert!(ready["message"].as_str().is_some_and(|sentence| sentence.contains(word)), "{word}: {ready}");
    }
    let confirmed = line(&lines, "confirmed");
    assert_eq!(confirmed["path"], data.join("json.flac").to_str().unwrap(), "{confirmed}");
    assert_eq!(confirmed["bytes"], 7, "{confirmed}");
    let stopped = line(&lines, "stopped");
    for (field, number) in [("files", 1), ("bytes", 7), ("confirmed", 1), ("left", 0), ("failed", 0)] {
        assert_eq!(stopped[field], number, "{field}: {stopped}");
    }
    let text = run("text").stderr;
    for line in text.lines() {
        assert!(line.contains(" event=\""), "{line}");
    }
    let ready = text.lines().find(|line| is_ready_line(line)).unwrap();
    assert!(ready.contains("event=\"ready\"") && ready.contains("recursive=true"), "{ready}");
}

#[test]
fn a_name_with_a_newline_begins_no_line_of_its_own() {
    let (_root, data, _) = directories();
    for name in ["a\nERROR forged", "b\nERROR forged.part", "c\u{1b}[31m"] {
        fs::write(data.join(name), "content").unwrap();
    }
    let ended = Setup::new(&["scan", "--output", "none", "--log-level", "debug"]).arg(&data).run().expect_code(0);
    assert!(ended.stderr.lines().all(|line| line.contains(" event=\"")), "{}", ended.stderr);
    assert!(!ended.stderr.contains('\u{1b}'), "{}", ended.stderr);
}

#[test]
fn an_error_has_its_cause_and_its_thing_as_fields() {
    let (_root, data, _) = directories();
    let ended = Setup::new(&["scan", "--log-format", "json", "--amqp-url", NO_BROKER]).arg(&data).run().expect_code(1);
    let lines = parsed(&ended);
    let failed = line(&lines, "failed");
    assert!(failed["error"].as_str().is_some_and(|cause| cause.contains("connection refused")), "{failed}");
    assert!(failed["url"].as_str().is_some_and(|url| url.starts_with("amqp://")), "{failed}");
    assert_eq!(failed["level"], "ERROR");
}

#[test]
fn a_thousand_directories_are_ready_in_one_readable_line() {
    let (root, _, _) = directories();
    let directories: Vec<_> = (0..1000).map(|number| root.path().join(format!("directory-{number}"))).collect();
    directories.iter().for_each(|directory| fs::create_dir(directory).unwrap());
    let service = Setup::new(&["watch", "--output", "none"]).args(&directories).spawn();
    let ready = service.wait_log("ready", is_ready_line);
    assert!(ready.contains("directory-0\"") && ready.contains(" and 995 more"), "{ready}");
    assert!(ready.chars().count() < 1500, "{ready}");
    let ended = service.stop();
    assert!(ended.stderr.lines().all(|line| line.chars().count() < 1500), "{}", ended.stderr);
}

#[test]
fn an_unknown_variable_is_warned_of_with_the_nearest() {
    let (_root, data, _) = directories();
    let misspelled = |setup: Setup| setup.env("INGESTOR_WORKER", "2").env("INGESTOR_DATA_DIR", "/x");
    let scan = misspelled(Setup::new(&["scan", "--output", "none"]).arg(&data)).run().expect_code(0);
    let service = misspelled(Setup::watch(&data, NO_BROKER).args(&["--output", "stdout"])).spawn();
    service.wait_ready();
    for ended in [scan, service.stop()] {
        let warnings = ended.warnings();
        for (name, nearest) in [("INGESTOR_WORKER", "INGESTOR_WORKERS"), ("INGESTOR_DATA_DIR", "DATA_DIRECTORY")] {
            let about = warnings.iter().filter(|line| line.contains(&format!("variable {name} is no setting")));
            let about: Vec<_> = about.collect();
            assert_eq!(about.len(), 1, "{}", ended.stderr);
            assert!(about[0].contains(nearest), "{}", about[0]);
        }
    }
    let doctor = misspelled(Setup::new(&["doctor", "--output", "none"]).env("DATA_DIRECTORY", &data)).run();
    assert!(doctor.stdout.contains("warn  settings") && doctor.stdout.contains("INGESTOR_"), "{}", doctor.stdout);
    // One line is all that a probe prints.
    let health = misspelled(Setup::new(&["health"])).run().expect_code(1);
    assert_eq!(health.stderr.lines().count(), 1, "{}", health.stderr);
}

#[test]
fn no_line_shows_an_error_in_rusts_own_words() {
    let (_root, data, outside) = directories();
    fs::write(data.join("unreadable"), "content").unwrap();
    chmod(&data.join("unreadable"), 0o000);
    fs::create_dir(data.join("closed")).unwrap();
    chmod(&data.join("closed"), 0o000);
    let state = outside.join("state");
    fs::create_dir(&state).unwrap();
    chmod(&state, 0o555);
    let missing = outside.join("missing");
    let scan = |words: &[&str]| Setup::new(&["scan", "--log-level", "debug"]).args(words).arg(&data);
    let runs = [
        scan(&["--output", "none", "--recursive"]).by_nobody(),
        scan(&["--amqp-url", NO_BROKER]),
        scan(&["--amqp-url", "amqp://no-such-host.invalid/"]),
        scan(&["--amqp-url", "amqps://localhost/", "--amqp-ca-file", missing.to_str().unwrap()]),
        Setup::new(&["scan"]).arg(&missing),
        Setup::watch(&data, NO_BROKER).env("STATE_DIRECTORY", &state).by_nobody(),
        Setup::watch(&data, NO_BROKER).env("STATE_DIRECTORY", missing.join("a/b")).by_nobody(),
        Setup::watch(&data, NO_BROKER).env("INGESTOR_CONTROL_SOCKET", missing.join("a.sock")),
        Setup::watch(&data, NO_BROKER).env("INGESTOR_METRICS_ADDRESS", "192.0.2.1:1"),
        Setup::new(&["listen", "--amqp-url", NO_BROKER]),
        Setup::new(&["health"]).env("INGESTOR_CONTROL_SOCKET", &missing),
        Setup::new(&["doctor", "--data-dir"]).arg(&missing).env("AMQP_CONNECTION_STRING", NO_BROKER),
        Setup::of(
            Path::new("sh"),
            &["-c", &format!("exec {:?} completions bash >/dev/full", crate::support::setup::binary())],
        ),
    ];
    for setup in runs {
        let ended = setup.run();
        assert!(!ended.status.success(), "nothing has failed:\n{}", ended.stderr);
        assert!(!ended.stderr.is_empty());
        for words in ["os error", "Os {", "kind:", "lookup address", "IO error", "panicked"] {
            assert!(!ended.stderr.contains(words) && !ended.stdout.contains(words), "{words}: {ended:?}");
        }
        // Who asks has no output to choose and no workers to lower.
        if ended.stderr.contains("standard output") {
            assert!(!ended.stderr.contains("--output"), "{}", ended.stderr);
        }
    }
}

/// The words that stand behind `before` in a text, up to a quotation mark.
fn words_behind<'a>(text: &'a str, before: &'a str, end: char) -> impl Iterator<Item = &'a str> {
    text.split(before).skip(1).filter_map(move |rest| rest.split(end).next())
}

/// The text of each source file, without its tests.
fn sources(directory: &Path, to: &mut Vec<String>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, to);
        } else {
            let text = fs::read_to_string(&path).unwrap();
            let (program, _tests) = text.split_once("\n#[cfg(test)]\nmod tests {").unwrap_or((&text, ""));
            to.push(program.to_owned());
        }
    }
}

#[test]
fn the_table_of_events_has_every_event_and_no_other() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut code = Vec::new();
    sources(&root.join("src"), &mut code);
    let logged: BTreeSet<&str> = code.iter().flat_map(|text| words_behind(text, "event = \"", '"')).collect();
    let table = fs::read_to_string(root.join("docs/log-lines.md")).unwrap();
    let (_, events) = table.split_once("\n## Events").unwrap();
    let listed: BTreeSet<&str> = words_behind(events, "\n| `", '`').collect();
    assert_eq!(logged, listed);
    let macros = ["error!(", "warn!(", "info!(", "debug!("].map(|level| format!("tracing::{level}"));
    let lines: usize =
        code.iter().map(|text| macros.iter().map(|name| text.matches(name).count()).sum::<usize>()).sum();
    let with_event: usize = code.iter().map(|text| text.matches("event = \"").count()).sum();
    assert_eq!(lines, with_event, "each line has an event");
}

#[test]
fn totals_are_logged_once_a_minute_while_there_is_work() {
    let (_root, data, _) = directories();
    let service = Setup::new(&["watch", "--output", "stdout"]).env("DATA_DIRECTORY", &data).spawn();
    service.wait_ready();
    fs::write(data.join("file"), "content").unwrap();
    service.wait_log_within(2 * TIMEOUT, "the totals", |line| {
        line.contains("in the last minute: 1 files read, 1 messages confirmed (7 bytes)")
    });
    let ended = service.stop();
    assert_eq!(ended.stderr.matches("in the last minute").count(), 1, "{}", ended.stderr);
}
