//! Why a chain was not accepted, one cause at a time.

use std::fmt;

use countersign_findings::{Code, Finding};
use countersign_identity::{SpiffeId, TrustDomain, UnixTime};

/// The cause of a refusal. DESIGN: each of these must be told apart from the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChainCause {
    /// No certificate at all.
    Empty,
    /// A certificate in the chain is not parseable.
    Malformed {
        /// Position in the presented chain, 0 for the leaf.
        index: usize,
        /// The parser's words.
        detail: String,
    },
    /// `now` is after `not_after`.
    Expired {
        /// Which certificate.
        who: String,
        /// Its end.
        not_after: UnixTime,
    },
    /// `now` is before `not_before`; the difference is the clock skew to look for.
    NotYetValid {
        /// Which certificate.
        who: String,
        /// Its beginning.
        not_before: UnixTime,
    },
    /// Nobody trusted issued it.
    UnknownAuthority {
        /// Issuer name of the last certificate that could be followed.
        issuer: String,
    },
    /// The chain breaks at an issuer that is known not to be a root.
    MissingIntermediate {
        /// Name of the missing issuer.
        issuer: String,
    },
    /// No bundle for the trust domain.
    WrongTrustDomain {
        /// The domain presented.
        presented: TrustDomain,
    },
    /// A verified identity, but not one of those wanted.
    WrongSpiffeId {
        /// What was proven.
        presented: SpiffeId,
        /// What was wanted.
        expected: String,
    },
    /// Verified by a legacy root, but nobody who is named.
    LegacyNotAllowed {
        /// What the certificate says.
        subject: String,
        /// Who is named.
        expected: String,
    },
    /// X509-SVID §2: more than one URI SAN.
    SeveralUriSans(Vec<String>),
    /// No URI SAN.
    NoSpiffeId {
        /// What the certificate says instead.
        subject: String,
    },
    /// The URI SAN is no SPIFFE ID, or one without a path.
    MalformedSpiffeId {
        /// The URI.
        uri: String,
        /// What is wrong with it.
        detail: String,
    },
    /// X509-SVID §3.2: a CA never authenticates.
    CaUsedAsLeaf,
    /// X509-SVID §4.3.
    WrongKeyUsage(&'static str),
    /// X509-SVID §4.4.
    WrongExtendedKeyUsage {
        /// Usage that is needed.
        needed: &'static str,
        /// Usages that are there.
        present: Vec<String>,
    },
    /// On a CRL.
    Revoked {
        /// Which certificate.
        who: String,
    },
    /// No CRL covers a certificate, or the CRL is out of date.
    RevocationUnknown(String),
    /// A signature does not verify.
    BadSignature,
    /// Weak or unknown algorithm.
    UnsupportedAlgorithm(String),
    /// Path length, name constraints, a non-CA as issuer, an unknown critical extension.
    Constraint(String),
}

/// A refusal: cause, when it was judged, and which roots were tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainError {
    /// Why.
    pub cause: ChainCause,
    /// The time of the judgement.
    pub now: UnixTime,
    /// What the peer presented, for people.
    pub presented: String,
    /// Which roots were tried, for people; empty if it did not get that far.
    pub trusted: String,
}

impl ChainError {
    /// The catalogue's code.
    pub fn code(&self) -> Code {
        match &self.cause {
            ChainCause::Empty => Code::NoClientCertificate,
            ChainCause::Malformed { .. } => Code::MalformedCertificate,
            ChainCause::Expired { .. } => Code::CertificateExpired,
            ChainCause::NotYetValid { .. } => Code::CertificateNotYetValid,
            ChainCause::UnknownAuthority { .. } => Code::UnknownAuthority,
            ChainCause::MissingIntermediate { .. } => Code::MissingIntermediate,
            ChainCause::WrongTrustDomain { .. } => Code::WrongTrustDomain,
            ChainCause::WrongSpiffeId { .. } => Code::WrongSpiffeId,
            ChainCause::LegacyNotAllowed { .. } => Code::IdentityNotAllowed,
            ChainCause::SeveralUriSans(_) => Code::SeveralUriSans,
            ChainCause::NoSpiffeId { .. } => Code::NoSpiffeId,
            ChainCause::MalformedSpiffeId { .. } => Code::MalformedSpiffeId,
            ChainCause::CaUsedAsLeaf => Code::CaUsedAsLeaf,
            ChainCause::WrongKeyUsage(_) => Code::WrongKeyUsage,
            ChainCause::WrongExtendedKeyUsage { .. } => Code::WrongExtendedKeyUsage,
            ChainCause::Revoked { .. } => Code::CertificateRevoked,
            ChainCause::RevocationUnknown(_) => Code::RevocationUnknown,
            ChainCause::BadSignature => Code::BadSignature,
            ChainCause::UnsupportedAlgorithm(_) => Code::UnsupportedAlgorithm,
            ChainCause::Constraint(_) => Code::ChainConstraintViolated,
        }
    }

    /// The finding for the owner of this side: cause, expected, presented, trusted.
    pub fn finding(&self) -> Finding {
        let mut finding = Finding::new(self.code(), self.cause.to_string());
        if let ChainCause::WrongSpiffeId { expected, .. }
        | ChainCause::LegacyNotAllowed { expected, .. } = &self.cause
        {
            finding = finding.expected(expected.clone());
        }
        match &self.cause {
            ChainCause::Expired { not_after, .. } => {
                finding =
                    finding.expected(format!("a certificate valid at {}", self.now)).hint(format!(
                        "it ended {} s ago by this clock; {}",
                        self.now.since(*not_after).as_secs(),
                        Code::CertificateExpired.hint()
                    ));
            }
            ChainCause::NotYetValid { not_before, .. } => {
                finding =
                    finding.expected(format!("a certificate valid at {}", self.now)).hint(format!(
                        "this clock is at least {} s behind the issuer's; {}",
                        not_before.since(self.now).as_secs(),
                        Code::CertificateNotYetValid.hint()
                    ));
            }
            ChainCause::WrongExtendedKeyUsage { needed, .. } => {
                finding = finding.expected(*needed);
            }
            _ => {}
        }
        if !self.presented.is_empty() {
            finding = finding.presented(self.presented.clone());
        }
        if !self.trusted.is_empty() {
            finding = finding.trusted(self.trusted.clone());
        }
        finding
    }
}

impl fmt::Display for ChainCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ChainCause::Empty => f.write_str("no certificate was presented"),
            ChainCause::Malformed { index, detail } => {
                write!(f, "certificate {index} of the chain cannot be parsed: {detail}")
            }
            ChainCause::Expired { who, not_after } => write!(f, "`{who}` expired at {not_after}"),
            ChainCause::NotYetValid { who, not_before } => {
                write!(f, "`{who}` is valid only from {not_before}")
            }
            ChainCause::UnknownAuthority { issuer } => {
                write!(f, "issuer `{issuer}` is not in the trust bundle")
            }
            ChainCause::MissingIntermediate { issuer } => {
                write!(f, "the chain lacks the intermediate `{issuer}`")
            }
            ChainCause::WrongTrustDomain { presented } => {
                write!(f, "trust domain `{presented}` is not trusted here")
            }
            ChainCause::WrongSpiffeId { presented, .. } => {
                write!(f, "peer is `{presented}`, which is not expected here")
            }
            ChainCause::LegacyNotAllowed { subject, .. } => {
                write!(f, "`{subject}` is none of the legacy peers that may call")
            }
            ChainCause::SeveralUriSans(uris) => write!(
                f,
                "certificate has {} URI SANs, exactly one is allowed: {}",
                uris.len(),
                uris.join(", ")
            ),
            ChainCause::NoSpiffeId { subject } => {
                write!(f, "certificate `{subject}` has no URI SAN and so no SPIFFE ID")
            }
            ChainCause::MalformedSpiffeId { uri, detail } => {
                write!(f, "URI SAN `{}` is no workload's SPIFFE ID: {detail}", uri.escape_default())
            }
            ChainCause::CaUsedAsLeaf => {
                f.write_str("a CA certificate was presented as the workload's own")
            }
            ChainCause::WrongKeyUsage(what) => f.write_str(what),
            ChainCause::WrongExtendedKeyUsage { needed, present } => write!(
                f,
                "extended key usage lacks {needed} (has {})",
                if present.is_empty() { "none".to_owned() } else { present.join(", ") }
            ),
            ChainCause::Revoked { who } => write!(f, "`{who}` has been revoked"),
            ChainCause::RevocationUnknown(detail) => {
                write!(f, "revocation status is unknown: {detail}")
            }
            ChainCause::BadSignature => {
                f.write_str("a signature in the chain does not verify with its issuer's key")
            }
            ChainCause::UnsupportedAlgorithm(detail) => f.write_str(detail),
            ChainCause::Constraint(detail) => f.write_str(detail),
        }
    }
}

impl fmt::Display for ChainError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} [{}]", self.cause, self.code())
    }
}

impl std::error::Error for ChainError {}
