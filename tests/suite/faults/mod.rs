//! Nothing is lost, wrong, or repeated but after a crash, whatever fails: a seeded workload and a seeded fault schedule
//! run beside each other, and an oracle judges the messages at the end. `scripts/soak` runs many seeds of it.
//!
//! With `INGESTOR_FAULT_RECONNECT` the service connects again where it otherwise ends when the broker is lost.
//!
//! Where the tests run as root, the service is another user, as it is where it is installed, and files and directories
//! are closed to it and opened again. Without root these faults are left out, which is printed.

mod directories;
mod disk;
mod node;
mod pace;
mod queue;
mod rights;
mod schedule;
mod workload;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::oracle::judge::{COARSE_TICK, Finals, Known, Last, TICK, Verdict, explain, judge};
use crate::oracle::life::{Life, Settings};
use crate::oracle::name::{Name, Side};
use crate::oracle::record::{self, Reader};
use crate::oracle::repeats::{Confirms, Losses};
use crate::oracle::tree::Tree;
use crate::support::files::{Random, directory, open_to_all};
use crate::support::setup::{NOBODY, copy_of_binary};
use crate::support::volume::{Volume, WHOLE_SECONDS};
use crate::support::{is_root, skip};
use disk::StateDirectory;
use node::Node;
use pace::Ending;
use queue::FLOOD;
use schedule::{Costly, Finale, Stage};
use workload::Workload;

/// Together these seeds have every fault but the remount of a volume.
const SHORT_FORM: [u64; 4] = [11, 14, 16, 1247];
/// `FIRST..=LAST`, for the long form.
const SEEDS_VARIABLE: &str = "INGESTOR_FAULT_SEEDS";
/// The name of a kind, whose seeds alone run.
const KIND_VARIABLE: &str = "INGESTOR_FAULT_KIND";
/// So many seconds the service tries to connect again when the broker is lost, instead of ending.
const RECONNECT_VARIABLE: &str = "INGESTOR_FAULT_RECONNECT";
/// A directory for the service's log in a seed that failed.
const LOGS_VARIABLE: &str = "INGESTOR_FAULT_LOGS";
/// The service runs with `--removals`.
const REMOVALS_VARIABLE: &str = "INGESTOR_FAULT_REMOVALS";
/// Rounds in one seed: each ends without a fault and with every file published.
const ROUNDS: usize = 3;
/// For the last message of every file after the faults.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Its message shows that the service reads events again. In the end each directory gets one, which shows that the
/// service still watches it.
const SENTINEL: &str = "zz-sentinel";
/// What the service watches.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// One directory.
    Flat,
    /// A tree of directories that come and go as files do.
    Recursive,
}

impl Kind {
    fn of(seed: u64) -> Self {
        if seed.is_multiple_of(2) { Self::Flat } else { Self::Recursive }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Flat => "flat",
            Self::Recursive => "recursive",
        }
    }
}

#[test]
fn nothing_is_lost_and_nothing_is_wrong_whatever_fails() {
    let seeds = match std::env::var(SEEDS_VARIABLE) {
        Ok(range) => {
            parse(&range).unwrap_or_else(|| panic!("{SEEDS_VARIABLE} is not FIRST..=LAST but {range:?}")).collect()
        }
        Err(_) => SHORT_FORM.to_vec(),
    };
    let kind = std::env::var(KIND_VARIABLE).ok();
    let wanted = |seed: &u64| kind.as_ref().is_none_or(|kind| kind == Kind::of(*seed).name());
    let mut node = None;
    let mut failed = Vec::new();
    for seed in seeds.into_iter().filter(wanted) {
        let run = catch_unwind(AssertUnwindSafe(|| run(seed, node.get_or_insert_with(Node::start))));
        match run {
            Ok(true) => {}
            Ok(false) => failed.push(seed),
            Err(_) => {
                eprintln!("seed {seed}: FAILED by the panic above");
                failed.push(seed);
                // The seed may have left it in any state.
                node = None;
            }
        }
    }
    let again: String = failed.iter().map(|seed| format!("\n  {}", command_of(*seed))).collect();
    assert!(failed.is_empty(), "{} seeds failed; to run them again:{again}", failed.len());
}

/// The command that runs a seed again.
fn command_of(seed: u64) -> String {
    let reconnect = if reconnect().is_some() { "--reconnect " } else { "" };
    let removals = if removals() { "--removals " } else { "" };
    format!("scripts/soak {reconnect}{removals}--seed {seed}")
}

fn reconnect() -> Option<String> {
    std::env::var(RECONNECT_VARIABLE).ok()
}

fn parse(range: &str) -> Option<std::ops::RangeInclusive<u64>> {
    let (first, last) = range.split_once("..=")?;
    Some(first.parse().ok()?..=last.parse().ok()?)
}

/// Runs one seed, prints its report, and returns whether all was right.
fn run(seed: u64, node: &mut Node) -> bool {
    let begun = Instant::now();
    let Prepared { root: _root, mut volume, mut workload, mut stage } = prepare(seed, node);
    stage.life.start();
    let mut round = 0;
    let (finals, reader) = loop {
        workload = play(&mut stage, workload, Finale::of(seed / 2, round));
        round += 1;
        // Sometimes files stay closed to the service for more than a round.
        if round == ROUNDS || (seed / 2 + round as u64).is_multiple_of(2) {
            workload.open_all();
        }
        let (tree, top) = (&mut workload.tree, Name::top(Side::Data));
        tree.save(&top.child(SENTINEL), format!("{SENTINEL} {round}").as_bytes());
        let mut reader = Reader::open(&stage.url);
        let finals = tree.finals();
        if !all_come(&finals, &mut reader, &mut stage) {
            break (finals, reader);
        }
        if round == ROUNDS {
            // A new file may have its directory listed, so none comes before all others are published.
            for directory in tree.directories(Side::Data) {
                tree.save(&directory.child(SENTINEL), SENTINEL.as_bytes());
            }
            let finals = tree.finals();
            all_come(&finals, &mut reader, &mut stage);
            break (finals, reader);
        }
        if let Some(volume) = &mut volume {
            stage.remount(volume);
        }
    };
    stage.life.stop();
    let entries = reader.drain(&stage.url);
    record::end(&stage.url);
    let log = stage.life.log();
    let confirms = Confirms::of(&log, &stage.data);
    assert!(!confirms.is_empty() || entries.is_empty(), "no line of a confirm could be read in the service's log");
    let known = Known {
        journal: &workload.tree.journal,
        excuses: &stage.life.excuses,
        confirms,
        losses: Losses::of(&log),
        leases: stage.life.settings.leases,
        tick: if volume.is_some() { COARSE_TICK } else { TICK },
        removals: removals(),
    };
    let verdict = judge(&entries, &stage.data, &finals, &known);
    let line = report(seed, &workload, finals.len(), &stage.counts, &verdict, begun.elapsed());
    if verdict.is_clean() {
        eprintln!("{line}");
        return true;
    }
    let details = explain(&verdict, &entries, &stage.data, &workload.tree.journal, &log);
    if let Some(directory) = std::env::var_os(LOGS_VARIABLE) {
        std::fs::create_dir_all(&directory).expect("a directory for the logs");
        std::fs::write(Path::new(&directory).join(format!("seed-{seed}.log")), &log).expect("a log is written");
    }
    eprintln!("{details}{line} FAILED\nto run it again: {}", command_of(seed));
    false
}

struct Prepared<'a> {
    stage: Stage<'a>,
    workload: Workload,
    /// Unmounted before its directory goes.
    volume: Option<Volume>,
    root: TempDir,
}

fn prepare(seed: u64, node: &mut Node) -> Prepared<'_> {
    let kind = Kind::of(seed);
    let mut random = Random::new(seed);
    let root = TempDir::with_prefix("ingestor-suite-").expect("a temporary directory");
    let real = root.path().canonicalize().expect("its real path");
    let files = directory(&real.join("files"));
    let coarse = random.below(4) == 0;
    let volume = if coarse { Volume::mount(&real.join("image"), &files, &WHOLE_SECONDS) } else { None };
    if coarse && volume.is_none() {
        skip("stamps of whole seconds and another device number need an ext4 on a loop device");
    }
    let (data, staging) = (directory(&files.join("data")), directory(&files.join("staging")));
    let small_disk = random.below(3) == 0;
    let state_path = real.join("state");
    let state =
        if small_disk { StateDirectory::on_a_small_disk(&state_path) } else { StateDirectory::new(&state_path) };
    let costly = Costly::of(seed / 2);
    let mut arguments = vec!["--settle-ms".to_owned(), ["1", "200", "1000"][random.below(3)].to_owned()];
    if kind == Kind::Recursive {
        arguments.push("--recursive".to_owned());
    }
    if removals() {
        arguments.push("--removals".to_owned());
    }
    if random.below(8) == 0 {
        arguments.extend(["--rescan-seconds", "1"].map(str::to_owned));
    }
    // Mostly as in the systemd unit: a user without rights that may take leases on others' files.
    let leases = random.below(4) > 0;
    let with_huge = random.below(4) == 0;
    let by_nobody = is_root().then(|| {
        let copy = real.join("apollonia-ingestor");
        copy_of_binary(&copy);
        for open in [&real, &files, &state_path] {
            open_to_all(open);
        }
        copy
    });
    let rights = by_nobody.is_some();
    let state = if rights { state.of_user(NOBODY) } else { state };
    if !rights {
        skip("files and directories that are closed to the service need root");
    }
    let (vhost, url) = node.vhost();
    record::begin(&url);
    let mut tree = Tree::new(&data, &staging);
    for name in FLOOD {
        tree.save(&Name::top(Side::Data).child(name), name.as_bytes());
    }
    let workload = Workload::new(kind, random.next(), tree, rights, with_huge);
    let state_directory = state.path().to_owned();
    let short_heartbeat = costly == Costly::Heartbeat;
    let leases = leases || !rights;
    let life = Life::new(Settings {
        data,
        state: state_directory,
        url,
        arguments,
        short_heartbeat,
        by_nobody,
        leases,
        reconnect: reconnect(),
    });
    Prepared { stage: Stage::new(node, vhost, life, state, random, costly), workload, volume, root }
}

fn removals() -> bool {
    std::env::var_os(REMOVALS_VARIABLE).is_some_and(|value| value == "1")
}

/// Plays one round of the workload beside the faults, and ends all faults.
fn play(stage: &mut Stage, workload: Workload, finale: Finale) -> Workload {
    let pace = stage.next_round();
    let workload = thread::scope(|scope| {
        let writer = scope.spawn(|| workload.run(&pace));
        let _ending = Ending(&pace);
        stage.play(finale);
        writer.join().expect("the workload")
    });
    stage.lift_all();
    workload
}

/// Whether the last message of each file comes in time.
fn all_come(finals: &Finals, reader: &mut Reader, stage: &mut Stage) -> bool {
    let mut last = Last::default();
    let deadline = Instant::now() + TIMEOUT;
    while Instant::now() < deadline {
        last.take(reader.read(Duration::from_millis(200)), &stage.data);
        let taken_back =
            !removals() || last.not_taken_back(finals, &stage.data).is_empty() || stage.life.excuses.may_forget();
        if last.missing(finals).is_empty() && taken_back {
            return true;
        }
        stage.life.check();
        stage.life.start_if_down();
    }
    false
}

fn report(
    seed: u64,
    workload: &Workload,
    files: usize,
    counts: &BTreeMap<&'static str, usize>,
    verdict: &Verdict,
    took: Duration,
) -> String {
    let faults: String = counts.iter().map(|(kind, count)| format!(" {kind}={count}")).collect();
    format!(
        "seed {seed}: {} operations={} on-directories={} huge={} files={files} messages={} removals={} repeats={} without-crash={} \
         unfinished={} losses={} wrong={} broken={} seconds={:.1}{faults}",
        Kind::of(seed).name(),
        workload.tree.journal.operation,
        workload.on_directories,
        workload.huge_so_far,
        verdict.messages,
        verdict.removals,
        verdict.repeats,
        verdict.repeated.len(),
        verdict.unfinished,
        verdict.losses.len(),
        verdict.wrong.len(),
        verdict.broken.len(),
        took.as_secs_f64(),
    )
}
