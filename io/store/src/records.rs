//! What is stored.

use countersign_identity::{Entry, SelectorSet, SpiffeId, UnixTime};
use countersign_x509::sha256;

/// Everything the server keeps in memory.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// Registration entries.
    pub entries: Vec<Entry>,
    /// Attested agents.
    pub agents: Vec<AgentRecord>,
    /// Policies.
    pub policies: Vec<PolicyRecord>,
    /// Authorities.
    pub authorities: Vec<AuthorityRecord>,
    /// The bundle's sequence number.
    pub bundle_sequence: u64,
}

/// An attested agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentRecord {
    /// Its identity.
    pub id: SpiffeId,
    /// How it proved itself.
    pub attestor: String,
    /// What that established.
    pub selectors: SelectorSet,
    /// Serial of the certificate in use.
    pub serial: String,
    /// When that certificate ends.
    pub not_after: UnixTime,
    /// Serial of a renewed certificate that has not been used yet.
    pub next_serial: Option<String>,
    /// When the renewed certificate ends.
    pub next_not_after: Option<UnixTime>,
    /// Refused until evicted.
    pub banned: bool,
    /// Whether it may attest again by the same means.
    pub can_reattest: bool,
    /// Version it reported.
    pub version: String,
}

/// A one-time admission for an agent.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// SHA-256 of the token; the token itself is never stored.
    pub sha256: [u8; 32],
    /// When it ends.
    pub expires_at: UnixTime,
    /// An additional identity for the node.
    pub alias: Option<SpiffeId>,
}

impl std::fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "JoinToken(until {})", self.expires_at)
    }
}

/// A policy document as it was applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyRecord {
    /// `AuthorizationPolicy`, `PeerAuthentication`, …
    pub kind: String,
    /// Namespace.
    pub namespace: String,
    /// Name, unique within kind and namespace.
    pub name: String,
    /// The document.
    pub yaml: String,
}

/// Which authority.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum AuthorityKind {
    /// Self-signed, in the bundle.
    Root,
    /// Between root and signing CA.
    Intermediate,
    /// Signs leaves.
    Signing,
    /// Signs JWT-SVIDs.
    Jwt,
}

impl AuthorityKind {
    /// Lower-case name.
    pub const fn as_str(self) -> &'static str {
        match self {
            AuthorityKind::Root => "root",
            AuthorityKind::Intermediate => "intermediate",
            AuthorityKind::Signing => "signing",
            AuthorityKind::Jwt => "jwt",
        }
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        [Self::Root, Self::Intermediate, Self::Signing, Self::Jwt]
            .into_iter()
            .find(|k| k.as_str() == text)
    }
}

/// Where an authority is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AuthorityStatus {
    /// Published, not used yet.
    Prepared,
    /// Signs.
    Active,
    /// Signs no more; what it signed is still trusted.
    Old,
}

impl AuthorityStatus {
    /// Lower-case name.
    pub const fn as_str(self) -> &'static str {
        match self {
            AuthorityStatus::Prepared => "prepared",
            AuthorityStatus::Active => "active",
            AuthorityStatus::Old => "old",
        }
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        [Self::Prepared, Self::Active, Self::Old].into_iter().find(|k| k.as_str() == text)
    }
}

/// One authority with its key, the key sealed.
#[derive(Clone, PartialEq, Eq)]
pub struct AuthorityRecord {
    /// Which tier.
    pub kind: AuthorityKind,
    /// Where in its life.
    pub status: AuthorityStatus,
    /// Its own certificate first, then those above it without the root; empty for JWT keys.
    pub chain: Vec<Vec<u8>>,
    /// SubjectPublicKeyInfo.
    pub public_key: Vec<u8>,
    /// Key id of a JWT key; the certificate's fingerprint otherwise.
    pub key_id: String,
    /// PKCS#8 sealed to the data directory; empty when the key is not kept here.
    pub sealed_key: Vec<u8>,
    /// When it was published.
    pub published_at: UnixTime,
    /// When it ends.
    pub not_after: UnixTime,
}

impl std::fmt::Debug for AuthorityRecord {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AuthorityRecord({:?} {:?} {})", self.kind, self.status, self.key_id)
    }
}

/// Something issued.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JournalRecord {
    /// `x509`, `jwt`, `agent`, `ca`.
    pub kind: &'static str,
    /// For whom.
    pub spiffe_id: SpiffeId,
    /// Certificate serial, or the token's hash.
    pub serial: String,
    /// When.
    pub issued_at: UnixTime,
    /// Until when.
    pub not_after: UnixTime,
    /// At whose request: an agent's ID, `admin`, `server`.
    pub issued_to: String,
}

/// A record with its place in the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JournalEntry {
    /// Position, from 1.
    pub number: u64,
    /// The record's kind.
    pub kind: String,
    /// For whom.
    pub spiffe_id: String,
    /// Certificate serial, or the token's hash.
    pub serial: String,
    /// When.
    pub issued_at: UnixTime,
    /// Until when.
    pub not_after: UnixTime,
    /// At whose request.
    pub issued_to: String,
}

/// The hash that chains a record to its predecessor: any later change to the history shows.
pub(crate) fn chain_hash(previous: &[u8], entry: &JournalEntry) -> [u8; 32] {
    let mut bytes = previous.to_vec();
    for text in [&entry.kind, &entry.spiffe_id, &entry.serial, &entry.issued_to] {
        bytes.extend_from_slice(&(text.len() as u64).to_be_bytes());
        bytes.extend_from_slice(text.as_bytes());
    }
    for n in [entry.issued_at.secs(), entry.not_after.secs()] {
        bytes.extend_from_slice(&n.to_be_bytes());
    }
    sha256(&bytes)
}
