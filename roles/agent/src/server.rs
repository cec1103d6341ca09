//! The agent's side of the server API.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use countersign_findings::{Code, Finding};
use countersign_identity::{Bundle, BundleSet, Entry, SpiffeId, TrustDomain, UnixTime, X509Svid};
use countersign_keys::{KeyAlgorithm, PrivateKey, Signer};
use countersign_sys::tune;
use countersign_tls::current_time_ms;
use countersign_tls::{Credentials, PeerMatcher, TlsOptions, connect, connect_bootstrap};
use countersign_wire::convert;
use countersign_wire::dial;
use countersign_wire::proto::countersign::server::v1 as own;
use countersign_wire::proto::spire::api::server as api;
use countersign_wire::proto::spire::api::types;
use countersign_wire::rpc::{Channel, Status, Streaming};
use countersign_wire::status::to_finding;
use countersign_x509::{CertInfo, PeerRole, TrustStore, csr};
use tokio::net::TcpStream;

use crate::state::Held;

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
const RPC_TIMEOUT: Duration = Duration::from_secs(30);

/// A connection to the server under one certificate of the agent's.
#[derive(Clone)]
pub(crate) struct ServerApi {
    channel: Channel,
}

fn server_id(trust_domain: &TrustDomain) -> Result<SpiffeId, Finding> {
    SpiffeId::from_path(trust_domain, "/spire/server")
        .map_err(|e| Finding::new(Code::InternalError, e.to_string()))
}

fn refused(status: &Status) -> Finding {
    to_finding(status, Code::ServerUnreachable)
}

async fn timely<T>(call: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    tokio::time::timeout(RPC_TIMEOUT, call)
        .await
        .unwrap_or_else(|_| Err(Status::deadline_exceeded("the server did not answer in 30 s")))
}

/// A fresh key and the request that proves it.
pub(crate) fn new_key() -> Result<(PrivateKey, Vec<u8>), Finding> {
    let internal = |e: &dyn std::fmt::Display| Finding::new(Code::InternalError, e.to_string());
    let key = PrivateKey::generate(KeyAlgorithm::EcdsaP256).map_err(|e| internal(&e))?;
    let csr = csr::create(key.public_key_spki(), key.algorithm(), |m| key.sign(m))
        .map_err(|e| internal(&e))?;
    Ok((key, csr))
}

/// An SVID from the server, believed only after its chain verified against `bundle`.
pub(crate) fn accept_svid(
    svid: &types::X509svid,
    key: &PrivateKey,
    bundle: &Bundle,
    revision: i64,
    now: UnixTime,
) -> Result<Held, Finding> {
    let bad = |what: String| Finding::new(Code::MalformedCertificate, what);
    let id = convert::spiffe_id("id", svid.id.as_ref())?;
    let leaf = svid
        .cert_chain
        .first()
        .ok_or_else(|| bad("the server sent an empty chain".into()))
        .and_then(|der| CertInfo::parse(der).map_err(|e| bad(e.to_string())))?;
    if leaf.spki_der != key.public_key_spki() {
        return Err(Finding::new(
            Code::KeyCertificateMismatch,
            "the server sent a certificate for another key",
        ));
    }
    let bundles = BundleSet::collect([bundle.clone()]).map_err(|e| bad(e.to_string()))?;
    let store = TrustStore::new(&bundles, 0).map_err(|e| bad(e.to_string()))?;
    let chain: Vec<_> = svid
        .cert_chain
        .iter()
        .map(|c| countersign_x509::CertificateDer::from(c.as_slice()))
        .collect();
    let peer = store
        .verify(&chain, PeerRole::Client, now, &countersign_x509::Crls::default())
        .map_err(|e| e.finding())?;
    if *peer.id() != id {
        return Err(bad(format!("the server sent `{}` for `{id}`", peer.id())));
    }
    let held = X509Svid {
        id,
        chain: svid.cert_chain.clone(),
        key: key.pkcs8().clone(),
        hint: svid.hint.clone(),
    };
    Ok(Held::new(held, leaf.not_before, leaf.not_after, revision, *peer.authority_sha256()))
}

/// Attests with a join token, on a connection without a client certificate to a server that chains to
/// `bundle`. Returns the agent's SVID and the server's current bundle.
pub(crate) async fn attest_by_join_token(
    server: &str,
    bundle: &Bundle,
    token: &str,
    now: UnixTime,
) -> Result<(Held, Bundle), Finding> {
    let wanted = PeerMatcher::Ids(vec![server_id(&bundle.trust_domain)?]);
    let bundles = BundleSet::collect([bundle.clone()])
        .map_err(|e| Finding::new(Code::InternalError, e.to_string()))?;
    // Dialled here once, so that the reason of a failure is not lost in the channel's words.
    drop(bootstrap_stream(server, &bundles, wanted.clone()).await?);
    let target = server.to_owned();
    let channel = dial::lazily(move || {
        let (target, bundles, wanted) = (target.clone(), bundles.clone(), wanted.clone());
        async move {
            bootstrap_stream(&target, &bundles, wanted)
                .await
                .map_err(|e| io::Error::other(e.message))
        }
    });
    let (key, csr) = new_key()?;
    let params = api::agent::v1::attest_agent_request::Params {
        data: Some(types::AttestationData {
            r#type: "join_token".into(),
            payload: token.as_bytes().to_vec(),
        }),
        params: Some(api::agent::v1::AgentX509svidParams { csr }),
    };
    let request = api::agent::v1::AttestAgentRequest {
        step: Some(api::agent::v1::attest_agent_request::Step::Params(params)),
    };
    let mut client = api::agent::v1::agent_client::AgentClient::new(channel.clone());
    let answer = timely(async {
        client.attest_agent(tokio_stream::once(request)).await?.into_inner().message().await
    })
    .await
    .map_err(|s| refused(&s))?;
    let Some(api::agent::v1::attest_agent_response::Step::Result(result)) =
        answer.and_then(|a| a.step)
    else {
        return Err(Finding::new(Code::ServerUnreachable, "the server sent no result"));
    };
    let current = ServerApi { channel }.bundle().await?;
    let svid = result
        .svid
        .ok_or_else(|| Finding::new(Code::MalformedCertificate, "the server sent no SVID"))?;
    let held = accept_svid(&svid, &key, &current, 0, now)?;
    Ok((held, current))
}

async fn dial_tcp(server: &str) -> Result<TcpStream, Finding> {
    let fail = |e: &dyn std::fmt::Display| {
        Finding::new(Code::ServerUnreachable, format!("cannot connect to {server}: {e}"))
            .at(server.to_owned())
    };
    let stream = tokio::time::timeout(HANDSHAKE_TIMEOUT, TcpStream::connect(server))
        .await
        .map_err(|e| fail(&e))?
        .map_err(|e| fail(&e))?;
    tune(&stream).map_err(|e| fail(&e))?;
    Ok(stream)
}

async fn bootstrap_stream(
    server: &str,
    bundles: &BundleSet,
    wanted: PeerMatcher,
) -> Result<countersign_tls::ClientStream<TcpStream>, Finding> {
    let stream = dial_tcp(server).await?;
    connect_bootstrap(stream, bundles, wanted, &[b"h2"], HANDSHAKE_TIMEOUT)
        .await
        .map(|s| s.stream)
        .map_err(|e| e.finding().at(server.to_owned()))
}

impl ServerApi {
    /// A channel that authenticates with `own` and accepts only the server of its trust domain.
    pub(crate) fn new(server: &str, own: &Held, bundle: &Bundle) -> Result<Self, Finding> {
        let bundles = BundleSet::collect([bundle.clone()])
            .map_err(|e| Finding::new(Code::InternalError, e.to_string()))?;
        let wanted = PeerMatcher::Ids(vec![server_id(&bundle.trust_domain)?]);
        let client = Credentials::new(&own.svid, &bundles, 0, TlsOptions::default())
            .and_then(|c| c.client(wanted, &[b"h2"]))
            .map_err(|e| e.finding())?;
        let target = server.to_owned();
        let channel = dial::lazily(move || {
            let (target, client) = (target.clone(), Arc::clone(&client));
            async move {
                let stream = dial_tcp(&target).await.map_err(|e| io::Error::other(e.message))?;
                connect(stream, &client, HANDSHAKE_TIMEOUT)
                    .await
                    .map(|s| s.stream)
                    .map_err(|e| io::Error::other(format!("[{}] {e}", e.code())))
            }
        });
        Ok(Self { channel })
    }

    pub(crate) async fn bundle(&self) -> Result<Bundle, Finding> {
        let mut client = api::bundle::v1::bundle_client::BundleClient::new(self.channel.clone());
        let answer = timely(client.get_bundle(api::bundle::v1::GetBundleRequest::default()))
            .await
            .map_err(|s| refused(&s))?;
        convert::bundle(answer.get_ref())
    }

    pub(crate) async fn renew(&self, csr: Vec<u8>) -> Result<types::X509svid, Status> {
        let mut client = api::agent::v1::agent_client::AgentClient::new(self.channel.clone());
        let request = api::agent::v1::RenewAgentRequest {
            params: Some(api::agent::v1::AgentX509svidParams { csr }),
        };
        timely(client.renew_agent(request))
            .await?
            .into_inner()
            .svid
            .ok_or_else(|| Status::internal("the server sent no SVID"))
    }

    pub(crate) async fn post_status(&self) -> Result<(), Status> {
        let mut client = api::agent::v1::agent_client::AgentClient::new(self.channel.clone());
        timely(client.post_status(api::agent::v1::PostStatusRequest {
            current_bundle_serial: 0,
            agent_version: env!("CARGO_PKG_VERSION").into(),
        }))
        .await
        .map(drop)
    }

    /// The entries this agent may hand out; those in `known` with the same revision are not sent again
    /// when there are many.
    pub(crate) async fn entries(
        &self,
        known: &BTreeMap<String, Arc<Entry>>,
    ) -> Result<BTreeMap<String, Arc<Entry>>, Status> {
        use api::entry::v1::SyncAuthorizedEntriesRequest as Ask;
        let mut client = api::entry::v1::entry_client::EntryClient::new(self.channel.clone())
            .max_decoding_message_size(64 << 20);
        let (ask, asked) = tokio::sync::mpsc::channel(2);
        let first = Ask { output_mask: None, ids: Vec::new() };
        let _ = ask.send(first).await;
        let questions = tokio_stream::wrappers::ReceiverStream::new(asked);
        timely(async {
            let mut answers = client.sync_authorized_entries(questions).await?.into_inner();
            let mut out = BTreeMap::new();
            let mut missing = Vec::new();
            let mut by_revision = false;
            loop {
                let Some(message) = answers.message().await? else {
                    return if by_revision && !missing.is_empty() {
                        Err(Status::unavailable("the sync ended early"))
                    } else {
                        Ok(out)
                    };
                };
                for entry in &message.entries {
                    match convert::entry(entry) {
                        Ok(entry) if !entry.id.is_empty() && !entry.selectors.is_empty() => {
                            out.insert(entry.id.clone(), Arc::new(entry));
                        }
                        Ok(_) => tracing::warn!("an entry without id or selectors is skipped"),
                        Err(e) => tracing::warn!("an entry is skipped: {}", e.message),
                    }
                }
                for revision in message.entry_revisions {
                    by_revision = true;
                    match known.get(&revision.id) {
                        Some(e) if e.revision == revision.revision_number => {
                            out.insert(revision.id, Arc::clone(e));
                        }
                        _ => missing.push(revision.id),
                    }
                }
                if message.more {
                    continue;
                }
                if !by_revision {
                    return Ok(out);
                }
                missing.retain(|id| !out.contains_key(id));
                if missing.is_empty() {
                    return Ok(out);
                }
                let ids: Vec<String> = missing.drain(..missing.len().min(500)).collect();
                let rest = missing.clone();
                if ask.send(Ask { output_mask: None, ids }).await.is_err() {
                    return Err(Status::unavailable("the sync ended early"));
                }
                missing = rest;
            }
        })
        .await
    }

    /// New SVIDs for `(entry id, csr)`; the answers in the same order.
    pub(crate) async fn new_svids(
        &self,
        wanted: Vec<(String, Vec<u8>)>,
    ) -> Result<Vec<Result<types::X509svid, String>>, Status> {
        let mut client = api::svid::v1::svid_client::SvidClient::new(self.channel.clone())
            .max_decoding_message_size(64 << 20);
        let expected = wanted.len();
        let params = wanted
            .into_iter()
            .map(|(entry_id, csr)| api::svid::v1::NewX509svidParams { entry_id, csr })
            .collect();
        let answer =
            timely(client.batch_new_x509svid(api::svid::v1::BatchNewX509svidRequest { params }))
                .await?
                .into_inner();
        if answer.results.len() != expected {
            return Err(Status::internal("the server answered for another number of requests"));
        }
        Ok(answer
            .results
            .into_iter()
            .map(|r| {
                r.svid.ok_or_else(|| r.status.map_or_else(|| "no SVID".to_owned(), |s| s.message))
            })
            .collect())
    }

    pub(crate) async fn new_jwt(
        &self,
        entry_id: String,
        audience: Vec<String>,
    ) -> Result<types::Jwtsvid, Status> {
        let mut client = api::svid::v1::svid_client::SvidClient::new(self.channel.clone());
        timely(client.new_jwtsvid(api::svid::v1::NewJwtsvidRequest { entry_id, audience }))
            .await?
            .into_inner()
            .svid
            .ok_or_else(|| Status::internal("the server sent no token"))
    }

    /// Announcements of changes; SPIRE's servers do not have them.
    pub(crate) async fn watch(&self) -> Result<Streaming<own::Generations>, Status> {
        let mut client = own::changes_client::ChangesClient::new(self.channel.clone());
        Ok(client.watch(own::WatchRequest { time_ms: current_time_ms() }).await?.into_inner())
    }

    pub(crate) async fn policies(&self) -> Result<own::PolicySet, Status> {
        let mut client = own::changes_client::ChangesClient::new(self.channel.clone())
            .max_decoding_message_size(64 << 20);
        timely(client.policies(own::PoliciesRequest {})).await.map(|r| r.into_inner())
    }
}
