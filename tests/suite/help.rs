//! The help shows what a command uses and no more, a command reads no other variable, and what is mistyped brings what is
//! similar, in one line.

use std::fs;
use std::path::Path;

use crate::support::broker::NO_BROKER;
use crate::support::setup::{Setup, binary};
use crate::support::world::directories;

/// Flags of all groups.
const FLAGS: [&str; 9] = [
    "--data-dir",
    "--include",
    "--state-dir",
    "--workers",
    "--amqp-url",
    "--output",
    "--confirm-window",
    "--control-socket",
    "--log-level",
];

#[test]
fn the_help_of_a_command_shows_the_settings_that_it_uses() {
    let cases: [(&[&str], &[&str]); 9] = [
        (&[], &FLAGS),
        (&["watch"], &FLAGS),
        (&["doctor"], &FLAGS),
        (
            &["scan"],
            &["--data-dir", "--include", "--workers", "--amqp-url", "--output", "--confirm-window", "--log-level"],
        ),
        (&["listen"], &["--amqp-url", "--log-level"]),
        (&["health"], &["--control-socket", "--log-level"]),
        (&["verify"], &["--data-dir", "--include", "--state-dir", "--workers", "--log-level"]),
        (&["status"], &["--control-socket", "--log-level"]),
        (&["completions"], &[]),
    ];
    for (command, used) in cases {
        let help = Setup::new(command).arg("--help").run().expect_code(0).stdout;
        let flags = help.lines().filter_map(|line| line.trim_start().split([' ', '[']).next());
        let shown: Vec<&str> = flags.filter(|flag| FLAGS.contains(flag)).collect();
        assert_eq!(shown, used, "{command:?}:\n{help}");
        assert!(!help.contains("\nSettings:"), "the settings stand in groups:\n{help}");
    }
}

#[test]
fn a_variable_that_a_command_does_not_use_does_not_keep_it_from_running() {
    let (_root, data, _) = directories();
    fs::write(data.join("file"), "content").unwrap();
    let health = Setup::new(&["health"]).env("INGESTOR_WORKERS", "0").env("INGESTOR_SETTLE_MS", "x").run();
    assert!(health.expect_code(1).stderr.contains("no service answers"));
    let scan = Setup::new(&["scan", "--output", "stdout"]).arg(&data).env("INGESTOR_SETTLE_MS", "x").run();
    assert_eq!(scan.expect_code(0).messages().len(), 1);
    Setup::new(&["completions", "bash"]).env("LOG_LEVEL", "x").run().expect_code(0);
    for command in ["watch", "doctor", "scan"] {
        let refused = Setup::new(&[command]).env("DATA_DIRECTORY", &data).env("INGESTOR_WORKERS", "0").run();
        refused.expect_code(2).assert_one_line(&["INGESTOR_WORKERS"]);
    }
}

#[test]
fn a_mistyped_word_brings_what_is_similar_in_its_one_line() {
    let cases: [(&[&str], &str); 6] = [
        (&["--wrokers", "3"], "--workers"),
        (&["watch", "--recursiv"], "--recursive"),
        (&["wach"], "watch"),
        (&["scan", "--output", "stdou"], "stdout"),
        (&["listen", "--cuont"], "--count"),
        (&["health", "--redy"], "--ready"),
    ];
    for (words, similar) in cases {
        let ended = Setup::new(words).run().expect_code(2);
        ended.assert_one_line(words);
        assert!(ended.stderr.contains("similar") && ended.stderr.contains(similar), "{words:?}: {}", ended.stderr);
    }
}

#[test]
fn watch_takes_its_directories_behind_the_command() {
    let (root, data, outside) = directories();
    let service = Setup::new(&["watch", "--output", "stdout"])
        .arg(&data)
        .arg(&outside)
        .env("DATA_DIRECTORY", root.path().join("none"))
        .spawn();
    service.wait_ready();
    for directory in [&data, &outside] {
        fs::write(directory.join("file"), "content").unwrap();
        let path = directory.join("file");
        service.wait_stdout("its message", |line| line.contains(path.to_str().unwrap()));
    }
    service.stop();
    // Named in both ways, one of the two would not be watched.
    for command in ["watch", "scan"] {
        let both = Setup::new(&[command]).arg(&data).arg("--data-dir").arg(&outside);
        let ended = both.env("AMQP_CONNECTION_STRING", NO_BROKER).run().expect_code(2);
        ended.assert_one_line(&["--data-dir"]);
    }
}

#[test]
fn completions_are_printed_for_each_shell() {
    for (shell, word) in [("bash", "complete -F"), ("zsh", "#compdef apollonia-ingestor"), ("fish", "complete -c")] {
        let ended = Setup::new(&["completions", shell]).run().expect_code(0);
        for word in [word, "--state-dir", "--count", "completions"] {
            assert!(ended.stdout.contains(word) || ended.stdout.contains(word.trim_start_matches('-')), "{word}");
        }
        assert_eq!(ended.stderr, "");
    }
    // bash itself completes the flags of a command, and no others.
    let script = "source <(\"$0\" completions bash); COMP_WORDS=(apollonia-ingestor listen --); COMP_CWORD=2; \
                  _apollonia__ingestor apollonia-ingestor -- listen; echo \"${COMPREPLY[*]}\"";
    let completed = Setup::of(Path::new("bash"), &["-c", script]).arg(binary()).run().expect_code(0).stdout;
    assert!(completed.contains("--count") && !completed.contains("--workers"), "{completed}");
    Setup::new(&["completions", "csh"]).run().expect_code(2).assert_one_line(&["csh"]);
    Setup::new(&["completions", "bash"]).spawn_unread().wait_exit().expect_code(0);
}
