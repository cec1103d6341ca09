//! Chain validation.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use countersign_identity::{SpiffeId, UnixTime};
use rustls_pki_types::{CertificateDer, SignatureVerificationAlgorithm, TrustAnchor};
use webpki::{
    CertRevocationList, EndEntityCert, ExpirationPolicy, ExtendedKeyUsageValidator,
    KeyPurposeIdIter, RevocationCheckDepth, RevocationOptionsBuilder, UnknownStatusPolicy,
};

use crate::anchors::{MAX_CACHED_INTERMEDIATES, MAX_CACHED_LEAVES, VerifiedIntermediate};
use crate::crls::Crls;
use crate::{
    CertInfo, ChainCause, ChainError, PeerIdentity, PeerRole, TrustStore, spiffe_authority,
    spiffe_leaf,
};

/// Signatures accepted in a chain: ECDSA P-256/P-384/P-521, Ed25519, RSA ≥ 2048 with SHA-2. No SHA-1.
pub static SUPPORTED_SIGNATURES: &[&dyn SignatureVerificationAlgorithm] = &[
    webpki::aws_lc_rs::ECDSA_P256_SHA256,
    webpki::aws_lc_rs::ECDSA_P256_SHA384,
    webpki::aws_lc_rs::ECDSA_P384_SHA256,
    webpki::aws_lc_rs::ECDSA_P384_SHA384,
    webpki::aws_lc_rs::ECDSA_P521_SHA256,
    webpki::aws_lc_rs::ECDSA_P521_SHA384,
    webpki::aws_lc_rs::ECDSA_P521_SHA512,
    webpki::aws_lc_rs::ED25519,
    webpki::aws_lc_rs::RSA_PKCS1_2048_8192_SHA256,
    webpki::aws_lc_rs::RSA_PKCS1_2048_8192_SHA384,
    webpki::aws_lc_rs::RSA_PKCS1_2048_8192_SHA512,
    webpki::aws_lc_rs::RSA_PSS_2048_8192_SHA256_LEGACY_KEY,
    webpki::aws_lc_rs::RSA_PSS_2048_8192_SHA384_LEGACY_KEY,
    webpki::aws_lc_rs::RSA_PSS_2048_8192_SHA512_LEGACY_KEY,
];

/// Longest chain that is looked at; a peer that sends more is refused before anything is verified.
pub(crate) const MAX_CHAIN: usize = 10;

/// Accepts any extended key usage; [`spiffe_leaf`] has already judged the leaf's.
struct AnyUsage;

impl ExtendedKeyUsageValidator for AnyUsage {
    fn validate(&self, iter: KeyPurposeIdIter<'_, '_>) -> Result<(), webpki::Error> {
        for id in iter {
            id?;
        }
        Ok(())
    }
}

impl TrustStore {
    /// Verifies `chain` (leaf first, DER) as presented by a peer in `role` at `now`.
    ///
    /// Checked: X509-SVID rules for the leaf; RFC 5280 path validation against the roots of the trust
    /// domain that the leaf names, and no other; validity of every certificate on the path, the root
    /// included; key usage of every issuer; revocation if `crls` is not empty.
    pub fn verify(
        &self,
        chain: &[CertificateDer<'_>],
        role: PeerRole,
        now: UnixTime,
        crls: &Crls,
    ) -> Result<Arc<PeerIdentity>, ChainError> {
        let Some(leaf_der) = chain.first() else {
            return Err(self.refuse(ChainCause::Empty, now, None));
        };
        if chain.len() > MAX_CHAIN {
            let cause = ChainCause::Constraint(format!(
                "chain has {} certificates; at most {MAX_CHAIN} are looked at",
                chain.len()
            ));
            return Err(self.refuse(cause, now, None));
        }
        let digest = crate::sha256(leaf_der);
        if crls.is_empty()
            && let Some(known) = self.cached_leaf(&digest, role)
            && known.is_valid_at(now)
        {
            return Ok(known);
        }
        let leaf = CertInfo::parse(leaf_der).map_err(|e| {
            let cause = ChainCause::Malformed { index: 0, detail: e.to_string() };
            self.refuse(cause, now, None)
        })?;
        let fail = |cause: ChainCause| self.refuse(cause, now, Some(&leaf));
        let id = spiffe_leaf(&leaf, role).map_err(fail)?;
        let Some(anchors) = self.domains.get(id.trust_domain()) else {
            return Err(fail(ChainCause::WrongTrustDomain {
                presented: id.trust_domain().clone(),
            }));
        };
        check_validity(&leaf, now).map_err(fail)?;

        let intermediates = &chain[1..];
        let end_entity = EndEntityCert::try_from(leaf_der)
            .map_err(|e| fail(ChainCause::Malformed { index: 0, detail: e.to_string() }))?;
        let via_known = crls
            .is_empty()
            .then(|| self.known_issuer_of(&leaf, &id, intermediates, now))
            .flatten()
            .filter(|issuer| {
                end_entity
                    .verify_for_usage(
                        SUPPORTED_SIGNATURES,
                        std::slice::from_ref(&issuer.anchor),
                        &[],
                        to_webpki(now),
                        AnyUsage,
                        None,
                        None,
                    )
                    .is_ok()
            });
        let path = match via_known {
            Some(issuer) => PathFacts {
                not_before: leaf.not_before.max(issuer.not_before),
                not_after: leaf.not_after.min(issuer.not_after),
                authority_sha256: issuer.authority_sha256,
                issuer: None,
            },
            None => {
                // Roots out of their own validity anchor nothing.
                let valid: Vec<(&TrustAnchor<'static>, &CertInfo)> = anchors
                    .anchors
                    .iter()
                    .zip(&anchors.infos)
                    .filter(|(_, info)| check_validity(info, now).is_ok())
                    .collect();
                walk(&end_entity, &leaf, intermediates, &valid, now, crls, spiffe_authority)
                    .map_err(|e| fail(self.diagnose(e, &leaf, intermediates, &id, now)))?
            }
        };
        let identity = Arc::new(PeerIdentity::verified(
            id.clone(),
            role,
            (path.not_before, path.not_after),
            leaf,
            path.authority_sha256,
        ));
        if crls.is_empty() {
            let mut cache = anchors.cache.lock().unwrap_or_else(|e| e.into_inner());
            if let Some(issuer) = path.issuer {
                if cache.intermediates.len() >= MAX_CACHED_INTERMEDIATES {
                    cache.intermediates.clear();
                }
                cache.intermediates.insert(issuer.info.sha256, Arc::new(issuer));
            }
            if cache.leaves.len() >= MAX_CACHED_LEAVES {
                cache.leaves.clear();
            }
            cache.leaves.insert((digest, role), Arc::clone(&identity));
        }
        Ok(identity)
    }

    /// The identity behind a leaf that this store has verified before, if the proof holds at `now`.
    pub fn already_verified(
        &self,
        leaf: &CertificateDer<'_>,
        role: PeerRole,
        now: UnixTime,
    ) -> Option<Arc<PeerIdentity>> {
        self.cached_leaf(&crate::sha256(leaf), role).filter(|known| known.is_valid_at(now))
    }

    fn cached_leaf(&self, digest: &[u8; 32], role: PeerRole) -> Option<Arc<PeerIdentity>> {
        // The domain is not known before parsing; there are few, and a digest occurs in one only.
        self.domains.values().find_map(|anchors| {
            let cache = anchors.cache.lock().unwrap_or_else(|e| e.into_inner());
            cache.leaves.get(&(*digest, role)).cloned()
        })
    }

    fn known_issuer_of(
        &self,
        leaf: &CertInfo,
        id: &SpiffeId,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Option<Arc<VerifiedIntermediate>> {
        let digest = crate::sha256(intermediates.first()?);
        let cache = self.domains.get(id.trust_domain())?.cache.lock();
        let known =
            Arc::clone(cache.unwrap_or_else(|e| e.into_inner()).intermediates.get(&digest)?);
        (known.not_before <= now && now <= known.not_after && leaf.may_be_issued_by(&known.info))
            .then_some(known)
    }

    fn refuse(&self, cause: ChainCause, now: UnixTime, leaf: Option<&CertInfo>) -> ChainError {
        let trusted = match &cause {
            ChainCause::UnknownAuthority { .. }
            | ChainCause::MissingIntermediate { .. }
            | ChainCause::BadSignature => {
                let td = leaf
                    .and_then(|l| l.uri_sans.first())
                    .and_then(|u| SpiffeId::parse(u).ok())
                    .map(|id| id.trust_domain().clone());
                self.describe(td.as_ref())
            }
            ChainCause::WrongTrustDomain { .. } => self.describe(None),
            _ => String::new(),
        };
        ChainError { cause, now, presented: leaf.map(describe_leaf).unwrap_or_default(), trusted }
    }

    /// Turns path building's verdict into the cause that helps.
    fn diagnose(
        &self,
        failure: PathFailure,
        leaf: &CertInfo,
        intermediates: &[CertificateDer<'_>],
        id: &SpiffeId,
        now: UnixTime,
    ) -> ChainCause {
        let error = match failure {
            PathFailure::Cause(cause) => return cause,
            PathFailure::Path(error) => error,
        };
        let mut presented = Vec::with_capacity(intermediates.len());
        for (i, der) in intermediates.iter().enumerate() {
            match CertInfo::parse(der) {
                Ok(info) => presented.push(info),
                Err(e) => {
                    return ChainCause::Malformed { index: i + 1, detail: e.to_string() };
                }
            }
        }
        let Some(anchors) = self.domains.get(id.trust_domain()) else {
            return ChainCause::WrongTrustDomain { presented: id.trust_domain().clone() };
        };
        // Follow the issuers by name and key id to where the chain leaves what is known.
        let mut last = leaf;
        for _ in 0..=presented.len() {
            if let Some(root) = anchors.infos.iter().find(|root| last.may_be_issued_by(root)) {
                // It does reach a root by name: the trouble is elsewhere on the way.
                if let Err(cause) = check_validity(root, now) {
                    return cause;
                }
                return translate(error, leaf, &presented, now);
            }
            match presented.iter().find(|c| last.may_be_issued_by(c) && !c.is_self_issued()) {
                Some(next) => last = next,
                None => break,
            }
        }
        let cache = anchors.cache.lock().unwrap_or_else(|e| e.into_inner());
        let known_here = self
            .known_issuers
            .iter()
            .chain(cache.intermediates.values().map(|i| &i.info))
            .any(|i| last.may_be_issued_by(i) && i.is_ca && !i.is_self_issued());
        if known_here {
            ChainCause::MissingIntermediate { issuer: last.issuer.clone() }
        } else {
            ChainCause::UnknownAuthority { issuer: last.issuer.clone() }
        }
    }
}

pub(crate) struct PathFacts {
    not_before: UnixTime,
    pub(crate) not_after: UnixTime,
    pub(crate) authority_sha256: [u8; 32],
    /// The leaf's issuer, if it may be remembered.
    issuer: Option<VerifiedIntermediate>,
}

pub(crate) enum PathFailure {
    Path(webpki::Error),
    Cause(ChainCause),
}

/// Finds a path and what it rests on; `may_issue` judges every issuer below the root.
pub(crate) fn walk(
    end_entity: &EndEntityCert<'_>,
    leaf: &CertInfo,
    intermediates: &[CertificateDer<'_>],
    roots: &[(&TrustAnchor<'static>, &CertInfo)],
    now: UnixTime,
    crls: &Crls,
    may_issue: fn(&CertInfo) -> Result<(), ChainCause>,
) -> Result<PathFacts, PathFailure> {
    let anchors: Vec<TrustAnchor<'static>> = roots.iter().map(|(a, _)| (*a).clone()).collect();
    let issuers: RefCell<Vec<CertInfo>> = RefCell::default();
    let cause: RefCell<Option<ChainCause>> = RefCell::default();
    // webpki leaves key usage of issuers and the SPIFFE rules to us.
    let judge = |path: &webpki::VerifiedPath<'_>| -> Result<(), webpki::Error> {
        let mut found = Vec::new();
        for cert in path.intermediate_certificates() {
            let info = CertInfo::parse(&cert.der()).map_err(|_| webpki::Error::BadDer)?;
            if let Err(c) = may_issue(&info) {
                *cause.borrow_mut() = Some(c);
                return Err(webpki::Error::UnknownIssuer);
            }
            // The library does not ask for cRLSign; a list from a CA that may not sign lists says nothing.
            if !crls.is_empty() && !info.key_usage.is_some_and(|u| u.crl_sign) {
                *cause.borrow_mut() = Some(ChainCause::RevocationUnknown(format!(
                    "`{}` may not sign CRLs",
                    info.display_name()
                )));
                return Err(webpki::Error::IssuerNotCrlSigner);
            }
            found.push(info);
        }
        *issuers.borrow_mut() = found;
        Ok(())
    };
    let result = verify_path(end_entity, &anchors, intermediates, now, crls, Some(&judge));
    let anchor_subject = match &result {
        Ok(path) => {
            (path.anchor().subject.to_vec(), path.anchor().subject_public_key_info.to_vec())
        }
        Err(e) => {
            return Err(match cause.take() {
                Some(cause) => PathFailure::Cause(cause),
                None => PathFailure::Path(e.clone()),
            });
        }
    };
    drop(result);
    let issuers = issuers.into_inner();
    let root = anchors
        .iter()
        .zip(roots)
        .find(|(a, _)| {
            *a.subject == *anchor_subject.0 && *a.subject_public_key_info == *anchor_subject.1
        })
        .map(|(_, (_, info))| *info)
        .ok_or(PathFailure::Path(webpki::Error::UnknownIssuer))?;
    if !crls.is_empty() && !root.key_usage.is_some_and(|u| u.crl_sign) {
        return Err(PathFailure::Cause(ChainCause::RevocationUnknown(format!(
            "`{}` may not sign CRLs",
            root.display_name()
        ))));
    }
    let above = issuers.iter().chain([root]);
    let not_before = above.clone().map(|c| c.not_before).max().unwrap_or(root.not_before);
    let not_after = above.clone().map(|c| c.not_after).min().unwrap_or(root.not_after);
    let may_remember =
        above.clone().all(|c| !c.has_name_constraints && c.extended_key_usage.is_none());
    let issuer = issuers.first().filter(|_| may_remember).and_then(|info| {
        let der = intermediates.iter().find(|d| crate::sha256(d) == info.sha256)?;
        let anchor = webpki::anchor_from_trusted_cert(der).ok()?.to_owned();
        Some(VerifiedIntermediate {
            anchor,
            info: info.clone(),
            not_before,
            not_after,
            authority_sha256: root.sha256,
        })
    });
    Ok(PathFacts {
        not_before: leaf.not_before.max(not_before),
        not_after: leaf.not_after.min(not_after),
        authority_sha256: root.sha256,
        issuer,
    })
}

/// RFC 5280 path validation alone: signatures, validity, basic constraints, name constraints, CRLs.
/// No identity comes of it; [`TrustStore::verify`] adds what SPIFFE demands.
pub fn verify_path<'p>(
    end_entity: &'p EndEntityCert<'p>,
    anchors: &'p [TrustAnchor<'_>],
    intermediates: &'p [CertificateDer<'p>],
    now: UnixTime,
    crls: &Crls,
    judge: Option<&dyn Fn(&webpki::VerifiedPath<'_>) -> Result<(), webpki::Error>>,
) -> Result<webpki::VerifiedPath<'p>, webpki::Error> {
    let lists: Vec<&CertRevocationList<'_>> = crls.lists.iter().collect();
    let revocation = RevocationOptionsBuilder::new(&lists).ok().map(|b| {
        b.with_depth(RevocationCheckDepth::Chain)
            .with_status_policy(UnknownStatusPolicy::Deny)
            .with_expiration_policy(ExpirationPolicy::Enforce)
            .build()
    });
    let judge = |path: &webpki::VerifiedPath<'_>| {
        if crls.says_nothing_of(path.end_entity())
            || path.intermediate_certificates().any(|c| crls.says_nothing_of(c))
        {
            return Err(webpki::Error::UnknownRevocationStatus);
        }
        judge.map_or(Ok(()), |judge| judge(path))
    };
    end_entity.verify_for_usage(
        SUPPORTED_SIGNATURES,
        anchors,
        intermediates,
        to_webpki(now),
        AnyUsage,
        revocation,
        Some(&judge),
    )
}

pub(crate) fn check_validity(cert: &CertInfo, now: UnixTime) -> Result<(), ChainCause> {
    if now > cert.not_after {
        return Err(ChainCause::Expired { who: cert.display_name(), not_after: cert.not_after });
    }
    if now < cert.not_before {
        return Err(ChainCause::NotYetValid {
            who: cert.display_name(),
            not_before: cert.not_before,
        });
    }
    Ok(())
}

pub(crate) fn translate(
    error: webpki::Error,
    leaf: &CertInfo,
    presented: &[CertInfo],
    now: UnixTime,
) -> ChainCause {
    use webpki::Error as E;
    let outdated = || presented.iter().find_map(|c| check_validity(c, now).err());
    match error {
        E::CertExpired { .. } | E::CertNotValidYet { .. } | E::InvalidCertValidity => {
            check_validity(leaf, now).err().or_else(outdated).unwrap_or_else(|| {
                ChainCause::Constraint("a certificate's validity period is inverted".into())
            })
        }
        E::CertRevoked => ChainCause::Revoked { who: leaf.display_name() },
        E::UnknownRevocationStatus
        | E::CrlExpired { .. }
        | E::IssuerNotCrlSigner
        | E::InvalidCrlSignatureForPublicKey => ChainCause::RevocationUnknown(error.to_string()),
        E::InvalidSignatureForPublicKey => ChainCause::BadSignature,
        E::UnsupportedSignatureAlgorithmContext(_)
        | E::UnsupportedSignatureAlgorithmForPublicKeyContext(_)
        | E::SignatureAlgorithmMismatch => ChainCause::UnsupportedAlgorithm(format!(
            "signature `{}` with key `{}` is not accepted",
            leaf.signature_algorithm, leaf.key_type
        )),
        E::CaUsedAsEndEntity => ChainCause::CaUsedAsLeaf,
        E::EndEntityUsedAsCa => {
            ChainCause::Constraint("a certificate that is no CA issued another".into())
        }
        // By names it reaches a root, but no path verifies: an outdated or foreign link between.
        E::UnknownIssuer => outdated()
            .unwrap_or_else(|| ChainCause::UnknownAuthority { issuer: leaf.issuer.clone() }),
        other => ChainCause::Constraint(format!("chain is refused: {other}")),
    }
}

pub(crate) fn describe_leaf(leaf: &CertInfo) -> String {
    format!(
        "`{}`, serial {}, issued by `{}`, valid {} to {}",
        leaf.display_name(),
        leaf.serial,
        leaf.issuer,
        leaf.not_before,
        leaf.not_after
    )
}

fn to_webpki(now: UnixTime) -> rustls_pki_types::UnixTime {
    rustls_pki_types::UnixTime::since_unix_epoch(Duration::from_secs(
        u64::try_from(now.secs()).unwrap_or(0),
    ))
}
