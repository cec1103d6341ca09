//! Handshakes that judge nothing: for looking at what the other end presents, asks for and accepts. Nothing that
//! comes over such a connection may be believed, and nothing secret may be sent.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use countersign_identity::PrivateKeyDer;
use rustls::client::ResolvesClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, Error, ServerConfig, SignatureScheme,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::credentials::provider;
use crate::handshake::{drive, info};
use crate::{ClientStream, CredentialError, HandshakeError, HandshakeInfo, ServerStream};

/// What to present: a chain, leaf first, with the leaf's key. Neither is checked.
#[derive(Clone, Debug)]
pub struct ProbeIdentity {
    /// DER.
    pub chain: Vec<Vec<u8>>,
    /// PKCS#8.
    pub key: PrivateKeyDer,
}

impl ProbeIdentity {
    fn certified(&self) -> Result<Arc<CertifiedKey>, CredentialError> {
        let key = rustls::pki_types::PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(
            self.key.expose_pkcs8().to_vec(),
        ));
        let key = provider().key_provider.load_private_key(key)?;
        let chain = self.chain.iter().cloned().map(CertificateDer::from).collect();
        Ok(Arc::new(CertifiedKey::new(chain, key)))
    }
}

/// Which versions to offer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Offer {
    /// TLS 1.3 and 1.2.
    #[default]
    Both,
    /// TLS 1.2 only.
    Only12,
    /// TLS 1.3 only.
    Only13,
}

/// A client that takes any server. Sessions are resumed between the connections of one client.
pub struct ProbeClient {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    seen: Arc<Seen>,
}

/// What the other end did.
#[derive(Debug)]
struct Seen {
    chain: Mutex<Vec<Vec<u8>>>,
    asked: AtomicBool,
    algorithms: WebPkiSupportedAlgorithms,
    present: Option<Arc<CertifiedKey>>,
}

/// A connection on which nothing was judged.
pub struct Probed<S> {
    /// The stream.
    pub stream: S,
    /// What was negotiated.
    pub info: HandshakeInfo,
    /// The application protocol, if one was chosen.
    pub alpn: Option<Vec<u8>>,
    /// The client's chain, where we are the server.
    pub client_chain: Vec<Vec<u8>>,
}

impl ProbeClient {
    /// Presents `identity` whenever it is asked for one. `server_name` is sent if it is a DNS name.
    pub fn new(
        identity: Option<&ProbeIdentity>,
        server_name: &str,
        alpn: &[&[u8]],
        offer: Offer,
    ) -> Result<Self, CredentialError> {
        let provider = Arc::new(provider());
        let seen = Arc::new(Seen {
            chain: Mutex::default(),
            asked: AtomicBool::new(false),
            algorithms: provider.signature_verification_algorithms,
            present: identity.map(ProbeIdentity::certified).transpose()?,
        });
        let versions: &[&rustls::SupportedProtocolVersion] = match offer {
            Offer::Both => rustls::ALL_VERSIONS,
            Offer::Only12 => &[&rustls::version::TLS12],
            Offer::Only13 => &[&rustls::version::TLS13],
        };
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)?
            .dangerous()
            // countersign:allow client-verify-disabled reason=a probe looks at whatever is there and believes nothing
            .with_custom_certificate_verifier(Arc::clone(&seen) as _)
            .with_client_cert_resolver(Arc::clone(&seen) as _);
        config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
        let name = ServerName::try_from(server_name.to_owned())
            .map_err(|_| CredentialError::Certificate(format!("`{server_name}` is no name")))?;
        Ok(Self { config: Arc::new(config), name, seen })
    }

    /// Shakes hands. In TLS 1.3 the server judges our certificate only afterwards.
    pub async fn connect<S>(
        &self,
        stream: S,
        timeout: Duration,
    ) -> Result<Probed<ClientStream<S>>, HandshakeError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let started = Instant::now();
        let connector = TlsConnector::from(Arc::clone(&self.config));
        let stream = drive(connector.connect(self.name.clone(), stream), timeout).await?;
        let (_, connection) = stream.get_ref();
        let info = info(connection, started);
        let alpn = connection.alpn_protocol().map(<[u8]>::to_vec);
        Ok(Probed { info, alpn, stream, client_chain: Vec::new() })
    }

    /// Whether a certificate was asked for on any connection so far.
    pub fn was_asked(&self) -> bool {
        self.seen.asked.load(Ordering::Relaxed)
    }

    /// What the server presented last, DER, leaf first.
    pub fn presented(&self) -> Vec<Vec<u8>> {
        self.seen.chain.lock().unwrap_or_else(|e| e.into_inner()).clone()
    }
}

impl ResolvesClientCert for Seen {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.asked.store(true, Ordering::Relaxed);
        self.present.clone()
    }

    // Always: only then is it told that it was asked.
    fn has_certs(&self) -> bool {
        true
    }
}

impl ServerCertVerifier for Seen {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let mut chain = self.chain.lock().unwrap_or_else(|e| e.into_inner());
        chain.clear();
        chain.push(end_entity.to_vec());
        chain.extend(intermediates.iter().map(|c| c.to_vec()));
        // countersign:allow client-verify-disabled reason=a probe looks at whatever is there and believes nothing
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// A server that asks every client for a certificate and takes any, or none.
#[derive(Clone)]
pub struct ProbeServer(Arc<ServerConfig>);

#[derive(Debug)]
struct TakesAny(WebPkiSupportedAlgorithms);

impl ProbeServer {
    /// Presents `identity`.
    pub fn new(identity: &ProbeIdentity, alpn: &[&[u8]]) -> Result<Self, CredentialError> {
        let provider = Arc::new(provider());
        let verifier = TakesAny(provider.signature_verification_algorithms);
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(rustls::ALL_VERSIONS)?
            // countersign:allow server-client-cert-unverified,server-client-auth-optional reason=a probe looks at whatever is there and believes nothing
            .with_client_cert_verifier(Arc::new(verifier))
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(identity.certified()?)));
        // Each connection is to judge our certificate anew.
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
        Ok(Self(Arc::new(config)))
    }

    /// Shakes hands.
    pub async fn accept<S>(
        &self,
        stream: S,
        timeout: Duration,
    ) -> Result<Probed<ServerStream<S>>, HandshakeError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let started = Instant::now();
        let acceptor = TlsAcceptor::from(Arc::clone(&self.0));
        let stream = drive(acceptor.accept(stream), timeout).await?;
        let (_, connection) = stream.get_ref();
        let client_chain =
            connection.peer_certificates().unwrap_or_default().iter().map(|c| c.to_vec()).collect();
        let server_name = connection.server_name().map(str::to_owned);
        let info = HandshakeInfo { server_name, ..info(connection, started) };
        let alpn = connection.alpn_protocol().map(<[u8]>::to_vec);
        Ok(Probed { info, alpn, stream, client_chain })
    }
}

impl ClientCertVerifier for TakesAny {
    fn client_auth_mandatory(&self) -> bool {
        // countersign:allow server-client-auth-optional reason=a probe looks at whatever is there and believes nothing
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        // countersign:allow server-client-cert-unverified reason=a probe looks at whatever is there and believes nothing
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}

/// The alert that ended an established connection, in the standard's words, if that is what ended it.
pub fn alert_of(e: &io::Error) -> Option<String> {
    match e.get_ref()?.downcast_ref::<Error>()? {
        Error::AlertReceived(alert) => Some(format!("{alert:?}")),
        _ => None,
    }
}
