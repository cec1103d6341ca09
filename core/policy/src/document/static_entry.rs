//! ClusterStaticEntry.

use countersign_findings::Finding;

use super::StaticEntry;
use super::place::Place;
use super::read::check_version;
use super::shapes::{Doc, EntrySpec};

pub(super) fn read(doc: Doc<EntrySpec>, origin: &str, line: usize) -> Result<StaticEntry, Finding> {
    let place =
        Place { origin, line, title: format!("ClusterStaticEntry `{}`", doc.metadata.name) };
    check_version(&["v1alpha1"], &doc.api_version, &place)?;
    let spec = doc.spec.ok_or_else(|| place.invalid("spec", "is missing"))?;
    let ttl = |path: &str, text: &Option<String>| {
        text.as_deref()
            .map(|t| {
                duration_secs(t).ok_or_else(|| {
                    place.invalid(path, format!("`{t}` is not a duration like 1h or 30m"))
                })
            })
            .transpose()
    };
    Ok(StaticEntry {
        x509_svid_ttl: ttl("spec.x509SVIDTTL", &spec.x509_svid_ttl)?,
        jwt_svid_ttl: ttl("spec.jwtSVIDTTL", &spec.jwt_svid_ttl)?,
        name: doc.metadata.name,
        spiffe_id: spec.spiffe_id,
        parent_id: spec.parent_id,
        selectors: spec.selectors,
        dns_names: spec.dns_names,
        federates_with: spec.federates_with,
        admin: spec.admin,
        downstream: spec.downstream,
        hint: spec.hint,
        store_svid: spec.store_svid,
    })
}

/// Go's durations in whole seconds: `1h30m`, `45s`.
fn duration_secs(text: &str) -> Option<u64> {
    let mut total = 0u64;
    let mut number = String::new();
    for c in text.chars() {
        if c.is_ascii_digit() {
            number.push(c);
        } else {
            let unit = match c {
                'h' => 3600,
                'm' => 60,
                's' => 1,
                _ => return None,
            };
            total = total.checked_add(number.parse::<u64>().ok()?.checked_mul(unit)?)?;
            number.clear();
        }
    }
    (number.is_empty() && total > 0).then_some(total)
}
