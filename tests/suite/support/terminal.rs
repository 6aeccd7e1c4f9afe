//! A command at a terminal of a given width, and what it shows there.

use std::fs::File;
use std::io::Read;
use std::os::fd::{FromRawFd, OwnedFd};
use std::process::{Child, ChildStdout, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use tempfile::TempDir;

use super::wait::retry;

/// Both ends of a pseudo-terminal.
pub struct Terminal {
    /// The end at which the test sits.
    screen: File,
    /// The end that the command takes for a terminal.
    line: OwnedFd,
}

impl Terminal {
    pub fn new(columns: u16) -> Self {
        let size = libc::winsize { ws_row: 24, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        let (mut screen, mut line) = (-1, -1);
        // SAFETY: both descriptors and the size outlive the call, and the other arguments may be null.
        let opened = unsafe {
            libc::openpty(&raw mut screen, &raw mut line, std::ptr::null_mut(), std::ptr::null(), &raw const size)
        };
        assert_eq!(opened, 0, "a pseudo-terminal");
        // SAFETY: the call has just opened both, and nobody else has them.
        let (screen, line) = unsafe { (OwnedFd::from_raw_fd(screen), OwnedFd::from_raw_fd(line)) };
        for end in [&screen, &line] {
            // A child of another test must not hold this terminal open.
            rustix::io::fcntl_setfd(end, rustix::io::FdFlags::CLOEXEC).expect("a descriptor of ours");
        }
        Self { screen: screen.into(), line }
    }

    pub fn stdio(&self) -> Stdio {
        self.line.try_clone().expect("a descriptor").into()
    }
}

/// A running command at its terminal; killed when dropped.
pub struct Shown {
    child: Child,
    text: Arc<Mutex<Vec<u8>>>,
    reader: Option<JoinHandle<()>>,
    pub stdout: Option<ChildStdout>,
    _private: TempDir,
}

impl Shown {
    pub fn new(mut child: Child, terminal: Terminal, private: TempDir) -> Self {
        let text = Arc::<Mutex<Vec<u8>>>::default();
        let (shown, mut screen) = (Arc::clone(&text), terminal.screen);
        // The reader ends when the command has closed its end (EIO), so ours is closed first.
        drop(terminal.line);
        let reader = std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(length @ 1..) = screen.read(&mut bytes) {
                shown.lock().expect("text").extend_from_slice(&bytes[..length]);
            }
        });
        let stdout = child.stdout.take();
        Self { child, text, reader: Some(reader), stdout, _private: private }
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.text.lock().expect("text")).into_owned()
    }

    #[track_caller]
    pub fn wait_for(&self, what: &str, enough: impl Fn(&str) -> bool) {
        retry(what, || {
            let text = self.text();
            if enough(&text) { Ok(()) } else { Err(text) }
        });
    }

    /// Waits until the command has ended well, and returns all that it has shown.
    #[track_caller]
    pub fn end(mut self) -> String {
        if let Some(mut stdout) = self.stdout.take() {
            stdout.read_to_end(&mut Vec::new()).expect("its standard output");
        }
        self.reader.take().map(JoinHandle::join);
        let status = self.child.wait().expect("a child of ours");
        assert!(status.success(), "{status}: {}", self.text());
        self.text()
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        // This fails when it has ended already, which is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The control sequences of a text by their last letters (ECMA-48, CSI), and the text without them.
pub fn without_sequences(shown: &str) -> (String, String) {
    let (mut letters, mut text) = (String::new(), String::new());
    let mut rest = shown;
    while let Some((before, sequence)) = rest.split_once("\u{1b}[") {
        text.push_str(before);
        let end = sequence.find(|it: char| it.is_ascii_alphabetic()).unwrap_or(sequence.len());
        letters.extend(sequence[end..].chars().next());
        rest = sequence.get(end + 1..).unwrap_or_default();
    }
    text.push_str(rest);
    (letters, text)
}
