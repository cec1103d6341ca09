//! Revocation lists as path validation uses them.

use std::collections::BTreeSet;

use der::oid::AssociatedOid;
use der::{Decode, Encode};
use webpki::{CertRevocationList, OwnedCertRevocationList};
use x509_cert::ext::pkix::CrlDistributionPoints;

use crate::RevocationList;

/// Revocation lists that apply to every chain checked with them. Each issuer on the path must be
/// covered by a current list: what is unknown is refused.
#[derive(Default, Debug)]
pub struct Crls {
    pub(crate) lists: Vec<CertRevocationList<'static>>,
    /// Names, in DER, of issuers with a list about all of their certificates.
    whole: BTreeSet<Vec<u8>>,
    /// Whether there are lists about a part of an issuer's certificates.
    some_partial: bool,
}

impl Crls {
    /// Parses DER lists.
    pub fn from_ders<'a>(ders: impl IntoIterator<Item = &'a [u8]>) -> Result<Self, String> {
        let unusable = |e: &dyn std::fmt::Display| format!("not a usable CRL: {e}");
        let (mut lists, mut partial) = (Vec::new(), Vec::new());
        let mut whole = BTreeSet::new();
        for der in ders {
            let list = OwnedCertRevocationList::from_der(der).map_err(|e| unusable(&e))?;
            let list = CertRevocationList::Owned(list);
            let facts = RevocationList::parse(der).map_err(|e| unusable(&e))?;
            if facts.partial {
                partial.push(list);
            } else {
                lists.push(list);
                whole.insert(facts.issuer_der);
            }
        }
        let some_partial = !partial.is_empty();
        // The first list that may speak of a certificate decides.
        lists.append(&mut partial);
        Ok(Self { lists, whole, some_partial })
    }

    /// Whether nothing is known about a certificate but what a partial list says. One for a distribution point says
    /// nothing of certificates that do not name it (RFC 5280 section 6.3.3 (b)(2)(i)), and one that names none may
    /// be in any of them; the library takes a list for it all the same.
    pub(crate) fn says_nothing_of(&self, cert: &webpki::Cert<'_>) -> bool {
        if !self.some_partial {
            return false;
        }
        let Ok(cert) = x509_cert::Certificate::from_der(&cert.der()) else { return true };
        let tbs = cert.tbs_certificate();
        let extensions = tbs.extensions().map(Vec::as_slice).unwrap_or_default();
        let names_point = extensions.iter().any(|e| e.extn_id == CrlDistributionPoints::OID);
        !names_point && tbs.issuer().to_der().is_ok_and(|issuer| !self.whole.contains(&issuer))
    }

    /// Whether there are none, which means revocation is not checked.
    pub fn is_empty(&self) -> bool {
        self.lists.is_empty()
    }
}
