//! The fault schedule: seeded, a step after every few operations of the workload. Some faults last for
//! several steps, so that they meet others.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::disk::StateDirectory;
use super::life::Life;
use super::node::Node;
use super::pace::Pace;
use super::repeats::Lasting;
use super::{queue, record};
use crate::support::files::{Random, chmod};
use crate::support::skip;
use crate::support::volume::Volume;

/// Of one round.
const STEPS: usize = 4;
/// Operations between two steps, at least and at most.
const OPERATIONS: (usize, usize) = (10, 70);
/// How far the workload may be ahead of the schedule: what goes on while a step is made.
const AHEAD: usize = 60;
/// A machine whose queue is longer than this is not flooded.
const FLOOD_MAX: usize = 200_000;

/// Lives that end within a second, one after the other.
const SHORT_LIVES: usize = 4;
/// How long such a one is, at most.
const SHORT_LIFE_MS: usize = 1000;
/// The watched directory's own mode, and one that keeps the service out.
const OPEN: u32 = 0o777;
const SHUT: u32 = 0o700;

/// Events that a shortened queue holds.
const QUEUE: usize = 8;

/// Faults that cost seconds, dealt out to some seeds, once each.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Costly {
    None,
    KillsBroker,
    Heartbeat,
}

impl Costly {
    pub fn of(turn: u64) -> Self {
        match turn % 6 {
            1 => Self::KillsBroker,
            2 => Self::Heartbeat,
            _ => Self::None,
        }
    }
}

/// Dealt out to the rounds in turn.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Finale {
    Overflow,
    Kill,
    Alarm,
    Refusal,
    None,
}

impl Finale {
    pub fn of(turn: u64, round: usize) -> Self {
        let all = [Self::Overflow, Self::Kill, Self::Alarm, Self::None, Self::Refusal];
        all[(turn as usize + round) % all.len()]
    }
}

pub struct Stage<'a> {
    node: &'a mut Node,
    vhost: String,
    pub url: String,
    pub data: PathBuf,
    pub life: Life,
    state: StateDirectory,
    random: Random,
    /// By kind, for the report.
    pub counts: BTreeMap<&'static str, usize>,
    pace: Arc<Pace>,
    at: usize,
    costly: Costly,
    /// Steps until then.
    costly_in: usize,
    alarm: bool,
    refusing: bool,
    full: bool,
    /// No queue is bound.
    unbound: bool,
    /// The service is another user, who can be kept out.
    rights: bool,
}

impl<'a> Stage<'a> {
    pub fn new(
        node: &'a mut Node,
        vhost: String,
        life: Life,
        state: StateDirectory,
        mut random: Random,
        costly: Costly,
    ) -> Self {
        let rights = life.settings.by_nobody.is_some();
        Self {
            node,
            vhost,
            url: life.settings.url.clone(),
            data: life.settings.data.clone(),
            life,
            state,
            costly,
            costly_in: 1 + random.below(2 * STEPS),
            random,
            counts: BTreeMap::new(),
            pace: Arc::default(),
            at: 0,
            alarm: false,
            refusing: false,
            full: false,
            unbound: false,
            rights,
        }
    }

    pub fn next_round(&mut self) -> Arc<Pace> {
        (self.pace, self.at) = (Arc::default(), 0);
        Arc::clone(&self.pace)
    }

    pub fn play(&mut self, finale: Finale) {
        for _ in 0..STEPS {
            let (least, most) = OPERATIONS;
            let operations = least + self.random.below(most - least);
            self.advance(operations);
            self.life.check();
            self.lift_some();
            self.costly_in = self.costly_in.saturating_sub(1);
            match self.costly {
                Costly::None => self.fault(),
                _ if self.costly_in > 0 => self.fault(),
                Costly::KillsBroker => self.kill_the_broker(),
                Costly::Heartbeat => self.freeze_for_long(),
            }
        }
        self.life.check();
        self.lift_all();
        self.finale(finale);
        self.pace.end();
    }

    /// The last fault is mostly one that the service gets over by itself: a restart would look over the
    /// directory and make good whatever it had missed. What only a ledger can be wrong about needs one.
    fn finale(&mut self, finale: Finale) {
        match finale {
            Finale::Overflow => self.flood(),
            Finale::Kill => self.kill(),
            Finale::Alarm => self.raise_alarm_only(),
            Finale::Refusal => self.refuse(),
            Finale::None => {}
        }
        self.run_out();
        self.life.check();
    }

    /// The same number of operations for the same seed, wherever the workload was.
    fn run_out(&mut self) {
        self.pace.wait_done(self.at + AHEAD);
    }

    /// No fault is left, and the service runs.
    pub fn lift_all(&mut self) {
        self.life.check();
        self.lift_alarm();
        self.stop_refusing();
        self.bind();
        self.life.give_descriptors_back();
        self.free_the_disk();
        self.life.start_if_down();
        self.life.wait_ready();
    }

    /// Between two rounds: what is watched is unmounted and mounted again under another number. No version of a file is
    /// another then.
    pub fn remount(&mut self, volume: &mut Volume) {
        self.life.stop();
        volume.remount();
        self.count("remount");
        self.life.start();
        self.life.wait_ready();
    }

    fn fault(&mut self) {
        match self.random.below(29) {
            0..3 => self.kill(),
            3..5 => self.stop(),
            5..7 => self.stop_the_broker(),
            7..9 => self.freeze(),
            9 => self.close_connections(),
            10..13 => self.raise_alarm(),
            13..15 => self.refuse(),
            15 => self.flood(),
            16 => self.damage(),
            17 => self.lose_the_tail(),
            18 => self.fill_the_disk(),
            19..22 => self.unbind(),
            22..25 => self.take_descriptors(),
            25..27 => self.kill_in_the_first_second(),
            27 => self.shut_the_data_directory(),
            _ => self.shorten_the_queue(),
        }
    }

    fn count(&mut self, kind: &'static str) {
        *self.counts.entry(kind).or_default() += 1;
        self.life.note(kind);
    }

    /// Lets the workload do so many operations more, and waits until they are done.
    fn advance(&mut self, operations: usize) {
        self.at += operations;
        self.pace.allow(self.at + AHEAD);
        self.pace.wait_done(self.at);
    }

    fn some_operations(&mut self) {
        let operations = self.random.below(60);
        self.advance(operations);
    }

    fn often(&mut self) -> bool {
        self.random.below(2) == 0
    }

    fn lift_some(&mut self) {
        if self.alarm && self.often() {
            self.lift_alarm();
        }
        // Soon: the pause between two attempts doubles.
        self.stop_refusing();
        if self.unbound && self.often() {
            self.bind();
        }
        if self.often() {
            self.life.give_descriptors_back();
        }
        if self.full && self.often() {
            self.free_the_disk();
        }
        if self.often() {
            self.life.start_if_down();
        }
    }

    fn kill(&mut self) {
        self.life.start_if_down();
        self.life.kill();
        self.count("kill");
    }

    fn stop(&mut self) {
        self.life.start_if_down();
        // It would wait its 10 s for confirms that cannot come.
        self.lift_alarm();
        self.stop_refusing();
        self.bind();
        self.life.wait_ready();
        self.life.stop();
        self.count("stop");
    }

    fn stop_the_broker(&mut self) {
        self.node.stop();
        self.life.expect_lost();
        self.some_operations();
        self.node.start_again();
        self.broker_is_new("broker-stop");
    }

    fn kill_the_broker(&mut self) {
        self.costly = Costly::None;
        self.node.kill();
        self.life.expect_lost();
        self.some_operations();
        self.node.boot();
        self.broker_is_new("broker-kill");
    }

    fn broker_is_new(&mut self, kind: &'static str) {
        // It has forgotten the alarm.
        self.alarm = false;
        self.life.excuses.end(Lasting::HeldUp);
        self.count(kind);
        if self.often() {
            self.life.start_if_down();
        }
    }

    /// Too short to be noticed but by its silence; what was sent waits in the sockets meanwhile, also
    /// what a service sent that is dead when the broker reads it.
    fn freeze(&mut self) {
        self.life.start_if_down();
        self.life.excuses.begin(Lasting::HeldUp);
        self.node.freeze();
        self.some_operations();
        if self.often() {
            self.kill();
            self.some_operations();
        }
        self.node.thaw();
        self.life.excuses.end(Lasting::HeldUp);
        self.life.start_if_down();
        self.count("freeze");
    }

    /// The heartbeat tells.
    fn freeze_for_long(&mut self) {
        self.costly = Costly::None;
        self.life.start_if_down();
        self.life.excuses.begin(Lasting::HeldUp);
        self.node.freeze();
        self.some_operations();
        self.life.expect_lost();
        self.node.thaw();
        self.life.excuses.end(Lasting::HeldUp);
        self.count("freeze-long");
        self.life.start();
    }

    fn close_connections(&mut self) {
        self.life.start_if_down();
        // One whose channel is refused comes and goes.
        self.lift_alarm();
        let closed = self.node.close_connections(&self.vhost);
        assert!(closed > 0, "the service has no connection that could be closed");
        self.life.expect_lost();
        self.count("close-connections");
    }

    fn raise_alarm_only(&mut self) {
        if !self.alarm {
            self.life.excuses.begin(Lasting::HeldUp);
            self.node.raise_memory_alarm();
            self.alarm = true;
            self.count("alarm");
        }
    }

    fn raise_alarm(&mut self) {
        self.raise_alarm_only();
        // What was sent before the broker said so is read when the alarm is over, after a kill too.
        if self.often() {
            self.some_operations();
            self.kill();
            self.some_operations();
            self.life.start_if_down();
        }
    }

    fn lift_alarm(&mut self) {
        if std::mem::take(&mut self.alarm) {
            self.node.lift_memory_alarm();
            self.life.excuses.end(Lasting::HeldUp);
            self.life.wait_ready();
        }
    }

    fn refuse(&mut self) {
        self.life.start_if_down();
        // What is refused is to be in the record.
        self.bind();
        self.life.excuses.begin(Lasting::Refused);
        record::begin_refusing(&self.url);
        self.refusing = true;
        self.count("refuse");
    }

    fn stop_refusing(&mut self) {
        if std::mem::take(&mut self.refusing) {
            record::end_refusing(&self.url);
            self.life.excuses.end(Lasting::Refused);
        }
    }

    /// What is published meanwhile comes back, and is to be in the record once that is bound again.
    fn unbind(&mut self) {
        if !self.unbound && !self.refusing {
            record::unbind(&self.url);
            self.unbound = true;
            self.count("unbind");
        }
    }

    fn bind(&mut self) {
        if std::mem::take(&mut self.unbound) {
            record::bind(&self.url);
        }
    }

    fn take_descriptors(&mut self) {
        self.life.start_if_down();
        self.life.wait_ready();
        if self.life.take_descriptors() {
            self.count("no-descriptors");
        }
    }

    /// Again and again: what was confirmed in one life is known in the next.
    fn kill_in_the_first_second(&mut self) {
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

    /// The watched directory itself, for a while; the service could not start meanwhile.
    fn shut_the_data_directory(&mut self) {
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

    /// More events than the kernel's queue holds, while the service cannot read them; what the workload
    /// does then raises none.
    fn flood(&mut self) {
        let length = queue::usual().unwrap_or_else(queue::now);
        if length > FLOOD_MAX {
            return skip("fs.inotify.max_queued_events is too large to flood");
        }
        self.life.start_if_down();
        self.life.pause();
        queue::flood(&self.data, length);
        // All that the workload may do now: the more events are lost, the better.
        self.some_operations();
        self.run_out();
        self.life.resume();
        self.count("overflow");
    }

    /// So short a queue overflows by itself while the service lives. The limit is the whole machine's.
    fn shorten_the_queue(&mut self) {
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

    fn damage(&mut self) {
        // How much of it is drawn depends on the ledger's files, and the schedule must not.
        let mut random = Random::new(self.random.next());
        self.life.kill();
        self.some_operations();
        self.life.excuses.forgotten();
        if self.state.damage(&mut random) > 0 {
            self.count("damage");
        }
        self.life.start();
    }

    fn lose_the_tail(&mut self) {
        self.life.kill();
        self.some_operations();
        self.state.go_back();
        self.life.excuses.forgotten();
        self.life.start();
        self.count("old-ledger");
    }

    fn fill_the_disk(&mut self) {
        if let Some(disk) = self.state.disk().filter(|_| !self.full) {
            self.life.excuses.begin(Lasting::Full);
            disk.fill();
            self.full = true;
            self.count("full-disk");
        }
    }

    fn free_the_disk(&mut self) {
        if let Some(disk) = self.state.disk().filter(|_| std::mem::take(&mut self.full)) {
            disk.free();
            self.life.excuses.end(Lasting::Full);
        }
    }
}
