//! Both read engines give equal results, and where io_uring is denied the blocking one reads.

use std::fs;
use std::io;
use std::path::Path;

use rustix::io::{Errno, ReadWriteFlags, preadv2};

use crate::support::control;
use crate::support::files::{noise, sha256};
use crate::support::seccomp::{io_uring_is_allowed, warnings_about_io_uring, without_io_uring};
use crate::support::setup::Setup;
use crate::support::skip;
use crate::support::volume::SmallDisk;
use crate::support::world::{World, directories};

const SIZES: [usize; 16] = [
    0, 1, 4_095, 4_096, 4_097, 65_535, 65_536, 65_537, 131_071, 131_072, 131_073, 262_144, 262_145, 1_048_576,
    4_194_305, 10_485_761,
];

/// Path, hashes and time of every file below `directory`, by `engine`.
fn scan(directory: &Path, engine: &str, workers: &str) -> Vec<[String; 4]> {
    let arguments = ["scan", "--output", "stdout", "--read-engine", engine, "--workers", workers];
    let ended = Setup::new(&arguments).arg(directory).run().expect_code(0);
    let mut rows: Vec<[String; 4]> = ended
        .messages()
        .iter()
        .map(|it| {
            let fields = ["file_path", "sha256_hash", "xxh128_hash", "modified_time"];
            fields.map(|field| it.text(field).to_owned())
        })
        .collect();
    rows.sort();
    rows
}

#[test]
fn both_engines_give_equal_results() {
    if !io_uring_is_allowed() {
        return skip("io_uring is not allowed here: there is one engine only");
    }
    let (_root, data, _) = directories();
    for (number, size) in SIZES.into_iter().enumerate() {
        fs::write(data.join(format!("{size:08}")), noise(size, number as u64)).unwrap();
    }
    // Many small files keep every slot of every worker taken.
    for number in 0..500 {
        fs::write(data.join(format!("small-{number}")), noise(number, 3)).unwrap();
    }
    let blocking = scan(&data, "blocking", "1");
    assert_eq!(blocking.len(), SIZES.len() + 500);
    for workers in ["1", "3"] {
        assert_eq!(scan(&data, "io_uring", workers), blocking, "{workers} workers");
    }
    assert_eq!(scan(&data, "blocking", "4"), blocking);
}

/// A tmpfs reads nothing inline. Each directory has the engine that suits it, and the start and `GET /health` say which.
#[test]
fn auto_reads_plainly_where_the_ring_cannot_read_inline() {
    if !io_uring_is_allowed() {
        return skip("io_uring is not allowed here: there is one engine only");
    }
    let (root, disk, _) = directories();
    let memory = root.path().join("memory");
    let Some(_mounted) = SmallDisk::mount(&memory, "size=64m") else {
        return skip("a tmpfs cannot be mounted here");
    };
    if !reads_inline(&disk) {
        return skip("the file system of the temporary files reads nothing inline: there is no second kind");
    }
    for (number, size) in SIZES.into_iter().enumerate() {
        for directory in [&disk, &memory] {
            fs::write(directory.join(format!("{size:08}")), noise(size, number as u64)).unwrap();
        }
    }
    let hashes = |rows: Vec<[String; 4]>| rows.into_iter().map(|[_, sha256, xxh128, _]| [sha256, xxh128]).collect();
    let expected: Vec<[String; 2]> = hashes(scan(&disk, "blocking", "1"));
    for engine in ["auto", "io_uring", "blocking"] {
        assert_eq!(hashes(scan(&memory, engine, "2")), expected, "{engine}");
    }
    for (engine, directories, line) in [
        ("auto", vec![&disk], "io_uring engine, "),
        ("auto", vec![&memory], "io_uring engine with plain reads, "),
        ("auto", vec![&disk, &memory], "io_uring engine, plain reads in \"/"),
        ("io_uring", vec![&memory], "io_uring engine, "),
        ("blocking", vec![&memory], "blocking engine, "),
    ] {
        let socket = root.path().join("control.sock");
        let mut setup = Setup::new(&["watch", "--output", "none", "--read-engine", engine]);
        for directory in &directories {
            setup = setup.arg("--data-dir").arg(directory);
        }
        let service = setup.env("INGESTOR_CONTROL_SOCKET", &socket).spawn();
        service.wait_ready();
        assert!(service.stderr().contains(line), "{engine}, {directories:?}: {}", service.stderr());
        let engines = &control::health(&socket).1["service"]["engines"];
        for directory in directories {
            let own = match engine {
                "auto" if directory == &memory => "io_uring with plain reads",
                "auto" => "io_uring",
                named => named,
            };
            assert_eq!(engines[directory.to_str().unwrap()], own, "{engine}: {engines}");
        }
        service.stop();
    }
}

/// Whether the kernel reads a file there without waiting, as a ring asks it to.
fn reads_inline(directory: &Path) -> bool {
    fs::write(directory.join("asked"), "content").unwrap();
    let file = fs::File::open(directory.join("asked")).unwrap();
    let mut buffer = [0; 1];
    let read = preadv2(&file, &mut [io::IoSliceMut::new(&mut buffer)], 0, ReadWriteFlags::NOWAIT);
    fs::remove_file(directory.join("asked")).unwrap();
    read != Err(Errno::OPNOTSUPP)
}

#[test]
fn the_blocking_engine_serves_the_watch() {
    let mut world = World::start_with(|it| it.args(&["--read-engine", "blocking"]));
    world.write("file", noise(1_000_000, 1));
    world.wait_for_content("file", &noise(1_000_000, 1));
}

#[test]
fn auto_falls_back_with_one_warning_where_io_uring_is_denied() {
    for errno in [libc::EPERM, libc::ENOSYS] {
        let mut world = World::start_with(|it| without_io_uring(it, errno));
        world.write("file", noise(1_000_000, 1));
        let message = world.wait_for_one("file");
        assert_eq!(message.sha256(), sha256(&noise(1_000_000, 1)));
        let ended = world.stop_service();
        let warnings = warnings_about_io_uring(&ended);
        assert_eq!(warnings.len(), 1, "one WARN was due:\n{}", ended.stderr);
        let cause = io::Error::from_raw_os_error(errno).to_string();
        let cause = cause.split(" (os").next().unwrap();
        assert!(warnings[0].contains(cause), "it does not name the cause: {}", warnings[0]);
        assert!(
            ["seccomp", "io_uring_disabled", "read-engine"].iter().any(|it| warnings[0].contains(it)),
            "it names no cure: {}",
            warnings[0]
        );
    }
}

#[test]
fn the_blocking_engine_warns_of_nothing_where_io_uring_is_denied() {
    let (_root, data, _) = directories();
    fs::write(data.join("file"), "content").unwrap();
    let setup = Setup::new(&["scan", "--output", "stdout", "--read-engine", "blocking"]).arg(&data);
    let ended = without_io_uring(setup, libc::EPERM).run().expect_code(0);
    assert!(!ended.stderr.contains("WARN"), "{}", ended.stderr);
}

#[test]
fn io_uring_asked_for_by_name_and_denied_is_a_failure_in_one_line() {
    let (_root, data, _) = directories();
    fs::write(data.join("file"), "content").unwrap();
    for command in ["watch", "scan"] {
        let setup = Setup::new(&[command, "--output", "none", "--read-engine", "io_uring"])
            .env("DATA_DIRECTORY", &data)
            .env("LOG_LEVEL", "ERROR");
        let ended = without_io_uring(setup, libc::EPERM).run().expect_code(1);
        ended.assert_one_line(&["io_uring"]);
    }
}
