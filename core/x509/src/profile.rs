//! Certificate profiles: what a root, an intermediate, a server CA and a workload's leaf look like.
//!
//! Encoding is split from signing so that a key may live anywhere: [`CertSpec::to_be_signed`] gives the
//! bytes, any signer signs them, [`ToBeSigned::assemble`] makes the certificate.

use std::str::FromStr;

use countersign_identity::{DnsName, SpiffeId, UnixTime};
use der::asn1::{BitString, Ia5String, OctetString};
use der::{Any, Decode, Encode, Sequence};
use x509_cert::ext::Extension;
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::ext::pkix::{
    AuthorityKeyIdentifier, BasicConstraints, ExtendedKeyUsage, KeyUsage, KeyUsages,
    SubjectAltName, SubjectKeyIdentifier,
};
use x509_cert::name::Name;
use x509_cert::serial_number::SerialNumber;
use x509_cert::spki::{AlgorithmIdentifierOwned, SubjectPublicKeyInfoOwned};
use x509_cert::time::{Time, Validity};

use crate::CertInfo;

/// The kind of certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Profile {
    /// Self-signed authority; may be kept offline. Default life 10 years.
    Root,
    /// Signs server CAs. Default life 1 year; path length 1.
    Intermediate,
    /// Signs leaves. Default life 24 hours; path length 0.
    ServerCa,
    /// An X509-SVID. Default life 1 hour.
    Leaf,
}

impl Profile {
    /// Default life in seconds.
    pub const fn default_ttl_secs(self) -> u64 {
        match self {
            Profile::Root => 10 * 365 * 86_400,
            Profile::Intermediate => 365 * 86_400,
            Profile::ServerCa => 86_400,
            Profile::Leaf => 3_600,
        }
    }

    const fn path_len(self) -> Option<u8> {
        match self {
            Profile::Root | Profile::Leaf => None,
            Profile::Intermediate => Some(1),
            Profile::ServerCa => Some(0),
        }
    }
}

/// SVIDs are valid this many seconds before they are issued, for clocks that lag.
pub const BACKDATE_SECS: u64 = 10;

/// Algorithm of a certificate's signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SignatureAlgorithm {
    /// ECDSA on P-256 with SHA-256.
    EcdsaP256Sha256,
    /// ECDSA on P-384 with SHA-384.
    EcdsaP384Sha384,
    /// Ed25519.
    Ed25519,
    /// RSA PKCS#1 v1.5 with SHA-256.
    RsaSha256,
}

impl SignatureAlgorithm {
    pub(crate) fn identifier(self) -> AlgorithmIdentifierOwned {
        let (oid, parameters) = match self {
            SignatureAlgorithm::EcdsaP256Sha256 => ("1.2.840.10045.4.3.2", None),
            SignatureAlgorithm::EcdsaP384Sha384 => ("1.2.840.10045.4.3.3", None),
            SignatureAlgorithm::Ed25519 => ("1.3.101.112", None),
            SignatureAlgorithm::RsaSha256 => ("1.2.840.113549.1.1.11", Some(Any::null())),
        };
        AlgorithmIdentifierOwned { oid: der::asn1::ObjectIdentifier::new_unwrap(oid), parameters }
    }
}

/// Why a certificate cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProfileError {
    /// Encoding failed; the inputs do not fit X.509.
    #[error("cannot encode the certificate: {0}")]
    Encoding(String),
    /// The end would come before the beginning: the issuer is about to expire.
    #[error("certificate would end at {not_after}, before it begins at {not_before}")]
    Inverted {
        /// Beginning.
        not_before: UnixTime,
        /// End, after capping at the issuer's.
        not_after: UnixTime,
    },
}

impl From<der::Error> for ProfileError {
    fn from(e: der::Error) -> Self {
        ProfileError::Encoding(e.to_string())
    }
}

/// Everything that goes into one certificate.
#[derive(Clone, Debug)]
pub struct CertSpec<'a> {
    /// Which profile.
    pub profile: Profile,
    /// Random, at least 64 bits; the top bit is cleared and zero is avoided.
    pub serial: [u8; 16],
    /// The identity: a trust domain's own ID for authorities, a workload's for leaves.
    pub id: &'a SpiffeId,
    /// DNS SANs; the first is also the leaf's CN.
    pub dns_names: &'a [DnsName],
    /// Subject CN for authorities, to tell them apart; ignored for leaves.
    pub common_name: &'a str,
    /// When it begins.
    pub not_before: UnixTime,
    /// When it would end; capped at the issuer's end.
    pub not_after: UnixTime,
    /// Public key, SubjectPublicKeyInfo DER.
    pub spki_der: &'a [u8],
    /// The issuer; `None` makes it self-signed.
    pub issuer: Option<&'a CertInfo>,
    /// Algorithm of the issuer's key.
    pub signature_algorithm: SignatureAlgorithm,
}

/// An encoded certificate that lacks only its signature.
#[derive(Clone, Debug)]
pub struct ToBeSigned {
    bytes: Vec<u8>,
    algorithm: AlgorithmIdentifierOwned,
    /// The end after capping.
    pub not_after: UnixTime,
    /// Serial as it will be printed.
    pub serial: String,
}

#[derive(Sequence)]
struct Tbs {
    #[asn1(context_specific = "0", tag_mode = "EXPLICIT")]
    version: u8,
    serial_number: SerialNumber,
    signature: AlgorithmIdentifierOwned,
    issuer: Name,
    validity: Validity,
    subject: Name,
    spki: SubjectPublicKeyInfoOwned,
    #[asn1(context_specific = "3", tag_mode = "EXPLICIT")]
    extensions: Vec<Extension>,
}

#[derive(Sequence)]
struct Signed {
    tbs: Any,
    algorithm: AlgorithmIdentifierOwned,
    signature: BitString,
}

impl CertSpec<'_> {
    /// Encodes the part that is signed.
    ///
    /// The life is cut to the issuer's: an SVID never outlives its CA.
    pub fn to_be_signed(&self) -> Result<ToBeSigned, ProfileError> {
        let not_after = match self.issuer {
            Some(issuer) => self.not_after.min(issuer.not_after),
            None => self.not_after,
        };
        if not_after <= self.not_before {
            return Err(ProfileError::Inverted { not_before: self.not_before, not_after });
        }
        let mut serial = self.serial;
        serial[0] &= 0x7f;
        serial[0] |= 0x01;
        let spki = SubjectPublicKeyInfoOwned::from_der(self.spki_der)?;
        let own_ski = key_identifier(&spki);
        let authority_key = match self.issuer {
            Some(issuer) => issuer.ski.clone().unwrap_or_default(),
            None => own_ski.clone(),
        };
        let subject = self.subject()?;
        let algorithm = self.signature_algorithm.identifier();
        let tbs = Tbs {
            version: 2,
            serial_number: SerialNumber::new(&serial)?,
            signature: algorithm.clone(),
            issuer: match self.issuer {
                Some(issuer) => Name::from_der(&issuer.subject_der)?,
                None => subject.clone(),
            },
            validity: Validity::new(to_time(self.not_before)?, to_time(not_after)?),
            subject,
            spki,
            extensions: self.extensions(own_ski, authority_key)?,
        };
        Ok(ToBeSigned { bytes: tbs.to_der()?, algorithm, not_after, serial: crate::hex(&serial) })
    }

    fn subject(&self) -> Result<Name, ProfileError> {
        let text = match (self.profile, self.dns_names.first()) {
            (Profile::Leaf, Some(dns)) => format!("CN={},O=SPIRE,C=US", dns.as_str()),
            (Profile::Leaf, None) => "O=SPIRE,C=US".to_owned(),
            _ => format!(
                "CN={},O=SPIFFE,C=US",
                self.common_name.replace([',', '+', '=', '"', '\\'], " ")
            ),
        };
        Ok(Name::from_str(&text)?)
    }

    fn extensions(
        &self,
        own_key: Vec<u8>,
        authority_key: Vec<u8>,
    ) -> Result<Vec<Extension>, ProfileError> {
        let leaf = self.profile == Profile::Leaf;
        let usages = if leaf {
            KeyUsages::DigitalSignature | KeyUsages::KeyEncipherment | KeyUsages::KeyAgreement
        } else {
            KeyUsages::KeyCertSign | KeyUsages::CRLSign
        };
        let mut out = vec![extension(true, &KeyUsage(usages))?];
        if leaf {
            let usages = [CertInfo::SERVER_AUTH, CertInfo::CLIENT_AUTH]
                .map(der::asn1::ObjectIdentifier::new_unwrap);
            out.push(extension(false, &ExtendedKeyUsage(usages.to_vec()))?);
        }
        let constraints =
            BasicConstraints { ca: !leaf, path_len_constraint: self.profile.path_len() };
        out.push(extension(true, &constraints)?);
        out.push(extension(false, &SubjectKeyIdentifier(OctetString::new(own_key)?))?);
        if self.issuer.is_some() {
            let aki = AuthorityKeyIdentifier {
                key_identifier: Some(OctetString::new(authority_key)?),
                ..AuthorityKeyIdentifier::default()
            };
            out.push(extension(false, &aki)?);
        }
        let mut names =
            vec![GeneralName::UniformResourceIdentifier(Ia5String::new(self.id.as_str())?)];
        for dns in self.dns_names {
            names.push(GeneralName::DnsName(Ia5String::new(dns.as_str())?));
        }
        out.push(extension(false, &SubjectAltName(names))?);
        Ok(out)
    }
}

impl ToBeSigned {
    /// The bytes to sign.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The finished certificate, DER.
    pub fn assemble(&self, signature: &[u8]) -> Result<Vec<u8>, ProfileError> {
        let signed = Signed {
            tbs: Any::from_der(&self.bytes)?,
            algorithm: self.algorithm.clone(),
            signature: BitString::from_bytes(signature)?,
        };
        Ok(signed.to_der()?)
    }
}

fn extension<T: Encode + der::oid::AssociatedOid>(
    critical: bool,
    value: &T,
) -> Result<Extension, ProfileError> {
    Ok(Extension { extn_id: T::OID, critical, extn_value: OctetString::new(value.to_der()?)? })
}

/// RFC 7093 method 1: leftmost 160 bits of SHA-256 over the key bits.
fn key_identifier(spki: &SubjectPublicKeyInfoOwned) -> Vec<u8> {
    crate::sha256(spki.subject_public_key.raw_bytes())[..20].to_vec()
}

fn to_time(t: UnixTime) -> Result<Time, ProfileError> {
    let secs =
        u64::try_from(t.secs()).map_err(|_| ProfileError::Encoding("a time before 1970".into()))?;
    let date = der::DateTime::from_unix_duration(std::time::Duration::from_secs(secs))?;
    // RFC 5280 §4.1.2.5: UTCTime through 2049, GeneralizedTime after.
    Ok(if date.year() < 2050 {
        Time::UtcTime(der::asn1::UtcTime::from_date_time(date)?)
    } else {
        Time::GeneralTime(der::asn1::GeneralizedTime::from_date_time(date))
    })
}
