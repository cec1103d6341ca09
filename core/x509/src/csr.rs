//! Certificate signing requests (PKCS#10): they prove possession of a key and carry nothing else that
//! is believed.

use std::str::FromStr;

use aws_lc_rs::signature as sig;
use countersign_identity::{DnsName, SpiffeId};
use der::asn1::{BitString, SetOfVec};
use der::oid::AssociatedOid;
use der::{Decode, Encode};
use x509_cert::ext::Extension;
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::ext::pkix::{BasicConstraints, SubjectAltName};
use x509_cert::name::Name;
use x509_cert::request::{CertReq, CertReqInfo, ExtensionReq, Version};
use x509_cert::spki::SubjectPublicKeyInfoOwned;

use crate::cert_info::{key_type, signature_name};
use crate::profile::SignatureAlgorithm;

/// Longest request that is parsed, in bytes.
pub const MAX_CSR: usize = 16 << 10;

/// Why a request is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CsrError {
    /// Not PKCS#10 DER.
    #[error("not a certificate signing request: {0}")]
    Malformed(String),
    /// Longer than [`MAX_CSR`].
    #[error("request has {0} bytes; the limit is {MAX_CSR}")]
    TooLong(usize),
    /// Signed with something that is not accepted.
    #[error("signature algorithm {0} is not accepted")]
    Algorithm(String),
    /// The signature does not verify with the key in the request.
    #[error("signature does not verify with the key in the request")]
    Signature,
}

/// Checks a DER request's own signature and returns its public key (SubjectPublicKeyInfo DER).
pub fn verify(csr_der: &[u8]) -> Result<Vec<u8>, CsrError> {
    if csr_der.len() > MAX_CSR {
        return Err(CsrError::TooLong(csr_der.len()));
    }
    let csr = CertReq::from_der(csr_der).map_err(|e| CsrError::Malformed(e.to_string()))?;
    let info = csr.info.to_der().map_err(|e| CsrError::Malformed(e.to_string()))?;
    let spki = csr.info.public_key.to_der().map_err(|e| CsrError::Malformed(e.to_string()))?;
    let curve = csr
        .info
        .public_key
        .algorithm
        .parameters
        .as_ref()
        .and_then(|p| p.decode_as::<der::asn1::ObjectIdentifier>().ok())
        .map(|o| o.to_string());
    let oid = csr.algorithm.oid.to_string();
    let algorithm: &dyn sig::VerificationAlgorithm = match (oid.as_str(), curve.as_deref()) {
        ("1.2.840.10045.4.3.2", Some("1.2.840.10045.3.1.7")) => &sig::ECDSA_P256_SHA256_ASN1,
        ("1.2.840.10045.4.3.3", Some("1.2.840.10045.3.1.7")) => &sig::ECDSA_P256_SHA384_ASN1,
        ("1.2.840.10045.4.3.2", Some("1.3.132.0.34")) => &sig::ECDSA_P384_SHA256_ASN1,
        ("1.2.840.10045.4.3.3", Some("1.3.132.0.34")) => &sig::ECDSA_P384_SHA384_ASN1,
        ("1.2.840.113549.1.1.11", _) => &sig::RSA_PKCS1_2048_8192_SHA256,
        ("1.2.840.113549.1.1.12", _) => &sig::RSA_PKCS1_2048_8192_SHA384,
        ("1.2.840.113549.1.1.13", _) => &sig::RSA_PKCS1_2048_8192_SHA512,
        ("1.3.101.112", _) => &sig::ED25519,
        _ => return Err(CsrError::Algorithm(oid)),
    };
    sig::UnparsedPublicKey::new(algorithm, &spki)
        .verify(&info, csr.signature.raw_bytes())
        .map_err(|_| CsrError::Signature)?;
    Ok(spki)
}

/// The names a request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestedNames {
    /// Its one URI SAN.
    pub id: SpiffeId,
    /// Its DNS SANs.
    pub dns_names: Vec<DnsName>,
}

/// The names in a request's SAN extension. Only for callers who may ask for any name.
pub fn requested_names(csr_der: &[u8]) -> Result<RequestedNames, CsrError> {
    let bad = |e: &dyn std::fmt::Display| CsrError::Malformed(e.to_string());
    let csr = CertReq::from_der(csr_der).map_err(|e| bad(&e))?;
    let mut ids = Vec::new();
    let mut dns_names = Vec::new();
    for attribute in csr.info.attributes.iter().filter(|a| a.oid == ExtensionReq::OID) {
        for value in attribute.values.iter() {
            let extensions: Vec<Extension> = value.decode_as().map_err(|e| bad(&e))?;
            for extension in extensions.iter().filter(|e| e.extn_id == SubjectAltName::OID) {
                let san = SubjectAltName::from_der(extension.extn_value.as_bytes())
                    .map_err(|e| bad(&e))?;
                for name in &san.0 {
                    match name {
                        GeneralName::UniformResourceIdentifier(uri) => {
                            ids.push(SpiffeId::parse(uri.as_str()).map_err(|e| bad(&e))?);
                        }
                        GeneralName::DnsName(dns) => {
                            dns_names.push(dns.as_str().parse::<DnsName>().map_err(|e| bad(&e))?);
                        }
                        _ => return Err(bad(&"only URI and DNS names may be asked for")),
                    }
                }
            }
        }
    }
    match <[SpiffeId; 1]>::try_from(ids) {
        Ok([id]) if !id.is_trust_domain() => Ok(RequestedNames { id, dns_names }),
        _ => Err(bad(&"exactly one URI SAN with a workload's SPIFFE ID is needed")),
    }
}

/// What a request asks for, whoever may grant it. Nothing of it is checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestFacts {
    /// In RFC 4514 form.
    pub subject: String,
    /// `ecdsa-p256`, `rsa-2048`, … or the OID.
    pub key_type: String,
    /// Named or as OID.
    pub signature_algorithm: String,
    /// As written.
    pub uri_sans: Vec<String>,
    /// SANs of any kind.
    pub sans: usize,
    /// Whether it asks for `cA`.
    pub wants_ca: bool,
}

impl RequestFacts {
    /// Parses one DER request; trailing bytes are an error.
    pub fn parse(der: &[u8]) -> Result<Self, CsrError> {
        let bad = |e: der::Error| CsrError::Malformed(e.to_string());
        if der.len() > MAX_CSR {
            return Err(CsrError::TooLong(der.len()));
        }
        let csr = CertReq::from_der(der).map_err(bad)?;
        let mut facts = Self {
            subject: csr.info.subject.to_string(),
            key_type: key_type(&csr.info.public_key),
            signature_algorithm: signature_name(&csr.algorithm.oid.to_string()),
            uri_sans: Vec::new(),
            sans: 0,
            wants_ca: false,
        };
        for attribute in csr.info.attributes.iter().filter(|a| a.oid == ExtensionReq::OID) {
            for value in attribute.values.iter() {
                let extensions: Vec<Extension> = value.decode_as().map_err(bad)?;
                for extension in &extensions {
                    facts.take(extension);
                }
            }
        }
        Ok(facts)
    }

    fn take(&mut self, extension: &Extension) {
        let bytes = extension.extn_value.as_bytes();
        if extension.extn_id == BasicConstraints::OID {
            self.wants_ca = BasicConstraints::from_der(bytes).is_ok_and(|c| c.ca);
        }
        if extension.extn_id == SubjectAltName::OID
            && let Ok(san) = SubjectAltName::from_der(bytes)
        {
            self.sans += san.0.len();
            for name in &san.0 {
                if let GeneralName::UniformResourceIdentifier(uri) = name {
                    self.uri_sans.push(uri.to_string());
                }
            }
        }
    }
}

/// Encodes a request for the key `spki_der`, signed by `sign`. The subject is SPIRE's own
/// (`C=US, O=SPIRE`); identity comes from the registration, never from the request.
pub fn create<E>(
    spki_der: &[u8],
    algorithm: SignatureAlgorithm,
    sign: impl FnOnce(&[u8]) -> Result<Vec<u8>, E>,
) -> Result<Vec<u8>, CsrError>
where
    E: std::fmt::Display,
{
    let bad = |e: der::Error| CsrError::Malformed(e.to_string());
    let info = CertReqInfo {
        version: Version::V1,
        subject: Name::from_str("O=SPIRE,C=US").map_err(bad)?,
        public_key: SubjectPublicKeyInfoOwned::from_der(spki_der).map_err(bad)?,
        attributes: SetOfVec::default(),
    };
    let bytes = info.to_der().map_err(bad)?;
    let signature = sign(&bytes).map_err(|e| CsrError::Malformed(e.to_string()))?;
    CertReq {
        info,
        algorithm: algorithm.identifier(),
        signature: BitString::from_bytes(&signature).map_err(bad)?,
    }
    .to_der()
    .map_err(bad)
}
