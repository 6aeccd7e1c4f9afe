//! Faults of the broker: it stops, is killed, hangs, closes connections, raises an alarm, refuses messages, or has no
//! queue.

use super::{Costly, Stage};
use crate::oracle::record;
use crate::oracle::repeats::Lasting;

impl Stage<'_> {
    pub(super) fn stop_the_broker(&mut self) {
        self.node.stop();
        self.life.expect_lost();
        self.some_operations();
        self.node.start_again();
        self.broker_is_new("broker-stop");
    }

    pub(super) fn kill_the_broker(&mut self) {
        self.costly = Costly::None;
        self.node.kill();
        self.life.expect_lost();
        self.some_operations();
        self.node.boot();
        // A broker that is killed may have lost what was last declared, deleted, bound and unbound.
        let refusing = if self.refusing { record::begin_refusing } else { record::end_refusing };
        let binding = if self.unbound { record::unbind } else { record::bind };
        refusing(&self.url);
        binding(&self.url);
        self.broker_is_new("broker-kill");
    }

    pub(super) fn broker_is_new(&mut self, kind: &'static str) {
        // The new broker has no alarm.
        self.alarm = false;
        self.life.excuses.end(Lasting::HeldUp);
        self.count(kind);
        if self.often() {
            self.life.start_if_down();
        }
    }

    /// Too short for the heartbeat to notice. Messages wait in the sockets meanwhile, also those of a service that is
    /// dead when the broker reads them.
    pub(super) fn freeze(&mut self) {
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

    /// Long enough for the heartbeat to notice.
    pub(super) fn freeze_for_long(&mut self) {
        self.costly = Costly::None;
        self.life.start_if_down();
        self.life.excuses.begin(Lasting::HeldUp);
        self.node.freeze();
        self.some_operations();
        self.life.expect_lost();
        self.node.thaw();
        self.life.excuses.end(Lasting::HeldUp);
        self.count("freeze-long");
        self.life.start_if_down();
    }

    pub(super) fn close_connections(&mut self) {
        self.life.start_if_down();
        // While an alarm holds up its channel, a service's connection may come and go.
        self.lift_alarm();
        let closed = self.node.close_connections(&self.vhost);
        assert!(closed > 0, "the service has no connection that could be closed");
        self.life.expect_lost();
        self.count("close-connections");
    }

    pub(super) fn raise_alarm_only(&mut self) {
        if !self.alarm {
            self.life.excuses.begin(Lasting::HeldUp);
            self.node.block();
            self.alarm = true;
            self.count("alarm");
        }
    }

    pub(super) fn raise_alarm(&mut self) {
        self.raise_alarm_only();
        // Messages sent before the broker reported the alarm are read when it is over, also after a kill.
        if self.often() {
            self.some_operations();
            self.kill();
            self.some_operations();
            self.life.start_if_down();
        }
    }

    pub(super) fn lift_alarm(&mut self) {
        if std::mem::take(&mut self.alarm) {
            self.node.unblock();
            self.life.excuses.end(Lasting::HeldUp);
            self.life.wait_ready();
        }
    }

    pub(super) fn refuse(&mut self) {
        self.life.start_if_down();
        // The record must get the refused messages too.
        self.bind();
        self.life.excuses.begin(Lasting::Refused);
        record::begin_refusing(&self.url);
        self.refusing = true;
        self.count("refuse");
    }

    pub(super) fn stop_refusing(&mut self) {
        if std::mem::take(&mut self.refusing) {
            record::end_refusing(&self.url);
            self.life.excuses.end(Lasting::Refused);
        }
    }

    /// Messages are returned meanwhile, and must be in the record once it is bound again.
    pub(super) fn unbind(&mut self) {
        if !self.unbound && !self.refusing {
            record::unbind(&self.url);
            self.unbound = true;
            self.count("unbind");
        }
    }

    pub(super) fn bind(&mut self) {
        if std::mem::take(&mut self.unbound) {
            record::bind(&self.url);
        }
    }
}
