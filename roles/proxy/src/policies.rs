//! The policies in force: those given directly, and those the agent tells. A set that cannot be read
//! whole is refused whole; the last good one stays.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use countersign_findings::{Code, Finding};
use countersign_lifecycle::Backoff;
use countersign_policy::{Document, PolicySet, Workload, parse};
use countersign_wire::dial;
use countersign_wire::proto::countersign::node::v1::WatchPoliciesRequest;
use countersign_wire::proto::countersign::node::v1::node_client::NodeClient;
use countersign_wire::rpc::Code as GrpcCode;
use countersign_wire::status::to_finding;

use crate::shared::Shared;

/// Reads documents given directly.
pub(crate) fn read_given(given: &[(String, String)]) -> Result<Vec<Document>, Finding> {
    let mut out = Vec::new();
    for (origin, text) in given {
        out.extend(parse(text, origin)?);
    }
    Ok(out)
}

impl Shared {
    /// Compiles and puts in place.
    pub(crate) fn install_policies(&self, documents: &[Document], generation: u64) {
        let Some(credentials) = self.credentials.current() else { return };
        let mut workload = Workload::of(&credentials.id);
        workload.labels.clone_from(&self.labels);
        workload.mesh.clone_from(&self.mesh);
        let set = PolicySet::compile(documents, &workload, generation);
        self.policies.store(Some(Arc::new(set)));
        self.metrics.policies(generation, true);
        self.policies_changed.send_modify(|n| *n += 1);
    }
}

/// Only the given documents: compiled as soon as the identity is known, and again if it changes.
pub(crate) async fn follow_identity(shared: Arc<Shared>, given: Vec<Document>) {
    let mut changes = shared.credentials.subscribe();
    let mut last = None;
    loop {
        changes.borrow_and_update();
        let id = shared.credentials.current().map(|c| c.id.clone());
        if id.is_some() && id != last {
            shared.install_policies(&given, 1);
            last = id;
        }
        if changes.changed().await.is_err() {
            return;
        }
    }
}

/// Given documents and the agent's.
pub(crate) async fn follow_agent(socket: PathBuf, shared: Arc<Shared>, given: Vec<Document>) {
    let mut backoff = Backoff::new(Duration::from_secs(5));
    let mut identity = shared.credentials.subscribe();
    // The agent answers only those who have an identity.
    while shared.credentials.current().is_none() {
        if identity.changed().await.is_err() {
            return;
        }
    }
    let channel = dial::unix(socket);
    let mut last: Option<(Vec<Document>, u64)> = None;
    loop {
        let mut client = NodeClient::new(channel.clone()).max_decoding_message_size(64 << 20);
        let failure = match client.watch_policies(WatchPoliciesRequest {}).await {
            Err(e) if e.code() == GrpcCode::Unimplemented => {
                // Another vendor's Workload API: it has no policies to tell.
                return follow_identity(shared, given).await;
            }
            Err(e) => to_finding(&e, Code::AgentUnreachable),
            Ok(stream) => {
                let mut stream = stream.into_inner();
                loop {
                    let message = tokio::select! {
                        message = stream.message() => message,
                        // Compiled for the identity in use: a new one, or one that returns, counts.
                        changed = identity.changed() => {
                            if changed.is_err() { return }
                            if let Some((all, generation)) = &last {
                                shared.install_policies(all, *generation);
                            }
                            continue;
                        }
                    };
                    match message {
                        Ok(Some(set)) => {
                            backoff.reset();
                            let parsed: Result<Vec<Vec<Document>>, Finding> = set
                                .documents
                                .iter()
                                .map(|d| {
                                    let origin = format!("{}/{}/{}", d.kind, d.namespace, d.name);
                                    parse(&d.yaml, &origin)
                                })
                                .collect();
                            match parsed {
                                Ok(parsed) => {
                                    let mut all = given.clone();
                                    all.extend(parsed.into_iter().flatten());
                                    shared.install_policies(&all, set.generation);
                                    last = Some((all, set.generation));
                                }
                                Err(e) => {
                                    shared.metrics.policies(set.generation, false);
                                    tracing::error!(code = %e.code, "policies are not used, the last good set stays: {e}");
                                }
                            }
                        }
                        Ok(None) => break Finding::new(Code::AgentUnreachable, "the stream ended"),
                        Err(e) => break to_finding(&e, Code::AgentUnreachable),
                    }
                }
            }
        };
        tracing::debug!(code = %failure.code, "policy source: {}", failure.message);
        tokio::time::sleep(backoff.pause(u32::from_be_bytes(countersign_keys::random()))).await;
    }
}
