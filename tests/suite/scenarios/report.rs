//! What became of a run, in one line, and in many where a story failed.

use std::fmt;
use std::time::Duration;

use super::mode::Mode;
use super::run::Run;
use super::script::Story;
use crate::oracle::judge::Verdict;
use crate::oracle::record::Entry;

pub struct Outcome {
    mode: Mode,
    stories: usize,
    steps: usize,
    messages: usize,
    repeats: usize,
    losses: usize,
    wrong: usize,
    repeated: usize,
    broken: usize,
    /// Rescans of everything, which make up for what events did not show, in all stories.
    pub rescans: usize,
    /// The names of the stories that failed.
    pub failed: Vec<String>,
    pub took: Duration,
    details: String,
}

impl Outcome {
    pub fn new(run: &Run, entries: &[Entry]) -> Self {
        Self {
            mode: run.mode,
            stories: run.stories.len(),
            steps: 0,
            messages: entries.len(),
            repeats: 0,
            losses: 0,
            wrong: 0,
            repeated: 0,
            broken: 0,
            rescans: 0,
            failed: Vec::new(),
            took: Duration::ZERO,
            details: String::new(),
        }
    }

    pub fn add(&mut self, story: &Story, verdict: &Verdict, details: &str, steps: usize) {
        self.steps += steps;
        self.repeats += verdict.repeats;
        self.losses += verdict.losses.len();
        self.wrong += verdict.wrong.len();
        self.repeated += verdict.repeated.len();
        self.broken += verdict.broken.len();
        if !verdict.is_clean() {
            let again = format!("scripts/scenarios --project {} --story {}", story.project, story.name);
            self.details.push_str(&format!(
                "{}: {} FAILED\n{details}to play it again: {again}\n",
                self.mode,
                story.key()
            ));
            self.failed.push(story.key());
        }
    }

    /// Directories that have messages and belong to no story.
    pub fn strangers(&mut self, keys: impl Iterator<Item = String>) {
        for key in keys {
            self.details.push_str(&format!("{}: messages of no story, in {key:?}\n", self.mode));
            self.failed.push(key);
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let failed = if self.failed.is_empty() { "" } else { " FAILED" };
        write!(
            to,
            "{}{}: stories={} steps={} messages={} repeats={} without-kill={} losses={} wrong={} broken={} rescans={} \
             seconds={:.1}{failed}",
            self.details,
            self.mode,
            self.stories,
            self.steps,
            self.messages,
            self.repeats,
            self.repeated,
            self.losses,
            self.wrong,
            self.broken,
            self.rescans,
            self.took.as_secs_f64(),
        )
    }
}
