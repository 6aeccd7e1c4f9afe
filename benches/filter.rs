//! What does it cost to decide whether a file is published: without globs, with the defaults, with further globs?

mod common;

use std::ffi::OsString;
use std::hint::black_box;

use apollonia_ingestor::bench::Filter;
use criterion::{Criterion, criterion_group, criterion_main};

const PATHS: [(&str, &str); 3] = [
    ("admitted", "Artist/Artist - Album/Artist - Album - 01.flac"),
    ("rsync's", "Artist/Artist - Album/.Artist - Album - 01.flac.Zt04kQ"),
    ("excluded", "Artist/Artist - Album/demo/Artist - Album - 01.flac"),
];

fn filter(criterion: &mut Criterion) {
    let words = |patterns: &[&str]| patterns.iter().map(OsString::from).collect::<Vec<_>>();
    let own = (words(&["*.flac", "*.{cue,log}", "/art/**"]), words(&["demo/", "**/x/*.flac", "[0-9]*.tmp"]));
    let many: Vec<OsString> = (0..1000).map(|number| format!("**/archive {number}/*.flac").into()).collect();
    for (name, include, exclude, partial) in [
        ("nothing set", &[][..], &[][..], false),
        ("partial names", &[], &[], true),
        ("partial names and six globs", &own.0, &own.1, true),
        ("partial names and a thousand globs", &[], &many, true),
    ] {
        let filter = Filter::new(include, exclude, partial).expect("globs that can be used");
        let mut group = criterion.benchmark_group(name);
        for (what, path) in PATHS {
            group.bench_function(what, |bencher| bencher.iter(|| filter.admits(black_box(path.as_bytes()))));
        }
        group.finish();
    }
}

criterion_group!(name = benches; config = common::criterion(); targets = filter);
criterion_main!(benches);
