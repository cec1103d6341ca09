//! What the server presents.

use countersign_findings::Severity;
use countersign_identity::SpiffeId;
use countersign_x509::{CertInfo, ChainCause, chain_closes};

use super::Target;
use crate::report::{Outcome, Report};

const DAY: u64 = 86_400;

impl Target<'_> {
    pub(super) fn certificate(&self, report: &mut Report, chain: &[Vec<u8>]) {
        let parsed: Vec<CertInfo> = chain.iter().filter_map(|c| CertInfo::parse(c).ok()).collect();
        let Some(leaf) = parsed.first().filter(|_| parsed.len() == chain.len()) else {
            let what = "a certificate cannot be parsed";
            report.case("server/certificate", Outcome::Unclear, what);
            return;
        };
        let who = format!("`{}`", leaf.display_name());
        let found = report.findings.len();
        if leaf.is_ca {
            report.found("weak-cert/live-ca-as-leaf", format!("{who} has CA:TRUE"));
        }
        if leaf.uri_sans.len() > 1 {
            let uris = leaf.uri_sans.join(", ");
            report.found("weak-cert/live-several-uris", format!("{who}: {uris}"));
        }
        let names = leaf.uri_sans.len() + leaf.dns_sans.len() + leaf.ip_sans.len();
        if names + leaf.other_sans == 0 {
            report.found("weak-cert/live-no-san", format!("{who} has only a subject"));
        }
        if self.now > leaf.not_after {
            report.found("weak-cert/live-expired", format!("{who} ended at {}", leaf.not_after));
        } else if self.now < leaf.not_before {
            let begins = format!("{who} begins at {}", leaf.not_before);
            report.found("weak-cert/live-expired", begins);
        }
        let days = leaf.not_after.since(leaf.not_before).as_secs() / DAY;
        let spiffe = leaf.uri_sans.iter().any(|u| u.starts_with("spiffe://"));
        let severity = match days {
            399.. => Some(Severity::High),
            91.. => Some(Severity::Medium),
            8.. if spiffe => Some(Severity::Low),
            _ => None,
        };
        if severity.is_some() {
            let lives = format!("{who} is valid for {days} days");
            report.found_as("long-lived-cert/live-server", severity, lives);
        }
        let signature = leaf.signature_algorithm.to_ascii_lowercase();
        let small =
            ["rsa-512", "rsa-768", "rsa-1024", "rsa-1536"].contains(&leaf.key_type.as_str());
        if signature.contains("sha1") || signature.contains("md5") || small {
            let what = format!("{who}: key {}, signature {signature}", leaf.key_type);
            report.found("weak-cert/live-weak-signature", what);
        }
        self.chain(report, chain, &who);
        self.identity(report, leaf, &who);
        let wrong: Vec<&str> = report.findings[found..].iter().map(|f| f.rule).collect();
        let mut what = format!(
            "{who}, issued by `{}`, until {}, certificates sent: {}",
            leaf.issuer,
            leaf.not_after,
            chain.len()
        );
        if !wrong.is_empty() {
            what.push_str(&format!("; but {}", wrong.join(", ")));
        }
        // It was looked at; what is wrong with it is a finding.
        report.case("server/certificate", Outcome::Accepted, what);
    }

    /// From the leaf by the certificates that were sent to one of the roots.
    fn chain(&self, report: &mut Report, chain: &[Vec<u8>], who: &str) {
        if self.options.roots.is_empty() {
            report.not_tried.push("server/chain: give --bundle".into());
            return;
        }
        match chain_closes(chain, &self.options.roots, self.now) {
            Ok(()) => {}
            Err(ChainCause::MissingIntermediate { issuer }) => {
                let what = format!("{who}: `{issuer}` was not sent, and is no root");
                report.found("weak-cert/live-incomplete-chain", what);
            }
            Err(cause) => report.found("weak-cert/live-untrusted", format!("{who}: {cause}")),
        }
    }

    fn identity(&self, report: &mut Report, leaf: &CertInfo, who: &str) {
        if let Some(expected) = &self.options.server_id
            && leaf.uri_sans.len() <= 1
            && !leaf.is_ca
            && !leaf.uri_sans.is_empty()
        {
            let is = leaf.uri_sans.iter().filter_map(|u| SpiffeId::parse(u).ok());
            if !is.into_iter().any(|id| id == *expected) {
                let what = format!("{who}, not `{expected}`");
                report.found("weak-cert/live-wrong-identity", what);
            }
        }
    }
}
