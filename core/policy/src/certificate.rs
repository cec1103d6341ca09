//! Conditions on the caller's certificate, beyond Istio's: subject attributes, private extensions, key pins.

use std::fmt;
use std::str::FromStr;

use countersign_x509::{CertInfo, hex, parse_pin};

/// What rules can name of a certificate.
#[derive(Clone, Copy, Debug, Default)]
pub struct CertificateFacts<'a> {
    /// `(type, value)`; types are short names such as `OU`, or OIDs.
    pub subject: &'a [(String, String)],
    /// `(OID, text)` of extensions that X.509 does not define.
    pub extensions: &'a [(String, String)],
    /// DNS SANs.
    pub dns_names: &'a [String],
    /// SHA-256 of SubjectPublicKeyInfo.
    pub spki_sha256: Option<[u8; 32]>,
}

impl<'a> CertificateFacts<'a> {
    /// Of a parsed certificate.
    pub fn of(leaf: &'a CertInfo) -> Self {
        Self {
            subject: &leaf.subject_attributes,
            extensions: &leaf.private_extensions,
            dns_names: &leaf.dns_sans,
            spki_sha256: Some(leaf.spki_sha256),
        }
    }
}

/// A key's pin: `sha256:HEX` or `sha256/BASE64`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pin(pub(crate) [u8; 32]);

impl FromStr for Pin {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        parse_pin(s).map(Self).ok_or_else(|| {
            "is not sha256:HEX or sha256/BASE64 of a SubjectPublicKeyInfo".to_owned()
        })
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", hex(&self.0))
    }
}

/// A short name of a subject attribute, or an OID.
pub(crate) fn attribute_name(text: &str) -> Result<String, String> {
    const SHORT: [&str; 10] =
        ["CN", "SERIALNUMBER", "C", "L", "ST", "O", "OU", "TITLE", "UID", "DC"];
    let upper = text.to_ascii_uppercase();
    if SHORT.contains(&upper.as_str()) {
        return Ok(upper);
    }
    oid(text).map_err(|_| {
        format!("`{}` is neither one of {} nor an OID", text.escape_default(), SHORT.join(", "))
    })
}

/// A dotted OID.
pub(crate) fn oid(text: &str) -> Result<String, String> {
    let arcs: Vec<&str> = text.split('.').collect();
    let good = |a: &&str| {
        !a.is_empty()
            && a.len() <= 20
            && a.bytes().all(|b| b.is_ascii_digit())
            && (a.len() == 1 || !a.starts_with('0'))
    };
    if arcs.len() >= 2 && arcs.len() <= 32 && arcs.iter().all(good) {
        Ok(text.to_owned())
    } else {
        Err(format!("`{}` is not an OID", text.escape_default()))
    }
}
