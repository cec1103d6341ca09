//! `countersign token`.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use countersign_findings::Finding;
use countersign_identity::UnixTime;
use serde::Serialize;

use super::entry::{id_or_path, trust_domain};
use super::{Global, parse_duration};
use crate::client::Server;
use crate::output::{self, Format};

#[derive(Args)]
pub(crate) struct Token {
    /// How long it may be used
    #[arg(long, value_parser = parse_duration, default_value = "10m")]
    ttl: Duration,
    /// Address under which the agent reaches the server, if not the one it listens on
    #[arg(long, value_name = "HOST:PORT")]
    server: Option<String>,
    /// A lasting name for the node, such as `/node/db-1`: entries with it as their parent stay when the
    /// agent joins again
    #[arg(long, value_name = "ID|PATH")]
    node: Option<String>,
    /// Print only the token, for SPIRE's agents; they need the bundle beside it
    #[arg(long)]
    raw: bool,
}

#[derive(Serialize)]
struct Made {
    join: String,
    token: String,
    server: String,
    trust_domain: String,
    expires_at: String,
}

impl Token {
    pub(crate) async fn run(self, global: &Global) -> Result<ExitCode, Finding> {
        let server = Server::new(&global.data_dir()?);
        let ttl = i32::try_from(self.ttl.as_secs()).unwrap_or(i32::MAX);
        let node = match &self.node {
            Some(text) => Some(id_or_path(text, &trust_domain(&server).await?)?),
            None => None,
        };
        let (join, expires_at) = server.join_string(ttl, self.server, node.as_ref()).await?;
        match global.output {
            Format::Json => output::json(
                "countersign.token/v1",
                &Made {
                    join: join.encode(),
                    token: join.token.clone(),
                    server: join.server.clone(),
                    trust_domain: join.trust_domain.to_string(),
                    expires_at: UnixTime::from_secs(expires_at).to_string(),
                },
            )?,
            Format::Table if self.raw => output::line(&join.token)?,
            Format::Table => output::line(&join.encode())?,
        }
        Ok(ExitCode::SUCCESS)
    }
}
