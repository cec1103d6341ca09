//! What the connections of a proxy share.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use countersign_engines::Engines;
use countersign_findings::{Code, Finding};
use countersign_issuers::Issuers;
use countersign_policy::PolicySet;
use countersign_telemetry::{AccessLog, ConnectionId, Direction, HandshakeRecord, Metrics};
use countersign_tls::LiveCredentials;
use countersign_x509::LegacyTrust;
use tokio::sync::watch;

pub(crate) struct Shared {
    pub(crate) credentials: Arc<LiveCredentials>,
    /// `None` until policies are known; then nothing is permitted.
    pub(crate) policies: ArcSwapOption<PolicySet>,
    pub(crate) policies_changed: watch::Sender<u64>,
    /// For whoever asks about the node.
    pub(crate) policy_state: watch::Sender<PolicyState>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) log: AccessLog,
    pub(crate) process: u64,
    pub(crate) handshake_timeout: Duration,
    pub(crate) labels: Option<countersign_policy::Labels>,
    pub(crate) mesh: countersign_policy::Mesh,
    pub(crate) engines: Engines,
    pub(crate) issuers: Arc<Issuers>,
    /// Whether policies want JWT-SVIDs.
    pub(crate) jwt_svids: watch::Sender<bool>,
    /// Whom to let in without a SPIFFE ID.
    pub(crate) legacy: Option<Arc<LegacyTrust>>,
    pub(crate) edges: Option<crate::edges::EdgeLog>,
    pub(crate) connections: AtomicUsize,
    pub(crate) max_connections: usize,
    pub(crate) draining: watch::Sender<bool>,
}

/// What became of the policies.
#[derive(Clone, Debug, Default)]
pub(crate) struct PolicyState {
    /// The generation in force; 0 for none.
    pub(crate) generation: u64,
    /// What is wrong with it, or why a newer one is not in force.
    pub(crate) trouble: String,
    /// Whether a newer one is not in force.
    pub(crate) refused: bool,
}

/// Upstream may take this long to accept.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection's place; given back when dropped.
pub(crate) struct Place(Arc<Shared>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Shared {
    /// Takes a place, if the limit allows.
    pub(crate) fn place(self: &Arc<Self>) -> Option<Place> {
        let before = self.connections.fetch_add(1, Ordering::Relaxed);
        let place = Place(Arc::clone(self));
        (before < self.max_connections).then_some(place)
    }

    pub(crate) fn connection_id(&self) -> ConnectionId {
        ConnectionId::next(self.process)
    }

    /// Notes a connection that was refused or failed before it was established.
    pub(crate) fn refuse(
        &self,
        direction: Direction,
        id: ConnectionId,
        source: String,
        destination: String,
        finding: &Finding,
    ) {
        self.metrics.handshake_failed(direction, finding.code);
        self.note("handshake", direction, id, source, destination, finding);
    }

    /// Writes a failure to log and access log.
    pub(crate) fn note(
        &self,
        event: &'static str,
        direction: Direction,
        id: ConnectionId,
        source: String,
        destination: String,
        finding: &Finding,
    ) {
        tracing::info!(
            code = %finding.code,
            connection = %id,
            direction = direction.as_str(),
            source, destination,
            expected = finding.expected, presented = finding.presented, trusted = finding.trusted,
            hint = finding.hint,
            "refused: {}", finding.message
        );
        if self.log.is_on() {
            self.log.write(HandshakeRecord {
                event,
                connection_id: id.to_string(),
                direction: direction.as_str(),
                source_workload: source,
                destination_workload: destination,
                result: "failure",
                failure_reason: Some(finding.code.slug()),
                code: Some(finding.code),
                message: finding.message.clone(),
                expected: finding.expected.clone(),
                presented: finding.presented.clone(),
                trusted: finding.trusted.clone(),
                ..HandshakeRecord::default()
            });
        }
    }
}

/// The refusal for a proxy that cannot prove itself yet.
pub(crate) fn no_identity_yet() -> Finding {
    Finding::new(Code::NoIdentityYet, "the proxy has no identity yet")
}
