//! The loop that keeps the agent's knowledge fresh: entries, bundle, SVIDs, policies, its own SVID.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, Instant};

use countersign_findings::{Code, Finding};
use countersign_identity::Entry;
use countersign_lifecycle::Backoff;
use countersign_telemetry::{Metrics, Outcome};
use countersign_tls::{current_time, current_time_ms};
use countersign_wire::proto::countersign::server::v1::Generations;
use countersign_wire::rpc::{Code as GrpcCode, Status, Streaming};
use countersign_wire::status::{Reason, denied_reason, to_finding};
use tokio::sync::watch;

use crate::cache::Cache;
use crate::server::{ServerApi, accept_svid, new_key};
use crate::state::{Held, State};

/// Poll this often when the server announces changes: only a safety net then.
const POLL_WITH_WATCH: Duration = Duration::from_secs(60);
/// Poll this often otherwise (SPIRE's own interval).
const POLL: Duration = Duration::from_secs(5);
/// How long one stream of announcements is followed.
const WATCH_ANEW: Duration = Duration::from_secs(300);
/// SVIDs asked for in one call.
const BATCH: usize = 250;

/// Certificates begin this much before they are issued, so a clock that is off by more breaks fresh ones.
const CLOCK_OFF_MS: u64 = countersign_x509::profile::BACKDATE_SECS * 1000;

/// What others may see of the loop.
#[derive(Default)]
pub(crate) struct Progress {
    pub(crate) reachable: AtomicBool,
    pub(crate) last_sync: AtomicI64,
    pub(crate) last_error: Mutex<String>,
    /// The server's clock minus ours, milliseconds, as far as it has told.
    pub(crate) server_ahead: Mutex<Option<i64>>,
}

impl Progress {
    fn failed(&self, e: &Finding) {
        self.reachable.store(false, Ordering::Relaxed);
        *self.last_error.lock().unwrap_or_else(|e| e.into_inner()) =
            format!("[{}] {}", e.code, e.message);
    }

    /// The server has told its time, unless it is 0.
    fn clock(&self, theirs: i64, ours: i64) {
        if theirs <= 0 {
            return;
        }
        let ahead = theirs.saturating_sub(ours);
        let mut known = self.server_ahead.lock().unwrap_or_else(|e| e.into_inner());
        let is_off = |ahead: i64| ahead.unsigned_abs() > CLOCK_OFF_MS;
        if is_off(ahead) && !known.is_some_and(is_off) {
            tracing::warn!(
                code = %Code::ClockSkew,
                "the server's clock is {:.1} s ahead of this host's",
                ahead as f64 / 1000.0
            );
        }
        *known = Some(ahead);
    }

    fn succeeded(&self) {
        self.reachable.store(true, Ordering::Relaxed);
        self.last_sync.store(current_time().secs(), Ordering::Relaxed);
        self.last_error.lock().unwrap_or_else(|e| e.into_inner()).clear();
    }
}

pub(crate) struct Sync {
    pub(crate) server: String,
    pub(crate) own: Held,
    pub(crate) api: Arc<Mutex<ServerApi>>,
    pub(crate) cache: Cache,
    pub(crate) state: watch::Sender<Arc<State>>,
    pub(crate) own_shown: watch::Sender<(String, i64)>,
    pub(crate) progress: Arc<Progress>,
    pub(crate) metrics: Arc<Metrics>,
}

/// Why the loop gave up for good.
pub(crate) enum Ended {
    /// Asked to.
    Stopped,
    /// The server banned this agent: everything is forgotten.
    Banned,
}

impl Sync {
    fn current(&self) -> Arc<State> {
        Arc::clone(&self.state.borrow())
    }

    fn server_api(&self) -> ServerApi {
        self.api.lock().unwrap_or_else(|e| e.into_inner()).clone()
    }

    /// Runs until stopped or banned.
    pub(crate) async fn run(mut self, mut stopped: watch::Receiver<bool>) -> Ended {
        let mut backoff = Backoff::new(Duration::from_secs(30));
        let mut changes: Option<Streaming<Generations>> = None;
        let mut announced = true;
        let mut watching_since = Instant::now();
        loop {
            // A new stream tells the server this host's time anew.
            if watching_since.elapsed() > WATCH_ANEW {
                changes = None;
            }
            if changes.is_none() {
                watching_since = Instant::now();
            }
            if let Err(status) = self.round(&mut changes, &mut announced).await {
                if denied_reason(&status) == Some(Reason::AgentBanned) {
                    self.cache.erase();
                    let mut state = (*self.current()).clone();
                    state.entries.clear();
                    state.svids.clear();
                    self.state.send_replace(Arc::new(state));
                    return Ended::Banned;
                }
                if matches!(
                    denied_reason(&status),
                    Some(Reason::AgentNotAttested | Reason::AgentNotActive | Reason::AgentExpired)
                ) {
                    self.cache.mark_evicted(true);
                }
                let finding = to_finding(&status, Code::ServerUnreachable);
                tracing::warn!(code = %finding.code, "sync failed: {}", finding.message);
                self.progress.failed(&finding);
                self.drop_ended();
                changes = None;
                let pause = backoff.pause(u32::from_be_bytes(countersign_keys::random()));
                tokio::select! {
                    _ = stopped.wait_for(|s| *s) => return Ended::Stopped,
                    () = tokio::time::sleep(pause) => continue,
                }
            }
            backoff.reset();
            self.cache.mark_evicted(false);
            self.progress.succeeded();
            let next = self.next_due();
            let poll = if changes.is_some() { POLL_WITH_WATCH } else { POLL };
            let wait = next.min(poll);
            announced = tokio::select! {
                _ = stopped.wait_for(|s| *s) => return Ended::Stopped,
                () = tokio::time::sleep(wait) => wait == poll,
                message = next_change(&mut changes) => {
                    match message {
                        Ok(Some(told)) => {
                            self.progress.clock(told.time_ms, current_time_ms());
                        }
                        _ => changes = None,
                    }
                    true
                }
            };
        }
    }

    /// One exchange with the server. With `announced` entries and bundle are read again.
    async fn round(
        &mut self,
        changes: &mut Option<Streaming<Generations>>,
        announced: &mut bool,
    ) -> Result<(), Status> {
        // Trouble with issuing must not keep revocations, policies and bundles from arriving.
        let renewed = self.renew_own().await;
        if let Err(e) = &renewed
            && (self.own.not_after <= current_time() || denied_reason(e).is_some())
        {
            return renewed;
        }
        let api = self.server_api();
        if changes.is_none() {
            match api.watch().await {
                Ok(stream) => {
                    *changes = Some(stream);
                    *announced = true;
                    if let Err(e) = api.post_status().await {
                        tracing::debug!("status was not taken: {}", e.message());
                    }
                }
                Err(e) if e.code() == GrpcCode::Unimplemented => {}
                Err(e) => return Err(e),
            }
        }
        let mut state = (*self.current()).clone();
        if *announced {
            let bundle = api.bundle().await.map_err(|e| Status::unavailable(e.message))?;
            if bundle != *state.bundle {
                state.bundle = Arc::new(bundle);
                self.rekey(&state)?;
            }
            state.entries = api.entries(&state.entries).await?;
            state.svids.retain(|id, _| state.entries.contains_key(id));
            match api.policies().await {
                Ok(set) => {
                    if set.generation != state.policies.generation {
                        state.policies = Arc::new(set);
                    }
                }
                Err(e) if e.code() == GrpcCode::Unimplemented => {}
                Err(e) => return Err(e),
            }
        }
        let issued = self.issue(&api, &mut state).await;
        state.ready = true;
        self.publish(state);
        renewed.and(issued)
    }

    /// A new channel for the current certificate and bundle.
    fn rekey(&self, state: &State) -> Result<(), Status> {
        let api = ServerApi::new(&self.server, &self.own, &state.bundle)
            .map_err(|e| Status::internal(e.message))?;
        *self.api.lock().unwrap_or_else(|e| e.into_inner()) = api;
        Ok(())
    }

    async fn renew_own(&mut self) -> Result<(), Status> {
        let now = current_time();
        let state = self.current();
        if now < self.own.renew_at && !is_tainted(&state, &self.own) {
            return Ok(());
        }
        let (key, csr) = new_key().map_err(|e| Status::internal(e.message))?;
        let result = self.server_api().renew(csr).await;
        let svid = match result {
            Ok(svid) => svid,
            Err(e) => {
                self.metrics.rotated("agent", Outcome::Failure);
                return Err(e);
            }
        };
        let fresh = accept_svid(&svid, &key, &state.bundle, 0, now)
            .map_err(|e| Status::internal(e.message))?;
        // Saved before it is used: first use retires the old one, and a restart must find the new.
        if let Err(e) = self.cache.save(&self.server, &fresh, &state)
            && self.own.not_after.since(now) > Duration::from_secs(600)
        {
            return Err(Status::internal(format!("cache cannot be written: {e}")));
        }
        self.own = fresh;
        self.metrics.rotated("agent", Outcome::Success);
        self.rekey(&state)?;
        self.own_shown.send_replace((self.own.svid.id.to_string(), self.own.not_after.secs()));
        Ok(())
    }

    /// Gets SVIDs for entries that have none, an outdated one, one due for renewal, or one below a
    /// root that is on its way out.
    async fn issue(&self, api: &ServerApi, state: &mut State) -> Result<(), Status> {
        let now = current_time();
        let due: Vec<Arc<Entry>> = state
            .entries
            .values()
            // A node's lasting name: no process has a selector of that type.
            .filter(|e| !e.selectors.iter().any(|s| s.kind() == "spiffe_id"))
            .filter(|e| {
                state.svids.get(&e.id).is_none_or(|held| {
                    held.revision != e.revision
                        || held.svid.id != e.spiffe_id
                        || now >= held.renew_at
                        || is_tainted(state, held)
                })
            })
            .cloned()
            .collect();
        for batch in due.chunks(BATCH) {
            let mut keys = HashMap::new();
            let mut wanted = Vec::with_capacity(batch.len());
            for entry in batch {
                let (key, csr) = new_key().map_err(|e| Status::internal(e.message))?;
                keys.insert(entry.id.clone(), key);
                wanted.push((entry.id.clone(), csr));
            }
            let answers = match api.new_svids(wanted).await {
                Ok(answers) => answers,
                Err(e) => {
                    self.metrics.rotated("workload", Outcome::Failure);
                    return Err(e);
                }
            };
            for (entry, answer) in batch.iter().zip(answers) {
                let Some(key) = keys.get(&entry.id) else { continue };
                let held =
                    answer.map_err(|e| Finding::new(Code::NoIdentityIssued, e)).and_then(|svid| {
                        accept_svid(&svid, key, &state.bundle, entry.revision, current_time())
                    });
                match held {
                    Ok(held) if held.svid.id == entry.spiffe_id => {
                        self.metrics.rotated("workload", Outcome::Success);
                        self.metrics.own_certificate(held.svid.id.as_str(), held.not_after.secs());
                        state.svids.insert(entry.id.clone(), Arc::new(held));
                    }
                    Ok(held) => {
                        tracing::error!(entry = entry.id, "the server sent `{}`", held.svid.id);
                    }
                    Err(e) => {
                        self.metrics.rotated("workload", Outcome::Failure);
                        tracing::warn!(entry = entry.id, code = %e.code, "no SVID: {}", e.message);
                    }
                }
            }
        }
        Ok(())
    }

    fn publish(&self, state: State) {
        let before = self.current();
        for held in before.svids.values() {
            if !state.svids.values().any(|h| h.svid.id == held.svid.id) {
                self.metrics.forget_certificate(held.svid.id.as_str());
            }
        }
        let now = current_time();
        let remaining = state
            .svids
            .values()
            .map(|h| {
                let life = h.not_after.since(h.not_before).as_secs_f64().max(1.0);
                h.not_after.since(now).as_secs_f64() / life
            })
            .fold(1.0, f64::min);
        self.metrics.lifetime_remaining(remaining);
        let same = before.ready
            && before.entries == state.entries
            && before.bundle == state.bundle
            && before.policies.generation == state.policies.generation
            && before.svids.len() == state.svids.len()
            && before
                .svids
                .iter()
                .all(|(id, h)| state.svids.get(id).is_some_and(|n| Arc::ptr_eq(h, n)));
        if !same {
            self.save(&state);
            self.state.send_replace(Arc::new(state));
        }
    }

    fn save(&self, state: &State) {
        if let Err(e) = self.cache.save(&self.server, &self.own, state) {
            tracing::error!(code = %Code::StorageFailed, "cache cannot be written: {e}");
        }
    }

    /// Wakes streams when an SVID ended while the server is away, so that nobody keeps a dead one.
    fn drop_ended(&self) {
        let now = current_time();
        let state = self.current();
        if state.svids.values().any(|h| h.not_after <= now) {
            let mut state = (*state).clone();
            state.svids.retain(|_, h| h.not_after > now);
            self.state.send_replace(Arc::new(state));
        }
    }

    /// Time to the next renewal.
    fn next_due(&self) -> Duration {
        let now = current_time();
        let state = self.current();
        state
            .svids
            .values()
            .map(|h| h.renew_at)
            .chain([self.own.renew_at])
            .min()
            .map_or(POLL, |t| t.since(now))
            .max(Duration::from_millis(500))
    }
}

/// Whether an SVID's root is tainted or no longer in the bundle.
fn is_tainted(state: &State, held: &Held) -> bool {
    !state
        .bundle
        .x509_authorities
        .iter()
        .any(|a| !a.tainted && countersign_x509::sha256(&a.der) == held.root)
}

async fn next_change(
    changes: &mut Option<Streaming<Generations>>,
) -> Result<Option<Generations>, Status> {
    match changes {
        Some(stream) => stream.message().await,
        None => std::future::pending().await,
    }
}
