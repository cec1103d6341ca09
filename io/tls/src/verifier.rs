//! Our chain validation behind rustls' verifier traits.

use std::cell::RefCell;
use std::fmt;
use std::sync::Arc;

use countersign_identity::{SpiffeId, TrustDomain, UnixTime};
use countersign_x509::{
    ChainCause, ChainError, Crls, LegacyTrust, Peer, PeerIdentity, PeerRole, TrustStore,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime as TlsTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme,
};

thread_local! {
    /// Why the handshake that is being polled on this thread was refused. rustls' own errors pick the
    /// alert; this keeps what the owner of this side needs to know.
    static REFUSAL: RefCell<Option<ChainError>> = const { RefCell::new(None) };
}

pub(crate) fn take_refusal() -> Option<ChainError> {
    REFUSAL.take()
}

/// Which verified peers are wanted. An explicit choice: there is no default that accepts everyone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerMatcher {
    /// One of these identities.
    Ids(Vec<SpiffeId>),
    /// Any identity of this trust domain.
    MemberOf(TrustDomain),
    /// Any identity of any trusted domain; authorization happens later, by policy.
    AnyTrusted,
}

impl PeerMatcher {
    /// Whether `id` is wanted.
    pub fn matches(&self, id: &SpiffeId) -> bool {
        match self {
            PeerMatcher::Ids(ids) => ids.contains(id),
            PeerMatcher::MemberOf(td) => id.is_member_of(td),
            PeerMatcher::AnyTrusted => true,
        }
    }
}

impl fmt::Display for PeerMatcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PeerMatcher::Ids(ids) => {
                let ids: Vec<&str> = ids.iter().map(SpiffeId::as_str).collect();
                f.write_str(&ids.join(" or "))
            }
            PeerMatcher::MemberOf(td) => write!(f, "any identity of {td}"),
            PeerMatcher::AnyTrusted => f.write_str("any identity of a trusted domain"),
        }
    }
}

pub(crate) struct Verifier {
    pub(crate) store: Arc<TrustStore>,
    pub(crate) wanted: PeerMatcher,
    pub(crate) mandatory: bool,
    legacy: Option<Arc<LegacyTrust>>,
    pub(crate) algorithms: WebPkiSupportedAlgorithms,
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Verifier({:?}, {})", self.store, self.wanted)
    }
}

impl Verifier {
    pub(crate) fn new(
        store: Arc<TrustStore>,
        wanted: PeerMatcher,
        mandatory: bool,
        legacy: Option<Arc<LegacyTrust>>,
        provider: &CryptoProvider,
    ) -> Self {
        let algorithms = provider.signature_verification_algorithms;
        Self { store, wanted, mandatory, legacy, algorithms }
    }

    /// Verifies a chain and that the peer is wanted; also used again after a resumed handshake.
    pub(crate) fn judge(
        &self,
        chain: &[CertificateDer<'_>],
        role: PeerRole,
        now: UnixTime,
    ) -> Result<Arc<PeerIdentity>, ChainError> {
        let peer = self.store.verify(chain, role, now, &Crls::default())?;
        if self.wanted.matches(peer.id()) {
            return Ok(peer);
        }
        Err(ChainError {
            cause: ChainCause::WrongSpiffeId {
                presented: peer.id().clone(),
                expected: self.wanted.to_string(),
            },
            now,
            presented: peer.id().to_string(),
            trusted: String::new(),
        })
    }

    /// As [`Verifier::judge`], for clients, of which some may have no SPIFFE ID.
    pub(crate) fn judge_client(
        &self,
        chain: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<Peer, ChainError> {
        match (&self.legacy, chain.first()) {
            (Some(legacy), Some(leaf)) if LegacyTrust::concerns(leaf) => {
                legacy.verify(chain, now).map(Peer::Legacy)
            }
            _ => self.judge(chain, PeerRole::Client, now).map(Peer::Spiffe),
        }
    }

    fn check(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        role: PeerRole,
        now: TlsTime,
    ) -> Result<(), Error> {
        let mut chain = Vec::with_capacity(1 + intermediates.len());
        chain.push(CertificateDer::from(end_entity.as_ref()));
        chain.extend(intermediates.iter().map(|c| CertificateDer::from(c.as_ref())));
        let now = UnixTime::from_secs(i64::try_from(now.as_secs()).unwrap_or(i64::MAX));
        let judged = match role {
            PeerRole::Client => self.judge_client(&chain, now).map(|_| ()),
            PeerRole::Server => self.judge(&chain, role, now).map(|_| ()),
        };
        match judged {
            Ok(()) => Ok(()),
            Err(refusal) => {
                let error = alert_for(&refusal);
                REFUSAL.set(Some(refusal));
                Err(error)
            }
        }
    }
}

/// The error that makes rustls send the fitting alert.
fn alert_for(refusal: &ChainError) -> Error {
    Error::InvalidCertificate(match &refusal.cause {
        ChainCause::Malformed { .. } => CertificateError::BadEncoding,
        ChainCause::Expired { .. } => CertificateError::Expired,
        ChainCause::NotYetValid { .. } => CertificateError::NotValidYet,
        ChainCause::UnknownAuthority { .. }
        | ChainCause::MissingIntermediate { .. }
        | ChainCause::WrongTrustDomain { .. } => CertificateError::UnknownIssuer,
        ChainCause::Revoked { .. } => CertificateError::Revoked,
        ChainCause::RevocationUnknown(_) => CertificateError::UnknownRevocationStatus,
        ChainCause::BadSignature => CertificateError::BadSignature,
        ChainCause::WrongKeyUsage(_) | ChainCause::WrongExtendedKeyUsage { .. } => {
            CertificateError::InvalidPurpose
        }
        ChainCause::WrongSpiffeId { .. } | ChainCause::LegacyNotAllowed { .. } => {
            CertificateError::ApplicationVerificationFailure
        }
        _ => CertificateError::Other(OtherError(Arc::new(refusal.clone()))),
    })
}

impl ClientCertVerifier for Verifier {
    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // Clients choose by SPIFFE ID, not by issuer; naming our roots would only inform strangers.
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: TlsTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(end_entity, intermediates, PeerRole::Client, now)?;
        Ok(ClientCertVerified::assertion())
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

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        // Identity is the SPIFFE ID; the name dialled plays no part (X509-SVID §5).
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: TlsTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(end_entity, intermediates, PeerRole::Server, now)?;
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
