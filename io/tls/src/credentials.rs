//! One generation of credentials, and the cell that swaps them.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use countersign_findings::{Code, Finding};
use countersign_identity::{BundleSet, SpiffeId, X509Svid};
use countersign_x509::{
    AnchorError, CertInfo, LegacyTrust, PeerRole, Presented, TrustStore, spiffe_leaf,
};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, ServerConfig, SupportedProtocolVersion};
use tokio::sync::watch;

use crate::verifier::{PeerMatcher, Verifier};
use crate::{HandshakeError, current_time};

/// What may be negotiated.
#[derive(Clone, Debug, Default)]
pub struct TlsOptions {
    /// Also accept TLS 1.2; off by default.
    pub tls12: bool,
    /// Clients that may come without a SPIFFE ID; nobody by default.
    pub legacy: Option<Arc<LegacyTrust>>,
}

/// Why credentials cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// The chain is no SVID.
    #[error("own certificate: {0}")]
    Certificate(String),
    /// The key is of another certificate.
    #[error("private key and certificate of `{0}` do not belong together")]
    Mismatch(SpiffeId),
    /// A root cannot be used.
    #[error(transparent)]
    Anchor(#[from] AnchorError),
    /// No bundle for the own trust domain.
    #[error("there is no trust bundle for `{0}`")]
    NoBundle(SpiffeId),
    /// The TLS library refused.
    #[error("TLS configuration: {0}")]
    Tls(#[from] rustls::Error),
}

impl CredentialError {
    /// The catalogue's view.
    pub fn finding(&self) -> Finding {
        let code = match self {
            CredentialError::Mismatch(_) => Code::KeyCertificateMismatch,
            CredentialError::NoBundle(_) => Code::WrongTrustDomain,
            _ => Code::MalformedCertificate,
        };
        Finding::new(code, self.to_string())
    }
}

/// One immutable generation: own SVID, trust, and what rustls needs of both.
pub struct Credentials {
    /// Own identity.
    pub id: SpiffeId,
    /// Own leaf.
    pub leaf: CertInfo,
    /// Whom to trust.
    pub store: Arc<TrustStore>,
    presented: Presented,
    key: Arc<CertifiedKey>,
    provider: Arc<CryptoProvider>,
    options: TlsOptions,
    pub(crate) server: Arc<ServerConfig>,
    pub(crate) server_verifier: Arc<Verifier>,
}

impl Credentials {
    /// Puts a generation together; the key must fit the certificate.
    pub fn new(
        svid: &X509Svid,
        bundles: &BundleSet,
        generation: u64,
        options: TlsOptions,
    ) -> Result<Self, CredentialError> {
        Self::build(svid, bundles, generation, options, true, Vec::new())
    }

    /// As [`Credentials::new`], for a server whose callers may come without a certificate and which
    /// speaks HTTP/2; each operation decides what an unauthenticated caller may do.
    pub fn with_optional_clients(
        svid: &X509Svid,
        bundles: &BundleSet,
        generation: u64,
    ) -> Result<Self, CredentialError> {
        // SPIRE's agents offer 1.2 and 1.3.
        let options = TlsOptions { tls12: true, legacy: None };
        Self::build(svid, bundles, generation, options, false, vec![b"h2".to_vec()])
    }

    fn build(
        svid: &X509Svid,
        bundles: &BundleSet,
        generation: u64,
        options: TlsOptions,
        clients_mandatory: bool,
        alpn: Vec<Vec<u8>>,
    ) -> Result<Self, CredentialError> {
        let malformed = |e: String| CredentialError::Certificate(e);
        let leaf_der = svid.chain.first().ok_or_else(|| malformed("the chain is empty".into()))?;
        let leaf = CertInfo::parse(leaf_der).map_err(|e| malformed(e.to_string()))?;
        let id = spiffe_leaf(&leaf, PeerRole::Server).map_err(|e| malformed(e.to_string()))?;
        let Some(bundle) = bundles.bundle(id.trust_domain()) else {
            return Err(CredentialError::NoBundle(id));
        };
        let roots = bundle.x509_authorities.iter().map(|a| a.der.clone()).collect();
        let presented = Presented::new(svid.chain.clone(), roots);
        let provider = Arc::new(provider());
        let chain: Vec<CertificateDer<'static>> =
            svid.chain.iter().map(|c| CertificateDer::from(c.clone())).collect();
        let key_der =
            PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(svid.key.expose_pkcs8().to_vec()));
        let key = CertifiedKey::new(chain, provider.key_provider.load_private_key(key_der)?);
        key.keys_match().map_err(|_| CredentialError::Mismatch(id.clone()))?;
        let key = Arc::new(key);
        let store =
            Arc::new(TrustStore::new(bundles, generation)?.with_known_issuers(&svid.chain[1..]));
        let verifier = Arc::new(Verifier::new(
            Arc::clone(&store),
            PeerMatcher::AnyTrusted,
            clients_mandatory,
            options.legacy.clone(),
            &provider,
        ));
        let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(versions(&options))?
            .with_client_cert_verifier(Arc::clone(&verifier) as _)
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(&key))));
        server.send_tls13_tickets = 1;
        server.alpn_protocols = alpn;
        Ok(Self {
            id,
            leaf,
            store,
            presented,
            key,
            provider,
            options,
            server: Arc::new(server),
            server_verifier: verifier,
        })
    }

    /// What a failed handshake means. Where the peer has refused us, what we presented says more than its alert.
    pub fn explain(&self, error: &HandshakeError) -> Finding {
        let refused = match error {
            HandshakeError::Alert(alert, _) => self.presented.refused(alert, current_time()),
            _ => None,
        };
        refused.unwrap_or_else(|| error.finding())
    }

    /// A client configuration that accepts only `wanted` peers. Make it once per listener and generation.
    pub fn client(
        &self,
        wanted: PeerMatcher,
        alpn: &[&[u8]],
    ) -> Result<Arc<ClientSide>, CredentialError> {
        let store = Arc::clone(&self.store);
        let verifier = Arc::new(Verifier::new(store, wanted, true, None, &self.provider));
        let mut config = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(versions(&self.options))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::clone(&verifier) as _)
            .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(&self.key))));
        config.enable_sni = false;
        config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
        Ok(Arc::new(ClientSide { config: Arc::new(config), verifier }))
    }
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Credentials({}, serial {}, {:?})", self.id, self.leaf.serial, self.store)
    }
}

/// A ready client configuration with its verifier.
pub struct ClientSide {
    pub(crate) config: Arc<ClientConfig>,
    pub(crate) verifier: Arc<Verifier>,
}

/// A client without a certificate, for the first contact of an agent with its server.
pub(crate) fn anonymous_client(
    bundles: &BundleSet,
    wanted: PeerMatcher,
    alpn: &[&[u8]],
) -> Result<ClientSide, CredentialError> {
    let provider = Arc::new(provider());
    let store = Arc::new(TrustStore::new(bundles, 0)?);
    let verifier = Arc::new(Verifier::new(store, wanted, true, None, &provider));
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions(&TlsOptions::default()))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::clone(&verifier) as _)
        .with_no_client_auth();
    config.enable_sni = false;
    config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
    Ok(ClientSide { config: Arc::new(config), verifier })
}

pub(crate) fn provider() -> CryptoProvider {
    use aws_lc_rs::{cipher_suite as suite, kx_group};
    CryptoProvider {
        // AES-128 first: no weaker against anyone alive, a tenth cheaper.
        cipher_suites: vec![
            suite::TLS13_AES_128_GCM_SHA256,
            suite::TLS13_AES_256_GCM_SHA384,
            suite::TLS13_CHACHA20_POLY1305_SHA256,
            suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
            suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
            suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
            suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
        ],
        kx_groups: vec![
            kx_group::X25519MLKEM768,
            kx_group::X25519,
            kx_group::SECP256R1,
            kx_group::SECP384R1,
        ],
        ..aws_lc_rs::default_provider()
    }
}

fn versions(options: &TlsOptions) -> &'static [&'static SupportedProtocolVersion] {
    static BOTH: [&SupportedProtocolVersion; 2] =
        [&rustls::version::TLS13, &rustls::version::TLS12];
    static ONLY_13: [&SupportedProtocolVersion; 1] = [&rustls::version::TLS13];
    if options.tls12 { &BOTH } else { &ONLY_13 }
}

/// Credentials that change under running listeners. New handshakes take the newest generation;
/// established connections keep the one they were made with.
pub struct LiveCredentials {
    cell: ArcSwapOption<Credentials>,
    changes: watch::Sender<u64>,
}

impl LiveCredentials {
    /// Without credentials yet.
    pub fn empty() -> Self {
        Self { cell: ArcSwapOption::empty(), changes: watch::Sender::new(0) }
    }

    /// The newest generation, if any has arrived.
    pub fn current(&self) -> Option<Arc<Credentials>> {
        self.cell.load_full()
    }

    /// Puts a new generation in place.
    pub fn replace(&self, credentials: Credentials) {
        self.cell.store(Some(Arc::new(credentials)));
        self.changes.send_modify(|n| *n += 1);
    }

    /// Withdraws the credentials: nothing can be accepted or dialled until new ones arrive.
    pub fn withdraw(&self) {
        self.cell.store(None);
        self.changes.send_modify(|n| *n += 1);
    }

    /// Tells those who watch that something which the credentials rest on has changed.
    pub fn touch(&self) {
        self.changes.send_modify(|n| *n += 1);
    }

    /// A receiver that notices replacements.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

impl std::fmt::Debug for LiveCredentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "LiveCredentials({:?})", self.cell.load())
    }
}
