//! Starting, running, draining.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use countersign_engines::Engines;
use countersign_findings::{Code, Finding};
use countersign_issuers::Issuers;
use countersign_sys::{FileWatch, bind_tcp};
use countersign_telemetry::{AccessLog, Metrics};
use countersign_tls::{LiveCredentials, TlsOptions};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::identity::{follow_files, follow_workload_api, read_files};
use crate::jwt_bundles::follow_jwt_bundles;
use crate::legacy::{follow_legacy_roots, legacy_trust};
use crate::options::{IdentitySource, InboundOptions, ListenerOptions, ProxyOptions};
use crate::outbound::OutboundListener;
use crate::policies::{
    follow_agent, follow_identity, follow_policy_files, read_given, report_policies,
};
use crate::shared::{Place, PolicyState, Shared};
use crate::{inbound, outbound};

/// The proxy; see [`Proxy::start`].
pub struct Proxy;

/// A running proxy. Dropping it stops it at once; [`RunningProxy::drain`] lets connections finish.
pub struct RunningProxy {
    /// Addresses, in the order of the options' listeners.
    pub addresses: Vec<SocketAddr>,
    /// Its metrics.
    pub metrics: Arc<Metrics>,
    shared: Arc<Shared>,
    control: JoinSet<()>,
    workers: Vec<std::thread::JoinHandle<()>>,
    stop: watch::Sender<bool>,
    drain_timeout: Duration,
    last_error: watch::Receiver<Option<Finding>>,
}

/// A listener with what its connections need.
#[derive(Clone)]
enum Serving {
    Inbound(Arc<InboundOptions>),
    Outbound(Arc<OutboundListener>),
}

impl RunningProxy {
    /// Resolves once identity and policies are known.
    pub async fn ready(&self) {
        let mut credentials = self.shared.credentials.subscribe();
        let mut policies = self.shared.policies_changed.subscribe();
        loop {
            credentials.borrow_and_update();
            policies.borrow_and_update();
            if self.health()().is_ok() {
                return;
            }
            tokio::select! {
                r = credentials.changed() => if r.is_err() { return },
                r = policies.changed() => if r.is_err() { return },
            }
        }
    }

    /// A view of readiness for health checks.
    pub fn health(&self) -> impl Fn() -> Result<(), String> + Send + Sync + 'static {
        let shared = Arc::clone(&self.shared);
        let last_error = self.last_error.clone();
        move || {
            if shared.credentials.current().is_none() {
                let why =
                    last_error.borrow().as_ref().map(|e| format!("[{}] {}", e.code, e.message));
                return Err(why.unwrap_or_else(|| "no identity yet".into()));
            }
            if shared.policies.load().is_none() {
                return Err("no policy yet".into());
            }
            Ok(())
        }
    }

    /// The last trouble with the identity source, if it persists.
    pub fn last_error(&self) -> Option<Finding> {
        self.last_error.borrow().clone()
    }

    /// Serial of the certificate in use, if there is one.
    pub fn serial(&self) -> Option<String> {
        self.shared.credentials.current().map(|c| c.leaf.serial.clone())
    }

    /// Connections now open.
    pub fn open_connections(&self) -> usize {
        self.shared.connections.load(Ordering::Relaxed)
    }

    /// Stops accepting, lets connections finish for the drain timeout, then ends what is left.
    pub async fn drain(mut self) {
        self.shared.draining.send_replace(true);
        let deadline = tokio::time::Instant::now() + self.drain_timeout;
        while self.open_connections() > 0 && tokio::time::Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.stop.send_replace(true);
        self.control.abort_all();
        let workers = std::mem::take(&mut self.workers);
        let _ = tokio::task::spawn_blocking(move || {
            for worker in workers {
                let _ = worker.join();
            }
        })
        .await;
    }
}

impl Drop for RunningProxy {
    fn drop(&mut self) {
        self.stop.send_replace(true);
    }
}

impl Proxy {
    /// Binds every listener, then starts the workers; identity and policies arrive in the background
    /// and connections are refused until they are there. Files are read once before anything is bound,
    /// so that a mistake in them is an error here.
    pub async fn start(options: ProxyOptions, log: AccessLog) -> Result<RunningProxy, Finding> {
        let engines = Engines::new(options.providers)?;
        let metrics = Arc::new(Metrics::new());
        let legacy_files: Vec<_> = options.legacy.iter().map(|o| o.roots.clone()).collect();
        let legacy_watch = FileWatch::new(&legacy_files);
        let legacy = match &options.legacy {
            None => None,
            Some(o) => Some(Arc::new(legacy_trust(&o.roots, o.allowed.clone())?)),
        };
        let issuers = Arc::new(Issuers::new(&options.issuers, Arc::clone(&metrics))?);
        let known: Vec<String> = engines.names().map(str::to_owned).collect();
        let watch = FileWatch::new(&options.policy_files);
        let documents = read_given(&options.policies, &options.policy_files, &known)?;
        let (given_sender, given) = watch::channel(Arc::new(documents));
        if let IdentitySource::Files { cert, key, bundle } = &options.identity {
            let (svid, bundles) = read_files(cert, key, bundle)?;
            countersign_tls::Credentials::new(&svid, &bundles, 0, TlsOptions::default())
                .map_err(|e| e.finding())?;
        }
        let threads = options.threads.max(1);
        let mut addresses = Vec::new();
        let mut bound: Vec<Vec<(TcpListener, Serving)>> =
            (0..threads).map(|_| Vec::new()).collect();
        for listener in &options.listeners {
            let mut address = listener.listen();
            let serving = match listener {
                ListenerOptions::Inbound(o) => Serving::Inbound(Arc::new(o.clone())),
                ListenerOptions::Outbound(o) => {
                    Serving::Outbound(Arc::new(OutboundListener::new(o.clone())))
                }
            };
            if threads > 1 && address.port() != 0 {
                // Shared ports would silently join a stranger's; an exclusive bind notices it.
                drop(bind_tcp(address, false).map_err(|e| e.finding())?);
            }
            for worker in &mut bound {
                let socket = bind_tcp(address, threads > 1).map_err(|e| e.finding())?;
                address = socket
                    .local_addr()
                    .map_err(|e| Finding::new(Code::CannotListen, e.to_string()))?;
                worker.push((socket, serving.clone()));
            }
            addresses.push(address);
        }
        let shared = Arc::new(Shared {
            credentials: Arc::new(LiveCredentials::empty()),
            policies: ArcSwapOption::empty(),
            policies_changed: watch::Sender::new(0),
            policy_state: watch::Sender::new(PolicyState::default()),
            metrics: Arc::clone(&metrics),
            log,
            process: u64::from_be_bytes(countersign_keys::random()),
            handshake_timeout: options.handshake_timeout,
            labels: options.labels,
            mesh: options.mesh,
            engines,
            issuers,
            jwt_svids: watch::Sender::new(false),
            legacy: legacy.clone(),
            edges: options.edges,
            connections: AtomicUsize::new(0),
            max_connections: options.max_connections,
            draining: watch::Sender::new(false),
        });
        let (stop, stopped) = watch::channel(false);
        let (errors, last_error) = watch::channel(None);
        let mut control = JoinSet::new();
        control.spawn(Arc::clone(&shared.issuers).run());
        let tls = TlsOptions { tls12: options.tls12, legacy };
        if let (Some(trust), Some(options)) = (&shared.legacy, options.legacy) {
            let (trust, live) = (Arc::clone(trust), Arc::clone(&shared.credentials));
            control.spawn(follow_legacy_roots(options.roots, legacy_watch, trust, live));
        }
        let live = Arc::clone(&shared.credentials);
        if !options.policy_files.is_empty() {
            let (texts, files) = (options.policies, options.policy_files);
            let follow =
                follow_policy_files(Arc::clone(&shared), texts, files, watch, known, given_sender);
            control.spawn(follow);
        }
        match options.identity {
            IdentitySource::WorkloadApi { socket, id, with_policies } => {
                if with_policies {
                    control.spawn(report_policies(socket.clone(), Arc::clone(&shared)));
                    control.spawn(follow_agent(socket.clone(), Arc::clone(&shared), given));
                } else {
                    control.spawn(follow_identity(Arc::clone(&shared), given));
                }
                let (issuers, wanted) = (Arc::clone(&shared.issuers), shared.jwt_svids.subscribe());
                control.spawn(follow_jwt_bundles(socket.clone(), issuers, wanted));
                let metrics = Arc::clone(&metrics);
                control.spawn(follow_workload_api(socket, id, tls, live, metrics, errors));
            }
            IdentitySource::Files { cert, key, bundle } => {
                control.spawn(follow_identity(Arc::clone(&shared), given));
                let metrics = Arc::clone(&metrics);
                control.spawn(follow_files(cert, key, bundle, tls, live, metrics, errors));
            }
        }
        let mut workers = Vec::new();
        for (i, listeners) in bound.into_iter().enumerate() {
            // Sockets move to the worker's own reactor.
            let listeners: Vec<(std::net::TcpListener, Serving)> = listeners
                .into_iter()
                .map(|(l, s)| l.into_std().map(|l| (l, s)))
                .collect::<Result<_, _>>()
                .map_err(|e| Finding::new(Code::CannotListen, e.to_string()))?;
            let (shared, stopped) = (Arc::clone(&shared), stopped.clone());
            let worker = std::thread::Builder::new()
                .name(format!("proxy-{i}"))
                .spawn(move || work(listeners, &shared, stopped))
                .map_err(|e| Finding::new(Code::InternalError, e.to_string()))?;
            workers.push(worker);
        }
        Ok(RunningProxy {
            addresses,
            metrics,
            shared,
            control,
            workers,
            stop,
            drain_timeout: options.drain_timeout,
            last_error,
        })
    }
}

/// One worker: a single-threaded runtime, so that a connection never changes its core.
fn work(
    listeners: Vec<(std::net::TcpListener, Serving)>,
    shared: &Arc<Shared>,
    mut stopped: watch::Receiver<bool>,
) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            tracing::error!("worker cannot start: {e}");
            return;
        }
    };
    runtime.block_on(async {
        for (listener, serving) in listeners {
            match TcpListener::from_std(listener) {
                Ok(listener) => {
                    tokio::spawn(accept_loop(listener, serving, Arc::clone(shared)));
                }
                Err(e) => tracing::error!("listener is lost: {e}"),
            }
        }
        let _ = stopped.wait_for(|s| *s).await;
    });
    runtime.shutdown_timeout(Duration::from_millis(200));
}

async fn accept_loop(listener: TcpListener, serving: Serving, shared: Arc<Shared>) {
    let mut draining = shared.draining.subscribe();
    loop {
        let accepted = tokio::select! {
            biased;
            _ = draining.wait_for(|d| *d) => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, from) = match accepted {
            Ok(accepted) => accepted,
            Err(e) => {
                // Out of descriptors, mostly: pause, so that closing connections can free some.
                tracing::warn!("cannot accept: {e}");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let Some(place): Option<Place> = shared.place() else {
            let direction = match &serving {
                Serving::Inbound(_) => countersign_telemetry::Direction::Inbound,
                Serving::Outbound(_) => countersign_telemetry::Direction::Outbound,
            };
            shared.metrics.handshake_failed(direction, Code::TooManyConnections);
            continue;
        };
        let shared = Arc::clone(&shared);
        match &serving {
            Serving::Inbound(options) => {
                tokio::spawn(inbound::handle(shared, Arc::clone(options), stream, from, place));
            }
            Serving::Outbound(listener) => {
                tokio::spawn(outbound::handle(shared, Arc::clone(listener), stream, from, place));
            }
        }
    }
}
