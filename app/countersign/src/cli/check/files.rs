//! Files alone: nothing has to run.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use countersign_findings::{Code, Finding, Severity};
use countersign_identity::UnixTime;
use countersign_keys::{Signer, read_bounded, read_private_key};
use countersign_policy::{Document, MAX_INPUT, lint};
use countersign_x509::{CertInfo, pem};

use super::listeners::judge;
use super::report::{Report, Verdict};
use crate::cli::documents::load;

/// Looks at certificates, keys, bundles and policies. Gives the roots that were among them.
pub(super) fn check(
    report: &mut Report,
    paths: &[PathBuf],
    now: UnixTime,
) -> Result<Vec<Vec<u8>>, Finding> {
    let mut chains: Vec<Chain> = Vec::new();
    let mut keys: Vec<&PathBuf> = Vec::new();
    let mut policies: Vec<PathBuf> = Vec::new();
    for path in paths {
        if path.is_dir() || is_yaml(path) {
            policies.push(path.clone());
            continue;
        }
        let bytes = read_bounded(path, MAX_INPUT as u64).map_err(|e| e.finding())?;
        let place = path.display().to_string();
        let blocks = pem::parse(&bytes).map_err(|e| {
            Finding::new(Code::PemMalformed, e.what).at(format!("{place}:{}", e.line))
        })?;
        if blocks.iter().any(|b| b.label.ends_with("PRIVATE KEY")) {
            keys.push(path);
        }
        let mut chain = Chain { place, infos: Vec::new(), ders: Vec::new() };
        for block in blocks.into_iter().filter(|b| b.label == "CERTIFICATE") {
            chain.infos.push(CertInfo::parse(&block.der).map_err(|e| {
                let place = format!("{}:{}", chain.place, block.line);
                Finding::new(Code::MalformedCertificate, e.to_string()).at(place)
            })?);
            chain.ders.push(block.der);
        }
        if !chain.infos.is_empty() {
            chains.push(chain);
        }
    }
    // A file of nothing but roots is a bundle.
    let is_root = |c: &CertInfo| c.is_ca && c.is_self_issued();
    let both = |c: &Chain| c.infos.iter().cloned().zip(c.ders.iter().cloned()).collect::<Vec<_>>();
    let all = chains.iter().flat_map(both);
    let roots: Vec<Vec<u8>> = all.filter(|(c, _)| is_root(c)).map(|(_, der)| der).collect();
    for Chain { place, infos, ders } in &chains {
        let bundle = infos.iter().all(is_root);
        let category = report.category(if bundle { "trust anchors" } else { "certificates" });
        if bundle {
            for root in infos {
                let what = format!("{place}: `{}`", root.display_name());
                let life = (root.not_before, root.not_after);
                super::certificates::check(category, &what, life, now, Code::AuthorityExpiring);
            }
        } else {
            judge(category, place, ders, &roots, now);
        }
    }
    together(report, &chains, now);
    for path in keys {
        key(report, path, &chains);
    }
    if !policies.is_empty() {
        let documents: Vec<Document> = load(&policies)?.into_iter().map(|s| s.document).collect();
        check_policies(report, &documents);
    }
    Ok(roots)
}

/// The certificates of one file.
struct Chain {
    place: String,
    infos: Vec<CertInfo>,
    ders: Vec<Vec<u8>>,
}

fn is_yaml(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "yaml" || e == "yml")
}

fn key(report: &mut Report, path: &Path, chains: &[Chain]) {
    let place = path.display().to_string();
    let category = report.category("keys");
    let key = match read_private_key(path) {
        Ok(key) => key,
        Err(e) => return category.fail(format!("{place} can be used"), &e.finding()),
    };
    category.ok(format!("{place} is readable by its owner alone"));
    let leaves: Vec<(&String, &CertInfo)> = chains
        .iter()
        .filter_map(|c| Some((&c.place, c.infos.first().filter(|l| !l.is_ca)?)))
        .collect();
    if leaves.is_empty() {
        return;
    }
    match leaves.iter().find(|(_, leaf)| leaf.spki_der == key.public_key_spki()) {
        Some((of, _)) => category.ok(format!("{place} belongs to {of}")),
        None => {
            let names: Vec<&str> = leaves.iter().map(|(p, _)| p.as_str()).collect();
            let text = format!("it is the key of none of {}", names.join(", "));
            let finding = Finding::new(Code::KeyCertificateMismatch, text);
            category.fail(format!("{place} belongs to a certificate"), &finding);
        }
    }
}

/// Certificates of several services that end in the same hour take them all down at once.
fn together(report: &mut Report, chains: &[Chain], now: UnixTime) {
    let mut by_hour: HashMap<i64, usize> = HashMap::new();
    for chain in chains {
        if let Some(leaf) = chain.infos.first().filter(|l| !l.is_ca && l.not_after > now) {
            *by_hour.entry(leaf.not_after.secs() / 3600).or_default() += 1;
        }
    }
    if let Some((hour, n)) = by_hour.into_iter().max_by_key(|(_, n)| *n).filter(|(_, n)| *n >= 3) {
        let text =
            format!("{n} certificates end in the hour from {}", UnixTime::from_secs(hour * 3600));
        let finding = Finding::new(Code::RotationStuck, text)
            .hint("renew them at different times: a renewal that fails then takes down one service, not all");
        report.category("certificates").warn("certificates end at different times", &finding);
    }
}

/// What the policies say, whether they come from files or from the server.
pub(super) fn check_policies(report: &mut Report, documents: &[Document]) {
    let category = report.category("policies");
    if !documents.is_empty() {
        category.ok(format!("{} documents are understood", documents.len()));
    }
    let authorizations =
        documents.iter().filter(|d| matches!(d, Document::AuthorizationPolicy(_))).count();
    if authorizations == 0 {
        let text = "no AuthorizationPolicy: whoever proves an identity of a trusted domain may call everything";
        let finding = Finding::new(Code::PolicyAllowsAll, text);
        category.warn("calls are limited to those who need them", &finding);
    }
    let findings = lint(documents, "istio-system");
    for f in &findings {
        let result = match f.code.severity() {
            Severity::Critical | Severity::High => Verdict::Error,
            Severity::Medium => Verdict::Warning,
            Severity::Low | Severity::Info => continue,
        };
        category.with(f.code.title(), result, f);
    }
    if !documents.is_empty() && findings.iter().all(|f| f.code.severity() < Severity::Medium) {
        category.ok("every rule can match, and none lets everybody in");
    }
}
