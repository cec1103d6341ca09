//! Trust domain names (SPIFFE-ID §2.1).

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::SpiffeId;

/// The name of a trust domain: 1 to 255 bytes of `[a-z0-9._-]`, lower case.
///
/// Cheap to clone. Equality is exact equality of the normalised name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TrustDomain(Arc<str>);

/// Why a string is not a trust domain name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TrustDomainError {
    /// SPIFFE-ID §2.1: the name must not be empty.
    #[error("trust domain name is empty")]
    Empty,
    /// SPIFFE-ID §2.3: at most 255 bytes.
    #[error("trust domain name has {0} bytes; the limit is {max}", max = TrustDomain::MAX_LEN)]
    TooLong(usize),
    /// SPIFFE-ID §2.1: only `[a-z0-9._-]`; no port, user information or percent-encoding.
    #[error(
        "trust domain name `{name}` has `{found}` at byte {at}; only a-z, 0-9, `.`, `-` and `_` are allowed"
    )]
    BadChar {
        /// The name as given, shortened to something printable.
        name: String,
        /// The offending character.
        found: char,
        /// Its byte offset.
        at: usize,
    },
}

impl TrustDomain {
    /// Longest name in bytes (SPIFFE-ID §2.3).
    pub const MAX_LEN: usize = 255;

    /// Parses a bare name (`corp.test`). Upper-case letters are folded (SPIFFE-ID §2.4).
    pub fn new(name: &str) -> Result<Self, TrustDomainError> {
        if name.is_empty() {
            return Err(TrustDomainError::Empty);
        }
        if name.len() > Self::MAX_LEN {
            return Err(TrustDomainError::TooLong(name.len()));
        }
        if let Some((at, found)) = name
            .char_indices()
            .find(|(_, c)| !matches!(c, 'a'..='z' | 'A'..='Z' | '0'..='9' | '.' | '-' | '_'))
        {
            return Err(TrustDomainError::BadChar {
                name: name.escape_default().to_string(),
                found,
                at,
            });
        }
        Ok(if name.bytes().any(|b| b.is_ascii_uppercase()) {
            Self(name.to_ascii_lowercase().into())
        } else {
            Self(name.into())
        })
    }

    /// Parses a bare name or the trust domain's own SPIFFE ID (`spiffe://corp.test`).
    pub fn from_name_or_id(text: &str) -> Result<Self, TrustDomainError> {
        let bare = match text.split_once("://") {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("spiffe") => rest,
            _ => text,
        };
        Self::new(bare)
    }

    /// The name, lower case.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The SPIFFE ID that names the trust domain itself (no path).
    pub fn id(&self) -> SpiffeId {
        SpiffeId::of_trust_domain(self)
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TrustDomain({})", self.0)
    }
}

impl FromStr for TrustDomain {
    type Err = TrustDomainError;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Self::new(s)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spiffe_id_2_1_trust_domain_charset() {
        for good in ["a", "corp.test", "a-b_c.9", "10.0.0.1", "x".repeat(255).as_str()] {
            assert!(TrustDomain::new(good).is_ok(), "{good}");
        }
        for bad in ["", "a b", "a/b", "a:8080", "u@a", "a%20b", "é", "a?b", "a#b", "[::1]"] {
            assert!(TrustDomain::new(bad).is_err(), "{bad}");
        }
        assert_eq!(TrustDomain::new(&"x".repeat(256)), Err(TrustDomainError::TooLong(256)));
    }

    #[test]
    fn spiffe_id_2_4_trust_domain_is_case_insensitive() {
        assert_eq!(TrustDomain::new("Corp.TEST").unwrap(), TrustDomain::new("corp.test").unwrap());
        assert_eq!(
            TrustDomain::from_name_or_id("SPIFFE://corp.test").unwrap().as_str(),
            "corp.test"
        );
    }
}
