//! `countersign proxy`.

use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use countersign_findings::{Code, Finding};
use countersign_identity::{SpiffeId, TrustDomain, UnixTime};
use countersign_keys::read_bounded;
use countersign_policy::{AllowList, MAX_INPUT, Mode, Provider, Until, parse_providers};
use countersign_proxy::{
    EdgeLog, IdentitySource, InboundOptions, ListenerOptions, OutboundOptions, PeerMode, Protocol,
    Proxy, ProxyOptions,
};
use countersign_telemetry::AccessLog;
use countersign_tls::current_time;
use countersign_x509::LegacyName;
use serde::Deserialize;
use serde_json::json;

use super::semantics::SemanticsFlags;
use super::{Global, interrupted, invalid, parse_duration, serve_admin};
use crate::output::{self, Format};
use crate::paths;

#[derive(Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct ProxyCommand {
    #[command(subcommand)]
    command: Option<Command>,
    /// Many listeners from a TOML file
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    common: Common,
}

#[derive(Subcommand)]
enum Command {
    /// From peers to a workload: terminate mTLS, verify, authorize, forward in plaintext
    Inbound(Inbound),
    /// From a workload to a peer: accept plaintext, originate mTLS, verify the peer
    Outbound(Outbound),
}

#[derive(Args, Clone, Debug)]
struct Common {
    /// Workload API socket, ours or SPIRE's [default: the agent's in the data directory]
    #[arg(long, env = "SPIFFE_ENDPOINT_SOCKET", value_name = "SOCKET", conflicts_with_all = ["cert", "key", "bundle"])]
    workload_api: Option<String>,
    /// The identity to use if the Workload API offers several
    #[arg(long, value_name = "ID")]
    id: Option<SpiffeId>,
    /// Certificate chain in PEM, watched for change
    #[arg(long, value_name = "FILE", requires_all = ["key", "bundle"])]
    cert: Option<PathBuf>,
    /// Private key in PEM (PKCS#8, mode 0600)
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
    /// Trust bundle in PEM
    #[arg(long, value_name = "FILE", requires = "cert")]
    bundle: Option<PathBuf>,
    /// Policy files, watched for change; added to those the agent tells
    #[arg(long, value_name = "FILE")]
    policy: Vec<PathBuf>,
    /// A label of the workload, for policies with a selector; repeat for more. Without any, selectors
    /// count where they refuse and not where they allow
    #[arg(long = "label", value_name = "KEY=VALUE")]
    labels: Vec<String>,
    #[command(flatten)]
    semantics: SemanticsFlags,
    /// Engines that CUSTOM policies may name: Istio's `extensionProviders`, in a file
    #[arg(long, value_name = "FILE")]
    providers: Option<PathBuf>,
    #[command(flatten)]
    legacy: super::legacy::LegacyFlags,
    #[command(flatten)]
    issuers: super::issuers::IssuerFlags,
    /// Write each distinct call that is allowed to this file, for `policy suggest` and `policy diff`
    #[arg(long, value_name = "FILE")]
    edges: Option<PathBuf>,
    /// Worker threads
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: u16,
    /// Address for /metrics, /livez, /readyz
    #[arg(long, value_name = "ADDR")]
    metrics: Option<SocketAddr>,
    /// Handshake records as JSON lines: a file, or `-` for standard output
    #[arg(long, value_name = "FILE")]
    access_log: Option<String>,
    /// Also accept TLS 1.2
    #[arg(long)]
    tls12: bool,
    /// A handshake may take this long
    #[arg(long, value_parser = parse_duration, default_value = "10s", value_name = "DURATION")]
    handshake_timeout: Duration,
    /// Connections may take this long to finish when stopping
    #[arg(long, value_parser = parse_duration, default_value = "10s", value_name = "DURATION")]
    drain: Duration,
    /// Connections at once
    #[arg(long, default_value_t = 100_000)]
    max_connections: usize,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ProtocolArg {
    /// HTTP/1.1 if it looks like it, bytes otherwise
    #[default]
    Auto,
    /// Bytes
    Tcp,
    /// HTTP/1.1
    Http,
}

impl From<ProtocolArg> for Protocol {
    fn from(p: ProtocolArg) -> Self {
        match p {
            ProtocolArg::Auto => Protocol::Auto,
            ProtocolArg::Tcp => Protocol::Tcp,
            ProtocolArg::Http => Protocol::Http,
        }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ModeArg {
    /// Only mTLS
    Strict,
    /// mTLS, and plaintext until `--until`
    Permissive,
}

/// `--mode` and `--until` together; PERMISSIVE without an end is refused unless spelt out.
pub(crate) fn peer_mode(mode: Option<ModeArg>, until: Option<&str>) -> Result<PeerMode, Finding> {
    let until = until
        .map(|t| match t {
            "never" => Ok(Until::Never),
            t => {
                let end = match parse_duration(t) {
                    Ok(d) if UnixTime::parse(t).is_none() => Some(current_time() + d),
                    _ => UnixTime::parse(t),
                };
                end.map(Until::Time).ok_or_else(|| {
                    invalid(format!("--until: `{t}` is neither a time, a duration nor `never`"))
                })
            }
        })
        .transpose()?;
    match (mode, until) {
        (None, None) => Ok(PeerMode::FromPolicy),
        (Some(ModeArg::Strict), None) => Ok(PeerMode::Fixed(Mode::Strict)),
        (Some(ModeArg::Permissive), Some(until)) => {
            if until == Until::Never {
                output::note(&format!(
                    "warning{}",
                    Finding::new(
                        Code::PermissiveWithoutEnd,
                        "this port accepts plaintext for ever"
                    )
                    .hint("set an end as soon as the last plaintext caller is known")
                ));
            }
            Ok(PeerMode::Fixed(Mode::Permissive { until }))
        }
        (Some(ModeArg::Permissive), None) => {
            Err(Finding::new(Code::PermissiveWithoutEnd, "--mode permissive needs --until"))
        }
        (_, Some(_)) => Err(invalid("--until goes with --mode permissive")),
    }
}

#[derive(Args, Clone, Debug)]
struct Inbound {
    /// Where peers connect
    #[arg(long, value_name = "ADDR")]
    listen: SocketAddr,
    /// Where the workload listens, plaintext
    #[arg(long, value_name = "HOST:PORT")]
    forward: String,
    /// What peers may speak [default: as PeerAuthentication says, else strict]
    #[arg(long, value_enum)]
    mode: Option<ModeArg>,
    /// End of permissive mode: a time, a duration from now, or `never`
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// Only these identities may call, or legacy names (CN=…); repeat for more [default: as policies say]
    #[arg(long = "allow", value_name = "ID")]
    allow: Vec<String>,
    /// What is spoken
    #[arg(long, value_enum, default_value_t)]
    protocol: ProtocolArg,
    #[command(flatten)]
    common: Common,
}

#[derive(Args, Clone, Debug)]
struct Outbound {
    /// Where the workload connects, plaintext; keep it on loopback
    #[arg(long, value_name = "ADDR")]
    listen: SocketAddr,
    /// Allow listening on an address that is not loopback: everyone who reaches it can use this identity
    #[arg(long)]
    unsafe_listen: bool,
    /// Where the peer listens, mTLS
    #[arg(long, value_name = "HOST:PORT")]
    upstream: String,
    /// Who the peer must be; repeat for alternatives
    #[arg(long = "peer-id", required = true, value_name = "ID")]
    peer_ids: Vec<SpiffeId>,
    /// What is spoken
    #[arg(long, value_enum, default_value_t)]
    protocol: ProtocolArg,
    #[command(flatten)]
    common: Common,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    #[serde(default)]
    inbound: Vec<InboundConfig>,
    #[serde(default)]
    outbound: Vec<OutboundConfig>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct InboundConfig {
    listen: SocketAddr,
    forward: String,
    mode: Option<ModeArg>,
    until: Option<String>,
    allow: Option<Vec<String>>,
    #[serde(default)]
    protocol: ProtocolArg,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OutboundConfig {
    listen: SocketAddr,
    #[serde(default)]
    unsafe_listen: bool,
    upstream: String,
    peer_ids: Vec<String>,
    #[serde(default)]
    protocol: ProtocolArg,
}

/// HOST:PORT with a port that exists.
pub(crate) fn check_target(what: &str, text: &str) -> Result<(), Finding> {
    let good = text
        .rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|p| p > 0));
    if good { Ok(()) } else { Err(invalid(format!("{what}: `{text}` is not HOST:PORT"))) }
}

pub(crate) fn check_loopback(listen: SocketAddr, allowed: bool) -> Result<(), Finding> {
    if listen.ip().is_loopback() || allowed {
        return Ok(());
    }
    Err(invalid(format!(
        "{listen} is not loopback: everyone who reaches it could use this identity"
    ))
    .hint("listen on 127.0.0.1, or pass --unsafe-listen"))
}

fn ids(list: &[String], place: &str) -> Result<Vec<SpiffeId>, Finding> {
    list.iter()
        .map(|t| SpiffeId::parse(t).map_err(|e| invalid(e.to_string()).at(place.to_owned())))
        .collect()
}

fn read_config(path: &Path) -> Result<Vec<ListenerOptions>, Finding> {
    let place = path.display().to_string();
    let text = std::fs::read_to_string(path)
        .map_err(|e| Finding::new(Code::FileUnreadable, format!("cannot read `{place}`: {e}")))?;
    let config: Config = toml::from_str(&text).map_err(|e| {
        let line =
            e.span().map_or(1, |s| text[..s.start.min(text.len())].matches('\n').count() + 1);
        let code = if e.message().contains("unknown field") {
            Code::UnknownField
        } else {
            Code::ConfigSyntax
        };
        Finding::new(code, e.message().to_owned()).at(format!("{place}:{line}"))
    })?;
    let mut out = Vec::new();
    for (i, c) in config.inbound.into_iter().enumerate() {
        let at = format!("{place}: inbound[{i}]");
        check_target("forward", &c.forward).map_err(|f| f.at(at.clone()))?;
        out.push(ListenerOptions::Inbound(InboundOptions {
            listen: c.listen,
            forward: c.forward,
            mode: peer_mode(c.mode, c.until.as_deref()).map_err(|f| f.at(at.clone()))?,
            allow: c
                .allow
                .map(|list| allow_list(&list, spiffe_id).map_err(|f| f.at(at.clone())))
                .transpose()?
                .map(Arc::new),
            protocol: c.protocol.into(),
        }));
    }
    for (i, c) in config.outbound.into_iter().enumerate() {
        let at = format!("{place}: outbound[{i}]");
        check_target("upstream", &c.upstream).map_err(|f| f.at(at.clone()))?;
        check_loopback(c.listen, c.unsafe_listen).map_err(|f| f.at(at.clone()))?;
        if c.peer_ids.is_empty() {
            return Err(invalid("peer_ids is empty").at(at));
        }
        out.push(ListenerOptions::Outbound(OutboundOptions {
            listen: c.listen,
            upstream: c.upstream,
            peer_ids: ids(&c.peer_ids, &at)?,
            protocol: c.protocol.into(),
        }));
    }
    if out.is_empty() {
        return Err(
            Finding::new(Code::ConfigSyntax, "no [[inbound]] and no [[outbound]]").at(place)
        );
    }
    Ok(out)
}

impl ProxyCommand {
    pub(crate) async fn run(self, global: &Global) -> Result<ExitCode, Finding> {
        let (common, listeners) = match (self.command, self.config) {
            (Some(Command::Inbound(i)), None) => {
                check_target("--forward", &i.forward)?;
                let listener = ListenerOptions::Inbound(InboundOptions {
                    listen: i.listen,
                    forward: i.forward,
                    mode: peer_mode(i.mode, i.until.as_deref())?,
                    allow: match i.allow.is_empty() {
                        true => None,
                        false => Some(Arc::new(allow_list(&i.allow, spiffe_id)?)),
                    },
                    protocol: i.protocol.into(),
                });
                (i.common, vec![listener])
            }
            (Some(Command::Outbound(o)), None) => {
                check_target("--upstream", &o.upstream)?;
                check_loopback(o.listen, o.unsafe_listen)?;
                let listener = ListenerOptions::Outbound(OutboundOptions {
                    listen: o.listen,
                    upstream: o.upstream,
                    peer_ids: o.peer_ids,
                    protocol: o.protocol.into(),
                });
                (o.common, vec![listener])
            }
            (None, Some(path)) => (self.common, read_config(&path)?),
            _ => {
                return Err(invalid("say what to run")
                    .hint("`proxy inbound …`, `proxy outbound …`, or `proxy --config FILE`"));
            }
        };
        serve(common, listeners, global).await
    }
}

/// `KEY=VALUE` each; `None` if there are none.
pub(crate) fn labels(list: &[String]) -> Result<Option<countersign_policy::Labels>, Finding> {
    if list.is_empty() {
        return Ok(None);
    }
    list.iter()
        .map(|l| match l.split_once('=') {
            Some((k, v)) if !k.is_empty() => Ok((k.to_owned(), v.to_owned())),
            _ => Err(invalid(format!("--label: `{l}` is not KEY=VALUE"))),
        })
        .collect::<Result<_, _>>()
        .map(Some)
}

/// Who may call: SPIFFE IDs, and clients without one by their legacy names.
pub(crate) fn allow_list(
    texts: &[String],
    id: impl Fn(&str) -> Result<SpiffeId, Finding>,
) -> Result<AllowList, Finding> {
    let mut list = AllowList::default();
    for text in texts {
        match text.parse::<LegacyName>() {
            Ok(name) => list.legacy.push(name.to_string()),
            Err(_) => list.ids.push(id(text)?),
        }
    }
    Ok(list)
}

fn spiffe_id(text: &str) -> Result<SpiffeId, Finding> {
    SpiffeId::parse(text).map_err(|e| invalid(format!("`{}`: {e}", text.escape_default())))
}

/// Reads the engines that CUSTOM policies may name.
pub(crate) fn providers(path: &Path) -> Result<Vec<Provider>, Finding> {
    let bytes = read_bounded(path, MAX_INPUT as u64).map_err(|e| e.finding())?;
    let place = path.display().to_string();
    let text = std::str::from_utf8(&bytes)
        .map_err(|_| Finding::new(Code::ConfigSyntax, "not UTF-8").at(place.clone()))?;
    parse_providers(text, &place)
}

/// Opens the file of edges, to be continued.
pub(crate) fn edges(path: &Path) -> Result<EdgeLog, Finding> {
    let file = std::fs::OpenOptions::new().create(true).append(true).open(path).map_err(|e| {
        Finding::new(Code::FileUnreadable, format!("cannot open `{}`: {e}", path.display()))
    })?;
    Ok(EdgeLog::to(Box::new(file)))
}

/// Opens the access log that was asked for.
fn access_log(target: Option<&str>) -> Result<AccessLog, Finding> {
    Ok(match target {
        None => AccessLog::off(),
        Some("-") => AccessLog::to(Box::new(std::io::stdout())),
        Some(path) => {
            let file: Box<dyn Write + Send> = Box::new(
                std::fs::OpenOptions::new().create(true).append(true).open(path).map_err(|e| {
                    Finding::new(Code::StorageFailed, format!("cannot open `{path}`: {e}"))
                })?,
            );
            AccessLog::to(file)
        }
    })
}

async fn serve(
    common: Common,
    listeners: Vec<ListenerOptions>,
    global: &Global,
) -> Result<ExitCode, Finding> {
    let identity = match (&common.cert, &common.key, &common.bundle) {
        (Some(cert), Some(key), Some(bundle)) => {
            IdentitySource::Files { cert: cert.clone(), key: key.clone(), bundle: bundle.clone() }
        }
        _ => {
            let socket = match &common.workload_api {
                Some(text) => paths::parse_socket(text).map_err(invalid)?,
                None => paths::agent_socket(&global.data_dir()?),
            };
            IdentitySource::WorkloadApi { socket, id: common.id.clone(), with_policies: true }
        }
    };
    let mut options = ProxyOptions::new(identity, listeners);
    options.policy_files.clone_from(&common.policy);
    options.labels = labels(&common.labels)?;
    options.mesh = common.semantics.mesh()?;
    if let Some(path) = &common.providers {
        options.providers = providers(path)?;
    }
    options.legacy = common.legacy.options();
    options.issuers = common.issuers.options()?;
    options.edges = common.edges.as_deref().map(edges).transpose()?;
    options.threads = usize::from(common.threads);
    options.tls12 = common.tls12;
    options.handshake_timeout = common.handshake_timeout;
    options.drain_timeout = common.drain;
    options.max_connections = common.max_connections;
    let log = access_log(common.access_log.as_deref())?;
    let log_on_stdout = common.access_log.as_deref() == Some("-");
    let proxy = Proxy::start(options, log).await?;
    let metrics =
        serve_admin(common.metrics, Arc::clone(&proxy.metrics), Arc::new(proxy.health()))?;
    let announced = async {
        proxy.ready().await;
        let listening: Vec<String> = proxy.addresses.iter().map(ToString::to_string).collect();
        match global.output {
            Format::Json if !log_on_stdout => {
                let _ = output::json(
                    "countersign.proxy/v1",
                    &json!({"listen": listening, "metrics": metrics.map(|a| a.to_string())}),
                );
            }
            _ => output::note(&format!("ready on {}", listening.join(", "))),
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = interrupted() => {}
        () = announced => {}
    }
    output::note("draining");
    tokio::select! {
        () = proxy.drain() => {}
        // A second signal ends the wait.
        () = interrupted() => {}
    }
    Ok(ExitCode::SUCCESS)
}

/// A SPIFFE ID or a path in `trust_domain`, for `run`.
pub(crate) fn peer_id(text: &str, trust_domain: &TrustDomain) -> Result<SpiffeId, Finding> {
    super::entry::id_or_path(text, trust_domain)
}
