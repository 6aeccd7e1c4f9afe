//! The kernel, its limits, and what a seccomp profile allows.

use std::sync::Arc;
use std::{fs, io};

use super::check::Check;
use crate::cli::{ReadEngine, Settings};
use crate::commands::roots::volumes;
use crate::config::workers;
use crate::error::os_message;
use crate::files::root::Root;
use crate::read::limits::{self, BUFFERS, BUFFERS_MIN};
use crate::read::uring;

/// The first kernel with openat2(2).
const KERNEL_MIN: (u32, u32) = (5, 6);

/// The first kernel with IORING_SETUP_SINGLE_ISSUER, which the rings are set up with (io_uring_setup(2)).
const KERNEL_FOR_RINGS: (u32, u32) = (6, 0);

pub fn checks(settings: &Settings, roots: &[Arc<Root>]) -> Vec<Check> {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    // Each file system with data directories has at least one worker of its own.
    let devices: Vec<Option<u64>> = roots.iter().map(|root| root.device()).collect();
    let workers = workers(settings).max(volumes(&devices).into_iter().max().map_or(1, |last| last + 1));
    let mut checks = vec![version(&release), seccomp(&status)];
    if settings.read_engine != ReadEngine::Blocking {
        checks.push(io_uring(settings, field(&status, "Seccomp") == Some("2"), workers));
        checks.push(locked_memory(workers, settings.read_engine, limits::locked_memory()));
    }
    checks.push(descriptors(workers, settings.read_engine, limits::descriptors()));
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

/// The first two numbers of a release: of `6.18.44-something` they are 6 and 18.
fn numbers(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|other: char| !other.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// The value of a line of /proc/PID/status (proc_pid_status(5)).
fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

fn seccomp(status: &str) -> Check {
    let no_new_privileges = if field(status, "NoNewPrivs") == Some("1") { ", no new privileges" } else { "" };
    let mode = match field(status, "Seccomp") {
        Some("0") => "no filter",
        Some("1") => "strict mode",
        Some("2") => "a filter is in force",
        _ => "not reported by this kernel",
    };
    Check::ok("seccomp", format!("{mode}{no_new_privileges}"))
}

fn io_uring(settings: &Settings, filtered: bool, workers: usize) -> Check {
    const NAME: &str = "io_uring";
    // The rings are set up as the service does it, and dropped at once.
    let cause = match uring::Rings::set_up(workers) {
        Ok(Ok(rings)) => {
            return match rings.shortage(workers) {
                None => Check::ok(NAME, format!("rings and their registered buffers can be had for {workers} workers")),
                Some((found, cure)) => Check::warn(NAME, found, cure),
            };
        }
        Ok(Err(cause)) => cause,
        Err(error) => return Check::refused(NAME, &error),
    };
    let disabled = fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
    let (whom, cure) = by_whom(&cause, disabled.trim(), filtered);
    let found = format!("refused: {}{whom}", os_message(&cause));
    let cure = cure.map_or_else(|| uring::cure(&cause, workers), str::to_owned);
    match settings.read_engine {
        ReadEngine::IoUring => Check::fail(NAME, found, cure),
        _ => Check::warn(NAME, format!("{found}; the blocking engine reads"), cure),
    }
}

/// Who refuses io_uring, and the cure where that is more than the engine's own. `disabled` is the value of the sysctl
/// kernel.io_uring_disabled: 0, 1 (refused except to the privileged and one group) or 2 (refused to all).
fn by_whom(cause: &io::Error, disabled: &str, filtered: bool) -> (&'static str, Option<&'static str>) {
    const ALLOW: &str = "set the sysctl kernel.io_uring_disabled to 0";
    const PROFILE: &str =
        "allow io_uring_setup, io_uring_enter and io_uring_register in the seccomp profile (deploy/seccomp.json does)";
    match (cause.raw_os_error(), disabled) {
        (Some(libc::EPERM), "2") => (" (the sysctl kernel.io_uring_disabled is 2)", Some(ALLOW)),
        // Either of them may be the cause.
        (Some(libc::EPERM), "1") if filtered => {
            (" (the sysctl kernel.io_uring_disabled is 1, and a seccomp filter is in force)", None)
        }
        (Some(libc::EPERM), "1") => {
            (" (the sysctl kernel.io_uring_disabled is 1: for CAP_SYS_ADMIN and one group alone)", Some(ALLOW))
        }
        (Some(libc::EPERM | libc::ENOSYS), _) if filtered => (" (by the seccomp filter)", Some(PROFILE)),
        (Some(libc::EPERM), _) => (
            " (no seccomp filter is in force, and the sysctl allows it: by a security module)",
            Some("allow io_uring in the policy of the security module (SELinux, for one)"),
        ),
        (Some(libc::ENOSYS), _) => (" (this kernel was built without it)", Some("use a kernel with io_uring")),
        _ => ("", None),
    }
}

/// Checks RLIMIT_MEMLOCK, in bytes; `None` is no limit.
fn locked_memory(workers: usize, engine: ReadEngine, limit: Option<u64>) -> Check {
    const NAME: &str = "locked memory";
    let kib = |bytes: u64| bytes / 1024;
    let need = kib(limits::locked_bytes(workers, BUFFERS));
    let Some(limit) = limit else {
        return Check::ok(NAME, format!("no limit; {workers} workers lock {need} KiB"));
    };
    let least = limits::locked_bytes(1, BUFFERS_MIN);
    if limit < least {
        let found = format!("{} KiB, and one worker locks {} KiB at the least", kib(limit), kib(least));
        return match engine {
            ReadEngine::IoUring => Check::fail(NAME, found, limits::more_memory(workers)),
            _ => Check::warn(NAME, format!("{found}: the blocking engine reads"), limits::more_memory(workers)),
        };
    }
    let plan = limits::plan(workers, Some(limit), None);
    match plan.shortage(workers) {
        None => {
            let found = format!("{} KiB for all processes of this user; {workers} workers lock {need} KiB", kib(limit));
            Check::ok(NAME, found)
        }
        Some((found, cure)) => Check::warn(NAME, format!("{} KiB: {found}", kib(limit)), cure),
    }
}

/// Checks RLIMIT_NOFILE. `limit` is the hard limit, because the service raises the soft limit to it.
fn descriptors(workers: usize, engine: ReadEngine, limit: Option<u64>) -> Check {
    const NAME: &str = "open files";
    let need = match engine {
        ReadEngine::Blocking => limits::descriptors_wanted_blocking(workers),
        _ => limits::descriptors_wanted(workers),
    };
    match limit {
        Some(limit) if limit < need => Check::warn(
            NAME,
            format!("at most {limit}, and {workers} workers have up to {need} open: fewer files are read at a time"),
            limits::more_descriptors(workers),
        ),
        Some(limit) => Check::ok(NAME, format!("at most {limit}; {workers} workers have up to {need} open")),
        None => Check::ok(NAME, "no limit"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::doctor::check::Status;

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
    fn a_seccomp_filter_is_reported() {
        assert!(seccomp("Name:\tx\nNoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t1\n").found.contains("filter"));
        assert_eq!(seccomp("NoNewPrivs:\t0\nSeccomp:\t0\n").found, "no filter");
    }

    #[test]
    fn locked_memory_is_for_all_workers() {
        let judge = |workers, engine, kib: u64| {
            let check = locked_memory(workers, engine, Some(kib << 10));
            (check.status, check.found)
        };
        assert_eq!(judge(3, ReadEngine::Auto, 8 << 10).0, Status::Ok);
        for (workers, text) in [(8, "15 of 32 buffers"), (64, "enough for 14 of 64 workers")] {
            let (status, found) = judge(workers, ReadEngine::IoUring, 8 << 10);
            assert_eq!(status, Status::Warn);
            assert!(found.contains(text), "{found}");
        }
        assert_eq!(judge(2, ReadEngine::Auto, 575).0, Status::Warn);
        assert_eq!(judge(2, ReadEngine::IoUring, 575).0, Status::Fail);
        assert_eq!(judge(2, ReadEngine::IoUring, 576).0, Status::Warn, "one of them");
        assert_eq!(locked_memory(256, ReadEngine::IoUring, None).status, Status::Ok);
    }

    #[test]
    fn who_refuses_a_ring_is_reported_as_far_as_it_can_be_known() {
        let whom = |errno, disabled, filtered| by_whom(&io::Error::from_raw_os_error(errno), disabled, filtered).0;
        assert!(whom(libc::EPERM, "2", true).contains("disabled is 2"));
        assert!(whom(libc::EPERM, "1", true).contains("and a seccomp filter"));
        assert!(whom(libc::EPERM, "1", false).contains("CAP_SYS_ADMIN"));
        for (errno, disabled) in [(libc::EPERM, "0"), (libc::EPERM, ""), (libc::ENOSYS, "0")] {
            assert!(whom(errno, disabled, true).contains("by the seccomp filter"));
        }
        assert!(whom(libc::EPERM, "0", false).contains("security module"));
        assert!(whom(libc::ENOSYS, "", false).contains("built without"));
        assert_eq!(whom(libc::ENOMEM, "0", true), "");
    }
}
