//! What a terminal can show, and standard error, shared by log lines and a progress bar.

use std::env;
use std::io::{self, IsTerminal, Write};
use std::sync::OnceLock;

use indicatif::ProgressBar;

/// The progress bar, once `scan` shows one.
pub(crate) static BAR: OnceLock<ProgressBar> = OnceLock::new();

/// Whether a stream is a terminal that shows colors, and whose user wants them: `NO_COLOR` (no-color.org) counts where it is
/// not empty, and a terminal without a type has none.
#[must_use]
pub fn colors(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && !is_dumb() && env::var_os("NO_COLOR").is_none_or(|wish| wish.is_empty())
}

/// Whether the terminal takes no control sequences.
#[must_use]
pub fn is_dumb() -> bool {
    env::var_os("TERM").is_none_or(|kind| kind.is_empty() || kind == "dumb")
}

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
