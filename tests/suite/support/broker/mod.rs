//! A private RabbitMQ: own ports, node name, port mapper, cookie and directory, so that no test can
//! touch the machine's own node. One is shared by all tests of the process; each test has a virtual
//! host of its own because the exchange's name is fixed. A test that disturbs all of a node borrows one.

mod administration;
mod configuration;
mod pool;
mod shell;

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Pid;

use super::certificates::Authority;
use super::consumer;
use super::process;
use super::setup::Setup;
use super::world::directories;
use shell::Shell;

pub use administration::binary;
pub use configuration::{CERTIFIED, MESSAGE_MAX};

/// So many virtual hosts are made at a time, at the boot of the shared node and whenever the last of a node's is given
/// away: each costs the node some 20 ms of a busy core, also at every boot.
const VHOSTS: usize = 12;
/// A cold start on two busy cores takes about 10 s.
const BOOT_DEADLINE: Duration = Duration::from_secs(120);
/// What is ordered takes milliseconds, stopping and starting RabbitMQ a second.
const ANSWER_DEADLINE: Duration = Duration::from_secs(60);
/// Where Debian and Fedora keep the scripts that do not insist on being run by root.
const SCRIPTS: &str = "/usr/lib/rabbitmq/bin";

/// No broker listens there: port 1 of the loopback. The password must not show up in any output.
pub const NO_BROKER: &str = "amqp://someone:hunter2@127.0.0.1:1/";

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
    /// Started by the first that has something to ask or to change.
    shell: Mutex<Option<Shell>>,
    disturbed: Disturbed,
}

/// What a test has done to all of the node and not undone.
#[derive(Default)]
struct Disturbed {
    killed: bool,
    frozen: bool,
    blocked: bool,
}

/// The virtual host of a URL.
pub fn vhost_of(url: &str) -> &str {
    url.rsplit('/').next().expect("a virtual host")
}

/// The node that all tests share, started by the first that needs it.
pub fn shared() -> &'static Broker {
    static SHARED: OnceLock<Broker> = OnceLock::new();
    SHARED.get_or_init(|| Broker::start_with(VHOSTS))
}

impl Broker {
    /// A node of a test's own with so many virtual hosts. Each makes every boot longer.
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
        let owner = configuration::write(&home, vhosts, &configuration::tls(&home, tls_port, &authority, demanding))
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
        let broker = Self {
            home,
            environment,
            port,
            tls_port,
            authority,
            vhosts: Mutex::new(vhosts),
            next_vhost: AtomicUsize::new(0),
            supervisor,
            lifeline,
            answers,
            shell: Mutex::default(),
            disturbed: Disturbed::default(),
        };
        broker.wait_until_it_serves();
        broker
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

    /// SIGKILL, for the node and all its helpers. [`Broker::boot`] brings it back with its data.
    pub fn kill(&mut self) {
        self.order("kill");
        self.disturbed.killed = true;
    }

    /// Boots a killed node again, on the same ports, and waits until it serves.
    pub fn boot(&mut self) {
        self.order("boot");
        self.wait_until_it_serves();
        // It serves before it has finished booting; to be stopped then would leave it in between.
        self.eval_to_ok("rabbit:await_startup()");
        // It has no alarm.
        self.disturbed = Disturbed::default();
    }

    /// SIGSTOP: the node keeps its connections and says nothing.
    pub fn freeze(&mut self) {
        self.order("STOP");
        let id = fs::read_to_string(self.home.join("pid")).expect("the node's process id");
        process::wait_until_paused(id.trim().parse().ok().and_then(Pid::from_raw).expect("a process id"));
        self.disturbed.frozen = true;
    }

    /// SIGCONT.
    pub fn thaw(&mut self) {
        self.order("CONT");
        self.disturbed.frozen = false;
    }

    /// Undoes what was done to all of a node that is not dead. Returns whether it serves.
    fn undisturb(&mut self) -> bool {
        if self.disturbed.killed {
            return false;
        }
        if self.disturbed.frozen {
            self.thaw();
        }
        if self.disturbed.blocked {
            self.unblock();
        }
        consumer::try_connect(&self.last_vhost()).is_ok()
    }

    fn order(&mut self, order: &str) {
        let lifeline = self.lifeline.as_mut().expect("held until the end");
        writeln!(lifeline, "{order}").expect("the supervisor takes orders");
        read_line_within(&mut self.answers, order);
    }

    fn vhosts(&self) -> MutexGuard<'_, usize> {
        self.vhosts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn last_vhost(&self) -> String {
        self.url("guest:guest", &format!("t{}", *self.vhosts() - 1))
    }

    /// It serves when the last virtual host of the definitions lets a client in.
    pub fn wait_until_it_serves(&self) {
        let last_vhost = self.last_vhost();
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
    /// Only a node of a test's own is dropped; the shared one and the idle ones go when the process ends.
    fn drop(&mut self) {
        // Before the directory, which is its home.
        *self.shell.get_mut().unwrap_or_else(PoisonError::into_inner) = None;
        drop(self.lifeline.take());
        // This reaps the supervisor; its answers matter no more.
        let _ = self.supervisor.wait();
    }
}

/// Debian's `rabbitmq-server` on the path changes the user and the directory; the script behind it does
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
fn read_line_within(pipe: &mut ChildStdout, what: &str) -> String {
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
