//! Keys and certificates in the tree, whatever the file is called.

use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use countersign_findings::Severity;
use countersign_identity::UnixTime;
use countersign_x509::CertInfo;
use regex::Regex;

use crate::issue::Issue;
use crate::rule::Catalogue;
use crate::source::Context;

/// Days.
const DAY: u64 = 86_400;

/// Where a private key in PEM begins: whole, in a string with escaped line ends, or indented.
static KEY: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(
        r"-----BEGIN ((?:RSA |EC |DSA |OPENSSH |ENCRYPTED )?PRIVATE KEY)-----([\s\S]*?)-----END",
    )
    .ok()
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
    ]
    .iter()
    .any(|e| lower.ends_with(e))
}

/// Private keys in text.
pub(crate) fn in_text(catalogue: &Catalogue, path: &str, text: &str, now: UnixTime) -> Vec<Issue> {
    let mut out = Vec::new();
    if text.contains("BEGIN CERTIFICATE-----")
        && let Some(regex) = &*CERTIFICATE
    {
        for found in regex.captures_iter(text).take(1000) {
            let (Some(whole), Some(body)) = (found.get(0), found.get(1)) else { continue };
            let base64 = base64_of(body.as_str());
            let der = STANDARD_NO_PAD.decode(base64.trim_end_matches('='));
            if let Ok(cert) = CertInfo::parse(&der.unwrap_or_default()) {
                out.extend(certificate(catalogue, path, line_of(text, whole.start()), &cert, now));
            }
        }
    }
    if text.contains("PRIVATE KEY-----")
        && let Some(regex) = &*KEY
    {
        for found in regex.captures_iter(text) {
            let (Some(whole), Some(label), Some(body)) = (found.get(0), found.get(1), found.get(2))
            else {
                continue;
            };
            if is_key_body(body.as_str()) {
                let encrypted =
                    label.as_str().starts_with("ENCRYPTED") || body.as_str().contains("ENCRYPTED");
                let what = format!("{} in the tree", name_of(label.as_str(), encrypted));
                let line = line_of(text, whole.start());
                let mut issue =
                    make(catalogue, "key-material-committed/pem", path, text, line, what);
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
        for found in regex.find_iter(text) {
            let trimmed = found.as_str().trim_end_matches('=');
            let Ok(decoded) =
                STANDARD_NO_PAD.decode(trimmed).or_else(|_| STANDARD.decode(found.as_str()))
            else {
                continue;
            };
            let inner = String::from_utf8_lossy(&decoded);
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
                out.extend(make(catalogue, rule, path, text, line_of(text, found.start()), what));
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

/// The base64 in a block of PEM, whether it stands in lines, in strings or indented.
fn base64_of(body: &str) -> String {
    let mut text = body.replace("\\n", "").replace("\\r", "").replace("\\t", "");
    // RFC 1421 headers of encrypted keys.
    text = text.lines().filter(|l| !l.contains(": ")).collect();
    text.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '/' | '=')).collect()
}

/// Whether it is base64 of something as long and as varied as a key; a placeholder is not.
fn is_key_body(body: &str) -> bool {
    if body.contains("...") || body.contains('<') || body.contains("{{") || body.contains('$') {
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
                out.extend(certificate(catalogue, path, 0, &cert, now));
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
                let what = "a private key in DER is part of the tree".to_owned();
                out.extend(make(catalogue, "key-material-committed/pem", path, "", 0, what));
            }
        }
        _ => {}
    }
    out
}

/// What a certificate in the tree says of the way it was issued.
fn certificate(
    catalogue: &Catalogue,
    path: &str,
    line: usize,
    cert: &CertInfo,
    now: UnixTime,
) -> Vec<Issue> {
    let mut out = Vec::new();
    let subject = if cert.subject.is_empty() {
        "a certificate".to_owned()
    } else {
        format!("`{}`", cert.subject)
    };
    let days = cert.not_after.since(cert.not_before).as_secs() / DAY;
    let spiffe: Vec<&String> =
        cert.uri_sans.iter().filter(|u| u.starts_with("spiffe://")).collect();
    let self_signed = cert.subject_der == cert.issuer_der;
    let mut say = |rule: &str, severity: Severity, text: String| {
        if let Some(mut issue) = make(catalogue, rule, path, "", line, text) {
            issue.severity =
                if issue.context == Context::Production { severity } else { severity.lowered() };
            out.push(issue);
        }
    };
    if !cert.is_ca {
        let severity = match days {
            399.. => Some(Severity::High),
            91.. => Some(Severity::Medium),
            8.. if !spiffe.is_empty() => Some(Severity::Low),
            _ => None,
        };
        if let Some(severity) = severity {
            say("long-lived-cert/cert", severity, format!("{subject} is valid for {days} days"));
        }
        if cert.not_after < now {
            say("long-lived-cert/expired", Severity::Low, format!("{subject} has expired"));
        }
        if cert.uri_sans.is_empty()
            && cert.dns_sans.is_empty()
            && cert.ip_sans.is_empty()
            && cert.other_sans == 0
        {
            say(
                "weak-cert/cert",
                Severity::Medium,
                format!("{subject} has no subject alternative name"),
            );
        }
        if !spiffe.is_empty() && cert.uri_sans.len() > 1 {
            let text = format!("{subject} has {} URI SANs: not an X509-SVID", cert.uri_sans.len());
            say("weak-cert/cert", Severity::Medium, text);
        }
    } else if !spiffe.is_empty()
        && spiffe.iter().any(|u| u.trim_start_matches("spiffe://").contains('/'))
    {
        say(
            "weak-cert/cert",
            Severity::High,
            format!("{subject} has a workload's SPIFFE ID and is a CA"),
        );
    }
    let signature = cert.signature_algorithm.to_ascii_lowercase();
    if (signature.contains("md5") || signature.contains("sha1")) && !self_signed {
        say(
            "weak-cert/cert",
            Severity::Medium,
            format!("{subject} is signed with {}", cert.signature_algorithm),
        );
    }
    let bits = cert.key_type.strip_prefix("rsa-").and_then(|b| b.parse::<u32>().ok());
    if bits.is_some_and(|b| b < 2048) {
        say(
            "weak-cert/cert",
            Severity::Medium,
            format!("{subject} has a key of {}", cert.key_type),
        );
    }
    out
}

fn make(
    catalogue: &Catalogue,
    rule: &str,
    path: &str,
    text: &str,
    line: usize,
    message: String,
) -> Option<Issue> {
    let evidence = text.lines().nth(line.saturating_sub(1)).unwrap_or_default();
    // A key is evidence enough by its first line; the rest stays secret.
    let evidence: String = match evidence.split_once("-----BEGIN") {
        Some((before, _)) => format!("{}-----BEGIN …", before.trim()),
        None => evidence.trim().chars().take(24).collect(),
    };
    catalogue.issue(rule, path, line, evidence, message)
}

fn line_of(text: &str, at: usize) -> usize {
    text[..at].bytes().filter(|b| *b == b'\n').count() + 1
}

/// Private key entries of a JKS or JCEKS file (tag 1), as far as its structure can be followed.
fn java_private_keys(bytes: &[u8]) -> usize {
    let mut at = 8;
    let u32_at = |at: usize| {
        bytes.get(at..at + 4).map(|b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]) as usize)
    };
    let u16_at =
        |at: usize| bytes.get(at..at + 2).map(|b| u16::from_be_bytes([b[0], b[1]]) as usize);
    let mut keys = 0;
    let Some(count) = u32_at(at) else { return 0 };
    at += 4;
    for _ in 0..count.min(10_000) {
        let Some(tag) = u32_at(at) else { break };
        let Some(alias) = u16_at(at + 4) else { break };
        at += 6 + alias + 8;
        let certificates = match tag {
            1 => {
                keys += 1;
                let Some(length) = u32_at(at) else { break };
                at += 4 + length;
                let Some(n) = u32_at(at) else { break };
                at += 4;
                n
            }
            2 => 1,
            // A secret key, which only Java can measure.
            _ => return keys + 1,
        };
        for _ in 0..certificates.min(100) {
            let Some(kind) = u16_at(at) else { return keys };
            let Some(length) = u32_at(at + 2 + kind) else { return keys };
            at += 2 + kind + 4 + length;
        }
    }
    keys
}

/// 1.2.840.113549.1.7.1, `data`: what a PKCS#12 file wraps.
const DATA: [u8; 11] = [0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x01];
/// 1.2.840.113549.1.12.10.1, the bags of PKCS#12 (RFC 7292 section 4.2).
const BAG: [u8; 12] = [0x06, 0x0b, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x0c, 0x0a, 0x01];
/// 1.2.840.113549.1.7.6, `encryptedData`.
const ENCRYPTED: [u8; 11] = [0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x06];

fn is_pkcs12(bytes: &[u8]) -> bool {
    // PFX ::= SEQUENCE { version 3, authSafe … }
    let head = &bytes[..bytes.len().min(16)];
    head.windows(3).any(|w| w == [0x02, 0x01, 0x03]) && find(bytes, &DATA).is_some()
}

/// Whether a key bag can be seen without a password; `None` if everything is encrypted.
fn pkcs12_has_key(bytes: &[u8]) -> Option<bool> {
    let mut at = 0;
    let mut bags = 0;
    while let Some(i) = find(&bytes[at..], &BAG) {
        let number = bytes.get(at + i + BAG.len());
        if matches!(number, Some(1 | 2)) {
            return Some(true);
        }
        bags += 1;
        at += i + BAG.len();
    }
    // Certificates are encrypted as a rule, keys stand in a safe of their own: only where nothing at all can
    // be seen a key may hide.
    let safes = bytes.windows(ENCRYPTED.len()).filter(|w| *w == ENCRYPTED).count();
    if bags == 0 && safes > 1 { None } else { Some(false) }
}

fn find(bytes: &[u8], part: &[u8]) -> Option<usize> {
    bytes.windows(part.len()).position(|w| w == part)
}

/// PKCS#8, PKCS#1 or SEC 1 by its first fields.
fn is_der_key(bytes: &[u8]) -> bool {
    let head = &bytes[..bytes.len().min(12)];
    head.windows(4)
        .any(|w| w == [0x02, 0x01, 0x00, 0x30] || w[..3] == [0x02, 0x01, 0x00] && w[3] == 0x02)
        || head.windows(4).any(|w| w == [0x02, 0x01, 0x01, 0x04])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_told_from_a_placeholder() {
        let catalogue = Catalogue::built_in().unwrap();
        let body: String = (0..8)
            .map(|i| {
                format!("MIIEvQIBADANBgkqhkiG9w0BAQEFAASC{i}KcwggSjAgEAAoIBAQC7VJTUt9Us8cKj\n")
            })
            .collect();
        let key = format!("-----BEGIN PRIVATE KEY-----\n{body}-----END PRIVATE KEY-----\n");
        assert_eq!(in_text(&catalogue, "a.pem", &key, UnixTime::default()).len(), 1);
        let escaped = format!("key = \"{}\"", key.replace('\n', "\\n"));
        assert_eq!(in_text(&catalogue, "a.js", &escaped, UnixTime::default()).len(), 1);
        let secret = format!("kind: Secret\ndata:\n  tls.key: {}\n", STANDARD.encode(&key));
        let found = in_text(&catalogue, "s.yaml", &secret, UnixTime::default());
        assert_eq!(found[0].rule, "key-material-committed/k8s-secret");
        assert!(
            !found[0].evidence.contains("MIIE") && found[0].evidence.len() < 40,
            "{:?}",
            found[0].evidence
        );
        for placeholder in [
            "-----BEGIN PRIVATE KEY-----\n...\n-----END PRIVATE KEY-----",
            "-----BEGIN RSA PRIVATE KEY-----\nxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\n-----END RSA PRIVATE KEY-----",
            "-----BEGIN PRIVATE KEY-----\n{{ .Values.key }}\n-----END PRIVATE KEY-----",
            "if strings.Contains(s, \"-----BEGIN PRIVATE KEY-----\") {",
        ] {
            assert!(
                in_text(&catalogue, "a.pem", placeholder, UnixTime::default()).is_empty(),
                "{placeholder}"
            );
        }
    }
}
