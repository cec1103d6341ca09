//! Certificates that must be refused, one story each.

use countersign_identity::{PrivateKeyDer, UnixTime};
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};

use crate::TestCa;

/// What is wrong with a certificate, if anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Story {
    /// Nothing: encoded by the independent encoder, must be accepted.
    Good,
    /// Ended an hour ago.
    Expired,
    /// Begins in an hour.
    NotYetValid,
    /// Issued by another CA that uses the same names.
    WrongCa,
    /// Leaf without the intermediate that issued it.
    MissingIntermediate,
    /// Two URI SANs.
    TwoUriSans,
    /// No URI SAN, only a DNS name.
    NoUriSan,
    /// `cA` is true and the certificate is used as leaf.
    CaAsLeaf,
    /// Another trust domain's name under our CA.
    WrongTrustDomain,
    /// Code signing only.
    WrongEku,
    /// Client authentication only.
    ClientOnlyEku,
    /// Server authentication only.
    ServerOnlyEku,
    /// Key usage without digitalSignature.
    NoDigitalSignature,
    /// keyCertSign on a leaf.
    LeafMaySignCertificates,
    /// cRLSign on a leaf.
    LeafMaySignCrls,
    /// No key usage at all.
    NoKeyUsage,
    /// SPIFFE ID without a path.
    RootPath,
    /// A URI SAN that is no SPIFFE ID.
    NotASpiffeUri,
    /// A web server's: the DNS name `localhost`, and nothing else.
    Localhost,
}

/// A chain with its key.
pub struct TestIdentity {
    /// Leaf first, DER.
    pub chain: Vec<Vec<u8>>,
    /// PKCS#8.
    pub key: PrivateKeyDer,
}

fn date(t: UnixTime) -> time::OffsetDateTime {
    time::OffsetDateTime::from_unix_timestamp(t.secs()).expect("date")
}

impl TestCa {
    /// Makes the certificate of `story` for the workload `path`.
    pub fn story(&self, story: Story, path: &str) -> TestIdentity {
        let hour = std::time::Duration::from_secs(3600);
        let key = KeyPair::generate().expect("key");
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "story");
        params.not_before = date(self.now - hour - hour);
        params.not_after = date(self.now + hour);
        params.use_authority_key_identifier_extension = true;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let uri = |s: String| SanType::URI(Ia5String::try_from(s).expect("ia5"));
        let td = &self.trust_domain;
        params.subject_alt_names = vec![uri(format!("spiffe://{td}{path}"))];
        match story {
            Story::Good | Story::WrongCa | Story::MissingIntermediate => {}
            Story::Expired => params.not_after = date(self.now - hour),
            Story::NotYetValid => params.not_before = date(self.now + hour / 2),
            Story::TwoUriSans => {
                params.subject_alt_names.push(uri(format!("spiffe://{td}/second")))
            }
            Story::NoUriSan => {
                params.subject_alt_names =
                    vec![SanType::DnsName(Ia5String::try_from("web.test").expect("ia5"))];
            }
            Story::CaAsLeaf => {
                params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
                params.key_usages.push(KeyUsagePurpose::KeyCertSign);
            }
            Story::WrongTrustDomain => {
                params.subject_alt_names = vec![uri(format!("spiffe://elsewhere.test{path}"))];
            }
            Story::WrongEku => {
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning];
            }
            Story::ClientOnlyEku => {
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
            }
            Story::ServerOnlyEku => {
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
            }
            Story::NoDigitalSignature => {
                params.key_usages = vec![KeyUsagePurpose::KeyEncipherment];
            }
            Story::LeafMaySignCertificates => params.key_usages.push(KeyUsagePurpose::KeyCertSign),
            Story::LeafMaySignCrls => params.key_usages.push(KeyUsagePurpose::CrlSign),
            Story::NoKeyUsage => params.key_usages.clear(),
            Story::RootPath => params.subject_alt_names = vec![uri(format!("spiffe://{td}"))],
            Story::Localhost => {
                params.subject_alt_names =
                    vec![SanType::DnsName(Ia5String::try_from("localhost").expect("ia5"))];
            }
            Story::NotASpiffeUri => {
                params.subject_alt_names = vec![uri("https://web.test/".into())];
            }
        }
        let other;
        let ca = if story == Story::WrongCa {
            other = TestCa::new(td.as_str(), self.now);
            &other
        } else {
            self
        };
        let issuer_key =
            KeyPair::try_from(ca.intermediate_key.pkcs8().expose_pkcs8()).expect("issuer key");
        let issuer =
            Issuer::from_ca_cert_der(&ca.intermediate.clone().into(), issuer_key).expect("issuer");
        let leaf = params.signed_by(&key, &issuer).expect("sign").der().to_vec();
        let mut chain = vec![leaf];
        if story != Story::MissingIntermediate {
            chain.push(ca.intermediate.clone());
        }
        TestIdentity { chain, key: PrivateKeyDer::new(key.serialize_der()) }
    }

    /// An authority below this one that may issue for servers only.
    pub fn limited_to(&self, story: Story) -> TestCa {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "limited");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        if story == Story::ServerOnlyEku {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        }
        params.not_before = date(self.now - std::time::Duration::from_secs(3600));
        params.not_after = date(self.now + std::time::Duration::from_secs(3600));
        let key = KeyPair::generate().expect("key");
        let issuer_key = KeyPair::try_from(self.root_key.pkcs8().expose_pkcs8()).expect("key");
        let issuer =
            Issuer::from_ca_cert_der(&self.root.clone().into(), issuer_key).expect("issuer");
        let intermediate = params.signed_by(&key, &issuer).expect("sign").der().to_vec();
        let pkcs8 = |k: &[u8]| {
            countersign_keys::PrivateKey::from_pkcs8(PrivateKeyDer::new(k.to_vec())).expect("key")
        };
        TestCa {
            trust_domain: self.trust_domain.clone(),
            root: self.root.clone(),
            root_key: pkcs8(self.root_key.pkcs8().expose_pkcs8()),
            intermediate,
            intermediate_key: pkcs8(&key.serialize_der()),
            now: self.now,
        }
    }

    /// A certificate as older PKIs make them: common names, DNS SANs, URI SANs, no usages.
    pub fn legacy(&self, common_names: &[&str], dns: &[&str], uris: &[&str]) -> TestIdentity {
        let ia5 = |s: &&str| Ia5String::try_from(*s).expect("ia5");
        let hour = std::time::Duration::from_secs(3600);
        let key = KeyPair::generate().expect("key");
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        for name in common_names {
            // The library keeps one value of a type; a second CN goes by its OID.
            let kind = match params.distinguished_name.get(&DnType::CommonName) {
                None => DnType::CommonName,
                Some(_) => DnType::CustomDnType(vec![2, 5, 4, 3]),
            };
            params.distinguished_name.push(kind, *name);
        }
        params.not_before = date(self.now - hour);
        params.not_after = date(self.now + hour);
        params.subject_alt_names = dns.iter().map(ia5).map(SanType::DnsName).collect();
        params.subject_alt_names.extend(uris.iter().map(ia5).map(SanType::URI));
        let issuer_key =
            KeyPair::try_from(self.intermediate_key.pkcs8().expose_pkcs8()).expect("issuer key");
        let issuer = Issuer::from_ca_cert_der(&self.intermediate.clone().into(), issuer_key)
            .expect("issuer");
        let leaf = params.signed_by(&key, &issuer).expect("sign").der().to_vec();
        let chain = vec![leaf, self.intermediate.clone()];
        TestIdentity { chain, key: PrivateKeyDer::new(key.serialize_der()) }
    }
}
