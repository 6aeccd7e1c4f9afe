//! The message: ten fields in compact JSON, and an id that is the same each time a version of a path is published.

use chrono::{DateTime, Datelike, Timelike, Utc};
use serde::ser::Error as _;
use serde::{Serialize, Serializer};
use xxhash_rust::xxh3::Xxh3;

use crate::files::version::{Timestamp, Version};
use crate::hash::Digests;

/// The routing key of a removal.
pub const REMOVED_ROUTING_KEY: &str = "file.removed";

/// The AMQP type of every message about a file: the kind of the body, and the number of its schema.
pub const TYPE: &str = "apollonia.file.v1";

/// The AMQP type of every removal.
pub const REMOVED_TYPE: &str = "apollonia.file-removed.v1";

/// The service's name in every message and in the broker's list of connections.
pub const APP_ID: &str = "apollonia-ingestor";

/// How a version came to its path: the contract's three values, which are names of inotify events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventType {
    /// The path has appeared since the last message for it.
    Create,
    /// The file was renamed to the path.
    MovedTo,
    /// An existing file was rewritten.
    CloseWrite,
}

impl EventType {
    /// The value as messages hold it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Create => "IN_CREATE",
            Self::MovedTo => "IN_MOVED_TO",
            Self::CloseWrite => "IN_CLOSE_WRITE",
        }
    }
}

impl Serialize for EventType {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// How a path lost its file: the contract's two values, which are names of inotify events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum RemovalType {
    /// The file was deleted, or nobody saw how it went.
    #[serde(rename = "IN_DELETE")]
    Delete,
    /// The file was renamed, or a directory above it.
    #[serde(rename = "IN_MOVED_FROM")]
    MovedFrom,
}

/// What the last message of a path said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Content {
    /// The digests of its content.
    pub digests: Digests,
    /// The number of its bytes.
    pub size: u64,
}

/// The absolute paths of a message, all in one directory: the file's own, then those of its neighbors. U+FFFD replaces
/// what is not UTF-8. The buffers are used again for the next message.
#[derive(Debug, Default)]
pub struct Paths {
    /// The directory, then each path as a whole.
    text: String,
    directory: usize,
    utf8: bool,
    /// Where each of these ends in `text`.
    ends: Vec<usize>,
}

impl Paths {
    /// Drops what is held and begins with the path of the directory, which ends in `/`.
    pub fn begin(&mut self, directory: &[u8]) {
        debug_assert!(directory.ends_with(b"/"), "a directory's path ends in a slash");
        self.text.clear();
        self.ends.clear();
        self.utf8 = true;
        self.append(directory);
        self.directory = self.text.len();
        self.ends.push(self.directory);
    }

    /// Adds the path of a file in the directory.
    pub fn push(&mut self, name: &[u8]) {
        debug_assert!(!self.ends.is_empty(), "the directory comes first");
        self.text.extend_from_within(..self.directory);
        self.append(name);
        self.ends.push(self.text.len());
    }

    /// Whether all paths are UTF-8.
    #[must_use]
    pub fn is_utf8(&self) -> bool {
        self.utf8
    }

    /// The first path: the file's own. Empty where there is none yet.
    #[must_use]
    pub fn first(&self) -> &str {
        self.iter().next().unwrap_or_default()
    }

    fn append(&mut self, part: &[u8]) {
        match str::from_utf8(part) {
            Ok(text) => self.text.push_str(text),
            Err(_) => {
                self.utf8 = false;
                self.text.push_str(&String::from_utf8_lossy(part));
            }
        }
    }

    fn iter(&self) -> impl Iterator<Item = &str> {
        self.ends.windows(2).map(|pair| &self.text[pair[0]..pair[1]])
    }
}

/// The fields of a message, in the order in which they are encoded.
#[derive(Debug, Serialize)]
pub struct Message<'a> {
    /// The absolute path.
    pub file_path: &'a str,
    /// How this version came to the path.
    pub event_type: EventType,
    /// The SHA-256 of the whole content.
    #[serde(serialize_with = "hex")]
    pub sha256_hash: [u8; 32],
    /// The XXH3-128 of the whole content in its canonical form, which is big-endian.
    #[serde(serialize_with = "hex")]
    pub xxh128_hash: [u8; 16],
    /// The number of bytes, all of which were hashed.
    pub size: u64,
    /// The mtime of the hashed version.
    #[serde(serialize_with = "time")]
    pub modified_time: Timestamp,
    /// The atime before the file was read.
    #[serde(serialize_with = "time")]
    pub accessed_time: Timestamp,
    /// The ctime of the hashed version.
    #[serde(serialize_with = "time")]
    pub changed_time: Timestamp,
    /// When the event was read from the kernel.
    #[serde(serialize_with = "time")]
    pub timestamp: Timestamp,
    /// The absolute paths of the neighbors, which follow the file's own.
    #[serde(serialize_with = "all_but_first")]
    pub neighbors: &'a Paths,
}

impl<'a> Message<'a> {
    /// Composes a message of its parts. `paths` holds the file's own path at least.
    #[must_use]
    pub fn new(
        paths: &'a Paths,
        event_type: EventType,
        digests: &Digests,
        version: &Version,
        accessed: Timestamp,
        seen_at: Timestamp,
    ) -> Self {
        debug_assert!(paths.ends.len() >= 2, "the file's own path is there");
        Self {
            file_path: paths.first(),
            event_type,
            sha256_hash: digests.sha256,
            xxh128_hash: digests.xxh128.to_be_bytes(),
            size: version.size,
            modified_time: version.modified,
            accessed_time: accessed,
            changed_time: version.changed,
            timestamp: seen_at,
            neighbors: paths,
        }
    }

    /// Encodes the message's body. `scratch` is a buffer that is used again for the next message.
    ///
    /// # Errors
    /// None that input can cause: strings, integers and arrays of strings always have a JSON form.
    pub fn encode(&self, scratch: &mut Vec<u8>) -> Result<Box<[u8]>, simd_json::Error> {
        scratch.clear();
        simd_json::serde::to_writer(&mut *scratch, self)?;
        Ok(scratch.as_slice().into())
    }
}

/// The fields of a removal, in the order in which they are encoded.
#[derive(Debug, Serialize)]
pub struct Removal<'a> {
    /// The absolute path.
    pub file_path: &'a str,
    /// How the file went.
    pub event_type: RemovalType,
    /// The SHA-256 that the path's last message had; `None` where only a process that crashed can have known it.
    #[serde(serialize_with = "hex_or_null")]
    pub sha256_hash: Option<[u8; 32]>,
    /// The XXH3-128 that the path's last message had, as `sha256_hash`.
    #[serde(serialize_with = "hex_or_null")]
    pub xxh128_hash: Option<[u8; 16]>,
    /// The bytes that the path's last message had, as `sha256_hash`.
    pub size: Option<u64>,
    /// The id of the path's last message, as `sha256_hash`.
    #[serde(serialize_with = "hex_or_null")]
    pub message_id: Option<[u8; 16]>,
    /// When it was seen that the path has no file.
    #[serde(serialize_with = "time")]
    pub timestamp: Timestamp,
}

impl<'a> Removal<'a> {
    /// Composes a removal of its parts. `last` and `id` are those of the path's last message.
    #[must_use]
    pub fn new(
        file_path: &'a str,
        event_type: RemovalType,
        last: Option<Content>,
        id: Option<u128>,
        timestamp: Timestamp,
    ) -> Self {
        Self {
            file_path,
            event_type,
            sha256_hash: last.map(|last| last.digests.sha256),
            xxh128_hash: last.map(|last| last.digests.xxh128.to_be_bytes()),
            size: last.map(|last| last.size),
            message_id: id.map(u128::to_be_bytes),
            timestamp,
        }
    }

    /// Encodes the removal's body. `scratch` is a buffer that is used again for the next message.
    ///
    /// # Errors
    /// As [`Message::encode`].
    pub fn encode(&self, scratch: &mut Vec<u8>) -> Result<Box<[u8]>, simd_json::Error> {
        scratch.clear();
        simd_json::serde::to_writer(&mut *scratch, self)?;
        Ok(scratch.as_slice().into())
    }
}

/// The message id of a removal: XXH3-128 over the path, the id of the path's last message and its SHA-256, so that it is
/// the same each time the same message is taken back. The path may come in pieces.
#[must_use]
pub fn removal_id(path: &[&[u8]], last: Option<&Content>, id: Option<u128>) -> u128 {
    let mut hasher = Xxh3::new();
    path.iter().for_each(|piece| hasher.update(piece));
    hasher.update(&[0]); // as in `message_id`
    hasher.update(REMOVED_TYPE.as_bytes());
    hasher.update(&id.unwrap_or(0).to_be_bytes());
    if let Some(Content { digests, .. }) = last {
        hasher.update(&digests.sha256);
    }
    hasher.digest128()
}

/// The message id: XXH3-128 over path, version and SHA-256, as a number of 32 hex digits. The path may come in pieces.
///
/// The content's hash is part of it because two contents can share a version (time stamps are coarse if nobody examined
/// the file in between): a consumer that drops repeats by id must not drop the second content.
#[must_use]
pub fn message_id(path: &[&[u8]], version: &Version, sha256: &[u8; 32]) -> u128 {
    let mut hasher = Xxh3::new();
    path.iter().for_each(|piece| hasher.update(piece));
    hasher.update(&[0]); // no path holds a NUL, so this hashes where the path ends, too
    hasher.update(&version.to_bytes());
    hasher.update(sha256);
    hasher.digest128()
}

fn hex<S: Serializer, const N: usize>(bytes: &[u8; N], serializer: S) -> Result<S::Ok, S::Error> {
    const { assert!(N <= 32, "the buffer holds 64 digits") };
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = [0u8; 64];
    for (pair, byte) in text.chunks_exact_mut(2).zip(bytes) {
        pair[0] = DIGITS[usize::from(byte >> 4)];
        pair[1] = DIGITS[usize::from(byte & 15)];
    }
    ascii(&text[..2 * N], serializer)
}

#[expect(clippy::ref_option, reason = "serde hands over a reference to the field")]
fn hex_or_null<S: Serializer, const N: usize>(bytes: &Option<[u8; N]>, serializer: S) -> Result<S::Ok, S::Error> {
    match bytes {
        Some(bytes) => hex(bytes, serializer),
        None => serializer.serialize_none(),
    }
}

fn all_but_first<S: Serializer>(paths: &Paths, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(paths.iter().skip(1))
}

/// The first and the last second that a message can express: the years 1 to 9999, which are those that RFC 3339 and Python's
/// `datetime` have in common.
const EARLIEST: i64 = -62_135_596_800;
const LATEST: i64 = 253_402_300_799;

/// UTC, always with six decimals. A file system can hold times beyond those years, which become the first or the last of them.
fn time<S: Serializer>(stamp: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    let seconds = stamp.seconds.clamp(EARLIEST, LATEST);
    let utc = DateTime::<Utc>::from_timestamp(seconds, stamp.nanoseconds)
        .ok_or_else(|| S::Error::custom(format_args!("{} ns are more than a second", stamp.nanoseconds)))?;
    // Each message holds four times, so the digits are set without the string that the general formatter would allocate.
    let mut text = *b"0000-00-00T00:00:00.000000+00:00";
    for (digits, mut number) in [
        (0..4, utc.year().unsigned_abs()),
        (5..7, utc.month()),
        (8..10, utc.day()),
        (11..13, utc.hour()),
        (14..16, utc.minute()),
        (17..19, utc.second()),
        (20..26, utc.nanosecond() / 1000),
    ] {
        for digit in text[digits].iter_mut().rev() {
            *digit += (number % 10) as u8;
            number /= 10;
        }
    }
    ascii(&text, serializer)
}

/// Serializes bytes that are ASCII.
fn ascii<S: Serializer>(text: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(str::from_utf8(text).map_err(S::Error::custom)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn version() -> Version {
        Version {
            inode: 2,
            size: 3,
            modified: Timestamp { seconds: 1_795_449_909, nanoseconds: 123_456_789 },
            changed: Timestamp { seconds: -1, nanoseconds: 0 },
        }
    }

    fn encode(path: &[u8], seen_at: Timestamp) -> String {
        let digests = Digests::of(b"abc");
        let paths = paths(b"/d/", [path, b"\"\n\xff\x01"]);
        let version = version();
        let message = Message::new(&paths, EventType::MovedTo, &digests, &version, seen_at, seen_at);
        String::from_utf8(message.encode(&mut vec![b'x']).unwrap().into()).unwrap()
    }

    fn paths<'a>(directory: &[u8], names: impl IntoIterator<Item = &'a [u8]>) -> Paths {
        let mut paths = Paths::default();
        paths.begin(b"/of/the/last/");
        paths.push(b"message \xff");
        paths.begin(directory);
        names.into_iter().for_each(|name| paths.push(name));
        paths
    }

    #[test]
    fn a_message_is_ten_fields_in_order_and_compact() {
        let body = encode(b"a\xff", Timestamp { seconds: 0, nanoseconds: 0 });
        assert_eq!(
            body,
            concat!(
                "{\"file_path\":\"/d/a\u{fffd}\",\"event_type\":\"IN_MOVED_TO\",",
                "\"sha256_hash\":\"ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad\",",
                "\"xxh128_hash\":\"06b05ab6733a618578af5f94892f3950\",\"size\":3,",
                "\"modified_time\":\"2026-11-23T16:05:09.123456+00:00\",",
                "\"accessed_time\":\"1970-01-01T00:00:00.000000+00:00\",",
                "\"changed_time\":\"1969-12-31T23:59:59.000000+00:00\",",
                "\"timestamp\":\"1970-01-01T00:00:00.000000+00:00\",",
                "\"neighbors\":[\"/d/\\\"\\n\u{fffd}\\u0001\"]}"
            )
        );
    }

    #[test]
    fn every_control_character_survives_a_parser() {
        let name: Vec<u8> = (1..=0x7f).chain("/é\u{2028}🎵".bytes()).collect();
        let body = encode(&name, Timestamp { seconds: 0, nanoseconds: 0 });
        let parsed: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!(parsed["file_path"].as_str().unwrap().as_bytes(), [b"/d/", &name[..]].concat());
    }

    /// The rule for bytes that are not UTF-8: one U+FFFD for each piece that a decoder refuses.
    fn replaced(mut bytes: &[u8]) -> String {
        let mut text = String::new();
        loop {
            match str::from_utf8(bytes) {
                Ok(rest) => return text + rest,
                Err(error) => {
                    let (valid, rest) = bytes.split_at(error.valid_up_to());
                    text += str::from_utf8(valid).unwrap();
                    text.push('\u{fffd}');
                    bytes = &rest[error.error_len().unwrap_or(rest.len())..];
                }
            }
        }
    }

    fn path() -> impl Strategy<Value = Vec<u8>> {
        let bytes = prop::collection::vec(1..=255u8, 0..80);
        let nearly_text = (".{0,30}", any::<prop::sample::Index>(), 0x80..=0xffu8).prop_map(|(text, at, byte)| {
            let mut bytes = text.replace('\0', "").into_bytes();
            bytes.insert(at.index(bytes.len() + 1), byte);
            bytes
        });
        prop_oneof![bytes, nearly_text, ".{0,40}".prop_map(|text| text.replace('\0', "").into_bytes())]
    }

    fn stamp() -> impl Strategy<Value = Timestamp> {
        (EARLIEST..=LATEST, 0..1_000_000_000u32).prop_map(|(seconds, nanoseconds)| Timestamp { seconds, nanoseconds })
    }

    proptest! {
        /// Any names, sizes and times become strict JSON on one line that a parser reads back.
        #[test]
        fn any_message_parses_back(
            directory in path(),
            name in path(),
            neighbors in prop::collection::vec(path(), 0..10),
            content: Vec<u8>,
            size: u64,
            times in prop::array::uniform4(stamp()),
        ) {
            let digests = Digests::of(&content);
            let version = Version { size, modified: times[0], changed: times[1], ..version() };
            let directory = [&directory, &b"/"[..]].concat();
            let paths = paths(&directory, [&name].into_iter().chain(&neighbors).map(|name| &name[..]));
            let whole = |name: &[u8]| [&directory, name].concat();
            let exact = |name: &Vec<u8>| str::from_utf8(&whole(name)).is_ok();
            prop_assert_eq!(paths.is_utf8(), exact(&name) && neighbors.iter().all(exact));
            let message = Message::new(&paths, EventType::Create, &digests, &version, times[2], times[3]);
            let body = message.encode(&mut Vec::new()).unwrap();
            prop_assert!(body.iter().all(|byte| *byte >= b' '), "a control character is not escaped");
            let parsed: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(&body).unwrap();
            prop_assert_eq!(parsed.len(), 10);
            prop_assert_eq!(parsed["file_path"].as_str().unwrap(), &replaced(&whole(&name)));
            let expected: Vec<String> = neighbors.iter().map(|name| replaced(&whole(name))).collect();
            prop_assert_eq!(&parsed["neighbors"], &serde_json::json!(expected));
            prop_assert_eq!(parsed["size"].as_u64(), Some(size));
            let number = |field: &str| u128::from_str_radix(parsed[field].as_str().unwrap(), 16).unwrap();
            prop_assert_eq!(number("xxh128_hash"), digests.xxh128);
            for (field, digits) in [("sha256_hash", 64), ("xxh128_hash", 32)] {
                let text = parsed[field].as_str().unwrap();
                prop_assert!(text.len() == digits && !text.contains(|digit: char| digit.is_ascii_uppercase()));
            }
            for (field, stamp) in ["modified_time", "changed_time", "accessed_time", "timestamp"].iter().zip(times) {
                let text = parsed[*field].as_str().unwrap();
                let (_, decimals) = text.strip_suffix("+00:00").and_then(|text| text.rsplit_once('.')).unwrap();
                prop_assert_eq!(decimals.len(), 6);
                let read = DateTime::parse_from_rfc3339(text).unwrap();
                prop_assert_eq!((read.timestamp(), read.timestamp_subsec_nanos()), (stamp.seconds, stamp.nanoseconds / 1000 * 1000));
            }
        }
    }

    #[test]
    fn times_that_four_digits_of_a_year_cannot_express_become_the_nearest_that_can() {
        for (seconds, shown) in [
            (i64::MIN, "0001-01-01T00:00:00.999999+00:00"),
            (EARLIEST - 1, "0001-01-01T00:00:00.999999+00:00"),
            (EARLIEST, "0001-01-01T00:00:00.999999+00:00"),
            (LATEST, "9999-12-31T23:59:59.999999+00:00"),
            (LATEST + 1, "9999-12-31T23:59:59.999999+00:00"),
            (i64::MAX, "9999-12-31T23:59:59.999999+00:00"),
        ] {
            let body = encode(b"/a", Timestamp { seconds, nanoseconds: 999_999_999 });
            assert!(body.contains(&format!(r#""timestamp":"{shown}""#)), "{seconds}: {body}");
        }
    }

    #[test]
    fn the_id_of_a_removal_differs_with_path_and_what_is_taken_back() {
        let content = |bytes: &[u8]| Content { digests: Digests::of(bytes), size: bytes.len() as u64 };
        let base = removal_id(&[b"/a"], Some(&content(b"x")), Some(1));
        assert_eq!(base, removal_id(&[b"/", b"a"], Some(&content(b"x")), Some(1)));
        for other in [
            removal_id(&[b"/b"], Some(&content(b"x")), Some(1)),
            removal_id(&[b"/a"], Some(&content(b"y")), Some(1)),
            removal_id(&[b"/a"], None, Some(1)),
            removal_id(&[b"/a"], Some(&content(b"x")), Some(2)),
            removal_id(&[b"/a"], Some(&content(b"x")), None),
        ] {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn the_id_differs_with_path_version_and_content() {
        let base = message_id(&[b"/a"], &version(), &[0; 32]);
        assert_eq!(base, message_id(&[b"/", b"a"], &version(), &[0; 32]));
        assert_ne!(base, message_id(&[b"/b"], &version(), &[0; 32]));
        assert_ne!(base, message_id(&[b"/a"], &Version { inode: 9, ..version() }, &[0; 32]));
        assert_ne!(base, message_id(&[b"/a"], &version(), &[1; 32]));
    }
}
