//! `countersign agent`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use countersign_agent::{Agent, AgentOptions};
use countersign_findings::Finding;
use countersign_wire::join::JoinString;
use serde::Serialize;

use super::{Global, interrupted, serve_admin};
use crate::output::{self, Format};
use crate::paths;

#[derive(Args)]
pub(crate) struct AgentCommand {
    /// Join string from `countersign token`; only for the first start
    #[arg(long, env = "COUNTERSIGN_JOIN", value_name = "STRING", hide_env_values = true)]
    join: Option<String>,
    /// Address of the server, if it has moved since the agent joined
    #[arg(long, value_name = "HOST:PORT")]
    server: Option<String>,
    /// Socket for workloads [default: agent.sock in the data directory]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Address for /metrics, /livez, /readyz
    #[arg(long, value_name = "ADDR")]
    metrics: Option<SocketAddr>,
}

#[derive(Serialize)]
struct Ready {
    agent_id: String,
    socket: String,
    spiffe_endpoint_socket: String,
}

impl AgentCommand {
    pub(crate) async fn run(self, global: &Global) -> Result<ExitCode, Finding> {
        let data_dir = global.data_dir()?;
        let join = self.join.as_deref().map(JoinString::parse).transpose()?;
        let socket = self.socket.unwrap_or_else(|| paths::agent_socket(&data_dir));
        let mut agent = Agent::start(AgentOptions {
            data_dir: data_dir.join("agent"),
            socket: socket.clone(),
            join,
            server: self.server,
        })
        .await?;
        serve_admin(self.metrics, Arc::clone(&agent.metrics), Arc::new(agent.health()))?;
        let ready = Ready {
            agent_id: agent.id.clone(),
            socket: socket.display().to_string(),
            spiffe_endpoint_socket: format!("unix://{}", socket.display()),
        };
        match global.output {
            Format::Json => output::json("countersign.agent/v1", &ready)?,
            Format::Table => {
                output::note(&format!("agent `{}` on {}", ready.agent_id, ready.socket));
                output::next("countersign run --id /ns/shop/sa/web -- ./web");
            }
        }
        let ended = tokio::select! {
            () = interrupted() => None,
            code = agent.ended() => Some(code),
        };
        agent.stop().await;
        match ended {
            None => Ok(ExitCode::SUCCESS),
            Some(code) => Err(Finding::new(code, code.title())),
        }
    }
}
