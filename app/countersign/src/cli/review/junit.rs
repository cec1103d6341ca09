//! JUnit XML: a case for each file that has findings or cannot be read.

use std::collections::BTreeMap;

use countersign_review::{Issue, Report};

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            // XML 1.0 has no way to write most control characters.
            c if (c as u32) < 0x20 && !matches!(c, '\n' | '\t') => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

pub(super) fn render(report: &Report) -> String {
    let mut by_file: BTreeMap<&str, Vec<&Issue>> = BTreeMap::new();
    for issue in &report.issues {
        by_file.entry(&issue.path).or_default().push(issue);
    }
    let cases = by_file.len() + report.unreadable.len();
    let clean = usize::from(cases == 0);
    let mut out = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites>\n<testsuite name=\"countersign review\" tests=\"{}\" failures=\"{}\" errors=\"{}\">\n",
        cases + clean,
        by_file.len(),
        report.unreadable.len()
    );
    if clean == 1 {
        out.push_str(&format!(
            "<testcase name=\"{} files\" classname=\"review\"/>\n",
            report.files
        ));
    }
    for (path, issues) in by_file {
        out.push_str(&format!("<testcase name=\"{}\" classname=\"review\">\n", escaped(path)));
        for i in issues {
            out.push_str(&format!(
                "<failure type=\"{}\" message=\"{}\">{}</failure>\n",
                escaped(&i.rule),
                escaped(&format!("{}:{}: {}", i.path, i.line, i.message)),
                escaped(&format!("{}\n{}\n{}", i.evidence, i.why, i.fix))
            ));
        }
        out.push_str("</testcase>\n");
    }
    for u in &report.unreadable {
        out.push_str(&format!(
            "<testcase name=\"{}\" classname=\"review\"><error message=\"{}\"/></testcase>\n",
            escaped(&u.path),
            escaped(&u.reason)
        ));
    }
    out.push_str("</testsuite>\n</testsuites>");
    out
}
