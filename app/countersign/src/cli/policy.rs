//! `countersign policy`.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use countersign_findings::Finding;
use countersign_wire::proto::countersign::server::v1 as own;
use serde_json::json;

use super::{Global, invalid};
use crate::client::Server;
use crate::output::{self, Format};

#[derive(Args)]
pub(crate) struct PolicyCommand {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// List policies
    List,
    /// Delete a policy
    Delete {
        /// PeerAuthentication or AuthorizationPolicy
        kind: String,
        /// NAMESPACE/NAME
        name: String,
    },
}

impl PolicyCommand {
    pub(crate) async fn run(self, global: &Global) -> Result<ExitCode, Finding> {
        let server = Server::new(&global.data_dir()?);
        match self.command {
            Command::List => {
                let set = server
                    .admin()
                    .list_policies(own::ListPoliciesRequest {})
                    .await
                    .map_err(|s| server.refused(&s))?
                    .into_inner();
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
