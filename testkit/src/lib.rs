//! Dev-only: a CA that makes certificates by story, good ones and each kind of bad one.
//!
//! Good certificates come from the product's own profiles; bad ones from `rcgen`, an independent
//! encoder, so that a mistake in ours cannot hide in both.

use countersign_identity::{Bundle, SpiffeId, TrustDomain, UnixTime, X509Svid};
use countersign_keys::{KeyAlgorithm, PrivateKey, Signer};
use countersign_x509::CertInfo;
use countersign_x509::profile::{CertSpec, Profile};

pub mod raw_tls;
mod stories;
mod tokens;

pub use stories::{Story, TestIdentity};
pub use tokens::TokenIssuer;

/// A CA: a root and, under it, one intermediate that issues.
pub struct TestCa {
    /// Its trust domain.
    pub trust_domain: TrustDomain,
    /// Root certificate, DER.
    pub root: Vec<u8>,
    /// Root key.
    pub root_key: PrivateKey,
    /// Intermediate certificate, DER.
    pub intermediate: Vec<u8>,
    /// Intermediate key.
    pub intermediate_key: PrivateKey,
    /// The time it takes for now.
    pub now: UnixTime,
}

impl TestCa {
    /// A CA for `trust_domain` valid from a day before `now` to ten years after.
    pub fn new(trust_domain: &str, now: UnixTime) -> Self {
        let trust_domain = TrustDomain::new(trust_domain).expect("trust domain");
        let root_key = PrivateKey::generate(KeyAlgorithm::EcdsaP256).expect("key");
        let intermediate_key = PrivateKey::generate(KeyAlgorithm::EcdsaP256).expect("key");
        let day = std::time::Duration::from_secs(86_400);
        let id = trust_domain.id();
        let issue = |profile, cn, spki: &[u8], issuer: Option<&CertInfo>, days: u32| {
            let spec = CertSpec {
                profile,
                serial: countersign_keys::random(),
                id: &id,
                dns_names: &[],
                common_name: cn,
                not_before: now - day,
                not_after: now + day * days,
                spki_der: spki,
                issuer,
                signature_algorithm: root_key.algorithm(),
            };
            let tbs = spec.to_be_signed().expect("spec");
            tbs.assemble(&root_key.sign(tbs.bytes()).expect("sign")).expect("assemble")
        };
        let root = issue(Profile::Root, "Test Root", root_key.public_key_spki(), None, 3650);
        let info = CertInfo::parse(&root).expect("root");
        let intermediate = issue(
            Profile::Intermediate,
            "Test Intermediate",
            intermediate_key.public_key_spki(),
            Some(&info),
            365,
        );
        Self { trust_domain, root, root_key, intermediate, intermediate_key, now }
    }

    /// Its bundle.
    pub fn bundle(&self) -> Bundle {
        Bundle::of_x509(self.trust_domain.clone(), [self.root.clone()])
    }

    /// A good SVID for `path`, valid from 10 s before `not_before` for `ttl_secs`.
    pub fn issue_at(&self, path: &str, not_before: UnixTime, ttl_secs: u64) -> X509Svid {
        let id = SpiffeId::from_path(&self.trust_domain, path).expect("path");
        let key = PrivateKey::generate(KeyAlgorithm::EcdsaP256).expect("key");
        let issuer = CertInfo::parse(&self.intermediate).expect("intermediate");
        let spec = CertSpec {
            profile: Profile::Leaf,
            serial: countersign_keys::random(),
            id: &id,
            dns_names: &[],
            common_name: "",
            not_before: not_before - std::time::Duration::from_secs(10),
            not_after: not_before + std::time::Duration::from_secs(ttl_secs),
            spki_der: key.public_key_spki(),
            issuer: Some(&issuer),
            signature_algorithm: self.intermediate_key.algorithm(),
        };
        let tbs = spec.to_be_signed().expect("spec");
        let leaf = tbs
            .assemble(&self.intermediate_key.sign(tbs.bytes()).expect("sign"))
            .expect("assemble");
        X509Svid {
            id,
            chain: vec![leaf, self.intermediate.clone()],
            key: key.pkcs8().clone(),
            hint: String::new(),
        }
    }

    /// A good SVID, valid for an hour from the CA's now.
    pub fn issue(&self, path: &str) -> X509Svid {
        self.issue_at(path, self.now, 3600)
    }
}
