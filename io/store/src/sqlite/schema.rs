//! Schema and migrations. A migration is never edited once released; new ones are appended.

use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use countersign_identity::TrustDomain;
use rusqlite::{Connection, OptionalExtension, params};

use crate::StoreError;

const MIGRATIONS: &[&str] =
    &["CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
     CREATE TABLE entries (
        id TEXT PRIMARY KEY, spiffe_id TEXT NOT NULL, parent_id TEXT NOT NULL,
        x509_svid_ttl INTEGER, jwt_svid_ttl INTEGER, admin INTEGER NOT NULL,
        downstream INTEGER NOT NULL, expires_at INTEGER, hint TEXT NOT NULL,
        store_svid INTEGER NOT NULL, revision INTEGER NOT NULL, created_at INTEGER NOT NULL,
        lists TEXT NOT NULL) STRICT;
     CREATE TABLE join_tokens (
        sha256 BLOB PRIMARY KEY, expires_at INTEGER NOT NULL, alias TEXT) STRICT;
     CREATE TABLE agents (
        id TEXT PRIMARY KEY, attestor TEXT NOT NULL, selectors TEXT NOT NULL,
        serial TEXT NOT NULL, not_after INTEGER NOT NULL, next_serial TEXT,
        next_not_after INTEGER, banned INTEGER NOT NULL, can_reattest INTEGER NOT NULL,
        version TEXT NOT NULL) STRICT;
     CREATE TABLE policies (
        kind TEXT NOT NULL, namespace TEXT NOT NULL, name TEXT NOT NULL, yaml TEXT NOT NULL,
        PRIMARY KEY (kind, namespace, name)) STRICT;
     CREATE TABLE authorities (
        kind TEXT NOT NULL, status TEXT NOT NULL, key_id TEXT NOT NULL, chain TEXT NOT NULL,
        public_key BLOB NOT NULL, sealed_key BLOB NOT NULL, published_at INTEGER NOT NULL,
        not_after INTEGER NOT NULL, PRIMARY KEY (kind, key_id)) STRICT;
     CREATE TABLE journal (
        number INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, spiffe_id TEXT NOT NULL,
        serial TEXT NOT NULL, issued_at INTEGER NOT NULL, not_after INTEGER NOT NULL,
        issued_to TEXT NOT NULL, hash BLOB NOT NULL) STRICT;
     CREATE INDEX journal_serial ON journal (serial);
     CREATE INDEX journal_spiffe_id ON journal (spiffe_id, not_after);
     CREATE TRIGGER journal_no_update BEFORE UPDATE ON journal
        BEGIN SELECT RAISE(ABORT, 'the journal is append-only'); END;
     CREATE TRIGGER journal_no_delete BEFORE DELETE ON journal
        BEGIN SELECT RAISE(ABORT, 'the journal is append-only'); END;"];

/// Creates the file with mode 0600 before SQLite would with the umask's.
pub(super) fn create_private(path: &Path) -> Result<(), StoreError> {
    std::fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(path)
        .map(drop)
        .map_err(|e| StoreError::Failed(format!("cannot open `{}`: {e}", path.display())))
}

pub(super) fn prepare(
    connection: &mut Connection,
    path: &Path,
    trust_domain: &TrustDomain,
) -> Result<(), StoreError> {
    let shown = path.display().to_string();
    let known = i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX);
    let found: i64 = connection.query_row("PRAGMA user_version", [], |r| r.get(0))?;
    if found > known {
        return Err(StoreError::SchemaTooNew { path: shown, found, known });
    }
    // FULL: what the journal says was issued must survive a power cut.
    connection.execute_batch(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON;
         PRAGMA busy_timeout = 5000;",
    )?;
    let tx = connection.transaction()?;
    for (i, sql) in MIGRATIONS.iter().enumerate().skip(usize::try_from(found).unwrap_or(0)) {
        tx.execute_batch(sql)?;
        tx.execute_batch(&format!("PRAGMA user_version = {}", i + 1))?;
    }
    match meta(&tx, "trust_domain")? {
        None => set_meta(&tx, "trust_domain", trust_domain.as_str())?,
        Some(there) if there == trust_domain.as_str() => {}
        Some(presented) => {
            return Err(StoreError::OtherTrustDomain {
                path: shown,
                expected: trust_domain.to_string(),
                presented,
            });
        }
    }
    tx.commit()?;
    Ok(())
}

pub(super) fn meta(connection: &Connection, key: &str) -> Result<Option<String>, StoreError> {
    Ok(connection
        .query_row("SELECT value FROM meta WHERE key = ?1", [key], |r| r.get(0))
        .optional()?)
}

pub(super) fn set_meta(connection: &Connection, key: &str, value: &str) -> Result<(), StoreError> {
    connection
        .execute("INSERT OR REPLACE INTO meta (key, value) VALUES (?1, ?2)", params![key, value])?;
    Ok(())
}
