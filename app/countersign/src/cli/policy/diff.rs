//! `countersign policy diff`: which edges a change would cut or open.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use countersign_findings::Finding;
use countersign_policy::Verdict;
use serde_json::json;

use super::super::Global;
use super::decide::to_json;
use super::explain::of_server;
use super::preview::{MeshFlags, Preview, Request, all_requests, describe};
use crate::client::Server;
use crate::output::{self, Format};

/// Something would change.
const CHANGES: u8 = 10;

#[derive(Args)]
pub(crate) struct Diff {
    /// The policies of today: a file or a directory, `server` for those in force, `none` for none at all
    old: PathBuf,
    /// The policies of tomorrow, likewise
    new: PathBuf,
    /// Edges: requests as for `policy decide`, one JSON document a line
    #[arg(long, value_name = "FILE")]
    edges: PathBuf,
    #[command(flatten)]
    mesh: MeshFlags,
}

/// An edge that is decided differently.
pub(super) struct Change {
    pub(super) edge: Request,
    pub(super) old: Verdict,
    pub(super) new: Verdict,
}

pub(super) fn changes(old: &Preview, new: &Preview, edges: Vec<Request>) -> Vec<Change> {
    edges
        .into_iter()
        .map(|edge| Change { old: old.judge(&edge), new: new.judge(&edge), edge })
        .filter(|c| c.old.is_allowed() != c.new.is_allowed())
        .collect()
}

async fn side(what: PathBuf, mesh: &MeshFlags, global: &Global) -> Result<Preview, Finding> {
    match what.to_str() {
        Some("none") => Preview::new(Vec::new(), mesh),
        Some("server") => {
            let server = Server::new(&global.data_dir()?);
            Preview::new(of_server(&server).await?, mesh)
        }
        _ => Preview::of_files(&[what], mesh),
    }
}

fn reason(verdict: &Verdict) -> String {
    to_json(verdict)["reason"].as_str().unwrap_or_default().to_owned()
}

impl Diff {
    pub(super) async fn run(self, global: &Global) -> Result<ExitCode, Finding> {
        let mesh = self.mesh.settled(global);
        let old = side(self.old, &mesh, global).await?;
        let new = side(self.new, &mesh, global).await?;
        let edges = all_requests(&self.edges)?;
        let total = edges.len();
        let changes = changes(&old, &new, edges);
        match global.output {
            Format::Json => {
                let list: Vec<_> = changes
                    .iter()
                    .map(|c| {
                        json!({
                            "edge": c.edge,
                            "change": if c.new.is_allowed() { "opened" } else { "cut" },
                            "old": to_json(&c.old),
                            "new": to_json(&c.new),
                        })
                    })
                    .collect();
                output::json(
                    "countersign.policy-diff/v1",
                    &json!({"edges": total, "changes": list}),
                )?;
            }
            Format::Table => {
                let rows: Vec<Vec<String>> = changes
                    .iter()
                    .map(|c| {
                        let what = if c.new.is_allowed() { "opened" } else { "cut" };
                        vec![what.to_owned(), describe(&c.edge), reason(&c.new)]
                    })
                    .collect();
                if !rows.is_empty() {
                    output::table(&["CHANGE", "EDGE", "BECAUSE"], &rows)?;
                }
                output::note(&format!("{} of {total} edges would change", changes.len()));
            }
        }
        Ok(if changes.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(CHANGES) })
    }
}
