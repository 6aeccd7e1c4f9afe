//! Standard streams other than those that the harness pipes.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, fcntl_getfl, fcntl_setfl, open};
use rustix::pipe::{PipeFlags, pipe_with};

use super::setup::Setup;
use super::wait::retry;

/// Starts the program without these descriptors.
pub fn without(setup: Setup, descriptors: &'static [RawFd]) -> Setup {
    let close = move || {
        for descriptor in descriptors {
            // SAFETY: close is async-signal-safe, and the descriptor is the new process's own.
            unsafe { libc::close(*descriptor) };
        }
        Ok(())
    };
    // SAFETY: as above.
    unsafe { setup.before_exec(close) }
}

/// Starts the program with another file as this descriptor.
pub fn with(setup: Setup, descriptor: RawFd, file: impl Into<OwnedFd>) -> Setup {
    let file = file.into();
    let replace = move || {
        // SAFETY: dup2 is async-signal-safe, and both descriptors are the new process's own.
        match unsafe { libc::dup2(file.as_raw_fd(), descriptor) } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    };
    // SAFETY: as above; nothing is allocated but by an error that ends the test.
    unsafe { setup.before_exec(replace) }
}

pub fn open_to_write(path: &str) -> OwnedFd {
    open(Path::new(path), OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()).expect("it can be written")
}

/// A pipe: the end to read, and the end to write.
pub fn pipe() -> (OwnedFd, OwnedFd) {
    pipe_with(PipeFlags::CLOEXEC).expect("a pipe")
}

/// Sets O_NONBLOCK, which everybody sees who has the same open file.
pub fn do_not_block(file: impl AsFd) {
    fcntl_setfl(&file, fcntl_getfl(&file).expect("its flags") | OFlags::NONBLOCK).expect("O_NONBLOCK");
}

/// Waits until a pipe takes no more, by its end to write.
#[track_caller]
pub fn wait_until_full(end: impl AsFd) {
    retry("a full pipe", || {
        let now = Timespec::try_from(Duration::ZERO).expect("a time");
        match poll(&mut [PollFd::new(&end, PollFlags::OUT)], Some(&now)).expect("poll") {
            0 => Ok(()),
            _ => Err("it takes more".to_owned()),
        }
    });
}
