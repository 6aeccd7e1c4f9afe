//! Seccomp filters that are in force when a program begins, and io_uring, which they may deny.

use std::collections::BTreeMap;
use std::io;

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};

use super::service::Ended;
use super::setup::Setup;

pub fn architecture() -> TargetArch {
    std::env::consts::ARCH.try_into().expect("an architecture that seccompiler knows")
}

/// Starts the program under these filters.
pub fn with_filters(setup: Setup, filters: Vec<BpfProgram>) -> Setup {
    // SAFETY: setting a filter is two system calls, and what they need was allocated before.
    unsafe { setup.before_exec(move || set(&filters)) }
}

/// Sets the filters for this process.
pub fn set(filters: &[BpfProgram]) -> io::Result<()> {
    filters.iter().try_for_each(|it| seccompiler::apply_filter(it).map_err(|_| io::Error::last_os_error()))
}

/// Denies the program `io_uring_setup` with this error, and nothing else.
pub fn without_io_uring(setup: Setup, errno: i32) -> Setup {
    let rules = BTreeMap::from([(libc::SYS_io_uring_setup, Vec::new())]);
    let denial = SeccompAction::Errno(errno.unsigned_abs());
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, denial, architecture()).expect("a filter");
    with_filters(setup, vec![filter.try_into().expect("a program")])
}

/// Whether the kernel lets this process have a ring.
pub fn io_uring_is_allowed() -> bool {
    const PARAMETERS: usize = 120;
    let mut parameters = [0u8; PARAMETERS];
    // SAFETY: `io_uring_setup` with a zeroed parameter block of its full size; the descriptor is ours.
    unsafe {
        let descriptor = libc::syscall(libc::SYS_io_uring_setup, 1, parameters.as_mut_ptr());
        descriptor >= 0 && libc::close(descriptor as i32) == 0
    }
}

pub fn warnings_about_io_uring(ended: &Ended) -> Vec<&str> {
    ended.warnings().into_iter().filter(|line| line.contains("io_uring")).collect()
}
