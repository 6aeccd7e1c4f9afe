//! `status`: asks the service on this host what waits and why, what failed, and what became of a file.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::{fs, path};

use hyper::StatusCode;
use indicatif::{DecimalBytes, HumanDuration};
use serde_json::{Value, json};

use super::request::{Answered, another_program, request};
use crate::cli::Settings;
use crate::config::socket_places;
use crate::error::{Error, os_message};
use crate::files::writers::writers;
use crate::logging;
use crate::shown::{json_line, line};
use crate::status::file::encoded;
use crate::streams::stdout::print;

/// The longest answer, in bytes: four lists of 50 paths, each of 4096 bytes at the most, of which JSON makes six times as many.
const ANSWER_BYTES_MAX: usize = 8 << 20;

/// Outcomes that are printed; `--json` has more.
const RECENT_PRINTED: usize = 10;

/// Asks the service behind the control socket, and prints what it says, of one file or of all.
///
/// # Errors
/// [`Error::NoService`] when nobody answers; [`Error::Usage`] for a path that cannot be one; [`Error::Stdout`].
pub fn run(settings: &Settings, file: Option<&Path>, json: bool) -> Result<(), Error> {
    logging::start(settings);
    let file = file.map(real_path).transpose()?;
    let query =
        file.as_ref().map_or_else(String::new, |file| format!("?path={}", encoded(file.as_os_str().as_bytes())));
    let answered = request(&socket_places(settings), &format!("/status{query}"), ANSWER_BYTES_MAX)?;
    let Answered { socket, status, body } = answered;
    let parsed = serde_json::from_slice::<Value>(&body).ok().filter(|_| status == StatusCode::OK);
    let mut said = parsed.ok_or_else(|| another_program(&socket))?;
    add_writers(&mut said);
    if json {
        return print(&(json_line(&said.to_string()) + "\n"));
    }
    let lines = if file.is_some() { of_file(&said["file"], &said["files_missing"]) } else { of_all(&said) };
    print(&lines.into_iter().map(|each| line(each) + "\n").collect::<String>())
}

/// The absolute path of a file as the service names it: the links above it are resolved, and the file need not exist.
fn real_path(file: &Path) -> Result<PathBuf, Error> {
    let unusable = |cause: String| Error::usage(format!("{file:?}: {cause}"), "name a file");
    let absolute = path::absolute(file).map_err(|error| unusable(os_message(&error)))?;
    let name = absolute.file_name().ok_or_else(|| unusable("it names no file".to_owned()))?;
    let above = absolute.parent().unwrap_or(Path::new("/"));
    Ok(fs::canonicalize(above).unwrap_or_else(|_| above.to_owned()).join(name))
}

/// Adds the writers of files that the service may not see and this user may, as root does.
fn add_writers(said: &mut Value) {
    let Some(waiting) = said.pointer_mut("/files/waiting").and_then(Value::as_array_mut) else { return };
    let unknown = |it: &&mut Value| {
        it["open_by"].is_null() && matches!(it["reason"].as_str(), Some("settling" | "open_for_writing"))
    };
    let mut waiting: Vec<&mut Value> = waiting.iter_mut().filter(unknown).collect();
    let paths: Vec<String> = waiting.iter().filter_map(|it| it["path"].as_str().map(str::to_owned)).collect();
    for found in writers(&paths.iter().map(String::as_bytes).collect::<Vec<_>>()) {
        let Some(it) = waiting.get_mut(found.path) else { continue };
        it["reason"] = json!("open_for_writing");
        it["why"] = json!(format!("open for writing by pid {} ({})", found.pid, found.command));
        it["open_by"] = json!([{ "pid": found.pid, "command": found.command }]);
    }
}

/// The lines about one file.
fn of_file(file: &Value, missing: &Value) -> Vec<String> {
    if file.is_null() {
        return vec![format!("nothing is known of it now: {}", text(missing))];
    }
    let mut lines = vec![format!("{:?}: {}", text(&file["path"]), text(&file["line"]))];
    let last = if file["last"]["message_id"].is_null() { &file["ledger"] } else { &file["last"] };
    for (name, key) in
        [("message id", "message_id"), ("SHA-256", "sha256_hash"), ("XXH3-128", "xxh128_hash"), ("bytes", "bytes")]
    {
        if !last[key].is_null() {
            lines.push(format!("  {name:<10}  {}", text(&last[key])));
        }
    }
    lines
}

/// The lines about the service.
fn of_all(said: &Value) -> Vec<String> {
    let mut lines = vec![text(&said["summary"])];
    if said["ready"] == json!(false) {
        lines.push(text(&said["readiness"]));
    }
    lines.extend(of_service(said));
    let span = |key: &str, name: &str| rate(&said["rates"][key]).map(|rate| format!("last {name}: {rate}"));
    lines.extend([span("one_minute", "minute"), span("fifteen_minutes", "15 minutes")].into_iter().flatten());
    let reading = each(&said["reading"], |it| {
        let (at, of) = (number(&it["bytes"]), number(&it["of_bytes"]));
        let share = 100 * u128::from(at) / u128::from(of.max(1));
        format!("{:?}  {} of {} ({share} %)", text(&it["path"]), DecimalBytes(at), DecimalBytes(of))
    });
    section(&mut lines, "being read", None, reading);
    let files = &said["files"];
    if !said["files_missing"].is_null() {
        let what = if files.is_null() { "single files" } else { "some files" };
        lines.push(format!("nothing is known of {what} now: {}", text(&said["files_missing"])));
    }
    if files.is_null() {
        return lines;
    }
    let waiting = each(&files["waiting"], |it| format!("{:?}  {}  {}", text(&it["path"]), age(it), text(&it["why"])));
    section(&mut lines, "waiting", files["pending"].as_u64(), waiting);
    let refused =
        each(&files["unreadable_files"], |it| format!("{:?}  {}  {}", text(&it["path"]), age(it), text(&it["error"])));
    section(&mut lines, "cannot be read", files["unreadable"].as_u64(), refused);
    let unwatched = each(&files["unwatched_directories"], |it| format!("{:?}", text(&it["path"])));
    let without = format!("without a watch, rescanned instead ({})", text(&files["unwatched_error"]));
    section(&mut lines, &without, files["unwatched"].as_u64(), unwatched);
    section(&mut lines, "last failures", None, each(&files["failures"], ended));
    let mut recent = each(&files["recent"], ended);
    recent.truncate(RECENT_PRINTED);
    section(&mut lines, "last files", None, recent);
    lines
}

/// What was settled at start, and the broker.
fn of_service(said: &Value) -> Option<String> {
    let service = said["service"].as_object()?;
    let directories: Vec<String> = each(&service["directories"], |it| format!("{:?}", text(it)));
    let recursive = if service.get("recursive") == Some(&json!(true)) { ", recursive" } else { "" };
    let filters = service.get("filters").map(text).filter(|filters| !filters.is_empty());
    let filters = filters.map_or_else(String::new, |filters| format!("; {filters}"));
    let exchange = said["exchange"].as_str().map_or_else(String::new, |name| format!(", exchange {name}"));
    let broker = if said["broker"] == json!("unused") { String::new() } else { format!(", {}", text(&said["broker"])) };
    let output = service.get("output").map(text).unwrap_or_default();
    Some(format!("{}{recursive}{filters} to {output}{exchange}{broker}", directories.join(", ")))
}

fn rate(rate: &Value) -> Option<String> {
    let files = rate["files_per_second"].as_f64()?;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rate is shown roughly")]
    let bytes = DecimalBytes(rate["bytes_per_second"].as_f64()? as u64);
    let latency = rate["latency_seconds"]
        .as_f64()
        .map_or_else(String::new, |seconds| format!(", {:.1} ms from event to confirm", 1000.0 * seconds));
    Some(format!("{files:.1} files/s, {bytes}/s{latency}, {} failures", text(&rate["failures"])))
}

fn ended(it: &Value) -> String {
    let error = it["error"].as_str().map_or_else(String::new, |error| format!(": {error}"));
    format!("{}  {:?}  {}{error}", text(&it["time"]), text(&it["path"]), text(&it["outcome"]))
}

fn age(it: &Value) -> String {
    let seconds = it["seconds"].as_f64().unwrap_or(0.0).clamp(0.0, 1e12);
    format!("{:#}", HumanDuration(std::time::Duration::from_secs_f64(seconds)))
}

/// Adds a list under its heading, unless it is empty. `all`: how many there are, of which the list has some.
fn section(lines: &mut Vec<String>, heading: &str, all: Option<u64>, list: Vec<String>) {
    if list.is_empty() {
        return;
    }
    let more = all.map_or(0, |all| all.saturating_sub(list.len() as u64));
    lines.push(all.map_or_else(|| format!("{heading}:"), |all| format!("{heading}: {all}")));
    lines.extend(list.into_iter().map(|each| format!("  {each}")));
    if more > 0 {
        lines.push(format!("  and {more} more"));
    }
}

fn each(list: &Value, show: impl FnMut(&Value) -> String) -> Vec<String> {
    list.as_array().map(|list| list.iter().map(show).collect()).unwrap_or_default()
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

/// A value as text: a string without its quotes.
fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::*;

    #[test]
    fn the_path_is_the_one_that_the_service_knows() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().canonicalize().unwrap();
        fs::create_dir(real.join("data")).unwrap();
        std::os::unix::fs::symlink(real.join("data"), real.join("link")).unwrap();
        let file = OsStr::from_bytes(b"a\xff");
        assert_eq!(real_path(&real.join("link").join(file)).unwrap(), real.join("data").join(file));
        assert_eq!(real_path(&real.join("none/file")).unwrap(), real.join("none/file"));
        assert!(matches!(real_path(Path::new("/")), Err(Error::Usage { .. })));
    }

    #[test]
    fn every_list_says_how_many_there_are() {
        let mut lines = Vec::new();
        section(&mut lines, "waiting", Some(7), vec!["a".to_owned()]);
        section(&mut lines, "empty", Some(0), Vec::new());
        assert_eq!(lines, ["waiting: 7", "  a", "  and 6 more"]);
    }

    #[test]
    fn an_answer_of_another_version_is_shown_as_far_as_it_goes() {
        assert_eq!(of_all(&json!({"summary": "healthy"}))[0], "healthy");
        assert_eq!(of_file(&json!({"path": "/a", "line": "gone"}), &Value::Null), ["\"/a\": gone"]);
    }
}
