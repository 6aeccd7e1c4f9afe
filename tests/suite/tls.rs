//! The broker by TLS: whom the service trusts, and how it says who it is.

use std::fs;
use std::path::Path;

use crate::broker::{self, Broker, CERTIFIED};
use crate::certificates::Authority;
use crate::cli::assert_one_line;
use crate::consumer::Consumer;
use crate::service::Setup;
use crate::world::{World, directories};

/// The same virtual host by TLS.
fn by_tls(url: &str) -> String {
    let vhost = url.rsplit('/').next().expect("a virtual host");
    broker::shared().tls_url("guest:guest", "localhost", vhost)
}

/// `watch` that cannot start, and its one line.
#[track_caller]
pub fn refusal(url: &str, change: impl FnOnce(Setup, &Path) -> Setup) -> String {
    let (_root, data, outside) = directories();
    let setup = Setup::watch(&data, url).env("LOG_LEVEL", "ERROR");
    let ended = change(setup, &outside).run().expect_code(1);
    assert_one_line(&ended, &["amqp"]);
    assert!(!ended.stderr.contains(":guest@"), "a password: {}", ended.stderr);
    ended.stderr
}

#[test]
fn messages_go_out_by_tls_when_the_ca_file_holds_the_broker_s_authority() {
    let mut world = World::without_service();
    let ca_file = broker::shared().authority.file(&world.outside);
    let url = by_tls(&world.url);
    world.launch(|it| it.env("AMQP_CONNECTION_STRING", &url).env("INGESTOR_AMQP_CA_FILE", ca_file));
    for number in 0..200 {
        world.write(&format!("file-{number}"), vec![b'x'; number * 1000]);
    }
    assert_eq!(world.finish().len(), 200);
}

#[test]
fn every_authority_in_the_ca_file_is_trusted_by_scan_and_listen_too() {
    let (_root, data, outside) = directories();
    fs::write(data.join("file"), "content").unwrap();
    let broker = broker::shared();
    let bundle = outside.join("bundle.pem");
    fs::write(&bundle, format!("{}{}", Authority::new("another").pem(), broker.authority.pem())).unwrap();
    let plain = broker.vhost();
    let _consumer = Consumer::bind(&plain);
    let url = by_tls(&plain);
    for command in [&["scan"][..], &["listen", "--timeout", "1"]] {
        let setup = Setup::new(command).args(&["--amqp-url", &url]).arg("--amqp-ca-file").arg(&bundle);
        setup.env("DATA_DIRECTORY", &data).run().expect_code(0);
    }
}

#[test]
fn the_system_s_authorities_are_trusted_without_a_ca_file() {
    let (_root, data, outside) = directories();
    let broker = broker::shared();
    let system = broker.authority.file(&outside);
    let url = by_tls(&broker.vhost());
    let service = Setup::watch(&data, &url).env("SSL_CERT_FILE", system).spawn();
    service.wait_ready();
    service.stop();
}

#[test]
fn a_broker_whose_authority_nobody_knows_is_refused() {
    let url = by_tls(&broker::shared().url("guest:guest", "t0"));
    let told = refusal(&url, |it, outside| it.env("SSL_CERT_FILE", Authority::new("another").file(outside)));
    assert!(told.contains("not trusted here") && told.contains("--amqp-ca-file"), "{told}");
}

#[test]
fn a_ca_file_stands_in_place_of_the_system_s_authorities() {
    let broker = broker::shared();
    let url = by_tls(&broker.url("guest:guest", "t0"));
    let told = refusal(&url, |it, outside| {
        let system = outside.join("system.pem");
        fs::write(&system, broker.authority.pem()).unwrap();
        it.env("SSL_CERT_FILE", system).env("INGESTOR_AMQP_CA_FILE", Authority::new("another").file(outside))
    });
    assert!(told.contains("not trusted here"), "{told}");
}

#[test]
fn a_certificate_for_another_name_is_refused() {
    let broker = broker::shared();
    let url = broker.tls_url("guest:guest", "127.0.0.1", "t0");
    let told = refusal(&url, |it, outside| it.env("INGESTOR_AMQP_CA_FILE", broker.authority.file(outside)));
    assert!(told.contains("is for localhost, not for 127.0.0.1"), "{told}");
}

#[test]
fn a_plain_port_is_told_from_a_tls_port() {
    let broker = broker::shared();
    let plain_port = format!("amqps://guest:guest@localhost:{}/t0", broker.port());
    let told = refusal(&plain_port, |it, outside| it.env("INGESTOR_AMQP_CA_FILE", broker.authority.file(outside)));
    assert!(told.contains("does not speak TLS") && told.contains("5671"), "{told}");
    let tls_port = format!("amqp://guest:guest@localhost:{}/t0", broker.tls_port());
    let told = refusal(&tls_port, |it, _| it);
    assert!(told.contains("amqps://"), "{told}");
}

#[test]
fn a_client_certificate_logs_in_without_a_password() {
    let broker = broker::shared();
    let world = World::without_service();
    let vhost = world.url.rsplit('/').next().unwrap();
    let url = format!("amqps://localhost:{}/{vhost}?auth_mechanism=external", broker.tls_port());
    let [certificate, key] = broker.authority.certify(CERTIFIED, &[]).files(&world.outside);
    let setup = Setup::watch(&world.data, &url)
        .env("INGESTOR_AMQP_CA_FILE", broker.authority.file(&world.outside))
        .env("INGESTOR_AMQP_CLIENT_CERT", certificate)
        .env("INGESTOR_AMQP_CLIENT_KEY", key);
    let service = setup.spawn();
    service.wait_ready();
    let users = broker.rabbitmqctl(&["-q", "list_connections", "user", "auth_mechanism", "vhost", "ssl"]);
    let ours = format!("{CERTIFIED}\tEXTERNAL\t{vhost}\ttrue");
    assert!(users.lines().any(|line| line == ours), "{users}");
    service.stop();
}

#[test]
fn a_login_by_certificate_without_one_is_refused() {
    let broker = broker::shared();
    let url = format!("amqps://localhost:{}/t0?auth_mechanism=external", broker.tls_port());
    let told = refusal(&url, |it, outside| it.env("INGESTOR_AMQP_CA_FILE", broker.authority.file(outside)));
    assert!(told.contains("EXTERNAL") && told.contains("--amqp-client-cert"), "{told}");
}

#[test]
fn a_broker_that_demands_a_client_certificate_gets_it_or_is_told_of() {
    let broker = Broker::start_demanding_certificates();
    let url = broker.tls_url("guest:guest", "localhost", "t0");
    let told = refusal(&url, |it, outside| it.env("INGESTOR_AMQP_CA_FILE", broker.authority.file(outside)));
    assert!(told.contains("client certificate") && told.contains("--amqp-client-cert"), "{told}");
    let told = refusal(&url, |it, outside| {
        let [certificate, key] = Authority::new("another").certify("client", &[]).files(outside);
        let it = it.env("INGESTOR_AMQP_CLIENT_CERT", certificate).env("INGESTOR_AMQP_CLIENT_KEY", key);
        it.env("INGESTOR_AMQP_CA_FILE", broker.authority.file(outside))
    });
    assert!(told.contains("client certificate") && told.contains("--amqp-client-cert"), "{told}");

    let (_root, data, outside) = directories();
    let [certificate, key] = broker.authority.certify("client", &[]).files(&outside);
    let service = Setup::watch(&data, &url)
        .env("INGESTOR_AMQP_CA_FILE", broker.authority.file(&outside))
        .env("INGESTOR_AMQP_CLIENT_CERT", certificate)
        .env("INGESTOR_AMQP_CLIENT_KEY", key)
        .spawn();
    service.wait_ready();
    service.stop();
}
