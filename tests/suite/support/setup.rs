//! A command about to be run: its arguments, its environment, its user and its limits.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{ChildStdout, Command, Stdio};

use tempfile::TempDir;

use super::service::{Ended, Service};
use super::terminal::{Shown, Terminal};

/// In a directory of each service's own.
pub const CONTROL_SOCKET: &str = "control.sock";

/// The user `nobody`: owns nothing, and may read what all may read.
pub const NOBODY: u32 = 65534;

pub fn binary() -> PathBuf {
    std::env::var_os("INGESTOR_TEST_BINARY")
        .map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_apollonia-ingestor")), PathBuf::from)
}

/// Copies the binary to a place that other users can reach.
pub fn copy_of_binary(to: &Path) {
    // By another process: a descriptor of ours open for writing could be inherited by a child that another test is just
    // starting, and the kernel does not run a file open for writing.
    let copied = Command::new("cp").arg(binary()).arg(to).status();
    assert!(copied.expect("cp").success(), "the binary was not copied");
}

/// A command in an environment that holds only what the test puts there.
pub struct Setup {
    command: Command,
    /// For its control socket, because the default place is shared by all services of one user.
    private: TempDir,
}

impl Setup {
    pub fn new<A: AsRef<OsStr>>(arguments: &[A]) -> Self {
        Self::of(&binary(), arguments)
    }

    /// Runs another program than the service.
    pub fn of<A: AsRef<OsStr>>(program: &Path, arguments: &[A]) -> Self {
        let private = TempDir::with_prefix("ingestor-suite-").expect("a temporary directory");
        // Open to all: the service may run as another user.
        fs::set_permissions(private.path(), PermissionsExt::from_mode(0o777)).expect("permissions");
        let mut command = command(program);
        command
            .args(arguments)
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            // Tests look for backtraces, so that none is shown to users.
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

    pub fn recursive(self) -> Self {
        self.arg("--recursive")
    }

    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Where its control socket will be.
    pub fn control_socket(&self) -> PathBuf {
        self.private.path().join(CONTROL_SOCKET)
    }

    /// Runs as a user without any privilege, from a copy of the binary that this user can reach.
    pub fn by_nobody(self) -> Self {
        self.by_user(NOBODY)
    }

    /// Runs as this user, to whom alone limits apply that the kernel counts by user.
    pub fn by_user(mut self, user: u32) -> Self {
        let copy = self.private.path().join("apollonia-ingestor");
        copy_of_binary(&copy);
        let mut by_user = command(&copy);
        by_user
            .args(self.command.get_args())
            .envs(self.command.get_envs().filter_map(|(name, value)| Some((name, value?))))
            .uid(user)
            .gid(user);
        self.command = by_user;
        self
    }

    /// Runs `copy`, a copy of the binary, as a user whose only privilege, if any, is to take read leases on others'
    /// files.
    pub fn by_nobody_from(mut self, copy: &Path, leases: bool) -> Self {
        let mut by_nobody = command(Path::new("setpriv"));
        // Changing the user undoes what `command` has set: that the process ends with the test.
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

    /// Sets a limit, soft and hard, as the user that the command runs as.
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
        self.start(true).0
    }

    /// Closes the reading end of its standard output at once.
    pub fn spawn_unread(self) -> Service {
        self.start(false).0
    }

    /// Leaves its standard output to the test, to read or to leave unread.
    pub fn spawn_held(self) -> (Service, ChildStdout) {
        let (service, stdout) = self.start(false);
        (service, stdout.expect("its standard output"))
    }

    /// Runs at a terminal so many columns wide. Its standard output is left to the test where it is `held`, and is the
    /// terminal, too, where it is not.
    pub fn at_terminal(mut self, columns: u16, held: bool) -> Shown {
        let terminal = Terminal::new(columns);
        self.command.stderr(terminal.stdio());
        if !held {
            self.command.stdout(terminal.stdio());
        }
        let child = self.command.spawn().expect("the binary starts");
        // The command holds copies of the terminal's end, which have to be closed before it can be read to its end.
        drop(self.command);
        Shown::new(child, terminal, self.private)
    }

    fn start(mut self, reading: bool) -> (Service, Option<ChildStdout>) {
        let child = self.command.spawn().expect("the binary starts");
        Service::new(child, self.private, reading)
    }

    /// Runs a command that ends by itself.
    pub fn run(self) -> Ended {
        self.spawn().wait_exit()
    }
}

/// `program` with an empty environment and its output piped to the test.
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
