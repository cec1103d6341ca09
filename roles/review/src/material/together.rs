//! What keys and certificates show only beside each other: pairs that do not fit, chains that break, one key in many
//! places.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use countersign_findings::Severity;
use countersign_x509::CertInfo;

use super::Facts;
use super::stores::public_of_certificate;
use crate::issue::{Issue, Related};
use crate::rule::Catalogue;
use crate::source::Context;

/// Most certificates, and most keys, that are compared.
const MAX: usize = 20_000;

/// A certificate, with its line.
#[derive(Debug)]
struct Certificate {
    line: usize,
    info: CertInfo,
    /// What is public of its key, as of a private key.
    part: Option<Vec<u8>>,
}

/// The keys and certificates of all files.
#[derive(Debug, Default)]
pub(crate) struct Together {
    certificates: BTreeMap<String, Vec<Certificate>>,
    /// Lines, and what is public of each.
    keys: BTreeMap<String, Vec<(usize, Vec<u8>)>>,
    kept: usize,
}

impl Together {
    pub(crate) fn add(&mut self, path: &str, facts: Facts) {
        self.kept += facts.certificates.len() + facts.keys.len();
        if facts.is_empty() || self.kept > MAX {
            return;
        }
        let certificates = facts.certificates.into_iter().map(|(line, info)| Certificate {
            line,
            part: public_of_certificate(&info.spki_der),
            info,
        });
        self.certificates.entry(path.to_owned()).or_default().extend(certificates);
        self.keys.entry(path.to_owned()).or_default().extend(facts.keys);
    }

    pub(crate) fn merge(&mut self, other: Together) {
        self.kept += other.kept;
        if self.kept > MAX {
            return;
        }
        self.certificates.extend(other.certificates);
        self.keys.extend(other.keys);
    }

    /// The key of a CA vouches for everybody, not for one.
    pub(crate) fn raise_keys_of_authorities(&self, issues: &mut [Issue]) {
        let all = self.certificates.values().flatten().filter(|c| c.info.is_ca);
        let authorities: HashMap<&[u8], &CertInfo> =
            all.filter_map(|c| Some((c.part.as_deref()?, &c.info))).collect();
        let mut of_authorities: HashMap<(&str, usize), &CertInfo> = HashMap::new();
        for (path, keys) in &self.keys {
            for (line, part) in keys {
                if let Some(ca) = authorities.get(part.as_slice()) {
                    of_authorities.insert((path, *line), ca);
                }
            }
        }
        for issue in issues.iter_mut().filter(|i| i.class.name == "key-material-committed") {
            let Some(ca) = of_authorities.get(&(issue.path.as_str(), issue.line)) else { continue };
            issue.message.push_str(&format!(", of the CA `{}`", ca.display_name()));
            if issue.context == Context::Production {
                issue.severity = Severity::Critical;
            }
        }
    }

    pub(crate) fn findings(&self, catalogue: &Catalogue) -> Vec<Issue> {
        let mut out = self.mismatches(catalogue);
        out.extend(self.broken_chains(catalogue));
        out.extend(self.shared_keys(catalogue));
        out
    }

    /// A file with one key, and the certificates in it or in the files that go by its name.
    fn mismatches(&self, catalogue: &Catalogue) -> Vec<Issue> {
        let mut by_stem: HashMap<(&str, String), Vec<(&str, &Certificate)>> = HashMap::new();
        for (path, certificates) in self.certificates.iter().filter(|(path, _)| is_pem(path)) {
            let name = (directory(path), stem(path, &CERTIFICATES));
            let all = certificates.iter().map(|c| (path.as_str(), c));
            by_stem.entry(name).or_default().extend(all);
        }
        let mut out = Vec::new();
        for (path, keys) in self.keys.iter().filter(|(path, _)| is_pem(path)) {
            let [(line, part)] = keys.as_slice() else { continue };
            let own = self.certificates.get(path).filter(|c| !c.is_empty());
            let beside: Vec<(&str, &Certificate)> = match own {
                Some(own) => own.iter().map(|c| (path.as_str(), c)).collect(),
                None => {
                    by_stem.get(&(directory(path), stem(path, &KEYS))).cloned().unwrap_or_default()
                }
            };
            if beside.iter().any(|(_, c)| c.part.as_ref() == Some(part)) {
                continue;
            }
            // A CA's certificate says whom to trust; it is the leaf that a key belongs to.
            let leaf = beside.iter().find(|(_, c)| !c.info.is_ca && c.part.is_some());
            let Some((other, leaf)) = leaf else { continue };
            let name = leaf.info.display_name();
            let what = format!("the key in `{path}` is not that of `{name}` in `{other}`");
            let rule = "weak-cert/key-mismatch";
            if let Some(mut issue) = catalogue.issue(rule, path, *line, String::new(), what) {
                let message = "the certificate".to_owned();
                let line = leaf.line.max(1);
                issue.related = vec![Related { path: (*other).to_owned(), line, message }];
                out.push(issue);
            }
        }
        out
    }

    fn broken_chains(&self, catalogue: &Catalogue) -> Vec<Issue> {
        // CAs by the directory that they lie in and their names.
        let mut authorities: HashMap<(&str, &[u8]), Vec<(&str, &CertInfo)>> = HashMap::new();
        for (path, certificates) in &self.certificates {
            for c in certificates.iter().filter(|c| c.info.is_ca) {
                let at = (directory(path), c.info.subject_der.as_slice());
                authorities.entry(at).or_default().push((path, &c.info));
            }
        }
        let mut out = Vec::new();
        for (path, certificates) in self.certificates.iter().filter(|(path, _)| is_pem(path)) {
            let Some(leaf) = certificates.first().filter(|c| !c.info.is_ca) else { continue };
            if leaf.info.is_self_issued() {
                continue;
            }
            // A file of more than the leaf is a chain, and says how it goes on.
            let above: Vec<&CertInfo> =
                certificates[1..].iter().map(|c| &c.info).filter(|c| c.is_ca).collect();
            let (name, issuer) = (leaf.info.display_name(), &leaf.info.issuer);
            let beside = authorities.get(&(directory(path), leaf.info.issuer_der.as_slice()));
            let what = match (above.is_empty(), beside) {
                (false, _) if !above.iter().any(|c| leaf.info.may_be_issued_by(c)) => {
                    format!("the issuer of `{name}`, `{issuer}`, is missing behind it")
                }
                // A CA of that name and another key, and none with the right one.
                (true, Some(cas)) if !cas.iter().any(|(_, ca)| leaf.info.may_be_issued_by(ca)) => {
                    let place = cas.first().map_or("", |(path, _)| path);
                    format!("`{name}` was issued by another `{issuer}` than the one in `{place}`")
                }
                _ => continue,
            };
            out.extend(catalogue.issue("weak-cert/chain", path, leaf.line, String::new(), what));
        }
        out
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

/// Whether it is a file of nothing but PEM by its name: settings hold keys and certificates of different uses.
fn is_pem(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or_default().to_ascii_lowercase();
    match name.rsplit_once('.') {
        Some((_, end)) => ["pem", "crt", "cer", "cert", "key", "chain", "bundle"].contains(&end),
        None => true,
    }
}

/// Words in the names of key files, and of certificates that have a key.
const KEYS: [&str; 4] = ["key", "privkey", "private", "priv"];
const CERTIFICATES: [&str; 6] = ["cert", "certificate", "crt", "fullchain", "chain", "public"];

/// The name without its ending and without `words`: `tls.key` and `tls.crt`, `api-key.pem` and `api.pem`,
/// `privkey.pem` and `fullchain.pem` have the same.
fn stem(path: &str, words: &[&str]) -> String {
    let name = path.rsplit('/').next().unwrap_or_default().to_ascii_lowercase();
    let name = name.rsplit_once('.').map_or(name.as_str(), |(stem, _)| stem).to_owned();
    for word in words {
        if name == *word {
            return String::new();
        }
        let joint = |c: char| matches!(c, '-' | '_' | '.');
        if let Some(rest) = name.strip_suffix(word).and_then(|r| r.strip_suffix(joint)) {
            return rest.to_owned();
        }
        if let Some(rest) = name.strip_prefix(word).and_then(|r| r.strip_prefix(joint)) {
            return rest.to_owned();
        }
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_pair(key: &str, certificate: &str) -> bool {
        let of = |path: &str, words: &[&str]| (directory(path).to_owned(), stem(path, words));
        of(key, &KEYS) == of(certificate, &CERTIFICATES)
    }

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
