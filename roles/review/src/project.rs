//! What only many files together show.

use std::collections::{BTreeMap, BTreeSet};

use crate::issue::{Issue, Related};
use crate::kind::Kind;
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
    /// Secrets that look like identities: `(namespace, secret)` to the workloads that mount them.
    mounts: BTreeMap<(String, String), BTreeMap<String, Place>>,
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
        for (secret, users) in other.mounts {
            self.mounts.entry(secret).or_default().extend(users);
        }
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

/// Whether a Secret's name says that it is a certificate with its key, and not only what to trust.
fn is_identity(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    let identity =
        ["tls", "cert", "mtls", "keystore", "identity", "svid"].iter().any(|w| lower.contains(w));
    let trust =
        ["ca-bundle", "trust", "root-ca", "cacert", "ca-cert"].iter().any(|w| lower.contains(w));
    identity && !trust
}
