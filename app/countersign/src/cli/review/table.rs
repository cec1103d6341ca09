//! For people at a terminal.

use std::collections::BTreeMap;

use countersign_findings::{Finding, Severity};

use super::Outcome;
use crate::output;

pub(super) fn print(outcome: &Outcome) -> Result<(), Finding> {
    let report = &outcome.report;
    let rows: Vec<Vec<String>> = report
        .issues
        .iter()
        .map(|i| {
            let place = if i.line == 0 { i.path.clone() } else { format!("{}:{}", i.path, i.line) };
            let note = match &i.allowed {
                Some(a) => format!("{} (allowed: {})", i.message, a.reason),
                None => i.message.clone(),
            };
            vec![i.severity.as_str().to_owned(), place, i.rule.clone(), note]
        })
        .collect();
    if !rows.is_empty() {
        output::table(&["SEVERITY", "PLACE", "RULE", "WHAT IS WRONG"], &rows)?;
    }
    for u in &report.unreadable {
        output::note(&format!("unreadable: {}: {}", u.path, u.reason));
    }
    if !report.skipped.is_empty() {
        let names = report.skipped.join(", ");
        output::note(&format!("not looked at: {names} (--everything does)"));
    }
    let mut counts: BTreeMap<std::cmp::Reverse<Severity>, usize> = BTreeMap::new();
    for i in &report.issues {
        *counts.entry(std::cmp::Reverse(i.severity)).or_default() += 1;
    }
    let counted: Vec<String> =
        counts.iter().map(|(s, n)| format!("{n} {}", s.0.as_str())).collect();
    let mut line = format!(
        "{}, {}: {}",
        output::counted(report.files, "file"),
        output::counted(report.lines, "line"),
        if counted.is_empty() { "nothing found".to_owned() } else { counted.join(", ") }
    );
    if outcome.allowed > 0 {
        line.push_str(&format!("; {} allowed by exceptions", outcome.allowed));
    }
    if outcome.known > 0 {
        line.push_str(&format!("; {} in the baseline", outcome.known));
    }
    output::note(&line);
    if let Some(first) = report.issues.first() {
        output::next(&format!("countersign review --explain {}", first.rule));
    }
    Ok(())
}
