//! For operators, over the admin socket.

use std::sync::Arc;

use countersign_findings::{Code, Finding};
use countersign_identity::UnixTime;
use countersign_policy::Document;
use countersign_store::{AuthorityRecord, PolicyRecord};
use countersign_tls::current_time;
use countersign_wire::convert::from_memory;
use countersign_wire::proto::countersign::server::v1 as api;
use countersign_wire::rpc::{Request, Response, Status};
use countersign_wire::status::from_finding;
use countersign_x509::CertInfo;

use crate::shared::Shared;

/// Most policies a server holds.
const MAX_POLICIES: usize = 100_000;

pub(crate) struct Service(pub(crate) Arc<Shared>);

fn fail(e: Finding) -> Status {
    from_finding(&e)
}

fn document(p: PolicyRecord) -> api::PolicyDocument {
    api::PolicyDocument { kind: p.kind, namespace: p.namespace, name: p.name, yaml: p.yaml }
}

pub(crate) fn policy_set(shared: &Shared) -> api::PolicySet {
    api::PolicySet {
        generation: shared.policies.generation(),
        documents: shared.policies.list().into_iter().map(document).collect(),
    }
}

/// Keys without a certificate begin when they are published.
fn begins(authority: &AuthorityRecord) -> UnixTime {
    let cert = authority.chain.first().and_then(|der| CertInfo::parse(der).ok());
    cert.map_or(authority.published_at, |cert| cert.not_before)
}

impl Service {
    fn state(&self) -> api::AuthorityState {
        let current = self.0.authority.current();
        api::AuthorityState {
            authorities: current
                .list()
                .map(|(a, online)| api::authority_state::Authority {
                    kind: a.record.kind.as_str().into(),
                    state: a.record.status.as_str().into(),
                    fingerprint: a.record.key_id.clone(),
                    not_after: a.record.not_after.secs(),
                    not_before: begins(&a.record).secs(),
                    online,
                })
                .collect(),
        }
    }
}

#[async_trait::async_trait]
impl api::admin_server::Admin for Service {
    async fn info(
        &self,
        request: Request<api::InfoRequest>,
    ) -> Result<Response<api::InfoResponse>, Status> {
        self.0.require_local(&request)?;
        let (entries, agents) = self.0.registry.counts();
        let issued = self.0.store.journal_len().await.map_err(|e| fail(e.finding()))?;
        Ok(Response::new(api::InfoResponse {
            trust_domain: self.0.trust_domain.to_string(),
            version: env!("CARGO_PKG_VERSION").into(),
            address: self.0.address.clone(),
            started_at: self.0.started_at.secs(),
            entries: u32::try_from(entries).unwrap_or(u32::MAX),
            agents: u32::try_from(agents).unwrap_or(u32::MAX),
            policies: u32::try_from(self.0.policies.list().len()).unwrap_or(u32::MAX),
            issued,
            memory: Some(from_memory(self.0.memory.seen())),
            clocks: self.0.clocks.list(),
        }))
    }

    async fn apply_policies(
        &self,
        request: Request<api::ApplyPoliciesRequest>,
    ) -> Result<Response<api::ApplyPoliciesResponse>, Status> {
        self.0.require_local(&request)?;
        let _one_at_a_time = self.0.policies.changing.lock().await;
        let (mut created, mut updated, mut unchanged) = (0, 0, 0);
        let mut changed = Vec::new();
        // All are read before the first is written: one bad document changes nothing.
        for d in request.into_inner().documents {
            let place = format!("{}/{}/{}", d.kind, d.namespace, d.name);
            let parsed = countersign_policy::parse(&d.yaml, &place).map_err(fail)?;
            let [one] = parsed.as_slice() else {
                return Err(fail(Finding::new(
                    Code::InvalidValue,
                    format!("{place}: expected one document, found {}", parsed.len()),
                )));
            };
            if matches!(one, Document::StaticEntry(_)) {
                return Err(fail(Finding::new(
                    Code::UnsupportedDocument,
                    format!("{place}: `{}` is not a policy", one.kind()),
                )));
            }
            let record = PolicyRecord {
                kind: one.kind().to_owned(),
                namespace: one.namespace().to_owned(),
                name: one.name().to_owned(),
                yaml: d.yaml,
            };
            match self.0.policies.get(&record.kind, &record.namespace, &record.name) {
                Some(there) if there == record => unchanged += 1,
                Some(_) => {
                    updated += 1;
                    changed.push(record);
                }
                None => {
                    created += 1;
                    changed.push(record);
                }
            }
        }
        if self.0.policies.list().len() + created as usize > MAX_POLICIES {
            return Err(fail(Finding::new(Code::ServiceOverloaded, "too many policies")));
        }
        if !changed.is_empty() {
            self.0.store.put_policies(changed.clone()).await.map_err(|e| fail(e.finding()))?;
            self.0.policies.put(changed);
        }
        let generation = self.0.policies.generation();
        Ok(Response::new(api::ApplyPoliciesResponse { generation, created, updated, unchanged }))
    }

    async fn list_policies(
        &self,
        request: Request<api::ListPoliciesRequest>,
    ) -> Result<Response<api::PolicySet>, Status> {
        self.0.require_local(&request)?;
        Ok(Response::new(policy_set(&self.0)))
    }

    async fn delete_policy(
        &self,
        request: Request<api::DeletePolicyRequest>,
    ) -> Result<Response<api::DeletePolicyResponse>, Status> {
        self.0.require_local(&request)?;
        let r = request.into_inner();
        let _one_at_a_time = self.0.policies.changing.lock().await;
        let there = self
            .0
            .store
            .delete_policy(r.kind.clone(), r.namespace.clone(), r.name.clone())
            .await
            .map_err(|e| fail(e.finding()))?;
        if !there {
            return Err(fail(
                Finding::new(
                    Code::EntryNotFound,
                    format!("{} `{}/{}` does not exist", r.kind, r.namespace, r.name),
                )
                .hint("list them with `countersign policy list`"),
            ));
        }
        self.0.policies.remove(&r.kind, &r.namespace, &r.name);
        let generation = self.0.policies.generation();
        Ok(Response::new(api::DeletePolicyResponse { generation }))
    }

    async fn prepare_root(
        &self,
        request: Request<api::RootRequest>,
    ) -> Result<Response<api::AuthorityState>, Status> {
        self.0.require_local(&request)?;
        self.0.authority.prepare_root(current_time()).await.map_err(fail)?;
        Ok(Response::new(self.state()))
    }

    async fn activate_root(
        &self,
        request: Request<api::RootRequest>,
    ) -> Result<Response<api::AuthorityState>, Status> {
        self.0.require_local(&request)?;
        self.0.authority.activate_root(current_time()).await.map_err(fail)?;
        Ok(Response::new(self.state()))
    }

    async fn retire_root(
        &self,
        request: Request<api::RootRequest>,
    ) -> Result<Response<api::AuthorityState>, Status> {
        self.0.require_local(&request)?;
        self.0.authority.retire_root(current_time()).await.map_err(fail)?;
        Ok(Response::new(self.state()))
    }

    async fn rotate_signing_ca(
        &self,
        request: Request<api::RootRequest>,
    ) -> Result<Response<api::AuthorityState>, Status> {
        self.0.require_local(&request)?;
        self.0.authority.rotate_signing(current_time()).await.map_err(fail)?;
        Ok(Response::new(self.state()))
    }

    async fn authorities(
        &self,
        request: Request<api::RootRequest>,
    ) -> Result<Response<api::AuthorityState>, Status> {
        self.0.require_local(&request)?;
        Ok(Response::new(self.state()))
    }

    async fn journal(
        &self,
        request: Request<api::JournalRequest>,
    ) -> Result<Response<api::JournalResponse>, Status> {
        self.0.require_local(&request)?;
        let api::JournalRequest { limit, before } = request.into_inner();
        let before = (before > 0).then_some(before);
        let limit = limit.clamp(1, 1000);
        let (records, chain_intact) =
            self.0.store.journal(limit, before).await.map_err(|e| fail(e.finding()))?;
        Ok(Response::new(api::JournalResponse {
            chain_intact,
            records: records
                .into_iter()
                .map(|r| api::journal_response::Record {
                    number: r.number,
                    kind: r.kind,
                    spiffe_id: r.spiffe_id,
                    serial: r.serial,
                    issued_at: r.issued_at.secs(),
                    not_after: r.not_after.secs(),
                    issued_to: r.issued_to,
                })
                .collect(),
        }))
    }
}
