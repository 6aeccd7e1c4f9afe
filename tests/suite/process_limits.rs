//! Few descriptors, threads or locked memory: the service uses what there is, waits, warns, and loses no file.

use std::fs;
use std::ops::RangeInclusive;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rustix::process::{Pid, Resource, Rlimit, prlimit};

use crate::support::broker;
use crate::support::cgroup::Cgroup;
use crate::support::files::noise;
use crate::support::seccomp::io_uring_is_allowed;
use crate::support::service::Ended;
use crate::support::setup::Setup;
use crate::support::wait::retry;
use crate::support::world::{World, directories};
use crate::support::{is_root, skip};

/// Users of a test's own, because the kernel counts threads and locked memory by user.
const USER_OF_RINGS: u32 = 64_201;
const USER_OF_THREADS: u32 = 64_202;
const USER_OF_SHARES: u32 = 64_203;

const MIB: u64 = 1024 * 1024;

fn fill(data: &Path, files: usize) {
    for number in 0..files {
        fs::write(data.join(format!("file-{number}")), noise(200, number as u64)).unwrap();
    }
    fs::set_permissions(data, PermissionsExt::from_mode(0o755)).unwrap();
}

#[test]
fn few_descriptors_lose_no_file() {
    const FILES: usize = 4000;
    let (_root, data, _) = directories();
    fill(&data, FILES);
    for engine in ["auto", "blocking"] {
        for descriptors in [64, 256, 1024] {
            let ended = Setup::new(&["scan", "--output", "stdout", "--workers", "32", "--read-engine", engine])
                .arg(&data)
                .limited(libc::RLIMIT_NOFILE, descriptors, descriptors)
                .run()
                .expect_code(0);
            assert_eq!(ended.stdout.lines().count(), FILES, "{engine}, {descriptors}:\n{}", ended.stderr);
            assert!(ended.stderr.contains(" 0 failures"), "{engine}, {descriptors}:\n{}", ended.stderr);
        }
    }
}

#[test]
fn few_descriptors_lose_no_event() {
    [64, 1024].into_iter().for_each(loses_no_event_with_descriptors);
}

fn loses_no_event_with_descriptors(most: u64) {
    const FILES: usize = 4000;
    let mut world = World::start_with(|it| it.args(&["--workers", "32"]).limited(libc::RLIMIT_NOFILE, most, most));
    fill(&world.data, FILES);
    world.wait_until("every file's message", |messages| messages.len() >= FILES);
    let ended = world.stop_service();
    assert!(ended.stderr.lines().last().is_some_and(|it| it.contains(" 0 failures")), "{}", ended.stderr);
    let published: std::collections::HashSet<String> =
        world.consumer.drain().iter().map(|message| message.path().to_owned()).collect();
    assert_eq!(published.len(), FILES);
}

/// The numbers of descriptors from one that is enough for the dynamic linker alone to one that is enough for everything.
const FEW_DESCRIPTORS: RangeInclusive<u64> = 4..=40;

/// A want of descriptors is no setting's fault: one error with its cure and status 1, whatever the process had come to.
#[track_caller]
fn assert_descriptors_are_named(ended: &Ended, descriptors: u64) {
    let errors = ended.errors();
    assert_eq!((ended.status.code(), errors.len()), (Some(1), 1), "{descriptors}:\n{}", ended.stderr);
    let named = ended.stderr.contains("Too many open files") && ended.stderr.contains("limit of open files");
    let reported = ended.stderr.contains("panicked") || ended.stderr.contains("please report");
    assert!(named && !reported, "{descriptors}:\n{}", ended.stderr);
}

#[test]
fn a_start_without_descriptors_is_one_error_with_its_cure() {
    let (_root, data, outside) = directories();
    fill(&data, 1);
    let url = broker::shared().vhost();
    for output in ["stdout", "amqp"] {
        let mut enough = 0;
        for descriptors in FEW_DESCRIPTORS {
            let mut service = Setup::watch(&data, &url)
                .args(&["--output", output])
                .env("STATE_DIRECTORY", outside.join(output))
                .limited(libc::RLIMIT_NOFILE, descriptors, descriptors)
                .spawn();
            retry("its being ready, or its end", || {
                let settled = !service.is_running() || service.stderr().contains(" ready: ");
                settled.then_some(()).ok_or_else(|| service.stderr())
            });
            if service.is_running() {
                enough += 1;
                service.stop();
            } else {
                assert_eq!(enough, 0, "{descriptors} are enough and not enough:\n{}", service.stderr());
                assert_descriptors_are_named(&service.wait_exit(), descriptors);
            }
        }
        assert!(enough > 0, "{output}: none of {FEW_DESCRIPTORS:?} is enough");
    }
}

#[test]
fn a_command_without_descriptors_is_one_error_with_its_cure() {
    let (_root, data, outside) = directories();
    fill(&data, 1);
    let url = broker::shared().vhost();
    let service = Setup::new(&["watch", "--output", "stdout", "--catch-up", "baseline"])
        .env("DATA_DIRECTORY", &data)
        .env("STATE_DIRECTORY", &outside)
        .spawn();
    service.wait_ready();
    for words in [
        &["scan", "--output", "stdout"][..],
        &["scan", "--output", "amqp", "--unroutable", "warn"],
        &["listen", "--timeout", "1"],
        &["verify"],
        &["health"],
        &["status"],
    ] {
        for descriptors in FEW_DESCRIPTORS {
            let ended = Setup::new(words)
                .env("DATA_DIRECTORY", &data)
                .env("STATE_DIRECTORY", &outside)
                .env("AMQP_CONNECTION_STRING", &url)
                .env("INGESTOR_CONTROL_SOCKET", service.control_socket())
                .limited(libc::RLIMIT_NOFILE, descriptors, descriptors)
                .run();
            if !ended.status.success() {
                assert_descriptors_are_named(&ended, descriptors);
            }
        }
    }
}

#[test]
fn the_soft_limit_of_descriptors_is_raised_to_the_hard_one() {
    let mut world = World::start_with(|it| it.limited(libc::RLIMIT_NOFILE, 64, 4096));
    let limits = fs::read_to_string(format!("/proc/{}/limits", world.service().id())).unwrap();
    let files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    assert_eq!(files.split_whitespace().collect::<Vec<_>>()[3..5], ["4096", "4096"], "{files}");
}

#[test]
fn without_descriptors_new_files_are_published_later() {
    let mut world = World::start();
    world.write("before", "x");
    world.wait_for_one("before");
    let id = world.service().id();
    let limit = |current: u64| {
        let pid = Pid::from_raw(i32::try_from(id).unwrap());
        let both = Rlimit { current: Some(current), maximum: Some(4096) };
        prlimit(pid, Resource::Nofile, both).unwrap();
    };
    // The numbers below are taken by the standard streams, whatever else is open just then.
    limit(3);
    for number in 0..5 {
        world.write(&format!("during-{number}"), "x");
    }
    let warning = world
        .service()
        .wait_log("a line that names the missing descriptors", |line| line.contains("Too many open files"));
    assert!(warning.contains("WARN") && warning.contains("LimitNOFILE"), "{warning}");
    limit(4096);
    for number in 0..5 {
        world.wait_for_one(&format!("during-{number}"));
    }
    let ended = world.stop_service();
    assert_eq!(ended.stderr.matches("Too many open files").count(), 1, "a line for each:\n{}", ended.stderr);
    assert!(ended.stderr.lines().last().is_some_and(|it| it.contains(" 0 failures")), "{}", ended.stderr);
}

#[test]
fn without_descriptors_new_directories_are_published_later() {
    let mut world = World::start_with(|setup| setup.recursive());
    world.write("before", "before");
    world.wait_for_one("before");
    let pid = Pid::from_raw(world.service().id().cast_signed()).unwrap();
    // The numbers below are taken by the standard streams.
    let limit = prlimit(Some(pid), Resource::Nofile, Rlimit { current: Some(3), maximum: Some(20_000) }).unwrap();
    let names: Vec<String> = (0..5).map(|number| format!("during-{number}")).collect();
    names.iter().for_each(|name| world.write(name, name));
    fs::create_dir(world.path("sub")).unwrap();
    world.write("sub/file", "sub");
    world
        .service()
        .wait_log("the missing descriptors", |line| line.contains("WARN") && line.contains("Too many open files"));
    prlimit(Some(pid), Resource::Nofile, Rlimit { maximum: Some(20_000), ..limit }).unwrap();
    names.iter().for_each(|name| world.wait_for_content(name, name.as_bytes()));
    world.wait_for_content("sub/file", b"sub");
    let ended = world.stop_service();
    assert!(ended.stderr.contains(" 0 failures"), "{}", ended.stderr);
}

/// Whether the service can be another user with a ring.
fn rings_of_others() -> bool {
    let can = is_root() && io_uring_is_allowed();
    if !can {
        skip("needs root, to be another user, and io_uring");
    }
    can
}

#[test]
fn the_rings_share_the_locked_memory_and_doctor_reports_how() {
    if !rings_of_others() {
        return;
    }
    let (_root, data, _) = directories();
    fill(&data, 100);
    // The limits of containers and systemd.
    for (workers, rings, warning) in [
        ("3", "3", ""),
        ("8", "8", "8 workers share the locked memory that there is: 15 of 32 buffers each"),
        ("16", "14", "locked memory is enough for 14 of 16 workers, with 8 of 32 buffers each"),
        ("64", "14", "locked memory is enough for 14 of 64 workers, with 8 of 32 buffers each"),
    ] {
        let setup = |words: &[&str]| {
            Setup::new(words)
                .env("DATA_DIRECTORY", &data)
                .args(&["--output", "none", "--workers", workers])
                .by_user(USER_OF_RINGS)
                .limited(libc::RLIMIT_MEMLOCK, 8 * MIB, 8 * MIB)
        };
        let doctor = setup(&["doctor"]).run().expect_code(0);
        for check in ["io_uring: ", "locked memory: "] {
            let line = doctor.stdout.lines().find(|line| line.contains(check)).unwrap();
            assert_eq!(line.starts_with("warn") && line.contains(warning), !warning.is_empty(), "{line}");
        }
        let service = setup(&["watch"]).spawn();
        service.wait_ready();
        let ready = service.stderr();
        assert!(ready.contains(&format!("io_uring engine, {rings} workers")), "{ready}");
        assert_eq!(ready.matches("WARN").count(), usize::from(!warning.is_empty()), "{ready}");
        assert!(ready.contains(warning), "{ready}");
        service.stop();
    }
}

#[test]
fn memory_that_another_process_has_locked_is_left_to_it() {
    if !rings_of_others() {
        return;
    }
    let (_root, data, _) = directories();
    let start = |workers: &str| {
        let service = Setup::new(&["watch", "--output", "none", "--workers", workers])
            .env("DATA_DIRECTORY", &data)
            .by_user(USER_OF_SHARES)
            .limited(libc::RLIMIT_MEMLOCK, 8 * MIB, 8 * MIB)
            .spawn();
        service.wait_ready();
        service
    };
    let _first = start("1");
    let second = start("8");
    assert!(second.stderr().contains("io_uring engine, 8 workers"), "{}", second.stderr());
    // 8 MiB less the first's 2112 KiB: 15 buffers each, which the limit alone would allow, cannot be had.
    assert!(second.stderr().contains("8 of 32 buffers each"), "{}", second.stderr());
}

#[track_caller]
fn assert_thread_limit_is_logged(ended: &Ended, threads: u64) {
    let errors = ended.errors();
    assert_eq!(errors.len(), 1, "{threads} threads:\n{}", ended.stderr);
    for cure in ["ulimit -u", "TasksMax", "--pids-limit"] {
        assert!(errors[0].contains(cure), "{threads} threads: {}", errors[0]);
    }
    for word in ["panicked", "please report", "os error"] {
        assert!(!ended.stderr.contains(word), "{threads} threads:\n{}", ended.stderr);
    }
}

#[test]
fn a_thread_limit_is_logged_with_its_cure() {
    if !is_root() {
        return skip("needs root, to be another user");
    }
    let (_root, data, _) = directories();
    fill(&data, 10);
    let url = broker::shared().vhost();
    for output in ["stdout", "amqp"] {
        let mut enough = 0;
        for threads in 1..=12 {
            let ended = Setup::new(&["scan", "--output", output, "--unroutable", "warn", "--workers", "2"])
                .arg(&data)
                .env("AMQP_CONNECTION_STRING", &url)
                .by_user(USER_OF_THREADS)
                .limited(libc::RLIMIT_NPROC, threads, threads)
                .run();
            if ended.status.success() {
                enough += 1;
                assert!(ended.stderr.contains(" 0 failures"), "{threads} threads:\n{}", ended.stderr);
            } else {
                assert_eq!(enough, 0, "{threads} threads are enough and not enough:\n{}", ended.stderr);
                assert_thread_limit_is_logged(&ended, threads);
            }
        }
        assert!(enough > 0, "{output}: 12 threads are not enough");
    }
}

/// The kernel ends a process that takes more than its cgroup allows, without a word: so both say it before.
#[test]
fn names_that_need_more_than_the_cgroup_allows_are_warned_of() {
    let (_root, data, _) = directories();
    let Some(cgroup) = Cgroup::with_memory(26_000_000) else {
        return skip("a cgroup with a limit of memory cannot be made here");
    };
    let setup = |words: &[&str]| {
        let setup = Setup::new(words).env("DATA_DIRECTORY", &data).env("INGESTOR_OUTPUT", "none");
        cgroup.contain(setup.args(&["--workers", "1", "--read-engine", "blocking"]))
    };
    for (files, event, text) in [
        (1000, "memory", "1000 names need 25 MB of 25 MB"),
        (20_000, "memory_short", "20000 names need 28 MB of 25 MB"),
    ] {
        fill(&data, files);
        let doctor = setup(&["doctor"]).run();
        let line = doctor.stdout.lines().find(|line| line.contains(" memory: ")).unwrap();
        assert!(line.contains(text) && line.starts_with("warn") == (event == "memory_short"), "{line}");
        let service = setup(&["watch"]).spawn();
        service.wait_ready();
        let log = service.stderr();
        let line = log.lines().find(|line| line.contains(&format!("event=\"{event}\""))).unwrap();
        assert!(line.contains(text) && line.contains("WARN") == (event == "memory_short"), "{line}");
        service.stop();
    }
}
