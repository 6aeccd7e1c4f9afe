//! What a terminal can show, and standard error as a progress bar draws on it.

use std::fmt::{self, Write as _};
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::{env, mem};

use indicatif::{ProgressBar, TermLike};

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

/// The width of a terminal that does not say how wide it is.
const COLUMNS_UNKNOWN: usize = 80;

/// How wide a terminal is now.
#[must_use]
pub fn columns(terminal: impl AsFd) -> usize {
    match rustix::termios::tcgetwinsize(terminal) {
        Ok(size) if size.ws_col > 0 => size.ws_col.into(),
        _ => COLUMNS_UNKNOWN,
    }
}

/// Standard error as the progress bar draws on it: as wide as it is at each moment, and without its last column, behind which
/// some terminals begin a new line. What is drawn is written at once.
#[derive(Debug, Default)]
pub struct Screen(Mutex<String>);

impl Screen {
    fn push(&self, text: fmt::Arguments<'_>) -> io::Result<()> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).write_fmt(text).map_err(io::Error::other)
    }

    /// Moves the cursor by so many lines or columns: ECMA-48, `CSI n A` up, `B` down, `C` right, `D` left.
    fn move_cursor(&self, by: usize, direction: char) -> io::Result<()> {
        if by == 0 { Ok(()) } else { self.push(format_args!("\x1b[{by}{direction}")) }
    }
}

impl TermLike for Screen {
    fn width(&self) -> u16 {
        u16::try_from(columns(io::stderr()).saturating_sub(1)).unwrap_or(u16::MAX)
    }

    fn move_cursor_up(&self, lines: usize) -> io::Result<()> {
        self.move_cursor(lines, 'A')
    }

    fn move_cursor_down(&self, lines: usize) -> io::Result<()> {
        self.move_cursor(lines, 'B')
    }

    fn move_cursor_right(&self, columns: usize) -> io::Result<()> {
        self.move_cursor(columns, 'C')
    }

    fn move_cursor_left(&self, columns: usize) -> io::Result<()> {
        self.move_cursor(columns, 'D')
    }

    fn write_line(&self, line: &str) -> io::Result<()> {
        self.push(format_args!("{line}\n"))
    }

    fn write_str(&self, text: &str) -> io::Result<()> {
        self.push(format_args!("{text}"))
    }

    fn clear_line(&self) -> io::Result<()> {
        self.push(format_args!("\r\x1b[2K"))
    }

    fn flush(&self) -> io::Result<()> {
        let drawn = mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        io::stderr().write_all(drawn.as_bytes())
    }
}
