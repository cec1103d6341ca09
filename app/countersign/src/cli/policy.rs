//! `countersign policy`: what is in force, and what would be.

mod decide;
mod diff;
mod explain;
mod lint;
mod preview;
mod suggest;
mod test;

pub(crate) use explain::parse_set;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use countersign_findings::Finding;
use countersign_wire::proto::countersign::server::v1 as own;
use serde_json::json;

use super::{Global, invalid};
use crate::client::Server;
use crate::output::{self, Format};

const REQUEST: &str = "\
A request, on one line; `http` is null for TCP, and without `principal` it is plaintext:
  {\"source\": {\"principal\": \"spiffe://corp.test/ns/shop/sa/web\", \"ip\": \"10.0.0.1\"},
   \"destination\": {\"namespace\": \"shop\", \"labels\": {\"app\": \"api\"}, \"port\": 8080},
   \"http\": {\"method\": \"GET\", \"host\": \"api\", \"path\": \"/orders\", \"headers\": [[\"accept\", \"*/*\"]]}}";

#[derive(Args)]
pub(crate) struct PolicyCommand {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// List policies
    List,
    /// Say why a call is allowed or denied: every rule, and the first field of it that does not match
    Explain(Box<explain::Explain>),
    /// Decide requests from a file, one decision a line
    #[command(after_help = REQUEST)]
    Decide(decide::Decide),
    /// Run cases that say what must be allowed and what denied
    Test(test::Test),
    /// Name the edges that a change of policies would cut or open
    #[command(after_help = REQUEST)]
    Diff(diff::Diff),
    /// Write a least-privilege set of policies from observed edges, and prove it
    #[command(after_help = REQUEST)]
    Suggest(suggest::Suggest),
    /// Find rules that are risky, useless or can never match
    Lint(lint::Lint),
    /// Delete a policy
    Delete {
        /// PeerAuthentication, AuthorizationPolicy or RequestAuthentication
        kind: String,
        /// NAMESPACE/NAME
        name: String,
    },
}

impl PolicyCommand {
    pub(crate) async fn run(self, global: &Global) -> Result<ExitCode, Finding> {
        match self.command {
            Command::Explain(c) => return c.run(global).await,
            Command::Decide(c) => return c.run(global),
            Command::Test(c) => return c.run(global),
            Command::Diff(c) => return c.run(global).await,
            Command::Suggest(c) => return c.run(global),
            Command::Lint(c) => return c.run(global),
            Command::List => {
                let server = Server::new(&global.data_dir()?);
                let set = server.list_policies().await?;
                match global.output {
                    Format::Json => {
                        let policies: Vec<_> = set
                            .documents
                            .iter()
                            .map(|d| {
                                json!({"kind": d.kind, "namespace": d.namespace, "name": d.name, "yaml": d.yaml})
                            })
                            .collect();
                        output::json(
                            "countersign.policies/v1",
                            &json!({"generation": set.generation, "policies": policies}),
                        )?;
                    }
                    Format::Table => {
                        let rows: Vec<Vec<String>> = set
                            .documents
                            .into_iter()
                            .map(|d| vec![d.kind, d.namespace, d.name])
                            .collect();
                        output::table(&["KIND", "NAMESPACE", "NAME"], &rows)?;
                    }
                }
            }
            Command::Delete { kind, name } => {
                let server = Server::new(&global.data_dir()?);
                let (namespace, name) = name
                    .split_once('/')
                    .ok_or_else(|| invalid(format!("`{name}` is not NAMESPACE/NAME")))?;
                let request = own::DeletePolicyRequest {
                    kind,
                    namespace: namespace.to_owned(),
                    name: name.to_owned(),
                };
                server.admin().delete_policy(request).await.map_err(|s| server.refused(&s))?;
                output::note("deleted");
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}
