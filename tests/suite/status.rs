//! `GET /status` and `status`: what waits and why, what failed, and what became of a file.

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde_json::Value;

use crate::support::broker;
use crate::support::control::{ask, get};
use crate::support::setup::Setup;
use crate::support::wait::retry;
use crate::support::world::{World, directories};

/// A name that a terminal, a browser and a parser would each act on, and that is no UTF-8.
const HOSTILE: &[u8] = b"<script>alert(1)<script>&\"'\x1b[31m\n\xe2\x80\xae\xff%41";

/// The answer to `GET /status`, about one file where a path is given.
#[track_caller]
fn status(socket: &Path, path: Option<&Path>) -> Value {
    let encode =
        |path: &Path| path.as_os_str().as_bytes().iter().map(|byte| format!("%{byte:02x}")).collect::<String>();
    let query = path.map_or_else(String::new, |path| format!("?path={}", encode(path)));
    let (status, head, body) = get(socket, &format!("/status{query}"));
    assert!(status == 200 && head.contains("content-type: application/json"), "{head}\n{body}");
    serde_json::from_str(&body).unwrap_or_else(|error| panic!("{error}: {body}"))
}

/// Waits until the answer is as wanted.
#[track_caller]
fn wait_for_status(socket: &Path, path: Option<&Path>, what: &str, enough: impl Fn(&Value) -> bool) -> Value {
    retry(what, || {
        let status = status(socket, path);
        if enough(&status) { Ok(status) } else { Err(format!("{status:#}")) }
    })
}

/// Consumers have a message some time before the service has its confirm.
#[track_caller]
fn assert_fate(socket: &Path, path: &Path, fate: &str, words: &str) -> Value {
    let mut status = wait_for_status(socket, Some(path), fate, |it| it["file"]["fate"] == fate);
    let file = status["file"].take();
    assert!(file["fate"] == fate && file["line"].as_str().is_some_and(|line| line.contains(words)), "{file:#}");
    file
}

/// What `status` prints with these arguments.
#[track_caller]
fn command(socket: &Path, arguments: &[&OsStr]) -> String {
    let status = [OsStr::new("status")].into_iter().chain(arguments.iter().copied()).collect::<Vec<_>>();
    Setup::new(&status).env("INGESTOR_CONTROL_SOCKET", socket).run().expect_code(0).stdout
}

#[test]
fn each_file_has_an_answer() {
    let mut world = World::without_service();
    let state = world.outside.join("state");
    let with = |it: Setup| it.env("STATE_DIRECTORY", &state).args(&["--exclude", "*.tmp"]);
    world.launch(with);
    let socket = world.service().control_socket();
    world.write("left.tmp", "left out");
    symlink("/etc/hostname", world.path("link-out")).unwrap();
    world.write("a.flac", "content");
    let message = world.wait_for_one("a.flac");
    let file = assert_fate(&socket, &world.path("a.flac"), "confirmed", "confirmed at 20");
    assert_eq!(file["last"]["message_id"], message.message_id());
    assert_eq!(file["last"]["sha256_hash"], message.sha256());
    assert_eq!(file["last"]["xxh128_hash"], message.text("xxh128_hash"));
    assert_fate(&socket, &world.path("left.tmp"), "filtered", "--exclude leaves it out by the glob \"*.tmp\"");
    assert_fate(&socket, &world.path("none"), "never_seen", "no such file");
    assert_fate(&socket, &world.path("sub/none"), "outside", "--recursive");
    assert_fate(&socket, Path::new("/etc/hostname"), "outside", "none of the data directories");
    let has_failed = |it: &Value| it["files"]["failures"].as_array().is_some_and(|failures| !failures.is_empty());
    let all = wait_for_status(&socket, None, "the link's failure", has_failed);
    let failures = &all["files"]["failures"];
    assert_eq!(
        (failures[0]["outcome"].as_str(), failures.as_array().unwrap().len()),
        (Some("leads_out"), 1),
        "{all:#}"
    );
    assert_eq!(failures[0]["path"], world.path("link-out").to_str().unwrap());
    assert_eq!((&all["status"], &all["ready"], &all["broker"]), (&"healthy".into(), &true.into(), &"connected".into()));
    assert_eq!(all["service"]["filters"], "--exclude \"*.tmp\" --ignore-partial");
    let shown = command(&socket, &[world.path("a.flac").as_os_str()]);
    assert!(shown.contains(message.sha256()) && shown.contains(message.message_id()), "{shown}");
    let shown = command(&socket, &[]);
    assert!(shown.starts_with("healthy: ") && shown.contains("link-out") && shown.contains("confirmed"), "{shown}");

    // The next run has the ledger alone.
    world.stop_service();
    world.launch(with);
    let socket = world.service().control_socket();
    let file = wait_for_status(&socket, Some(&world.path("a.flac")), "the ledger's row", |it| {
        it["file"]["fate"] == "in_ledger"
    })["file"]
        .take();
    assert_eq!(file["ledger"]["message_id"], message.message_id(), "{file:#}");
    assert_eq!(file["ledger"]["sha256_hash"], message.sha256());
    fs::remove_file(world.path("a.flac")).unwrap();
    wait_for_status(&socket, Some(&world.path("a.flac")), "its end", |it| it["file"]["fate"] == "never_seen");
}

#[test]
fn a_file_that_is_open_for_writing_names_its_writer() {
    let mut world = World::start_with(|it| it.args(&["--settle-ms", "60000"]));
    let socket = world.service().control_socket();
    let mut writer = File::create(world.path("open")).unwrap();
    writer.write_all(b"half").unwrap();
    let path = world.path("open");
    let open = |it: &Value| it["files"]["waiting"][0]["reason"] == "open_for_writing";
    let all = wait_for_status(&socket, None, "a file that is open for writing", open);
    let waiting = &all["files"]["waiting"][0];
    assert_eq!(waiting["open_by"][0]["pid"], std::process::id(), "{waiting:#}");
    assert_eq!(waiting["path"], path.to_str().unwrap());
    let file = status(&socket, Some(&path));
    assert!(file["file"]["fate"] == "waiting" && file["file"]["waiting"]["open_by"].is_array(), "{file:#}");
    let shown = command(&socket, &[]);
    assert!(shown.contains(&format!("open for writing by pid {}", std::process::id())), "{shown}");
    drop(writer);
    world.wait_for_one("open");
}

#[test]
fn a_message_without_a_queue_says_so_by_the_files_name() {
    let (_root, data, _) = directories();
    let service = Setup::watch(&data, &broker::shared().vhost()).spawn();
    service.wait_ready();
    fs::write(data.join("waits"), "content").unwrap();
    let waits = |it: &Value| it["files"]["waiting"][0]["reason"] == "no_queue";
    let all = wait_for_status(&service.control_socket(), None, "a file that waits for a queue", waits);
    assert_eq!(all["files"]["waiting"][0]["path"], data.join("waits").to_str().unwrap());
    assert!(all["ready"] == false && all["readiness"].as_str().unwrap().contains("no queue"), "{all:#}");
}

#[test]
fn a_file_without_a_right_to_it_is_named_with_its_error() {
    let mut world = World::start_with(Setup::by_nobody);
    let socket = world.service().control_socket();
    let secret = world.outside.join("secret");
    fs::write(&secret, "content").unwrap();
    fs::set_permissions(&secret, Permissions::from_mode(0o000)).unwrap();
    fs::rename(&secret, world.path("secret")).unwrap();
    let refused = |it: &Value| it["files"]["unreadable"] == 1;
    let all = wait_for_status(&socket, None, "a file that cannot be read", refused);
    let file = &all["files"]["unreadable_files"][0];
    assert_eq!((&file["path"], &file["directory"]), (&world.path("secret").to_str().unwrap().into(), &false.into()));
    assert!(file["error"].as_str().unwrap().contains("Permission denied"), "{file:#}");
    assert_eq!(all["files"]["failures"][0]["outcome"], "unreadable", "{all:#}");
    assert_fate(&socket, &world.path("secret"), "unreadable", "Permission denied");
}

#[test]
fn a_large_file_shows_how_far_it_is() {
    let mut world = World::start();
    let socket = world.service().control_socket();
    let hole = world.outside.join("hole");
    // A hole takes no room, and is read for minutes.
    File::create(&hole).unwrap().set_len(400 << 30).unwrap();
    fs::rename(&hole, world.path("hole")).unwrap();
    let reading = |it: &Value| it["reading"][0]["bytes"].as_u64().is_some_and(|bytes| bytes > 0);
    let all = wait_for_status(&socket, None, "a file that is being read", reading);
    let read = &all["reading"][0];
    assert_eq!(
        (&read["path"], &read["of_bytes"]),
        (&world.path("hole").to_str().unwrap().into(), &(400u64 << 30).into())
    );
    assert_eq!(all["files"]["waiting"][0]["reason"], "reading", "{all:#}");
    fs::remove_file(world.path("hole")).unwrap();
}

#[test]
fn a_hostile_name_is_data_and_nothing_else() {
    let mut world = World::start();
    let socket = world.service().control_socket();
    let path = world.data.join(OsStr::from_bytes(HOSTILE));
    fs::write(&path, "content").unwrap();
    world.pass_sentinel();
    let file = assert_fate(&socket, &path, "confirmed", "confirmed at 20");
    assert_eq!(file["path"], path.to_string_lossy().as_ref());
    assert!(file["path_encoded"].as_str().unwrap().ends_with("%0A%E2%80%AE%FF%2541"), "{file:#}");
    let (_, _, body) = get(&socket, "/status");
    assert!(!body.contains('\u{202e}') && body.lines().count() == 1 && !body.contains('\u{1b}'), "{body}");
    let shown = command(&socket, &[path.as_os_str()]);
    assert!(shown.contains(": confirmed at") && !shown.contains('\u{202e}') && !shown.contains('\u{1b}'), "{shown}");
    let json = command(&socket, &[OsStr::new("--json"), path.as_os_str()]);
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["file"]["fate"], "confirmed");
}

#[test]
fn a_question_that_is_none_is_refused() {
    let mut world = World::start();
    let socket = world.service().control_socket();
    for query in ["path=relative", "path=", "path=/a%00b"] {
        let (status, _, body) = get(&socket, &format!("/status?{query}"));
        assert!(status == 400 && body.lines().count() == 1, "{query}: {body}");
    }
    let missing = world.path("nobody.sock");
    let ended = Setup::new(&["status"]).env("INGESTOR_CONTROL_SOCKET", missing).run().expect_code(1);
    assert!(ended.stderr.contains("no service answers") && ended.stderr.lines().count() == 1, "{}", ended.stderr);
}

#[test]
fn the_page_shows_the_same_with_every_name_escaped() {
    let mut world = World::start_with(|it| it.args(&["--exclude", "<b>*"]));
    let socket = world.service().control_socket();
    fs::write(world.data.join(OsStr::from_bytes(HOSTILE)), "content").unwrap();
    symlink("/etc/hostname", world.path("<i>link-out")).unwrap();
    let _writer = File::create(world.path("<u>open")).unwrap();
    world.pass_sentinel();
    let (status, head, page) = get(&socket, "/");
    assert!(status == 200 && head.contains("content-type: text/html; charset=utf-8"), "{head}");
    assert!(head.contains("content-security-policy: default-src 'none'") && head.contains("cache-control: no-store"));
    for name in ["<b>*", "<i>", "<u>", "\u{1b}", "\u{202e}"] {
        assert!(!page.contains(name), "{name:?}:\n{page}");
    }
    assert_eq!(page.matches("<script").count(), 1, "{page}");
    let shown = "&lt;script&gt;alert(1)&lt;script&gt;&amp;&quot;&#39;\\u{1b}[31m\\n\\u{202e}\u{fffd}%41";
    for words in [
        shown,
        "&lt;i&gt;link-out",
        "&lt;u&gt;open",
        "&lt;b&gt;*",
        "leads out of the data directory",
        "<h1>healthy</h1>",
        "Files a second",
        "apollonia",
        world.data.to_str().unwrap(),
    ] {
        assert!(page.contains(words), "{words}:\n{page}");
    }
    assert!(!page.contains("http://") && !page.contains("https://") && !page.contains("guest:guest"), "{page}");
    assert_eq!(get(&socket, "/?anything").0, 200);
    assert_eq!(ask(UnixStream::connect(&socket).unwrap(), "POST /").0, 405);
}
