//! A certificate that cannot be accepted is an error with its cause, and a file that is no certificate is refused by
//! name.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use rcgen::{BasicConstraints, CertificateParams, IsCa, date_time_ymd};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection, SupportedProtocolVersion};

use crate::support::broker::tls_error;
use crate::support::certificates::{Authority, Certified, named};
use crate::support::files::fifo;
use crate::support::setup::Setup;
use crate::support::world::directories;

/// The TLS side of a broker for one connection; it never gets to AMQP.
fn shake_hands(config: ServerConfig) -> (u16, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut connection = ServerConnection::new(Arc::new(config)).unwrap();
        // One side or the other refuses the connection.
        let _ = connection.complete_io(&mut stream);
        // Closing before the client's last bytes are read would reset the connection and lose the alert.
        let _ = std::io::copy(&mut stream, &mut std::io::sink());
    });
    (port, server)
}

fn server(certified: &Certified) -> ServerConfig {
    let chain = vec![CertificateDer::from_pem_slice(certified.certificate.as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(certified.key.as_bytes()).unwrap();
    ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key).unwrap()
}

/// The error of `watch` about a broker with a certificate that was changed so.
#[track_caller]
fn error_with(change: impl FnOnce(&mut CertificateParams)) -> String {
    let authority = Authority::new("authority");
    let mut params = named("node", &["localhost"]);
    change(&mut params);
    let (port, server) = shake_hands(server(&authority.certify_as(params)));
    let error = tls_error(&format!("amqps://guest:guest@localhost:{port}/"), |it, outside| {
        it.env("INGESTOR_AMQP_CA_FILE", authority.file(outside))
    });
    server.join().unwrap();
    error
}

#[test]
fn an_expired_certificate_is_an_error_with_its_cause() {
    let error = error_with(|params| params.not_after = date_time_ymd(2020, 1, 1));
    assert!(error.contains("has expired"), "{error}");
}

#[test]
fn a_certificate_of_tomorrow_is_an_error_with_its_cause() {
    let error = error_with(|params| params.not_before = date_time_ymd(2990, 1, 1));
    assert!(error.contains("is not valid yet"), "{error}");
}

#[test]
fn a_certificate_without_a_host_name_is_an_error_with_its_cause() {
    let error = error_with(|params| params.subject_alt_names.clear());
    assert!(error.contains("no subjectAltName"), "{error}");
}

#[test]
fn the_certificate_of_an_authority_is_an_error_with_its_cause() {
    let error = error_with(|params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained));
    assert!(error.contains("CA:TRUE"), "{error}");
}

#[test]
fn a_demand_for_a_client_certificate_is_an_error_in_both_tls_versions() {
    let versions: [&'static SupportedProtocolVersion; 2] = [&rustls::version::TLS12, &rustls::version::TLS13];
    for version in versions {
        let authority = Authority::new("authority");
        let certified = authority.certify("node", &["localhost"]);
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(authority.pem().as_bytes()).unwrap()).unwrap();
        let config = ServerConfig::builder_with_protocol_versions(&[version])
            .with_client_cert_verifier(WebPkiClientVerifier::builder(Arc::new(roots)).build().unwrap())
            .with_single_cert(
                vec![CertificateDer::from_pem_slice(certified.certificate.as_bytes()).unwrap()],
                PrivateKeyDer::from_pem_slice(certified.key.as_bytes()).unwrap(),
            )
            .unwrap();
        let (port, server) = shake_hands(config);
        let error = tls_error(&format!("amqps://guest:guest@localhost:{port}/"), |it, outside| {
            it.env("INGESTOR_AMQP_CA_FILE", authority.file(outside))
        });
        server.join().unwrap();
        assert!(error.contains("client certificate") && error.contains("--amqp-client-cert"), "{version:?}: {error}");
    }
}

/// Exit status 2 and one line that names one of `names`.
#[track_caller]
fn assert_unusable(url: &str, files: &[(&str, &Path)], names: &[&str]) {
    let (_root, data, _) = directories();
    let mut setup = Setup::watch(&data, url);
    for (variable, path) in files {
        setup = setup.env(variable, path);
    }
    setup.run().expect_code(2).assert_one_line(names);
}

#[test]
fn files_that_cannot_be_used_are_refused_by_name() {
    const URL: &str = "amqps://guest:guest@localhost:1/";
    const CA: &str = "INGESTOR_AMQP_CA_FILE";
    const CERT: &str = "INGESTOR_AMQP_CLIENT_CERT";
    const KEY: &str = "INGESTOR_AMQP_CLIENT_KEY";
    let (_root, _, outside) = directories();
    let authority = Authority::new("authority");
    let ca = authority.file(&outside);
    let [certificate, key] = authority.certify("client", &[]).files(&outside);
    let others = outside.join("others");
    fs::create_dir(&others).unwrap();
    let [_, other_key] = authority.certify("other", &[]).files(&others);
    let written = |name: &str, text: &str| {
        let path = outside.join(name);
        fs::write(&path, text).unwrap();
        path
    };
    let empty = written("empty.pem", "");
    let encrypted =
        written("secret.pem", "-----BEGIN ENCRYPTED PRIVATE KEY-----\nc2VjcmV0\n-----END ENCRYPTED PRIVATE KEY-----\n");
    let damaged = written("damaged.pem", "-----BEGIN CERTIFICATE-----\nc2VjcmV0\n-----END CERTIFICATE-----\n");
    let missing = outside.join("missing.pem");
    let endless = outside.join("fifo");
    fifo(&endless);

    for path in [&missing, &empty, &damaged, &key, &outside, &endless] {
        assert_unusable(URL, &[(CA, path)], &[&format!("({CA}): {path:?}")]);
    }
    for path in [&missing, &empty, &key, &outside] {
        assert_unusable(URL, &[(CA, &ca), (CERT, path), (KEY, &key)], &[&format!("({CERT}): {path:?}")]);
    }
    for path in [&missing, &empty, &encrypted, &certificate, &other_key, &outside] {
        assert_unusable(URL, &[(CA, &ca), (CERT, &certificate), (KEY, path)], &[&format!("({KEY}): {path:?}")]);
    }
    assert_unusable(URL, &[(CA, &ca), (CERT, &certificate)], &[KEY]);
    assert_unusable(URL, &[(CA, &ca), (KEY, &key)], &[CERT]);
    assert_unusable(URL, &[("SSL_CERT_FILE", &missing)], &["ca-certificates"]);
    for (variable, path) in [(CA, &ca), (CERT, &certificate), (KEY, &key)] {
        assert_unusable("amqp://guest:guest@localhost:1/", &[(variable, path)], &[variable]);
    }
}
