//! `countersign review`.

mod baseline;
mod junit;
mod markdown;
mod rules;
mod sarif;
mod since;
mod table;

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};

use clap::{Args, ValueEnum};
use countersign_findings::{Code, Finding, Severity};
use countersign_keys::read_bounded;
use countersign_review::{
    Catalogue, Issue, Options, Report, Reviewer, Unreadable, apply_edits, review,
};
use countersign_tls::current_time;
use serde_json::{Value, json};

use super::{Global, invalid};
use crate::output::{self, Format};

/// Findings at or above the threshold.
const FINDINGS: u8 = 10;

const EXAMPLES: &str = "\
Examples:
  countersign review .                                  everything that git knows of
  countersign review --format sarif . > review.sarif    for GitHub and other viewers
  countersign review --since origin/main .              only what a change brings
  countersign review --write-baseline review.json .     accept what is there now, report what is new:
  countersign review --baseline review.json .
  countersign review --explain client-verify-disabled/go-skip-verify

An exception is a comment on the line or the one before it; it needs a reason, and may have an end:
  // countersign:allow client-verify-disabled until=2027-03-31 reason=appliance has no CA yet";

/// How a review is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ReviewFormat {
    /// Aligned columns
    Table,
    /// One document
    Json,
    /// SARIF 2.1.0, for GitHub and other viewers
    Sarif,
    /// JUnit XML, for CI systems
    Junit,
    /// A report in the seven steps of a review, with a checklist
    Markdown,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Threshold {
    Info,
    Low,
    Medium,
    High,
    Critical,
    /// Never fail because of findings
    Never,
}

impl Threshold {
    fn reached(self, severity: Severity) -> bool {
        let least = match self {
            Threshold::Info => Severity::Info,
            Threshold::Low => Severity::Low,
            Threshold::Medium => Severity::Medium,
            Threshold::High => Severity::High,
            Threshold::Critical => Severity::Critical,
            Threshold::Never => return false,
        };
        severity >= least
    }
}

/// Find flaws of mTLS and identity in source, configuration and key material.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ReviewCommand {
    /// Files and directories
    #[arg(value_name = "PATH", required_unless_present_any = ["list_rules", "explain", "test_rules"])]
    paths: Vec<PathBuf>,
    /// How the review is printed [default: as --output says]
    #[arg(long, value_enum)]
    format: Option<ReviewFormat>,
    /// Leave with exit code 10 if something is at least this bad
    #[arg(long, value_enum, default_value = "medium", value_name = "SEVERITY")]
    fail_on: Threshold,
    /// Leave out what is less bad than this; `never` leaves out nothing
    #[arg(long, value_enum, default_value = "low", value_name = "SEVERITY")]
    show: Threshold,
    /// Only this class or rule; repeat for more
    #[arg(long, value_name = "ID")]
    only: Vec<String>,
    /// Not this class or rule; repeat for more
    #[arg(long, value_name = "ID")]
    skip: Vec<String>,
    /// Leave out findings that this file lists
    #[arg(long, value_name = "FILE")]
    baseline: Option<PathBuf>,
    /// Write the findings to this file, to be left out from now on
    #[arg(long, value_name = "FILE", conflicts_with = "baseline")]
    write_baseline: Option<PathBuf>,
    /// Only findings that were not there at this git revision
    #[arg(long, value_name = "REV")]
    since: Option<String>,
    /// Rewrite what can be made safe without knowing more
    #[arg(long)]
    fix: bool,
    /// Also what .gitignore hides, and vendored code
    #[arg(long)]
    everything: bool,
    /// Also findings that an exception covers
    #[arg(long)]
    show_allowed: bool,
    /// Threads [default: one for each processor]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: Option<u16>,
    /// Rules of one's own: a directory with files CLASS/NAME.toml; one with a built-in rule's name takes its place
    #[arg(long, value_name = "DIR")]
    rules: Option<PathBuf>,
    /// Judge the examples in the rules of --rules, and nothing else
    #[arg(long, requires = "rules")]
    test_rules: bool,
    /// List the rules
    #[arg(long)]
    list_rules: bool,
    /// What a rule is about, with an example of the flaw and of what only looks like it
    #[arg(long, value_name = "RULE")]
    explain: Option<String>,
}

/// A review with what was left out of it.
struct Outcome {
    report: Report,
    /// Covered by exceptions.
    allowed: usize,
    /// In the baseline.
    known: usize,
}

impl ReviewCommand {
    pub(crate) fn run(self, global: &Global) -> Result<ExitCode, Finding> {
        let own = self.rules.as_deref().map(rules::read).transpose()?.unwrap_or_default();
        let catalogue = match own.is_empty() {
            true => Catalogue::built_in().map_err(|e| Finding::new(Code::InternalError, e))?,
            false => rules::with(&own)?,
        };
        if self.test_rules {
            return rules::test(&catalogue, &own);
        }
        let format = self.format.unwrap_or(match global.output {
            Format::Json => ReviewFormat::Json,
            Format::Table => ReviewFormat::Table,
        });
        if self.list_rules {
            return rules::list(&catalogue, format);
        }
        if let Some(rule) = &self.explain {
            return rules::explain(&catalogue, rule, format);
        }
        for id in self.only.iter().chain(&self.skip) {
            known_id(&catalogue, id)?;
        }
        let mut outcome = self.look(&catalogue, global)?;
        if outcome.report.files == 0
            && outcome.report.issues.is_empty()
            && outcome.report.unreadable.is_empty()
        {
            let what = "no file that a rule is about";
            return Err(Finding::new(Code::NothingToExamine, what)
                .hint("name files or directories with source, configuration, certificates or keys; --everything also looks at what .gitignore hides"));
        }
        if self.fix {
            fix(&mut outcome.report);
        }
        if let Some(path) = &self.write_baseline {
            baseline::write(path, &outcome.report)?;
            output::note(&format!(
                "{} written to {}",
                output::counted(outcome.report.issues.len(), "finding"),
                path.display()
            ));
        }
        match format {
            ReviewFormat::Table => table::print(&outcome)?,
            ReviewFormat::Json => print_json(&outcome)?,
            ReviewFormat::Sarif => {
                output::line(&sarif::render(&catalogue, &outcome.report).to_string())?
            }
            ReviewFormat::Junit => output::line(&junit::render(&outcome.report))?,
            ReviewFormat::Markdown => output::line(&markdown::render(&catalogue, &outcome))?,
        }
        Ok(self.exit_code(&outcome))
    }

    fn look(&self, catalogue: &Catalogue, global: &Global) -> Result<Outcome, Finding> {
        let now = current_time();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let options = Options {
            paths: self.paths.clone(),
            everything: self.everything,
            now,
            today: now.to_string().chars().take(10).collect(),
            threads: self.threads.map_or(cores, usize::from),
        };
        let shown = std::io::stderr().is_terminal() && global.quiet == 0;
        let last = AtomicUsize::new(0);
        let progress = |done: usize, all: usize| {
            let percent = done * 100 / all.max(1);
            if shown && all > 500 && last.swap(percent, Ordering::Relaxed) != percent {
                eprint!("\r{percent:3} %  {done} of {all} files");
                if done == all {
                    eprint!("\r\x1b[K");
                }
            }
        };
        let mut report = review(catalogue, &options, &progress)?;
        if let Some(revision) = &self.since {
            let changed = since::changed(revision, &self.paths)?;
            let reviewer = Reviewer::new(catalogue);
            let before = |path: &str, text: &str| {
                reviewer.text(path, text, options.now, &options.today).unwrap_or_default()
            };
            since::only_new(&mut report.issues, &changed, &before);
        }
        let named = |i: &Issue, id: &String| *id == i.rule || *id == i.class.name;
        report.issues.retain(|i| {
            (self.only.is_empty() || self.only.iter().any(|id| named(i, id)))
                && !self.skip.iter().any(|id| named(i, id))
                && (self.show == Threshold::Never || self.show.reached(i.severity))
        });
        let all = report.issues.len();
        if !self.show_allowed {
            report.issues.retain(|i| i.allowed.is_none());
        }
        let allowed = all - report.issues.len();
        let mut known = 0;
        if let Some(path) = &self.baseline {
            let list = baseline::read(path)?;
            let before = report.issues.len();
            report.issues.retain(|i| !list.contains(&i.fingerprint));
            known = before - report.issues.len();
        }
        Ok(Outcome { report, allowed, known })
    }

    fn exit_code(&self, outcome: &Outcome) -> ExitCode {
        let bad = |i: &Issue| i.allowed.is_none() && self.fail_on.reached(i.severity);
        if self.write_baseline.is_none() && outcome.report.issues.iter().any(bad) {
            return ExitCode::from(FINDINGS);
        }
        if outcome.report.unreadable.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

/// A class or rule of that name, or an error that names the nearest.
fn known_id(catalogue: &Catalogue, id: &str) -> Result<(), Finding> {
    let all = || {
        catalogue
            .classes
            .iter()
            .map(|c| c.name.as_str())
            .chain(catalogue.rules.iter().map(|r| r.id.as_str()))
    };
    if all().any(|known| known == id) {
        return Ok(());
    }
    let nearest =
        all().min_by_key(|known| strsim::damerau_levenshtein(id, known)).unwrap_or_default();
    Err(invalid(format!("`{id}` is neither a class nor a rule"))
        .hint(format!("did you mean `{nearest}`?")))
}

fn print_json(outcome: &Outcome) -> Result<(), Finding> {
    let issues: Vec<Value> = outcome.report.issues.iter().map(to_json).collect();
    let unreadable: Vec<Value> = outcome
        .report
        .unreadable
        .iter()
        .map(|u| json!({"path": u.path, "reason": u.reason}))
        .collect();
    output::json(
        "countersign.review/v1",
        &json!({
            "files": outcome.report.files, "lines": outcome.report.lines,
            "findings": issues, "unreadable": unreadable, "skipped": outcome.report.skipped,
            "allowed": outcome.allowed, "baseline": outcome.known,
        }),
    )
}

fn to_json(i: &Issue) -> Value {
    json!({
        "rule": i.rule, "class": i.class.name, "severity": i.severity.as_str(),
        "confidence": i.confidence.as_str(), "cwe": i.class.cwe, "message": i.message,
        "path": i.path, "line": i.line, "column": i.column, "end_line": i.end_line,
        "end_column": i.end_column, "evidence": i.evidence, "context": i.context.as_str(),
        "why": i.why, "fix": i.fix, "fixable": i.edit.is_some(), "fingerprint": i.fingerprint,
        "related": i.related.iter().map(|r| json!({"path": r.path, "line": r.line, "message": r.message})).collect::<Vec<_>>(),
        "allowed": i.allowed.as_ref().map(|a| json!({"until": a.until, "reason": a.reason})),
    })
}

/// Rewrites files in which something can be made safe, and takes those findings out of the report. A file that
/// cannot be written keeps its findings and is told of.
fn fix(report: &mut Report) {
    let mut by_file: BTreeMap<String, Vec<Issue>> = BTreeMap::new();
    for issue in report.issues.iter().filter(|i| i.edit.is_some() && i.allowed.is_none()) {
        by_file.entry(issue.path.clone()).or_default().push(issue.clone());
    }
    for (path, issues) in by_file {
        if let Err(e) = rewrite(&path, &issues) {
            report
                .unreadable
                .push(Unreadable { path, reason: format!("not fixed: {}", e.message) });
            continue;
        }
        for issue in &issues {
            output::note(&format!("fixed {}:{} {}", issue.path, issue.line, issue.rule));
        }
        report.issues.retain(|i| !issues.iter().any(|f| f.fingerprint == i.fingerprint));
    }
}

fn rewrite(path: &str, issues: &[Issue]) -> Result<(), Finding> {
    let path = PathBuf::from(path);
    let bytes = read_bounded(&path, 4 << 20).map_err(|e| e.finding())?;
    let text =
        std::str::from_utf8(&bytes).map_err(|_| Finding::new(Code::ConfigSyntax, "not UTF-8"))?;
    let meta =
        std::fs::metadata(&path).map_err(|e| Finding::new(Code::FileUnreadable, e.to_string()))?;
    let mode = std::os::unix::fs::PermissionsExt::mode(&meta.permissions()) & 0o777;
    let all: Vec<&Issue> = issues.iter().collect();
    countersign_keys::write_atomic(&path, apply_edits(text, &all).as_bytes(), mode)
        .map_err(|e| e.finding())
}
