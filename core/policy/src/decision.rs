//! Requests, decisions, and the permits they yield.

use std::net::IpAddr;
use std::sync::Arc;

use countersign_findings::{Code, Finding};
use countersign_identity::UnixTime;
use countersign_x509::PeerIdentity;

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
    /// To which address.
    pub destination_ip: IpAddr,
    /// To which port.
    pub destination_port: u16,
    /// The HTTP request; `None` on a TCP connection.
    pub http: Option<HttpRequest<'a>>,
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
