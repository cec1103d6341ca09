//! The agent's memory on disk, sealed to the node.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use countersign_identity::{PrivateKeyDer, SpiffeId, UnixTime, X509Svid};
use countersign_keys::{SealKey, read_bounded, write_atomic};
use countersign_wire::convert::{
    decode_bundle, decode_entry, decode_policies, encode_bundle, encode_entry, encode_policies,
};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::state::{Held, State};

const PURPOSE: &str = "countersign-agent-cache-1";
const MAX_CACHE: u64 = 256 << 20;

#[derive(Serialize, Deserialize)]
struct StoredSvid {
    id: String,
    chain: Vec<Vec<u8>>,
    key: Vec<u8>,
    hint: String,
    not_before: i64,
    not_after: i64,
    revision: i64,
    root: [u8; 32],
}

#[derive(Serialize, Deserialize)]
struct Stored {
    server: String,
    own: StoredSvid,
    bundle: Vec<u8>,
    entries: Vec<Vec<u8>>,
    svids: Vec<(String, StoredSvid)>,
    #[serde(default)]
    policies: Vec<u8>,
}

/// What was read back.
pub(crate) struct Restored {
    pub(crate) server: String,
    pub(crate) own: Held,
    pub(crate) state: State,
    /// The server has said that this agent is not attested any more.
    pub(crate) evicted: bool,
}

pub(crate) struct Cache {
    path: PathBuf,
    seal: SealKey,
}

fn store(held: &Held) -> StoredSvid {
    StoredSvid {
        id: held.svid.id.to_string(),
        chain: held.svid.chain.clone(),
        key: held.svid.key.expose_pkcs8().to_vec(),
        hint: held.svid.hint.clone(),
        not_before: held.not_before.secs(),
        not_after: held.not_after.secs(),
        revision: held.revision,
        root: held.root,
    }
}

impl StoredSvid {
    fn restore(self) -> Option<Held> {
        let svid = X509Svid {
            id: SpiffeId::parse(&self.id).ok()?,
            chain: self.chain,
            key: PrivateKeyDer::new(self.key),
            hint: self.hint,
        };
        Some(Held::new(
            svid,
            UnixTime::from_secs(self.not_before),
            UnixTime::from_secs(self.not_after),
            self.revision,
            self.root,
        ))
    }
}

impl Cache {
    pub(crate) fn new(dir: &Path, seal: SealKey) -> Self {
        Self { path: dir.join("agent.cache"), seal }
    }

    /// What was saved; `None` if there is nothing, or it was sealed on another node or damaged.
    pub(crate) fn load(&self) -> Option<Restored> {
        let sealed = read_bounded(&self.path, MAX_CACHE).ok()?;
        let plain = match self.seal.open(PURPOSE, &sealed) {
            Ok(plain) => plain,
            Err(e) => {
                tracing::warn!("cache is not used: {e}");
                return None;
            }
        };
        let stored: Stored = serde_json::from_slice(&plain).ok()?;
        let mut state = State::new(decode_bundle(&stored.bundle)?);
        for entry in stored.entries {
            let entry = decode_entry(&entry)?;
            state.entries.insert(entry.id.clone(), Arc::new(entry));
        }
        for (id, svid) in stored.svids {
            state.svids.insert(id, Arc::new(svid.restore()?));
        }
        state.policies = Arc::new(decode_policies(&stored.policies)?);
        state.ready = true;
        Some(Restored {
            server: stored.server,
            own: stored.own.restore()?,
            state,
            evicted: self.evicted_marker().exists(),
        })
    }

    pub(crate) fn save(&self, server: &str, own: &Held, state: &State) -> Result<(), String> {
        let stored = Stored {
            server: server.to_owned(),
            own: store(own),
            bundle: encode_bundle(&state.bundle),
            entries: state.entries.values().map(|e| encode_entry(e)).collect(),
            svids: state.svids.iter().map(|(id, held)| (id.clone(), store(held))).collect(),
            policies: encode_policies(&state.policies),
        };
        let plain = Zeroizing::new(serde_json::to_vec(&stored).map_err(|e| e.to_string())?);
        let sealed = self.seal.seal(PURPOSE, &plain).map_err(|e| e.to_string())?;
        write_atomic(&self.path, &sealed, 0o600).map_err(|e| e.to_string())
    }

    fn evicted_marker(&self) -> PathBuf {
        self.path.with_extension("evicted")
    }

    /// Notes that the server no longer knows this agent: the next start takes a join string.
    pub(crate) fn mark_evicted(&self, evicted: bool) {
        if evicted {
            let _ = std::fs::write(self.evicted_marker(), "");
        } else {
            let _ = std::fs::remove_file(self.evicted_marker());
        }
    }

    /// Forgets everything: the agent was banned.
    pub(crate) fn erase(&self) {
        let _ = std::fs::remove_file(&self.path);
    }
}
