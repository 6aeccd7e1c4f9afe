//! Standard error for log lines. A line that cannot be written is dropped and counted: no log line ends, holds up or fails the
//! work that it is about.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;
use std::{mem, thread};

use super::terminal::BAR;
use super::wait_until_it_takes_more;

/// The bytes of the log lines that wait for standard error at most: some 5,000 lines. What comes while they wait is dropped.
const WAITING_MAX: usize = 1 << 20;

/// How long the end of the process waits for its last log lines: a reader that takes none for so long takes none at all.
const LAST_LINES_TIMEOUT: Duration = Duration::from_millis(500);

/// The lines of a service, which its own thread writes.
static QUEUE: OnceLock<Queue> = OnceLock::new();

/// Log lines that were dropped since the start of the process.
static DROPPED: AtomicU64 = AtomicU64::new(0);

/// Standard error for log lines. Each write is one whole line or several, and none fails.
#[derive(Debug, Clone, Copy)]
pub struct LogLines;

impl Write for LogLines {
    fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        match (QUEUE.get(), BAR.get()) {
            (Some(queue), _) => queue.push(lines),
            (None, Some(bar)) => bar.suspend(|| write_now(lines)),
            (None, None) => write_now(lines),
        }
        Ok(lines.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Gives the lines a thread of their own from now on. A service needs it, because a write to a full pipe or to a file system
/// that hangs waits without end; a command that somebody waits for rather waits for its reader.
///
/// Where the system gives no thread, lines are written as before.
pub fn write_by_a_thread() {
    let writing = thread::Builder::new().name("log".to_owned()).spawn(|| QUEUE.get_or_init(Queue::default).write());
    if writing.is_ok() {
        QUEUE.get_or_init(Queue::default);
    }
}

/// Waits until the last lines are written, within a timeout.
pub fn finish() {
    if let Some(queue) = QUEUE.get() {
        let busy = |waiting: &mut Waiting| waiting.writing || !waiting.lines.is_empty();
        let _ = queue.written.wait_timeout_while(queue.lock(), LAST_LINES_TIMEOUT, busy);
    }
}

/// The number of log lines that were dropped.
#[must_use]
pub fn dropped() -> u64 {
    DROPPED.load(Ordering::Relaxed)
}

fn write_now(lines: &[u8]) {
    let (written, _) = write(io::stderr().lock(), lines);
    count_dropped(&lines[written..]);
}

/// Writes as much as standard error takes, and returns how much that was and whether it was all.
fn write(mut stderr: impl Write + AsFd, lines: &[u8]) -> (usize, bool) {
    let mut written = 0;
    while written < lines.len() {
        match stderr.write(&lines[written..]) {
            Ok(0) => return (written, false),
            Ok(more) => written += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if wait_until_it_takes_more(stderr.as_fd()).is_err() {
                    return (written, false);
                }
            }
            Err(_) => return (written, false),
        }
    }
    (written, true)
}

fn count_dropped(lines: &[u8]) {
    let count = lines.iter().filter(|byte| **byte == b'\n').count();
    DROPPED.fetch_add(count as u64, Ordering::Relaxed);
}

/// Lines on their way to the thread that writes them.
#[derive(Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    pushed: Condvar,
    written: Condvar,
}

#[derive(Default)]
struct Waiting {
    /// Whole lines, at most [`WAITING_MAX`] bytes, or one longer line.
    lines: Vec<u8>,
    /// Lines that were taken are being written.
    writing: bool,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, lines: &[u8]) {
        let mut waiting = self.lock();
        if !waiting.lines.is_empty() && waiting.lines.len() + lines.len() > WAITING_MAX {
            return count_dropped(lines);
        }
        waiting.lines.extend_from_slice(lines);
        self.pushed.notify_one();
    }

    /// Takes all lines that wait; sleeps until there are any.
    fn take(&self) -> Vec<u8> {
        let mut waiting = self.lock();
        waiting.writing = false;
        if waiting.lines.is_empty() {
            self.written.notify_all();
        }
        let none = |waiting: &mut Waiting| waiting.lines.is_empty();
        let mut waiting = self.pushed.wait_while(waiting, none).unwrap_or_else(PoisonError::into_inner);
        waiting.writing = true;
        mem::take(&mut waiting.lines)
    }

    /// Writes lines for as long as the process runs.
    fn write(&self) {
        let mut logged = 0;
        // The last write has ended within a line.
        let mut torn = false;
        loop {
            let lines = self.take();
            if torn {
                torn = !write(io::stderr(), b"\n").1;
            }
            let (written, whole) = write(io::stderr(), &lines);
            count_dropped(&lines[written..]);
            torn |= written > 0 && lines[written - 1] != b'\n';
            let dropped = dropped();
            if whole && dropped > logged {
                let count = dropped - logged;
                tracing::warn!(
                    event = "lines_dropped",
                    count,
                    "{count} log lines were dropped, because standard error did not take them"
                );
                logged = dropped;
            }
        }
    }
}
