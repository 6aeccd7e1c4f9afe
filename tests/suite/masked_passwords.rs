//! A connection string is shown without its password wherever it was given, also where none belongs.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use crate::support::setup::Setup;
use crate::support::world::directories;

const SECRET: &str = "hunter2";

#[track_caller]
fn assert_masked(setup: Setup, what: &dyn std::fmt::Debug) {
    let ended = setup.run();
    let all = format!("{}{}", ended.stdout, ended.stderr);
    assert!(!all.contains(SECRET), "{what:?} shows a password: {all}");
    assert!(ended.status.code().is_some_and(|code| code <= 2) && !all.contains("panicked"), "{what:?}: {all}");
}

/// Nothing listens at port 1, and the data directory is good, so that each string gets as far as it can.
#[test]
fn no_line_shows_a_password_wherever_it_stands() {
    let (_root, data, _) = directories();
    let urls = [
        "amqp://user:hunter2@127.0.0.1:1/",
        "AMQP://user:hunter2@127.0.0.1:1/",
        "amqp://user:hunter2@127.0.0.1:1,[::1]:1/",
        "amqp://user:a b\"hunter2'@127.0.0.1:1/",
        "amqp://hunter2@127.0.0.1:1/",
        "user:hunter2@127.0.0.1",
        "amqp:user:hunter2",
        "amqp://user:hunter2\n\nx@127.0.0.1:1/",
    ];
    for url in urls {
        let lists = [
            vec![url],
            vec!["watch", url],
            vec!["watch", "--", url],
            vec!["scan", "--output", "stdout", url],
            vec!["listen", url],
            vec!["health", url],
            vec!["doctor", "--output", "none", "--control-socket", url],
            vec!["--data-dir", url],
            vec!["--amqp-ulr", url],
            vec!["--output", url],
            vec!["--metrics-address", url],
            vec!["--amqp-heartbeat", url],
            vec!["health", "--control-socket", url],
            vec!["--amqp-url", "amqps://h/", "--amqp-ca-file", url],
            vec!["--amqp-url-file", url],
            vec!["--include", url, "--include", "["],
            vec!["--amqp-url", url],
        ];
        for arguments in lists {
            assert_masked(Setup::new(&arguments).env("DATA_DIRECTORY", &data), &arguments);
        }
        for joined in ["--amqp-ulr=", "--amqp-url", "--output=", "--data-dir=", "-", "--include=!"] {
            let argument = format!("{joined}{url}");
            assert_masked(Setup::new(&[&argument]).env("DATA_DIRECTORY", &data), &argument);
        }
    }
}

#[test]
fn no_line_shows_a_password_from_the_environment() {
    let (_root, data, _) = directories();
    let url = "amqp://user:hunter2@127.0.0.1:1/";
    let variables = [
        "AMQP_CONNECTION_STRING",
        "AMQP_CONNECTION_STRING_FILE",
        "AMQP_PASSWORD_FILE",
        "DATA_DIRECTORY",
        "INGESTOR_OUTPUT",
        "INGESTOR_INCLUDE",
        "INGESTOR_CONTROL_SOCKET",
        "STATE_DIRECTORY",
        "LOG_LEVEL",
        "INGESTOR_AMQP_URL",
    ];
    for variable in variables {
        for arguments in [&["watch"][..], &["doctor"], &["--help"]] {
            let setup = Setup::new(arguments).env("DATA_DIRECTORY", &data).env("LOG_LEVEL", "TRACE");
            // A broker that is refused, so that nothing starts and no directory is made.
            let setup = setup.env("AMQP_CONNECTION_STRING", "amqp://h:port/").env(variable, url);
            assert_masked(setup, &(variable, arguments));
        }
    }
    let broken = OsString::from(OsStr::from_bytes(b"amqp://user:hunter2\xff@h/"));
    let ended = Setup::new(&["watch"]).env("AMQP_CONNECTION_STRING", &broken).run().expect_code(2);
    ended.assert_one_line(&["AMQP_CONNECTION_STRING"]);
    assert!(!ended.stderr.contains(SECRET), "{}", ended.stderr);
}
