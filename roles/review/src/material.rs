//! Keys, certificates and requests in the tree, whatever the file is called.

mod certificate;
mod stores;
mod together;

pub(crate) use together::Together;

use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use countersign_findings::Severity;
use countersign_identity::UnixTime;
use countersign_x509::CertInfo;
use countersign_x509::csr::RequestFacts;
use regex::Regex;

use crate::issue::Issue;
use crate::rule::Catalogue;
use certificate::{Place, certificate, request, used_as};
use stores::{is_der_key, is_pkcs12, java_private_keys, pkcs12_has_key};

/// Days.
const DAY: u64 = 86_400;

/// Where a private key in PEM begins: whole, in a string with escaped line ends, or indented.
static KEY: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(
        r"-----BEGIN ((?:RSA |EC |DSA |OPENSSH |ENCRYPTED )?PRIVATE KEY)-----([\s\S]*?)-----END",
    )
    .ok()
});

/// A request in PEM, as above.
static REQUEST: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(r"-----BEGIN (?:NEW )?CERTIFICATE REQUEST-----([^-]*)-----END").ok()
});

/// A certificate in PEM, as above.
static CERTIFICATE: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(r"-----BEGIN (?:TRUSTED )?CERTIFICATE-----([^-]*)-----END").ok());

/// Base64 of `-----BEGIN `, as Secrets hold it.
static ENCODED: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(r"LS0tLS1CRUdJTi[A-Za-z0-9+/=]{100,}").ok());

/// Names that key stores have, and files that may be DER.
pub(crate) fn is_interesting(path: &str) -> bool {
    let lower = path.to_ascii_lowercase();
    [
        ".p12",
        ".pfx",
        ".jks",
        ".keystore",
        ".jceks",
        ".truststore",
        ".der",
        ".cer",
        ".crt",
        ".key",
        ".pkcs12",
        ".bks",
        ".csr",
        ".p10",
    ]
    .iter()
    .any(|e| lower.ends_with(e))
}

/// Certificates and keys, to be compared with those of other files.
#[derive(Debug, Default)]
pub(crate) struct Facts {
    /// With their lines, in order.
    pub(crate) certificates: Vec<(usize, CertInfo)>,
    /// What is public of each private key, with its line.
    pub(crate) keys: Vec<(usize, Vec<u8>)>,
}

impl Facts {
    pub(crate) fn is_empty(&self) -> bool {
        self.certificates.is_empty() && self.keys.is_empty()
    }
}

/// Most keys, certificates and requests of one file.
const MOST: usize = 1000;

/// Lines of places that come in order.
struct Lines<'t> {
    text: &'t str,
    seen: usize,
    line: usize,
}

impl<'t> Lines<'t> {
    fn of(text: &'t str) -> Self {
        Self { text, seen: 0, line: 1 }
    }

    /// The number of the line with the byte `at`, and the line.
    fn at(&mut self, at: usize) -> (usize, &'t str) {
        self.line += self.text[self.seen..at].bytes().filter(|b| *b == b'\n').count();
        self.seen = at;
        let start = self.text[..at].rfind('\n').map_or(0, |i| i + 1);
        let line = self.text[start..].split('\n').next().unwrap_or_default();
        (self.line, line)
    }
}

/// Whatever is in a text. `facts` is told of what it is.
pub(crate) fn in_text(
    catalogue: &Catalogue,
    path: &str,
    text: &str,
    now: UnixTime,
    facts: &mut Facts,
) -> Vec<Issue> {
    let mut out = Vec::new();
    if text.contains("CERTIFICATE REQUEST-----")
        && let Some(regex) = &*REQUEST
    {
        let mut lines = Lines::of(text);
        for found in regex.captures_iter(text).take(MOST) {
            let (Some(whole), Some(body)) = (found.get(0), found.get(1)) else { continue };
            if let Some(csr) = der_of(body.as_str()).and_then(|der| RequestFacts::parse(&der).ok())
            {
                let (line, _) = lines.at(whole.start());
                out.extend(request(catalogue, path, line, &csr));
            }
        }
    }
    if text.contains("BEGIN CERTIFICATE-----")
        && let Some(regex) = &*CERTIFICATE
    {
        let mut lines = Lines::of(text);
        for found in regex.captures_iter(text).take(MOST) {
            let (Some(whole), Some(body)) = (found.get(0), found.get(1)) else { continue };
            let Some(der) = der_of(body.as_str()) else { continue };
            if let Ok(cert) = CertInfo::parse(&der) {
                let (line, evidence) = lines.at(whole.start());
                // In a file of its own it is used as its name says.
                let used_as = match evidence.trim_start().starts_with("-----BEGIN") {
                    true => used_as(path.rsplit('/').next().unwrap_or_default()),
                    false => used_as(evidence),
                };
                let place = Place { path, line, used_as };
                out.extend(certificate(catalogue, place, &cert, now));
                facts.certificates.push((line, cert));
            }
        }
    }
    if text.contains("PRIVATE KEY-----")
        && let Some(regex) = &*KEY
    {
        let mut lines = Lines::of(text);
        for found in regex.captures_iter(text).take(MOST) {
            let (Some(whole), Some(label), Some(body)) = (found.get(0), found.get(1), found.get(2))
            else {
                continue;
            };
            if is_key_body(body.as_str()) {
                let encrypted =
                    label.as_str().starts_with("ENCRYPTED") || body.as_str().contains("ENCRYPTED");
                let what = format!("{} in the tree", name_of(label.as_str(), encrypted));
                let (line, evidence) = lines.at(whole.start());
                let der = der_of(body.as_str()).filter(|_| !encrypted);
                facts.keys.extend(der.and_then(|der| Some((line, stores::public_part(&der)?))));
                let rule = "key-material-committed/pem";
                let mut issue = make(catalogue, rule, path, evidence, line, what);
                if encrypted && let Some(issue) = &mut issue {
                    issue.severity = issue.severity.min(Severity::Medium);
                }
                out.extend(issue);
            }
        }
    }
    if text.contains("LS0tLS1CRUdJTi")
        && !(text.contains("\nsops:") && text.contains("ENC["))
        && let Some(regex) = &*ENCODED
    {
        let mut lines = Lines::of(text);
        for found in regex.find_iter(text).take(MOST) {
            let trimmed = found.as_str().trim_end_matches('=');
            let Ok(decoded) =
                STANDARD_NO_PAD.decode(trimmed).or_else(|_| STANDARD.decode(found.as_str()))
            else {
                continue;
            };
            let inner = String::from_utf8_lossy(&decoded);
            if let Some(regex) = CERTIFICATE.as_ref().filter(|_| inner.contains("CERTIFICATE-----"))
            {
                let (line, whole) = lines.at(found.start());
                let place = Place { path, line, used_as: used_as(whole) };
                for body in regex.captures_iter(&inner).take(MOST).filter_map(|c| c.get(1)) {
                    let cert = der_of(body.as_str()).and_then(|der| CertInfo::parse(&der).ok());
                    out.extend(cert.iter().flat_map(|c| certificate(catalogue, place, c, now)));
                }
            }
            let is_key = KEY
                .as_ref()
                .and_then(|r| r.captures(&inner))
                .is_some_and(|c| c.get(2).is_some_and(|b| is_key_body(b.as_str())));
            if is_key {
                let rule = if text.contains("kind: Secret") || text.contains("\"Secret\"") {
                    "key-material-committed/k8s-secret"
                } else {
                    "key-material-committed/pem"
                };
                let what = "a private key in base64 is part of the tree".to_owned();
                let (line, evidence) = lines.at(found.start());
                out.extend(make(catalogue, rule, path, evidence, line, what));
            }
        }
    }
    out
}

fn name_of(label: &str, encrypted: bool) -> String {
    let label = label
        .to_lowercase()
        .replace("rsa", "RSA")
        .replace("ec ", "EC ")
        .replace("dsa", "DSA")
        .replace("openssh", "OpenSSH");
    if encrypted && !label.starts_with("encrypted") { format!("encrypted {label}") } else { label }
}

/// What is in a block of PEM.
fn der_of(body: &str) -> Option<Vec<u8>> {
    STANDARD_NO_PAD.decode(base64_of(body).trim_end_matches('=')).ok()
}

/// The base64 in a block of PEM, whether it stands in lines, in strings or indented.
fn base64_of(body: &str) -> String {
    let mut text = body.replace("\\n", "").replace("\\r", "").replace("\\t", "");
    // RFC 1421 headers of encrypted keys.
    text = text.lines().filter(|l| !l.contains(": ")).collect();
    text.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '/' | '=')).collect()
}

/// The shortest first line, in characters, that a key is written with.
const LINE_OF_KEY: usize = 40;

/// Whether it is base64 of something as long and as varied as a key; a placeholder is not.
fn is_key_body(body: &str) -> bool {
    if body.contains("...") || body.contains('<') || body.contains("{{") || body.contains('$') {
        return false;
    }
    // Its lines are long; what programs say between a header and a footer is made of words.
    let is_base64 = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '/' | '=');
    if !body.split(|c| !is_base64(c)).any(|run| run.len() >= LINE_OF_KEY) {
        return false;
    }
    let base64 = base64_of(body);
    let distinct: std::collections::HashSet<char> = base64.chars().collect();
    base64.len() >= 60
        && distinct.len() >= 20
        && STANDARD_NO_PAD
            .decode(base64.trim_end_matches('=').get(..60).unwrap_or_default())
            .is_ok()
}

/// Key stores and certificates.
pub(crate) fn in_file(
    catalogue: &Catalogue,
    path: &str,
    bytes: &[u8],
    now: UnixTime,
    facts: &mut Facts,
) -> Vec<Issue> {
    let mut out = Vec::new();
    match bytes {
        [0xfe, 0xed, 0xfe, 0xed, ..] | [0xce, 0xce, 0xce, 0xce, ..] => {
            let keys = java_private_keys(bytes);
            if keys > 0 {
                let what =
                    format!("a Java key store with {keys} private key entries is part of the tree");
                out.extend(make(catalogue, "key-material-committed/jks", path, "", 0, what));
            }
        }
        [0x30, ..] => {
            if let Ok(cert) = CertInfo::parse(bytes) {
                let used_as = used_as(path.rsplit('/').next().unwrap_or_default());
                out.extend(certificate(catalogue, Place { path, line: 0, used_as }, &cert, now));
                facts.certificates.push((0, cert));
            } else if let Ok(csr) = RequestFacts::parse(bytes) {
                out.extend(request(catalogue, path, 0, &csr));
            } else if is_pkcs12(bytes) {
                let what = match pkcs12_has_key(bytes) {
                    Some(true) => "a PKCS#12 file with a private key is part of the tree",
                    None => {
                        "a PKCS#12 file, wholly encrypted, is part of the tree: it may hold a private key"
                    }
                    Some(false) => return out,
                };
                out.extend(make(
                    catalogue,
                    "key-material-committed/pkcs12",
                    path,
                    "",
                    0,
                    what.to_owned(),
                ));
            } else if is_der_key(bytes) {
                facts.keys.extend(stores::public_part(bytes).map(|part| (0, part)));
                let what = "a private key in DER is part of the tree".to_owned();
                out.extend(make(catalogue, "key-material-committed/pem", path, "", 0, what));
            }
        }
        _ => {}
    }
    out
}

/// A finding about a line, or about the file.
fn make(
    catalogue: &Catalogue,
    rule: &str,
    path: &str,
    evidence: &str,
    line: usize,
    message: String,
) -> Option<Issue> {
    // A key is evidence enough by its first line; the rest stays secret.
    let evidence: String = match evidence.split_once("-----BEGIN") {
        Some((before, _)) => format!("{}-----BEGIN …", before.trim()),
        None => evidence.trim().chars().take(24).collect(),
    };
    catalogue.issue(rule, path, line, evidence, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(catalogue: &Catalogue, path: &str, text: &str) -> Vec<Issue> {
        in_text(catalogue, path, text, UnixTime::default(), &mut Facts::default())
    }

    #[test]
    fn a_key_is_told_from_a_placeholder() {
        let catalogue = Catalogue::built_in().unwrap();
        let body: String = (0..8)
            .map(|i| {
                format!("MIIEvQIBADANBgkqhkiG9w0BAQEFAASC{i}KcwggSjAgEAAoIBAQC7VJTUt9Us8cKj\n")
            })
            .collect();
        let key = format!("-----BEGIN PRIVATE KEY-----\n{body}-----END PRIVATE KEY-----\n");
        assert_eq!(found(&catalogue, "a.pem", &key).len(), 1);
        let escaped = format!("key = \"{}\"", key.replace('\n', "\\n"));
        assert_eq!(found(&catalogue, "a.js", &escaped).len(), 1);
        let secret = format!("kind: Secret\ndata:\n  tls.key: {}\n", STANDARD.encode(&key));
        let in_secret = found(&catalogue, "s.yaml", &secret);
        assert_eq!(in_secret[0].rule, "key-material-committed/k8s-secret");
        assert!(
            !in_secret[0].evidence.contains("MIIE") && in_secret[0].evidence.len() < 40,
            "{:?}",
            in_secret[0].evidence
        );
        for placeholder in [
            "-----BEGIN PRIVATE KEY-----\n...\n-----END PRIVATE KEY-----",
            "-----BEGIN RSA PRIVATE KEY-----\nxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\n-----END RSA PRIVATE KEY-----",
            "-----BEGIN PRIVATE KEY-----\n{{ .Values.key }}\n-----END PRIVATE KEY-----",
            "if strings.Contains(s, \"-----BEGIN PRIVATE KEY-----\") {",
            "\"-----BEGIN PRIVATE KEY-----\\n\" +\n Buffer.from(clientPrivateKeyInDer).toString(\"base64\").match(/.{1,64}/g).join(\"x\") +\n\"-----END PRIVATE KEY-----\"",
        ] {
            assert!(found(&catalogue, "a.pem", placeholder).is_empty(), "{placeholder}");
        }
    }
}
