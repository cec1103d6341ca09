//! Ordinary HTTPS: a server is believed for its DNS name, by public or given roots. For what lies outside of any
//! trust domain, such as the keys of a token issuer; never for peers.

use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;

use crate::credentials::provider;
use crate::handshake::drive;
use crate::{ClientStream, CredentialError, HandshakeError};

/// A client of web servers. It has no certificate of its own.
#[derive(Clone)]
pub struct WebClient(Arc<ClientConfig>);

impl WebClient {
    /// Trusts `roots` (DER) and nobody else; without any, what this host trusts.
    pub fn new(roots: &[Vec<u8>]) -> Result<Self, CredentialError> {
        let mut store = RootCertStore::empty();
        if roots.is_empty() {
            // One broken file among a hundred roots must not take the others with it.
            store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
        for der in roots {
            store.add(CertificateDer::from(der.as_slice()).into_owned())?;
        }
        let config = ClientConfig::builder_with_provider(Arc::new(provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(store)
            .with_no_client_auth();
        Ok(Self(Arc::new(config)))
    }

    /// Makes sure that whoever answers on `stream` is `name`: a DNS name or an address.
    pub async fn connect<S>(
        &self,
        stream: S,
        name: &str,
        timeout: Duration,
    ) -> Result<ClientStream<S>, HandshakeError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let name = ServerName::try_from(name.to_owned())
            .map_err(|_| HandshakeError::Protocol(format!("`{name}` is no name of a server")))?;
        drive(TlsConnector::from(Arc::clone(&self.0)).connect(name, stream), timeout).await
    }
}

impl std::fmt::Debug for WebClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("WebClient")
    }
}
