//! What keys and certificates show only beside each other: pairs that do not fit, chains that break, one key in many
//! places.

use std::collections::{BTreeMap, BTreeSet};

use countersign_findings::Severity;
use countersign_x509::CertInfo;

use super::Facts;
use super::stores::is_of;
use crate::issue::{Issue, Related};
use crate::rule::Catalogue;
use crate::source::Context;

/// Most certificates, and most keys, that are compared.
const MAX: usize = 10_000;

/// Of one file.
type Facet<T> = BTreeMap<String, Vec<T>>;

/// The keys and certificates of all files.
#[derive(Debug, Default)]
pub(crate) struct Together {
    certificates: Facet<(usize, Vec<u8>, CertInfo)>,
    keys: Facet<(usize, Vec<u8>)>,
}

impl Together {
    pub(crate) fn add(&mut self, path: &str, facts: Facts) {
        if !facts.certificates.is_empty() && self.certificates.len() < MAX {
            self.certificates.insert(path.to_owned(), facts.certificates);
        }
        if !facts.keys.is_empty() && self.keys.len() < MAX {
            self.keys.insert(path.to_owned(), facts.keys);
        }
    }

    pub(crate) fn merge(&mut self, other: Together) {
        self.certificates.extend(other.certificates);
        self.keys.extend(other.keys);
    }

    /// The key of a CA vouches for everybody, not for one.
    pub(crate) fn raise_keys_of_authorities(&self, issues: &mut [Issue]) {
        for (path, keys) in &self.keys {
            for (line, part) in keys {
                let mut all = self.certificates.values().flatten();
                let Some((_, _, ca)) = all.find(|(_, _, c)| c.is_ca && is_of(&c.spki_der, part))
                else {
                    continue;
                };
                let of_it = issues.iter_mut().filter(|i| {
                    i.class.name == "key-material-committed" && i.path == *path && i.line == *line
                });
                for issue in of_it {
                    issue.message.push_str(&format!(", of the CA `{}`", ca.display_name()));
                    if issue.context == Context::Production {
                        issue.severity = Severity::Critical;
                    }
                }
            }
        }
    }

    pub(crate) fn findings(&self, catalogue: &Catalogue) -> Vec<Issue> {
        let mut out = self.mismatches(catalogue);
        out.extend(self.broken_chains(catalogue));
        out.extend(self.shared_keys(catalogue));
        out
    }

    /// A file with one key, and the certificates in it or in the file that goes by its name.
    fn mismatches(&self, catalogue: &Catalogue) -> Vec<Issue> {
        let mut out = Vec::new();
        for (path, keys) in &self.keys {
            let [(line, part)] = keys.as_slice() else { continue };
            let beside = match self.certificates.get_key_value(path) {
                Some(same) => Some(same),
                None => self.certificates.iter().find(|(other, _)| is_pair(path, other)),
            };
            let Some((other, certificates)) = beside else { continue };
            if certificates.iter().any(|(_, _, cert)| is_of(&cert.spki_der, part)) {
                continue;
            }
            let Some((at, _, cert)) = certificates.first() else { continue };
            let what = format!(
                "the key in `{path}` is not that of `{}` in `{other}`",
                cert.display_name()
            );
            let rule = "weak-cert/key-mismatch";
            if let Some(mut issue) = catalogue.issue(rule, path, *line, String::new(), what) {
                let message = "the certificate".to_owned();
                issue.related = vec![Related { path: other.clone(), line: (*at).max(1), message }];
                out.push(issue);
            }
        }
        out
    }

    fn broken_chains(&self, catalogue: &Catalogue) -> Vec<Issue> {
        let mut out = Vec::new();
        let rule = "weak-cert/chain";
        for (path, certificates) in &self.certificates {
            let Some((line, _, leaf)) = certificates.first().filter(|(_, _, c)| !c.is_ca) else {
                continue;
            };
            if leaf.is_self_issued() {
                continue;
            }
            // A file of more than the leaf is a chain, and says how it goes on.
            let above: Vec<&CertInfo> =
                certificates[1..].iter().map(|(_, _, c)| c).filter(|c| c.is_ca).collect();
            let what = if !above.is_empty() && !above.iter().any(|c| leaf.may_be_issued_by(c)) {
                format!(
                    "the issuer of `{}`, `{}`, is missing behind it",
                    leaf.display_name(),
                    leaf.issuer
                )
            } else if above.is_empty()
                && let Some(namesake) = self.namesake(path, leaf)
            {
                format!(
                    "`{}` was issued by another `{}` than the one in `{namesake}`",
                    leaf.display_name(),
                    leaf.issuer
                )
            } else {
                continue;
            };
            out.extend(catalogue.issue(rule, path, *line, String::new(), what));
        }
        out
    }

    /// A CA in the same directory that has the name of the issuer and not its key, if there is none with its key.
    fn namesake(&self, path: &str, leaf: &CertInfo) -> Option<&str> {
        let beside =
            self.certificates.iter().filter(|(other, _)| directory(other) == directory(path));
        let mut found = None;
        for (other, (_, _, ca)) in
            beside.flat_map(|(other, all)| all.iter().map(move |c| (other, c)))
        {
            if ca.is_ca && ca.subject_der == leaf.issuer_der {
                if leaf.may_be_issued_by(ca) {
                    return None;
                }
                found = Some(other.as_str());
            }
        }
        found
    }

    /// The same key in several directories: several workloads with one identity, or copies that nobody will replace
    /// together.
    fn shared_keys(&self, catalogue: &Catalogue) -> Vec<Issue> {
        let mut places: BTreeMap<&[u8], Vec<(&str, usize)>> = BTreeMap::new();
        for (path, keys) in &self.keys {
            if Context::of(path) != Context::Production {
                continue;
            }
            for (line, part) in keys {
                places.entry(part).or_default().push((path, *line));
            }
        }
        let mut out = Vec::new();
        for places in places.values() {
            let directories: BTreeSet<&str> = places.iter().map(|(p, _)| directory(p)).collect();
            if directories.len() < 2 {
                continue;
            }
            let [(path, line), others @ ..] = places.as_slice() else { continue };
            let names: Vec<&str> = directories.into_iter().take(5).collect();
            let what =
                format!("one private key lies in {}: they share one identity", names.join(", "));
            let rule = "identity-binding-absent/shared-identity";
            if let Some(mut issue) = catalogue.issue(rule, path, *line, String::new(), what) {
                let message = || "the same key".to_owned();
                let related = others.iter().take(20).map(|(path, line)| Related {
                    path: (*path).to_owned(),
                    line: (*line).max(1),
                    message: message(),
                });
                issue.related = related.collect();
                out.push(issue);
            }
        }
        out
    }
}

fn directory(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(directory, _)| directory)
}

/// Whether two files of one directory are a key and its certificate by their names: `tls.key` and `tls.crt`,
/// `api-key.pem` and `api.pem`, `privkey.pem` and `fullchain.pem`.
fn is_pair(key: &str, certificate: &str) -> bool {
    if directory(key) != directory(certificate) {
        return false;
    }
    let stem = |path: &str, words: &[&str]| -> String {
        let name = path.rsplit('/').next().unwrap_or_default().to_ascii_lowercase();
        let name = name.rsplit_once('.').map_or(name.as_str(), |(stem, _)| stem).to_owned();
        for word in words {
            if name == *word {
                return String::new();
            }
            for joint in ['-', '_', '.'] {
                if let Some(rest) = name.strip_suffix(&format!("{joint}{word}")) {
                    return rest.to_owned();
                }
                if let Some(rest) = name.strip_prefix(&format!("{word}{joint}")) {
                    return rest.to_owned();
                }
            }
        }
        name
    };
    stem(key, &["key", "privkey", "private", "priv"])
        == stem(certificate, &["cert", "certificate", "crt", "fullchain", "chain", "public"])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_told_by_their_names() {
        for (key, certificate) in [
            ("a/tls.key", "a/tls.crt"),
            ("a/api-key.pem", "a/api.pem"),
            ("a/api_key.pem", "a/api_cert.pem"),
            ("privkey.pem", "fullchain.pem"),
            ("a/key.pem", "a/cert.pem"),
            ("a/server.key", "a/server.cer"),
        ] {
            assert!(is_pair(key, certificate), "{key} {certificate}");
        }
        for (key, certificate) in [
            ("a/tls.key", "b/tls.crt"),
            ("a/client.key", "a/server.crt"),
            ("a/key.pem", "a/ca.pem"),
            ("a/server.key", "a/server-ca.pem"),
        ] {
            assert!(!is_pair(key, certificate), "{key} {certificate}");
        }
    }
}
