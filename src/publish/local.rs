//! The output to standard output, without a broker.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::fd::AsFd;

use tokio::sync::mpsc::Receiver;

use crate::error::Error;
use crate::job::Outgoing;
use crate::mailbox::Sender;
use crate::progress::Progress;

/// The most batches that share one write. Their jobs are reported after it.
const BATCHES_TOGETHER: usize = 16;

/// The size of the write buffer, in bytes.
const WRITE_BYTES: usize = 256 * 1024;

/// Standard output as it was given to the process.
///
/// The standard library is no help here, because it would let a message count as confirmed that nobody received: its `Stdout`
/// ignores EBADF (a descriptor that is closed or not open for writing), and its start-up code opens /dev/null in place of a
/// closed descriptor.
///
/// # Errors
/// [`Error::Stdout`], when the process was started without standard output.
pub fn stdout() -> Result<File, Error> {
    if at_start::was_closed() {
        return Err(Error::Stdout(io::Error::from_raw_os_error(libc::EBADF)));
    }
    io::stdout().as_fd().try_clone_to_owned().map(File::from).map_err(Error::Stdout)
}

/// The state of standard output before the standard library's start-up code changes it.
#[expect(
    unsafe_code,
    reason = "an entry in the program's table of functions that run before main, and a bare descriptor"
)]
mod at_start {
    use std::sync::atomic::{AtomicBool, Ordering};

    static CLOSED: AtomicBool = AtomicBool::new(false);

    // SAFETY: the section holds pointers to functions that the C library calls once each, before main, with three arguments
    // that a function without parameters ignores; this is one.
    #[used]
    #[unsafe(link_section = ".init_array")]
    static CHECK: extern "C" fn() = check;

    extern "C" fn check() {
        // SAFETY: F_GETFD takes no argument, accesses no memory of ours and accepts any number, open or not.
        let flags = unsafe { libc::fcntl(libc::STDOUT_FILENO, libc::F_GETFD) };
        // F_GETFD can fail with EBADF alone.
        CLOSED.store(flags == -1, Ordering::Relaxed);
    }

    /// Whether the process was started without standard output.
    pub fn was_closed() -> bool {
        CLOSED.load(Ordering::Relaxed)
    }
}

/// Writes one JSON object a line. A message counts as confirmed once its line is written.
///
/// # Errors
/// [`Error::Stdout`], for example when its reader has ended.
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
