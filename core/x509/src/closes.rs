//! Whether a chain closes at a root, for looking at what somebody presents. Nothing is proven by it:
//! [`TrustStore::verify`](crate::TrustStore::verify) does that.

use countersign_identity::UnixTime;
use rustls_pki_types::{CertificateDer, TrustAnchor};
use webpki::{EndEntityCert, Error};

use crate::verify::verify_path;
use crate::{CertInfo, ChainCause, Crls};

/// Follows `chain` (DER, leaf first) by names to one of `roots` (DER), and then by signatures. Times, usages and
/// the like are left to others.
pub fn chain_closes(chain: &[Vec<u8>], roots: &[Vec<u8>], now: UnixTime) -> Result<(), ChainCause> {
    let mut sent = Vec::with_capacity(chain.len());
    for (index, der) in chain.iter().enumerate() {
        let malformed = |detail: String| ChainCause::Malformed { index, detail };
        sent.push(CertInfo::parse(der).map_err(|e| malformed(e.to_string()))?);
    }
    let Some(mut last) = sent.first() else { return Err(ChainCause::Empty) };
    let known: Vec<CertInfo> = roots.iter().filter_map(|der| CertInfo::parse(der).ok()).collect();
    let reached = 'walk: {
        for _ in 0..=sent.len() {
            if known.iter().any(|r| r.sha256 == last.sha256) {
                return Ok(());
            }
            // One that vouches for itself is a root, and not one of these, whatever its name.
            if last.is_self_issued() {
                break;
            }
            if known.iter().any(|r| last.may_be_issued_by(r)) {
                break 'walk true;
            }
            match sent[1..].iter().find(|c| last.may_be_issued_by(c) && c.sha256 != last.sha256) {
                Some(next) => last = next,
                None => break,
            }
        }
        false
    };
    if !reached {
        // Another authority of a root's name is not one that is missing.
        let namesake = known.iter().any(|r| r.subject_der == last.issuer_der);
        let issuer = last.issuer.clone();
        return Err(match namesake || last.is_self_issued() {
            true => ChainCause::UnknownAuthority { issuer },
            false => ChainCause::MissingIntermediate { issuer },
        });
    }
    // A root of that name is known; has it signed?
    let ders: Vec<CertificateDer<'_>> =
        chain.iter().map(|c| CertificateDer::from(c.as_slice())).collect();
    let roots: Vec<CertificateDer<'_>> =
        roots.iter().map(|c| CertificateDer::from(c.as_slice())).collect();
    let anchors: Vec<TrustAnchor<'_>> =
        roots.iter().filter_map(|r| webpki::anchor_from_trusted_cert(r).ok()).collect();
    let Ok(leaf) = EndEntityCert::try_from(&ders[0]) else { return Ok(()) };
    match verify_path(&leaf, &anchors, &ders[1..], now, &Crls::default(), None) {
        Err(Error::UnknownIssuer | Error::InvalidSignatureForPublicKey) => {
            Err(ChainCause::UnknownAuthority { issuer: last.issuer.clone() })
        }
        _ => Ok(()),
    }
}
