//! `countersign policy decide`: one decision a line.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use countersign_findings::Finding;
use countersign_policy::Verdict;
use serde_json::{Value, json};

use super::super::Global;
use super::preview::{MeshFlags, Preview, requests};
use crate::output;

#[derive(Args)]
pub(crate) struct Decide {
    /// A file or a directory of *.yaml and *.yml; repeat for more
    #[arg(long, required = true, value_name = "FILE|DIR")]
    policies: Vec<PathBuf>,
    /// Requests, one JSON document a line; `-` for standard input
    #[arg(long, value_name = "FILE")]
    requests: PathBuf,
    #[command(flatten)]
    mesh: MeshFlags,
}

/// A verdict for machines.
pub(crate) fn to_json(verdict: &Verdict) -> Value {
    match verdict {
        Verdict::Allow(by) => json!({
            "allow": true,
            "code": null,
            "policy": by.as_ref().map(|r| &*r.policy),
            "rule": by.as_ref().map(|r| r.rule),
            "reason": match by {
                Some(by) => format!("allowed by policy {}, rule {}", by.policy, by.rule),
                None => "no ALLOW policy is for this workload".to_owned(),
            },
        }),
        Verdict::Deny(d) => json!({
            "allow": false,
            "code": d.code.as_str(),
            "policy": d.policy.as_deref(),
            "rule": d.rule,
            "reason": d.message,
        }),
    }
}

impl Decide {
    pub(super) fn run(self, global: &Global) -> Result<ExitCode, Finding> {
        let preview = Preview::of_files(&self.policies, &self.mesh.settled(global))?;
        let mut bad = None;
        for line in requests(&self.requests)? {
            match line.request {
                Ok(request) => output::line(&to_json(&preview.judge(&request)).to_string())?,
                // Its line is kept, so that answers and questions stay side by side.
                Err(e) => {
                    let answer = json!({
                        "allow": false, "code": e.code.as_str(), "policy": null, "rule": null,
                        "reason": format!("line {}: {}", line.number, e.message),
                    });
                    output::line(&answer.to_string())?;
                    bad.get_or_insert(e);
                }
            }
        }
        match bad {
            Some(e) => Err(e),
            None => Ok(ExitCode::SUCCESS),
        }
    }
}
