//! `countersign policy test`: cases beside policies.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use countersign_findings::{Code, Finding};
use countersign_keys::{read_bounded, write_atomic};
use countersign_policy::Verdict;
use serde::Deserialize;
use serde_json::json;

use super::super::Global;
use super::super::semantics::{Compat, SemanticsFlags};
use super::decide::to_json;
use super::preview::{MeshFlags, Preview, Request, describe};
use crate::output::{self, Format};

/// Largest file of cases in bytes.
const MAX: u64 = 64 << 20;

#[derive(Args)]
pub(crate) struct Test {
    /// Files of cases; docs/policies.md shows one
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Also write the results as JUnit XML
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Cases {
    /// Files or directories, seen from the file of cases.
    policies: Vec<PathBuf>,
    #[serde(default)]
    trust_domain: Option<String>,
    #[serde(default)]
    aliases: Vec<String>,
    #[serde(default = "istio_system")]
    root_namespace: String,
    #[serde(default)]
    compat: Option<String>,
    cases: Vec<Case>,
}

fn istio_system() -> String {
    "istio-system".into()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    request: Request,
    expect: Expect,
    #[serde(default)]
    code: Option<String>,
    /// `namespace/name`.
    #[serde(default)]
    policy: Option<String>,
    #[serde(default)]
    rule: Option<usize>,
}

#[derive(Clone, Copy, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum Expect {
    Allow,
    Deny,
}

struct CaseResult {
    file: String,
    name: String,
    request: String,
    /// What is not as expected.
    failure: Option<String>,
    reason: String,
}

fn cases(path: &Path) -> Result<Cases, Finding> {
    let bytes = read_bounded(path, MAX).map_err(|e| e.finding())?;
    let place = path.display().to_string();
    let text = std::str::from_utf8(&bytes)
        .map_err(|_| Finding::new(Code::ConfigSyntax, "not UTF-8").at(place.clone()))?;
    serde_saphyr::from_str(text).map_err(|e| {
        let e = e.without_snippet();
        let line = e.location().map_or(1, |l| l.line());
        Finding::new(Code::ConfigSyntax, e.to_string()).at(format!("{place}:{line}"))
    })
}

fn failure(case: &Case, verdict: &Verdict) -> Option<String> {
    let got = to_json(verdict);
    let reason = got["reason"].as_str().unwrap_or_default().to_owned();
    if verdict.is_allowed() != (case.expect == Expect::Allow) {
        let got = if verdict.is_allowed() { "allowed" } else { "denied" };
        return Some(format!("it is {got}: {reason}"));
    }
    let differs = |what: &str, wanted: String, got: &serde_json::Value| {
        let got = got.as_str().map_or_else(|| got.to_string(), str::to_owned);
        (wanted != got).then(|| format!("{what} is {got}, not {wanted}: {reason}"))
    };
    case.code
        .clone()
        .and_then(|c| differs("the code", c, &got["code"]))
        .or_else(|| case.policy.clone().and_then(|p| differs("the policy", p, &got["policy"])))
        .or_else(|| case.rule.and_then(|r| differs("the rule", r.to_string(), &got["rule"])))
}

impl Test {
    pub(super) fn run(self, global: &Global) -> Result<ExitCode, Finding> {
        let mut results = Vec::new();
        for path in &self.files {
            run_file(path, &mut results)?;
        }
        if results.is_empty() {
            return Err(Finding::new(Code::NothingToExamine, "the files hold no case"));
        }
        let failed = results.iter().filter(|r| r.failure.is_some()).count();
        match global.output {
            Format::Json => {
                let list: Vec<_> = results
                    .iter()
                    .map(|r| {
                        json!({"file": r.file, "name": r.name, "ok": r.failure.is_none(),
                            "failure": r.failure, "reason": r.reason})
                    })
                    .collect();
                output::json(
                    "countersign.policy-test/v1",
                    &json!({"cases": list, "failed": failed}),
                )?;
            }
            Format::Table => {
                let rows: Vec<Vec<String>> = results
                    .iter()
                    .map(|r| {
                        let ok = if r.failure.is_none() { "ok" } else { "FAILED" };
                        let why = r.failure.clone().unwrap_or_else(|| r.request.clone());
                        vec![ok.to_owned(), r.name.clone(), why]
                    })
                    .collect();
                output::table(&["RESULT", "CASE", "WHAT"], &rows)?;
                output::note(&format!("{} cases, {failed} failed", results.len()));
            }
        }
        if let Some(path) = &self.junit {
            write_atomic(path, junit(&results).as_bytes(), 0o644).map_err(|e| e.finding())?;
        }
        Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::from(1) })
    }
}

fn run_file(path: &Path, results: &mut Vec<CaseResult>) -> Result<(), Finding> {
    let cases = cases(path)?;
    let dir = path.parent().unwrap_or(Path::new("."));
    let place = path.display().to_string();
    let compat = match cases.compat.as_deref() {
        None => None,
        Some("istio") => Some(Compat::Istio),
        Some(other) => {
            let text = format!("compat: `{other}` is not known; use istio");
            return Err(Finding::new(Code::InvalidValue, text).at(place));
        }
    };
    let semantics = SemanticsFlags {
        alias: cases.aliases,
        root_namespace: cases.root_namespace,
        compat,
        normalization: None,
        trusted_hops: 0,
    };
    let flags = MeshFlags { trust_domain: cases.trust_domain, semantics, issuer_keys: Vec::new() };
    let policies: Vec<PathBuf> = cases.policies.iter().map(|p| dir.join(p)).collect();
    let preview = Preview::of_files(&policies, &flags)?;
    for case in cases.cases {
        let verdict = preview.judge(&case.request);
        results.push(CaseResult {
            file: place.clone(),
            failure: failure(&case, &verdict),
            reason: to_json(&verdict)["reason"].as_str().unwrap_or_default().to_owned(),
            request: describe(&case.request),
            name: case.name,
        });
    }
    Ok(())
}

fn xml(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

fn junit(results: &[CaseResult]) -> String {
    let failed = results.iter().filter(|r| r.failure.is_some()).count();
    let mut out = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuite name=\"countersign policy\" tests=\"{}\" failures=\"{failed}\">\n",
        results.len()
    );
    for r in results {
        let _ = write!(out, "  <testcase classname=\"{}\" name=\"{}\"", xml(&r.file), xml(&r.name));
        match &r.failure {
            None => out.push_str("/>\n"),
            Some(f) => {
                let _ = writeln!(out, "><failure message=\"{}\"/></testcase>", xml(f));
            }
        }
    }
    out.push_str("</testsuite>\n");
    out
}
