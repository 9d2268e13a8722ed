//! Certificates for the tests of TLS.

use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use reqwest::{Certificate, Client};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::Shop;

/// An authority, and the files of a server that it has certified.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    directory: tempfile::TempDir,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let authority = Self {
            issuer: CertifiedIssuer::self_signed(params, key).expect("signed"),
            directory: tempfile::tempdir().expect("a directory"),
        };
        authority.write("ca.pem", &authority.issuer.pem());
        authority.certify();
        authority
    }

    /// Writes a new certificate for this machine, and its key.
    pub(crate) fn certify(&self) {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("names");
        let certificate = params.signed_by(&key, &self.issuer).expect("signed");
        self.write("tls.crt", &certificate.pem());
        self.write("tls.key", &key.serialize_pem());
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        std::fs::write(self.directory.path().join(name), text).expect("written");
    }

    pub(crate) fn path(&self, name: &str) -> String {
        let path = self.directory.path().join(name);
        path.to_str().expect("UTF-8").to_owned()
    }

    /// The configuration's keys.
    pub(crate) fn keys(&self) -> String {
        format!(
            "tls_certificate = \"{}\"\ntls_key = \"{}\"",
            self.path("tls.crt"),
            self.path("tls.key")
        )
    }

    /// The certificate that a server shows as long as nothing is reloaded.
    pub(crate) fn certificate(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_file(self.path("tls.crt")).expect("PEM")
    }

    pub(crate) fn client(&self) -> reqwest::ClientBuilder {
        let ca = std::fs::read(self.path("ca.pem")).expect("readable");
        let ca = Certificate::from_pem(&ca).expect("PEM");
        Client::builder().no_proxy().tls_certs_only([ca])
    }

    /// A connection, after its handshake.
    pub(crate) async fn connect(&self, shop: &Shop) -> TlsStream<TcpStream> {
        let mut roots = RootCertStore::empty();
        let ca = CertificateDer::from_pem_file(self.path("ca.pem")).expect("PEM");
        roots.add(ca).expect("added");
        let config = ClientConfig::builder()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let address = shop.config.http.listen;
        let stream = TcpStream::connect(address).await.expect("connects");
        let name = ServerName::from(address.ip());
        let connector = TlsConnector::from(Arc::new(config));
        connector.connect(name, stream).await.expect("TLS")
    }
    /// Speaks TLS in front of a server that does not, as long as the test runs. Returns its port.
    pub(crate) async fn before(&self, server: std::net::SocketAddr) -> u16 {
        // As by whoever prepares a client.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let key = PrivateKeyDer::from_pem_file(self.path("tls.key")).expect("PEM");
        let config = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![self.certificate()], key)
            .expect("a certificate");
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    // A client that does not trust us goes away here.
                    let Ok(mut outside) = acceptor.accept(stream).await else {
                        return;
                    };
                    let mut inside = TcpStream::connect(server).await.expect("connects");
                    let _ = tokio::io::copy_bidirectional(&mut outside, &mut inside).await;
                });
            }
        });
        port
    }
}
