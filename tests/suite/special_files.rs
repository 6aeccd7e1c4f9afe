//! FIFOs, sockets, devices, loops of links and short-lived files: none is published, blocks or stops the service.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;

use rustix::fs::FileType;

use crate::support::files::{fifo, node, noise, sha256};
use crate::support::skip;
use crate::support::world::{World, list};

/// The service still publishes a file, and nothing of what the test did before.
#[track_caller]
fn assert_ignored(mut world: World) {
    world.write("normal", "content");
    world.wait_for_one("normal");
    let message = world.finish_with_one();
    assert_eq!(message.name(), "normal");
}

#[test]
fn a_fifo_that_nobody_writes_to_is_ignored() {
    let world = World::start();
    fifo(&world.path("fifo"));
    assert_ignored(world);
}

#[test]
fn a_fifo_with_a_reader_and_a_writer_is_not_read() {
    let world = World::start();
    fifo(&world.path("fifo"));
    // Opened for both, it has a reader and a writer at once and the open does not wait.
    let mut both = File::options().read(true).write(true).open(world.path("fifo")).unwrap();
    std::io::Write::write_all(&mut both, b"mine").unwrap();
    assert_ignored(world);
    let mut kept = [0; 4];
    std::io::Read::read_exact(&mut both, &mut kept).unwrap();
    assert_eq!(&kept, b"mine", "the service took what was in the FIFO");
}

#[test]
fn more_fifos_than_there_are_workers_are_ignored() {
    let world = World::start();
    for number in 0..200 {
        fifo(&world.path(&format!("fifo-{number}")));
    }
    assert_ignored(world);
}

#[test]
fn a_socket_is_ignored() {
    let world = World::start();
    let _listener = UnixListener::bind(world.path("socket")).unwrap();
    assert_ignored(world);
}

#[test]
fn a_directory_is_ignored() {
    let world = World::start();
    fs::create_dir(world.path("directory")).unwrap();
    fs::create_dir(world.outside.join("moved")).unwrap();
    fs::rename(world.outside.join("moved"), world.path("moved")).unwrap();
    assert_ignored(world);
}

#[test]
fn a_device_is_ignored() {
    let world = World::start();
    // /dev/zero has no end.
    if let Err(error) = node(&world.path("zero"), FileType::CharacterDevice, libc::makedev(1, 5)) {
        return skip(&format!("a device node needs a privilege: {error}"));
    }
    assert_ignored(world);
}

#[test]
fn a_dangling_link_is_ignored() {
    let world = World::start();
    symlink("nowhere", world.path("dangling")).unwrap();
    symlink("/nowhere/at/all", world.path("dangling-outside")).unwrap();
    assert_ignored(world);
}

#[test]
fn a_loop_of_links_is_ignored() {
    let world = World::start();
    symlink("two", world.path("one")).unwrap();
    symlink("one", world.path("two")).unwrap();
    symlink("self", world.path("self")).unwrap();
    assert_ignored(world);
}

#[test]
fn links_to_what_is_not_a_file_are_ignored() {
    let world = World::start();
    fs::create_dir(world.path("directory")).unwrap();
    fifo(&world.path("fifo"));
    symlink("directory", world.path("to-directory")).unwrap();
    symlink(".", world.path("to-here")).unwrap();
    symlink("fifo", world.path("to-fifo")).unwrap();
    symlink("/dev/zero", world.path("to-device")).unwrap();
    assert_ignored(world);
}

#[test]
fn links_to_files_of_the_system_are_ignored() {
    let world = World::start();
    symlink("/etc/passwd", world.path("passwd")).unwrap();
    symlink("/proc/self/environ", world.path("environ")).unwrap();
    symlink("/proc/self/root/etc/passwd", world.path("through-proc")).unwrap();
    assert_ignored(world);
}

#[test]
fn files_deleted_before_they_can_be_read_do_no_harm() {
    let mut world = World::start();
    for number in 0..500 {
        let name = format!("gone-{number}");
        world.write(&name, "short-lived");
        fs::remove_file(world.path(&name)).unwrap();
    }
    world.write("normal", "content");
    world.wait_for_one("normal");
    // Some may have been read in time; none may have been read wrong or twice.
    let messages = world.finish();
    let mut names: Vec<&str> = messages.iter().map(|message| message.name()).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), messages.len(), "twice:\n{}", list(&messages));
    for message in messages.iter().filter(|it| it.name() != "normal") {
        assert_eq!(message.sha256(), sha256(b"short-lived"), "{}", message.name());
    }
}

#[test]
fn files_often_replaced_by_links_are_never_read_outside() {
    let mut world = World::start();
    fs::write(world.outside.join("secret"), "secret").unwrap();
    fs::write(world.outside.join("file"), "inside").unwrap();
    for _ in 0..500 {
        fs::write(world.outside.join("staged"), "inside").unwrap();
        fs::rename(world.outside.join("staged"), world.path("swapped")).unwrap();
        symlink(world.outside.join("secret"), world.outside.join("staged")).unwrap();
        fs::rename(world.outside.join("staged"), world.path("swapped")).unwrap();
    }
    world.write("normal", "content");
    world.wait_for_one("normal");
    for message in world.finish() {
        assert_ne!(message.sha256(), sha256(b"secret"), "a link led out");
    }
}

#[test]
fn a_file_that_shrinks_and_grows_has_its_final_content_published_last() {
    let mut world = World::start();
    for round in 0..30 {
        let file = File::create(world.path("file")).unwrap();
        file.set_len(3_000_000).unwrap();
        file.set_len(round).unwrap();
    }
    let last = noise(1_000_003, 5);
    world.write("file", &last);
    world.wait_for_content("file", &last);
}
