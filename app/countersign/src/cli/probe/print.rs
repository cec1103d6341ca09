//! A probe's report, as people and machines read it.

use countersign_findings::Finding;
use countersign_probe::{Outcome, Report};

use crate::cli::Global;
use crate::output::{self, Format, counted};

pub(super) fn print(report: &Report, global: &Global) -> Result<(), Finding> {
    if global.output == Format::Json {
        return output::json("countersign.probe/v1", report);
    }
    let rows: Vec<Vec<String>> = report
        .cases
        .iter()
        .map(|c| vec![c.id.clone(), c.outcome.as_str().to_owned(), c.evidence.clone()])
        .collect();
    output::table(&["TRIED", "OUTCOME", "EVIDENCE"], &rows)?;
    if !report.findings.is_empty() {
        output::line("")?;
        let rows: Vec<Vec<String>> = report
            .findings
            .iter()
            .map(|f| {
                let what = format!("{}: {}", f.title, f.evidence);
                vec![f.severity.as_str().to_owned(), f.rule.to_owned(), what]
            })
            .collect();
        output::table(&["SEVERITY", "RULE", "WHAT IS WRONG"], &rows)?;
        let mut told: Vec<&str> = Vec::new();
        for f in &report.findings {
            if !told.contains(&f.fix) {
                told.push(f.fix);
                output::note(&format!("fix ({}): {}", f.rule, f.fix));
            }
        }
    }
    for what in &report.not_tried {
        output::note(&format!("not tried: {what}"));
    }
    let unclear = report.cases.iter().filter(|c| c.outcome == Outcome::Unclear).count();
    let mut line = format!(
        "{} tried over {}, {} unclear, {}",
        report.cases.len(),
        counted(report.connections, "connection"),
        unclear,
        counted(report.findings.len(), "finding")
    );
    if let Some(negotiated) = &report.negotiated {
        line.push_str(&format!("; {negotiated}"));
    }
    output::note(&line);
    Ok(())
}
