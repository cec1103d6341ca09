//! One occurrence of a code: what was expected, what was presented, where, and what to do next.

use std::fmt;

use serde::Serialize;

use crate::Code;

/// One occurrence. Everything in it is for the owner of the side that reports it; a remote peer gets
/// only the code.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What kind.
    pub code: Code,
    /// What happened, one line.
    pub message: String,
    /// Where: file with line and column, address, or resource.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub place: Option<String>,
    /// What would have been accepted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expected: Option<String>,
    /// What was there instead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub presented: Option<String>,
    /// Which authorities were tried.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trusted: Option<String>,
    /// What to do next; the catalogue's hint unless a better one is known.
    pub hint: String,
}

impl Finding {
    /// A finding with the catalogue's own hint.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            place: None,
            expected: None,
            presented: None,
            trusted: None,
            hint: code.hint().to_owned(),
        }
    }

    /// Says where.
    #[must_use]
    pub fn at(mut self, place: impl Into<String>) -> Self {
        self.place = Some(place.into());
        self
    }

    /// Says what would have been accepted.
    #[must_use]
    pub fn expected(mut self, text: impl Into<String>) -> Self {
        self.expected = Some(text.into());
        self
    }

    /// Says what was there instead.
    #[must_use]
    pub fn presented(mut self, text: impl Into<String>) -> Self {
        self.presented = Some(text.into());
        self
    }

    /// Says which authorities were tried.
    #[must_use]
    pub fn trusted(mut self, text: impl Into<String>) -> Self {
        self.trusted = Some(text.into());
        self
    }

    /// Replaces the hint.
    #[must_use]
    pub fn hint(mut self, text: impl Into<String>) -> Self {
        self.hint = text.into();
        self
    }
}

impl fmt::Display for Finding {
    /// The form printed after `error`: first line, then one indented line for each fact.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}]: {}", self.code, self.message)?;
        let facts = [
            ("at", &self.place),
            ("expected", &self.expected),
            ("presented", &self.presented),
            ("trusted", &self.trusted),
        ];
        for (name, fact) in facts {
            if let Some(fact) = fact {
                write!(f, "\n  {name:<10} {fact}")?;
            }
        }
        if !self.hint.is_empty() {
            write!(f, "\n  hint:      {}", self.hint)?;
        }
        Ok(())
    }
}

impl std::error::Error for Finding {}

/// A whole error, causes included, in one line; libraries keep the cause that matters for the last.
pub fn with_causes(e: &dyn std::error::Error) -> String {
    let mut text = e.to_string();
    let mut source = e.source();
    while let Some(s) = source {
        let next = s.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        source = s.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_names_every_fact_once() {
        let f = Finding::new(Code::WrongSpiffeId, "peer is not the expected one")
            .at("127.0.0.1:8443")
            .expected("spiffe://a.test/web")
            .presented("spiffe://a.test/db")
            .hint("look again");
        assert_eq!(
            f.to_string(),
            "[CS1006]: peer is not the expected one\n  at         127.0.0.1:8443\n  \
             expected   spiffe://a.test/web\n  presented  spiffe://a.test/db\n  hint:      look again"
        );
    }

    #[test]
    fn json_has_the_code_as_text() {
        let json = serde_json::to_string(&Finding::new(Code::AgentBanned, "x")).unwrap();
        assert!(json.starts_with(r#"{"code":"CS4003","message":"x","#), "{json}");
    }
}
