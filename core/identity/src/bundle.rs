//! Trust bundles: the authorities of one trust domain, and sets of them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::{TrustDomain, UnixTime};

/// One X.509 root of a trust domain, DER. `tainted` roots still verify but must no longer sign.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct X509Authority {
    /// The certificate, DER.
    pub der: Vec<u8>,
    /// No longer to be used for issuing; everything below it is to be replaced.
    pub tainted: bool,
}

/// One public key that signs the trust domain's JWT-SVIDs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct JwtAuthority {
    /// Key id; the `kid` of the tokens it signed.
    pub key_id: String,
    /// SubjectPublicKeyInfo, DER.
    pub public_key: Vec<u8>,
    /// When the key stops being valid; `None` where the source does not say.
    pub expires_at: Option<UnixTime>,
    /// No longer to be used for signing.
    pub tainted: bool,
}

/// The authorities of one trust domain.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Bundle {
    /// Whose authorities these are.
    pub trust_domain: TrustDomain,
    /// X.509 roots.
    pub x509_authorities: Vec<X509Authority>,
    /// JWT signing keys.
    pub jwt_authorities: Vec<JwtAuthority>,
    /// How often to look for a newer bundle.
    pub refresh_hint: Option<Duration>,
    /// Grows with every change (Trust Domain and Bundle §4.1.1).
    pub sequence: u64,
}

/// Why a bundle cannot be put together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    /// Trust Domain and Bundle §5: a trust domain occurs twice.
    #[error("trust domain `{0}` occurs twice in one set of bundles")]
    DuplicateTrustDomain(TrustDomain),
}

impl Bundle {
    /// An empty bundle: nothing of that trust domain is trusted.
    pub fn new(trust_domain: TrustDomain) -> Self {
        Self {
            trust_domain,
            x509_authorities: Vec::new(),
            jwt_authorities: Vec::new(),
            refresh_hint: None,
            sequence: 0,
        }
    }

    /// A bundle of X.509 roots given as DER.
    pub fn of_x509(trust_domain: TrustDomain, roots: impl IntoIterator<Item = Vec<u8>>) -> Self {
        let mut bundle = Self::new(trust_domain);
        bundle.x509_authorities =
            roots.into_iter().map(|der| X509Authority { der, tainted: false }).collect();
        bundle
    }

    /// The JWT key with this id.
    pub fn jwt_authority(&self, key_id: &str) -> Option<&JwtAuthority> {
        self.jwt_authorities.iter().find(|k| k.key_id == key_id)
    }

    /// All X.509 roots one after another, DER, as the Workload API carries them.
    pub fn x509_der_concatenated(&self) -> Vec<u8> {
        self.x509_authorities.iter().flat_map(|a| a.der.iter().copied()).collect()
    }
}

impl std::fmt::Debug for X509Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "X509Authority({} bytes, tainted: {})", self.der.len(), self.tainted)
    }
}

/// Bundles of several trust domains. They are never merged (Federation §4.2): a chain is checked
/// against the bundle of the trust domain that its SPIFFE ID names, and no other.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct BundleSet(BTreeMap<TrustDomain, Arc<Bundle>>);

impl BundleSet {
    /// Collects bundles; refuses two for one trust domain.
    pub fn collect(bundles: impl IntoIterator<Item = Bundle>) -> Result<Self, BundleError> {
        let mut set = BTreeMap::new();
        for b in bundles {
            let td = b.trust_domain.clone();
            if set.insert(td.clone(), Arc::new(b)).is_some() {
                return Err(BundleError::DuplicateTrustDomain(td));
            }
        }
        Ok(Self(set))
    }

    /// The bundle of `trust_domain`.
    pub fn bundle(&self, trust_domain: &TrustDomain) -> Option<&Arc<Bundle>> {
        self.0.get(trust_domain)
    }

    /// Adds or replaces the bundle of its trust domain.
    pub fn set(&mut self, bundle: Bundle) {
        self.0.insert(bundle.trust_domain.clone(), Arc::new(bundle));
    }

    /// All bundles, by trust domain.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Bundle>> {
        self.0.values()
    }

    /// How many trust domains.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing is trusted.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trust_domain_and_bundle_5_duplicate_trust_domain_is_refused() {
        let td = TrustDomain::new("a.test").unwrap();
        let err = BundleSet::collect([Bundle::new(td.clone()), Bundle::new(td.clone())]);
        assert_eq!(err, Err(BundleError::DuplicateTrustDomain(td)));
    }

    #[test]
    fn federation_4_2_bundles_are_never_merged() {
        let (a, b) = (TrustDomain::new("a.test").unwrap(), TrustDomain::new("b.test").unwrap());
        let set = BundleSet::collect([
            Bundle::of_x509(a.clone(), [vec![1]]),
            Bundle::of_x509(b.clone(), [vec![2]]),
        ])
        .unwrap();
        assert_eq!(set.bundle(&a).unwrap().x509_der_concatenated(), [1]);
        assert_eq!(set.bundle(&b).unwrap().x509_der_concatenated(), [2]);
    }
}
