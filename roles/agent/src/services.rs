//! What the agent's socket offers.

mod health;
mod node;
mod sds;
mod workload;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use countersign_findings::{Code, Finding};
use countersign_identity::{SelectorSet, UnixTime};
use countersign_sys::PeerProcess;
use countersign_telemetry::{MemoryWatch, Metrics, Outcome};
use countersign_wire::proto::countersign::node::v1::node_server::NodeServer;
use countersign_wire::proto::envoy::service::secret::v3::secret_discovery_service_server::SecretDiscoveryServiceServer;
use countersign_wire::proto::grpc::health::v1::health_server::HealthServer;
use countersign_wire::proto::spiffe::spiffe_workload_api_server::SpiffeWorkloadApiServer;
use countersign_wire::proto::spire::api::types::Jwtsvid;
use countersign_wire::rpc::{Request, Routes, Status};
use countersign_wire::status::from_finding;
use tokio::sync::{Semaphore, watch};

use crate::proxies::Proxies;
use crate::runs::Runs;
use crate::selectors::{Hashes, attest};
use crate::server::ServerApi;
use crate::state::State;
use crate::sync::Progress;

/// Open streams on the socket.
const MAX_STREAMS: usize = 20_000;

pub(crate) struct Shared {
    pub(crate) state: watch::Receiver<Arc<State>>,
    pub(crate) own: watch::Receiver<(String, i64)>,
    pub(crate) api: Arc<Mutex<ServerApi>>,
    pub(crate) runs: Arc<Runs>,
    pub(crate) proxies: Proxies,
    pub(crate) hashes: Arc<Hashes>,
    pub(crate) hashing: Semaphore,
    pub(crate) progress: Arc<Progress>,
    pub(crate) memory: MemoryWatch,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) streams: Arc<Semaphore>,
    pub(crate) tokens: Mutex<HashMap<(String, Vec<String>), (Jwtsvid, UnixTime)>>,
}

impl Shared {
    /// Executables hashed at a time.
    pub(crate) fn hashing() -> Semaphore {
        Semaphore::new(2)
    }

    pub(crate) fn streams() -> Arc<Semaphore> {
        Arc::new(Semaphore::new(MAX_STREAMS))
    }

    pub(crate) fn open_streams(&self) -> usize {
        MAX_STREAMS - self.streams.available_permits()
    }

    pub(crate) fn state(&self) -> Arc<State> {
        Arc::clone(&self.state.borrow())
    }

    /// The calling process of a request.
    pub(crate) fn caller<T>(request: &Request<T>) -> Result<PeerProcess, Status> {
        request.extensions().get::<PeerProcess>().cloned().ok_or_else(|| {
            from_finding(&Finding::new(Code::CallerGone, "caller cannot be identified"))
        })
    }

    /// Attests the caller; the state must be known first.
    pub(crate) async fn attested<T>(&self, request: &Request<T>) -> Result<SelectorSet, Status> {
        let process = Self::caller(request)?;
        let state = self.state();
        if !state.ready {
            return Err(Status::unavailable("the agent has no entries yet; it is starting"));
        }
        let with_hash = state.asks_for("unix", "sha256:");
        let result = if with_hash {
            // Reading a large binary takes a while; other callers are served meanwhile.
            let _turn = self.hashing.acquire().await;
            let (process, hashes) = (process.clone(), Arc::clone(&self.hashes));
            tokio::task::spawn_blocking(move || attest(&process, Some(&hashes)))
                .await
                .map_err(|e| Status::internal(e.to_string()))?
        } else {
            attest(&process, None)
        };
        let result = result.map(|mut set| {
            for selector in self.runs.selectors_of(&process) {
                set.insert(selector);
            }
            set
        });
        let outcome = if result.is_ok() { Outcome::Success } else { Outcome::Failure };
        self.metrics.attested("workload", outcome);
        result.map_err(|e| from_finding(&Finding::new(Code::CallerGone, e.to_string())))
    }

    /// Takes a place for a stream.
    pub(crate) fn stream_slot(&self) -> Result<StreamSlot, Status> {
        let permit = Arc::clone(&self.streams).try_acquire_owned().map_err(|_| {
            from_finding(&Finding::new(Code::ServiceOverloaded, "too many open streams"))
        })?;
        self.metrics.stream(true);
        Ok(StreamSlot { metrics: Arc::clone(&self.metrics), _permit: permit })
    }
}

/// A place for a stream; given back when dropped.
pub(crate) struct StreamSlot {
    metrics: Arc<Metrics>,
    _permit: tokio::sync::OwnedSemaphorePermit,
}

impl Drop for StreamSlot {
    fn drop(&mut self) {
        self.metrics.stream(false);
    }
}

/// The refusal for a workload that no entry matches. It may see its own selectors: that is what it
/// takes to write the entry.
pub(crate) fn no_identity(attested: &SelectorSet) -> Status {
    from_finding(&Finding::new(
        Code::NoIdentityIssued,
        format!("no identity issued: no entry matches this process; its selectors are {attested}"),
    ))
}

pub(crate) fn routes(shared: &Arc<Shared>) -> Routes {
    Routes::new(SpiffeWorkloadApiServer::new(workload::Service(Arc::clone(shared))))
        .add_service(SecretDiscoveryServiceServer::new(sds::Service(Arc::clone(shared))))
        .add_service(NodeServer::new(node::Service(Arc::clone(shared))))
        .add_service(HealthServer::new(health::Service(Arc::clone(shared))))
}
