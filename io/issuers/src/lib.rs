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
use countersign_keys::random;
use countersign_policy::{Cidr, KeyLocation, KeySource, PublishedKeys};
use countersign_telemetry::{Metrics, Outcome};
use countersign_tls::WebClient;
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
    wanted: watch::Sender<Vec<KeySource>>,
    slots: Mutex<HashMap<KeyLocation, Arc<Slot>>>,
    metrics: Arc<Metrics>,
}

/// One place.
#[derive(Debug)]
struct Slot {
    timeout: Duration,
    /// Somebody has a token that the present keys do not fit.
    demand: Notify,
    /// When it was last tried.
    tried: watch::Sender<Option<Instant>>,
}

impl Issuers {
    /// Connects to nobody yet.
    pub fn new(options: &IssuerOptions, metrics: Arc<Metrics>) -> Result<Self, Finding> {
        let web = WebClient::new(&options.roots).map_err(|e| {
            Finding::new(Code::InvalidValue, format!("roots for token issuers: {e}"))
        })?;
        Ok(Self {
            fetcher: Fetcher {
                web,
                addresses: options.addresses.clone(),
                plaintext: options.plaintext,
            },
            published: ArcSwap::default(),
            wanted: watch::Sender::new(Vec::new()),
            slots: Mutex::default(),
            metrics,
        })
    }

    /// The keys of now.
    pub fn published(&self) -> Arc<PublishedKeys> {
        self.published.load_full()
    }

    /// Puts the trust bundles in place with whose keys JWT-SVIDs are verified.
    pub fn set_bundles(&self, bundles: BundleSet) {
        self.publish(|p| p.set_bundles(bundles.clone()));
    }

    /// From now on these places are kept fresh, and no others.
    pub fn want(&self, sources: Vec<KeySource>) {
        self.wanted.send_if_modified(|old| {
            let new = *old != sources;
            *old = sources;
            new
        });
    }

    /// Fetches the keys of one place again, unless that was tried a moment ago, and waits for what comes of it.
    pub async fn renew(&self, location: &KeyLocation) {
        let Some(slot) = self.slots().get(location).cloned() else { return };
        let mut tried = slot.tried.subscribe();
        if tried.borrow_and_update().is_some_and(|t| t.elapsed() < PAUSE) {
            return;
        }
        slot.demand.notify_one();
        let _ = tokio::time::timeout(slot.timeout, tried.changed()).await;
    }

    /// Fetches for as long as it is polled.
    pub async fn run(self: Arc<Self>) {
        let mut wanted = self.wanted.subscribe();
        let mut tasks = JoinSet::new();
        let mut running: HashMap<KeyLocation, (KeySource, AbortHandle)> = HashMap::new();
        loop {
            let mut sources = wanted.borrow_and_update().clone();
            if sources.len() > MAX_SOURCES {
                tracing::error!(
                    code = %Code::IssuerKeysUnavailable,
                    "policies name {} places of issuers' keys; only {MAX_SOURCES} are fetched", sources.len()
                );
                sources.truncate(MAX_SOURCES);
            }
            running.retain(|location, (source, task)| {
                let keep = sources.contains(source);
                if !keep {
                    task.abort();
                    self.slots().remove(location);
                    self.publish(|p| p.remove(location));
                }
                keep
            });
            for source in sources {
                if running.contains_key(&source.location) {
                    continue;
                }
                let slot = Arc::new(Slot {
                    timeout: source.timeout,
                    demand: Notify::new(),
                    tried: watch::Sender::new(None),
                });
                self.slots().insert(source.location.clone(), Arc::clone(&slot));
                let task = tasks.spawn(Arc::clone(&self).keep_fresh(source.clone(), slot));
                running.insert(source.location.clone(), (source, task));
            }
            tokio::select! {
                changed = wanted.changed() => if changed.is_err() { return },
                Some(_) = tasks.join_next() => {}
            }
        }
    }

    async fn keep_fresh(self: Arc<Self>, source: KeySource, slot: Arc<Slot>) {
        let location = &source.location;
        let mut fetched: Option<Instant> = None;
        let mut failures = 0;
        loop {
            let wait = match self.fetcher.fetch(&source).await {
                Ok((keys, fresh)) => {
                    tracing::info!(issuer = source.issuer, "keys were fetched from {location}");
                    let keys = Arc::new(keys);
                    self.publish(|p| p.insert(location.clone(), Ok(Arc::clone(&keys))));
                    self.metrics.keys_fetched(Outcome::Success);
                    fetched = Some(Instant::now());
                    failures = 0;
                    fresh.unwrap_or(FRESH).clamp(FRESH_BOUNDS.0, FRESH_BOUNDS.1)
                }
                Err(why) => {
                    self.metrics.keys_fetched(Outcome::Failure);
                    let kept = fetched.is_some_and(|t| t.elapsed() < KEEP);
                    tracing::warn!(
                        code = %Code::IssuerKeysUnavailable,
                        issuer = source.issuer,
                        "keys cannot be fetched from {location}: {why}{}",
                        if kept { "; the last ones stay in use" } else { "" }
                    );
                    if !kept {
                        self.publish(|p| p.insert(location.clone(), Err(why.clone())));
                    }
                    failures += 1;
                    PAUSE * 2_u32.pow(u32::min(failures, 4))
                }
            };
            slot.tried.send_replace(Some(Instant::now()));
            // Proxies that started together need not ask together.
            let jitter = u32::from(random::<1>()[0]) % 64;
            let wait = wait - wait / 512 * jitter;
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = async { tokio::time::sleep(PAUSE).await; slot.demand.notified().await } => {}
            }
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
