//! The SPIFFE Workload API.

use std::collections::HashMap;
use std::sync::Arc;

use countersign_identity::{Entry, SelectorSet, SpiffeId, X509Context};
use countersign_jose::{jwt_keys_to_jwks, validate};
use countersign_tls::current_time;
use countersign_wire::proto::spiffe as api;
use countersign_wire::rpc::{BoxStream, Code, Request, Response, Status, to_struct};
use countersign_wire::status::from_finding;
use countersign_wire::workload::{bundles_by_id, from_context, has_security_header};
use tokio_stream::wrappers::ReceiverStream;

use super::{Shared, StreamSlot, no_identity};
use crate::state::State;

/// Tokens kept for repeated requests.
const MAX_TOKENS: usize = 1000;

pub(crate) struct Service(pub(crate) Arc<Shared>);

/// Workload Endpoint §3, §6: without the header the call did not come from a workload by intent.
fn check_header<T>(request: &Request<T>) -> Result<(), Status> {
    if has_security_header(request) {
        Ok(())
    } else {
        Err(Status::invalid_argument("metadata `workload.spiffe.io: true` is missing"))
    }
}

/// What tells two full sets apart: identities with their certificates, and the bundle.
fn fingerprint(context: &X509Context) -> Vec<[u8; 32]> {
    let mut out: Vec<[u8; 32]> = context
        .svids
        .iter()
        .filter_map(|s| s.chain.first().map(|c| countersign_x509::sha256(c)))
        .collect();
    out.extend(
        context.bundles.iter().map(|b| countersign_x509::sha256(&b.x509_der_concatenated())),
    );
    out
}

/// Feeds a stream: the first message at once, then one whenever `render` gives something new; a refusal
/// ends it.
fn feed<M, K>(
    shared: &Arc<Shared>,
    slot: StreamSlot,
    mut render: impl FnMut(&State) -> Result<(K, M), Status> + Send + 'static,
) -> BoxStream<M>
where
    M: Send + 'static,
    K: PartialEq + Send + 'static,
{
    let mut state = shared.state.clone();
    let (send, receive) = tokio::sync::mpsc::channel(1);
    tokio::spawn(async move {
        let _slot = slot;
        let mut last: Option<K> = None;
        loop {
            let now = Arc::clone(&state.borrow_and_update());
            match render(&now) {
                Ok((key, message)) => {
                    if last.as_ref() != Some(&key) {
                        last = Some(key);
                        if send.send(Ok(message)).await.is_err() {
                            return;
                        }
                    }
                }
                Err(refusal) => {
                    let _ = send.send(Err(refusal)).await;
                    return;
                }
            }
            tokio::select! {
                changed = state.changed() => if changed.is_err() { return },
                () = send.closed() => return,
            }
        }
    });
    Box::pin(ReceiverStream::new(receive))
}

fn full_set(state: &State, attested: &SelectorSet) -> Result<X509Context, Status> {
    let now = current_time();
    if state.matching(attested, now).is_empty() {
        return Err(no_identity(attested));
    }
    let context = state.context(attested, now);
    if context.svids.is_empty() {
        return Err(Status::unavailable("the SVID is not available at the moment"));
    }
    Ok(context)
}

#[async_trait::async_trait]
impl api::spiffe_workload_api_server::SpiffeWorkloadApi for Service {
    type FetchX509SVIDStream = BoxStream<api::X509svidResponse>;

    async fn fetch_x509svid(
        &self,
        request: Request<api::X509svidRequest>,
    ) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        check_header(&request)?;
        let attested = self.0.attested(&request).await?;
        if self.0.state().matching(&attested, current_time()).is_empty() {
            return Err(no_identity(&attested));
        }
        let slot = self.0.stream_slot()?;
        let stream = feed(&self.0, slot, move |state| {
            let context = full_set(state, &attested)?;
            Ok((fingerprint(&context), from_context(&context)))
        });
        Ok(Response::new(stream))
    }

    type FetchX509BundlesStream = BoxStream<api::X509BundlesResponse>;

    async fn fetch_x509_bundles(
        &self,
        request: Request<api::X509BundlesRequest>,
    ) -> Result<Response<Self::FetchX509BundlesStream>, Status> {
        check_header(&request)?;
        let attested = self.0.attested(&request).await?;
        let slot = self.0.stream_slot()?;
        let stream = feed(&self.0, slot, move |state| {
            if state.matching(&attested, current_time()).is_empty() {
                return Err(no_identity(&attested));
            }
            let bundles = bundles_by_id(&state.bundles(), |_| true);
            let response = api::X509BundlesResponse { crl: Vec::new(), bundles: bundles.clone() };
            Ok((bundles, response))
        });
        Ok(Response::new(stream))
    }

    async fn fetch_jwtsvid(
        &self,
        request: Request<api::JwtsvidRequest>,
    ) -> Result<Response<api::JwtsvidResponse>, Status> {
        check_header(&request)?;
        let attested = self.0.attested(&request).await?;
        let r = request.into_inner();
        if r.audience.is_empty() || r.audience.iter().any(String::is_empty) {
            return Err(Status::invalid_argument("audience must be given and not empty"));
        }
        if r.audience.len() > 32 || r.audience.iter().any(|a| a.len() > 1024) {
            return Err(Status::invalid_argument("at most 32 audiences of 1024 bytes"));
        }
        let wanted = if r.spiffe_id.is_empty() {
            None
        } else {
            Some(
                SpiffeId::parse(&r.spiffe_id)
                    .map_err(|e| Status::invalid_argument(format!("spiffe_id: {e}")))?,
            )
        };
        let state = self.0.state();
        let now = current_time();
        let entries: Vec<_> = state
            .matching(&attested, now)
            .into_iter()
            .filter(|e| wanted.as_ref().is_none_or(|id| e.spiffe_id == *id))
            .cloned()
            .collect();
        if entries.is_empty() {
            return Err(no_identity(&attested));
        }
        let mut svids = Vec::with_capacity(entries.len());
        for entry in entries {
            let token = self.token(&entry, &r.audience).await?;
            svids.push(api::Jwtsvid {
                spiffe_id: entry.spiffe_id.to_string(),
                svid: token,
                hint: entry.hint.clone(),
            });
        }
        Ok(Response::new(api::JwtsvidResponse { svids }))
    }

    type FetchJWTBundlesStream = BoxStream<api::JwtBundlesResponse>;

    async fn fetch_jwt_bundles(
        &self,
        request: Request<api::JwtBundlesRequest>,
    ) -> Result<Response<Self::FetchJWTBundlesStream>, Status> {
        check_header(&request)?;
        let attested = self.0.attested(&request).await?;
        let slot = self.0.stream_slot()?;
        let stream = feed(&self.0, slot, move |state| {
            if state.matching(&attested, current_time()).is_empty() {
                return Err(no_identity(&attested));
            }
            let jwks =
                jwt_keys_to_jwks(&state.bundle).map_err(|e| Status::internal(e.to_string()))?;
            let id = state.bundle.trust_domain.id().to_string();
            let response = api::JwtBundlesResponse { bundles: HashMap::from([(id, jwks.clone())]) };
            Ok((jwks, response))
        });
        Ok(Response::new(stream))
    }

    async fn validate_jwtsvid(
        &self,
        request: Request<api::ValidateJwtsvidRequest>,
    ) -> Result<Response<api::ValidateJwtsvidResponse>, Status> {
        check_header(&request)?;
        self.0.attested(&request).await?;
        let r = request.into_inner();
        if r.audience.is_empty() || r.svid.is_empty() {
            return Err(Status::invalid_argument("audience and svid must be given"));
        }
        let bundles = self.0.state().bundles();
        let svid = validate(&r.svid, &r.audience, &bundles, current_time())
            .map_err(|e| from_finding(&e.finding()))?;
        Ok(Response::new(api::ValidateJwtsvidResponse {
            spiffe_id: svid.id.to_string(),
            claims: Some(to_struct(&svid.claims)),
        }))
    }
}

impl Service {
    /// A token for an entry: a kept one while more than half of its life is left, else a fresh one;
    /// if the server is away, a kept one as long as it is valid.
    async fn token(&self, entry: &Entry, audience: &[String]) -> Result<String, Status> {
        let mut audience = audience.to_vec();
        audience.sort();
        audience.dedup();
        let key =
            (format!("{}#{}#{}", entry.id, entry.revision, entry.spiffe_id), audience.clone());
        let now = current_time();
        let kept = {
            let tokens = self.0.tokens.lock().unwrap_or_else(|e| e.into_inner());
            tokens.get(&key).cloned()
        };
        if let Some((token, refresh_at)) = &kept
            && now < *refresh_at
        {
            return Ok(token.token.clone());
        }
        let api = self.0.api.lock().unwrap_or_else(|e| e.into_inner()).clone();
        match api.new_jwt(entry.id.clone(), audience).await {
            Ok(token) => {
                let life = u64::try_from(token.expires_at - token.issued_at).unwrap_or(0);
                let refresh_at = now + std::time::Duration::from_secs(life / 2);
                let mut tokens = self.0.tokens.lock().unwrap_or_else(|e| e.into_inner());
                if tokens.len() >= MAX_TOKENS {
                    tokens.clear();
                }
                let text = token.token.clone();
                tokens.insert(key, (token, refresh_at));
                Ok(text)
            }
            // Only an outage is bridged; a refusal counts at once.
            Err(e) if !matches!(e.code(), Code::Unavailable | Code::DeadlineExceeded) => Err(e),
            Err(e) => match kept {
                Some((token, _)) if token.expires_at > now.secs() => Ok(token.token),
                _ => Err(Status::unavailable(format!("no token can be had: {}", e.message()))),
            },
        }
    }
}
