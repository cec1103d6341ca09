//! Registration entries: which workload, on which node, gets which identity.

use std::time::Duration;

use crate::{DnsName, SelectorSet, SpiffeId, TrustDomain, UnixTime};

/// A registration entry, in SPIRE's model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Unique; assigned by the server when empty.
    pub id: String,
    /// The identity granted.
    pub spiffe_id: SpiffeId,
    /// Who may hand it out: an agent, or the server itself for node aliases.
    pub parent_id: SpiffeId,
    /// All of these must have been attested.
    pub selectors: SelectorSet,
    /// Life of X509-SVIDs; `None` for the server's default.
    pub x509_svid_ttl: Option<Duration>,
    /// Life of JWT-SVIDs; `None` for the server's default.
    pub jwt_svid_ttl: Option<Duration>,
    /// DNS SANs.
    pub dns_names: Vec<DnsName>,
    /// Foreign trust domains whose bundles the workload gets.
    pub federates_with: Vec<TrustDomain>,
    /// May administer the server.
    pub admin: bool,
    /// May get a CA certificate (nested servers).
    pub downstream: bool,
    /// When the entry itself ends.
    pub expires_at: Option<UnixTime>,
    /// Tells several SVIDs of one workload apart; at most 1024 bytes.
    pub hint: String,
    /// Exported to a secret store by the agent.
    pub store_svid: bool,
    /// Grows with every change.
    pub revision: i64,
    /// When it was created.
    pub created_at: UnixTime,
}

/// Why an entry is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// An ID outside the server's trust domain.
    #[error("{field} `{id}` is not in trust domain `{expected}`")]
    ForeignTrustDomain {
        /// Which field.
        field: &'static str,
        /// Its value.
        id: SpiffeId,
        /// The server's domain.
        expected: TrustDomain,
    },
    /// An ID without a path.
    #[error("{field} `{id}` has no path")]
    NoPath {
        /// Which field.
        field: &'static str,
        /// Its value.
        id: SpiffeId,
    },
    /// `/spire/…` belongs to servers and agents.
    #[error("spiffe_id `{0}` uses the reserved path /spire")]
    Reserved(SpiffeId),
    /// No selectors: it would match every workload of the node.
    #[error("entry has no selectors; without any it would match every process on the node")]
    NoSelectors,
    /// Too many of something.
    #[error("{field} holds {count}; at most {limit} are allowed")]
    TooMany {
        /// Which field.
        field: &'static str,
        /// How many.
        count: usize,
        /// The limit.
        limit: usize,
    },
    /// Hint longer than Workload API §8 allows.
    #[error("hint has {0} bytes; at most 1024 are allowed")]
    HintTooLong(usize),
}

impl Entry {
    /// Most selectors in one entry.
    pub const MAX_SELECTORS: usize = 64;
    /// Most DNS names in one entry.
    pub const MAX_DNS_NAMES: usize = 64;

    /// A new entry with defaults for everything optional.
    pub fn new(spiffe_id: SpiffeId, parent_id: SpiffeId, selectors: SelectorSet) -> Self {
        Self {
            id: String::new(),
            spiffe_id,
            parent_id,
            selectors,
            x509_svid_ttl: None,
            jwt_svid_ttl: None,
            dns_names: Vec::new(),
            federates_with: Vec::new(),
            admin: false,
            downstream: false,
            expires_at: None,
            hint: String::new(),
            store_svid: false,
            revision: 0,
            created_at: UnixTime::from_secs(0),
        }
    }

    /// Checks the entry against the rules of a server of `trust_domain`.
    pub fn check(&self, trust_domain: &TrustDomain) -> Result<(), EntryError> {
        for (field, id) in [("spiffe_id", &self.spiffe_id), ("parent_id", &self.parent_id)] {
            if !id.is_member_of(trust_domain) {
                return Err(EntryError::ForeignTrustDomain {
                    field,
                    id: id.clone(),
                    expected: trust_domain.clone(),
                });
            }
            if id.is_trust_domain() {
                return Err(EntryError::NoPath { field, id: id.clone() });
            }
        }
        if self.spiffe_id.is_reserved() {
            return Err(EntryError::Reserved(self.spiffe_id.clone()));
        }
        if self.selectors.is_empty() {
            return Err(EntryError::NoSelectors);
        }
        for (field, count, limit) in [
            ("selectors", self.selectors.len(), Self::MAX_SELECTORS),
            ("dns_names", self.dns_names.len(), Self::MAX_DNS_NAMES),
            ("federates_with", self.federates_with.len(), 64),
        ] {
            if count > limit {
                return Err(EntryError::TooMany { field, count, limit });
            }
        }
        if self.hint.len() > 1024 {
            return Err(EntryError::HintTooLong(self.hint.len()));
        }
        Ok(())
    }

    /// Whether two entries say the same: identity, parent and selectors (SPIRE's notion of similar).
    pub fn is_similar_to(&self, other: &Entry) -> bool {
        self.spiffe_id == other.spiffe_id
            && self.parent_id == other.parent_id
            && self.selectors == other.selectors
    }

    /// Whether the entry itself has ended.
    pub fn is_expired_at(&self, now: UnixTime) -> bool {
        self.expires_at.is_some_and(|end| end <= now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(s: &str) -> SpiffeId {
        SpiffeId::parse(s).unwrap()
    }

    #[test]
    fn rules() {
        let td = TrustDomain::new("a.test").unwrap();
        let sel: SelectorSet = std::iter::once("unix:uid:1".parse().unwrap()).collect();
        let parent = id("spiffe://a.test/spire/agent/join_token/x");
        let good = Entry::new(id("spiffe://a.test/web"), parent.clone(), sel.clone());
        assert_eq!(good.check(&td), Ok(()));
        let reserved = Entry::new(id("spiffe://a.test/spire/server"), parent.clone(), sel.clone());
        assert!(matches!(reserved.check(&td), Err(EntryError::Reserved(_))));
        let foreign = Entry::new(id("spiffe://b.test/web"), parent.clone(), sel);
        assert!(matches!(foreign.check(&td), Err(EntryError::ForeignTrustDomain { .. })));
        let open = Entry::new(id("spiffe://a.test/web"), parent, SelectorSet::default());
        assert_eq!(open.check(&td), Err(EntryError::NoSelectors));
    }
}
