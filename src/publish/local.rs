//! The output without a broker.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::fd::AsFd;

use tokio::sync::mpsc::Receiver;

use crate::error::Error;
use crate::job::Outgoing;
use crate::mailbox::Sender;
use crate::progress::Progress;

/// Batches written before their jobs are reported: one write for all of them.
const BATCHES_TOGETHER: usize = 16;

/// Bytes gathered for one write.
const WRITE_BYTES: usize = 256 * 1024;

/// Standard output as it was given to the process.
///
/// The library's own takes what cannot be written for written where the descriptor is closed or not open for writing (EBADF),
/// and its start opens /dev/null where none was given: a message that nobody got would be confirmed.
///
/// # Errors
/// [`Error::Stdout`], when none was given.
pub fn stdout() -> Result<File, Error> {
    if given::was_closed() {
        return Err(Error::Stdout(io::Error::from_raw_os_error(libc::EBADF)));
    }
    io::stdout().as_fd().try_clone_to_owned().map(File::from).map_err(Error::Stdout)
}

/// What the process was given, seen before the library's start changes it.
#[expect(unsafe_code, reason = "a place in the program's table of what runs before main, and a bare descriptor")]
mod given {
    use std::sync::atomic::{AtomicBool, Ordering};

    static CLOSED: AtomicBool = AtomicBool::new(false);

    // SAFETY: the section holds pointers to functions that the C library calls once each, before main, with three arguments
    // that a function without parameters leaves alone; this is one.
    #[used]
    #[unsafe(link_section = ".init_array")]
    static LOOK: extern "C" fn() = look;

    extern "C" fn look() {
        // SAFETY: F_GETFD takes no argument, touches no memory of ours and may be asked of any number, open or not.
        let flags = unsafe { libc::fcntl(libc::STDOUT_FILENO, libc::F_GETFD) };
        // It has no other reason to fail but EBADF.
        CLOSED.store(flags == -1, Ordering::Relaxed);
    }

    /// Whether there was no standard output when the process began.
    pub fn was_closed() -> bool {
        CLOSED.load(Ordering::Relaxed)
    }
}

/// One JSON object a line. A message counts as confirmed when its line was written.
///
/// # Errors
/// [`Error::Stdout`], when nobody reads it any more for one.
pub fn to_stdout(
    stdout: File,
    mut messages: Receiver<Vec<Outgoing>>,
    sender: &Sender,
    progress: &Progress,
) -> Result<(), Error> {
    let mut lines = BufWriter::with_capacity(WRITE_BYTES, stdout);
    let mut batches = Vec::with_capacity(BATCHES_TOGETHER);
    while messages.blocking_recv_many(&mut batches, BATCHES_TOGETHER) > 0 {
        for message in batches.iter().flatten() {
            lines.write_all(&message.body).and_then(|()| lines.write_all(b"\n")).map_err(Error::Stdout)?;
        }
        lines.flush().map_err(Error::Stdout)?;
        let written: Vec<_> = batches.drain(..).flatten().map(Outgoing::confirmed).collect();
        progress.metrics.messages_published.inc_by(written.len() as u64);
        progress.publish.done(written.len());
        sender.report(written);
    }
    Ok(())
}
