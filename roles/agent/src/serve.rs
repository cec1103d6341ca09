//! Starting, running, stopping.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use countersign_findings::{Code, Finding};
use countersign_keys::{SealKey, create_dir_private};
use countersign_sys::{PeerProcess, bind_unix, own_pid};
use countersign_telemetry::{MEMORY_EVERY, MemoryWatch, Metrics, Outcome};
use countersign_tls::current_time;
use countersign_wire::AuthorityFilter;
use countersign_wire::join::JoinString;
use countersign_wire::serve::{WithCaller, serve};
use tokio::net::UnixListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;

use crate::cache::Cache;
use crate::proxies::Proxies;
use crate::runs::Runs;
use crate::server::{ServerApi, attest_by_join_token};
use crate::services::{Shared, routes};
use crate::state::State;
use crate::sync::{Ended, Progress, Sync};

/// How the agent runs.
#[derive(Clone, Debug)]
pub struct AgentOptions {
    /// Private directory for the sealed cache.
    pub data_dir: PathBuf,
    /// The socket for workloads.
    pub socket: PathBuf,
    /// Needed for the first start; later ones use the cache.
    pub join: Option<JoinString>,
    /// Where the server is now, if not where the cache or the join string says.
    pub server: Option<String>,
}

/// The agent; see [`Agent::start`].
pub struct Agent;

/// A running agent. Dropping it stops it at once.
pub struct RunningAgent {
    /// Its SPIFFE ID.
    pub id: String,
    /// The socket it listens on.
    pub socket: PathBuf,
    /// Its metrics.
    pub metrics: Arc<Metrics>,
    ready: watch::Receiver<Arc<State>>,
    ended: watch::Receiver<Option<Code>>,
    tasks: JoinSet<()>,
    stop: watch::Sender<bool>,
    _lock: fs::File,
}

impl RunningAgent {
    /// Resolves once entries are known, from the server or the cache.
    pub async fn ready(&mut self) {
        let _ = self.ready.wait_for(|s| s.ready).await;
    }

    /// A view of readiness for health checks.
    pub fn health(&self) -> impl Fn() -> Result<(), String> + Send + std::marker::Sync + 'static {
        let state = self.ready.clone();
        move || {
            if state.borrow().ready { Ok(()) } else { Err("no entries yet".to_owned()) }
        }
    }

    /// Resolves when the agent gave up by itself, with the code.
    pub async fn ended(&mut self) -> Code {
        match self.ended.wait_for(Option::is_some).await {
            Ok(code) => code.unwrap_or(Code::InternalError),
            Err(_) => std::future::pending().await,
        }
    }

    /// Stops.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        let finish = async { while self.tasks.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(Duration::from_secs(3), finish).await;
        let _ = fs::remove_file(&self.socket);
    }
}

impl Agent {
    /// Attests if needed, then serves the socket in tasks of the current runtime.
    pub async fn start(options: AgentOptions) -> Result<RunningAgent, Finding> {
        create_dir_private(&options.data_dir).map_err(|e| e.finding())?;
        let lock = lock(&options)?;
        let seal = SealKey::load_or_create(&options.data_dir.join("seal.key"))
            .map_err(|e| Finding::new(Code::FileUnreadable, e.to_string()))?;
        let cache = Cache::new(&options.data_dir, seal);
        let metrics = Arc::new(Metrics::new());
        let now = current_time();
        // The socket first: an address in use must not cost a join token.
        if let Some(dir) = options.socket.parent() {
            fs::create_dir_all(dir).map_err(|e| {
                Finding::new(Code::StorageFailed, format!("cannot create `{}`: {e}", dir.display()))
            })?;
        }
        // Every workload may connect: who gets what is decided by attestation.
        let listener = bind_unix(&options.socket, 0o777).map_err(|e| e.finding())?;

        let restored = cache.load().filter(|r| {
            r.own.not_after > now
                // Another CA under the same name is another trust domain; and a new join string is used
                // if the server has told this agent that it is no longer attested.
                && options.join.as_ref().is_none_or(|j| {
                    let known = &r.state.bundle.x509_authorities;
                    !r.evicted
                        && j.trust_domain == *r.own.svid.id.trust_domain()
                        && known.iter().any(|a| j.roots.contains(&a.der))
                })
        });
        let (server, own, state) = match (restored, &options.join) {
            (Some(r), join) => {
                let server = options
                    .server
                    .clone()
                    .or_else(|| join.as_ref().map(|j| j.server.clone()))
                    .unwrap_or(r.server);
                (server, r.own, r.state)
            }
            (None, Some(join)) => {
                let result =
                    attest_by_join_token(&join.server, &join.bundle(), &join.token, now).await;
                let outcome = if result.is_ok() { Outcome::Success } else { Outcome::Failure };
                metrics.attested("node", outcome);
                let (own, bundle) = result?;
                let state = State::new(bundle);
                cache.save(&join.server, &own, &state).map_err(|e| {
                    Finding::new(Code::StorageFailed, format!("cannot write the cache: {e}"))
                })?;
                (join.server.clone(), own, state)
            }
            (None, None) => {
                return Err(Finding::new(
                    Code::AgentNotAttested,
                    "this agent has never joined, or its certificate has expired",
                ));
            }
        };
        let api = Arc::new(Mutex::new(ServerApi::new(&server, &own, &state.bundle)?));
        let id = own.svid.id.to_string();
        let (own_shown, own_seen) = watch::channel((id.clone(), own.not_after.secs()));
        let (state, seen) = watch::channel(Arc::new(state));
        let progress = Arc::new(Progress::default());
        let shared = Arc::new(Shared {
            state: seen.clone(),
            own: own_seen,
            api: Arc::clone(&api),
            runs: Arc::new(Runs::default()),
            proxies: Proxies::default(),
            hashes: Arc::default(),
            hashing: Shared::hashing(),
            progress: Arc::clone(&progress),
            memory: MemoryWatch::new(own_pid()),
            metrics: Arc::clone(&metrics),
            streams: Shared::streams(),
            tokens: Mutex::new(HashMap::new()),
        });
        let (stop, stopped) = watch::channel(false);
        let (end, ended) = watch::channel(None);
        let mut tasks = JoinSet::new();
        let sync = Sync {
            server,
            own,
            api,
            cache,
            state,
            own_shown,
            progress,
            metrics: Arc::clone(&metrics),
        };
        let stop_sync = stopped.clone();
        tasks.spawn(async move {
            if let Ended::Banned = sync.run(stop_sync).await {
                tracing::error!(code = %Code::AgentBanned, "this agent has been banned; it forgot everything");
                end.send_replace(Some(Code::AgentBanned));
            }
        });
        tasks.spawn(look_at_memory(Arc::clone(&shared), stopped.clone()));
        tasks.spawn(serve_socket(shared, listener, stopped));
        Ok(RunningAgent {
            id,
            socket: options.socket,
            metrics,
            ready: seen,
            ended,
            tasks,
            stop,
            _lock: lock,
        })
    }
}

fn lock(options: &AgentOptions) -> Result<fs::File, Finding> {
    let path = options.data_dir.join("lock");
    let file = fs::File::create(&path).map_err(|e| {
        Finding::new(Code::StorageFailed, format!("cannot open `{}`: {e}", path.display()))
    })?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(Finding::new(
            Code::DataDirInUse,
            format!("another agent uses `{}`", options.data_dir.display()),
        )),
        Err(fs::TryLockError::Error(e)) => Err(Finding::new(Code::StorageFailed, e.to_string())),
    }
}

async fn stopping(mut stopped: watch::Receiver<bool>) {
    let _ = stopped.wait_for(|s| *s).await;
}

/// Its own, and that of the proxies on this node.
async fn look_at_memory(shared: Arc<Shared>, stopped: watch::Receiver<bool>) {
    let stop = stopping(stopped);
    tokio::pin!(stop);
    loop {
        tokio::select! {
            () = &mut stop => return,
            () = tokio::time::sleep(MEMORY_EVERY) => {}
        }
        shared.memory.look();
        shared.proxies.look();
    }
}

async fn serve_socket(shared: Arc<Shared>, listener: UnixListener, stopped: watch::Receiver<bool>) {
    let (ready, incoming) = mpsc::channel(64);
    let stop = stopping(stopped.clone());
    tokio::spawn(async move {
        tokio::pin!(stop);
        let connections = Arc::new(Mutex::new(HashMap::<u32, usize>::new()));
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
                Ok(process) => {
                    let Some(place) = Place::take(&connections, process.uid) else {
                        tracing::warn!(code = %Code::ServiceOverloaded, uid = process.uid, "too many connections of one user");
                        continue;
                    };
                    let stream = AuthorityFilter::new(stream);
                    let conn = WithCaller::new(stream, process).holding(place);
                    if ready.send(Ok::<_, std::io::Error>(conn)).await.is_err() {
                        return;
                    }
                }
                Err(e) => tracing::warn!(code = %Code::CallerGone, "caller refused: {e}"),
            }
        }
    });
    // Streams to workloads never finish by themselves, so calls under way are not waited for.
    let routes = routes(&shared);
    tokio::select! {
        result = serve(routes, ReceiverStream::new(incoming), std::future::pending()) => {
            if let Err(e) = result {
                tracing::error!("agent socket ended: {e}");
            }
        }
        () = stopping(stopped) => {}
    }
}

/// Connections one user may hold; each costs two descriptors.
const MAX_PER_UID: usize = 2048;

/// A connection's place among its user's; given back when dropped.
struct Place {
    counts: Arc<Mutex<HashMap<u32, usize>>>,
    uid: u32,
}

impl Place {
    fn take(counts: &Arc<Mutex<HashMap<u32, usize>>>, uid: u32) -> Option<Self> {
        let mut held = counts.lock().unwrap_or_else(|e| e.into_inner());
        let count = held.entry(uid).or_default();
        if *count >= MAX_PER_UID {
            return None;
        }
        *count += 1;
        Some(Self { counts: Arc::clone(counts), uid })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut held = self.counts.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(count) = held.get_mut(&self.uid) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.uid);
            }
        }
    }
}
