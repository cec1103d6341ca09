//! What only many files together show.

use std::collections::{BTreeMap, BTreeSet};

use crate::issue::{Issue, Related};
use crate::kind::Kind;
use crate::material::Together;
use crate::rule::Catalogue;

/// A place in a file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    path: String,
    line: usize,
}

/// Facts gathered over all files.
#[derive(Debug, Default)]
pub(crate) struct Project {
    /// Istio's own resources.
    istio: BTreeSet<Place>,
    /// PeerAuthentications without selector that say STRICT.
    strict: BTreeSet<Place>,
    /// Any PeerAuthentication that says something else.
    other_modes: bool,
    /// Namespaces that an AuthorizationPolicy without selector covers; the root namespace covers all.
    authorized: BTreeSet<String>,
    /// Labels that AuthorizationPolicies select, by namespace: `app=web`.
    selected: BTreeSet<(String, String)>,
    /// Workloads: namespace, name, labels, place.
    workloads: Vec<(String, String, BTreeSet<String>, Place)>,
    /// DestinationRules that switch mTLS off, by host.
    plaintext_hosts: BTreeMap<String, Place>,
    /// Secrets that look like identities: `(namespace, secret)` to the workloads that mount them.
    mounts: BTreeMap<(String, String), BTreeMap<String, Place>>,
    /// Namespaces that a NetworkPolicy on incoming traffic is about.
    limited: BTreeSet<String>,
    /// NetworkPolicies that let everybody in.
    open: BTreeSet<Place>,
    /// Keys and certificates.
    pub(crate) material: Together,
}

/// Kinds that run containers.
const WORKLOADS: [&str; 4] = ["Deployment", "StatefulSet", "DaemonSet", "CronJob"];

/// Most places that are kept of one sort.
const MAX: usize = 10_000;

impl Project {
    /// Takes note of one file.
    pub(crate) fn look(&mut self, path: &str, kind: Kind, text: &str) {
        if kind != Kind::Yaml || !text.contains("kind:") {
            return;
        }
        let mut first = 1;
        for document in text.split("\n---") {
            self.document(path, first, document);
            first += document.matches('\n').count() + 1;
        }
    }

    fn document(&mut self, path: &str, first: usize, text: &str) {
        let value = |key: &str| -> Option<&str> {
            text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':').map(str::trim))
        };
        let metadata = |key: &str| -> Option<&str> {
            let mut inside = false;
            for line in text.lines() {
                if line.starts_with("metadata:") {
                    inside = true;
                } else if inside && !line.starts_with(' ') && !line.trim().is_empty() {
                    return None;
                } else if inside
                    && let Some(v) =
                        line.strip_prefix("  ").and_then(|l| l.strip_prefix(key)?.strip_prefix(':'))
                {
                    return Some(v.trim().trim_matches(['"', '\'']));
                }
            }
            None
        };
        let place = |needle: &str| {
            let line = text.lines().position(|l| l.contains(needle)).unwrap_or(0);
            Place { path: path.to_owned(), line: first + line }
        };
        let (Some(kind), Some(version)) = (value("kind"), value("apiVersion")) else { return };
        if version.contains("istio.io") && self.istio.len() < MAX {
            self.istio.insert(place("kind:"));
        }
        if kind == "PeerAuthentication" {
            let mode =
                text.lines().find_map(|l| l.split('#').next()?.split_once("mode:").map(|(_, v)| v));
            match mode.map(|v| v.trim().trim_end_matches(['}', ' ', '"']).trim_start_matches('"')) {
                Some("STRICT") if !text.contains("selector:") => {
                    self.strict.insert(place("STRICT"));
                }
                Some("STRICT") | None => {}
                Some(_) => self.other_modes = true,
            }
        }
        if kind == "DestinationRule"
            && let Some(at) = text.lines().position(|l| {
                let code = l.split('#').next().unwrap_or_default();
                code.split_once("mode:")
                    .is_some_and(|(_, v)| v.trim().trim_end_matches('}').trim() == "DISABLE")
            })
            && let Some(host) = text.lines().find_map(|l| l.trim().strip_prefix("host:"))
        {
            let host = host.trim().trim_matches(['"', '\'']).to_owned();
            let place = Place { path: path.to_owned(), line: first + at };
            keep_first(&mut self.plaintext_hosts, host, place);
        }
        if kind == "NetworkPolicy" {
            let ingress = !text.contains("policyTypes:") || text.contains("Ingress");
            if ingress {
                self.limited.insert(metadata("namespace").unwrap_or("default").to_owned());
            }
            if let Some(at) = open_rule(text) {
                self.open.insert(Place { path: path.to_owned(), line: first + at });
            }
        }
        if kind == "AuthorizationPolicy" {
            let namespace = metadata("namespace").unwrap_or("default").to_owned();
            match labels(text, "matchLabels:") {
                found if found.is_empty() => {
                    self.authorized.insert(namespace);
                }
                found => self.selected.extend(found.into_iter().map(|l| (namespace.clone(), l))),
            }
        }
        if WORKLOADS.contains(&kind) && self.workloads.len() < MAX {
            let namespace = metadata("namespace").unwrap_or("default").to_owned();
            if let Some(name) = metadata("name").filter(|n| !n.contains('{')) {
                let labels = labels(text, "labels:");
                let workload = format!("{kind}/{name}");
                self.workloads.push((namespace, workload, labels, place("kind:")));
            }
        }
        if WORKLOADS.contains(&kind) && self.mounts.len() < MAX {
            let namespace = metadata("namespace").unwrap_or_default().to_owned();
            let Some(name) = metadata("name") else { return };
            for line in text.lines() {
                let bare = line.trim().trim_start_matches("- ");
                let Some(secret) =
                    bare.strip_prefix("secretName:").map(|s| s.trim().trim_matches(['"', '\'']))
                else {
                    continue;
                };
                if is_identity(secret) {
                    let users =
                        self.mounts.entry((namespace.clone(), secret.to_owned())).or_default();
                    users.entry(format!("{kind}/{name}")).or_insert_with(|| place(line));
                }
            }
        }
    }

    pub(crate) fn merge(&mut self, other: Project) {
        self.istio.extend(other.istio);
        self.strict.extend(other.strict);
        self.other_modes |= other.other_modes;
        self.authorized.extend(other.authorized);
        self.selected.extend(other.selected);
        self.workloads.extend(other.workloads);
        // Which thread saw a file first must not show: of several places the first one counts.
        for (host, place) in other.plaintext_hosts {
            keep_first(&mut self.plaintext_hosts, host, place);
        }
        self.limited.extend(other.limited);
        self.open.extend(other.open);
        self.material.merge(other.material);
        for (secret, users) in other.mounts {
            let known = self.mounts.entry(secret).or_default();
            for (user, place) in users {
                keep_first(known, user, place);
            }
        }
    }

    /// Puts what threads found into the order of the files.
    pub(crate) fn settle(&mut self) {
        self.workloads.sort_by(|a, b| (&a.3, &a.1).cmp(&(&b.3, &b.1)));
    }

    pub(crate) fn findings(&self, catalogue: &Catalogue) -> Vec<Issue> {
        let mut out = Vec::new();
        // Where a mode is said, that is judged; here nobody says any.
        if let Some(first) =
            self.istio.first().filter(|_| self.strict.is_empty() && !self.other_modes)
        {
            let what = format!(
                "none of {} Istio resources demands mTLS: the default is PERMISSIVE",
                self.istio.len()
            );
            out.extend(catalogue.issue(
                "mesh-permissive/istio-no-strict-default",
                &first.path,
                first.line,
                String::new(),
                what,
            ));
        }
        out.extend(self.uncovered(catalogue));
        out.extend(self.unlimited(catalogue));
        out.extend(self.material.findings(catalogue));
        if let Some(strict) = self.strict.first() {
            for (host, place) in &self.plaintext_hosts {
                let what = format!(
                    "callers of `{host}` are told to speak plaintext, and STRICT refuses it"
                );
                let rule = "mesh-permissive/istio-rule-against-strict";
                if let Some(mut issue) =
                    catalogue.issue(rule, &place.path, place.line, format!("host: {host}"), what)
                {
                    issue.related = vec![Related {
                        path: strict.path.clone(),
                        line: strict.line,
                        message: "STRICT is demanded here".into(),
                    }];
                    out.push(issue);
                }
            }
        }
        for ((_, secret), users) in self.mounts.iter().filter(|(_, u)| u.len() > 1) {
            let mut places = users.iter();
            let Some((_, first)) = places.next() else { continue };
            let names: Vec<&str> = users.keys().map(String::as_str).take(5).collect();
            let what =
                format!("`{secret}` is mounted by {}: they share one identity", names.join(", "));
            let rule = "identity-binding-absent/shared-identity";
            if let Some(mut issue) = catalogue.issue(
                rule,
                &first.path,
                first.line,
                format!("secretName: {secret}"),
                what,
            ) {
                issue.related = places
                    .map(|(name, p)| Related {
                        path: p.path.clone(),
                        line: p.line,
                        message: format!("{name} mounts it too"),
                    })
                    .collect();
                out.push(issue);
            }
        }
        out
    }
}

impl Project {
    /// Namespaces with workloads that no NetworkPolicy is about, in a tree that has some; and those that limit nothing.
    fn unlimited(&self, catalogue: &Catalogue) -> Vec<Issue> {
        let rule = "plaintext-bypass/networkpolicy-gap";
        let mut out = Vec::new();
        for place in &self.open {
            let what = "this rule lets everybody in, from every namespace".to_owned();
            out.extend(catalogue.issue(rule, &place.path, place.line, String::new(), what));
        }
        if self.limited.is_empty() {
            return out;
        }
        let mut told = BTreeSet::new();
        for (namespace, name, _, place) in &self.workloads {
            // Without a name it is that of whoever applies it.
            let is_named = namespace != "default";
            if is_named && !self.limited.contains(namespace) && told.insert(namespace) {
                let what = format!(
                    "no NetworkPolicy limits who reaches the ports of namespace `{namespace}`, with {name}"
                );
                out.extend(catalogue.issue(rule, &place.path, place.line, name.clone(), what));
            }
        }
        out
    }

    /// Workloads that no AuthorizationPolicy is about, in a tree that has some.
    fn uncovered(&self, catalogue: &Catalogue) -> Vec<Issue> {
        if self.authorized.is_empty() && self.selected.is_empty()
            || self.authorized.contains("istio-system")
        {
            return Vec::new();
        }
        let covered = |namespace: &str, labels: &BTreeSet<String>| {
            self.authorized.contains(namespace)
                || labels.iter().any(|l| self.selected.contains(&(namespace.to_owned(), l.clone())))
        };
        self.workloads
            .iter()
            .filter(|(namespace, _, labels, _)| !covered(namespace, labels))
            .filter_map(|(namespace, name, _, place)| {
                let what = format!("no AuthorizationPolicy covers {name} in namespace `{namespace}`: whoever is in the mesh may call it");
                let rule = "identity-binding-absent/istio-uncovered-workload";
                catalogue.issue(rule, &place.path, place.line, name.clone(), what)
            })
            .collect()
    }
}

fn keep_first(places: &mut BTreeMap<String, Place>, name: String, place: Place) {
    let known = places.entry(name).or_insert_with(|| place.clone());
    if place < *known {
        *known = place;
    }
}

/// The line of a rule without conditions: `- {}` below `ingress:`, or both in one line.
fn open_rule(text: &str) -> Option<usize> {
    let mut ingress = None;
    for (i, line) in text.lines().enumerate() {
        let bare: String = line.split('#').next().unwrap_or_default().split_whitespace().collect();
        let depth = line.len() - line.trim_start().len();
        // A list is as deep as its key, or two further; what is deeper is part of a rule.
        let is_rule = ingress.is_some_and(|d| (d..=d + 2).contains(&depth));
        if bare == "ingress:[{}]" || is_rule && bare == "-{}" {
            return Some(i);
        }
        match bare.as_str() {
            "ingress:" => ingress = Some(depth),
            "egress:" => ingress = None,
            _ => {}
        }
    }
    None
}

/// `key=value` of the entries below every line that is `header`, or in braces behind it.
fn labels(text: &str, header: &str) -> BTreeSet<String> {
    let mut out = BTreeSet::new();
    let mut depth = None;
    for line in text.lines() {
        let indent = line.len() - line.trim_start().len();
        let bare = line.trim();
        if let Some(flow) =
            bare.split_once(header).map(|(_, f)| f.trim()).filter(|f| f.starts_with('{'))
        {
            let inner = flow.trim_start_matches('{').split('}').next().unwrap_or_default();
            out.extend(inner.split(',').filter_map(entry));
        } else if bare.ends_with(header) {
            depth = Some(indent);
        } else if let Some(d) = depth {
            if indent <= d && !bare.is_empty() {
                depth = None;
            } else {
                out.extend(entry(bare));
            }
        }
    }
    out
}

fn entry(text: &str) -> Option<String> {
    let (key, value) = text.split_once(':')?;
    let clean = |t: &str| t.trim().trim_matches(['"', '\'']).to_owned();
    (!value.trim().is_empty()).then(|| format!("{}={}", clean(key), clean(value)))
}

/// Whether a Secret's name says that it is a certificate with its key, and not only what to trust.
fn is_identity(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    let identity =
        ["tls", "cert", "mtls", "keystore", "identity", "svid"].iter().any(|w| lower.contains(w));
    let trust =
        ["ca-bundle", "trust", "root-ca", "cacert", "ca-cert"].iter().any(|w| lower.contains(w));
    identity && !trust
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(files: &[(&str, &str)]) -> Vec<(String, String, usize)> {
        let catalogue = Catalogue::built_in().unwrap();
        let mut project = Project::default();
        for (path, text) in files {
            let mut one = Project::default();
            one.look(path, Kind::Yaml, text);
            project.merge(one);
        }
        project.findings(&catalogue).into_iter().map(|i| (i.rule, i.path, i.line)).collect()
    }

    const STRICT: &str = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata:\n  name: default\n  namespace: istio-system\nspec:\n  mtls: {mode: STRICT}\n";

    fn deployment(name: &str, app: &str, secret: &str) -> String {
        format!(
            "apiVersion: apps/v1\nkind: Deployment\nmetadata:\n  name: {name}\n  namespace: shop\nspec:\n  template:\n    metadata:\n      labels:\n        app: {app}\n    spec:\n      volumes:\n      - name: id\n        secret:\n          secretName: {secret}\n"
        )
    }

    #[test]
    fn istio_without_a_word_on_modes_is_permissive() {
        let rule =
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata:\n  name: v\n";
        assert_eq!(found(&[("v.yaml", rule)])[0].0, "mesh-permissive/istio-no-strict-default");
        assert!(found(&[("v.yaml", rule), ("p.yaml", STRICT)]).is_empty());
    }

    #[test]
    fn a_rule_that_speaks_plaintext_to_what_is_strict() {
        let off = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata:\n  name: d\nspec:\n  host: api.shop\n  trafficPolicy:\n    tls:\n      mode: DISABLE\n";
        let all = found(&[("d.yaml", off), ("p.yaml", STRICT)]);
        assert_eq!(all, [("mesh-permissive/istio-rule-against-strict".into(), "d.yaml".into(), 9)]);
        let mutual = off.replace("DISABLE", "ISTIO_MUTUAL");
        assert!(found(&[("d.yaml", &mutual), ("p.yaml", STRICT)]).is_empty());
    }

    #[test]
    fn one_certificate_for_several_workloads() {
        let (a, b) = (deployment("a", "a", "api-tls"), deployment("b", "b", "api-tls"));
        let all = found(&[("a.yaml", &a), ("b.yaml", &b)]);
        assert_eq!(all, [("identity-binding-absent/shared-identity".into(), "a.yaml".into(), 15)]);
        let own = deployment("b", "b", "b-tls");
        assert!(found(&[("a.yaml", &a), ("b.yaml", &own)]).is_empty());
        let trust = (deployment("a", "a", "ca-bundle-tls"), deployment("b", "b", "ca-bundle-tls"));
        assert!(found(&[("a.yaml", &trust.0), ("b.yaml", &trust.1)]).is_empty());
    }

    #[test]
    fn namespaces_that_no_network_policy_limits() {
        let policy = |namespace: &str, spec: &str| {
            format!(
                "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata:\n  name: p\n  namespace: {namespace}\nspec:\n  podSelector: {{}}\n{spec}"
            )
        };
        let closed = "  policyTypes: [Ingress]\n";
        let api = deployment("a", "a", "a-tls");
        let rule = "plaintext-bypass/networkpolicy-gap".to_owned();
        let elsewhere = policy("pay", closed);
        let all = found(&[("n.yaml", &elsewhere), ("a.yaml", &api)]);
        assert_eq!(all, [(rule.clone(), "a.yaml".into(), 2)]);
        let here = policy("shop", closed);
        assert!(found(&[("n.yaml", &here), ("a.yaml", &api)]).is_empty());
        assert!(found(&[("a.yaml", &api)]).is_empty(), "nobody here works with such policies");
        let open = policy("shop", "  ingress:\n  - {}\n");
        assert_eq!(found(&[("n.yaml", &open)]), [(rule, "n.yaml".into(), 9)]);
        let ports = policy("shop", "  ingress:\n  - from: []\n    ports:\n      - {}\n");
        assert!(found(&[("n.yaml", &ports)]).is_empty());
        let out = policy("shop", "  ingress:\n  - from: []\n  egress:\n  - {}\n");
        assert!(found(&[("n.yaml", &out)]).is_empty());
    }

    #[test]
    fn a_workload_that_no_policy_is_about() {
        let policy = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: p\n  namespace: shop\nspec:\n  selector:\n    matchLabels:\n      app: a\n  rules: []\n";
        let (a, b) = (deployment("a", "a", "a-tls"), deployment("b", "b", "b-tls"));
        let all = found(&[("p.yaml", policy), ("s.yaml", STRICT), ("a.yaml", &a), ("b.yaml", &b)]);
        assert_eq!(
            all,
            [("identity-binding-absent/istio-uncovered-workload".into(), "b.yaml".into(), 2)]
        );
        let whole = policy.replace("  selector:\n    matchLabels:\n      app: a\n", "");
        assert!(found(&[("p.yaml", &whole), ("s.yaml", STRICT), ("b.yaml", &b)]).is_empty());
    }
}
