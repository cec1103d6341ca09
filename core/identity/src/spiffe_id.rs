//! SPIFFE IDs (SPIFFE-ID §2).

use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;
use std::sync::Arc;

use crate::{TrustDomain, TrustDomainError};

/// A SPIFFE ID: `spiffe://<trust domain>[/<path>]`, normalised, at most 2048 bytes.
///
/// Holds the trust domain separately so that comparing domains never parses. Cheap to clone.
#[derive(Clone)]
pub struct SpiffeId {
    trust_domain: TrustDomain,
    /// The whole URI; the path is its tail.
    uri: Arc<str>,
}

/// Why a string is not a SPIFFE ID. Each variant names the section of SPIFFE-ID that it breaks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// §2: the scheme must be `spiffe`.
    #[error("`{0}` does not start with `spiffe://`")]
    Scheme(String),
    /// §2.3: at most 2048 bytes.
    #[error("the id has {0} bytes; the limit is {max}", max = SpiffeId::MAX_LEN)]
    TooLong(usize),
    /// §2.1.
    #[error(transparent)]
    TrustDomain(#[from] TrustDomainError),
    /// §2: neither query nor fragment.
    #[error("a SPIFFE ID has no query and no fragment (found `{0}`)")]
    QueryOrFragment(char),
    /// §2.2: no empty segment, hence no `//` and no trailing `/`.
    #[error("path `{0}` has an empty segment or ends in `/`")]
    EmptySegment(String),
    /// §2.2: no `.` and no `..` segment.
    #[error("path `{0}` has a `.` or `..` segment")]
    DotSegment(String),
    /// §2.2: only `[a-zA-Z0-9._-]` in a segment; no percent-encoding.
    #[error(
        "path `{path}` has `{found}`; a segment may hold only letters, digits, `.`, `-` and `_`"
    )]
    BadChar {
        /// The path as given.
        path: String,
        /// The offending character.
        found: char,
    },
    /// A path was given that does not start with `/`.
    #[error("path `{0}` must start with `/`")]
    NoLeadingSlash(String),
}

impl SpiffeId {
    /// Longest URI in bytes (SPIFFE-ID §2.3).
    pub const MAX_LEN: usize = 2048;

    /// Parses a URI. Scheme and trust domain are folded to lower case (§2.4).
    pub fn parse(uri: &str) -> Result<Self, IdError> {
        if uri.len() > Self::MAX_LEN {
            return Err(IdError::TooLong(uri.len()));
        }
        let rest = match uri.get(..9) {
            Some(s) if s.eq_ignore_ascii_case("spiffe://") => &uri[9..],
            _ => {
                let shown: String = uri.chars().take(40).flat_map(char::escape_default).collect();
                return Err(IdError::Scheme(shown));
            }
        };
        if let Some(c) = rest.chars().find(|c| matches!(c, '?' | '#')) {
            return Err(IdError::QueryOrFragment(c));
        }
        let (domain, path) = match rest.find('/') {
            Some(i) => rest.split_at(i),
            None => (rest, ""),
        };
        Self::build(TrustDomain::new(domain)?, path)
    }

    /// The ID `spiffe://<trust_domain><path>`; `path` is empty or starts with `/`.
    pub fn from_path(trust_domain: &TrustDomain, path: &str) -> Result<Self, IdError> {
        Self::build(trust_domain.clone(), path)
    }

    fn build(trust_domain: TrustDomain, path: &str) -> Result<Self, IdError> {
        check_path(path)?;
        let uri = format!("spiffe://{trust_domain}{path}");
        if uri.len() > Self::MAX_LEN {
            return Err(IdError::TooLong(uri.len()));
        }
        Ok(Self { trust_domain, uri: uri.into() })
    }

    pub(crate) fn of_trust_domain(trust_domain: &TrustDomain) -> Self {
        Self { uri: format!("spiffe://{trust_domain}").into(), trust_domain: trust_domain.clone() }
    }

    /// The trust domain.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The path, empty or starting with `/`.
    pub fn path(&self) -> &str {
        &self.uri["spiffe://".len() + self.trust_domain.as_str().len()..]
    }

    /// The whole URI, normalised.
    pub fn as_str(&self) -> &str {
        &self.uri
    }

    /// The URI without its scheme, as Istio's `principals` name it: `corp.test/ns/shop/sa/web`.
    pub fn principal(&self) -> &str {
        &self.uri["spiffe://".len()..]
    }

    /// Whether the ID names a trust domain, not a workload (no path).
    pub fn is_trust_domain(&self) -> bool {
        self.path().is_empty()
    }

    /// Whether this ID belongs to `trust_domain`.
    pub fn is_member_of(&self, trust_domain: &TrustDomain) -> bool {
        self.trust_domain == *trust_domain
    }

    /// `(namespace, service account)` if the path is exactly `/ns/<namespace>/sa/<service account>`.
    pub fn namespace_and_service_account(&self) -> Option<(&str, &str)> {
        // On the path of every decision: byte positions instead of iterators.
        let rest = self.path().strip_prefix("/ns/")?;
        let (ns, rest) = rest.split_at(rest.bytes().position(|b| b == b'/')?);
        let sa = rest.strip_prefix("/sa/")?;
        (!sa.bytes().any(|b| b == b'/')).then_some((ns, sa))
    }

    /// The namespace, if the path is `/ns/<namespace>/sa/<service account>`.
    pub fn namespace(&self) -> Option<&str> {
        self.namespace_and_service_account().map(|(ns, _)| ns)
    }

    /// Whether the path is under SPIRE's reserved `/spire/` prefix (server, agents).
    pub fn is_reserved(&self) -> bool {
        let path = self.path();
        path == "/spire" || path.starts_with("/spire/")
    }
}

fn check_path(path: &str) -> Result<(), IdError> {
    if path.is_empty() {
        return Ok(());
    }
    let Some(segments) = path.strip_prefix('/') else {
        return Err(IdError::NoLeadingSlash(path.escape_default().to_string()));
    };
    for segment in segments.split('/') {
        match segment {
            "" => return Err(IdError::EmptySegment(path.escape_default().to_string())),
            "." | ".." => return Err(IdError::DotSegment(path.escape_default().to_string())),
            _ => {}
        }
        if let Some(found) = segment
            .chars()
            .find(|c| !matches!(c, 'a'..='z' | 'A'..='Z' | '0'..='9' | '.' | '-' | '_'))
        {
            return Err(IdError::BadChar { path: path.escape_default().to_string(), found });
        }
    }
    Ok(())
}

impl PartialEq for SpiffeId {
    fn eq(&self, other: &Self) -> bool {
        self.uri == other.uri
    }
}

impl Eq for SpiffeId {}

impl Hash for SpiffeId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.uri.hash(state);
    }
}

impl PartialOrd for SpiffeId {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for SpiffeId {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.uri.cmp(&other.uri)
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SpiffeId({})", self.uri)
    }
}

impl FromStr for SpiffeId {
    type Err = IdError;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Self::parse(s)
    }
}

#[cfg(test)]
mod tests;
