//! Trust anchors of several trust domains, compiled once per bundle generation.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

use countersign_identity::{BundleSet, TrustDomain, UnixTime};
use rustls_pki_types::{CertificateDer, TrustAnchor};

use crate::{CertInfo, ParseError, PeerIdentity, PeerRole, spiffe_authority};

/// The roots of every trusted trust domain, with what has been verified against them so far.
///
/// Immutable once built: a new set of bundles makes a new store, which empties both caches, so nothing
/// cached can outlive the authority it rests on.
pub struct TrustStore {
    pub(crate) domains: BTreeMap<TrustDomain, Anchors>,
    /// Intermediates known from our own chain: lets a broken chain name what it lacks.
    pub(crate) known_issuers: Vec<CertInfo>,
    generation: u64,
}

pub(crate) struct Anchors {
    pub(crate) anchors: Vec<TrustAnchor<'static>>,
    pub(crate) infos: Vec<CertInfo>,
    pub(crate) cache: Mutex<Cache>,
}

/// What was verified once need not be verified again while the anchors stay the same; time is checked
/// on every use.
#[derive(Default)]
pub(crate) struct Cache {
    /// By SHA-256 of the intermediate.
    pub(crate) intermediates: HashMap<[u8; 32], Arc<VerifiedIntermediate>>,
    /// By SHA-256 of the leaf, and role.
    pub(crate) leaves: HashMap<([u8; 32], PeerRole), Arc<PeerIdentity>>,
}

/// An issuing certificate whose path to a root was verified.
pub(crate) struct VerifiedIntermediate {
    pub(crate) anchor: TrustAnchor<'static>,
    pub(crate) info: CertInfo,
    /// Intersection of the validities from here to the root.
    pub(crate) not_before: UnixTime,
    pub(crate) not_after: UnixTime,
    pub(crate) authority_sha256: [u8; 32],
}

/// A bundle holds something that cannot be a root.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AnchorError {
    /// Not a certificate.
    #[error("root {index} of trust domain `{trust_domain}`: {source}")]
    Parse {
        /// Whose bundle.
        trust_domain: TrustDomain,
        /// Position in the bundle.
        index: usize,
        /// The parser's words.
        source: ParseError,
    },
    /// Not a CA, or may not sign certificates.
    #[error("root {index} of trust domain `{trust_domain}` cannot sign certificates: {detail}")]
    NotAnAuthority {
        /// Whose bundle.
        trust_domain: TrustDomain,
        /// Position in the bundle.
        index: usize,
        /// Why not.
        detail: String,
    },
}

/// Bounds of the caches of one trust domain; when full they start over.
pub(crate) const MAX_CACHED_INTERMEDIATES: usize = 256;
pub(crate) const MAX_CACHED_LEAVES: usize = 8192;

impl TrustStore {
    /// Compiles bundles. `generation` names this state of trust in logs and in cached permits.
    pub fn new(bundles: &BundleSet, generation: u64) -> Result<Self, AnchorError> {
        let mut domains = BTreeMap::new();
        for bundle in bundles.iter() {
            let td = &bundle.trust_domain;
            let mut anchors = Vec::new();
            let mut infos = Vec::new();
            for (index, authority) in bundle.x509_authorities.iter().enumerate() {
                let info = CertInfo::parse(&authority.der).map_err(|source| {
                    AnchorError::Parse { trust_domain: td.clone(), index, source }
                })?;
                let not_authority = |detail: String| AnchorError::NotAnAuthority {
                    trust_domain: td.clone(),
                    index,
                    detail,
                };
                spiffe_authority(&info).map_err(|c| not_authority(c.to_string()))?;
                let der = CertificateDer::from(authority.der.as_slice());
                let anchor = webpki::anchor_from_trusted_cert(&der)
                    .map_err(|e| not_authority(e.to_string()))?
                    .to_owned();
                anchors.push(anchor);
                infos.push(info);
            }
            domains.insert(td.clone(), Anchors { anchors, infos, cache: Mutex::default() });
        }
        Ok(Self { domains, known_issuers: Vec::new(), generation })
    }

    /// Tells the store about intermediates that exist in the trust domain (usually those of our own
    /// chain). They are never trusted for that; they only let a refusal say "this one is missing".
    #[must_use]
    pub fn with_known_issuers(mut self, chain: &[Vec<u8>]) -> Self {
        self.known_issuers = chain.iter().filter_map(|der| CertInfo::parse(der).ok()).collect();
        self
    }

    /// Which state of trust this is.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Trusted trust domains.
    pub fn trust_domains(&self) -> impl Iterator<Item = &TrustDomain> {
        self.domains.keys()
    }

    /// The roots of one trust domain.
    pub fn roots(&self, trust_domain: &TrustDomain) -> &[CertInfo] {
        self.domains.get(trust_domain).map_or(&[], |a| &a.infos)
    }

    /// SHA-256 of the roots as people compare them: `corp.test: 9f3c… (until …)`.
    pub(crate) fn describe(&self, trust_domain: Option<&TrustDomain>) -> String {
        let mut parts = Vec::new();
        for (td, anchors) in &self.domains {
            if trust_domain.is_some_and(|wanted| wanted != td) {
                continue;
            }
            let roots: Vec<String> = anchors
                .infos
                .iter()
                .map(|i| format!("`{}` sha256:{}", i.subject, &crate::hex(&i.sha256)[..16]))
                .collect();
            parts.push(format!(
                "{td}: {}",
                if roots.is_empty() { "no roots".to_owned() } else { roots.join(", ") }
            ));
        }
        if parts.is_empty() { "nothing".to_owned() } else { parts.join("; ") }
    }
}

impl std::fmt::Debug for TrustStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TrustStore(generation {}, {})", self.generation, self.describe(None))
    }
}
