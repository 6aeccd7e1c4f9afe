//! A broker that allows only short frames is used all the same, and a header that does not fit is left out. One that allows
//! only one channel is a line with its cure.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;

use crate::support::broker::{Broker, connection_error};
use crate::support::consumer::Consumer;
use crate::support::setup::Setup;
use crate::support::wait::TIMEOUT;
use crate::support::world::directories;

/// A path of 4090 bytes, which is nearly the kernel's limit (PATH_MAX).
const PATH_BYTES: usize = 4090;

#[test]
fn short_frames_are_used_and_one_channel_is_too_few() {
    let broker = Broker::start_with(1);
    let url = broker.vhost();
    // It connects while frames may be longer.
    let consumer = Consumer::bind(&url);
    broker.eval_to_ok("application:set_env(rabbit, frame_max, 4096)");
    let (_root, data, outside) = directories();
    let mut deep = data.clone();
    // The file's name takes 100 bytes, and each name a slash.
    while deep.as_os_str().len() + 102 + 241 < PATH_BYTES {
        deep.push("x".repeat(240));
    }
    deep.push("y".repeat(PATH_BYTES - deep.as_os_str().len() - 102));
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join(OsStr::from_bytes(&[0xff; 100])), "long").unwrap();
    fs::write(data.join(OsStr::from_bytes(b"\xff")), "short").unwrap();
    fs::write(data.join("plain"), "plain").unwrap();
    let scan = |url: &str| Setup::new(&["scan"]).arg(&data).env("AMQP_CONNECTION_STRING", url).recursive();
    let by_tls = broker.tls_url("guest:guest", "localhost", "t0");
    let runs = [
        scan(&url),
        scan(&format!("{url}?frame_max=4096")),
        scan(&by_tls).env("INGESTOR_AMQP_CA_FILE", broker.authority.file(&outside)),
    ];
    let count = runs.len();
    for ended in runs.map(|run| run.spawn()).map(|service| service.wait_exit().expect_code(0)) {
        let [warning] = ended.warnings()[..] else { panic!("one warning was due:\n{}", ended.stderr) };
        assert!(warning.contains("x-file-path-bytes") && warning.contains("frame_max"), "{warning}");
    }
    assert!(consumer.wait_until(TIMEOUT, |messages| messages.len() >= 3 * count));
    let messages = consumer.messages();
    assert_eq!(messages.len(), 3 * count);
    for message in messages {
        let header = message.path_bytes_header().map(|path| path.len());
        match message.size() {
            4 if message.path().len() > 3000 => assert_eq!(header, None),
            5 if message.path().ends_with("plain") => assert_eq!(header, None),
            _ => assert!(header.is_some_and(|bytes| bytes < 200), "{header:?} {}", message.path()),
        }
    }

    broker.eval_to_ok("application:set_env(rabbit, channel_max, 1)");
    let line = connection_error(&format!("{url}?frame_max=4096"), &["no room for another channel"], |setup, _| setup);
    assert!(line.contains("raise channel_max"), "{line}");
}
