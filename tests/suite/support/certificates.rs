//! Authorities and the certificates that they sign, made for the test.

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

/// A certificate authority.
pub struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key, both in PEM.
pub struct Certified {
    pub certificate: String,
    pub key: String,
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let mut params = named(name, &[]);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let pem = params.self_signed(&key).expect("an authority").pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// Writes its certificate to a file.
    pub fn file(&self, directory: &Path) -> PathBuf {
        write(directory, "authority.pem", &self.pem)
    }

    /// A certificate by this name for these hosts.
    pub fn certify(&self, name: &str, hosts: &[&str]) -> Certified {
        self.certify_as(named(name, hosts))
    }

    pub fn certify_as(&self, params: CertificateParams) -> Certified {
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate").pem();
        Certified { certificate, key: key.serialize_pem() }
    }
}

impl Certified {
    /// Writes two files: the certificate and its key.
    pub fn files(&self, directory: &Path) -> [PathBuf; 2] {
        [write(directory, "certificate.pem", &self.certificate), write(directory, "key.pem", &self.key)]
    }
}

/// An unsigned certificate by this name for these hosts.
pub fn named(name: &str, hosts: &[&str]) -> CertificateParams {
    let hosts: Vec<String> = hosts.iter().map(ToString::to_string).collect();
    let mut params = CertificateParams::new(hosts).expect("host names");
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

fn write(directory: &Path, name: &str, pem: &str) -> PathBuf {
    let path = directory.join(name);
    fs::write(&path, pem).expect("a PEM file");
    path
}
