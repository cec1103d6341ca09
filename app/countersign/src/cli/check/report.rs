//! Groups of checks, as people and machines read them.

use countersign_findings::{Code, Finding};
use serde::{Serialize, Serializer};

use crate::output;

/// How a check ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(in crate::cli) enum Verdict {
    #[default]
    Success,
    Warning,
    Error,
}

/// One check.
#[derive(Clone, Debug, Serialize)]
pub(in crate::cli) struct Check {
    description: String,
    result: Verdict,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<Code>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
}

/// Checks of one part.
#[derive(Clone, Debug, Serialize)]
pub(in crate::cli) struct Category {
    #[serde(rename = "categoryName")]
    name: String,
    checks: Vec<Check>,
}

/// Everything.
#[derive(Clone, Debug, Default)]
pub(in crate::cli) struct Report {
    categories: Vec<Category>,
    /// Neither server nor agent answered, and nothing else was asked for.
    pub(in crate::cli) reached_nothing: bool,
}

impl Serialize for Report {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Shape<'a> {
            success: bool,
            categories: &'a [Category],
        }
        Shape { success: self.worst() < Verdict::Error, categories: &self.categories }.serialize(s)
    }
}

impl Report {
    /// The checks of one part; begun anew if it is not there yet.
    pub(in crate::cli) fn category(&mut self, name: &str) -> &mut Category {
        let at = self.categories.iter().position(|c| c.name == name).unwrap_or_else(|| {
            self.categories.push(Category { name: name.to_owned(), checks: Vec::new() });
            self.categories.len() - 1
        });
        &mut self.categories[at]
    }

    pub(in crate::cli) fn is_empty(&self) -> bool {
        self.categories.iter().all(|c| c.checks.is_empty())
    }

    pub(in crate::cli) fn worst(&self) -> Verdict {
        let all = self.categories.iter().flat_map(|c| &c.checks).map(|c| c.result);
        all.max().unwrap_or_default()
    }

    pub(in crate::cli) fn print(&self, short: bool) -> Result<(), Finding> {
        for category in &self.categories {
            let shown: Vec<&Check> =
                category.checks.iter().filter(|c| !short || c.result != Verdict::Success).collect();
            if shown.is_empty() {
                continue;
            }
            output::line(&category.name)?;
            output::line(&"-".repeat(category.name.chars().count()))?;
            for check in shown {
                let mark = match check.result {
                    Verdict::Success => "ok  ",
                    Verdict::Warning => "warn",
                    Verdict::Error => "FAIL",
                };
                let code = check.code.map(|c| format!(" [{c}]")).unwrap_or_default();
                output::line(&format!("{mark} {}{code}", check.description))?;
                for text in check.error.iter() {
                    output::line(&format!("       {text}"))?;
                }
                for text in check.hint.iter() {
                    output::line(&format!("       hint: {text}"))?;
                }
            }
            output::line("")?;
        }
        let count = |v: Verdict| {
            self.categories.iter().flat_map(|c| &c.checks).filter(|c| c.result == v).count()
        };
        let (bad, warnings) = (count(Verdict::Error), count(Verdict::Warning));
        let all = bad + warnings + count(Verdict::Success);
        output::line(&format!(
            "{}: {all} checks, {bad} failed, {warnings} warnings",
            if bad > 0 { "FAILED" } else { "ok" }
        ))
    }
}

impl Category {
    pub(in crate::cli) fn ok(&mut self, description: impl Into<String>) {
        self.push(description, Verdict::Success, None, None, None);
    }

    pub(in crate::cli) fn warn(&mut self, description: impl Into<String>, finding: &Finding) {
        self.with(description, Verdict::Warning, finding);
    }

    pub(in crate::cli) fn fail(&mut self, description: impl Into<String>, finding: &Finding) {
        self.with(description, Verdict::Error, finding);
    }

    pub(in crate::cli) fn with(
        &mut self,
        description: impl Into<String>,
        result: Verdict,
        finding: &Finding,
    ) {
        let mut text = finding.message.clone();
        if let Some(place) = &finding.place {
            text = format!("{place}: {text}");
        }
        for (what, value) in [
            ("expected", &finding.expected),
            ("presented", &finding.presented),
            ("trusted", &finding.trusted),
        ] {
            if let Some(value) = value {
                text.push_str(&format!("; {what} {value}"));
            }
        }
        let hint = finding.hint.to_string();
        self.push(description, result, Some(finding.code), Some(text), Some(hint));
    }

    fn push(
        &mut self,
        description: impl Into<String>,
        result: Verdict,
        code: Option<Code>,
        error: Option<String>,
        hint: Option<String>,
    ) {
        let description = description.into();
        self.checks.push(Check { description, result, code, error, hint });
    }
}
