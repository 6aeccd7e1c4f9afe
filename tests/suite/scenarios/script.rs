//! The stories in `tests/scenarios/`, one file for each project. Its own header says how they are written.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use super::step::Step;
use super::words::{Word, words_of};

const DIRECTORY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/scenarios");
/// In the words of a repeated step: the number of the repetition.
const NUMBER: &str = "%";

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    pub at: usize,
    pub step: Step,
}

#[derive(Clone, Debug)]
pub struct Story {
    /// The file's name without its ending.
    pub project: String,
    pub name: String,
    /// Played apart from the others, because the service rescans everything on account of it, which would hide what
    /// they lose.
    pub apart: bool,
    /// What is there before the service starts.
    pub before: Vec<Line>,
    pub steps: Vec<Line>,
}

impl Story {
    /// The name of its directory.
    pub fn key(&self) -> String {
        format!("{}-{}", self.project, self.name)
    }

    pub fn lines(&self) -> impl Iterator<Item = &Line> {
        self.before.iter().chain(&self.steps)
    }

    /// Where a line of it stands.
    pub fn place(&self, line: &Line) -> String {
        format!("tests/scenarios/{}.txt:{}", self.project, line.at)
    }
}

/// All stories, or the first line that cannot be understood.
pub fn all() -> Result<Vec<Story>, String> {
    let files = fs::read_dir(DIRECTORY).map_err(|error| format!("{DIRECTORY}: {error}"))?;
    let mut files: Vec<_> = files.map(|file| file.expect("an entry").path()).collect();
    files.retain(|file| file.extension().is_some_and(|ending| ending == "txt"));
    files.sort();
    let mut stories = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).map_err(|error| format!("{}: {error}", file.display()))?;
        stories.extend(parse(&text, &file)?);
    }
    Ok(stories)
}

/// The stories of one file.
pub fn parse(text: &str, file: &Path) -> Result<Vec<Story>, String> {
    let project = file.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    let mut reading = Reading { project, ..Reading::default() };
    for (number, line) in text.lines().enumerate() {
        let read = words_of(line).and_then(|words| reading.take(number + 1, &words));
        read.map_err(|what| format!("{}:{}: {what}", file.display(), number + 1))?;
    }
    reading.end().map_err(|what| format!("{}:{}: {what}", file.display(), text.lines().count()))
}

/// How often, and the lines up to here.
type Repeated = (usize, Vec<(usize, Vec<Word>)>);

/// A file that is being read.
#[derive(Default)]
struct Reading<'a> {
    project: &'a str,
    stories: Vec<Story>,
    names: HashSet<String>,
    repeated: Option<Repeated>,
}

impl Reading<'_> {
    fn take(&mut self, at: usize, words: &[Word]) -> Result<(), String> {
        let texts: Vec<&str> = words.iter().map(|word| word.text.as_str()).collect();
        match (&texts[..], &mut self.repeated) {
            ([], _) => Ok(()),
            (["story", name], None) => self.begin(name, false),
            (["story", name, "apart"], None) => self.begin(name, true),
            (["story", ..], None) => Err("a story has one name".to_owned()),
            (["start"], None) => {
                let story = self.stories.last_mut().ok_or("`start` before any story")?;
                if !story.before.is_empty() {
                    return Err("`start` a second time".to_owned());
                }
                story.before = std::mem::take(&mut story.steps);
                Ok(())
            }
            (["repeat", times], None) => {
                let times = times.parse().map_err(|_| format!("not a number: {times:?}"))?;
                self.repeated = Some((times, Vec::new()));
                Ok(())
            }
            (["end"], Some(_)) => self.repeat(),
            (_, Some((_, lines))) => {
                lines.push((at, words.to_vec()));
                Ok(())
            }
            (_, None) => self.add(at, words),
        }
    }

    fn begin(&mut self, name: &str, apart: bool) -> Result<(), String> {
        if !self.names.insert(name.to_owned()) {
            return Err(format!("two stories have the name {name}"));
        }
        if !name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-') {
            return Err(format!("not the name of a story, which is a-z, 0-9 and -: {name:?}"));
        }
        let (project, name) = (self.project.to_owned(), name.to_owned());
        self.stories.push(Story { project, name, apart, before: Vec::new(), steps: Vec::new() });
        Ok(())
    }

    fn add(&mut self, at: usize, words: &[Word]) -> Result<(), String> {
        let step = Step::of(words)?;
        self.stories.last_mut().ok_or("a step before any story")?.steps.push(Line { at, step });
        Ok(())
    }

    fn repeat(&mut self) -> Result<(), String> {
        let (times, lines) = self.repeated.take().ok_or("`end` without `repeat`")?;
        for number in 1..=times {
            for (at, words) in &lines {
                let filled = words
                    .iter()
                    .map(|word| Word { text: word.text.replace(NUMBER, &number.to_string()), quoted: word.quoted });
                let filled: Vec<Word> = filled.collect();
                self.add(*at, &filled).map_err(|what| format!("in line {at}: {what}"))?;
            }
        }
        Ok(())
    }

    fn end(self) -> Result<Vec<Story>, String> {
        if self.repeated.is_some() {
            return Err("`repeat` without `end`".to_owned());
        }
        match self.stories.iter().find(|story| story.steps.is_empty()) {
            Some(story) => Err(format!("the story {} has no step", story.name)),
            None => Ok(self.stories),
        }
    }
}
