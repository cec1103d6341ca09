//! TLS ends that present whatever they are given and accept whatever they are shown.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, Error, ServerConfig, SignatureScheme,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::TestIdentity;

#[derive(Debug)]
struct AcceptAnything;

fn schemes() -> Vec<SignatureScheme> {
    default_provider().signature_verification_algorithms.supported_schemes()
}

impl ServerCertVerifier for AcceptAnything {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        // countersign:allow client-verify-disabled reason=a test peer that takes anything, to see what the other side refuses
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        schemes()
    }
}

impl ClientCertVerifier for AcceptAnything {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }
    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        // countersign:allow server-client-cert-unverified reason=a test peer that takes anything, to see what the other side refuses
        Ok(ClientCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        schemes()
    }
}

fn certified(identity: &TestIdentity) -> Arc<SingleCertAndKey> {
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(identity.key.expose_pkcs8().to_vec()));
    let key = default_provider().key_provider.load_private_key(key).expect("key");
    let chain = identity.chain.iter().cloned().map(CertificateDer::from).collect();
    // Not checked against each other: a mismatch is one of the stories.
    Arc::new(SingleCertAndKey::from(CertifiedKey::new(chain, key)))
}

/// A client that presents `identity`, or nothing.
pub fn client(identity: Option<&TestIdentity>) -> TlsConnector {
    client_of(identity, rustls::DEFAULT_VERSIONS)
}

/// As [`client`], of TLS 1.2.
pub fn client_of_tls12(identity: Option<&TestIdentity>) -> TlsConnector {
    client_of(identity, &[&rustls::version::TLS12])
}

fn client_of(
    identity: Option<&TestIdentity>,
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> TlsConnector {
    let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(versions)
        .expect("versions")
        .dangerous()
        // countersign:allow client-verify-disabled reason=a test peer that takes anything, to see what the other side refuses
        .with_custom_certificate_verifier(Arc::new(AcceptAnything));
    let config = match identity {
        None => builder.with_no_client_auth(),
        Some(identity) => builder.with_client_cert_resolver(certified(identity)),
    };
    TlsConnector::from(Arc::new(config))
}

/// A server that presents `identity` and takes any client certificate.
pub fn server(identity: &TestIdentity) -> TlsAcceptor {
    let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_client_cert_verifier(Arc::new(AcceptAnything))
        .with_cert_resolver(certified(identity));
    TlsAcceptor::from(Arc::new(config))
}

/// A server that presents `identity` and asks for nothing.
pub fn web_server(identity: &TestIdentity) -> TlsAcceptor {
    let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        // countersign:allow server-client-auth-absent reason=a test server of public documents
        .with_no_client_auth()
        .with_cert_resolver(certified(identity));
    TlsAcceptor::from(Arc::new(config))
}

/// A server that presents `identity`, demands a client certificate of `root` and remembers sessions, in tickets or in
/// a cache.
pub fn strict_server(identity: &TestIdentity, root: &[u8]) -> TlsAcceptor {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(root.to_vec().into()).expect("root");
    let provider = Arc::new(default_provider());
    let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(
        Arc::new(roots),
        Arc::clone(&provider),
    );
    let config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(rustls::ALL_VERSIONS)
        .expect("versions")
        .with_client_cert_verifier(verifier.build().expect("verifier"))
        .with_cert_resolver(certified(identity));
    TlsAcceptor::from(Arc::new(config))
}

/// Whether the session of `stream` was resumed.
pub fn is_resumed<S>(stream: &tokio_rustls::server::TlsStream<S>) -> bool {
    stream.get_ref().1.handshake_kind() == Some(rustls::HandshakeKind::Resumed)
}

/// The client's certificate, DER.
pub fn client_leaf<S>(stream: &tokio_rustls::server::TlsStream<S>) -> Option<Vec<u8>> {
    Some(stream.get_ref().1.peer_certificates()?.first()?.to_vec())
}

/// A name for the dialled server; it plays no part.
pub fn any_name() -> ServerName<'static> {
    ServerName::try_from("any.test").expect("name")
}
