//! Whose control socket is asked, and where a service makes its own when the place is taken.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with};
use rustix::process::Signal;

use crate::support::control::{get, health, health_command};
use crate::support::setup::{NOBODY, Setup};
use crate::support::world::directories;
use crate::support::{is_root, skip};

/// Where the systemd unit has its socket.
const UNIT: &str = "/run/apollonia-ingestor";

/// Held by the tests that look there, since it is one for the whole machine.
static UNIT_PLACE: Mutex<()> = Mutex::new(());

/// A command whose default place is in this directory.
fn at_default(command: &str, data: &Path, runtime: &Path) -> Setup {
    let setup = Setup::new(&[command]).env("DATA_DIRECTORY", data).env("INGESTOR_OUTPUT", "none");
    setup.env("INGESTOR_CONTROL_SOCKET", "").env("RUNTIME_DIRECTORY", runtime)
}

/// A listener that takes no further connection; connect(2) would wait for it.
fn full_listener(path: &Path) -> Vec<std::os::fd::OwnedFd> {
    let address = SocketAddrUnix::new(path).unwrap();
    let socket = || socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::NONBLOCK, None).unwrap();
    let listener = socket();
    bind(&listener, &address).unwrap();
    listen(&listener, 0).unwrap();
    let mut held = vec![listener];
    loop {
        let client = socket();
        if connect(&client, &address).is_err() {
            return held;
        }
        held.push(client);
    }
}

#[test]
fn another_users_socket_is_neither_waited_for_nor_believed() {
    if !is_root() {
        return skip("only root can make another user's socket");
    }
    let (_root, data, runtime) = directories();
    let place = runtime.join("ingestor.sock");
    let full = full_listener(&place);
    chown(&place, Some(NOBODY), None).unwrap();
    let doctor = at_default("doctor", &data, &runtime).run().expect_code(0);
    assert!(doctor.stdout.contains("warn  service") && doctor.stdout.contains("user 65534"), "{}", doctor.stdout);
    let asked = at_default("health", &data, &runtime).run().expect_code(1);
    assert!(asked.stderr.contains("user 65534") && asked.stderr.contains("not asked"), "{}", asked.stderr);
    let named = Setup::watch(&data, "amqp://h").env("INGESTOR_CONTROL_SOCKET", &place).run().expect_code(2);
    assert!(named.stderr.contains("INGESTOR_CONTROL_SOCKET") && named.stderr.contains("user 65534"), "{named:?}");

    let service = at_default("watch", &data, &runtime).spawn();
    service.wait_log("a WARN with the other name", |line| line.contains("WARN") && line.contains("ingestor-2.sock"));
    service.wait_ready();
    assert_eq!(health(&runtime.join("ingestor-2.sock")).0, 200);
    at_default("health", &data, &runtime).run().expect_code(0);
    service.stop();
    drop(full);
}

#[test]
fn a_socket_counts_for_its_listener_not_for_its_file() {
    if !is_root() {
        return skip("only root can run the service as another user");
    }
    let (_root, data, _) = directories();
    let service = Setup::new(&["watch", "--output", "none"]).env("DATA_DIRECTORY", &data).by_nobody().spawn();
    service.wait_ready();
    let socket = service.control_socket();
    // All users can write to its directory, so it could be anybody's.
    for owner in [NOBODY, 0] {
        chown(&socket, Some(owner), None).unwrap();
        let ended = health_command(&socket).expect_code(1);
        assert!(ended.stderr.contains("user 65534") && ended.stderr.lines().count() == 1, "{}", ended.stderr);
    }
}

#[test]
fn an_answer_is_shown_on_one_line() {
    let (_root, data, runtime) = directories();
    let listener = UnixListener::bind(runtime.join("ingestor.sock")).unwrap();
    let body = r#"{"summary":"healthy: \u001b]0;title\u0007\u001b[31m\nERROR forged\u0085\u2028\u202e"}"#;
    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            use std::io::{Read, Write};
            for _ in 0..2 {
                let (mut stream, _) = listener.accept().unwrap();
                let _ = stream.read(&mut [0; 4096]).unwrap();
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        for command in ["health", "doctor"] {
            let ended = at_default(command, &data, &runtime).run().expect_code(0);
            assert!(ended.stdout.contains("ERROR forged"), "{}", ended.stdout);
            let bad = |each: char| each != '\n' && (each.is_control() || "\u{2028}\u{202e}".contains(each));
            assert!(!ended.stdout.contains(bad) && !ended.stdout.contains("\nERROR"), "{:?}", ended.stdout);
        }
    });
}

#[test]
fn two_services_of_one_user_both_have_a_socket() {
    let (_root, data, runtime) = directories();
    let [first, second] = ["ingestor.sock", "ingestor-2.sock"].map(|name| runtime.join(name));
    let start = || {
        let service = at_default("watch", &data, &runtime).spawn();
        service.wait_ready();
        service
    };
    let one = start();
    let two = start();
    assert!(two.stderr().contains("ingestor-2.sock") && !one.stderr().contains("ingestor-2"), "{}", two.stderr());
    assert_eq!(
        (health(&first).1["pid"].as_u64(), health(&second).1["pid"].as_u64()),
        (Some(one.id().into()), Some(two.id().into()))
    );
    one.signal(Signal::KILL);
    one.wait_exit();
    let asked = at_default("health", &data, &runtime).run().expect_code(1);
    assert!(asked.stderr.contains("ingestor.sock\": Connection refused"), "the other's health hides it: {asked:?}");
    let again = start();
    assert_eq!(health(&first).1["pid"].as_u64(), Some(again.id().into()), "a dead process's socket is replaced");
    again.stop();
    two.stop();
    assert_eq!(fs::read_dir(&runtime).unwrap().count(), 0, "each removes its own");
}

#[test]
fn the_users_runtime_directory_comes_before_tmp() {
    let (_root, data, runtime) = directories();
    let set = |command: &str| {
        let setup = Setup::new(&[command]).env("DATA_DIRECTORY", &data).env("INGESTOR_OUTPUT", "none");
        setup.env("INGESTOR_CONTROL_SOCKET", "").env("XDG_RUNTIME_DIR", &runtime)
    };
    let service = set("watch").spawn();
    service.wait_ready();
    let socket = runtime.join("apollonia-ingestor.sock");
    assert_eq!(fs::symlink_metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(get(&socket, "/ready").0, 200);
    let _held = UNIT_PLACE.lock().unwrap_or_else(PoisonError::into_inner);
    if !Path::new(UNIT).exists() {
        set("health").run().expect_code(0);
    }
    service.stop();
}

#[test]
fn whatever_is_at_the_place_stays_there() {
    let (_root, data, runtime) = directories();
    let place = runtime.join("ingestor.sock");
    let target = runtime.join("target");
    fs::write(&target, "content").unwrap();
    let make: [&dyn Fn(); 3] =
        [&|| fs::write(&place, "content").unwrap(), &|| fs::create_dir(&place).unwrap(), &|| {
            std::os::unix::fs::symlink(&target, &place).unwrap()
        }];
    for make in make {
        make();
        let service = at_default("watch", &data, &runtime).spawn();
        service.wait_ready();
        assert_eq!(get(&runtime.join("ingestor-2.sock"), "/health").0, 200);
        service.stop();
        assert!(UnixStream::connect(&place).is_err());
        let _ = fs::remove_file(&place).or_else(|_| fs::remove_dir(&place));
    }
    assert_eq!(fs::read(&target).unwrap(), b"content");
}

/// The unit's directory, for as long as the test runs.
struct UnitDirectory;

impl Drop for UnitDirectory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(UNIT);
    }
}

/// Root asks the service of the unit, which has a user of its own.
#[test]
fn health_finds_the_service_of_the_unit() {
    let _held = UNIT_PLACE.lock().unwrap_or_else(PoisonError::into_inner);
    if !is_root() || fs::create_dir(UNIT).is_err() {
        return skip("only root can make the unit's directory, where there is none");
    }
    let _directory = UnitDirectory;
    chown(UNIT, Some(NOBODY), None).unwrap();
    fs::set_permissions(UNIT, PermissionsExt::from_mode(0o750)).unwrap();
    let (_root, data, _) = directories();
    let service = Setup::new(&["watch", "--output", "none"])
        .env("DATA_DIRECTORY", &data)
        .env("INGESTOR_CONTROL_SOCKET", PathBuf::from(UNIT).join("ingestor.sock"))
        .by_nobody()
        .spawn();
    service.wait_ready();
    let health = || Setup::new(&["health"]).env("INGESTOR_CONTROL_SOCKET", "");
    health().run().expect_code(0);
    fs::set_permissions(UNIT, PermissionsExt::from_mode(0o777)).unwrap();
    let ended = health().run().expect_code(1);
    assert!(ended.stderr.contains("user 65534"), "a directory that others can write to: {}", ended.stderr);
    service.stop();
}
