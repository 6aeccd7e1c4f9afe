//! Settings, help and outputs that need no broker: what cannot be used is refused in one line, with status 2.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Instant;

use crate::support::broker::NO_BROKER;
use crate::support::is_root;
use crate::support::setup::Setup;
use crate::support::wait::TIMEOUT;
use crate::support::world::directories;

/// `watch` over a good directory, so that only what the test adds can be wrong.
#[track_caller]
fn assert_refused(change: impl FnOnce(Setup) -> Setup, names: &[&str]) {
    let (_root, data, _) = directories();
    let ended = change(Setup::watch(&data, NO_BROKER)).run().expect_code(2);
    ended.assert_one_line(names);
}

#[test]
fn a_setting_that_cannot_be_used_is_refused_by_name() {
    let long = "x".repeat(256); // the protocol has 255 bytes for a name
    let cases = [
        ("LOG_LEVEL", "--log-level", "LOUD"),
        ("INGESTOR_LOG_FORMAT", "--log-format", "xml"),
        ("INGESTOR_OUTPUT", "--output", "fax"),
        ("INGESTOR_CATCH_UP", "--catch-up", "some"),
        ("INGESTOR_RESCAN_SECONDS", "--rescan-seconds", "often"),
        ("INGESTOR_REMOVALS", "--removals", "perhaps"),
        ("INGESTOR_SETTLE_MS", "--settle-ms", "soon"),
        ("INGESTOR_WORKERS", "--workers", "0"),
        ("INGESTOR_WORKERS", "--workers", "100000"),
        ("INGESTOR_WORKERS", "--workers", "-1"),
        ("INGESTOR_WORKERS", "--workers", "two"),
        ("INGESTOR_READ_ENGINE", "--read-engine", "magic"),
        ("INGESTOR_CONFIRM_WINDOW", "--confirm-window", "0"),
        ("INGESTOR_CONFIRM_WINDOW", "--confirm-window", "99999999999999999999"),
        ("INGESTOR_UNROUTABLE", "--unroutable", "shrug"),
        ("INGESTOR_RECONNECT_SECONDS", "--reconnect-seconds", "-1"),
        ("INGESTOR_RECONNECT_SECONDS", "--reconnect-seconds", "1m"),
        ("INGESTOR_METRICS_ADDRESS", "--metrics-address", "9464"),
        ("INGESTOR_METRICS_ADDRESS", "--metrics-address", "localhost"),
        ("INGESTOR_STALL_SECONDS", "--stall-seconds", "1"),
        ("INGESTOR_AMQP_HEARTBEAT", "--amqp-heartbeat", "0"),
        ("INGESTOR_AMQP_HEARTBEAT", "--amqp-heartbeat", "65536"),
        ("AMQP_CONNECTION_STRING", "--amqp-url", "amqp://localhost/?heartbeat=0"),
        ("AMQP_CONNECTION_STRING", "--amqp-url", "amqp://one,two:port/"),
        ("AMQP_CONNECTION_STRING", "--amqp-url", "amqp://localhost/?frame_max=100"),
        ("INGESTOR_EXCHANGE", "--exchange", "two\nlines"),
        ("INGESTOR_EXCHANGE", "--exchange", &long),
        ("INGESTOR_EXCHANGE_TYPE", "--exchange-type", "headers"),
        ("INGESTOR_EXCHANGE_TYPE", "--exchange-type", "x-"),
        ("INGESTOR_ROUTING_KEY", "--routing-key", "file.{path}"),
        ("INGESTOR_ROUTING_KEY", "--routing-key", "file.{dir"),
        ("INGESTOR_ROUTING_KEY", "--routing-key", &long),
        ("INGESTOR_INCLUDE", "--include", "[a"),
        ("INGESTOR_INCLUDE", "--include", "!a"),
        ("INGESTOR_EXCLUDE", "--exclude", "{a,b"),
        ("INGESTOR_EXCLUDE", "--exclude", "../a"),
        ("INGESTOR_EXCLUDE", "--exclude", "/"),
    ];
    for (variable, flag, value) in cases {
        assert_refused(|it| it.env(variable, value), &[variable, flag]);
        assert_refused(|it| it.arg(format!("{flag}={value}")), &[variable, flag]);
    }
    // As a flag only: an empty variable counts as unset.
    assert_refused(|it| it.arg("--exchange="), &["--exchange (INGESTOR_EXCHANGE)"]);
    // As variables only, because clap checks the flags.
    assert_refused(|it| it.env("INGESTOR_RECURSIVE", "maybe"), &["INGESTOR_RECURSIVE", "--recursive"]);
    assert_refused(|it| it.env("INGESTOR_IGNORE_PARTIAL", "perhaps"), &["INGESTOR_IGNORE_PARTIAL"]);
    assert_refused(|it| it.env("INGESTOR_EXCLUDE", "*.good,*.{a,b},[bad"), &["\"[bad\""]);
    assert_refused(|it| it.env("INGESTOR_EXCLUDE", "*.a,"), &["INGESTOR_EXCLUDE"]);
}

#[test]
fn a_broker_url_that_cannot_be_used_is_refused_without_its_password() {
    let urls = [
        "http://someone:hunter2@localhost:5672/",
        "redis://someone:hunter2@localhost/",
        "amqp://someone:hunter2@localhost:99999/",
        "amqp://someone:hunter2@localhost:port/",
        "amqp//someone:hunter2@localhost",
        "someone:hunter2@localhost:5672",
        "amqp://someone:hunter2@:5672:1/",
        "amqp:/hunter2@",
        "amqp://someone:hunter2",
        "//someone:hunter2@localhost/",
    ];
    for url in urls {
        let (_root, data, _) = directories();
        let by_variable = Setup::watch(&data, url).run();
        let by_flag = Setup::watch(&data, NO_BROKER).args(&["--amqp-url", url]).run();
        for ended in [by_variable, by_flag] {
            let ended = ended.expect_code(2);
            ended.assert_one_line(&["AMQP_CONNECTION_STRING", "--amqp-url"]);
            assert!(!ended.stderr.contains("hunter2"), "a password: {}", ended.stderr);
        }
    }
}

#[test]
fn a_data_directory_that_is_missing_is_refused() {
    let (_root, data, _) = directories();
    let missing = data.join("missing");
    let named = missing.to_str().unwrap();
    let watch = Setup::watch(&missing, NO_BROKER).run().expect_code(2);
    watch.assert_one_line(&[named]);
    let scan = Setup::new(&["scan", "--output", "stdout", named]).run().expect_code(2);
    scan.assert_one_line(&[named]);
}

#[test]
fn a_data_directory_that_is_a_file_is_refused() {
    let (_root, data, _) = directories();
    let file = data.join("file");
    fs::write(&file, "content").unwrap();
    let named = file.to_str().unwrap();
    let watch = Setup::watch(&file, NO_BROKER).run().expect_code(2);
    watch.assert_one_line(&[named]);
    let scan = Setup::new(&["scan", "--output", "stdout", named]).run().expect_code(2);
    scan.assert_one_line(&[named]);
}

#[test]
fn a_data_directory_that_cannot_be_read_is_refused() {
    for mode in [0o000, 0o311] {
        let (_root, data, _) = directories();
        fs::set_permissions(&data, PermissionsExt::from_mode(mode)).unwrap();
        let setup = Setup::watch(&data, NO_BROKER);
        // Root reads everything, so the service is another user.
        let setup = if is_root() { setup.by_nobody() } else { setup };
        let ended = setup.run().expect_code(2);
        ended.assert_one_line(&[data.to_str().unwrap()]);
    }
}

#[test]
fn what_is_not_a_command_or_a_flag_is_refused() {
    assert_refused(|it| it.arg("--no-such-flag"), &["--no-such-flag"]);
    assert_refused(|it| it.arg("left-over"), &["left-over"]);
    let ended = Setup::new(&["wach"]).run().expect_code(2);
    ended.assert_one_line(&["wach"]);
    let ended = Setup::new(&["listen", "--count", "many"]).run().expect_code(2);
    ended.assert_one_line(&["--count"]);
    let ended = Setup::new(&["watch", "--data-dir"]).run().expect_code(2);
    ended.assert_one_line(&["--data-dir"]);
}

#[test]
fn help_and_version_work_on_every_command() {
    let commands = ["watch", "scan", "listen", "health", "status", "verify", "doctor", "completions"];
    for command in commands.iter().map(std::slice::from_ref).chain([&[][..]]) {
        let help = Setup::new(command).arg("--help").run().expect_code(0);
        assert!(help.stdout.contains("--help"), "{command:?}:\n{}", help.stdout);
        assert_eq!(help.stderr, "", "{command:?}");
        let version = Setup::new(command).arg("--version").run().expect_code(0);
        let expected = env!("CARGO_PKG_VERSION");
        assert!(version.stdout.contains(expected), "{command:?}: {}", version.stdout);
    }
}

#[test]
fn help_does_not_print_the_password_of_the_environment() {
    let ended = Setup::new(&["watch", "--help"])
        .env("AMQP_CONNECTION_STRING", "amqp://someone:hunter2@localhost/")
        .run()
        .expect_code(0);
    assert!(!ended.stdout.contains("hunter2"), "{}", ended.stdout);
}

#[test]
fn an_empty_variable_counts_as_unset() {
    let (_root, data, _) = directories();
    fs::write(data.join("file"), "content").unwrap();
    let variables = [
        "AMQP_CONNECTION_STRING",
        "AMQP_CONNECTION_STRING_FILE",
        "AMQP_PASSWORD_FILE",
        "CREDENTIALS_DIRECTORY",
        "DATA_DIRECTORY",
        "LOG_LEVEL",
        "INGESTOR_LOG_FORMAT",
        "INGESTOR_OUTPUT",
        "INGESTOR_RECURSIVE",
        "INGESTOR_CATCH_UP",
        "INGESTOR_RESCAN_SECONDS",
        "INGESTOR_REMOVALS",
        "INGESTOR_SETTLE_MS",
        "INGESTOR_WORKERS",
        "INGESTOR_READ_ENGINE",
        "INGESTOR_CONFIRM_WINDOW",
        "INGESTOR_UNROUTABLE",
        "INGESTOR_EXCHANGE",
        "INGESTOR_EXCHANGE_TYPE",
        "INGESTOR_ROUTING_KEY",
        "INGESTOR_RECONNECT_SECONDS",
        "STATE_DIRECTORY",
        "INGESTOR_INCLUDE",
        "INGESTOR_EXCLUDE",
        "INGESTOR_CONTROL_SOCKET",
        "INGESTOR_METRICS_ADDRESS",
        "INGESTOR_STALL_SECONDS",
    ];
    let mut setup = Setup::new(&["scan", "--output", "stdout"]).arg(&data);
    for variable in variables {
        setup = setup.env(variable, "");
    }
    let ended = setup.run().expect_code(0);
    assert_eq!(ended.stdout.lines().count(), 1, "{}", ended.stdout);
}

#[test]
fn a_flag_wins_over_its_variable() {
    let (_root, data, outside) = directories();
    fs::write(data.join("file"), "content").unwrap();
    let ended = Setup::new(&["scan", "--output", "stdout", "--log-level", "info"])
        .arg("--data-dir")
        .arg(&data)
        .env("INGESTOR_OUTPUT", "none")
        .env("DATA_DIRECTORY", &outside)
        .env("LOG_LEVEL", "ERROR")
        .run()
        .expect_code(0);
    assert_eq!(ended.stdout.lines().count(), 1, "{}", ended.stdout);
}

#[test]
fn a_log_level_is_read_in_any_case() {
    let (_root, data, _) = directories();
    for level in ["trace", "Debug", "INFO", "info", "WARN", "warning", "WARNING", "Error"] {
        Setup::new(&["scan", "--output", "none"]).arg(&data).env("LOG_LEVEL", level).run().expect_code(0);
    }
}

#[test]
fn the_level_warning_silences_info_lines() {
    let (_root, data, _) = directories();
    let mut service =
        Setup::new(&["watch", "--output", "stdout"]).env("DATA_DIRECTORY", &data).env("LOG_LEVEL", "WARNING").spawn();
    // No line says that it is ready, so files are written until a message comes.
    let deadline = Instant::now() + TIMEOUT;
    for number in 0.. {
        assert!(Instant::now() < deadline, "no message came:\n{}", service.stderr());
        assert!(service.is_running(), "it ended:\n{}", service.stderr());
        fs::write(data.join(format!("file-{number}")), "content").unwrap();
        if service.stdout_lines() > 0 {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let ended = service.stop();
    assert!(!ended.stderr.contains("INFO"), "{}", ended.stderr);
}

#[test]
fn the_log_as_json_is_one_object_a_line() {
    let (_root, data, _) = directories();
    let service = Setup::new(&["watch", "--output", "none"])
        .env("DATA_DIRECTORY", &data)
        .env("INGESTOR_LOG_FORMAT", "json")
        .env("LOG_LEVEL", "DEBUG")
        .spawn();
    service.wait_ready();
    let ended = service.stop();
    for line in ended.stderr.lines() {
        let parsed: Result<serde_json::Value, _> = serde_json::from_str(line);
        assert!(parsed.is_ok_and(|value| value.is_object()), "not a JSON object: {line}");
    }
}

#[test]
fn a_failure_before_the_start_is_one_json_object_where_the_log_is() {
    let (_root, data, _) = directories();
    let missing = data.join("missing");
    let by_flag = |words: &[&str]| Setup::new(words).args(&["--log-format", "json"]);
    let by_variable = |words: &[&str]| Setup::new(words).env("INGESTOR_LOG_FORMAT", "json");
    for setup in [
        by_flag(&["--workers", "0"]),
        by_variable(&["watch", "--no-such-flag"]),
        by_variable(&["wach"]),
        by_flag(&["listen", "--count", "many"]),
        by_flag(&["scan", "--output", "stdout", "--include", "["]),
        by_variable(&["watch", "--output", "none", "--data-dir"]).arg(&missing),
        by_variable(&["scan", "--output", "none"]).arg(&missing),
    ] {
        let ended = setup.run().expect_code(2);
        ended.assert_one_line(&["\"level\":\"ERROR\""]);
        let line: serde_json::Value =
            serde_json::from_str(&ended.stderr).unwrap_or_else(|_| panic!("{}", ended.stderr));
        assert!(line["message"].as_str().is_some_and(|message| message.contains("; ")), "{line}");
    }
    let text = by_variable(&["--workers", "0", "--log-format=text"]).run().expect_code(2);
    assert!(text.stderr.starts_with("error: "), "{}", text.stderr);
}

#[test]
fn the_log_as_text_has_no_terminal_colors_in_a_pipe() {
    let (_root, data, _) = directories();
    let service = Setup::new(&["watch", "--output", "none"]).env("DATA_DIRECTORY", &data).spawn();
    service.wait_ready();
    let ended = service.stop();
    assert!(!ended.stderr.contains('\u{1b}'), "{:?}", ended.stderr);
}

#[test]
fn output_to_stdout_needs_no_broker() {
    let (_root, data, _) = directories();
    let service = Setup::watch(&data, NO_BROKER).args(&["--output", "stdout"]).spawn();
    service.wait_ready();
    fs::write(data.join("file"), "content").unwrap();
    service.wait_stdout("the message of `file`", |line| line.contains("file"));
    let ended = service.stop();
    let messages = ended.messages();
    assert_eq!(messages.len(), 1, "{}", ended.stdout);
    assert_eq!(messages[0].path(), data.join("file").to_str().unwrap());
    assert_eq!(messages[0].event(), "IN_CREATE");
}

#[test]
fn output_to_nowhere_prints_nothing_on_stdout() {
    let (_root, data, _) = directories();
    fs::write(data.join("file"), "content").unwrap();
    let ended = Setup::new(&["scan", "--output", "none"]).arg(&data).run().expect_code(0);
    assert_eq!(ended.stdout, "");
}
