//! The connection string and its password from files, and what is refused of them without a word of their content.

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::support::broker;
use crate::support::setup::Setup;
use crate::support::world::directories;

const URL_FILE: &str = "AMQP_CONNECTION_STRING_FILE";
const PASSWORD_FILE: &str = "AMQP_PASSWORD_FILE";

struct Secrets {
    _root: TempDir,
    data: PathBuf,
    files: PathBuf,
}

impl Secrets {
    fn new(files: &[(&str, &[u8])]) -> Self {
        let (root, data, outside) = directories();
        fs::write(data.join("file"), "content").unwrap();
        files.iter().for_each(|(name, content)| fs::write(outside.join(name), content).unwrap());
        Self { _root: root, data, files: outside }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.files.join(name)
    }

    fn command(&self, name: &str) -> Setup {
        // No queue is bound, and none is waited for.
        Setup::new(&[name]).env("DATA_DIRECTORY", &self.data).env("INGESTOR_UNROUTABLE", "warn")
    }
}

/// Every command that connects reads the files: a wrong password in one is refused by the broker, a right one is not.
#[test]
fn all_commands_log_in_with_what_the_files_hold() {
    let url = broker::shared().vhost();
    let without_password = url.replace("guest:guest@", "guest@");
    assert_ne!(url, without_password);
    let secrets = Secrets::new(&[
        ("url", format!("{url}\n").as_bytes()),
        ("amqp-url", without_password.as_bytes()),
        ("amqp-password", b"guest\n"),
        ("wrong", b"hunter2 @:/%\n"),
    ]);
    // All at once, because the broker takes its time to refuse a login.
    let with_wrong_password = ["watch", "scan", "listen", "doctor"].map(|command| {
        let setup = secrets.command(command).env("AMQP_CONNECTION_STRING", &without_password);
        (command, setup.env(PASSWORD_FILE, secrets.file("wrong")).spawn())
    });
    for (command, service) in with_wrong_password {
        let ended = service.wait_exit().expect_code(1);
        let all = ended.stdout + &ended.stderr;
        assert!(all.contains("correct user, password") && !all.contains("hunter2"), "{command}: {all}");
    }
    let by_flag = secrets.command("scan").arg("--amqp-url-file").arg(secrets.file("url"));
    by_flag.run().expect_code(0);
    // An empty variable counts as unset, and a credential is read where nothing is set.
    let by_credentials = |command| {
        let setup = secrets.command(command).env("CREDENTIALS_DIRECTORY", &secrets.files);
        setup.env("AMQP_CONNECTION_STRING", "").env(URL_FILE, "").env(PASSWORD_FILE, "")
    };
    let ended = by_credentials("doctor").run().expect_code(0);
    assert!(ended.stdout.contains("logged in") && ended.stdout.contains("guest:***@"), "{}", ended.stdout);
    let service = by_credentials("watch").spawn();
    service.wait_ready();
    let ended = service.stop();
    assert!(ended.stderr.contains("guest:***@") && !ended.stderr.contains("guest:guest"), "{}", ended.stderr);
}

#[test]
fn a_file_that_cannot_be_used_is_refused_in_one_line() {
    let secrets = Secrets::new(&[
        ("empty", b"\n"),
        ("binary", b"hunter2\xff"),
        ("large", &vec![b'x'; 100_000]),
        ("word", b"hunter2"),
        ("two", b"amqp://u:hunter2@h/\nhunter2\n"),
    ]);
    fs::create_dir(secrets.file("directory")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        secrets.file("fifo"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    let _listener = UnixListener::bind(secrets.file("socket")).unwrap();
    let refused = |command: &str, variable: &str, file: &Path| {
        let ended = secrets.command(command).env(variable, file).run().expect_code(2);
        ended.assert_one_line(&[variable]);
        assert!(ended.stderr.contains(file.to_str().unwrap()), "{}", ended.stderr);
        assert!(!ended.stderr.contains("hunter2") && !ended.stderr.contains("xxx"), "content: {}", ended.stderr);
    };
    for file in ["missing", "empty", "binary", "large", "directory", "fifo", "socket"] {
        refused("watch", URL_FILE, &secrets.file(file));
        refused("watch", PASSWORD_FILE, &secrets.file(file));
    }
    for command in ["scan", "listen"] {
        refused(command, PASSWORD_FILE, &secrets.file("missing"));
    }
    for file in ["word", "two"] {
        refused("watch", URL_FILE, &secrets.file(file));
    }
    let ended = secrets.command("doctor").env(URL_FILE, secrets.file("empty")).run().expect_code(1);
    assert!(ended.stdout.contains("fail  broker: AMQP_CONNECTION_STRING_FILE"), "{}", ended.stdout);
    // A probe needs none of them.
    let ended = secrets.command("health").env(URL_FILE, secrets.file("missing")).run().expect_code(1);
    assert!(ended.stderr.contains("no service answers"), "{}", ended.stderr);
}

#[test]
fn a_string_and_its_file_at_once_are_refused() {
    let secrets = Secrets::new(&[("url", b"amqp://u:hunter2@h/"), ("password", b"hunter2")]);
    let both = secrets.command("watch").env("AMQP_CONNECTION_STRING", "amqp://h/").env(URL_FILE, secrets.file("url"));
    let by_flag = secrets.command("watch").args(&["--amqp-url", "amqp://h/"]).env(URL_FILE, secrets.file("url"));
    let two = secrets.command("watch").env(URL_FILE, secrets.file("url")).env(PASSWORD_FILE, secrets.file("password"));
    for setup in [both, by_flag, two] {
        let ended = setup.run().expect_code(2);
        ended.assert_one_line(&[URL_FILE]);
        assert!(!ended.stderr.contains("hunter2"), "{}", ended.stderr);
    }
}
