//! External engines: who is asked about a request that a CUSTOM policy matches, and what came of it (AP-3).

use std::sync::Arc;

use crate::decision::RuleName;
use crate::document::header_name;
use crate::request_auth::Authenticated;

/// What an engine said about one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct External {
    /// Which one was asked; the answer of another one does not count.
    pub provider: Arc<str>,
    /// What it said.
    pub answer: Answer,
}

/// An engine's answer, or why there is none. Everything but the first refuses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// As far as it is concerned, go ahead.
    Allowed,
    /// Refused, in its words.
    Denied(String),
    /// It did not answer in time, or not in a way that can be understood.
    Failed(String),
    /// It cannot be asked at all.
    Misconfigured(String),
}

/// An engine must be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Consultation {
    /// Which one.
    pub provider: Arc<str>,
    /// The rule that wants it.
    pub rule: RuleName,
}

/// What an engine that allows wants changed about the request. Names are in lower case.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Edits {
    /// Fields that take the place of those of that name.
    pub set: Vec<(String, String)>,
    /// Fields that join those of that name.
    pub append: Vec<(String, String)>,
    /// Fields that must not reach the application.
    pub remove: Vec<String>,
    /// Query parameters that must not reach the application.
    pub remove_parameters: Vec<String>,
}

impl Edits {
    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Adds the changes to those that the request's token led to; `fields` are the request's as judged.
    pub fn apply(&self, fields: &[(&str, &str)], to: &mut Authenticated) {
        for name in &self.remove {
            to.add_headers.retain(|(n, _)| n != name);
            to.remove_headers.push(name.clone());
        }
        for (name, value) in &self.set {
            to.add_headers.retain(|(n, _)| n != name);
            to.add_headers.push((name.clone(), value.clone()));
        }
        for (name, value) in &self.append {
            // A field that we set replaces the request's own, so those come along.
            if !to.add_headers.iter().any(|(n, _)| n == name) {
                let own = fields.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name));
                to.add_headers.extend(own.map(|(_, v)| (name.clone(), (*v).to_owned())));
            }
            to.add_headers.push((name.clone(), value.clone()));
        }
        to.remove_parameters.extend(self.remove_parameters.iter().cloned());
    }
}

/// The name of a header field that an engine or a token may set, in lower case; `None` for those that say
/// where a message ends, where it goes, or who sent it.
pub fn settable_header(name: &str) -> Option<String> {
    header_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engines_changes_are_the_last_word_on_a_field() {
        let mut to = Authenticated {
            add_headers: vec![("x-user".into(), "token".into())],
            ..Authenticated::default()
        };
        let pair = |n: &str, v: &str| (n.to_owned(), v.to_owned());
        let edits = Edits {
            set: vec![pair("x-user", "engine")],
            append: vec![pair("x-role", "a"), pair("x-role", "b")],
            remove: vec!["authorization".into()],
            remove_parameters: vec!["token".into()],
        };
        edits.apply(&[("X-Role", "own"), ("Authorization", "s")], &mut to);
        let added: Vec<(&str, &str)> =
            to.add_headers.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        let wanted = [("x-user", "engine"), ("x-role", "own"), ("x-role", "a"), ("x-role", "b")];
        assert_eq!(added, wanted);
        assert_eq!(to.remove_headers, ["authorization"]);
        assert_eq!(settable_header("X-Forwarded-Client-Cert"), None);
        assert_eq!(settable_header("Transfer_Encoding"), None);
        assert_eq!(settable_header("X-User").as_deref(), Some("x-user"));
    }
}
