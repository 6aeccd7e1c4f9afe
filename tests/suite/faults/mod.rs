//! Nothing lost, nothing wrong, whatever happens: a seeded workload and a seeded fault schedule beside
//! each other, and an oracle at the end. `scripts/soak` runs many seeds of it.

mod directories;
mod disk;
mod journal;
mod life;
mod name;
mod node;
mod oracle;
mod pace;
mod queue;
mod record;
mod schedule;
mod tree;
mod workload;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;
use std::time::{Duration, Instant};

use crate::files::{Random, sha256};
use crate::world::directories;
use disk::StateDirectory;
use life::{Life, Settings};
use name::{Name, Side};
use node::Node;
use oracle::{Finals, Last, Verdict, judge};
use pace::{Ending, Pace};
use queue::{FLOOD, make_flood_files};
use record::Reader;
use schedule::{Costly, Finale, Stage};
use tree::Tree;
use workload::Workload;

/// Between them they have every fault.
const SHORT_FORM: std::ops::RangeInclusive<u64> = 11..=20;
/// `FIRST..=LAST`, both run: the long form.
const SEEDS_VARIABLE: &str = "INGESTOR_FAULT_SEEDS";
/// Runs those of one kind alone, by its name.
const KIND_VARIABLE: &str = "INGESTOR_FAULT_KIND";
/// For the last message of every file, once all faults are over.
const PATIENCE: Duration = Duration::from_secs(60);
/// Written into each directory when all is over: its message says that the service reads events again, and that
/// it still knows the directory.
const SENTINEL: &str = "zz-sentinel";

/// What the service watches, and the workload works in.
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
        Ok(range) => parse(&range).unwrap_or_else(|| panic!("{SEEDS_VARIABLE} is not FIRST..=LAST but {range:?}")),
        Err(_) => SHORT_FORM,
    };
    let kind = std::env::var(KIND_VARIABLE).ok();
    let wanted = |seed: &u64| kind.as_ref().is_none_or(|kind| kind == Kind::of(*seed).name());
    let mut node = None;
    let mut failed = Vec::new();
    for seed in seeds.filter(wanted) {
        let run = catch_unwind(AssertUnwindSafe(|| run(seed, node.get_or_insert_with(Node::start))));
        match run {
            Ok(true) => {}
            Ok(false) => failed.push(seed),
            Err(_) => {
                eprintln!("seed {seed}: FAILED by what stands above");
                failed.push(seed);
                // In whatever state the seed has left it.
                node = None;
            }
        }
    }
    let again: String = failed.iter().map(|seed| format!("\n  scripts/soak --seed {seed}")).collect();
    assert!(failed.is_empty(), "{} seeds failed; to run them again:{again}", failed.len());
}

fn parse(range: &str) -> Option<std::ops::RangeInclusive<u64>> {
    let (first, last) = range.split_once("..=")?;
    Some(first.parse().ok()?..=last.parse().ok()?)
}

/// One seed: says what happened, and whether all held.
fn run(seed: u64, node: &mut Node) -> bool {
    let begun = Instant::now();
    let kind = Kind::of(seed);
    // What is dealt out in turn is dealt out to both kinds.
    let turn = seed / 2;
    let mut random = Random::new(seed);
    let (root, data, staging) = directories();
    let state_path = root.path().canonicalize().expect("its real path").join("state");
    let small_disk = random.below(3) == 0;
    let state =
        if small_disk { StateDirectory::on_a_small_disk(&state_path) } else { StateDirectory::new(&state_path) };
    let costly = match turn % 6 {
        1 => Costly::KillsBroker,
        2 => Costly::Heartbeat,
        _ => Costly::None,
    };
    let finale = [Finale::Overflow, Finale::Alarm, Finale::Refusal, Finale::None][(turn % 4) as usize];
    let writes_linked = random.below(8) == 0;
    let mut arguments = vec!["--settle-ms".to_owned(), ["1", "200", "1000"][random.below(3)].to_owned()];
    if kind == Kind::Recursive {
        arguments.push("--recursive".to_owned());
    }
    if writes_linked {
        arguments.extend(["--rescan-seconds", "1"].map(str::to_owned));
    }
    let (vhost, url) = node.vhost();
    record::begin(&url);
    make_flood_files(&data);
    let pace = Pace::default();
    let settings = Settings {
        data: data.clone(),
        state: state.path().to_owned(),
        url: url.clone(),
        arguments,
        short_heartbeat: costly == Costly::Heartbeat,
    };
    let workload = Workload::new(kind, random.next(), Tree::new(&data, &staging), writes_linked);
    let mut stage = Stage {
        node,
        vhost,
        url: url.clone(),
        life: Life::new(settings),
        state,
        data: data.clone(),
        pace: &pace,
        random,
        costly,
        finale,
        counts: BTreeMap::new(),
        at: 0,
        alarm: false,
        refusing: false,
        full: false,
    };
    stage.life.start();
    let mut workload = thread::scope(|scope| {
        let writer = scope.spawn(|| workload.run(&pace));
        let _ending = Ending(&pace);
        stage.play();
        writer.join().expect("the workload")
    });
    stage.lift_all();
    let mut finals = workload.tree.finals();
    add_what_never_changes(&mut finals);
    let mut reader = Reader::open(&url);
    let mut last = Last::default();
    let (top, below): (Vec<_>, Vec<_>) = workload.tree.directories(Side::Data).into_iter().partition(Name::is_top);
    // A file that comes into a directory may have it listed: until all else is told, none does.
    for directories in [top, below] {
        for sentinel in directories.iter().map(|directory| directory.child(SENTINEL)) {
            std::fs::write(workload.tree.path(&sentinel), SENTINEL).expect("a sentinel");
            finals.insert(sentinel.below().to_owned(), unchanging(SENTINEL));
        }
        if !all_come(&finals, &mut reader, &mut last, &mut stage) {
            break;
        }
    }
    stage.life.stop();
    let entries = reader.drain(&url);
    record::end(&url);
    let verdict = judge(&entries, &data, &finals, &workload.tree.journal);
    let line = report(seed, &workload, finals.len(), &stage.counts, &verdict, begun.elapsed());
    if verdict.is_clean() {
        eprintln!("{line}");
        return true;
    }
    let log = stage.life.log();
    let mut story = String::new();
    for (name, what) in verdict.faults() {
        let done = workload.tree.journal.story(name);
        let said = life::about(&log, &data, name);
        let _ = write!(
            story,
            "{name}: {what}\ndone to it:\n{done}messages:\n{}the service:\n{said}",
            oracle::list(&entries, &data, name)
        );
    }
    eprintln!("{story}{line} FAILED\nto run it again: scripts/soak --seed {seed}");
    false
}

/// Whether the last message of each of them comes.
fn all_come(finals: &Finals, reader: &mut Reader, last: &mut Last, stage: &mut Stage) -> bool {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        last.take(reader.read(Duration::from_millis(200)), &stage.data);
        if last.missing(finals).is_empty() {
            return true;
        }
        stage.life.check();
        stage.life.start_if_down();
    }
    false
}

/// The files that the workload does not know of, and that have one content all the time.
fn add_what_never_changes(finals: &mut Finals) {
    finals.extend(FLOOD.map(|name| (name.to_owned(), unchanging(name))));
}

fn unchanging(content: &str) -> (String, u64) {
    (sha256(content.as_bytes()), content.len() as u64)
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
        "seed {seed}: {} operations={} on-directories={} files={files} messages={} repeats={} losses={} wrong={} \
         broken={} seconds={:.1}{faults}",
        Kind::of(seed).name(),
        workload.tree.journal.operation,
        workload.on_directories,
        verdict.messages,
        verdict.repeats,
        verdict.losses.len(),
        verdict.wrong.len(),
        verdict.broken.len(),
        took.as_secs_f64(),
    )
}
