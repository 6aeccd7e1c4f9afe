//! Every message has the ten fields: path, event, hashes, size, times and neighbors.

use std::ffi::OsStr;
use std::fs::{self, File, FileTimes};
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sha2::{Digest, Sha256};

use crate::support::files::{self, noise, sha256, sha256sum, utc, xxh128};
use crate::support::message::{FIELDS, Message};
use crate::support::world::World;

fn now() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    utc(now.as_secs() as i64, i64::from(now.subsec_nanos()))
}

#[track_caller]
fn assert_digests(message: &Message, content: &[u8]) {
    let name = message.path();
    assert_eq!(message.size(), content.len() as u64, "size of {name:?}");
    assert_eq!(message.sha256(), sha256(content), "SHA-256 of {name:?}");
    assert_eq!(message.text("xxh128_hash"), xxh128(content), "XXH3-128 of {name:?}");
}

/// `2026-11-23T16:05:09.123456+00:00`
fn is_time(text: &str) -> bool {
    let form = "dddd-dd-ddTdd:dd:dd.dddddd+00:00";
    text.len() == form.len()
        && text.bytes().zip(form.bytes()).all(|(byte, expected)| match expected {
            b'd' => byte.is_ascii_digit(),
            other => byte == other,
        })
}

#[test]
fn a_message_has_exactly_the_ten_fields() {
    let mut world = World::start();
    let before = now();
    world.write("track.wav", "hello, archive\n");
    let message = world.wait_for_one("track.wav");
    let after = now();

    let fields: Vec<&str> = message.fields.keys().map(String::as_str).collect();
    assert_eq!(fields, FIELDS);
    assert_eq!(message.path(), world.path("track.wav").to_str().unwrap());
    assert_eq!(message.event(), "IN_CREATE");
    assert_digests(&message, b"hello, archive\n");
    assert!(message.neighbors().is_empty(), "{:?}", message.neighbors());
    for field in ["modified_time", "accessed_time", "changed_time", "timestamp"] {
        assert!(is_time(message.text(field)), "{field}: {}", message.text(field));
    }
    let timestamp = message.text("timestamp");
    assert!(
        before.as_str() <= timestamp && timestamp <= after.as_str(),
        "the event was read between {before} and {after}, not at {timestamp}"
    );
    let compact = serde_json::to_vec(&message.fields).unwrap();
    assert_eq!(
        message.body.len(),
        compact.len(),
        "not compact, or a field twice: {}",
        String::from_utf8_lossy(&message.body)
    );
}

#[test]
fn both_hashes_agree_with_independent_programs_on_published_vectors() {
    let mut world = World::start();
    world.write("abc", "abc");
    world.write("empty", "");
    let abc = world.wait_for_one("abc");
    assert_eq!(abc.sha256(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    assert_eq!(abc.text("xxh128_hash"), "06b05ab6733a618578af5f94892f3950");
    let empty = world.wait_for_one("empty");
    assert_eq!(empty.sha256(), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    assert_eq!(empty.text("xxh128_hash"), "99aa06d3014798d86001c324468d497f");
}

#[test]
fn times_are_those_of_the_file_cut_to_microseconds() {
    let mut world = World::start();
    // An access time ahead of the others is one that reading the file leaves alone (relatime).
    let ahead = SystemTime::now() + Duration::from_secs(7 * 86_400);
    let cases = [
        ("cut", UNIX_EPOCH + Duration::new(1_700_000_000, 123_456_789)),
        ("no-rounding-up", UNIX_EPOCH + Duration::new(1_700_000_000, 999_999_999)),
        ("whole-second", UNIX_EPOCH + Duration::new(1_709_164_800, 0)),
        ("before-1970", UNIX_EPOCH - Duration::new(86_400 * 400, 750_000_000)),
    ];
    for (name, modified) in cases {
        let outside = world.outside.join(name);
        fs::write(&outside, name).unwrap();
        File::options()
            .write(true)
            .open(&outside)
            .and_then(|it| it.set_times(FileTimes::new().set_modified(modified).set_accessed(ahead)))
            .unwrap();
        fs::rename(&outside, world.path(name)).unwrap();
        let message = world.wait_for_one(name);
        let expected = files::times(&world.path(name));
        assert_eq!(message.text("modified_time"), expected.modified, "{name}");
        assert_eq!(message.text("accessed_time"), expected.accessed, "{name}");
        assert_eq!(message.text("changed_time"), expected.changed, "{name}");
    }
    assert_eq!(world.messages_for("no-rounding-up")[0].text("modified_time"), "2023-11-14T22:13:20.999999+00:00");
}

#[test]
fn the_path_is_the_real_one_when_the_data_directory_is_a_link() {
    let mut world = World::without_service();
    let link = world.outside.join("link-to-data");
    std::os::unix::fs::symlink(&world.data, &link).unwrap();
    world.launch(|setup| setup.env("DATA_DIRECTORY", &link));
    world.write("file", "content");
    let message = world.wait_for_one("file");
    assert_eq!(message.path(), world.path("file").to_str().unwrap());
}

#[test]
fn every_size_around_the_buffers_is_hashed_whole() {
    const SIZES: [usize; 14] =
        [0, 1, 55, 63, 64, 65, 1_000, 65_535, 65_536, 65_537, 131_072, 262_145, 1_048_576, 10 * 1_048_576 + 1];
    let mut world = World::start();
    let names: Vec<String> = SIZES.iter().map(|size| format!("{size:08}")).collect();
    for (name, size) in names.iter().zip(SIZES) {
        world.write(name, noise(size, size as u64));
    }
    for (name, size) in names.iter().zip(SIZES) {
        let message = world.wait_for_one(name);
        assert_digests(&message, &noise(size, size as u64));
    }
    let coreutils = sha256sum(&world.data, &names);
    for (name, expected) in names.iter().zip(coreutils) {
        assert_eq!(world.messages_for(name)[0].sha256(), expected, "sha256sum of {name}");
    }
    let messages = world.finish();
    assert_eq!(messages.len(), SIZES.len(), "one message a file");
}

#[test]
fn a_sparse_file_of_four_gibibytes_is_hashed_whole() {
    const SIZE: u64 = 4 << 30;
    let mut world = World::start();
    File::create(world.path("sparse")).unwrap().set_len(SIZE).unwrap();
    let zeros = vec![0; 1 << 20];
    let mut sha256 = Sha256::new();
    let mut xxh128 = xxhash_rust::xxh3::Xxh3::new();
    for _ in 0..SIZE >> 20 {
        sha256.update(&zeros);
        xxh128.update(&zeros);
    }
    let message = world.wait_for_one("sparse");
    assert_eq!(message.size(), SIZE);
    assert_eq!(message.sha256(), files::hex(&sha256.finalize()));
    assert_eq!(message.text("xxh128_hash"), format!("{:032x}", xxh128.digest128()));
}

#[test]
fn any_utf8_name_arrives_as_it_is() {
    let names = [
        "new\nline".to_owned(),
        "quote\"and'quote".to_owned(),
        "back\\slash".to_owned(),
        "tab\tbell\u{7}escape\u{1b}".to_owned(),
        " leading and trailing ".to_owned(),
        "-rf".to_owned(),
        "💿 album – Käse.flac".to_owned(),
        "replacement \u{fffd} itself".to_owned(),
        "line\u{2028}separator".to_owned(),
        "n".repeat(255),
        format!("{}x", "é".repeat(127)),
    ];
    let mut world = World::start();
    for name in &names {
        world.write(name, name);
    }
    for name in &names {
        let message = world.wait_for_one(name);
        assert_eq!(message.path(), world.path(name).to_str().unwrap());
        assert_digests(&message, name.as_bytes());
        assert_eq!(message.path_bytes_header(), None, "{name:?} is UTF-8");
    }
    assert_eq!(world.finish().len(), names.len(), "one message a file");
}

#[test]
fn a_name_that_is_not_utf8_is_replaced_in_json_and_exact_in_the_header() {
    let mut world = World::start();
    let name = OsStr::from_bytes(b"caf\xe9.txt");
    fs::write(world.data.join(name), "latin").unwrap();
    let message = world.wait_for_one("caf\u{fffd}.txt");
    assert_eq!(message.path(), world.path("caf\u{fffd}.txt").to_str().unwrap());
    assert_digests(&message, b"latin");
    assert_eq!(
        message.path_bytes_header().expect("header x-file-path-bytes"),
        world.data.join(name).as_os_str().as_bytes()
    );
}
