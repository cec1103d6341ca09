//! `countersign policy lint`.

use std::collections::HashMap;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use countersign_findings::{Finding, Severity};
use countersign_policy::{Document, lint};
use serde_json::json;

use super::super::Global;
use super::super::documents::load;
use crate::output::{self, Format};

/// Findings at or above the threshold.
const FINDINGS: u8 = 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Threshold {
    Info,
    Low,
    Medium,
    High,
    /// Never fail because of findings
    Never,
}

#[derive(Args)]
pub(crate) struct Lint {
    /// Files or directories of *.yaml and *.yml
    #[arg(required = true, value_name = "FILE|DIR")]
    policies: Vec<PathBuf>,
    /// The namespace whose policies are for every namespace
    #[arg(long, value_name = "NAME", default_value = "istio-system")]
    root_namespace: String,
    /// Leave with exit code 10 if something is at least this bad
    #[arg(long, value_enum, default_value = "medium", value_name = "SEVERITY")]
    fail_on: Threshold,
}

impl Lint {
    pub(super) fn run(self, global: &Global) -> Result<ExitCode, Finding> {
        let sources = load(&self.policies)?;
        let files: HashMap<String, String> = sources
            .iter()
            .map(|s| {
                let d = &s.document;
                (format!("{} {}/{}", d.kind(), d.namespace(), d.name()), s.file.clone())
            })
            .collect();
        let documents: Vec<Document> = sources.into_iter().map(|s| s.document).collect();
        let mut findings = lint(&documents, &self.root_namespace);
        for f in &mut findings {
            let place = f.place.take().unwrap_or_default();
            let document = place.split(", rule ").next().unwrap_or_default();
            f.place = Some(match files.get(document) {
                Some(file) => format!("{file}: {place}"),
                None => place,
            });
        }
        findings.sort_by_key(|f| std::cmp::Reverse(f.code.severity()));
        match global.output {
            Format::Json => {
                let list: Vec<_> = findings
                    .iter()
                    .map(|f| {
                        json!({
                            "severity": f.code.severity().as_str(), "code": f.code, "title": f.code.title(),
                            "place": f.place, "message": f.message, "hint": f.hint,
                        })
                    })
                    .collect();
                output::json(
                    "countersign.policy-lint/v1",
                    &json!({"documents": documents.len(), "findings": list}),
                )?;
            }
            Format::Table => {
                let rows: Vec<Vec<String>> = findings
                    .iter()
                    .map(|f| {
                        vec![
                            f.code.severity().as_str().to_owned(),
                            f.code.to_string(),
                            f.place.clone().unwrap_or_default(),
                            format!("{}: {}", f.code.title(), f.message),
                        ]
                    })
                    .collect();
                if !rows.is_empty() {
                    output::table(&["SEVERITY", "CODE", "WHERE", "WHAT"], &rows)?;
                }
                let n = findings.len();
                output::note(&format!("{n} findings in {} documents", documents.len()));
            }
        }
        let least = match self.fail_on {
            Threshold::Never => return Ok(ExitCode::SUCCESS),
            Threshold::Info => Severity::Info,
            Threshold::Low => Severity::Low,
            Threshold::Medium => Severity::Medium,
            Threshold::High => Severity::High,
        };
        let fails = findings.iter().any(|f| f.code.severity() >= least);
        Ok(if fails { ExitCode::from(FINDINGS) } else { ExitCode::SUCCESS })
    }
}
