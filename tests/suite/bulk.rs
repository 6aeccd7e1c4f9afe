//! Many files at once: no loss, no repeat, every hash right.

use std::collections::HashMap;
use std::time::Duration;

use crate::consumer::Message;
use crate::files::{noise, sha256sum, xxh128};
use crate::world::World;

const FILES: usize = 20_000;
const SIZE: usize = 1_024;
/// An unoptimised binary on two busy cores.
const PATIENCE: Duration = Duration::from_secs(300);

#[test]
fn twenty_thousand_files_written_at_full_speed_give_as_many_right_messages() {
    let mut world = World::start();
    let names: Vec<String> = (0..FILES).map(|number| format!("bulk-{number:05}")).collect();
    for (number, name) in names.iter().enumerate() {
        world.write(name, noise(SIZE, number as u64));
    }
    world.wait_until_within(PATIENCE, "20,000 messages", |messages| messages.len() >= FILES);
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
