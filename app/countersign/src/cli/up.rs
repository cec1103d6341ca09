//! `countersign up`: server and agent in one process.

use std::process::ExitCode;

use clap::Args;
use countersign_agent::{Agent, AgentOptions};
use countersign_findings::{Code, Finding};
use countersign_identity::{SpiffeId, TrustDomain};
use countersign_server::{DataDir, InitOptions, Server, initialise};
use countersign_tls::current_time;
use serde::Serialize;

use super::server::ServerFlags;
use super::{Global, interrupted, invalid};
use crate::client;
use crate::output::{self, Format};
use crate::paths;

/// The lasting name of the node that runs server and agent together. Its agent gets a new ID whenever it
/// has to join anew, after a day switched off for example.
const LOCAL_NODE: &str = "/node/local";

#[derive(Args)]
pub(crate) struct Up {
    #[command(flatten)]
    server: ServerFlags,
    /// Initialise the data directory for this trust domain if it is not yet
    #[arg(long, value_name = "NAME")]
    trust_domain: Option<String>,
}

#[derive(Serialize)]
struct Ready {
    trust_domain: String,
    server: String,
    admin_socket: String,
    agent_id: String,
    agent_socket: String,
    spiffe_endpoint_socket: String,
    bundle: String,
}

impl Up {
    pub(crate) async fn run(self, global: &Global) -> Result<ExitCode, Finding> {
        let data_dir = global.data_dir()?;
        let dir = DataDir::new(&data_dir);
        if let Some(name) = &self.trust_domain {
            let td = TrustDomain::new(name).map_err(|e| invalid(e.to_string()))?;
            match initialise(&dir, &td, InitOptions::default(), current_time()).await {
                Ok(_) => {}
                Err(e) if e.code == Code::AlreadyInitialised => {}
                Err(e) => return Err(e),
            }
        }
        let trust_domain = dir.trust_domain()?;
        let server = Server::start(self.server.options(dir.clone())).await?;
        let socket = paths::agent_socket(&data_dir);
        let options = |join| AgentOptions {
            data_dir: data_dir.join("agent"),
            socket: socket.clone(),
            join,
            // The listener may have another port than when the agent joined.
            server: Some(server.address.to_string()),
        };
        // An agent that has joined before needs no token; one that has not gets one over the socket.
        let mut agent = match Agent::start(options(None)).await {
            Err(e) if e.code == Code::AgentNotAttested => {
                let node = SpiffeId::from_path(&trust_domain, LOCAL_NODE)
                    .map_err(|e| invalid(e.to_string()))?;
                let admin = client::Server::new(&data_dir);
                let (mut join, _) = admin.join_string(60, None, Some(&node)).await?;
                join.server = server.address.to_string();
                Agent::start(options(Some(join))).await?
            }
            other => other?,
        };
        agent.ready().await;
        let ready = Ready {
            trust_domain: trust_domain.to_string(),
            server: server.address.to_string(),
            admin_socket: dir.admin_socket().display().to_string(),
            agent_id: agent.id.clone(),
            agent_socket: socket.display().to_string(),
            spiffe_endpoint_socket: format!("unix://{}", socket.display()),
            bundle: dir.bundle().display().to_string(),
        };
        match global.output {
            Format::Json => output::json("countersign.up/v1", &ready)?,
            Format::Table => {
                output::note(&format!("trust domain  {}", ready.trust_domain));
                output::note(&format!("server        {}", ready.server));
                output::note(&format!("agent         {}", ready.agent_id));
                output::note(&format!("socket        {}", ready.spiffe_endpoint_socket));
                output::next("countersign run --id /ns/shop/sa/web -- ./web");
            }
        }
        let ended = tokio::select! {
            () = interrupted() => None,
            code = agent.ended() => Some(code),
        };
        agent.stop().await;
        server.stop().await;
        match ended {
            None => Ok(ExitCode::SUCCESS),
            Some(code) => Err(Finding::new(code, code.title())),
        }
    }
}
