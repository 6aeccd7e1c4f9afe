//! Signals that would end the process where an error says the same.
#![allow(unsafe_code)]

/// Ignores SIGXFSZ: a write beyond the limit of a file's size (`ulimit -f`, `LimitFSIZE=`) is then refused with EFBIG, as a
/// full disk refuses it with ENOSPC (setrlimit(2)).
pub fn ignore_file_size_signal() {
    // SAFETY: SIG_IGN installs no handler, so no code of ours can run at a bad moment.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}
