//! Each event is one line of the log, whatever names the files have.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;

use crate::support::setup::Setup;
use crate::support::world::directories;

/// A forged line, terminal controls of both kinds, line and paragraph separators, and text turned around.
const NAME: &str = "x\n2026-11-27T00:00:00.000000Z ERROR forged \u{1b}[31m\u{1b}]0;title\u{7}\r\u{7f}\u{85}\u{9b}31m\u{2028}\u{2029}\u{202e}\u{2066}\u{200f}\u{feff}\t";

/// Makes files of every kind that has a line of its own, and waits until all of them have been looked at.
fn log(format: &str) -> String {
    let (_root, data, outside) = directories();
    let home = data.join(format!("home{NAME}"));
    fs::create_dir(&home).unwrap();
    let state = outside.join(format!("state{NAME}"));
    let service = Setup::new(&["watch", "--output", "stdout", "--recursive"])
        .arg("--data-dir") // the variable would be divided at each colon
        .arg(&home)
        .env("STATE_DIRECTORY", &state)
        .env("INGESTOR_LOG_FORMAT", format)
        .env("LOG_LEVEL", "TRACE")
        .spawn();
    service.wait_ready();
    symlink("/etc/hostname", home.join(format!("link{NAME}"))).unwrap();
    fs::create_dir(home.join(format!("directory{NAME}"))).unwrap();
    fs::write(home.join(format!("left out{NAME}.part")), "").unwrap();
    fs::write(home.join(OsStr::from_bytes(format!("bytes{NAME}").as_bytes())), "").unwrap();
    fs::write(home.join(OsStr::from_bytes(b"not \xff\xc2 UTF-8 \x1b\n")), "").unwrap();
    fs::write(home.join(format!("last{NAME}")), "content").unwrap();
    service.wait_stdout("the last file's message", |line| line.contains("/last"));
    service.wait_log("the last file's line", |line| line.contains("/last") && line.contains("confirmed"));
    service.stop().stderr
}

#[test]
fn no_name_breaks_a_line_of_text() {
    let log = log("text");
    for line in log.lines() {
        // 2026-11-27T00:00:00.000000Z, then the level.
        let starts = line.len() > 27 && line.as_bytes()[26] == b'Z' && line.is_char_boundary(33);
        assert!(starts, "no line of its own: {line:?}");
        assert!(!line[27..33].contains("ERROR"), "a forged line: {line:?}");
        let bad = |each: char| each.is_control() || "\u{2028}\u{2029}\u{202e}\u{2066}\u{200f}\u{feff}".contains(each);
        assert!(!line.contains(bad), "{line:?}");
    }
    for word in ["link", "left out", "bytes", "home", "not "] {
        assert!(log.contains(word), "{word} has no line: {log}");
    }
}

#[test]
fn no_name_breaks_a_line_of_json() {
    let log = log("json");
    let mut paths = Vec::new();
    for line in log.lines() {
        assert!(!line.contains(|each: char| each.is_control() || "\u{2028}\u{202e}".contains(each)), "{line:?}");
        let object: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line:?}"));
        paths.extend(object["path"].as_str().map(str::to_owned));
    }
    assert!(paths.iter().any(|path| path.ends_with(&format!("last{NAME}"))), "a name was changed: {paths:?}");
}
