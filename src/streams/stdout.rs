//! Standard output as it was given to the process.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::thread;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{FileType, fstat};
use rustix::io::Errno;

use super::wait_until_it_takes_more;
use crate::error::Error;

/// Standard output. A write waits until a full pipe takes more, whether or not somebody has set the pipe to O_NONBLOCK.
///
/// The standard library is no help here, because it would let a message count as confirmed that nobody received: its `Stdout`
/// ignores EBADF (a descriptor that is closed or not open for writing), and its start-up code opens /dev/null in place of a
/// closed descriptor.
pub struct Stdout(File);

impl Stdout {
    /// Takes standard output for messages, each of which counts.
    ///
    /// # Errors
    /// [`Error::Stdout`], when the process was started without standard output.
    pub fn given() -> Result<Self, Error> {
        if at_start::was_closed() {
            return Err(Error::Stdout(io::Error::from_raw_os_error(libc::EBADF)));
        }
        Self::open()
    }

    fn open() -> Result<Self, Error> {
        io::stdout().as_fd().try_clone_to_owned().map(|stdout| Self(File::from(stdout))).map_err(Error::Stdout)
    }

    /// Runs `then` when standard output is a pipe and its last reader closes it, so that a command which waits for something to
    /// write ends, too. Nothing is watched where the system gives no thread: then the next write fails.
    pub fn when_its_reader_goes(&self, then: impl FnOnce() + Send + 'static) {
        let Ok(pipe) = self.0.try_clone() else { return };
        if !fstat(&pipe).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Fifo) {
            return;
        }
        let wait = move || {
            loop {
                // Errors are reported without being asked for (poll(2)); of a pipe that nobody reads there is one.
                match poll(&mut [PollFd::new(&pipe, PollFlags::empty())], None) {
                    Ok(_) => return then(),
                    Err(Errno::INTR) => {}
                    Err(_) => return,
                }
            }
        };
        let _ = thread::Builder::new().name("stdout-reader".to_owned()).spawn(wait);
    }
}

impl Write for Stdout {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match self.0.write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => wait_until_it_takes_more(self.0.as_fd())?,
                written => return written,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Prints what a command has to say. A reader that has gone away has seen what it wanted, and a standard output that was closed
/// at start is nobody's loss: the exit status answers, too.
///
/// # Errors
/// [`Error::Stdout`], for example on a full disk.
pub fn print(text: &str) -> Result<(), Error> {
    match Stdout::open()?.write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Error::Stdout(error)),
        _ => Ok(()),
    }
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
