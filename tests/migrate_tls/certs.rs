//! Authorities and certificates, good ones and bad ones.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use kvm_xen::vmm::migrate::tls::Tls;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    date_time_ymd,
};
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

/// Who signs.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key.
pub struct Identity {
    pub cert_pem: String,
    pub key_pem: String,
    cert: CertificateDer<'static>,
    key: Vec<u8>,
}

/// What of a certificate is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    None,
    Expired,
    NotYet,
    OtherName,
    ServerOnly,
    ClientOnly,
}

pub fn authority() -> Authority {
    let mut params = CertificateParams::new(Vec::new()).expect("an authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().expect("a key");
    Authority(CertifiedIssuer::self_signed(params, key).expect("an authority"))
}

impl Authority {
    pub fn pem(&self) -> String {
        self.0.pem()
    }

    pub fn identity(&self, fault: Fault) -> Identity {
        let names = match fault {
            Fault::OtherName => vec!["other.example".to_owned(), "10.1.2.3".to_owned()],
            _ => vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()],
        };
        let mut params = CertificateParams::new(names).expect("names");
        match fault {
            Fault::Expired => params.not_after = date_time_ymd(2020, 1, 1),
            Fault::NotYet => params.not_before = date_time_ymd(2200, 1, 1),
            Fault::ServerOnly => {
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
            }
            Fault::ClientOnly => {
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
            }
            Fault::None | Fault::OtherName => {}
        }
        let key = KeyPair::generate().expect("a key");
        let cert = params.signed_by(&key, &self.0).expect("a certificate");
        Identity {
            cert_pem: cert.pem(),
            key_pem: key.serialize_pem(),
            cert: cert.der().clone(),
            key: key.serialize_der(),
        }
    }

    /// The three files, as users make them.
    pub fn write(&self, directory: &Path, identity: &Identity) {
        fs::create_dir_all(directory).expect("a directory");
        fs::write(directory.join("ca.pem"), self.pem()).expect("written");
        fs::write(directory.join("cert.pem"), &identity.cert_pem).expect("written");
        let key = directory.join("key.pem");
        drop(fs::remove_file(&key));
        fs::write(&key, &identity.key_pem).expect("written");
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("a mode");
    }

    /// What a peer would use that looks at nothing of its own: of this authority for the
    /// other end, with this certificate.
    pub fn unchecked(&self, identity: Option<&Identity>) -> Tls {
        let provider = Arc::new(ring::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(self.0.der().clone()).expect("a root");
        let roots = Arc::new(roots);
        let own = |identity: &Identity| {
            let key = PrivateKeyDer::try_from(identity.key.clone()).expect("a key");
            (vec![identity.cert.clone()], key)
        };
        let client = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3")
            .with_root_certificates(Arc::clone(&roots));
        let mut client = match identity {
            Some(identity) => {
                let (chain, key) = own(identity);
                client.with_client_auth_cert(chain, key).expect("a client")
            }
            None => client.with_no_client_auth(),
        };
        let verifier =
            WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider)).build();
        let spare = self.identity(Fault::None);
        let (chain, key) = own(identity.unwrap_or(&spare));
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3")
            .with_client_cert_verifier(verifier.expect("a verifier"))
            .with_single_cert(chain, key)
            .expect("a server");
        client.alpn_protocols = vec![b"kvm-xen-migrate".to_vec()];
        server.alpn_protocols = client.alpn_protocols.clone();
        server.send_tls13_tickets = 0;
        Tls { client: Arc::new(client), server: Arc::new(server) }
    }
}
