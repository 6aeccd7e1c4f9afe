//! Faults of the service and its machine: kills, no descriptors, a shut directory, an overflow, and what a disk does.

use std::time::Duration;

use super::super::queue;
use super::Stage;
use crate::oracle::repeats::Lasting;
use crate::support::files::{Random, chmod};
use crate::support::skip;

/// How many lives end within a second, one after the other.
const SHORT_LIVES: usize = 4;
/// How long such a life is, at most.
const SHORT_LIFE_MS: usize = 1000;
/// A queue that is longer than this is not flooded.
const FLOOD_MAX: usize = 200_000;
/// How many events a shortened queue holds.
const QUEUE: usize = 8;
/// The watched directory's own mode, and one that keeps the service out.
const OPEN: u32 = 0o777;
const SHUT: u32 = 0o700;

impl Stage<'_> {
    pub(super) fn kill(&mut self) {
        self.life.start_if_down();
        self.life.kill();
        self.count("kill");
    }

    pub(super) fn stop(&mut self) {
        self.life.start_if_down();
        // Otherwise it would wait 10 s for confirms that cannot come.
        self.lift_alarm();
        self.stop_refusing();
        self.bind();
        self.life.wait_ready();
        self.life.stop();
        self.count("stop");
    }

    pub(super) fn take_descriptors(&mut self) {
        self.life.start_if_down();
        self.life.wait_ready();
        if self.life.take_descriptors() {
            self.count("no-descriptors");
        }
    }

    /// Several times in a row: the ledger of the next life must have the rows of what was confirmed.
    pub(super) fn kill_in_the_first_second(&mut self) {
        self.life.kill();
        for _ in 0..2 + self.random.below(SHORT_LIVES - 1) {
            self.some_operations();
            let life = self.random.below(SHORT_LIFE_MS);
            self.life.begin();
            std::thread::sleep(Duration::from_millis(life as u64));
            self.life.kill();
            self.count("kill-at-once");
        }
        self.life.start();
    }

    /// The watched directory itself, for a while. The service could not start meanwhile.
    pub(super) fn shut_the_data_directory(&mut self) {
        if !self.rights {
            return skip("the fault `shut` needs root and a service that is another user");
        }
        self.life.start_if_down();
        self.life.wait_ready();
        chmod(&self.data, SHUT);
        self.some_operations();
        self.life.check();
        chmod(&self.data, OPEN);
        self.count("shut");
    }

    /// More events than the kernel's queue holds, while the service cannot read them. Later operations of the workload
    /// raise no event then (IN_Q_OVERFLOW).
    pub(super) fn flood(&mut self) {
        let length = queue::usual().unwrap_or_else(queue::now);
        if length > FLOOD_MAX {
            return skip("fs.inotify.max_queued_events is too large to flood");
        }
        self.life.start_if_down();
        self.life.pause();
        queue::flood(&self.data, length);
        // The workload does all that it may, so that many events are lost.
        self.some_operations();
        self.run_out();
        self.life.resume();
        self.count("overflow");
    }

    /// So short a queue overflows often while the service lives. The limit is the whole machine's.
    pub(super) fn shorten_the_queue(&mut self) {
        self.life.kill();
        self.some_operations();
        let shortened = queue::usual().map(|_| queue::Shortened::to(QUEUE));
        self.life.start();
        match shortened {
            Some(Ok(_shortened)) => self.count("short-queue"),
            Some(Err(error)) => skip(&format!("fs.inotify.max_queued_events cannot be set: {error}")),
            None => skip("fs.inotify.max_queued_events is the whole machine's: scripts/soak alone shortens it"),
        }
    }

    pub(super) fn damage(&mut self) {
        // A generator of its own, because the ledger's files decide how many numbers are drawn, and the schedule must
        // not depend on them.
        let mut random = Random::new(self.random.next());
        self.life.kill();
        self.some_operations();
        self.life.excuses.forgotten();
        if self.state.damage(&mut random) > 0 {
            self.count("damage");
        }
        self.life.start();
    }

    pub(super) fn lose_the_tail(&mut self) {
        self.life.kill();
        self.some_operations();
        self.state.go_back();
        self.life.excuses.forgotten();
        self.life.start();
        self.count("old-ledger");
    }

    pub(super) fn fill_the_disk(&mut self) {
        if let Some(disk) = self.state.disk().filter(|_| !self.full) {
            self.life.excuses.begin(Lasting::Full);
            disk.fill();
            self.full = true;
            self.count("full-disk");
        }
    }

    pub(super) fn free_the_disk(&mut self) {
        if let Some(disk) = self.state.disk().filter(|_| std::mem::take(&mut self.full)) {
            disk.free();
            self.life.excuses.end(Lasting::Full);
        }
    }
}
