//! Entries and agents in memory. Reads never touch the store; writes go through it first.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, RwLock};

use countersign_findings::{Code, Finding};
use countersign_identity::{Entry, SpiffeId, TrustDomain, UnixTime};
use countersign_store::{AgentRecord, Snapshot, Store};
use tokio::sync::{Mutex, watch};

/// Most entries a server holds.
const MAX_ENTRIES: usize = 1_000_000;

#[derive(Default)]
struct Tables {
    entries: BTreeMap<String, Arc<Entry>>,
    by_parent: HashMap<SpiffeId, BTreeSet<String>>,
    agents: HashMap<SpiffeId, AgentRecord>,
}

pub(crate) struct Registry {
    trust_domain: TrustDomain,
    store: Arc<dyn Store>,
    tables: RwLock<Tables>,
    writing: Mutex<()>,
    version: watch::Sender<u64>,
}

impl Tables {
    fn insert(&mut self, entry: Entry) {
        self.remove(&entry.id.clone());
        self.by_parent.entry(entry.parent_id.clone()).or_default().insert(entry.id.clone());
        self.entries.insert(entry.id.clone(), Arc::new(entry));
    }

    fn remove(&mut self, id: &str) {
        if let Some(old) = self.entries.remove(id)
            && let Some(siblings) = self.by_parent.get_mut(&old.parent_id)
        {
            siblings.remove(id);
            if siblings.is_empty() {
                self.by_parent.remove(&old.parent_id);
            }
        }
    }
}

impl Registry {
    pub(crate) fn load(
        trust_domain: TrustDomain,
        store: Arc<dyn Store>,
        snapshot: Snapshot,
    ) -> Self {
        let mut tables = Tables::default();
        for entry in snapshot.entries {
            tables.insert(entry);
        }
        for agent in snapshot.agents {
            tables.agents.insert(agent.id.clone(), agent);
        }
        Self {
            trust_domain,
            store,
            tables: RwLock::new(tables),
            writing: Mutex::new(()),
            version: watch::Sender::new(1),
        }
    }

    fn read<T>(&self, f: impl FnOnce(&Tables) -> T) -> T {
        f(&self.tables.read().unwrap_or_else(|e| e.into_inner()))
    }

    fn write<T>(&self, f: impl FnOnce(&mut Tables) -> T) -> T {
        let out = f(&mut self.tables.write().unwrap_or_else(|e| e.into_inner()));
        self.version.send_modify(|v| *v += 1);
        out
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    pub(crate) fn entry(&self, id: &str) -> Option<Arc<Entry>> {
        self.read(|t| t.entries.get(id).cloned())
    }

    /// Entries with an id after `after`, in order of id.
    pub(crate) fn entries_after(&self, after: &str) -> Vec<Arc<Entry>> {
        use std::ops::Bound::{Excluded, Unbounded};
        self.read(|t| {
            t.entries
                .range::<str, _>((Excluded(after), Unbounded))
                .map(|(_, e)| Arc::clone(e))
                .collect()
        })
    }

    pub(crate) fn counts(&self) -> (usize, usize) {
        self.read(|t| (t.entries.len(), t.agents.len()))
    }

    pub(crate) fn agent(&self, id: &SpiffeId) -> Option<AgentRecord> {
        self.read(|t| t.agents.get(id).cloned())
    }

    pub(crate) fn agents(&self) -> Vec<AgentRecord> {
        let mut all: Vec<AgentRecord> = self.read(|t| t.agents.values().cloned().collect());
        all.sort_by(|a, b| a.id.cmp(&b.id));
        all
    }

    /// Whether some entry makes this identity an administrator.
    pub(crate) fn is_admin(&self, id: &SpiffeId, now: UnixTime) -> bool {
        self.read(|t| {
            t.entries.values().any(|e| e.admin && e.spiffe_id == *id && !e.is_expired_at(now))
        })
    }

    /// The entries an agent may hand out: those below its own ID, below its aliases (node entries whose
    /// selectors it satisfies), and below any of those in turn.
    pub(crate) fn authorized(&self, agent: &AgentRecord, now: UnixTime) -> Vec<Arc<Entry>> {
        let Ok(server) = SpiffeId::from_path(&self.trust_domain, "/spire/server") else {
            return Vec::new();
        };
        self.read(|t| {
            let mut parents = vec![agent.id.clone()];
            for id in t.by_parent.get(&server).into_iter().flatten() {
                if let Some(alias) = t.entries.get(id)
                    && !alias.is_expired_at(now)
                    && alias.selectors.is_subset_of(&agent.selectors)
                {
                    parents.push(alias.spiffe_id.clone());
                }
            }
            let mut seen: HashSet<SpiffeId> = parents.iter().cloned().collect();
            let mut out = BTreeMap::new();
            while let Some(parent) = parents.pop() {
                for id in t.by_parent.get(&parent).into_iter().flatten() {
                    let Some(entry) = t.entries.get(id).filter(|e| !e.is_expired_at(now)) else {
                        continue;
                    };
                    out.insert(id.clone(), Arc::clone(entry));
                    if seen.insert(entry.spiffe_id.clone()) {
                        parents.push(entry.spiffe_id.clone());
                    }
                }
            }
            out.into_values().collect()
        })
    }

    /// Adds one entry. A similar entry is not an error of the caller's: it is returned, untouched.
    pub(crate) async fn create(
        &self,
        mut entry: Entry,
        now: UnixTime,
    ) -> Result<Result<Arc<Entry>, Arc<Entry>>, Finding> {
        entry
            .check(&self.trust_domain)
            .map_err(|e| Finding::new(Code::EntryInvalid, e.to_string()))?;
        let _one_at_a_time = self.writing.lock().await;
        if let Some(there) = self.read(|t| {
            t.by_parent
                .get(&entry.parent_id)
                .into_iter()
                .flatten()
                .filter_map(|id| t.entries.get(id))
                .find(|e| e.is_similar_to(&entry))
                .cloned()
        }) {
            return Ok(Err(there));
        }
        if self.read(|t| t.entries.len()) >= MAX_ENTRIES {
            return Err(Finding::new(Code::ServiceOverloaded, "the registry is full"));
        }
        if entry.id.is_empty() {
            entry.id = countersign_keys::random_hex::<16>();
        } else if entry.id.len() > 255
            || !entry.id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b))
        {
            return Err(Finding::new(
                Code::EntryInvalid,
                "entry id may hold only letters, digits, `-`, `.` and `_`, at most 255",
            ));
        } else if let Some(there) = self.entry(&entry.id) {
            return Ok(Err(there));
        }
        // An id that is used again never repeats a revision, so that nothing cached passes for current.
        entry.revision = now.secs();
        entry.created_at = now;
        self.store.create_entries(vec![entry.clone()]).await.map_err(|e| e.finding())?;
        self.write(|t| t.insert(entry.clone()));
        Ok(Ok(Arc::new(entry)))
    }

    /// Replaces an entry with `change` of it.
    pub(crate) async fn update(
        &self,
        id: &str,
        change: impl FnOnce(&Entry) -> Result<Entry, Finding>,
    ) -> Result<Arc<Entry>, Finding> {
        let _one_at_a_time = self.writing.lock().await;
        let before = self.entry(id).ok_or_else(|| {
            Finding::new(Code::EntryNotFound, format!("entry `{id}` does not exist"))
        })?;
        let mut after = change(&before)?;
        after
            .check(&self.trust_domain)
            .map_err(|e| Finding::new(Code::EntryInvalid, e.to_string()))?;
        after.id.clone_from(&before.id);
        after.created_at = before.created_at;
        after.revision = before.revision + 1;
        self.store.update_entry(after.clone()).await.map_err(|e| e.finding())?;
        self.write(|t| t.insert(after.clone()));
        Ok(Arc::new(after))
    }

    /// Removes entries; the ids that were there.
    pub(crate) async fn delete(&self, ids: Vec<String>) -> Result<Vec<String>, Finding> {
        let _one_at_a_time = self.writing.lock().await;
        let gone = self.store.delete_entries(ids).await.map_err(|e| e.finding())?;
        if !gone.is_empty() {
            self.write(|t| gone.iter().for_each(|id| t.remove(id)));
        }
        Ok(gone)
    }

    /// Removes entries that ended.
    pub(crate) async fn prune(&self, now: UnixTime) -> Result<(), Finding> {
        let ended: Vec<String> = self.read(|t| {
            t.entries.values().filter(|e| e.is_expired_at(now)).map(|e| e.id.clone()).collect()
        });
        if !ended.is_empty() {
            self.delete(ended).await?;
        }
        Ok(())
    }

    /// Adds an agent, or replaces it whole: only for attestation.
    pub(crate) async fn put_agent(&self, agent: AgentRecord) -> Result<(), Finding> {
        let _one_at_a_time = self.writing.lock().await;
        self.store.put_agent(agent.clone()).await.map_err(|e| e.finding())?;
        self.replace_agent(agent);
        Ok(())
    }

    /// Changes an agent as it is now, not as a caller saw it earlier: a ban that came between must
    /// stay. `None` if it is not there (any more).
    pub(crate) async fn change_agent(
        &self,
        id: &SpiffeId,
        change: impl FnOnce(AgentRecord) -> AgentRecord,
    ) -> Result<Option<AgentRecord>, Finding> {
        let _one_at_a_time = self.writing.lock().await;
        let Some(before) = self.agent(id) else { return Ok(None) };
        let after = change(before.clone());
        if after != before {
            self.store.put_agent(after.clone()).await.map_err(|e| e.finding())?;
            self.replace_agent(after.clone());
        }
        Ok(Some(after))
    }

    /// Only a change of what an agent may do concerns others; renewals do not wake them.
    fn replace_agent(&self, agent: AgentRecord) {
        let matters = self
            .agent(&agent.id)
            .is_none_or(|old| old.banned != agent.banned || old.selectors != agent.selectors);
        let mut tables = self.tables.write().unwrap_or_else(|e| e.into_inner());
        tables.agents.insert(agent.id.clone(), agent);
        drop(tables);
        if matters {
            self.version.send_modify(|v| *v += 1);
        }
    }

    pub(crate) async fn delete_agent(&self, id: &SpiffeId) -> Result<bool, Finding> {
        let _one_at_a_time = self.writing.lock().await;
        let there = self.store.delete_agent(id.clone()).await.map_err(|e| e.finding())?;
        self.write(|t| t.agents.remove(id));
        Ok(there)
    }
}
