//! Findings that are known and left out.

use std::collections::BTreeSet;
use std::path::Path;

use countersign_findings::{Code, Finding};
use countersign_keys::{read_bounded, write_atomic};
use countersign_review::Report;
use serde::{Deserialize, Serialize};

const SCHEMA: &str = "countersign.review-baseline/v1";

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    schema: String,
    findings: Vec<Known>,
}

/// The fingerprint counts; the rest is for people who read the file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Known {
    fingerprint: String,
    rule: String,
    path: String,
    line: usize,
}

pub(super) fn write(path: &Path, report: &Report) -> Result<(), Finding> {
    let findings = report
        .issues
        .iter()
        .map(|i| Known {
            fingerprint: i.fingerprint.clone(),
            rule: i.rule.clone(),
            path: i.path.clone(),
            line: i.line,
        })
        .collect();
    let file = File { schema: SCHEMA.into(), findings };
    let text = serde_json::to_string_pretty(&file)
        .map_err(|e| Finding::new(Code::InternalError, e.to_string()))?;
    write_atomic(path, (text + "\n").as_bytes(), 0o644).map_err(|e| e.finding())
}

pub(super) fn read(path: &Path) -> Result<BTreeSet<String>, Finding> {
    let place = || path.display().to_string();
    let bytes = read_bounded(path, 64 << 20).map_err(|e| e.finding())?;
    let file: File = serde_json::from_slice(&bytes)
        .map_err(|e| Finding::new(Code::ConfigSyntax, e.to_string()).at(place()))?;
    if file.schema != SCHEMA {
        return Err(Finding::new(Code::InvalidValue, format!("schema is `{}`", file.schema))
            .expected(SCHEMA.to_owned())
            .at(place()));
    }
    Ok(file.findings.into_iter().map(|k| k.fingerprint).collect())
}
