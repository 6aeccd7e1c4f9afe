//! The service works under `deploy/seccomp.json`, compiled and set just before the program as a container engine does.

use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use seccompiler::{BpfProgram, TargetArch};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::support::files::{noise, sha256};
use crate::support::seccomp::{architecture, io_uring_is_allowed, set, warnings_about_io_uring, with_filters};
use crate::support::setup::Setup;
use crate::support::skip;
use crate::support::world::{World, list};

const PROFILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/seccomp.json");
const ALLOW: &str = "SCMP_ACT_ALLOW";
const ERRNO: &str = "SCMP_ACT_ERRNO";
const IO_URING: [&str; 3] = ["io_uring_setup", "io_uring_enter", "io_uring_register"];

/// The fields that Docker's format and the OCI runtime's have in common. Kubernetes reads the latter and would ignore a
/// field that only Docker knows (`archMap`, `includes`), so this test refuses it.
#[derive(Deserialize, Clone)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Profile {
    default_action: String,
    default_errno_ret: u32,
    architectures: Vec<String>,
    syscalls: Vec<Rule>,
}

#[derive(Deserialize, Clone)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Rule {
    #[serde(rename = "comment")]
    _comment: Option<String>,
    names: Vec<String>,
    action: String,
    errno_ret: Option<u32>,
    #[serde(default)]
    args: Vec<Condition>,
}

#[derive(Deserialize, Clone)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Condition {
    index: u8,
    value: u64,
    value_two: Option<u64>,
    op: String,
}

impl Profile {
    fn shipped() -> Self {
        serde_json::from_slice(&fs::read(PROFILE).expect(PROFILE)).expect("a profile that every runtime understands")
    }

    fn without(mut self, names: &[&str]) -> Self {
        for rule in &mut self.syscalls {
            rule.names.retain(|name| !names.contains(&name.as_str()));
        }
        self
    }

    /// The rules with this action, for what this architecture has of their system calls.
    fn rules(&self, chosen: impl Fn(&Rule) -> bool) -> Vec<Value> {
        let chosen = self.syscalls.iter().filter(|rule| chosen(rule));
        let each_name = chosen.flat_map(|rule| rule.names.iter().map(move |name| (name, &rule.args)));
        each_name.filter(|(name, _)| exists(name, architecture())).map(|(name, args)| rule_for(name, args)).collect()
    }

    /// One filter has two results only. The kernel takes the stricter of several filters, so each refusal with an error
    /// of its own is a filter that lets everything else pass, and the last one allows what any rule names.
    fn compile(&self) -> Vec<BpfProgram> {
        assert_eq!(self.default_action, ERRNO);
        assert!(self.syscalls.iter().all(|rule| rule.action == ALLOW || rule.action == ERRNO));
        let refusals = self.syscalls.iter().filter(|rule| rule.action == ERRNO).map(|rule| {
            let errno = rule.errno_ret.expect("a refusal names its error");
            let rules = self.rules(|other| other.errno_ret == Some(errno));
            compile(json!("allow"), json!({ "errno": errno }), &rules)
        });
        let allowed = compile(json!({ "errno": self.default_errno_ret }), json!("allow"), &self.rules(|_| true));
        refusals.chain([allowed]).collect()
    }
}

fn rule_for(name: &str, args: &[Condition]) -> Value {
    let args: Vec<Value> = args
        .iter()
        .map(|it| match it.op.as_str() {
            "SCMP_CMP_EQ" => json!({ "index": it.index, "type": "dword", "op": "eq", "val": it.value }),
            // The mask comes first, the masked argument second.
            "SCMP_CMP_MASKED_EQ" => json!({
                "index": it.index, "type": "qword", "op": { "masked_eq": it.value },
                "val": it.value_two.expect("a value behind the mask"),
            }),
            other => panic!("{other}: teach this test what it means"),
        })
        .collect();
    if args.is_empty() { json!({ "syscall": name }) } else { json!({ "syscall": name, "args": args }) }
}

fn compile(otherwise: Value, on_match: Value, rules: &[Value]) -> BpfProgram {
    let filter = json!({ "it": { "mismatch_action": otherwise, "match_action": on_match, "filter": rules } });
    let mut compiled = seccompiler::compile_from_json(filter.to_string().as_bytes(), architecture()).expect("a filter");
    compiled.remove("it").expect("the one that was asked for")
}

/// Whether the architecture has a system call of this name: aarch64 has no `open`.
fn exists(name: &str, architecture: TargetArch) -> bool {
    let filter =
        json!({ "it": { "mismatch_action": "trap", "match_action": "allow", "filter": [rule_for(name, &[])] } });
    seccompiler::compile_from_json(filter.to_string().as_bytes(), architecture).is_ok()
}

#[test]
fn the_whole_service_works_under_the_profile() {
    if !io_uring_is_allowed() {
        return skip("io_uring is not allowed here");
    }
    let filters = Profile::shipped().compile();
    let mut world = World::without_service();
    let state = world.outside.clone();
    let launch = |world: &mut World| {
        world.launch(|it| with_filters(it.env("STATE_DIRECTORY", &state), filters.clone()));
        world.service().stderr()
    };
    let log = launch(&mut world);
    assert!(log.contains("io_uring engine") && !log.contains("WARN"), "{log}");
    for (name, size) in [("empty", 0), ("small", 1_000), ("large", 5_000_000)] {
        world.write(name, noise(size, 1));
        assert_eq!(world.wait_for_one(name).sha256(), sha256(&noise(size, 1)), "{name}");
    }
    let ended = world.stop_service();
    assert!(!ended.stderr.contains("WARN"), "{}", ended.stderr);

    world.write("meanwhile", noise(70_000, 2));
    launch(&mut world);
    assert_eq!(world.wait_for_one("meanwhile").sha256(), sha256(&noise(70_000, 2)));
    let messages = world.finish();
    assert_eq!(messages.len(), 4, "the ledger knew three of the files:\n{}", list(&messages));
}

#[test]
fn without_io_uring_calls_the_blocking_engine_reads_with_a_warning() {
    let filters = Profile::shipped().without(&IO_URING).compile();
    let mut world = World::start_with(|it| with_filters(it, filters));
    world.write("file", noise(1_000_000, 1));
    assert_eq!(world.wait_for_one("file").sha256(), sha256(&noise(1_000_000, 1)));
    let ended = world.stop_service();
    let warnings = warnings_about_io_uring(&ended);
    assert_eq!(warnings.len(), 1, "one WARN was due:\n{}", ended.stderr);
    let names_it = ["Operation not permitted", "seccomp"].iter().all(|it| warnings[0].contains(it));
    assert!(names_it, "{}", warnings[0]);
    assert!(ended.stderr.contains("blocking engine"), "{}", ended.stderr);
}

#[test]
fn without_openat2_the_service_does_not_start_and_logs_why() {
    let world = World::without_service();
    let filters = Profile::shipped().without(&["openat2"]).compile();
    let ended = with_filters(Setup::watch(&world.data, &world.url), filters).run().expect_code(2);
    for word in [world.data.to_str().unwrap(), "Operation not permitted", "allow openat2 in the seccomp filter"] {
        ended.assert_one_error(word);
    }
}

#[test]
fn scan_and_listen_work_under_the_profile() {
    let world = World::without_service();
    world.write("file", noise(1_000_000, 1));
    let filters = Profile::shipped().compile();
    let listener = with_filters(
        Setup::new(&["listen", "--count", "1"]).env("AMQP_CONNECTION_STRING", &world.url),
        filters.clone(),
    );
    let listener = listener.spawn();
    listener.wait_log("listening", |line| line.contains("INFO"));
    let scan = Setup::new(&["scan"]).arg(&world.data).env("AMQP_CONNECTION_STRING", &world.url);
    with_filters(scan, filters).run().expect_code(0);
    let ended = listener.wait_exit().expect_code(0);
    assert!(ended.stdout.contains(&sha256(&noise(1_000_000, 1))), "{}", ended.stdout);
}

#[test]
fn doctor_finds_nothing_to_fail_under_the_profile() {
    if !io_uring_is_allowed() {
        return skip("io_uring is not allowed here");
    }
    let world = World::without_service();
    let doctor = Setup::new(&["doctor", "--read-engine", "io_uring"])
        .env("DATA_DIRECTORY", &world.data)
        .env("STATE_DIRECTORY", &world.outside)
        .env("AMQP_CONNECTION_STRING", &world.url);
    let ended = with_filters(doctor, Profile::shipped().compile()).run().expect_code(0);
    assert!(ended.stdout.contains("ok    seccomp: a filter is in force"), "{}", ended.stdout);
    assert!(ended.stdout.contains("is there") && !ended.stdout.contains("not reported"), "{}", ended.stdout);
}

#[test]
fn system_calls_that_the_service_does_not_need_are_refused() {
    const CLONE_OF_A_NAMESPACE: i64 = (libc::CLONE_NEWUSER | libc::CLONE_THREAD) as i64;
    // Each with the error that it gets, and that no user would get without the profile.
    let calls = [
        ("unshare", libc::SYS_unshare, [0, 0, 0], libc::EPERM),
        ("ptrace", libc::SYS_ptrace, [0, 0, 0], libc::EPERM),
        ("add_key", libc::SYS_add_key, [0, 0, 0], libc::EPERM),
        ("execveat", libc::SYS_execveat, [-1, 0, 0], libc::EPERM),
        ("process_vm_readv", libc::SYS_process_vm_readv, [0, 0, 0], libc::EPERM),
        ("memfd_create", libc::SYS_memfd_create, [0, 0, 0], libc::EPERM),
        ("socket of a packet family", libc::SYS_socket, [i64::from(libc::AF_PACKET), -1, 0], libc::EPERM),
        ("clone with a namespace", libc::SYS_clone, [CLONE_OF_A_NAMESPACE, 0, 0], libc::EPERM),
        ("clone3", libc::SYS_clone3, [0, 0, 0], libc::ENOSYS),
    ];
    let filters = Profile::shipped().compile();
    for (name, number, arguments, errno) in calls {
        assert_eq!(answer(number, arguments, filters.clone()), errno, "{name}");
        assert_ne!(answer(number, arguments, Vec::new()), errno, "{name}: refused without the profile, too");
    }
    // These are not refused: the kernel rejects their arguments.
    for (name, number) in
        [("io_uring_setup", libc::SYS_io_uring_setup), ("inotify_add_watch", libc::SYS_inotify_add_watch)]
    {
        assert_ne!(answer(number, [-1, 0, 0], filters.clone()), libc::EPERM, "{name}");
    }
}

/// The error of one system call, 0 for none, in a process of its own under these filters. A process that never becomes
/// the program reports why, which carries the error home.
fn answer(number: i64, [first, second, third]: [i64; 3], filters: Vec<BpfProgram>) -> i32 {
    const NO_ERROR: i32 = libc::EXFULL;
    let mut command = Command::new("true");
    let attempt = move || {
        set(&filters)?;
        // SAFETY: none of the calls asked for here has a valid pointer to do harm with.
        let result = unsafe { libc::syscall(number, first, second, third, 0, 0) };
        Err(if result < 0 { io::Error::last_os_error() } else { io::Error::from_raw_os_error(NO_ERROR) })
    };
    // SAFETY: system calls only, no allocation.
    unsafe { command.pre_exec(attempt) };
    let errno = command.spawn().expect_err("it never becomes the program").raw_os_error();
    errno.map(|it| if it == NO_ERROR { 0 } else { it }).expect("an error of the system")
}

#[test]
fn each_name_in_the_profile_is_a_system_call() {
    let profile = Profile::shipped();
    assert_eq!(profile.architectures, ["SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64"]);
    let named = profile.syscalls.iter().flat_map(|rule| &rule.names);
    let unknown: Vec<&String> =
        named.filter(|name| ![TargetArch::x86_64, TargetArch::aarch64].iter().any(|it| exists(name, *it))).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
}
