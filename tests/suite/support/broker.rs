//! A private RabbitMQ: own ports, node name, port mapper, cookie and directory, so that no test can
//! touch the machine's own node. One is shared by all tests of the process; each test has a virtual
//! host of its own because the exchange's name is fixed.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::certificates::Authority;
use super::consumer;
use super::service::{Ended, Service};
use super::setup::Setup;
use super::wait::retry;
use super::world::directories;

/// So many virtual hosts are made at a time, at boot and whenever the last of them is given away: each costs the node some
/// 20 ms of a busy core, and each `rabbitmqctl` a second.
const VHOSTS: usize = 48;
/// The largest message that a node takes, in bytes: a message that is larger has long paths of control characters.
pub const MESSAGE_MAX: usize = 65_536;
/// A cold start on two busy cores takes about 10 s.
const BOOT_DEADLINE: Duration = Duration::from_secs(120);
/// An order takes milliseconds, stopping and starting RabbitMQ a second.
const ANSWER_DEADLINE: Duration = Duration::from_secs(60);
/// Where Debian and Fedora keep the scripts that do not insist on being run by root.
const SCRIPTS: &str = "/usr/lib/rabbitmq/bin";

/// Salted SHA-256 of the password `guest`, as `rabbitmqctl hash_password` prints it.
const GUEST_PASSWORD_HASH: &str = "AQIDBEMMOXwY6PKx/JKP9PAqfsb4ozuD0Ta3pxxa9gEYBMmD";

/// No broker listens there: port 1 of the loopback. The password must not show up in any output.
pub const NO_BROKER: &str = "amqp://someone:hunter2@127.0.0.1:1/";

/// The user whose certificates log in without a password.
pub const CERTIFIED: &str = "certified";

/// A shell script that lives as long as its standard input: at end of file, which comes even when the test process is
/// killed with SIGKILL, it kills the node and removes the directory. Until then it takes orders, a line each, and
/// answers each when it is done.
const SUPERVISOR: &str = r#"
cd "$HOME"
epmd -port "$ERL_EPMD_PORT" -address 127.0.0.1 </dev/null >epmd.log 2>&1 &
epmd=$!
boot() {
    setsid $AS_USER "$SERVER" </dev/null >>server.log 2>&1 &
    server=$!
}
boot
while read -r order; do
    case $order in
    kill) kill -KILL "-$server"; wait "$server" ;;
    boot) boot ;;
    *) kill "-$order" "-$server" ;;
    esac
    echo done
done
kill -KILL "-$server" "$epmd"
wait
rm -rf "$HOME"
"#;

pub struct Broker {
    home: PathBuf,
    environment: Vec<(&'static str, String)>,
    port: u16,
    tls_port: u16,
    /// It has signed the node's certificate and those of the clients that the node knows.
    pub authority: Authority,
    /// So many virtual hosts there are, `t0` and on.
    vhosts: Mutex<usize>,
    next_vhost: AtomicUsize,
    supervisor: Child,
    /// It takes the orders; dropping it ends the node.
    lifeline: Option<ChildStdin>,
    answers: ChildStdout,
}

/// The virtual host of a URL.
pub fn vhost_of(url: &str) -> &str {
    url.rsplit('/').next().expect("a virtual host")
}

/// The node that all tests share, started by the first that needs it.
pub fn shared() -> &'static Broker {
    static SHARED: OnceLock<Broker> = OnceLock::new();
    SHARED.get_or_init(Broker::start)
}

impl Broker {
    /// A node of a test's own, for a test that disturbs all of it.
    pub fn start() -> Self {
        Self::start_with(VHOSTS)
    }

    /// A node with so many virtual hosts. Each makes every boot longer.
    pub fn start_with(vhosts: usize) -> Self {
        Self::launch(vhosts, false)
    }

    /// A node that speaks TLS only with clients that show a certificate.
    pub fn start_demanding_certificates() -> Self {
        Self::launch(1, true)
    }

    fn launch(vhosts: usize, demanding: bool) -> Self {
        let home = tempfile::Builder::new()
            .prefix("ingestor-suite-rabbitmq-")
            .tempdir()
            .expect("a directory for the broker")
            .keep();
        let [port, tls_port, dist_port, epmd_port] = free_ports();
        let authority = Authority::new("the node's authority");
        let at = |name: &str| home.join(name).to_str().expect("UTF-8 path").to_owned();
        let environment = vec![
            ("HOME", at("")),
            ("RABBITMQ_NODENAME", format!("ingestor{port}@localhost")),
            ("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1".into()),
            ("RABBITMQ_NODE_PORT", port.to_string()),
            ("RABBITMQ_DIST_PORT", dist_port.to_string()),
            ("ERL_EPMD_PORT", epmd_port.to_string()),
            ("RABBITMQ_MNESIA_BASE", at("mnesia")),
            ("RABBITMQ_LOG_BASE", at("log")),
            ("RABBITMQ_PID_FILE", at("pid")),
            ("RABBITMQ_CONFIG_FILE", at("rabbitmq")),
            ("RABBITMQ_CONF_ENV_FILE", at("rabbitmq-env.conf")),
            ("RABBITMQ_ENABLED_PLUGINS_FILE", at("enabled_plugins")),
            // Idle schedulers that spin would take the cores from the service under test.
            ("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", "+sbwt none +sbwtdcpu none +sbwtdio none".into()),
        ];
        let owner = write_configuration(&home, vhosts, &tls_configuration(&home, tls_port, &authority, demanding))
            .expect("the broker's configuration");
        let mut supervisor = Command::new("sh")
            .args(["-c", SUPERVISOR])
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .env("SERVER", script("rabbitmq-server"))
            .env("AS_USER", owner)
            // Its own group: an interrupt at the terminal must not end it before it has cleaned up.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("sh, to supervise the broker");
        let lifeline = supervisor.stdin.take();
        let answers = supervisor.stdout.take().expect("piped");
        let (vhosts, next_vhost) = (Mutex::new(vhosts), AtomicUsize::new(0));
        let broker =
            Self { home, environment, port, tls_port, authority, vhosts, next_vhost, supervisor, lifeline, answers };
        broker.wait_until_it_serves();
        broker
    }

    /// The URL of a virtual host that no other test uses.
    pub fn vhost(&self) -> String {
        let number = self.next_vhost.fetch_add(1, Ordering::Relaxed);
        let mut vhosts = self.vhosts.lock().unwrap_or_else(PoisonError::into_inner);
        while number >= *vhosts {
            let file = self.home.join("more.json");
            fs::write(&file, definitions(*vhosts..*vhosts + VHOSTS).to_string()).expect("more virtual hosts");
            self.rabbitmqctl(&["import_definitions".as_ref(), file.as_os_str()]);
            *vhosts += VHOSTS;
        }
        self.url("guest:guest", &format!("t{number}"))
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn url(&self, login: &str, vhost: &str) -> String {
        format!("amqp://{login}@127.0.0.1:{}/{vhost}", self.port)
    }

    /// A URL for TLS. The node's certificate is for `localhost` alone.
    pub fn tls_url(&self, login: &str, host: &str, vhost: &str) -> String {
        format!("amqps://{login}@{host}:{}/{vhost}", self.tls_port)
    }

    pub fn tls_port(&self) -> u16 {
        self.tls_port
    }

    /// Runs `rabbitmqctl` against this node and nothing else; fails the test when it fails.
    pub fn rabbitmqctl<A: AsRef<OsStr>>(&self, arguments: &[A]) -> String {
        let output = Command::new(script("rabbitmqctl"))
            .args(arguments)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .output()
            .expect("rabbitmqctl");
        assert!(
            output.status.success(),
            "rabbitmqctl failed: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// The environment of a program that speaks with this node and no other.
    pub fn environment(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.environment.iter().map(|(name, value)| (*name, value.as_str()))
    }

    /// Makes a user with these permissions on a virtual host: configure, write, read. Returns its URL there.
    pub fn user(&self, name: &str, vhost: &str, permissions: [&str; 3]) -> String {
        let [configure, write, read] = permissions.map(|pattern| format!("<<\"{pattern}\">>"));
        // Each command costs a second, so it is one.
        let made = format!(
            "rabbit_auth_backend_internal:add_user(<<\"{name}\">>, <<\"hunter2\">>, <<\"test\">>), \
             rabbit_auth_backend_internal:set_permissions(<<\"{name}\">>, <<\"{vhost}\">>, {configure}, {write}, {read}, <<\"test\">>)."
        );
        self.rabbitmqctl(&["eval", &made]);
        self.url(&format!("{name}:hunter2"), vhost)
    }

    /// Closes the connections of a service from the broker's side until it has ended.
    #[track_caller]
    pub fn disconnect(&self, url: &str, mut service: Service) -> Ended {
        retry("the end of the service without a broker", || {
            if !service.is_running() {
                return Ok(());
            }
            self.rabbitmqctl(&["close_all_connections", "--vhost", vhost_of(url), "by a test"]);
            Err(service.stderr())
        });
        service.wait_exit()
    }

    /// SIGKILL, for the node and all its helpers. [`Broker::boot`] brings it back with its data.
    pub fn kill(&mut self) {
        self.order("kill");
    }

    /// Boots the node again, on the same ports, and waits until it serves.
    pub fn boot(&mut self) {
        self.order("boot");
        self.wait_until_it_serves();
    }

    /// SIGSTOP: the node keeps its connections and says nothing.
    pub fn freeze(&mut self) {
        self.order("STOP");
    }

    /// SIGCONT.
    pub fn thaw(&mut self) {
        self.order("CONT");
    }

    fn order(&mut self, order: &str) {
        let lifeline = self.lifeline.as_mut().expect("held until the end");
        writeln!(lifeline, "{order}").expect("the supervisor takes orders");
        read_line_within(&mut self.answers, order);
    }

    /// It serves when the last virtual host of the definitions lets a client in.
    pub fn wait_until_it_serves(&self) {
        let vhosts = *self.vhosts.lock().unwrap_or_else(PoisonError::into_inner);
        let last_vhost = self.url("guest:guest", &format!("t{}", vhosts - 1));
        let deadline = Instant::now() + BOOT_DEADLINE;
        while let Err(error) = consumer::try_connect(&last_vhost) {
            assert!(
                Instant::now() < deadline,
                "RabbitMQ did not serve within {BOOT_DEADLINE:?}: {error}\nits output:\n{}",
                read_lossy(&self.home.join("server.log"))
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

impl Drop for Broker {
    /// Only a node of a test's own is dropped; the shared one goes when the process ends.
    fn drop(&mut self) {
        drop(self.lifeline.take());
        // This reaps the supervisor; its answers matter no more.
        let _ = self.supervisor.wait();
    }
}

/// Writes what the node reads at boot and gives it to the user that runs it. Returns the command prefix that changes to
/// that user, because RabbitMQ should not run as root. Where there is no such user, or no right to change to it, the
/// node runs as the user that runs the tests.
fn write_configuration(home: &Path, vhosts: usize, tls: &str) -> io::Result<String> {
    let definitions_file = home.join("definitions.json");
    fs::write(&definitions_file, definitions(0..vhosts).to_string())?;
    fs::write(
        home.join("rabbitmq.conf"),
        format!(
            "load_definitions = {}\nloopback_users = none\nlog.console = false\n\
             disk_free_limit.absolute = 1MB\nmax_message_size = {MESSAGE_MAX}\n{tls}",
            definitions_file.display()
        ),
    )?;
    fs::write(home.join("enabled_plugins"), "[rabbitmq_auth_mechanism_ssl].\n")?;
    fs::write(home.join("rabbitmq-env.conf"), "")?;

    let Some(uid) = rabbitmq_uid().filter(|_| rustix::process::geteuid().is_root()) else {
        return Ok(String::new());
    };
    std::os::unix::fs::chown(home, Some(uid), None)?;
    for entry in fs::read_dir(home)? {
        std::os::unix::fs::chown(entry?.path(), Some(uid), None)?;
    }
    Ok("setpriv --reuid rabbitmq --regid rabbitmq --clear-groups".into())
}

/// Virtual hosts of these numbers, in which both users may do everything.
fn definitions(vhosts: Range<usize>) -> serde_json::Value {
    let vhosts: Vec<String> = vhosts.map(|number| format!("t{number}")).collect();
    let users = ["guest", CERTIFIED].map(|name| {
        serde_json::json!({
            "name": name,
            "password_hash": GUEST_PASSWORD_HASH,
            "hashing_algorithm": "rabbit_password_hashing_sha256",
            "tags": "administrator",
        })
    });
    let permission = |user: &str, vhost: &str| serde_json::json!({ "user": user, "vhost": vhost, "configure": ".*", "write": ".*", "read": ".*" });
    let of_both = |vhost: &String| ["guest", CERTIFIED].map(|user| permission(user, vhost));
    serde_json::json!({
        "users": users,
        "vhosts": vhosts.iter().map(|name| serde_json::json!({ "name": name })).collect::<Vec<_>>(),
        "permissions": vhosts.iter().flat_map(of_both).collect::<Vec<_>>(),
    })
}

/// A TLS listener beside the plain one, and logging in by a certificate's common name.
fn tls_configuration(home: &Path, port: u16, authority: &Authority, demanding: bool) -> String {
    let authority_file = authority.file(home);
    let [certificate, key] = authority.certify("node", &["localhost"]).files(home);
    format!(
        "listeners.ssl.1 = 127.0.0.1:{port}\n\
         ssl_options.cacertfile = {}\nssl_options.certfile = {}\nssl_options.keyfile = {}\n\
         ssl_options.verify = verify_peer\nssl_options.fail_if_no_peer_cert = {demanding}\n\
         auth_mechanisms.1 = PLAIN\nauth_mechanisms.2 = EXTERNAL\nssl_cert_login_from = common_name\n",
        authority_file.display(),
        certificate.display(),
        key.display()
    )
}

fn rabbitmq_uid() -> Option<u32> {
    let output = Command::new("id").args(["-u", "rabbitmq"]).output().ok()?;
    String::from_utf8(output.stdout).ok()?.trim().parse().ok()
}

/// Debian's `rabbitmqctl` on the path changes the user and the directory; the script behind it does
/// neither. Elsewhere the one on the path is the only one.
fn script(name: &str) -> PathBuf {
    let behind_the_wrapper = Path::new(SCRIPTS).join(name);
    if behind_the_wrapper.exists() { behind_the_wrapper } else { PathBuf::from(name) }
}

/// Ports that were free a moment ago, below the range that the kernel gives to outgoing
/// connections: there, a client that polls a port nobody serves yet can connect to itself.
fn free_ports() -> [u16; 4] {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    const FIRST: usize = 10_000;
    const SPAN: usize = 20_000;
    let start = std::process::id() as usize * 31;
    let mut held = Vec::new();
    while held.len() < 4 {
        let port = FIRST + (start + NEXT.fetch_add(1, Ordering::Relaxed)) % SPAN;
        if let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, port as u16)) {
            held.push(listener);
        }
    }
    [0, 1, 2, 3].map(|index| held[index].local_addr().expect("a bound socket").port())
}

/// Reads the next line that another process writes into a pipe, which must come soon.
pub fn read_line_within(pipe: &mut ChildStdout, what: &str) -> String {
    let deadline = Instant::now() + ANSWER_DEADLINE;
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        let left = Timespec::try_from(deadline.saturating_duration_since(Instant::now())).expect("seconds");
        let mut byte = [0];
        let readable = poll(&mut [PollFd::from_borrowed_fd(pipe.as_fd(), PollFlags::IN)], Some(&left));
        assert!(readable.is_ok_and(|count| count > 0), "no answer to {what:?} within {ANSWER_DEADLINE:?}");
        assert_eq!(pipe.read(&mut byte).expect("a pipe"), 1, "the process that was to answer {what:?} has ended");
        line.push(byte[0]);
    }
    String::from_utf8_lossy(&line).trim_end().to_owned()
}

fn read_lossy(path: &Path) -> String {
    let mut bytes = Vec::new();
    match fs::File::open(path).and_then(|mut file| file.read_to_end(&mut bytes)) {
        Ok(_) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) => format!("({}: {error})", path.display()),
    }
}

/// The one line of a `watch` that cannot connect. It contains one of `names` and no password.
#[track_caller]
pub fn connection_error(url: &str, names: &[&str], change: impl FnOnce(Setup, &Path) -> Setup) -> String {
    let (_root, data, outside) = directories();
    let setup = Setup::watch(&data, url).env("LOG_LEVEL", "ERROR");
    let ended = change(setup, &outside).run().expect_code(1);
    ended.assert_one_line(names);
    for password in ["hunter2", ":guest@"] {
        assert!(!ended.stderr.contains(password), "a password: {}", ended.stderr);
    }
    ended.stderr
}

/// The one line of a `watch` that cannot connect by TLS. The directory is for files that the test makes.
#[track_caller]
pub fn tls_error(url: &str, change: impl FnOnce(Setup, &Path) -> Setup) -> String {
    connection_error(url, &["amqp"], change)
}
