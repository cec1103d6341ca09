//! Registration entries.

use std::collections::BTreeMap;
use std::sync::Arc;

use countersign_findings::Finding;
use countersign_identity::Entry;
use countersign_tls::current_time;
use countersign_wire::convert;
use countersign_wire::proto::spire::api::server::entry::v1 as api;
use countersign_wire::proto::spire::api::types;
use countersign_wire::rpc::{BoxStream, Code, Request, Response, Status, Streaming};
use countersign_wire::status::from_finding;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

use crate::services::page;
use crate::shared::Shared;

/// Entries in one message of a sync; fuller sets go as revisions first.
const SYNC_PAGE: usize = 500;
/// Items in one batch call.
const MAX_BATCH: usize = 1000;

pub(crate) struct Service(pub(crate) Arc<Shared>);

fn item_status(code: Code, message: impl Into<String>) -> Option<types::Status> {
    Some(types::Status { code: code as i32, message: message.into() })
}

fn failed(e: &Finding) -> Option<types::Status> {
    let status = from_finding(e);
    item_status(status.code(), e.message.clone())
}

fn check_batch(n: usize) -> Result<(), Status> {
    if n > MAX_BATCH {
        return Err(Status::invalid_argument(format!("at most {MAX_BATCH} items in one call")));
    }
    Ok(())
}

/// The filters that Count and List share.
struct Filter {
    by_spiffe_id: Option<types::Spiffeid>,
    by_parent_id: Option<types::Spiffeid>,
    by_selectors: Option<types::SelectorMatch>,
    by_federates_with: Option<types::FederatesWithMatch>,
    by_hint: Option<String>,
    by_downstream: Option<bool>,
}

impl Filter {
    fn compile(self) -> Result<impl Fn(&Entry) -> bool, Status> {
        let fail = |e: Finding| from_finding(&e);
        let id = |f: &str, id: Option<types::Spiffeid>| {
            id.map(|i| convert::spiffe_id(f, Some(&i)).map_err(fail)).transpose()
        };
        let spiffe_id = id("by_spiffe_id", self.by_spiffe_id)?;
        let parent_id = id("by_parent_id", self.by_parent_id)?;
        let selectors = self
            .by_selectors
            .map(|m| {
                convert::selectors("by_selectors", &m.selectors)
                    .map(|s| (s, m.r#match))
                    .map_err(fail)
            })
            .transpose()?;
        if self.by_federates_with.is_some() {
            return Err(Status::unimplemented("filter by_federates_with is not supported"));
        }
        Ok(move |e: &Entry| {
            spiffe_id.as_ref().is_none_or(|id| e.spiffe_id == *id)
                && parent_id.as_ref().is_none_or(|id| e.parent_id == *id)
                && selectors
                    .as_ref()
                    .is_none_or(|(s, m)| convert::selectors_match(&e.selectors, s, *m))
                && self.by_hint.as_ref().is_none_or(|h| e.hint == *h)
                && self.by_downstream.is_none_or(|d| e.downstream == d)
        })
    }
}

#[async_trait::async_trait]
impl api::entry_server::Entry for Service {
    async fn count_entries(
        &self,
        request: Request<api::CountEntriesRequest>,
    ) -> Result<Response<api::CountEntriesResponse>, Status> {
        self.0.require_admin(&request)?;
        let f = request.into_inner().filter.unwrap_or_default();
        let wanted = Filter {
            by_spiffe_id: f.by_spiffe_id,
            by_parent_id: f.by_parent_id,
            by_selectors: f.by_selectors,
            by_federates_with: f.by_federates_with,
            by_hint: f.by_hint,
            by_downstream: f.by_downstream,
        }
        .compile()?;
        let n = self.0.registry.entries_after("").iter().filter(|e| wanted(e)).count();
        Ok(Response::new(api::CountEntriesResponse { count: i32::try_from(n).unwrap_or(i32::MAX) }))
    }

    async fn list_entries(
        &self,
        request: Request<api::ListEntriesRequest>,
    ) -> Result<Response<api::ListEntriesResponse>, Status> {
        self.0.require_admin(&request)?;
        let r = request.into_inner();
        let f = r.filter.unwrap_or_default();
        let wanted = Filter {
            by_spiffe_id: f.by_spiffe_id,
            by_parent_id: f.by_parent_id,
            by_selectors: f.by_selectors,
            by_federates_with: f.by_federates_with,
            by_hint: f.by_hint,
            by_downstream: f.by_downstream,
        }
        .compile()?;
        let all: Vec<Arc<Entry>> = self
            .0
            .registry
            .entries_after(&r.page_token)
            .into_iter()
            .filter(|e| wanted(e))
            .collect();
        let (all, next_page_token) = page(all, r.page_size, |e| e.id.clone());
        let entries = all
            .iter()
            .map(|e| convert::mask_entry(convert::from_entry(e), r.output_mask.as_ref()))
            .collect();
        Ok(Response::new(api::ListEntriesResponse { entries, next_page_token }))
    }

    async fn get_entry(
        &self,
        request: Request<api::GetEntryRequest>,
    ) -> Result<Response<types::Entry>, Status> {
        self.0.require_admin(&request)?;
        let r = request.into_inner();
        let entry =
            self.0.registry.entry(&r.id).ok_or_else(|| Status::not_found("entry not found"))?;
        Ok(Response::new(convert::mask_entry(convert::from_entry(&entry), r.output_mask.as_ref())))
    }

    async fn batch_create_entry(
        &self,
        request: Request<api::BatchCreateEntryRequest>,
    ) -> Result<Response<api::BatchCreateEntryResponse>, Status> {
        self.0.require_admin(&request)?;
        let r = request.into_inner();
        check_batch(r.entries.len())?;
        let mut results = Vec::with_capacity(r.entries.len());
        for e in &r.entries {
            let outcome = match convert::entry(e) {
                Ok(entry) => self.0.registry.create(entry, current_time()).await,
                Err(e) => Err(e),
            };
            let shown = |e: &Entry| {
                Some(convert::mask_entry(convert::from_entry(e), r.output_mask.as_ref()))
            };
            results.push(match outcome {
                Ok(Ok(entry)) => api::batch_create_entry_response::Result {
                    status: item_status(Code::Ok, "OK"),
                    entry: shown(&entry),
                },
                Ok(Err(there)) => api::batch_create_entry_response::Result {
                    status: item_status(Code::AlreadyExists, "similar entry already exists"),
                    entry: shown(&there),
                },
                Err(e) => {
                    api::batch_create_entry_response::Result { status: failed(&e), entry: None }
                }
            });
        }
        Ok(Response::new(api::BatchCreateEntryResponse { results }))
    }

    async fn batch_update_entry(
        &self,
        request: Request<api::BatchUpdateEntryRequest>,
    ) -> Result<Response<api::BatchUpdateEntryResponse>, Status> {
        self.0.require_admin(&request)?;
        let r = request.into_inner();
        check_batch(r.entries.len())?;
        let mut results = Vec::with_capacity(r.entries.len());
        for e in r.entries {
            let id = e.id.clone();
            let mask = r.input_mask.as_ref();
            let outcome = self
                .0
                .registry
                .update(&id, |there| {
                    convert::entry(&convert::merge_entry(convert::from_entry(there), e, mask))
                })
                .await;
            results.push(match outcome {
                Ok(entry) => api::batch_update_entry_response::Result {
                    status: item_status(Code::Ok, "OK"),
                    entry: Some(convert::mask_entry(
                        convert::from_entry(&entry),
                        r.output_mask.as_ref(),
                    )),
                },
                Err(e) => {
                    api::batch_update_entry_response::Result { status: failed(&e), entry: None }
                }
            });
        }
        Ok(Response::new(api::BatchUpdateEntryResponse { results }))
    }

    async fn batch_delete_entry(
        &self,
        request: Request<api::BatchDeleteEntryRequest>,
    ) -> Result<Response<api::BatchDeleteEntryResponse>, Status> {
        self.0.require_admin(&request)?;
        let ids = request.into_inner().ids;
        check_batch(ids.len())?;
        let gone = self.0.registry.delete(ids.clone()).await.map_err(|e| from_finding(&e))?;
        let results = ids
            .into_iter()
            .map(|id| api::batch_delete_entry_response::Result {
                status: if gone.contains(&id) {
                    item_status(Code::Ok, "OK")
                } else {
                    item_status(Code::NotFound, "entry not found")
                },
                id,
            })
            .collect();
        Ok(Response::new(api::BatchDeleteEntryResponse { results }))
    }

    async fn get_authorized_entries(
        &self,
        request: Request<api::GetAuthorizedEntriesRequest>,
    ) -> Result<Response<api::GetAuthorizedEntriesResponse>, Status> {
        let agent = self.0.require_agent(&request).await?;
        let mask = request.into_inner().output_mask;
        let entries = self
            .0
            .registry
            .authorized(&agent, current_time())
            .iter()
            .map(|e| convert::mask_entry(convert::from_entry(e), mask.as_ref()))
            .collect();
        Ok(Response::new(api::GetAuthorizedEntriesResponse { entries }))
    }

    type SyncAuthorizedEntriesStream = BoxStream<api::SyncAuthorizedEntriesResponse>;

    async fn sync_authorized_entries(
        &self,
        request: Request<Streaming<api::SyncAuthorizedEntriesRequest>>,
    ) -> Result<Response<Self::SyncAuthorizedEntriesStream>, Status> {
        let agent = self.0.require_agent(&request).await?;
        let mut input = request.into_inner();
        let first = input
            .next()
            .await
            .ok_or_else(|| Status::invalid_argument("a first message is needed"))??;
        if !first.ids.is_empty() {
            return Err(Status::invalid_argument("the first message must not name ids"));
        }
        let mask = first.output_mask;
        if mask.as_ref().is_some_and(|m| !m.revision_number) {
            return Err(Status::invalid_argument("revision_number must not be masked"));
        }
        let entries: BTreeMap<String, Arc<Entry>> = self
            .0
            .registry
            .authorized(&agent, current_time())
            .into_iter()
            .map(|e| (e.id.clone(), e))
            .collect();
        let full = move |e: &Entry| convert::mask_entry(convert::from_entry(e), mask.as_ref());
        let (send, receive) = tokio::sync::mpsc::channel(4);
        tokio::spawn(async move {
            if entries.len() <= SYNC_PAGE {
                let all = api::SyncAuthorizedEntriesResponse {
                    entries: entries.values().map(|e| full(e)).collect(),
                    ..Default::default()
                };
                let _ = send.send(Ok(all)).await;
                return;
            }
            let revisions: Vec<api::EntryRevision> = entries
                .values()
                .map(|e| api::EntryRevision {
                    id: e.id.clone(),
                    revision_number: e.revision,
                    created_at: e.created_at.secs(),
                })
                .collect();
            let pages = revisions.len().div_ceil(SYNC_PAGE);
            for (i, chunk) in revisions.chunks(SYNC_PAGE).enumerate() {
                let message = api::SyncAuthorizedEntriesResponse {
                    entry_revisions: chunk.to_vec(),
                    more: i + 1 < pages,
                    ..Default::default()
                };
                if send.send(Ok(message)).await.is_err() {
                    return;
                }
            }
            while let Some(Ok(wanted)) = input.next().await {
                let found: Vec<types::Entry> =
                    wanted.ids.iter().filter_map(|id| entries.get(id)).map(|e| full(e)).collect();
                let mut chunks = found.chunks(SYNC_PAGE).peekable();
                loop {
                    let chunk = chunks.next().unwrap_or_default();
                    let more = chunks.peek().is_some();
                    let message = api::SyncAuthorizedEntriesResponse {
                        entries: chunk.to_vec(),
                        more,
                        ..Default::default()
                    };
                    if send.send(Ok(message)).await.is_err() {
                        return;
                    }
                    if !more {
                        break;
                    }
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receive))))
    }
}
