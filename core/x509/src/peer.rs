//! The witness that a chain was verified.

use std::fmt;

use countersign_identity::{SpiffeId, UnixTime};

use crate::{CertInfo, hex};

/// Which end of a connection the verified peer is; decides the extended key usage it needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PeerRole {
    /// The peer dialled us.
    Client,
    /// We dialled the peer.
    Server,
}

/// A peer whose chain has been verified: the only way to get one is
/// [`TrustStore::verify`](crate::TrustStore::verify). Policy takes nothing less.
#[derive(Clone, PartialEq, Eq)]
pub struct PeerIdentity {
    id: SpiffeId,
    role: PeerRole,
    not_before: UnixTime,
    not_after: UnixTime,
    leaf: CertInfo,
    authority_sha256: [u8; 32],
}

impl PeerIdentity {
    /// The witness' only constructor; called at the end of a successful verification.
    pub(crate) fn verified(
        id: SpiffeId,
        role: PeerRole,
        validity: (UnixTime, UnixTime),
        leaf: CertInfo,
        authority_sha256: [u8; 32],
    ) -> Self {
        Self { id, role, not_before: validity.0, not_after: validity.1, leaf, authority_sha256 }
    }

    /// The proven SPIFFE ID.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// Which end the peer is.
    pub fn role(&self) -> PeerRole {
        self.role
    }

    /// When the whole chain became valid: the latest `notBefore` on the path.
    pub fn not_before(&self) -> UnixTime {
        self.not_before
    }

    /// When the proof ends: the earliest `notAfter` on the path, root included. Nothing that rests on
    /// this identity may live longer.
    pub fn not_after(&self) -> UnixTime {
        self.not_after
    }

    /// The leaf's facts.
    pub fn leaf(&self) -> &CertInfo {
        &self.leaf
    }

    /// SHA-256 of the root that the chain ends at.
    pub fn authority_sha256(&self) -> &[u8; 32] {
        &self.authority_sha256
    }

    /// Whether the proof holds at `now`.
    pub fn is_valid_at(&self, now: UnixTime) -> bool {
        self.not_before <= now && now <= self.not_after
    }
}

impl fmt::Debug for PeerIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "PeerIdentity({}, serial {}, until {}, root {})",
            self.id,
            self.leaf.serial,
            self.not_after,
            &hex(&self.authority_sha256)[..12]
        )
    }
}
