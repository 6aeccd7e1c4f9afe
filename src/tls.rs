//! TLS: the trusted authorities, our client certificate, and the error line for each failed handshake.

use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::client::WantsClientCert;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{AlertDescription, CertificateError, ClientConfig, ConfigBuilder, RootCertStore};

use crate::cli::AmqpSettings;
use crate::error::{Error, os_message};
use crate::files::whole::read_whole;

/// The longest PEM file that is read, in bytes. A system's whole bundle of authorities has some 250,000.
const PEM_BYTES_MAX: u64 = 4 * 1024 * 1024;

const CA_FILE: &str = "--amqp-ca-file (INGESTOR_AMQP_CA_FILE)";

const CLIENT_CERT: &str = "--amqp-client-cert (INGESTOR_AMQP_CLIENT_CERT)";

const CLIENT_KEY: &str = "--amqp-client-key (INGESTOR_AMQP_CLIENT_KEY)";

/// Reads and checks the files that TLS needs; `None` where the connection is not encrypted.
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
        Some(path) => authorities_in(path)?,
        None => authorities_of_the_system()?,
    };
    let internal = |error: rustls::Error| Error::Internal(format!("TLS cannot be set up: {error}"));
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(internal)?
        .with_root_certificates(roots);
    Ok(Some(Arc::new(with_client_certificate(config, settings)?)))
}

fn with_client_certificate(
    config: ConfigBuilder<ClientConfig, WantsClientCert>,
    settings: &AmqpSettings,
) -> Result<ClientConfig, Error> {
    match (&settings.client_cert, &settings.client_key) {
        (None, None) => Ok(config.with_no_client_auth()),
        (Some(certificate), Some(key)) => {
            let (chain, secret) = (certificates(CLIENT_CERT, certificate)?, private_key(key)?);
            config
                .with_client_auth_cert(chain, secret)
                .map_err(|error| refuse(CLIENT_KEY, key, &unfit(&error), "name the key of the certificate"))
        }
        (Some(_), None) => {
            Err(Error::usage(format!("{CLIENT_CERT}: its private key is missing"), format!("set {CLIENT_KEY}")))
        }
        (None, Some(_)) => {
            Err(Error::usage(format!("{CLIENT_KEY}: its certificate is missing"), format!("set {CLIENT_CERT}")))
        }
    }
}

fn refuse(setting: &str, path: &Path, cause: &str, next: &str) -> Error {
    Error::usage(format!("{setting}: {path:?} cannot be used: {cause}"), next)
}

fn authorities_in(path: &Path) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(CA_FILE, path)? {
        roots.add(certificate).map_err(|error| {
            refuse(CA_FILE, path, &os_message(&error), "name a PEM file of the authority's certificate")
        })?;
    }
    Ok(roots)
}

fn authorities_of_the_system() -> Result<RootCertStore, Error> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (usable, _) = roots.add_parsable_certificates(found.certs);
    if usable == 0 {
        let cause = found.errors.first().map(|error| format!(" ({})", os_message(error))).unwrap_or_default();
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
        Err(error) => Err(refuse(setting, path, &os_message(&error), next)),
    }
}

/// The error does not say what is wrong inside the file, because that could show a part of the key.
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
    let refuse = |cause: String| refuse(setting, path, &cause, "name a PEM file that this user may read");
    read_whole(path, PEM_BYTES_MAX)
        .map_err(|error| Error::of_setting(format!("{setting}: {path:?} cannot be read"), error, refuse))
}

fn unfit(error: &rustls::Error) -> String {
    match error {
        rustls::Error::InconsistentKeys(_) => "it is not the key of the client certificate".to_owned(),
        other => format!("the client certificate or its key is of no use ({other})"),
    }
}

/// The next step where a broker wants a client certificate.
const SET_CLIENT_CERT: &str =
    "set --amqp-client-cert and --amqp-client-key to a certificate that the broker's authorities have signed";

/// Cause and next step where the broker closes the connection after the client has completed the handshake. TLS 1.3 checks the
/// client's certificate only then, and the alert that reports a failure is often lost with the connection.
#[must_use]
pub fn hung_up(config: &ClientConfig) -> (&'static str, &'static str) {
    match config.client_auth_cert_resolver.has_certs() {
        true => ("it may refuse the client certificate", SET_CLIENT_CERT),
        false => ("it may demand a client certificate", SET_CLIENT_CERT),
    }
}

/// Cause and next step, if the error is one of TLS.
#[must_use]
pub fn explain(error: &io::Error) -> Option<(String, &'static str)> {
    Some(match error.get_ref()?.downcast_ref::<rustls::Error>()? {
        rustls::Error::InvalidCertificate(flaw) => explain_certificate(flaw),
        rustls::Error::InvalidMessage(_) => (
            "it does not speak TLS at this port".to_owned(),
            "name its TLS port (5671, by custom), or write amqp:// for a connection that is not encrypted",
        ),
        rustls::Error::AlertReceived(AlertDescription::CertificateRequired) => {
            ("it demands a client certificate".to_owned(), SET_CLIENT_CERT)
        }
        // TLS 1.2 has no special alert for a missing client certificate.
        rustls::Error::AlertReceived(AlertDescription::HandshakeFailure) => {
            ("it refuses the TLS handshake; it may demand a client certificate".to_owned(), SET_CLIENT_CERT)
        }
        rustls::Error::AlertReceived(
            alert @ (AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied),
        ) => (format!("it refuses the client certificate ({alert:?})"), SET_CLIENT_CERT),
        other => (format!("TLS: {other}"), "see the broker's log and its ssl_options"),
    })
}

fn explain_certificate(flaw: &CertificateError) -> (String, &'static str) {
    const RENEW: &str = "renew the broker's certificate, or set this host's clock right";
    match flaw {
        CertificateError::UnknownIssuer | CertificateError::BadSignature => (
            "its certificate is signed by an authority that is not trusted here".to_owned(),
            "set --amqp-ca-file to the certificate of the authority that signed it",
        ),
        CertificateError::NotValidForNameContext { expected, presented } => other_name(&expected.to_str(), presented),
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
    }
}

fn other_name(expected: &str, presented: &[String]) -> (String, &'static str) {
    // Each name is presented as `DnsName("host")` or `IpAddress(1.2.3.4)`.
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
