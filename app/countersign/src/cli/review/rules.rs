//! What the review can find, and each rule's own account of itself.

use std::process::ExitCode;

use countersign_findings::Finding;
use countersign_review::Catalogue;
use serde_json::{Value, json};

use super::{ReviewFormat, known_id};
use crate::output;

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
