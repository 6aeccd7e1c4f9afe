//! File names of any bytes reach the consumer exactly.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;

use crate::support::files::{Random, sha256};
use crate::support::world::World;

const FILES: usize = 500;
const NAME_MAX: usize = 255;

/// Any bytes that a name may have, or letters, lead bytes and continuation bytes: nearly UTF-8.
fn any_name(random: &mut Random) -> Vec<u8> {
    let length = match random.below(4) {
        0 => NAME_MAX,
        _ => 1 + random.below(12),
    };
    let nearly_text = random.below(2) == 0;
    let byte = |random: &mut Random| match nearly_text {
        true => b"ab.\n\"\\\x1b\xc3\xa9\xe2\x82\xac\xf0\x9f\x92\xbf\xff"[random.below(17)],
        false => 1 + random.below(255) as u8,
    };
    (0..length).map(|_| byte(random)).map(|byte| if byte == b'/' { b'|' } else { byte }).collect()
}

#[test]
fn files_of_any_names_are_published_exactly() {
    let mut random = Random::new(11);
    // Some of them end like partial names.
    let mut world = World::start_with(|it| it.arg("--ignore-partial=false"));
    // By the hash of the content, which is the name itself, because two names may have the same text.
    let mut names: HashMap<String, Vec<u8>> = HashMap::new();
    while names.len() < FILES {
        let name = any_name(&mut random);
        let hash = sha256(&name);
        if matches!(&name[..], b"." | b"..") || names.contains_key(&hash) {
            continue;
        }
        fs::write(world.data.join(OsStr::from_bytes(&name)), &name).unwrap();
        names.insert(hash, name);
    }
    world.wait_until("a message for each name", |messages| messages.len() >= FILES);
    let directory = [world.data.as_os_str().as_bytes(), b"/"].concat();
    let messages = world.finish();
    assert_eq!(messages.len(), FILES, "a repeat");
    for message in messages {
        let name = names.remove(message.sha256()).expect("a message for each content");
        let path = [&directory[..], &name].concat();
        assert_eq!(message.path(), String::from_utf8_lossy(&path), "{name:?}");
        let expected = str::from_utf8(&name).is_err().then_some(path);
        assert_eq!(message.path_bytes_header(), expected, "{name:?}");
    }
}
