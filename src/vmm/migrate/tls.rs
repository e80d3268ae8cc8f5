//! Who may send a guest here, and to whom it may be sent: TLS 1.3 in which both
//! ends show a certificate of one authority.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::version::TLS13;
use rustls::{AlertDescription, CertificateError, ClientConfig, RootCertStore, ServerConfig};

/// What speaks here; another protocol's end is told apart by it.
const PROTOCOL: &[u8] = b"kvm-xen-migrate";
/// The most bytes of one of the files.
const MOST_FILE: u64 = 1 << 20;

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file.
    #[error("--tls-dir: cannot read {path}: {error}; the directory holds ca.pem, cert.pem and key.pem", path = .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the host said.
        error: io::Error,
    },
    /// It is no such file.
    #[error("--tls-dir: {path} is longer than {MOST_FILE} bytes: it is no certificate or key", path = .path.display())]
    Long {
        /// The file.
        path: PathBuf,
    },
    /// Others may use the key.
    #[error("--tls-dir: others may read {path}, whose mode is {mode:o}: chmod 600 {path}", path = .path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// It is no PEM of what it should be.
    #[error("--tls-dir: {path} holds no {wanted} in PEM: {why}", path = .path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        wanted: &'static str,
        /// What is wrong.
        why: String,
    },
    /// The authority.
    #[error("--tls-dir: {path} is no authority's certificate: {error}", path = .path.display())]
    Authority {
        /// The file.
        path: PathBuf,
        /// Why.
        error: String,
    },
    /// The certificate and its key.
    #[error("--tls-dir: {path} does not do: {error}; sign another one with the authority of ca.pem", path = .path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// Why.
        error: rustls::Error,
    },
    /// The key.
    #[error("--tls-dir: {path} is not the key of cert.pem, or of a kind that is not known: {error}", path = .path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// Why.
        error: rustls::Error,
    },
}

/// Both roles of one end.
#[derive(Clone, Debug)]
pub struct Tls {
    /// Of a source.
    pub client: Arc<ClientConfig>,
    /// Of a destination.
    pub server: Arc<ServerConfig>,
}

fn read(path: &Path, secret: bool) -> Result<Vec<u8>, TlsError> {
    let failed = |error| TlsError::Read { path: path.to_owned(), error };
    let file = File::open(path).map_err(failed)?;
    let mode = file.metadata().map_err(failed)?.permissions().mode() & 0o7777;
    if secret && mode & 0o077 != 0 {
        return Err(TlsError::Exposed { path: path.to_owned(), mode });
    }
    let mut bytes = Vec::new();
    file.take(MOST_FILE + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MOST_FILE {
        return Err(TlsError::Long { path: path.to_owned() });
    }
    Ok(bytes)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let refused = |why| TlsError::Pem { path: path.to_owned(), wanted: "certificate", why };
    let bytes = read(path, false)?;
    let all: Vec<_> = CertificateDer::pem_slice_iter(&bytes)
        .collect::<Result<_, _>>()
        .map_err(|error| refused(error.to_string()))?;
    if all.is_empty() {
        return Err(refused("there is none".to_owned()));
    }
    Ok(all)
}

fn key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(&read(path, true)?).map_err(|error| TlsError::Pem {
        path: path.to_owned(),
        wanted: "private key without a password",
        why: error.to_string(),
    })
}

impl Tls {
    /// Reads `ca.pem`, `cert.pem` and `key.pem`, and holds the certificate against
    /// the authority, as the other end will.
    ///
    /// # Errors
    /// [`TlsError`], with the file and what to do.
    pub fn load(directory: &Path) -> Result<Self, TlsError> {
        let path = |name| directory.join(name);
        let (ca, cert, secret) = (path("ca.pem"), path("cert.pem"), path("key.pem"));
        let provider: Arc<CryptoProvider> = Arc::new(ring::default_provider());
        let authority = |error: &dyn ToString| TlsError::Authority {
            path: ca.clone(),
            error: error.to_string(),
        };
        let mut roots = RootCertStore::empty();
        for root in certificates(&ca)? {
            roots.add(root).map_err(|error| authority(&error))?;
        }
        let roots = Arc::new(roots);
        let chain = certificates(&cert)?;
        let key_der = key(&secret)?;
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
                .build()
                .map_err(|error| authority(&error))?;
        let refused = |error| TlsError::Certificate { path: cert.clone(), error };
        let no_key = |error| TlsError::Key { path: secret.clone(), error };
        if let [leaf, rest @ ..] = chain.as_slice() {
            verifier.verify_client_cert(leaf, rest, UnixTime::now()).map_err(refused)?;
        }
        let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&TLS13])
            .map_err(refused)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain.clone(), key_der.clone_key())
            .map_err(no_key)?;
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .map_err(refused)?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key_der)
            .map_err(no_key)?;
        server.alpn_protocols = vec![PROTOCOL.to_vec()];
        client.alpn_protocols = vec![PROTOCOL.to_vec()];
        // One guest, one connection: nothing is to be resumed.
        server.send_tls13_tickets = 0;
        client.resumption = Resumption::disabled();
        Ok(Self { client: Arc::new(client), server: Arc::new(server) })
    }
}

/// What went wrong with the other end, and what to do about it.
#[must_use]
pub fn explain(error: &io::Error) -> String {
    let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) else {
        return match error.kind() {
            io::ErrorKind::UnexpectedEof => "it ended the connection".to_owned(),
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                "it said nothing for too long".to_owned()
            }
            _ => error.to_string(),
        };
    };
    match tls {
        rustls::Error::AlertReceived(alert) => {
            let what = match alert {
                AlertDescription::CertificateExpired => "it has expired, or is not valid yet",
                AlertDescription::UnknownCA => "another authority signed it",
                AlertDescription::CertificateRequired => "there was none",
                AlertDescription::DecryptError => "another authority of that name signed it",
                AlertDescription::UnsupportedCertificate => {
                    "it is for another use (extended key usage)"
                }
                AlertDescription::BadCertificate | AlertDescription::CertificateUnknown => {
                    "it does not do there"
                }
                other => return format!("it broke TLS off: {other:?}"),
            };
            format!(
                "it refuses this side's certificate: {what}; see cert.pem here and ca.pem there"
            )
        }
        rustls::Error::InvalidCertificate(
            CertificateError::UnknownIssuer | CertificateError::BadSignature,
        ) => "another authority signed its certificate; see ca.pem here and cert.pem there"
            .to_owned(),
        rustls::Error::InvalidCertificate(why) => {
            format!("its certificate does not do: {why}; see cert.pem there")
        }
        rustls::Error::NoCertificatesPresented => {
            "it showed no certificate; give both sides a --tls-dir".to_owned()
        }
        rustls::Error::InvalidMessage(_)
        | rustls::Error::PeerIncompatible(_)
        | rustls::Error::NoApplicationProtocol => {
            format!("it is no kvm-xen with --tls-dir: {tls}")
        }
        other => other.to_string(),
    }
}
