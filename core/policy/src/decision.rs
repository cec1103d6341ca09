//! Requests, decisions, and the permits they yield.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use countersign_findings::{Code, Finding};
use countersign_identity::{SpiffeId, UnixTime};
use countersign_x509::{LegacyPeer, PeerIdentity};

use crate::certificate::CertificateFacts;
use crate::external::External;
use crate::token::Token;

/// Why a caller has no identity. Absence has a reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoIdentity {
    /// It spoke plaintext on a PERMISSIVE port.
    Plaintext,
}

/// Who calls.
#[derive(Clone, Copy, Debug)]
pub enum Source<'a> {
    /// A peer whose chain was verified.
    Peer(&'a PeerIdentity),
    /// A peer without a SPIFFE ID whose chain was verified and whose name is listed.
    Legacy(&'a LegacyPeer),
    /// Nobody in particular.
    Unauthenticated {
        /// Why not.
        reason: NoIdentity,
    },
}

/// The parts of an HTTP request that rules can name.
#[derive(Clone, Copy, Debug)]
pub struct HttpRequest<'a> {
    /// Method as sent.
    pub method: &'a str,
    /// Host (authority) as sent, with port.
    pub host: &'a str,
    /// Path in normal form, without query.
    pub path: &'a str,
    /// Header fields in order, repeated ones repeated.
    pub headers: &'a [(&'a str, &'a str)],
}

/// What is to be decided.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Who calls.
    pub source: Source<'a>,
    /// From where.
    pub source_ip: IpAddr,
    /// From where originally, as trusted proxies tell.
    pub remote_ip: IpAddr,
    /// To which address.
    pub destination_ip: IpAddr,
    /// To which port.
    pub destination_port: u16,
    /// The server name that the client asked for, if it did.
    pub sni: Option<&'a str>,
    /// The HTTP request; `None` on a TCP connection.
    pub http: Option<HttpRequest<'a>>,
    /// The request's verified token, if it carries one.
    pub token: Option<&'a Token>,
    /// What the external engine said, if one was asked.
    pub external: Option<&'a External>,
}

/// A caller, proven or supposed. Only a [`Decision`] about a proven one yields a permit.
#[derive(Clone, Copy, Debug)]
pub enum Caller<'a> {
    /// One SPIFFE ID.
    Identity(&'a SpiffeId),
    /// A certificate that proves no SPIFFE ID: the names that Envoy would take for its principals. They
    /// count in Istio's semantics only.
    Names(&'a [String]),
    /// A peer without a SPIFFE ID that the operator has listed by this name. It is no principal, in Istio's
    /// semantics neither: rules find it by what its certificate says.
    Legacy(&'a str),
    /// No certificate.
    Nobody,
}

impl<'a> Caller<'a> {
    /// The names of a caller without a SPIFFE ID that Istio's semantics go by.
    pub(crate) fn names(self) -> &'a [String] {
        match self {
            Caller::Names(names) => names,
            Caller::Identity(_) | Caller::Legacy(_) | Caller::Nobody => &[],
        }
    }
}

/// Everything that rules can name. What is not known is absent: no positive field matches it.
#[derive(Clone, Copy, Debug)]
pub struct Attributes<'a> {
    /// Who calls.
    pub caller: Caller<'a>,
    /// The caller's certificate, if it has one.
    pub certificate: Option<CertificateFacts<'a>>,
    /// From where.
    pub source_ip: Option<IpAddr>,
    /// From where originally, as trusted proxies tell.
    pub remote_ip: Option<IpAddr>,
    /// To which address.
    pub destination_ip: Option<IpAddr>,
    /// To which port.
    pub destination_port: Option<u16>,
    /// The server name that the client asked for.
    pub sni: Option<&'a str>,
    /// The HTTP request; `None` on a TCP connection.
    pub http: Option<HttpRequest<'a>>,
    /// The request's verified token.
    pub token: Option<&'a Token>,
    /// What the external engine said, if one was asked.
    pub external: Option<&'a External>,
}

impl<'a> From<&Request<'a>> for Attributes<'a> {
    fn from(r: &Request<'a>) -> Self {
        Self {
            caller: match r.source {
                Source::Peer(peer) => Caller::Identity(peer.id()),
                Source::Legacy(peer) => Caller::Legacy(peer.name()),
                Source::Unauthenticated { .. } => Caller::Nobody,
            },
            certificate: match r.source {
                Source::Peer(peer) => Some(CertificateFacts::of(peer.leaf())),
                Source::Legacy(peer) => Some(CertificateFacts::of(peer.leaf())),
                Source::Unauthenticated { .. } => None,
            },
            source_ip: Some(r.source_ip),
            remote_ip: Some(r.remote_ip),
            destination_ip: Some(r.destination_ip),
            destination_port: Some(r.destination_port),
            sni: r.sni,
            http: r.http,
            token: r.token,
            external: r.external,
        }
    }
}

/// What a set of policies says. Not a permit: a supposed request gets one of these too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Go ahead; by which policy and rule, where one says so by name.
    Allow(Option<RuleName>),
    /// Refused.
    Deny(Denial),
}

impl Verdict {
    /// Whether it is an allow.
    pub fn is_allowed(&self) -> bool {
        matches!(self, Verdict::Allow(_))
    }
}

/// A rule of a policy: `namespace/name`, and the rule's position from 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleName {
    /// `namespace/name`.
    pub policy: Arc<str>,
    /// From 0.
    pub rule: usize,
}

impl fmt::Display for RuleName {
    /// As Istio writes it in logs and metrics (AP-11).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (namespace, name) = self.policy.split_once('/').unwrap_or(("", &self.policy));
        write!(f, "ns[{namespace}]-policy[{name}]-rule[{}]", self.rule)
    }
}

/// A refusal, with what it takes to explain it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denial {
    /// Its code.
    pub code: Code,
    /// The policy that decided, or came closest to allowing.
    pub policy: Option<Arc<str>>,
    /// The rule in it, from 0.
    pub rule: Option<usize>,
    /// The first field of that rule that did not match.
    pub field: Option<String>,
    /// One line.
    pub message: String,
}

impl Denial {
    /// The catalogue's view.
    pub fn finding(&self) -> Finding {
        let mut finding = Finding::new(self.code, self.message.clone());
        if let Some(policy) = &self.policy {
            finding = finding.at(match self.rule {
                Some(rule) => format!("policy {policy}, rule {rule}"),
                None => format!("policy {policy}"),
            });
        }
        finding
    }
}

/// The outcome of deciding one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    outcome: Result<Granted, Denial>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Granted {
    by: Option<Arc<str>>,
    not_after: Option<UnixTime>,
    generation: u64,
}

/// Leave to forward one connection or request. Cannot be made except by a [`Decision`].
#[derive(Debug, PartialEq, Eq)]
pub struct Permit {
    granted: Granted,
}

impl Decision {
    pub(crate) fn allow(source: &Source<'_>, by: Option<Arc<str>>, generation: u64) -> Self {
        let not_after = match source {
            Source::Peer(peer) => Some(peer.not_after()),
            Source::Legacy(peer) => Some(peer.not_after()),
            Source::Unauthenticated { .. } => None,
        };
        Self { outcome: Ok(Granted { by, not_after, generation }) }
    }

    pub(crate) fn deny(denial: Denial) -> Self {
        Self { outcome: Err(denial) }
    }

    /// The permit, or the refusal.
    pub fn permit(self) -> Result<Permit, Denial> {
        self.outcome.map(|granted| Permit { granted })
    }

    /// Whether it is an allow.
    pub fn is_allowed(&self) -> bool {
        self.outcome.is_ok()
    }
}

impl Permit {
    /// The policy that allowed, if one did by name.
    pub fn policy(&self) -> Option<&str> {
        self.granted.by.as_deref()
    }

    /// When the permit ends: with the peer's certificate. `None` for unauthenticated callers.
    pub fn not_after(&self) -> Option<UnixTime> {
        self.granted.not_after
    }

    /// The generation of policies it was given under.
    pub fn generation(&self) -> u64 {
        self.granted.generation
    }
}
