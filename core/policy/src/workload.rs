//! For whom policies are compiled, and how they are to be understood.

use countersign_identity::{SpiffeId, TrustDomain};

use crate::Labels;
use crate::matcher::Semantics;
use crate::path::Normalization;

/// How the policies of a mesh are to be understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mesh {
    /// Other names of the local trust domain (AP-17).
    pub aliases: Vec<TrustDomain>,
    /// Policies of this namespace apply to every namespace.
    pub root_namespace: String,
    /// Whose semantics count.
    pub semantics: Semantics,
    /// How the paths of requests are normalised.
    pub normalization: Normalization,
    /// Proxies in front that append to X-Forwarded-For and can be believed.
    pub trusted_hops: u8,
}

impl Default for Mesh {
    /// No aliases, `istio-system`, strict, no proxy in front.
    fn default() -> Self {
        Self {
            aliases: Vec::new(),
            root_namespace: "istio-system".into(),
            semantics: Semantics::Strict,
            normalization: Normalization::Strict,
            trusted_hops: 0,
        }
    }
}

/// Whose proxy decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Its trust domain: what `namespaces` and `serviceAccounts` refer to.
    pub trust_domain: TrustDomain,
    /// Its namespace.
    pub namespace: String,
    /// Its labels; `None` if they are not known. Then a selector is taken to match where that refuses
    /// more, and not to match where it would allow more.
    pub labels: Option<Labels>,
    /// In which mesh it is.
    pub mesh: Mesh,
}

impl Workload {
    /// The workload behind `id`: the namespace is the ID's, or `default`; labels unknown, the mesh as it is by
    /// default.
    pub fn of(id: &SpiffeId) -> Self {
        Self {
            trust_domain: id.trust_domain().clone(),
            namespace: id.namespace().unwrap_or("default").to_owned(),
            labels: None,
            mesh: Mesh::default(),
        }
    }

    /// Whether the workload has these labels; `None` if that is not known.
    pub(crate) fn has_labels(&self, wanted: &Labels) -> Option<bool> {
        if wanted.is_empty() {
            return Some(true);
        }
        let labels = self.labels.as_ref()?;
        Some(wanted.iter().all(|(k, v)| labels.get(k) == Some(v)))
    }
}
