//! The kernel's event queue, and how to overflow it: by a flood, or by making it short. The length holds for queues
//! made from then on, on the whole machine, so it is changed for one start of the service only, and only where
//! `scripts/soak` allows it.

use std::fs::{self, File};
use std::io;
use std::path::Path;

const LIMIT: &str = "/proc/sys/fs/inotify/max_queued_events";
/// The usual length, which is restored. Seeds run side by side, so what one of them finds may be
/// another's.
const USUAL_VARIABLE: &str = "INGESTOR_FAULT_QUEUE";

/// Opened for writing in turn, because the kernel merges equal events in a row. Their content never changes.
pub const FLOOD: [&str; 2] = ["flood-0", "flood-1"];

/// The usual length, where it may be changed.
pub fn usual() -> Option<usize> {
    std::env::var(USUAL_VARIABLE).ok()?.parse().ok()
}

pub fn now() -> usize {
    fs::read_to_string(LIMIT).expect("a limit").trim().parse().expect("a number")
}

/// Restores the usual length when dropped.
pub struct Shortened(());

impl Shortened {
    pub fn to(length: usize) -> io::Result<Self> {
        fs::write(LIMIT, length.to_string()).map(|()| Self(()))
    }
}

impl Drop for Shortened {
    fn drop(&mut self) {
        if let Some(usual) = usual() {
            fs::write(LIMIT, usual.to_string()).expect("the usual length is restored");
        }
    }
}

/// More events than a queue of this length holds.
pub fn flood(data: &Path, length: usize) {
    for number in 0..=length {
        File::options().append(true).open(data.join(FLOOD[number % 2])).expect("open for writing");
    }
}
