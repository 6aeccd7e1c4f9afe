//! The patterns against examples, against a naive matcher, and against the help and the README.

use std::os::unix::ffi::OsStringExt;

use clap::CommandFactory;
use proptest::prelude::*;

use super::*;

fn words(patterns: &[&str]) -> Vec<OsString> {
    patterns.iter().map(OsString::from).collect()
}

fn excluding(patterns: &[&str]) -> Filter {
    Filter::new(&[], &words(patterns), false).unwrap()
}

#[track_caller]
fn assert_matches(pattern: &str, path: &str, expected: bool) {
    assert_eq!(!excluding(&[pattern]).admits(path.as_bytes()), expected, "{pattern:?} and {path:?}");
}

#[test]
fn without_patterns_every_file_is_admitted() {
    let filter = Filter::new(&[], &[], false).unwrap();
    assert!(filter.admits(b"any.part") && filter.admits(b"\xff/\n") && filter.enters(b".git"));
}

#[test]
fn a_pattern_without_a_slash_is_a_name_in_any_directory() {
    for (path, expected) in
        [("a.log", true), ("x/y/a.log", true), (".log", true), ("a.log/b", false), ("a.logs", false)]
    {
        assert_matches("*.log", path, expected);
    }
}

#[test]
fn a_pattern_with_a_slash_is_a_path_below_the_data_directory() {
    for (pattern, path, expected) in [
        ("/a", "a", true),
        ("/a", "x/a", false),
        ("x/a", "x/a", true),
        ("x/a", "y/x/a", false),
        ("/x/a", "x/a", true),
        ("x/*", "x/a", true),
        ("x/*", "x/y/a", false),
        ("x/**", "x/y/a", true),
        ("x/**", "x", false),
        ("x/**/a", "x/a", true),
        ("x/**/a", "x/y/z/a", true),
        ("**/x/a", "y/x/a", true),
        ("{x,y}/a", "y/a", true),
        ("{x,y}/a", "z/y/a", false),
    ] {
        assert_matches(pattern, path, expected);
    }
}

#[test]
fn a_slash_at_the_end_names_a_directory_and_all_below_it() {
    for (pattern, path, expected) in [
        ("tmp/", "tmp/a", true),
        ("tmp/", "x/tmp/y/a", true),
        ("tmp/", "tmp", false),
        ("/tmp/", "x/tmp/a", false),
        ("x/tmp/", "x/tmp/a", true),
        ("*.d/", "x/conf.d/a", true),
    ] {
        assert_matches(pattern, path, expected);
    }
}

#[test]
fn names_are_bytes() {
    let filter = excluding(&["caf?.txt", "é", "[^a-z]", "{ä,ö}*"]);
    for excluded in [&b"caf\xe9.txt"[..], "é".as_bytes(), b"\xff", "ölig".as_bytes(), "x/ä".as_bytes()] {
        assert!(!filter.admits(excluded), "{excluded:?}");
    }
    assert!(filter.admits("café.txt".as_bytes()), "é is two bytes");
    assert!(filter.admits(b"z"));
    assert!(!excluding(&["a*b"]).admits(b"a\n\xff\r b"), "* matches any bytes but a slash");
}

#[test]
fn exclude_wins_over_include() {
    let filter = Filter::new(&words(&["*.flac", "/art/"]), &words(&["demo*"]), true).unwrap();
    for (path, admitted) in [
        ("a.flac", true),
        ("x/a.flac", true),
        ("a.mp3", false),
        ("art/cover.jpg", true),
        ("demo.flac", false),
        ("art/demo", false),
        (".a.flac.x1Y2z3", false),
        ("art/cover.jpg.part", false),
    ] {
        assert_eq!(filter.admits(path.as_bytes()), admitted, "{path}");
    }
}

#[test]
fn names_of_incomplete_files_are_excluded() {
    let filter = Filter::new(&[], &[], true).unwrap();
    let partial = [
        ".album.flac.Zt04kQ",
        "x/.album.flac.Zt04kQ",
        "..bashrc.aB3dE6",
        "x/.~tmp~/album.flac",
        ".rsync-partial/album.flac",
        "album.flac.part",
        "album.flac.1a2b3c4d.partial",
        "album.zip.crdownload",
        ".com.google.Chrome.aB3dE6",
        "album.flac.filepart",
        ".syncthing.album.flac.tmp",
        ".pureftpd-upload.5f1c.15.1a2b.deadbeef",
        ".sftpgo-upload.cn1vbd3lq0vs7l7l6k10.album.flac",
        ".in.album.flac.",
        ".album.flac.~1f0c9a3e",
        "album.flac.!qB",
        "album.flac.aria2",
        "album.flac.opdownload",
        ".goutputstream-6VRBK1",
        ".nfs000000000a1b2c3d00000001",
        ".fuse_hidden0000001f00000001",
        "notes.txt~",
        ".notes.txt.swp",
        ".\u{e9}\n.swp",
    ];
    for name in partial {
        assert!(!filter.admits(name.as_bytes()), "{name:?}");
        assert!(Filter::new(&[], &[], false).unwrap().admits(name.as_bytes()));
    }
    let whole = [
        "album.flac",
        ".bashrc",
        "part",
        "a.parts",
        "album.Zt04kQ",
        ".a.12345",
        ".a.1234567",
        ".a.12345-",
        "a.swp",
        "nfs1",
        "album.flac.~1f0c9a3e",
        ".album.flac.~xyz",
        ".in.album.flac",
        "in.album.",
        "album.qB",
    ];
    for name in whole {
        assert!(filter.admits(name.as_bytes()), "{name:?}");
    }
    assert!(filter.admits(b".caf\xe9") && !filter.admits(b".caf\xe9.Zt04kQ"));
}

#[test]
fn a_directory_is_closed_only_if_all_files_in_it_are_excluded() {
    let filter = Filter::new(&[], &words(&["node_modules/", "/x/cache/**", "*.d", "y/*"]), true).unwrap();
    for closed in ["node_modules", "a/node_modules", "a/node_modules/b", "x/cache", "x/cache/y", "a/.~tmp~"] {
        assert!(!filter.enters(closed.as_bytes()), "{closed}");
    }
    for open in ["x", "a/x/cache", "conf.d", "y", "a"] {
        assert!(filter.enters(open.as_bytes()), "{open}");
    }
    assert!(filter.closes() && !excluding(&["*.d"]).closes());
    assert!(["a", "a/b"].iter().all(|directory| !excluding(&["**"]).enters(directory.as_bytes())));
}

#[test]
fn a_pattern_that_cannot_be_used_is_refused_by_name() {
    for pattern in ["", "/", "!a", "a[", "{a", "a}", "a\\", "[z-a]", "a//b", "./a", "../a", "a/..", "[é]", "{a,[ü]}"]
    {
        let error = Filter::new(&[], &words(&[pattern]), true).unwrap_err();
        assert_eq!(error.exit_status(), 2);
        let message = error.to_string();
        assert!(
            message.starts_with("--exclude (INGESTOR_EXCLUDE): ") && message.contains(&format!("{pattern:?}")),
            "{message}"
        );
        let message = Filter::new(&words(&[pattern]), &[], true).unwrap_err().to_string();
        assert!(message.starts_with("--include (INGESTOR_INCLUDE): ") && message.lines().count() == 1, "{message}");
    }
    let bytes = OsString::from_vec(b"caf\xe9".to_vec());
    assert!(Filter::new(&[bytes], &[], true).is_err());
}

#[test]
fn commas_separate_patterns_but_not_within_brackets_and_braces() {
    for (list, patterns) in [
        ("a", &["a"][..]),
        ("*.flac,*.mp3", &["*.flac", "*.mp3"]),
        (" *.flac, a b ", &["*.flac", "a b"]),
        ("*.{flac,mp3},b", &["*.{flac,mp3}", "b"]),
        ("{a,{b,c}},d", &["{a,{b,c}}", "d"]),
        ("[,],b", &["[,]", "b"]),
        ("[],],b", &["[],]", "b"]),
        ("[!],],b", &["[!],]", "b"]),
        ("[[:alpha:],],b", &["[[:alpha:],]", "b"]),
        ("[[:}:],{a,b}", &["[[:}:]", "{a,b}"]),
        ("[[:Alpha:],b", &["[[:Alpha:]", "b"]),
        ("[!-[:alpha:],b", &["[!-[:alpha:],b"]),
        ("[+-[:alpha:],b", &["[+-[:alpha:]", "b"]),
        ("a\\,b,c", &["a\\,b", "c"]),
        ("a\\[,b", &["a\\[", "b"]),
        ("{[}],a},b", &["{[}],a}", "b"]),
        ("a},b", &["a}", "b"]),
        ("a,", &["a", ""]),
        ("[a,b", &["[a,b"]),
    ] {
        assert_eq!(patterns_of(OsStr::new(list)), words(patterns), "{list}");
    }
}

#[test]
fn help_and_documents_name_every_partial_pattern() {
    let help = crate::cli::Cli::command().render_long_help().to_string();
    let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
    let documented = include_str!("../../docs/configuration.md");
    for (pattern, writer) in PARTIAL {
        let pattern = shown(pattern);
        assert!(help.contains(&format!("{pattern} ({writer})")), "{pattern} in the help");
        assert!(documented.contains(&format!("`{pattern}`")), "{pattern} in docs/configuration.md");
    }
}

/// Matches one component at a time. `**` is any number of components, and at least one at the end.
fn naive(pattern: &[&str], path: &[&[u8]]) -> bool {
    match (pattern, path) {
        ([], _) => path.is_empty(),
        (["**"], _) => !path.is_empty(),
        (["**", rest @ ..], _) => (0..=path.len()).any(|skipped| naive(rest, &path[skipped..])),
        ([first, rest @ ..], [name, below @ ..]) => naive_name(first.as_bytes(), name) && naive(rest, below),
        (_, []) => false,
    }
}

fn naive_name(pattern: &[u8], name: &[u8]) -> bool {
    match (pattern, name) {
        ([], _) => name.is_empty(),
        ([b'*', rest @ ..], _) => (0..=name.len()).any(|taken| naive_name(rest, &name[taken..])),
        ([b'?', rest @ ..], [_, left @ ..]) => naive_name(rest, left),
        ([first, rest @ ..], [byte, left @ ..]) => first == byte && naive_name(rest, left),
        (_, []) => false,
    }
}

fn component() -> impl Strategy<Value = String> {
    prop_oneof![1 => Just("**".to_owned()), 6 => "[ab.*?\n]{1,4}"]
        .prop_filter("another meaning", |part| !matches!(&part[..], "." | ".."))
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(prop::sample::select(&b"ab.\n\xff"[..]), 1..4)
        .prop_filter("no file's name", |name| !matches!(&name[..], b"." | b".."))
}

/// A pattern that can be used, with everything that could mislead the search for commas.
fn good() -> impl Strategy<Value = String> {
    "[a,{}\\[\\]!:*\\\\é]{1,8}".prop_map(|pattern| {
        let usable = Filter::new(&words(&[&pattern]), &[], false).is_ok();
        let several = patterns_of(OsStr::new(&pattern)).len() > 1;
        if usable && !several { pattern } else { format!("{{{},b}}", "a,".repeat(pattern.len())) }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16 * ProptestConfig::default().cases, ..ProptestConfig::default() })]
    #[test]
    fn a_pattern_means_what_it_says(
        parts in prop::collection::vec(component(), 1..4),
        (from_top, whole) in any::<(bool, bool)>(),
        path in prop::collection::vec(name(), 1..4),
    ) {
        let typed = format!("{}{}{}", if from_top { "/" } else { "" }, parts.join("/"), if whole { "/" } else { "" });
        let mut expected: Vec<&str> = parts.iter().map(String::as_str).collect();
        if parts.len() == 1 && !from_top {
            expected.insert(0, "**");
        }
        if whole {
            expected.push("**");
        }
        let names: Vec<&[u8]> = path.iter().map(Vec::as_slice).collect();
        let matched = !excluding(&[&typed]).admits(&names.join(&b'/'));
        prop_assert_eq!(matched, naive(&expected, &names), "{:?}", typed);
    }

    /// No file in a closed directory is admitted.
    #[test]
    fn no_admitted_file_is_below_a_closed_directory(
        parts in prop::collection::vec(component(), 1..4),
        whole: bool,
        path in prop::collection::vec("[ab.]{1,3}", 2..5),
    ) {
        let filter = excluding(&[&format!("{}{}", parts.join("/"), if whole { "/" } else { "" })]);
        let closed = (1..path.len()).any(|depth| !filter.enters(path[..depth].join("/").as_bytes()));
        prop_assert!(!closed || !filter.admits(path.join("/").as_bytes()));
    }

    #[test]
    fn any_variable_is_used_or_refused(list in prop_oneof!["[a,{}\\[\\]!:/*\\\\ é]{0,20}", any::<String>()]) {
        let patterns = patterns_of(OsStr::new(&list));
        let _ = Filter::new(&patterns, &patterns, true);
    }

    /// Joined patterns are split again: no pattern that can be used is cut.
    #[test]
    fn a_list_of_good_patterns_is_split_where_it_was_joined(
        patterns in prop::collection::vec(good(), 1..5),
    ) {
        let expected: Vec<OsString> = patterns.iter().map(OsString::from).collect();
        prop_assert_eq!(patterns_of(OsStr::new(&patterns.join(","))), expected);
    }
}

#[test]
fn it_names_the_glob_that_leaves_a_file_out() {
    let patterns = |words: &[&str]| words.iter().map(OsString::from).collect::<Vec<_>>();
    let filter = Filter::new(&patterns(&["*.flac", "*.part"]), &patterns(&["*.tmp", "cache/"]), true).unwrap();
    for (path, named) in [
        ("a/b.tmp", Some("--exclude leaves it out by the glob \"*.tmp\"")),
        ("cache/deep/b.flac", Some("--exclude leaves it out by the glob \"cache/\"")),
        ("b.part", Some("--ignore-partial leaves it out by the glob \"*.part\"")),
        (".b.Zt04kQ", Some("--ignore-partial leaves it out by the glob \".*.XXXXXX\"")),
        ("b.mp3", Some("none of the globs of --include matches it")),
        ("a/b.flac", None),
    ] {
        assert_eq!(filter.leaves_out(path.as_bytes()).as_deref(), named, "{path}");
        assert_eq!(filter.admits(path.as_bytes()), named.is_none(), "{path}");
    }
}
