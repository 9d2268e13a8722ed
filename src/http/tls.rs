//! TLS at the door: a certificate and its key, read from files, and read again while the server runs. HTTP/1.1 only: HTTP/2
//! would bring bounds of its own.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use rustls::ServerConfig;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio_rustls::TlsAcceptor;

/// Where the certificate and its key are: PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The server's certificate, and those between it and its authority.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// Why files will not do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key} ({}): {problem}", file.display())]
pub struct TlsError {
    /// The key of the configuration that names the file.
    key: &'static str,
    file: PathBuf,
    problem: String,
}

/// What a server shows to its clients. Clones share it.
#[derive(Clone)]
pub struct Tls(Arc<Shared>);

struct Shared {
    files: TlsFiles,
    provider: Arc<CryptoProvider>,
    shown: RwLock<Arc<CertifiedKey>>,
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// One cannot be read, or they do not belong together.
    pub fn read(files: TlsFiles) -> Result<Self, TlsError> {
        let provider = Arc::new(ring::default_provider());
        let shown = RwLock::new(Arc::new(read(&files, &provider)?));
        Ok(Self(Arc::new(Shared {
            files,
            provider,
            shown,
        })))
    }

    /// Reads the files again. Handshakes from now on show what is in them; what is connected stays so. Files that will not
    /// do change nothing.
    ///
    /// # Errors
    /// As [`Tls::read`].
    pub fn read_again(&self) -> Result<(), TlsError> {
        let newer = Arc::new(read(&self.0.files, &self.0.provider)?);
        *self.0.shown.write().unwrap_or_else(PoisonError::into_inner) = newer;
        Ok(())
    }

    /// What does the handshakes.
    ///
    /// # Errors
    /// The provider has no cipher for TLS 1.2 or 1.3.
    pub(super) fn acceptor(&self) -> std::io::Result<TlsAcceptor> {
        let mut config = ServerConfig::builder_with_provider(Arc::clone(&self.0.provider))
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .map_err(std::io::Error::other)?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(self.clone()));
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}

impl ResolvesServerCert for Tls {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let shown = self.0.shown.read().unwrap_or_else(PoisonError::into_inner);
        Some(Arc::clone(&shown))
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the key.
        self.0.files.fmt(out)
    }
}

fn read(files: &TlsFiles, provider: &CryptoProvider) -> Result<CertifiedKey, TlsError> {
    let certificate_problem = |problem: String| TlsError {
        key: "http.tls_certificate",
        file: files.certificate.clone(),
        problem,
    };
    let key_problem = |problem: String| TlsError {
        key: "http.tls_key",
        file: files.key.clone(),
        problem,
    };
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(&files.certificate)
        .and_then(Iterator::collect)
        .map_err(|error| certificate_problem(error.to_string()))?;
    if chain.is_empty() {
        return Err(certificate_problem(
            "there is no certificate in it; it must be PEM, the server's certificate first"
                .to_owned(),
        ));
    }
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|error| match error {
        rustls::pki_types::pem::Error::NoItemsFound => key_problem(
            "there is no private key in it; it must be PEM, and not encrypted".to_owned(),
        ),
        error => key_problem(error.to_string()),
    })?;
    CertifiedKey::from_der(chain, key, provider).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => key_problem(format!(
            "it is not the key of the certificate in {} (http.tls_certificate)",
            files.certificate.display()
        )),
        rustls::Error::InvalidCertificate(_) => certificate_problem(error.to_string()),
        error => key_problem(error.to_string()),
    })
}
