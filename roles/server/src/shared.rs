//! What the services share.

use std::collections::BTreeMap;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use countersign_identity::{TrustDomain, UnixTime};
use countersign_store::{PolicyRecord, Store};
use countersign_telemetry::{MemoryWatch, Metrics};
use tokio::sync::{Semaphore, watch};

use crate::authority::AuthorityManager;
use crate::clocks::Clocks;
use crate::registry::Registry;

pub(crate) struct Shared {
    pub(crate) trust_domain: TrustDomain,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) registry: Registry,
    pub(crate) authority: AuthorityManager,
    pub(crate) policies: Policies,
    pub(crate) x509_ttl: Duration,
    pub(crate) jwt_ttl: Duration,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) address: String,
    pub(crate) started_at: UnixTime,
    /// Attestations under way; each costs signatures and a write.
    pub(crate) attesting: Semaphore,
    pub(crate) clocks: Arc<Clocks>,
    pub(crate) memory: MemoryWatch,
}

/// Policies as applied, with the generation that counts changes.
pub(crate) struct Policies {
    documents: RwLock<BTreeMap<(String, String, String), PolicyRecord>>,
    generation: watch::Sender<u64>,
    /// Held from reading the store's state to changing memory's, so that the two never diverge.
    pub(crate) changing: tokio::sync::Mutex<()>,
}

impl Policies {
    pub(crate) fn new(records: Vec<PolicyRecord>) -> Self {
        let documents = records
            .into_iter()
            .map(|p| ((p.kind.clone(), p.namespace.clone(), p.name.clone()), p))
            .collect();
        // Starting from the clock keeps generations rising over restarts without storing them.
        let start = u64::try_from(countersign_tls::current_time().secs()).unwrap_or(1) << 16;
        Self {
            documents: RwLock::new(documents),
            generation: watch::Sender::new(start),
            changing: tokio::sync::Mutex::new(()),
        }
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    pub(crate) fn generation(&self) -> u64 {
        *self.generation.borrow()
    }

    pub(crate) fn list(&self) -> Vec<PolicyRecord> {
        let documents = self.documents.read().unwrap_or_else(|e| e.into_inner());
        documents.values().cloned().collect()
    }

    pub(crate) fn get(&self, kind: &str, namespace: &str, name: &str) -> Option<PolicyRecord> {
        let documents = self.documents.read().unwrap_or_else(|e| e.into_inner());
        documents.get(&(kind.to_owned(), namespace.to_owned(), name.to_owned())).cloned()
    }

    pub(crate) fn put(&self, records: Vec<PolicyRecord>) {
        let mut documents = self.documents.write().unwrap_or_else(|e| e.into_inner());
        for p in records {
            documents.insert((p.kind.clone(), p.namespace.clone(), p.name.clone()), p);
        }
        drop(documents);
        self.generation.send_modify(|g| *g += 1);
    }

    pub(crate) fn remove(&self, kind: &str, namespace: &str, name: &str) {
        let mut documents = self.documents.write().unwrap_or_else(|e| e.into_inner());
        documents.remove(&(kind.to_owned(), namespace.to_owned(), name.to_owned()));
        drop(documents);
        self.generation.send_modify(|g| *g += 1);
    }
}
