//! What a port presents.

use std::time::Duration;

use countersign_findings::{Code, Finding};
use countersign_identity::UnixTime;
use countersign_tls::presented_chain;
use countersign_x509::{CertInfo, ChainCause, ChainError, chain_closes};
use tokio::net::TcpStream;

use super::certificates;
use super::report::{Category, Report};

const TIMEOUT: Duration = Duration::from_secs(5);

/// Looks at the chain that `address` presents. `roots` may be empty.
pub(super) async fn check(report: &mut Report, address: &str, roots: &[Vec<u8>], now: UnixTime) {
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
    judge(category, address, &ders, roots, now);
}

/// Time of every certificate, and whether the chain closes.
pub(super) fn judge(
    category: &mut Category,
    whose: &str,
    chain: &[Vec<u8>],
    roots: &[Vec<u8>],
    now: UnixTime,
) {
    let parsed: Result<Vec<CertInfo>, _> = chain.iter().map(|d| CertInfo::parse(d)).collect();
    let infos = match parsed {
        Ok(infos) => infos,
        Err(e) => {
            let finding = Finding::new(Code::MalformedCertificate, e.to_string());
            return category.fail(format!("{whose} presents certificates"), &finding);
        }
    };
    for cert in &infos {
        // Authorities of one trust domain share a SPIFFE ID.
        let name = if cert.is_ca { &cert.subject } else { &cert.display_name() };
        let what = format!("{whose}: `{name}`");
        let code = if cert.is_ca { Code::AuthorityExpiring } else { Code::RotationStuck };
        certificates::check(category, &what, (cert.not_before, cert.not_after), now, code);
    }
    let Some(leaf) = infos.first() else { return };
    if leaf.is_ca && !leaf.is_self_issued() {
        let cause = ChainCause::CaUsedAsLeaf.to_string();
        let finding = Finding::new(Code::CaUsedAsLeaf, cause);
        category.fail(format!("{whose}: the first certificate is a leaf"), &finding);
    }
    let description = format!("{whose}: the chain closes");
    let cause = match chain_closes(chain, roots, now) {
        Ok(()) => return category.ok(description),
        Err(cause) => cause,
    };
    // Without roots a chain that ends at a root, or at the issuer of its last certificate, may be whole.
    if roots.is_empty() && (chain.len() > 1 || leaf.is_self_issued()) {
        return category.ok(format!("{description}, as far as can be said without the bundle"));
    }
    let error = ChainError { cause, now, presented: String::new(), trusted: String::new() };
    category.fail(description, &error.finding());
}
