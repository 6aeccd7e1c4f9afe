//! TLS: whom we trust, who we are, and what a failed handshake means.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{AlertDescription, CertificateError, ClientConfig, RootCertStore};

use crate::cli::AmqpSettings;
use crate::error::{Error, os_message};

/// The longest PEM file that is read, in bytes: a system's whole bundle of authorities has a quarter of a million.
const PEM_BYTES_MAX: u64 = 4 * 1024 * 1024;

const CA_FILE: &str = "--amqp-ca-file (INGESTOR_AMQP_CA_FILE)";

const CLIENT_CERT: &str = "--amqp-client-cert (INGESTOR_AMQP_CLIENT_CERT)";

const CLIENT_KEY: &str = "--amqp-client-key (INGESTOR_AMQP_CLIENT_KEY)";

/// Reads and checks what TLS needs; `None` where nothing is encrypted.
///
/// # Errors
/// [`Error::Usage`], naming the setting and the file.
pub fn client_config(settings: &AmqpSettings, encrypted: bool) -> Result<Option<Arc<ClientConfig>>, Error> {
    let given = [
        (CA_FILE, settings.ca_file.as_deref()),
        (CLIENT_CERT, settings.client_cert.as_deref()),
        (CLIENT_KEY, settings.client_key.as_deref()),
    ];
    if !encrypted {
        return match given.iter().find(|(_, path)| path.is_some()) {
            None => Ok(None),
            Some((setting, _)) => Err(Error::usage(
                format!("{setting}: the connection string is amqp://, which is not encrypted"),
                "write amqps:// (port 5671), or unset it",
            )),
        };
    }
    let roots = match &settings.ca_file {
        Some(path) => roots_of(path)?,
        None => roots_of_the_system()?,
    };
    let internal = |error: rustls::Error| Error::Internal(format!("TLS cannot be set up: {error}"));
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(internal)?
        .with_root_certificates(roots);
    let config = match (&settings.client_cert, &settings.client_key) {
        (None, None) => config.with_no_client_auth(),
        (Some(certificate), Some(key)) => {
            let (chain, secret) = (certificates(CLIENT_CERT, certificate)?, private_key(key)?);
            config
                .with_client_auth_cert(chain, secret)
                .map_err(|error| refuse(CLIENT_KEY, key, &unfit(&error), "name the key of the certificate"))?
        }
        (Some(_), None) => {
            return Err(Error::usage(
                format!("{CLIENT_CERT}: its private key is missing"),
                format!("set {CLIENT_KEY}"),
            ));
        }
        (None, Some(_)) => {
            return Err(Error::usage(
                format!("{CLIENT_KEY}: its certificate is missing"),
                format!("set {CLIENT_CERT}"),
            ));
        }
    };
    Ok(Some(Arc::new(config)))
}

fn refuse(setting: &str, path: &Path, cause: &str, next: &str) -> Error {
    Error::usage(format!("{setting}: {path:?} cannot be used: {cause}"), next)
}

fn roots_of(path: &Path) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(CA_FILE, path)? {
        roots.add(certificate).map_err(|error| {
            refuse(CA_FILE, path, &error.to_string(), "name a PEM file of the authority's certificate")
        })?;
    }
    Ok(roots)
}

fn roots_of_the_system() -> Result<RootCertStore, Error> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (usable, _) = roots.add_parsable_certificates(found.certs);
    if usable == 0 {
        let cause = found.errors.first().map(|error| format!(" ({error})")).unwrap_or_default();
        return Err(Error::usage(
            format!(
                "AMQP_CONNECTION_STRING (--amqp-url): amqps:// needs an authority to trust, and this system names none{cause}"
            ),
            format!("install ca-certificates, or set {CA_FILE}"),
        ));
    }
    Ok(roots)
}

fn certificates(setting: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let pem = read(setting, path)?;
    let next = "name a PEM file (-----BEGIN CERTIFICATE-----)";
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match found {
        Ok(found) if found.is_empty() => Err(refuse(setting, path, "it holds no certificate", next)),
        Ok(found) => Ok(found),
        Err(error) => Err(refuse(setting, path, &error.to_string(), next)),
    }
}

/// What is wrong inside of it is not told: that could show a part of it.
fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, Error> {
    let pem = read(CLIENT_KEY, path)?;
    PrivateKeyDer::from_pem_slice(&pem).map_err(|_| {
        refuse(
            CLIENT_KEY,
            path,
            "it holds no private key that can be read without a password",
            "name a PEM file (-----BEGIN PRIVATE KEY-----)",
        )
    })
}

fn read(setting: &str, path: &Path) -> Result<Vec<u8>, Error> {
    let refuse = |cause: &str| refuse(setting, path, cause, "name a PEM file that this user may read");
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(PEM_BYTES_MAX + 1).read_to_end(&mut bytes))
        .map_err(|error| refuse(&os_message(&error)))?;
    if bytes.len() as u64 > PEM_BYTES_MAX {
        return Err(refuse(&format!("it is longer than {PEM_BYTES_MAX} bytes")));
    }
    Ok(bytes)
}

fn unfit(error: &rustls::Error) -> String {
    match error {
        rustls::Error::InconsistentKeys(_) => "it is not the key of the client certificate".to_owned(),
        other => format!("the client certificate or its key is of no use ({other})"),
    }
}

/// For a broker that wants to know us.
const OURS: &str =
    "set --amqp-client-cert and --amqp-client-key to a certificate that the broker's authorities have signed";

/// What it means when the broker hangs up after a handshake that was good for us. TLS 1.3 looks at the client's certificate
/// only then, and the alert that tells so is often lost with the connection.
#[must_use]
pub fn hung_up(config: &ClientConfig) -> (&'static str, &'static str) {
    match config.client_auth_cert_resolver.has_certs() {
        true => ("it may refuse the client certificate", OURS),
        false => ("it may demand a client certificate", OURS),
    }
}

/// What went wrong with TLS and what to do about it, if the error is TLS's.
#[must_use]
pub fn explain(error: &io::Error) -> Option<(String, &'static str)> {
    const RENEW: &str = "renew the broker's certificate, or set this host's clock right";
    let error = error.get_ref()?.downcast_ref::<rustls::Error>()?;
    Some(match error {
        rustls::Error::InvalidCertificate(flaw) => match flaw {
            CertificateError::UnknownIssuer | CertificateError::BadSignature => (
                "its certificate is signed by an authority that is not trusted here".to_owned(),
                "set --amqp-ca-file to the certificate of the authority that signed it",
            ),
            CertificateError::NotValidForNameContext { expected, presented } => {
                other_name(&expected.to_str(), presented)
            }
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                ("its certificate has expired".to_owned(), RENEW)
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                ("its certificate is not valid yet".to_owned(), RENEW)
            }
            // `openssl req -x509` makes such certificates.
            CertificateError::Other(other) if other.to_string().contains("CaUsedAsEndEntity") => (
                "its certificate is an authority's own (CA:TRUE)".to_owned(),
                "give the broker a certificate that this authority has signed",
            ),
            other => (format!("its certificate cannot be used: {other}"), "give the broker another certificate"),
        },
        rustls::Error::InvalidMessage(_) => (
            "it does not speak TLS at this port".to_owned(),
            "name its TLS port (5671, by custom), or write amqp:// for a connection that is not encrypted",
        ),
        rustls::Error::AlertReceived(AlertDescription::CertificateRequired) => {
            ("it demands a client certificate".to_owned(), OURS)
        }
        // TLS 1.2 has no alert of its own for that.
        rustls::Error::AlertReceived(AlertDescription::HandshakeFailure) => {
            ("it refuses the TLS handshake; it may demand a client certificate".to_owned(), OURS)
        }
        rustls::Error::AlertReceived(
            alert @ (AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied),
        ) => (format!("it refuses the client certificate ({alert:?})"), OURS),
        other => (format!("TLS: {other}"), "see the broker's log and its ssl_options"),
    })
}

fn other_name(expected: &str, presented: &[String]) -> (String, &'static str) {
    // Each as `DnsName("host")` or `IpAddress(1.2.3.4)`.
    let bare = |name: &String| match name.split_once('(') {
        Some((_, name)) => name.trim_matches([')', '"']).to_owned(),
        None => name.clone(),
    };
    let names = match presented {
        [] => "no name (it has no subjectAltName)".to_owned(),
        names => names.iter().map(bare).collect::<Vec<_>>().join(", "),
    };
    (
        format!("its certificate is for {names}, not for {expected}"),
        "name the host in AMQP_CONNECTION_STRING as the certificate does, or give the broker one with that name",
    )
}
