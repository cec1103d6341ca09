//! Verified request tokens, and patterns for what they say.

use std::fmt;
use std::str::FromStr;

use countersign_identity::UnixTime;
use countersign_jose::LEEWAY;
use serde_json::{Map, Value};

use crate::pattern::Pattern;

/// The claims of a token that was verified (RequestAuthentication), or that a preview supposes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Token {
    /// Every claim.
    pub claims: Map<String, Value>,
    /// Claims besides `scope` and `permission` that are lists separated by spaces.
    pub space_delimited: Vec<String>,
}

impl Token {
    /// With these claims.
    pub fn of_claims(claims: Map<String, Value>) -> Self {
        Self { claims, space_delimited: Vec::new() }
    }

    fn text(&self, name: &str) -> &str {
        self.claims.get(name).and_then(Value::as_str).unwrap_or_default()
    }

    /// `exp` with the leeway that verification gives it.
    pub fn expires_at(&self) -> Option<UnixTime> {
        let end = self.claims.get("exp").and_then(Value::as_f64)?;
        // Beyond that it never ends.
        (end.abs() < 9e15).then(|| UnixTime::from_secs(end as i64) + LEEWAY)
    }

    /// `iss`.
    pub fn issuer(&self) -> &str {
        self.text("iss")
    }

    /// `sub`.
    pub fn subject(&self) -> &str {
        self.text("sub")
    }

    /// `azp`.
    pub fn presenter(&self) -> &str {
        self.text("azp")
    }

    /// Whether some value of a claim matches. Numbers and booleans never do: Istio's matchers are for
    /// strings only.
    pub(crate) fn any(&self, path: &[String], mut matches: impl FnMut(&str) -> bool) -> bool {
        let Some((first, inner)) = path.split_first() else { return false };
        let Some(mut value) = self.claims.get(first) else { return false };
        for name in inner {
            let Some(next) = value.get(name) else { return false };
            value = next;
        }
        let spaced = inner.is_empty()
            && (first == "scope" || first == "permission" || self.space_delimited.contains(first));
        match value {
            Value::String(s) if spaced => s.split(' ').any(matches),
            Value::String(s) => matches(s),
            Value::Array(list) => list.iter().filter_map(Value::as_str).any(matches),
            _ => false,
        }
    }
}

/// A pattern for `issuer/subject`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RequestPrincipal {
    text: Box<str>,
    issuer: Pattern,
    /// `None`: the token must have no subject.
    subject: Option<Pattern>,
}

impl FromStr for RequestPrincipal {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let (issuer, subject) = match s.rsplit_once('/') {
            _ if s.is_empty() => return Err("is empty".into()),
            Some((issuer, subject)) => (issuer.parse()?, Some(subject.parse()?)),
            None if s == "*" => (Pattern::Present, Some(Pattern::Present)),
            None if s.starts_with('*') => (Pattern::Present, Some(s.parse()?)),
            None if s.ends_with('*') => (s.parse()?, Some(Pattern::Present)),
            None => (s.parse()?, None),
        };
        Ok(Self { text: s.into(), issuer, subject })
    }
}

impl fmt::Display for RequestPrincipal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl RequestPrincipal {
    pub(crate) fn matches(&self, token: &Token) -> bool {
        self.issuer.matches(token.issuer())
            && match &self.subject {
                Some(subject) => subject.matches(token.subject()),
                None => token.claims.get("sub").is_some_and(|s| s == ""),
            }
    }
}

/// `[a][b]` behind `request.auth.claims`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ClaimPath(pub(crate) Vec<String>);

impl FromStr for ClaimPath {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let wrong = || "is not of the form [NAME] or [NAME][NAME]…".to_owned();
        let inner = s.strip_prefix('[').and_then(|s| s.strip_suffix(']')).ok_or_else(wrong)?;
        let names: Vec<String> = inner.split("][").map(str::to_owned).collect();
        if names.len() > 8 || names.iter().any(|n| n.is_empty() || n.contains(['[', ']'])) {
            return Err(wrong());
        }
        Ok(Self(names))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn token(claims: Value) -> Token {
        Token { claims: claims.as_object().unwrap().clone(), space_delimited: Vec::new() }
    }

    #[test]
    fn request_principals_split_at_the_last_slash() {
        let t = token(json!({"iss": "https://idp.test", "sub": "alice"}));
        for (pattern, expected) in [
            ("*", true),
            ("https://idp.test/alice", true),
            ("https://idp.test/*", true),
            ("https://idp.test/a*", true),
            ("*/alice", true),
            ("*ice", true),
            ("https:*", true),
            ("https://idp.test", false),
            ("https://idp.test/bob", false),
        ] {
            let p: RequestPrincipal = pattern.parse().unwrap();
            assert_eq!(p.matches(&t), expected, "{pattern}");
        }
        assert!(!"*".parse::<RequestPrincipal>().unwrap().matches(&token(json!({"iss": "x"}))));
    }

    #[test]
    fn claims() {
        let t =
            token(json!({"g": ["a", "b"], "n": {"m": "x"}, "i": 1, "scope": "r w", "t": "r w"}));
        let has =
            |path: &str, value: &str| t.any(&path.parse::<ClaimPath>().unwrap().0, |v| v == value);
        assert!(has("[g]", "b") && has("[n][m]", "x") && has("[scope]", "w"));
        assert!(!has("[i]", "1") && !has("[t]", "w") && !has("[n]", "x") && !has("[z]", ""));
        for bad in ["", "a", "[]", "[a", "[a][]", "[[a]]"] {
            assert!(bad.parse::<ClaimPath>().is_err(), "{bad}");
        }
    }
}
