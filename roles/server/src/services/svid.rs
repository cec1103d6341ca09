//! Issuance.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use countersign_findings::{Code as Cs, Finding};
use countersign_identity::Entry;
use countersign_tls::current_time;
use countersign_wire::convert;
use countersign_wire::proto::spire::api::server::svid::v1 as api;
use countersign_wire::proto::spire::api::types;
use countersign_wire::rpc::{Code, Request, Response, Status};
use countersign_wire::status::from_finding;
use countersign_x509::csr;

use crate::authority::{IssueRequest, Issued, IssuedJwt};
use crate::shared::Shared;

/// Requests in one batch.
const MAX_BATCH: usize = 500;

pub(crate) struct Service(pub(crate) Arc<Shared>);

pub(crate) fn wire_svid(issued: &Issued, hint: &str) -> types::X509svid {
    types::X509svid {
        cert_chain: issued.chain.clone(),
        id: Some(convert::from_spiffe_id(&issued.id)),
        expires_at: issued.not_after.secs(),
        hint: hint.to_owned(),
    }
}

fn wire_jwt(issued: IssuedJwt, id: &countersign_identity::SpiffeId, hint: &str) -> types::Jwtsvid {
    types::Jwtsvid {
        token: issued.token,
        id: Some(convert::from_spiffe_id(id)),
        expires_at: issued.expires_at.secs(),
        issued_at: issued.issued_at.secs(),
        hint: hint.to_owned(),
    }
}

pub(crate) fn key_of(csr_der: &[u8]) -> Result<Vec<u8>, Finding> {
    csr::verify(csr_der).map_err(|e| Finding::new(Cs::CsrInvalid, e.to_string()))
}

fn ttl_or(secs: i32, default: Duration) -> Duration {
    u64::try_from(secs).ok().filter(|s| *s > 0).map_or(default, Duration::from_secs)
}

impl Service {
    /// The entry, if this agent may hand it out.
    async fn authorized(
        &self,
        agent: &countersign_store::AgentRecord,
    ) -> HashMap<String, Arc<Entry>> {
        self.0
            .registry
            .authorized(agent, current_time())
            .into_iter()
            .map(|e| (e.id.clone(), e))
            .collect()
    }
}

#[async_trait::async_trait]
impl api::svid_server::Svid for Service {
    /// For administrators: an SVID for the identity that the request's URI SAN names.
    async fn mint_x509svid(
        &self,
        request: Request<api::MintX509svidRequest>,
    ) -> Result<Response<api::MintX509svidResponse>, Status> {
        let who = self.0.require_admin(&request)?;
        let r = request.into_inner();
        let fail = |e: Finding| from_finding(&e);
        let spki = key_of(&r.csr).map_err(fail)?;
        let names = csr::requested_names(&r.csr)
            .map_err(|e| fail(Finding::new(Cs::CsrInvalid, e.to_string())))?;
        if !names.id.is_member_of(&self.0.trust_domain) || names.id.is_reserved() {
            return Err(fail(Finding::new(
                Cs::CsrInvalid,
                format!("`{}` is not a workload of `{}`", names.id, self.0.trust_domain),
            )));
        }
        let issued = self
            .0
            .authority
            .issue(
                vec![IssueRequest {
                    id: names.id,
                    spki,
                    dns_names: names.dns_names,
                    ttl: ttl_or(r.ttl, self.0.x509_ttl),
                    kind: "x509",
                    issued_to: who,
                }],
                current_time(),
            )
            .await
            .map_err(fail)?;
        Ok(Response::new(api::MintX509svidResponse {
            svid: issued.first().map(|i| wire_svid(i, "")),
        }))
    }

    async fn mint_jwtsvid(
        &self,
        request: Request<api::MintJwtsvidRequest>,
    ) -> Result<Response<api::MintJwtsvidResponse>, Status> {
        let who = self.0.require_admin(&request)?;
        let r = request.into_inner();
        let id = convert::spiffe_id("id", r.id.as_ref()).map_err(|e| from_finding(&e))?;
        if !id.is_member_of(&self.0.trust_domain) || id.is_trust_domain() || id.is_reserved() {
            return Err(Status::invalid_argument("id is not a workload of this trust domain"));
        }
        let issued = self
            .0
            .authority
            .issue_jwt(&id, &r.audience, ttl_or(r.ttl, self.0.jwt_ttl), who, current_time())
            .await
            .map_err(|e| from_finding(&e))?;
        Ok(Response::new(api::MintJwtsvidResponse { svid: Some(wire_jwt(issued, &id, "")) }))
    }

    async fn batch_new_x509svid(
        &self,
        request: Request<api::BatchNewX509svidRequest>,
    ) -> Result<Response<api::BatchNewX509svidResponse>, Status> {
        use api::batch_new_x509svid_response::Result as Item;
        let agent = self.0.require_agent(&request).await?;
        let params = request.into_inner().params;
        if params.len() > MAX_BATCH {
            return Err(Status::invalid_argument(format!("at most {MAX_BATCH} requests")));
        }
        let entries = self.authorized(&agent).await;
        let mut items: Vec<Option<Item>> = Vec::with_capacity(params.len());
        let mut hints = Vec::new();
        let mut wanted = Vec::new();
        for p in &params {
            let refuse = |code: Code, message: String| {
                Some(Item {
                    status: Some(types::Status { code: code as i32, message }),
                    svid: None,
                })
            };
            let Some(entry) = entries.get(&p.entry_id) else {
                items.push(refuse(Code::NotFound, "entry not found or not authorized".into()));
                continue;
            };
            match key_of(&p.csr) {
                Err(e) => items.push(refuse(Code::InvalidArgument, e.message)),
                Ok(spki) => {
                    items.push(None);
                    hints.push(entry.hint.clone());
                    wanted.push(IssueRequest {
                        id: entry.spiffe_id.clone(),
                        spki,
                        dns_names: entry.dns_names.clone(),
                        ttl: entry.x509_svid_ttl.unwrap_or(self.0.x509_ttl),
                        kind: "x509",
                        issued_to: agent.id.to_string(),
                    });
                }
            }
        }
        let issued = if wanted.is_empty() {
            Vec::new()
        } else {
            self.0.authority.issue(wanted, current_time()).await.map_err(|e| from_finding(&e))?
        };
        let mut issued = issued.iter().zip(hints);
        let results = items
            .into_iter()
            .filter_map(|item| {
                item.or_else(|| {
                    issued.next().map(|(i, hint)| Item {
                        status: Some(types::Status { code: Code::Ok as i32, message: "OK".into() }),
                        svid: Some(wire_svid(i, &hint)),
                    })
                })
            })
            .collect();
        Ok(Response::new(api::BatchNewX509svidResponse { results }))
    }

    async fn new_jwtsvid(
        &self,
        request: Request<api::NewJwtsvidRequest>,
    ) -> Result<Response<api::NewJwtsvidResponse>, Status> {
        let agent = self.0.require_agent(&request).await?;
        let r = request.into_inner();
        let entries = self.authorized(&agent).await;
        let entry = entries
            .get(&r.entry_id)
            .ok_or_else(|| Status::not_found("entry not found or not authorized"))?;
        let ttl = entry.jwt_svid_ttl.unwrap_or(self.0.jwt_ttl);
        let issued = self
            .0
            .authority
            .issue_jwt(&entry.spiffe_id, &r.audience, ttl, agent.id.to_string(), current_time())
            .await
            .map_err(|e| from_finding(&e))?;
        Ok(Response::new(api::NewJwtsvidResponse {
            svid: Some(wire_jwt(issued, &entry.spiffe_id, &entry.hint)),
        }))
    }
}
