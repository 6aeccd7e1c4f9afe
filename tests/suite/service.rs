//! The real binary as a process, its output collected line by line.

use std::ffi::OsStr;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// How long anything may take before the test says that it did not come. Generous: it is only ever
/// waited out by a test that fails.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// How often a condition without a notification of its own is looked at.
const POLL: Duration = Duration::from_millis(10);

/// In a directory of each service's own.
const CONTROL_SOCKET: &str = "control.sock";

/// The user `nobody`: owns nothing, may read what is readable by all.
pub const NOBODY: u32 = 65534;

pub fn binary() -> PathBuf {
    std::env::var_os("INGESTOR_TEST_BINARY")
        .map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_apollonia-ingestor")), PathBuf::from)
}

/// Copies it to where other users can reach it, too.
pub fn copy_of_binary(to: &Path) {
    // By another process: a descriptor of ours open for writing could be inherited by a child that another test is just
    // starting, and the kernel does not run a file open for writing.
    let copied = Command::new("cp").arg(binary()).arg(to).status();
    assert!(copied.expect("cp").success(), "the binary was not copied");
}

/// A command about to be run, in an environment that holds nothing the test did not put there.
pub struct Setup {
    command: Command,
    /// For its control socket: the default place is shared by all services of one user.
    private: TempDir,
}

impl Setup {
    pub fn new<A: AsRef<OsStr>>(arguments: &[A]) -> Self {
        Self::of(&binary(), arguments)
    }

    /// Another program than the service.
    pub fn of<A: AsRef<OsStr>>(program: &Path, arguments: &[A]) -> Self {
        let private = TempDir::with_prefix("ingestor-suite-").expect("a temporary directory");
        // Open to all: the service may run as another user.
        std::fs::set_permissions(private.path(), PermissionsExt::from_mode(0o777)).expect("permissions");
        let mut command = command(program);
        command
            .args(arguments)
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            // A backtrace that could be shown shall be: tests look for it.
            .env("RUST_BACKTRACE", "1")
            .env("INGESTOR_CONTROL_SOCKET", private.path().join(CONTROL_SOCKET));
        Self { command, private }
    }

    /// `watch` over `data`, publishing to `url`.
    pub fn watch(data: &Path, url: &str) -> Self {
        Self::new(&["watch"]).env("DATA_DIRECTORY", data).env("AMQP_CONNECTION_STRING", url)
    }

    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.command.arg(argument);
        self
    }

    pub fn args<A: AsRef<OsStr>>(mut self, arguments: &[A]) -> Self {
        self.command.args(arguments);
        self
    }

    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Where its control socket is to be.
    pub fn control_socket(&self) -> PathBuf {
        self.private.path().join(CONTROL_SOCKET)
    }

    /// Runs as a user without any privilege, from a copy of the binary which that user can reach.
    pub fn by_nobody(self) -> Self {
        self.by_user(NOBODY)
    }

    /// The same as another: limits that are counted by user are that one's alone.
    pub fn by_user(mut self, user: u32) -> Self {
        let copy = self.private.path().join("apollonia-ingestor");
        copy_of_binary(&copy);
        let mut by_nobody = command(&copy);
        by_nobody
            .args(self.command.get_args())
            .envs(self.command.get_envs().filter_map(|(name, value)| Some((name, value?))))
            .uid(user)
            .gid(user);
        self.command = by_nobody;
        self
    }

    /// Runs `copy`, of the binary, as a user without any privilege but that of read leases on others' files, or without
    /// that one too.
    pub fn by_nobody_from(mut self, copy: &Path, leases: bool) -> Self {
        let mut by_nobody = command(Path::new("setpriv"));
        // To become another user takes from a process what `command` has set: to end with the test.
        by_nobody.args(["--pdeathsig", "KILL", "--clear-groups"]);
        by_nobody.args([format!("--reuid={NOBODY}"), format!("--regid={NOBODY}")]);
        if leases {
            by_nobody.args(["--inh-caps=+lease", "--ambient-caps=+lease", "--bounding-set=-all,+lease"]);
        }
        by_nobody
            .arg("--")
            .arg(copy)
            .args(self.command.get_args())
            .envs(self.command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        self.command = by_nobody;
        self
    }

    /// Under a limit of its own, soft and hard, which is set as the user that it runs as.
    pub fn limited(self, resource: u32, soft: u64, hard: u64) -> Self {
        let limit = libc::rlimit { rlim_cur: soft, rlim_max: hard };
        // SAFETY: setrlimit is async-signal-safe and the closure allocates nothing.
        unsafe {
            self.before_exec(move || match libc::setrlimit(resource, &raw const limit) {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            })
        }
    }

    /// Runs `before` in the new process just before the program.
    ///
    /// # Safety
    /// `before` must be async-signal-safe: the new process is a copy of one thread only.
    pub unsafe fn before_exec(mut self, before: impl FnMut() -> io::Result<()> + Send + Sync + 'static) -> Self {
        // SAFETY: the caller's promise.
        unsafe { self.command.pre_exec(before) };
        self
    }

    pub fn spawn(self) -> Service {
        self.spawn_reading(true)
    }

    /// The reading end of its standard output is closed at once.
    pub fn spawn_unread(self) -> Service {
        self.spawn_reading(false)
    }

    /// Its standard output is the test's own to read, or to leave unread.
    pub fn spawn_held(mut self) -> (Service, ChildStdout) {
        let mut child = self.command.spawn().expect("the binary starts");
        let output = Arc::new(Output::default());
        let stderr = child.stderr.take().expect("piped");
        let readers = vec![collect(stderr, &output, |text| &mut text.stderr)];
        let stdout = child.stdout.take().expect("piped");
        (Service { child, output, readers, private: self.private }, stdout)
    }

    fn spawn_reading(mut self, reading: bool) -> Service {
        let mut child = self.command.spawn().expect("the binary starts");
        let output = Arc::new(Output::default());
        let stderr = child.stderr.take().expect("piped");
        let mut readers = vec![collect(stderr, &output, |text| &mut text.stderr)];
        let stdout = child.stdout.take().expect("piped");
        if reading {
            readers.push(collect(stdout, &output, |text| &mut text.stdout));
        }
        Service { child, output, readers, private: self.private }
    }

    /// Runs a command that ends by itself.
    pub fn run(self) -> Ended {
        self.spawn().wait_exit()
    }
}

/// `program`, with an empty environment and its output to us.
fn command(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.env_clear().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // SAFETY: prctl is async-signal-safe and the closure allocates nothing.
    unsafe {
        command.pre_exec(|| {
            // A test process that is killed leaves no service behind.
            match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            }
        });
    }
    command
}

/// How a process ended and everything it said.
#[derive(Debug)]
pub struct Ended {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Ended {
    /// Fails the test when the process ended in any other way, a signal included.
    #[track_caller]
    pub fn expect_code(self, code: i32) -> Self {
        assert!(
            self.status.code() == Some(code),
            "expected exit status {code}, not {:?} (signal {:?}); it said:\n{}",
            self.status.code(),
            self.status.signal(),
            self.stderr
        );
        self
    }
}

#[derive(Default)]
struct Text {
    stdout: Vec<String>,
    stderr: Vec<String>,
}

#[derive(Default)]
struct Output {
    text: Mutex<Text>,
    changed: Condvar,
}

fn collect(
    stream: impl Read + Send + 'static,
    output: &Arc<Output>,
    field: fn(&mut Text) -> &mut Vec<String>,
) -> JoinHandle<()> {
    let output = Arc::clone(output);
    std::thread::spawn(move || {
        let mut stream = BufReader::new(stream);
        let mut line = Vec::new();
        // By bytes, not `lines()`: a line that is not UTF-8 must not end the collecting.
        while matches!(stream.read_until(b'\n', &mut line), Ok(1..)) {
            let text = String::from_utf8_lossy(line.strip_suffix(b"\n").unwrap_or(&line));
            field(&mut output.text.lock().expect("output")).push(text.into_owned());
            output.changed.notify_all();
            line.clear();
        }
    })
}

/// A running service; killed when dropped.
pub struct Service {
    child: Child,
    output: Arc<Output>,
    readers: Vec<JoinHandle<()>>,
    private: TempDir,
}

impl Service {
    /// Where it answers questions.
    pub fn control_socket(&self) -> PathBuf {
        self.private.path().join(CONTROL_SOCKET)
    }

    pub fn stdout_has_lines(&self) -> bool {
        !self.output.text.lock().expect("output").stdout.is_empty()
    }

    pub fn stderr(&self) -> String {
        self.output.text.lock().expect("output").stderr.join("\n")
    }

    /// Returns when the watch stands and the broker is connected.
    #[track_caller]
    pub fn wait_ready(&self) {
        self.wait_log("the INFO line that begins `ready`", is_ready_line);
    }

    /// Waits for a line on standard error and returns it.
    #[track_caller]
    pub fn wait_log(&self, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        self.wait_log_within(PATIENCE, what, wanted)
    }

    /// The same, of a line that takes longer to come.
    #[track_caller]
    pub fn wait_log_within(&self, patience: Duration, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        self.wait_line(patience, what, |text| &text.stderr, wanted)
    }

    /// Waits for a line on standard output and returns it.
    #[track_caller]
    pub fn wait_stdout(&self, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        self.wait_line(PATIENCE, what, |text| &text.stdout, wanted)
    }

    #[track_caller]
    fn wait_line(
        &self,
        patience: Duration,
        what: &str,
        stream: fn(&Text) -> &Vec<String>,
        wanted: impl Fn(&str) -> bool,
    ) -> String {
        let deadline = Instant::now() + patience;
        let mut text = self.output.text.lock().expect("output");
        loop {
            if let Some(line) = stream(&text).iter().find(|line| wanted(line)) {
                return line.clone();
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let ended = self.readers.iter().all(JoinHandle::is_finished);
            if left.is_zero() || ended {
                let why = if ended { "it ended" } else { "time is up" };
                let stderr = text.stderr.join("\n");
                panic!("{what} did not come, {why}; standard error:\n{stderr}");
            }
            // In slices, since the end of the process raises no notification.
            let slice = left.min(Duration::from_millis(200));
            text = self.output.changed.wait_timeout(text, slice).expect("output").0;
        }
    }

    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("the service takes a signal");
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Waits for the process to end by itself.
    #[track_caller]
    pub fn wait_exit(mut self) -> Ended {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("a child of ours") {
                break status;
            }
            assert!(
                Instant::now() < deadline,
                "the process did not end within {PATIENCE:?}; standard error:\n{}",
                self.stderr()
            );
            std::thread::sleep(POLL);
        };
        for reader in self.readers.drain(..) {
            reader.join().expect("collecting the output");
        }
        let text = self.output.text.lock().expect("output");
        Ended { status, stdout: joined(&text.stdout), stderr: joined(&text.stderr) }
    }

    /// SIGTERM, and the clean end that the contract promises.
    #[track_caller]
    pub fn stop(self) -> Ended {
        self.signal(Signal::TERM);
        self.wait_exit().expect_code(0)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // Fails when it has ended already, which is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn joined(lines: &[String]) -> String {
    lines.iter().map(|line| format!("{line}\n")).collect()
}

/// `... INFO ready ...`, `... INFO module: ready ...`, or JSON with such a message.
pub fn is_ready_line(line: &str) -> bool {
    line.split_once("INFO").is_some_and(|(_, message)| {
        message.trim_start().starts_with("ready")
            || message.contains(": ready")
            || message.contains("\"message\":\"ready")
    })
}

/// No warning but the one that a service without a ledger begins with.
#[track_caller]
pub fn assert_no_warning(log: &str) {
    let warnings = log.lines().filter(|line| line.contains("WARN") && !line.contains("no ledger is kept")).count();
    assert_eq!(warnings, 0, "{log}");
}

/// Says on standard error why a test did nothing, so that nobody takes it for a pass unseen.
pub fn skip(why: &str) {
    eprintln!("SKIPPED: {why}");
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
