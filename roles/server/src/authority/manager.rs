//! Holds the authorities, signs with them, and rolls them over.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use countersign_findings::{Code, Finding};
use countersign_identity::{Bundle, JwtAuthority, TrustDomain, UnixTime, X509Authority};
use countersign_keys::{SealKey, Signer, read_private_key, write_atomic};
use countersign_lifecycle::{Action, AuthorityPolicy, AuthorityState, AuthorityTimeline};
use countersign_store::{AuthorityKind, AuthorityStatus, JournalRecord, Store};
use countersign_telemetry::{Metrics, Outcome};
use countersign_x509::pem;
use tokio::sync::{Mutex, watch};

use super::make::{Authority, make_ca, make_jwt_key};

/// A prepared root is not activated earlier than this: agents are told of a new bundle at once, and
/// those that were away for a moment must have had the chance to hear of it.
const MIN_PUBLISHED: Duration = Duration::from_secs(2);

/// Lives of what the server makes itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lives {
    pub(crate) root: Duration,
    pub(crate) intermediate: Duration,
    pub(crate) signing: Duration,
}

/// What is in force at one moment; replaced whole.
pub(crate) struct Current {
    all: Vec<Authority>,
    pub(crate) bundle: Arc<Bundle>,
}

impl Current {
    pub(super) fn find(&self, kind: AuthorityKind, status: AuthorityStatus) -> Option<&Authority> {
        self.all.iter().rfind(|a| a.record.kind == kind && a.record.status == status)
    }

    /// All authorities, for operators.
    pub(crate) fn list(&self) -> impl Iterator<Item = (&Authority, bool)> {
        self.all.iter().map(|a| (a, a.key.is_some()))
    }
}

pub(crate) struct AuthorityManager {
    trust_domain: TrustDomain,
    pub(super) store: Arc<dyn Store>,
    seal: SealKey,
    root_key_path: PathBuf,
    bundle_path: PathBuf,
    lives: Lives,
    current: ArcSwap<Current>,
    changing: Mutex<()>,
    bundle_changed: watch::Sender<u64>,
    pub(super) metrics: Arc<Metrics>,
}

impl AuthorityManager {
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn load(
        trust_domain: TrustDomain,
        store: Arc<dyn Store>,
        snapshot: &countersign_store::Snapshot,
        seal: SealKey,
        root_key_path: PathBuf,
        bundle_path: PathBuf,
        lives: Lives,
        metrics: Arc<Metrics>,
    ) -> Result<Self, Finding> {
        let mut all = Vec::new();
        for record in &snapshot.authorities {
            all.push(Authority::load(record.clone(), &seal)?);
        }
        if !all.iter().any(|a| a.record.kind == AuthorityKind::Root) {
            return Err(Finding::new(Code::NotInitialised, "the database holds no root"));
        }
        let bundle = bundle_of(&trust_domain, &all, snapshot.bundle_sequence);
        Ok(Self {
            trust_domain,
            store,
            seal,
            root_key_path,
            bundle_path,
            lives,
            bundle_changed: watch::Sender::new(snapshot.bundle_sequence),
            current: ArcSwap::from_pointee(Current { all, bundle: Arc::new(bundle) }),
            changing: Mutex::new(()),
            metrics,
        })
    }

    pub(crate) fn current(&self) -> Arc<Current> {
        self.current.load_full()
    }

    pub(crate) fn bundle(&self) -> Arc<Bundle> {
        Arc::clone(&self.current.load().bundle)
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.bundle_changed.subscribe()
    }

    /// Does whatever is due at `now`, one step at a time.
    pub(crate) async fn tick(&self, now: UnixTime) -> Result<(), Finding> {
        let _one_at_a_time = self.changing.lock().await;
        let mut first_error = None;
        let kinds = [
            (AuthorityKind::Root, self.lives.root),
            (AuthorityKind::Intermediate, self.lives.intermediate),
            (AuthorityKind::Signing, self.lives.signing),
            (AuthorityKind::Jwt, self.lives.signing),
        ];
        for (kind, ttl) in kinds {
            // Bounded: prepare, activate and prune each happen at most once in a row.
            for _ in 0..4 {
                let Some(action) = self.due(kind, ttl, now) else { break };
                match self.perform(kind, action, now).await {
                    Ok(()) => {}
                    Err(e) if e.code == Code::RootOffline => {
                        tracing::warn!(code = %e.code, "{} must be renewed: {}", kind.as_str(), e.message);
                        break;
                    }
                    // One tier's trouble must not stop the others.
                    Err(e) => {
                        first_error.get_or_insert(e);
                        break;
                    }
                }
            }
        }
        first_error.map_or(Ok(()), Err)
    }

    fn due(&self, kind: AuthorityKind, ttl: Duration, now: UnixTime) -> Option<Action> {
        let current = self.current.load();
        let state = |a: &Authority| AuthorityState {
            published_at: a.record.published_at,
            not_after: a.record.not_after,
        };
        let old = current
            .all
            .iter()
            .filter(|a| a.record.kind == kind && a.record.status == AuthorityStatus::Old);
        AuthorityTimeline::new(
            AuthorityPolicy::for_ttl(ttl),
            current.find(kind, AuthorityStatus::Active).map(state),
            current.find(kind, AuthorityStatus::Prepared).map(state),
            old.map(state).collect(),
        )
        .poll(now)
    }

    async fn perform(
        &self,
        kind: AuthorityKind,
        action: Action,
        now: UnixTime,
    ) -> Result<(), Finding> {
        let mut all = self.current.load().all.clone();
        match action {
            Action::Prepare => all.push(self.make(kind, now)?),
            // A root takes everything below it along.
            Action::Activate if kind == AuthorityKind::Root => {
                return self.activate_prepared_root(now).await;
            }
            Action::Activate => activate(&mut all, kind),
            Action::PruneEnded => all.retain(|a| {
                a.record.kind != kind
                    || a.record.status != AuthorityStatus::Old
                    || a.record.not_after > now
            }),
        }
        tracing::info!(authority = kind.as_str(), action = ?action, "authority rollover");
        self.metrics.rotated("authority", Outcome::Success);
        self.commit(all, now).await
    }

    fn make(&self, kind: AuthorityKind, now: UnixTime) -> Result<Authority, Finding> {
        let current = self.current.load();
        match kind {
            AuthorityKind::Jwt => make_jwt_key(self.lives.signing, &self.seal, now),
            AuthorityKind::Signing => {
                let issuer = current
                    .find(AuthorityKind::Intermediate, AuthorityStatus::Active)
                    .ok_or_else(|| Finding::new(Code::AuthorityExpiring, "no intermediate"))?;
                make_ca(
                    kind,
                    &self.trust_domain,
                    Some(issuer),
                    self.lives.signing,
                    Some(&self.seal),
                    now,
                )
            }
            AuthorityKind::Intermediate => {
                let root = self.root_with_key(AuthorityStatus::Active)?;
                make_ca(
                    kind,
                    &self.trust_domain,
                    Some(&root),
                    self.lives.intermediate,
                    Some(&self.seal),
                    now,
                )
            }
            AuthorityKind::Root => {
                self.settle_root_key()?;
                let root = make_ca(kind, &self.trust_domain, None, self.lives.root, None, now)?;
                let text = root
                    .key
                    .as_ref()
                    .map(|k| pem::encode("PRIVATE KEY", k.pkcs8().expose_pkcs8()))
                    .unwrap_or_default();
                // Kept beside the active root's until it is activated.
                write_atomic(&self.next_root_key_path(), text.as_bytes(), 0o600)
                    .map_err(|e| e.finding())?;
                Ok(root)
            }
        }
    }

    fn next_root_key_path(&self) -> PathBuf {
        self.root_key_path.with_file_name("root-next.key")
    }

    /// The root of `status` with its key from disk; an offline key is reported as such.
    fn root_with_key(&self, status: AuthorityStatus) -> Result<Authority, Finding> {
        let current = self.current.load();
        let mut root = current
            .find(AuthorityKind::Root, status)
            .cloned()
            .ok_or_else(|| Finding::new(Code::AuthorityExpiring, "there is no such root"))?;
        // Whichever file holds this root's key: a crash may have come between activation and the
        // renaming that follows it.
        let mut trouble = None;
        for path in [self.root_key_path.clone(), self.next_root_key_path()] {
            match read_private_key(&path) {
                Ok(key) if key.public_key_spki() == root.record.public_key => {
                    root.key = Some(Arc::new(key));
                    return Ok(root);
                }
                Ok(_) => {}
                Err(e) if e.is_not_found() => {}
                Err(e) => trouble = Some(e.finding()),
            }
        }
        Err(trouble.unwrap_or_else(|| {
            Finding::new(
                Code::RootOffline,
                format!("the root's key is not at `{}`", self.root_key_path.display()),
            )
        }))
    }

    /// Puts the active root's key where it belongs, if an activation was interrupted before it did.
    fn settle_root_key(&self) -> Result<(), Finding> {
        let current = self.current.load();
        let Some(active) = current.find(AuthorityKind::Root, AuthorityStatus::Active) else {
            return Ok(());
        };
        match read_private_key(&self.next_root_key_path()) {
            Ok(key) if key.public_key_spki() == active.record.public_key => {
                std::fs::rename(self.next_root_key_path(), &self.root_key_path).map_err(|e| {
                    Finding::new(
                        Code::StorageFailed,
                        format!("cannot put the root's key in place: {e}"),
                    )
                })
            }
            _ => Ok(()),
        }
    }

    /// Stores a new state, then makes it the current one. Nothing changes if storing fails.
    async fn commit(&self, all: Vec<Authority>, now: UnixTime) -> Result<(), Finding> {
        let before = self.bundle();
        let mut bundle = bundle_of(&self.trust_domain, &all, before.sequence);
        let changed = bundle != *before;
        if changed {
            bundle.sequence += 1;
        }
        let known = self.current.load();
        let new: Vec<JournalRecord> = all
            .iter()
            .filter(|a| !known.all.iter().any(|k| k.record.key_id == a.record.key_id))
            .map(|a| JournalRecord {
                kind: "ca",
                spiffe_id: self.trust_domain.id(),
                serial: a.info.as_ref().map_or(a.record.key_id.clone(), |i| i.serial.clone()),
                issued_at: now,
                not_after: a.record.not_after,
                issued_to: a.record.kind.as_str().to_owned(),
            })
            .collect();
        if !new.is_empty() {
            self.store.append_journal(new).await.map_err(|e| e.finding())?;
        }
        let records = all.iter().map(|a| a.record.clone()).collect();
        self.store.put_authorities(records, bundle.sequence).await.map_err(|e| e.finding())?;
        // Stored: from here on it is in force, whatever happens to the copy for people below.
        let sequence = bundle.sequence;
        let text: String =
            bundle.x509_authorities.iter().map(|a| pem::encode("CERTIFICATE", &a.der)).collect();
        self.current.store(Arc::new(Current { all, bundle: Arc::new(bundle) }));
        if changed {
            self.bundle_changed.send_replace(sequence);
            if let Err(e) = write_atomic(&self.bundle_path, text.as_bytes(), 0o644) {
                tracing::error!(code = %Code::StorageFailed, "{e}");
            }
        }
        Ok(())
    }

    /// Step one of a root rollover: a new root in the bundle, not signing yet.
    pub(crate) async fn prepare_root(&self, now: UnixTime) -> Result<(), Finding> {
        let _one_at_a_time = self.changing.lock().await;
        if self.current.load().find(AuthorityKind::Root, AuthorityStatus::Prepared).is_some() {
            return Err(Finding::new(Code::AlreadyInitialised, "a root is already prepared")
                .hint("activate it with `countersign ca root activate`"));
        }
        self.perform(AuthorityKind::Root, Action::Prepare, now).await
    }

    /// Step two: the prepared root signs a new intermediate, and that a new signing CA. The old root is
    /// tainted, so agents replace what hangs below it; it stays trusted until it is retired.
    pub(crate) async fn activate_root(&self, now: UnixTime) -> Result<(), Finding> {
        let _one_at_a_time = self.changing.lock().await;
        self.activate_prepared_root(now).await
    }

    async fn activate_prepared_root(&self, now: UnixTime) -> Result<(), Finding> {
        let root = self.root_with_key(AuthorityStatus::Prepared).map_err(|e| {
            if e.code == Code::AuthorityExpiring {
                Finding::new(Code::AuthorityExpiring, "no root is prepared")
                    .hint("run `countersign ca root prepare` first and let the bundle spread")
            } else {
                e
            }
        })?;
        let spread = AuthorityPolicy::for_ttl(self.lives.root).publish_for.min(MIN_PUBLISHED);
        if now.since(root.record.published_at) < spread {
            return Err(Finding::new(
                Code::AuthorityExpiring,
                format!(
                    "the root was published less than {} s ago; nodes may not know it yet",
                    spread.as_secs()
                ),
            )
            .hint("wait a moment, then activate again"));
        }
        let td = &self.trust_domain;
        let seal = Some(&self.seal);
        let intermediate = make_ca(
            AuthorityKind::Intermediate,
            td,
            Some(&root),
            self.lives.intermediate,
            seal,
            now,
        )?;
        let signing = make_ca(
            AuthorityKind::Signing,
            td,
            Some(&intermediate),
            self.lives.signing,
            seal,
            now,
        )?;
        let mut all = self.current.load().all.clone();
        // Anything prepared below the old root would carry on under it.
        all.retain(|a| {
            a.record.status != AuthorityStatus::Prepared
                || !matches!(a.record.kind, AuthorityKind::Intermediate | AuthorityKind::Signing)
        });
        all.push(intermediate);
        all.push(signing);
        for kind in [AuthorityKind::Root, AuthorityKind::Intermediate, AuthorityKind::Signing] {
            activate(&mut all, kind);
        }
        self.commit(all, now).await?;
        self.settle_root_key()
    }

    /// Step three: old roots leave the bundle, with everything below them.
    pub(crate) async fn retire_root(&self, now: UnixTime) -> Result<(), Finding> {
        let _one_at_a_time = self.changing.lock().await;
        let mut all = self.current.load().all.clone();
        let before = all.len();
        all.retain(|a| {
            a.record.status != AuthorityStatus::Old || matches!(a.record.kind, AuthorityKind::Jwt)
        });
        if all.len() == before {
            return Err(Finding::new(Code::EntryNotFound, "there is no old root")
                .hint("see `countersign ca show`"));
        }
        self.commit(all, now).await
    }

    /// A new signing CA at once.
    pub(crate) async fn rotate_signing(&self, now: UnixTime) -> Result<(), Finding> {
        let _one_at_a_time = self.changing.lock().await;
        let mut all = self.current.load().all.clone();
        all.push(self.make(AuthorityKind::Signing, now)?);
        activate(&mut all, AuthorityKind::Signing);
        self.metrics.rotated("authority", Outcome::Success);
        self.commit(all, now).await
    }
}

/// The newest prepared authority of `kind` becomes active, the active one old.
fn activate(all: &mut [Authority], kind: AuthorityKind) {
    let Some(next) = all
        .iter()
        .rposition(|a| a.record.kind == kind && a.record.status == AuthorityStatus::Prepared)
    else {
        return;
    };
    for a in all.iter_mut().filter(|a| a.record.kind == kind) {
        if a.record.status == AuthorityStatus::Active {
            a.record.status = AuthorityStatus::Old;
        }
    }
    all[next].record.status = AuthorityStatus::Active;
}

fn bundle_of(trust_domain: &TrustDomain, all: &[Authority], sequence: u64) -> Bundle {
    let mut bundle = Bundle::new(trust_domain.clone());
    bundle.sequence = sequence;
    bundle.refresh_hint = Some(Duration::from_secs(300));
    for a in all {
        let old = a.record.status == AuthorityStatus::Old;
        match a.record.kind {
            AuthorityKind::Root => bundle.x509_authorities.extend(
                a.record.chain.first().map(|der| X509Authority { der: der.clone(), tainted: old }),
            ),
            AuthorityKind::Jwt => bundle.jwt_authorities.push(JwtAuthority {
                key_id: a.record.key_id.clone(),
                public_key: a.record.public_key.clone(),
                expires_at: Some(a.record.not_after),
                tainted: false,
            }),
            AuthorityKind::Intermediate | AuthorityKind::Signing => {}
        }
    }
    bundle
}
