//! The registry (entries, agents, policies, authorities) and the journal of everything issued, behind
//! the [`Store`] trait. SQLite is the embedded implementation.

mod error;
mod records;
mod sqlite;

use async_trait::async_trait;
use countersign_identity::{Entry, SpiffeId, UnixTime};

pub use error::StoreError;
pub use records::{
    AgentRecord, AuthorityKind, AuthorityRecord, AuthorityStatus, JoinToken, JournalEntry,
    JournalRecord, PolicyRecord, Snapshot,
};
pub use sqlite::SqliteStore;

/// Where the server keeps what must survive it.
///
/// Every method is atomic: it happens whole or not at all, and when it returns the change is durable.
#[async_trait]
pub trait Store: Send + Sync {
    /// Everything but tokens and journal, for the server's memory.
    async fn load(&self) -> Result<Snapshot, StoreError>;

    /// Adds entries whose ids are new.
    async fn create_entries(&self, entries: Vec<Entry>) -> Result<(), StoreError>;
    /// Replaces one entry; fails with [`StoreError::NotFound`] if it is not there.
    async fn update_entry(&self, entry: Entry) -> Result<(), StoreError>;
    /// Removes entries; the ids that were there.
    async fn delete_entries(&self, ids: Vec<String>) -> Result<Vec<String>, StoreError>;

    /// Stores a join token under the SHA-256 of its text.
    async fn create_join_token(&self, token: JoinToken) -> Result<(), StoreError>;
    /// Removes the token and returns it, so that it admits one agent only; `None` if there is none.
    async fn consume_join_token(&self, sha256: [u8; 32]) -> Result<Option<JoinToken>, StoreError>;
    /// Removes tokens that ended before `now`.
    async fn prune_join_tokens(&self, now: UnixTime) -> Result<usize, StoreError>;

    /// Adds or replaces an agent.
    async fn put_agent(&self, agent: AgentRecord) -> Result<(), StoreError>;
    /// Removes an agent; whether it was there.
    async fn delete_agent(&self, id: SpiffeId) -> Result<bool, StoreError>;

    /// Adds or replaces policies, all or none.
    async fn put_policies(&self, policies: Vec<PolicyRecord>) -> Result<(), StoreError>;
    /// Removes a policy; whether it was there.
    async fn delete_policy(
        &self,
        kind: String,
        namespace: String,
        name: String,
    ) -> Result<bool, StoreError>;

    /// Replaces the whole set of authorities and raises the bundle's sequence number, in one step.
    async fn put_authorities(
        &self,
        authorities: Vec<AuthorityRecord>,
        bundle_sequence: u64,
    ) -> Result<(), StoreError>;

    /// Appends records to the journal. Nothing is issued before this has returned.
    async fn append_journal(&self, records: Vec<JournalRecord>) -> Result<(), StoreError>;
    /// The newest `limit` records, newest first, and whether their hash chain is intact.
    async fn journal(
        &self,
        limit: u32,
        before: Option<u64>,
    ) -> Result<(Vec<JournalEntry>, bool), StoreError>;
    /// How many records the journal has.
    async fn journal_len(&self) -> Result<u64, StoreError>;
}
