//! What the test suites of other projects that watch files do to files, as stories in `tests/scenarios/`: each is
//! played in twelve ways, and the oracle judges the messages. `scripts/scenarios` plays single ones, and all for longer.

mod mode;
mod player;
mod report;
mod run;
mod script;
mod step;
mod words;

use std::path::Path;
use std::sync::OnceLock;

use crate::support::broker::Broker;
use crate::support::{is_root, skip};
use mode::{Ledger, Mode};
use report::Outcome;
use run::Run;
use script::{Story, parse};
use step::Step;

/// The stories of one project, or one story of that name.
const PROJECT_VARIABLE: &str = "INGESTOR_SCENARIO_PROJECT";
const STORY_VARIABLE: &str = "INGESTOR_SCENARIO_STORY";
/// So often all are played, with other pauses and kills each time. `scripts/scenarios` sets it, and then stories
/// that are played apart from the others are played, too.
const ROUNDS_VARIABLE: &str = "INGESTOR_SCENARIO_ROUNDS";
/// Each story has a service to itself.
const ALONE_VARIABLE: &str = "INGESTOR_SCENARIO_ALONE";
/// The service runs with `--removals`.
const REMOVALS_VARIABLE: &str = "INGESTOR_SCENARIO_REMOVALS";

/// Each has a virtual host to itself.
const WAYS: usize = 12;

macro_rules! ways {
    ($($name:ident: $mode:expr,)*) => {
        $(#[test]
        fn $name() {
            play_all($mode);
        })*
    };
}

ways! {
    flat_in_bursts_without_a_ledger: Mode::flat(false, Ledger::None),
    flat_in_bursts_with_a_ledger: Mode::flat(false, Ledger::Kept),
    flat_in_bursts_with_kills: Mode::flat(false, Ledger::Killed),
    flat_with_pauses_without_a_ledger: Mode::flat(true, Ledger::None),
    flat_with_pauses_and_a_ledger: Mode::flat(true, Ledger::Kept),
    flat_with_pauses_and_kills: Mode::flat(true, Ledger::Killed),
    recursive_in_bursts_without_a_ledger: Mode::recursive(false, Ledger::None),
    recursive_in_bursts_with_a_ledger: Mode::recursive(false, Ledger::Kept),
    recursive_in_bursts_with_kills: Mode::recursive(false, Ledger::Killed),
    recursive_with_pauses_without_a_ledger: Mode::recursive(true, Ledger::None),
    recursive_with_pauses_and_a_ledger: Mode::recursive(true, Ledger::Kept),
    recursive_with_pauses_and_kills: Mode::recursive(true, Ledger::Killed),
}

fn play_all(mode: Mode) {
    let stories = script::all().unwrap_or_else(|what| panic!("{what}"));
    let wanted: Vec<&Story> = stories.iter().filter(|story| is_wanted(story)).collect();
    assert!(!wanted.is_empty(), "no story is of that name");
    let (playable, closing): (Vec<&Story>, Vec<&Story>) =
        wanted.into_iter().partition(|story| is_root() || !story.lines().any(|line| line.step.closes()));
    for story in closing {
        skip(&format!("{} closes a file to the service, which needs root", story.key()));
    }
    let url = broker().vhost();
    let removals = std::env::var_os(REMOVALS_VARIABLE).is_some();
    let rounds = std::env::var(ROUNDS_VARIABLE).ok().map(|rounds| rounds.parse().expect("a number of rounds"));
    let alone = std::env::var_os(ALONE_VARIABLE).is_some();
    let (apart, mut together): (Vec<&Story>, Vec<&Story>) = playable.into_iter().partition(|story| story.apart);
    if rounds.is_none() && mode.ledger == Ledger::Killed {
        // Restarts take the longest, so in the short form every other story has its kills with pauses, the others without.
        let mut number = 0;
        together.retain(|_| {
            number += 1;
            (number % 2 == 0) == mode.pauses
        });
    }
    let mut failed = Vec::new();
    let groups = if rounds.is_some() { vec![&together, &apart] } else { vec![&together] };
    for seed in 1..=rounds.unwrap_or(1) {
        for stories in &groups {
            for stories in stories.chunks(if alone { 1 } else { stories.len().max(1) }) {
                let outcome: Outcome = Run { mode, stories, url: &url, seed, removals }.play();
                eprintln!("{outcome}");
                failed.extend(outcome.failed);
            }
        }
    }
    assert!(failed.is_empty(), "{mode}: failed are {failed:?}");
}

/// A node with few virtual hosts, which boots in seconds.
fn broker() -> &'static Broker {
    static BROKER: OnceLock<Broker> = OnceLock::new();
    BROKER.get_or_init(|| Broker::start_with(WAYS))
}

fn is_wanted(story: &Story) -> bool {
    let is = |variable: &str, name: &str| std::env::var(variable).map_or(true, |wanted| wanted == name);
    is(PROJECT_VARIABLE, &story.project) && is(STORY_VARIABLE, &story.name)
}

#[test]
fn the_stories_are_understood_and_are_not_few() {
    let stories = script::all().unwrap_or_else(|what| panic!("{what}"));
    assert!(stories.len() >= 100, "only {} stories", stories.len());
    for project in ["chokidar", "fsnotify", "notify", "sarracenia", "watchdog", "watchfiles", "watchman"] {
        assert!(stories.iter().any(|story| story.project == project), "no story of {project}");
    }
}

#[test]
fn bad_syntax_is_reported_by_file_and_line() {
    for (text, what) in [
        ("story a\n  wriite b 1", "p.txt:2: no step is written so: wriite with 2 words behind it"),
        ("story a\n  write b", "p.txt:2: no step is written so: write with 1 words behind it"),
        ("touch a", "p.txt:1: a step before any story"),
        ("story a\n  write b \"c", "p.txt:2: a quote is not closed"),
        ("story a\n  write b 1X", "p.txt:2: not a number of bytes, of 64M at most: \"1X\""),
        ("story a\n  touch ../b", "p.txt:2: not a path below the directory: \"../b\""),
        ("story a\n  touch b\nstory a\n", "p.txt:3: two stories have the name a"),
        ("story a b", "p.txt:1: a story has one name"),
        ("story a\n\n# c\n", "p.txt:3: the story a has no step"),
        ("story a\n  repeat 2\n  touch b", "p.txt:3: `repeat` without `end`"),
        (
            "story a\n  repeat 2\n  touch\n  end",
            "p.txt:4: in line 3: no step is written so: touch with 0 words behind it",
        ),
        ("story a\n  chmod 888 b", "p.txt:2: not a mode: \"888\""),
    ] {
        assert_eq!(parse(text, Path::new("p.txt")).unwrap_err(), what);
    }
}

#[test]
fn a_story_is_read_with_its_repeats_and_what_was_there_before() {
    let text = "# a header\nstory a\n  touch \"b c\" # there before\n  start\n  repeat 2\n    mv \"b c\" d-%\n  end\n";
    let stories = parse(text, Path::new("p.txt")).expect("a story");
    let [story] = &stories[..] else { panic!("not one story: {stories:?}") };
    assert_eq!((story.key().as_str(), story.before.len(), story.steps.len()), ("p-a", 1, 2));
    assert!(matches!(&story.before[0].step, Step::Touch(name) if name.below() == "b c"));
    assert!(matches!(&story.steps[1].step, Step::Move(_, to) if to.below() == "d-2"));
}
