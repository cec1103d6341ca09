//! What is told about a connection: records, metrics, observed calls.

use std::time::Duration;

use countersign_findings::{Code, Finding};
use countersign_identity::SpiffeId;
use countersign_policy::HttpRequest;
use countersign_telemetry::{Direction, HandshakeRecord};
use countersign_tls::HandshakeInfo;
use countersign_x509::Peer;

use super::{Inbound, Policies, Proof, source_of, who};
use crate::edges::Edge;
use crate::forward::Volume;

impl Inbound<'_> {
    pub(super) fn destination(&self) -> String {
        match self.shared.credentials.current() {
            Some(c) => c.id.to_string(),
            None => self.local.to_string(),
        }
    }

    pub(super) fn refuse(&self, finding: &Finding) {
        self.shared.refuse(
            Direction::Inbound,
            self.id,
            self.from.to_string(),
            self.destination(),
            finding,
        );
    }

    pub(super) fn record_edge(&self, peer: Option<&Peer>, http: Option<HttpRequest<'_>>) {
        // A legacy peer has no principal: it would be taken for plaintext.
        let Some(edges) =
            &self.shared.edges.as_ref().filter(|_| !matches!(peer, Some(Peer::Legacy(_))))
        else {
            return;
        };
        let Some(own) = self.shared.credentials.current() else { return };
        edges.record(&Edge {
            principal: peer.and_then(Peer::id).map(SpiffeId::as_str),
            namespace: own.id.namespace().unwrap_or("default"),
            labels: self.shared.labels.as_ref(),
            port: self.local.port(),
            http: http.map(|h| (h.method, h.host, h.path)),
        });
    }

    /// Reports which AUDIT and tried-out policies match. They decide nothing.
    pub(super) fn audit(
        &self,
        policies: &Policies,
        peer: Option<&Peer>,
        http: Option<HttpRequest<'_>>,
        proof: Proof<'_>,
    ) {
        let Some(policies) = policies.as_ref().filter(|p| p.audits()) else { return };
        let request = self.request(source_of(peer), http, proof);
        for policy in policies.audited(&request) {
            self.shared.metrics.audited();
            tracing::info!(connection = %self.id, source = who(peer, self.from), policy, "audit: policy matches");
            if self.shared.log.is_on() {
                self.shared.log.write(HandshakeRecord {
                    event: "audit",
                    connection_id: self.id.to_string(),
                    direction: "inbound",
                    source_workload: who(peer, self.from),
                    destination_workload: self.destination(),
                    source_identity: peer.and_then(Peer::id).map(ToString::to_string),
                    result: "success",
                    message: format!("policy {policy} matches"),
                    ..HandshakeRecord::default()
                });
            }
        }
    }

    pub(super) fn cut(&self, peer: Option<&Peer>, code: Code) {
        self.shared.metrics.cut(code);
        self.note(peer, &Finding::new(code, code.title()));
    }

    pub(super) fn note(&self, peer: Option<&Peer>, finding: &Finding) {
        self.shared.note(
            "request_denied",
            Direction::Inbound,
            self.id,
            who(peer, self.from),
            self.destination(),
            finding,
        );
    }

    pub(super) fn note_handshake(&self, peer: &Peer, info: &HandshakeInfo) {
        if self.shared.log.is_on() {
            self.shared.log.write(HandshakeRecord {
                event: "handshake",
                connection_id: self.id.to_string(),
                direction: "inbound",
                source_workload: peer.name().to_owned(),
                destination_workload: self.destination(),
                source_identity: peer.id().map(ToString::to_string),
                destination_identity: Some(self.destination()),
                result: "success",
                tls_version: info.version.to_owned(),
                key_exchange: info.group.clone(),
                resumed: info.resumed,
                duration_ms: info.duration.as_secs_f64() * 1000.0,
                ..HandshakeRecord::default()
            });
        }
    }

    pub(super) fn note_closed(&self, peer: Option<&Peer>, life: Duration, count: &Volume) {
        if self.shared.log.is_on() {
            self.shared.log.write(HandshakeRecord {
                event: "connection_closed",
                connection_id: self.id.to_string(),
                direction: "inbound",
                source_workload: who(peer, self.from),
                destination_workload: self.destination(),
                source_identity: peer.and_then(Peer::id).map(ToString::to_string),
                result: "success",
                duration_ms: life.as_secs_f64() * 1000.0,
                bytes_sent: Some(count.sent),
                bytes_received: Some(count.received),
                ..HandshakeRecord::default()
            });
        }
    }
}
