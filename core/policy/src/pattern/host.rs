//! Host patterns (AP-20).

use std::fmt;
use std::str::FromStr;

use super::{Pattern, Reach};

/// A pattern for the authority of a request, without regard to case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HostPattern(Pattern);

impl FromStr for HostPattern {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        s.to_ascii_lowercase().parse().map(Self)
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl HostPattern {
    /// Narrow: the authority as sent, port and all, as Istio does. Wide: also without the port and one
    /// trailing dot, which name the same host, so that a refusal cannot be got round by writing them.
    pub(crate) fn matches(&self, authority: &str, reach: Reach) -> bool {
        if self.plain(authority) {
            return true;
        }
        if reach == Reach::Narrow {
            return false;
        }
        let host = match authority.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
            _ => authority,
        };
        self.plain(host) || self.plain(host.strip_suffix('.').unwrap_or(host))
    }

    fn plain(&self, value: &str) -> bool {
        let (value, n) = (value.as_bytes(), value.len());
        match &self.0 {
            Pattern::Exact(t) => value.eq_ignore_ascii_case(t.as_bytes()),
            Pattern::Prefix(t) => {
                n >= t.len() && value[..t.len()].eq_ignore_ascii_case(t.as_bytes())
            }
            Pattern::Suffix(t) => {
                n >= t.len() && value[n - t.len()..].eq_ignore_ascii_case(t.as_bytes())
            }
            // Whether a host is there, not what it says; an empty one is there too.
            Pattern::Present => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ap_20_hosts() {
        let h = |s: &str| s.parse::<HostPattern>().unwrap();
        for (pattern, host) in [
            ("Example.com", "example.com:8443"),
            ("example.com", "EXAMPLE.com."),
            ("*.example.com", "a.example.com:443"),
        ] {
            assert!(h(pattern).matches(host, Reach::Wide), "{pattern} {host}");
            assert!(!h(pattern).matches(host, Reach::Narrow), "{pattern} {host}");
        }
        assert!(h("Example.com").matches("eXample.com", Reach::Narrow));
        assert!(h("example.com:8443").matches("example.com:8443", Reach::Narrow));
        assert!(h("*.example.com").matches(".example.com", Reach::Narrow), "as Istio");
        assert!(!h("example.com").matches("example.com.evil", Reach::Wide));
    }
}
