//! A disk that notes before each change what a kill and what a power cut would leave, and that can be full.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::vfs::{Answer, Change, Disk};
use crate::ledger::state_directory::{BEHIND, COMPLETE, is_complete};

/// What a disk writes at once, in bytes: parts of a write that are shorter are never torn.
const SECTOR: usize = 512;

/// The files of a state directory, by name.
pub(super) type Files = BTreeMap<String, Vec<u8>>;

/// What is left of the state directory when everything stops.
pub(super) struct Left {
    /// What had happened by then: a number of the history's moments.
    pub moment: usize,
    /// For a power cut: the moment before which everything had been synced.
    pub synced: Option<usize>,
    pub files: Files,
    /// The mark of a complete ledger counted.
    pub complete: bool,
}

/// From which change on the disk is full, or fails once.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fault {
    /// Counted from 0.
    pub at: usize,
    /// How many changes it meets.
    pub lasts: usize,
    pub answer: Answer,
}

/// Random numbers that a seed repeats (SplitMix64).
pub(super) struct Random(pub u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(super) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    fn percent(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }
}

/// See the module.
pub(super) struct Recorder {
    pub directory: PathBuf,
    /// What has happened so far: a number of the history's moments.
    pub moment: usize,
    /// How many changes there were.
    pub changes: usize,
    pub fault: Option<Fault>,
    /// How many of them the fault has met.
    pub refused: usize,
    /// Power cuts noted for each change; `None`: nothing is noted, neither cuts nor kills.
    pub cuts: Option<usize>,
    pub left: Vec<Left>,
    unsynced: BTreeMap<String, Unsynced>,
    synced: usize,
    random: Random,
}

impl Recorder {
    pub(super) fn new(directory: &Path, seed: u64) -> Self {
        Self {
            directory: directory.to_owned(),
            moment: 0,
            changes: 0,
            fault: None,
            refused: 0,
            cuts: None,
            left: Vec::new(),
            unsynced: BTreeMap::new(),
            synced: 0,
            random: Random(seed),
        }
    }

    /// Notes what a kill would leave now, and some outcomes of a power cut.
    pub(super) fn note(&mut self) {
        let Some(cuts) = self.cuts else { return };
        let (files, moment) = (files(&self.directory), self.moment);
        let complete = is_complete(&self.directory);
        for _ in 0..cuts {
            let files = self.cut(&files);
            self.left.push(Left { moment, synced: Some(self.synced), files, complete });
        }
        self.left.push(Left { moment, synced: None, files, complete });
    }

    /// One outcome of a power cut. The marks beside the database are files of their own, which nobody syncs when they
    /// are made.
    fn cut(&mut self, now: &Files) -> Files {
        let mut left = Files::new();
        let kept = [0, 50, 90, 100][self.random.below(4)];
        for (name, file) in &self.unsynced {
            if let Some(content) = file.outcome(kept, &mut self.random) {
                left.insert(name.clone(), content);
            }
        }
        for mark in [BEHIND, COMPLETE] {
            if let Some(content) = now.get(mark)
                && self.random.percent(67)
            {
                let empty = self.random.percent(33);
                left.insert(mark.to_owned(), if empty { Vec::new() } else { content.clone() });
            }
        }
        left
    }

    fn answer(&mut self) -> Answer {
        let number = self.changes;
        self.changes += 1;
        let met = |fault: &Fault| number.checked_sub(fault.at).is_some_and(|since| since < fault.lasts);
        let Some(fault) = self.fault.filter(met) else { return Answer::Made };
        self.refused += 1;
        fault.answer
    }
}

impl Disk for Recorder {
    fn change(&mut self, path: &Path, change: &Change<'_>) -> Answer {
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if name == BEHIND {
            self.note(); // what a power cut leaves of a mark is decided in `cut`
            return self.answer();
        }
        // A file that was there before is taken for synced.
        let before = || Unsynced { synced: fs::read(path).ok(), pieces: Vec::new() };
        self.unsynced.entry(name.clone()).or_insert_with(before);
        self.note();
        let answer = self.answer();
        if answer != Answer::Made {
            return answer;
        }
        let file = self.unsynced.get_mut(&name).unwrap();
        match change {
            Change::Create => file.pieces.push(Piece::Created),
            Change::Write { at, bytes } => file.pieces.push(Piece::Written(*at as usize, bytes.to_vec())),
            Change::Truncate(length) => file.pieces.push(Piece::Cut(*length as usize)),
            Change::Delete => file.pieces.push(Piece::Deleted),
            Change::Sync => {
                if file.sync() {
                    // With a new file its directory is synced, and so are the names of all others.
                    self.unsynced.values_mut().for_each(Unsynced::sync_name);
                }
                self.synced = self.moment;
            }
        }
        Answer::Made
    }
}

/// A file whose last changes may not survive a power cut.
struct Unsynced {
    /// What surely does.
    synced: Option<Vec<u8>>,
    pieces: Vec<Piece>,
}

enum Piece {
    Created,
    Written(usize, Vec<u8>),
    Cut(usize),
    Deleted,
}

impl Unsynced {
    /// Returns whether the file was new.
    fn sync(&mut self) -> bool {
        let new = self.pieces.iter().any(|piece| matches!(piece, Piece::Created));
        self.synced = self.outcome(100, &mut Random(0));
        self.pieces.clear();
        new
    }

    fn sync_name(&mut self) {
        let named = |piece: &Piece| matches!(piece, Piece::Created | Piece::Deleted);
        let Some(last) = self.pieces.iter().rposition(named) else { return };
        self.synced = matches!(self.pieces[last], Piece::Created).then(Vec::new);
        self.pieces.drain(..=last);
    }

    /// What a power cut leaves of it: each sector and each other change survives with this probability.
    fn outcome(&self, kept: usize, random: &mut Random) -> Option<Vec<u8>> {
        let mut content = self.synced.clone();
        for piece in &self.pieces {
            match (piece, &mut content) {
                (Piece::Written(at, bytes), Some(content)) => write(content, *at, bytes, || random.percent(kept)),
                (Piece::Cut(length), Some(content)) if random.percent(kept) => content.resize(*length, 0),
                (Piece::Deleted, _) if random.percent(kept) => content = None,
                // What is written to a file whose name is lost is lost, too.
                (Piece::Created, _) if !random.percent(kept) => break,
                (Piece::Created, _) => content = Some(Vec::new()),
                _ => {}
            }
        }
        content
    }
}

/// Writes the sectors that are kept. One that is lost within the new length is zeros.
fn write(content: &mut Vec<u8>, at: usize, bytes: &[u8], mut kept: impl FnMut() -> bool) {
    let mut done = 0;
    while done < bytes.len() {
        let length = (SECTOR - (at + done) % SECTOR).min(bytes.len() - done);
        if kept() {
            let end = at + done + length;
            if content.len() < end {
                content.resize(end, 0);
            }
            content[at + done..end].copy_from_slice(&bytes[done..done + length]);
        }
        done += length;
    }
}

pub(super) fn files(directory: &Path) -> Files {
    let entries = fs::read_dir(directory).unwrap().map(Result::unwrap);
    entries.map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap())).collect()
}
