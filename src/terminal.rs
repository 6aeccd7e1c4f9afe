//! Standard error, shared by log lines and a progress bar.

use std::io::{self, Write};
use std::sync::OnceLock;

use indicatif::ProgressBar;

/// The progress bar, once `scan` shows one.
pub(crate) static BAR: OnceLock<ProgressBar> = OnceLock::new();

/// Standard error for log lines, which are written above the bar.
#[derive(Debug, Clone, Copy)]
pub struct AroundTheBar;

impl Write for AroundTheBar {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match BAR.get() {
            Some(bar) => bar.suspend(|| io::stderr().write(line)),
            None => io::stderr().write(line),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}
