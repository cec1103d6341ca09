//! What was tried, what came of it, and what that means.

use countersign_findings::{Finding, Severity};
use serde::Serialize;

/// What came of one attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The other end went on.
    Accepted,
    /// It ended the connection: an alert, a reset, a close without an answer.
    Refused,
    /// The handshake went through, and the application refused.
    RefusedByApplication,
    /// Nothing definite can be said.
    Unclear,
}

impl Outcome {
    /// As in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Outcome::Accepted => "accepted",
            Outcome::Refused => "refused",
            Outcome::RefusedByApplication => "refused-by-application",
            Outcome::Unclear => "unclear",
        }
    }
}

/// One attempt.
#[derive(Clone, Debug, Serialize)]
pub struct Case {
    /// `client/expired` and the like.
    pub id: String,
    /// What came of it.
    pub outcome: Outcome,
    /// How that is known.
    pub evidence: String,
}

/// Something that is wrong.
#[derive(Clone, Debug, Serialize)]
pub struct Found {
    /// `<class>/live-<shape>`; classes are those of the review.
    pub rule: &'static str,
    /// How bad it is.
    #[serde(serialize_with = "severity")]
    pub severity: Severity,
    /// One line.
    pub title: &'static str,
    /// How it is known.
    pub evidence: String,
    /// What to do.
    pub fix: &'static str,
    /// Weaknesses as MITRE numbers them.
    pub cwe: &'static [u16],
}

fn severity<S: serde::Serializer>(s: &Severity, out: S) -> Result<S::Ok, S::Error> {
    out.serialize_str(s.as_str())
}

/// Everything about one target.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Whom.
    pub target: String,
    /// `TLSv1.3, X25519MLKEM768, …` of the first handshake, if there was one.
    pub negotiated: Option<String>,
    /// Every attempt, in order.
    pub cases: Vec<Case>,
    /// What is wrong, worst first.
    pub findings: Vec<Found>,
    /// What could not be tried, and what it takes.
    pub not_tried: Vec<String>,
    /// Connections that were made.
    pub connections: usize,
    /// Why something that was asked for could not be done.
    #[serde(skip)]
    pub failed: Option<Finding>,
}

impl Report {
    pub(crate) fn new(target: String) -> Self {
        Self {
            target,
            negotiated: None,
            cases: Vec::new(),
            findings: Vec::new(),
            not_tried: Vec::new(),
            connections: 0,
            failed: None,
        }
    }

    pub(crate) fn case(&mut self, id: &str, outcome: Outcome, evidence: impl Into<String>) {
        self.cases.push(Case { id: id.to_owned(), outcome, evidence: evidence.into() });
    }

    pub(crate) fn found(&mut self, rule: &'static str, evidence: impl Into<String>) {
        self.found_as(rule, None, evidence);
    }

    pub(crate) fn found_as(
        &mut self,
        rule: &'static str,
        severity: Option<Severity>,
        evidence: impl Into<String>,
    ) {
        let Some(r) = RULES.iter().find(|r| r.id == rule) else { return };
        self.findings.push(Found {
            rule,
            severity: severity.unwrap_or(r.severity),
            title: r.title,
            evidence: evidence.into(),
            fix: r.fix,
            cwe: r.cwe,
        });
    }

    pub(crate) fn outcome(&self, id: &str) -> Option<Outcome> {
        self.cases.iter().find(|c| c.id == id).map(|c| c.outcome)
    }

    /// What was not definitely refused although it should have been, or was never tried, becomes a finding.
    pub(crate) fn expect_strict(&mut self) {
        let unclear: Vec<String> = self
            .cases
            .iter()
            .filter(|c| c.outcome == Outcome::Unclear)
            .map(|c| format!("{}: {}", c.id, c.evidence))
            .chain(self.not_tried.iter().cloned())
            .collect();
        for evidence in unclear {
            self.found("unproven/live-case", evidence);
        }
    }

    pub(crate) fn finished(mut self) -> Self {
        self.findings.sort_by_key(|f| (std::cmp::Reverse(f.severity), f.rule));
        self
    }
}

struct Rule {
    id: &'static str,
    severity: Severity,
    title: &'static str,
    fix: &'static str,
    cwe: &'static [u16],
}

const fn rule(
    id: &'static str,
    severity: Severity,
    title: &'static str,
    fix: &'static str,
    cwe: &'static [u16],
) -> Rule {
    Rule { id, severity, title, fix, cwe }
}

const VERIFY: &str =
    "verify the chain, its times, usages and revocation against the client CA on every handshake";
const CLIENT_VERIFY: &str =
    "give the client the trust bundle, and leave its verification switched on";

/// Every rule, by id.
const RULES: &[Rule] = &[
    rule(
        "server-client-auth-absent/live-not-asked",
        Severity::High,
        "the server asks for no client certificate",
        "require and verify a client certificate, and name the CA bundle that clients must chain to",
        &[306, 287],
    ),
    rule(
        "server-client-auth-optional/live-none-accepted",
        Severity::High,
        "a client without a certificate is served",
        "require the certificate; give anonymous traffic a listener of its own",
        &[306, 287],
    ),
    rule(
        "server-client-cert-unverified/live-self-signed",
        Severity::Critical,
        "a self-signed client certificate is taken",
        VERIFY,
        &[295, 296],
    ),
    rule(
        "server-client-cert-unverified/live-wrong-ca",
        Severity::Critical,
        "a client certificate of another CA is taken",
        VERIFY,
        &[295, 296],
    ),
    rule(
        "server-client-cert-unverified/live-expired",
        Severity::High,
        "an expired client certificate is taken",
        VERIFY,
        &[298],
    ),
    rule(
        "server-client-cert-unverified/live-not-yet-valid",
        Severity::Medium,
        "a client certificate that is not valid yet is taken",
        VERIFY,
        &[298],
    ),
    rule(
        "server-client-cert-unverified/live-ca-as-leaf",
        Severity::Medium,
        "a CA certificate is taken for a client's own",
        "refuse leaves with CA:TRUE (X509-SVID section 4.1)",
        &[295],
    ),
    rule(
        "server-client-cert-unverified/live-wrong-usage",
        Severity::Medium,
        "a certificate that is not for clients is taken",
        "demand the extended key usage clientAuth",
        &[295],
    ),
    rule(
        "server-client-cert-unverified/live-revoked",
        Severity::High,
        "a revoked client certificate is taken",
        "give the server a current CRL, or let certificates live shorter than a revocation takes",
        &[299],
    ),
    rule(
        "server-client-cert-unverified/live-revoked-resumed",
        Severity::High,
        "a resumed session outlives the revocation of its certificate",
        "judge the certificate again when a session is resumed, or switch session tickets and caches off",
        &[299, 613],
    ),
    rule(
        "server-client-cert-unverified/live-revoked-open",
        Severity::Medium,
        "an open connection outlives the revocation of its certificate",
        "cut the connections of a revoked certificate, or bound how long a connection may live",
        &[299, 613],
    ),
    rule(
        "server-client-cert-unverified/live-resumed",
        Severity::Medium,
        "a resumed session outlives the client's certificate",
        "judge the certificate again when a session is resumed, or switch session tickets and caches off",
        &[298, 613],
    ),
    rule(
        "identity-binding-absent/live-other-identity",
        Severity::High,
        "any identity of the right CA is served",
        "compare the URI SAN (SPIFFE ID) with a list of who may call",
        &[863, 297],
    ),
    rule(
        "header-identity/live-reflected",
        Severity::Medium,
        "an identity header of the client reaches the application",
        "strip identity headers where connections come in, and set them from the verified certificate",
        &[290, 348],
    ),
    rule(
        "header-identity/live-believed",
        Severity::Critical,
        "an identity header of the client is believed",
        "take the identity from the TLS connection; strip such headers where connections come in",
        &[290, 348],
    ),
    rule(
        "plaintext-bypass/live-same-port",
        Severity::High,
        "the port serves plaintext too",
        "refuse plaintext (STRICT); give plaintext callers a date by which they must have moved",
        &[319, 288],
    ),
    rule(
        "plaintext-bypass/live-neighbour",
        Severity::High,
        "another port serves without a client certificate",
        "remove the second listener, bind it to loopback, or give it the same checks",
        &[288, 319],
    ),
    rule(
        "weak-tls/live-old-version",
        Severity::Medium,
        "the server speaks a version of TLS that is withdrawn (RFC 8996)",
        "allow TLS 1.3, and 1.2 where clients need it",
        &[326, 327],
    ),
    rule(
        "weak-tls/live-weak-cipher",
        Severity::High,
        "the server takes a cipher suite without encryption, authentication or strength",
        "allow AEAD suites with ephemeral keys only",
        &[326, 327],
    ),
    rule(
        "weak-cert/live-ca-as-leaf",
        Severity::High,
        "the server presents a CA certificate as its own",
        "issue a leaf with CA:FALSE; whoever steals this key can issue certificates",
        &[295],
    ),
    rule(
        "weak-cert/live-several-uris",
        Severity::Medium,
        "the server's certificate has several URI SANs",
        "reissue it with exactly one SPIFFE ID (X509-SVID section 2)",
        &[295],
    ),
    rule(
        "weak-cert/live-no-san",
        Severity::Medium,
        "the server's certificate has no subject alternative name",
        "reissue it with its SPIFFE ID or DNS name as SAN",
        &[295],
    ),
    rule(
        "weak-cert/live-expired",
        Severity::High,
        "the server's certificate is out of its time",
        "renew it, and let a machine do that from now on",
        &[298],
    ),
    rule(
        "weak-cert/live-incomplete-chain",
        Severity::Medium,
        "the server does not send the intermediates that its certificate needs",
        "send leaf and intermediates; clients that happen to know them hide the mistake",
        &[295],
    ),
    rule(
        "weak-cert/live-untrusted",
        Severity::High,
        "the server's chain does not lead to the roots that were given",
        "issue the server's certificate by the CA that clients trust, or correct --bundle",
        &[295, 296],
    ),
    rule(
        "weak-cert/live-weak-signature",
        Severity::High,
        "the server's certificate is signed with, or holds, something too weak",
        "reissue it: ECDSA P-256 or RSA 2048, SHA-256",
        &[326, 327],
    ),
    rule(
        "weak-cert/live-wrong-identity",
        Severity::High,
        "the server is not who it was expected to be",
        "correct --server-id, or find out which service really listens there",
        &[297],
    ),
    rule(
        "long-lived-cert/live-server",
        Severity::Medium,
        "the server's certificate lives long",
        "let a machine renew it; 24 to 72 hours is plenty for a service",
        &[324],
    ),
    rule(
        "request-smuggling/live-ambiguous-framing",
        Severity::Medium,
        "a request whose end can be read in two ways is answered",
        "answer 400 and close (RFC 9112 section 6.1), in front of whatever parses it again",
        &[444],
    ),
    rule(
        "unproven/live-case",
        Severity::Medium,
        "expected to be strict, and not shown to be",
        "give the probe what it lacks, or find out why nothing definite came",
        &[],
    ),
    rule(
        "client-verify-disabled/live-self-signed",
        Severity::Critical,
        "the client believes a self-signed server",
        CLIENT_VERIFY,
        &[295],
    ),
    rule(
        "client-verify-disabled/live-wrong-ca",
        Severity::Critical,
        "the client believes a server of another CA",
        CLIENT_VERIFY,
        &[295],
    ),
    rule(
        "client-verify-disabled/live-expired",
        Severity::High,
        "the client believes an expired certificate",
        CLIENT_VERIFY,
        &[298],
    ),
    rule(
        "client-verify-disabled/live-not-yet-valid",
        Severity::Medium,
        "the client believes a certificate that is not valid yet",
        CLIENT_VERIFY,
        &[298],
    ),
    rule(
        "client-verify-disabled/live-ca-as-leaf",
        Severity::Medium,
        "the client takes a CA certificate for the server's own",
        "refuse leaves with CA:TRUE (X509-SVID section 4.1)",
        &[295],
    ),
    rule(
        "client-verify-disabled/live-wrong-usage",
        Severity::Medium,
        "the client takes a certificate that is not for servers",
        "demand the extended key usage serverAuth",
        &[295],
    ),
    rule(
        "hostname-verify-disabled/live-wrong-name",
        Severity::High,
        "the client believes any server of the right CA, whatever its name",
        "compare the certificate's name with the one that was dialled, or its SPIFFE ID with the expected one",
        &[297],
    ),
    rule(
        "hostname-verify-disabled/live-wrong-id",
        Severity::High,
        "the client believes any SPIFFE ID of the right CA",
        "compare the SPIFFE ID with the expected one",
        &[297],
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rule_says_what_to_do() {
        let mut seen = std::collections::HashSet::new();
        for r in RULES {
            assert!(seen.insert(r.id), "{} is there twice", r.id);
            assert!(r.id.contains("/live-") && !r.title.is_empty() && !r.fix.is_empty());
            assert!(!r.title.ends_with('.') && !r.fix.ends_with('.'), "{}", r.id);
        }
    }
}
