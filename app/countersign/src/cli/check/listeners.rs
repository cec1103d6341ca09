//! What a port presents.

use std::time::Duration;

use countersign_findings::{Code, Finding};
use countersign_identity::UnixTime;
use countersign_tls::presented_chain;
use countersign_x509::{CertInfo, ChainCause};
use tokio::net::TcpStream;

use super::certificates;
use super::report::{Category, Report};

const TIMEOUT: Duration = Duration::from_secs(5);

/// Looks at the chain that `address` presents. `roots` may be empty.
pub(super) async fn check(report: &mut Report, address: &str, roots: &[CertInfo], now: UnixTime) {
    let category = report.category("listeners");
    let stream = match tokio::time::timeout(TIMEOUT, TcpStream::connect(address)).await {
        Ok(Ok(stream)) => stream,
        failed => {
            let why = match failed {
                Ok(Err(e)) => e.to_string(),
                _ => format!("it did not accept within {} s", TIMEOUT.as_secs()),
            };
            let finding = Finding::new(Code::UpstreamUnreachable, why);
            return category.fail(format!("{address} answers"), &finding);
        }
    };
    let ders = match presented_chain(stream, TIMEOUT).await {
        Ok(ders) => ders,
        Err(e) => return category.fail(format!("{address} speaks TLS"), &e.finding()),
    };
    category.ok(format!("{address} speaks TLS"));
    let chain: Result<Vec<CertInfo>, _> = ders.iter().map(|d| CertInfo::parse(d)).collect();
    match chain {
        Ok(chain) => judge(category, address, &chain, roots, now),
        Err(e) => {
            let finding = Finding::new(Code::MalformedCertificate, e.to_string());
            category.fail(format!("{address} presents certificates"), &finding);
        }
    }
}

/// Time of every certificate, and whether the chain closes.
pub(super) fn judge(
    category: &mut Category,
    whose: &str,
    chain: &[CertInfo],
    roots: &[CertInfo],
    now: UnixTime,
) {
    for cert in chain {
        // Authorities of one trust domain share a SPIFFE ID.
        let name = if cert.is_ca { &cert.subject } else { &cert.display_name() };
        let what = format!("{whose}: `{name}`");
        let code = if cert.is_ca { Code::AuthorityExpiring } else { Code::RotationStuck };
        certificates::check(category, &what, (cert.not_before, cert.not_after), now, code);
    }
    let Some(leaf) = chain.first() else { return };
    if leaf.is_ca && !leaf.is_self_issued() {
        let cause = ChainCause::CaUsedAsLeaf.to_string();
        let finding = Finding::new(Code::CaUsedAsLeaf, cause);
        category.fail(format!("{whose}: the first certificate is a leaf"), &finding);
    }
    let description = format!("{whose}: the chain closes");
    let mut last = leaf;
    for _ in 0..=chain.len() {
        if roots.iter().any(|r| last.may_be_issued_by(r) || r.sha256 == last.sha256) {
            return category.ok(description);
        }
        match chain.iter().find(|c| last.may_be_issued_by(c) && c.sha256 != last.sha256) {
            Some(next) => last = next,
            None => break,
        }
    }
    let issuer = &last.issuer;
    if last.is_self_issued() {
        let finding = match roots.is_empty() {
            // Without a bundle nothing more can be said.
            true => {
                return category.ok(format!(
                    "{description} (at `{}`, which nobody vouches for)",
                    last.subject
                ));
            }
            false => Finding::new(
                Code::UnknownAuthority,
                format!("it ends at `{}`, which is not in the trust bundle", last.subject),
            ),
        };
        return category.fail(description, &finding);
    }
    let text = format!("`{issuer}` is neither sent nor a root that is known here");
    let known_to_be_missing = !roots.is_empty() || chain.len() == 1;
    if known_to_be_missing {
        category.fail(description, &Finding::new(Code::MissingIntermediate, text));
    } else {
        category.ok(format!("{description} (up to `{issuer}`; give the bundle to be sure)"));
    }
}
