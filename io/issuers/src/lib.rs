//! Keys that token issuers publish. Each place is fetched once and again before it grows old; while an issuer
//! cannot be reached its last keys count for a while, then its tokens are refused. Nothing that a request
//! holds decides where to connect, and no request can make it happen often.

mod address;
mod fetch;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use countersign_findings::{Code, Finding};
use countersign_identity::BundleSet;
use countersign_jose::KeySet;
use countersign_keys::random;
use countersign_policy::{Cidr, KeyLocation, KeySource, PublishedKeys};
use countersign_telemetry::{Metrics, Outcome};
use tokio::sync::{Notify, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;

use fetch::Fetcher;

/// Which issuers may be asked, and whom to believe.
#[derive(Clone, Debug, Default)]
pub struct IssuerOptions {
    /// Roots (DER) for issuers' servers; what this host trusts if there are none.
    pub roots: Vec<Vec<u8>>,
    /// Blocks that may be asked although they are loopback, link-local or the like.
    pub addresses: Vec<Cidr>,
    /// Whether `http:` will do. Whoever is on the way can then replace the keys.
    pub plaintext: bool,
}

/// Places that keys are fetched from, at most. Documents with more leave the rest without keys.
pub const MAX_SOURCES: usize = 64;

/// Keys are fetched again after this long, unless their server says otherwise, within bounds.
const FRESH: Duration = Duration::from_secs(300);
const FRESH_BOUNDS: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(3600));

/// The last keys of an issuer that cannot be reached count for this long after they were fetched.
const KEEP: Duration = Duration::from_secs(2 * 3600);

/// Between two attempts, whoever asks.
const PAUSE: Duration = Duration::from_secs(5);

/// Keeps the keys of the issuers that policies name.
#[derive(Debug)]
pub struct Issuers {
    fetcher: Fetcher,
    published: ArcSwap<PublishedKeys>,
    slots: Mutex<HashMap<KeyLocation, Arc<Slot>>>,
    changed: watch::Sender<()>,
    metrics: Arc<Metrics>,
}

/// One place.
#[derive(Debug)]
struct Slot {
    /// For the log.
    issuer: String,
    location: KeyLocation,
    timeout: watch::Sender<Duration>,
    /// Somebody has a token that the present keys do not fit.
    demand: Notify,
    /// When it was last tried, and how many times that changed the keys.
    tried: watch::Sender<(Option<Instant>, u64)>,
}

impl Issuers {
    /// Connects to nobody yet.
    pub fn new(options: &IssuerOptions, metrics: Arc<Metrics>) -> Result<Self, Finding> {
        Ok(Self {
            fetcher: Fetcher::new(options)?,
            published: ArcSwap::default(),
            slots: Mutex::default(),
            changed: watch::Sender::new(()),
            metrics,
        })
    }

    /// The keys of now.
    pub fn published(&self) -> Arc<PublishedKeys> {
        self.published.load_full()
    }

    /// Puts the trust bundles in place with whose keys JWT-SVIDs are verified.
    pub fn set_bundles(&self, bundles: Option<BundleSet>) {
        self.publish(|p| p.set_bundles(bundles.clone()));
    }

    /// From now on these places are kept fresh, and no others.
    pub fn want(&self, sources: Vec<KeySource>) {
        let mut slots = self.slots();
        slots.retain(|location, _| sources.iter().any(|s| s.location == *location));
        // Those that there was no room for are forgotten too.
        self.publish(|p| p.retain(|location| slots.contains_key(location)));
        self.add(&mut slots, sources);
    }

    /// From now on these places are kept fresh too.
    pub fn want_also(&self, sources: Vec<KeySource>) {
        self.add(&mut self.slots(), sources);
    }

    /// Those that are there already stay, whoever comes after them.
    fn add(&self, slots: &mut HashMap<KeyLocation, Arc<Slot>>, sources: Vec<KeySource>) {
        for KeySource { issuer, location, timeout } in sources {
            if let Some(slot) = slots.get(&location) {
                slot.timeout.send_replace(timeout);
                continue;
            }
            if slots.len() >= MAX_SOURCES {
                let why = format!("policies name more than {MAX_SOURCES} places of keys");
                tracing::error!(code = %Code::IssuerKeysUnavailable, issuer, "no keys from {location}: {why}");
                self.publish(|p| p.insert(location.clone(), Err(why.clone())));
                continue;
            }
            let slot = Slot {
                issuer,
                location: location.clone(),
                timeout: watch::Sender::new(timeout),
                demand: Notify::new(),
                tried: watch::Sender::new((None, 0)),
            };
            slots.insert(location, Arc::new(slot));
        }
        self.changed.send_replace(());
    }

    /// Fetches the keys of one place again, unless that was tried a moment ago, and waits for what comes of it:
    /// `true` if there are other keys now.
    pub async fn renew(&self, location: &KeyLocation) -> bool {
        let Some(slot) = self.slots().get(location).cloned() else { return false };
        let mut tried = slot.tried.subscribe();
        let (last, before) = *tried.borrow_and_update();
        if last.is_some_and(|t| t.elapsed() < PAUSE) {
            return false;
        }
        slot.demand.notify_one();
        let timeout = *slot.timeout.borrow();
        let _ = tokio::time::timeout(timeout, tried.changed()).await;
        tried.borrow().1 != before
    }

    /// Fetches for as long as it is polled.
    pub async fn run(self: Arc<Self>) {
        let mut changed = self.changed.subscribe();
        let mut tasks = JoinSet::new();
        let mut running: Vec<(Arc<Slot>, AbortHandle)> = Vec::new();
        loop {
            changed.borrow_and_update();
            let slots: Vec<Arc<Slot>> = self.slots().values().cloned().collect();
            let is = |slot: &Arc<Slot>| slots.iter().any(|s| Arc::ptr_eq(s, slot));
            running.retain(|(slot, task)| {
                let keep = is(slot);
                if !keep {
                    task.abort();
                }
                keep
            });
            for slot in &slots {
                if !running.iter().any(|(s, _)| Arc::ptr_eq(s, slot)) {
                    let task = tasks.spawn(Arc::clone(&self).keep_fresh(Arc::clone(slot)));
                    running.push((Arc::clone(slot), task));
                }
            }
            tokio::select! {
                changed = changed.changed() => if changed.is_err() { return },
                Some(_) = tasks.join_next() => {}
            }
        }
    }

    async fn keep_fresh(self: Arc<Self>, slot: Arc<Slot>) {
        let location = &slot.location;
        let mut fetched: Option<(Instant, Arc<KeySet>)> = None;
        let mut failures = 0;
        loop {
            let timeout = *slot.timeout.borrow();
            let (wait, news) = match self.fetcher.fetch(location, timeout).await {
                Ok((keys, fresh)) => {
                    let known = fetched.as_ref().is_some_and(|(_, k)| **k == keys);
                    let keys = Arc::new(keys);
                    if !known {
                        tracing::info!(issuer = slot.issuer, "keys were fetched from {location}");
                        self.tell(&slot, Ok(Arc::clone(&keys)));
                    }
                    self.metrics.keys_fetched(Outcome::Success);
                    fetched = Some((Instant::now(), keys));
                    failures = 0;
                    (fresh.unwrap_or(FRESH).clamp(FRESH_BOUNDS.0, FRESH_BOUNDS.1), !known)
                }
                Err(failed) => {
                    self.metrics.keys_fetched(Outcome::Failure);
                    // An issuer that says it has no keys is believed at once: it may have been robbed of them.
                    let kept = failed.is_away()
                        && fetched.as_ref().is_some_and(|(t, _)| t.elapsed() < KEEP);
                    tracing::warn!(
                        code = %Code::IssuerKeysUnavailable,
                        issuer = slot.issuer,
                        "keys cannot be fetched from {location}: {failed}{}",
                        if kept { "; the last ones stay in use" } else { "" }
                    );
                    if !kept {
                        fetched = None;
                        self.tell(&slot, Err(failed.to_string()));
                    }
                    failures += 1;
                    (PAUSE * 2_u32.pow(u32::min(failures, 4)), false)
                }
            };
            slot.tried.send_modify(|(at, changes)| {
                *at = Some(Instant::now());
                *changes += u64::from(news);
            });
            // Proxies that started together need not ask together.
            let jitter = u32::from(random::<1>()[0]) % 64;
            let wait = wait - wait / 512 * jitter;
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = async { tokio::time::sleep(PAUSE).await; slot.demand.notified().await } => {}
            }
        }
    }

    /// Publishes what came of a fetch, unless the place is not wanted any more.
    fn tell(&self, slot: &Arc<Slot>, keys: Result<Arc<KeySet>, String>) {
        let slots = self.slots();
        if slots.get(&slot.location).is_some_and(|s| Arc::ptr_eq(s, slot)) {
            self.publish(|p| p.insert(slot.location.clone(), keys.clone()));
        }
    }

    fn slots(&self) -> std::sync::MutexGuard<'_, HashMap<KeyLocation, Arc<Slot>>> {
        self.slots.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn publish(&self, change: impl Fn(&mut PublishedKeys)) {
        self.published.rcu(|old| {
            let mut new = PublishedKeys::clone(old);
            change(&mut new);
            new
        });
    }
}
