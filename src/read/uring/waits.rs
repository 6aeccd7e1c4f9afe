//! How often a thread has waited in the kernel.

#![allow(unsafe_code)]

use std::mem::MaybeUninit;

/// The voluntary context switches of this thread so far (`ru_nvcsw` of RUSAGE_THREAD, getrusage(2), Linux 2.6.26). They become
/// more where it waits, for a disk say, and not where another thread takes its processor.
pub(super) fn waits_so_far() -> i64 {
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the call writes such a structure to memory of ours, and nothing else.
    let asked = unsafe { libc::getrusage(libc::RUSAGE_THREAD, usage.as_mut_ptr()) };
    debug_assert_eq!(asked, 0, "the kernel has no reason to refuse");
    // SAFETY: all zeros is a valid value, so it is initialized whether or not the call has succeeded.
    unsafe { usage.assume_init() }.ru_nvcsw
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn a_wait_counts_and_work_does_not() {
        let before = waits_so_far();
        let began = Instant::now();
        while began.elapsed() < Duration::from_millis(20) {}
        assert_eq!(waits_so_far(), before);
        std::thread::sleep(Duration::from_millis(1));
        assert!(waits_so_far() > before);
    }
}
