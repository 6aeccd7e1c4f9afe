//! The neighbors of a file: at most ten, by stem, special name and prefix, by example and against a naive listing.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use crate::support::files::{Random, fifo};
use crate::support::message::Message;
use crate::support::setup::Setup;
use crate::support::world::{World, directories};

const AT_MOST: usize = 10;
const SPECIAL: [&str; 4] = ["tracklist", "tracks", "info", "readme"];

/// Messages of a scan of `directory`, by name.
fn scan(directory: &Path) -> BTreeMap<String, Message> {
    let ended = Setup::new(&["scan", "--output", "stdout"]).arg(directory).run().expect_code(0);
    ended.messages().into_iter().map(|message| (message.name().to_owned(), message)).collect()
}

/// Makes `names` and returns the neighbors of `of`, as names.
#[track_caller]
fn neighbors(of: &str, names: &[&str]) -> Vec<String> {
    let (_root, data, _) = directories();
    for name in names.iter().chain([&of]) {
        fs::write(data.join(name), name).unwrap();
    }
    names_of(&scan(&data)[of], &data)
}

/// The neighbors as names, each checked to be an absolute path in `directory`.
#[track_caller]
fn names_of(message: &Message, directory: &Path) -> Vec<String> {
    let prefix = format!("{}/", directory.to_str().unwrap());
    let strip = |path: &str| path.strip_prefix(&prefix).map(str::to_owned);
    let paths = message.neighbors();
    let names: Option<Vec<String>> = paths.iter().map(|path| strip(path)).collect();
    names.unwrap_or_else(|| panic!("not all in {prefix}: {paths:?}"))
}

/// The name up to its last dot; a leading dot does not count as one.
fn stem(name: &str) -> &str {
    match name.rfind('.') {
        None | Some(0) => name,
        Some(dot) => &name[..dot],
    }
}

/// The neighbors by their definition, from a list of the regular files.
fn naive(of: &str, names: &[String]) -> Vec<String> {
    let mut others: Vec<&String> = names.iter().filter(|name| *name != of).collect();
    others.sort();
    let three: String = stem(of).chars().take(3).collect();
    let has_three = three.chars().count() == 3;
    let mut found: Vec<String> = Vec::new();
    let groups: [&dyn Fn(&str) -> bool; 3] = [
        &|name| stem(name) == stem(of),
        &|name| SPECIAL.contains(&stem(name).to_ascii_lowercase().as_str()),
        &|name| has_three && name.starts_with(&three),
    ];
    for group in groups {
        for name in &others {
            if group(name) && !found.contains(name) {
                found.push((*name).clone());
            }
        }
    }
    found.truncate(AT_MOST);
    found
}

#[test]
fn the_three_groups_come_in_their_order_each_sorted_by_name() {
    let names = ["album.wav", "album.cue", "tracks.txt", "README", "alb", "alba.flac", "albums.txt", "other"];
    assert_eq!(
        neighbors("album.flac", &names),
        ["album.cue", "album.wav", "README", "tracks.txt", "alb", "alba.flac", "albums.txt"]
    );
}

#[test]
fn a_file_without_a_kin_has_no_neighbors() {
    assert!(neighbors("album.flac", &["other.txt", "al.txt", "xalbum.flac"]).is_empty());
}

#[test]
fn there_are_at_most_ten_and_the_first_groups_go_first() {
    let numbered: Vec<String> = (10..30).map(|number| format!("abc{number}")).collect();
    let mut names: Vec<&str> = numbered.iter().map(String::as_str).collect();
    names.extend(["abcdef.txt", "info.md"]);
    let found = neighbors("abcdef.wav", &names);
    assert_eq!(found.len(), AT_MOST);
    assert_eq!(found[..3], ["abcdef.txt", "info.md", "abc10"]);
    assert_eq!(found[9], "abc17");
}

#[test]
fn more_than_ten_of_one_stem_are_cut_in_byte_order() {
    let numbered: Vec<String> = (0..15).map(|number| format!("one.{number:02}")).collect();
    let mut names: Vec<&str> = numbered.iter().map(String::as_str).collect();
    names.push("readme");
    let found = neighbors("one.zz", &names);
    assert_eq!(found, numbered[..10]);
}

#[test]
fn special_stems_count_in_any_case_and_with_any_extension() {
    let names = ["README", "ReadMe.md", "TRACKS.txt", "Tracklist", "info", "INFO.nfo", "information", "tracks.tar.gz"];
    assert_eq!(neighbors("song", &names), ["INFO.nfo", "README", "ReadMe.md", "TRACKS.txt", "Tracklist", "info"]);
}

#[test]
fn a_special_file_has_the_other_special_files_and_not_itself() {
    assert_eq!(neighbors("readme.md", &["readme.txt", "README.md", "info"]), ["readme.txt", "README.md", "info"]);
}

#[test]
fn the_stem_ends_at_the_last_dot() {
    assert_eq!(neighbors("a.tar.gz", &["a.tar.xz", "a.tar", "a.gz", "a.tax"]), ["a.tar.xz", "a.tar", "a.tax"]);
}

#[test]
fn a_leading_dot_is_part_of_the_stem() {
    assert_eq!(
        neighbors(".bashrc", &[".bashrc.bak", ".bash_history", ".bas", "bashrc"]),
        [".bashrc.bak", ".bas", ".bash_history"]
    );
}

#[test]
fn a_name_without_extension_is_its_own_stem() {
    assert_eq!(neighbors("LICENSE", &["LICENSE.md", "license"]), ["LICENSE.md"]);
}

#[test]
fn the_first_three_characters_are_characters_and_not_bytes() {
    let names = ["日本語訳.txt", "日本語", "日本.txt", "日本誌.txt"];
    assert_eq!(neighbors("日本語版.txt", &names), ["日本語", "日本語訳.txt"]);
    // Two characters of three bytes each are not three characters.
    assert!(neighbors("日本.txt", &["日本語.txt", "日本誌"]).is_empty());
}

#[test]
fn a_stem_shorter_than_three_characters_has_no_third_group() {
    assert!(neighbors("ab.txt", &["abc.txt", "ab-side"]).is_empty());
    assert_eq!(neighbors("abc.txt", &["abcd", "ab.txt"]), ["abcd"]);
}

#[test]
fn directories_fifos_and_sockets_are_not_neighbors() {
    let (_root, data, _) = directories();
    fs::write(data.join("album.flac"), "x").unwrap();
    fs::write(data.join("album.cue"), "x").unwrap();
    fs::create_dir(data.join("album.d")).unwrap();
    fifo(&data.join("album.fifo"));
    let _socket = std::os::unix::net::UnixListener::bind(data.join("album.sock")).unwrap();
    let messages = scan(&data);
    assert_eq!(names_of(&messages["album.flac"], &data), ["album.cue"]);
}

#[test]
fn names_that_are_not_utf8_are_neighbors_and_have_them() {
    let mut world = World::start();
    let latin = OsStr::from_bytes(b"caf\xe9.txt");
    fs::write(world.data.join(latin), "x").unwrap();
    world.wait_for_one("caf\u{fffd}.txt");
    world.write("caf\u{e9}.txt", "x");
    let message = world.wait_for_one("caf\u{e9}.txt");
    assert_eq!(names_of(&message, &world.data), ["caf\u{fffd}.txt"]);
    fs::write(world.data.join(OsStr::from_bytes(b"caf\xe9.md")), "x").unwrap();
    let message = world.wait_for_one("caf\u{fffd}.md");
    // The same stem by bytes first, then the one that only begins alike.
    assert_eq!(names_of(&message, &world.data), ["caf\u{fffd}.txt", "caf\u{e9}.txt"]);
}

#[test]
fn neighbors_follow_creations_removals_and_renames() {
    let mut world = World::without_service();
    world.write("album.old", "from before the start");
    world.launch(|setup| setup);
    let mut count = 0;
    let mut now = |world: &mut World| {
        count += 1;
        world.write("album.flac", format!("version {count}"));
        let message = world.wait_for("album.flac", count).pop().unwrap();
        names_of(&message, &world.data)
    };
    assert_eq!(now(&mut world), ["album.old"]);

    world.write("album.cue", "x");
    world.wait_for_one("album.cue");
    assert_eq!(now(&mut world), ["album.cue", "album.old"]);

    fs::remove_file(world.path("album.old")).unwrap();
    assert_eq!(now(&mut world), ["album.cue"]);

    fs::rename(world.path("album.cue"), world.path("album.txt")).unwrap();
    assert_eq!(now(&mut world), ["album.txt"]);

    fs::rename(world.path("album.txt"), world.outside.join("album.txt")).unwrap();
    assert!(now(&mut world).is_empty());

    fs::rename(world.outside.join("album.txt"), world.path("album.txt")).unwrap();
    fs::create_dir(world.path("album.d")).unwrap();
    fifo(&world.path("album.fifo"));
    assert_eq!(now(&mut world), ["album.txt"]);
}

#[test]
fn random_directories_agree_with_a_naive_listing() {
    const STARTS: [&str; 12] =
        ["a", "ab", "abc", "abcd", "é", "éàü", "éàüx", ".abc", "readme", "Tracks", "INFO", "track"];
    const ENDS: [&str; 12] =
        ["", "", ".txt", ".md", ".tar.gz", ".", "list", ".TXT", " 1", "1.wav", "\u{10ffff}", "..x"];
    let mut random = Random::new(20_261_123);
    for _ in 0..4 {
        let (_root, data, _) = directories();
        let mut names: Vec<String> = Vec::new();
        for _ in 0..150 {
            let mut name = STARTS[random.below(STARTS.len())].to_owned();
            for _ in 0..random.below(3) {
                name.push_str(ENDS[random.below(ENDS.len())]);
            }
            if names.contains(&name) || name == "." || data.join(&name).exists() {
                continue;
            }
            match random.below(10) {
                0 => fs::create_dir(data.join(&name)).unwrap(),
                1 => fifo(&data.join(&name)),
                _ => {
                    fs::write(data.join(&name), &name).unwrap();
                    names.push(name);
                }
            }
        }
        let messages = scan(&data);
        assert_eq!(messages.len(), names.len(), "one message for each regular file");
        for name in &names {
            assert_eq!(names_of(&messages[name], &data), naive(name, &names), "neighbors of {name:?} among {names:?}");
        }
    }
}

#[test]
fn sorting_is_by_bytes_also_where_names_are_not_utf8() {
    let (_root, data, _) = directories();
    for extension in [&b"\xff"[..], b"\xc3\xa9", b"Z", b"a", b"~"] {
        let name = OsString::from_vec([b"same.", extension].concat());
        fs::write(data.join(name), "x").unwrap();
    }
    fs::write(data.join("same"), "x").unwrap();
    let messages = scan(&data);
    assert_eq!(names_of(&messages["same"], &data), ["same.Z", "same.a", "same.~", "same.\u{e9}", "same.\u{fffd}"]);
}
