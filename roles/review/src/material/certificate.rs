//! What certificates and requests say of the way they are issued.

use countersign_findings::Severity;
use countersign_identity::UnixTime;
use countersign_x509::CertInfo;
use countersign_x509::csr::RequestFacts;

use super::{DAY, make};
use crate::issue::Issue;
use crate::rule::Catalogue;
use crate::source::Context;

/// Where a certificate is, and what for.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) path: &'a str,
    pub(super) line: usize,
    pub(super) used_as: UsedAs,
}

/// What a certificate is used for, as far as its name tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum UsedAs {
    /// `ca.crt`: others are checked against it.
    Anchor,
    /// `tls.crt`, `server.pem`: somebody presents it.
    Leaf,
    /// Nothing tells.
    Unknown,
}

/// By the name of a file, or by the key of a line: `tls.crt: LS0t…`.
pub(super) fn used_as(name: &str) -> UsedAs {
    let head = name.split([':', '=']).next().unwrap_or_default().to_ascii_lowercase();
    let words = || head.split(|c: char| !c.is_ascii_alphanumeric());
    let anchors =
        ["ca", "root", "cabundle", "cacert", "cacerts", "authority", "trust", "truststore"];
    if words().any(|w| anchors.contains(&w) || w.ends_with("ca") && w.len() < 10) {
        return UsedAs::Anchor;
    }
    let leaves = ["tls", "server", "client", "peer", "localhost"];
    if words().any(|w| leaves.contains(&w)) { UsedAs::Leaf } else { UsedAs::Unknown }
}

/// What a certificate in the tree says of the way it was issued.
pub(super) fn certificate(
    catalogue: &Catalogue,
    Place { path, line, used_as }: Place<'_>,
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
    } else if used_as == UsedAs::Leaf {
        say(
            "weak-cert/cert",
            Severity::Medium,
            format!(
                "{subject} is used as a leaf and is a CA: whoever holds its key can issue certificates"
            ),
        );
    } else if cert
        .extended_key_usage
        .as_ref()
        .is_some_and(|usages| usages.iter().any(|u| is_peer(u)))
        && !(cert.dns_sans.is_empty() && cert.ip_sans.is_empty() && cert.uri_sans.is_empty())
    {
        say(
            "weak-cert/cert",
            Severity::Medium,
            format!(
                "{subject} names a peer and is a CA: whoever holds its key can issue certificates"
            ),
        );
    } else if !spiffe.is_empty()
        && spiffe.iter().any(|u| u.trim_start_matches("spiffe://").contains('/'))
    {
        say(
            "weak-cert/cert",
            Severity::High,
            format!("{subject} has a workload's SPIFFE ID and is a CA"),
        );
    }
    if is_weak_signature(&cert.signature_algorithm) && !self_signed {
        say(
            "weak-cert/cert",
            Severity::Medium,
            format!("{subject} is signed with {}", cert.signature_algorithm),
        );
    }
    if is_weak_key(&cert.key_type) {
        say(
            "weak-cert/cert",
            Severity::Medium,
            format!("{subject} has a key of {}", cert.key_type),
        );
    }
    out
}

/// serverAuth or clientAuth.
fn is_peer(usage: &str) -> bool {
    usage == CertInfo::SERVER_AUTH || usage == CertInfo::CLIENT_AUTH
}

fn is_weak_signature(algorithm: &str) -> bool {
    let algorithm = algorithm.to_ascii_lowercase();
    algorithm.contains("md5") || algorithm.contains("md2") || algorithm.contains("sha1")
}

fn is_weak_key(kind: &str) -> bool {
    let bits = kind.strip_prefix("rsa-").and_then(|b| b.parse::<u32>().ok());
    bits.is_some_and(|b| b < 2048)
}

/// What a request would become, if it were granted as it is.
pub(super) fn request(
    catalogue: &Catalogue,
    path: &str,
    line: usize,
    csr: &RequestFacts,
) -> Vec<Issue> {
    let subject = match csr.subject.as_str() {
        "" => "a request".to_owned(),
        subject => format!("the request for `{subject}`"),
    };
    let mut texts = Vec::new();
    // What is to become a CA says so by its name; its signer decides.
    let name = path.rsplit('/').next().unwrap_or_default().to_ascii_lowercase();
    let words = format!("{name} {}", csr.subject.to_ascii_lowercase());
    let of_ca = ["ca", "root", "intermediate", "authority", "issuer", "issuing", "signer"];
    let is_for_ca = words.split(|c: char| !c.is_ascii_alphanumeric()).any(|w| of_ca.contains(&w));
    if csr.wants_ca && !is_for_ca {
        texts.push(format!("{subject} asks for a CA"));
    }
    if is_weak_key(&csr.key_type) {
        texts.push(format!("{subject} has a key of {}", csr.key_type));
    }
    if is_weak_signature(&csr.signature_algorithm) {
        texts.push(format!("{subject} is signed with {}", csr.signature_algorithm));
    }
    let spiffe = csr.uri_sans.iter().filter(|u| u.starts_with("spiffe://")).count();
    if spiffe > 0 && csr.uri_sans.len() > 1 {
        texts.push(format!("{subject} asks for {} URI SANs: not an X509-SVID", csr.uri_sans.len()));
    }
    // An issuer may add names of its own; a name in the subject alone is what no verifier looks at any more.
    // Kubernetes names its users so by design.
    let is_of_a_peer = csr.subject.contains("CN=") && !csr.subject.contains("O=");
    if csr.sans == 0 && !csr.wants_ca && !is_for_ca && is_of_a_peer {
        texts.push(format!(
            "{subject} names its peer in the subject only, in no subject alternative name"
        ));
    }
    let issues =
        texts.into_iter().filter_map(|text| make(catalogue, "weak-cert/csr", path, "", line, text));
    issues.collect()
}
