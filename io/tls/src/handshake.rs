//! Handshakes, from either side.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use countersign_identity::{BundleSet, UnixTime};
use countersign_x509::{Peer, PeerIdentity, PeerRole};
use rustls::pki_types::{IpAddr, Ipv4Addr, ServerName};
use rustls::{CommonState, HandshakeKind};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::credentials::{ClientSide, Credentials, anonymous_client};
use crate::verifier::{PeerMatcher, Verifier, take_refusal};
use crate::{CredentialError, HandshakeError};

/// A TLS stream that we accepted.
pub type ServerStream<S> = tokio_rustls::server::TlsStream<S>;
/// A TLS stream that we dialled.
pub type ClientStream<S> = tokio_rustls::client::TlsStream<S>;

/// What was negotiated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HandshakeInfo {
    /// `TLSv1.3` or `TLSv1.2`.
    pub version: &'static str,
    /// Key exchange group, for example `X25519MLKEM768`.
    pub group: String,
    /// Cipher suite.
    pub cipher: String,
    /// Whether an earlier session was resumed.
    pub resumed: bool,
    /// The server name that the client asked for; only known to the side that accepted.
    pub server_name: Option<String>,
    /// From the first byte to the last.
    pub duration: Duration,
}

/// An established session. `P` is `Arc<PeerIdentity>` where the peer must have proven a SPIFFE ID, [`Peer`] where
/// it may be a legacy one, an `Option` of it where it may come anonymously.
pub struct Session<T, P> {
    /// The stream.
    pub stream: T,
    /// Who is at the other end.
    pub peer: P,
    /// What was negotiated.
    pub info: HandshakeInfo,
}

/// This host's clock.
pub fn current_time() -> UnixTime {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixTime::from_secs(i64::try_from(now.as_secs()).unwrap_or(i64::MAX))
}

/// The system's clock, milliseconds since 1970: for comparing clocks.
pub fn current_time_ms() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_millis()).unwrap_or(i64::MAX)
}

/// Accepts a connection from a peer that must prove its identity, or its name where `credentials` let it in by that.
pub async fn accept<S>(
    stream: S,
    credentials: &Credentials,
    timeout: Duration,
) -> Result<Session<ServerStream<S>, Peer>, HandshakeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let session = accept_optional(stream, credentials, timeout).await?;
    let peer = session.peer.ok_or(HandshakeError::NoCertificate)?;
    Ok(Session { stream: session.stream, peer, info: session.info })
}

/// Accepts a connection from a peer that may come without a certificate, if `credentials` allow that.
pub async fn accept_optional<S>(
    stream: S,
    credentials: &Credentials,
    timeout: Duration,
) -> Result<Session<ServerStream<S>, Option<Peer>>, HandshakeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let started = Instant::now();
    let acceptor = TlsAcceptor::from(Arc::clone(&credentials.server));
    let stream = drive(acceptor.accept(stream), timeout).await?;
    let (_, connection) = stream.get_ref();
    let peer = match connection.peer_certificates() {
        None => None,
        // Judged again; see below.
        Some(chain) => Some(
            credentials
                .server_verifier
                .judge_client(chain, current_time())
                .map_err(|e| HandshakeError::Chain(Box::new(e)))?,
        ),
    };
    let server_name = connection.server_name().map(str::to_owned);
    let info = HandshakeInfo { server_name, ..info(connection, started) };
    Ok(Session { stream, peer, info })
}

/// Dials over `stream`; the peer must be one that `client` wants.
pub async fn connect<S>(
    stream: S,
    client: &ClientSide,
    timeout: Duration,
) -> Result<Session<ClientStream<S>, Arc<PeerIdentity>>, HandshakeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let started = Instant::now();
    let connector = TlsConnector::from(Arc::clone(&client.config));
    // No SNI is sent; the name only fills the session cache's key, where one verifier serves one peer.
    let name = ServerName::IpAddress(IpAddr::V4(Ipv4Addr::from([127, 0, 0, 1])));
    let stream = drive(connector.connect(name, stream), timeout).await?;
    let (_, connection) = stream.get_ref();
    let peer = judge_again(connection, &client.verifier)?;
    let info = info(connection, started);
    Ok(Session { stream, peer, info })
}

/// Dials without a certificate of our own: an agent's first contact with its server.
pub async fn connect_bootstrap<S>(
    stream: S,
    bundles: &BundleSet,
    wanted: PeerMatcher,
    alpn: &[&[u8]],
    timeout: Duration,
) -> Result<Session<ClientStream<S>, Arc<PeerIdentity>>, HandshakeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let client = anonymous_client(bundles, wanted, alpn)
        .map_err(|e: CredentialError| HandshakeError::Protocol(e.to_string()))?;
    connect(stream, &client, timeout).await
}

/// The chain that whoever answers on `stream` presents, DER, unverified; for inspection only. The
/// handshake is given up before any data could be sent.
pub async fn presented_chain<S>(
    stream: S,
    timeout: Duration,
) -> Result<Vec<Vec<u8>>, HandshakeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    #[derive(Debug, Default)]
    struct Recorder(Mutex<Vec<Vec<u8>>>);
    impl rustls::client::danger::ServerCertVerifier for Recorder {
        fn verify_server_cert(
            &self,
            end_entity: &rustls::pki_types::CertificateDer<'_>,
            intermediates: &[rustls::pki_types::CertificateDer<'_>],
            _: &ServerName<'_>,
            _: &[u8],
            _: rustls::pki_types::UnixTime,
        ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
            let mut chain = self.0.lock().unwrap_or_else(|e| e.into_inner());
            chain.push(end_entity.to_vec());
            chain.extend(intermediates.iter().map(|c| c.to_vec()));
            // Never accepted: we only looked. The alert says that it was our wish, not the peer's mistake.
            Err(rustls::CertificateError::ApplicationVerificationFailure.into())
        }
        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &rustls::pki_types::CertificateDer<'_>,
            _: &rustls::DigitallySignedStruct,
        ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
            Err(rustls::Error::General("inspection ends here".into()))
        }
        fn verify_tls13_signature(
            &self,
            _: &[u8],
            _: &rustls::pki_types::CertificateDer<'_>,
            _: &rustls::DigitallySignedStruct,
        ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
            Err(rustls::Error::General("inspection ends here".into()))
        }
        fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
            rustls::crypto::aws_lc_rs::default_provider()
                .signature_verification_algorithms
                .supported_schemes()
        }
    }
    let recorder = Arc::new(Recorder::default());
    let config = rustls::ClientConfig::builder_with_provider(Arc::new(
        rustls::crypto::aws_lc_rs::default_provider(),
    ))
    .with_safe_default_protocol_versions()
    .map_err(|e| HandshakeError::Protocol(e.to_string()))?
    .dangerous()
    .with_custom_certificate_verifier(Arc::clone(&recorder) as _)
    .with_no_client_auth();
    let name = ServerName::IpAddress(IpAddr::V4(Ipv4Addr::from([127, 0, 0, 1])));
    let outcome = drive(TlsConnector::from(Arc::new(config)).connect(name, stream), timeout).await;
    let chain = std::mem::take(&mut *recorder.0.lock().unwrap_or_else(|e| e.into_inner()));
    match outcome {
        Err(e) if chain.is_empty() => Err(e),
        _ => Ok(chain),
    }
}

/// A resumed handshake never runs the verifier, so every session is judged here, against the trust and
/// time of now. For a full handshake this is a look into the cache.
fn judge_again(
    connection: &CommonState,
    verifier: &Verifier,
) -> Result<Arc<PeerIdentity>, HandshakeError> {
    let chain = connection.peer_certificates().unwrap_or_default();
    verifier
        .judge(chain, PeerRole::Server, current_time())
        .map_err(|e| HandshakeError::Chain(Box::new(e)))
}

/// Polls a handshake under a deadline, and picks up our verifier's reason on the thread it ran on.
pub(crate) async fn drive<T>(
    handshake: impl Future<Output = io::Result<T>>,
    timeout: Duration,
) -> Result<T, HandshakeError> {
    let mut handshake = std::pin::pin!(handshake);
    let polled = std::future::poll_fn(|cx| {
        take_refusal();
        Pin::new(&mut handshake).as_mut().poll(cx).map_err(HandshakeError::from_io)
    });
    match tokio::time::timeout(timeout, polled).await {
        Ok(result) => result,
        Err(_) => Err(HandshakeError::Timeout(timeout)),
    }
}

pub(crate) fn info(connection: &CommonState, started: Instant) -> HandshakeInfo {
    HandshakeInfo {
        version: match connection.protocol_version() {
            Some(rustls::ProtocolVersion::TLSv1_3) => "TLSv1.3",
            Some(rustls::ProtocolVersion::TLSv1_2) => "TLSv1.2",
            _ => "unknown",
        },
        group: connection
            .negotiated_key_exchange_group()
            .map(|g| format!("{:?}", g.name()))
            .unwrap_or_default(),
        cipher: connection
            .negotiated_cipher_suite()
            .map(|c| format!("{:?}", c.suite()))
            .unwrap_or_default(),
        resumed: connection.handshake_kind() == Some(HandshakeKind::Resumed),
        server_name: None,
        duration: started.elapsed(),
    }
}
