//! The length of the kernel's event queue. It holds for queues made from then on, on the whole machine:
//! it is changed for one start of the service only, and only where `scripts/soak` says that it may be.

use std::fs;
use std::io;

const LIMIT: &str = "/proc/sys/fs/inotify/max_queued_events";
/// The usual length, which is put back. Seeds run side by side, so what one of them finds may be
/// another's.
const USUAL_VARIABLE: &str = "INGESTOR_FAULT_QUEUE";

/// The usual length, where it may be changed.
pub fn usual() -> Option<usize> {
    std::env::var(USUAL_VARIABLE).ok()?.parse().ok()
}

pub fn now() -> usize {
    fs::read_to_string(LIMIT).expect("a limit").trim().parse().expect("a number")
}

/// Puts the usual length back when it goes.
pub struct Shortened(());

impl Shortened {
    pub fn to(length: usize) -> io::Result<Self> {
        fs::write(LIMIT, length.to_string()).map(|()| Self(()))
    }
}

impl Drop for Shortened {
    fn drop(&mut self) {
        if let Some(usual) = usual() {
            fs::write(LIMIT, usual.to_string()).expect("the usual length is put back");
        }
    }
}
