//! TLS to the broker: the authorities that the service trusts, and logging in by a client certificate.

use std::fs;

use crate::support::broker::{self, Broker, CERTIFIED, tls_error, vhost_of};
use crate::support::certificates::Authority;
use crate::support::consumer::Consumer;
use crate::support::setup::Setup;
use crate::support::world::{World, directories};

/// The same virtual host by TLS.
fn by_tls(url: &str) -> String {
    let vhost = vhost_of(url);
    broker::shared().tls_url("guest:guest", "localhost", vhost)
}

#[test]
fn messages_are_published_by_tls_with_the_authority_in_the_ca_file() {
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
fn the_authorities_of_the_system_are_trusted_without_a_ca_file() {
    let (_root, data, outside) = directories();
    let broker = broker::shared();
    let system = broker.authority.file(&outside);
    let url = by_tls(&broker.vhost());
    let service = Setup::watch(&data, &url).env("SSL_CERT_FILE", system).spawn();
    service.wait_ready();
    service.stop();
}

#[test]
fn a_broker_with_an_unknown_authority_is_refused() {
    let url = by_tls(&broker::shared().url("guest:guest", "t0"));
    let error = tls_error(&url, |it, outside| it.env("SSL_CERT_FILE", Authority::new("another").file(outside)));
    assert!(error.contains("not trusted here") && error.contains("--amqp-ca-file"), "{error}");
}

#[test]
fn a_ca_file_replaces_the_authorities_of_the_system() {
    let broker = broker::shared();
    let url = by_tls(&broker.url("guest:guest", "t0"));
    let error = tls_error(&url, |it, outside| {
        let system = outside.join("system.pem");
        fs::write(&system, broker.authority.pem()).unwrap();
        it.env("SSL_CERT_FILE", system).env("INGESTOR_AMQP_CA_FILE", Authority::new("another").file(outside))
    });
    assert!(error.contains("not trusted here"), "{error}");
}

#[test]
fn a_certificate_for_another_name_is_refused() {
    let broker = broker::shared();
    let url = broker.tls_url("guest:guest", "127.0.0.1", "t0");
    let error = tls_error(&url, |it, outside| it.env("INGESTOR_AMQP_CA_FILE", broker.authority.file(outside)));
    assert!(error.contains("is for localhost, not for 127.0.0.1"), "{error}");
}

#[test]
fn a_plain_port_and_a_tls_port_are_not_mistaken_for_each_other() {
    let broker = broker::shared();
    let plain_port = format!("amqps://guest:guest@localhost:{}/t0", broker.port());
    let error = tls_error(&plain_port, |it, outside| it.env("INGESTOR_AMQP_CA_FILE", broker.authority.file(outside)));
    assert!(error.contains("does not speak TLS") && error.contains("5671"), "{error}");
    let tls_port = format!("amqp://guest:guest@localhost:{}/t0", broker.tls_port());
    let error = tls_error(&tls_port, |it, _| it);
    assert!(error.contains("amqps://"), "{error}");
}

#[test]
fn a_client_certificate_logs_in_without_a_password() {
    let broker = broker::shared();
    let world = World::without_service();
    let vhost = vhost_of(&world.url);
    let url = format!("amqps://localhost:{}/{vhost}?auth_mechanism=external", broker.tls_port());
    let [certificate, key] = broker.authority.certify(CERTIFIED, &[]).files(&world.outside);
    let setup = Setup::watch(&world.data, &url)
        .env("INGESTOR_AMQP_CA_FILE", broker.authority.file(&world.outside))
        .env("INGESTOR_AMQP_CLIENT_CERT", certificate)
        .env("INGESTOR_AMQP_CLIENT_KEY", key);
    let service = setup.spawn();
    service.wait_ready();
    let users = broker.connections(vhost, &["user", "auth_mechanism", "ssl"]);
    let ours = format!("[{{user,<<\"{CERTIFIED}\">>}},{{auth_mechanism,<<\"EXTERNAL\">>}},{{ssl,true}}]");
    assert!(users.contains(&ours), "{users:?}");
    service.stop();
}

#[test]
fn a_login_by_certificate_without_one_is_refused() {
    let broker = broker::shared();
    let url = format!("amqps://localhost:{}/t0?auth_mechanism=external", broker.tls_port());
    let error = tls_error(&url, |it, outside| it.env("INGESTOR_AMQP_CA_FILE", broker.authority.file(outside)));
    assert!(error.contains("EXTERNAL") && error.contains("--amqp-client-cert"), "{error}");
}

#[test]
fn a_broker_that_demands_a_client_certificate_gets_it() {
    let broker = Broker::start_demanding_certificates();
    let url = broker.tls_url("guest:guest", "localhost", "t0");
    let error = tls_error(&url, |it, outside| it.env("INGESTOR_AMQP_CA_FILE", broker.authority.file(outside)));
    assert!(error.contains("client certificate") && error.contains("--amqp-client-cert"), "{error}");
    let error = tls_error(&url, |it, outside| {
        let [certificate, key] = Authority::new("another").certify("client", &[]).files(outside);
        let it = it.env("INGESTOR_AMQP_CLIENT_CERT", certificate).env("INGESTOR_AMQP_CLIENT_KEY", key);
        it.env("INGESTOR_AMQP_CA_FILE", broker.authority.file(outside))
    });
    assert!(error.contains("client certificate") && error.contains("--amqp-client-cert"), "{error}");

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
