//! Which files are published: globs on the path below the data directory, and the names of what is only half there.
//!
//! A file that is not admitted is neither read nor waited for. Its name stays in the directory index: a neighbor is
//! any regular file in the directory.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use globset::{Candidate, Glob, GlobBuilder, GlobSet, GlobSetBuilder};

use crate::error::Error;

/// Names under which common writers keep a file until it is complete and renamed, and who they are.
pub const PARTIAL: [(&str, &str); 20] = [
    (".*.[0-9A-Za-z][0-9A-Za-z][0-9A-Za-z][0-9A-Za-z][0-9A-Za-z][0-9A-Za-z]", "rsync: six letters or digits"),
    (".~tmp~/", "rsync --delay-updates"),
    (".rsync-partial/", "rsync --partial-dir, by the name in its manual"),
    ("*.part", "Firefox, KDE, yt-dlp"),
    ("*.partial", "rclone"),
    ("*.crdownload", "Chromium"),
    ("*.filepart", "WinSCP"),
    (".syncthing.*.tmp", "Syncthing"),
    (".pureftpd-upload.*", "Pure-FTPd"),
    (".sftpgo-upload.*", "SFTPGo"),
    (".in.*.", "ProFTPD's HiddenStores"),
    (".*.~[0-9a-f]*", "the clients of ownCloud and Nextcloud"),
    ("*.!qB", "qBittorrent"),
    ("*.aria2", "aria2: what it knows of the file beside it"),
    ("*.opdownload", "Opera"),
    (".goutputstream-*", "GLib, and so GNOME's programs"),
    (".nfs*", "NFS clients: deleted, but still open"),
    (".fuse_hidden*", "FUSE: deleted, but still open"),
    ("*~", "backups of Emacs, Vim and others"),
    (".*.swp", "Vim's swap files"),
];

/// A pattern of [`PARTIAL`] for people: rsync's six characters are six X.
#[must_use]
pub fn shown(partial: &str) -> String {
    partial.replace("[0-9A-Za-z]", "X")
}

/// Include and exclude globs, compiled once.
#[derive(Debug, Default)]
pub struct Filter {
    /// Nothing: every file is included.
    include: Option<GlobSet>,
    exclude: GlobSet,
    /// Directories with nothing in them that is admitted.
    closed: GlobSet,
}

impl Filter {
    /// Compiles the patterns; `ignore_partial` adds [`PARTIAL`] to those that exclude.
    ///
    /// # Errors
    /// [`Error::Usage`], naming the setting, the pattern and what is wrong with it.
    pub fn new(include: &[OsString], exclude: &[OsString], ignore_partial: bool) -> Result<Self, Error> {
        let named = |pattern, setting| Pattern::parse(pattern).map_err(|cause| refused(setting, pattern, &cause));
        let include = include.iter().map(|pattern| named(pattern, INCLUDE)).collect::<Result<Vec<_>, _>>()?;
        let mut exclude = exclude.iter().map(|pattern| named(pattern, EXCLUDE)).collect::<Result<Vec<_>, _>>()?;
        if ignore_partial {
            let partial = PARTIAL.iter().map(|(pattern, _)| named(OsStr::new(*pattern), EXCLUDE));
            exclude.extend(partial.collect::<Result<Vec<_>, _>>()?);
        }
        let include = match &include[..] {
            [] => None,
            include => Some(set(include.iter().map(|pattern| &pattern.files), INCLUDE)?),
        };
        Ok(Self {
            include,
            closed: set(exclude.iter().flat_map(|pattern| &pattern.directories), EXCLUDE)?,
            exclude: set(exclude.iter().map(|pattern| &pattern.files), EXCLUDE)?,
        })
    }

    /// Whether the file at this path below the data directory is published.
    #[must_use]
    pub fn admits(&self, below: &[u8]) -> bool {
        if self.include.is_none() && self.exclude.is_empty() {
            return true;
        }
        let path = Candidate::from_bytes(below);
        !self.exclude.is_match_candidate(&path)
            && self.include.as_ref().is_none_or(|include| include.is_match_candidate(&path))
    }

    /// Whether a directory at this path below the data directory can hold anything that is admitted, as far as the
    /// patterns that exclude whole directories tell. One that cannot need not be listed or watched.
    #[must_use]
    pub fn enters(&self, below: &[u8]) -> bool {
        self.closed.is_empty() || !self.closed.is_match_candidate(&Candidate::from_bytes(below))
    }
}

/// How a refusal names the setting.
const INCLUDE: &str = "--include (INGESTOR_INCLUDE)";

/// See [`INCLUDE`].
const EXCLUDE: &str = "--exclude (INGESTOR_EXCLUDE)";

fn refused(setting: &str, pattern: &OsStr, cause: &str) -> Error {
    Error::usage(format!("{setting}: {pattern:?} cannot be used: {cause}"), "see --help")
}

fn set<'a>(globs: impl Iterator<Item = &'a Glob>, setting: &str) -> Result<GlobSet, Error> {
    let mut builder = GlobSetBuilder::new();
    for glob in globs {
        builder.add(glob.clone());
    }
    builder.build().map_err(|error| Error::usage(format!("{setting}: cannot be used: {error}"), "see --help"))
}

/// One pattern, understood as `.gitignore` has them.
#[derive(Debug)]
struct Pattern {
    files: Glob,
    /// Where the pattern takes whole directories: those, and the ones below them.
    directories: Vec<Glob>,
}

impl Pattern {
    fn parse(typed: &OsStr) -> Result<Self, String> {
        let typed = typed.to_str().ok_or("it is not UTF-8; write ? for each byte of a name that is not")?;
        if typed.starts_with('!') {
            return Err("a leading ! means nothing here; write \\! for a name that begins so".to_owned());
        }
        let (name, whole) = typed.strip_suffix('/').map_or((typed, false), |name| (name, true));
        let path = name.strip_prefix('/').unwrap_or(name);
        if path.is_empty() {
            return Err("it names nothing".to_owned());
        }
        if path.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return Err("no path below the data directory holds an empty name, . or ..".to_owned());
        }
        let places = typed.bytes().zip(places(typed.as_bytes()));
        if places.into_iter().any(|(byte, place)| place == Place::Class && !byte.is_ascii()) {
            return Err("[] takes ASCII only; write {a,b} for one of several other characters".to_owned());
        }
        let path = if name.contains('/') { path.to_owned() } else { format!("**/{path}") };
        let below = format!("{path}/**");
        let directories = match path.strip_suffix("/**") {
            _ if whole => vec![glob(&path)?, glob(&below)?],
            Some(directory) if !matches!(directory, "" | "**") => vec![glob(directory)?, glob(&path)?],
            _ => Vec::new(),
        };
        Ok(Self { files: glob(if whole { &below } else { &path })?, directories })
    }
}

fn glob(pattern: &str) -> Result<Glob, String> {
    GlobBuilder::new(pattern)
        .literal_separator(true)
        .backslash_escape(true)
        .empty_alternates(true)
        .build()
        .map_err(|error| error.kind().to_string())
}

/// The patterns of a variable: commas stand between them, but not those within `{}` or `[]` or behind a `\`. Spaces
/// around a pattern are not part of it.
#[must_use]
pub fn patterns_of(variable: &OsStr) -> Vec<OsString> {
    let typed = variable.as_bytes();
    let places = places(typed);
    let separators = (0..typed.len()).filter(|&at| typed[at] == b',' && places[at] == Place::Bare);
    let mut patterns = Vec::new();
    let mut begin = 0;
    for end in separators.chain([typed.len()]) {
        patterns.push(OsString::from_vec(typed[begin..end].trim_ascii().to_vec()));
        begin = end + 1;
    }
    patterns
}

/// Where a byte of a pattern stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Bare,
    Escaped,
    Braces,
    Class,
}

/// The place of each byte, brackets and braces themselves included. What is opened and not closed goes to the end.
fn places(pattern: &[u8]) -> Vec<Place> {
    let mut places = Vec::with_capacity(pattern.len());
    let mut braces = 0usize;
    while let Some(&byte) = pattern.get(places.len()) {
        let rest = &pattern[places.len()..];
        let here = if braces > 0 { Place::Braces } else { Place::Bare };
        match byte {
            b'\\' => places.extend(std::iter::repeat_n(Place::Escaped, rest.len().min(2))),
            b'[' => places.extend(std::iter::repeat_n(Place::Class, class_length(rest))),
            b'{' => {
                braces += 1;
                places.push(Place::Braces);
            }
            b'}' => {
                braces = braces.saturating_sub(1);
                places.push(here);
            }
            _ => places.push(here),
        }
    }
    places
}

/// How long the class is that begins here. A `]` that comes first is one of its characters, and so is that of a
/// `[:name:]`.
fn class_length(rest: &[u8]) -> usize {
    let negated = matches!(rest.get(1), Some(b'!' | b'^'));
    let first = if negated { 2 } else { 1 };
    let mut at = first;
    while let Some(&byte) = rest.get(at) {
        let named = rest[at..].strip_prefix(b"[:").and_then(|name| name.windows(2).position(|pair| pair == b":]"));
        match (byte, named) {
            (b'[', Some(length)) => at += length + 4,
            (b']', _) if at > first => return at + 1,
            _ => at += 1,
        }
    }
    rest.len()
}

#[cfg(test)]
mod tests {
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
    fn without_a_slash_it_is_the_name_in_any_directory() {
        for (path, expected) in
            [("a.log", true), ("x/y/a.log", true), (".log", true), ("a.log/b", false), ("a.logs", false)]
        {
            assert_matches("*.log", path, expected);
        }
    }

    #[test]
    fn with_a_slash_it_is_the_path_below_the_data_directory() {
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
        assert!(filter.admits("café.txt".as_bytes()), "that are two bytes");
        assert!(filter.admits(b"z"));
        assert!(!excluding(&["a*b"]).admits(b"a\n\xff\r b"), "any bytes but a slash");
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
    fn names_of_half_a_file_are_left_out() {
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
    fn a_directory_is_closed_only_when_all_in_it_is_excluded() {
        let filter = Filter::new(&[], &words(&["node_modules/", "/x/cache/**", "*.d", "y/*"]), true).unwrap();
        for closed in ["node_modules", "a/node_modules", "a/node_modules/b", "x/cache", "x/cache/y", "a/.~tmp~"] {
            assert!(!filter.enters(closed.as_bytes()), "{closed}");
        }
        for open in ["x", "a/x/cache", "conf.d", "y", "a"] {
            assert!(filter.enters(open.as_bytes()), "{open}");
        }
    }

    #[test]
    fn a_pattern_that_cannot_be_used_is_refused_by_name() {
        for pattern in
            ["", "/", "!a", "a[", "{a", "a}", "a\\", "[z-a]", "a//b", "./a", "../a", "a/..", "[é]", "{a,[ü]}"]
        {
            let error = Filter::new(&[], &words(&[pattern]), true).unwrap_err();
            assert_eq!(error.exit_status(), 2);
            let told = error.to_string();
            assert!(
                told.starts_with("--exclude (INGESTOR_EXCLUDE): ") && told.contains(&format!("{pattern:?}")),
                "{told}"
            );
            let told = Filter::new(&words(&[pattern]), &[], true).unwrap_err().to_string();
            assert!(told.starts_with("--include (INGESTOR_INCLUDE): ") && told.lines().count() == 1, "{told}");
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
    fn help_and_readme_tell_every_partial_name() {
        let help = crate::cli::Cli::command().render_long_help().to_string();
        let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
        let readme = include_str!("../README.md");
        for (pattern, writer) in PARTIAL {
            let pattern = shown(pattern);
            assert!(help.contains(&format!("{pattern} ({writer})")), "{pattern} in the help");
            assert!(readme.contains(&format!("`{pattern}`")), "{pattern} in the README");
        }
    }

    /// What a pattern means, one component at a time; `**` stands for any number of them, at the end for one at least.
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

    /// A pattern that can be used, with all that could mislead who looks for commas.
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

        /// A closed directory has nothing in it that is admitted.
        #[test]
        fn nothing_admitted_is_behind_a_closed_directory(
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

        /// What is joined comes apart again: no pattern that can be used is cut.
        #[test]
        fn a_list_of_good_patterns_comes_apart_where_it_was_joined(
            patterns in prop::collection::vec(good(), 1..5),
        ) {
            let expected: Vec<OsString> = patterns.iter().map(OsString::from).collect();
            prop_assert_eq!(patterns_of(OsStr::new(&patterns.join(","))), expected);
        }
    }
}
