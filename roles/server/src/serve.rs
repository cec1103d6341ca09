//! Starting, running, stopping.

use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use countersign_findings::{Code, Finding};
use countersign_identity::{BundleSet, SpiffeId, X509Svid};
use countersign_keys::{KeyAlgorithm, PrivateKey, SealKey, Signer};
use countersign_lifecycle::renewal_time;
use countersign_store::{SqliteStore, Store};
use countersign_sys::{PeerProcess, bind_tcp, bind_unix, own_pid, tune};
use countersign_telemetry::{MEMORY_EVERY, MemoryWatch, Metrics, Outcome};
use countersign_tls::{Credentials, LiveCredentials, accept_optional, current_time};
use countersign_wire::AuthorityFilter;
use countersign_wire::serve::{WithCaller, serve};
use countersign_x509::Peer;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;

use crate::authority::{AuthorityManager, IssueRequest};
use crate::caller::Caller;
use crate::init::DataDir;
use crate::registry::Registry;
use crate::services;
use crate::shared::{Policies, Shared};

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Handshakes under way on the server API.
const MAX_HANDSHAKES: usize = 256;
/// Connections on the server API.
const MAX_CONNECTIONS: usize = 20_000;

/// Whoever has not proven itself has this long to attest; then its place is free again.
const ANONYMOUS_LIFE: Duration = Duration::from_secs(60);

/// How the server runs.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// An initialised data directory.
    pub data_dir: DataDir,
    /// Address of the server API; port 0 picks one.
    pub listen: SocketAddr,
    /// Life of X509-SVIDs where the entry does not say.
    pub x509_svid_ttl: Duration,
    /// Life of JWT-SVIDs where the entry does not say.
    pub jwt_svid_ttl: Duration,
    /// Life of the signing CA.
    pub ca_ttl: Duration,
}

impl ServerOptions {
    /// Defaults for `data_dir`: `127.0.0.1:8081`, 1 h, 5 min, 24 h.
    pub fn new(data_dir: DataDir) -> Self {
        Self {
            data_dir,
            listen: SocketAddr::from(([127, 0, 0, 1], 8081)),
            x509_svid_ttl: Duration::from_secs(3600),
            jwt_svid_ttl: Duration::from_secs(300),
            ca_ttl: Duration::from_secs(86_400),
        }
    }
}

/// The server; see [`Server::start`].
pub struct Server;

/// A running server. Dropping it stops it at once; [`RunningServer::stop`] lets calls finish.
pub struct RunningServer {
    /// Address of the server API.
    pub address: SocketAddr,
    /// Its metrics.
    pub metrics: Arc<Metrics>,
    tasks: JoinSet<()>,
    stop: watch::Sender<bool>,
    _lock: fs::File,
}

impl RunningServer {
    /// Stops accepting, lets calls finish for up to 5 s.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        let finish = async { while self.tasks.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(Duration::from_secs(5), finish).await;
    }
}

impl Server {
    /// Opens the data directory and starts serving it in tasks of the current runtime.
    pub async fn start(options: ServerOptions) -> Result<RunningServer, Finding> {
        let dir = &options.data_dir;
        let trust_domain = dir.trust_domain()?;
        let lock = lock(dir)?;
        let seal = SealKey::load_or_create(&dir.seal_key())
            .map_err(|e| Finding::new(Code::FileUnreadable, e.to_string()))?;
        let store: Arc<dyn Store> =
            Arc::new(SqliteStore::open(&dir.database(), &trust_domain).map_err(|e| e.finding())?);
        let snapshot = store.load().await.map_err(|e| e.finding())?;
        // Addresses first: a port in use must not leave half a start behind.
        let tcp = bind_tcp(options.listen, false).map_err(|e| e.finding())?;
        let address =
            tcp.local_addr().map_err(|e| Finding::new(Code::CannotListen, e.to_string()))?;
        let unix = bind_unix(&dir.admin_socket(), 0o600).map_err(|e| e.finding())?;
        let metrics = Arc::new(Metrics::new());
        let now = current_time();
        let lives = crate::authority::Lives {
            root: Duration::from_secs(countersign_x509::profile::Profile::Root.default_ttl_secs()),
            intermediate: Duration::from_secs(
                countersign_x509::profile::Profile::Intermediate.default_ttl_secs(),
            ),
            signing: options.ca_ttl,
        };
        let authority = AuthorityManager::load(
            trust_domain.clone(),
            Arc::clone(&store),
            &snapshot,
            seal,
            dir.root_key(),
            dir.bundle(),
            lives,
            Arc::clone(&metrics),
        )?;
        authority.tick(now).await?;
        let shared = Arc::new(Shared {
            policies: Policies::new(snapshot.policies.clone()),
            registry: Registry::load(trust_domain.clone(), Arc::clone(&store), snapshot),
            trust_domain,
            store,
            authority,
            x509_ttl: options.x509_svid_ttl,
            jwt_ttl: options.jwt_svid_ttl,
            metrics: Arc::clone(&metrics),
            address: address.to_string(),
            started_at: now,
            attesting: Semaphore::new(32),
            clocks: Arc::default(),
            memory: MemoryWatch::new(own_pid()),
        });
        let live = Arc::new(LiveCredentials::empty());
        renew_own(&shared, &live, 1).await?;

        let (stop, stopped) = watch::channel(false);
        let mut tasks = JoinSet::new();
        tasks.spawn(keep_own(Arc::clone(&shared), Arc::clone(&live), stopped.clone()));
        tasks.spawn(upkeep(Arc::clone(&shared), stopped.clone()));
        tasks.spawn(serve_tcp(Arc::clone(&shared), tcp, live, stopped.clone()));
        tasks.spawn(serve_unix(shared, unix, stopped));
        Ok(RunningServer { address, metrics, tasks, stop, _lock: lock })
    }
}

/// One server per data directory.
fn lock(dir: &DataDir) -> Result<fs::File, Finding> {
    let path = dir.lock();
    let file = fs::File::create(&path).map_err(|e| {
        Finding::new(Code::StorageFailed, format!("cannot open `{}`: {e}", path.display()))
    })?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(Finding::new(
            Code::DataDirInUse,
            format!("another server uses `{}`", dir.path().display()),
        )),
        Err(fs::TryLockError::Error(e)) => {
            Err(Finding::new(Code::StorageFailed, format!("cannot lock `{}`: {e}", path.display())))
        }
    }
}

async fn stopping(mut stopped: watch::Receiver<bool>) {
    let _ = stopped.wait_for(|s| *s).await;
}

/// A new certificate for the server itself.
async fn renew_own(
    shared: &Shared,
    live: &LiveCredentials,
    generation: u64,
) -> Result<(), Finding> {
    let internal = |e: &dyn std::fmt::Display| Finding::new(Code::InternalError, e.to_string());
    let id =
        SpiffeId::from_path(&shared.trust_domain, "/spire/server").map_err(|e| internal(&e))?;
    let key = PrivateKey::generate(KeyAlgorithm::EcdsaP256).map_err(|e| internal(&e))?;
    let issued = shared
        .authority
        .issue(
            vec![IssueRequest {
                id: id.clone(),
                spki: key.public_key_spki().to_vec(),
                dns_names: Vec::new(),
                ttl: shared.x509_ttl,
                kind: "x509",
                issued_to: "server".into(),
            }],
            current_time(),
        )
        .await?
        .pop()
        .ok_or_else(|| internal(&"nothing was issued"))?;
    shared.metrics.own_certificate(id.as_str(), issued.not_after.secs());
    let svid = X509Svid { id, chain: issued.chain, key: key.pkcs8().clone(), hint: String::new() };
    let bundles =
        BundleSet::collect([(*shared.authority.bundle()).clone()]).map_err(|e| internal(&e))?;
    let credentials =
        Credentials::with_optional_clients(&svid, &bundles, generation).map_err(|e| e.finding())?;
    live.replace(credentials);
    Ok(())
}

/// Renews the server's certificate at half-life, and whenever the bundle changes.
async fn keep_own(shared: Arc<Shared>, live: Arc<LiveCredentials>, stopped: watch::Receiver<bool>) {
    let mut bundle = shared.authority.subscribe();
    let mut generation = 1;
    let stop = stopping(stopped);
    tokio::pin!(stop);
    loop {
        let due = live.current().map_or(current_time(), |c| {
            let jitter = u32::from_be_bytes(countersign_keys::random());
            renewal_time(c.leaf.not_before, c.leaf.not_after, jitter)
        });
        let wait = due.since(current_time()).max(Duration::from_secs(1));
        tokio::select! {
            () = &mut stop => return,
            () = tokio::time::sleep(wait) => {}
            changed = bundle.changed() => if changed.is_err() { return },
        }
        generation += 1;
        match renew_own(&shared, &live, generation).await {
            Ok(()) => shared.metrics.rotated("server", Outcome::Success),
            Err(e) => {
                shared.metrics.rotated("server", Outcome::Failure);
                tracing::error!(code = %e.code, "cannot renew the server's certificate: {}", e.message);
                tokio::time::sleep(Duration::from_secs(5)).await;
            }
        }
    }
}

/// Rolls authorities over, forgets ended entries and tokens.
async fn upkeep(shared: Arc<Shared>, stopped: watch::Receiver<bool>) {
    let stop = stopping(stopped);
    tokio::pin!(stop);
    let mut looked = Instant::now();
    loop {
        tokio::select! {
            () = &mut stop => return,
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
        }
        if looked.elapsed() >= MEMORY_EVERY {
            looked = Instant::now();
            shared.memory.look();
        }
        let now = current_time();
        let results = [
            shared.authority.tick(now).await,
            shared.registry.prune(now).await,
            shared.store.prune_join_tokens(now).await.map(drop).map_err(|e| e.finding()),
        ];
        for e in results.into_iter().filter_map(Result::err) {
            tracing::error!(code = %e.code, "upkeep: {}", e.message);
            tokio::time::sleep(Duration::from_secs(10)).await;
        }
    }
}

async fn serve_tcp(
    shared: Arc<Shared>,
    listener: TcpListener,
    live: Arc<LiveCredentials>,
    stopped: watch::Receiver<bool>,
) {
    let (ready, incoming) = mpsc::channel(64);
    let stop = stopping(stopped.clone());
    tokio::spawn(async move {
        let handshakes = Arc::new(Semaphore::new(MAX_HANDSHAKES));
        let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        tokio::pin!(stop);
        loop {
            let accepted = tokio::select! {
                () = &mut stop => return,
                accepted = listener.accept() => accepted,
            };
            let Ok((stream, address)) = accepted else {
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            };
            let Ok(connection) = Arc::clone(&connections).try_acquire_owned() else { continue };
            // Never awaited: silent connections must not stop others from being accepted.
            let Ok(slot) = Arc::clone(&handshakes).try_acquire_owned() else { continue };
            let (live, ready) = (Arc::clone(&live), ready.clone());
            tokio::spawn(async move {
                let Some(credentials) = live.current() else { return };
                if tune(&stream).is_err() {
                    return;
                }
                let result = accept_optional(stream, &credentials, HANDSHAKE_TIMEOUT).await;
                drop(slot);
                match result {
                    Ok(session) => {
                        let anonymous = session.peer.is_none();
                        let caller = match session.peer {
                            Some(Peer::Spiffe(peer)) => Caller::Peer(peer),
                            // Nobody is let in by a legacy name here.
                            Some(Peer::Legacy(_)) | None => Caller::Anonymous,
                        };
                        let conn = WithCaller::new(session.stream, caller).holding(connection);
                        let conn = if anonymous { conn.ending_after(ANONYMOUS_LIFE) } else { conn };
                        let _ = ready.send(Ok::<_, std::io::Error>(conn)).await;
                    }
                    Err(e) => {
                        tracing::info!(code = %e.code(), peer = %address, "handshake failed: {e}");
                    }
                }
            });
        }
    });
    let routes = services::remote(&shared);
    if let Err(e) = serve(routes, ReceiverStream::new(incoming), stopping(stopped)).await {
        tracing::error!("server API ended: {e}");
    }
}

async fn serve_unix(shared: Arc<Shared>, listener: UnixListener, stopped: watch::Receiver<bool>) {
    let (ready, incoming) = mpsc::channel(16);
    let stop = stopping(stopped.clone());
    tokio::spawn(async move {
        tokio::pin!(stop);
        // The socket's mode keeps others out; the credentials say who did come in.
        let allowed = [0, countersign_sys::own_uid()];
        loop {
            let accepted = tokio::select! {
                () = &mut stop => return,
                accepted = listener.accept() => accepted,
            };
            let Ok((stream, _)) = accepted else {
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            };
            match PeerProcess::of(&stream) {
                Ok(process) if allowed.contains(&process.uid) => {
                    let stream = AuthorityFilter::new(stream);
                    let conn = WithCaller::new(stream, Caller::Local(process));
                    if ready.send(Ok::<_, std::io::Error>(conn)).await.is_err() {
                        return;
                    }
                }
                Ok(process) => {
                    tracing::warn!(
                        uid = process.uid,
                        pid = process.pid,
                        "refused on the admin socket"
                    );
                }
                Err(e) => tracing::warn!("refused on the admin socket: {e}"),
            }
        }
    });
    let routes = services::local(&shared);
    if let Err(e) = serve(routes, ReceiverStream::new(incoming), stopping(stopped)).await {
        tracing::error!("admin socket ended: {e}");
    }
}
