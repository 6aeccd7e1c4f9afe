//! One run: many stories side by side below one service, each in a directory of its own, and the judgment of each.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use super::mode::{Ledger, Mode};
use super::player::Player;
use super::report::Outcome;
use super::script::Story;
use crate::oracle::judge::{Finals, Known, Last, TICK, explain, judge};
use crate::oracle::life::{Life, RESCANNED, Settings};
use crate::oracle::name::{Name, Side};
use crate::oracle::record::{self, Entry, Reader};
use crate::oracle::repeats::{Confirms, Losses};
use crate::support::files::{Random, directory, open_to_all};
use crate::support::is_root;
use crate::support::setup::copy_of_binary;
use crate::support::world::SENTINEL;

/// For the last message of every file.
const TIMEOUT: Duration = Duration::from_secs(60);
/// So often a run with kills has its service killed: each kill meets a part of the stories.
const KILLS: usize = 2;
/// The longest time from the beginning of these stories to the kill. Without pauses they are over within milliseconds,
/// and what is killed is the publishing of their files.
const KILL_WITHIN_MS: usize = 25;
const KILL_WITHIN_MS_WITH_PAUSES: usize = 250;
/// A file that was made and not closed counts as complete after so long without a change.
const SETTLE_MS: &str = "200";

pub struct Run<'a> {
    pub mode: Mode,
    pub stories: &'a [&'a Story],
    pub url: &'a str,
    pub seed: u64,
    pub removals: bool,
}

impl<'a> Run<'a> {
    /// Plays all its stories and judges each of them.
    pub fn play(&self) -> Outcome {
        let begun = Instant::now();
        let root = TempDir::with_prefix("ingestor-suite-").expect("a temporary directory");
        let places = Places::new(root.path(), self.stories);
        record::begin(self.url);
        let mut players = self.players(&places);
        players.iter_mut().for_each(Player::prepare);
        let mut life = Life::new(self.settings(&places));
        life.start();
        let mut random = Random::new(self.seed);
        let kills = self.mode.ledger == Ledger::Killed;
        if !kills {
            // So that nothing but events shows what happens from now on.
            life.wait_rescanned();
        }
        for group in players.chunks_mut(if kills { self.stories.len().div_ceil(KILLS) } else { self.stories.len() }) {
            life.wait_ready();
            thread::scope(|scope| {
                group.iter_mut().for_each(|player| drop(scope.spawn(|| player.play())));
                if kills {
                    let within = if self.mode.pauses { KILL_WITHIN_MS_WITH_PAUSES } else { KILL_WITHIN_MS };
                    thread::sleep(Duration::from_millis(random.below(within) as u64));
                    life.kill();
                    life.start();
                }
            });
        }
        let (finals, entries) = self.end(&mut players, &places, &mut life);
        let mut outcome = Outcome::new(self, &entries);
        let mut of_story = by_story(entries, &places.data);
        let log = life.log();
        for (player, story) in players.into_iter().zip(self.stories) {
            let entries = of_story.remove(&story.key()).unwrap_or_default();
            let verdict_of = Judged { story, player, entries: &entries, finals: &finals[&story.key()] };
            self.judge(&mut outcome, verdict_of, &places.data.join(story.key()), &life, &log);
        }
        outcome.strangers(of_story.into_keys());
        // Each life compares the directories with its ledger once.
        outcome.rescans = log.matches(RESCANNED).count().saturating_sub(life.starts);
        outcome.took = begun.elapsed();
        outcome
    }

    fn players(&self, places: &Places) -> Vec<Player<'a>> {
        let mut players = Vec::new();
        for (story, seed) in self.stories.iter().zip(self.seed << 32..) {
            let (data, outside) = (places.data.join(story.key()), places.outside.join(story.key()));
            players.push(Player::new(story, &data, &outside, seed, self.mode.pauses));
        }
        players
    }

    fn settings(&self, places: &Places) -> Settings {
        let mut arguments = vec!["--settle-ms".to_owned(), SETTLE_MS.to_owned()];
        if self.mode.recursive {
            arguments.push("--recursive".to_owned());
        }
        if self.removals {
            arguments.push("--removals".to_owned());
        }
        if self.mode.ledger == Ledger::None {
            arguments.extend(["--catch-up", "all"].map(str::to_owned));
        }
        let flat = || self.stories.iter().map(|story| places.data.join(story.key()).into_os_string());
        let data = if self.mode.recursive {
            places.data.clone()
        } else {
            // As several directories of one service.
            flat().collect::<Vec<_>>().join(":".as_ref()).into()
        };
        let state = if self.mode.ledger == Ledger::None { PathBuf::new() } else { places.state.clone() };
        let by_nobody = is_root().then(|| places.binary.clone());
        let url = self.url.to_owned();
        Settings { data, state, url, arguments, short_heartbeat: false, by_nobody, leases: true, reconnect: None }
    }

    /// Waits until all files have their last message, stops the service, and reads the record.
    fn end(&self, players: &mut [Player], places: &Places, life: &mut Life) -> (HashMap<String, Finals>, Vec<Entry>) {
        life.wait_ready();
        let mut reader = Reader::open(self.url);
        // A new file may have its directory listed, so none comes before all others are published.
        self.all_come(&self.finals(players), &mut reader, places, life);
        save_sentinels(players, "");
        let mut finals = self.finals(players);
        self.all_come(&finals, &mut reader, places, life);
        if self.mode.ledger != Ledger::None {
            // With its ledger it publishes nothing of this again.
            life.stop();
            life.start();
            life.wait_rescanned();
            save_sentinels(players, "again-");
            finals = self.finals(players);
            self.all_come(&finals, &mut reader, places, life);
        }
        life.stop();
        let entries = reader.drain(self.url);
        record::end(self.url);
        (finals, entries)
    }

    /// The files of each story that are there now and are watched.
    fn finals(&self, players: &mut [Player]) -> HashMap<String, Finals> {
        let mut all = HashMap::new();
        for (player, story) in players.iter_mut().zip(self.stories) {
            let mut finals = player.tree.finals();
            finals.retain(|name, _| self.mode.recursive || !name.contains('/'));
            all.insert(story.key(), finals);
        }
        all
    }

    /// Returns when the last message of each file is right, or time is up.
    fn all_come(&self, finals: &HashMap<String, Finals>, reader: &mut Reader, places: &Places, life: &mut Life) {
        let named = |(key, finals): (&String, &Finals)| {
            finals.iter().map(|(name, truth)| (format!("{key}/{name}"), truth.clone())).collect::<Vec<_>>()
        };
        let all: Finals = finals.iter().flat_map(named).collect();
        let mut last = Last::default();
        let deadline = Instant::now() + TIMEOUT;
        while Instant::now() < deadline {
            last.take(reader.read(Duration::from_millis(100)), &places.data);
            let taken_back = !self.removals || last.not_taken_back(&all, &places.data).is_empty();
            if last.missing(&all).is_empty() && taken_back {
                return;
            }
            life.check();
        }
    }

    /// Judges one story, which was played in this directory.
    fn judge(&self, outcome: &mut Outcome, judged: Judged, data: &Path, life: &Life, log: &str) {
        let Judged { story, player, entries, finals } = judged;
        let known = Known {
            journal: &player.tree.journal,
            excuses: &life.excuses,
            confirms: Confirms::of(log, data),
            losses: Losses::of(log),
            leases: true,
            tick: TICK,
            removals: self.removals,
        };
        let mut verdict = judge(entries, data, finals, &known);
        if !self.mode.recursive {
            let deeper = entries.iter().filter_map(|entry| path_of(entry)?.strip_prefix(data).ok().map(Path::to_owned));
            let deeper = deeper.filter(|below| below.components().count() > 1);
            let named = deeper.map(|below| (below.display().to_string(), "nobody watches that directory".to_owned()));
            verdict.wrong.extend(named);
        }
        let details = explain(&verdict, entries, data, known.journal, log);
        outcome.add(story, &verdict, &details, player.tree.journal.operation);
    }
}

/// A story that was played, its messages, and its files in the end.
struct Judged<'a> {
    story: &'a Story,
    player: Player<'a>,
    entries: &'a [Entry],
    finals: &'a Finals,
}

/// Where everything is.
struct Places {
    /// One directory for each story is in it.
    data: PathBuf,
    outside: PathBuf,
    state: PathBuf,
    binary: PathBuf,
}

impl Places {
    fn new(root: &Path, stories: &[&Story]) -> Self {
        let real = root.canonicalize().expect("its real path");
        open_to_all(&real);
        let [data, outside, state] = ["data", "outside", "state"].map(|name| directory(&real.join(name)));
        for story in stories {
            directory(&data.join(story.key()));
            directory(&outside.join(story.key()));
        }
        let binary = real.join("apollonia-ingestor");
        copy_of_binary(&binary);
        Self { data, outside, state, binary }
    }
}

/// Their messages show that the service reads events still.
fn save_sentinels(players: &mut [Player], turn: &str) {
    for player in players {
        let sentinel = Name::top(Side::Data).child(&format!("{SENTINEL}{turn}"));
        player.tree.save(&sentinel, sentinel.below().as_bytes());
    }
}

fn path_of(entry: &Entry) -> Option<PathBuf> {
    let fields: Value = serde_json::from_slice(&entry.body).ok()?;
    fields["file_path"].as_str().map(PathBuf::from)
}

/// The messages by the story's directory that they are about.
fn by_story(entries: Vec<Entry>, data: &Path) -> HashMap<String, Vec<Entry>> {
    let mut all: HashMap<String, Vec<Entry>> = HashMap::new();
    for entry in entries {
        let below = path_of(&entry).and_then(|path| path.strip_prefix(data).ok().map(Path::to_owned));
        let key = below.and_then(|below| Some(below.components().next()?.as_os_str().to_str()?.to_owned()));
        all.entry(key.unwrap_or_default()).or_default().push(entry);
    }
    all
}
