//! What the agent holds at one moment: immutable, replaced whole, watched by every stream.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use countersign_identity::{
    Bundle, BundleSet, Entry, SelectorSet, UnixTime, X509Context, X509Svid,
};
use countersign_lifecycle::renewal_time;
use countersign_wire::proto::countersign::server::v1::PolicySet;

/// An SVID with its times.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    pub(crate) svid: X509Svid,
    pub(crate) not_before: UnixTime,
    pub(crate) not_after: UnixTime,
    pub(crate) renew_at: UnixTime,
    /// Revision of the entry it was made for.
    pub(crate) revision: i64,
    /// SHA-256 of the root it chains to.
    pub(crate) root: [u8; 32],
}

impl Held {
    pub(crate) fn new(
        svid: X509Svid,
        not_before: UnixTime,
        not_after: UnixTime,
        revision: i64,
        root: [u8; 32],
    ) -> Self {
        let jitter = u32::from_be_bytes(countersign_keys::random());
        let renew_at = renewal_time(not_before, not_after, jitter);
        Self { svid, not_before, not_after, renew_at, revision, root }
    }
}

/// The agent's knowledge.
#[derive(Clone, Debug)]
pub(crate) struct State {
    pub(crate) entries: BTreeMap<String, Arc<Entry>>,
    pub(crate) svids: HashMap<String, Arc<Held>>,
    pub(crate) bundle: Arc<Bundle>,
    pub(crate) policies: Arc<PolicySet>,
    /// Whether entries have been read from the server or the cache: before that nobody can be told
    /// that no identity is for them.
    pub(crate) ready: bool,
}

impl State {
    pub(crate) fn new(bundle: Bundle) -> Self {
        Self {
            entries: BTreeMap::new(),
            svids: HashMap::new(),
            bundle: Arc::new(bundle),
            policies: Arc::new(PolicySet::default()),
            ready: false,
        }
    }

    /// Bundles that workloads may use.
    pub(crate) fn bundles(&self) -> BundleSet {
        let mut set = BundleSet::default();
        set.set((*self.bundle).clone());
        set
    }

    /// Entries whose selectors are all among `attested`, oldest first: the first is the workload's
    /// default identity, and stays so when others are added.
    pub(crate) fn matching(&self, attested: &SelectorSet, now: UnixTime) -> Vec<&Arc<Entry>> {
        let mut found: Vec<&Arc<Entry>> = self
            .entries
            .values()
            .filter(|e| !e.is_expired_at(now) && e.selectors.is_subset_of(attested))
            .collect();
        found.sort_by(|a, b| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
        found
    }

    /// The full X.509 set for a workload. SVIDs that ended are left out.
    pub(crate) fn context(&self, attested: &SelectorSet, now: UnixTime) -> X509Context {
        let mut hints = std::collections::HashSet::new();
        let svids = self
            .matching(attested, now)
            .into_iter()
            .filter_map(|e| self.svids.get(&e.id).filter(|h| h.svid.id == e.spiffe_id))
            .filter(|held| held.not_after > now)
            // Hints are unique within a response; the first wins (Workload API §5.2).
            .filter(|held| held.svid.hint.is_empty() || hints.insert(held.svid.hint.clone()))
            .map(|held| held.svid.clone())
            .collect();
        X509Context { svids, bundles: self.bundles() }
    }

    /// Whether some entry asks for a selector of this prefix, such as `sha256:`.
    pub(crate) fn asks_for(&self, kind: &str, prefix: &str) -> bool {
        self.entries
            .values()
            .any(|e| e.selectors.iter().any(|s| s.kind() == kind && s.value().starts_with(prefix)))
    }
}
