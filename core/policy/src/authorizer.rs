//! Everything that decides at one listener.

use std::sync::Arc;

use countersign_findings::Code;
use countersign_identity::SpiffeId;

use crate::decision::{Attributes, Decision, Denial, Request, Source};
use crate::set::{PolicySet, who};

/// Identities that may call, given on the command line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AllowList {
    /// By SPIFFE ID.
    pub ids: Vec<SpiffeId>,
    /// Legacy peers, by the name that lets them in.
    pub legacy: Vec<String>,
}

impl AllowList {
    /// Of SPIFFE IDs alone.
    pub fn of(ids: Vec<SpiffeId>) -> Self {
        Self { ids, legacy: Vec::new() }
    }
}

/// Everything that decides at one listener: the list first, then the policies.
#[derive(Debug)]
pub struct Authorizer {
    list: Option<Arc<AllowList>>,
    policies: Arc<PolicySet>,
}

impl Authorizer {
    /// With an optional list; the policies always count.
    pub fn new(list: Option<Arc<AllowList>>, policies: Arc<PolicySet>) -> Self {
        Self { list, policies }
    }

    /// The policies.
    pub fn policies(&self) -> &PolicySet {
        &self.policies
    }

    /// Decides.
    pub fn decide(&self, request: &Request<'_>) -> Decision {
        if let Some(list) = &self.list {
            let listed = match request.source {
                Source::Peer(peer) => list.ids.contains(peer.id()),
                Source::Legacy(peer) => list.legacy.iter().any(|name| name == peer.name()),
                Source::Unauthenticated { .. } => false,
            };
            if !listed {
                return Decision::deny(Denial {
                    code: Code::IdentityNotAllowed,
                    policy: None,
                    rule: None,
                    field: None,
                    message: format!(
                        "{} is not on the list of allowed peers",
                        who(&Attributes::from(request))
                    ),
                });
            }
        }
        self.policies.decide(request)
    }
}
