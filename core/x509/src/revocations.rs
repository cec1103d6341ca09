//! What a revocation list says, without judging it: to take it over into another one.

use countersign_identity::UnixTime;
use der::asn1::AnyRef;
use der::oid::{AssociatedOid, ObjectIdentifier};
use der::{Decode, Encode, Tag, Tagged};
use x509_cert::crl::CertificateList;
use x509_cert::ext::pkix::AuthorityKeyIdentifier;

use crate::CertInfo;
use crate::cert_info::{ParseError, to_time};

/// What the decoder at hand takes for this extension is another one.
const ISSUING_DISTRIBUTION_POINT: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.28");

/// A parsed list (RFC 5280 section 5). Its signature is not checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RevocationList {
    /// The issuer's name, DER.
    pub issuer_der: Vec<u8>,
    /// Identifier of the key that signed it, if it says.
    pub aki: Option<Vec<u8>>,
    /// When the next one is promised, if it is.
    pub next_update: Option<UnixTime>,
    /// Whether it is about a part of the issuer's certificates (issuing distribution point, section 5.2.5).
    pub partial: bool,
    /// Serial numbers, as in the certificates, and since when.
    pub revoked: Vec<(Vec<u8>, UnixTime)>,
}

impl RevocationList {
    /// Parses one DER list; trailing bytes are an error.
    pub fn parse(der: &[u8]) -> Result<Self, ParseError> {
        let fail = |e: der::Error| ParseError(e.to_string());
        let tbs = <CertificateList>::from_der(der).map_err(fail)?.tbs_cert_list;
        let extensions = tbs.crl_extensions.unwrap_or_default();
        let aki = extensions.iter().find(|e| e.extn_id == AuthorityKeyIdentifier::OID);
        let aki = aki.and_then(|e| {
            let aki = AuthorityKeyIdentifier::from_der(e.extn_value.as_bytes()).ok()?;
            Some(aki.key_identifier?.as_bytes().to_vec())
        });
        let point = extensions.iter().find(|e| e.extn_id == ISSUING_DISTRIBUTION_POINT);
        let partial = point.is_some_and(|e| names_point(e.extn_value.as_bytes()));
        let revoked = tbs.revoked_certificates.unwrap_or_default();
        Ok(Self {
            issuer_der: tbs.issuer.to_der().map_err(fail)?,
            aki,
            partial,
            next_update: tbs.next_update.as_ref().map(to_time),
            revoked: revoked
                .into_iter()
                .map(|r| (r.serial_number.as_bytes().to_vec(), to_time(&r.revocation_date)))
                .collect(),
        })
    }

    /// Whether names and key identifiers say that it is `issuer`'s.
    pub fn may_be_of(&self, issuer: &CertInfo) -> bool {
        let same_key = match (&self.aki, &issuer.ski) {
            (Some(aki), Some(ski)) => aki == ski,
            _ => true,
        };
        self.issuer_der == issuer.subject_der && same_key
    }
}

/// Whether an issuing distribution point (RFC 5280 section 5.2.5) names one: its first field, `[0]`, is there. What
/// cannot be read may name one.
fn names_point(der: &[u8]) -> bool {
    let Ok(fields) = AnyRef::from_der(der) else { return true };
    fields.tag() != Tag::Sequence || fields.value().first() == Some(&0xa0)
}
