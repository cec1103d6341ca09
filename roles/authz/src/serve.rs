//! Serving.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use countersign_findings::{Code, Finding};
use countersign_identity::{TrustDomain, UnixTime};
use countersign_issuers::{IssuerOptions, Issuers};
use countersign_policy::{
    Authenticated, Document, HttpRequest, Labels, Mesh, PolicySet, TokenRefused, Verdict, Workload,
    judged_fields,
};
use countersign_sys::{FileWatch, bind_tcp, bind_unix};
use countersign_telemetry::{Direction, Metrics};
use countersign_wire::proto::envoy::service::auth::v3 as auth;
use countersign_wire::proto::envoy::service::auth::v3::authorization_server::{
    Authorization, AuthorizationServer,
};
use countersign_wire::rpc::{Request, Response, Routes, Status};
use countersign_wire::serve::{WithCaller, serve};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};
use tokio_stream::{Stream, StreamExt};

use crate::answer::{allowed, refused};
use crate::question::Question;

/// Workloads that policies are kept compiled for; beyond that the rest is compiled for each question.
const MAX_SETS: usize = 1024;

/// Where to listen.
#[derive(Clone, Debug)]
pub enum Listen {
    /// An address; should be loopback.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
}

/// How to answer.
pub struct AuthzOptions {
    /// Where to listen.
    pub listen: Listen,
    /// Reads the documents; called again whenever `files` change.
    pub documents: Box<dyn Fn() -> Result<Vec<Document>, Finding> + Send + Sync>,
    /// What to watch.
    pub files: Box<dyn Fn() -> Vec<PathBuf> + Send + Sync>,
    /// The local trust domain.
    pub trust_domain: TrustDomain,
    /// The namespace of the workload behind Envoy; that of Envoy's own identity if `None`.
    pub namespace: Option<String>,
    /// Its labels; `None` if not known.
    pub labels: Option<Labels>,
    /// How policies are to be understood.
    pub mesh: Mesh,
    /// Which token issuers may be asked for their keys.
    pub issuers: IssuerOptions,
    /// The time.
    pub now: fn() -> UnixTime,
}

/// The service; see [`Authz::start`].
pub struct Authz;

/// A running service. Dropping it stops it.
pub struct RunningAuthz {
    /// Where it listens, for people.
    pub address: String,
    /// Its metrics.
    pub metrics: Arc<Metrics>,
    _tasks: JoinSet<()>,
    stop: watch::Sender<bool>,
}

impl Drop for RunningAuthz {
    fn drop(&mut self) {
        self.stop.send_replace(true);
    }
}

/// Documents with the sets compiled from them so far.
struct Compiled {
    documents: Vec<Document>,
    generation: u64,
    sets: Mutex<HashMap<String, Arc<PolicySet>>>,
}

struct Service {
    compiled: Arc<ArcSwap<Compiled>>,
    trust_domain: TrustDomain,
    namespace: Option<String>,
    labels: Option<Labels>,
    mesh: Mesh,
    issuers: Arc<Issuers>,
    metrics: Arc<Metrics>,
    now: fn() -> UnixTime,
}

impl Authz {
    /// Reads the policies and listens. Must run inside a runtime.
    pub fn start(options: AuthzOptions) -> Result<RunningAuthz, Finding> {
        let watch = FileWatch::new(&(options.files)());
        let documents = (options.documents)()?;
        let metrics = Arc::new(Metrics::new());
        metrics.policies(1, true);
        let issuers = Arc::new(Issuers::new(&options.issuers, Arc::clone(&metrics))?);
        let compiled = Arc::new(ArcSwap::from_pointee(Compiled::new(documents, 1)));
        let service = Service {
            compiled: Arc::clone(&compiled),
            trust_domain: options.trust_domain,
            namespace: options.namespace,
            labels: options.labels,
            mesh: options.mesh,
            issuers: Arc::clone(&issuers),
            metrics: Arc::clone(&metrics),
            now: options.now,
        };
        let routes = Routes::new(AuthorizationServer::new(service));
        let (stop, mut stopped) = watch::channel(false);
        let shutdown = async move {
            let _ = stopped.wait_for(|s| *s).await;
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(Arc::clone(&issuers).run());
        let address = match options.listen {
            Listen::Tcp(address) => {
                let listener = bind_tcp(address, false).map_err(|e| e.finding())?;
                let address = listener.local_addr().unwrap_or(address);
                tasks.spawn(answer(routes, TcpListenerStream::new(listener), shutdown));
                address.to_string()
            }
            Listen::Unix(path) => {
                let listener = bind_unix(&path, 0o660).map_err(|e| e.finding())?;
                tasks.spawn(answer(routes, UnixListenerStream::new(listener), shutdown));
                format!("unix://{}", path.display())
            }
        };
        let follow = follow(
            options.documents,
            options.files,
            watch,
            compiled,
            issuers,
            Arc::clone(&metrics),
        );
        tasks.spawn(follow);
        Ok(RunningAuthz { address, metrics, _tasks: tasks, stop })
    }
}

/// Answers whoever comes.
async fn answer<S, I>(routes: Routes, incoming: I, shutdown: impl Future<Output = ()>)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    I: Stream<Item = std::io::Result<S>> + Send + 'static,
{
    let incoming = incoming.map(|s| s.map(|s| WithCaller::new(s, ())));
    if let Err(e) = serve(routes, incoming, shutdown).await {
        tracing::error!("external authorization ended: {e}");
    }
}

/// Reads everything again whenever a file changes. What cannot be read whole is refused whole.
async fn follow(
    read: Box<dyn Fn() -> Result<Vec<Document>, Finding> + Send + Sync>,
    files: Box<dyn Fn() -> Vec<PathBuf> + Send + Sync>,
    mut watch: FileWatch,
    compiled: Arc<ArcSwap<Compiled>>,
    issuers: Arc<Issuers>,
    metrics: Arc<Metrics>,
) {
    loop {
        watch.changed(&files).await;
        let generation = compiled.load().generation;
        match read() {
            Ok(documents) => {
                tracing::info!(documents = documents.len(), "policy files were read again");
                // Compiled anew for each namespace that is asked about, and wanted then.
                issuers.want(Vec::new());
                compiled.store(Arc::new(Compiled::new(documents, generation + 1)));
                metrics.policies(generation + 1, true);
            }
            Err(e) => {
                metrics.policies(generation, false);
                tracing::error!(code = %e.code, "policy files are not used, the last good set stays: {e}");
            }
        }
    }
}

impl Compiled {
    fn new(documents: Vec<Document>, generation: u64) -> Self {
        Self { documents, generation, sets: Mutex::default() }
    }

    fn for_namespace(&self, namespace: &str, service: &Service) -> Arc<PolicySet> {
        let mut sets = self.sets.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(set) = sets.get(namespace) {
            return Arc::clone(set);
        }
        let workload = Workload {
            trust_domain: service.trust_domain.clone(),
            namespace: namespace.to_owned(),
            labels: service.labels.clone(),
            mesh: service.mesh.clone(),
        };
        let set = Arc::new(PolicySet::compile(&self.documents, &workload, self.generation));
        service.issuers.want_also(set.key_sources());
        if sets.len() < MAX_SETS {
            sets.insert(namespace.to_owned(), Arc::clone(&set));
        }
        set
    }
}

#[async_trait]
impl Authorization for Service {
    async fn check(
        &self,
        request: Request<auth::CheckRequest>,
    ) -> Result<Response<auth::CheckResponse>, Status> {
        let (result, caller) = match Question::read(request.into_inner(), self.mesh.normalization) {
            Ok(question) => (self.judge(&question).await, question.caller()),
            Err(finding) => (Err(finding), "unknown".to_owned()),
        };
        self.metrics.decided(Direction::Inbound, result.as_ref().err().map(|f| f.code));
        Ok(Response::new(match result {
            Ok(answer) => answer,
            Err(finding) => {
                tracing::info!(code = %finding.code, source = caller, "refused: {}", finding.message);
                refused(&finding)
            }
        }))
    }
}

impl Service {
    async fn judge(&self, question: &Question) -> Result<auth::CheckResponse, Finding> {
        let own = question.destination.as_ref().and_then(|d| d.namespace());
        let namespace = self.namespace.as_deref().or(own).unwrap_or("default");
        let set = self.compiled.load().for_namespace(namespace, self);
        if question.is_anonymous()
            && let Some(mode) = question.port().and_then(|p| set.mode(p))
            && !mode.accepts_plaintext((self.now)())
        {
            let what = "plaintext refused: the port is STRICT";
            return Err(Finding::new(Code::PlaintextOnStrict, what));
        }
        let Some(http) = &question.http else {
            return match set.judge(&question.attributes(None, None)) {
                Verdict::Allow(_) => Ok(allowed(None)),
                Verdict::Deny(denial) => Err(denial.finding()),
            };
        };
        let fields = http.fields();
        let authenticated = if set.expects_tokens() {
            Some(self.authenticate(&set, &http.parts(&fields), &http.query).await?)
        } else {
            None
        };
        let judged = judged_fields(&fields, authenticated.as_ref());
        let parts: HttpRequest<'_> = http.parts(&judged);
        let token = authenticated.as_ref().and_then(|a| a.token.as_ref());
        match set.judge(&question.attributes(Some(parts), token)) {
            Verdict::Allow(_) => Ok(allowed(authenticated)),
            Verdict::Deny(denial) => Err(denial.finding()),
        }
    }

    /// What the request's token proves; where its issuer may have newer keys, they are fetched first.
    async fn authenticate(
        &self,
        set: &PolicySet,
        http: &HttpRequest<'_>,
        query: &str,
    ) -> Result<Authenticated, Finding> {
        let once = || set.authenticate(http, query, (self.now)(), &self.issuers.published());
        let result = once();
        let result = match &result {
            Err(TokenRefused { newer_keys: Some(location), .. })
                if self.issuers.renew(location).await =>
            {
                once()
            }
            _ => result,
        };
        result.map_err(|e| e.finding)
    }
}
