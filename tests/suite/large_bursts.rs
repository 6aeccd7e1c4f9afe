//! Many files at once: none is lost or repeated, and every hash is right.

use std::collections::HashMap;
use std::time::Duration;

use crate::support::files::{noise, sha256sum, xxh128};
use crate::support::message::Message;
use crate::support::world::World;

const FILES: usize = 20_000;
const SIZE: usize = 1_024;
/// For an unoptimized binary on two busy cores.
const TIMEOUT: Duration = Duration::from_secs(300);

#[test]
fn a_burst_of_20_000_files_gives_as_many_right_messages() {
    let mut world = World::start();
    let names: Vec<String> = (0..FILES).map(|number| format!("bulk-{number:05}")).collect();
    for (number, name) in names.iter().enumerate() {
        world.write(name, noise(SIZE, number as u64));
    }
    world.wait_until_within(TIMEOUT, "20,000 messages", |messages| messages.len() >= FILES);
    let coreutils = sha256sum(&world.data, &names);
    let messages = world.finish();
    assert_eq!(messages.len(), FILES, "a repeat");
    let by_name: HashMap<&str, &Message> = messages.iter().map(|message| (message.name(), message)).collect();
    assert_eq!(by_name.len(), FILES, "a loss");
    for (number, (name, expected)) in names.iter().zip(coreutils).enumerate() {
        let message = by_name[name.as_str()];
        assert_eq!(message.size(), SIZE as u64, "{name}");
        assert_eq!(message.sha256(), expected, "{name}");
        assert_eq!(message.text("xxh128_hash"), xxh128(&noise(SIZE, number as u64)), "{name}");
    }
}
