//! `countersign server`.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use countersign_findings::Finding;
use countersign_server::{DataDir, Server, ServerOptions};
use serde::Serialize;

use super::{Global, interrupted, parse_duration, serve_admin};
use crate::output::{self, Format};

/// Flags that `server` and `up` share.
#[derive(Args, Clone, Debug)]
pub(crate) struct ServerFlags {
    /// Address of the server API for agents
    #[arg(long, default_value = "127.0.0.1:8081", value_name = "ADDR")]
    listen: SocketAddr,
    /// Life of X509-SVIDs whose entry names none
    #[arg(long, value_parser = parse_duration, default_value = "1h")]
    x509_svid_ttl: Duration,
    /// Life of JWT-SVIDs whose entry names none
    #[arg(long, value_parser = parse_duration, default_value = "5m")]
    jwt_svid_ttl: Duration,
    /// Life of the signing CA
    #[arg(long, value_parser = parse_duration, default_value = "24h")]
    ca_ttl: Duration,
}

impl ServerFlags {
    pub(crate) fn options(&self, data_dir: DataDir) -> ServerOptions {
        ServerOptions {
            data_dir,
            listen: self.listen,
            x509_svid_ttl: self.x509_svid_ttl,
            jwt_svid_ttl: self.jwt_svid_ttl,
            ca_ttl: self.ca_ttl,
        }
    }
}

#[derive(Args)]
pub(crate) struct ServerCommand {
    #[command(flatten)]
    flags: ServerFlags,
    /// Address for /metrics, /livez, /readyz
    #[arg(long, value_name = "ADDR")]
    metrics: Option<SocketAddr>,
}

#[derive(Serialize)]
struct Ready {
    trust_domain: String,
    server: String,
    admin_socket: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    metrics: Option<String>,
}

impl ServerCommand {
    pub(crate) async fn run(self, global: &Global) -> Result<ExitCode, Finding> {
        let dir = DataDir::new(global.data_dir()?);
        let trust_domain = dir.trust_domain()?;
        let server = Server::start(self.flags.options(dir.clone())).await?;
        let metrics = serve_admin(self.metrics, Arc::clone(&server.metrics), Arc::new(|| Ok(())))?;
        let ready = Ready {
            trust_domain: trust_domain.to_string(),
            server: server.address.to_string(),
            admin_socket: dir.admin_socket().display().to_string(),
            metrics: metrics.map(|a| a.to_string()),
        };
        match global.output {
            Format::Json => output::json("countersign.server/v1", &ready)?,
            Format::Table => {
                output::note(&format!(
                    "server for `{}` on {}, admin socket {}",
                    ready.trust_domain, ready.server, ready.admin_socket
                ));
                output::next("countersign agent --join \"$(countersign token)\"");
            }
        }
        interrupted().await;
        server.stop().await;
        Ok(ExitCode::SUCCESS)
    }
}
