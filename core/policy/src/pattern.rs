//! Value patterns: exact, `prefix*`, `*suffix`, `*`; hosts; address blocks; paths.

mod cidr;
mod host;
mod path;

use std::fmt;
use std::str::FromStr;

pub use cidr::Cidr;
pub(crate) use host::HostPattern;
pub(crate) use path::PathPattern;

/// Which way a doubtful match goes. A pattern that grants must not reach further than its author saw; a
/// pattern that refuses must not fall short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// For ALLOW, and for exceptions of DENY.
    Narrow,
    /// For DENY, and for exceptions of ALLOW.
    Wide,
}

impl Reach {
    /// The reach of a field's values: an exception's doubt counts the other way.
    pub(crate) fn of_values(self, negated: bool) -> Self {
        match (self, negated) {
            (Reach::Wide, false) | (Reach::Narrow, true) => Reach::Wide,
            _ => Reach::Narrow,
        }
    }
}

/// A string pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Pattern {
    Exact(Box<str>),
    Prefix(Box<str>),
    Suffix(Box<str>),
    /// `*`: anything that is there and not empty.
    Present,
}

impl FromStr for Pattern {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        if s.is_empty() {
            return Err("is empty".into());
        }
        if s == "*" {
            return Ok(Pattern::Present);
        }
        let (pattern, literal): (fn(Box<str>) -> Pattern, &str) =
            if let Some(rest) = s.strip_prefix('*') {
                (Pattern::Suffix, rest)
            } else if let Some(rest) = s.strip_suffix('*') {
                (Pattern::Prefix, rest)
            } else {
                (Pattern::Exact, s)
            };
        // Istio takes such a star literally, which nobody means (AP-12).
        if literal.contains('*') {
            return Err("holds a `*` that is neither its beginning nor its end".into());
        }
        Ok(pattern(literal.into()))
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Pattern::Exact(t) => f.write_str(t),
            Pattern::Prefix(t) => write!(f, "{t}*"),
            Pattern::Suffix(t) => write!(f, "*{t}"),
            Pattern::Present => f.write_str("*"),
        }
    }
}

impl Pattern {
    /// Plain string matching.
    pub(crate) fn matches(&self, value: &str) -> bool {
        match self {
            Pattern::Exact(t) => value == &**t,
            Pattern::Prefix(t) => value.starts_with(&**t),
            Pattern::Suffix(t) => value.ends_with(&**t),
            Pattern::Present => !value.is_empty(),
        }
    }

    /// As [`Pattern::matches`], but `*` takes whatever is there, even if it is empty (AP-13: headers).
    pub(crate) fn matches_present(&self, value: &str) -> bool {
        *self == Pattern::Present || self.matches(value)
    }

    /// Matching where `/` separates segments. With narrow reach `*` covers whole segments only where
    /// the pattern shows the boundary (`corp.test/ns/prod/*`); otherwise it stays within its segment, so
    /// that `ns/prod*` does not grant `ns/prod-evil/sa/x`.
    pub(crate) fn matches_segments(&self, value: &str, reach: Reach) -> bool {
        let covered = match self {
            Pattern::Prefix(t) if !t.ends_with('/') => value.strip_prefix(&**t),
            Pattern::Suffix(t) if !t.starts_with('/') => value.strip_suffix(&**t),
            _ => return self.matches(value),
        };
        covered.is_some_and(|rest| reach == Reach::Wide || !rest.contains('/'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn p(s: &str) -> Pattern {
        s.parse().unwrap()
    }

    #[test]
    fn ap_12_strings() {
        assert!(p("a*").matches("abc") && p("*c").matches("abc") && p("*").matches("x"));
        assert!(!p("a*").matches("ba") && !p("*c").matches("cb"));
        assert!("".parse::<Pattern>().is_err());
        for bad in ["a*b", "*a*", "**"] {
            assert!(bad.parse::<Pattern>().is_err(), "{bad}");
        }
        for text in ["a", "a*", "*a", "*"] {
            assert_eq!(p(text).to_string(), text);
        }
    }

    #[test]
    fn ap_13_presence() {
        assert!(!p("*").matches(""), "of identities, paths, SNI, claims: not empty");
        assert!(p("*").matches_present(""), "of headers: there");
    }

    #[test]
    fn prefixes_never_cross_a_boundary_silently() {
        let prod = p("corp.test/ns/prod*");
        assert!(!prod.matches_segments("corp.test/ns/prod-evil/sa/x", Reach::Narrow));
        assert!(prod.matches_segments("corp.test/ns/prod-evil/sa/x", Reach::Wide));
        assert!(p("corp.test/ns/prod/*").matches_segments("corp.test/ns/prod/sa/x", Reach::Narrow));
        assert!(
            p("corp.test/ns/a/sa/web-*").matches_segments("corp.test/ns/a/sa/web-1", Reach::Narrow)
        );
        assert!(p("*/sa/web").matches_segments("corp.test/ns/a/sa/web", Reach::Narrow));
    }
}
