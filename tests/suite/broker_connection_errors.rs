//! A broker that cannot be reached or refuses the service: exit status 1 and one line, without the password.

use std::net::TcpListener;

use lapin::ExchangeKind;

use crate::support::broker::{self, NO_BROKER, connection_error};
use crate::support::consumer::{block_on, connect, declare_exchange};
use crate::support::setup::Setup;
use crate::support::world::directories;

#[track_caller]
fn assert_fails(url: &str, names: &[&str]) {
    connection_error(url, names, |setup, _| setup);
}

#[test]
fn a_refused_connection_is_a_failure_in_one_line() {
    // A port that was just free and is held by a socket that does not listen for anyone else.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let url = format!("amqp://someone:hunter2@127.0.0.1:{port}/");
    assert_fails(&url, &[&format!("127.0.0.1:{port}")]);
}

#[test]
fn every_command_that_needs_the_broker_fails_alike_without_it() {
    let (_root, data, _) = directories();
    for command in ["scan", "listen"] {
        let ended = Setup::new(&[command])
            .env("DATA_DIRECTORY", &data)
            .env("AMQP_CONNECTION_STRING", NO_BROKER)
            .env("LOG_LEVEL", "ERROR")
            .run()
            .expect_code(1);
        ended.assert_one_line(&["127.0.0.1:1"]);
        assert!(!ended.stderr.contains("hunter2"), "a password: {}", ended.stderr);
    }
}

#[test]
fn a_wrong_password_is_a_failure_in_one_line_that_does_not_show_it() {
    let url = broker::shared().url("guest:hunter2", "t0");
    assert_fails(&url, &["127.0.0.1"]);
}

#[test]
fn an_unknown_virtual_host_is_a_failure_in_one_line() {
    let url = broker::shared().url("guest:guest", "no-such-vhost");
    assert_fails(&url, &["no-such-vhost"]);
}

#[test]
fn an_exchange_of_another_type_is_a_failure_in_one_line() {
    let url = broker::shared().vhost();
    block_on(async {
        let connection = connect(&url).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        declare_exchange(&channel, ExchangeKind::Direct).await;
    });
    assert_fails(&url, &["apollonia"]);
}

#[test]
fn a_broker_that_accepts_and_never_answers_is_a_failure_in_one_line() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    assert_fails(&format!("amqp://someone:hunter2@{address}/"), &[&address]);
}

#[test]
fn a_name_that_does_not_resolve_is_a_failure_in_one_line() {
    // RFC 2606: no such top-level domain will ever be.
    assert_fails("amqp://someone:hunter2@broker.invalid/", &["broker.invalid"]);
}

#[test]
fn no_log_level_shows_the_password() {
    let broker = broker::shared();
    let url = broker.vhost();
    let vhost = broker::vhost_of(&url);
    broker.add_user("masked", "hunter2/s3cret", vhost, [".*"; 3]);
    let (_root, data, _) = directories();
    let service = Setup::watch(&data, &broker.url("masked:hunter2%2Fs3cret", vhost)).env("LOG_LEVEL", "TRACE").spawn();
    service.wait_ready();
    let ended = service.stop();
    for secret in ["hunter2", "s3cret"] {
        assert!(!ended.stderr.contains(secret), "a password:\n{}", ended.stderr);
    }
}
