//! SQLite: one file, one thread that owns it, one transaction for whatever issuance queued meanwhile.

mod rows;
mod schema;

use std::path::Path;
use std::sync::mpsc;

use async_trait::async_trait;
use countersign_identity::{Entry, SpiffeId, TrustDomain, UnixTime};
use rusqlite::{Connection, OptionalExtension, Transaction, params};
use tokio::sync::oneshot;

use crate::records::chain_hash;
use crate::{
    AgentRecord, AuthorityRecord, JoinToken, JournalEntry, JournalRecord, PolicyRecord, Snapshot,
    Store, StoreError,
};

type Reply<T> = oneshot::Sender<Result<T, StoreError>>;

enum Job {
    Journal(Vec<JournalRecord>, Reply<()>),
    Other(Box<dyn FnOnce(&mut Connection) + Send>),
}

/// Journal batches that are written in one transaction at most.
const MAX_GROUP: usize = 256;
/// Jobs that may wait; beyond it callers wait too.
const QUEUE: usize = 1024;

/// The embedded store.
pub struct SqliteStore {
    jobs: mpsc::SyncSender<Job>,
}

impl SqliteStore {
    /// Opens or creates the database of `trust_domain` at `path` (mode 0600), brings its schema up to
    /// date, and starts the thread that owns it.
    pub fn open(path: &Path, trust_domain: &TrustDomain) -> Result<Self, StoreError> {
        schema::create_private(path)?;
        let mut connection = Connection::open(path)?;
        schema::prepare(&mut connection, path, trust_domain)?;
        let (jobs, queue) = mpsc::sync_channel(QUEUE);
        std::thread::Builder::new()
            .name("store".into())
            .spawn(move || run(connection, &queue))
            .map_err(|e| StoreError::Failed(e.to_string()))?;
        Ok(Self { jobs })
    }

    async fn send(&self, job: Job) -> Result<(), StoreError> {
        match self.jobs.try_send(job) {
            Ok(()) => Ok(()),
            Err(mpsc::TrySendError::Disconnected(_)) => Err(StoreError::Closed),
            Err(mpsc::TrySendError::Full(job)) => {
                let jobs = self.jobs.clone();
                tokio::task::spawn_blocking(move || jobs.send(job).map_err(|_| StoreError::Closed))
                    .await
                    .map_err(|_| StoreError::Closed)?
            }
        }
    }

    /// Runs `work` in one transaction on the store's thread.
    async fn transact<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        self.send(Job::Other(Box::new(move |connection| {
            let result = connection.transaction().map_err(StoreError::from).and_then(|tx| {
                let out = work(&tx)?;
                tx.commit()?;
                Ok(out)
            });
            let _ = reply.send(result);
        })))
        .await?;
        answer.await.map_err(|_| StoreError::Closed)?
    }
}

fn run(mut connection: Connection, queue: &mpsc::Receiver<Job>) {
    let mut carried = None;
    while let Some(job) = carried.take().or_else(|| queue.recv().ok()) {
        match job {
            Job::Other(work) => work(&mut connection),
            Job::Journal(records, reply) => {
                let mut group = vec![(records, reply)];
                while group.len() < MAX_GROUP {
                    match queue.try_recv() {
                        Ok(Job::Journal(records, reply)) => group.push((records, reply)),
                        Ok(other) => {
                            carried = Some(other);
                            break;
                        }
                        Err(_) => break,
                    }
                }
                let result = append(&mut connection, group.iter().flat_map(|(r, _)| r));
                for (_, reply) in group {
                    let _ = reply.send(result.clone());
                }
            }
        }
    }
}

fn append<'a>(
    connection: &mut Connection,
    records: impl Iterator<Item = &'a JournalRecord>,
) -> Result<(), StoreError> {
    let tx = connection.transaction()?;
    {
        let mut previous: Vec<u8> = tx
            .query_row("SELECT hash FROM journal ORDER BY number DESC LIMIT 1", [], |r| r.get(0))
            .optional()?
            .unwrap_or_default();
        let mut insert = tx.prepare_cached(
            "INSERT INTO journal (kind, spiffe_id, serial, issued_at, not_after, issued_to, hash)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        )?;
        for r in records {
            let entry = JournalEntry {
                number: 0,
                kind: r.kind.to_owned(),
                spiffe_id: r.spiffe_id.to_string(),
                serial: r.serial.clone(),
                issued_at: r.issued_at,
                not_after: r.not_after,
                issued_to: r.issued_to.clone(),
            };
            let hash = chain_hash(&previous, &entry);
            insert.execute(params![
                entry.kind,
                entry.spiffe_id,
                entry.serial,
                entry.issued_at.secs(),
                entry.not_after.secs(),
                entry.issued_to,
                hash.as_slice()
            ])?;
            previous = hash.to_vec();
        }
    }
    tx.commit()?;
    Ok(())
}

#[async_trait]
impl Store for SqliteStore {
    async fn load(&self) -> Result<Snapshot, StoreError> {
        self.transact(|tx| {
            Ok(Snapshot {
                entries: rows::entries(tx)?,
                agents: rows::agents(tx)?,
                policies: rows::policies(tx)?,
                authorities: rows::authorities(tx)?,
                bundle_sequence: schema::meta(tx, "bundle_sequence")?
                    .and_then(|s| s.parse().ok())
                    .unwrap_or(0),
            })
        })
        .await
    }

    async fn create_entries(&self, entries: Vec<Entry>) -> Result<(), StoreError> {
        self.transact(move |tx| entries.iter().try_for_each(|e| rows::insert_entry(tx, e))).await
    }

    async fn update_entry(&self, entry: Entry) -> Result<(), StoreError> {
        self.transact(move |tx| {
            if tx.execute("DELETE FROM entries WHERE id = ?1", [&entry.id])? == 0 {
                return Err(StoreError::NotFound(format!("entry `{}`", entry.id)));
            }
            rows::insert_entry(tx, &entry)
        })
        .await
    }

    async fn delete_entries(&self, ids: Vec<String>) -> Result<Vec<String>, StoreError> {
        self.transact(move |tx| {
            let mut delete = tx.prepare_cached("DELETE FROM entries WHERE id = ?1")?;
            let mut gone = Vec::new();
            for id in ids {
                if delete.execute([&id])? > 0 {
                    gone.push(id);
                }
            }
            Ok(gone)
        })
        .await
    }

    async fn create_join_token(&self, token: JoinToken) -> Result<(), StoreError> {
        self.transact(move |tx| {
            tx.execute(
                "INSERT INTO join_tokens (sha256, expires_at, alias) VALUES (?1, ?2, ?3)",
                params![
                    token.sha256.as_slice(),
                    token.expires_at.secs(),
                    token.alias.map(|a| a.to_string())
                ],
            )?;
            Ok(())
        })
        .await
    }

    async fn consume_join_token(&self, sha256: [u8; 32]) -> Result<Option<JoinToken>, StoreError> {
        self.transact(move |tx| {
            let row: Option<(i64, Option<String>)> = tx
                .query_row(
                    "DELETE FROM join_tokens WHERE sha256 = ?1 RETURNING expires_at, alias",
                    [sha256.as_slice()],
                    |r| Ok((r.get(0)?, r.get(1)?)),
                )
                .optional()?;
            row.map(|(expires_at, alias)| {
                Ok(JoinToken {
                    sha256,
                    expires_at: UnixTime::from_secs(expires_at),
                    alias: alias.as_deref().map(rows::spiffe_id).transpose()?,
                })
            })
            .transpose()
        })
        .await
    }

    async fn prune_join_tokens(&self, now: UnixTime) -> Result<usize, StoreError> {
        self.transact(move |tx| {
            Ok(tx.execute("DELETE FROM join_tokens WHERE expires_at <= ?1", [now.secs()])?)
        })
        .await
    }

    async fn put_agent(&self, agent: AgentRecord) -> Result<(), StoreError> {
        self.transact(move |tx| rows::put_agent(tx, &agent)).await
    }

    async fn delete_agent(&self, id: SpiffeId) -> Result<bool, StoreError> {
        self.transact(move |tx| {
            Ok(tx.execute("DELETE FROM agents WHERE id = ?1", [id.as_str()])? > 0)
        })
        .await
    }

    async fn put_policies(&self, policies: Vec<PolicyRecord>) -> Result<(), StoreError> {
        self.transact(move |tx| {
            for p in &policies {
                tx.execute(
                    "INSERT OR REPLACE INTO policies (kind, namespace, name, yaml)
                     VALUES (?1, ?2, ?3, ?4)",
                    params![p.kind, p.namespace, p.name, p.yaml],
                )?;
            }
            Ok(())
        })
        .await
    }

    async fn delete_policy(
        &self,
        kind: String,
        namespace: String,
        name: String,
    ) -> Result<bool, StoreError> {
        self.transact(move |tx| {
            Ok(tx.execute(
                "DELETE FROM policies WHERE kind = ?1 AND namespace = ?2 AND name = ?3",
                params![kind, namespace, name],
            )? > 0)
        })
        .await
    }

    async fn put_authorities(
        &self,
        authorities: Vec<AuthorityRecord>,
        bundle_sequence: u64,
    ) -> Result<(), StoreError> {
        self.transact(move |tx| {
            tx.execute("DELETE FROM authorities", [])?;
            for a in &authorities {
                rows::insert_authority(tx, a)?;
            }
            schema::set_meta(tx, "bundle_sequence", &bundle_sequence.to_string())
        })
        .await
    }

    async fn append_journal(&self, records: Vec<JournalRecord>) -> Result<(), StoreError> {
        let (reply, answer) = oneshot::channel();
        self.send(Job::Journal(records, reply)).await?;
        answer.await.map_err(|_| StoreError::Closed)?
    }

    async fn journal(
        &self,
        limit: u32,
        before: Option<u64>,
    ) -> Result<(Vec<JournalEntry>, bool), StoreError> {
        self.transact(move |tx| rows::journal(tx, limit, before)).await
    }

    async fn journal_len(&self) -> Result<u64, StoreError> {
        self.transact(|tx| {
            let n: i64 =
                tx.query_row("SELECT COALESCE(MAX(number), 0) FROM journal", [], |r| r.get(0))?;
            Ok(u64::try_from(n).unwrap_or(0))
        })
        .await
    }
}
