//! Agents: attestation, renewal, administration.

use std::sync::Arc;
use std::time::Duration;

use countersign_findings::{Code as Cs, Finding};
use countersign_identity::{Entry, Selector, SelectorSet, SpiffeId, UnixTime};
use countersign_store::{AgentRecord, JoinToken};
use countersign_telemetry::Outcome;
use countersign_tls::current_time;
use countersign_wire::convert;
use countersign_wire::proto::spire::api::server::agent::v1 as api;
use countersign_wire::proto::spire::api::types;
use countersign_wire::rpc::{BoxStream, Request, Response, Status, Streaming};
use countersign_wire::status::{Reason, agent_denied, from_finding};
use countersign_x509::sha256;
use tokio_stream::StreamExt;

use crate::authority::{IssueRequest, Issued};
use crate::services::page;
use crate::services::svid::{key_of, wire_svid};
use crate::shared::Shared;

/// Least life of an agent's own certificate; the signing CA's end caps it.
const AGENT_TTL: Duration = Duration::from_secs(24 * 3600);
const MAX_TOKEN_TTL: Duration = Duration::from_secs(7 * 86_400);
const DEFAULT_TOKEN_TTL: Duration = Duration::from_secs(600);

pub(crate) struct Service(pub(crate) Arc<Shared>);

fn fail(e: Finding) -> Status {
    from_finding(&e)
}

fn wire_agent(a: &AgentRecord, mask: Option<&types::AgentMask>) -> types::Agent {
    let all = types::AgentMask {
        attestation_type: true,
        x509svid_serial_number: true,
        x509svid_expires_at: true,
        selectors: true,
        banned: true,
        can_reattest: true,
        agent_version: true,
    };
    let m = mask.unwrap_or(&all);
    types::Agent {
        id: Some(convert::from_spiffe_id(&a.id)),
        attestation_type: if m.attestation_type { a.attestor.clone() } else { String::new() },
        x509svid_serial_number: if m.x509svid_serial_number {
            a.serial.clone()
        } else {
            String::new()
        },
        x509svid_expires_at: if m.x509svid_expires_at { a.not_after.secs() } else { 0 },
        selectors: if m.selectors { convert::from_selectors(&a.selectors) } else { Vec::new() },
        banned: m.banned && a.banned,
        can_reattest: m.can_reattest && a.can_reattest,
        agent_version: if m.agent_version { a.version.clone() } else { String::new() },
    }
}

struct Filter {
    attestation_type: String,
    selectors: Option<types::SelectorMatch>,
    banned: Option<bool>,
    can_reattest: Option<bool>,
    expires_before: String,
}

impl Filter {
    fn compile(self) -> Result<impl Fn(&AgentRecord) -> bool, Status> {
        let selectors = self
            .selectors
            .map(|m| {
                convert::selectors("by_selector_match", &m.selectors)
                    .map(|s| (s, m.r#match))
                    .map_err(fail)
            })
            .transpose()?;
        let before = if self.expires_before.is_empty() {
            None
        } else {
            Some(UnixTime::parse(&self.expires_before).ok_or_else(|| {
                Status::invalid_argument("by_expires_before is not an RFC 3339 time")
            })?)
        };
        Ok(move |a: &AgentRecord| {
            (self.attestation_type.is_empty() || a.attestor == self.attestation_type)
                && selectors
                    .as_ref()
                    .is_none_or(|(s, m)| convert::selectors_match(&a.selectors, s, *m))
                && self.banned.is_none_or(|b| a.banned == b)
                && self.can_reattest.is_none_or(|b| a.can_reattest == b)
                && before.is_none_or(|t| a.not_after < t)
        })
    }
}

impl Service {
    async fn issue(&self, id: &SpiffeId, csr: &[u8]) -> Result<Issued, Status> {
        let spki = key_of(csr).map_err(fail)?;
        let request = IssueRequest {
            id: id.clone(),
            spki,
            dns_names: Vec::new(),
            // A join-token agent cannot attest again: it must live through a night without its server.
            ttl: self.0.x509_ttl.max(AGENT_TTL),
            kind: "agent",
            issued_to: "server".into(),
        };
        self.0
            .authority
            .issue(vec![request], current_time())
            .await
            .map_err(fail)?
            .pop()
            .ok_or_else(|| Status::internal("nothing was issued"))
    }

    /// Join token: knowing it is the proof; it admits one agent.
    async fn attest(&self, params: api::attest_agent_request::Params) -> Result<Issued, Status> {
        let refuse = |what: &str| fail(Finding::new(Cs::JoinTokenInvalid, what));
        let data = params.data.unwrap_or_default();
        if data.r#type != "join_token" {
            return Err(Status::invalid_argument(format!(
                "node attestor `{}` is not supported; use join_token",
                data.r#type.chars().take(40).collect::<String>()
            )));
        }
        let csr = params.params.unwrap_or_default().csr;
        // The request must be sound before the token is used up.
        key_of(&csr).map_err(fail)?;
        let token = std::str::from_utf8(&data.payload)
            .ok()
            .filter(|t| !t.is_empty() && t.len() <= 255)
            .ok_or_else(|| refuse("join token is not text of at most 255 bytes"))?;
        let id =
            SpiffeId::from_path(&self.0.trust_domain, &format!("/spire/agent/join_token/{token}"))
                .map_err(|_| refuse("join token holds characters that no token has"))?;
        if self.0.registry.agent(&id).is_some_and(|a| a.banned) {
            return Err(agent_denied(Cs::AgentBanned, "agent is banned", Reason::AgentBanned));
        }
        let now = current_time();
        let found = self
            .0
            .store
            .consume_join_token(sha256(token.as_bytes()))
            .await
            .map_err(|e| fail(e.finding()))?
            .ok_or_else(|| refuse("join token does not exist or has already been used"))?;
        if found.expires_at <= now {
            return Err(refuse("join token has expired"));
        }
        let issued = self.issue(&id, &csr).await?;
        if let Some(alias) = found.alias {
            let selector = Selector::new("spiffe_id", id.as_str())
                .map_err(|e| Status::internal(e.to_string()))?;
            let entry = Entry::new(alias, id.clone(), SelectorSet::from_iter([selector]));
            let _created = self.0.registry.create(entry, now).await.map_err(fail)?;
        }
        let agent = AgentRecord {
            id: id.clone(),
            attestor: "join_token".into(),
            selectors: SelectorSet::default(),
            serial: issued.serial.clone(),
            not_after: issued.not_after,
            next_serial: None,
            next_not_after: None,
            banned: false,
            can_reattest: false,
            version: String::new(),
        };
        self.0.registry.put_agent(agent).await.map_err(fail)?;
        tracing::info!(agent = %id, "agent attested by join token");
        Ok(issued)
    }
}

#[async_trait::async_trait]
impl api::agent_server::Agent for Service {
    async fn count_agents(
        &self,
        request: Request<api::CountAgentsRequest>,
    ) -> Result<Response<api::CountAgentsResponse>, Status> {
        self.0.require_admin(&request)?;
        let f = request.into_inner().filter.unwrap_or_default();
        let wanted = Filter {
            attestation_type: f.by_attestation_type,
            selectors: f.by_selector_match,
            banned: f.by_banned,
            can_reattest: f.by_can_reattest,
            expires_before: f.by_expires_before,
        }
        .compile()?;
        let n = self.0.registry.agents().iter().filter(|a| wanted(a)).count();
        Ok(Response::new(api::CountAgentsResponse { count: i32::try_from(n).unwrap_or(i32::MAX) }))
    }

    async fn list_agents(
        &self,
        request: Request<api::ListAgentsRequest>,
    ) -> Result<Response<api::ListAgentsResponse>, Status> {
        self.0.require_admin(&request)?;
        let r = request.into_inner();
        let f = r.filter.unwrap_or_default();
        let wanted = Filter {
            attestation_type: f.by_attestation_type,
            selectors: f.by_selector_match,
            banned: f.by_banned,
            can_reattest: f.by_can_reattest,
            expires_before: f.by_expires_before,
        }
        .compile()?;
        let all: Vec<AgentRecord> = self
            .0
            .registry
            .agents()
            .into_iter()
            .filter(|a| a.id.as_str() > r.page_token.as_str() && wanted(a))
            .collect();
        let (all, next_page_token) = page(all, r.page_size, |a| a.id.to_string());
        let agents = all.iter().map(|a| wire_agent(a, r.output_mask.as_ref())).collect();
        Ok(Response::new(api::ListAgentsResponse { agents, next_page_token }))
    }

    async fn get_agent(
        &self,
        request: Request<api::GetAgentRequest>,
    ) -> Result<Response<types::Agent>, Status> {
        self.0.require_admin(&request)?;
        let r = request.into_inner();
        let id = convert::spiffe_id("id", r.id.as_ref()).map_err(fail)?;
        let agent =
            self.0.registry.agent(&id).ok_or_else(|| Status::not_found("agent not found"))?;
        Ok(Response::new(wire_agent(&agent, r.output_mask.as_ref())))
    }

    async fn delete_agent(
        &self,
        request: Request<api::DeleteAgentRequest>,
    ) -> Result<Response<()>, Status> {
        self.0.require_admin(&request)?;
        let id = convert::spiffe_id("id", request.get_ref().id.as_ref()).map_err(fail)?;
        if !self.0.registry.delete_agent(&id).await.map_err(fail)? {
            return Err(Status::not_found("agent not found"));
        }
        Ok(Response::new(()))
    }

    async fn ban_agent(
        &self,
        request: Request<api::BanAgentRequest>,
    ) -> Result<Response<()>, Status> {
        self.0.require_admin(&request)?;
        let id = convert::spiffe_id("id", request.get_ref().id.as_ref()).map_err(fail)?;
        let ban = |a| AgentRecord { banned: true, next_serial: None, next_not_after: None, ..a };
        let banned = self.0.registry.change_agent(&id, ban).await.map_err(fail)?;
        if banned.is_none() {
            return Err(Status::not_found("agent not found"));
        }
        Ok(Response::new(()))
    }

    type AttestAgentStream = BoxStream<api::AttestAgentResponse>;

    /// Open to anyone; bounded in number, because each attempt costs a signature check and a write.
    async fn attest_agent(
        &self,
        request: Request<Streaming<api::AttestAgentRequest>>,
    ) -> Result<Response<Self::AttestAgentStream>, Status> {
        use api::attest_agent_request::Step;
        let mut input = request.into_inner();
        let first = tokio::time::timeout(Duration::from_secs(10), input.next())
            .await
            .map_err(|_| Status::deadline_exceeded("no attestation data came"))?
            .ok_or_else(|| Status::invalid_argument("a first message is needed"))??;
        let Some(Step::Params(params)) = first.step else {
            return Err(Status::invalid_argument("the first message must carry params"));
        };
        // After the message is there: a silent stream must not hold a place.
        let _slot = tokio::time::timeout(Duration::from_secs(10), self.0.attesting.acquire())
            .await
            .map_err(|_| fail(Finding::new(Cs::ServiceOverloaded, "too many agents attest now")))?
            .map_err(|e| Status::internal(e.to_string()))?;
        let result = self.attest(params).await;
        let outcome = if result.is_ok() { Outcome::Success } else { Outcome::Failure };
        self.0.metrics.attested("node", outcome);
        let answer = api::AttestAgentResponse {
            step: Some(api::attest_agent_response::Step::Result(
                api::attest_agent_response::Result {
                    svid: Some(wire_svid(&result?, "")),
                    reattestable: false,
                },
            )),
        };
        Ok(Response::new(Box::pin(tokio_stream::once(Ok(answer)))))
    }

    async fn renew_agent(
        &self,
        request: Request<api::RenewAgentRequest>,
    ) -> Result<Response<api::RenewAgentResponse>, Status> {
        let agent = self.0.require_agent(&request).await?;
        let csr = request.into_inner().params.unwrap_or_default().csr;
        let issued = self.issue(&agent.id, &csr).await?;
        let renewed = self
            .0
            .registry
            .change_agent(&agent.id, |a| AgentRecord {
                next_serial: Some(issued.serial.clone()),
                next_not_after: Some(issued.not_after),
                ..a
            })
            .await
            .map_err(fail)?;
        if renewed.is_none_or(|a| a.banned) {
            return Err(agent_denied(Cs::AgentBanned, "agent is banned", Reason::AgentBanned));
        }
        Ok(Response::new(api::RenewAgentResponse { svid: Some(wire_svid(&issued, "")) }))
    }

    async fn create_join_token(
        &self,
        request: Request<api::CreateJoinTokenRequest>,
    ) -> Result<Response<types::JoinToken>, Status> {
        self.0.require_admin(&request)?;
        let r = request.into_inner();
        let ttl = match u64::try_from(r.ttl) {
            Ok(0) => DEFAULT_TOKEN_TTL,
            Ok(secs) => Duration::from_secs(secs).min(MAX_TOKEN_TTL),
            Err(_) => return Err(Status::invalid_argument("ttl is negative")),
        };
        let alias = match r.agent_id {
            None => None,
            Some(id) => {
                let id = convert::spiffe_id("agent_id", Some(&id)).map_err(fail)?;
                if !id.is_member_of(&self.0.trust_domain)
                    || id.is_reserved()
                    || id.is_trust_domain()
                {
                    return Err(Status::invalid_argument("agent_id is not a node alias here"));
                }
                Some(id)
            }
        };
        let value = if r.token.is_empty() {
            countersign_keys::random_hex::<16>()
        } else {
            let sound = (16..=255).contains(&r.token.len())
                && r.token.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
            if !sound {
                return Err(Status::invalid_argument(
                    "a token has 16 to 255 letters, digits, `-`, `.` or `_`",
                ));
            }
            r.token
        };
        let expires_at = current_time() + ttl;
        self.0
            .store
            .create_join_token(JoinToken { sha256: sha256(value.as_bytes()), expires_at, alias })
            .await
            .map_err(|e| fail(e.finding()))?;
        Ok(Response::new(types::JoinToken { value, expires_at: expires_at.secs() }))
    }

    async fn post_status(
        &self,
        request: Request<api::PostStatusRequest>,
    ) -> Result<Response<api::PostStatusResponse>, Status> {
        let agent = self.0.require_agent(&request).await?;
        let version: String = request
            .into_inner()
            .agent_version
            .chars()
            .filter(|c| c.is_ascii_graphic())
            .take(64)
            .collect();
        if agent.version != version {
            self.0
                .registry
                .change_agent(&agent.id, |a| AgentRecord { version, ..a })
                .await
                .map_err(fail)?;
        }
        Ok(Response::new(api::PostStatusResponse {}))
    }
}
