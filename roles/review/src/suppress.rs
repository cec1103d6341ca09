//! Exceptions: `countersign:allow CLASS-OR-RULE until=YYYY-MM-DD reason=…` in a comment on the line or the one
//! before. One without a reason, or whose day has passed, does not count.

use crate::issue::{Allowed, Issue};

/// What stands at the beginning of an exception.
const MARK: &str = "countersign:allow";

struct Exception {
    line: usize,
    what: String,
    until: Option<String>,
    reason: String,
    /// An annotation covers its document.
    annotation: bool,
}

fn exceptions(text: &str) -> Vec<Exception> {
    if !text.contains(MARK) && !text.contains("countersign.dev/allow") {
        return Vec::new();
    }
    let mut out = Vec::new();
    for (i, line) in text.lines().enumerate() {
        let rest = match (line.split_once(MARK), line.split_once("countersign.dev/allow")) {
            (Some((before, rest)), _) if is_comment(before) => rest,
            (Some(_), _) => continue,
            // As an annotation: `countersign.dev/allow: "CLASS until=… reason=…"`.
            (None, Some((_, rest))) => rest.trim_start_matches([':', '"', '\'', ' ']),
            (None, None) => continue,
        };
        let rest =
            rest.trim().trim_end_matches("*/").trim_end_matches("-->").trim_matches(['"', '\'']);
        let what = rest.split_whitespace().next().unwrap_or_default().to_owned();
        let value = |key: &str| {
            let from = rest.find(key)? + key.len();
            Some(rest[from..].trim_start())
        };
        let until =
            value("until=").map(|v| v.split_whitespace().next().unwrap_or_default().to_owned());
        let reason = value("reason=").unwrap_or_default().trim_matches('"').trim().to_owned();
        out.push(Exception { line: i + 1, what, until, reason, annotation: !line.contains(MARK) });
    }
    out
}

/// Whether what stands before the mark opens a comment; in a string it would be anybody's word.
fn is_comment(before: &str) -> bool {
    let before = before.trim_end();
    ["#", "//", "/*", "*", "--", ";", "<!--"].iter().any(|open| before.ends_with(open))
}

/// `YYYY-MM-DD`, so that comparing text compares days.
fn is_day(text: &str) -> bool {
    let digits = |range: std::ops::Range<usize>| -> Option<u32> {
        let part = text.get(range)?;
        part.bytes().all(|b| b.is_ascii_digit()).then(|| part.parse().ok())?
    };
    let dashes = text.get(4..5) == Some("-") && text.get(7..8) == Some("-");
    text.len() == 10
        && dashes
        && digits(0..4).is_some()
        && digits(5..7).is_some_and(|m| (1..=12).contains(&m))
        && digits(8..10).is_some_and(|d| (1..=31).contains(&d))
}

/// Marks what is allowed. What has run out says so and counts again. `same_document` tells which lines an
/// annotation covers.
pub(crate) fn apply(
    text: &str,
    same_document: &dyn Fn(usize, usize) -> bool,
    issues: &mut [Issue],
    today: &str,
) {
    if issues.is_empty() {
        return;
    }
    let all = exceptions(text);
    if all.is_empty() {
        return;
    }
    for issue in issues {
        let covers = |e: &&Exception| {
            let near = e.line == issue.line
                || e.line + 1 == issue.line
                || e.annotation && same_document(e.line, issue.line);
            near && (e.what == issue.class.name || e.what == issue.rule)
        };
        let Some(e) = all.iter().find(covers) else { continue };
        if e.reason.is_empty() {
            issue.message.push_str(" (an exception without reason= does not count)");
        } else if e.until.as_deref().is_some_and(|u| !is_day(u)) {
            issue.message.push_str(" (an exception whose until= is not YYYY-MM-DD does not count)");
        } else if e.until.as_deref().is_some_and(|u| u < today) {
            let until = e.until.as_deref().unwrap_or_default();
            issue.message.push_str(&format!(" (expired-exception: it was allowed until {until})"));
        } else {
            issue.allowed = Some(Allowed { until: e.until.clone(), reason: e.reason.clone() });
        }
    }
}
