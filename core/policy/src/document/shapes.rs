//! The YAML shapes, field for field.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::Labels;

/// Only to learn the kind; the rest is read again, strictly, once it is known.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Header {
    #[serde(default)]
    pub(super) api_version: String,
    #[serde(default)]
    pub(super) kind: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Doc<S> {
    #[serde(rename = "apiVersion")]
    pub(super) api_version: String,
    #[serde(rename = "kind")]
    pub(super) _kind: String,
    pub(super) metadata: Metadata,
    #[serde(default = "Option::default")]
    pub(super) spec: Option<S>,
    /// Written by Kubernetes.
    #[serde(default, rename = "status")]
    pub(super) _status: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Metadata {
    pub(super) name: String,
    #[serde(default)]
    pub(super) namespace: Option<String>,
    #[serde(default, rename = "labels")]
    pub(super) _labels: Option<Labels>,
    #[serde(default)]
    pub(super) annotations: Labels,
    #[serde(default)]
    pub(super) creation_timestamp: Option<String>,
    // Written by Kubernetes.
    #[serde(default, rename = "generation")]
    pub(super) _generation: Option<IgnoredAny>,
    #[serde(default, rename = "resourceVersion")]
    pub(super) _resource_version: Option<IgnoredAny>,
    #[serde(default, rename = "uid")]
    pub(super) _uid: Option<IgnoredAny>,
    #[serde(default, rename = "managedFields")]
    pub(super) _managed_fields: Option<IgnoredAny>,
    #[serde(default, rename = "finalizers")]
    pub(super) _finalizers: Option<IgnoredAny>,
    #[serde(default, rename = "ownerReferences")]
    pub(super) _owner_references: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct SelectorSpec {
    #[serde(default)]
    pub(super) match_labels: Labels,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MtlsSpec {
    #[serde(default)]
    pub(super) mode: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct PeerSpec {
    #[serde(default)]
    pub(super) selector: Option<SelectorSpec>,
    #[serde(default)]
    pub(super) mtls: Option<MtlsSpec>,
    #[serde(default)]
    pub(super) port_level_mtls: Option<BTreeMap<u32, MtlsSpec>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct PolicySpec {
    #[serde(default)]
    pub(super) selector: Option<SelectorSpec>,
    #[serde(default)]
    pub(super) target_ref: Option<TargetRefSpec>,
    #[serde(default)]
    pub(super) target_refs: Option<Vec<TargetRefSpec>>,
    #[serde(default)]
    pub(super) action: Option<String>,
    #[serde(default)]
    pub(super) provider: Option<ProviderRef>,
    #[serde(default)]
    pub(super) rules: Option<Vec<Option<RuleSpec>>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ProviderRef {
    #[serde(default)]
    pub(super) name: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RuleSpec {
    #[serde(default)]
    pub(super) from: Option<Vec<FromSpec>>,
    #[serde(default)]
    pub(super) to: Option<Vec<ToSpec>>,
    #[serde(default)]
    pub(super) when: Option<Vec<Condition>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FromSpec {
    pub(super) source: SourceSpec,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ToSpec {
    pub(super) operation: OperationSpec,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct SourceSpec {
    #[serde(default)]
    pub(super) principals: Vec<String>,
    #[serde(default)]
    pub(super) not_principals: Vec<String>,
    #[serde(default)]
    pub(super) request_principals: Vec<String>,
    #[serde(default)]
    pub(super) not_request_principals: Vec<String>,
    #[serde(default)]
    pub(super) namespaces: Vec<String>,
    #[serde(default)]
    pub(super) not_namespaces: Vec<String>,
    #[serde(default)]
    pub(super) service_accounts: Vec<String>,
    #[serde(default)]
    pub(super) not_service_accounts: Vec<String>,
    #[serde(default)]
    pub(super) trust_domains: Vec<String>,
    #[serde(default)]
    pub(super) not_trust_domains: Vec<String>,
    #[serde(default)]
    pub(super) ip_blocks: Vec<String>,
    #[serde(default)]
    pub(super) not_ip_blocks: Vec<String>,
    #[serde(default)]
    pub(super) remote_ip_blocks: Vec<String>,
    #[serde(default)]
    pub(super) not_remote_ip_blocks: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct OperationSpec {
    #[serde(default)]
    pub(super) hosts: Vec<String>,
    #[serde(default)]
    pub(super) not_hosts: Vec<String>,
    #[serde(default)]
    pub(super) ports: Vec<String>,
    #[serde(default)]
    pub(super) not_ports: Vec<String>,
    #[serde(default)]
    pub(super) methods: Vec<String>,
    #[serde(default)]
    pub(super) not_methods: Vec<String>,
    #[serde(default)]
    pub(super) paths: Vec<String>,
    #[serde(default)]
    pub(super) not_paths: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Condition {
    pub(super) key: String,
    #[serde(default)]
    pub(super) values: Vec<String>,
    #[serde(default)]
    pub(super) not_values: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EntrySpec {
    #[serde(rename = "spiffeID", alias = "spiffeId")]
    pub(super) spiffe_id: String,
    #[serde(rename = "parentID", alias = "parentId")]
    pub(super) parent_id: String,
    #[serde(default)]
    pub(super) selectors: Vec<String>,
    #[serde(default, rename = "x509SVIDTTL")]
    pub(super) x509_svid_ttl: Option<String>,
    #[serde(default, rename = "jwtSVIDTTL")]
    pub(super) jwt_svid_ttl: Option<String>,
    #[serde(default, rename = "dnsNames")]
    pub(super) dns_names: Vec<String>,
    #[serde(default, rename = "federatesWith")]
    pub(super) federates_with: Vec<String>,
    #[serde(default)]
    pub(super) admin: bool,
    #[serde(default)]
    pub(super) downstream: bool,
    #[serde(default)]
    pub(super) hint: String,
    #[serde(default, rename = "storeSVID")]
    pub(super) store_svid: bool,
    /// Chooses between controller managers; all of them are ours.
    #[serde(default, rename = "className")]
    pub(super) _class_name: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct RequestSpec {
    #[serde(default)]
    pub(super) selector: Option<SelectorSpec>,
    #[serde(default)]
    pub(super) target_ref: Option<TargetRefSpec>,
    #[serde(default)]
    pub(super) target_refs: Option<Vec<TargetRefSpec>>,
    #[serde(default)]
    pub(super) jwt_rules: Vec<Option<JwtRuleSpec>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct JwtRuleSpec {
    #[serde(default)]
    pub(super) issuer: String,
    #[serde(default)]
    pub(super) audiences: Vec<String>,
    #[serde(default, alias = "jwks_uri")]
    pub(super) jwks_uri: Option<String>,
    #[serde(default)]
    pub(super) jwks: Option<String>,
    #[serde(default)]
    pub(super) from_headers: Vec<FromHeaderSpec>,
    #[serde(default)]
    pub(super) from_params: Vec<String>,
    #[serde(default)]
    pub(super) from_cookies: Vec<String>,
    #[serde(default)]
    pub(super) output_payload_to_header: Option<String>,
    #[serde(default)]
    pub(super) forward_original_token: bool,
    #[serde(default)]
    pub(super) output_claim_to_headers: Vec<Option<ClaimToHeaderSpec>>,
    #[serde(default)]
    pub(super) timeout: Option<String>,
    #[serde(default)]
    pub(super) space_delimited_claims: Vec<String>,
    #[serde(default)]
    pub(super) presence: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FromHeaderSpec {
    pub(super) name: String,
    #[serde(default)]
    pub(super) prefix: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ClaimToHeaderSpec {
    #[serde(default)]
    pub(super) header: String,
    #[serde(default)]
    pub(super) claim: String,
}

/// What a policy for gateways and waypoints is attached to.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct TargetRefSpec {
    #[serde(default)]
    pub(super) group: String,
    #[serde(default)]
    pub(super) kind: String,
    #[serde(default)]
    pub(super) name: String,
    #[serde(default)]
    pub(super) namespace: String,
    #[serde(default, rename = "sectionName")]
    pub(super) _section_name: Option<IgnoredAny>,
}
