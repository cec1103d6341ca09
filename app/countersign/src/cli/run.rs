//! `countersign run`: a command with an identity and a sidecar; both end together.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use countersign_findings::{Code, Finding};
use countersign_identity::{Entry, Selector, SelectorSet, SpiffeId, TrustDomain};
use countersign_proxy::{
    IdentitySource, InboundOptions, ListenerOptions, OutboundOptions, Proxy, ProxyOptions,
    RunningProxy,
};
use countersign_telemetry::AccessLog;
use countersign_tls::current_time;
use countersign_wire::convert;
use countersign_wire::proto::countersign::node::v1::{HoldRunRequest, HoldRunResponse};
use countersign_wire::proto::spire::api::server::entry::v1 as api;
use countersign_wire::rpc::Streaming;
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};

use super::entry::{create, id_or_path};
use super::proxy::{ModeArg, ProtocolArg, allow_list, check_target, peer_id, peer_mode};
use super::semantics::SemanticsFlags;
use super::{Global, invalid};
use crate::client::{Agent, Server};
use crate::output;
use crate::paths;

/// The entry made for a run ends by itself after this long, and is prolonged while the run lasts: one
/// that was killed leaves nothing behind for ever.
const ENTRY_LIFE: Duration = Duration::from_secs(24 * 3600);

#[derive(Args)]
#[command(after_help = "\
Examples:
  countersign run --id /ns/shop/sa/api --inbound 127.0.0.1:8443=127.0.0.1:8080 -- ./api
  countersign run --id /ns/shop/sa/web --outbound 127.0.0.1:9000=127.0.0.1:8443,/ns/shop/sa/api -- ./web

The command finds the Workload API in SPIFFE_ENDPOINT_SOCKET. Its exit code is passed on.")]
pub(crate) struct Run {
    /// The identity, a SPIFFE ID or its path
    #[arg(long, value_name = "ID")]
    id: String,
    /// Peers connect to LISTEN with mTLS and are forwarded to APP; repeat for more
    #[arg(long, value_name = "LISTEN=APP")]
    inbound: Vec<String>,
    /// The command connects to LISTEN and reaches UPSTREAM, which must be PEER-ID; repeat for more
    #[arg(long, value_name = "LISTEN=UPSTREAM,PEER-ID")]
    outbound: Vec<String>,
    /// Only these identities may call inbound ports; repeat for more [default: as policies say]
    #[arg(long, value_name = "ID")]
    allow: Vec<String>,
    /// What peers may speak on inbound ports [default: as PeerAuthentication says, else strict]
    #[arg(long, value_enum)]
    mode: Option<ModeArg>,
    /// End of permissive mode: a time, a duration from now, or `never`
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// What is spoken on inbound and outbound ports
    #[arg(long, value_enum, default_value_t)]
    protocol: ProtocolArg,
    /// A label of the workload, for policies with a selector; repeat for more
    #[arg(long = "label", value_name = "KEY=VALUE")]
    labels: Vec<String>,
    #[command(flatten)]
    semantics: SemanticsFlags,
    /// Engines that CUSTOM policies may name: Istio's `extensionProviders`, in a file
    #[arg(long, value_name = "FILE")]
    providers: Option<std::path::PathBuf>,
    #[command(flatten)]
    legacy: super::legacy::LegacyFlags,
    #[command(flatten)]
    issuers: super::issuers::IssuerFlags,
    /// Write each distinct call that is allowed to this file, for `policy suggest` and `policy diff`
    #[arg(long, value_name = "FILE")]
    edges: Option<std::path::PathBuf>,
    /// Life of its X509-SVIDs
    #[arg(long, value_parser = super::parse_duration, value_name = "DURATION")]
    x509_svid_ttl: Option<Duration>,
    /// The command and its arguments
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

impl Run {
    fn listeners(&self, td: &TrustDomain) -> Result<Vec<ListenerOptions>, Finding> {
        let mode = peer_mode(self.mode, self.until.as_deref())?;
        let allow = if self.allow.is_empty() {
            None
        } else {
            Some(Arc::new(allow_list(&self.allow, |t| peer_id(t, td))?))
        };
        let mut out = Vec::new();
        for text in &self.inbound {
            let bad = || invalid(format!("--inbound: `{text}` is not LISTEN=APP"));
            let (listen, app) = text.split_once('=').ok_or_else(bad)?;
            check_target("--inbound", app)?;
            out.push(ListenerOptions::Inbound(InboundOptions {
                listen: listen.parse().map_err(|_| bad())?,
                forward: app.to_owned(),
                mode,
                allow: allow.clone(),
                protocol: self.protocol.into(),
            }));
        }
        for text in &self.outbound {
            let bad = || invalid(format!("--outbound: `{text}` is not LISTEN=UPSTREAM,PEER-ID"));
            let (listen, rest) = text.split_once('=').ok_or_else(bad)?;
            let (upstream, peers) = rest.split_once(',').ok_or_else(bad)?;
            check_target("--outbound", upstream)?;
            let listen: std::net::SocketAddr = listen.parse().map_err(|_| bad())?;
            if !listen.ip().is_loopback() {
                return Err(invalid(format!("--outbound: {listen} is not loopback")));
            }
            out.push(ListenerOptions::Outbound(OutboundOptions {
                listen,
                upstream: upstream.to_owned(),
                peer_ids: peers.split(',').map(|t| peer_id(t, td)).collect::<Result<_, _>>()?,
                protocol: self.protocol.into(),
            }));
        }
        Ok(out)
    }

    pub(crate) async fn run(self, global: &Global) -> Result<ExitCode, Finding> {
        let data_dir = global.data_dir()?;
        let socket = paths::agent_socket(&data_dir);
        let server = Server::new(&data_dir);
        let agent = Agent::new(socket.clone());
        let nonce = countersign_keys::random_hex::<32>();
        let (held, agent_id) = hold(&agent, &nonce).await?;
        let keep = tokio::spawn(keep_held(Agent::new(socket.clone()), nonce.clone(), held));
        let td = agent_id.trust_domain().clone();
        let id = id_or_path(&self.id, &td)?;
        let listeners = self.listeners(&td)?;
        let entry = self.entry(&id, &agent_id, &nonce)?;
        let made = create(&server, std::slice::from_ref(&entry)).await?.pop();
        let made = made.ok_or_else(|| Finding::new(Code::InternalError, "no entry was made"))?;
        let result = self.with_identity(socket, &id, listeners, &server, &made).await;
        // Whatever happened, the entry goes.
        let delete = api::BatchDeleteEntryRequest { ids: vec![made.id.clone()] };
        let _ = server.entries().batch_delete_entry(delete).await;
        keep.abort();
        result
    }

    fn entry(&self, id: &SpiffeId, agent: &SpiffeId, nonce: &str) -> Result<Entry, Finding> {
        let selector = Selector::new("countersign", &format!("run:{nonce}"))
            .map_err(|e| Finding::new(Code::InternalError, e.to_string()))?;
        let mut entry = Entry::new(id.clone(), agent.clone(), SelectorSet::from_iter([selector]));
        entry.x509_svid_ttl = self.x509_svid_ttl;
        entry.expires_at = Some(current_time() + ENTRY_LIFE);
        Ok(entry)
    }

    async fn with_identity(
        &self,
        socket: std::path::PathBuf,
        id: &SpiffeId,
        listeners: Vec<ListenerOptions>,
        server: &Server,
        entry: &Entry,
    ) -> Result<ExitCode, Finding> {
        let source = IdentitySource::WorkloadApi {
            socket: socket.clone(),
            id: Some(id.clone()),
            with_policies: true,
        };
        let mut options = ProxyOptions::new(source, listeners);
        options.labels = super::proxy::labels(&self.labels)?;
        options.mesh = self.semantics.mesh()?;
        if let Some(path) = &self.providers {
            options.providers = super::proxy::providers(path)?;
        }
        options.legacy = self.legacy.options();
        options.issuers = self.issuers.options()?;
        options.edges = self.edges.as_deref().map(super::proxy::edges).transpose()?;
        let proxy = Proxy::start(options, AccessLog::off()).await?;
        wait_ready(&proxy).await?;
        output::note(&format!("identity {id}"));
        for address in &proxy.addresses {
            output::note(&format!("sidecar  {address}"));
        }
        let mut command = Command::new(&self.command[0]);
        command
            .args(&self.command[1..])
            .env("SPIFFE_ENDPOINT_SOCKET", format!("unix://{}", socket.display()))
            .kill_on_drop(true);
        let child = command.spawn().map_err(|e| {
            Finding::new(Code::FileUnreadable, format!("cannot start `{}`: {e}", self.command[0]))
        })?;
        let code = tokio::select! {
            code = supervise(child) => code?,
            never = prolong(server, entry) => never,
        };
        proxy.drain().await;
        Ok(code)
    }
}

/// Ties the nonce to this process tree for as long as the stream is held.
async fn hold(
    agent: &Agent,
    nonce: &str,
) -> Result<(Streaming<HoldRunResponse>, SpiffeId), Finding> {
    let mut stream = agent
        .node()
        .hold_run(HoldRunRequest { nonce: nonce.to_owned() })
        .await
        .map_err(|s| agent.refused(&s))?
        .into_inner();
    let first = stream
        .message()
        .await
        .map_err(|s| agent.refused(&s))?
        .ok_or_else(|| Finding::new(Code::AgentUnreachable, "the agent closed the stream"))?;
    let id = SpiffeId::parse(&first.agent_id).map_err(|e| invalid(e.to_string()))?;
    Ok((stream, id))
}

/// Holds the stream, and opens it anew when the agent restarts.
async fn keep_held(agent: Agent, nonce: String, mut held: Streaming<HoldRunResponse>) {
    loop {
        while let Ok(Some(_)) = held.message().await {}
        held = loop {
            tokio::time::sleep(Duration::from_millis(500)).await;
            if let Ok((again, _)) = hold(&agent, &nonce).await {
                break again;
            }
        };
    }
}

async fn wait_ready(proxy: &RunningProxy) -> Result<(), Finding> {
    match tokio::time::timeout(Duration::from_secs(30), proxy.ready()).await {
        Ok(()) => Ok(()),
        Err(_) => Err(proxy.last_error().unwrap_or_else(|| {
            Finding::new(Code::NoIdentityYet, "no identity arrived within 30 s")
        })),
    }
}

/// Keeps the entry alive; never returns.
async fn prolong(server: &Server, entry: &Entry) -> ExitCode {
    loop {
        tokio::time::sleep(ENTRY_LIFE / 2).await;
        let mut entry = entry.clone();
        entry.expires_at = Some(current_time() + ENTRY_LIFE);
        let request = api::BatchUpdateEntryRequest {
            entries: vec![convert::from_entry(&entry)],
            input_mask: Some(countersign_wire::proto::spire::api::types::EntryMask {
                expires_at: true,
                ..Default::default()
            }),
            output_mask: None,
        };
        if let Err(e) = server.entries().batch_update_entry(request).await {
            tracing::warn!("entry was not prolonged: {}", e.message());
        }
    }
}

/// Passes signals on and waits; the child's exit code, or 128 + its signal.
async fn supervise(mut child: Child) -> Result<ExitCode, Finding> {
    let failed = |e: std::io::Error| Finding::new(Code::InternalError, e.to_string());
    let mut signals = Vec::new();
    for kind in [
        SignalKind::interrupt(),
        SignalKind::terminate(),
        SignalKind::hangup(),
        SignalKind::quit(),
        SignalKind::user_defined1(),
        SignalKind::user_defined2(),
    ] {
        signals.push((kind, signal(kind).map_err(failed)?));
    }
    loop {
        let received = std::future::poll_fn(|cx| {
            for (kind, s) in &mut signals {
                if let std::task::Poll::Ready(Some(())) = s.poll_recv(cx) {
                    return std::task::Poll::Ready(kind.as_raw_value());
                }
            }
            std::task::Poll::Pending
        });
        tokio::select! {
            status = child.wait() => {
                let status = status.map_err(failed)?;
                let code = status.code().or_else(|| status.signal().map(|s| 128 + s)).unwrap_or(1);
                return Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)));
            }
            number = received => {
                let pid = child.id().and_then(|p| i32::try_from(p).ok());
                if let Some(pid) = pid.and_then(rustix::process::Pid::from_raw)
                    && let Some(s) = rustix::process::Signal::from_named_raw(number)
                {
                    let _ = rustix::process::kill_process(pid, s);
                }
            }
        }
    }
}
