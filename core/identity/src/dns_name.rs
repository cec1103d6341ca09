//! DNS names for SANs.

use std::fmt;
use std::str::FromStr;

/// A DNS name for a SAN: lower-case labels of letters, digits and hyphens, optionally `*.` in front;
/// at most 253 bytes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DnsName(String);

/// The text is not a DNS name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a DNS name")]
pub struct DnsNameError(String);

impl DnsName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for DnsName {
    type Err = DnsNameError;
    fn from_str(s: &str) -> Result<Self, DnsNameError> {
        let labels = s.strip_prefix("*.").unwrap_or(s);
        let good = !labels.is_empty()
            && s.len() <= 253
            && labels.split('.').all(|l| {
                (1..=63).contains(&l.len())
                    && !l.starts_with('-')
                    && !l.ends_with('-')
                    && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            });
        if good {
            Ok(Self(s.to_ascii_lowercase()))
        } else {
            let shown: String = s.chars().take(80).flat_map(char::escape_default).collect();
            Err(DnsNameError(shown))
        }
    }
}

impl fmt::Display for DnsName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_names_and_refuses_the_rest() {
        for good in ["web", "web.corp.test", "*.corp.test", "WEB", "1a.b"] {
            assert!(good.parse::<DnsName>().is_ok(), "{good}");
        }
        for bad in ["", "*", "*.", "a..b", "-a", "a-", "a_b", "a b", "a.*.b", ".a", &"a".repeat(64)]
        {
            assert!(bad.parse::<DnsName>().is_err(), "{bad}");
        }
    }
}
