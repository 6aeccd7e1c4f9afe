//! The kernel, its limits, and what a seccomp profile leaves of it.

use std::fs;

use rustix::process::{Resource, getrlimit};
use rustix::thread::{CapabilitySet, capabilities};

use super::Check;
use crate::cli::{ReadEngine, Settings};
use crate::config::workers;
use crate::read::uring;

/// openat2(2).
const KERNEL_MIN: (u32, u32) = (5, 6);

/// IORING_SETUP_SINGLE_ISSUER, which the rings are set up with (io_uring_setup(2)).
const KERNEL_FOR_RINGS: (u32, u32) = (6, 0);

/// Descriptors beside the files in flight: rings, sockets, the ledger, the log.
const DESCRIPTORS_BESIDE: u64 = 64;

pub fn checks(settings: &Settings) -> Vec<Check> {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mut checks = vec![version(&release), seccomp(&status)];
    if settings.read_engine != ReadEngine::Blocking {
        checks.push(io_uring(settings, field(&status, "Seccomp") == Some("2")));
        checks.push(locked_memory(workers(settings)));
    }
    checks.push(descriptors(workers(settings)));
    checks
}

fn version(release: &str) -> Check {
    const NAME: &str = "kernel";
    let found = format!("Linux {release}");
    match numbers(release) {
        Some(number) if number < KERNEL_MIN => Check::fail(NAME, found, "use Linux 5.6 or newer: openat2 is missing"),
        Some(number) if number < KERNEL_FOR_RINGS => {
            Check::warn(NAME, found, "the blocking engine reads; io_uring is used from Linux 6.0 on")
        }
        Some(_) => Check::ok(NAME, found),
        None => Check::warn(NAME, found, "its version cannot be read; Linux 6.0 or newer is needed for io_uring"),
    }
}

/// `6.18.44-something` is 6.18.
fn numbers(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|other: char| !other.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// A line of /proc/PID/status (proc_pid_status(5)).
fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

fn seccomp(status: &str) -> Check {
    let no_new_privileges = if field(status, "NoNewPrivs") == Some("1") { ", no new privileges" } else { "" };
    let mode = match field(status, "Seccomp") {
        Some("0") => "no filter",
        Some("1") => "strict mode",
        Some("2") => "a filter is in force",
        _ => "not told by this kernel",
    };
    Check::ok("seccomp", format!("{mode}{no_new_privileges}"))
}

fn io_uring(settings: &Settings, filtered: bool) -> Check {
    const NAME: &str = "io_uring";
    let Err(cause) = uring::probe() else {
        return Check::ok(NAME, "a ring and its registered buffers can be had");
    };
    let disabled = fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
    let cure = match (cause.raw_os_error(), disabled.trim()) {
        (Some(libc::EPERM), "1" | "2") => "set the sysctl kernel.io_uring_disabled to 0".to_owned(),
        (Some(libc::EPERM | libc::ENOSYS), _) if filtered => {
            "allow io_uring_setup, io_uring_enter and io_uring_register in the seccomp profile (deploy/seccomp.json does)"
                .to_owned()
        }
        _ => uring::cure(&cause, workers(settings)),
    };
    let found = format!("refused: {}", crate::error::os_message(&cause));
    match settings.read_engine {
        ReadEngine::IoUring => Check::fail(NAME, found, cure),
        _ => Check::warn(NAME, format!("{found}; the blocking engine reads"), cure),
    }
}

fn locked_memory(workers: usize) -> Check {
    let unlimited = capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::IPC_LOCK));
    let limit = getrlimit(Resource::Memlock).current.filter(|_| !unlimited);
    judge_locked_memory(workers, limit)
}

/// `limit` in bytes; nothing is no limit.
fn judge_locked_memory(workers: usize, limit: Option<u64>) -> Check {
    const NAME: &str = "locked memory";
    let need = uring::locked_kib(workers) as u64;
    match limit {
        None => Check::ok(NAME, format!("no limit; {workers} workers lock {need} KiB")),
        Some(limit) if limit / 1024 >= need => Check::ok(
            NAME,
            format!("{} KiB for all processes of this user; {workers} workers lock {need} KiB", limit / 1024),
        ),
        Some(limit) => Check::warn(
            NAME,
            format!(
                "{} KiB, and {workers} workers lock {need} KiB: fewer buffers or the blocking engine",
                limit / 1024
            ),
            format!("raise RLIMIT_MEMLOCK (LimitMEMLOCK in systemd, ulimit -l) to {need} KiB, or lower --workers"),
        ),
    }
}

fn descriptors(workers: usize) -> Check {
    const NAME: &str = "open files";
    let need = (workers * uring::FILES_IN_FLIGHT) as u64 + DESCRIPTORS_BESIDE;
    match getrlimit(Resource::Nofile).current {
        Some(limit) if limit < need => Check::warn(
            NAME,
            format!("at most {limit}, and {workers} workers have up to {need} open"),
            format!("raise RLIMIT_NOFILE (LimitNOFILE in systemd, ulimit -n) to {need}, or lower --workers"),
        ),
        Some(limit) => Check::ok(NAME, format!("at most {limit}; {workers} workers have up to {need} open")),
        None => Check::ok(NAME, "no limit"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;

    #[test]
    fn a_kernel_is_judged_by_its_first_two_numbers() {
        for (release, status) in [
            ("6.18.44-amd64", Status::Ok),
            ("6.0", Status::Ok),
            ("10.1.2", Status::Ok),
            ("5.15.0-91-generic", Status::Warn),
            ("5.6.0", Status::Warn),
            ("5.5.9", Status::Fail),
            ("4.18.0-553.el8", Status::Fail),
            ("strange", Status::Warn),
        ] {
            assert_eq!(version(release).status, status, "{release}");
        }
    }

    #[test]
    fn a_filter_is_told() {
        assert!(seccomp("Name:\tx\nNoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t1\n").found.contains("filter"));
        assert_eq!(seccomp("NoNewPrivs:\t0\nSeccomp:\t0\n").found, "no filter");
    }

    #[test]
    fn locked_memory_is_for_all_workers() {
        let limit = Some(8 << 20);
        assert_eq!(judge_locked_memory(3, limit).status, Status::Ok);
        assert_eq!(judge_locked_memory(4, limit).status, Status::Warn);
        assert_eq!(judge_locked_memory(256, None).status, Status::Ok);
    }
}
