//! SARIF 2.1.0 (OASIS), as GitHub reads it.

use std::collections::BTreeSet;

use countersign_findings::Severity;
use countersign_review::{Catalogue, Issue, Report};
use serde_json::{Value, json};

/// GitHub orders alerts by this number.
fn security_severity(severity: Severity) -> &'static str {
    match severity {
        Severity::Critical => "9.5",
        Severity::High => "8.0",
        Severity::Medium => "5.5",
        Severity::Low => "3.0",
        Severity::Info => "0.0",
    }
}

fn level(severity: Severity) -> &'static str {
    match severity {
        Severity::Critical | Severity::High => "error",
        Severity::Medium => "warning",
        Severity::Low | Severity::Info => "note",
    }
}

pub(super) fn render(catalogue: &Catalogue, report: &Report) -> Value {
    let used: BTreeSet<&str> = report.issues.iter().map(|i| i.rule.as_str()).collect();
    let rules: Vec<Value> = catalogue
        .rules
        .iter()
        .filter(|r| used.contains(r.id.as_str()))
        .map(|r| {
            let mut tags = vec!["security".to_owned(), format!("class:{}", r.class.name)];
            tags.extend(r.class.cwe.iter().map(|c| format!("external/cwe/cwe-{c:03}")));
            json!({
                "id": r.id,
                "name": r.id.replace('/', "-"),
                "shortDescription": {"text": r.title},
                "fullDescription": {"text": r.why},
                "help": {"text": format!("{}\n\n{}", r.why, r.fix), "markdown": format!("{}\n\n**Fix.** {}", r.why, r.fix)},
                "defaultConfiguration": {"level": level(r.severity)},
                "properties": {
                    "class": r.class.name,
                    "tags": tags,
                    "precision": r.confidence.as_str(),
                    "security-severity": security_severity(r.severity),
                },
            })
        })
        .collect();
    let index = |id: &str| rules.iter().position(|r| r["id"] == id);
    let results: Vec<Value> = report.issues.iter().map(|i| result(i, index(&i.rule))).collect();
    let notifications: Vec<Value> = report
        .unreadable
        .iter()
        .map(|u| {
            json!({
                "level": "error",
                "message": {"text": format!("cannot be read: {}", u.reason)},
                "locations": [{"physicalLocation": {"artifactLocation": {"uri": uri(&u.path)}}}],
            })
        })
        .collect();
    json!({
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{
            "tool": {"driver": {
                "name": "countersign",
                "version": env!("CARGO_PKG_VERSION"),
                "semanticVersion": env!("CARGO_PKG_VERSION"),
                "rules": rules,
            }},
            "columnKind": "unicodeCodePoints",
            "invocations": [{
                "executionSuccessful": report.unreadable.is_empty(),
                "toolExecutionNotifications": notifications,
            }],
            "results": results,
        }],
    })
}

fn result(i: &Issue, index: Option<usize>) -> Value {
    let mut out = json!({
        "ruleId": i.rule,
        "level": level(i.severity),
        "message": {"text": format!("{}. {}", i.message, i.fix)},
        "locations": [{"physicalLocation": place(&i.path, i.line, Some((i.column, i.end_line, i.end_column)))}],
        "partialFingerprints": {"countersign/v1": i.fingerprint},
        "properties": {
            "class": i.class.name, "context": i.context.as_str(),
            "severity": i.severity.as_str(), "confidence": i.confidence.as_str(),
        },
    });
    if let Some(index) = index {
        out["ruleIndex"] = index.into();
    }
    if !i.related.is_empty() {
        out["relatedLocations"] = i
            .related
            .iter()
            .enumerate()
            .map(|(n, r)| {
                json!({"id": n, "message": {"text": r.message}, "physicalLocation": place(&r.path, r.line, None)})
            })
            .collect();
    }
    if let Some(a) = &i.allowed {
        out["suppressions"] = json!([{"kind": "inSource", "justification": a.reason}]);
    }
    if let Some(edit) = &i.edit {
        out["fixes"] = json!([{
            "description": {"text": i.fix},
            "artifactChanges": [{
                "artifactLocation": {"uri": uri(&i.path)},
                "replacements": [{
                    "deletedRegion": {
                        "startLine": i.line, "startColumn": i.column,
                        "endLine": i.end_line, "endColumn": i.end_column,
                    },
                    "insertedContent": {"text": edit.text},
                }],
            }],
        }]);
    }
    out
}

fn place(path: &str, line: usize, rest: Option<(usize, usize, usize)>) -> Value {
    let mut region = json!({"startLine": line.max(1)});
    if let Some((column, end_line, end_column)) = rest.filter(|_| line > 0) {
        region["startColumn"] = column.into();
        region["endLine"] = end_line.into();
        region["endColumn"] = end_column.into();
    }
    json!({"artifactLocation": {"uri": uri(path)}, "region": region})
}

/// A path as a URI reference: relative, with what must be encoded encoded.
fn uri(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for b in path.trim_start_matches("./").bytes() {
        if b.is_ascii_alphanumeric() || b"-._~/+@!$&'()*,;=".contains(&b) {
            out.push(b as char);
        } else {
            out.push_str(&format!("%{b:02X}"));
        }
    }
    if path.starts_with('/') { format!("file://{out}") } else { out }
}
