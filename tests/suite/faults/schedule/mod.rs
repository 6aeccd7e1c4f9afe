//! The fault schedule: seeded, with a step after every few operations of the workload. Some faults last for several
//! steps, so that they meet others.

mod broker;
mod service;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use super::disk::StateDirectory;
use super::node::Node;
use super::pace::Pace;
use crate::oracle::life::Life;
use crate::support::files::Random;
use crate::support::volume::Volume;

/// Steps in one round.
const STEPS: usize = 4;
/// Operations between two steps, at least and at most.
const OPERATIONS: (usize, usize) = (10, 70);
/// How many operations the workload may be ahead of the schedule, which it does during a step.
const AHEAD: usize = 60;
/// Faults that take seconds: some seeds have one of them, once.
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

/// The last fault of a round; the rounds have them in turn.
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
    /// How often each kind of fault came, for the report.
    pub counts: BTreeMap<&'static str, usize>,
    pace: Arc<Pace>,
    at: usize,
    costly: Costly,
    /// Steps until the costly fault.
    costly_in: usize,
    alarm: bool,
    refusing: bool,
    full: bool,
    /// No queue is bound.
    unbound: bool,
    /// The service is another user, to whom files and directories can be closed.
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

    /// The last fault is mostly one without a restart, because the rescan at a start would repair whatever the service
    /// has missed. An error in the ledger shows only after a restart, so some rounds end with a kill.
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

    /// Waits until the workload has done the same number of operations for the same seed.
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

    /// Between two rounds the volume is mounted again under another device number. No file has another version then.
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

    /// Lets the workload do so many more operations and waits until they are done.
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
        // It ends soon, because the pause between two attempts doubles.
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
}
