//! A file that is still being written is not published: no message has a hash of half a file.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{Seek, Write};

use crate::support::files::{Mapping, Random, give_name, nameless, noise, sha256};
use crate::support::world::{World, list, of_name};

#[test]
fn a_slow_writer_gives_one_message_at_its_close_and_none_before() {
    let mut world = World::start();
    let mut file = File::create(world.path("slow")).unwrap();
    let mut content = Vec::new();
    for part in 0..4 {
        let bytes = noise(100_000, part);
        file.write_all(&bytes).unwrap();
        content.extend_from_slice(&bytes);
        // The service has read every event so far, the open file's too.
        world.pass_sentinel();
        let early = world.messages_for("slow");
        assert!(early.is_empty(), "still open, yet published:\n{}", list(&early));
    }
    drop(file);
    world.wait_for_one("slow");
    let message = world.finish_with_one();
    assert_eq!(message.event(), "IN_CREATE");
    assert_eq!(message.sha256(), sha256(&content));
}

#[test]
fn a_writer_that_outlasts_the_settle_time_is_still_waited_for() {
    // The settle time is for files that no close will come for; an open one is not such a file.
    let mut world = World::start_with(|it| it.args(&["--settle-ms", "1"]));
    let mut file = File::create(world.path("slow")).unwrap();
    file.write_all(b"first half, ").unwrap();
    world.pass_sentinel();
    // A hard link is published when it has settled: by then the open file has had that time too.
    fs::write(world.outside.join("settles"), "x").unwrap();
    fs::hard_link(world.outside.join("settles"), world.path("settles")).unwrap();
    world.wait_for_one("settles");
    file.write_all(b"second half").unwrap();
    world.pass_sentinel();
    assert!(world.messages_for("slow").is_empty(), "{}", world.dump());
    drop(file);
    let message = world.wait_for_one("slow");
    assert_eq!(message.sha256(), sha256(b"first half, second half"));
    let messages = of_name(&world.finish(), "slow");
    assert_eq!(messages.len(), 1, "{}", list(&messages));
}

#[test]
fn a_file_moved_in_while_its_writer_goes_on_has_only_its_final_hash() {
    let mut world = World::start();
    let mut file = File::create(world.outside.join("file")).unwrap();
    file.write_all(b"begun outside, ").unwrap();
    fs::rename(world.outside.join("file"), world.path("file")).unwrap();
    world.pass_sentinel();
    file.write_all(b"ended inside").unwrap();
    world.pass_sentinel();
    assert!(world.messages_for("file").is_empty(), "{}", world.dump());
    drop(file);
    world.wait_for_one("file");
    let message = world.finish_with_one();
    assert_eq!(message.sha256(), sha256(b"begun outside, ended inside"));
}

#[test]
fn a_mapping_that_outlives_its_descriptor_is_waited_for() {
    const LENGTH: usize = 200_000;
    let mut world = World::start();
    let file = File::create_new(world.path("mapped")).and_then(|file| {
        file.set_len(LENGTH as u64)?;
        drop(file);
        File::options().read(true).write(true).open(world.path("mapped"))
    });
    let file = file.unwrap();
    let mut mapping = Mapping::of(&file, LENGTH);
    drop(file);
    world.pass_sentinel();
    let content = noise(LENGTH, 7);
    mapping.write(&content);
    world.pass_sentinel();
    drop(mapping);
    world.wait_for_content("mapped", &content);
    // Between the two opens the file was complete for a moment: all zeros may have been seen.
    let legal = [sha256(&vec![0; LENGTH]), sha256(&content)];
    for message in world.finish() {
        assert!(legal.iter().any(|it| it == message.sha256()), "a torn content");
    }
}

#[test]
fn a_nameless_file_that_is_given_a_name_gives_one_message_for_it() {
    let mut world = World::start();
    let mut file = nameless(&world.data);
    file.write_all(b"linked in").unwrap();
    give_name(&file, &world.path("named"));
    drop(file);
    // Its close carries another name, so that nothing but the settle time says it is complete.
    world.wait_for_one("named");
    let message = world.finish_with_one();
    assert_eq!(message.event(), "IN_CREATE");
    assert_eq!(message.sha256(), sha256(b"linked in"));
}

#[test]
fn a_nameless_file_that_is_written_after_it_was_named_has_its_final_hash() {
    let mut world = World::start_with(|it| it.args(&["--settle-ms", "1"]));
    let mut file = nameless(&world.data);
    file.write_all(b"before, ").unwrap();
    give_name(&file, &world.path("named"));
    world.pass_sentinel();
    file.write_all(b"after").unwrap();
    world.pass_sentinel();
    assert!(world.messages_for("named").is_empty(), "{}", world.dump());
    drop(file);
    // No event carries this name any more, so the service must check again by itself.
    let message = world.wait_for_one("named");
    assert_eq!(message.sha256(), sha256(b"before, after"));
}

#[test]
fn a_file_rewritten_often_has_only_hashes_of_whole_versions() {
    const GENERATIONS: u64 = 300;
    let mut world = World::start();
    let generation = |number: u64| noise(20_000 + 37 * number as usize, number);
    let legal: HashSet<String> = (0..GENERATIONS).map(|it| sha256(&generation(it))).collect();
    for number in 0..GENERATIONS {
        let content = generation(number);
        let mut file = File::create(world.path("busy")).unwrap();
        // In parts, to give a reader something torn to see.
        for part in content.chunks(4_096) {
            file.write_all(part).unwrap();
        }
    }
    world.wait_for_content("busy", &generation(GENERATIONS - 1));
    let messages = world.finish();
    for message in &messages {
        assert!(legal.contains(message.sha256()), "{} bytes that were never a whole version", message.size());
    }
    let last = messages.last().unwrap();
    assert_eq!(last.sha256(), sha256(&generation(GENERATIONS - 1)));
}

#[test]
fn a_file_overwritten_in_place_has_only_hashes_of_whole_versions() {
    const GENERATIONS: u64 = 300;
    const LENGTH: usize = 262_144;
    let mut world = World::start();
    // The same length each time, so that no size distinguishes these versions.
    let legal: HashSet<String> = (0..GENERATIONS).map(|it| sha256(&noise(LENGTH, it))).collect();
    world.write("busy", noise(LENGTH, 0));
    let mut pause = Random::new(1);
    for number in 1..GENERATIONS {
        let content = noise(LENGTH, number);
        let mut file = File::options().write(true).open(world.path("busy")).unwrap();
        let (first, second) = content.split_at(pause.below(LENGTH));
        file.write_all(first).unwrap();
        file.write_all(second).unwrap();
        file.rewind().unwrap();
    }
    world.wait_for_content("busy", &noise(LENGTH, GENERATIONS - 1));
    for message in world.finish() {
        assert!(legal.contains(message.sha256()), "content of two versions");
    }
}
