//! Path patterns and templates (AP-22, AP-23).

use std::fmt;
use std::str::FromStr;

use super::Pattern;
use crate::path::{Normalization, normalize_as, normalize_part};

/// A path pattern: a [`Pattern`], or a template with `{*}` (one segment) and `{**}` (any number).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PathPattern {
    Plain(Pattern),
    Template(Vec<Segment>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Segment {
    Literal(Box<str>),
    One,
    Rest,
}

impl FromStr for PathPattern {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        if !s.contains('{') && !s.contains('}') {
            return s.parse().map(PathPattern::Plain);
        }
        let path = s.strip_prefix('/').ok_or("a path template starts with `/`")?;
        let mut segments = Vec::new();
        let mut rest_seen = false;
        for part in path.split('/') {
            let segment = match part {
                "{*}" => Segment::One,
                "{**}" => Segment::Rest,
                literal if literal.contains(['{', '}', '*']) => {
                    return Err("`{*}` and `{**}` must stand alone between slashes".into());
                }
                literal => Segment::Literal(literal.into()),
            };
            if rest_seen && !matches!(segment, Segment::Literal(_)) {
                return Err("no `{*}` or `{**}` may follow `{**}`".into());
            }
            rest_seen |= segment == Segment::Rest;
            segments.push(segment);
        }
        Ok(PathPattern::Template(segments))
    }
}

impl PathPattern {
    /// What every path that matches a template begins with.
    pub(crate) fn literal_prefix(&self) -> String {
        let PathPattern::Template(segments) = self else { return String::new() };
        let mut out = String::new();
        for segment in segments {
            out.push('/');
            match segment {
                Segment::Literal(t) => out.push_str(t),
                Segment::One | Segment::Rest => break,
            }
        }
        out
    }

    /// The pattern for paths in the normal form of `mode`.
    pub(crate) fn normalized(&self, mode: Normalization) -> Self {
        let pattern = match self {
            PathPattern::Plain(pattern) => pattern,
            PathPattern::Template(segments) => {
                let mut out = Vec::new();
                for segment in segments {
                    match segment {
                        // A slash that was escaped begins another segment.
                        Segment::Literal(t) if !t.is_empty() => {
                            let literal = normalize_part(t, mode);
                            let parts = literal.split('/').filter(|p| !p.is_empty());
                            out.extend(parts.map(|p| Segment::Literal(p.into())));
                        }
                        other => out.push(other.clone()),
                    }
                }
                return PathPattern::Template(out);
            }
        };
        PathPattern::Plain(match pattern {
            Pattern::Exact(t) => match normalize_as(t, mode) {
                Ok(normal) => Pattern::Exact(normal.into()),
                // No request has such a path: it is refused with 400.
                Err(_) => pattern.clone(),
            },
            // Dots at the end of a part may be the beginning of a name.
            Pattern::Prefix(t) => Pattern::Prefix(normalize_part(t, mode).into()),
            Pattern::Suffix(t) => Pattern::Suffix(normalize_part(t, mode).into()),
            Pattern::Present => Pattern::Present,
        })
    }

    pub(crate) fn matches(&self, path: &str) -> bool {
        match self {
            PathPattern::Plain(p) => p.matches(path),
            PathPattern::Template(segments) => {
                path.strip_prefix('/').is_some_and(|p| template(segments, p))
            }
        }
    }
}

fn template(segments: &[Segment], path: &str) -> bool {
    let Some((first, after)) = segments.split_first() else { return false };
    let last = after.is_empty();
    match first {
        Segment::Rest if last => true,
        Segment::Rest => {
            // Only literals follow: the path must end in them, each after a slash.
            let mut path = path;
            after.iter().rev().all(|s| {
                let Segment::Literal(t) = s else { return false };
                let Some(rest) = path.strip_suffix(&**t).and_then(|r| r.strip_suffix('/')) else {
                    return false;
                };
                path = rest;
                true
            })
        }
        one => {
            let (head, rest) = match path.split_once('/') {
                Some((h, r)) => (h, Some(r)),
                None => (path, None),
            };
            let fits = match one {
                Segment::Literal(t) => head == &**t,
                _ => !head.is_empty(),
            };
            fits && match rest {
                None => last,
                Some(rest) => !last && template(after, rest),
            }
        }
    }
}

impl fmt::Display for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PathPattern::Plain(p) => p.fmt(f),
            PathPattern::Template(segments) => segments.iter().try_for_each(|s| match s {
                Segment::Literal(t) => write!(f, "/{t}"),
                Segment::One => f.write_str("/{*}"),
                Segment::Rest => f.write_str("/{**}"),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ap_22_templates() {
        let t = |s: &str| s.parse::<PathPattern>().unwrap();
        let cases = [
            ("/foo/{*}", "/foo/bar", true),
            ("/foo/{*}", "/foo/", false),
            ("/foo/{*}", "/foo/bar/", false),
            ("/foo/{*}", "/foo/a/b", false),
            ("/foo/{**}", "/foo/", true),
            ("/foo/{**}", "/foo", false),
            ("/foo/{**}/", "/foo/bar/", true),
            ("/foo/{**}/", "/foo//", true),
            ("/foo/{**}/", "/foo/bar/baz.txt", false),
            ("/store/{**}/cart", "/store//cart", true),
            ("/store/{**}/cart", "/store/cart", false),
            ("/{**}/x", "/x", false),
        ];
        for (pattern, path, expected) in cases {
            assert_eq!(t(pattern).matches(path), expected, "{pattern} {path}");
        }
        for bad in ["/a{*}", "/{**}/{*}", "{*}", "/{x}"] {
            assert!(bad.parse::<PathPattern>().is_err(), "{bad}");
        }
    }
}
