//! The JSON Schemas in `deploy/`: every message fits its own, and nothing else does.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;

use jsonschema::Validator;
use serde_json::{Value, json};

use crate::support::world::World;

const MESSAGE: &str = "message.schema.json";

pub fn schema(file: &str) -> Validator {
    let path = format!("{}/deploy/{file}", env!("CARGO_MANIFEST_DIR"));
    let schema: Value = serde_json::from_str(&fs::read_to_string(path).expect("the schema")).expect("JSON");
    assert!(schema["$id"].as_str().is_some_and(|id| id.starts_with("urn:")), "a name of its own");
    jsonschema::draft202012::meta::validate(&schema).expect("it is a schema of its draft");
    jsonschema::draft202012::new(&schema).expect("it can be used")
}

#[track_caller]
pub fn assert_fits(schema: &Validator, message: &Value) {
    let flaws: Vec<String> =
        schema.iter_errors(message).map(|flaw| format!("{flaw} at {}", flaw.instance_path())).collect();
    assert!(flaws.is_empty(), "{flaws:?}: {message:#}");
}

#[test]
fn every_message_fits_the_schema() {
    let mut world = World::start();
    for name in ["album.flac", "album.cue", "album.log", "tracks.txt", "two\nlines"] {
        world.write(name, "content");
        world.wait_for(name, 1);
    }
    world.write("album.flac", "rewritten");
    world.wait_for("album.flac", 2);
    fs::rename(world.path("album.log"), world.path("album.txt")).unwrap();
    world.wait_for("album.txt", 1);
    fs::write(world.data.join(OsStr::from_bytes(b"album.\xff")), "not UTF-8").unwrap();
    let messages = world.finish();
    let schema = schema(MESSAGE);
    for message in &messages {
        assert_fits(&schema, &Value::Object(message.fields.clone()));
    }
    for event in ["IN_CREATE", "IN_CLOSE_WRITE", "IN_MOVED_TO"] {
        assert!(messages.iter().any(|message| message.event() == event), "no {event}");
    }
    assert!(messages.iter().any(|message| !message.neighbors().is_empty()));
    assert!(messages.iter().any(|message| message.path().contains('\u{fffd}')));
}

#[test]
fn what_is_no_message_does_not_fit_the_schema() {
    let schema = schema(MESSAGE);
    let time = "2026-11-23T16:05:09.123456+00:00";
    let message = json!({
        "file_path": "/data/album.flac",
        "event_type": "IN_CREATE",
        "sha256_hash": "0".repeat(64),
        "xxh128_hash": "0".repeat(32),
        "size": 0,
        "modified_time": time,
        "accessed_time": time,
        "changed_time": time,
        "timestamp": time,
        "neighbors": ["/data/album.cue"],
    });
    assert_fits(&schema, &message);
    let fields: Vec<&String> = message.as_object().unwrap().keys().collect();
    for field in fields {
        let mut without = message.clone();
        without.as_object_mut().unwrap().remove(field);
        assert!(!schema.is_valid(&without), "without {field}");
    }
    let wrong = [
        ("file_path", json!("album.flac")),
        ("file_path", json!("/data/")),
        ("event_type", json!("IN_DELETE")),
        ("sha256_hash", json!("A".repeat(64))),
        ("xxh128_hash", json!("0".repeat(31))),
        ("size", json!(-1)),
        ("size", json!(1.5)),
        ("size", json!("1")),
        ("modified_time", json!("2026-11-23T16:05:09+00:00")),
        ("accessed_time", json!("2026-11-23T16:05:09.123456Z")),
        ("changed_time", json!(0)),
        ("timestamp", json!("2026-11-23 16:05:09.123456+00:00")),
        ("modified_time", json!("+12000-01-01T00:00:00.000000+00:00")),
        ("neighbors", json!(null)),
        ("neighbors", json!(["album.cue"])),
        ("neighbors", json!(vec!["/data/album.cue"; 11])),
        ("eleventh", json!("field")),
    ];
    for (field, value) in wrong {
        let mut changed = message.clone();
        changed[field] = value.clone();
        assert!(!schema.is_valid(&changed), "{field}: {value}");
    }
}

#[test]
fn what_is_no_removal_does_not_fit_its_schema() {
    let schema = schema("message-removed.schema.json");
    let removal = json!({
        "file_path": "/data/album.flac",
        "event_type": "IN_DELETE",
        "sha256_hash": "0".repeat(64),
        "xxh128_hash": "0".repeat(32),
        "size": 0,
        "message_id": "0".repeat(32),
        "timestamp": "2026-11-23T16:05:09.123456+00:00",
    });
    assert_fits(&schema, &removal);
    let fields: Vec<&String> = removal.as_object().unwrap().keys().collect();
    for field in fields {
        let mut without = removal.clone();
        without.as_object_mut().unwrap().remove(field);
        assert!(!schema.is_valid(&without), "without {field}");
    }
    for (field, value, fits) in [
        ("event_type", json!("IN_MOVED_FROM"), true),
        ("sha256_hash", json!(null), true),
        ("message_id", json!(null), true),
        ("size", json!(null), true),
        ("file_path", json!("album.flac"), false),
        ("event_type", json!("IN_CREATE"), false),
        ("size", json!(-1), false),
        ("timestamp", json!(null), false),
        ("neighbors", json!([]), false),
    ] {
        let mut changed = removal.clone();
        changed[field] = value.clone();
        assert_eq!(schema.is_valid(&changed), fits, "{field}: {value}");
    }
}
