//! The service's lives: started, ended by the test or by a fault, started again. An end that is not expected fails the
//! test.

use std::collections::HashSet;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;

use super::repeats::{Excuses, LOST};
use crate::support::service::{Ended, Service, is_ready_line};
use crate::support::setup::{NOBODY, Setup};
use crate::support::wait::retry;

/// A line that it waits for the end of the connection of its earlier life.
const WAITING: &str = "waiting for its end";
/// A line that it has the broker again.
const AGAIN: &str = "INFO connected again";
/// A line that it has looked at all that it watches.
pub const RESCANNED: &str = "rescan finished";

pub struct Settings {
    pub data: PathBuf,
    pub state: PathBuf,
    pub url: String,
    pub arguments: Vec<String>,
    /// The connection is closed after seconds of silence, which can happen on a busy machine without a fault.
    pub short_heartbeat: bool,
    /// A copy of the binary that another user can reach: who the service runs as.
    pub by_nobody: Option<PathBuf>,
    /// Whether that user has read leases on others' files.
    pub leases: bool,
    /// For so many seconds it tries to connect again. Otherwise it ends when the broker is lost.
    pub reconnect: Option<String>,
}

pub struct Life {
    pub settings: Settings,
    service: Option<Service>,
    pub excuses: Excuses,
    /// Its limit of descriptors, while it has none left.
    descriptors: Option<String>,
    /// The logs of its earlier lives.
    log: String,
    pub starts: usize,
    /// How often this life has lost the broker, as far as that was awaited.
    losses: usize,
}

impl Life {
    pub fn new(settings: Settings) -> Self {
        let (excuses, log) = (Excuses::default(), String::new());
        Self { settings, service: None, excuses, descriptors: None, log, starts: 0, losses: 0 }
    }

    /// Returns when it is ready, or when it waits for the end of its earlier life's connection: the messages of that
    /// one are still to come, and an alarm holds them up.
    pub fn start(&mut self) {
        self.begin();
        let service = self.service.as_ref().expect("it was just started");
        service.wait_log("the line `ready`, or one that its earlier life is waited for", |line| {
            is_ready_line(line) || line.contains(WAITING)
        });
    }

    /// Returns at once.
    pub fn begin(&mut self) {
        assert!(self.service.is_none(), "it is started once at a time");
        let heartbeat = if self.settings.short_heartbeat { 2 } else { 30 };
        let url = format!("{}?heartbeat={heartbeat}", self.settings.url);
        let setup = Setup::watch(&self.settings.data, &url)
            .env("STATE_DIRECTORY", &self.settings.state)
            .env("LOG_LEVEL", "DEBUG")
            .args(&self.settings.arguments)
            .env("INGESTOR_RECONNECT_SECONDS", self.settings.reconnect.as_deref().unwrap_or_default());
        self.starts += 1;
        self.losses = 0;
        self.log.push_str(&format!("start {}\n", self.starts));
        let setup = match &self.settings.by_nobody {
            Some(copy) => setup.by_nobody_from(copy, self.settings.leases),
            None => setup,
        };
        self.service = Some(setup.spawn());
    }

    /// Waits until it is ready, if it runs.
    pub fn wait_ready(&self) {
        if let Some(service) = &self.service {
            service.wait_ready();
        }
    }

    /// Waits until it has compared the directories with its ledger, if it runs.
    pub fn wait_rescanned(&self) {
        if let Some(service) = &self.service {
            service.wait_log("the end of the rescan", |line| line.contains(RESCANNED));
        }
    }

    /// Afterwards it runs, and has the broker if it had it before.
    pub fn start_if_down(&mut self) {
        match &self.service {
            None => self.start(),
            Some(service) => retry("another connection", || {
                let [lost, again] = [LOST, AGAIN].map(|wanted| service.count_log(wanted));
                if again >= lost { Ok(()) } else { Err(service.stderr()) }
            }),
        }
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.check();
        let Some(service) = self.service.take() else { return };
        service.signal(Signal::KILL);
        let ended = service.wait_exit();
        assert_eq!(ended.status.signal(), Some(9), "it ended by itself just before:\n{}", ended.stderr);
        self.descriptors = None;
        self.excuses.crash();
        self.remember(&ended);
    }

    /// SIGTERM, and a clean end.
    pub fn stop(&mut self) {
        self.check();
        self.give_descriptors_back();
        let Some(service) = self.service.take() else { return };
        let ended = service.stop();
        self.remember(&ended);
    }

    pub fn pause(&self) {
        self.service.iter().for_each(Service::pause);
    }

    pub fn resume(&self) {
        self.service.iter().for_each(Service::resume);
    }

    /// The broker is lost: the service ends with one error line and status 1, or says that it connects again.
    pub fn expect_lost(&mut self) {
        if self.settings.reconnect.is_some() {
            let Some(service) = &self.service else { return };
            self.losses = retry("a line that the broker is lost", || match service.count_log(LOST) {
                count if count > self.losses => Ok(count),
                _ => Err(service.stderr()),
            });
            return;
        }
        let Some(service) = self.service.take() else { return };
        self.lost(service);
    }

    fn lost(&mut self, service: Service) {
        let ended = service.wait_exit().expect_code(1);
        let errors = ended.stderr.lines().filter(|line| line.contains("ERROR")).count();
        assert!(errors == 1 && !ended.stderr.contains("panicked"), "not one error line:\n{}", ended.stderr);
        self.descriptors = None;
        self.excuses.crash();
        self.remember(&ended);
    }

    /// It keeps the descriptors that are open now and gets no other. Returns whether it runs and had a limit to lower.
    pub fn take_descriptors(&mut self) -> bool {
        let Some(service) = self.service.as_ref().filter(|_| self.descriptors.is_none()) else { return false };
        let directory = format!("/proc/{}", service.id());
        let open = std::fs::read_dir(format!("{directory}/fd")).expect("its descriptors").count();
        let limits = std::fs::read_to_string(format!("{directory}/limits")).expect("its limits");
        let usual = limits.lines().find_map(|line| line.strip_prefix("Max open files")?.split_whitespace().next());
        self.descriptors = Some(usual.expect("a limit of open files").to_owned());
        self.limit_descriptors(&open.to_string());
        true
    }

    pub fn give_descriptors_back(&mut self) {
        if let Some(usual) = self.descriptors.take() {
            self.limit_descriptors(&usual);
        }
    }

    /// By a process of the same user, because root may not change another user's limits everywhere. The hard limit
    /// stays.
    fn limit_descriptors(&self, soft: &str) {
        let Some(service) = &self.service else { return };
        let mut command = Command::new("prlimit");
        if self.settings.by_nobody.is_some() {
            command.uid(NOBODY).gid(NOBODY);
        }
        let limited = command.args(["--pid", &service.id().to_string(), &format!("--nofile={soft}:")]).output();
        let limited = limited.expect("prlimit");
        assert!(limited.status.success(), "{}", String::from_utf8_lossy(&limited.stderr));
    }

    /// It must still run, whatever was done to it.
    pub fn check(&mut self) {
        let Some(mut service) = self.service.take() else { return };
        if service.is_running() {
            self.service = Some(service);
        } else if self.settings.short_heartbeat && service.stderr().contains("heartbeat") {
            self.lost(service);
        } else {
            let ended = service.wait_exit();
            panic!("the service ended by itself, {}:\n{}", ended.status, ended.stderr);
        }
    }

    /// The logs of all its lives.
    pub fn log(&self) -> String {
        let present = self.service.as_ref().map(Service::stderr).unwrap_or_default();
        format!("{}{present}\n", self.log)
    }

    /// Notes a fault in its log.
    pub fn note(&mut self, fault: &str) {
        self.log.push_str(&format!("fault {fault}\n"));
    }

    fn remember(&mut self, ended: &Ended) {
        self.log.push_str(&ended.stderr);
        self.log.push_str(&format!("ended: {}\n", ended.status));
    }
}

/// The lines of the log about these names and about the service's lives.
pub fn about(log: &str, data: &Path, names: &HashSet<String>) -> String {
    let paths: Vec<String> = names.iter().map(|name| format!("{}\"", data.join(name).display())).collect();
    let wanted = |line: &&str| {
        paths.iter().any(|path| line.contains(path))
            || ["start ", "fault ", "ended: ", "ready", "WARN no ", "ERROR", RESCANNED, LOST, AGAIN]
                .iter()
                .any(|it| line.contains(it))
    };
    log.lines().filter(wanted).map(|line| format!("  {line}\n")).collect()
}
