//! What do the neighbors of one name cost, among ten names and among a million? And inserting with removing a name, or a
//! listing of the whole directory: the first one, and the next one without a change?
//!
//! For comparison: one pass over a plain list of the names, which is the way without an index (up to 100,000 names, because
//! its time only grows), and one ordered set, which knows the names and no neighbors.

mod common;

use std::collections::BTreeSet;
use std::fs::File;
use std::sync::Arc;

use apollonia_ingestor::bench::{Directory, NEIGHBORS_MAX, Name, Names, Root, stem};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use xxhash_rust::xxh3::xxh3_64_with_seed;

const SIZES: [usize; 6] = [10, 100, 1_000, 10_000, 100_000, 1_000_000];

/// The largest directory that is measured with a plain list.
const LIST_MAX: usize = 100_000;

/// The number of names that are asked for in turn.
const ASKED: usize = 1024;

/// The seed of the names.
const SEED: u64 = 1;

const TRACKS: u64 = 8;

/// An endless row of names: two that describe the whole directory, then for each album its tracks and the files beside
/// them. Already the first ten make a directory.
fn names() -> impl Iterator<Item = Name> {
    let whole = ["README.md", "tracklist.txt"].map(str::to_owned);
    let albums = (0u64..).flat_map(|number| {
        let album = format!("{} {} - {}", word(3 * number), word(3 * number + 1), word(3 * number + 2));
        let tracks = (1..=TRACKS).map({
            let album = album.clone();
            move |track| format!("{album} - {track:02}.flac")
        });
        tracks.chain(["flac", "cue", "log", "jpg"].map(|extension| format!("{album}.{extension}")))
    });
    whole.into_iter().chain(albums).map(|name| name.into_bytes().into())
}

/// A word of three syllables from the number's hash.
fn word(number: u64) -> String {
    let hash = xxh3_64_with_seed(&number.to_le_bytes(), SEED).to_le_bytes();
    let letter = |letters: &[u8], byte: u8| char::from(letters[usize::from(byte) % letters.len()]);
    let syllables = hash[..6].chunks_exact(2);
    let mut word: String =
        syllables.flat_map(|pair| [letter(b"bcdfghklmnprstvz", pair[0]), letter(b"aeiou", pair[1])]).collect();
    word[..1].make_ascii_uppercase();
    word
}

/// The neighbors of a name by one pass over a list. The names are ASCII, so three characters are three bytes.
fn from_list(list: &[Name], name: &Name) -> Vec<Name> {
    let own = stem(name);
    let group = |other: &Name| {
        let theirs = stem(other);
        let describes = |stem: &&str| theirs.eq_ignore_ascii_case(stem.as_bytes());
        if theirs == own {
            Some(0)
        } else if ["tracklist", "tracks", "info", "readme"].iter().any(describes) {
            Some(1)
        } else {
            other.starts_with(&own[..3]).then_some(2)
        }
    };
    let others = list.iter().filter(|other| *other != name);
    let mut found: Vec<(u8, &Name)> = others.filter_map(|other| Some((group(other)?, other))).collect();
    found.sort_unstable();
    found.into_iter().take(NEIGHBORS_MAX).map(|(_, other)| Arc::clone(other)).collect()
}

/// Names from all over the list in turn, because a single one would always be in the first-level cache.
struct InTurn {
    names: Vec<Name>,
    at: usize,
}

impl InTurn {
    fn new(list: &[Name], suits: impl Fn(&Name) -> bool) -> Self {
        let id = |number: u64| xxh3_64_with_seed(&number.to_le_bytes(), !SEED) as usize % list.len();
        let names = (0..).map(|number| &list[id(number)]).filter(|name| suits(name)).take(ASKED).cloned().collect();
        Self { names, at: 0 }
    }

    /// Names that are neighbors in order, as those of files that are made or scanned together are.
    fn side_by_side(sorted: &BTreeSet<Name>) -> Self {
        let names: Vec<Name> = sorted.iter().skip(sorted.len() / 2).take(ASKED).cloned().collect();
        Self { names: names.iter().cycle().take(ASKED).cloned().collect(), at: 0 }
    }

    fn next(&mut self) -> &Name {
        self.at = (self.at + 1) % ASKED;
        &self.names[self.at]
    }
}

fn index(criterion: &mut Criterion) {
    let mut coming = names();
    // One directory grows from size to size, so that the million is built once.
    let (mut index, mut set, mut list) = (Names::default(), BTreeSet::new(), Vec::new());
    let root = Root::new(File::open("/").expect("every system has a root").into(), b"/");
    let directory = Directory::new(&Arc::new(root), b"");
    for size in SIZES {
        for name in coming.by_ref().take(size - list.len()) {
            index.insert(&name);
            set.insert(Arc::clone(&name));
            list.push(name);
        }
        let most = NEIGHBORS_MAX.min(size - 1);
        let mut asked = InTurn::new(&list, |name| index.neighbors(name).len() == most);
        let name = asked.next();
        assert!(index.neighbors(name).into_iter().eq(&from_list(&list, name)));
        let mut coming_and_going = InTurn::new(&list, |_| true);
        coming_and_going.names.iter_mut().for_each(|name| *name = [name, &b".part"[..]].concat().into());

        let mut group = criterion.benchmark_group("neighbors of one name");
        group.bench_function(BenchmarkId::new("index, any name", size), |bencher| {
            bencher.iter(|| index.neighbors(asked.next()));
        });
        let mut row = InTurn::side_by_side(&set);
        group.bench_function(BenchmarkId::new("index, one name after the other", size), |bencher| {
            bencher.iter(|| index.neighbors(row.next()));
        });
        if size <= LIST_MAX {
            group.bench_function(BenchmarkId::new("one pass over a list", size), |bencher| {
                bencher.iter(|| from_list(&list, asked.next()));
            });
        }
        group.finish();

        let mut group = criterion.benchmark_group("insert and remove");
        group.bench_function(BenchmarkId::new("index", size), |bencher| {
            bencher.iter(|| {
                let name = coming_and_going.next();
                index.insert(name);
                index.remove(name);
            });
        });
        group.bench_function(BenchmarkId::new("one ordered set", size), |bencher| {
            bencher.iter(|| {
                let name = coming_and_going.next();
                set.insert(Arc::clone(name));
                set.remove(name)
            });
        });
        group.finish();

        // The kernel lists names in no order.
        let mut listing = list.clone();
        listing.sort_by_key(|name| xxh3_64_with_seed(name, SEED));
        let mut group = criterion.benchmark_group("a listing");
        group.sample_size(10);
        group.bench_function(BenchmarkId::new("the first", size), |bencher| {
            bencher.iter_with_large_drop(|| listing.iter().collect::<Names>());
        });
        directory.set_names(&listing);
        group.bench_function(BenchmarkId::new("again without a change", size), |bencher| {
            bencher.iter(|| directory.set_names(&listing));
        });
        group.finish();
    }
}

criterion_group!(name = benches; config = common::criterion(); targets = index);
criterion_main!(benches);
