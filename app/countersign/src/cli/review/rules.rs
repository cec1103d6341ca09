//! What the review can find, and each rule's own account of itself.

use std::path::Path;
use std::process::ExitCode;

use countersign_findings::Finding;
use countersign_keys::read_bounded;
use countersign_review::{Catalogue, Reviewer, Rule};
use countersign_tls::current_time;
use serde_json::{Value, json};

use super::{FINDINGS, ReviewFormat, invalid, known_id};
use crate::output;

/// Most files of rules in a directory.
const MOST_FILES: usize = 2000;
/// Largest file of a rule, in bytes.
const MAX_RULE: u64 = 1 << 20;

/// A file of a rule: its name below the directory, and its text.
type RuleFile = (String, String);

/// The rule files below a directory.
pub(super) fn read(dir: &Path) -> Result<Vec<RuleFile>, Finding> {
    let mut out = Vec::new();
    let failed = |path: &Path, e: &dyn std::fmt::Display| {
        invalid(format!("--rules: {}: {e}", path.display()))
            .hint("name a directory that holds CLASS/NAME.toml files; docs/review.md says how one is written")
    };
    let mut open = vec![(dir.to_owned(), String::new())];
    while let Some((path, prefix)) = open.pop() {
        for entry in std::fs::read_dir(&path).map_err(|e| failed(&path, &e))? {
            let entry = entry.map_err(|e| failed(&path, &e))?;
            let path = entry.path();
            let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
            let kind = entry.file_type().map_err(|e| failed(&path, &e))?;
            if kind.is_dir() {
                open.push((path, format!("{name}/")));
            } else if name.ends_with(".toml") {
                if !name.contains('/') && name != "classes.toml" {
                    return Err(failed(&path, &"it lies in no directory named after a class"));
                }
                if out.len() >= MOST_FILES {
                    return Err(failed(dir, &format!("more than {MOST_FILES} files")));
                }
                let bytes = read_bounded(&path, MAX_RULE).map_err(|e| failed(&path, &e))?;
                let text = String::from_utf8(bytes).map_err(|e| failed(&path, &e))?;
                out.push((name, text));
            }
        }
    }
    if out.is_empty() {
        return Err(failed(dir, &"no rule in it"));
    }
    out.sort();
    Ok(out)
}

/// Whether a rule is one of these files.
fn is_own<'f>(own: &'f [RuleFile]) -> impl Fn(&Rule) -> bool + Copy + 'f {
    |rule| own.iter().any(|(name, _)| name.strip_suffix(".toml") == Some(&rule.id))
}

/// The built-in rules and these.
pub(super) fn with(own: &[RuleFile]) -> Result<Catalogue, Finding> {
    let wrong = |e: String| invalid(format!("--rules: {e}"));
    let catalogue = Catalogue::with(own).map_err(wrong)?;
    catalogue.check(is_own(own)).map_err(wrong)?;
    Ok(catalogue)
}

/// Judges the examples of these rules. A rule without an example of the flaw, or of what only looks like it, was not
/// tested.
pub(super) fn test(catalogue: &Catalogue, own: &[RuleFile]) -> Result<ExitCode, Finding> {
    let now = current_time();
    let today: String = now.to_string().chars().take(10).collect();
    let wrong = Reviewer::new(catalogue).wrong_examples(is_own(own), now, &today);
    for line in &wrong {
        output::line(line)?;
    }
    let (mut examples, mut untested) = (0, false);
    for rule in catalogue.rules.iter().filter(|r| is_own(own)(r)) {
        examples += rule.examples.len();
        for (flaw, what) in [(true, "the flaw"), (false, "what only looks like it")] {
            if !rule.examples.iter().any(|e| e.flagged.is_empty() != flaw) {
                output::line(&format!("{}: no example of {what}", rule.id))?;
                untested = true;
            }
        }
    }
    output::note(&format!(
        "{} of {} judged as they say",
        examples - wrong.len(),
        output::counted(examples, "example")
    ));
    let good = wrong.is_empty() && !untested;
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::from(FINDINGS) })
}

pub(super) fn list(catalogue: &Catalogue, format: ReviewFormat) -> Result<ExitCode, Finding> {
    if format == ReviewFormat::Json {
        let rules: Vec<Value> = catalogue
            .rules
            .iter()
            .map(|r| {
                json!({"id": r.id, "class": r.class.name, "severity": r.severity.as_str(),
                       "confidence": r.confidence.as_str(), "title": r.title, "cwe": r.class.cwe})
            })
            .collect();
        output::json("countersign.review-rules/v1", &json!({"rules": rules}))?;
        return Ok(ExitCode::SUCCESS);
    }
    let rows: Vec<Vec<String>> = catalogue
        .rules
        .iter()
        .map(|r| vec![r.severity.as_str().to_owned(), r.id.clone(), r.title.clone()])
        .collect();
    output::table(&["SEVERITY", "RULE", "WHAT IT FINDS"], &rows)?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn explain(
    catalogue: &Catalogue,
    id: &str,
    format: ReviewFormat,
) -> Result<ExitCode, Finding> {
    let Some(rule) = catalogue.rules.iter().find(|r| r.id == id) else {
        if let Some(class) = catalogue.class(id) {
            if format == ReviewFormat::Json {
                let of_it = catalogue.rules.iter().filter(|r| r.class.name == class.name);
                let body = json!({
                    "class": class.name, "short": class.short, "title": class.title,
                    "why": class.why, "fix": class.fix, "cwe": class.cwe, "step": class.step,
                    "rules": of_it.map(|r| &r.id).collect::<Vec<_>>(),
                });
                output::json("countersign.review-class/v1", &body)?;
                return Ok(ExitCode::SUCCESS);
            }
            let cwe: Vec<String> = class.cwe.iter().map(|c| format!("CWE-{c}")).collect();
            output::line(&format!("{} ({}): {}", class.name, class.short, class.title))?;
            output::line(&format!("\n{}\n{}\n{}\n", class.why, class.fix, cwe.join(", ")))?;
            for r in catalogue.rules.iter().filter(|r| r.class.name == class.name) {
                output::line(&format!("  {:9} {}", r.severity.as_str(), r.id))?;
            }
            return Ok(ExitCode::SUCCESS);
        }
        return known_id(catalogue, id).map(|()| ExitCode::SUCCESS);
    };
    if format == ReviewFormat::Json {
        let examples = rule
            .examples
            .iter()
            .map(|e| json!({"file": e.file, "flagged": e.flagged, "code": e.code}));
        let body = json!({
            "id": rule.id, "class": rule.class.name, "title": rule.title, "why": rule.why,
            "fix": rule.fix, "severity": rule.severity.as_str(),
            "confidence": rule.confidence.as_str(), "cwe": rule.class.cwe,
            "examples": examples.collect::<Vec<_>>(),
        });
        output::json("countersign.review-rule/v1", &body)?;
        return Ok(ExitCode::SUCCESS);
    }
    let cwe: Vec<String> = rule.class.cwe.iter().map(|c| format!("CWE-{c}")).collect();
    output::line(&format!("{}: {}", rule.id, rule.title))?;
    output::line(&format!(
        "severity {}, confidence {}, {}\n",
        rule.severity.as_str(),
        rule.confidence.as_str(),
        cwe.join(", ")
    ))?;
    output::line(&format!("Why:  {}\nFix:  {}", rule.why, rule.fix))?;
    for (title, flagged) in [("Found in", true), ("Not found in", false)] {
        if let Some(e) = rule.examples.iter().find(|e| e.flagged.is_empty() != flagged) {
            let code: String = e.code.lines().map(|l| format!("    {l}\n")).collect();
            output::line(&format!("\n{title} {}:\n\n{}", e.file, code.trim_end()))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
