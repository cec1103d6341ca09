//! `countersign ext-authz`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use countersign_authz::{Authz, AuthzOptions, Listen};
use countersign_findings::Finding;
use countersign_server::DataDir;
use countersign_tls::current_time;
use serde_json::json;

use super::documents::{files, load};
use super::proxy::{check_loopback, labels};
use super::semantics::{SemanticsFlags, trust_domain};
use super::{Global, interrupted, invalid, serve_admin};
use crate::output::{self, Format};

const EXAMPLE: &str = "\
Envoy's side:
  http_filters:
  - name: envoy.filters.http.ext_authz
    typed_config:
      \"@type\": type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthz
      transport_api_version: V3
      include_peer_certificate: true
      grpc_service: {envoy_grpc: {cluster_name: countersign}, timeout: 1s}
The cluster speaks HTTP/2 (typed_extension_protocol_options) to the address given with --listen.
Leave failure_mode_allow out: it would let everybody in when this is down.";

/// Answers Envoy's external authorization by policies.
#[derive(Args)]
#[command(after_help = EXAMPLE)]
pub(crate) struct ExtAuthzCommand {
    /// Where to listen: an address, or unix:///PATH
    #[arg(long, default_value = "127.0.0.1:9191", value_name = "ADDR")]
    listen: String,
    /// Listen on an address that others can reach. Questions and answers are not encrypted
    #[arg(long)]
    unsafe_listen: bool,
    /// Policy files or directories, watched for change
    #[arg(long, required = true, value_name = "PATH")]
    policy: Vec<PathBuf>,
    /// The local trust domain [default: the data directory's, else cluster.local]
    #[arg(long, value_name = "NAME")]
    trust_domain: Option<String>,
    /// The namespace of the workload behind Envoy [default: that of Envoy's own SPIFFE ID, else `default`]
    #[arg(long, value_name = "NAME")]
    namespace: Option<String>,
    /// A label of that workload, for policies with a selector; repeat for more
    #[arg(long = "label", value_name = "KEY=VALUE")]
    labels: Vec<String>,
    #[command(flatten)]
    semantics: SemanticsFlags,
    #[command(flatten)]
    issuers: super::issuers::IssuerFlags,
    /// Address for /metrics, /livez, /readyz
    #[arg(long, value_name = "ADDR")]
    metrics: Option<SocketAddr>,
}

impl ExtAuthzCommand {
    pub(crate) async fn run(self, global: &Global) -> Result<ExitCode, Finding> {
        let listen = match self.listen.strip_prefix("unix://") {
            Some(path) if path.starts_with('/') => Listen::Unix(PathBuf::from(path)),
            Some(_) => return Err(invalid("--listen: the path must be absolute: unix:///PATH")),
            None => {
                let address: SocketAddr = self.listen.parse().map_err(|_| {
                    invalid(format!(
                        "--listen: `{}` is neither IP:PORT nor unix:///PATH",
                        self.listen
                    ))
                })?;
                check_loopback(address, self.unsafe_listen)?;
                Listen::Tcp(address)
            }
        };
        let own = || DataDir::new(global.data_dir().ok()?).trust_domain().ok();
        let domain = match &self.trust_domain {
            Some(name) => trust_domain(name)?,
            None => own().map_or_else(|| trust_domain("cluster.local"), Ok)?,
        };
        let (read, watched) = (self.policy.clone(), self.policy);
        let service = Authz::start(AuthzOptions {
            listen,
            documents: Box::new(move || Ok(load(&read)?.into_iter().map(|s| s.document).collect())),
            files: Box::new(move || files(&watched)),
            trust_domain: domain,
            namespace: self.namespace,
            labels: labels(&self.labels)?,
            mesh: self.semantics.mesh()?,
            issuers: self.issuers.options()?,
            now: current_time,
        })?;
        let metrics = serve_admin(self.metrics, Arc::clone(&service.metrics), Arc::new(|| Ok(())))?;
        match global.output {
            Format::Json => output::json(
                "countersign.ext-authz/v1",
                &json!({"listen": service.address, "metrics": metrics.map(|a| a.to_string())}),
            )?,
            _ => output::note(&format!("answering ext_authz on {}", service.address)),
        }
        interrupted().await;
        Ok(ExitCode::SUCCESS)
    }
}
