//! Value patterns: exact, `prefix*`, `*suffix`, `*`; CIDRs; path templates.

use std::net::IpAddr;
use std::str::FromStr;

/// Which way a doubtful match goes. A pattern that grants must not reach further than its author saw; a
/// pattern that refuses must not fall short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// For ALLOW, and for exceptions of DENY.
    Narrow,
    /// For DENY, and for exceptions of ALLOW.
    Wide,
}

/// A string pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Pattern {
    Exact(String),
    Prefix(String),
    Suffix(String),
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
        let pattern = if let Some(rest) = s.strip_prefix('*') {
            Pattern::Suffix(rest.to_owned())
        } else if let Some(rest) = s.strip_suffix('*') {
            Pattern::Prefix(rest.to_owned())
        } else {
            Pattern::Exact(s.to_owned())
        };
        let literal = match &pattern {
            Pattern::Exact(t) | Pattern::Prefix(t) | Pattern::Suffix(t) => t,
            Pattern::Present => "",
        };
        if literal.contains('*') {
            return Err("`*` is allowed only at the beginning or at the end".into());
        }
        Ok(pattern)
    }
}

impl Pattern {
    /// Plain string matching.
    pub(crate) fn matches(&self, value: &str) -> bool {
        match self {
            Pattern::Exact(t) => value == t,
            Pattern::Prefix(t) => value.starts_with(t.as_str()),
            Pattern::Suffix(t) => value.ends_with(t.as_str()),
            Pattern::Present => !value.is_empty(),
        }
    }

    /// Matching where `/` separates segments. With narrow reach `*` covers whole segments only where
    /// the pattern shows the boundary (`corp.test/ns/prod/*`); otherwise it stays within its segment, so
    /// that `ns/prod*` does not grant `ns/prod-evil/sa/x`.
    pub(crate) fn matches_segments(&self, value: &str, reach: Reach) -> bool {
        let covered = match self {
            Pattern::Prefix(t) if !t.ends_with('/') => value.strip_prefix(t.as_str()),
            Pattern::Suffix(t) if !t.starts_with('/') => value.strip_suffix(t.as_str()),
            _ => return self.matches(value),
        };
        covered.is_some_and(|rest| reach == Reach::Wide || !rest.contains('/'))
    }

    /// Case-insensitive, with and without the port and a trailing dot, for hosts.
    pub(crate) fn matches_host(&self, host: &str) -> bool {
        let host = host.to_ascii_lowercase();
        let without_port = match host.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
            _ => &host,
        };
        let lower = match self {
            Pattern::Exact(t) => Pattern::Exact(t.to_ascii_lowercase()),
            Pattern::Prefix(t) => Pattern::Prefix(t.to_ascii_lowercase()),
            Pattern::Suffix(t) => Pattern::Suffix(t.to_ascii_lowercase()),
            Pattern::Present => Pattern::Present,
        };
        lower.matches(&host)
            || lower.matches(without_port)
            || lower.matches(without_port.trim_end_matches('.'))
    }
}

/// A path pattern: a [`Pattern`], or a template with `{*}` (one segment) and `{**}` (any number).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PathPattern {
    Plain(Pattern),
    Template(Vec<Segment>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Segment {
    Literal(String),
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
                literal => Segment::Literal(literal.to_owned()),
            };
            if rest_seen && segment != Segment::Literal(part.to_owned()) {
                return Err("no `{*}` or `{**}` may follow `{**}`".into());
            }
            rest_seen |= segment == Segment::Rest;
            segments.push(segment);
        }
        Ok(PathPattern::Template(segments))
    }
}

impl PathPattern {
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
            // Only literals follow: the path must end in them, after a slash.
            let tail: Vec<&str> = after
                .iter()
                .map(|s| if let Segment::Literal(t) = s { t.as_str() } else { "" })
                .collect();
            path.ends_with(&format!("/{}", tail.join("/")))
        }
        one => {
            let (head, rest) = match path.split_once('/') {
                Some((h, r)) => (h, Some(r)),
                None => (path, None),
            };
            let fits = match one {
                Segment::Literal(t) => head == t,
                _ => !head.is_empty(),
            };
            fits && match rest {
                None => last,
                Some(rest) => !last && template(after, rest),
            }
        }
    }
}

/// An address block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cidr {
    base: IpAddr,
    bits: u8,
}

impl FromStr for Cidr {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let (address, bits) = match s.split_once('/') {
            Some((a, b)) => (a, Some(b)),
            None => (s, None),
        };
        let base: IpAddr = address
            .parse()
            .map_err(|_| format!("`{}` is not an IP address", s.escape_default()))?;
        let most = if base.is_ipv4() { 32 } else { 128 };
        let bits = match bits {
            None => most,
            Some(b) => b
                .parse::<u8>()
                .ok()
                .filter(|b| *b <= most)
                .ok_or_else(|| format!("prefix length must be 0 to {most}"))?,
        };
        Ok(Self { base, bits })
    }
}

impl Cidr {
    pub(crate) fn contains(self, ip: IpAddr) -> bool {
        // An IPv4-mapped address is the IPv4 address it maps.
        let number = |ip: IpAddr| match ip.to_canonical() {
            IpAddr::V4(v4) => (u128::from(u32::from(v4)) << 96, true),
            IpAddr::V6(v6) => (u128::from(v6), false),
        };
        let ((base, base4), (ip, ip4)) = (number(self.base), number(ip));
        base4 == ip4 && (self.bits == 0 || (base ^ ip) >> (128 - u32::from(self.bits)) == 0)
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
        assert!(!p("*").matches(""));
        assert!("".parse::<Pattern>().is_err());
        for bad in ["a*b", "*a*", "**"] {
            assert!(bad.parse::<Pattern>().is_err(), "{bad}");
        }
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

    #[test]
    fn ap_20_hosts() {
        assert!(p("Example.com").matches_host("example.com:8443"));
        assert!(p("example.com").matches_host("example.com."));
        assert!(p("*.example.com").matches_host("a.example.com:443"));
        assert!(!p("example.com").matches_host("example.com.evil"));
    }

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

    #[test]
    fn cidrs() {
        let c = |s: &str| s.parse::<Cidr>().unwrap();
        let ip = |s: &str| s.parse::<IpAddr>().unwrap();
        assert!(c("10.0.0.0/8").contains(ip("10.9.9.9")));
        assert!(!c("10.0.0.0/8").contains(ip("11.0.0.0")));
        assert!(c("10.0.0.1").contains(ip("::ffff:10.0.0.1")), "mapped");
        assert!(c("0.0.0.0/0").contains(ip("1.2.3.4")) && !c("0.0.0.0/0").contains(ip("::1")));
        assert!(c("2001:db8::/32").contains(ip("2001:db8::1")));
        for bad in ["10.0.0.0/33", "10.0.0", "x", "10.0.0.0/-1", "10.0.0.0/"] {
            assert!(bad.parse::<Cidr>().is_err(), "{bad}");
        }
    }
}
