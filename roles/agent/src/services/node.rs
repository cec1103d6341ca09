//! Countersign's own service on the agent's socket.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use countersign_findings::{Code, Finding};
use countersign_wire::convert::from_memory;
use countersign_wire::proto::countersign::node::v1 as api;
use countersign_wire::proto::countersign::server::v1::PolicySet;
use countersign_wire::rpc::{BoxStream, Request, Response, Status};
use countersign_wire::status::from_finding;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::WatchStream;

use super::Shared;

pub(crate) struct Service(pub(crate) Arc<Shared>);

#[async_trait::async_trait]
impl api::node_server::Node for Service {
    type WatchPoliciesStream = BoxStream<PolicySet>;

    async fn watch_policies(
        &self,
        request: Request<api::WatchPoliciesRequest>,
    ) -> Result<Response<Self::WatchPoliciesStream>, Status> {
        // Policies say who may talk to whom: only for workloads that have an identity here.
        let attested = self.0.attested(&request).await?;
        if self.0.state().matching(&attested, countersign_tls::current_time()).is_empty() {
            return Err(super::no_identity(&attested));
        }
        let slot = self.0.stream_slot()?;
        let mut last = None;
        let stream = WatchStream::new(self.0.state.clone()).filter_map(move |state| {
            let _slot = &slot;
            let generation = state.policies.generation;
            // Generation 0: not fetched since the start; the proxy must not take that for "no policy".
            (generation != 0 && last.replace(generation) != Some(generation))
                .then(|| Ok((*state.policies).clone()))
        });
        Ok(Response::new(Box::pin(stream)))
    }

    type HoldRunStream = BoxStream<api::HoldRunResponse>;

    async fn hold_run(
        &self,
        request: Request<api::HoldRunRequest>,
    ) -> Result<Response<Self::HoldRunStream>, Status> {
        let process = Shared::caller(&request)?;
        let nonce = &request.get_ref().nonce;
        let sound =
            (32..=128).contains(&nonce.len()) && nonce.bytes().all(|b| b.is_ascii_hexdigit());
        if !sound {
            return Err(from_finding(&Finding::new(
                Code::InvalidValue,
                "nonce must have 32 to 128 hexadecimal digits",
            )));
        }
        let slot = self.0.stream_slot()?;
        let guard = self.0.runs.hold(nonce, process).ok_or_else(|| {
            from_finding(&Finding::new(Code::ServiceOverloaded, "nonce is taken, or too many runs"))
        })?;
        let agent_id = self.0.own.borrow().0.clone();
        let first = tokio_stream::once(Ok(api::HoldRunResponse { agent_id }));
        let stream = first.chain(tokio_stream::pending()).map(move |m| {
            let _held = (&guard, &slot);
            m
        });
        Ok(Response::new(Box::pin(stream)))
    }

    async fn report_policies(
        &self,
        request: Request<api::ReportPoliciesRequest>,
    ) -> Result<Response<api::ReportPoliciesResponse>, Status> {
        let attested = self.0.attested(&request).await?;
        let state = self.0.state();
        let entries = state.matching(&attested, countersign_tls::current_time());
        if entries.is_empty() {
            return Err(super::no_identity(&attested));
        }
        let spiffe_ids = entries.iter().map(|e| e.spiffe_id.to_string()).take(8).collect();
        let process = Shared::caller(&request)?;
        let api::ReportPoliciesRequest { generation, trouble, refused } = request.into_inner();
        let report = api::ProxyPolicies {
            spiffe_ids,
            pid: process.pid,
            generation,
            trouble,
            refused,
            memory: None,
        };
        if !self.0.proxies.report(process, report) {
            let what = Finding::new(Code::ServiceOverloaded, "too many proxies report");
            return Err(from_finding(&what));
        }
        Ok(Response::new(api::ReportPoliciesResponse {}))
    }

    async fn status(
        &self,
        _: Request<api::StatusRequest>,
    ) -> Result<Response<api::StatusResponse>, Status> {
        let state = self.0.state();
        let (agent_id, agent_svid_not_after) = self.0.own.borrow().clone();
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Ok(Response::new(api::StatusResponse {
            agent_id,
            trust_domain: state.bundle.trust_domain.to_string(),
            version: env!("CARGO_PKG_VERSION").into(),
            agent_svid_not_after,
            entries: count(state.entries.len()),
            svids: count(state.svids.len()),
            server_reachable: self.0.progress.reachable.load(Ordering::Relaxed),
            last_error: self
                .0
                .progress
                .last_error
                .lock()
                .unwrap_or_else(|e| e.into_inner())
                .clone(),
            last_sync: self.0.progress.last_sync.load(Ordering::Relaxed),
            streams: count(self.0.open_streams()),
            policy_generation: state.policies.generation,
            proxies: self.0.proxies.reports(),
            memory: Some(from_memory(self.0.memory.seen())),
            server_ahead_ms: *self
                .0
                .progress
                .server_ahead
                .lock()
                .unwrap_or_else(|e| e.into_inner()),
        }))
    }
}
