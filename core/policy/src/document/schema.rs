//! The YAML shapes, and their conversion into checked documents.

use std::collections::BTreeMap;

use countersign_findings::{Code, Finding};
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};

use super::{
    Action, AuthorizationPolicy, Document, Field, Labels, PeerAuthentication, Rule, StaticEntry,
    Test, mode, until,
};
use crate::pattern::{PathPattern, Pattern};

/// Only to learn the kind; the rest is read again, strictly, once it is known.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Header {
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    kind: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Doc<S> {
    #[serde(rename = "apiVersion")]
    _api_version: String,
    #[serde(rename = "kind")]
    _kind: String,
    metadata: Metadata,
    #[serde(default = "Option::default")]
    spec: Option<S>,
    /// Written by Kubernetes.
    #[serde(default, rename = "status")]
    _status: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Metadata {
    name: String,
    #[serde(default)]
    namespace: Option<String>,
    #[serde(default, rename = "labels")]
    _labels: Option<Labels>,
    #[serde(default)]
    annotations: Labels,
    #[serde(default)]
    creation_timestamp: Option<String>,
    // Written by Kubernetes.
    #[serde(default, rename = "generation")]
    _generation: Option<IgnoredAny>,
    #[serde(default, rename = "resourceVersion")]
    _resource_version: Option<IgnoredAny>,
    #[serde(default, rename = "uid")]
    _uid: Option<IgnoredAny>,
    #[serde(default, rename = "managedFields")]
    _managed_fields: Option<IgnoredAny>,
    #[serde(default, rename = "finalizers")]
    _finalizers: Option<IgnoredAny>,
    #[serde(default, rename = "ownerReferences")]
    _owner_references: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct SelectorSpec {
    #[serde(default)]
    match_labels: Labels,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MtlsSpec {
    #[serde(default)]
    mode: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PeerSpec {
    #[serde(default)]
    selector: Option<SelectorSpec>,
    #[serde(default)]
    mtls: Option<MtlsSpec>,
    #[serde(default)]
    port_level_mtls: Option<BTreeMap<u32, MtlsSpec>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PolicySpec {
    #[serde(default)]
    selector: Option<SelectorSpec>,
    #[serde(default)]
    target_ref: Option<IgnoredAny>,
    #[serde(default)]
    target_refs: Option<IgnoredAny>,
    #[serde(default)]
    action: Option<String>,
    #[serde(default)]
    provider: Option<IgnoredAny>,
    #[serde(default)]
    rules: Option<Vec<Option<RuleSpec>>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleSpec {
    #[serde(default)]
    from: Option<Vec<FromSpec>>,
    #[serde(default)]
    to: Option<Vec<ToSpec>>,
    #[serde(default)]
    when: Option<Vec<Condition>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FromSpec {
    source: SourceSpec,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ToSpec {
    operation: OperationSpec,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct SourceSpec {
    #[serde(default)]
    principals: Vec<String>,
    #[serde(default)]
    not_principals: Vec<String>,
    #[serde(default)]
    request_principals: Vec<String>,
    #[serde(default)]
    not_request_principals: Vec<String>,
    #[serde(default)]
    namespaces: Vec<String>,
    #[serde(default)]
    not_namespaces: Vec<String>,
    #[serde(default)]
    service_accounts: Vec<String>,
    #[serde(default)]
    not_service_accounts: Vec<String>,
    #[serde(default)]
    trust_domains: Vec<String>,
    #[serde(default)]
    not_trust_domains: Vec<String>,
    #[serde(default)]
    ip_blocks: Vec<String>,
    #[serde(default)]
    not_ip_blocks: Vec<String>,
    #[serde(default)]
    remote_ip_blocks: Vec<String>,
    #[serde(default)]
    not_remote_ip_blocks: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct OperationSpec {
    #[serde(default)]
    hosts: Vec<String>,
    #[serde(default)]
    not_hosts: Vec<String>,
    #[serde(default)]
    ports: Vec<String>,
    #[serde(default)]
    not_ports: Vec<String>,
    #[serde(default)]
    methods: Vec<String>,
    #[serde(default)]
    not_methods: Vec<String>,
    #[serde(default)]
    paths: Vec<String>,
    #[serde(default)]
    not_paths: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Condition {
    key: String,
    #[serde(default)]
    values: Vec<String>,
    #[serde(default)]
    not_values: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EntrySpec {
    #[serde(rename = "spiffeID", alias = "spiffeId")]
    spiffe_id: String,
    #[serde(rename = "parentID", alias = "parentId")]
    parent_id: String,
    #[serde(default)]
    selectors: Vec<String>,
    #[serde(default, rename = "x509SVIDTTL")]
    x509_svid_ttl: Option<String>,
    #[serde(default, rename = "jwtSVIDTTL")]
    jwt_svid_ttl: Option<String>,
    #[serde(default, rename = "dnsNames")]
    dns_names: Vec<String>,
    #[serde(default, rename = "federatesWith")]
    federates_with: Vec<String>,
    #[serde(default)]
    admin: bool,
    #[serde(default)]
    downstream: bool,
    #[serde(default)]
    hint: String,
    #[serde(default, rename = "storeSVID")]
    store_svid: bool,
    /// Chooses between controller managers; all of them are ours.
    #[serde(default, rename = "className")]
    _class_name: Option<String>,
}

/// Where a value is, for errors: file and line of the document, then the path of fields.
struct Place<'a> {
    origin: &'a str,
    line: usize,
    title: String,
}

impl Place<'_> {
    fn error(&self, code: Code, path: &str, message: impl std::fmt::Display) -> Finding {
        Finding::new(code, format!("{}: {path}: {message}", self.title))
            .at(format!("{}:{}", self.origin, self.line))
    }

    fn invalid(&self, path: &str, message: impl std::fmt::Display) -> Finding {
        self.error(Code::InvalidValue, path, message)
    }

    fn unsupported(&self, path: &str) -> Finding {
        self.error(Code::UnsupportedDocument, path, "is not supported")
    }
}

fn yaml<T: DeserializeOwned>(text: &str, origin: &str, first_line: usize) -> Result<T, Finding> {
    serde_saphyr::from_str(text).map_err(|e| {
        let e = e.without_snippet();
        let (line, column) =
            e.location().map_or((1, 1), |l| (usize::try_from(l.line()).unwrap_or(1), l.column()));
        let message = e.to_string();
        let message = message.split(" at line ").next().unwrap_or_default().trim().to_owned();
        let place = format!("{origin}:{}:{column}", first_line + line.max(1) - 1);
        match unknown_field(&message) {
            Some((unknown, nearest)) => {
                let finding =
                    Finding::new(Code::UnknownField, format!("unknown field `{unknown}`"))
                        .at(place);
                match nearest {
                    Some(name) => finding.hint(format!("did you mean `{name}`?")),
                    None => finding,
                }
            }
            None => Finding::new(Code::ConfigSyntax, message).at(place),
        }
    })
}

/// Every field of every kind, for "did you mean".
const KNOWN_FIELDS: &[&str] = &[
    "apiVersion",
    "kind",
    "metadata",
    "spec",
    "name",
    "namespace",
    "labels",
    "annotations",
    "selector",
    "matchLabels",
    "mtls",
    "mode",
    "portLevelMtls",
    "action",
    "rules",
    "from",
    "to",
    "when",
    "source",
    "operation",
    "principals",
    "notPrincipals",
    "namespaces",
    "notNamespaces",
    "serviceAccounts",
    "notServiceAccounts",
    "trustDomains",
    "notTrustDomains",
    "ipBlocks",
    "notIpBlocks",
    "hosts",
    "notHosts",
    "ports",
    "notPorts",
    "methods",
    "notMethods",
    "paths",
    "notPaths",
    "key",
    "values",
    "notValues",
    "spiffeID",
    "parentID",
    "selectors",
    "x509SVIDTTL",
    "jwtSVIDTTL",
    "dnsNames",
    "federatesWith",
    "admin",
    "downstream",
    "hint",
    "storeSVID",
    "className",
];

/// `(unknown, nearest known)` out of serde's message.
fn unknown_field(message: &str) -> Option<(String, Option<String>)> {
    let rest = &message[message.find("unknown field")?..];
    let unknown = rest.split('`').nth(1)?.to_owned();
    let nearest = KNOWN_FIELDS
        .iter()
        .copied()
        .map(|known| {
            (strsim::damerau_levenshtein(&unknown.to_lowercase(), &known.to_lowercase()), known)
        })
        .filter(|(distance, known)| *distance <= 3.max(known.len() / 3))
        .min()
        .map(|(_, known)| known.to_owned());
    Some((unknown, nearest))
}

pub(super) fn read(text: &str, origin: &str, first_line: usize) -> Result<Document, Finding> {
    let header: Header = yaml(text, origin, first_line)?;
    let group = header.api_version.split('/').next().unwrap_or_default();
    let at = || format!("{origin}:{first_line}");
    match (group, header.kind.as_str()) {
        ("security.istio.io", "PeerAuthentication") => {
            peer_authentication(yaml(text, origin, first_line)?, origin, first_line)
                .map(Document::PeerAuthentication)
        }
        ("security.istio.io", "AuthorizationPolicy") => {
            authorization_policy(yaml(text, origin, first_line)?, origin, first_line)
                .map(Document::AuthorizationPolicy)
        }
        ("spire.spiffe.io", "ClusterStaticEntry") => {
            static_entry(yaml(text, origin, first_line)?, origin, first_line)
                .map(Document::StaticEntry)
        }
        (_, "") => Err(Finding::new(Code::ConfigSyntax, "document has no `kind`").at(at())),
        (_, kind) => Err(Finding::new(
            Code::UnsupportedDocument,
            format!("`{kind}` of `{}` is not supported", header.api_version),
        )
        .expected("PeerAuthentication, AuthorizationPolicy or ClusterStaticEntry")
        .at(at())),
    }
}

fn check_version(versions: &[&str], doc: &str, place: &Place<'_>) -> Result<(), Finding> {
    let version = doc.split('/').nth(1).unwrap_or_default();
    if versions.contains(&version) {
        Ok(())
    } else {
        Err(place.invalid("apiVersion", format!("version must be {}", versions.join(" or "))))
    }
}

fn selector(spec: Option<SelectorSpec>, place: &Place<'_>) -> Result<Labels, Finding> {
    let labels = spec.map(|s| s.match_labels).unwrap_or_default();
    for (k, v) in &labels {
        if k.is_empty() || k.contains('*') || v.contains('*') {
            return Err(place.invalid("spec.selector.matchLabels", "wildcards are not allowed"));
        }
    }
    Ok(labels)
}

fn peer_authentication(
    doc: Doc<PeerSpec>,
    origin: &str,
    line: usize,
) -> Result<PeerAuthentication, Finding> {
    let place =
        Place { origin, line, title: format!("PeerAuthentication `{}`", doc.metadata.name) };
    check_version(&["v1", "v1beta1"], &doc._api_version, &place)?;
    let spec = doc.spec.unwrap_or_default();
    let end = doc
        .metadata
        .annotations
        .get("countersign.dev/permissive-until")
        .map(|t| {
            until(t).map_err(|e| {
                place.invalid("metadata.annotations[countersign.dev/permissive-until]", e)
            })
        })
        .transpose()?;
    let read = |path: &str, m: &MtlsSpec| match &m.mode {
        None => Ok(None),
        Some(text) => mode(text, end).map_err(|e| place.invalid(path, e)),
    };
    let selector = selector(spec.selector, &place)?;
    let mut port_modes = BTreeMap::new();
    if let Some(ports) = &spec.port_level_mtls {
        if selector.is_empty() {
            return Err(place.invalid("spec.portLevelMtls", "needs a selector"));
        }
        if ports.is_empty() {
            return Err(place.invalid("spec.portLevelMtls", "is empty"));
        }
        for (port, m) in ports {
            let path = format!("spec.portLevelMtls.{port}");
            let port = u16::try_from(*port)
                .ok()
                .filter(|p| *p > 0)
                .ok_or_else(|| place.invalid(&path, "port must be 1 to 65535"))?;
            port_modes.insert(port, read(&path, m)?);
        }
    }
    Ok(PeerAuthentication {
        mode: spec.mtls.as_ref().map_or(Ok(None), |m| read("spec.mtls.mode", m))?,
        name: doc.metadata.name,
        namespace: doc.metadata.namespace.unwrap_or_else(|| "default".into()),
        created: doc.metadata.creation_timestamp,
        selector,
        port_modes,
    })
}

fn authorization_policy(
    doc: Doc<PolicySpec>,
    origin: &str,
    line: usize,
) -> Result<AuthorizationPolicy, Finding> {
    let place =
        Place { origin, line, title: format!("AuthorizationPolicy `{}`", doc.metadata.name) };
    check_version(&["v1", "v1beta1"], &doc._api_version, &place)?;
    let spec = doc.spec.unwrap_or_default();
    for (path, there) in [
        ("spec.targetRef", spec.target_ref.is_some()),
        ("spec.targetRefs", spec.target_refs.is_some()),
        ("spec.provider", spec.provider.is_some()),
    ] {
        if there {
            return Err(place.unsupported(path));
        }
    }
    let action = match spec.action.as_deref() {
        None | Some("ALLOW") => Action::Allow,
        Some("DENY") => Action::Deny,
        Some("AUDIT") => Action::Audit,
        Some("CUSTOM") => return Err(place.unsupported("spec.action: CUSTOM")),
        Some(other) => {
            return Err(place.invalid(
                "spec.action",
                format!("`{other}` is not an action; use ALLOW, DENY or AUDIT"),
            ));
        }
    };
    let dry_run = match doc.metadata.annotations.get("istio.io/dry-run").map(String::as_str) {
        None => false,
        Some("1" | "t" | "T" | "true" | "TRUE" | "True") => true,
        Some("0" | "f" | "F" | "false" | "FALSE" | "False") => false,
        Some(_) => {
            return Err(place.invalid("metadata.annotations[istio.io/dry-run]", "is not a boolean"));
        }
    };
    let namespace = doc.metadata.namespace.unwrap_or_else(|| "default".into());
    if action == Action::Deny && spec.rules.as_ref().is_none_or(Vec::is_empty) {
        return Err(place.invalid("spec.rules", "a DENY without rules never matches"));
    }
    let mut rules = Vec::new();
    for (i, spec) in spec.rules.unwrap_or_default().into_iter().enumerate() {
        let at = format!("spec.rules[{i}]");
        // `- {}` reads as an empty rule and matches everything; a bare `-` is null and refused.
        let spec = spec.ok_or_else(|| place.invalid(&at, "is null"))?;
        rules.push(rule(spec, &at, &namespace, &place)?);
    }
    Ok(AuthorizationPolicy {
        name: doc.metadata.name,
        selector: selector(spec.selector, &place)?,
        namespace,
        action,
        dry_run,
        rules,
    })
}

fn rule(spec: RuleSpec, at: &str, namespace: &str, place: &Place<'_>) -> Result<Rule, Finding> {
    let mut rule = Rule::default();
    let empty = |path: String| place.invalid(&path, "is empty");
    if let Some(from) = spec.from {
        if from.is_empty() {
            return Err(empty(format!("{at}.from")));
        }
        for (i, f) in from.into_iter().enumerate() {
            let at = format!("{at}.from[{i}].source");
            let fields = source(f.source, &at, namespace, place)?;
            if fields.is_empty() {
                return Err(empty(at));
            }
            rule.from.push(fields);
        }
    }
    if let Some(to) = spec.to {
        if to.is_empty() {
            return Err(empty(format!("{at}.to")));
        }
        for (i, t) in to.into_iter().enumerate() {
            let at = format!("{at}.to[{i}].operation");
            let fields = operation(t.operation, &at, place)?;
            if fields.is_empty() {
                return Err(empty(at));
            }
            rule.to.push(fields);
        }
    }
    for (i, c) in spec.when.unwrap_or_default().into_iter().enumerate() {
        let at = format!("{at}.when[{i}]");
        if c.values.is_empty() && c.not_values.is_empty() {
            return Err(place.invalid(&at, "needs `values` or `notValues`"));
        }
        for (values, negated, name) in
            [(c.values, false, "values"), (c.not_values, true, "notValues")]
        {
            if !values.is_empty() {
                let at = format!("{at}.{name}");
                let test = condition(&c.key, &values, namespace, &at, place)?;
                rule.when.push(Field { name: format!("when {}", c.key), negated, test });
            }
        }
    }
    Ok(rule)
}

/// Parses every value of one field; an error names the value's index.
fn values<T>(
    list: &[String],
    at: &str,
    place: &Place<'_>,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Result<Vec<T>, Finding> {
    list.iter()
        .enumerate()
        .map(|(i, v)| {
            parse(v).map_err(|e| {
                place.invalid(&format!("{at}[{i}]"), format!("`{}` {e}", v.escape_default()))
            })
        })
        .collect()
}

fn pattern(v: &str) -> Result<Pattern, String> {
    v.parse()
}

fn port(v: &str) -> Result<u16, String> {
    v.parse::<u32>()
        .ok()
        .and_then(|p| u16::try_from(p).ok())
        .filter(|p| *p > 0)
        .ok_or_else(|| "is not a port from 1 to 65535".into())
}

fn service_account(v: &str, namespace: &str) -> Result<(String, String), String> {
    if v.contains('*') {
        return Err("must not hold `*`".into());
    }
    let (ns, sa) = v.split_once('/').unwrap_or((namespace, v));
    if ns.is_empty() || sa.is_empty() || sa.contains('/') || v.len() > 320 {
        return Err("is not NAMESPACE/ACCOUNT or ACCOUNT".into());
    }
    Ok((ns.to_owned(), sa.to_owned()))
}

fn principal(v: &str) -> Result<Pattern, String> {
    if v.contains("://") {
        return Err("must be written without `spiffe://`".into());
    }
    v.parse()
}

fn trust_domain(v: &str) -> Result<Pattern, String> {
    if v.contains('/') {
        return Err("must not hold `/`".into());
    }
    v.parse()
}

fn source(
    s: SourceSpec,
    at: &str,
    namespace: &str,
    place: &Place<'_>,
) -> Result<Vec<Field>, Finding> {
    for (name, there) in [
        ("requestPrincipals", !s.request_principals.is_empty()),
        ("notRequestPrincipals", !s.not_request_principals.is_empty()),
        ("remoteIpBlocks", !s.remote_ip_blocks.is_empty()),
        ("notRemoteIpBlocks", !s.not_remote_ip_blocks.is_empty()),
    ] {
        if there {
            return Err(place.unsupported(&format!("{at}.{name}")));
        }
    }
    if !(s.service_accounts.is_empty() || s.principals.is_empty() && s.namespaces.is_empty()) {
        return Err(place.invalid(
            &format!("{at}.serviceAccounts"),
            "cannot stand beside principals or namespaces",
        ));
    }
    if s.service_accounts.len().max(s.not_service_accounts.len()) > 16 {
        return Err(place.invalid(&format!("{at}.serviceAccounts"), "holds more than 16 values"));
    }
    let mut out = Vec::new();
    let mut add = |name: &str,
                   negated: bool,
                   list: &[String],
                   make: &dyn Fn(&str) -> Result<Test, Finding>| {
        if list.is_empty() {
            return Ok(());
        }
        let at = format!("{at}.{name}");
        out.push(Field { name: name.to_owned(), negated, test: make(&at)? });
        Ok::<(), Finding>(())
    };
    for (name, negated, list) in
        [("principals", false, &s.principals), ("notPrincipals", true, &s.not_principals)]
    {
        add(name, negated, list, &|at| values(list, at, place, principal).map(Test::Principals))?;
    }
    for (name, negated, list) in
        [("namespaces", false, &s.namespaces), ("notNamespaces", true, &s.not_namespaces)]
    {
        add(name, negated, list, &|at| values(list, at, place, pattern).map(Test::Namespaces))?;
    }
    for (name, negated, list) in [
        ("serviceAccounts", false, &s.service_accounts),
        ("notServiceAccounts", true, &s.not_service_accounts),
    ] {
        add(name, negated, list, &|at| {
            values(list, at, place, |v| service_account(v, namespace)).map(Test::ServiceAccounts)
        })?;
    }
    for (name, negated, list) in
        [("trustDomains", false, &s.trust_domains), ("notTrustDomains", true, &s.not_trust_domains)]
    {
        add(name, negated, list, &|at| {
            values(list, at, place, trust_domain).map(Test::TrustDomains)
        })?;
    }
    for (name, negated, list) in
        [("ipBlocks", false, &s.ip_blocks), ("notIpBlocks", true, &s.not_ip_blocks)]
    {
        add(name, negated, list, &|at| values(list, at, place, str::parse).map(Test::SourceIps))?;
    }
    Ok(out)
}

fn operation(o: OperationSpec, at: &str, place: &Place<'_>) -> Result<Vec<Field>, Finding> {
    let mut out = Vec::new();
    for (name, negated, list) in [("hosts", false, &o.hosts), ("notHosts", true, &o.not_hosts)] {
        if !list.is_empty() {
            let test = Test::Hosts(values(list, &format!("{at}.{name}"), place, pattern)?);
            out.push(Field { name: name.into(), negated, test });
        }
    }
    for (name, negated, list) in [("ports", false, &o.ports), ("notPorts", true, &o.not_ports)] {
        if !list.is_empty() {
            let test = Test::Ports(values(list, &format!("{at}.{name}"), place, port)?);
            out.push(Field { name: name.into(), negated, test });
        }
    }
    for (name, negated, list) in
        [("methods", false, &o.methods), ("notMethods", true, &o.not_methods)]
    {
        if !list.is_empty() {
            let test = Test::Methods(values(list, &format!("{at}.{name}"), place, pattern)?);
            out.push(Field { name: name.into(), negated, test });
        }
    }
    for (name, negated, list) in [("paths", false, &o.paths), ("notPaths", true, &o.not_paths)] {
        if !list.is_empty() {
            let parse = |v: &str| v.parse::<PathPattern>();
            let test = Test::Paths(values(list, &format!("{at}.{name}"), place, parse)?);
            out.push(Field { name: name.into(), negated, test });
        }
    }
    Ok(out)
}

fn condition(
    key: &str,
    list: &[String],
    namespace: &str,
    at: &str,
    place: &Place<'_>,
) -> Result<Test, Finding> {
    const KNOWN: [&str; 8] = [
        "source.ip",
        "source.namespace",
        "source.principal",
        "source.serviceAccount",
        "source.trustDomain",
        "destination.ip",
        "destination.port",
        "request.headers",
    ];
    let header = key.strip_prefix("request.headers[").and_then(|k| k.strip_suffix(']'));
    Ok(match key {
        "source.ip" => Test::SourceIps(values(list, at, place, str::parse)?),
        "source.namespace" => Test::Namespaces(values(list, at, place, pattern)?),
        "source.principal" => Test::Principals(values(list, at, place, principal)?),
        "source.serviceAccount" => {
            Test::ServiceAccounts(values(list, at, place, |v| service_account(v, namespace))?)
        }
        "source.trustDomain" => Test::TrustDomains(values(list, at, place, trust_domain)?),
        "destination.ip" => Test::DestinationIps(values(list, at, place, str::parse)?),
        "destination.port" => Test::Ports(values(list, at, place, port)?),
        _ if header.is_some_and(|h| {
            !h.is_empty() && h.bytes().all(|b| b.is_ascii_graphic() && b != b':')
        }) =>
        {
            let name = header.unwrap_or_default().to_ascii_lowercase();
            Test::Header(name, values(list, at, place, pattern)?)
        }
        "remote.ip" | "connection.sni" => return Err(place.unsupported(&format!("{at}: {key}"))),
        _ if key.starts_with("request.auth.") || key.starts_with("experimental.") => {
            return Err(place.unsupported(&format!("{at}: {key}")));
        }
        _ => {
            let nearest = KNOWN
                .iter()
                .min_by_key(|k| strsim::damerau_levenshtein(key, k))
                .copied()
                .unwrap_or_default();
            return Err(place
                .invalid(at, format!("key `{}` is not known", key.escape_default()))
                .hint(format!("did you mean `{nearest}`?")));
        }
    })
}

fn static_entry(doc: Doc<EntrySpec>, origin: &str, line: usize) -> Result<StaticEntry, Finding> {
    let place =
        Place { origin, line, title: format!("ClusterStaticEntry `{}`", doc.metadata.name) };
    check_version(&["v1alpha1"], &doc._api_version, &place)?;
    let spec = doc.spec.ok_or_else(|| place.invalid("spec", "is missing"))?;
    let ttl = |path: &str, text: &Option<String>| {
        text.as_deref()
            .map(|t| {
                duration_secs(t).ok_or_else(|| {
                    place.invalid(path, format!("`{t}` is not a duration like 1h or 30m"))
                })
            })
            .transpose()
    };
    Ok(StaticEntry {
        x509_svid_ttl: ttl("spec.x509SVIDTTL", &spec.x509_svid_ttl)?,
        jwt_svid_ttl: ttl("spec.jwtSVIDTTL", &spec.jwt_svid_ttl)?,
        name: doc.metadata.name,
        spiffe_id: spec.spiffe_id,
        parent_id: spec.parent_id,
        selectors: spec.selectors,
        dns_names: spec.dns_names,
        federates_with: spec.federates_with,
        admin: spec.admin,
        downstream: spec.downstream,
        hint: spec.hint,
        store_svid: spec.store_svid,
    })
}

/// Go's durations in whole seconds: `1h30m`, `45s`.
fn duration_secs(text: &str) -> Option<u64> {
    let mut total = 0u64;
    let mut number = String::new();
    for c in text.chars() {
        if c.is_ascii_digit() {
            number.push(c);
        } else {
            let unit = match c {
                'h' => 3600,
                'm' => 60,
                's' => 1,
                _ => return None,
            };
            total = total.checked_add(number.parse::<u64>().ok()?.checked_mul(unit)?)?;
            number.clear();
        }
    }
    (number.is_empty() && total > 0).then_some(total)
}
