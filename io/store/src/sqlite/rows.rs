//! Rows to records and back.

use std::time::Duration;

use countersign_identity::{Entry, SelectorSet, SpiffeId, UnixTime};
use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::{Deserialize, Serialize};

use crate::records::chain_hash;
use crate::{
    AgentRecord, AuthorityKind, AuthorityRecord, AuthorityStatus, JournalEntry, PolicyRecord,
    StoreError,
};

/// The list-valued fields of an entry, kept as one JSON column: they are never searched by SQL.
#[derive(Serialize, Deserialize)]
struct Lists {
    selectors: Vec<String>,
    dns_names: Vec<String>,
    federates_with: Vec<String>,
}

fn corrupt(what: &str, e: impl std::fmt::Display) -> StoreError {
    StoreError::Corrupt(format!("{what}: {e}"))
}

pub(super) fn spiffe_id(text: &str) -> Result<SpiffeId, StoreError> {
    SpiffeId::parse(text).map_err(|e| corrupt("spiffe id", e))
}

fn secs(d: Option<Duration>) -> Option<i64> {
    d.map(|d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX))
}

fn duration(secs: Option<i64>) -> Option<Duration> {
    secs.and_then(|s| u64::try_from(s).ok()).map(Duration::from_secs)
}

fn selector_set(list: &[String]) -> Result<SelectorSet, StoreError> {
    list.iter().map(|s| s.parse().map_err(|e| corrupt("selector", e))).collect()
}

/// Runs a query and converts each row outside SQLite's own error type.
fn collect<T>(
    connection: &Connection,
    sql: &str,
    convert: impl Fn(&Row<'_>) -> Result<T, StoreError>,
) -> Result<Vec<T>, StoreError> {
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query([])?;
    let mut out = Vec::new();
    while let Some(row) = rows.next()? {
        out.push(convert(row)?);
    }
    Ok(out)
}

pub(super) fn entries(c: &Connection) -> Result<Vec<Entry>, StoreError> {
    let sql = "SELECT id, spiffe_id, parent_id, x509_svid_ttl, jwt_svid_ttl, admin, downstream,
               expires_at, hint, store_svid, revision, created_at, lists FROM entries ORDER BY id";
    collect(c, sql, |r| {
        let lists: Lists = serde_json::from_str(&r.get::<_, String>(12)?)
            .map_err(|e| corrupt("entry lists", e))?;
        Ok(Entry {
            id: r.get(0)?,
            spiffe_id: spiffe_id(&r.get::<_, String>(1)?)?,
            parent_id: spiffe_id(&r.get::<_, String>(2)?)?,
            selectors: selector_set(&lists.selectors)?,
            x509_svid_ttl: duration(r.get(3)?),
            jwt_svid_ttl: duration(r.get(4)?),
            dns_names: lists
                .dns_names
                .iter()
                .map(|n| n.parse().map_err(|e| corrupt("dns name", e)))
                .collect::<Result<_, _>>()?,
            federates_with: lists
                .federates_with
                .iter()
                .map(|n| n.parse().map_err(|e| corrupt("trust domain", e)))
                .collect::<Result<_, _>>()?,
            admin: r.get(5)?,
            downstream: r.get(6)?,
            expires_at: r.get::<_, Option<i64>>(7)?.map(UnixTime::from_secs),
            hint: r.get(8)?,
            store_svid: r.get(9)?,
            revision: r.get(10)?,
            created_at: UnixTime::from_secs(r.get(11)?),
        })
    })
}

pub(super) fn insert_entry(c: &Connection, e: &Entry) -> Result<(), StoreError> {
    let lists = Lists {
        selectors: e.selectors.iter().map(ToString::to_string).collect(),
        dns_names: e.dns_names.iter().map(ToString::to_string).collect(),
        federates_with: e.federates_with.iter().map(ToString::to_string).collect(),
    };
    let lists = serde_json::to_string(&lists).map_err(|e| corrupt("entry lists", e))?;
    c.prepare_cached(
        "INSERT INTO entries (id, spiffe_id, parent_id, x509_svid_ttl, jwt_svid_ttl, admin,
         downstream, expires_at, hint, store_svid, revision, created_at, lists)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)",
    )?
    .execute(params![
        e.id,
        e.spiffe_id.as_str(),
        e.parent_id.as_str(),
        secs(e.x509_svid_ttl),
        secs(e.jwt_svid_ttl),
        e.admin,
        e.downstream,
        e.expires_at.map(UnixTime::secs),
        e.hint,
        e.store_svid,
        e.revision,
        e.created_at.secs(),
        lists
    ])?;
    Ok(())
}

pub(super) fn agents(c: &Connection) -> Result<Vec<AgentRecord>, StoreError> {
    let sql = "SELECT id, attestor, selectors, serial, not_after, next_serial, next_not_after,
               banned, can_reattest, version FROM agents ORDER BY id";
    collect(c, sql, |r| {
        let selectors: Vec<String> = serde_json::from_str(&r.get::<_, String>(2)?)
            .map_err(|e| corrupt("agent selectors", e))?;
        Ok(AgentRecord {
            id: spiffe_id(&r.get::<_, String>(0)?)?,
            attestor: r.get(1)?,
            selectors: selector_set(&selectors)?,
            serial: r.get(3)?,
            not_after: UnixTime::from_secs(r.get(4)?),
            next_serial: r.get(5)?,
            next_not_after: r.get::<_, Option<i64>>(6)?.map(UnixTime::from_secs),
            banned: r.get(7)?,
            can_reattest: r.get(8)?,
            version: r.get(9)?,
        })
    })
}

pub(super) fn put_agent(c: &Connection, a: &AgentRecord) -> Result<(), StoreError> {
    let selectors: Vec<String> = a.selectors.iter().map(ToString::to_string).collect();
    let selectors = serde_json::to_string(&selectors).map_err(|e| corrupt("selectors", e))?;
    c.execute(
        "INSERT OR REPLACE INTO agents (id, attestor, selectors, serial, not_after, next_serial,
         next_not_after, banned, can_reattest, version)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
        params![
            a.id.as_str(),
            a.attestor,
            selectors,
            a.serial,
            a.not_after.secs(),
            a.next_serial,
            a.next_not_after.map(UnixTime::secs),
            a.banned,
            a.can_reattest,
            a.version
        ],
    )?;
    Ok(())
}

pub(super) fn policies(c: &Connection) -> Result<Vec<PolicyRecord>, StoreError> {
    let sql = "SELECT kind, namespace, name, yaml FROM policies ORDER BY kind, namespace, name";
    collect(c, sql, |r| {
        Ok(PolicyRecord { kind: r.get(0)?, namespace: r.get(1)?, name: r.get(2)?, yaml: r.get(3)? })
    })
}

pub(super) fn authorities(c: &Connection) -> Result<Vec<AuthorityRecord>, StoreError> {
    let sql = "SELECT kind, status, key_id, chain, public_key, sealed_key, published_at, not_after
               FROM authorities ORDER BY kind, published_at";
    collect(c, sql, |r| {
        let (kind, status): (String, String) = (r.get(0)?, r.get(1)?);
        let chain: Vec<Vec<u8>> = serde_json::from_str(&r.get::<_, String>(3)?)
            .map_err(|e| corrupt("authority chain", e))?;
        Ok(AuthorityRecord {
            kind: AuthorityKind::parse(&kind).ok_or_else(|| corrupt("authority kind", &kind))?,
            status: AuthorityStatus::parse(&status)
                .ok_or_else(|| corrupt("authority status", &status))?,
            key_id: r.get(2)?,
            chain,
            public_key: r.get(4)?,
            sealed_key: r.get(5)?,
            published_at: UnixTime::from_secs(r.get(6)?),
            not_after: UnixTime::from_secs(r.get(7)?),
        })
    })
}

pub(super) fn insert_authority(c: &Connection, a: &AuthorityRecord) -> Result<(), StoreError> {
    let chain = serde_json::to_string(&a.chain).map_err(|e| corrupt("authority chain", e))?;
    c.execute(
        "INSERT INTO authorities (kind, status, key_id, chain, public_key, sealed_key,
         published_at, not_after) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        params![
            a.kind.as_str(),
            a.status.as_str(),
            a.key_id,
            chain,
            a.public_key,
            a.sealed_key,
            a.published_at.secs(),
            a.not_after.secs()
        ],
    )?;
    Ok(())
}

pub(super) fn journal(
    c: &Connection,
    limit: u32,
    before: Option<u64>,
) -> Result<(Vec<JournalEntry>, bool), StoreError> {
    let mut statement = c.prepare_cached(
        "SELECT number, kind, spiffe_id, serial, issued_at, not_after, issued_to, hash
         FROM journal WHERE number < ?2 ORDER BY number DESC LIMIT ?1",
    )?;
    let mut rows = statement
        .query(params![limit, before.map_or(i64::MAX, |n| i64::try_from(n).unwrap_or(i64::MAX))])?;
    let mut out: Vec<(JournalEntry, Vec<u8>)> = Vec::new();
    while let Some(r) = rows.next()? {
        let entry = JournalEntry {
            number: u64::try_from(r.get::<_, i64>(0)?).unwrap_or(0),
            kind: r.get(1)?,
            spiffe_id: r.get(2)?,
            serial: r.get(3)?,
            issued_at: UnixTime::from_secs(r.get(4)?),
            not_after: UnixTime::from_secs(r.get(5)?),
            issued_to: r.get(6)?,
        };
        out.push((entry, r.get(7)?));
    }
    // Each record's predecessor is the next one returned; the last needs one more look.
    let before_oldest: Vec<u8> = match out.last() {
        Some((oldest, _)) => c
            .query_row(
                "SELECT hash FROM journal WHERE number < ?1 ORDER BY number DESC LIMIT 1",
                [i64::try_from(oldest.number).unwrap_or(i64::MAX)],
                |r| r.get(0),
            )
            .optional()?
            .unwrap_or_default(),
        None => Vec::new(),
    };
    let mut intact = true;
    for (i, (entry, hash)) in out.iter().enumerate() {
        let previous = out.get(i + 1).map_or(&before_oldest, |(_, h)| h);
        intact &= chain_hash(previous, entry).as_slice() == hash.as_slice();
    }
    Ok((out.into_iter().map(|(e, _)| e).collect(), intact))
}
