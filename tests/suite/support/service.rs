//! The real binary as a process, its output collected line by line.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, ExitStatus};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::message::Message;
use super::process;
use super::setup::CONTROL_SOCKET;
use super::wait::{POLL, TIMEOUT};

/// How a process ended, and all its output.
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
            "expected exit status {code}, not {:?} (signal {:?}); its standard error:\n{}",
            self.status.code(),
            self.status.signal(),
            self.stderr
        );
        self
    }

    /// Its log lines at the level ERROR.
    pub fn errors(&self) -> Vec<&str> {
        self.stderr.lines().filter(|line| line.contains("ERROR")).collect()
    }

    /// Its log lines at the level WARN.
    pub fn warnings(&self) -> Vec<&str> {
        self.stderr.lines().filter(|line| line.contains("WARN")).collect()
    }

    /// It printed one line to standard error, no panic, that contains one of `names`, and nothing to standard output.
    #[track_caller]
    pub fn assert_one_line(&self, names: &[&str]) {
        let lines: Vec<&str> = self.stderr.lines().filter(|line| !line.trim().is_empty()).collect();
        assert_eq!(lines.len(), 1, "one line was due on stderr:\n{}", self.stderr);
        let line = lines[0];
        assert!(!line.contains("panicked") && !line.contains("backtrace"), "not for users: {line}");
        assert!(names.iter().any(|name| line.contains(name)), "the line contains none of {names:?}: {line}");
        assert_eq!(self.stdout, "", "a failure prints nothing to stdout");
    }

    /// It logged one error that contains `wanted`, and did not panic.
    #[track_caller]
    pub fn assert_one_error(&self, wanted: &str) {
        let errors = self.errors();
        assert_eq!(errors.len(), 1, "one ERROR was due:\n{}", self.stderr);
        assert!(errors[0].contains(wanted), "{wanted:?} is not in: {}", errors[0]);
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
    }

    /// The line of its error comes before that of the totals, which is the last.
    #[track_caller]
    pub fn assert_error_before_totals(&self) {
        let lines: Vec<&str> = self.stderr.lines().collect();
        let error = lines.iter().position(|line| line.contains("ERROR"));
        let last = lines.last().is_some_and(|line| line.contains("INFO") && line.contains("left unpublished"));
        assert!(error.is_some() && last, "{}", self.stderr);
    }

    /// Each line of standard output as a message.
    pub fn messages(&self) -> Vec<Message> {
        self.stdout.lines().map(|line| Message::parse(line.as_bytes())).collect()
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
    /// Collects the output of `child`, whose private directory lives as long; standard output only where it is to be
    /// read.
    pub fn new(mut child: Child, private: TempDir, reading: bool) -> (Self, Option<ChildStdout>) {
        let output = Arc::new(Output::default());
        let stderr = child.stderr.take().expect("piped");
        let mut readers = vec![collect(stderr, &output, |text| &mut text.stderr)];
        let mut stdout = child.stdout.take();
        if let Some(stdout) = stdout.take_if(|_| reading) {
            readers.push(collect(stdout, &output, |text| &mut text.stdout));
        }
        (Self { child, output, readers, private }, stdout)
    }

    pub fn control_socket(&self) -> PathBuf {
        self.private.path().join(CONTROL_SOCKET)
    }

    pub fn stdout_lines(&self) -> usize {
        self.output.text.lock().expect("output").stdout.len()
    }

    pub fn stderr(&self) -> String {
        self.output.text.lock().expect("output").stderr.join("\n")
    }

    /// How many lines on standard error contain this.
    pub fn count_log(&self, wanted: &str) -> usize {
        self.output.text.lock().expect("output").stderr.iter().filter(|line| line.contains(wanted)).count()
    }

    /// Returns when the directory is watched and the broker is connected.
    #[track_caller]
    pub fn wait_ready(&self) {
        self.wait_log("the INFO line that begins `ready`", is_ready_line);
    }

    /// Waits for a line on standard error and returns it.
    #[track_caller]
    pub fn wait_log(&self, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        self.wait_log_within(TIMEOUT, what, wanted)
    }

    /// Waits this long for a line on standard error and returns it.
    #[track_caller]
    pub fn wait_log_within(&self, timeout: Duration, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        self.wait_line(timeout, what, |text| &text.stderr, wanted)
    }

    /// Waits for a line on standard output and returns it.
    #[track_caller]
    pub fn wait_stdout(&self, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        self.wait_line(TIMEOUT, what, |text| &text.stdout, wanted)
    }

    #[track_caller]
    fn wait_line(
        &self,
        timeout: Duration,
        what: &str,
        stream: fn(&Text) -> &Vec<String>,
        wanted: impl Fn(&str) -> bool,
    ) -> String {
        let deadline = Instant::now() + timeout;
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

    /// Stops all its threads until [`Service::resume`].
    #[track_caller]
    pub fn pause(&self) {
        process::pause(self.pid());
    }

    #[track_caller]
    pub fn resume(&self) {
        process::resume(self.pid());
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
        let deadline = Instant::now() + TIMEOUT;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("a child of ours") {
                break status;
            }
            assert!(
                Instant::now() < deadline,
                "the process did not end within {TIMEOUT:?}; standard error:\n{}",
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

    /// Sends SIGTERM and expects a clean end.
    #[track_caller]
    pub fn stop(self) -> Ended {
        self.signal(Signal::TERM);
        self.wait_exit().expect_code(0)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // This fails when it has ended already, which is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn joined(lines: &[String]) -> String {
    lines.iter().map(|line| format!("{line}\n")).collect()
}

/// Whether a line is `... INFO ready ...`, `... INFO module: ready ...`, or JSON with such a message.
pub fn is_ready_line(line: &str) -> bool {
    line.split_once("INFO").is_some_and(|(_, message)| {
        message.trim_start().starts_with("ready")
            || message.contains(": ready")
            || message.contains("\"message\":\"ready")
    })
}

/// The log has no warning but the one with which a service without a ledger begins.
#[track_caller]
pub fn assert_no_warning(log: &str) {
    let warnings = log.lines().filter(|line| line.contains("WARN") && !line.contains("no ledger is kept")).count();
    assert_eq!(warnings, 0, "{log}");
}
