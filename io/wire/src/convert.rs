//! Between generated types and core types. What comes in is parsed once, here; the error names the field.

use std::time::Duration;

use countersign_findings::{Code, Finding};
use countersign_identity::{
    Bundle, DnsName, Entry, JwtAuthority, Selector, SelectorSet, SpiffeId, TrustDomain, UnixTime,
    X509Authority,
};

use countersign_lifecycle::Growth;

use crate::proto::countersign::server::v1::Memory;
use crate::proto::spire::api::types;

fn invalid(field: &str, detail: impl std::fmt::Display) -> Finding {
    Finding::new(Code::EntryInvalid, format!("{field}: {detail}")).at(field.to_owned())
}

/// What a process takes, and how it grew, for the wire.
pub fn from_memory((bytes, growth): (u64, Option<Growth>)) -> Memory {
    let (grew_from, grew_to) = growth.map_or((0, 0), |g| (g.from, g.to));
    let grew_seconds = growth.map_or(0, |g| g.over.as_secs());
    Memory { bytes, grew_from, grew_to, grew_seconds }
}

/// A SPIFFE ID from its wire form; `field` names it in errors.
pub fn spiffe_id(field: &str, id: Option<&types::Spiffeid>) -> Result<SpiffeId, Finding> {
    let id = id.ok_or_else(|| invalid(field, "is missing"))?;
    let td = TrustDomain::from_name_or_id(&id.trust_domain).map_err(|e| invalid(field, e))?;
    SpiffeId::from_path(&td, &id.path).map_err(|e| invalid(field, e))
}

/// A SPIFFE ID for the wire.
pub fn from_spiffe_id(id: &SpiffeId) -> types::Spiffeid {
    types::Spiffeid { trust_domain: id.trust_domain().to_string(), path: id.path().to_owned() }
}

/// Selectors from the wire.
pub fn selectors(field: &str, list: &[types::Selector]) -> Result<SelectorSet, Finding> {
    list.iter().map(|s| Selector::new(&s.r#type, &s.value).map_err(|e| invalid(field, e))).collect()
}

/// Selectors for the wire.
pub fn from_selectors(set: &SelectorSet) -> Vec<types::Selector> {
    set.iter()
        .map(|s| types::Selector { r#type: s.kind().to_owned(), value: s.value().to_owned() })
        .collect()
}

fn ttl(field: &str, secs: i32) -> Result<Option<Duration>, Finding> {
    match u64::try_from(secs) {
        Ok(0) => Ok(None),
        Ok(secs) => Ok(Some(Duration::from_secs(secs))),
        Err(_) => Err(invalid(field, "is negative")),
    }
}

fn from_ttl(ttl: Option<Duration>) -> i32 {
    ttl.map_or(0, |d| i32::try_from(d.as_secs()).unwrap_or(i32::MAX))
}

/// A registration entry from the wire.
pub fn entry(e: &types::Entry) -> Result<Entry, Finding> {
    Ok(Entry {
        id: e.id.clone(),
        spiffe_id: spiffe_id("spiffe_id", e.spiffe_id.as_ref())?,
        parent_id: spiffe_id("parent_id", e.parent_id.as_ref())?,
        selectors: selectors("selectors", &e.selectors)?,
        x509_svid_ttl: ttl("x509_svid_ttl", e.x509_svid_ttl)?,
        jwt_svid_ttl: ttl("jwt_svid_ttl", e.jwt_svid_ttl)?,
        dns_names: e
            .dns_names
            .iter()
            .map(|n| n.parse::<DnsName>().map_err(|err| invalid("dns_names", err)))
            .collect::<Result<_, _>>()?,
        federates_with: e
            .federates_with
            .iter()
            .map(|n| TrustDomain::from_name_or_id(n).map_err(|err| invalid("federates_with", err)))
            .collect::<Result<_, _>>()?,
        admin: e.admin,
        downstream: e.downstream,
        expires_at: (e.expires_at != 0).then(|| UnixTime::from_secs(e.expires_at)),
        hint: e.hint.clone(),
        store_svid: e.store_svid,
        revision: e.revision_number,
        created_at: UnixTime::from_secs(e.created_at),
    })
}

/// A registration entry for the wire, every field set.
pub fn from_entry(e: &Entry) -> types::Entry {
    types::Entry {
        id: e.id.clone(),
        spiffe_id: Some(from_spiffe_id(&e.spiffe_id)),
        parent_id: Some(from_spiffe_id(&e.parent_id)),
        selectors: from_selectors(&e.selectors),
        x509_svid_ttl: from_ttl(e.x509_svid_ttl),
        federates_with: e.federates_with.iter().map(ToString::to_string).collect(),
        admin: e.admin,
        downstream: e.downstream,
        expires_at: e.expires_at.map_or(0, UnixTime::secs),
        dns_names: e.dns_names.iter().map(ToString::to_string).collect(),
        revision_number: e.revision,
        store_svid: e.store_svid,
        jwt_svid_ttl: from_ttl(e.jwt_svid_ttl),
        hint: e.hint.clone(),
        created_at: e.created_at.secs(),
        additional_attributes: None,
    }
}

/// Clears what `mask` does not ask for; no mask means everything.
pub fn mask_entry(mut e: types::Entry, mask: Option<&types::EntryMask>) -> types::Entry {
    let Some(m) = mask else { return e };
    if !m.spiffe_id {
        e.spiffe_id = None;
    }
    if !m.parent_id {
        e.parent_id = None;
    }
    if !m.selectors {
        e.selectors.clear();
    }
    if !m.x509_svid_ttl {
        e.x509_svid_ttl = 0;
    }
    if !m.federates_with {
        e.federates_with.clear();
    }
    e.admin &= m.admin;
    e.downstream &= m.downstream;
    if !m.expires_at {
        e.expires_at = 0;
    }
    if !m.dns_names {
        e.dns_names.clear();
    }
    if !m.revision_number {
        e.revision_number = 0;
    }
    e.store_svid &= m.store_svid;
    if !m.jwt_svid_ttl {
        e.jwt_svid_ttl = 0;
    }
    if !m.hint {
        e.hint.clear();
    }
    if !m.created_at {
        e.created_at = 0;
    }
    if !m.additional_attributes {
        e.additional_attributes = None;
    }
    e
}

/// Copies the fields that `mask` names from `from` into `into` (updates); no mask copies everything
/// but the id.
pub fn merge_entry(
    into: types::Entry,
    from: types::Entry,
    mask: Option<&types::EntryMask>,
) -> types::Entry {
    let id = into.id.clone();
    let revision_number = into.revision_number;
    let created_at = into.created_at;
    let Some(m) = mask else {
        return types::Entry { id, revision_number, created_at, ..from };
    };
    types::Entry {
        id,
        revision_number,
        created_at,
        spiffe_id: if m.spiffe_id { from.spiffe_id } else { into.spiffe_id },
        parent_id: if m.parent_id { from.parent_id } else { into.parent_id },
        selectors: if m.selectors { from.selectors } else { into.selectors },
        x509_svid_ttl: if m.x509_svid_ttl { from.x509_svid_ttl } else { into.x509_svid_ttl },
        federates_with: if m.federates_with { from.federates_with } else { into.federates_with },
        admin: if m.admin { from.admin } else { into.admin },
        downstream: if m.downstream { from.downstream } else { into.downstream },
        expires_at: if m.expires_at { from.expires_at } else { into.expires_at },
        dns_names: if m.dns_names { from.dns_names } else { into.dns_names },
        store_svid: if m.store_svid { from.store_svid } else { into.store_svid },
        jwt_svid_ttl: if m.jwt_svid_ttl { from.jwt_svid_ttl } else { into.jwt_svid_ttl },
        hint: if m.hint { from.hint } else { into.hint },
        additional_attributes: if m.additional_attributes {
            from.additional_attributes
        } else {
            into.additional_attributes
        },
    }
}

/// A bundle from the wire.
pub fn bundle(b: &types::Bundle) -> Result<Bundle, Finding> {
    Ok(Bundle {
        trust_domain: TrustDomain::from_name_or_id(&b.trust_domain)
            .map_err(|e| invalid("trust_domain", e))?,
        x509_authorities: b
            .x509_authorities
            .iter()
            .map(|a| X509Authority { der: a.asn1.clone(), tainted: a.tainted })
            .collect(),
        jwt_authorities: b
            .jwt_authorities
            .iter()
            .map(|k| JwtAuthority {
                key_id: k.key_id.clone(),
                public_key: k.public_key.clone(),
                expires_at: (k.expires_at != 0).then(|| UnixTime::from_secs(k.expires_at)),
                tainted: k.tainted,
            })
            .collect(),
        refresh_hint: u64::try_from(b.refresh_hint)
            .ok()
            .filter(|s| *s > 0)
            .map(Duration::from_secs),
        sequence: b.sequence_number,
    })
}

/// A bundle for the wire.
pub fn from_bundle(b: &Bundle, mask: Option<&types::BundleMask>) -> types::Bundle {
    let all = types::BundleMask {
        x509_authorities: true,
        jwt_authorities: true,
        refresh_hint: true,
        sequence_number: true,
        wit_authorities: true,
    };
    let m = mask.unwrap_or(&all);
    types::Bundle {
        trust_domain: b.trust_domain.to_string(),
        x509_authorities: if m.x509_authorities {
            b.x509_authorities
                .iter()
                .map(|a| types::X509Certificate { asn1: a.der.clone(), tainted: a.tainted })
                .collect()
        } else {
            Vec::new()
        },
        jwt_authorities: if m.jwt_authorities {
            b.jwt_authorities
                .iter()
                .map(|k| types::JwtKey {
                    public_key: k.public_key.clone(),
                    key_id: k.key_id.clone(),
                    expires_at: k.expires_at.map_or(0, UnixTime::secs),
                    tainted: k.tainted,
                })
                .collect()
        } else {
            Vec::new()
        },
        refresh_hint: b
            .refresh_hint
            .filter(|_| m.refresh_hint)
            .map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX)),
        sequence_number: if m.sequence_number { b.sequence } else { 0 },
        wit_authorities: Vec::new(),
    }
}

/// How a filter compares selector sets (SPIRE's match behaviours).
pub fn selectors_match(entry: &SelectorSet, wanted: &SelectorSet, behaviour: i32) -> bool {
    use types::selector_match::MatchBehavior as B;
    match B::try_from(behaviour) {
        Ok(B::MatchExact) => entry == wanted,
        Ok(B::MatchSubset) => entry.is_subset_of(wanted),
        Ok(B::MatchSuperset) => wanted.is_subset_of(entry),
        Ok(B::MatchAny) => entry.iter().any(|s| wanted.contains(s)),
        Err(_) => false,
    }
}

/// An entry as bytes, for caches.
pub fn encode_entry(entry: &Entry) -> Vec<u8> {
    prost::Message::encode_to_vec(&from_entry(entry))
}

/// Reads [`encode_entry`]'s bytes.
pub fn decode_entry(bytes: &[u8]) -> Option<Entry> {
    entry(&<types::Entry as prost::Message>::decode(bytes).ok()?).ok()
}

/// A bundle as bytes, for caches.
pub fn encode_bundle(bundle: &Bundle) -> Vec<u8> {
    prost::Message::encode_to_vec(&from_bundle(bundle, None))
}

/// Reads [`encode_bundle`]'s bytes.
pub fn decode_bundle(bytes: &[u8]) -> Option<Bundle> {
    bundle(&<types::Bundle as prost::Message>::decode(bytes).ok()?).ok()
}

/// A set of policies as bytes, for caches.
pub fn encode_policies(set: &crate::proto::countersign::server::v1::PolicySet) -> Vec<u8> {
    prost::Message::encode_to_vec(set)
}

/// Reads [`encode_policies`]' bytes.
pub fn decode_policies(bytes: &[u8]) -> Option<crate::proto::countersign::server::v1::PolicySet> {
    prost::Message::decode(bytes).ok()
}
