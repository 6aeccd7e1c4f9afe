//! At a terminal the progress bar fits its width, and colors are shown where they are wanted.

use std::fs;

use crate::support::setup::Setup;
use crate::support::terminal::without_sequences;
use crate::support::world::directories;

/// Enough that their messages fill a pipe that nobody reads.
const FILES: usize = 400;

#[test]
fn the_bar_of_a_scan_fits_the_width_of_the_terminal() {
    let (_root, data, _) = directories();
    for number in 0..FILES {
        fs::write(data.join(format!("file-{number}")), "content").unwrap();
    }
    for (columns, parts) in [
        (100, &["░", " files  ", " kB  ", "/s  ", " left"][..]),
        (60, &[" files  ", " kB  ", "/s  ", " left"]),
        (40, &[" files  ", " kB"]),
        (10, &[" files"]),
    ] {
        let scan = Setup::new(&["scan", "--output", "stdout", "--log-level", "error"]).arg(&data).env("TERM", "xterm");
        let shown = scan.at_terminal(columns, true);
        // Nobody reads its standard output, so it comes to a halt in the middle.
        shown.wait_for("the bar", |text| drawn(text).iter().any(|line| parts.iter().all(|part| line.contains(part))));
        let text = shown.end();
        for line in drawn(&text) {
            assert!(line.chars().count() < columns.into(), "{columns} columns: {line:?}");
        }
    }
}

/// Each state of the bar that was drawn.
fn drawn(shown: &str) -> Vec<String> {
    let (_, text) = without_sequences(shown);
    text.split(['\r', '\n']).filter(|line| line.contains("files")).map(str::to_owned).collect()
}

#[test]
fn colors_and_the_bar_are_left_out_where_they_are_not_wanted() {
    let (_root, data, _) = directories();
    for number in 0..FILES {
        fs::write(data.join(format!("file-{number}")), "content").unwrap();
    }
    type Variables = &'static [(&'static str, &'static str)];
    let cases: [(Variables, bool, bool); 5] = [
        (&[("TERM", "xterm")], true, true),
        (&[("TERM", "xterm"), ("NO_COLOR", "")], true, true),
        (&[("TERM", "xterm"), ("NO_COLOR", "1")], false, true),
        (&[("TERM", "dumb")], false, false),
        (&[("TERM", "dumb"), ("CI", "true")], false, false),
    ];
    for (variables, colored, bar) in cases {
        let set = |setup: Setup| variables.iter().fold(setup, |setup, (name, value)| setup.env(name, value));
        let shown = set(Setup::new(&["scan", "--output", "stdout"]).arg(&data)).at_terminal(80, true);
        shown.wait_for("its first line", |text| text.contains("half-written") && (!bar || text.contains(" files  ")));
        let text = shown.end();
        let (letters, _) = without_sequences(&text);
        assert_eq!(letters.contains('m'), colored, "{variables:?}: {text:?}");
        assert_eq!(text.contains('░') || letters.contains('K'), bar, "{variables:?}: {text:?}");
        assert!(text.contains("done: 400 files"), "{text:?}");
        for help in [&["--help"][..], &["watch", "-h"], &["--version"]] {
            let text = set(Setup::new(help)).at_terminal(80, false).end();
            let (letters, _) = without_sequences(&text);
            let expected = colored && help != ["--version"];
            assert_eq!(letters.contains('m'), expected, "{help:?}, {variables:?}: {text:?}");
        }
    }
}
