//! Asking an external engine, where a CUSTOM policy wants that.

use countersign_engines::{Question, Reply};
use countersign_findings::Code;
use countersign_policy::{Answer, Attributes, Authenticated, HttpRequest};
use countersign_telemetry::EngineResult;
use countersign_x509::Peer;

use super::{Inbound, Outcome, Policies, Proof, source_of};
use crate::http1::RequestHead;

/// The parts of a request that an engine is told besides what policies see.
#[derive(Clone, Copy)]
pub(super) struct Asked<'a> {
    pub(super) http: HttpRequest<'a>,
    pub(super) query: &'a str,
    pub(super) protocol: &'static str,
}

impl<'a> Asked<'a> {
    pub(super) fn of(head: &'a RequestHead<'_>, http: HttpRequest<'a>) -> Self {
        Self { http, query: head.query(), protocol: head.protocol() }
    }
}

impl Inbound<'_> {
    /// What the engine says; `None` where its answer would change nothing: no CUSTOM policy matches, or the
    /// caller is refused whatever it says.
    pub(super) async fn consult(
        &self,
        policies: &Policies,
        peer: Option<&Peer>,
        asked: Option<Asked<'_>>,
        proof: Proof<'_>,
    ) -> Option<Reply> {
        let set = policies.as_ref().filter(|p| p.providers().next().is_some())?;
        let http = asked.map(|a| a.http);
        match self.decide(policies, &source_of(peer), http, proof) {
            Outcome::Decided(d) => d.permit().err().filter(|d| d.code == Code::EngineNotAsked)?,
            _ => return None,
        };
        let request = self.request(source_of(peer), http, proof);
        let attributes = Attributes::from(&request);
        let consultation = set.consult(&attributes)?;
        let credentials = self.shared.credentials.current()?;
        let (own_id, id) = (credentials.id.to_string(), self.id.to_string());
        let question = Question {
            attributes,
            source_port: self.from.port(),
            own_id: &own_id,
            query: asked.map_or("", |a| a.query),
            protocol: asked.map_or("", |a| a.protocol),
            id: &id,
            now: std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .unwrap_or_default(),
        };
        let begun = std::time::Instant::now();
        let reply = self.shared.engines.ask(&consultation.provider, &question).await;
        let result = match &reply.external.answer {
            Answer::Allowed => EngineResult::Allowed,
            Answer::Denied(_) => EngineResult::Denied,
            Answer::Failed(_) => EngineResult::Failed,
            Answer::Misconfigured(_) => EngineResult::Misconfigured,
        };
        self.shared.metrics.engine_asked(&consultation.provider, result, begun.elapsed());
        Some(reply)
    }

    /// Whether the connection may be relayed as bytes, so that a server that speaks first may be dialled.
    pub(super) async fn tcp_allowed(&self, peer: Option<&Peer>) -> bool {
        let policies = self.policies();
        let reply = self.consult(&policies, peer, None, Proof::default()).await;
        let proof = Proof { token: None, external: reply.as_ref().map(|r| &r.external) };
        self.decide(&policies, &source_of(peer), None, proof).is_allowed()
    }
}

/// The changes that token and engine lead to, together.
pub(super) fn edited(
    authenticated: Option<Box<Authenticated>>,
    reply: Option<&Reply>,
    head: &RequestHead<'_>,
) -> Option<Box<Authenticated>> {
    let Some(reply) = reply.filter(|r| !r.edits.is_empty()) else { return authenticated };
    let mut out = authenticated.unwrap_or_default();
    let fields: Vec<(String, String)> =
        head.judged(Some(&out)).into_iter().map(|(n, v)| (n.to_owned(), v.to_owned())).collect();
    let fields: Vec<(&str, &str)> = fields.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
    reply.edits.apply(&fields, &mut out);
    Some(out)
}
