//! What a review finds.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

use countersign_findings::Severity;
use countersign_x509::{hex, sha256};

use crate::rule::{Class, Confidence, Rule};
use crate::source::Context;

/// One finding with its place.
#[derive(Clone, Debug)]
pub struct Issue {
    /// `<class>/<where>-<shape>`.
    pub rule: String,
    /// Its class.
    pub class: &'static Class,
    /// What is wrong, in one line.
    pub message: String,
    /// What an attacker gains.
    pub why: String,
    /// The safer form.
    pub fix: String,
    /// How bad, where it stands.
    pub severity: Severity,
    /// How sure.
    pub confidence: Confidence,
    /// As given.
    pub path: String,
    /// From 1; 0 for a file as a whole.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// Last line.
    pub end_line: usize,
    /// Behind the last character.
    pub end_column: usize,
    /// The line, trimmed.
    pub evidence: String,
    /// Production code, a test or an example.
    pub context: Context,
    /// Other places that belong to it.
    pub related: Vec<Related>,
    /// A safe rewrite.
    pub edit: Option<Edit>,
    /// The exception that covers it.
    pub allowed: Option<Allowed>,
    /// The same wherever the line moves.
    pub fingerprint: String,
}

impl Issue {
    /// A finding of a rule on a file as a whole.
    pub(crate) fn of(rule: &Rule, path: &str, context: Context, severity: Severity) -> Self {
        Self {
            rule: rule.id.clone(),
            class: rule.class,
            message: rule.title.clone(),
            why: rule.why.clone(),
            fix: rule.fix.clone(),
            severity,
            confidence: rule.confidence,
            path: path.to_owned(),
            line: 0,
            column: 1,
            end_line: 0,
            end_column: 1,
            evidence: String::new(),
            context,
            related: Vec::new(),
            edit: None,
            allowed: None,
            fingerprint: String::new(),
        }
    }
}

/// Another place that belongs to a finding.
#[derive(Clone, Debug)]
pub struct Related {
    /// As given.
    pub path: String,
    /// From 1.
    pub line: usize,
    /// What is there.
    pub message: String,
}

/// Text to be put in the place of some bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edit {
    /// Bytes of the file.
    pub range: Range<usize>,
    /// What comes there.
    pub text: String,
}

/// An exception, as a comment wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allowed {
    /// `YYYY-MM-DD`.
    pub until: Option<String>,
    /// Why.
    pub reason: String,
}

/// Gives every issue its fingerprint: rule, path from `base`, the line without blanks, and which of several such
/// lines.
pub(crate) fn fingerprint(issues: &mut [Issue], base: &Path) {
    let mut seen = HashMap::new();
    let mut paths: HashMap<String, String> = HashMap::new();
    for issue in issues {
        let path = paths.entry(issue.path.clone()).or_insert_with_key(|given| {
            let whole = std::fs::canonicalize(given).unwrap_or_else(|_| given.into());
            whole.strip_prefix(base).unwrap_or(&whole).display().to_string()
        });
        let line: String = issue.evidence.split_whitespace().collect();
        let text = format!("{}\n{path}\n{line}", issue.rule);
        let count = seen.entry(text.clone()).or_insert(0_usize);
        let digest = hex(&sha256(format!("{text}\n{count}").as_bytes()));
        *count += 1;
        issue.fingerprint = digest[..32].to_owned();
    }
}
