//! The message: ten fields in compact JSON, and the id that is the same for the same version of the same path.

use std::borrow::Cow;
use std::fmt;

use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Serialize, Serializer};
use xxhash_rust::xxh3::Xxh3;

use crate::hash::Digests;
use crate::read::stable::{Stamp, Version};

/// How a version came to its path: the contract's three values, by the names of their inotify events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum EventType {
    /// The path is new since the last message for it.
    #[serde(rename = "IN_CREATE")]
    Create,
    /// By a rename.
    #[serde(rename = "IN_MOVED_TO")]
    MovedTo,
    /// An existing file was rewritten.
    #[serde(rename = "IN_CLOSE_WRITE")]
    CloseWrite,
}

/// All that a message says, in the order in which it says it.
#[derive(Debug, Serialize)]
pub struct Message<'a> {
    /// Absolute; U+FFFD in place of what is not UTF-8.
    pub file_path: Cow<'a, str>,
    /// How this version came to the path.
    pub event_type: EventType,
    /// Of the whole content.
    #[serde(serialize_with = "hex")]
    pub sha256_hash: [u8; 32],
    /// Of the whole content; canonical, which is big-endian.
    #[serde(serialize_with = "hex")]
    pub xxh128_hash: [u8; 16],
    /// Bytes, all of them hashed.
    pub size: u64,
    /// mtime of the version hashed.
    #[serde(serialize_with = "time")]
    pub modified_time: Stamp,
    /// atime before we read it.
    #[serde(serialize_with = "time")]
    pub accessed_time: Stamp,
    /// ctime of the version hashed.
    #[serde(serialize_with = "time")]
    pub changed_time: Stamp,
    /// When the event was read.
    #[serde(serialize_with = "time")]
    pub timestamp: Stamp,
    /// Absolute paths.
    pub neighbors: Vec<Cow<'a, str>>,
}

impl<'a> Message<'a> {
    /// Puts the parts together.
    #[must_use]
    pub fn new(
        path: &'a [u8],
        event_type: EventType,
        digests: &Digests,
        version: &Version,
        accessed: Stamp,
        seen_at: Stamp,
        neighbors: Vec<Cow<'a, str>>,
    ) -> Self {
        Self {
            file_path: String::from_utf8_lossy(path),
            event_type,
            sha256_hash: digests.sha256,
            xxh128_hash: digests.xxh128.to_be_bytes(),
            size: version.size,
            modified_time: version.modified,
            accessed_time: accessed,
            changed_time: version.changed,
            timestamp: seen_at,
            neighbors,
        }
    }

    /// The message's body.
    ///
    /// # Errors
    /// None that input decides: strings, integers and arrays of strings always have a JSON form.
    pub fn encode(&self) -> Result<Vec<u8>, simd_json::Error> {
        simd_json::serde::to_vec(self)
    }
}

/// The message id: XXH3-128 over path, version and SHA-256, as a number of 32 hex digits.
///
/// The content's hash is in it because two contents can share a version (time stamps are coarse where nobody
/// looked in between): a consumer that drops repeats by id must not drop the second of them.
#[must_use]
pub fn message_id(path: &[u8], version: &Version, sha256: &[u8; 32]) -> u128 {
    let mut hasher = Xxh3::new();
    hasher.update(path);
    hasher.update(&[0]); // no path holds a NUL: where the path ends is part of what is hashed
    hasher.update(&version.to_bytes());
    hasher.update(sha256);
    hasher.digest128()
}

fn hex<S: Serializer, const N: usize>(bytes: &[u8; N], serializer: S) -> Result<S::Ok, S::Error> {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = [0u8; 64];
    for (pair, byte) in text.chunks_exact_mut(2).zip(bytes) {
        pair[0] = DIGITS[usize::from(byte >> 4)];
        pair[1] = DIGITS[usize::from(byte & 15)];
    }
    serializer.collect_str(&Ascii(&text[..2 * N]))
}

/// Bytes known to be ASCII.
struct Ascii<'a>(&'a [u8]);

impl fmt::Display for Ascii<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(str::from_utf8(self.0).map_err(|_| fmt::Error)?)
    }
}

/// UTC with six decimals, always. A file system can hold times beyond any calendar; those become its ends.
fn time<S: Serializer>(stamp: &Stamp, serializer: S) -> Result<S::Ok, S::Error> {
    let utc = DateTime::<Utc>::from_timestamp(stamp.seconds, stamp.nanoseconds).unwrap_or(if stamp.seconds < 0 {
        DateTime::<Utc>::MIN_UTC
    } else {
        DateTime::<Utc>::MAX_UTC
    });
    serializer.serialize_str(&utc.to_rfc3339_opts(SecondsFormat::Micros, false))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn version() -> Version {
        Version {
            device: 1,
            inode: 2,
            size: 3,
            modified: Stamp { seconds: 1_795_449_909, nanoseconds: 123_456_789 },
            changed: Stamp { seconds: -1, nanoseconds: 0 },
        }
    }

    fn encode(path: &[u8], seen_at: Stamp) -> String {
        let digests = Digests::of(b"abc");
        let neighbors = vec![String::from_utf8_lossy(b"/d/\"\n\xff\x01")];
        let version = version();
        let message = Message::new(path, EventType::MovedTo, &digests, &version, seen_at, seen_at, neighbors);
        String::from_utf8(message.encode().unwrap()).unwrap()
    }

    #[test]
    fn ten_fields_in_order_and_compact() {
        let body = encode(b"/d/a\xff", Stamp { seconds: 0, nanoseconds: 0 });
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
        let path: Vec<u8> = (1..=0x7f).chain("/é\u{2028}🎵".bytes()).collect();
        let body = encode(&path, Stamp { seconds: 0, nanoseconds: 0 });
        let parsed: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!(parsed["file_path"].as_str().unwrap().as_bytes(), path);
    }

    /// The rule for what is not UTF-8: one U+FFFD for each piece that a decoder gives up on.
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

    fn stamp() -> impl Strategy<Value = Stamp> {
        // The years 0 to 9999, which RFC 3339 can say.
        (-62_167_219_200..=253_402_300_799i64, 0..1_000_000_000u32)
            .prop_map(|(seconds, nanoseconds)| Stamp { seconds, nanoseconds })
    }

    proptest! {
        /// Whatever the names, sizes and times: strict JSON on one line that a parser reads back.
        #[test]
        fn any_message_parses_back(
            path in path(),
            neighbors in prop::collection::vec(path(), 0..10),
            content: Vec<u8>,
            size: u64,
            times in prop::array::uniform4(stamp()),
        ) {
            let digests = Digests::of(&content);
            let version = Version { size, modified: times[0], changed: times[1], ..version() };
            let shown = neighbors.iter().map(|path| String::from_utf8_lossy(path)).collect();
            let message = Message::new(&path, EventType::Create, &digests, &version, times[2], times[3], shown);
            let body = message.encode().unwrap();
            prop_assert!(body.iter().all(|byte| *byte >= b' '), "a control character stands raw");
            let parsed: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(&body).unwrap();
            prop_assert_eq!(parsed.len(), 10);
            prop_assert_eq!(parsed["file_path"].as_str().unwrap(), &replaced(&path));
            let expected: Vec<String> = neighbors.iter().map(|path| replaced(path)).collect();
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
    fn times_beyond_the_calendar_do_not_panic() {
        for seconds in [i64::MIN, i64::MAX] {
            assert!(encode(b"/a", Stamp { seconds, nanoseconds: 999_999_999 }).contains("+00:00"));
        }
    }

    #[test]
    fn the_id_differs_with_path_version_and_content() {
        let base = message_id(b"/a", &version(), &[0; 32]);
        assert_eq!(base, message_id(b"/a", &version(), &[0; 32]));
        assert_ne!(base, message_id(b"/b", &version(), &[0; 32]));
        assert_ne!(base, message_id(b"/a", &Version { inode: 9, ..version() }, &[0; 32]));
        assert_ne!(base, message_id(b"/a", &version(), &[1; 32]));
    }
}
