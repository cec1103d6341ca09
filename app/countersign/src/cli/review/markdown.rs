//! A report in the steps of a review, with a checklist and evidence.

use countersign_review::{Catalogue, Issue};

use super::Outcome;
use crate::output::counted;

const STEPS: [&str; 7] = [
    "Trust boundaries",
    "Client authentication required",
    "Chains validated",
    "Identity bound",
    "Client side",
    "Mesh policy",
    "Rotation and blast radius",
];

/// Text in a table's cell.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace(['\n', '\r'], " ")
}

fn code(text: &str) -> String {
    let fence = if text.contains('`') { "``" } else { "`" };
    format!("{fence}{}{fence}", cell(text))
}

pub(super) fn render(catalogue: &Catalogue, outcome: &Outcome) -> String {
    let report = &outcome.report;
    let mut out = String::from("# mTLS and identity review\n\n");
    let (files, lines) = (counted(report.files, "file"), counted(report.lines, "line"));
    out.push_str(&format!("{files}, {lines}."));
    if !report.skipped.is_empty() {
        let names: Vec<String> = report.skipped.iter().map(|s| code(s)).collect();
        out.push_str(&format!(" Not looked at: {}.", names.join(", ")));
    }
    if outcome.allowed > 0 {
        out.push_str(&format!(" Covered by exceptions: {}.", outcome.allowed));
    }
    if outcome.known > 0 {
        out.push_str(&format!(" In the baseline: {}.", outcome.known));
    }
    out.push_str("\n\n## Checklist\n\n| Step | What is checked | Result |\n|---|---|---|\n");
    for (n, step) in STEPS.iter().enumerate() {
        for class in catalogue.classes.iter().filter(|c| usize::from(c.step) == n + 1) {
            let count = report.issues.iter().filter(|i| i.class.name == class.name).count();
            let result = if count == 0 { "pass".to_owned() } else { format!("**fail**, {count}") };
            out.push_str(&format!("| {}. {step} | {} | {result} |\n", n + 1, class.title));
        }
    }
    for (n, step) in STEPS.iter().enumerate() {
        let found: Vec<&Issue> =
            report.issues.iter().filter(|i| usize::from(i.class.step) == n + 1).collect();
        if found.is_empty() {
            continue;
        }
        out.push_str(&format!("\n## {}. {step}\n", n + 1));
        for class in
            catalogue.classes.iter().filter(|c| found.iter().any(|i| i.class.name == c.name))
        {
            out.push_str(&format!("\n### {}\n\n{} {}\n\n", class.title, class.why, class.fix));
            out.push_str("| Severity | Place | Rule | Evidence |\n|---|---|---|---|\n");
            for i in found.iter().filter(|i| i.class.name == class.name) {
                let context = match i.context.as_str() {
                    "production" => String::new(),
                    other => format!(" ({other})"),
                };
                out.push_str(&format!(
                    "| {}{context} | {} | {} | {} {} |\n",
                    i.severity.as_str(),
                    code(&format!("{}:{}", i.path, i.line)),
                    code(&i.rule),
                    cell(&i.message),
                    if i.evidence.is_empty() { String::new() } else { code(&i.evidence) }
                ));
            }
        }
    }
    if !report.unreadable.is_empty() {
        out.push_str("\n## Could not be read\n\n");
        for u in &report.unreadable {
            out.push_str(&format!("- {}: {}\n", code(&u.path), cell(&u.reason)));
        }
    }
    out.push_str(
        "\nA pass means that no rule found the flaw in what was looked at, not that there is none.\n",
    );
    out
}
